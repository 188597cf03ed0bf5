"""The settings of `python -m pipeline.evaluate`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.config.fields import Names, NonNegativeInt, Section, Url, about

OVERRIDABLE = (
    *("evaluation", "kernel", "data.path", "data.held_out_path"),
    *("data.contacts", "data.contact_distance"),
)


class Settings(Section):
    run: Url = about("URL of the run")
    points: Url | None = Field(None, description="file of points to rank: a path or an fsspec URL")
    features: Url | None = Field(
        None,
        description="file that the hidden units' values of points=FILE are written to, with their"
        " energies: .npy (values alone), .csv or .parquet, by its name",
    )
    ood: Url | None = Field(None, description="noise, shuffled, or a file of rows")
    mutations: Url | None = Field(
        None,
        description="CSV file of mutants of the focus sequence of data=fasta: a column mutant, such"
        " as A24G or A24G:L28I, and perhaps score, what was measured",
    )
    columns: Names = Field(
        (),
        description="columns of a CSV, Parquet or Arrow file to take; empty: those learned from, or"
        " position or x0, x1, ..., as samples have them, else all",
    )
    given: Any = Field(
        None,
        description=(
            "the context of `points` and of the rows of a file, for models that condition on one"
        ),
    )
    seed: NonNegativeInt = Field(0, description="seed of what ood=noise and ood=shuffled draw")
    output: Url | None = Field(
        None,
        description="where files go, any fsspec URL; null: evaluation-<hash> in the run's folder",
    )
