"""The settings of `python -m pipeline.export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.fields import Section, Url, about


class Settings(Section):
    run: Url = about("URL of the run, or of one of its checkpoints")
    to: Url = about("folder that the files go to: a path or an fsspec URL")
    format: Literal["all", "onnx", "torch", "safetensors"] = Field(
        "all",
        description="onnx: graphs for ONNX Runtime; torch: graphs of torch.export; safetensors:"
        " weights with a model card, which pipeline.load opens; all: all three",
    )
