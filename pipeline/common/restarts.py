"""The number of times that something is started again when it died."""

from __future__ import annotations

from collections import deque


class RestartBudget:
    """A number of restarts that are `allowed` `within` so many seconds."""

    def __init__(self, allowed: int, within: float = 3600.0) -> None:
        self._allowed, self._within = allowed, within
        self._spent: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Counts one restart more; False where it is one too many."""
        while self._spent and now - self._spent[0] >= self._within:
            self._spent.popleft()
        self._spent.append(now)
        return len(self._spent) <= self._allowed
