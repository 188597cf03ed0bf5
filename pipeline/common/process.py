"""A process: what it uses of its machine, and what the allocator of its C library is told."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from functools import cache
from pathlib import Path

import torch

from pipeline.common.types import Usage

PAGE = os.sysconf("SC_PAGE_SIZE")


def used(since: float, device: torch.device | str = "cpu") -> Usage:
    """Since `time.process_time()` said `since`; and what memory it holds now."""
    on_gpu = torch.device(device).type == "cuda"
    return Usage(
        time.process_time() - since,
        resident_bytes(),
        torch.cuda.memory_allocated(device) if on_gpu else 0,
    )


def resident_bytes() -> int:
    """Of memory, shared pages included; where the system does not tell, the most there ever were."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 30


@cache
def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, up to 1 GiB in a piece, instead of giving it back to
    the system at once.

    Chains and gradients are a few megabytes, allocated and freed at every transition: given back,
    every one of their pages is faulted in anew each time, a fifth of the time of an operation that
    is bound by memory. Other C libraries: nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGE)
        mallopt(M_MMAP_THRESHOLD, LARGE)
