"""Rows of data on their way to the steps of several ranks, one of which is lost."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import CheckpointError
from pipeline.config.compose import compose
from pipeline.training.positives import RowQueue
from pipeline.training.ranks import Ranks
from tests.unit.data.test_streaming import listed, matrix, stream, write

CONFIG = ["data=digits", "data.noise=0.1", "trainer.batch_size=32", "trainer.replicas=2"]


def queue(rank: int) -> RowQueue:
    config = compose(CONFIG)
    data = open_data(config)
    positives = data.positives(config.seed, rank, 2)
    return RowQueue(config, make_energy(config, data.shape), positives, True, Ranks(rank, 2, "cpu"))


@pytest.mark.parametrize("drawn_ahead", [0, 3])
def test_a_rank_that_is_lost_has_its_rows_again_from_another(drawn_ahead: int) -> None:
    """Those that it had drawn for steps that are yet to be made, and all that follow; and the other
    one goes on with its own.
    """
    lost, living = queue(1), queue(0)
    for _ in range(2):
        for one in (lost, living):
            one.ahead(drawn_ahead)
            one.next_step()
    state = pickle.loads(pickle.dumps(living.living_state()))
    new, again = queue(1), queue(0)
    new.go_on_from(state)
    again.go_on(state)
    for step in range(5):
        for found, expected in ((new, lost), (again, living)):
            rows, wanted = found.ahead(step), expected.ahead(step)
            assert torch.equal(rows.position, wanted.position)
            assert torch.equal(rows.number, wanted.number)
    # and so it does when the other one is lost next
    other = queue(0)
    other.go_on_from(pickle.loads(pickle.dumps(new.living_state())))
    assert torch.equal(other.ahead(0).position, living.ahead(0).position)


def test_streamed_rows_are_not_those_of_another_rank(tmp_path: Path) -> None:
    """Ranks read files of their own: only a checkpoint says where a lost one was."""
    write(f"{tmp_path}/rows.parquet", listed(matrix(600)), 10)
    config = compose(CONFIG)
    energy = make_energy(config, (8, 8))
    queues = [
        RowQueue(
            config, energy, stream(str(tmp_path), rank=rank, ranks=2), False, Ranks(rank, 2, "cpu")
        )
        for rank in range(2)
    ]
    with pytest.raises(CheckpointError, match="that of rank 0 of 2"):
        queues[1].go_on_from(queues[0].living_state())
