"""Commands `rlhf evaluate` and `rlhf rank`: evaluate a model, and rank its completions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import directory_option
from orchestrator.terminal import report, say

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Run directory (runs/NAME), model directory, or id of a Hub model.")
]
SuiteValues = Annotated[
    list[str] | None,
    typer.Argument(metavar="a.b=c", help="Override a setting of the suite, e.g. seed=1.", show_default=False),
]
MAX_SAMPLES = 256  # the exact chances of the majority take up to half a second per prompt
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        metavar="SCORE",
        help="Score that answers are ranked by: policy or implicit (also policy_per_token, implicit_per_token), "
        "majority, reward_model=PATH (a run or a model), function=FILE.py:NAME, judge=FILE.yaml, math, code, "
        "json_schema or refusal. "
        "Give it again to compare scores on the same samples; ranked.jsonl is in the order of the first one. Default: "
        "policy.",
        show_default=False,
    ),
]
Gold = Annotated[
    str | None,
    typer.Option(
        "--gold",
        metavar="SCORER",
        help="Scorer that measures the chosen answers: reward_model=PATH, function=FILE.py:NAME, judge=FILE.yaml, "
        "math, code, json_schema, refusal, run (the reward of the run that produced MODEL) or none. Default: run, if "
        "MODEL is a run and its reward can score the prompts and asks no judge.",
        show_default=False,
    ),
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
    from orchestrator.driver.door import wait_at_the_door
    from orchestrator.evaluation.suite import load_suite

    loaded = load_suite(suite, overrides or ())
    wait_at_the_door([], report)
    from orchestrator.evaluation import evaluate as evaluation
    from orchestrator.evaluation.result import as_json as to_json
    from orchestrator.evaluation.show import show
    from orchestrator.pipeline.roles import preloaded

    models = evaluation.spec(model, against=against, base=base, reference=reference)
    directory = output or Path("evaluations") / f"{models.model.name}--{suite.stem}"
    with preloaded(loaded.config.cluster):
        result = evaluation.evaluate(loaded, models, directory, report)
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
    by: By = None,
    gold: Gold = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="REF",
            help="Reference model of the implicit reward. Known automatically when MODEL is a run.",
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of completions per prompt.", min=2, max=MAX_SAMPLES)] = 8,
    beta: Annotated[float, typer.Option("--beta", help="Scale β of the implicit reward: beta of the DPO run.")] = 0.1,
    output: Annotated[Path | None, directory_option("ranked/MODEL--FILE")] = None,
    as_json: AsJson = False,
) -> int:
    """Sample n completions per prompt, rank them by a score, and measure what the best of n gains in a gold score."""
    from orchestrator.driver.door import wait_at_the_door
    from orchestrator.evaluation.rank_spec import spec

    given = spec(model, prompts, by=by or (), gold=gold, reference=reference, n=n, beta=beta, overrides=overrides or ())
    wait_at_the_door([], report)
    from orchestrator.evaluation import rank as ranking
    from orchestrator.evaluation.rank_result import RANKED, SUMMARY
    from orchestrator.evaluation.rank_result import as_json as to_json
    from orchestrator.evaluation.rank_show import show
    from orchestrator.pipeline.roles import preloaded

    directory = output or Path("ranked") / f"{given.model.name}--{Path(prompts).stem}"
    with preloaded(given.suite.cluster):
        result = ranking.rank(given, directory, report)
    if as_json:
        say(to_json(result))
    else:
        show(result)
        say(f"result: {directory / SUMMARY}   all completions, best first: {directory / RANKED}")
    return 0
