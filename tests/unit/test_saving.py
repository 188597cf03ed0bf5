"""Saves that fail: counted, and how many in a row a run bears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.assembly.energies import make_energy
from pipeline.common.errors import PipelineError
from pipeline.common.types import Part
from pipeline.config.run import RunConfig
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.saving import Saving
from pipeline.storage.lease import Lease
from pipeline.storage.parts import write_part

Small = Callable[..., RunConfig]


class Storage:
    """A runner whose storage fails as often as it is told."""

    def __init__(self) -> None:
        self.failures = 0

    def save(self, folder: str) -> list[Part]:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("No space left on device")
        return [write_part(folder, "learner", {"version": 1})]


def test_failed_saves_in_a_row_end_the_run_and_a_good_one_forgives_them(
    small: Small, tmp_path: Path
) -> None:
    config, runner = small("rbm", "checkpoint.patience=3"), Storage()
    metrics = RunMetrics("run")
    with Lease(str(tmp_path), lambda _: None) as lease:
        saving = Saving(config, str(tmp_path), make_energy(config, (64,)), metrics, lease)
        runner.failures = 2
        assert [saving.save(runner, step) for step in (1, 2, 3)] == [False, False, True]
        runner.failures = 3
        assert [saving.save(runner, step) for step in (4, 5)] == [False, False]
        with pytest.raises(PipelineError, match=r"3 checkpoints in a row .*No space.*00000003"):
            saving.save(runner, 6)
        runner.failures = 1
        with pytest.raises(PipelineError, match="last checkpoint"):
            saving.save(runner, 7, final=True)
    assert metrics.row()["ebm_checkpoint_failures_total"] == 6
