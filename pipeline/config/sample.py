"""The settings of `python -m pipeline.sample`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.fields import (
    Device,
    Names,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Runs,
    Section,
    Url,
)

Instants = Annotated[int, Field(ge=2, le=32)]

OVERRIDABLE = ("kernel", "data.path", "data.held_out_path")


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
    start: Url = Field(
        "noise",
        description="where chains begin: noise, data (training rows), or a file of rows, over"
        " again",
    )
    clamp: Url | None = Field(
        None,
        description="rows that are held in part while the rest is drawn: data (held-out rows), or a"
        " file, where NaN, nulls and empty cells are drawn; one row a sample, over again",
    )
    clamp_columns: Any = Field(
        None,
        description="which numbers of a row `clamp` holds, such as [0,1,5] or 0-31, the first is 0;"
        " null: all that are there",
    )
    clamp_mask: Url | None = Field(
        None,
        description="the same as a file of rows of 1 (held) and 0 (drawn); one for all samples, or"
        " one each, over again",
    )
    columns: Names = Field(
        (),
        description="columns of a CSV, Parquet or Arrow file of `start` or `clamp` to take; empty:"
        " those learned from, or position or x0, x1, ..., as samples have them, else all",
    )
    order: Instants | None = Field(
        None,
        description="so many instants of the chains' way from their start to the samples, which"
        " order.png shows; null: no such picture",
    )
    format: Literal["arrow", "parquet", "csv", "npy", "fasta"] = Field(
        "arrow",
        description="of the file of samples: arrow, parquet, csv (a column for each number), npy"
        " (positions alone), or of runs on data=fasta fasta (letters)",
    )
    samples: PositiveInt | None = Field(
        None,
        description="chains; null: one for each row of clamp=FILE, else as many as the run's"
        " evaluation has",
    )
    transitions: PositiveInt | None = Field(
        None, description="transitions from noise to sample; null: as the run's evaluation"
    )
    seed: NonNegativeInt = Field(0, description="seed of the chains")
    device: Device = Field("cpu", description="cpu, cuda or cuda:N")
    output: Url | None = Field(
        None, description="where files go, any fsspec URL; null: samples-<hash> in the run's folder"
    )
