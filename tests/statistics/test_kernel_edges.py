"""What every kernel has in common: one shape, nothing that is not finite, walls; and that the laws'
samplers are exact.

False alarms: `laws.P_VALUES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.assembly.kernels import make_kernel
from pipeline.config.parts import KERNELS
from pipeline.energies.base import Energy
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.laws import Gaussian, TruncatedGaussian
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.kernels import hmc, mala, metropolis_hastings, random_walk, replica_exchange, ula
from pipeline.kernels.base import GradientState, Info, Kernel, broken
from tests.statistics import laws
from tests.statistics.laws import double, law, numbers, require, seeded, tempered
from tests.statistics.test_kernels import (
    BETAS,
    CHAINS,
    DERIVED,
    bad_start,
    configured,
    drifted,
    ladder_target,
    run,
    scaling,
)

# -- what every kernel has in common ---------------------------------------------------------------


class Instance(NamedTuple):
    """A kernel on image-shaped positions `[N, 2, 3]`."""

    name: str
    kernel: Kernel
    energy: Energy
    parameters: dict[str, Any]
    betas: Sequence[float] = ()

    def __str__(self) -> str:
        return f"{self.name}-{type(self.energy).__name__}"


def image_gaussian() -> Gaussian:
    root = torch.randn(6, 6, generator=seeded(0), dtype=torch.float64)
    return Gaussian(
        torch.linspace(-1, 1, 6).double(), root @ root.T / 6 + torch.eye(6).double(), (2, 3)
    )


def image_box() -> TruncatedGaussian:
    return TruncatedGaussian(
        torch.linspace(-1, 1, 6).double(), torch.linspace(0.5, 1, 6).double(), (-1.0, 1.0), (2, 3)
    )


def image_discrete() -> list[Energy]:
    shape = (2, 3)
    energies = [
        BernoulliRBM(shape, 3, 1.0),
        PottsRBM(shape, 3, 2, 1.0),
        PottsLattice(shape, 3, 0.0, False),
        laws.Ordinal(shape),
    ]
    return [laws.scramble(energy, 0.7) for energy in energies]


def instances() -> list[Instance]:
    masses = tuple(0.5 + i for i in range(6))
    leapfrog = {"step_size": 0.3, "leapfrog_steps": 3, "jitter": 0.2, "mass": masses}
    found = [
        Instance(name, kernel, energy, parameters)
        for energy in (image_gaussian(), image_box())
        for name, kernel, parameters in (
            ("random_walk", random_walk.kernel, {"step_size": 0.3}),
            ("ula", ula.kernel, {"step_size": 0.1}),
            ("mala", mala.kernel, {"step_size": 0.1}),
            ("hmc", hmc.kernel, leapfrog),
            (
                "metropolis_hastings",
                metropolis_hastings.with_proposal(metropolis_hastings.independence(0.8)),
                {},
            ),
            ("scaling", metropolis_hastings.with_proposal(scaling(0.3)), {}),
        )
    ]
    discrete = image_discrete()
    gibbs, gwg, sites = (
        make_kernel(configured(name)) for name in ("gibbs", "gibbs_with_gradients", "single_site")
    )
    found += [Instance("gibbs_with_gradients", gwg, energy, {}) for energy in discrete]
    found += [Instance("single_site", sites, energy, {}) for energy in discrete]
    found += [
        Instance("gibbs", gibbs, energy, {})
        for energy in (*discrete[:2], laws.scramble(GaussianRBM((2, 3), 2, 1.0)))
    ]
    ladder = (0.0, 0.5, 1.0)
    found += [
        Instance("replica_exchange", replica_exchange.over(inner, 3, 2), energy, parameters, ladder)
        for inner, energy, parameters in (
            (hmc.kernel, image_gaussian(), leapfrog),
            (mala.kernel, image_box(), {"step_size": 0.1}),
            (gibbs, discrete[0], {}),
            (gwg, discrete[1], {}),
            (sites, discrete[3], {}),
        )
    ]
    covered = {instance.name for instance in found}
    return found + [
        Instance(name, make_kernel(configured(name)), energy, configured(name).parameters)
        for name in KERNELS
        if name not in covered
        for energy in energies_for(name)
    ]


def energies_for(name: str) -> list[Energy]:
    """Image-shaped energies that a kernel can move on, by its section."""
    section = configured(name)
    if section.needs_conditionals:
        return image_discrete()[:2]
    return image_discrete() if section.domain == "discrete" else [image_gaussian(), image_box()]


INSTANCES = instances()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_kernels_have_one_shape(instance: Instance, dtype: torch.dtype) -> None:
    """Shapes and dtypes stay; the same generator gives the same draws; the state given is not
    written to; and an image is its pixels in a row (Gibbs apart, whose visible units come in the
    energy's shape).
    """
    kernel, energy = instance.kernel, instance.energy.to(dtype)
    count = 8 * max(1, len(instance.betas))
    beta = (
        torch.tensor(instance.betas, dtype=dtype).repeat_interleave(8) if instance.betas else None
    )
    target, start = Target(energy, beta), energy.sample_base(count, seeded(0)).to(dtype)
    state = kernel.init(start.clone(), target)
    before = [field.clone() for field in state]
    ends = []
    for position in (start, start, start.flatten(1)):
        moved, info = kernel.init(position, target), None
        generator = seeded(3)
        for _ in range(4):
            moved, info = kernel.step(generator, moved, target, **instance.parameters)
        assert info is not None
        ends.append(moved.position.flatten(1))
        assert info.acceptance.shape == (count,)
        assert 0 <= float(info.acceptance.min()) <= float(info.acceptance.max()) <= 1
    kernel.step(seeded(3), state, target, **instance.parameters)
    assert all(torch.equal(*pair) for pair in zip(before, state, strict=True)), (
        "a step must not write to the state it was given"
    )
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0])
    assert not torch.equal(ends[0], start.flatten(1))
    moved, _ = kernel.step(seeded(4), state, target, **instance.parameters)
    assert type(moved) is type(state)
    for old, new in zip(state, moved, strict=True):
        assert (new.shape, new.dtype) == (old.shape, dtype)


@pytest.mark.parametrize(
    "instance", [i for i in INSTANCES if "step_size" in i.parameters and not i.betas], ids=str
)
def test_step_sizes_by_chain_are_those_of_each(instance: Instance) -> None:
    """One tensor for all chains is the number it holds; each half moves as with its own number."""
    kernel, energy, count = instance.kernel, instance.energy.double(), 8
    target, start = Target(energy), energy.sample_base(count, seeded(0)).double()

    def end(step_size: float | Tensor) -> Tensor:
        parameters = {**instance.parameters, "step_size": step_size}
        moved, _ = kernel.step(seeded(3), kernel.init(start, target), target, **parameters)
        position: Tensor = moved.position
        return position

    a, b = instance.parameters["step_size"], instance.parameters["step_size"] / 3
    torch.testing.assert_close(end(torch.full((count,), a, dtype=torch.float64)), end(a))
    both = end(torch.where(torch.arange(count) < count // 2, a, b).double())
    torch.testing.assert_close(both[: count // 2], end(a)[: count // 2])
    torch.testing.assert_close(both[count // 2 :], end(b)[count // 2 :])
    assert not torch.equal(end(a), end(b))


# -- what is not finite ----------------------------------------------------------------------------


class HalfPlane(Energy):
    """A Gaussian right of 0; beyond, what bad weights make of energy and gradient."""

    def __init__(self, energy: float, gradient: float) -> None:
        super().__init__((1,))
        self.beyond = energy, gradient

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, x[:, 0].square() / 2, self.beyond[0])

    def energy_and_gradient(self, x: Tensor, beta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert beta is None
        return self(x), torch.where(x > 0, x, self.beyond[1])


BAD_ENERGIES = [(math.inf, 1.0), (-math.inf, 1.0), (math.nan, 1.0)]
BAD_GRADIENTS = [(0.0, math.nan), (0.0, math.inf), (0.0, -math.inf)]
WITH_GRADIENTS: list[tuple[Kernel, dict[str, Any]]] = [
    (ula.kernel, {"step_size": 0.1}),
    (mala.kernel, {"step_size": 0.1}),
    (hmc.kernel, {"step_size": 0.3, "leapfrog_steps": 3}),
]
WITHOUT: list[tuple[Kernel, dict[str, Any]]] = [
    (random_walk.kernel, {"step_size": 0.5}),
    (metropolis_hastings.with_proposal(metropolis_hastings.independence(1.0)), {}),
    (metropolis_hastings.with_proposal(drifted(0.5)), {}),
]


def add_derived() -> None:
    """Kernels that nothing is said of above, to the list that fits what their states hold."""
    for name in sorted({setting.name for setting in DERIVED}):
        section = configured(name)
        if section.domain == "continuous":
            kernel, parameters = make_kernel(section), section.parameters
            state = kernel.init(torch.zeros(1, 2).double(), Target(law("gaussian").energy))
            large = {"step_size": 0.5} if "step_size" in parameters else {}
            (WITH_GRADIENTS if hasattr(state, "gradient") else WITHOUT).append(
                (kernel, {**parameters, **large})
            )


add_derived()


@pytest.mark.parametrize(
    ("kernel", "parameters", "beyond"),
    [(*kernel, beyond) for kernel in WITH_GRADIENTS for beyond in BAD_ENERGIES + BAD_GRADIENTS]
    + [(*kernel, beyond) for kernel in WITHOUT for beyond in BAD_ENERGIES],
)
def test_what_is_not_finite_is_never_entered(
    kernel: Kernel, parameters: dict[str, Any], beyond: tuple[float, float]
) -> None:
    """Proposals there are made, and all rejected; what they would have been leaves no trace in a
    state.
    """
    target, generator = Target(HalfPlane(*beyond)), seeded(0)
    state = kernel.init(
        torch.rand(500, 1, generator=generator, dtype=torch.float64) / 2 + 1e-3, target
    )
    stayed = 0
    for _ in range(30):
        before = state.position
        state, info = kernel.step(generator, state, target, **parameters)
        stayed += int((state.position == before).sum())
        assert info.acceptance.isfinite().all()
        assert (state.position > 0).all()
        assert not broken(state).any()
    assert stayed > 100


class Forbidden(Energy):
    """Levels 0, 1, 2 of two sites; what bad weights make of the first site's level 2."""

    def __init__(self, beyond: float) -> None:
        super().__init__((2,), levels=3)
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < 2, (x[:, 0] - x[:, 1]).square() / 2 + x[:, 1] / 3, self.beyond)


@pytest.mark.parametrize("beyond", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["gibbs_with_gradients", "single_site"])
def test_discrete_states_that_are_not_finite_are_never_entered(name: str, beyond: float) -> None:
    """And the others have their law."""
    kernel, energy, generator = make_kernel(configured(name)), Forbidden(beyond), seeded(0)
    target = Target(energy)
    state = kernel.init(torch.zeros(CHAINS, 2, dtype=torch.float64), target)
    for _ in range(60):
        state, info = kernel.step(generator, state, target)
        assert info.acceptance.isfinite().all()
        assert not broken(state).any()
        assert (state.position[:, 0] < 2).all()
    every = laws.states(energy)
    probabilities = torch.softmax(torch.where(every[:, 0] < 2, -energy(every), -torch.inf), 0)
    kept = every[:, 0] < 2
    require(
        {
            "chi-squared": laws.chi_squared(
                (kept.cumsum(0) - 1)[numbers(state.position, 3)], probabilities[kept]
            )
        }
    )


@pytest.mark.parametrize(("kernel", "parameters"), WITH_GRADIENTS + WITHOUT)
def test_a_proposal_ratio_that_is_not_finite_is_rejected(
    kernel: Kernel, parameters: dict[str, Any]
) -> None:
    """Chains so far out that energies overflow stay where they are, and are reported if what they
    hold is not finite.
    """
    target = Target(laws.gaussian().energy)
    start = torch.tensor(
        [[0.0, 0.0], [1e200, 0.0], [math.nan, 0.0], [math.inf, 0.0]], dtype=torch.float64
    )
    state, generator = kernel.init(start, target), seeded(0)
    assert broken(state).tolist() == [False, True, True, True]
    for _ in range(5):
        state, info = kernel.step(generator, state, target, **parameters)
    assert broken(state)[0].item() is False
    assert info.acceptance[0].isfinite()


def test_broken_chains_are_reported() -> None:
    """A component of the position is not finite, or the energy, or a component of the gradient."""
    position, energy, gradient = torch.zeros(5, 2, 3), torch.zeros(5), torch.zeros(5, 2, 3)
    position[1, 0, 2], energy[2], energy[3], gradient[4, 1, 1] = (
        math.nan,
        math.inf,
        -math.inf,
        math.nan,
    )
    assert broken(GradientState(position, energy, gradient)).tolist() == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_a_broken_chain_is_not_passed_along_a_ladder() -> None:
    """Swaps with a chain whose energy is not finite, on either rung, are refused; the other chains
    go on.
    """
    known, chains = law("mixture"), 4
    target = ladder_target(known.energy, BETAS, chains)
    start = known.sample(len(BETAS) * chains, seeded(0))
    start[5], start[14] = math.nan, math.inf
    kernel = replica_exchange.over(mala.kernel, len(BETAS), 1)
    end = run(kernel, target, start, 20, {"step_size": 0.3})
    assert broken(end.state).nonzero().flatten().tolist() == [5, 14]
    assert end.swaps is not None
    assert end.swaps.isfinite().all()


# -- walls -----------------------------------------------------------------------------------------


class Flat(Energy):
    """The uniform law on a box."""

    def __init__(self) -> None:
        super().__init__((2,), box=(-1.0, 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.sum(1)


def one_step(kernel: Kernel, **parameters: Any) -> tuple[Tensor, Tensor, Info]:
    target = Target(Flat())
    start = Flat().sample_base(4000, seeded(0)).double()
    state, info = kernel.step(seeded(1), kernel.init(start, target), target, **parameters)
    return start, state.position, info


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (random_walk.kernel, {"step_size": 4.0}),
        (hmc.kernel, {"step_size": 2.0, "leapfrog_steps": 3, "mass": (0.5, 2.0)}),
    ],
)
def test_walls_reflect_random_walk_and_hmc(kernel: Kernel, parameters: dict[str, Any]) -> None:
    """With no force and steps of several boxes, nothing is lost and no chain stands at a wall."""
    start, position, info = one_step(kernel, **parameters)
    assert (info.acceptance == 1).all()
    assert (position > -1).all()
    assert (position < 2).all()
    assert (position != start).all()


def test_hmc_flies_straight_from_wall_to_wall() -> None:
    """With no gradient its path is a billiard's in closed form: a triangle wave of x + t p / M."""
    mass, step_size, steps = double([0.5, 2.0]), 0.7, 5
    start, position, _ = one_step(
        hmc.kernel, step_size=step_size, leapfrog_steps=steps, mass=mass.tolist()
    )
    momentum = mass.sqrt() * torch.empty_like(start).normal_(generator=seeded(1))
    free = start + steps * step_size * momentum / mass
    # arccos(cos) has period 2 pi and folds at multiples of pi
    folded = torch.arccos(torch.cos((free + 1) * math.pi / 3)) * 3 / math.pi - 1
    torch.testing.assert_close(position, folded, rtol=0, atol=1e-6)


def test_mala_rejects_at_walls() -> None:
    """Where the Langevin proposal leaves the box the chain stays, and only there."""
    step_size = 0.5
    start, position, info = one_step(mala.kernel, step_size=step_size)
    proposal = start + math.sqrt(2 * step_size) * torch.empty_like(start).normal_(
        generator=seeded(1)
    )
    inside = ((proposal >= -1) & (proposal <= 2)).all(1)
    assert 0.2 < float(inside.double().mean()) < 0.8
    torch.testing.assert_close(info.acceptance, inside.double())
    torch.testing.assert_close(position, torch.where(inside[:, None], proposal, start))


# -- exact laws ------------------------------------------------------------------------------------


def test_the_gaussian_rbm_is_the_mixture_it_is_drawn_from() -> None:
    """Energies differ by a constant."""
    known = law("gaussian_rbm")
    assert isinstance(known.energy, GaussianRBM)
    x = known.sample(100, seeded(0))
    difference = known.energy(x) - laws.mixture_of(known.energy)(x)
    torch.testing.assert_close(difference, difference[:1].expand(100))


@pytest.mark.parametrize("name", list(laws.LAWS))
def test_samplers_are_exact_and_a_slightly_wrong_one_is_seen(name: str) -> None:
    """Fresh draws pass; with one in ten replaced by the bad start they do not."""
    known = law(name)
    x = known.sample(CHAINS, seeded(17))
    require(known.p_values(x))
    require(known.moment_p_values(x))
    x[: CHAINS // 10] = bad_start(known.energy, CHAINS // 10)
    assert min(known.p_values(x).values()) < laws.P_LIMIT


@pytest.mark.parametrize(
    ("name", "beta"), [("gaussian", 0.45), ("gaussian", 0.0), ("mixture", 1.0)]
)
def test_tempered_draws_are_exact(name: str, beta: float) -> None:
    """Between N(0, s^2) and N(m, C) there are the Gaussians of precision (1 - beta) / s^2 + beta P;
    at beta = 1, the law.
    """
    known, generator = law(name), seeded(23)
    x = tempered(known, beta).sample(CHAINS, generator)
    if name != "gaussian":
        require(known.p_values(x))
        return
    energy = known.energy
    assert isinstance(energy, Gaussian)
    precision = (1 - beta) / energy.base_scale**2 * torch.eye(2).double() + beta * energy.precision
    covariance = torch.linalg.inv(precision)
    exact = laws.of_gaussian(
        Gaussian(beta * covariance @ energy.precision @ energy.mean, covariance)
    )
    require(exact.p_values(x))
    require(exact.moment_p_values(x))
