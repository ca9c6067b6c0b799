"""`rlhf evaluate` and `rlhf rank`: how good a model is, and which of its answers is best."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.terminal import say

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run (runs/NAME), a model directory, or the id of a hub model.")
]
SuiteValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="a.b=c", help="Values of the suite, such as model.dtype=float32.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: the whole result on standard output.")]


def add_to(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.command()(rank)


def evaluate(
    model: Model,
    suite: Annotated[Path, typer.Option("--suite", metavar="SUITE", help="Such as configs/eval/quickstart.yaml.")],
    overrides: SuiteValues = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL2|base", help="To compare with; base: what the run began with."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="For the KL, where MODEL is not a run's.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="MODEL", help="Likewise: what it was held to in the end.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="By default evaluations/MODEL--SUITE.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Measure a model on a suite: accuracy, win rate, KL, diversity, refusals; each with its interval."""
    from orchestrator.evaluation.suite import load_suite

    loaded = load_suite(suite, overrides or ())
    from orchestrator.evaluation import evaluate as evaluation
    from orchestrator.evaluation.result import as_json as to_json
    from orchestrator.evaluation.show import show

    models = evaluation.spec(model, against=against, base=base, reference=reference)
    directory = output or Path("evaluations") / f"{models.model.name}--{suite.stem}"
    result = evaluation.evaluate(loaded, models, directory, _tell)
    if as_json:
        say(to_json(result))
    else:
        show(result)
        say(f"figures: {directory / 'evaluation.json'}   completions: {directory / 'samples.jsonl'}")
    return 0


def rank(
    model: Model,
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE", help="Rows with a `prompt`.")],
    overrides: SuiteValues = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="REF", help="What MODEL was trained from; of a run it is known."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Completions of each prompt.", min=2)] = 8,
    beta: Annotated[float, typer.Option("--beta", help="The scale of the reward: that of MODEL's DPO run.")] = 0.1,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="By default ranked/MODEL--FILE.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Best of n: sample n answers to each prompt and sort them by the implicit reward, β log π(y)/π_ref(y)."""
    from orchestrator.evaluation import rank as ranking

    candidates = ranking.candidates(model, reference)
    directory = output or Path("ranked") / f"{candidates.model.name}--{Path(prompts).stem}"
    suite = ranking.settings(candidates.model, prompts, n, beta, overrides or ())
    found = ranking.rank(suite, candidates, beta, directory, _tell)
    if as_json:
        say(ranking.as_json(found))
    else:
        ranking.show(found)
        say(f"all of them, best first: {directory / ranking.RANKED}")
    return 0


def _tell(text: str) -> None:
    """Progress goes where it does not disturb a program that reads the result."""
    print(text, file=sys.stderr, flush=True)
