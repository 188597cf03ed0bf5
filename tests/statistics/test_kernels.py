"""Every registered kernel on every law it is registered for: the law stays as it is, and is found
from a bad start.

The test functions take a kernel, so that `test_mutations.py` can feed them broken ones. For the
number of p-values and the false-alarm rate of them all (at most 1e-4) see `laws.P_VALUES`. Seeds
are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.assembly.kernels import make_kernel
from pipeline.config.compose import compose_raw
from pipeline.config.kernels import KernelSection, TunedKernel
from pipeline.config.parts import KERNELS, Choice, section_of
from pipeline.energies.base import Energy
from pipeline.energies.laws import Gaussian, GaussianMixture
from pipeline.energies.target import Target
from pipeline.kernels import hmc, mala, metropolis_hastings, random_walk, replica_exchange, ula
from pipeline.kernels.base import Kernel
from tests.statistics import laws
from tests.statistics.laws import (
    ClampedWalk,
    Known,
    double,
    law,
    numbers,
    require,
    seeded,
    tempered,
    ula_law,
)

CHAINS = 8000
FAR_CHAINS = 4000
RUNG_CHAINS = 3000
BETAS = (0.0, 0.15, 0.45, 1.0)

# the kernels that reject, and so whose settings below must make them do it
REJECTING = {"metropolis_hastings", "gibbs_with_gradients"} | {
    name for name in KERNELS if issubclass(section_of("kernel", name), TunedKernel)
}
# where it is not conf/kernel/NAME.yaml
DEFAULTS: dict[str, dict[str, Any]] = {
    "hmc": {"leapfrog_steps": 3},
    "replica_exchange": {"rungs": len(BETAS), "adapt_rounds": 0},
}


class Setting(NamedTuple):
    """A kernel's options, and how many transitions make it forget `bad_start`.

    Without options of its own a step size is found, at which three in five proposals are accepted.
    """

    name: str
    law: str
    options: dict[str, Any]
    enough: int

    @property
    def section(self) -> KernelSection:
        section = configured(self.name, **self.options)
        if "step_size" in self.options or not isinstance(section, TunedKernel):
            return section
        return section.model_copy(update={"step_size": step_size_of(self.name, self.law)})

    @property
    def rungs(self) -> int:
        rungs: int = self.section.model_dump()["rungs"]
        return rungs

    def __str__(self) -> str:
        return "-".join(
            [self.name, self.law, *(f"{value}" for value in self.options.values())]
        ).replace(" ", "")


def configured(name: str, **options: Any) -> KernelSection:
    keys = {**shipped(name), **DEFAULTS.get(name, {}), **options}
    if "inner" in options:
        keys["inner"] = configured(**options["inner"])
    section: KernelSection = Choice("kernel").resolve(keys)
    return section


@cache
def shipped(name: str) -> dict[str, Any]:
    """The settings of conf/kernel/NAME.yaml, for one transition at a time, unadapted."""
    settings: dict[str, Any] = compose_raw([f"kernel={name}"])["kernel"]
    still = {"target_acceptance": None, "adapt_rounds": None} if name in REJECTING else {}
    return {**settings, "transitions": 1, **{key: still[key] for key in still if key in settings}}


@cache
def step_size_of(name: str, law_name: str) -> float:
    """The step size at which three in five proposals are accepted, by bisection of its log."""
    section, known = configured(name), law(law_name)
    kernel, target, start = make_kernel(section), Target(known.energy), known.sample(500, seeded(5))
    low, high = math.log(1e-3), math.log(1e1)
    for _ in range(12):
        middle = (low + high) / 2
        parameters = {**section.parameters, "step_size": math.exp(middle)}
        accepted = run(kernel, target, start, 5, parameters).acceptance
        low, high = (middle, high) if accepted > 0.6 else (low, middle)
    return math.exp((low + high) / 2)


SETTINGS = [
    Setting("random_walk", "gaussian", {"step_size": 1.0}, 60),
    Setting("random_walk", "mixture", {"step_size": 1.2}, 60),
    Setting("random_walk", "box", {"step_size": 0.6}, 40),
    Setting("random_walk", "rings", {"step_size": 1.0}, 100),
    Setting("metropolis_hastings", "gaussian", {"options": {"scale": 1.6}}, 60),
    Setting("metropolis_hastings", "mixture", {"options": {"scale": 1.6}}, 60),
    Setting("metropolis_hastings", "box", {"options": {"scale": 0.5}}, 100),
    Setting("ula", "gaussian", {"step_size": 0.2}, 60),
    Setting("ula", "gaussian", {"step_size": 0.1, "noise": 0.3}, 100),
    Setting("ula", "box", {"step_size": 0.1}, 60),
    Setting("ula", "box", {"step_size": 0.05, "noise": 0.2}, 100),
    Setting("mala", "gaussian", {"step_size": 0.5}, 80),
    Setting("mala", "mixture", {"step_size": 0.5}, 80),
    Setting("mala", "box", {"step_size": 0.1}, 100),
    Setting("mala", "rings", {"step_size": 0.15}, 400),
    Setting("hmc", "gaussian", {"step_size": 0.95}, 40),
    Setting(
        "hmc",
        "gaussian",
        {"step_size": 0.9, "mass": (0.5, 2.0), "jitter": 0.0, "leapfrog_steps": 2},
        60,
    ),
    Setting("hmc", "mixture", {"step_size": 1.0, "mass": (1.0, 2.0)}, 60),
    Setting("hmc", "box", {"step_size": 0.4}, 40),
    Setting("hmc", "box", {"step_size": 0.7, "mass": (0.5, 2.0), "leapfrog_steps": 1}, 80),
    Setting("hmc", "funnel", {"step_size": 0.6, "leapfrog_steps": 5}, 300),
    Setting("gibbs", "rbm", {}, 60),
    Setting("gibbs", "potts_rbm", {}, 60),
    Setting("gibbs", "gaussian_rbm", {}, 60),
    Setting("gibbs_with_gradients", "rbm", {}, 150),
    Setting("gibbs", "potts", {}, 20),
    Setting("gibbs_with_gradients", "potts_rbm", {}, 150),
    Setting("gibbs_with_gradients", "potts", {}, 150),
    Setting("gibbs_with_gradients", "lattice", {}, 150),
    Setting("gibbs_with_gradients", "ordinal", {}, 150),
    Setting("single_site", "rbm", {}, 150),
    Setting("single_site", "potts_rbm", {}, 150),
    Setting("single_site", "lattice", {}, 150),
    Setting("single_site", "ordinal", {}, 150),
]
LADDERS = [
    Setting("replica_exchange", "mixture", {"inner": {"name": "mala", "step_size": 0.5}}, 60),
    Setting(
        "replica_exchange", "gaussian", {"inner": {"name": "random_walk", "step_size": 1.0}}, 60
    ),
    Setting(
        "replica_exchange", "gaussian", {"inner": {"name": "hmc", "step_size": 0.8}, "rungs": 2}, 40
    ),
    Setting("replica_exchange", "rbm", {"inner": {"name": "gibbs"}}, 40),
    Setting(
        "replica_exchange",
        "rbm",
        {"inner": {"name": "gibbs_with_gradients", "transitions": 3}, "rungs": 3},
        60,
    ),
]


# the registered pairs that nothing is said of above
DERIVED = [
    Setting(name, registered, {}, 300)
    for name, entry in KERNELS.items()
    for registered in entry.laws
    if (name, registered) not in {setting[:2] for setting in SETTINGS + LADDERS}
]
SETTINGS += DERIVED


# -- the functions that test -----------------------------------------------------------------------


class End(NamedTuple):
    state: Any
    acceptance: float
    swaps: Tensor | None


def run(
    kernel: Kernel,
    target: Target,
    start: Tensor,
    transitions: int,
    parameters: dict[str, Any],
    seed: int = 1,
) -> End:
    """Where the chains are in the end, and the mean acceptance on the way."""
    generator, state, acceptance, swaps = seeded(seed), kernel.init(start, target), 0.0, None
    for _ in range(transitions):
        state, info = kernel.step(generator, state, target, **parameters)
        acceptance += float(info.acceptance.mean()) / transitions
        if info.swaps is not None:
            swaps = info.swaps / transitions + (0 if swaps is None else swaps)
    return End(state, acceptance, swaps)


def kept_by(setting: Setting) -> Known:
    """The law that the kernel is to leave as it is: for all but ULA, the law itself."""
    known = law(setting.law)
    if setting.name == "ula":
        return ula_law(known, setting.options["step_size"], setting.options.get("noise"))
    return known


def stationarity(
    kernel: Kernel,
    known: Known,
    parameters: dict[str, Any],
    transitions: int = 15,
    target: Target | None = None,
    chains: int = CHAINS,
) -> tuple[dict[str, float], End]:
    """From exact draws, a few transitions: p-values of what has become of them."""
    end = run(
        kernel,
        target or Target(known.energy),
        known.sample(chains, seeded(0)),
        transitions,
        parameters,
    )
    return known.p_values(end.state.position), end


def convergence(
    kernel: Kernel,
    known: Known,
    parameters: dict[str, Any],
    transitions: int,
    target: Target | None = None,
) -> dict[str, float]:
    """From one bad start for all chains: p-values of the known moments."""
    end = run(
        kernel,
        target or Target(known.energy),
        bad_start(known.energy, FAR_CHAINS),
        transitions,
        parameters,
    )
    return known.moment_p_values(end.state.position)


def bad_start(energy: Energy, count: int) -> Tensor:
    """All zeros, a box's lowest corner, or far away."""
    value = 5.0 if energy.box is None else energy.box[0]
    return torch.full(
        (count, *energy.shape), 0.0 if energy.levels is not None else value, dtype=torch.float64
    )


def rungs_of(known: Known, rungs: int) -> list[Known]:
    return [tempered(known, beta) for beta in betas_of(rungs)]


def betas_of(rungs: int) -> Sequence[float]:
    """From 0 to 1; two rungs start half way, where they have something to exchange."""
    return (0.4, 1.0) if rungs == 2 else (*BETAS[: rungs - 1], 1.0)


def ladder_target(energy: Energy, betas: Sequence[float], chains: int = RUNG_CHAINS) -> Target:
    return Target(energy, beta=double(betas).repeat_interleave(chains))


def joint_p_values(ladder: list[Known], position: Tensor) -> dict[str, float]:
    """Is `position` [R N, *shape] of the product of the rungs' laws? Each rung's own, and
    neighbours' together.
    """
    rungs = position.unflatten(0, (len(ladder), -1))
    found: dict[str, float] = {}
    for index, (known, x) in enumerate(zip(ladder, rungs, strict=True)):
        found |= {f"rung {index}: {name}": p for name, p in known.p_values(x).items()}
    for index, ((a, b), (x, y)) in enumerate(zip(pairwise(ladder), pairwise(rungs), strict=True)):
        found[f"rungs {index} and {index + 1}"] = dependence(a, b, x, y)
    return found


def dependence(a: Known, b: Known, x: Tensor, y: Tensor) -> float:
    """Of the product of both first coordinates, centred; or of the first two units of both."""
    if a.probabilities is None or b.probabilities is None:
        mean = float(a.reference[:, 0].mean())
        expected = (a.reference[:, 0] - mean) * (b.reference[:, 0] - mean)
        return laws.kolmogorov_smirnov((x[:, 0] - mean) * (y[:, 0] - mean), expected)
    cells = a.levels**2
    lumped = [
        known.probabilities.view(-1, cells).sum(0)
        for known in (a, b)
        if known.probabilities is not None
    ]
    both = numbers(x[:, :2], a.levels) * cells + numbers(y[:, :2], a.levels)
    return laws.chi_squared(both, torch.outer(*lumped).flatten())


def joint_stationarity(
    kernel: Kernel, setting: Setting, transitions: int = 8
) -> tuple[dict[str, float], End]:
    """From exact draws of every rung, a few transitions: p-values of the joint law."""
    section = setting.section
    ladder = rungs_of(law(setting.law), setting.rungs)
    start = torch.cat(
        [known.sample(RUNG_CHAINS, seeded(100 + rung)) for rung, known in enumerate(ladder)]
    )
    target = ladder_target(ladder[0].energy, betas_of(setting.rungs))
    end = run(kernel, target, start, transitions, section.parameters)
    return joint_p_values(ladder, end.state.position), end


# -- exactness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_kernel_leaves_its_law_as_it_is(setting: Setting) -> None:
    """With 20-90 % of proposals rejected, where the kernel rejects; and what it caches is that of
    where it is.
    """
    section, known = setting.section, kept_by(setting)
    kernel = make_kernel(section)
    p_values, end = stationarity(kernel, known, section.parameters)
    require(p_values)
    if setting.name in REJECTING:
        assert 0.1 < end.acceptance < 0.8
    for cached, fresh in zip(
        end.state, kernel.init(end.state.position, Target(known.energy)), strict=True
    ):
        torch.testing.assert_close(cached, fresh)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [each for each in SETTINGS if law(each.law).probabilities is None], ids=str
)
def test_kernel_finds_its_law_from_a_bad_start(setting: Setting) -> None:
    """Of discrete laws `test_transition_matrices.py` says more: from any start, by enumeration."""
    section = setting.section
    require(convergence(make_kernel(section), kept_by(setting), section.parameters, setting.enough))


@pytest.mark.parametrize("setting", LADDERS, ids=str)
def test_replica_exchange_leaves_the_joint_law_as_it_is(setting: Setting) -> None:
    """Neighbours swap in 15-95 % of the tries."""
    section = setting.section
    p_values, end = joint_stationarity(make_kernel(section), setting)
    require(p_values)
    assert end.swaps is not None
    assert end.swaps.shape == (setting.rungs - 1,)
    assert 0.15 < float(end.swaps.min()) <= float(end.swaps.max()) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("setting", LADDERS, ids=str)
def test_replica_exchange_finds_the_joint_law_from_a_bad_start(setting: Setting) -> None:
    section, known = setting.section, law(setting.law)
    start = bad_start(known.energy, setting.rungs * RUNG_CHAINS)
    target = ladder_target(known.energy, betas_of(setting.rungs))
    end = run(make_kernel(section), target, start, setting.enough, section.parameters)
    require(joint_p_values(rungs_of(known, setting.rungs), end.state.position))


@pytest.mark.slow
def test_replica_exchange_crosses_where_mala_cannot() -> None:
    """Two modes 16 standard deviations apart, every chain started in one: with as many gradients,
    MALA alone stays there.
    """
    means, covariances = double([[-8.0, 0.0], [8.0, 0.0]]), torch.eye(2).double().expand(2, 2, 2)
    known = laws.of_mixture(GaussianMixture(double([0.4, 0.6]), means, covariances))
    betas, chains, rounds = (0.0, 0.01, 0.035, 0.12, 0.35, 1.0), 500, 100
    # a rung at beta is about 1 / sqrt(beta) wide, the base 8
    scale = double(betas).clamp(min=1 / 64).pow(-1) * 0.5
    step_size = scale.repeat_interleave(chains)
    target = ladder_target(known.energy, betas, chains)
    start = means[1].expand(len(betas) * chains, 2)
    end = run(
        replica_exchange.over(mala.kernel, len(betas), 1),
        target,
        start,
        rounds,
        {"step_size": step_size},
    )
    model = end.state.position[-chains:]
    require(known.p_values(model))
    require(known.moment_p_values(model))
    # per round and rung two transitions and two states made for swaps
    alone = run(
        mala.kernel,
        Target(known.energy),
        start[-chains:],
        rounds * 4 * len(betas),
        {"step_size": 0.5},
    )
    assert (alone.state.position[:, 0] > 0).all()


# -- proposals of one's own ------------------------------------------------------------------------


def drifted(spread: float) -> metropolis_hastings.Proposal:
    """x' = a x + b + s xi, which drifts to b / (1 - a): asymmetric, and its log ratio in closed
    form.
    """
    a, b = 0.7, 0.4

    def distance(of: Tensor, given: Tensor) -> Tensor:
        return (of - a * given - b).flatten(1).square().sum(1) / (2 * spread**2)

    def propose(generator: torch.Generator, x: Tensor) -> tuple[Tensor, Tensor]:
        proposal = a * x + b + spread * torch.empty_like(x).normal_(generator=generator)
        return proposal, distance(proposal, x) - distance(x, proposal)

    return propose


@pytest.mark.parametrize(("name", "spread"), [("gaussian", 0.8), ("mixture", 0.8), ("box", 0.5)])
def test_metropolis_hastings_is_exact_with_a_users_asymmetric_proposal(
    name: str, spread: float
) -> None:
    kernel = metropolis_hastings.with_proposal(drifted(spread))
    p_values, end = stationarity(kernel, law(name), {})
    require(p_values)
    assert 0.2 < end.acceptance < 0.8
    require(convergence(kernel, law(name), {}, 80))


def scaling(spread: float) -> metropolis_hastings.Proposal:
    """x' = x exp(spread xi), one xi for all d components of a chain: log q(x | x') - log q(x' | x)
    = d spread xi.

    It changes a chain's distance from 0 by a factor and keeps its direction, so it is one for
    mixing with others.
    """

    def propose(generator: torch.Generator, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        exponent = spread * torch.empty_like(flat[:, 0]).normal_(generator=generator)
        return (flat * exponent.exp()[:, None]).view_as(x), flat.shape[1] * exponent

    return propose


@pytest.mark.parametrize("name", ["gaussian", "mixture", "rings", "box", "funnel"])
def test_scaling_leaves_a_law_as_it_is_but_keeps_directions(name: str) -> None:
    """Alone it is not ergodic: each chain stays on its ray. The funnel has three components, the
    others two.
    """
    kernel, known = metropolis_hastings.with_proposal(scaling(0.7)), law(name)
    p_values, end = stationarity(kernel, known, {})
    require(p_values)
    assert 0.2 < end.acceptance < 0.8
    start = known.sample(CHAINS, seeded(0))
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(end.state.position), unit(start))
    assert (end.state.position != start).any(1).double().mean() > 0.9


# -- ULA, its bias ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [None, 0.3])
def test_ula_on_one_dimension_has_the_bias_its_recursion_says(noise: float | None) -> None:
    """On N(0, v): x' = (1 - e/v) x + s xi, so the stationary variance is s^2 / (1 - (1 - e/v)^2);
    found from 0, and not v.
    """
    variance, step_size = 0.7, 0.4
    plain = laws.of_gaussian(Gaussian(double([0.0]), double([[variance]])))
    sigma = math.sqrt(2 * step_size) if noise is None else noise
    stationary = sigma**2 / (1 - (1 - step_size / variance) ** 2)
    biased = laws.of_gaussian(Gaussian(double([0.0]), double([[stationary]])))
    start = torch.zeros(CHAINS, 1, dtype=torch.float64)
    end = run(ula.kernel, Target(plain.energy), start, 40, {"step_size": step_size, "noise": noise})
    require(biased.p_values(end.state.position))
    require(biased.moment_p_values(end.state.position))
    assert min(plain.moment_p_values(end.state.position).values()) < laws.P_LIMIT


class Slope(Energy):
    """p(x) proportional to exp(4 x) on [0, 1]: its mean is 1 / (1 - e^-4) - 1 / 4 = 0.7687."""

    def __init__(self) -> None:
        super().__init__((1,), box=(0.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return -4 * x[:, 0]


SLOPE_MEAN = 1 / -math.expm1(-4) - 1 / 4


def slope() -> Known:
    """Drawn by inversion."""

    def sample(count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        return torch.log1p(uniform * math.expm1(4)) / 4

    return laws.continuous(Slope(), sample, {"x0": SLOPE_MEAN})


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (random_walk.kernel, {"step_size": 0.4}),
        (mala.kernel, {"step_size": 0.05}),
        (hmc.kernel, {"step_size": 0.1, "leapfrog_steps": 3}),
        (metropolis_hastings.with_proposal(drifted(0.5)), {}),
    ],
)
def test_exact_kernels_have_the_mean_of_a_slope(
    kernel: Kernel, parameters: dict[str, float]
) -> None:
    known = slope()
    require(stationarity(kernel, known, parameters)[0])
    require(convergence(kernel, known, parameters, 100))


def test_clamped_ula_piles_up_at_the_wall() -> None:
    """At a step size of 0.05 its mean is 0.895, not 0.769: the solution of its own integral
    equation says so.
    """
    step_size = 0.05
    walk = ClampedWalk.solve(lambda x: x + 4 * step_size, math.sqrt(2 * step_size), (0.0, 1.0))
    assert walk.moment(1) == pytest.approx(0.895, abs=1e-3)
    assert pytest.approx(0.769, abs=1e-3) == SLOPE_MEAN
    start = torch.zeros(CHAINS, 1, dtype=torch.float64)
    x = run(ula.kernel, Target(Slope()), start, 60, {"step_size": step_size}).state.position
    error = math.sqrt((walk.moment(2) - walk.moment(1) ** 2) / CHAINS)
    at_wall = int((x == 1).sum())
    share = float(walk.masses[-1])
    require(
        {
            "mean": laws.normal_p_value((float(x.mean()) - walk.moment(1)) / error),
            "atom": laws.normal_p_value(
                (at_wall - CHAINS * share) / math.sqrt(CHAINS * share * (1 - share))
            ),
        }
    )
    assert min(slope().moment_p_values(x).values()) < laws.P_LIMIT


# -- gradients in low precision --------------------------------------------------------------------


def far_gaussian() -> Known:
    """Where neighbours in bfloat16 are half a standard deviation apart, and the means half way
    between two of them.
    """
    covariance = torch.tensor([[0.016, 0.008], [0.008, 0.012]])
    law32 = Gaussian(torch.tensor([8.03, -12.03]), covariance)
    return laws.continuous(law32, law32.sample, {})


def at_float32(
    known: Known,
    kernel: Kernel,
    parameters: dict[str, float],
    gradient_dtype: torch.dtype | None,
    transitions: int,
) -> Any:
    start = known.sample(CHAINS, seeded(0))
    assert start.dtype == torch.float32
    end = run(
        kernel, Target(known.energy, gradient_dtype=gradient_dtype), start, transitions, parameters
    )
    assert end.state.position.dtype == torch.float32
    return known.p_values(end.state.position), end


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [(mala.kernel, {"step_size": 0.006}), (hmc.kernel, {"step_size": 0.1, "leapfrog_steps": 3})],
)
def test_a_rough_force_leaves_the_law_exact(kernel: Kernel, parameters: dict[str, float]) -> None:
    """The gradient in bfloat16 is off by a fifth of a typical one and more, and acceptance pays for
    it.
    """
    known = far_gaussian()
    x = known.sample(CHAINS, seeded(3))
    rough, exact = (
        Target(known.energy, gradient_dtype=torch.bfloat16).gradient(x),
        Target(known.energy).gradient(x),
    )
    assert float((rough - exact).norm()) > 0.2 * float(exact.norm())
    p_values, end = at_float32(known, kernel, parameters, torch.bfloat16, 30)
    require(p_values)
    assert 0.2 < end.acceptance < 0.8


def test_a_rough_force_needs_the_accept_step() -> None:
    """ULA at a step size small enough to pass with the exact force, on the same law."""
    known, parameters = far_gaussian(), {"step_size": 1e-4}
    exact, _ = at_float32(known, ula.kernel, parameters, None, 100)
    require(exact)
    rough, _ = at_float32(known, ula.kernel, parameters, torch.bfloat16, 100)
    assert min(rough.values()) < laws.P_LIMIT
