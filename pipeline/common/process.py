"""This process: what it uses of its machine, and how its C library keeps memory."""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache, lru_cache

import psutil
import torch

from pipeline.common.types import Usage


def used(since: float, device: torch.device | str = "cpu") -> Usage:
    """Returns the processor time since `time.process_time()` said `since`, and the memory held, as
    of this second: resident bytes, shared pages included, and what is allocated on `device` if that
    is a GPU.
    """
    on_gpu = torch.device(device).type == "cuda"
    return Usage(
        time.process_time() - since,
        _resident(int(time.monotonic())),
        torch.cuda.memory_allocated(device) if on_gpu else 0,
    )


@lru_cache(maxsize=1)
def _resident(second: int) -> int:  # noqa: ARG001 - of which it is the reading
    """Bytes in memory, read once a `second`: a file of the system's is read for it."""
    return int(psutil.Process().memory_info().rss)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 30


@cache
def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, up to 1 GiB in a piece, instead of giving it back to
    the system at once. With another C library it does nothing.

    Chains and gradients are a few megabytes, allocated and freed at every transition. Memory that
    was given back is faulted in anew, page by page: a fifth of the time of an operation that is
    bound by memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGE)
        mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_to_core(place: int) -> None:
    """Has this thread, and those that it starts, run on one core alone: the one numbered `place`
    of those that it may use, counted round.

    A step of a few milliseconds is over before the system has moved a process to a core that is
    free: without this, one that wakes another shares a core with it. Where the system has no such
    call it does nothing.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})
