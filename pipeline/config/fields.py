"""What the sections of the configuration are made of: the types of their fields, and what every
section is. Light to import.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
OpenProbability = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Levels = Annotated[int, Field(ge=2)]
Box = Annotated[tuple[Number, Number], Field(strict=False)]
Masses = Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Shape = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class Section(BaseModel):
    """One frozen part of the configuration; strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def about(text: str) -> Any:
    return Field(description=text)


def digest(content: Any) -> str:
    """Returns ten hexadecimal digits that name `content`, plain values that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
