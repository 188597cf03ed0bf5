"""Parts by themselves against the truth: draws of functions, log Z of functions, and Hutchinson's
trace.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pipeline.energies.laws import Gaussian
from pipeline.library import hutchinson, log_partition, nce, sample, score_matching, sliced

# standard normal scores: each is exceeded with a chance of 6e-7, all those here of 5e-5
LIMIT = 5.0
# Student's t with 9 degrees of freedom, of errors from ten batches: exceeded with a chance of 1e-5
FEW = float(stats.t.isf(0.5e-5, 9))
CENTRE, SPREAD = torch.tensor([1.0, -2.0]), torch.tensor([1.5, 0.4])
EDGES = torch.tensor([[1.0, -0.7], [0.5, 0.9]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(x: Tensor) -> Tensor:
    return ((x - CENTRE) / SPREAD).square().sum(1) / 2


def chain_of_levels(x: Tensor) -> Tensor:
    """Three sites of three levels, neighbours coupled."""
    left, middle, right = x.unbind(1)
    return 0.6 * left - 0.8 * (left == middle).to(x) - 0.4 * middle * right


def within(values: Tensor, truth: Tensor | float) -> None:
    """Fails where the mean over independent chains, of `values` [draws, N, ...], is not the truth
    within `LIMIT` standard errors.
    """
    by_chain = values.double().mean(0)
    error = by_chain.std(0) / math.sqrt(len(by_chain))
    score = (by_chain.mean(0) - torch.as_tensor(truth)) / error
    assert float(score.abs().max()) < LIMIT, score


@pytest.mark.parametrize("kernel", ["random_walk", "mala", "hmc", "underdamped"])
def test_mean_and_variance_of_a_gaussian(kernel: str) -> None:
    """From a start far away, by step sizes that chains adapt by themselves."""
    found = sample(gaussian, kernel, torch.full((300, 2), 4.0), draws=100, thin=2)
    within(found.positions, CENTRE)
    within((found.positions - CENTRE).square(), SPREAD.square())
    # E is half a chi-squared number: 1 nat on average in two dimensions
    within(found.energies, 1.0)
    assert 0.2 < float(found.acceptance.mean()) < 0.9


@pytest.mark.parametrize("kernel", ["random_walk", "mala", "hmc"])
def test_mean_in_a_box(kernel: str) -> None:
    """E = 2 x in [0, 1]: the mean is 1/2 - 1 / (e^2 - 1)."""
    start = torch.rand(300, 1, generator=seeded(0))
    found = sample(lambda x: 2 * x[:, 0], kernel, start, draws=100, box=(0, 1))
    within(found.positions[..., 0], 0.5 - 1 / (math.e**2 - 1))
    assert 0 <= float(found.positions.min()) <= float(found.positions.max()) <= 1


@pytest.mark.parametrize("kernel", ["single_site", "gibbs_with_gradients"])
def test_frequencies_over_levels(kernel: str) -> None:
    """Of all 27 states, enumerated."""
    states = torch.tensor(list(itertools.product(range(3), repeat=3)), dtype=torch.float32)
    probabilities = torch.softmax(-chain_of_levels(states), 0).double()
    found = sample(chain_of_levels, kernel, torch.zeros(300, 3), draws=100, thin=3, levels=3)
    seen = (found.positions.long() * torch.tensor([9, 3, 1])).sum(2)
    within(nn.functional.one_hot(seen, 27), probabilities)


def mixture(x: Tensor) -> Tensor:
    """N((+-1.5, 0), 1) with weights 1 and 3: Z is 4 times 2 pi."""
    left, right = ((x - shift * torch.tensor([1.5, 0.0])).square().sum(1) / 2 for shift in (-1, 1))
    return -torch.logaddexp(-left, math.log(3) - right)


def log_z_of_levels() -> float:
    states = torch.tensor(list(itertools.product(range(3), repeat=3)), dtype=torch.float64)
    return float(torch.logsumexp(-chain_of_levels(states), 0))


LOG_Z: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, dict[str, Any], float]] = {
    "gaussian": (
        gaussian,
        CENTRE + 2 * SPREAD * torch.randn(300, 2, generator=seeded(5)),
        {},
        math.log(2 * math.pi) + float(SPREAD.log().sum()),
    ),
    "mixture": (
        mixture,
        2 * torch.randn(300, 2, generator=seeded(5)),
        {},
        math.log(4) + math.log(2 * math.pi),
    ),
    "box": (
        lambda x: 2 * x.sum(1),
        torch.rand(300, 2, generator=seeded(5)),
        {"box": (0.0, 1.0)},
        2 * math.log((1 - math.exp(-2)) / 2),
    ),
    "levels": (
        chain_of_levels,
        torch.randint(3, (300, 3), generator=seeded(5)).float(),
        {"levels": 3},
        log_z_of_levels(),
    ),
}


@pytest.mark.parametrize("name", LOG_Z)
def test_log_z_of_a_function(name: str) -> None:
    """Between its bounds as they say, and within its own error; so in float64, from a seed."""
    energy, rows, domain, truth = LOG_Z[name]
    for given in (rows, rows.double()):
        found = log_partition(energy, given, temperatures=200, generator=3, **domain)
        assert found.doubt is None
        assert found.standard_error is not None
        assert found.standard_error < 0.05
        assert abs(found.value - truth) < FEW * found.standard_error
        assert found.at_most is not None
        assert found.at_least < found.at_most


def curved() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))


@pytest.mark.parametrize("loss", [hutchinson, sliced])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_estimates_of_the_trace_have_its_mean(loss: Callable[..., Tensor], probe: str) -> None:
    """Over 300 draws, the loss and its gradient in a parameter are those of the exact trace."""
    network, generator = curved(), seeded(2)
    rows = torch.randn(50, 2, generator=generator)

    def of(value: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(value, network[0].weight)
        return torch.cat([value.detach()[None], slope.flatten()])

    exact = of(score_matching(network, rows))
    found = torch.stack([of(loss(network, rows, generator, probe=probe)) for _ in range(300)])
    within(found[None], exact)


def test_a_density_learned_in_a_loop_of_ones_own() -> None:
    """Noise-contrastive estimation of a Gaussian's precisions and log Z, by its own optimizer.

    Both are within 5 of the errors that maximum likelihood has of 20,000 rows, sqrt(2 / n) of a log
    precision, times 2 for what noise contrast loses beside it.
    """
    rows = CENTRE + SPREAD * torch.randn(20_000, 2, generator=seeded(0))
    centre, variance = rows.mean(0), rows.var(0)
    log_precision, log_z = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    noise = Gaussian(centre, 2 * torch.diag(variance))
    optimizer = torch.optim.LBFGS([log_precision, log_z], max_iter=60)

    def energy(x: Tensor) -> Tensor:
        return ((x - centre).square() * log_precision.exp()).sum(1) / 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nce(energy, rows, seeded(1), noise=noise, log_z=log_z)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    tolerance = 5 * 2 * math.sqrt(2 / len(rows))
    assert (log_precision + variance.log()).abs().max().item() < tolerance
    truth = math.log(2 * math.pi) + variance.log().sum().item() / 2
    assert abs(log_z.item() - truth) < tolerance
