"""Where moments lie: inside the features' hull, on its boundary, outside, or where that cannot be
decided.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.energies.maxent.exponential_family import ExponentialFamily, family
from pipeline.energies.maxent.marginal_polytope import locate
from tests.statistics.test_features import MEANS, PAIRS
from tests.statistics.test_maxent import QUADRATIC, law, numbers

TWENTY = family((20,), [MEANS, PAIRS], levels=2)  # too many states for a programme


def halves(pair: float, first: float = 0.5) -> list[float]:
    """Twenty means of a half, but the first, and all products."""
    return [first, *[0.5] * 19, *[pair] * 190]


CASES: list[tuple[ExponentialFamily, list[float], float, str, str]] = [
    (family((1,), [MEANS], levels=6), [3.5], 0.0, "inside", ""),
    (family((1,), [MEANS], levels=6), [6.0], 0.0, "outside", "x is at most 5"),
    (family((1,), [MEANS], levels=6), [-0.1], 0.0, "outside", "-x is at most 0"),
    (family((1,), [MEANS], levels=6), [5.0], 0.0, "boundary", "x would have to be 5"),
    (family((1,), [MEANS], levels=6), [5.0], 0.1, "inside", ""),
    (family((1,), [MEANS], levels=6), [5.3], 0.1, "outside", "x is at most 5, so 5.2"),
    (family((1,), [QUADRATIC], box=(-3.0, 3.0)), [1.0, 1.2], 0.0, "inside", ""),
    (
        family((1,), [QUADRATIC], box=(-3.0, 3.0)),
        [1.0, 0.9],
        0.0,
        "outside",
        "x^2",
    ),  # a variance of -0.1
    (family((1,), [QUADRATIC], base_scale=1.0), [1.0, 0.9], 0.0, "outside", "x^2"),
    (family((1,), [QUADRATIC], box=(-3.0, 3.0)), [0.0, 9.1], 0.0, "outside", "x^2 is at most 9"),
    (family((2,), [MEANS, PAIRS], levels=2), [0.5, 0.5, 0.4], 0.0, "inside", ""),
    (
        family((2,), [MEANS, PAIRS], levels=2),
        [0.5, 0.5, 0.6],
        0.0,
        "outside",
        "is at most 0, so 0.1",
    ),
    (
        family((2,), [MEANS, PAIRS], levels=2),
        [0.8, 0.8, 0.5],
        0.0,
        "outside",
        "is at most 1, so 1.1",
    ),
    (
        family((2,), [MEANS, PAIRS], levels=2),
        [0.8, 0.8, 0.6],
        0.0,
        "boundary",
        "would have to be 1",
    ),
    (
        family((1,), [{"kind": "histogram", "low": 0.0, "high": 1.0, "bins": 3}], box=(0.0, 1.0)),
        [0.2, 0.3, 0.5],
        0.0,
        "inside",
        "",
    ),
    (
        family((1,), [{"kind": "histogram", "low": 0.0, "high": 1.0, "bins": 3}], box=(0.0, 1.0)),
        [0.2, 0.3, 0.4],
        0.0,
        "outside",
        "is always 1, not 0.9",
    ),
    (TWENTY, halves(0.25), 0.0, "possible", ""),
    (TWENTY, halves(0.25, first=1.1), 0.0, "outside", r"x[0] is at most 1"),
    (TWENTY, halves(0.6), 0.0, "outside", "between 0 and 0.5, and 0.6 is asked"),
    (TWENTY, halves(0.6), 0.05, "possible", ""),
    (
        TWENTY,
        halves(0.2),
        0.0,
        "outside",
        "the matrix of their second moments has the eigenvalue -",
    ),
    (family((5,), [QUADRATIC], base_scale=1.0), [0.0, 1.0] * 5, 0.0, "possible", ""),
    (
        family((5,), [QUADRATIC], base_scale=1.0),
        [0.0, 1.0] * 4 + [1.0, 0.9],
        0.0,
        "outside",
        "x[4]^2",
    ),
]


@pytest.mark.parametrize(("energy", "mu", "slack", "kind", "reason"), CASES)
def test_where_moments_lie(
    energy: ExponentialFamily, mu: list[float], slack: float, kind: str, reason: str
) -> None:
    verdict = locate(energy, numbers(*mu), slack)
    assert verdict.kind == kind
    assert reason in verdict.reason


def test_moments_of_a_law_are_inside_and_beyond_a_face_they_are_not() -> None:
    """Of four binary units: mixtures of all states are inside; pushed out along the line from the
    middle through a state, which is a vertex, they are on the boundary at it and outside beyond.
    """
    energy = family((4,), [MEANS, PAIRS], levels=2).double()
    x, _ = law(energy)
    phi = energy.features(x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        weights = torch.rand(len(x), generator=generator, dtype=torch.float64).pow(4)
        middle, vertex = (
            weights / weights.sum() @ phi,
            phi[int(torch.randint(len(x), (), generator=generator))],
        )
        kinds = [
            locate(energy, middle + reach * (vertex - middle)).kind
            for reach in (0.0, 0.99, 1.0, 1.01)
        ]
        assert kinds == ["inside", "inside", "boundary", "outside"]
