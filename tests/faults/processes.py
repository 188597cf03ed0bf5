"""Ends of processes, and steps until something has come of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.driver import RayRunner
from pipeline.common.types import RoundReport
from pipeline.config.run import RunConfig
from tests.patience import PATIENCE

Small = Callable[..., RunConfig]
Start = Callable[..., RayRunner]


def kill(actor: Any) -> None:
    """SIGKILL to the actor's process, and its end seen."""
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline


def wait_until_back(actor: Any) -> None:
    """Returns when a new process answers for the actor."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(actor.__ray_call__.remote(lambda _: None))
            return
    raise AssertionError("the actor did not come back")


def step_until(
    runner: RayRunner, condition: Callable[[list[RoundReport]], bool]
) -> list[tuple[Any, Any, Any]]:
    """Steps until one satisfies the condition; all of them."""
    deadline, steps = time.monotonic() + PATIENCE, []
    while time.monotonic() < deadline:
        steps.append(runner.step())
        if condition(steps[-1][1]):
            return steps
    raise AssertionError(f"not within {PATIENCE} s and {len(steps)} steps")
