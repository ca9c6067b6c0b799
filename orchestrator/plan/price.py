"""Price a whole run before it starts: seconds and GPU-seconds by role, with what only measures counted apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.plan.constants import DEFAULT, Constants
from orchestrator.plan.gpus import Gpu
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.work import Lengths
from orchestrator.rundir.cost import measuring_roles


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPrice:
    """Price of one run. Every role holds its GPUs from the first to the last second.

    `method` and `loading` are what rundir/cost.py counts and leaves out; `measuring` is evaluation.
    """

    plan: Plan
    gpus: Mapping[str, int]  # by role, of the roles that take any
    steps: int | None  # None: unknown, as the number of rows of the dataset is; seconds and GPU-seconds are then None
    load_s: float  # from placement to the first step, without evaluation
    train_s: float | None  # of all steps, or until max_device_seconds is spent
    evaluate_s: float | None  # of all evaluations

    @property
    def fits(self) -> bool:
        return self.plan.fits

    @property
    def num_gpus(self) -> int:
        return sum(self.gpus.values())

    @property
    def measuring(self) -> frozenset[str]:
        """Roles that only measure, as rundir/cost.py has them."""
        return measuring_roles(samples=self.plan.work.sampled)

    def _held(self, seconds: float) -> dict[str, float]:
        return {role: n * seconds for role, n in self.gpus.items() if role not in self.measuring}

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds of the run."""
        return None if self.train_s is None or self.evaluate_s is None else self.load_s + self.train_s + self.evaluate_s

    @property
    def method_gpu_seconds(self) -> Mapping[str, float] | None:
        """GPU-seconds of training by role, without the roles that only measure: the method's bill."""
        return None if self.train_s is None else self._held(self.train_s)

    @property
    def loading_gpu_seconds(self) -> Mapping[str, float]:
        """GPU-seconds of the first loading by role, without the roles that only measure."""
        return self._held(self.load_s)

    @property
    def measuring_gpu_seconds(self) -> Mapping[str, float] | None:
        """GPU-seconds of measuring by role: of a role that only measures for the whole run, else of evaluations."""
        total, evaluate_s = self.seconds, self.evaluate_s
        if total is None or evaluate_s is None:
            return None
        return {role: n * (total if role in self.measuring else evaluate_s) for role, n in self.gpus.items()}

    @property
    def gpu_seconds(self) -> float | None:
        """GPU-seconds of the whole run: of the method, of loading and of measuring."""
        return None if self.seconds is None else self.num_gpus * self.seconds

    @property
    def dollars(self) -> float | None:
        return None if self.gpu_seconds is None else self.gpu_seconds / 3600 * self.plan.price

    @property
    def method_dollars(self) -> float | None:
        """US dollars of the method's bill."""
        bill = self.method_gpu_seconds
        return None if bill is None else sum(bill.values()) / 3600 * self.plan.price


def price_run(
    config: RunConfig,
    gpu: Gpu,
    *,
    given: int | None = None,
    before: Sequence[RunConfig] = (),
    price: float | None = None,
    lengths: Lengths | None = None,
    constants: Constants = DEFAULT,
) -> RunPrice:
    """Price `config` as written, one stage of a recipe.

    Args:
        given: Available GPUs; None: as many as it needs.
        before: Earlier stages of the recipe, whose models it may start from.
        price: US dollars per GPU-hour; None: that of the GPU.

    Raises:
        BadInput: if the shape of a model is not found.
    """
    plan = make_plan(
        config,
        gpu,
        before=before,
        given=given,
        price=price,
        lengths=lengths,
        constants=constants,
        alternatives=False,
    )
    gpus = {demand.role: demand.num_gpus for demand in plan.demands}
    steps = plan.work.steps
    train_s = plan.train_s
    if train_s is not None and config.max_device_seconds is not None and math.isfinite(train_s):
        measuring = measuring_roles(samples=plan.work.sampled)
        counted = sum(n for role, n in gpus.items() if role not in measuring)
        train_s = min(train_s, config.max_device_seconds / max(1, counted))
    return RunPrice(
        plan=plan,
        gpus=gpus,
        steps=steps,
        load_s=plan.load_s,
        train_s=train_s,
        evaluate_s=plan.evaluations_s,
    )
