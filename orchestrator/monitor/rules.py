"""Table of the alarm rules: the detector of each rule, and its explanation and remedy for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.monitor import detectors
from orchestrator.monitor.finding import Finding
from orchestrator.monitor.history import History
from orchestrator.monitor.reward_hacking import reward_hacking


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """An alarm rule."""

    detect: Callable[[History, Any], Finding | None]
    why: str  # why the finding matters
    fix: str  # what to try
    of_updates: bool = False  # judges optimiser updates, not steps
    why_in_doubt: str = ""  # why a finding that is not certain matters


RULES: Mapping[str, Rule] = {
    "chosen_falling": Rule(
        detect=detectors.chosen_falling,
        of_updates=True,
        why="the margin grows only because the rejected completions lose probability faster than the chosen ones; "
        "the probability moves to completions outside the pairs",
        fix="lower algorithm.learning_rate, raise algorithm.beta, set algorithm.sft_weight or dpop_lambda, or drop "
        "pairs that hardly differ (algorithm.pairs.min_margin)",
    ),
    "kl_budget": Rule(
        detect=detectors.kl_budget,
        why="far from the reference, the reward judges completions that it was not made for",
        fix="raise algorithm.beta (kl_coef), lower algorithm.learning_rate, stop earlier, or raise "
        "alarms.kl_budget.max_kl if the held-out metrics are still good",
    ),
    "length_drift": Rule(
        detect=detectors.length_drift,
        why="length is the easiest way to exploit a reward that depends on it, and long completions cost memory and "
        "time",
        fix="inspect samples/; remove length from the reward (algorithm.length_alpha, overlong_buffer), or raise "
        "alarms.length_drift.max_ratio if the new length is wanted",
    ),
    "pair_length_gap": Rule(
        detect=detectors.pair_length_gap,
        why="pairs that differ in length teach length, whatever else they express",
        fix="balance the lengths of the pairs, or use algorithm.length_alpha, ld_alpha or loss_type sigmoid_norm",
    ),
    "reward_hacking": Rule(
        detect=reward_hacking,
        why="the optimised reward and the intended behaviour have diverged",
        fix="compare samples/ before and after; fix the reward, raise the KL coefficient, or stop earlier",
    ),
    "repetition": Rule(
        detect=detectors.repetition,
        why="a reward that counts something can be raised by repeating it",
        fix="inspect samples/; penalise repetition in the reward, raise the KL coefficient, or lower "
        "max_completion_length",
    ),
    "entropy_collapse": Rule(
        detect=detectors.entropy_collapse,
        why="identical completions get identical rewards, so no learning signal is left",
        fix="lower algorithm.learning_rate, or raise algorithm.epsilon_high or the KL coefficient",
    ),
    "no_signal": Rule(
        detect=detectors.no_signal,
        why="a group with equal rewards has no gradient: the prompts are too easy or too hard, or the reward is broken",
        fix="inspect samples/ and the reward; use prompts of another difficulty, more num_generations, or "
        "dynamic_sampling",
    ),
    "engine_gap": Rule(
        detect=detectors.engine_gap,
        why="the engine samples from other probabilities than the learner trains on: stale weights or other arithmetic",
        fix="compare dtypes and versions of engine and learner, look for a failed weight publication, and see "
        "algorithm.vllm_importance_sampling_correction",
    ),
    "engine_mismatch": Rule(
        detect=detectors.engine_mismatch,
        why="the completions do not come from the distribution that the learner computes: every importance ratio is "
        "wrong",
        fix="do not use this model: check dtype, context length and RoPE of the engine, and report the model family; "
        "alarms: {engine_mismatch: {action: warn}} continues the run regardless",
    ),
    "judge_budget": Rule(
        detect=detectors.judge_budget,
        why="every step that follows is paid for as well",
        fix="raise it and go on: rlhf resume RUN alarms.judge_budget.max_requests=… (or max_cost); or show the judge "
        "fewer completions, with fewer opponents",
    ),
    "gradient_explosion": Rule(
        detect=detectors.gradient_explosion,
        of_updates=True,
        why="every update has the maximum length that clipping allows, in the direction of a few extreme samples",
        fix="lower algorithm.learning_rate, raise warmup_steps, inspect the rewards and advantages of the step in "
        "which it began, or lower algorithm.max_grad_norm",
    ),
    "staleness": Rule(
        detect=detectors.staleness,
        why="old completions are off-policy, and clipping discards their signal",
        fix="lower max_staleness, or give the rollout engines more devices",
    ),
    "reference_saturation": Rule(
        detect=detectors.reference_saturation,
        why="beyond 10 nats the sigmoid is flat: these pairs have no gradient and hide what other pairs teach",
        fix="set reference.refresh to when_drifted or every_round, lower the learning rate, or raise algorithm.beta",
    ),
    "safety_gate": Rule(
        detect=detectors.safety_gate,
        why="a gated metric certainly got worse during training, so the model is not written",
        why_in_doubt="a gated metric got worse on these prompts, which may be chance: the model is written",
        fix="use an earlier checkpoint, add prompts of that kind to the training data, raise the KL coefficient, or "
        "add held-out prompts for a narrower interval",
    ),
}
