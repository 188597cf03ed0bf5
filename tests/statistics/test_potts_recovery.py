"""Known couplings are found again from exact draws by pseudo-likelihood, within standard errors."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from pipeline.energies import site_likelihood
from pipeline.energies.potts import PottsModel
from tests.statistics.laws import P_LIMIT, seeded
from tests.statistics.test_potts import LEVELS, SITES, by_definition, model, states

DRAWS = 200_000
PAIRS = list(combinations(range(SITES), 2))


class Known(NamedTuple):
    """A model, all its states [S, L], how often each was drawn [S], and the inverse covariance of
    what pseudo-likelihood finds [P, P], all by definition.
    """

    energy: PottsModel
    x: Tensor
    counts: Tensor
    precision: Tensor


def flat(energy: PottsModel) -> Tensor:
    return torch.cat([energy.field.detach().flatten(), energy.coupling.detach().flatten()])


def features(x: Tensor, site: int) -> Tensor:
    """What log p(x_site = a | the others) is linear in, for each letter a, `[S, q, P]`."""
    found = torch.zeros(len(x), LEVELS, SITES + len(PAIRS) * LEVELS, LEVELS).double()
    letters = torch.arange(LEVELS)
    found[:, letters, site, letters] = 1
    for number, (i, j) in enumerate(PAIRS):
        if site not in (i, j):
            continue
        other = x[:, j if site == i else i].long()
        for a in range(LEVELS):
            first, second = (torch.full_like(other, a), other)[:: 1 if site == i else -1]
            found[range(len(x)), a, SITES + number * LEVELS + first, second] = 1
    return found.flatten(2)


@pytest.fixture(scope="module")
def known() -> Known:
    """The covariance is the sandwich G V G / n (Besag 1975; Varin, Reid & Firth 2011, section 2.3):
    G the inverse of the mean negative Hessian, V the covariance of the score, both sums over all
    states. Directions in which no energy changes have neither, and are left out.
    """
    energy, x = model(scale=0.3), states()
    logs = -by_definition(energy, x).detach()
    law = logs.softmax(0)
    drawn = torch.multinomial(law, DRAWS, replacement=True, generator=seeded(11))
    counts = drawn.bincount(minlength=len(x)).double()
    size = len(flat(energy))
    hessian, score = torch.zeros(size, size).double(), torch.zeros(len(x), size).double()
    for site in range(SITES):
        phi = features(x, site)
        given = (phi @ flat(energy)).softmax(1)
        mean = (given[..., None] * phi).sum(1)
        root = (law[:, None] * given).sqrt()[..., None] * (phi - mean[:, None])
        hessian += root.flatten(0, 1).T @ root.flatten(0, 1)
        score += phi[range(len(x)), x[:, site].long()] - mean
    spread = score.T @ (law[:, None] * score)
    return Known(energy, x, counts, DRAWS * hessian @ torch.linalg.pinv(spread) @ hessian)


def found_again(known: Known) -> float:
    """The p-value of the distance of the maximum of the pseudo-likelihood from the truth."""
    energy = PottsModel((SITES,), LEVELS).double()
    shares = known.counts / DRAWS
    search = torch.optim.LBFGS(
        list(energy.parameters()),
        max_iter=300,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = -energy.site_log_likelihood(known.x, shares)
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[arg-type]
    off = flat(energy) - flat(known.energy)
    freedom = SITES * (LEVELS - 1) + len(PAIRS) * (LEVELS - 1) ** 2
    distance = float(off @ known.precision @ off)
    return float(2 * min(chi2.sf(distance, freedom), chi2.cdf(distance, freedom)))


def test_couplings_are_found_again(known: Known) -> None:
    """All 153 free numbers at once: off by what n draws leave, neither more nor less."""
    assert found_again(known) > P_LIMIT


def one_order(total: Tensor, part: Tensor, first: int, last: int) -> None:
    """Both sites of a pair are taken for the lower one."""
    site_likelihood_add(total, part.transpose(1, 3), first, last)


site_likelihood_add = site_likelihood.add_columns_


BROKEN: dict[str, tuple[str, Any]] = {
    "pairs turned round": ("add_columns_", one_order),
    "letters": ("one_hot", lambda own, q, dtype: torch.eye(q, dtype=dtype)[(own.long() + 1) % q]),
}


@pytest.mark.parametrize("slip", BROKEN)
def test_broken_variant_is_caught(known: Known, slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_likelihood, *BROKEN[slip])
    assert not found_again(known) > P_LIMIT


def test_another_law_is_not_taken_for_it(known: Known) -> None:
    """One at a temperature that is 5 % higher; and errors that are too small by sqrt(2)."""
    warmer = (-by_definition(known.energy, known.x).detach() / 1.05).softmax(0)
    assert not found_again(known._replace(counts=DRAWS * warmer)) > P_LIMIT
    assert not found_again(known._replace(precision=2 * known.precision)) > P_LIMIT
