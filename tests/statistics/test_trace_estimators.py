"""Laws of directions: unbiased, of the variances that their docstrings give, and exact where they
promise it.

Random ones by t-tests over 10,000 draws, with the limit and the false-alarm rate of
`test_score_matching.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.objectives.probes import (
    PROBES,
    TraceEstimator,
    hutch_pp,
    orthogonal,
    rademacher,
    sphere,
)
from pipeline.objectives.score_matching import (
    FiniteDifferenceScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from tests.statistics.laws import seeded
from tests.statistics.test_score_matching import (
    BLOCKS,
    ROWS,
    TrainableGaussian,
    TrainableMixture,
    close,
    estimates,
    found,
    gaussian,
    mixture,
    normal,
    require_unbiased,
)
from tests.statistics.trainable import sides

pytestmark = pytest.mark.slow  # as a group

# the number of directions asked for; hutch_pp: one sketched, three drawn
LAWS: dict[str, int] = {"rademacher": 1, "gaussian": 1, "sphere": 1, "orthogonal": 2, "hutch_pp": 5}
Directional = type[ScoreMatching] | type[SlicedScoreMatching]


# -- slips -----------------------------------------------------------------------------------------


def scaled(law: TraceEstimator, factor: Callable[[int, int], float]) -> TraceEstimator:
    """`factor(d, P)` times what `law` draws."""

    def slipped(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
        v = law(energy, x, probes, generator)
        return factor(energy.dimension, len(v)) * v

    return slipped


def unprojected(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Hutch++ with its last signs as they are drawn: what Q sees is counted twice."""
    v = hutch_pp(energy, x, probes, generator)
    rest = len(v) - probes // 3
    signs = rademacher(energy, x, rest, generator)
    return torch.cat([v[:-rest], math.sqrt(len(v) / rest) * signs])


def unsketched(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Hutch++ without its exact part."""
    return hutch_pp(energy, x, probes, generator)[probes // 3 :]


def one_sign(energy: Energy, x: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """`orthogonal` with each direction's first component positive, as an algorithm's own choice of
    signs may leave it.
    """
    v = orthogonal(energy, x, probes, generator)
    return v * v.flatten(2)[:, :, 0].sign().view(probes, len(x), *(1,) * (x.ndim - 1))


SLIPS: dict[str, tuple[TraceEstimator, int]] = {
    "sphere of radius 1": (scaled(sphere, lambda d, _: d**-0.5), 1),
    "frame of length 1": (scaled(orthogonal, lambda d, _: d**-0.5), 2),
    "hutch_pp as for a sum": (scaled(hutch_pp, lambda _, total: total**-0.5), 5),
    "hutch_pp without projection": (unprojected, 5),
    "hutch_pp without its exact part": (unsketched, 5),
    "signs with 0": (lambda e, x, p, g: rademacher(e, x, p, g).clamp(min=0), 1),
}


# -- unbiased --------------------------------------------------------------------------------------


def check_unbiased(kind: Directional, estimator: TraceEstimator, probes: int) -> None:
    """Loss and gradient at one row, 10,000 times, against those with the trace itself."""
    for energy in (mixture(), gaussian()):
        x = normal(70, 1, *energy.shape)
        exact = found(
            ScoreMatching(PROBES["basis"], 0),
            energy,
            sides(x, (PROBES["basis"](energy, x, 0, seeded(0)),)),
        )
        values = estimates(
            kind(estimator, probes), energy, lambda x=x: x.expand(ROWS, *x.shape[1:]), 1
        )
        require_unbiased(values, exact)


@pytest.mark.parametrize("kind", [ScoreMatching, SlicedScoreMatching])
@pytest.mark.parametrize("name", LAWS)
def test_loss_and_gradient_are_unbiased(kind: Directional, name: str) -> None:
    check_unbiased(kind, PROBES[name], LAWS[name])


@pytest.mark.parametrize("kind", [ScoreMatching, SlicedScoreMatching])
@pytest.mark.parametrize("slip", SLIPS)
def test_biased_directions_are_caught(kind: Directional, slip: str) -> None:
    with pytest.raises(AssertionError, match="p = "):
        check_unbiased(kind, *SLIPS[slip])


@pytest.mark.parametrize("name", LAWS)
def test_finite_differences_are_unbiased_on_a_quadratic(name: str) -> None:
    energy = gaussian()
    x = normal(70, 1, 2, 2)
    exact = found(
        ScoreMatching(PROBES["basis"], 0),
        energy,
        sides(x, (PROBES["basis"](energy, x, 0, seeded(0)),)),
    )
    objective = FiniteDifferenceScoreMatching(PROBES[name], LAWS[name], 0.5)
    require_unbiased(estimates(objective, energy, lambda: x.expand(ROWS, 2, 2), 2), exact)


def second_moments(estimator: TraceEstimator, probes: int, each: bool) -> Tensor:
    """mean_p v v' (or v_p v_p' for each p) of 10,000 draws at one row of the mixture, `[10000, (P)
    * d * d]`.
    """
    energy = mixture()
    x = normal(70, 1, 3).expand(BLOCKS * ROWS, 3)
    v = estimator(energy, x, probes, seeded(3))
    products = torch.einsum("pni,pnj->npij", v, v)
    return products.flatten(1) if each else products.mean(1).flatten(1)


@pytest.mark.parametrize("name", LAWS)
def test_mean_outer_product_is_the_identity(name: str) -> None:
    eye = torch.eye(3, dtype=torch.float64).flatten()
    require_unbiased(second_moments(PROBES[name], LAWS[name], False), eye)
    if name != "hutch_pp":  # a law for each direction as well
        require_unbiased(second_moments(PROBES[name], 2, True), eye.repeat(2))


def check_symmetric(estimator: TraceEstimator) -> None:
    """Each column of the frame by itself: its means, and those of its cubes, are 0."""
    v = (
        estimator(mixture(), normal(70, 1, 3).expand(BLOCKS * ROWS, 3), 2, seeded(4))
        .permute(1, 0, 2)
        .flatten(1)
    )
    values = torch.cat([v, v**3], 1)
    require_unbiased(values, torch.zeros_like(values[0]))


def test_directions_are_symmetric() -> None:
    for name in LAWS.keys() - {"hutch_pp"}:
        check_symmetric(PROBES[name])
    with pytest.raises(AssertionError, match="p = "):
        check_symmetric(one_sign)


# -- variances -------------------------------------------------------------------------------------


def quadratic(factor: Tensor) -> TrainableGaussian:
    """With Hessian L L'."""
    return TrainableGaussian(torch.zeros(len(factor), dtype=torch.float64), factor)


def traces(
    energy: TrainableGaussian, estimator: TraceEstimator, probes: int, draws: int, seed: int = 5
) -> Tensor:
    """Estimates of tr H, each the mean over its directions, `[draws]`."""
    v = estimator(
        energy, torch.zeros(draws, energy.dimension, dtype=torch.float64), probes, seeded(seed)
    )
    return (v @ energy.factor.detach()).square().sum(2).mean(0)


def off_diagonal(h: Tensor, probes: int) -> Tensor:
    return 2 * (h.square().sum() - h.diagonal().square().sum()) / probes


def frobenius(h: Tensor, probes: int) -> Tensor:
    return 2 * h.square().sum() / probes


def traceless(h: Tensor, probes: int) -> Tensor:
    d = len(h)
    return 2 * d / (d + 2) * (h.square().sum() - h.trace() ** 2 / d) / probes


def frame(h: Tensor, probes: int) -> Tensor:
    """Of P directions out of d, whose quadratic forms have covariance -Var / (d - 1) with one
    another: d of them are exact.
    """
    return traceless(h, probes) * (len(h) - probes) / (len(h) - 1)


VARIANCES: list[tuple[str, int, Callable[[Tensor, int], Tensor]]] = [
    *[("rademacher", probes, off_diagonal) for probes in (1, 4)],
    *[("gaussian", probes, frobenius) for probes in (1, 4)],
    *[("sphere", probes, traceless) for probes in (1, 4)],
    *[("orthogonal", probes, frame) for probes in (1, 4)],
]


def check_variance(
    estimator: TraceEstimator, probes: int, variance: Callable[[Tensor, int], Tensor]
) -> None:
    """Squared deviations from tr H, known, have the variance for their mean; 5 dimensions, 10,000
    draws.
    """
    energy = quadratic(
        torch.diag(torch.linspace(0.5, 2.5, 5, dtype=torch.float64)) + 0.3 * normal(71, 5, 5)
    )
    h = energy.precision.detach()
    squares = (traces(energy, estimator, probes, BLOCKS * ROWS) - h.trace()).square()
    require_unbiased(squares.view(BLOCKS, ROWS).mean(1)[:, None], variance(h, probes)[None])


@pytest.mark.parametrize(("name", "probes", "variance"), VARIANCES)
def test_variances_are_as_documented(
    name: str, probes: int, variance: Callable[[Tensor, int], Tensor]
) -> None:
    check_variance(PROBES[name], probes, variance)
    for other, count, wrong in VARIANCES:  # it tells them apart
        if other != name and count == probes == 4:
            with pytest.raises(AssertionError, match="p = "):
                check_variance(PROBES[name], probes, wrong)


def test_hutch_pp_has_the_variance_of_what_it_projects_away() -> None:
    """Given Q: 2 sum_{i != j} R_ij^2 / k, R = (I - Q Q')H(I - Q Q')."""
    energy, rows, m, k = quadratic(normal(72, 6, 6)), BLOCKS * ROWS, 2, 3
    h = energy.precision.detach()
    v = hutch_pp(energy, torch.zeros(rows, 6, dtype=torch.float64), 7, seeded(6))
    q = v[:m].permute(1, 2, 0) / math.sqrt(m + k)
    apart = torch.eye(6, dtype=torch.float64) - q @ q.mT
    rest = apart @ h @ apart
    variances = 2 * (rest.square().sum((1, 2)) - rest.diagonal(dim1=1, dim2=2).square().sum(1)) / k
    squares = ((v @ energy.factor.detach()).square().sum(2).mean(0) - h.trace()).square()
    assert float(variances.mean()) > 0.1
    require_unbiased(
        (squares - variances).view(BLOCKS, ROWS).mean(1)[:, None],
        torch.zeros(1, dtype=torch.float64),
    )


# -- exact -----------------------------------------------------------------------------------------


def test_traces_without_variance() -> None:
    """A basis, a whole frame, signs on a diagonal, Hutch++ on a rank that it can hold (and on 0,
    and with d sketched).
    """
    full, diagonal = quadratic(normal(73, 6, 6)), quadratic(torch.diag(normal(74, 6)))
    for energy, estimator, probes in [
        (full, PROBES["basis"], 1),
        (full, orthogonal, 6),
        (diagonal, rademacher, 1),
        (quadratic(normal(75, 12, 2)), hutch_pp, 6),
        (quadratic(normal(75, 12, 2)), hutch_pp, 8),
        (quadratic(normal(75, 12, 1)), hutch_pp, 9),
        (quadratic(torch.zeros(4, 4, dtype=torch.float64)), hutch_pp, 3),
        (full, hutch_pp, 18),
    ]:
        truth = energy.precision.trace().detach()
        close(traces(energy, estimator, probes, 500), truth.expand(500))
    assert (
        float(traces(quadratic(normal(75, 12, 3)), hutch_pp, 8, 500).std()) > 1e-3
    )  # a rank too many
    assert float(traces(quadratic(normal(75, 12, 2)), unprojected, 6, 500).std()) > 1e-3


def test_hutch_pp_is_a_frame_and_what_is_orthogonal_to_it() -> None:
    energy = mixture_in(9)
    v = hutch_pp(energy, normal(76, 50, 9), 11, seeded(7)).permute(1, 2, 0)  # 3 sketched, 5 drawn
    q, g = v[..., :3] / math.sqrt(8), v[..., 3:]
    close(q.mT @ q, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    close(q.mT @ g, torch.zeros(50, 3, 5, dtype=torch.float64))
    assert not v.requires_grad


def mixture_in(d: int) -> TrainableMixture:
    factors = torch.eye(d, dtype=torch.float64) + 0.3 * normal(77, 2, d, d)
    return TrainableMixture(normal(78, 2), normal(79, 2, d), factors)


def mean_squares(probes: int, decay: float) -> dict[str, float]:
    """Mean squared errors of the traces of a rotated H with eigenvalues 1, decay, decay^2, ... in
    30 dimensions.
    """
    rotation = torch.linalg.qr(normal(80, 30, 30)).Q
    energy = quadratic(rotation * decay ** (torch.arange(30, dtype=torch.float64) / 2))
    truth = energy.precision.trace().detach()
    return {
        name: float((traces(energy, PROBES[name], probes, 2000) - truth).square().mean())
        for name in ("rademacher", "gaussian", "sphere", "orthogonal", "hutch_pp")
    }


def test_hutch_pp_gains_on_a_decaying_spectrum_and_not_on_a_flat_one() -> None:
    """At equal numbers of products with H: 4 + 8 for Hutch++, 12 for the others."""
    decaying = mean_squares(12, 0.5)
    assert decaying["hutch_pp"] < 0.1 * min(
        error for name, error in decaying.items() if name != "hutch_pp"
    )
    slow = mean_squares(12, 0.97)
    assert slow["hutch_pp"] > 0.5 * slow["rademacher"]


def test_a_frame_is_better_than_independent_directions() -> None:
    errors = mean_squares(15, 0.9)
    assert errors["orthogonal"] < 0.7 * errors["sphere"]
    assert errors["sphere"] < errors["gaussian"]


@pytest.mark.parametrize("name", PROBES)
def test_directions_carry_the_rows_shape_and_type_and_repeat_with_the_generator(name: str) -> None:
    energy = gaussian().float()
    x = normal(81, 5, 2, 2).float()
    v = PROBES[name](energy, x, 3, seeded(8))
    assert v.shape == ({"basis": 4, "hutch_pp": 2}.get(name, 3), 5, 2, 2)
    assert v.dtype == torch.float32
    assert torch.equal(v, PROBES[name](energy, x, 3, seeded(8)))
    assert name == "basis" or not torch.equal(v, PROBES[name](energy, x, 3, seeded(9)))
