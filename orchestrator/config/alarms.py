"""Settings of the alarms: one section per rule; `null` switches a rule off.

orchestrator/monitor/detectors.py computes the rules from a run's metrics. The comment on a field, beside or above it,
is its text in the configuration reference.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from workers.config import Count, NonNegative, Positive, Settings, Share

Action: TypeAlias = Literal["warn", "pause", "stop", "roll_back"]
"""Action of an alarm when it fires for the first time.

    warn: report only.
    pause: end the run after this step (iterative DPO: round); it can be resumed.
    stop: end the run for good.
    roll_back: return to an earlier checkpoint once; stop if the alarm fires again.
"""
Rows = Annotated[int, Field(ge=3)]


class AlarmRule(Settings):
    """Settings that all rules have."""

    # action when the alarm fires; warn: report only; pause: end the run after this step, resumable; stop: end it for
    # good; roll_back: return to an earlier checkpoint once, stop if the alarm fires again
    action: Action = "warn"
    # number of newest steps that the rule judges; None: 20 steps. In iterative DPO steps are rounds: None judges each
    # alone, by the standard error of its metrics
    window: Rows | None = None


class LevelRule(AlarmRule):
    """Rule on the level of a metric, not on its trend: fewer steps are enough."""

    # number of newest steps that the rule judges; None: 5 steps. In iterative DPO steps are rounds: None judges each
    # alone, by the standard error of its metrics, or 3 rounds where a metric has none
    window: Rows | None = None


class ChosenFalling(AlarmRule):
    """Alarm: the log-probability of chosen completions falls while the loss falls."""

    # number of newest optimiser updates that the rule judges; None: 20. All updates of a round, or of a run without
    # rounds, are judged as well, as this number of means
    window: Rows | None = None
    min_fall: Positive = 0.1  # fall that counts, as a share of the log-probability's size at the start of the window


class KlBudget(LevelRule):
    """Alarm: the KL(policy‖reference) is over its budget."""

    # budget in nats per completion (k1 estimate); reward models were over-optimised from 25 to 60 nats on (arXiv
    # 2210.10760)
    max_kl: Positive = 25.0


class LengthDrift(LevelRule):
    """Alarm: completions have become much longer, or shorter, than in the first steps."""

    # factor by which the length may grow or shrink, relative to the first steps
    max_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0


class PairLengthGap(AlarmRule):
    """Alarm: chosen completions are longer, or shorter, than rejected ones, so that the policy learns length."""

    max_gap: Positive = 0.25  # difference of chosen and rejected length, as a share of the mean length of both


class RewardHacking(AlarmRule):
    """Alarm: the reward rises while another scorer, or the reward on held-out prompts, falls."""

    min_fall: Positive = 0.25  # fall of the other scorer that counts, in its standard deviations over completions


class Repetition(LevelRule):
    """Alarm: completions end in repetition or padding."""

    max_share: Share = 0.3  # share of a completion's tokens in a tail that repeats itself


class EntropyCollapse(LevelRule):
    """Alarm: the policy's entropy has collapsed although the reward has not improved."""

    min_share: Share = 0.1  # entropy, as a share of that in the first steps


class NoSignal(LevelRule):
    """Alarm: nearly all groups have equal rewards, thus no gradient, and the reward has not improved."""

    max_share: Share = 0.9  # share of groups whose rewards are all equal


class EngineGap(LevelRule):
    """Alarm: engine and learner compute different log-probabilities for the same tokens."""

    max_difference: Positive = 0.1  # difference in nats per token, and again for each version the engine is behind
    # factor by which the difference may grow relative to the first steps; ignored below 0.001 nats per token
    max_jump: Positive = 100.0


class EngineMismatch(Settings):
    """Alarm: the engine samples from another distribution than the learner computes. Judged step by step."""

    max_difference: Positive | None = None  # difference in nats per token; None: 0.02 in float32, 0.3 in bfloat16
    action: Action = "stop"  # action when the alarm fires; values as for the other alarms


class JudgeBudget(Settings):
    """Alarm: the judges of the run have used up their budget. Judged after each step, over the whole run."""

    max_requests: Count | None = None  # requests to all judges, retries included; None: no limit
    max_cost: Positive | None = None  # dollars, by the judges' `price`; None: no limit
    action: Action = "pause"  # action when the budget is used up; values as for the other alarms


class GradientExplosion(LevelRule):
    """Alarm: gradients are so large that clipping leaves only their direction."""

    # number of newest optimiser updates that the rule judges; None: 5
    window: Rows | None = None
    max_norm: Positive = 100.0  # gradient norm before clipping; the shipped recipes stay below 15
    max_jump: Positive = 10.0  # factor by which the norm must also exceed that of the first updates


class Staleness(LevelRule):
    """Alarm: the policy is trained on completions that were sampled long before."""

    max_mean: Positive = 4.0  # mean staleness of the completions in versions


class ReferenceSaturation(LevelRule):
    """Alarm: pairs have no gradient because the policy is far from the reference, which is not refreshed."""

    max_share: Share = 0.2  # share of completions whose log-ratio to the reference is beyond ±10 nats


class SafetyGate(Settings):
    """Gate on held-out metrics: a model that is certainly worse than the one the run started from is not promoted,
    whatever the action. A change is certain if the lower bound of its 95 % interval exceeds the limit; one that may be
    chance only warns. Refusals are judged if the recipe has data.eval_harmful and data.eval_benign."""

    max_refusal_fall: Share = 0.02  # allowed fall of the share of harmful prompts that are refused
    max_over_refusal_rise: Share = 0.05  # allowed rise of the share of benign prompts that are refused
    # further metrics to guard, where higher is better: eval/reward, eval/rewards/NAME/mean
    metrics: tuple[str, ...] = ()
    max_fall: NonNegative = 0.02  # allowed fall of each of these metrics, in its own unit
    action: Action = "stop"  # action when the gate closes; values as for the other alarms


class AlarmsConfig(Settings):
    """Alarms of a run, their thresholds and actions. None switches an alarm off."""

    # alarm on chosen completions that become less likely while the loss falls
    chosen_falling: ChosenFalling | None = ChosenFalling()
    kl_budget: KlBudget | None = KlBudget()  # alarm on the KL to the reference
    length_drift: LengthDrift | None = LengthDrift()  # alarm on completions that become longer or shorter
    pair_length_gap: PairLengthGap | None = PairLengthGap()  # alarm on pairs that differ in length
    # alarm on a reward that rises while another scorer or the held-out reward falls
    reward_hacking: RewardHacking | None = RewardHacking()
    repetition: Repetition | None = Repetition()  # alarm on completions that end in repetition
    entropy_collapse: EntropyCollapse | None = EntropyCollapse()  # alarm on an entropy that collapses
    no_signal: NoSignal | None = NoSignal()  # alarm on groups whose rewards are all equal
    engine_gap: EngineGap | None = EngineGap()  # alarm on log-probabilities of engine and learner that drift apart
    # alarm on an engine that samples from another distribution than the learner computes
    engine_mismatch: EngineMismatch | None = EngineMismatch()
    judge_budget: JudgeBudget | None = JudgeBudget()  # alarm on the requests to judges and their cost
    gradient_explosion: GradientExplosion | None = GradientExplosion()  # alarm on the gradient norm
    staleness: Staleness | None = Staleness()  # alarm on completions of old versions
    # alarm on pairs without a gradient because the policy is far from the reference
    reference_saturation: ReferenceSaturation | None = ReferenceSaturation()
    safety_gate: SafetyGate | None = SafetyGate()  # gate on refusals and other held-out metrics
