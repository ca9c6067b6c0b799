"""Models that a recipe names by their id on the model hub: check that they exist and can be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.config import RunConfig
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, HubUnreachable, Problem, Problems
from orchestrator.preflight.model_directory import TOKENIZERS, WEIGHTS
from orchestrator.preflight.model_family import check_family, check_precision, check_use
from orchestrator.preflight.model_source import check_positions
from workers.config import ModelScorerConfig

ASK_S = 10.0
NOT_ACCESSIBLE = (401, 403, 404)


def require_models(config: RunConfig, note: Callable[[str], None], *, timeout_s: float = ASK_S) -> None:
    """Ask the hub for each model that is not a local directory, and check its config.json as `rlhf validate` does.

    If the hub does not answer, cached copies are used, and the hub is not asked again in this attempt.

    Raises:
        BadInput: the hub has no accessible model of that name, or the recipe cannot use the model.
        HubUnreachable: the hub does not answer, and this machine, where the run would be, has no cached copy.
    """
    hub_error = ""  # why the hub does not answer; empty while it does
    problems = Problems()
    for where, name in _hub_models(config):
        hub_error = hub_error or _ask(name, where, timeout_s)
        _check_config(config, where, name, problems, ask=not hub_error)
        if not hub_error:
            continue
        if (copy := cached(name)) is not None:
            note(f"the model hub does not answer: {name} is loaded from the cache ({copy})")
        elif config.cluster.address is None and "RAY_ADDRESS" not in os.environ:
            raise HubUnreachable(name, where, hub_error)
        else:
            note(f"the model hub does not answer here, and {name} is not cached on this machine; workers use their own")
    if hub_error:
        os.environ["HF_HUB_OFFLINE"] = "1"  # else each worker on this machine would wait for the hub
    if problems:
        raise BadInput(list(problems))


def _check_config(config: RunConfig, where: str, name: str, problems: Problems, *, ask: bool) -> None:
    """Check the config.json of a model on the hub, or of its cached copy, against the recipe."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    key, where = where.removesuffix(".path"), f"{where} = {name}"
    try:
        file = (hf_hub_download if ask else try_to_load_from_cache)(name, "config.json")
    except Exception:  # of the library or the network; loading the model gives a better error
        return
    if not isinstance(file, str):
        return
    folder = str(Path(file).parent)
    check_family(folder, where, problems)
    check_precision(folder, where, problems)
    check_use(config, key, folder, where, problems)
    check_positions(config, key, folder, where, problems)


def cached(name: str) -> Path | None:
    """Return the directory of a cached copy with weights and a tokenizer; None if there is none on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json")
    if not isinstance(file, str):
        return None
    folder = Path(file).parent
    complete = any(any(folder.glob(pattern)) for pattern in WEIGHTS) and any((folder / t).exists() for t in TOKENIZERS)
    return folder if complete else None


def _ask(name: str, where: str, timeout_s: float) -> str:
    """Ask the hub for a model. Return an empty string if it exists, or the error if the hub does not answer.

    Raises:
        BadInput: the hub answers that there is no such model, or no access to it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=timeout_s)
    except HfHubHTTPError as error:
        if error.response.status_code in NOT_ACCESSIBLE:
            why = " ".join(str(error).split())
            fix = "check the name, and HF_TOKEN for a model that is private or gated"
            raise BadInput(
                Problem(what=f"the hub has no accessible model {name}", where=where, why=why, fix=fix)
            ) from None
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except Exception as error:  # whatever the hub's library raises if the network fails
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _hub_models(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the key and the id of each model on the hub. The model of an earlier stage is a directory by now."""
    named = [("model.path", config.model.path)]
    named += [("critic_model.path", config.critic_model.path)] if config.critic_model else []
    named += [("teacher.model.path", config.teacher.model.path)] if config.teacher else []
    named += [("reference.path", config.reference.path)]
    named += [(f"reward.{i}.path", r.path) for i, r in enumerate(config.reward) if isinstance(r, ModelScorerConfig)]
    yield from ((where, path) for where, path in named if path is not None and not local(path).is_dir())
