"""Drivers that are killed at random moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.moments import disturbed, forked
from tests.conftest import SMALL


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_killed_at_ten_random_moments_ends_as_a_whole_one(tmp_path: Path) -> None:
    """Bit for bit, at lag 0, with checkpoints so often that some moments are within one."""
    arguments = [*SMALL["rbm"], "cluster=inline", "trainer.steps=400", "checkpoint.every=7"]
    found = disturbed(tmp_path, arguments, moments=10, seed=3, start=forked)
    assert found["killed"] > 0
    assert found["equal"]
