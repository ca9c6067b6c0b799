"""Efficiencies and fixed costs that cannot be derived, each with its source.

docs/evidence/back_test.md compares them with published runs; `rlhf plan --calibrate RUN` fits some of them to a run.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """Shares of a GPU's peak, unless the name has a unit."""

    train_mfu: float = 0.35  # chosen for three published training runs; 0.05 for ZeRO-3 with one-row micro-batches
    score_mfu: float = 0.45  # assumed: a forward pass without gradients
    prefill_mfu: float = 0.55  # fitted to 16 TensorRT-LLM points
    decode_mbu: float = 0.60  # share of the memory bandwidth; fitted to the same 16 points
    decode_mfu: float = 0.70  # fitted to the same 16 points
    sequence_s: float = 80e-6  # per running sequence and decoding step; fitted to the same 16 points
    max_running: int = 512  # sequences of an engine in those points; a recipe's engines have rollout.max_num_seqs
    length_sigma: float = 0.6  # sigma of the log-normal response lengths; a guess, long reasoning is nearer 0.35
    publish_latency_s: float = 0.9  # fitted to 6 published weight transfers, together with sharded_bytes_per_s
    sharded_bytes_per_s: float = 500e9  # every GPU sends its shard
    broadcast_bytes_per_s: float = 11.5e9  # one rank sends all weights, as this learner does; published: 8 to 15 GB/s
    disk_bytes_per_s: float = 1e9  # assumed: a node's share of a shared file system: models, adapters, checkpoints
    process_start_s: float = 30.0  # assumed: imports, CUDA context, joining the other ranks
    engine_layer_start_s: float = 1.8  # compilation and CUDA graphs: 145 s published for 80 layers (vllm#19824)
    node_bytes_per_s: float = 400e9  # assumed: eight 400 Gb/s links per node of eight GPUs
    node_efficiency: float = 0.7  # assumed: usable share of those links
    switch_s: float = 20.0  # colocated: sleep, offload, reshard, wake; fitted to two points, at 8B and 32B
    colocated_publish_s: float = 4.0  # colocated: assumed
    update_overhead_s: float = 0.0  # per optimiser update; set by a calibration only
    generate_overhead_s: float = 0.0  # per generation phase of a step; no calibration fits it


DEFAULT = Constants()
