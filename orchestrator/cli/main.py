"""Command `rlhf`. It starts quickly because each subcommand imports its heavy modules itself.

Exit codes: 0 done, 1 unexpected, 2 bad input, 3 no cluster or too small, 4 a worker failed,
5 an alarm ended the run, 6 another driver has taken over the run, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import platform
import re
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import Abort, TyperException

from orchestrator.cli import (
    advise,
    audit,
    compare,
    entry,
    evaluate,
    filter_run,
    jobs,
    judge,
    label,
    ledger,
    looks,
    metrics,
    plan,
    render,
    report,
    rounds,
    submit,
)
from orchestrator.cli.options import (
    AsJson,
    Attempts,
    Fresh,
    OnCluster,
    OnTarget,
    Overrides,
    RecipePath,
    ResumeOverrides,
    TokenFile,
)
from orchestrator.cli.place import Site, There, error_document, fetched, is_url, place, say_json
from orchestrator.errors import BadInput, Problem, Problems, RlhfError, redact
from orchestrator.terminal import never_fail_to_encode, say

if TYPE_CHECKING:
    from orchestrator.config import Recipe, RunConfig
    from orchestrator.preflight.preflight import StageSummary

SEVERAL_VALUES = ("--by", "--include", "--tasks")  # options that may be given more than once
app = typer.Typer(
    name="rlhf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 unexpected, 2 bad input, 3 no cluster or too small, 4 a worker failed, "
    "5 an alarm ended the run, 6 another driver has taken over the run, 130 Ctrl-C, 143 SIGTERM.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            ours = version("rlhf-orchestrator")
        except PackageNotFoundError:
            ours = "(not installed)"
        say(f"rlhf {ours}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def rlhf(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions of rlhf and Python.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Also accepted after the command.")] = False,
) -> None:
    """Preference optimisation on one Ray cluster: PPO, GRPO, and offline, online and iterative DPO."""


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config without starting the run.")
    ] = False,
    attempts: Attempts = 1,
    fresh: Fresh = False,
) -> int:
    """Run a recipe, stage by stage. Stages that are complete and unchanged are reused."""
    from orchestrator.config import load

    loaded = load(recipe, overrides or ())
    if dry_run:
        say(_as_yaml(loaded.stages).rstrip())
        return 0
    return _run("run", loaded, attempts=attempts, fresh=fresh)


@app.command()
def generate(
    recipe: RecipePath,
    overrides: Overrides = None,
    attempts: Attempts = 1,
    fresh: Fresh = False,
) -> int:
    """Sample a data set: completions of each prompt, scored, filtered, without duplicates, as a parquet file.

    The last stage of the recipe has `algorithm: {type: generate}`; earlier stages are run first, or reused.
    """
    from orchestrator.config import load

    loaded = load(recipe, overrides or ())
    if (kind := loaded.stages[-1].algorithm.type) != "generate":
        what, fix = f"the last stage trains ({kind})", "set algorithm to {type: generate, …}, or use rlhf run"
        why = "only type generate writes a data set"
        raise BadInput(Problem(what=what, where=f"{recipe}: algorithm.type", why=why, fix=fix))
    return _run("generate", loaded, attempts=attempts, fresh=fresh)


def _run(command: str, loaded: Recipe, *, attempts: int, fresh: bool) -> int:
    from orchestrator.driver.door import wait_at_the_door

    wait_at_the_door(loaded.stages, say)
    if attempts > 1:
        if fresh:  # here, so that only the first attempt starts over
            from orchestrator.preflight.preflight import preflight
            from orchestrator.rundir.existing import move_aside

            preflight(loaded)
            move_aside(loaded, fresh=True, say=say)
        directories = [config.directory for config in loaded.stages]
        arguments = (command, str(loaded.source), *loaded.overrides)
        return _supervised(*arguments, directories=directories, attempts=attempts)
    from orchestrator.pipeline.roles import preloaded

    with preloaded(loaded.stages[-1].cluster):  # workers' modules are imported while the recipe is checked
        from orchestrator.preflight.preflight import preflight

        preflight(loaded)
        _refuse_too_large(loaded)
        from orchestrator.driver.driver import run_recipe

        return run_recipe(loaded, fresh=fresh)


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> int:
    """Check a recipe and every file that it names, without starting anything."""
    from orchestrator.config import load
    from orchestrator.preflight.preflight import preflight
    from orchestrator.rundir.existing import check_existing

    loaded = load(recipe, overrides or ())
    summaries = preflight(loaded)
    _refuse_too_large(loaded)
    check_existing(loaded)
    stages = "1 run" if len(loaded.stages) == 1 else f"{len(loaded.stages)} runs"
    say(f"{recipe} is valid: {stages}")
    for config in loaded.stages:
        say(_summary(config, summaries[config.name]))
    return 0


@app.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN|ID", help="Run directory, STORAGE/NAME, or id of a job.")],
    overrides: ResumeOverrides = None,
    attempts: Attempts = 1,
    on: OnTarget = None,
    cluster: OnCluster = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Resume a stopped run from its latest checkpoint, optionally on different hardware.

    A job that failed or was stopped is started again on its target.
    """
    if is_url(run):
        run, overrides = fetched(run, overrides or ())
    site = Site(on=on, cluster=cluster, token_file=token_file)
    if isinstance(there := place([run], site), There):
        return jobs.resume_job(there, overrides or (), attempts=attempts, site=site, as_json=as_json)
    if as_json:
        why, fix = "a run that is resumed here prints its progress", "give the id of a job, or leave out --json"
        raise BadInput(Problem(what="--json is for jobs", where=run, why=why, fix=fix))
    from orchestrator.driver.door import wait_at_the_door
    from orchestrator.driver.resume_overrides import apply_overrides
    from orchestrator.rundir.directory import RunDirectory

    directory = RunDirectory.open(there[0])
    wait_at_the_door([apply_overrides(directory, overrides or ())], say)
    if attempts > 1:
        arguments = ["resume", str(directory.path), *(overrides or ())]
        return _supervised(*arguments, directories=[directory.path], attempts=attempts)
    from orchestrator.driver.driver import resume_run

    return resume_run(directory.path, overrides or ())


for module in (
    submit,
    render,
    jobs,
    looks,
    entry,
    ledger,
    plan,
    advise,
    audit,
    filter_run,
    evaluate,
    judge,
    label,
    report,
    compare,
    rounds,
    metrics,
):
    module.add_to(app)


def _refuse_too_large(recipe: Recipe) -> None:
    """Refuse stages for CUDA that would not fit even on the largest GPU. A run checks again on the cluster's GPUs."""
    if any(stage.cluster.device == "cuda" for stage in recipe.stages):
        from orchestrator.plan.refuse import refuse_on_every_gpu

        refuse_on_every_gpu(recipe.stages)


def _supervised(*arguments: str, directories: Sequence[Path], attempts: int) -> int:
    from orchestrator.driver.supervise import Supervisor, child_command

    command = child_command(*(["--debug"] if _debug else []), *arguments)
    return Supervisor(command, directories, attempts=attempts, say=lambda text: _complain(text)).run()


def _as_yaml(stages: Sequence[RunConfig]) -> str:
    import yaml

    from orchestrator.config import resolved

    configs = [resolved(config) for config in stages]
    document = configs[0] if len(configs) == 1 else {"stages": configs}
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text


def _summary(config: RunConfig, summary: StageSummary) -> str:
    algorithm = config.algorithm
    by_rows = "by epochs" if algorithm.needs.trains else "each prompt once"
    length = f"{algorithm.max_steps} steps" if algorithm.max_steps else by_rows
    lines = [f"  {config.name}: {algorithm.type} on {config.model.path}, {length}, into {config.directory}"]
    for source in summary.sources:
        at_least = "" if source.is_complete else "at least "
        kind = "conversations" if source.conversational else "text"
        lines.append(f"    {source.key}: {source.source}, {at_least}{source.count} rows of {kind}")
    return "\n".join(lines + [f"    note: {remark}" for remark in summary.remarks])


_debug = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Errors of this program are printed without a traceback."""
    global _debug
    never_fail_to_encode()
    given = list(sys.argv[1:] if arguments is None else arguments)
    _debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        _refuse_repeated_options(given)
        code = app(given, prog_name="rlhf", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except RlhfError as error:
        if _wants_json(given):
            say_json(error_document(error))
            return error.exit_code
        count = f"{len(error.problems)} problems\n\n" if len(error.problems) > 1 else ""
        _complain(f"{count}{error}")
        return error.exit_code
    except (KeyboardInterrupt, Abort):
        _complain("stopped by Ctrl-C")
        return 130
    except TyperException as error:
        return _usage(error, given)
    except Exception as error:
        if _wants_json(given):
            say_json(error_document(RlhfError(Problem(what=f"unexpected {type(error).__name__}", why=str(error)))))
            return 1
        _complain(f"unexpected {type(error).__name__}: {error}")
        if not _debug:
            _complain("run it again with --debug for the traceback, and please report it", prefix="")
        return 1


def _refuse_repeated_options(given: Sequence[str]) -> None:
    """Raise BadInput if an option is given more than once that takes a single value."""
    options = [argument.partition("=") for argument in takewhile(lambda argument: argument != "--", given)]
    names = Counter(name for name, _, _ in options if name.startswith("--") and name not in SEVERAL_VALUES)
    why, fix = "only one value would be used", "keep one of them"
    Problems(
        Problem(what=f"{name} is given {count} times", where="command line", why=why, fix=fix)
        for name, count in names.items()
        if count > 1
    ).raise_if_any()


def _wants_json(given: Sequence[str]) -> bool:
    return "--json" in takewhile(lambda argument: argument != "--", given)


def _complain(text: str, prefix: str = "rlhf: ") -> None:
    if _debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(prefix + redact(text), file=sys.stderr)


def _usage(error: TyperException, given: Sequence[str]) -> int:
    """Print an error of the command line's parser, with a hint if an override was written as an option."""
    message = error.format_message()
    if _wants_json(given):
        say_json(error_document(BadInput(Problem(what=message, where="command line", fix="see --help"))))
        return error.exit_code
    _complain(message)
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    command = next((argument for argument in given if argument in commands), None)
    option = re.match(r"No such option: --([\w.-]+)", message)
    fix = _override_hint(option[1]) if option and command in ("run", "generate", "validate", "submit") else ""
    print(f"  fix: {fix or ' '.join(filter(None, ('rlhf', command, '--help')))}", file=sys.stderr)
    return error.exit_code


def _override_hint(option: str) -> str:
    """Return the fix for an option of other trainers: `algorithm.learning_rate=VALUE` for `learning-rate`."""
    from orchestrator.config.key_index import PEERS, all_keys

    wanted = option.replace("-", "_")
    known = [key for key in all_keys() if key == wanted or key.endswith(f".{wanted}")] or PEERS.get(wanted, ())
    return f"settings are given without dashes: {known[0]}=VALUE" if known else ""
