"""What every settings class shares: frozen pydantic, unknown keys forbidden, numbers with their legal range."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def at_home(text: str) -> str:
    """With the home directory for a `~` at its beginning; where nobody of that name is known it stays."""
    return os.path.expanduser(text) if "\0" not in text else text


def _can_be_a_path(text: str) -> str:
    text = at_home(text)
    if len(text.encode()) > 4095 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("shorten it: a file name has at most 255 bytes, and a path 4095")
    return text


def _is_a_moment(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError('give a day or a moment, as "2026-11-28" or "2026-11-28T09:30:00"') from None
    return text


Moment = Annotated[str, AfterValidator(_is_a_moment)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_can_be_a_path)]


class Settings(BaseModel):
    """Base of every settings class. Strict: a string is never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelOrigin(Settings):
    """A model: a Hugging Face directory or hub id, or the result of an earlier stage."""

    path: PathText | None = None
    from_stage: str | None = None  # name of an earlier stage of the same recipe

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        if (self.path is None) == (self.from_stage is None):
            raise ValueError("give exactly one of path and from_stage")
        return self
