"""What every section of a config has: its base class and the types of its fields."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Minutes = Annotated[float, Field(gt=0, le=7 * 24 * 60)]
T = TypeVar("T")
Lax = Annotated[T, Strict(False)]  # YAML has neither paths nor tuples
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """Base of every section: unknown keys and values of another type are errors, values do not
    change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
