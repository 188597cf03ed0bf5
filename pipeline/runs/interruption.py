"""SIGINT, SIGTERM and SIGHUP, noted so that no step is torn."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.runs.prompt import at_prompt

SAME = 1.0
"""Seconds within which a signal that comes again is the same one: `ray job stop` sends it to a
driver and to the parent that passes it on to it (`pipeline.runs.supervision`).
"""


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked
    """SIGINT, SIGTERM or SIGHUP came. A checkpoint holds what was learned."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_status = 128 + number


@contextmanager
def own_handlers() -> Iterator[None]:
    """Gives the process its handler of SIGTERM back, which Ray replaces as it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class Interruption:
    """Notes the first SIGINT, SIGTERM or SIGHUP (a terminal that closed), so that a step is never
    torn; a second one ends the process at once, if it is not the same again within `SAME`. At a
    prompt, where the process is more than the run, a second SIGINT raises `KeyboardInterrupt` in
    its place. A SIGHUP that the process ignored before, which is what `nohup` asks for, is ignored
    still.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._came = 0.0

    def __enter__(self) -> Interruption:
        # Python delivers signals to the main thread only; elsewhere (a notebook's worker) there are
        # none to note
        self._before = (
            {
                number: signal.signal(number, self._note)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
            }
            if threading.current_thread() is threading.main_thread()
            else {}
        )
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._came = number, now
        elif number != self.signal or now - self._came > SAME:
            if number == signal.SIGINT and at_prompt():
                raise KeyboardInterrupt
            os._exit(128 + number)
