"""Losses and gradients summed over chunks are the whole's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, Objective, Replayed
from pipeline.objectives.chunking import Chunking
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.probes import PROBES
from pipeline.objectives.score_matching import (
    DenoisingScoreMatching,
    FiniteDifferenceDenoising,
    FiniteDifferenceScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from tests.statistics.laws import seeded
from tests.statistics.test_score_matching import (
    SIGMAS,
    close,
    drawn,
    found,
    gaussian,
    mixture,
    normal,
)
from tests.statistics.trainable import sides

ROWS = 7
OBJECTIVES: list[Objective] = [
    ScoreMatching(PROBES["basis"], 0),
    ScoreMatching(PROBES["hutch_pp"], 7),
    SlicedScoreMatching(PROBES["orthogonal"], 3),
    FiniteDifferenceScoreMatching(PROBES["gaussian"], 5, 0.1),
    DenoisingScoreMatching(SIGMAS, 5),
    FiniteDifferenceDenoising(SIGMAS, 5, PROBES["sphere"], 0.1),
]
# rows, draws, both; that divide and that do not; one at a time; more than there are
CHUNKINGS = [(7, None), (3, None), (None, 2), (3, 2), (1, 1), (4, 3), (100, 100), (None, None)]


def summed(chunking: Chunking, objective: Objective, energy: Energy, batch: Batch) -> Tensor:
    return torch.stack(
        [share * found(objective, energy, chunk) for chunk, share in chunking.split(batch)]
    ).sum(0)


def check(chunking: Chunking, objective: Objective, energy: Energy) -> None:
    batch = drawn(objective, energy, normal(40, ROWS, *energy.shape), seeded(0))
    close(summed(chunking, objective, energy, batch), found(objective, energy, batch))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_chunks_of_rows_and_draws_add_up(objective: Objective) -> None:
    for sizes in CHUNKINGS:
        check(Chunking(*sizes), objective, mixture())
        check(Chunking(*sizes), objective, gaussian())  # rows of two axes


@pytest.mark.parametrize("sizes", CHUNKINGS)
def test_chunks_of_both_sides_add_up(sizes: tuple[int | None, int | None]) -> None:
    """Weights normalised over all negatives, whichever chunk these are in."""
    energy, objective = mixture(), ContrastiveDivergence(0.1)
    weights = torch.softmax(normal(41, 10), 0) * 10
    batch = sides(normal(42, ROWS, 3), negatives=normal(43, 10, 3), weights=weights)
    whole = found(objective, energy, batch)
    close(summed(Chunking(*sizes), objective, energy, batch), whole)


def test_chunks_are_no_larger_than_asked_for_and_hold_everything_once() -> None:
    x, draws, negatives = (
        torch.arange(7.0)[:, None],
        torch.arange(35.0).view(5, 7, 1),
        torch.arange(10.0)[:, None],
    )
    noise = torch.stack([negatives, negatives + 50])
    past = Replayed(negatives + 100, noise, negatives)
    batch = sides(x, (draws, draws[..., 0]), negatives, weights=negatives[:, 0], past=past)
    chunks = [chunk for chunk, _ in Chunking(3, 2).split(batch)]
    positive = [chunk.positives for chunk in chunks if chunk.positives is not None]
    negative = [chunk.negatives for chunk in chunks if chunk.negatives is not None]
    assert len(positive) + len(negative) == len(chunks)
    for chunk in positive:
        assert chunk.drawn[0].shape == (*chunk.drawn[1].shape, 1)
        assert chunk.drawn[0].shape[0] <= 2
        assert len(chunk.position) == chunk.drawn[0].shape[1] <= 3
        # number 7 p + i is of row i
        assert torch.equal(chunk.drawn[0] % 7, chunk.position.expand_as(chunk.drawn[0]))
    assert sorted(torch.cat([chunk.drawn[0].flatten() for chunk in positive]).tolist()) == list(
        range(35)
    )
    for chunk in negative:
        here = chunk.position
        assert len(here) <= 3
        assert torch.equal(chunk.weights, here[:, 0])
        assert torch.equal(chunk.past.previous, here + 100)
        assert torch.equal(chunk.past.noise, torch.stack([here, here + 50]))
        assert chunk.past.bank is negatives
    assert torch.equal(torch.cat([chunk.position for chunk in negative]), negatives)


class Equal(Chunking):
    """All chunks count the same, whatever their size."""

    def split(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        chunks = [chunk for chunk, _ in super().split(batch)]
        yield from ((chunk, 1 / len(chunks)) for chunk in chunks)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_shares_that_forget_the_size_are_caught(objective: Objective) -> None:
    for sizes in [(3, None), (None, 2), (3, 2)]:
        with pytest.raises(AssertionError, match="not close"):
            check(Equal(*sizes), objective, mixture())


def test_a_side_of_no_rows_is_one_chunk() -> None:
    """What an objective has to say without any data is said once, in chunks as at once."""
    batch = sides(torch.empty(0, 2), negatives=torch.zeros(4, 2), weights=torch.ones(4))
    chunks = list(Chunking(3, None).split(batch))
    assert [
        (len(some.positives.position), share)
        for some, share in chunks
        if some.positives is not None
    ] == [(0, 1.0)]
    assert sum(share for some, share in chunks if some.negatives is not None) == 1
