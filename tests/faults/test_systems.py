"""Presets of every kind of system through Ray, with two pools, one of which dies in the middle."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from actors.driver import RayRunner
from pipeline.assembly.data import open_data
from pipeline.common.types import RoundReport
from pipeline.config.compose import compose
from tests.faults.processes import kill, step_until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
LITTLE = ("metrics.port=0",)
PRESETS = {
    "conditional_label": ("energy.hidden=[32,32]",),
    "conditional_structured": ("data.rows=2000",),
    "maxent_ising": (),
    "dbm_digits": ("energy.hidden=[16,8]",),
    "compose_toys": (),
}


@pytest.mark.parametrize("experiment", PRESETS)
def test_a_preset_survives_the_loss_of_a_pool(experiment: str, tmp_path: Path) -> None:
    """Steps go on with the other pool, the lost one comes back, and the loss stays finite."""
    config = compose([f"experiment={experiment}", *LITTLE, *PRESETS[experiment]])
    assert config.pools == 2
    data = open_data(config)
    runner = RayRunner(config, str(tmp_path), data.shape, data.context_shape)
    try:
        runner.start(None, None)
        for _ in range(4):
            runner.step()
        kill(runner.pools.members[1].actor)
        steps = step_until(runner, back)
        assert [report.version for report, _, _ in steps] == list(range(5, 5 + len(steps)))
        assert sum(flow.restarts.get("pool", 0) for _, _, flow in steps) == 1
        assert any({round.pool for round in rounds} == {0} for _, rounds, _ in steps), (
            "no step without the lost pool"
        )
        assert all(math.isfinite(report.loss) and not report.skipped for report, _, _ in steps)
    finally:
        runner.close()


def back(rounds: list[RoundReport]) -> bool:
    return any(round.pool == 1 and round.incarnation == 1 for round in rounds)
