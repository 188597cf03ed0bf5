"""Deep Boltzmann machines of two and three hidden layers against sums over all their states.

Sums are exact: tolerances are of rounding in float64. What is drawn is held to |z| < 5, a
false-alarm rate of 6e-7 each, or, counts of states, to p > 5e-8; seeds are fixed.
"""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.data.base import in_memory
from pipeline.energies.base import Energy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.target import Target
from pipeline.evaluation import deep_boltzmann
from pipeline.evaluation.likelihood import log_z_by_annealing
from pipeline.kernels import gibbs
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.likelihood import MaximumLikelihood
from tests.statistics.laws import P_LIMIT, chi_squared, double, numbers, scramble, seeded, states
from tests.statistics.test_evaluation import run
from tests.statistics.test_transition_matrices import row_p_values
from tests.statistics.trainable import close, gradient_of, loss_of, sides

EXACT = 1e-10
LIMIT = 5.0
CONVERGED = 500
SHAPES = {"two layers": ((2, 2), (3, 2)), "three layers": ((3,), (2, 1, 2))}


def make(kind: str, scale: float = 1.0, steps: int = CONVERGED) -> DeepBoltzmannMachine:
    """Every parameter from N(0, scale^2), in float64."""
    shape, hidden = SHAPES[kind]
    energy = scramble(DeepBoltzmannMachine(shape, hidden, 1.0, steps), scale, seed=3)
    assert isinstance(energy, DeepBoltzmannMachine)
    return energy.requires_grad_(False)


@pytest.fixture(params=SHAPES)
def energy(request: pytest.FixtureRequest) -> DeepBoltzmannMachine:
    return make(request.param)


def written_out(energy: DeepBoltzmannMachine, x: Tensor, beta: float = 1.0) -> Tensor:
    """-b.v - beta (sum_l c_l.h_l + h_l.W_l h_{l-1}), unit by unit, `[N]`."""
    layers, biases = x.split(energy.sizes, 1), energy.hidden_bias.split(energy.sizes[1:])
    total = -(layers[0] * energy.visible_bias).sum(1)
    for number, (bias, weight) in enumerate(zip(biases, energy.weights, strict=True), 1):
        total -= beta * (layers[number] * bias).sum(1)
        for i, j in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
            total -= beta * layers[number][:, i] * weight[i, j] * layers[number - 1][:, j]
    return total


def rows_of(energy: DeepBoltzmannMachine) -> Tensor:
    """All values of v, `[2^d, *data_shape]`."""
    return (
        (torch.arange(2 ** energy.sizes[0])[:, None] >> torch.arange(energy.sizes[0]) & 1)
        .double()
        .view(-1, *energy.data_shape)
    )


def hidden_states(energy: DeepBoltzmannMachine) -> Tensor:
    hidden = sum(energy.sizes[1:])
    return (torch.arange(2**hidden)[:, None] >> torch.arange(hidden) & 1).double()


def joined(energy: DeepBoltzmannMachine, rows: Tensor) -> Tensor:
    """Every row with every state of the hidden units, `[rows, states, D]`."""
    v, h = rows.flatten(1), hidden_states(energy)
    return torch.cat([v[:, None].expand(-1, len(h), -1), h.expand(len(v), -1, -1)], 2)


def log_sum_over_hidden(energy: DeepBoltzmannMachine, rows: Tensor) -> Tensor:
    """log sum_h exp(-E(v, h)) of each row: log p(v) + log Z."""
    every = joined(energy, rows)
    return torch.logsumexp(-energy(every.flatten(0, 1)).view(every.shape[:2]), 1)


def chances(energy: DeepBoltzmannMachine, means: Tensor) -> Tensor:
    """q(h) of every state of independent hidden units with these means, `[rows, states]`."""
    h = hidden_states(energy)
    return torch.where(h[None] > 0.5, means[:, None], 1 - means[:, None]).prod(2)


# -- the joint law ---------------------------------------------------------------------------------


def test_energy_is_what_is_written(energy: DeepBoltzmannMachine) -> None:
    """And the path to it from b alone: base law, its log Z, and every beta between."""
    x = states(energy)
    close(energy(x), written_out(energy, x), EXACT)
    for beta in (0.0, 0.3, 1.0):
        close(
            energy.tempered(x, double([beta]).expand(len(x))), written_out(energy, x, beta), EXACT
        )
    close(energy.base(x), written_out(energy, x, 0.0), EXACT)
    assert energy.base_log_partition() == pytest.approx(
        float(torch.logsumexp(-energy.base(x), 0)), abs=EXACT
    )


def test_noise_is_the_base_law(energy: DeepBoltzmannMachine) -> None:
    x = energy.sample_base(20_000, seeded(0))
    assert chi_squared(numbers(x, 2), torch.softmax(-energy.base(states(energy)), 0)) > P_LIMIT
    assert chi_squared(numbers(x, 2), torch.softmax(-energy(states(energy)), 0)) < P_LIMIT


@pytest.mark.parametrize("beta", [None, 0.4])
def test_gradient_by_hand_is_autograds(energy: DeepBoltzmannMachine, beta: float | None) -> None:
    x = torch.rand(20, energy.dimension, generator=seeded(1), dtype=torch.float64)
    betas = None if beta is None else torch.rand(20, generator=seeded(2), dtype=torch.float64)
    by_hand, by_autograd = (
        energy.energy_and_gradient(x, betas),
        Energy.energy_and_gradient(energy, x, betas),
    )
    for one, other in zip(by_hand, by_autograd, strict=True):
        close(one, other, EXACT)


@pytest.mark.parametrize(
    ("shape", "hidden"), [*SHAPES.values(), ((6,), (2, 3)), ((2,), (6, 2)), ((2,), (3, 2, 1, 2))]
)
def test_log_sum_is_that_of_all_states(shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
    """With its gradient, whether odd or even layers have fewer states."""
    energy = scramble(DeepBoltzmannMachine(shape, hidden, 1.0, 1), 0.7)
    whole, value = torch.logsumexp(-energy(states(energy)), 0), energy.log_sum()
    assert value is not None
    close(value, whole, EXACT)
    close(gradient_of(value, energy), gradient_of(whole, energy), EXACT)


def test_log_sum_is_refused_where_no_half_is_small() -> None:
    assert DeepBoltzmannMachine((21,), (21, 5), 0.1, 1).log_sum() is None
    assert DeepBoltzmannMachine((21,), (3, 5), 0.1, 1).log_sum() is not None


def test_it_is_an_rbm_of_even_and_odd_layers(energy: DeepBoltzmannMachine) -> None:
    """Of every state of the even layers, the free energy: the odd ones summed out."""
    rbm, x = energy.as_rbm(), states(energy)
    even = energy.even_layers(x)
    for state in even.unique(dim=0):
        same = (even == state).all(1)
        close(-rbm(state[None])[0], torch.logsumexp(-energy(x[same]), 0), EXACT)
    assert rbm.log_partition() == pytest.approx(energy.log_partition(), abs=EXACT)


# -- block Gibbs -----------------------------------------------------------------------------------


def block_matrix(target: Target, block: str, x: Tensor) -> Tensor:
    """p(x' | x) of redrawing the block, `[S, S]`."""
    pairs = x.repeat_interleave(len(x), 0), x.repeat(len(x), 1)
    return target.conditional(block, pairs[0]).log_prob(pairs[1]).sum(1).exp().view(len(x), len(x))


@pytest.mark.parametrize("beta", [None, 0.45])
def test_conditionals_are_those_of_the_joint_law(
    energy: DeepBoltzmannMachine, beta: float | None
) -> None:
    x = states(energy)
    target = Target(energy, None if beta is None else double([beta]))
    logs = -written_out(energy, x, 1.0 if beta is None else beta)
    for block, kept in (("odd", slice(0, None, 2)), ("even", slice(1, None, 2))):
        others = torch.cat(x.split(energy.sizes, 1)[kept], 1)
        same = (others[:, None] == others[None]).all(2)
        truth = torch.softmax(torch.where(same, logs, -torch.inf), 1)
        close(block_matrix(target, block, x), truth, EXACT)


@pytest.mark.parametrize("beta", [None, 0.45])
def test_a_sweep_leaves_the_joint_law_as_it_is(
    energy: DeepBoltzmannMachine, beta: float | None
) -> None:
    """pi P = pi for P = odd layers given even ones, then even given odd; every state is reached;
    `step` draws from P's rows.
    """
    x, target = states(energy), Target(energy, None if beta is None else double([beta]))
    pi = torch.softmax(-target.energy(x), 0)
    matrix = block_matrix(target, "odd", x) @ block_matrix(target, "even", x)
    close(matrix.sum(1), torch.ones(len(x)).double(), EXACT)
    close(pi @ matrix, pi, EXACT)
    assert (matrix > 0).all()
    for start, p_value in row_p_values(gibbs.kernel, target, energy, matrix).items():
        assert p_value > P_LIMIT, start


def test_layers_drawn_all_at_once_do_not(energy: DeepBoltzmannMachine) -> None:
    """Each given what its neighbours were before: the slip that blocks are there to prevent."""
    x, target = states(energy), Target(energy)
    pi = torch.softmax(-energy(x), 0)
    pairs = x.repeat_interleave(len(x), 0), x.repeat(len(x), 1)
    laws = {**target.conditional("odd", pairs[0]).laws, **target.conditional("even", pairs[0]).laws}
    logs = sum(
        laws[i].log_prob(part).sum(1) for i, part in enumerate(pairs[1].split(energy.sizes, 1))
    )
    assert float((pi @ logs.exp().view(len(x), len(x)) - pi).abs().sum()) > 0.01


# -- mean field ------------------------------------------------------------------------------------


def test_positions_and_rows_fit(energy: DeepBoltzmannMachine) -> None:
    rows = rows_of(energy)
    position = energy.with_latents(rows)
    assert position.shape == (len(rows), *energy.shape)
    assert torch.equal(energy.visible(position), rows)
    assert energy.visible(position).shape[1:] == energy.data_shape == SHAPES_OF[energy.sizes]


SHAPES_OF = {(math.prod(shape), *hidden): shape for shape, hidden in SHAPES.values()}


def test_means_are_a_fixed_point(energy: DeepBoltzmannMachine) -> None:
    """Each unit's mean is sigmoid of minus the slope of E at the means of the others."""
    position = energy.with_latents(rows_of(energy))
    _, slope = Energy.energy_and_gradient(energy, position)
    first = energy.sizes[0]
    close(position[:, first:], torch.sigmoid(-slope[:, first:]), EXACT)


def test_bound_is_the_expectation_under_q(energy: DeepBoltzmannMachine) -> None:
    """E_q[-E(v, h)] + H(q) = log sum_h exp(-E(v, h)) - KL(q(h) || p(h | v)), by sums over all
    states of h.
    """
    rows = rows_of(energy)
    q = chances(energy, energy.with_latents(rows)[:, energy.sizes[0] :])
    every = joined(energy, rows)
    minus = -written_out(energy, every.flatten(0, 1)).view(every.shape[:2])
    close(energy.bound(rows), (q * minus).sum(1) + torch.special.entr(q).sum(1), EXACT)
    kl = (q * (q.log() - torch.log_softmax(minus, 1))).sum(1)
    close(energy.bound(rows), log_sum_over_hidden(energy, rows) - kl, EXACT)
    assert (kl > 1e-4).any()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("kind", SHAPES)
def test_bound_is_below_the_truth(kind: str, steps: int, scale: float) -> None:
    """Of every v, converged or not."""
    energy = make(kind, scale, steps)
    rows = rows_of(energy)
    assert (energy.bound(rows) <= log_sum_over_hidden(energy, rows) + EXACT).all()


def test_bound_is_exact_where_the_posterior_factorises(energy: DeepBoltzmannMachine) -> None:
    """Without couplings above the first layer; and with one hidden layer alone."""
    for weight in energy.weights[1:]:
        weight.zero_()
    close(energy.bound(rows_of(energy)), log_sum_over_hidden(energy, rows_of(energy)), EXACT)
    rbm = scramble(DeepBoltzmannMachine((4,), (3,), 1.0, 1))
    assert isinstance(rbm, DeepBoltzmannMachine)
    close(rbm.bound(rows_of(rbm)), log_sum_over_hidden(rbm, rows_of(rbm)), EXACT)


def test_every_sweep_raises_the_bound(energy: DeepBoltzmannMachine) -> None:
    bounds = []
    for energy.mean_field_steps in range(1, 8):
        bounds.append(energy.bound(rows_of(energy)))
    gains = torch.stack(bounds).diff(dim=0)
    assert gains.min() > -EXACT
    assert gains[0].max() > 1e-6


def test_slope_at_the_means_is_the_expected_slope(energy: DeepBoltzmannMachine) -> None:
    """grad_theta E(v, mu) = E_q[grad_theta E(v, h)]: what makes positives with means the positive
    phase.
    """
    energy.requires_grad_(True)
    rows = rows_of(energy)[3:6]
    position = energy.with_latents(rows)
    q = chances(energy, position[:, energy.sizes[0] :])
    every = joined(energy, rows)
    expected = gradient_of((q * energy(every.flatten(0, 1)).view(q.shape)).sum(), energy)
    close(gradient_of(energy(position).sum(), energy), expected, EXACT)


# -- learning --------------------------------------------------------------------------------------


def test_gradient_is_that_of_the_bound() -> None:
    """Of mean bound - log Z, by central differences along random directions: mu, where it is best,
    moves it in second order.
    """
    energy = make("two layers").requires_grad_(True)
    rows = rows_of(energy)[[1, 4, 4, 11]]
    objective = MaximumLikelihood(1)
    objective.initialise(energy, rows, seeded(0))
    gradient = gradient_of(loss_of(objective, energy, sides(energy.with_latents(rows))), energy)
    before = torch.nn.utils.parameters_to_vector(energy.parameters()).detach()
    for number in range(5):
        direction = torch.randn(len(before), generator=seeded(number), dtype=torch.float64)
        values = []
        for step in (-1e-4, 1e-4):
            torch.nn.utils.vector_to_parameters(before + step * direction, energy.parameters())
            log_z = energy.log_partition()
            assert log_z is not None
            values.append(log_z - float(energy.bound(rows).detach().mean()))
        assert (values[1] - values[0]) / 2e-4 == pytest.approx(
            float(gradient @ direction), rel=1e-5, abs=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_training_with_persistent_chains(kind: str) -> None:
    """Means of the hidden units for positives, joint Gibbs chains for negatives: the exact
    log-likelihood of a law on 4 (3) units comes nearer to its greatest value, minus the law's
    entropy, than independent units do, by more than half of the way.
    """
    shape, _ = SHAPES[kind]
    torch.manual_seed(0)
    energy = DeepBoltzmannMachine(shape, (6, 4) if kind == "two layers" else (6, 4, 3), 0.3, 10)
    every = rows_of(energy).float()
    alike = (every.flatten(1).sum(1) - len(every.flatten(1)[0]) / 2).abs()  # all on, or all off
    law = torch.softmax(2.5 * alike, 0)
    rows = every[torch.multinomial(law, 4000, replacement=True, generator=seeded(1))]
    energy.initialise(rows)
    share = torch.bincount(numbers(rows, 2), minlength=len(every)) / len(rows)
    independent = float(share @ (-energy.base(energy.with_latents(every)).detach())) - float(
        torch.nn.functional.softplus(energy.visible_bias.detach()).sum()
    )
    best = -float(torch.special.entr(share).sum())
    objective, generator = ContrastiveDivergence(0.0), seeded(2)
    target = Target(copy.deepcopy(energy))
    chains = energy.sample_base(500, generator)
    optimizer = torch.optim.SGD(energy.parameters(), 0.1)
    for step in range(1500):
        target._energy.load_state_dict(energy.state_dict())
        chains = gibbs.step(generator, gibbs.State(chains), target)[0].position
        batch = rows[torch.randint(len(rows), (100,), generator=generator)]
        optimizer.zero_grad()
        loss_of(objective, energy, sides(energy.with_latents(batch), negatives=chains)).backward()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 1500)
        optimizer.step()
    energy.double().requires_grad_(False)
    log_z = energy.log_partition()
    assert log_z is not None
    learned = float(share.double() @ log_sum_over_hidden(energy, every.double())) - log_z
    assert learned <= best + EXACT
    assert learned > independent + (best - independent) / 2


# -- figures ---------------------------------------------------------------------------------------


class Medium:
    """12 visible and 5 + 4 + 3 hidden units: small enough to sum over, large enough for AIS to have
    something to do.
    """

    def __init__(self) -> None:
        self.energy = (
            scramble(DeepBoltzmannMachine((3, 4), (5, 4, 3), 1.0, 20), 0.8, seed=1)
            .float()
            .requires_grad_(False)
        )
        target, x = Target(self.energy), self.energy.sample_base(600, seeded(5))
        for _ in range(100):
            x = gibbs.step(seeded(6), gibbs.State(x), target)[0].position
        rows = self.energy.visible(x)
        self.data = in_memory(rows[:400], rows[400:], 0.0)
        self.config = compose(
            [
                "experiment=dbm_digits",
                "evaluation.ais_temperatures=200",
                "evaluation.ais_particles=200",
            ]
        )


@pytest.fixture(scope="module")
def medium() -> Medium:
    return Medium()


def is_near(medium: Medium, energy: DeepBoltzmannMachine) -> bool:
    """Whether log Z by AIS, from the model's own rows, is within 5 of its standard errors."""
    truth = medium.energy.log_partition()
    assert truth is not None
    rows = energy.even_layers(energy.with_latents(medium.data.sample))
    with torch.no_grad():
        found = run(log_z_by_annealing(energy.as_rbm(), rows, medium.config))
    error = found["log_z_standard_error"]
    return error is not None and abs(found["log_z"] - truth) < LIMIT * error


@pytest.mark.slow
def test_ais_is_within_its_error(medium: Medium) -> None:
    """|z| < 5: 6e-7. And without one coupling above the first layer it is not."""
    assert is_near(medium, medium.energy)
    broken = copy.deepcopy(medium.energy)
    broken.weights[1].zero_()
    assert not is_near(medium, broken)


@pytest.mark.slow
def test_figures_are_bounds(medium: Medium, monkeypatch: pytest.MonkeyPatch) -> None:
    """With log Z by enumeration, below the exact mean log-likelihood; with AIS's, apart from that
    by its error in log Z.
    """
    exact, precise = (
        run(deep_boltzmann.by_bound(medium.energy, medium.data, medium.config)),
        copy.deepcopy(medium.energy).double(),
    )
    assert exact["log_z"] == pytest.approx(medium.energy.log_partition(), abs=1e-4)
    for name, rows in (("test", medium.data.held_out), ("train", medium.data.sample)):
        truth = float(log_sum_over_hidden(precise, rows.double()).mean()) - exact["log_z"]
        assert truth - 1 < exact[f"{name}_log_likelihood_bound"] < truth
    monkeypatch.setattr(DeepBoltzmannMachine, "log_partition", lambda _: None)
    with torch.no_grad():
        found = run(deep_boltzmann.by_bound(medium.energy, medium.data, medium.config))
        start = DeepBoltzmannMachine((3, 4), (5, 4, 3), 0.0, 5)
        start.initialise(medium.data.sample)
        untrained = run(deep_boltzmann.untrained(start, medium.data, 0))
    assert "AIS" in found["method"]
    shift = exact["log_z"] - found["log_z"]
    assert found["test_log_likelihood_bound"] - exact["test_log_likelihood_bound"] == pytest.approx(
        shift, abs=1e-4
    )
    rates, rows = (
        start.visible_bias.sigmoid(),
        medium.data.held_out.flatten(1),
    )  # without weights: independent units
    independent = torch.where(rows > 0.5, rates, 1 - rates).log().sum(1).mean()
    assert untrained == pytest.approx(float(independent.detach()), abs=1e-3)
    none = medium.config.model_copy(
        update={"evaluation": medium.config.evaluation.model_copy(update={"ais_temperatures": 0})}
    )
    assert run(deep_boltzmann.by_bound(medium.energy, medium.data, none)) == {}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", ["cd", "nce", "pseudo_likelihood", "ratio_matching", "conditional_nce"]
)
def test_objectives_of_the_data_alone_are_refused(objective: str) -> None:
    with pytest.raises(ConfigError, match="latent units"):
        compose(["experiment=dbm_digits", f"objective={objective}"])


@pytest.mark.parametrize(
    "kernel", ["gibbs", "gibbs_with_gradients", "single_site", "replica_exchange"]
)
def test_kernels_of_the_joint_law_are_not(kernel: str) -> None:
    inner = ["kernel.inner=gibbs"] if kernel == "replica_exchange" else []
    assert compose(["experiment=dbm_digits", f"kernel={kernel}", *inner]).energy.name == "dbm"
