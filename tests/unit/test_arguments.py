"""What people hand to a trained energy: converted where the meaning is plain, else refused by name
with the value and what would be right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.common.errors import ArgumentError, ConfigError
from pipeline.energies.arguments import guarded
from pipeline.energies.base import Energy
from pipeline.energies.composition import Conjunction
from pipeline.energies.conditional_mlp import ConditionalMLP
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.frozen import frozen
from pipeline.energies.label_mlp import LabelMLP
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.rbm import BernoulliRBM, PottsRBM
from pipeline.energies.target import Target
from pipeline.storage import probe

ROWS = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def perceptron(box: tuple[float, float] | None = None) -> Energy:
    return guarded(MLPEnergy((4,), (8,), spectral_norm=False, base_scale=1.0, box=box))


def rbm() -> Energy:
    return guarded(BernoulliRBM((4,), 3, 0.5))


def classifier() -> LabelMLP:
    return guarded(LabelMLP((4,), (), (8,), 3, class_conditional=True, base_scale=1.0))


def sequence() -> Energy:
    return guarded(PairwiseEnergy((3,), (3, 2), 2, "chain", ()))


SAME: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "uint8": lambda x: x.to(torch.uint8),
    "bool": lambda x: x.bool(),
    "numpy float64": lambda x: x.double().numpy(),
    "numpy uint8": lambda x: x.to(torch.uint8).numpy(),
    "numpy bool": lambda x: x.bool().numpy(),
    "numpy transposed": lambda x: np.ascontiguousarray(x.numpy().T).T,
    "numpy reversed": lambda x: x.flip(0).numpy()[::-1],
    "numpy big-endian": lambda x: x.numpy().astype(">f8"),
    "numpy longdouble": lambda x: x.numpy().astype(np.longdouble),
    "lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("given", SAME.values(), ids=SAME)
@pytest.mark.parametrize("make", [perceptron, rbm])
def test_numbers_of_any_type_mean_the_same(
    make: Callable[[], Energy], given: Callable[[Tensor], Any]
) -> None:
    energy = make()
    expected = energy(ROWS)
    torch.testing.assert_close(energy(given(ROWS)), expected, rtol=0, atol=0)
    other = ROWS.flip(1)
    torch.testing.assert_close(
        pipeline.log_ratio(energy, given(ROWS), given(other)), energy(other) - expected
    )


def test_contexts_of_any_type_mean_the_same() -> None:
    energy, context = sequence(), torch.tensor([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])
    expected = pipeline.argmax_y(energy, context)
    for given in (context.double(), context.to(torch.uint8), context.bool().numpy()):
        assert torch.equal(pipeline.argmax_y(energy, given).position, expected.position)
    model, labels = classifier(), torch.tensor([0.0, 2.0, 1.0])
    values = model.given(labels)(ROWS)
    assert torch.equal(model.given(labels.long().numpy())(ROWS.double()), values)
    assert torch.equal(model.of_class(labels.to(torch.uint8))(ROWS.bool()), values)
    assert torch.equal(model.label_logits(ROWS.numpy()), model.label_logits(ROWS))


BAD: list[tuple[Callable[[], Energy], Any, str]] = [
    (perceptron, ROWS[0], r"x=shape \[4\]: should be \[N, 4\]; .* a batch, x\[None\]"),
    (perceptron, ROWS[:, :3], r"x=shape \[3, 3\]: should be \[N, 4\]"),
    (perceptron, ROWS.view(3, 2, 2), r"x=shape \[3, 2, 2\]: should be \[N, 4\]"),
    (perceptron, torch.tensor(1.0), r"x=shape \[\]: should be \[N, 4\]"),
    (perceptron, ROWS / 0, r"x=nan at \[0, 0\]: should be finite"),
    (perceptron, ROWS.double() * 1e300, r"x=inf at \[0, 1\]: should be finite"),
    (perceptron, ROWS.to(torch.complex64), r"x=torch.complex64: should be real numbers"),
    (perceptron, "rows", r"x=str: should be a tensor or an array of numbers"),
    (perceptron, None, r"x=NoneType: should be a tensor or an array of numbers"),
    (perceptron, [[1.0], [1.0, 2.0]], r"x=list: should be a tensor or an array of numbers"),
    (perceptron, np.array([["a"] * 4]), r"x=ndarray: should be a tensor or an array of numbers"),
    (perceptron, ROWS.to_sparse(), r"x=Tensor: is sparse, .* should be a plain tensor"),
    (perceptron, ROWS.to("meta"), r"x=Tensor: .* without values"),
    (perceptron, np.ma.masked_equal(ROWS.numpy(), 0), r"x=MaskedArray: .* masked .* fill them in"),
    (lambda: perceptron((0.0, 1.0)), ROWS + 0.5, r"x=1.5 at \[0, 1\]: .* the box \[0, 1\]"),
    (rbm, ROWS * 0.5, r"x=0.5 at \[0, 1\]: should be one of 0, ..., 1"),
    (rbm, -ROWS, r"x=-1 at \[0, 1\]: should be one of"),
    (lambda: guarded(PottsRBM((4,), 3, 2, 0.1)), 3 * ROWS, r"x=3 at \[0, 1\]: .* 0, ..., 2"),
    (
        lambda: guarded(ConditionalMLP((4,), (1,), (8,), 1.0)),
        ROWS,
        r"context=\(missing\): .* use energy.given\(context\)\(x\)",
    ),
    (lambda: classifier().given(torch.tensor([0.0, 1.0])), ROWS, r"x=3 positions: .* 2 contexts"),
]


@pytest.mark.parametrize(("make", "x", "said"), BAD)
def test_what_is_no_position_is_refused_by_name(
    make: Callable[[], Energy], x: Any, said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        make()(x)
    with pytest.raises(ArgumentError, match=said):
        pipeline.log_ratio(make(), x, x)


@pytest.mark.parametrize(
    ("make", "context", "said"),
    [
        (sequence, torch.zeros(3, 2), r"context=shape \[3, 2\]: .* a batch, context\[None\]"),
        (sequence, torch.zeros(5, 2, 2), r"context=shape \[5, 2, 2\]: should be \[N, 3, 2\]"),
        (sequence, torch.zeros(0, 3, 2), r"context=no rows: "),
        (sequence, torch.full((1, 3, 2), torch.nan), r"context=nan at \[0, 0, 0\]: .* finite"),
        (sequence, "x", r"context=str: should be a tensor"),
        (classifier, [0.5], r"context=0.5 at \[0\]: should be a label of 0, ..., 2"),
        (classifier, [0, 3], r"context=3 at \[1\]: should be a label"),
        (classifier, [-1], r"context=-1 at \[0\]: should be a label"),
        (classifier, 1, r"context=shape \[\]: should be \[N\]"),
        (classifier, ["cat"], r"context=list: should be a tensor or an array of numbers"),
        (rbm, torch.zeros(1, 2), r"energy=BernoulliRBM: conditions on no context"),
        (
            lambda: LabelMLP((4,), (), (8,), 3, class_conditional=False, base_scale=1.0),
            [1.0],
            r"energy=LabelMLP: conditions on no context",
        ),
        (lambda: nn.Linear(4, 1), torch.zeros(1, 2), r"energy=Linear: .* pipeline.load"),
    ],
)
def test_what_is_no_context_is_refused_by_name(
    make: Callable[[], Any], context: Any, said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        pipeline.argmax_y(make(), context)


def test_pairs_of_positions_are_as_many() -> None:
    with pytest.raises(ArgumentError, match=r"other=2 rows: x has 3; give as many"):
        pipeline.log_ratio(rbm(), ROWS, ROWS[:2])
    with pytest.raises(
        ArgumentError, match=r"energy=builtin_function_or_method: should be an energy"
    ):
        pipeline.log_ratio(len, ROWS, ROWS)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"other=nan at \[2, 0\]"):
        pipeline.log_ratio(perceptron(), ROWS, ROWS.index_fill(0, torch.tensor([2]), torch.nan))
    energy = rbm()
    against_one = pipeline.log_ratio(energy, ROWS, ROWS[:1])
    assert torch.equal(against_one, energy(ROWS[:1]) - energy(ROWS))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": None}, "url=None: should be a run's output"),
        ({"url": ""}, "url='': should be a run's output"),
        ({"url": 3}, "url=3: should be a run's output"),
        ({"url": "x", "energy": 3}, "energy=int: should be the torch.nn.Module"),
        ({"url": "x", "features": 3}, "features=int: should be the list of functions"),
        ({"url": "x", "features": ["a"]}, "features=list: should be the list of functions"),
    ],
)
def test_load_says_which_argument_is_wrong(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        pipeline.load(**arguments)


def test_a_loaded_energy_is_guarded() -> None:
    """From a path as from text."""
    energy = pipeline.load(Path(__file__).parent / "checkpoints" / "rbm")
    with pytest.raises(ArgumentError, match=r"x=0.5 at .*: should be one of 0, ..., 1"):
        energy(np.full((2, *energy.shape), 0.5))


def test_an_energy_is_called_with_x_alone() -> None:
    energy = rbm()
    assert torch.equal(energy(x=ROWS.numpy()), energy(ROWS))
    with pytest.raises(ArgumentError, match=r"arguments=nothing: give x alone"):
        energy()
    with pytest.raises(ArgumentError, match=r"arguments=Tensor, beta: give x alone"):
        energy(ROWS, beta=1.0)
    with pytest.raises(ArgumentError, match=r"arguments=y: give x alone"):
        energy(y=ROWS)


def test_load_asks_a_server_that_is_away_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped address is told as quickly here as at the other doors."""
    monkeypatch.setattr(probe, "FIRST_LIMIT", 0.0)
    with pytest.raises(ConfigError, match=r"url=http://127\.0\.0\.1:9/run: could not be read"):
        pipeline.load("http://127.0.0.1:9/run")
    with pytest.raises(ConfigError, match=r"url=zip://a::/nowhere: could not be reached"):
        pipeline.load("zip://a::/nowhere")


def test_derivatives_go_through() -> None:
    energy, x = perceptron(), ROWS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    expected = energy.energy_and_gradient(ROWS)[1]
    torch.testing.assert_close(gradient, expected)
    by_row = torch.func.vmap(torch.func.grad(lambda row: energy(row[None])[0]))(ROWS)
    torch.testing.assert_close(by_row, expected)


def test_kernels_look_at_an_unguarded_replica() -> None:
    """A chain may stand outside of a box for a moment, where its energy is infinite."""
    energy = perceptron((0.0, 1.0))
    assert Target(energy).energy(ROWS + 0.5).tolist() == [torch.inf] * 3
    assert not frozen(energy).guarded
    assert energy.guarded
    nested = Conjunction([energy, energy])
    with pytest.raises(ArgumentError, match="the box"):
        nested(ROWS + 0.5)


def test_latent_columns_may_hold_means() -> None:
    energy = guarded(DeepBoltzmannMachine((4,), (3, 2), 0.1, 2))
    positions = energy.with_latents(ROWS)
    assert energy(positions).shape == (3,)
    positions[0, 0] = 0.5
    with pytest.raises(ArgumentError, match=r"x=0.5 at \[0, 0\]: should be one of 0, ..., 1"):
        energy(positions)
