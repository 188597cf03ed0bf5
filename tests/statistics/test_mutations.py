"""Broken kernels must be caught: each is a kernel of the registry with one slip, at a setting that
`test_kernels.py` and `test_transition_matrices.py` prove the kernel itself at, with the same
functions, samples, seeds and limit. Where it can be, with fewer samples: `moves_the_law`.

A slip is caught when the smallest p-value falls below `laws.P_LIMIT`, or detailed balance fails by
more than its tolerance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline.assembly.kernels import make_kernel
from pipeline.config.parts import KERNELS
from pipeline.energies import base as energies_base
from pipeline.energies.base import Energy
from pipeline.energies.conditionals import Bernoulli, Categorical, Conditional
from pipeline.energies.sweeps import Sweep
from pipeline.energies.target import Target
from pipeline.kernels import (
    base,
    gibbs,
    gibbs_with_gradients,
    hmc,
    mala,
    metropolis_hastings,
    random_walk,
    replica_exchange,
    single_site,
)
from pipeline.kernels.base import EnergyState, GradientState, Info, Kernel
from tests.statistics import laws
from tests.statistics.laws import double, law
from tests.statistics.test_kernels import (
    CHAINS,
    DERIVED,
    LADDERS,
    RUNG_CHAINS,
    SETTINGS,
    Setting,
    at_float32,
    convergence,
    drifted,
    far_gaussian,
    joint_stationarity,
    kept_by,
    scaling,
    stationarity,
)
from tests.statistics.test_transition_matrices import (
    BETA,
    TOLERANCE,
    bound,
    gibbs_matrix,
    gibbs_with_gradients_matrix,
    imbalance,
    law_of,
    row_p_values,
    single_site_matrix,
)

Slip = Callable[[pytest.MonkeyPatch], None]


def caught(p_values: dict[str, float]) -> bool:
    return (
        not min(p_values.values()) >= laws.P_LIMIT
    )  # nan, of positions that are not finite, is caught as well


def moves_the_law(*arguments: Any, **options: Any) -> bool:
    """Whether `stationarity` catches a slip: with 1,000 chains, or with as many as the kernel
    itself is proven with. The limit is the same, and so is the chance of a false alarm, 5e-8 a
    p-value.
    """
    return any(
        caught(stationarity(*arguments, **options, chains=chains)[0]) for chains in (1000, CHAINS)
    )


# -- slips in the accept step ----------------------------------------------------------------------

Accept = Callable[[torch.Generator, Tensor, Any, Any], tuple[Any, Tensor]]


def accepting(module: ModuleType, accept: Accept) -> Slip:
    return lambda patch: patch.setattr(module, "metropolis", accept)


def inverse_ratio(
    generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any
) -> tuple[Any, Tensor]:
    return base.metropolis(generator, -log_ratio, moved, state)


def always(
    generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any
) -> tuple[Any, Tensor]:
    return base.metropolis(generator, torch.zeros_like(log_ratio), moved, state)


def energies_only(
    generator: torch.Generator,
    log_ratio: Tensor,  # noqa: ARG001
    moved: Any,
    state: Any,
) -> tuple[Any, Tensor]:
    """No log ratio of proposals; in HMC, no kinetic energy."""
    return base.metropolis(generator, state.energy - moved.energy, moved, state)


def proposals_inverted(
    generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any
) -> tuple[Any, Tensor]:
    """log q(x' | x) - log q(x | x')."""
    return base.metropolis(generator, 2 * (state.energy - moved.energy) - log_ratio, moved, state)


def warm(
    generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any
) -> tuple[Any, Tensor]:
    """Temperature 1.5."""
    return base.metropolis(generator, log_ratio / 1.5, moved, state)


def downhill(
    generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any
) -> tuple[Any, Tensor]:
    """Whatever is likelier than not to be accepted is, and nothing else: no chance in it."""
    return base.metropolis(
        generator,
        torch.where(log_ratio > -math.log(2), 0.0, -torch.inf).to(log_ratio),
        moved,
        state,
    )


def stale_cache(
    generator: torch.Generator, log_ratio: Tensor, moved: Any, state: Any
) -> tuple[Any, Tensor]:
    """What was cached with a rejected proposal stays in the state."""
    chosen, acceptance = base.metropolis(generator, log_ratio, moved, state)
    return moved._replace(position=chosen.position), acceptance


# -- slips in a proposal ---------------------------------------------------------------------------


def every(
    period: int, function: Callable[..., Any], slip: Callable[..., Any]
) -> Callable[..., Any]:
    """`function`, but in every `period`-th call `slip`."""
    calls = 0

    def called(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return (function if calls % period else slip)(*arguments)

    return called


def wrong_sign_on_the_way_back(patch: pytest.MonkeyPatch) -> None:
    """x - x' - epsilon F(x'): the third of MALA's sums."""
    patch.setattr(
        mala,
        "add_scaled",
        every(3, base.add_scaled, lambda x, y, scale: base.add_scaled(x, y, -scale)),
    )


def no_force_on_the_way_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mala, "add_scaled", every(3, base.add_scaled, lambda x, *_: x))


def half_the_noise(patch: pytest.MonkeyPatch) -> None:
    """Noise sqrt(epsilon), a ratio for sqrt(2 epsilon)."""
    patch.setattr(
        mala, "normal_like", lambda x, generator: base.normal_like(x, generator) / math.sqrt(2)
    )


def no_last_half_kick(patch: pytest.MonkeyPatch) -> None:
    """The last of L + 1 kicks of a transition with L = 3."""
    patch.setattr(hmc, "_kick", every(4, hmc._kick, lambda *_: None))


def no_first_half_kick(patch: pytest.MonkeyPatch) -> None:
    calls = 0

    def kick(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 4 != 1:
            original(*arguments)

    original = hmc._kick
    patch.setattr(hmc, "_kick", kick)


def momentum_of_the_inverse_mass(patch: pytest.MonkeyPatch) -> None:
    """p ~ N(0, 1 / M) for N(0, M), M = (0.5, 2)."""
    patch.setattr(
        hmc, "normal_like", lambda x, generator: base.normal_like(x, generator) / double([0.5, 2.0])
    )


def momentum_of_the_wrong_temperature(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hmc, "normal_like", lambda x, generator: base.normal_like(x, generator) * 0.8)


def momentum_goes_on_through_the_wall(patch: pytest.MonkeyPatch) -> None:
    def reflect(x: Tensor, box: tuple[float, float]) -> tuple[Tensor, Tensor]:
        return energies_base.reflect(x, box)[0], torch.ones_like(x)

    patch.setattr(hmc, "reflect", reflect)


def clamped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(random_walk, "reflect", lambda x, box: (x.clamp(*box), None))


def way_back_from_here(patch: pytest.MonkeyPatch) -> None:
    """log q(move back | x) for log q(move back | x'): the second of two calls repeats the first."""
    last: list[Tensor] = []

    def log_proposals(state: GradientState, target: Target) -> Tensor:
        if last:
            return last.pop()
        last.append(original(state, target))
        return last[0]

    original = gibbs_with_gradients.log_proposals
    patch.setattr(gibbs_with_gradients, "log_proposals", log_proposals)


def way_back_is_the_way_there(patch: pytest.MonkeyPatch) -> None:
    """With more than two levels a move does not undo itself."""
    patch.setattr(gibbs_with_gradients, "reverse", lambda _position, move, _target: move)


def energies_upside_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(single_site, "Categorical", lambda logits: Categorical(-logits))


def staying_is_forbidden(patch: pytest.MonkeyPatch) -> None:
    def moves_only(logits: Tensor) -> Categorical:
        return Categorical(
            torch.cat([torch.full_like(logits[:, :1], -torch.inf), logits[:, 1:]], 1)
        )

    patch.setattr(single_site, "Categorical", moves_only)


def last_site_energy(patch: pytest.MonkeyPatch) -> None:
    """The energy cached is that before the site was drawn."""

    def alternatives(
        state: EnergyState, site: Tensor, target: Target
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, energies, others = original(state, site, target)
        return values, torch.cat([energies.roll(1, 1)[:, :1], energies[:, 1:]], 1), others

    original = single_site.alternatives
    patch.setattr(single_site, "alternatives", alternatives)


# -- slips in a swap -------------------------------------------------------------------------------


def swap_energy(change: Callable[[Tensor], Tensor]) -> Slip:
    original = replica_exchange._energy
    return lambda patch: patch.setattr(
        replica_exchange, "_energy", lambda state, target: change(original(state, target))
    )


def every_other_rung(energy: Tensor) -> Tensor:
    return energy * (torch.arange(len(energy)) // RUNG_CHAINS % 2 == 0)


def energies_stay_behind(patch: pytest.MonkeyPatch) -> None:
    """Positions and gradients are exchanged, the energies cached with them are not."""
    patch.setattr(
        replica_exchange,
        "choose",
        lambda swapped, moved, state: base.choose(
            swapped, moved._replace(energy=state.energy), state
        ),
    )


# -- the kernels, broken ---------------------------------------------------------------------------


class Mutation(NamedTuple):
    setting: Setting
    name: str
    slip: Slip

    def __str__(self) -> str:
        return f"{self.setting}-{self.name}"


def at(name: str, law_name: str, **options: Any) -> Setting:
    """The first of the settings with this kernel and law, and these options."""
    return next(
        setting
        for setting in SETTINGS + LADDERS
        if (setting.name, setting.law) == (name, law_name)
        and options.items() <= setting.options.items()
    )


def accept_slips(module: ModuleType, setting: Setting, *slips: Accept) -> list[Mutation]:
    return [Mutation(setting, slip.__name__, accepting(module, slip)) for slip in slips]


def slips(setting: Setting, *slips: Slip) -> list[Mutation]:
    return [Mutation(setting, slip.__name__, slip) for slip in slips]


pytestmark = pytest.mark.slow
UNEQUAL = at("hmc", "gaussian", mass=(0.5, 2.0))
MUTATIONS = [
    *accept_slips(
        random_walk,
        at("random_walk", "gaussian"),
        inverse_ratio,
        always,
        warm,
        downhill,
        stale_cache,
    ),
    *accept_slips(random_walk, at("random_walk", "mixture"), warm),
    *accept_slips(random_walk, at("random_walk", "rings"), warm),
    *slips(at("random_walk", "box"), clamped),
    *accept_slips(
        metropolis_hastings,
        at("metropolis_hastings", "gaussian"),
        energies_only,
        proposals_inverted,
        inverse_ratio,
        always,
        warm,
    ),
    *accept_slips(metropolis_hastings, at("metropolis_hastings", "mixture"), energies_only),
    *accept_slips(metropolis_hastings, at("metropolis_hastings", "box"), energies_only),
    *accept_slips(
        mala,
        at("mala", "gaussian"),
        energies_only,
        proposals_inverted,
        inverse_ratio,
        always,
        warm,
        stale_cache,
    ),
    *accept_slips(mala, at("mala", "mixture"), energies_only, always),
    *accept_slips(mala, at("mala", "box"), energies_only),
    *accept_slips(mala, at("mala", "rings"), energies_only, always),
    *slips(
        at("mala", "gaussian"), wrong_sign_on_the_way_back, no_force_on_the_way_back, half_the_noise
    ),
    *accept_slips(
        hmc, at("hmc", "gaussian"), energies_only, inverse_ratio, always, warm, stale_cache
    ),
    *accept_slips(hmc, UNEQUAL, energies_only, always),
    *accept_slips(hmc, at("hmc", "funnel"), energies_only, always),
    *slips(at("hmc", "gaussian"), momentum_of_the_wrong_temperature),
    *slips(
        at("hmc", "mixture"),
        no_last_half_kick,
        no_first_half_kick,
        momentum_of_the_wrong_temperature,
    ),
    *slips(UNEQUAL, momentum_of_the_inverse_mass),
    *slips(
        at("hmc", "box"), no_last_half_kick, no_first_half_kick, momentum_goes_on_through_the_wall
    ),
    *accept_slips(
        gibbs_with_gradients,
        at("gibbs_with_gradients", "rbm"),
        energies_only,
        proposals_inverted,
        inverse_ratio,
        always,
        stale_cache,
    ),
    *accept_slips(
        gibbs_with_gradients, at("gibbs_with_gradients", "potts_rbm"), energies_only, always
    ),
    *accept_slips(
        gibbs_with_gradients, at("gibbs_with_gradients", "lattice"), energies_only, always
    ),
    *accept_slips(
        gibbs_with_gradients, at("gibbs_with_gradients", "ordinal"), energies_only, always
    ),
    *slips(at("gibbs_with_gradients", "rbm"), way_back_from_here),
    *slips(at("single_site", "rbm"), energies_upside_down, staying_is_forbidden, last_site_energy),
    *slips(
        at("single_site", "lattice"), energies_upside_down, staying_is_forbidden, last_site_energy
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_no_slip_leaves_the_law_as_it_is(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = mutation.setting
    mutation.slip(monkeypatch)
    assert moves_the_law(make_kernel(setting.section), kept_by(setting), setting.section.parameters)


@pytest.mark.parametrize("accept", [inverse_ratio, always, stale_cache])
@pytest.mark.parametrize("name", sorted({setting.name for setting in DERIVED}))
def test_a_slip_in_the_accept_step_is_caught_on_one_of_the_laws(
    name: str, accept: Accept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a kernel whose settings are derived, where it accepts as all do. BAOAB, for one, is right
    on a Gaussian without an accept step.
    """
    settings = [setting for setting in DERIVED if setting.name == name]
    module = sys.modules[make_kernel(settings[0].section).step.__module__]
    if not hasattr(module, "metropolis"):
        pytest.skip("it has no accept step of this form")
    parameters = [setting.section.parameters for setting in settings]
    accepting(module, accept)(monkeypatch)
    kernels = [make_kernel(setting.section) for setting in settings]
    assert any(
        caught(stationarity(kernel, kept_by(setting), given)[0])
        for kernel, setting, given in zip(kernels, settings, parameters, strict=True)
    )


@pytest.mark.parametrize("slip", [way_back_from_here, way_back_is_the_way_there])
def test_a_wrong_way_back_that_rejects_everything_is_caught(
    slip: Slip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three levels both ask for the probability of a move that is none, 0: the law is kept,
    but never found.
    """
    setting = at("gibbs_with_gradients", "lattice")
    slip(monkeypatch)
    assert caught(convergence(gibbs_with_gradients.kernel, law("lattice"), {}, setting.enough))


LADDER = at("replica_exchange", "mixture")
SWAPS = [
    Mutation(setting, name, slip)
    for setting in (LADDER, at("replica_exchange", "gaussian"), at("replica_exchange", "rbm"))
    for name, slip in (
        ("inverse ratio", swap_energy(torch.neg)),
        ("always", swap_energy(torch.zeros_like)),
        ("one rung's energies", swap_energy(every_other_rung)),
    )
] + slips(LADDER, energies_stay_behind)


@pytest.mark.parametrize("mutation", SWAPS, ids=str)
def test_no_slip_in_a_swap_leaves_the_joint_law_as_it_is(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation.slip(monkeypatch)
    assert caught(joint_stationarity(make_kernel(mutation.setting.section), mutation.setting)[0])


@pytest.mark.parametrize("setting", [at("ula", "gaussian"), at("ula", "box")], ids=str)
@pytest.mark.parametrize(
    "noise", [lambda e: math.sqrt(e), lambda e: 2 * e, lambda e: math.sqrt(2 * e) * 1.2]
)
def test_ula_with_the_wrong_noise_is_caught(
    setting: Setting, noise: Callable[[float], float]
) -> None:
    """sqrt(epsilon), the slip of many a lecture, which samples p^2; 2 epsilon; and a fifth too
    much.
    """
    section = setting.section
    wrong = {**section.parameters, "noise": noise(section.parameters["step_size"])}
    assert moves_the_law(make_kernel(section), kept_by(setting), wrong)
    assert caught(convergence(make_kernel(section), kept_by(setting), wrong, setting.enough))


def test_a_step_size_that_depends_on_the_position_is_caught() -> None:
    """A proposal is no longer symmetric when its width is that of where it starts."""

    def step(
        generator: torch.Generator, state: EnergyState, target: Target, *, step_size: float
    ) -> tuple[EnergyState, Info]:
        widths = step_size * (0.2 + state.position.norm(dim=1))
        return random_walk.step(generator, state, target, step_size=widths)

    setting = at("random_walk", "gaussian")
    assert moves_the_law(
        Kernel(random_walk.kernel.init, step), law("gaussian"), setting.section.parameters
    )


@pytest.mark.parametrize(
    "setting",
    [*(at(name, "gaussian") for name in ("random_walk", "mala", "hmc")), *DERIVED],
    ids=str,
)
def test_a_temperature_that_is_off_is_caught(setting: Setting) -> None:
    """beta = 0.7 for 1: a slip that there is in any kernel."""
    known = law(setting.law)
    target = Target(known.energy, beta=double([0.7]))
    assert moves_the_law(
        make_kernel(setting.section), known, setting.section.parameters, target=target
    )


def test_proposals_of_ones_own_with_a_wrong_ratio_are_caught() -> None:
    """An asymmetric one taken for symmetric; scaling without its Jacobian, and with that of one
    dimension less.
    """

    def symmetric(generator: torch.Generator, x: Tensor) -> tuple[Tensor, Tensor]:
        proposal, ratio = drifted(0.8)(generator, x)
        return proposal, torch.zeros_like(ratio)

    def wrong_jacobian(dimensions: int) -> metropolis_hastings.Proposal:
        def propose(generator: torch.Generator, x: Tensor) -> tuple[Tensor, Tensor]:
            proposal, ratio = scaling(0.7)(generator, x)
            return proposal, ratio * dimensions / x[0].numel()

        return propose

    for proposal in (symmetric, wrong_jacobian(0), wrong_jacobian(1)):
        assert moves_the_law(metropolis_hastings.with_proposal(proposal), law("gaussian"), {})
        assert moves_the_law(metropolis_hastings.with_proposal(proposal), law("mixture"), {})


def test_a_rough_force_corrected_by_an_exact_gradient_is_caught() -> None:
    """The ratio has to be that of the proposal made: bfloat16 there and float32 back is none."""
    known = far_gaussian()
    rough = Target(known.energy, gradient_dtype=torch.bfloat16)

    def step(
        generator: torch.Generator, state: GradientState, target: Target, **parameters: float
    ) -> tuple[GradientState, Info]:
        return mala.step(
            generator, state._replace(gradient=rough.gradient(state.position)), target, **parameters
        )

    assert caught(
        at_float32(known, Kernel(mala.kernel.init, step), {"step_size": 0.006}, None, 30)[0]
    )


# -- Gibbs: slips in the conditionals --------------------------------------------------------------


class Means(NamedTuple):
    """In place of draws, their means."""

    conditional: Bernoulli

    def sample(self, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return torch.sigmoid(self.conditional.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError


class Slipping(Target):
    """Conditionals changed by `slip(block, value, original)`."""

    def __init__(
        self, energy: Energy, slip: Callable[..., Conditional], beta: Tensor | None = None
    ) -> None:
        super().__init__(energy, beta)
        self._slip = slip

    def conditional(self, block: str, value: Tensor) -> Conditional:
        return self._slip(block, value, super().conditional)


def mean_hidden(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
    conditional = original(block, value)
    return Means(conditional) if block == "hidden" else conditional


def hidden_upside_down(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
    conditional: Conditional = original(block, value if block == "hidden" else 1 - value)
    return conditional


def warm_hidden(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
    conditional = original(block, value)
    return Bernoulli(conditional.logits / 2) if block == "hidden" else conditional


def hidden_never_redrawn() -> Callable[..., Conditional]:
    """The first hidden states are kept for ever: the law is kept, from exact draws, but never
    found.
    """
    first: list[Any] = []

    class Kept(NamedTuple):
        value: Tensor

        def sample(self, generator: torch.Generator) -> Tensor:  # noqa: ARG002
            return self.value

        def log_prob(self, value: Tensor) -> Tensor:
            raise NotImplementedError

    def slip(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
        conditional: Conditional = original(block, value)
        if block != "hidden":
            return conditional
        if not first:
            first.append(conditional.sample(laws.seeded(2)))
        return Kept(first[0])

    return slip


HIDDEN = [name for name in KERNELS["gibbs"].laws if name != "potts"]
"""Laws that are sampled by a layer of hidden units."""


@pytest.mark.parametrize("slip", [mean_hidden, hidden_upside_down, warm_hidden])
@pytest.mark.parametrize("name", HIDDEN)
def test_gibbs_with_a_wrong_conditional_is_caught(
    name: str, slip: Callable[..., Conditional]
) -> None:
    known = law(name)
    assert moves_the_law(gibbs.kernel, known, {}, target=Slipping(known.energy, slip))


@pytest.mark.parametrize("name", HIDDEN)
def test_gibbs_with_stale_hidden_units_is_caught(name: str) -> None:
    """Not from exact draws, of which each stays one; but it does not find the law."""
    known, enough = law(name), at("gibbs", name).enough
    assert caught(
        convergence(gibbs.kernel, known, {}, enough, Slipping(known.energy, hidden_never_redrawn()))
    )


class AtOnce(NamedTuple):
    """All sites are drawn given the old letters of the others."""

    sweep: Sweep

    def sample(self, generator: torch.Generator) -> Tensor:
        sites = range(len(self.sweep.field))
        alone = [self.sweep._replace(free=[s == site for s in sites]) for site in sites]
        drawn = [one.sample(generator).flatten(1)[:, site] for site, one in enumerate(alone)]
        return torch.stack(drawn, 1).view_as(self.sweep.position)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError


def at_once(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
    return AtOnce(original(block, value))


def warm_sweep(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
    return original(block, value)._replace(beta=torch.full((len(value),), 0.5))


def first_site_kept(block: str, value: Tensor, original: Callable[..., Any]) -> Conditional:
    sweep = original(block, value)
    return sweep._replace(free=[site > 0 for site in range(len(sweep.field))])


@pytest.mark.parametrize("slip", [at_once, warm_sweep])
def test_a_sweep_by_a_wrong_law_is_caught(slip: Callable[..., Conditional]) -> None:
    known = law("potts")
    assert moves_the_law(gibbs.kernel, known, {}, target=Slipping(known.energy, slip))


def test_a_sweep_that_leaves_a_site_out_is_caught() -> None:
    """It keeps the law, and does not find it."""
    known, enough = law("potts"), at("gibbs", "potts").enough
    target = Slipping(known.energy, first_site_kept)
    assert caught(convergence(gibbs.kernel, known, {}, enough, target))


def test_gibbs_tempered_in_one_block_only_is_caught() -> None:
    """By detailed balance, and by the counts of its draws."""
    energy = laws.rbm().energy

    class Forgetful(Target):
        def conditional(self, block: str, value: Tensor) -> Conditional:
            return self._energy.conditional(
                block, value, self._beta(value) if block == "hidden" else None
            )

    target = Forgetful(energy, double([BETA]))
    assert imbalance(gibbs_matrix(target, energy), law_of(energy, BETA)) > 1e6 * TOLERANCE
    exact = gibbs_matrix(bound(energy, BETA), energy)
    assert caught(row_p_values(gibbs.kernel, target, energy, exact))


# -- what the matrices catch -----------------------------------------------------------------------


def test_matrices_of_broken_kernels_are_out_of_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = laws.lattice().energy
    target, pi = bound(energy, None), law_of(energy, None)
    with monkeypatch.context() as patch:
        last_site_energy(patch)
        with pytest.raises(AssertionError, match="not close"):
            single_site_matrix(target, energy)
    with monkeypatch.context() as patch:
        way_back_is_the_way_there(patch)
        with pytest.raises(AssertionError, match="leads back"):
            gibbs_with_gradients_matrix(target, energy)
    # a wrong law is out of balance with a right kernel
    for matrix in (single_site_matrix(target, energy), gibbs_with_gradients_matrix(target, energy)):
        assert imbalance(matrix, pi) < TOLERANCE
        assert imbalance(matrix, law_of(energy, 0.99)) > 1e6 * TOLERANCE


@pytest.mark.parametrize(
    ("kernel", "matrix", "slip"),
    [
        (
            gibbs_with_gradients.kernel,
            gibbs_with_gradients_matrix,
            accepting(gibbs_with_gradients, energies_only),
        ),
        (
            gibbs_with_gradients.kernel,
            gibbs_with_gradients_matrix,
            accepting(gibbs_with_gradients, always),
        ),
        (gibbs_with_gradients.kernel, gibbs_with_gradients_matrix, way_back_from_here),
        (single_site.kernel, single_site_matrix, energies_upside_down),
        (single_site.kernel, single_site_matrix, staying_is_forbidden),
    ],
)
@pytest.mark.parametrize("name", ["rbm", "lattice"])
def test_counts_tell_a_broken_step_from_its_matrix(
    kernel: Kernel,
    matrix: Callable[[Target, Energy], Tensor],
    slip: Slip,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    energy = law(name).energy
    target = bound(energy, None)
    exact = matrix(target, energy)
    slip(monkeypatch)
    assert caught(row_p_values(kernel, target, energy, exact))
