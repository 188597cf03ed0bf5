"""What a process uses of its machine."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import torch

from pipeline.types import Usage

PAGE = os.sysconf("SC_PAGE_SIZE")


def used(since: float, device: torch.device | str = "cpu") -> Usage:
    """Since `time.process_time()` said `since`; and what memory it holds now."""
    on_gpu = torch.device(device).type == "cuda"
    return Usage(time.process_time() - since, resident_bytes(), torch.cuda.memory_allocated(device) if on_gpu else 0)


def resident_bytes() -> int:
    """Of memory, shared pages included; where the system does not tell, the most there ever were."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
