"""What the allocator of the C library is told."""

from __future__ import annotations

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 30


@cache
def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, up to 1 GiB in a piece, instead of giving it back to the system at once.

    Chains and gradients are a few megabytes, allocated and freed at every transition: given back, every one of their pages
    is faulted in anew each time, a fifth of the time of an operation that is bound by memory. Other C libraries: nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGE)
        mallopt(M_MMAP_THRESHOLD, LARGE)
