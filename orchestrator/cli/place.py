"""Places where a verb is executed: a run directory of this machine, or the target of a job.

rlhf why runs/a                     reads the directory here
rlhf why rlhf-a-1a2b3c4d --on h100  runs `rlhf why /shared/runs/a` on h100, and prints what it prints
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import BadInput, ClusterError, Problem, RlhfError
from orchestrator.terminal import say

if TYPE_CHECKING:
    from orchestrator.launch.base import Job, Launcher, Output


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Options that name a target: `--on`, `--cluster` and `--token-file`."""

    on: str | None = None
    cluster: str | None = None
    token_file: Path | None = None

    @property
    def is_given(self) -> bool:
        return bool(self.on or self.cluster)

    @property
    def options(self) -> str:
        """Options for a command line that is shown to a person."""
        return f" --on {self.on}" if self.on else f" --cluster {self.cluster}" if self.cluster else ""

    def launcher(self) -> Launcher:
        """Return the launcher of the target; without any, that of this machine."""
        from orchestrator.launch.launchers import launcher_for
        from orchestrator.launch.targets import LocalTarget, chosen_target

        target = chosen_target(self.on, self.cluster) or LocalTarget(engine="local")
        return launcher_for(target, token_file=self.token_file)

    def has_target(self) -> bool:
        from orchestrator.launch.targets import chosen_target

        return chosen_target(self.on, self.cluster) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class There:
    """Job of a target, on whose run directories verbs are executed."""

    launcher: Launcher
    job: Job

    def execute(self, verb: str, *options: str) -> Output:
        """Run `rlhf VERB` with the job's run directories where they can be seen.

        Raises:
            BadInput: the job has no run directories, or has not begun.
        """
        from orchestrator.launch.base import JobState

        if self.job.state is JobState.queued and self.job.started is None:
            why, fix = self.job.reason or "it waits for its turn", f"rlhf status {self.job.id}"
            raise BadInput(Problem(what=f"job {self.job.id} has not begun", why=why, fix=fix))
        if not self.job.directories:
            why, fix = "it was submitted without any", "look at its log: rlhf logs"
            raise BadInput(Problem(what=f"job {self.job.id} names no run directory", why=why, fix=fix))
        return self.launcher.execute(self.job, [verb, *self.job.directories, *options])

    def run(self, verb: str, *options: str) -> int:
        """Execute a verb, print what it prints, and return its exit code."""
        output = self.execute(verb, *options)
        if output.stdout:
            say(output.stdout.rstrip("\n"))
        if output.stderr:
            print(output.stderr.rstrip("\n"), file=sys.stderr)
        return output.exit_code

    def ask(self, verb: str, *options: str) -> Mapping[str, Any]:
        """Execute a verb with `--json` and return its document.

        Raises:
            RlhfError: the verb failed, with its own problems; or it printed no JSON.
        """
        output = self.execute(verb, *options, "--json")
        try:
            document = json.loads(output.stdout)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            why = " ".join((output.stderr or output.stdout).split())[-300:] or f"exit code {output.exit_code}"
            raise ClusterError(Problem(what=f"`rlhf {verb}` gave no answer on the target", where=self.job.id, why=why))
        if "error" in document:
            raise error_of(document["error"])
        return document


def is_url(word: str) -> bool:
    """Return whether a word names a run in object storage."""
    return "://" in word


def fetched(url: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Fetch a run from STORAGE/NAME. Return its directory and the other overrides; one of them may be `output_dir=DIR`.

    Raises:
        ResumeError: there is no run at `url`.
        BadInput, StorageFailed: the storage refuses access, or does not answer.
    """
    from orchestrator.rundir.fetch import fetch_run

    given = [override for override in overrides if override.startswith("output_dir=")]
    output_dir = Path(given[-1].removeprefix("output_dir=")) if given else Path("runs")
    others = [override for override in overrides if override not in given]
    return str(fetch_run(url, output_dir.expanduser()).path), others


def place(words: Sequence[str], site: Site) -> list[Path] | There:
    """Return the run directories of this machine that `words` name, or the job of a target.

    A directory that exists here is read here, unless a target is given.

    Raises:
        BadInput: there is no such job.
    """
    from orchestrator.launch.base import PREFIX

    word = words[0]
    is_id = word.startswith(PREFIX) and "/" not in word
    if not site.is_given and (os.path.isdir(word) or not (is_id or (os.path.isabs(word) and site.has_target()))):
        return [Path(each) for each in words]
    launcher = site.launcher()
    if "/" in word:
        return There(launcher=launcher, job=_job_with(launcher, words))
    return There(launcher=launcher, job=find_job(launcher, word, site))


def find_job(launcher: Launcher, id: str | None, site: Site) -> Job:
    """Return a job, or the newest one. Raise BadInput if there is none."""
    if id is not None and (job := launcher.find(id)) is not None:
        return job
    jobs = launcher.list()
    if id is None and jobs:
        return jobs[0]
    where = site.on or site.cluster or ("the target" if site.has_target() else "this machine")
    if not jobs:
        what, fix = f"unknown job {id}" if id else "no rlhf jobs", f"submit one: rlhf submit RECIPE{site.options}"
        if not site.has_target():
            fix += "; or give the target that has it: --on TARGET"
        raise BadInput(Problem(what=what, where=where, why="there are no jobs" if id else "", fix=fix))
    ids = [job.id for job in jobs]
    near = difflib.get_close_matches(id or "", ids, n=3, cutoff=0.4) or ids[:3]
    fix = f"use one of {', '.join(near)}"
    if not site.has_target():
        fix += ", or give the target that has it: --on TARGET"
    raise BadInput(Problem(what=f"unknown job {id}", where=where, fix=fix))


def _job_with(launcher: Launcher, directories: Sequence[str]) -> Job:
    """Return the newest job of these run directories, or one that stands for them."""
    from orchestrator.launch.base import Job, JobState

    for job in launcher.list():
        if directories[0] in job.directories and job.state is not JobState.queued:
            return Job(**{**fields_of(job), "directories": tuple(directories)})
    return Job(id="", state=JobState.running, run=Path(directories[0]).name, directories=tuple(directories))


def fields_of(job: Job) -> dict[str, Any]:
    """Return the fields of a job. As JSON they are the document of `rlhf jobs --json` and `rlhf status --json`."""
    return asdict(job)


def error_document(error: RlhfError) -> dict[str, Any]:
    """Return an error as `--json` prints it."""
    from orchestrator.errors import redact

    problems = [{key: redact(text) for key, text in asdict(problem).items()} for problem in error.problems]
    return {"error": {"exit_code": error.exit_code, "cause": error.cause, "problems": problems}}


def error_of(body: Mapping[str, Any]) -> RlhfError:
    """Return the error of a document that `error_document` made, possibly on another machine."""
    keys = ("what", "where", "why", "fix")
    problems = [Problem(**{key: str(p.get(key, "")) for key in keys}) for p in body.get("problems", ())]
    error = RlhfError(problems or [Problem(what="the command failed on the target")])
    error.exit_code = int(body.get("exit_code", 1))  # type: ignore[misc]
    error.cause = str(body.get("cause", "error"))
    return error


def say_json(document: Any) -> None:
    say(json.dumps(document, indent=2))
