"""Improved contrastive divergence: transitions replayed exactly, the gradient through them by hand,
and the entropy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.kernels import replay_of
from pipeline.assembly.learner import make_learner
from pipeline.chains.batch import decode
from pipeline.chains.pool import Pool
from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.target import Target
from pipeline.energies.weights import unflatten_
from pipeline.kernels import ula
from pipeline.objectives import improved
from pipeline.objectives.base import Batch, Part, PositiveSide, Replayed
from pipeline.objectives.improved import ImprovedContrastiveDivergence, Slopes, nearest
from tests.statistics.laws import double, scramble, seeded
from tests.statistics.trainable import (
    Scaled,
    TrainableGaussian,
    gradient_of,
    largest_z,
    loss_of,
    sides,
    z_limit,
)

Small = Callable[..., RunConfig]
STEP = 0.1
EULER = 0.5772156649015329


def replayed(
    energy: Energy, previous: Tensor, drawn: Tensor, step_size: float, noise: float | None = None
) -> Tensor:
    for xi in drawn:
        previous = ula.replay(
            previous,
            xi,
            Slopes(energy.differentiable_gradient, energy.box),
            step_size=step_size,
            noise=noise,
        )
    return previous


def normals(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=seeded(seed), dtype=torch.float64)


# -- replay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [None, (-0.8, 0.8)], ids=["free", "box"])
@pytest.mark.parametrize("noise", [None, 0.05], ids=["langevin", "temperature"])
@pytest.mark.parametrize("transitions", [1, 2])
def test_replay_is_the_samplers_own_path(
    box: tuple[float, float] | None, noise: float | None, transitions: int
) -> None:
    """The last one and two of five transitions of a network's chains, in float32, its walls
    included.
    """
    energy = scramble(MLPEnergy((3,), [8], 1.0, False, box)).float()
    plan = {"step_size": 0.05, "noise": noise}
    sampler = Sampler(
        energy, ChainPlan(ula.kernel, plan, 5, 0.0, replayed=transitions), 200, seeded(1)
    )
    done = sampler.advance(seeded(2), 5)
    assert done.previous is not None
    assert done.noise is not None
    assert done.noise.shape == (transitions, 200, 3)
    again = replayed(energy, done.previous, done.noise, 0.05, noise)
    torch.testing.assert_close(again.detach(), sampler.position, rtol=0, atol=1e-6)
    if box is not None:
        assert bool((sampler.position.abs() == torch.tensor(0.8)).any()), "no chain met a wall"
    assert float((done.previous - sampler.position).abs().max()) > 0.05
    assert float(done.noise.std()) == pytest.approx(1, abs=0.1)


def test_replay_of_a_step_with_a_size_for_every_chain() -> None:
    energy = Scaled(0.7, double([0.5, -1.0]))
    sizes, previous = torch.linspace(0.01, 0.3, 50).double(), normals(50, 2)
    target = Target(energy)
    state, info = ula.step(seeded(3), ula.kernel.init(previous, target), target, step_size=sizes)
    assert info.noise is not None
    again = ula.replay(
        previous, info.noise, Slopes(energy.differentiable_gradient, None), step_size=sizes
    )
    torch.testing.assert_close(again, state.position, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transitions", [1, 2])
def test_replay_of_what_arrives_through_arrow(small: Small, transitions: int) -> None:
    """From a pool's batch, decoded, under the weights that it ran with; and the learner's replay is
    the same function.
    """
    config = small(
        "deep",
        "kernel=ula",
        "kernel.transitions=3",
        "objective=improved_cd",
        f"objective.replayed={transitions}",
    )
    shape = open_data(config).shape
    learner = make_learner(config, open_data(config))
    chains = Pool(make_energy(config, shape), make_plan(config), 16, pool=0, seed=3, device="cpu")
    for _ in range(2):
        negatives = decode(chains.advance(learner.publish())[0])
    assert negatives.previous is not None
    assert negatives.noise is not None
    energy = make_energy(config, shape)
    unflatten_(energy, learner.publish().flat)
    x = negatives.previous.view(-1, *shape)
    for noise in negatives.noise:
        x = replay_of(config.kernel)(
            x, noise.view(-1, *shape), Slopes(energy.differentiable_gradient, energy.box)
        )
    torch.testing.assert_close(x.flatten(1).detach(), negatives.position, rtol=0, atol=1e-6)


class Wall(Energy):
    """E(x) = k (x - log x): not finite at x <= 0."""

    def __init__(self) -> None:
        super().__init__((1,))
        self.k = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.k * (x - x.log()).sum(1)


def test_a_move_that_was_not_made_replays_to_where_it_began() -> None:
    """So that a loss is finite: a proposal to where the energy is not would make it NaN, and skip
    the learner's step.
    """
    energy, previous = Wall(), torch.full((200, 1), 0.3, dtype=torch.float64)
    target = Target(energy)
    state, info = ula.step(seeded(0), ula.kernel.init(previous, target), target, step_size=STEP)
    energy.requires_grad_()
    assert info.noise is not None
    stayed = (state.position == previous)[:, 0]
    assert 5 < int(stayed.sum()) < 100
    noise = info.noise[None]
    torch.testing.assert_close(
        replayed(energy, previous, noise, STEP).detach(), state.position, rtol=0, atol=1e-12
    )
    (slope,) = torch.autograd.grad(replayed(energy, previous, noise, STEP)[stayed].sum(), energy.k)
    assert float(slope) == 0
    batch = sides(negatives=state.position, past=Replayed(previous, noise, state.position))
    parts = parts_of(energy, batch)
    assert math.isfinite(float(parts["sampler_energy"].detach()))
    assert bool(gradient_of(parts["sampler_energy"], energy).isfinite().all())


# -- the gradient through transitions --------------------------------------------------------------


def parts_of(energy: Energy, batch: Batch, step: float = STEP) -> dict[str, Tensor]:
    """The means of the objective's parts, each with a graph."""
    objective = ImprovedContrastiveDivergence(0.0, 1.0, 1.0, partial(ula.replay, step_size=step))
    return {part.name: part.total / part.rows for part in objective.parts(energy, batch)}


def past(x0: Tensor, noise: Tensor, energy: Energy) -> Batch:
    negatives = replayed(energy, x0, noise, STEP).detach()
    return sides(negatives=negatives, past=Replayed(x0, noise, negatives))


@pytest.mark.parametrize("transitions", [1, 2])
def test_the_gradient_of_the_samplers_energy_is_worked_out_by_hand(transitions: int) -> None:
    """E = k |x - m|^2 / 2, u = x - m: u_1 = (1 - eps k) u_0 + ..., so du_1/dk = -eps u_0 and
    dx_1/dm = eps k, and once more.

    d E_stop / d theta = k u . dx / d theta.
    """
    k, energy = 1.7, Scaled(1.7, double([0.5, -1.0]))
    mean, x0, noise = double([0.5, -1.0]), normals(20, 2), normals(transitions, 20, 2, seed=1)
    x, by_k, by_mean = x0, torch.zeros_like(x0), 0.0
    for drawn in noise:
        by_k, by_mean = (
            (1 - STEP * k) * by_k - STEP * (x - mean),
            (1 - STEP * k) * by_mean + STEP * k,
        )
        x = x - STEP * k * (x - mean) + math.sqrt(2 * STEP) * drawn
    part = parts_of(energy, past(x0, noise, energy))["sampler_energy"]
    assert float(part.detach()) == pytest.approx(
        float(k * (x - mean).square().sum(1).mean() / 2), rel=1e-12
    )
    slope = k * (x - mean)
    expected = torch.cat([(slope * by_k).sum(1).mean()[None], by_mean * slope.mean(0)])
    torch.testing.assert_close(gradient_of(part, energy), expected, rtol=1e-8, atol=1e-8)


def test_what_is_stopped_has_no_gradient() -> None:
    """With steps of size 0 positions do not depend on theta, and neither does either part; the
    plain parts do.
    """
    energy, x0 = Scaled(1.7, double([0.5, -1.0])), normals(20, 2)
    past = Replayed(x0, normals(1, 20, 2, seed=1), x0)
    parts = parts_of(energy, sides(negatives=x0, past=past), step=0.0)
    for name in ("sampler_energy", "entropy"):
        torch.testing.assert_close(
            gradient_of(parts[name], energy), torch.zeros(3).double(), rtol=0, atol=0
        )
    assert float(gradient_of(parts["negative"], energy).abs().max()) > 0.1


# -- neighbours and entropy ------------------------------------------------------------------------


def brute(x: Tensor, own: Tensor, bank: Tensor) -> Tensor:
    rows = []
    for row, theirs in zip(x, own, strict=True):
        others = [other for other in bank if not torch.equal(theirs, other)]
        rows.append(min(float((row - other).norm()) for other in others))
    return double(rows)


def own_not_excluded(
    x: Tensor,
    own: Tensor,  # noqa: ARG001
    bank: Tensor,
    names: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    return torch.cdist(x, bank).min(1).values


@pytest.mark.parametrize("rows", [7, 300])
def test_nearest_is_that_of_a_search_without_the_rows_own(rows: int) -> None:
    """In one chunk and in two; replayed positions a little off their own, of which some are in the
    bank twice.
    """
    bank = normals(rows + 20, 3)
    bank[-1] = bank[0]
    own = bank[:rows]
    x = own + 1e-3 * normals(rows, 3, seed=1)
    torch.testing.assert_close(
        nearest(x, own, bank, bank), brute(x, own, bank), rtol=1e-10, atol=1e-10
    )
    assert float(own_not_excluded(x, own, bank).max()) < 0.01


def test_nearest_has_the_gradient_of_a_distance() -> None:
    """(x - b) / |x - b| for the nearest b alone."""
    bank = normals(30, 2)
    x = (bank[:8] + 0.01).requires_grad_()
    (gradient,) = torch.autograd.grad(nearest(x, bank[:8], bank, bank).sum(), x)
    for row, own, slope in zip(x.detach(), bank[:8], gradient, strict=True):
        others = torch.stack([other for other in bank if not torch.equal(own, other)])
        difference = row - others[(row - others).norm(dim=1).argmin()]
        torch.testing.assert_close(slope, difference / difference.norm())


def entropy_of(x: Tensor) -> float:
    energy = Scaled(1.0, torch.zeros(x.shape[1], dtype=torch.float64))
    batch = sides(negatives=x, past=Replayed(x, torch.zeros(1, *x.shape).double(), x))
    return float(parts_of(energy, batch, step=0.0)["entropy"].detach())


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_entropies_differ_as_those_of_scaled_samples(dimension: int) -> None:
    """H(a X) - H(X) = d log a, of the estimate too; and a shift changes nothing."""
    x = normals(200, dimension)
    assert entropy_of(3 * x) - entropy_of(x) == pytest.approx(dimension * math.log(3), abs=1e-10)
    assert entropy_of(x + 2) == pytest.approx(entropy_of(x), abs=1e-10)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_with_its_constant_the_estimate_is_the_entropy(dimension: int) -> None:
    """Kozachenko & Leonenko: H = d mean log r + log(N - 1) + log V_d + gamma, V_d the ball's
    volume.

    Of N(0, I) with N = 4000: the standard error is about sqrt((pi^2 / 6 + d / 2) / N) <= 0.03, four
    of which are allowed.
    """
    count = 4000
    ball = dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)
    estimate = entropy_of(normals(count, dimension)) + math.log(count - 1) + ball + EULER
    error = math.sqrt((math.pi**2 / 6 + dimension / 2) / count)
    assert abs(estimate - dimension / 2 * math.log(2 * math.pi * math.e)) < 4 * error


# -- the term's gradient in expectation ------------------------------------------------------------

D, K, START, NEGATIVES = 4, 1.0, 2.0, 2000


def kl_slopes(dimension: int = D) -> dict[str, float]:
    """d/dk for x_0 ~ N(0, s^2 I), whose one transition has the variance v = (1 - eps k)^2 s^2 + 2
    eps by component:

    E_stop: k d v' / 2; H: d v' / (2 v), with v' = -2 eps (1 - eps k) s^2.
    """
    v = (1 - STEP * K) ** 2 * START**2 + 2 * STEP
    slope = -2 * STEP * (1 - STEP * K) * START**2
    return {"sampler_energy": K * dimension * slope / 2, "entropy": dimension * slope / (2 * v)}


def estimated_slopes(rounds: int = 10, dimension: int = D, strangers: int = 0) -> dict[str, Tensor]:
    """Of k, `[rounds]` by part, over batches of `NEGATIVES`; a bank with `strangers` in it has no
    graph.
    """
    found: dict[str, list[Tensor]] = {"sampler_energy": [], "entropy": []}
    for seed in range(rounds):
        energy = Scaled(K, torch.zeros(dimension, dtype=torch.float64))
        starts, noise = (
            START * normals(NEGATIVES, dimension, seed=seed),
            normals(1, NEGATIVES, dimension, seed=1000 + seed),
        )
        negatives = replayed(energy, starts, noise, STEP).detach()
        bank = torch.cat([negatives, 1e6 + normals(strangers, dimension)])
        batch = sides(negatives=negatives, past=Replayed(starts, noise, bank))
        parts = parts_of(energy, batch)
        for name, values in found.items():
            values.append(gradient_of(parts[name], energy)[:1])
    return {name: torch.stack(values) for name, values in found.items()}


def test_the_gradient_is_that_of_the_kl_divergence() -> None:
    """Through E_stop without bias; through the entropy within 4 %, the bias of neighbours at a
    finite distance.
    """
    truth, found = kl_slopes(), estimated_slopes()
    assert largest_z(found["sampler_energy"], double([truth["sampler_energy"]])) < z_limit(1)
    assert float(found["entropy"].mean()) == pytest.approx(truth["entropy"], rel=0.04)
    total = float((found["sampler_energy"] - found["entropy"]).mean())
    assert total == pytest.approx(truth["sampler_energy"] - truth["entropy"], rel=0.03)
    flipped = float((found["sampler_energy"] + found["entropy"]).mean())
    assert flipped != pytest.approx(truth["sampler_energy"] - truth["entropy"], rel=0.5)


def test_the_entropys_gradient_needs_both_ends_of_a_distance() -> None:
    """In 64 dimensions within 4 %; through one end alone, as where the negatives are a chunk of the
    bank, far too small.
    """
    truth = kl_slopes(64)["entropy"]
    whole, chunk = (
        float(estimated_slopes(2, 64, strangers)["entropy"].mean()) for strangers in (0, 1)
    )
    assert whole == pytest.approx(truth, rel=0.04)
    assert 0.4 < chunk / truth < 0.8


def test_the_terms_enter_the_loss_with_their_weights() -> None:
    """loss = E(x+) - E(x-) + kl (E_stop(x) - entropy H), and its gradient."""
    energy = TrainableGaussian(double([0.5, -1.0]), double([[1.0, 0.6], [0.6, 0.8]]))
    batch = past(normals(20, 2), normals(1, 20, 2, seed=1), energy)
    batch = batch._replace(positives=PositiveSide(normals(9, 2, seed=2)))
    objective = ImprovedContrastiveDivergence(0.0, 0.3, 0.7, partial(ula.replay, step_size=STEP))
    parts = parts_of(energy, batch)
    by_hand = (
        parts["positive"]
        - parts["negative"]
        + 0.3 * (parts["sampler_energy"] - 0.7 * parts["entropy"])
    )
    loss = loss_of(objective, energy, batch)
    torch.testing.assert_close(loss, by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradient_of(loss, energy), gradient_of(by_hand, energy), rtol=1e-12, atol=1e-12
    )


# -- slips -----------------------------------------------------------------------------------------


def test_own_rows_that_are_not_excluded_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """At their own positions distances are 0, and the entropy is minus infinity."""
    monkeypatch.setattr(improved, "nearest", own_not_excluded)
    assert not math.isfinite(entropy_of(normals(50, 2)))


def test_a_graph_through_e_stop_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def running(energy: Energy, stopped: dict[str, Tensor], x: Tensor) -> Tensor:  # noqa: ARG001
        return energy(x)

    monkeypatch.setattr(torch.func, "functional_call", running)
    with pytest.raises(AssertionError, match="not"):
        test_what_is_stopped_has_no_gradient()


@pytest.mark.parametrize("name", ["negative", "sampler_energy", "entropy"])
def test_a_flipped_part_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImprovedContrastiveDivergence.parts

    def flipped(
        self: ImprovedContrastiveDivergence, energy: Energy, batch: Batch
    ) -> Iterator[Part]:
        for part in plain(self, energy, batch):
            yield part._replace(weight=-part.weight) if part.name == name else part

    monkeypatch.setattr(ImprovedContrastiveDivergence, "parts", flipped)
    with pytest.raises(AssertionError, match="close"):
        test_the_terms_enter_the_loss_with_their_weights()
