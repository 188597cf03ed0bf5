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
from pipeline.data.fasta import Sequences
from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.evaluation.conditional_pictures import draw_conditional
from pipeline.evaluation.curves import draw_curves
from pipeline.evaluation.energy_histograms import (
    HELD_OUT,
    NOISE,
    SAMPLES,
    TRAINING,
    _histograms,
)
from pipeline.evaluation.filters import draw_filters, has_filters, layers_of
from pipeline.evaluation.motifs import _motifs, draw_motifs
from pipeline.evaluation.pictures import CELLS, _plane, as_images, draw_samples
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


def test_noise_far_away_leaves_room_for_the_rest() -> None:
    """Data take a fifth of the axis at least, wherever noise and samples are."""
    random = np.random.default_rng(0)
    for noise, samples in ((20.0, 0.0), (1e4, 0.0), (-1e4, 50.0), (1e6, -1e5)):
        values = {
            TRAINING: random.normal(500, 10, 1000),
            HELD_OUT: random.normal(505, 10, 300),
            SAMPLES: random.normal(500 + samples, 10, 40),
            NOISE: random.normal(500 + noise, 10, 1000),
        }
        axis = _histograms(values, "caption").axes[0]
        ends = np.quantile(values[TRAINING], [0.01, 0.99]) - values[TRAINING].mean()
        places = axis.transAxes.inverted().transform(
            axis.transData.transform(np.stack([ends, [0, 0]], 1))
        )[:, 0]
        assert places[1] - places[0] > 0.2
        low, high = axis.get_xlim()
        everything = np.concatenate(list(values.values())) - values[TRAINING].mean()
        assert low <= everything.min() <= everything.max() <= high
        assert "nats" in axis.get_xlabel()
        assert ("logarithmic" in axis.get_xlabel()) == (abs(noise) > 1000)


def test_the_true_density_stands_beside_the_learned() -> None:
    """Of a model that is its data's law they are the same, and add up to 1."""

    def log_density(x: Tensor) -> Tensor:
        return -x.square().sum(1) / 2 - math.log(2 * math.pi)

    energy, samples, data = drawn((2,), held_out=200)
    model = energy
    model.forward = lambda x: 7 - log_density(x)  # type: ignore[method-assign]
    figure = _plane(model, samples, data._replace(log_density=log_density), "caption")
    learned, true = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[2:4])
    assert [axis.get_title() for axis in figure.axes[2:4]] == ["learned density", "true density"]
    np.testing.assert_allclose(learned, true, rtol=1e-4)
    left, right, _, _ = figure.axes[2].images[0].get_extent()
    assert math.isclose(true.sum() * ((right - left) / (CELLS - 1)) ** 2, 1, rel_tol=1e-6)
    # at the origin, up to what is outside of the picture and the width of a cell
    assert math.isclose(true.max(), 1 / (2 * math.pi), rel_tol=0.05)
    assert len(_plane(model, samples, data, "caption").axes) == 4, "three, and the colours"


@pytest.mark.parametrize(
    "energy",
    [
        BernoulliRBM((4, 5), 120, 0.1),
        BernoulliRBM((7,), 3, 0.1),
        GaussianRBM((3, 4, 5), 6, 0.1),
        PottsRBM((4, 5), 3, 6, 0.1),
        PottsRBM((1,), 2, 1, 0.1),
        DeepBoltzmannMachine((4, 5), (6, 3), 0.1, 2),
    ],
)
def test_filters_are_drawn(energy: Energy, tmp_path: Path) -> None:
    assert has_filters(energy)
    assert draw_filters(energy, "caption", str(tmp_path)) == {}
    assert (tmp_path / "filters.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_motifs_are_of_the_units_that_vary_most(tmp_path: Path) -> None:
    """Of 20 units, two of which answer to site 3 alone; a weight below 0 stands below the line."""
    machine = PottsRBM((4,), 5, 20, 0.01, "drelu")
    with torch.no_grad():
        machine.weight.view(20, 4, 5)[(5, 7), 2, 1] = torch.tensor([3.0, -3.0])
    rows = torch.randint(0, 5, (200, 4), generator=torch.Generator().manual_seed(0)).float()
    sequences = Sequences("-ACGU", [7, 8, 9, 10], "ACGU", [], np.ones(200), 0, [])
    figure = _motifs(machine, sequences, rows, "caption")
    logos = figure.axes[::2]
    assert len(logos) == 8
    assert {axis.get_ylabel() for axis in logos[:2]} == {"unit 5", "unit 7"}
    for axis in logos[:2]:
        largest = max(axis.patches, key=lambda patch: patch.get_path().get_extents().height)
        box = largest.get_path().get_extents()
        assert math.isclose((box.x0 + box.x1) / 2, 2, abs_tol=1e-6)
        assert math.isclose(box.height, 3 * 4 / 5, rel_tol=0.05)
        assert (box.y0 >= 0) == (axis.get_ylabel() == "unit 5")
    assert draw_motifs(machine, sequences, rows, "caption", str(tmp_path)) == {}
    assert (tmp_path / "motifs.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_largest_filters_are_those_shown() -> None:
    machine = BernoulliRBM((4, 5), 120, 0.1)
    ((name, filters),) = layers_of(machine)
    assert "100 largest of 120" in name
    norms = filters.flatten(1).norm(dim=1)
    assert bool((norms[:-1] >= norms[1:]).all())
    rows = machine.weight.detach().norm(dim=1)
    assert math.isclose(float(norms[0]), float(rows.max()), rel_tol=1e-6)
    assert int((rows > norms[-1]).sum()) == 99


def test_deeper_filters_are_seen_through_those_below() -> None:
    machine = DeepBoltzmannMachine((4, 5), (6, 3), 0.1, 2)
    _, (_, filters) = layers_of(machine)
    seen = (machine.weights[1] @ machine.weights[0]).detach()
    order = seen.norm(dim=1).argsort(descending=True)
    torch.testing.assert_close(filters.flatten(1), seen[order])


def test_levels_are_drawn_about_their_mean() -> None:
    """What a number added to all levels of a column changes is no unit's answer to a row."""
    machine = PottsRBM((4, 5), 3, 2, 0.1)
    ((_, before),) = layers_of(machine)
    with torch.no_grad():
        machine.weight.view(2, 4, 5, 3).add_(torch.randn(2, 4, 5, 1))
    ((_, after),) = layers_of(machine)
    torch.testing.assert_close(after, before)
    assert after.shape == (2, 3, 4, 5)
