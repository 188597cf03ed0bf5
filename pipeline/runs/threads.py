"""Torch's number of threads, which is the whole process's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_threads() -> Iterator[None]:
    """Gives the process its number of threads back, whatever a run sets it to within."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
