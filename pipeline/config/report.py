"""The settings of `python -m pipeline.report`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.fields import Section, Url


class Settings(Section):
    runs: Annotated[
        tuple[Url, ...],
        Field(
            strict=False,
            min_length=1,
            description="URLs of the runs, [A,B]; of a single one, run=URL",
        ),
    ]
    output: Url | None = Field(
        None, description="folder of the page, any fsspec URL; null: the run's own, or runs/"
    )
