"""Actors whose processes serve one run after another: to start one costs seconds, most of them
imports.

Calls, arguments, results and the order of messages are Ray's own, as in any run. What is not tried
here is the start, the death and the restart of a process: `tests/faults` does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ray


class Again:
    """Beside the class of an actor: what it was made with, once more, in a process that served."""

    def again(self, *arguments: Any) -> None:
        self.__init__(*arguments)  # type: ignore[misc]


class Processes:
    """What stands for `ray.remote` and `ray.kill`: an actor that is killed waits for the next run
    that asks for one of its class and its threads, with whatever resources.
    """

    def __init__(self) -> None:
        self.remote_, self.kill_ = ray.remote, ray.kill
        self.free: list[tuple[Any, Any]] = []
        self.made: dict[int, tuple[Any, Any]] = {}  # by the id of the actor's handle

    def remote(self, *arguments: Any, **options: Any) -> Any:
        if arguments:
            return self.remote_(*arguments, **options)

        def actor_class(make: type) -> ActorClass:
            again = type(make.__name__, (Again, make), {})
            kind = (make, str(options.get("concurrency_groups")))
            return ActorClass(self, kind, self.remote_(**options)(again))

        return actor_class

    def kill(self, actor: Any, no_restart: bool = True) -> None:
        if no_restart:
            self.free.append(self.made[id(actor)])
        else:
            self.kill_(actor, no_restart=False)

    def close(self) -> None:
        for _, actor in self.made.values():
            self.kill_(actor)


class ActorClass:
    """What stands for an actor class, of a `kind`: the class it was made of, and its threads."""

    def __init__(self, processes: Processes, kind: Any, actor: Any) -> None:
        self._processes, self._kind, self._actor = processes, kind, actor

    def options(self, **options: Any) -> ActorClass:
        return ActorClass(self._processes, self._kind, self._actor.options(**options))

    def remote(self, *arguments: Any) -> Any:
        for kept in self._processes.free:
            if kept[0] == self._kind:
                self._processes.free.remove(kept)
                kept[1].again.remote(*arguments)
                return kept[1]
        actor = self._actor.remote(*arguments)
        self._processes.made[id(actor)] = (self._kind, actor)
        return actor


@contextmanager
def reused_processes() -> Iterator[None]:
    processes = Processes()
    with (
        mock.patch.object(ray, "remote", processes.remote),
        mock.patch.object(ray, "kill", processes.kill),
    ):
        yield
    processes.close()
