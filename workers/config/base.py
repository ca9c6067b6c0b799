"""Base of all settings classes, and the types of their fields: numbers with their legal range, paths, times."""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Objective = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def expand_home(text: str) -> str:
    """Replace a leading `~` or `~user` by the home directory. An unknown user's stays as it is."""
    return os.path.expanduser(text) if "\0" not in text else text


def _check_path(text: str) -> str:
    text = expand_home(text)
    if len(text.encode()) > 4095 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("shorten it: a file name has at most 255 bytes and a path 4095")
    return text


def _check_time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError('give a date or a time, for example "2026-11-28" or "2026-11-28T09:30:00"') from None
    return text


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"give a valid Python regular expression: {error}") from None
    return text


IsoTime = Annotated[str, AfterValidator(_check_time)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_check_path)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_check_pattern)]


class Settings(BaseModel):
    """Base of all settings classes: frozen and strict (a string is not accepted for a number), no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelOrigin(Settings):
    """Origin of a model: a Hugging Face directory or Hub id, or an earlier stage of the recipe."""

    path: PathText | None = None  # Hugging Face directory or Hub id; None: from_stage is given
    from_stage: str | None = None  # name of the earlier stage of the recipe whose model is used; None: path is given

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.path is None) == (self.from_stage is None):
            raise ValueError("give exactly one of path and from_stage")
        return self
