"""Runners of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.driver import RayRunner
from pipeline.assembly.data import open_data
from pipeline.config.run import RunConfig
from tests.faults.processes import Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(config, **classes)`: a runner at its first step, of other actors than the usual ones
    where classes are given.
    """
    runners: list[RayRunner] = []

    def make(config: RunConfig, **classes: Any) -> RayRunner:
        data = open_data(config)
        runners.append(RayRunner(config, str(tmp_path), data.shape, data.context_shape, **classes))
        runners[-1].start(None, None)
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()
