"""The account of what happened in a run on Ray beside its steps."""

from __future__ import annotations

from collections.abc import Callable

from actors.pools import PoolRoster
from pipeline.common.types import Flow


class Accounts:
    """Counts what was lost, restarted and handed over, until it is told of. `watch` is told of what
    changes while no step is made.
    """

    def __init__(self, pools: PoolRoster, watch: Callable[[Flow], None] | None) -> None:
        self._pools, self._watch = pools, watch
        self._told = 0  # pools that were there when last told
        self._damaged = 0  # checkpoints that were found to be damaged

    def count_damaged(self, _: str) -> None:
        """Counts a checkpoint that is damaged."""
        self._damaged += 1

    def flow(self, seconds: dict[str, float]) -> Flow:
        """The account of everything since the last one, with the driver's `seconds` by stage."""
        pools = self._pools
        flow = Flow(
            in_flight=pools.in_flight,
            waiting=len(pools.fleet.finished),
            pools=len(pools.fleet.available()),
            dropped=dict(pools.dropped),
            restarts=dict(pools.restarts),
            handovers=pools.handovers,
            server_leaves=False,
            seconds=seconds,
            damaged=self._damaged,
        )
        self._damaged = 0
        pools.dropped.clear()
        pools.restarts.clear()
        pools.handovers = 0
        self._told = flow.pools
        return flow

    def tell(self) -> None:
        """Hands on that pools came or went, or that an actor is being restarted, without a step."""
        changed = len(self._pools.fleet.available()) != self._told
        if self._watch is not None and (changed or self._pools.restarts):
            self._watch(self.flow({}))
