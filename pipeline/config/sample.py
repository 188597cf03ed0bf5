"""The settings of `python -m pipeline.sample`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.fields import (
    Device,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Runs,
    Section,
    Url,
)

OVERRIDABLE = ("kernel", "data.path")


class Settings(Section):
    runs: Runs
    compose: Literal["and", "or", "not"] | None = Field(None, description="and, or, not")
    weights: Annotated[
        tuple[PositiveFloat, ...] | None, Field(strict=False, description="w_i, one for each part")
    ] = None
    log_partitions: Annotated[
        tuple[Number, ...] | None,
        Field(strict=False, description="compose=or: log Z_i in nats, one for each part"),
    ] = None
    given: Any = Field(
        None,
        description=(
            "a context (a label, or a list of numbers), or a list of them: one a sample, over"
            " again; one a part where parts are composed; null: those of held-out rows"
        ),
    )
    start: Literal["noise", "data"] = Field(
        "noise", description="where chains begin: noise, or training rows"
    )
    clamp: Url | None = Field(
        None,
        description="a .npy file of rows: what is NaN there is drawn, given the rest; one row a"
        " sample, over again",
    )
    format: Literal["arrow", "parquet", "csv", "npy"] = Field(
        "arrow",
        description="of the file of samples: arrow, parquet, csv (a column for each number), or npy"
        " (positions alone)",
    )
    samples: PositiveInt | None = Field(
        None, description="chains; null: as many as the run's evaluation has"
    )
    transitions: PositiveInt | None = Field(
        None, description="transitions from noise to sample; null: as the run's evaluation"
    )
    seed: NonNegativeInt = Field(0, description="seed of the chains")
    device: Device = Field("cpu", description="cpu, cuda or cuda:N")
    output: Url | None = Field(
        None, description="where files go, any fsspec URL; null: samples-<hash> in the run's folder"
    )
