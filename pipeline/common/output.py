"""Standard output and error of a process that outlives whoever reads them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class Lasting:
    """The text `stream`, writes to which never fail: what is written after its terminal was closed,
    or its reader has ended, is lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text, and returns its length."""
        try:
            return self._stream.write(text)
        except OSError:
            self._lead_nowhere()
            return len(text)

    def flush(self) -> None:
        """Hands on what was written, where somebody still takes it."""
        try:
            self._stream.flush()
        except OSError:
            self._lead_nowhere()

    def _lead_nowhere(self) -> None:
        # the stream still holds the text, and Python flushes it when the process ends: a failure
        # there would change the exit status
        with suppress(OSError, ValueError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within, nothing that is printed to standard output or error fails."""
    out: Any = Lasting(sys.stdout)
    error: Any = Lasting(sys.stderr)
    with redirect_stdout(out), redirect_stderr(error):
        yield
