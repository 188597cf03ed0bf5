"""The settings of `python -m pipeline.report`."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.fields import Runs, Section, Url


class Settings(Section):
    runs: Runs
    output: Url | None = Field(
        None, description="folder of the page, any fsspec URL; null: the run's own, or runs/"
    )
