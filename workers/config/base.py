"""What every settings class shares: frozen pydantic, unknown keys forbidden, numbers with their legal range."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every settings class. Strict: a string is never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
