"""The sections that `data=NAME` decides. `pipeline.config.parts` names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, SerializeAsAny

from pipeline.config.fields import (
    Levels,
    Names,
    NamesOrAuto,
    NonNegativeFloat,
    NonNegativeInt,
    OpenProbability,
    Part,
    PositiveFloat,
    PositiveInt,
    Shape,
    Url,
    about,
)
from pipeline.config.parts import Choice


class DataSection(Part):
    """The base of every data set's section, and what is said of its rows there.

    `has_rows`: there are rows to learn from. `images`: False where a row is known not to be one.
    `recorded` is what a trained run has of its data, the scale of its rows, the labels of its
    contexts and the values of its categories, and `classes` are those that the energy knows, where
    it knows labels.
    """

    _recorded: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _classes: int | None = PrivateAttr(None)

    has_rows: ClassVar[bool] = True
    images: ClassVar[bool] = True
    held_out: Annotated[PositiveInt | OpenProbability, Field(union_mode="left_to_right")] = about(
        "rows kept out of training: a count, or a share of all of them below 1"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = about(
        "seed of the split, apart from `seed` so that runs compare"
    )
    noise: NonNegativeFloat = about(
        "standard deviation of the Gaussian noise added afresh to every row drawn"
    )

    @property
    def by_column(self) -> bool:
        """True where each number of a row is of a kind of its own, which the rows tell."""
        return False

    @property
    def recorded(self) -> Mapping[str, Any]:
        return self._recorded

    @property
    def classes(self) -> int | None:
        return self._classes

    def telling(
        self, classes: int | None = None, recorded: Mapping[str, Any] | None = None
    ) -> Self:
        """Returns this section with the `classes` of an energy, or what a run has recorded."""
        section = self.model_copy()
        section._classes = self._classes if classes is None else classes
        section._recorded = self._recorded if recorded is None else recorded
        return section

    @property
    def discrete_levels(self) -> int | None:
        """The q of rows whose values are 0, ..., q-1; None where they are real numbers."""
        encoding = getattr(self, "encoding", "real")
        return {"real": None, "binary": 2, "sampled": 2}.get(
            encoding, getattr(self, "levels", None)
        )


Encoding = Annotated[
    Literal["real", "binary", "sampled", "categorical"],
    Field(
        description=(
            "real: grey levels scaled to [-1, 1]; binary: 1 from the middle grey level up, else 0;"
            " sampled: 1 with probability grey / maximum, drawn once by split_seed; categorical:"
            " cut into `levels` equal parts"
        )
    ),
]
CategoricalLevels = Annotated[
    Levels, Field(description="values 0, ..., levels-1 under encoding=categorical")
]


class DigitsData(DataSection):
    encoding: Encoding
    levels: CategoricalLevels
    position: Literal["image", "label"] = about(
        "which of the two is learned; the other is its context, for energies that take one"
    )

    @property
    def discrete_levels(self) -> int | None:
        return 10 if self.position == "label" else super().discrete_levels


class IDXData(DataSection):
    encoding: Encoding
    levels: CategoricalLevels
    path: Url = about(
        "an IDX file of images, or a folder with train-images-idx3-ubyte[.gz] (and t10k-...)"
    )


class ImagesData(DataSection):
    path: Url = about("a folder of PNG and JPEG images; sub-folders are labels, the context")
    encoding: Encoding
    levels: CategoricalLevels
    channels: Literal[1, 3] | None = about("1: grey, 3: colour; null: as the first image has them")
    size: Annotated[Shape, Field(max_length=2)] = about(
        "[height,width] in pixels that all are resized to, or one side; empty: as they are"
    )


ToyLaw = Literal["8gaussians", "two_moons", "checkerboard", "ring", "stripe"]


class ToyData(DataSection):
    images: ClassVar[bool] = False
    law: ToyLaw = about("which 2-D law, each of known density")
    rows: PositiveInt = about("rows drawn from it, held-out ones included")


class LabelledToysData(DataSection):
    images: ClassVar[bool] = False
    laws: Annotated[tuple[ToyLaw, ...], Field(strict=False, min_length=2)] = about(
        "2-D laws; a row's label is its law's place here"
    )
    rows: PositiveInt = about("rows drawn from them, as many from each, held-out ones included")


class ConditionalToyData(DataSection):
    images: ClassVar[bool] = False
    law: Literal["fork", "wheel"] = about(
        "which law of y given x, of known density: fork: y in R; wheel: y in R^2"
    )
    rows: PositiveInt = about("rows drawn from it, held-out ones included")


class TagsData(DataSection):
    images: ClassVar[bool] = False
    rows: PositiveInt = about("sequences drawn, held-out ones included")
    sites: PositiveInt = about("length of a sequence")
    levels: Levels = about("tags 0, ..., levels-1 of a site")
    features: PositiveInt = about("numbers seen of each site, standard normal")

    @property
    def discrete_levels(self) -> int:
        return self.levels


TableEncoding = Annotated[
    Literal["real", "binary", "categorical"],
    Field(
        description=(
            "real: numbers as they are; binary: every value 0 or 1; categorical: 0, ..., levels-1"
        )
    ),
]


TableScale = Annotated[
    Literal["none", "standard", "unit"],
    Field(
        description=(
            "of each column of numbers: standard: less its mean, over its standard deviation; unit:"
            " to [0, 1]"
        )
    ),
]


class TableSection(DataSection):
    """Rows of columns, which may be of several kinds, and may have holes."""

    encoding: TableEncoding
    levels: CategoricalLevels
    scale: TableScale
    categorical: NamesOrAuto = about(
        "columns of categories, taken as places 0, ..., q-1 of their sorted values; auto: those of"
        " text and of booleans; empty: none"
    )
    missing: Literal["refuse", "impute"] = about(
        "impute: rows with holes are learned from, what they lack drawn anew from the model given"
        " what is there, every time that they come; refuse: none may have any"
    )

    @property
    def by_column(self) -> bool:
        return bool(self.categorical)


class ColumnsData(TableSection):
    path: Url = about(
        "Parquet, Arrow, HDF5, CSV, .npy or .npz files: a path, an fsspec URL or a glob;"
        " docs/data.md"
    )
    columns: Names = about(
        "columns of numbers, or of lists of one length; empty: all there are but the context's"
    )
    shape: Shape = about("shape of one row, such as [8,8]; empty: flat")
    context: Names = about(
        "columns, of the same kinds or of labels in words, that a conditional model conditions on;"
        " empty: none"
    )
    context_shape: Shape = about("shape of one row's context; empty: flat")
    weight: str | None = about(
        "column of how much each row counts, a number of 0 or more; null: all alike"
    )
    held_out_column: str | None = about(
        "column of 0 and 1, or false and true: rows that are 1 are kept out, in the place of"
        " data.held_out; null: none"
    )
    held_out_path: Url | None = about(
        "files of the rows that are kept out, as data.path, in the place of data.held_out; null:"
        " none"
    )
    memory_limit: PositiveInt = about("bytes; a larger data set is streamed instead of loaded")


GAP = "-"
ALPHABETS = {"protein": "ACDEFGHIKLMNPQRSTVWY", "rna": "ACGU", "dna": "ACGT"}
AMBIGUOUS = {"protein": "XBZJOU*", "rna": "NRYSWKMBDHVX", "dna": "NRYSWKMBDHVX"}
"""Letters that stand for several, or for one that an alphabet lacks (IUPAC)."""


class FastaData(DataSection):
    """An alignment of sequences. Its levels are the letters of the alphabet; a gap is the first of
    them, or none.
    """

    images: ClassVar[bool] = False
    noise: ClassVar[float] = 0.0  # type: ignore[misc]
    held_out: Annotated[NonNegativeInt | OpenProbability, Field(union_mode="left_to_right")] = (
        about(
            "sequences kept out of training: a count, or a share of all of them below 1; 0: none,"
            " and no figure is of sequences that the model has not seen"
        )
    )
    path: Url = about("FASTA, a2m, a3m or Stockholm file, gzipped or not: a path or an fsspec URL")
    alphabet: Annotated[str, Field(min_length=2, max_length=127)] = about(
        "protein, rna, dna, or the letters themselves, such as '_*^'"
    )
    gaps: Literal["state", "ignore"] = about(
        "state: a gap is a letter; ignore: it is missing, for energy=potts by pseudo-likelihood"
    )
    ambiguous: Literal["drop", "gap", "refuse"] = about(
        "sequences with letters that stand for several, such as X: drop: leave them out; gap: take"
        " the letters for gaps"
    )
    focus: str | None = about(
        "name of the sequence whose letters of upper case are the sites; null: every column is"
    )
    identity: Annotated[float, Field(gt=0, le=1)] | None = about(
        "a sequence weighs 1 over the number of those that have at least this share of columns as"
        " it has; held-out sequences are not as alike to training ones; null: all weigh 1"
    )
    weights_path: Url | None = about(
        "file of weights in their place, one a line for each sequence; null: none"
    )
    contacts: Url | None = about(
        "table of pairs of sites that touch in a known structure, or of pairs and their distances,"
        " angstrom, which the strongest couplings are held against; null: none"
    )
    contact_distance: PositiveFloat = about("angstrom, below which sites of data.contacts touch")

    @property
    def named(self) -> bool:
        """True of an alphabet that is known by its name."""
        return self.alphabet in ALPHABETS

    @property
    def letters(self) -> str:
        """The letter of each level."""
        found = ALPHABETS.get(self.alphabet)
        if found is None:
            return self.alphabet.replace(GAP, "") if self.gaps == "ignore" else self.alphabet
        return GAP + found if self.gaps == "state" else found

    @property
    def ambiguous_letters(self) -> str:
        """Letters that are known, and are none of the alphabet."""
        return AMBIGUOUS.get(self.alphabet, "")

    @property
    def discrete_levels(self) -> int:
        return len(self.letters)


class RowsData(TableSection):
    """Rows given in code (in `_rows`, which no file holds)."""

    shape: Shape = about("shape of one row, such as [8,8]; empty: as they are given")
    given: str | None = about("the rows given in code, in words (not for people to set)")
    _rows: Any = PrivateAttr(default=None)


# what is added up in float64 and exponentiated
Nats = Annotated[float, Field(ge=0, le=1e6)]


class IsingData(DataSection):
    """Rows of an Ising model, drawn exactly; its couplings and fields are drawn by `split_seed`."""

    shape: Shape = about("sides of the grid, at most 20 sites in all")
    coupling: Nats = about(
        "standard deviation of the couplings J of nearest neighbours, nats: -J s_i s_j, s = -1, 1"
    )
    field: Nats = about("standard deviation of the fields B, nats: -B s_i")
    rows: PositiveInt = about("rows drawn from it, held-out ones included")

    @property
    def discrete_levels(self) -> int:
        return 2


class NoData(DataSection):
    """No rows at all: for objective=moments with the moments given."""

    has_rows: ClassVar[bool] = False
    held_out: ClassVar[int] = 0  # type: ignore[misc]
    split_seed: ClassVar[int] = 0  # type: ignore[misc]
    noise: ClassVar[float] = 0.0  # type: ignore[misc]
    shape: Shape = about("shape of a position, such as [1]")
    levels: Levels | None = about("q for positions in {0, ..., q-1}^d; null: real numbers")

    @property
    def discrete_levels(self) -> int | None:
        return self.levels


DataConfig = Annotated[SerializeAsAny[DataSection], Choice("data")]
