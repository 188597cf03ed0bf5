"""`TensorPositives`: every row once an epoch, in seeded orders, resumable bitwise."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from pipeline.assembly.data import open_data
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.data.base import TensorPositives

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
    assert numbers(one.next(130).position) == [
        row for size in (60, 1, 49, 20) for row in numbers(other.next(size).position)
    ]


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
        assert torch.equal(
            noisy[:, 0].round().clamp(0, ROWS - 1), clean[:, 0]
        )  # 5 deviations to the next row's middle
        noises.append(noisy - clean)
    assert not torch.isclose(noises[0], noises[1], atol=1e-5).all(1).any()


@pytest.mark.parametrize("position", [0, 1, 23, 49, 50, 51, 137])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_resume_is_bitwise(position: int, noise: float) -> None:
    """A stream set to a saved state, by way of bytes, goes on as the first did, whatever it had
    done before.
    """
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


def shares(ranks: int, noise: float = 0.3) -> list[TensorPositives]:
    rows = torch.arange(3.0 * ROWS).view(ROWS, 3)
    return [TensorPositives(rows, 5, noise, rows[:, :1], rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_shares_end_to_end_are_what_one_rank_gets(ranks: int, noise: float) -> None:
    """Bitwise: positions with their noise, contexts and numbers, within epochs and across them,
    batches of one row too.
    """
    (alone,), together = shares(1, noise), shares(ranks, noise)
    for count in (1, 3, 5, 20, 1, 60):
        whole, pieces = alone.next(count * ranks), [stream.next(count) for stream in together]
        for field in ("position", "context", "number"):
            assert torch.equal(
                torch.cat([getattr(piece, field) for piece in pieces]), getattr(whole, field)
            )


def test_state_of_one_rank_serves_all() -> None:
    """Every rank has the same state, which any rank goes on from, and any other number of ranks."""
    three, (alone,), two = shares(3), shares(1), shares(2)
    for stream in three:
        stream.next(7)
        stream.next(14)
    states = [stream.state_dict() for stream in three]
    assert len({(state["epoch"], state["cursor"]) for state in states}) == 1
    assert all(torch.equal(state["noise"], states[0]["noise"]) for state in states)
    saved = pickle.dumps(states[1])
    for stream in (alone, *two, *(fresh := shares(3))):
        stream.load_state_dict(pickle.loads(saved))
    expected = alone.next(24).position
    for ranks in (two, three, fresh):
        assert torch.equal(
            torch.cat([stream.next(24 // len(ranks)).position for stream in ranks]), expected
        )


def test_data_sets_deal_shares() -> None:
    """What `DataSet.positives` opens, a set of no rows included."""
    data = open_data(compose(["data=digits", "data.noise=0.1"]))
    whole, pieces = (
        data.positives(2).next(10),
        [data.positives(2, rank, 2).next(5) for rank in range(2)],
    )
    assert torch.equal(torch.cat([piece.position for piece in pieces]), whole.position)
    nothing = open_data(compose(["experiment=maxent_moments"]))
    assert len(nothing.positives(0, 1, 2).next(5).position) == 0


@pytest.mark.parametrize(("batch", "accepted"), [(1500, True), (1501, False)])
def test_batch_larger_than_the_data_is_refused(batch: int, accepted: bool) -> None:
    """`open_data` names trainer.batch_size when the 1,500 training rows do not fill one batch."""
    config = compose(["data=digits", f"trainer.batch_size={batch}"])
    if accepted:
        assert open_data(config).rows == batch
    else:
        with pytest.raises(ConfigError, match=r"trainer\.batch_size=1501: .*1500"):
            open_data(config)
