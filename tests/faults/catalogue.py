"""Catalogue of the sixty faults, with the test that injects each one: figure T11.

A fault is "automated" if a test injects it, "simulated" if a test injects only its effect on the product, "missing" if
it has no test yet, and "needs hardware" if it cannot be injected on one machine without a GPU and Kubernetes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

State = Literal["automated", "simulated", "missing", "needs hardware"]
COMMIT = "faults/test_crashes.py::test_killed_at_any_operation_on_the_disk"
KILLS = "faults/test_kills_on_ray.py::test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened"
FENCE = "faults/test_fences.py::test_a_batch_of_mixed_versions_is_never_trained_on"
FULL = "faults/test_crashes.py::test_a_full_disk_ends_the_run_and_loses_nothing"
DAMAGE = "faults/test_damage.py::test_a_damaged_checkpoint_is_refused"
BAD_REWARD = "workers/test_rewards.py::test_an_answer_that_cannot_be_trusted_names_the_row"


@dataclass(frozen=True)
class Fault:
    """A fault and the test that injects it.

    Example: `Fault("F14", "one flipped bit in a shard", "automated", "faults/test_damage.py::test_…")`.
    """

    number: str
    what: str
    state: State
    test: str = ""  # file below tests/, and function
    why: str = ""  # what is simulated or missing, or which hardware it needs


FAULTS = (
    Fault("F1", "rollout actor killed while it generates", "automated", KILLS),
    Fault("F2", "rollout actor killed between rounds", "automated", KILLS),
    Fault("F3", "all rollout actors die", "automated",
          "faults/test_kills_on_ray.py::test_f3_all_engines_die_at_once_until_none_may_be_started_again"),
    Fault("F4", "engine hangs", "automated", "stack/test_restarts.py::test_a_stopped_process_counts_as_dead"),
    Fault("F5", "engine's child process left behind", "simulated", KILLS, "the engine runs in the actor's own "
          "process; after every attempt the test asserts that no actor is left behind"),
    Fault("F6", "learner rank killed in a step", "automated", KILLS),
    Fault("F7", "learner rank stopped inside a collective", "automated",
          "faults/test_kills_on_ray.py::test_a_stopped_process_is_reported"),
    Fault("F8", "killed while a checkpoint is written", "automated", COMMIT),
    Fault("F9", "killed after the checkpoint's data are written, before its pointer", "automated", COMMIT),
    Fault("F10", "killed while old checkpoints are removed", "automated", COMMIT),
    Fault("F11", "disk full during a checkpoint", "automated", FULL),
    Fault("F12", "disk full while appending to the ledger or the metrics", "automated", FULL),
    Fault("F13", "truncated checkpoint", "automated", DAMAGE),
    Fault("F14", "one flipped bit in a shard", "automated", DAMAGE),
    Fault("F15", "power cut", "simulated",
          "faults/test_crashes.py::test_a_power_cut_loses_what_was_not_fsynced_and_nothing_else",
          "a model of a disk that keeps only fsynced data"),
    Fault("F16", "run directory read-only or EIO", "automated",
          "faults/test_crashes.py::test_a_disk_that_cannot_be_written_ends_the_run_before_its_first_step"),
    Fault("F17", "reference worker dies during the refresh", "automated", KILLS),
    Fault("F18", "log-probabilities of the wrong reference version", "automated", FENCE),
    Fault("F19", "reward service times out", "automated",
          "faults/test_rewards_requested_again.py::test_a_service_that_does_not_answer_holds_the_step",
          "a reward function that calls an HTTP service, which is how a recipe uses a remote reward"),
    Fault("F20", "reward is NaN or infinite", "automated", BAD_REWARD),
    Fault("F21", "reward has the wrong length", "automated", BAD_REWARD),
    Fault("F22", "reward worker killed", "automated", KILLS),
    Fault("F23", "reward differs when requested again", "automated",
          "faults/test_rewards_requested_again.py::test_the_first_score_that_was_recorded_counts"),
    Fault("F24", "head lost, with fault tolerance", "automated",
          "faults/test_kills_on_ray.py::test_f24_a_head_that_is_killed_and_comes_back_from_redis",
          "requires a redis-server; the test before it needs none, and suspends the head for a while"),
    Fault("F25", "head lost, without fault tolerance", "automated",
          "faults/test_kills_on_ray.py::test_f25_a_head_that_is_lost_ends_the_attempt_and_the_next_cluster_resumes",
          "the test kills gcs_server and is marked `long`"),
    Fault("F26", "node lost", "automated",
          "faults/test_kills_on_ray.py::test_f26_a_machine_is_lost_and_another_takes_its_place",
          "the test kills a raylet with all its processes; several raylets share one machine"),
    Fault("F27", "preemption notice", "automated",
          "stack/test_resume.py::test_sigterm_ends_a_run_after_its_update_and_resume_ends_where_it_would_have_ended"),
    Fault("F28", "driver killed between sub-steps", "automated",
          "faults/test_crashes.py::test_killed_at_any_record_of_the_ledger"),
    Fault("F29", "driver killed, actors survive", "automated", KILLS, "no actor is detached, and none is left behind"),
    Fault("F30", "two drivers, one of them a zombie", "automated",
          "faults/test_fences.py::test_f30_a_driver_that_wakes_up_after_another_took_over_writes_nothing",
          "the test takes the lock away from the stopped driver"),
    Fault("F31", "the same job submitted twice", "automated",
          "orchestrator/cluster/test_jobs.py::test_f31_of_two_simultaneous_submissions_the_slower_finds_the_first"),
    Fault("F32", "two jobs with one run directory", "automated",
          "orchestrator/rundir/test_run_directory.py::test_f32_two_processes_cannot_hold_one_directory"),
    Fault("F33", "job cancelled", "automated",
          "stack/test_resume.py::test_sigterm_ends_a_run_after_its_update_and_resume_ends_where_it_would_have_ended"),
    Fault("F34", "second Ctrl-C during the save", "automated",
          "orchestrator/test_signals.py::test_a_second_ctrl_c_of_a_person_ends_the_run_at_once"),
    Fault("F35", "tracker down", "automated",
          "orchestrator/monitor/test_monitor.py::test_f35_wandb_that_hangs_delays_nothing"),
    Fault("F36", "model hub unreachable", "automated",
          "orchestrator/driver/test_hub.py::test_f36_without_a_copy_it_is_an_error_before_anything_is_started"),
    Fault("F37", "loss is NaN", "automated", "faults/test_numbers.py::test_what_is_not_finite_is_never_kept"),
    Fault("F38", "gradient explodes", "automated",
          "faults/test_alarmed_runs.py::test_gradients_that_explode_are_clipped_and_the_run_pauses"),
    Fault("F39", "weight publication applied only in part", "automated", FENCE),
    Fault("F40", "weights corrupted in transit", "automated",
          "faults/test_fences.py::test_a_publication_with_a_flipped_bit_is_never_sampled_from",
          "shared memory; adapters: workers/test_lora.py; NCCL has no checksum, only the alarm `engine_gap`"),
    Fault("F41", "prefix cache kept after a publication", "automated",
          "stack/test_logprobs.py::test_engine_learner_and_reference_agree_before_and_after_every_publication"),
    Fault("F42", "rollouts staler than the bound", "automated",
          "orchestrator/pipeline/test_versions.py::test_a_lagging_engine_may_answer_within_the_staleness_and_not_beyond"),
    Fault("F43", "network partition", "automated",
          "faults/test_kills_on_ray.py::test_f43_a_machine_is_cut_off_for_a_moment_and_then_for_good",
          "requires root: the node runs in its own network namespace"),
    Fault("F44", "reply lost", "automated",
          "faults/test_kills_on_ray.py::test_f44_a_reply_that_is_lost_has_its_effect_once"),
    Fault("F45", "host out of memory", "simulated",
          "faults/test_kills_on_ray.py::test_f45_a_machine_without_memory_is_named",
          "Ray's memory monitor kills processes (threshold below any use); the kernel's OOM killer does not act"),
    Fault("F46", "GPU out of memory", "needs hardware", why="requires a GPU"),
    Fault("F47", "object store or spill disk full", "automated",
          "faults/test_kills_on_ray.py::test_f47_a_full_store_on_a_full_disk_is_named",
          "the store is full; the disk only counts as full, because the threshold of Ray's monitor is below any use"),
    Fault("F48", "object lost with its owner", "automated", KILLS, "the owner is the killed actor"),
    Fault("F49", "clock jumps back", "automated", "faults/test_clocks.py::test_a_clock_that_jumps_back_changes_nothing",
          "the test replaces Python's `time.time`"),
    Fault("F50", "no file descriptors or processes left", "automated",
          "faults/test_kills_on_ray.py::test_f50_a_driver_at_its_file_limit_reports_it",
          "file descriptors; a process limit that is too low is refused (orchestrator/test_limits.py)"),
    Fault("F51", "preference file changed after round 1", "automated",
          "orchestrator/rundir/test_provenance.py::test_data_that_changed_are_refused_with_their_rows"),
    Fault("F52", "torn last record of the ledger", "automated",
          "orchestrator/rundir/test_ledger.py::test_a_tail_torn_at_any_byte_is_cut_off_and_written_over"),
    Fault("F53", "resume with another number of ranks", "automated",
          "workers/test_resharding.py::test_a_gang_of_another_size_resumes"),
    Fault("F54", "resume with an edited config", "automated",
          "orchestrator/driver/test_resume_overrides.py::test_settings_that_affect_training_may_not_change"),
    Fault("F55", "resume with other software", "automated",
          "orchestrator/rundir/test_provenance.py::test_other_software_is_one_line"),
    Fault("F56", "checkpoint expected, none found", "automated",
          "faults/test_damage.py::test_checkpoints_that_are_gone_never_mean_step_0"),
    Fault("F57", "state of a random generator missing", "automated", DAMAGE,
          "a checkpoint that lacks any of its files is refused"),
    Fault("F58", "one prompt crashes the engine every time", "automated",
          "faults/test_quarantine.py::test_a_prompt_that_kills_its_engine_each_time_is_left_out"),
    Fault("F59", "KubeRay creates a new cluster", "needs hardware", why="requires Kubernetes; every `rlhf resume` "
          "in stack/test_resume.py resumes from the same directory on a new local cluster"),
    Fault("F60", "shared storage lags", "simulated",
          "faults/test_damage.py::test_a_stale_directory_listing_is_read_again",
          "the first listings lack the latest checkpoint; outdated content of a file fails its checksum, as in F14"),
)  # fmt: skip


def table() -> str:
    """Return the catalogue as Markdown, headed by the number of faults in each state."""
    counts = Counter(fault.state for fault in FAULTS)
    states = ", ".join(f"{counts[state]} {state}" for state in ("automated", "simulated", "missing", "needs hardware"))
    rows = [f"| {f.number} | {f.what} | {f.state} | {f'`{f.test}`' if f.test else ''} | {f.why} |" for f in FAULTS]
    return "\n".join(
        [
            f"T11, faults by state: {states} ({len(FAULTS)} in all).",
            "",
            "| | fault | state | test | remarks |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
