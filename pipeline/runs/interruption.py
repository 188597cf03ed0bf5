"""SIGINT, SIGTERM and SIGHUP, noted so that no step is torn."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked
    """SIGINT, SIGTERM or SIGHUP came. A checkpoint holds what was learned."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class Interruption:
    """Notes the first SIGINT, SIGTERM or SIGHUP (a terminal that closed), so that a step is never
    torn; a second one ends the process at once. A SIGHUP that the process ignored before, which is
    what `nohup` asks for, is ignored still.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

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
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
