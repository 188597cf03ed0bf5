"""Waiting for actors: their answers in time, and the looks of their loss."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from pipeline.common.errors import ClusterError, OutOfStepError, PipelineError

LOST = (RayActorError, ObjectLostError, OutOfStepError)
"""An actor's process died, an object died with its node, or an actor was made anew without anybody
having seen it die.
"""
POLL_SECONDS = 0.2


class NotInTime(ClusterError):  # noqa: N818 - it names what happened
    """An actor did not answer in time: it hangs, or waits for room."""


def get(reference: ray.ObjectRef, timeout: float, what: str) -> Any:
    """An actor's answer within `timeout` seconds; an error of ours that it raised comes out as
    itself.

    Raises `NotInTime` where there is none, and those of `LOST`.
    """
    try:
        return ray.get(reference, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise
    except GetTimeoutError as error:
        raise NotInTime(f"{what} did not answer within {timeout:g} s") from error


class Deadline:
    """So many seconds from now, after which a wait is given up with `ClusterError`."""

    def __init__(self, seconds: float, waits_for: str) -> None:
        self._seconds, self._waits_for = seconds, waits_for
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises `ClusterError` where the time is over."""
        if time.monotonic() > self._end:
            raise ClusterError(
                f"{self._waits_for} did not come within cluster.timeout={self._seconds:g} s"
            )

    def pause(self) -> None:
        """Waits a moment. Raises `ClusterError` where the time is over."""
        self.check()
        time.sleep(POLL_SECONDS)


def ready(reference: ray.ObjectRef) -> bool:
    """Return whether there is an answer, an error included."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to leave: asked to by a SIGTERM, an autoscaler, or a spot
    market's notice.
    """
    # no public call tells: Ray Serve and Ray Train ask here too
    from ray._private.state import state

    return set(state.get_draining_nodes())
