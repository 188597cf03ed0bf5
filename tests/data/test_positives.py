"""`TensorPositives`: every row once an epoch, in seeded orders, resumable bitwise."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from pipeline.build import open_data
from pipeline.compose import compose
from pipeline.data.base import TensorPositives
from pipeline.errors import ConfigError

ROWS = 50


def stream(seed: int = 0, noise: float = 0.0) -> TensorPositives:
    """Rows [k, -k], so that a drawn row says which it is."""
    numbers = torch.arange(float(ROWS))
    return TensorPositives(torch.stack([numbers, -numbers], 1), seed, noise)


def numbers(rows: Tensor) -> list[int]:
    assert torch.equal(rows[:, 0], -rows[:, 1])
    return rows[:, 0].long().tolist()


@pytest.mark.parametrize("batch", [1, 7, 16, 50, 120])
def test_every_row_once_an_epoch(batch: int) -> None:
    """Also where a batch crosses the border of epochs, or holds several."""
    positives = stream()
    draws: list[int] = []
    while len(draws) < 4 * ROWS:
        drawn = numbers(positives.next(batch).position)
        assert len(drawn) == batch
        draws += drawn
    for epoch in range(4):
        assert sorted(draws[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))


def test_batch_size_does_not_change_the_order() -> None:
    """The stream of rows is one and the same however it is cut."""
    one, other = stream(), stream()
    assert numbers(one.next(130).position) == [row for size in (60, 1, 49, 20) for row in numbers(other.next(size).position)]


def test_orders_differ_between_epochs_and_seeds() -> None:
    """Each epoch of each seed has an order of its own; the same seed has the same."""
    orders = []
    for seed in range(4):
        positives, again = stream(seed), stream(seed)
        for _ in range(4):
            order = numbers(positives.next(ROWS).position)
            assert order == numbers(again.next(ROWS).position)
            orders.append(tuple(order))
    assert len(set(orders)) == 16
    assert tuple(range(ROWS)) not in orders


def test_noise_depends_on_the_seed_and_is_apart_from_the_order() -> None:
    """Noise leaves the order of rows as it is; another seed gives other noise."""
    noises = []
    for seed in (0, 1):
        clean, noisy = stream(seed).next(80).position, stream(seed, noise=0.1).next(80).position
        assert torch.equal(noisy[:, 0].round().clamp(0, ROWS - 1), clean[:, 0])  # 5 deviations to the next row's middle
        noises.append(noisy - clean)
    assert not torch.isclose(noises[0], noises[1], atol=1e-5).all(1).any()


@pytest.mark.parametrize("position", [0, 1, 23, 49, 50, 51, 137])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_resume_is_bitwise(position: int, noise: float) -> None:
    """A stream set to a saved state, by way of bytes, goes on as the first did, whatever it had done before."""
    first = stream(seed=3, noise=noise)
    if position:
        first.next(position)
    saved = pickle.dumps(first.state_dict())
    expected = [first.next(size).position for size in (5, 40, 60)]
    fresh, used = stream(seed=3, noise=noise), stream(seed=3, noise=noise)
    used.next(171)
    for resumed in (fresh, used):
        resumed.load_state_dict(pickle.loads(saved))
        for wanted in expected:
            assert torch.equal(resumed.next(len(wanted)).position, wanted)


def test_state_is_a_snapshot() -> None:
    """A state taken is not changed by later draws."""
    positives = stream(noise=0.3)
    positives.next(10)
    state = positives.state_dict()
    before = pickle.dumps(state)
    positives.next(75)
    assert pickle.dumps(state) == before


@pytest.mark.parametrize(("batch", "accepted"), [(1500, True), (1501, False)])
def test_batch_larger_than_the_data_is_refused(batch: int, accepted: bool) -> None:
    """`open_data` names trainer.batch_size when the 1,500 training rows do not fill one batch."""
    config = compose(["data=digits", f"trainer.batch_size={batch}"])
    if accepted:
        assert open_data(config).rows == batch
    else:
        with pytest.raises(ConfigError, match=r"trainer\.batch_size=1501: .*1500"):
            open_data(config)
