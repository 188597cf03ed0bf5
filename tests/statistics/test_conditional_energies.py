"""Energies given a context: by hand against autograd and definitions, row by row, and as a law for
chains and objectives.

Chains: means over time of 200 chains a context, which are independent of one another, against
quadrature; |z| < 6 for the means of 200, whose tail is Student's, a false alarm in 2e-8 of 16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError
from pipeline.energies import given
from pipeline.energies.base import Energy
from pipeline.energies.conditional_mlp import ConditionalMLP
from pipeline.energies.given import ConditionalEnergy, Given
from pipeline.energies.label_mlp import LabelMLP
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.target import Target
from pipeline.kernels import mala
from pipeline.objectives.base import Batch, Objective
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.likelihood import MaximumLikelihood
from pipeline.objectives.noise_contrastive import ConditionalNoiseContrastive
from pipeline.objectives.probes import rademacher
from pipeline.objectives.pseudo import PseudoLikelihood, RatioMatching
from pipeline.objectives.score_matching import (
    DenoisingScoreMatching,
    FiniteDifferenceDenoising,
    FiniteDifferenceScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from tests.statistics.laws import scramble, seeded
from tests.statistics.trainable import sides

ROWS, COPIES, CLASSES = 5, 3, 4
Z_LIMIT = 6.0


class Case(NamedTuple):
    make: Callable[[], Energy]
    context: Callable[[int], Tensor]

    def energy(self) -> ConditionalEnergy:
        energy = scramble(self.make(), 0.5)
        assert isinstance(energy, ConditionalEnergy)
        return energy


def real(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape, generator=seeded(3), dtype=torch.float64)


def labels(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) * 3) % CLASSES


CONTINUOUS = {
    "conditional_mlp": Case(lambda: ConditionalMLP((2, 2), (3, 2), (7, 6, 5), 1.3), real(3, 2)),
    "conditional_mlp in a box": Case(
        lambda: ConditionalMLP((3,), (2,), (6,), 1.0, (-1.0, 2.0)), real(2)
    ),
    "a number given a number": Case(lambda: ConditionalMLP((1,), (), (8, 8), 1.5), real()),
    "label_mlp": Case(lambda: LabelMLP((2, 2), (), (7, 6), CLASSES, True, 1.3), labels),
    "label_mlp in a box": Case(
        lambda: LabelMLP((3,), (), (6,), CLASSES, True, 1.0, (-1.0, 2.0)), labels
    ),
}
DISCRETE = {
    "chain": Case(lambda: PairwiseEnergy((4,), (4, 2), 3, "chain", ()), real(4, 2)),
    "binary chain": Case(lambda: PairwiseEnergy((5,), (3,), 2, "chain", (6,)), real(3)),
    "all pairs": Case(lambda: PairwiseEnergy((2, 2), (3,), 3, "all", (6,)), real(3)),
    "binary pairs": Case(lambda: PairwiseEnergy((5,), (3,), 2, "all", ()), real(3)),
}
CASES = CONTINUOUS | DISCRETE


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=CONTINUOUS)
def continuous(request: pytest.FixtureRequest) -> Case:
    return CONTINUOUS[request.param]


def positions(energy: Energy, count: int, seed: int = 1) -> Tensor:
    return energy.sample_base(count, seeded(seed)).double()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=1e-10)


# -- gradients and definitions ---------------------------------------------------------------------


@pytest.mark.parametrize("tempered", [False, True])
def test_gradient_by_hand_is_autograds(continuous: Case, tempered: bool) -> None:
    """Under contexts, several rows to each; E and E_beta."""
    energy = continuous.energy()
    bound = energy.given(continuous.context(ROWS))
    x = positions(energy, COPIES * ROWS)
    beta = torch.rand(len(x), generator=seeded(2), dtype=torch.float64) if tempered else None
    by_hand, by_autograd = (
        bound.energy_and_gradient(x, beta),
        Energy.energy_and_gradient(bound, x, beta),
    )
    assert by_hand[1].shape == x.shape
    for one, other in zip(by_hand, by_autograd, strict=True):
        assert not one.requires_grad
        close(one, other)


@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("box", [None, (-1.0, 2.0)])
def test_gradient_without_the_label_is_autograds(
    tempered: bool, box: tuple[float, float] | None
) -> None:
    energy = scramble(LabelMLP((2, 2), (), (7, 6), CLASSES, False, 1.3, box))
    x = positions(energy, 9)
    beta = torch.rand(len(x), generator=seeded(2), dtype=torch.float64) if tempered else None
    for one, other in zip(
        energy.energy_and_gradient(x, beta),
        Energy.energy_and_gradient(energy, x, beta),
        strict=True,
    ):
        close(one, other)


def test_the_conditional_perceptron_is_one_of_position_and_context() -> None:
    """E(x | c) is `MLPEnergy` of [x, c], but that its base term leaves c alone."""
    energy = scramble(ConditionalMLP((2,), (3,), (7, 6), 1.3))
    assert isinstance(energy, ConditionalMLP)
    whole = MLPEnergy((5,), (7, 6), 1.3, False, box=(-9.0, 9.0)).double()
    with torch.no_grad():
        whole.layers[0].weight.copy_(
            torch.cat([energy.layers[0].weight, energy.from_context.weight], 1)
        )
        whole.layers[0].bias.copy_(energy.from_context.bias)
    for ours, theirs in zip(list(energy.layers)[1:], list(whole.layers)[1:], strict=True):
        theirs.load_state_dict(ours.state_dict())
    x, context = positions(energy, ROWS), real(3)(ROWS)
    close(
        energy.given(context)(x),
        whole(torch.cat([x, context], 1)) + x.square().sum(1) / (2 * 1.3**2),
    )


def test_the_joint_energy_is_the_networks_output() -> None:
    """E(x, y) = -f(x)[y] + |x|^2 / (2 s^2), f as torch's own modules have it."""
    energy = scramble(LabelMLP((2, 2), (), (7, 6), CLASSES, True, 1.3))
    assert isinstance(energy, LabelMLP)
    first, second, last = energy.layers
    f = nn.Sequential(nn.Flatten(), first, nn.SiLU(), second, nn.SiLU(), last)
    x, y = positions(energy, ROWS), labels(ROWS)
    expected = -f(x)[torch.arange(ROWS), y.long()] + x.flatten(1).square().sum(1) / (2 * 1.3**2)
    close(energy.of_class(y)(x), expected)
    close(energy.label_logits(x), f(x))


def test_joint_law_is_the_positions_and_the_labels_given_them() -> None:
    """log p(x, y) = log p(x) + log p(y | x), all up to the one log Z, for every label: and so sum_y
    p(x, y) = p(x).
    """
    energy = scramble(LabelMLP((3,), (), (7,), CLASSES, False, 1.3))
    assert isinstance(energy, LabelMLP)
    x = positions(energy, ROWS)
    joint = torch.stack(
        [-energy.of_class(torch.full((ROWS,), float(y)).double())(x) for y in range(CLASSES)], 1
    )
    close(joint, -energy(x)[:, None] + energy.label_logits(x).log_softmax(1))
    close(joint.logsumexp(1), -energy(x))


def test_labels_bind_where_they_are_asked_to() -> None:
    conditional, joint = (LabelMLP((3,), (), (4,), CLASSES, flag, 1.0) for flag in (True, False))
    assert joint.given(labels(2)) is joint
    assert conditional.given(None) is conditional
    assert conditional.given(labels(2)).contexts == 2
    with pytest.raises(ArgumentError, match="one number a row"):
        LabelMLP((3,), (2,), (4,), CLASSES, True, 1.0)


def test_energies_start_near_their_base() -> None:
    torch.manual_seed(0)
    for energy, context in (
        (ConditionalMLP((3,), (2,), (64,), 1.0), real(2)),
        (LabelMLP((3,), (), (64,), 4, True, 1.0), labels),
    ):
        x = energy.sample_base(200, seeded(0))
        gap = energy.given(context(200).float())(x) - energy.base(x)
        assert float(gap.detach().std()) < 0.1 < float(energy.base(x).std())


# -- rows and contexts -----------------------------------------------------------------------------


def agrees_row_by_row(case: Case) -> bool:
    """Whether row i of k N positions has context i mod N, by energies and gradients of single rows
    under single contexts.
    """
    energy, context = case.energy(), case.context(ROWS)
    x = positions(energy, COPIES * ROWS)
    found = [energy.given(context).forward(x), *energy.given(context).energy_and_gradient(x)]
    single = [energy.given(context[i % ROWS][None]) for i in range(len(x))]
    rows = [
        (bound(row[None]), *bound.energy_and_gradient(row[None]))
        for bound, row in zip(single, x, strict=True)
    ]
    expected = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    return all(
        torch.allclose(one, other, rtol=0, atol=1e-10)
        for one, other in zip(found, expected, strict=True)
    )


def test_every_row_has_its_own_context(case: Case) -> None:
    assert agrees_row_by_row(case)


def test_rows_in_another_order_are_caught(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts each repeated in place, in place of all of them one after the other."""
    monkeypatch.setattr(given, "repeated", lambda code, copies: code.repeat_interleave(copies, 0))
    assert not agrees_row_by_row(case)


def test_contexts_matter(case: Case) -> None:
    energy, context = case.energy(), case.context(ROWS)
    x = positions(energy, 1).expand(ROWS, *energy.shape)
    values = energy.given(context)(x)
    assert len(values.unique()) == len(context.unique(dim=0))


def test_parameters_learn_through_the_code(case: Case) -> None:
    """The gradient in every parameter is that of rows bound one by one; none is left out."""
    energy, context = case.energy(), case.context(ROWS)
    x = positions(energy, ROWS)
    (energy.given(context)(x) * torch.arange(1, ROWS + 1)).sum().backward()
    found = {name: copy.deepcopy(parameter.grad) for name, parameter in energy.named_parameters()}
    energy.zero_grad()
    for i in range(ROWS):
        ((i + 1) * energy.given(context[i : i + 1])(x[i : i + 1])).sum().backward()
    for name, parameter in energy.named_parameters():
        assert found[name] is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-10)


def test_a_bound_energy_is_copied_and_converted_with_its_contexts(case: Case) -> None:
    """Though its code has a graph; to float64 the contexts are encoded anew."""
    energy = case.energy().float()
    bound = energy.given(case.context(ROWS).float())
    x = positions(energy, ROWS)
    precise = copy.deepcopy(bound).double()
    assert isinstance(precise, Given)
    close(precise(x), copy.deepcopy(energy).double().given(case.context(ROWS).float().double())(x))
    assert precise(x).dtype == torch.float64
    assert bound(x.float()).dtype == torch.float32


def test_a_target_binds_and_rebinds(case: Case) -> None:
    """Energies and forces are the bound energy's, in low precision too; a target bound anew forgets
    the contexts before.
    """
    energy, context = case.energy().float(), case.context(ROWS).float()
    x = positions(energy, ROWS).float()
    target = Target(copy.deepcopy(energy), context=context)
    for some in (context, context.roll(1, 0)):
        target.bind(some)
        torch.testing.assert_close(target.energy(x), energy.given(some)(x).detach())
        torch.testing.assert_close(target.gradient(x), energy.given(some).gradient(x))
    if energy.levels is None:
        rough = Target(
            copy.deepcopy(energy), gradient_dtype=torch.bfloat16, context=context
        ).gradient(x)
        torch.testing.assert_close(rough, energy.given(context).gradient(x), rtol=0.1, atol=0.1)


def test_a_bound_energy_under_a_target_has_no_graph(case: Case) -> None:
    """Though it was bound before its parameters were frozen: a chain would go on building one,
    transition by transition.
    """
    energy = case.energy()
    bound = energy.given(case.context(ROWS))
    x = positions(energy, ROWS)
    assert bound(x).requires_grad
    target = Target(bound)
    assert not target.energy(x).requires_grad
    assert not target.energy_and_gradient(x)[1].requires_grad
    assert bound.requires_grad_()(x).requires_grad


# -- as a law --------------------------------------------------------------------------------------


def quadrature(bound: Energy) -> tuple[Tensor, Tensor]:
    """Points [G] and their probabilities [contexts, G] under each context: the midpoint rule on +-
    9.
    """
    line = (torch.arange(2000, dtype=torch.float64) + 0.5) * 0.009 - 9
    values = bound(line.repeat_interleave(bound.contexts)[:, None]).view(len(line), bound.contexts)
    return line, torch.softmax(-values.detach().T, 1)


def worst_z(
    energy: ConditionalEnergy, context: Tensor, bound_to: Tensor, chains: int = 200
) -> float:
    """Of x and x^2 under each context, from chains that are `bound_to` others."""
    target = Target(copy.deepcopy(energy), context=bound_to.repeat(chains))
    generator = seeded(0)
    state = mala.kernel.init(energy.sample_base(len(context) * chains, generator).double(), target)
    moments = torch.zeros(2, len(state.position), dtype=torch.float64)
    for number in range(600):
        state, _ = mala.kernel.step(generator, state, target, step_size=0.5)
        if number >= 200:
            moments += torch.stack([state.position[:, 0], state.position[:, 0].square()]) / 400
    line, law = quadrature(energy.given(context))
    truth = torch.stack([law @ line, law @ line.square()])
    found = moments.view(2, chains, len(context))
    return float(((found.mean(1) - truth) / found.std(1) * chains**0.5).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conditional_mlp", "label_mlp"])
def test_mala_leaves_the_law_of_each_context(name: str) -> None:
    """Chains side by side have each the moments of its own context; with the contexts moved on by
    one they have not.
    """
    energy: Any = {
        "conditional_mlp": lambda: ConditionalMLP((1,), (), (8, 8), 1.5),
        "label_mlp": lambda: LabelMLP((1,), (), (8, 8), CLASSES, True, 1.5),
    }[name]()
    scramble(energy, 0.7)
    context = (
        torch.tensor([-2.0, -0.5, 0.5, 2.0]).double()
        if name == "conditional_mlp"
        else torch.arange(4.0).double()
    )
    assert worst_z(energy, context, context) < Z_LIMIT
    assert worst_z(energy, context, context.roll(1)) > 2 * Z_LIMIT


OBJECTIVES: dict[str, tuple[Callable[[], Objective], str]] = {
    "score_matching": (lambda: ScoreMatching(rademacher, 2), "conditional_mlp"),
    "sliced": (lambda: SlicedScoreMatching(rademacher, 2), "conditional_mlp"),
    "finite_difference": (lambda: FiniteDifferenceScoreMatching(rademacher, 2, 0.1), "label_mlp"),
    "denoising": (lambda: DenoisingScoreMatching((0.3, 0.5), 3), "label_mlp"),
    "denoising_finite_difference": (
        lambda: FiniteDifferenceDenoising((0.3,), 3, rademacher, 0.1),
        "conditional_mlp",
    ),
    "conditional_nce": (lambda: ConditionalNoiseContrastive(3, 0.5), "conditional_mlp"),
    "binary conditional_nce": (lambda: ConditionalNoiseContrastive(3, 0.3), "binary chain"),
    "pseudo_likelihood": (lambda: PseudoLikelihood(None), "all pairs"),
    "pseudo_likelihood of some sites": (lambda: PseudoLikelihood(2), "chain"),
    "ratio_matching": (lambda: RatioMatching(None), "binary pairs"),
    "maximum_likelihood": (lambda: MaximumLikelihood(200), "chain"),
    "maximum_likelihood by quadrature": (lambda: MaximumLikelihood(200), "a number given a number"),
    "contrastive divergence": (lambda: ContrastiveDivergence(0.3), "label_mlp"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_is_the_sum_over_rows_each_under_its_context(name: str) -> None:
    """With several draws a row; negatives under contexts of their own. Contexts moved on by one
    give another loss.
    """
    make, law = OBJECTIVES[name]
    energy, context, objective = CASES[law].energy(), CASES[law].context(ROWS), make()
    x, negatives = positions(energy, ROWS), positions(energy, ROWS, seed=4)
    objective.initialise(energy.given(context), x, seeded(0))
    drawn = objective.draw(energy, x, seeded(1))

    def total(batch: Batch) -> Tensor:
        return (
            torch.stack([part.weight * part.total for part in objective.parts(energy, batch)])
            .sum()
            .detach()
        )

    def loss(context: Tensor) -> Tensor:
        return total(sides(x, drawn, negatives, context=context, negative_context=context.flip(0)))

    def row(i: int) -> Batch:
        some = slice(i, i + 1)
        here = tuple(values[:, some] for values in drawn)
        return sides(
            x[some],
            here,
            negatives[some],
            context=context[some],
            negative_context=context.flip(0)[some],
        )

    close(loss(context), torch.stack([total(row(i)) for i in range(ROWS)]).sum())
    assert abs(float(loss(context.roll(1, 0)) - loss(context))) > 1e-3
