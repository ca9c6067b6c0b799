"""Models that a recipe names by their id on the model hub: there, and of a family that is right, before anything is
started, or an error says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.config import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, HubUnreachable, Problem, Problems
from orchestrator.preflight.model_source import check_family, check_positions, check_precision, check_use
from orchestrator.preflight.preflight import TOKENIZERS, WEIGHTS
from workers.config import ModelRewardConfig

ASK_S = 10.0
NOT_GIVEN = (401, 403, 404)


def require_models(config: RunConfig, note: Callable[[str], None], *, timeout_s: float = ASK_S) -> None:
    """Ask the hub for each model that is not a directory here, and look at its config.json as `rlhf validate` does at
    a directory's. When it does not answer, what a machine has downloaded before will do: nobody asks it again in this
    attempt.

    Raises:
        BadInput: the hub does not give out a model of that name, or it cannot be used as the recipe wants it.
        HubUnreachable: it does not answer, and the model is not in the cache of this machine, where the run would be.
    """
    silent = ""  # what was said by a hub that does not answer
    problems = Problems()
    for where, name in _hub_models(config):
        silent = silent or _ask(name, where, timeout_s)
        _look_at(config, where, name, problems, ask=not silent)
        if not silent:
            continue
        if (copy := cached(name)) is not None:
            note(f"the model hub does not answer: {name} is taken from the cache ({copy})")
        elif config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
            raise HubUnreachable(name, where, silent)
        else:
            note(
                f"the model hub does not answer here, and {name} is in no cache of this machine: workers look in theirs"
            )
    if silent:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for workers of this machine, which would each wait for it
    if problems:
        raise BadInput(list(problems))


def _look_at(config: RunConfig, where: str, name: str, problems: Problems, *, ask: bool) -> None:
    """What the family and the positions of a model on the hub, or of its copy here, say of a recipe."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    key, where = where.removesuffix(".path"), f"{where} = {name}"
    try:
        file = (hf_hub_download if ask else try_to_load_from_cache)(name, "config.json")
    except Exception:  # whatever its library and the network raise; whoever loads the model says more
        return
    if not isinstance(file, str):
        return
    folder = str(Path(file).parent)
    check_family(folder, where, problems)
    check_precision(folder, where, problems)
    check_use(config, key, folder, where, problems)
    check_positions(config, key, folder, where, problems)


def cached(name: str) -> Path | None:
    """A copy that was downloaded before, with weights and a tokenizer; None: there is none on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    whole = any(any(folder.glob(pattern)) for pattern in WEIGHTS) and any((folder / t).exists() for t in TOKENIZERS)
    return folder if whole else None


def _ask(name: str, where: str, timeout_s: float) -> str:
    """Empty when the hub knows the model; else why it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=timeout_s)
    except HfHubHTTPError as error:
        if error.response.status_code in NOT_GIVEN:
            why = " ".join(str(error).split())
            fix = "check the name, and HF_TOKEN for a model that is private or gated"
            raise BadInput(Problem(what=f"the hub does not give out {name}", where=where, why=why, fix=fix)) from None
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except Exception as error:  # whatever its library, and the one under that, raise for a network that fails
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _hub_models(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and name of each; a stage's result is a directory by now."""
    named = [("model.path", config.model.path)]
    named += [("critic_model.path", config.critic_model.path)] if config.critic_model else []
    named += [("teacher.model.path", config.teacher.model.path)] if config.teacher else []
    named += [(f"reward.{i}.path", r.path) for i, r in enumerate(config.reward) if isinstance(r, ModelRewardConfig)]
    yield from ((where, path) for where, path in named if path is not None and not local(path).is_dir())
