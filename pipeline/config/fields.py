"""The types of the configuration's fields, and the base of its sections. Light to import."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from pipeline.common.masking import masked

MOST_INT = 2**53  # every smaller integer is a float too, as JSON has them
SMALLEST, LARGEST = 1e-18, 1e18  # numbers whose squares float32 still holds


def _representable(number: float) -> float:
    """Raises pydantic's error for a number that mathematics in float32 takes for 0 or infinity."""
    if number and not SMALLEST <= abs(number) <= LARGEST:
        raise PydanticCustomError(
            "not_representable",
            "should be of a size from {smallest} to {largest}, which float32 can square",
            {"smallest": SMALLEST, "largest": LARGEST},
        )
    return number


def _names_or_auto(value: Any) -> Any:
    """Raises pydantic's error for what is neither: one line for both sides of a union."""
    names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    if value != "auto" and not names:
        raise PydanticCustomError("no_names", "should be auto, or names such as [colour,shape]")
    return value


def _kind(levels: int) -> int:
    """Raises pydantic's error for one level alone, which says nothing."""
    if levels == 1:
        raise PydanticCustomError("one_level", "should be 0 for a real number, or 2 levels or more")
    return levels


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise PydanticCustomError("no_device", "should be cpu, cuda or cuda:N")
    return name


PositiveInt = Annotated[int, Field(ge=1, le=MOST_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_representable)]
NonNegativeFloat = Annotated[
    float, Field(ge=0, allow_inf_nan=False), AfterValidator(_representable)
]
Repeats = Annotated[int, Field(ge=1, le=10_000)]  # within one step or transition
Seconds = Annotated[float, Field(gt=0, le=1e9)]
Probability = Annotated[float, Field(ge=0, le=1)]
OpenProbability = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_representable)]
Levels = Annotated[int, Field(ge=2, le=MOST_INT)]
Kinds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MOST_INT), AfterValidator(_kind)], ...], Field(strict=False)
]
Device = Annotated[str, AfterValidator(_device)]
Box = Annotated[tuple[Number, Number], Field(strict=False)]
Masses = Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
NamesOrAuto = Annotated[
    Literal["auto"] | Names,
    Field(union_mode="left_to_right"),
    BeforeValidator(_names_or_auto),
]
Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Shape = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Url = Annotated[str, PlainSerializer(masked, return_type=str, when_used="json")]
"""A path or a URL. What is stored of a configuration is JSON, and has no secrets of the URL."""

Runs = Annotated[
    tuple[Url, ...],
    Field(
        strict=False,
        min_length=1,
        description="URLs of the runs, [A,B]; of a single one, run=URL",
    ),
]
"""One run or more that a command looks at."""


class Section(BaseModel):
    """One frozen part of the configuration; strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Part(Section):
    """The section of a part: an energy, a kernel, an objective or a data set, by its `name` in
    `pipeline.config.parts`. Capabilities are class variables; what they mean is said in the base
    section of each group.
    """

    name: str


def about(text: str) -> Any:
    """A field of a section; `text` is its line in `--help` and in the reference pages."""
    return Field(description=text)


def digest(content: Any) -> str:
    """Returns ten hexadecimal digits that name `content`, plain values that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
