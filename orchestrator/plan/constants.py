"""What cannot be derived: efficiencies and fixed costs, each with where it comes from. docs/plan.md says how good they
are; `rlhf plan --calibrate RUN` fits the first of them to a run of yours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """Shares of a GPU's peak unless a unit says otherwise."""

    train_mfu: float = 0.35  # chosen to suit three published training runs; ZeRO-3 with micro-batches of one row: 0.05
    score_mfu: float = 0.45  # assumed: a forward pass without gradients
    prefill_mfu: float = 0.55  # fitted to 16 TensorRT-LLM points
    decode_mbu: float = 0.60  # fitted to them, too: share of the memory's bandwidth
    decode_mfu: float = 0.70  # likewise
    sequence_s: float = 80e-6  # likewise: per running sequence and decoding step
    max_running: int = 512  # likewise; a recipe's engines have their own rollout.max_num_seqs
    length_sigma: float = 0.6  # spread of a log-normal response length; a guess, long reasoning is nearer 0.35
    publish_latency_s: float = 0.9  # fitted to 6 published transfers, with the next one
    sharded_bytes_per_s: float = 500e9  # every GPU sends its share
    broadcast_bytes_per_s: float = 11.5e9  # one rank sends everything, as this learner does: published 8 to 15
    disk_bytes_per_s: float = 1e9  # assumed: a shared file system, for adapters and a refreshed reference
    node_bytes_per_s: float = 400e9  # assumed: eight 400 Gb/s links per node of eight GPUs
    node_efficiency: float = 0.7  # assumed, of those links
    switch_s: float = 20.0  # colocated: sleep, offload, reshard, wake; fitted to two points at 8B and 32B
    colocated_publish_s: float = 4.0  # colocated: assumed
    update_overhead_s: float = 0.0  # per step of learning; only a calibration gives one
    generate_overhead_s: float = 0.0  # per step of generation; likewise


DEFAULT = Constants()
