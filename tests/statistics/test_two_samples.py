"""Distances of samples and rows, against closed forms of normal laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.chains.motion import QUARTILES, motion_of, rank_correlation
from pipeline.evaluation.two_samples import (
    copies,
    likeness,
    memorisation,
    squared_mmd,
)
from pipeline.training.likeness import Likeness, energy_distance

SEEDS, COUNT = 40, 300
ERRORS = 4.0  # a false alarm in 16,000


def normals(shift: float, seed: int, count: int = COUNT) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, 1, generator=generator, dtype=torch.float64)


def mean_distance(shift: float) -> float:
    """E|X - Y| of N(0, 1) and N(shift, 1): the folded normal's mean, of variance 2."""
    tail = 0.5 * math.erfc(shift / 2)
    return 2 / math.sqrt(math.pi) * math.exp(-shift * shift / 4) + shift * (1 - 2 * tail)


def close(found: Tensor, truth: float) -> None:
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - truth) < ERRORS * error


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_energy_distance_of_two_normal_laws(shift: float) -> None:
    """The ratio's denominator is nearly certain here, so that its bias is far below the error."""
    found = [energy_distance(normals(0, s), normals(shift, 1000 + s)) for s in range(SEEDS)]
    between, among = mean_distance(shift), mean_distance(0)
    close(torch.tensor(found), (between - among) / between)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_mmd_of_two_normal_laws(shift: float) -> None:
    """E k = s / sqrt(s^2 + 2) exp(-m^2 / (2 (s^2 + 2))), for the width s that the rows give."""
    off = []
    for seed in range(SEEDS):
        x, y = normals(0, seed), normals(shift, 1000 + seed)
        wide = torch.pdist(y).median().item() ** 2
        same, apart = math.sqrt(wide / (wide + 2)), math.exp(-(shift**2) / (2 * (wide + 2)))
        off.append(squared_mmd(x, y) - 2 * same * (1 - apart))
    close(torch.tensor(off), 0.0)


def test_copies_are_memorised_and_fresh_rows_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    training, held_out, fresh = torch.randn(3, 400, 8, generator=generator).double()
    found = memorisation(training[:100] + 1e-9, training, held_out)
    assert found["memorised"] == 1.0
    assert found["nearest_training_row"] < 1e-6 < found["held_out_nearest_training_row"]
    # of 400 draws at a chance of 0.05, known to 0.011 each way; the quantile is as uncertain
    assert memorisation(fresh, training, held_out)["memorised"] == pytest.approx(0.05, abs=0.07)


def test_copies_among_held_out_rows_are_counted() -> None:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    assert copies(torch.cat([rows[:5], rows[:15] + 1]), rows) == 0.25


def test_samples_of_the_datas_law_are_as_near_as_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, training, held_out = torch.randn(3, 500, 4, generator=generator)
    found = likeness(samples, training, held_out)
    far = likeness(samples + 1, training, held_out)
    for name in ("energy_distance", "mmd"):
        assert abs(found[name]) < 0.02 < far[name]
        assert abs(found[f"rows_{name}"]) < 0.02
    assert likeness(samples, training[:2], held_out) == {}


def test_chains_are_held_against_rows() -> None:
    """Ten groups far from one another; chains that are at half of them cover half."""
    generator = torch.Generator().manual_seed(0)
    centres = 100 * torch.arange(10.0)
    rows = (centres.repeat(20) + torch.randn(200, generator=generator))[:, None]
    seen = Likeness(rows)
    assert seen.figures(rows + 0.1)["mode_coverage"] == pytest.approx(1)
    half = seen.figures(rows[rows[:, 0] < 450])
    assert half["mode_coverage"] == pytest.approx(0.5)
    assert half["energy_distance"] > 0.2
    assert seen.figures(rows + 0.1)["energy_distance"] < 0.01


def test_motion_is_that_of_the_middle_chain() -> None:
    """Chains of an autoregression keep r of a normal energy: a Spearman correlation of 6 / pi
    asin(r / 2) (Pearson 1907). One chain in ten is lost.
    """
    generator = torch.Generator().manual_seed(0)
    count, keeps = 4000, 0.7
    before = torch.randn(count, generator=generator)
    after = keeps * before + math.sqrt(1 - keeps**2) * torch.randn(count, generator=generator) - 2
    start = torch.zeros(count, 3)
    end = start + torch.tensor([0.0, 3.0, 4.0])
    motion = motion_of(start, before, end, after, None)
    expected = 6 / math.pi * math.asin(keeps / 2)
    assert motion.memory == pytest.approx(expected, abs=ERRORS / math.sqrt(count))
    assert motion.change == pytest.approx(-2, abs=ERRORS * 1.2 / math.sqrt(count))
    assert motion.spread == pytest.approx(1, abs=ERRORS * 1.2 / math.sqrt(count))
    assert motion.distance == pytest.approx(5 / math.sqrt(3))
    assert pytest.approx(2 * 0.67449, rel=1e-3) == QUARTILES
    after[::10] = torch.nan
    lost = motion_of(start, before, end, after, None)
    assert lost.change == pytest.approx(-2, abs=0.1)
    assert lost.spread == pytest.approx(1, abs=0.1)


def test_over_levels_the_distance_is_a_share() -> None:
    start = torch.zeros(5, 4)
    end = start.clone()
    end[:, 0] = 3
    energies = torch.arange(5.0)
    assert motion_of(start, energies, end, energies, 4).distance == 0.25
    assert rank_correlation(energies, energies) == 1
    assert rank_correlation(energies, -energies) == -1
    assert rank_correlation(energies[:1], energies[:1]) == 0
