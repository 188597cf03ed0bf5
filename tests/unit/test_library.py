"""Parts by themselves: what they leave as it was, what they take, and what they refuse by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.common.errors import ArgumentError
from pipeline.common.types import Progress
from pipeline.energies.base import Energy
from pipeline.energies.function import FunctionEnergy
from pipeline.energies.laws import Gaussian
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.energies.target import Target
from pipeline.kernels import mala, metropolis_hastings
from pipeline.library import (
    conditional_nce,
    contrastive,
    denoising,
    finite_difference,
    hutchinson,
    log_partition,
    nce,
    pseudo_likelihood,
    ratio_matching,
    sample,
    score_matching,
    sliced,
)
from tests.unit.test_library_door import Seen

ROWS = torch.randn(20, 2, generator=torch.Generator().manual_seed(9))
BITS = (ROWS > 0).float()
NOISE = Gaussian.fit(ROWS, 0.0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def quadratic(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


class Network(nn.Module):
    """A user's module, with dropout, and statistics of batches that training mode counts."""

    def __init__(self, counting: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(2, 8),
            nn.BatchNorm1d(8) if counting else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(8, 1),
        )
        self.register_buffer("offset", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.layers(x)[:, 0] + self.offset + quadratic(x)
        return value


CONTINUOUS: dict[str, Callable[[Any], Any]] = {
    name: partial(sample, kernel=name, start=ROWS, draws=2, warm_up=2)
    for name in ("random_walk", "ula", "mala", "hmc", "underdamped")
} | {
    "box": partial(sample, kernel="hmc", start=ROWS, draws=2, warm_up=2, box=(-4.0, 4.0)),
    "method": lambda module: sample(module.forward, "mala", ROWS, draws=2, warm_up=2),
    "log_partition": partial(log_partition, rows=ROWS, temperatures=5, particles=20),
}
DISCRETE: dict[str, Callable[[Any], Any]] = {
    name: partial(sample, kernel=name, start=BITS, draws=2, warm_up=2, levels=2)
    for name in ("single_site", "gibbs_with_gradients")
} | {"levels": partial(log_partition, rows=BITS, temperatures=5, particles=20, levels=2)}
LOSSES: dict[str, Callable[[Any], Tensor]] = {
    "score_matching": lambda module: score_matching(module, ROWS),
    "hutchinson": lambda module: hutchinson(module, ROWS, seeded()),
    "hutch_pp": lambda module: hutchinson(module, ROWS, seeded(), probe="hutch_pp", probes=3),
    "sliced": lambda module: sliced(module, ROWS, seeded()),
    "finite_difference": lambda module: finite_difference(module, ROWS, seeded()),
    "denoising": lambda module: denoising(module, ROWS, seeded()),
    "contrastive": lambda module: contrastive(module, ROWS, ROWS + 1),
    "nce": lambda module: nce(module, ROWS, seeded(), noise=NOISE),
    "conditional_nce": lambda module: conditional_nce(module, ROWS, seeded(), scale=0.5),
    "pseudo_likelihood": lambda module: pseudo_likelihood(module, BITS, levels=2),
    "ratio_matching": lambda module: ratio_matching(module, BITS, seeded(), sites=1),
}
CASES = [
    *((use, True) for use in (CONTINUOUS | DISCRETE).values()),
    # a loss calls the module in its mode, in which that layer counts by itself
    *((use, False) for use in LOSSES.values()),
]


@pytest.mark.parametrize(("use", "counting"), CASES, ids=[*CONTINUOUS, *DISCRETE, *LOSSES])
@pytest.mark.parametrize("training", [True, False])
def test_a_module_is_as_it_was(use: Callable[[Any], Any], counting: bool, training: bool) -> None:
    """Bit for bit and flag for flag; the rows that were given too."""
    module = Network(counting).train(training)
    module.layers[4].weight.requires_grad_(False)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, rows, bits = Seen(module), ROWS.clone(), BITS.clone()
    use(module)
    before.require(module)
    assert torch.equal(rows, ROWS)
    assert torch.equal(bits, BITS)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("use", LOSSES.values(), ids=LOSSES)
def test_a_loss_has_a_graph_to_the_parameters(use: Callable[[Any], Tensor]) -> None:
    """And to all that ask for it: energies' constants alone have no part in some."""
    module = Network(counting=False).eval()
    loss = use(module)
    assert loss.shape == ()
    loss.backward()  # type: ignore[no-untyped-call]
    weight = module.layers[4].weight.grad
    assert weight is not None
    assert float(weight.abs().max()) > 0


def test_a_function_over_a_module_collects_no_gradient() -> None:
    """Its parameters ask for gradients while chains run, and get none."""
    module = Network(counting=False).eval()
    before = Seen(module)
    found = sample(lambda x: module(x) / 2, "random_walk", ROWS, draws=2)
    log_partition(lambda x: module(x) / 2, ROWS, temperatures=5, particles=20)
    before.require(module)
    assert not found.positions.requires_grad
    assert not found.energies.requires_grad
    assert not Target(lambda x: module(x) / 2).energy(ROWS).requires_grad


# -- closed forms ----------------------------------------------------------------------------------


def test_losses_of_a_quadratic_energy() -> None:
    """E = |x|^2 / 2: score matching is |x|^2 / 2 - d, whatever signs the trace is taken along; the
    contrast is the difference of means.
    """
    expected = float(ROWS.square().sum(1).mean()) / 2 - 2
    assert score_matching(quadratic, ROWS).item() == pytest.approx(expected, rel=1e-5)
    assert hutchinson(quadratic, ROWS, seeded()).item() == pytest.approx(expected, rel=1e-5)
    difference = float(quadratic(ROWS).mean() - quadratic(2 * ROWS[:5]).mean())
    assert contrastive(quadratic, ROWS, 2 * ROWS[:5]).item() == pytest.approx(difference, rel=1e-5)


def test_noise_contrast_of_the_noise_itself() -> None:
    """Where the model is the noise, all logits are -log P: the loss is log(1 + P) + P log(1 + 1/P).
    So where E lacks a constant that log_z has.
    """
    expected = math.log(9) + 8 * math.log(9 / 8)
    found = nce(NOISE, ROWS, seeded(), noise=NOISE, log_z=NOISE.log_partition())
    assert found.item() == pytest.approx(expected, rel=1e-5)
    log_z = nn.Parameter(torch.tensor(NOISE.log_partition() - 3.0))
    found = nce(lambda x: NOISE(x) + 3.0, ROWS, seeded(), noise=NOISE, log_z=log_z)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()  # type: ignore[no-untyped-call]
    assert log_z.grad is not None
    found = conditional_nce(lambda x: 0 * x[:, 0], ROWS, seeded(), scale=1.0)
    assert found.item() == pytest.approx(2 * math.log(2))


def test_conditionals_of_independent_bits() -> None:
    """E = -b.x: log p(x_i) = -softplus(-b_i (2 x_i - 1)), and ratio matching its flips' squares."""
    bias = torch.tensor([0.7, -1.2])
    along = bias * (2 * BITS - 1)
    wanted = nn.functional.softplus(-along).sum(1).mean()
    found = pseudo_likelihood(lambda x: -(x @ bias), BITS, levels=2)
    assert found.item() == pytest.approx(float(wanted), rel=1e-5)
    squares = torch.sigmoid(-along).square().sum(1).mean()
    found = ratio_matching(lambda x: -(x @ bias), BITS)
    assert found.item() == pytest.approx(float(squares), rel=1e-5)


# -- what is taken ---------------------------------------------------------------------------------


def test_importing_the_package_loads_no_library() -> None:
    assert pipeline.library.sample is sample
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = pipeline.nothing_such


def test_samples_have_names_and_shapes() -> None:
    """NumPy's arrays and images are taken; energies are those of the positions; runs repeat."""
    start = np.zeros((6, 3, 2))
    found = sample(lambda x: x.square().flatten(1).sum(1), "mala", start, draws=7, thin=3)
    assert found.positions.shape == (7, 6, 3, 2)
    assert found.positions.dtype == torch.float64
    energies = found.positions.square().flatten(2).sum(2)
    torch.testing.assert_close(found.energies, energies)
    assert found.acceptance.shape == (6,)
    again = sample(lambda x: x.square().flatten(1).sum(1), "mala", start, draws=7, thin=3)
    assert torch.equal(found.positions, again.positions)


def test_thinning_keeps_every_so_many() -> None:
    every = sample(quadratic, "hmc", ROWS, draws=12, warm_up=4, generator=3)
    third = sample(quadratic, "hmc", ROWS, draws=4, warm_up=4, thin=3, generator=3)
    assert torch.equal(every.positions[2::3], third.positions)
    assert torch.equal(every.energies[2::3], third.energies)


def test_a_step_size_that_is_given_stays() -> None:
    assert sample(quadratic, "mala", ROWS, draws=2, step_size=0.3).step_size == 0.3
    assert sample(quadratic, "ula", ROWS, draws=2).step_size == 0.005
    found = sample(quadratic, "mala", ROWS, draws=2, step_size=0.3, target_acceptance=0.9)
    assert found.step_size not in (None, 0.3)
    assert sample(quadratic, "mala", ROWS, draws=2, warm_up=0).step_size == 0.01


def test_kernels_and_energies_of_ones_own() -> None:
    """A Kernel with its parameters; an `Energy`'s own base law to begin at, and its blocks."""
    found = sample(quadratic, mala.kernel, ROWS, draws=2, step_size=0.3)
    named = sample(quadratic, "mala", ROWS, draws=2, step_size=0.3)
    assert torch.equal(found.positions, named.positions)
    kernel = metropolis_hastings.with_proposal(metropolis_hastings.independence())
    # the proposal is the law itself: all are accepted
    assert float(sample(quadratic, kernel, ROWS, draws=5).acceptance.min()) > 0.999
    rbm = BernoulliRBM((4,), 3, 0.5)
    found = sample(rbm, "gibbs", 5, draws=2)
    assert found.positions.shape == (2, 5, 4)
    torch.testing.assert_close(found.energies[1], rbm(found.positions[1]).detach())
    assert found.step_size is None


def test_a_method_runs_as_its_module_does() -> None:
    """In evaluation mode, so that energies are one function; chains of both are the same."""
    module = Network(counting=True).train()
    one, other = (
        sample(energy, "mala", ROWS, draws=3).positions for energy in (module, module.forward)
    )
    assert torch.equal(one, other)


def test_samplers_take_a_function() -> None:
    """A target any callable, on R^d as it stands; a sampler one with a shape and a domain."""
    target = Target(quadratic)
    torch.testing.assert_close(target.gradient(ROWS), ROWS)
    energy = FunctionEnergy(quadratic, (2,), box=(-1.0, 1.0))
    plan = ChainPlan(mala.kernel, {"step_size": 0.1}, 2, 0.0)
    sampler = Sampler(energy, plan, 4, seeded())
    assert sampler.advance(seeded(), 3).energy.shape == (4,)
    assert float(sampler.position.abs().max()) <= 1


def test_progress_is_told() -> None:
    told: list[Progress] = []
    log_partition(quadratic, ROWS, temperatures=5, particles=20, progress=told.append)
    assert told[-1] == Progress("reverse annealed importance sampling", 5, 5)
    assert [step.done for step in told if step.stage == told[-1].stage] == [1, 2, 3, 4, 5]


# -- what is refused -------------------------------------------------------------------------------

MLP: Energy = MLPEnergy((2,), (8,), spectral_norm=False, base_scale=1.0)
L: Any = pipeline.library  # which takes what a checker of types would not
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "kernel": (lambda: L.sample(quadratic, "malla", ROWS), "kernel=malla", "mala"),
    "ladder": (lambda: L.sample(quadratic, "replica_exchange", ROWS), "kernel", "ladder"),
    "no kernel": (lambda: L.sample(quadratic, None, ROWS), "kernel=None", "Kernel"),
    "blocks": (lambda: L.sample(quadratic, "gibbs", ROWS), "kernel=gibbs", "conditionals"),
    "levels": (lambda: L.sample(quadratic, "single_site", ROWS), "kernel=single_site", "levels"),
    "reals": (lambda: L.sample(quadratic, "mala", BITS, levels=2), "kernel=mala", "single_site"),
    "one row": (lambda: L.sample(quadratic, "mala", ROWS[0]), "start=shape [2]", "[N, *shape]"),
    "ragged": (lambda: L.sample(quadratic, "mala", [[1.0], [1.0, 2.0]]), "start=list", "tensor"),
    "empty": (lambda: L.sample(quadratic, "mala", ROWS[:0]), "start=no rows", "one row"),
    "infinite": (lambda: L.sample(quadratic, "mala", ROWS / 0), "start=", "finite"),
    "count": (lambda: L.sample(quadratic, "mala", 10), "start=10", "[N, *shape]"),
    "no level": (lambda: L.sample(quadratic, "single_site", ROWS, levels=2), "start=", "0, ..., 1"),
    "outside": (lambda: L.sample(quadratic, "mala", ROWS, box=(0.0, 0.1)), "start=", "box"),
    "box": (lambda: L.sample(quadratic, "mala", ROWS, box=(1.0, 0.0)), "box=", "low < high"),
    "two": (
        lambda: L.sample(quadratic, "mala", BITS, levels=2, box=(0, 1)),
        "box=",
        "leave it out",
    ),
    "one level": (lambda: L.sample(quadratic, "mala", BITS, levels=1), "levels=1", "2 at least"),
    "its own": (lambda: L.sample(MLP, "mala", ROWS, levels=2), "levels=2", "leave it out"),
    "no function": (lambda: L.sample(3, "mala", ROWS), "energy=int", "function"),
    "scalar": (lambda: L.sample(lambda x: x.sum(), "mala", ROWS), "energy=<lambda>", "[20]"),
    "column": (lambda: L.sample(nn.Linear(2, 1), "mala", ROWS), "energy=Linear", "[20]"),
    "number": (lambda: L.sample(lambda _: 1.0, "mala", ROWS), "energy=<lambda>", "float"),
    "not a number": (
        lambda: L.sample(lambda x: x[:, 0].log(), "mala", ROWS),
        "start=energy",
        "nan",
    ),
    "steep": (
        lambda: L.sample(lambda x: x[:, 0].sqrt(), "mala", 0 * ROWS),
        "start=gradient",
        "finite",
    ),
    "detached": (
        lambda: L.sample(lambda x: quadratic(x.data), "mala", ROWS),
        "energy=",
        "gradient",
    ),
    "parameter": (lambda: L.sample(quadratic, "mala", ROWS, steps=2), "steps=2", "step_size"),
    "step": (lambda: L.sample(quadratic, "mala", ROWS, step_size=-1.0), "step_size=-1", "greater"),
    "mass": (lambda: L.sample(quadratic, "hmc", ROWS, mass=[1.0]), "mass=1 numbers", "2"),
    "draws": (lambda: L.sample(quadratic, "mala", ROWS, draws=0), "draws=0", "1 at least"),
    "seed": (lambda: L.sample(quadratic, "mala", ROWS, generator=None), "generator=None", "seed"),
    "rate": (lambda: L.sample(quadratic, "mala", ROWS, target_acceptance=2.0), "acceptance=2", "1"),
    "untuned": (lambda: L.sample(quadratic, "ula", ROWS, target_acceptance=0.5), "accept", "ula"),
    "alone": (lambda: L.sample(quadratic, mala.kernel, ROWS, target_acceptance=0.5), "acc", "step"),
    "rows": (lambda: L.log_partition(quadratic, ROWS[:1]), "rows=1 row", "2 rows"),
    "no energy": (lambda: L.log_partition(lambda x: x[:, 0] / 0, ROWS), "rows=energy", "finite"),
    "particles": (lambda: L.log_partition(quadratic, ROWS, particles=0), "particles=0", "1"),
    "flat rows": (lambda: L.score_matching(quadratic, ROWS[:, 0]), "x=shape [20]", "[N, *shape]"),
    "loss": (lambda: L.hutchinson(lambda x: x.sum(), ROWS, seeded()), "energy=<lambda>", "[20]"),
    "a seed": (lambda: L.hutchinson(quadratic, ROWS, 0), "generator=0", "torch.Generator"),
    "probe": (lambda: L.sliced(quadratic, ROWS, seeded(), probe="cross"), "probe=cross", "sphere"),
    "sketch": (lambda: L.hutchinson(quadratic, ROWS, seeded(), probe="hutch_pp"), "probes=1", "3"),
    "bits": (lambda: L.hutchinson(BernoulliRBM((2,), 2, 1.0), BITS, seeded()), "energy=", "R^d"),
    "sigma": (lambda: L.denoising(quadratic, ROWS, seeded(), sigmas=[0.0]), "sigmas=0", "positive"),
    "shapes": (lambda: L.contrastive(MLP, ROWS, ROWS[:, :1]), "negatives=shape [20, 1]", "[N, 2]"),
    "weights": (lambda: L.contrastive(MLP, ROWS, ROWS, weights=torch.ones(3)), "weights", "[20]"),
    "noise": (lambda: L.nce(MLP, ROWS, seeded(), noise=3), "noise=int", "log_density"),
    "q": (lambda: L.pseudo_likelihood(quadratic, BITS), "levels=None", "q"),
    "sites": (lambda: L.pseudo_likelihood(quadratic, BITS, levels=2, sites=2), "generator", "Gen"),
}


@pytest.mark.parametrize(("use", "names", "right"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_refused_by_name(
    use: Callable[[], Any], names: str, right: str
) -> None:
    with pytest.raises(ArgumentError) as refused:
        use()
    assert names in str(refused.value)
    assert right in str(refused.value)
