"""Settings of a language model at an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Count, NonNegative, PathText, Positive, Settings, Share

LOOPBACK = ("localhost", "127.0.0.1", "::1")
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class EndpointConfig(Settings):
    """A language model at an OpenAI-compatible endpoint."""

    # base URL of the API, such as http://localhost:8000/v1
    url: Annotated[str, Field(pattern=r"^https?://[^/\s@]+(/[^\s@]*)?$")]
    model: Annotated[str, Field(min_length=1)]  # name of the model at the endpoint
    # environment variable that holds the API key; None: see api_key_file
    api_key_env: Variable | None = None
    api_key_file: PathText | None = None  # file that holds the API key; without file and variable, no key is sent
    # structured output requested from the endpoint; json_object is for endpoints without JSON Schema
    structure: Literal["json_schema", "json_object"] = "json_schema"
    temperature: NonNegative = 0.0  # sampling temperature of the model
    max_tokens: Count = 512  # maximum length of a reply, in tokens
    timeout_s: Positive = 60.0  # timeout of a request, in seconds
    max_retries: Annotated[int, Field(ge=0)] = 4  # retries of a failed request or of a reply without a verdict
    concurrency: Count = 8  # requests in flight at a time
    max_failures: Share = 0.05  # share of questions without a verdict above which the endpoint counts as failed
    # directory of the answers that were paid for, so that none is paid twice; None: that of the run, or judge_cache
    # beside the result of an evaluation
    cache: PathText | None = None
    # dollars per million tokens that are read, and that are written
    price: tuple[NonNegative, NonNegative] = (0.0, 0.0)
    # number of requests of an evaluation, retries included, after which no question is asked; None: no limit. A run has
    # the alarm judge_budget
    max_requests: Count | None = None
    max_cost: Positive | None = None  # the same for dollars, by `price`; None: no limit


def endpoint_problems(config: EndpointConfig) -> list[tuple[tuple[str, ...], str, str]]:
    """Return what is wrong with the settings of an endpoint: keys, why, fix."""
    found: list[tuple[tuple[str, ...], str, str]] = []
    if config.api_key_env is not None and config.api_key_file is not None:
        found.append((("api_key_env", "api_key_file"), "both are given", "keep one of them"))
    parts = urllib.parse.urlsplit(config.url)
    keyed = config.api_key_env is not None or config.api_key_file is not None
    if keyed and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        why = "the key would be sent over the network unencrypted"
        found.append((("url",), why, "use https, or an endpoint on this machine"))
    if config.max_cost is not None and not any(config.price):
        found.append((("max_cost", "price"), "without prices nothing costs anything", "set price, or max_requests"))
    return found


class NoKeyError(Exception):
    """No API key can be used. Arguments: where it should be, why it cannot be used, how to mend it."""

    def __init__(self, where: str, why: str, fix: str) -> None:
        self.where, self.why, self.fix = where, why, fix
        super().__init__(f"no API key: {where}: {why}; {fix}")


def read_key(config: EndpointConfig) -> str | None:
    """Read the API key; None if none is configured. The key is in no config, so no file of a run contains it.

    Raises:
        NoKeyError: the variable or file does not hold a key.
    """
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "").strip()
        where = f"api_key_env = {config.api_key_env}"
        why, fix = "the variable is not set", f"export {config.api_key_env}=…"
    elif config.api_key_file is not None:
        where, fix = f"api_key_file = {config.api_key_file}", "put the key, and nothing else, into the file"
        try:
            key, why = Path(config.api_key_file).expanduser().read_text("utf-8").strip(), "the file is empty"
        except (OSError, ValueError) as error:
            key, why = "", str(error)
    else:
        return None
    if not key:
        raise NoKeyError(where, why, fix)
    if not key.isascii() or not key.isprintable():
        raise NoKeyError(where, "it is not a single line of ASCII text", fix)
    return key
