"""Pools and a parameter server that compute nothing, so that only the carrying of batches is left.

They import neither torch nor anything that does, so dozens of them fit one machine. A batch is the
eight bytes of the version that it was made under.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import ray

from pipeline.common.errors import OutOfStepError
from pipeline.common.types import RoundReport, StepReport, Usage, Weights

BYTES = 8


class TrivialPool:
    """A pool whose round is `seconds` of sleep on average, log-normal with `sigma`."""

    seconds = 0.0
    sigma = 0.0

    def __init__(
        self,
        _config: Any,
        _shape: tuple[int, ...],
        pool: int,
        _context_shape: tuple[int, ...] | None,
    ) -> None:
        self._pool, self._round, self._incarnation = pool, 0, 0

    def pace(self, seconds: float) -> None:
        """Make rounds take so many seconds on average from now on."""
        self.seconds = seconds

    def loaded(self, names: tuple[str, ...]) -> list[str]:
        """Return those of these modules that the process has loaded."""
        return [name for name in names if name in sys.modules]

    @ray.method(num_returns=2)
    def advance(self, round: int, weights: Any, _start: Any = None) -> tuple[bytes, RoundReport]:
        if round != self._round:
            raise OutOfStepError(f"pool {self._pool} is at round {self._round}, not {round}")
        seconds = self.seconds * random.lognormvariate(-(self.sigma**2) / 2, self.sigma)
        if seconds:
            time.sleep(seconds)
        self._round += 1
        report = RoundReport(
            pool=self._pool,
            incarnation=self._incarnation,
            round=round,
            version=weights.version,
            transitions=1,
            acceptance=1.0,
            step_size=None,
            swaps=(),
            reseeded=0,
            restarted=0,
            seconds=seconds,
            usage=Usage(seconds=0.0, resident=0, device=0),
        )
        return weights.version.to_bytes(BYTES, "little"), report

    def begin(self) -> tuple[int, int, str]:
        """Return round, incarnation and node."""
        return self._round, self._incarnation, ray.get_runtime_context().get_node_id()

    def revive(self, incarnation: int, round: int, *_chains: Any) -> tuple[int, int, str]:
        self._round, self._incarnation = round, incarnation
        return self.begin()


class TrivialServer:
    """A server whose step is `seconds` of sleep, and leaves the weights as they are.

    `made` is what it publishes, by version.
    """

    seconds = 0.0

    def __init__(self, config: Any) -> None:
        self._config, self._version = config, 0

    def address(self) -> str:
        return ""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def start(self, _checkpoint: Any, _warm_start: Any, _factor: Any, *_: Any) -> int:
        return self._version

    def publish(self, version: int) -> Any:
        return self.made(version)

    def made(self, version: int) -> Any:
        nothing: Any = b""  # a version, without weights
        return Weights(version, nothing)

    @ray.method(num_returns=2)
    def weights(self, version: int) -> tuple[Any, bool]:
        return self.made(version), True

    def versions(self, batches: tuple[Any, ...]) -> tuple[int, ...]:
        """Return the version that each batch was made under."""
        return tuple(int.from_bytes(batch, "little") for batch in batches)

    def step(self, version: int, *batches: Any) -> StepReport:
        if version != self._version:
            raise OutOfStepError(
                f"the parameter server is at version {self._version}, not {version}"
            )
        if self.seconds:
            time.sleep(self.seconds)
        self._version += 1
        return StepReport(
            version=self._version,
            loss=0.0,
            parts={},
            gradient_norm=0.0,
            learning_rate=0.0,
            negatives=len(batches) * self._config.chains.per_pool,
            lags=tuple(version - made for made in self.versions(batches)),
            ess=(),
            lag_bound=self._config.trainer.lag,
            skipped=False,
            seconds={"step": self.seconds},
            energy_moments=(),
            usage=(),
        )

    def save(self, _version: int, _folder: str) -> list[Any]:
        return []


class Host:
    """An actor with many pools in one process."""

    def __init__(self, config: Any) -> None:
        self._config, self._pools = config, dict[int, TrivialPool]()

    def begin(self, pool: int) -> tuple[int, int, str]:
        self._pools[pool] = TrivialPool(self._config, (), pool, None)
        return self._pools[pool].begin()

    @ray.method(num_returns=2)
    def advance(self, pool: int, round: int, weights: Any, start: Any) -> tuple[bytes, RoundReport]:
        return self._pools[pool].advance(round, weights, start)


class Call(NamedTuple):
    """A method of a pool that is in a host's process."""

    method: Any
    pool: int

    def remote(self, *arguments: Any) -> Any:
        return self.method.remote(self.pool, *arguments)


class Handle(NamedTuple):
    """A stand-in for such a pool's actor."""

    host: Any
    begin: Call
    advance: Call


class Guests:
    """A stand-in for the actor class of `TrivialPool`: pools go to `processes` hosts in turn."""

    def __init__(self, processes: int, remote: Callable[..., Any]) -> None:
        self._make, self._processes = remote(num_cpus=0)(Host), processes
        self._hosts: list[Any] = []

    def options(self, **_: Any) -> Guests:
        return self

    def remote(
        self,
        config: Any,
        _shape: tuple[int, ...],
        pool: int,
        _context_shape: tuple[int, ...] | None,
    ) -> Handle:
        if len(self._hosts) < self._processes:
            self._hosts.append(self._make.remote(config))
        host = self._hosts[pool % self._processes]
        return Handle(host, Call(host.begin, pool), Call(host.advance, pool))


@contextmanager
def sharing(processes: int) -> Iterator[None]:
    """Let a runner's trivial pools share so many processes within the block.

    So one machine shows what a thousand of them cost the driver.
    """
    remote, kill = ray.remote, ray.kill

    def makes(*arguments: Any, **options: Any) -> Any:
        if arguments:
            return remote(*arguments, **options)
        return lambda make: (
            Guests(processes, remote) if make is TrivialPool else remote(**options)(make)
        )

    def kills(actor: Any, **options: Any) -> None:
        kill(actor.host if isinstance(actor, Handle) else actor, **options)

    with mock.patch.object(ray, "remote", makes), mock.patch.object(ray, "kill", kills):
        yield
