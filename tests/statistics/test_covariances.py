"""The live two-site covariances, against those that a run is judged by in the end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.alignments import Weighted, compare
from pipeline.training.covariances import Covariances

SITES, LEVELS = 40, 5  # more than are worked on at once


def rows(count: int, seed: int, missing: bool = False) -> Tensor:
    """Letters of which each leans towards its neighbour's."""
    random = np.random.RandomState(seed)
    codes = random.randint(0, LEVELS, (count, SITES))
    for site in range(1, SITES):
        same = random.rand(count) < 0.5
        codes[same, site] = codes[same, site - 1]
    if missing:
        codes[random.rand(count, SITES) < 0.1] = -1
    return torch.from_numpy(codes).float()


def judged(data: Tensor, weights: Tensor, chains: Tensor) -> dict[str, float]:
    sides = [
        Weighted(some.numpy().astype(np.int64), of.double().numpy())
        for some, of in ((data, weights), (chains, torch.ones(len(chains))))
    ]
    return compare(*sides, LEVELS).figures()


@pytest.mark.parametrize("missing", [False, True])
def test_they_agree_as_the_evaluation_says(missing: bool) -> None:
    data, chains = rows(300, 0, missing), rows(200, 1, missing)
    weights = torch.linspace(0.1, 2, len(data))
    found = Covariances(data, weights, LEVELS).figures(chains)
    truth = judged(data, weights, chains)
    assert found["two_site"] == pytest.approx(truth["two_site"], abs=1e-5)
    assert found["two_site_slope"] == pytest.approx(truth["two_site_slope"], abs=1e-5)
    unweighted = Covariances(data, None, LEVELS).figures(chains)
    assert abs(unweighted["two_site"] - found["two_site"]) > 1e-3


def test_the_rows_themselves_agree_and_constant_chains_do_not() -> None:
    data = rows(100, 2)
    same = Covariances(data, None, LEVELS)
    assert same.figures(data) == {
        "two_site": pytest.approx(1, abs=1e-6),
        "two_site_slope": pytest.approx(1, abs=1e-6),
    }
    constant = same.figures(torch.zeros(50, SITES))
    assert math.isnan(constant["two_site"])
    assert constant["two_site_slope"] == pytest.approx(0, abs=1e-6)
