"""Commands `rlhf evaluate` and `rlhf rank`: evaluate a model, and rank its completions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import directory_option
from orchestrator.terminal import say

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Run directory (runs/NAME), model directory, or id of a Hub model.")
]
SuiteValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="a.b=c", help="Override a setting of the suite, e.g. seed=1.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the complete result as JSON.")]


def add_to(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.command()(rank)


def evaluate(
    model: Model,
    suite: Annotated[
        Path, typer.Option("--suite", metavar="SUITE", help="Suite (YAML file), e.g. configs/eval/quickstart.yaml.")
    ],
    overrides: SuiteValues = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL2|base",
            help="Second model for the win rate; base: the model the policy started from.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Model the policy started from, for the KL. Known automatically when MODEL is a run.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="Reference model for the second KL. Known automatically when MODEL is a run.",
        ),
    ] = None,
    output: Annotated[Path | None, directory_option("evaluations/MODEL--SUITE")] = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate a model on a suite: accuracy, win rate, KL, diversity and refusals, with confidence intervals."""
    from orchestrator.evaluation.suite import load_suite

    loaded = load_suite(suite, overrides or ())
    from orchestrator.evaluation import evaluate as evaluation
    from orchestrator.evaluation.result import as_json as to_json
    from orchestrator.evaluation.show import show
    from orchestrator.pipeline.roles import preloaded

    models = evaluation.spec(model, against=against, base=base, reference=reference)
    directory = output or Path("evaluations") / f"{models.model.name}--{suite.stem}"
    with preloaded(loaded.config.cluster):
        result = evaluation.evaluate(loaded, models, directory, _report)
    if as_json:
        say(to_json(result))
    else:
        show(result)
        say(f"result: {directory / 'evaluation.json'}   completions: {directory / 'samples.jsonl'}")
    return 0


def rank(
    model: Model,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="FILE", help="Prompts: a data source with a column `prompt`.")
    ],
    overrides: SuiteValues = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="REF",
            help="Reference model of the implicit reward. Known automatically when MODEL is a run.",
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of completions per prompt.", min=2)] = 8,
    beta: Annotated[float, typer.Option("--beta", help="Scale β of the implicit reward: beta of the DPO run.")] = 0.1,
    output: Annotated[Path | None, directory_option("ranked/MODEL--FILE")] = None,
    as_json: AsJson = False,
) -> int:
    """Sample n completions per prompt and rank them by DPO's implicit reward β log π(y)/π_ref(y) (best of n)."""
    from orchestrator.evaluation import rank as ranking
    from orchestrator.pipeline.roles import preloaded

    candidates = ranking.candidates(model, reference)
    directory = output or Path("ranked") / f"{candidates.model.name}--{Path(prompts).stem}"
    suite = ranking.settings(candidates.model, prompts, n, beta, overrides or ())
    with preloaded(suite.cluster):
        result = ranking.rank(suite, candidates, beta, directory, _report)
    if as_json:
        say(ranking.as_json(result))
    else:
        ranking.show(result)
        say(f"all completions, best first: {directory / ranking.RANKED}")
    return 0


def _report(text: str) -> None:
    """Print progress to standard error, to keep it out of the result on standard output."""
    print(text, file=sys.stderr, flush=True)
