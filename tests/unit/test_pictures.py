"""Pictures of rows of any shape, and of few: a run ends with a picture, or a line on why not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.common.errors import StorageError
from pipeline.data.base import DataSet, channels_last, in_memory
from pipeline.energies.base import Energy
from pipeline.energies.mlp import MLPEnergy
from pipeline.evaluation.conditional_pictures import draw_conditional
from pipeline.evaluation.curves import draw_curves
from pipeline.evaluation.pictures import as_images, draw_samples
from pipeline.storage.figures import draw_figure


class Drawn(NamedTuple):
    """A model that is hardly one, its samples, and its data."""

    energy: Energy
    samples: Tensor
    data: DataSet


def drawn(shape: tuple[int, ...], samples: int = 6, rows: int = 12, held_out: int = 4) -> Drawn:
    generator = torch.Generator().manual_seed(0)
    energy = MLPEnergy(shape, hidden=[4], base_scale=1.0, spectral_norm=False)
    values = torch.randn(rows + held_out + samples, *shape, generator=generator)
    train, test, sampled = values.split([rows, held_out, samples])
    return Drawn(energy.requires_grad_(False), sampled, in_memory(train, test, 0.1))


def picture(output: Path) -> bool:
    path = output / "samples.png"
    return path.exists() and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "shape",
    [
        (1,),
        (2,),
        (7,),
        (4, 5),
        (1, 4, 5),
        (2, 6, 6),
        (4, 4, 4),
        (9, 8, 3),
        (40, 3, 3),
        (2, 3, 4, 5),
    ],
)
def test_rows_of_any_shape_are_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert draw_samples(*drawn(shape), "caption", str(tmp_path)) == {}
    assert picture(tmp_path)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4, 5)])
@pytest.mark.parametrize("what", ["one sample, one row", "constant", "no rows"])
def test_few_rows_are_drawn(shape: tuple[int, ...], what: str, tmp_path: Path) -> None:
    """One row has no range, nor have many that are alike; and data may be gone."""
    model = drawn(shape, 1, 1, 1) if "one" in what else drawn(shape)
    energy, samples, data = model
    if what == "constant":
        zeros = torch.zeros(5, *shape)
        data, samples = in_memory(zeros, zeros[:2], 0.0), zeros
    if what == "no rows":
        empty = torch.empty(0, *shape)
        data = DataSet(shape, 0, empty, empty, 0.0, data.positives)
    assert draw_samples(energy, samples, data, "caption", str(tmp_path)) == {}
    assert picture(tmp_path)


def test_channels_are_shown_where_they_are() -> None:
    """Three are colours, wherever they stand; one is grey; others stand side by side."""
    colours = torch.rand(2, 3, 6, 5)
    assert np.array_equal(as_images(colours), colours.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(as_images(colours.permute(0, 2, 3, 1)), as_images(colours))
    grey = as_images(colours[:, :1])
    assert grey.shape == (2, 6, 5, 3)
    assert np.array_equal(as_images(colours[:, 0]), grey)
    two = as_images(colours[:, :2])
    assert two.shape == (2, 6, 10, 3)
    assert np.array_equal(two[:, :, :5], grey)
    assert as_images(torch.rand(1, 40, 2, 2)).shape == (1, 2, 32, 3)


@pytest.mark.parametrize(
    ("shape", "doubtful"),
    [
        *[((28, 28, 3), True), ((28, 28, 1), True), ((5, 6, 4), True)],
        *[((3, 28, 28), False), ((4, 4, 4), False), ((5, 2, 2), False), ((28, 28), False)],
    ],
)
def test_which_axes_look_mixed_up(shape: tuple[int, ...], doubtful: bool) -> None:
    assert channels_last(shape) == doubtful


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    """Samples that are not finite have no histogram; a run goes on without."""
    energy, samples, data = drawn((3,))
    undrawn = draw_samples(energy, samples * math.nan, data, "caption", str(tmp_path))
    assert list(undrawn) == ["undrawn_samples"]
    assert "ValueError" in undrawn["undrawn_samples"]
    assert not picture(tmp_path)
    assert list(draw_curves([{"step": 1.0}], str(tmp_path), "title")) == ["undrawn_curves"]


def test_a_place_that_cannot_be_written_to_is_no_fault_of_the_picture(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        draw_figure(Figure, f"{tmp_path}/file", "samples.png")


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_conditional_laws_of_one_row(dimension: int, tmp_path: Path) -> None:
    """A single held-out row and context span no axis."""
    from pipeline.energies.conditional_mlp import ConditionalMLP

    energy = ConditionalMLP((dimension,), (1,), hidden=[4], base_scale=1.0)
    rows, contexts = torch.zeros(3, dimension), torch.zeros(3, 1)
    data = in_memory(rows[:2], rows[2:], 0.0, context=(contexts[:2], contexts[2:]))
    model = energy.requires_grad_(False)
    assert draw_conditional(model, rows[:1], contexts[:1], data, "one", str(tmp_path)) == {}
    assert picture(tmp_path)
