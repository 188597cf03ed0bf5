"""The writing of a checkpoint's parts by the actors that they are of, while steps go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

from actors.waiting import get
from pipeline.common.errors import OutOfStepError
from pipeline.common.types import Part
from pipeline.storage.parts import Snapshot, write_snapshots

SHORTEST, LONGEST = 0.02, 0.5
"""Seconds between two questions to an actor whether its parts are written."""


class Writing:
    """An actor's copies of its parts, for one save at a time, on their way to storage.

    A thread writes them, one save after the other: a call that waited for storage would keep the
    actor from its rounds or steps.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._save: int | None = None
        self._copies: list[Snapshot] = []
        self._written: Future[list[Part]] | None = None

    def take(self, save: int, copies: Sequence[Snapshot]) -> None:
        """Adds `copies` to those of the save of that number. Older ones are given up."""
        if self._save != save:
            self._save, self._copies, self._written = save, [], None
        self._copies += copies

    def written(self, save: int, folder: str) -> list[Part] | None:
        """Has the copies for a save written to `folder`, the first time, and returns the parts when
        they are there; None until then. Raises what kept them from it, and `OutOfStepError` where
        there are no copies for that save.
        """
        if self._save != save:
            raise OutOfStepError(f"there is no copy for save {save}: the process was made anew")
        if self._written is None:
            self._written = self._thread.submit(write_snapshots, self._copies, folder)
            self._copies = []
        return self._written.result() if self._written.done() else None


def written(actors: Sequence[Any], save: int, timeout: float, folder: str) -> list[Part]:
    """Has `actors` write their copies for a save to `folder`, and returns the parts of all.

    Where one fails, or does not answer within `timeout` seconds, that is raised; but only when the
    others are done, so that nobody writes to the folder any more.
    """
    parts: list[Part] = []
    failures: list[Exception] = []
    pause, waiting = SHORTEST, list(actors)
    while waiting:
        asked: list[ray.ObjectRef] = [actor.written.remote(save, folder) for actor in waiting]
        still: list[Any] = []
        for actor, reference in zip(waiting, asked, strict=True):
            try:
                own = get(reference, timeout, "an actor that writes its part of a checkpoint")
            except Exception as error:
                failures.append(error)
                continue
            if own is None:
                still.append(actor)
            else:
                parts += own
        waiting = still
        if waiting:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)
    if failures:
        raise failures[0]
    return parts
