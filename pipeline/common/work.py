"""Long work as generators, which yield how far they have come and return what they were for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Result = TypeVar("Result")


def result(
    work: Generator[Step, None, Result], tell: Callable[[Step], object] | None = None
) -> Result:
    """Carries `work` out, and returns what it returns; `tell` hears of its progress."""
    while True:
        try:
            progress = next(work)
        except StopIteration as end:
            found: Result = end.value
            return found
        if tell is not None:
            tell(progress)
