"""The sections of the configuration that `data=NAME` decides; see `pipeline.energy_sections`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.fields import Names, NonNegativeFloat, NonNegativeInt, PositiveInt, Section, Shape, about


class Data(Section):
    held_out: PositiveInt = about("rows kept out of training")
    split_seed: NonNegativeInt = about("seed of the split, apart from `seed` so that runs compare")
    noise: NonNegativeFloat = about("standard deviation of the Gaussian noise added afresh to every row drawn")

    @property
    def discrete_levels(self) -> int | None:
        """q where a row's values are 0, ..., q-1; None where they are real numbers."""
        encoding = getattr(self, "encoding", "real")
        return {"real": None, "binary": 2, "sampled": 2}.get(encoding, getattr(self, "levels", None))


Encoding = Annotated[
    Literal["real", "binary", "sampled", "categorical"],
    Field(
        description="real: grey levels scaled to [-1, 1]; binary: 1 from the middle grey level up, else 0; "
        "sampled: 1 with probability grey / maximum, drawn once by split_seed; categorical: cut into `levels` equal parts"
    ),
]
CategoricalLevels = Annotated[int, Field(ge=2, description="values 0, ..., levels-1 under encoding=categorical")]


class DigitsData(Data):
    name: Literal["digits"]
    encoding: Encoding
    levels: CategoricalLevels


class IDXData(Data):
    name: Literal["idx"]
    encoding: Encoding
    levels: CategoricalLevels
    path: str = about("an IDX file of images, or a folder with train-images-idx3-ubyte[.gz] (and t10k-...)")


class ToyData(Data):
    name: Literal["toy"]
    law: Literal["8gaussians", "two_moons", "checkerboard"] = about("which 2-D law, each of known density")
    rows: PositiveInt = about("rows drawn from it, held-out ones included")


class ColumnsData(Data):
    name: Literal["columns"]
    path: str = about("Parquet or Arrow files: a path, an fsspec URL or a glob")
    columns: Names = about("one column of fixed-size lists, or numeric columns; empty: all there are")
    shape: Shape = about("shape of one row, such as [8,8]; empty: flat")
    encoding: Annotated[
        Literal["real", "binary", "categorical"],
        Field(description="real: numbers as they are; binary: every value 0 or 1; categorical: 0, ..., levels-1"),
    ]
    levels: CategoricalLevels
    memory_limit: PositiveInt = about("bytes; a larger data set is streamed instead of loaded")


DataConfig = Annotated[DigitsData | IDXData | ToyData | ColumnsData, Field(discriminator="name")]
