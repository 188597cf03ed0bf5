"""Sizes that no machine holds are refused, before the system ends the process for them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from pipeline.common.errors import ConfigError
from pipeline.config.fields import Section

GIB = 2**30
# as torch and NumPy say of sizes that they cannot allocate, or cannot even multiply
EXCESS = ("allocate memory", "not enough memory", "overflow", "too big", "maximum allowed size")


@contextmanager
def within_memory() -> Iterator[None]:
    """A context in which this process can come to hold no more data than the machine has memory:
    what is too large fails with an error, for which the system would have ended the process.
    """
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held, room = psutil.Process().memory_info(), psutil.virtual_memory().total
    most = getattr(held, "data", 0) + room
    limits = [limit for limit in (before, hard, most) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


@contextmanager
def refusing_excess(group: str, section: Section) -> Iterator[None]:
    """A context for making the object of `section`, the configuration's `group`. Raises
    `ConfigError` about its largest setting where that takes more memory than there is.
    """
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
        if not is_excess(error):
            raise
        key, value = largest(group, section)
        room = psutil.virtual_memory().total / GIB
        remedy = f"takes more than this machine's {room:.0f} GiB of memory; use less"
        raise ConfigError(key, value, remedy) from error


def is_excess(error: Exception) -> bool:
    """Returns whether the error says that memory is wanted that there is not."""
    if isinstance(error, MemoryError | OverflowError):
        return True
    return any(words in str(error).lower() for words in EXCESS)


def largest(group: str, section: Section) -> tuple[str, Any]:
    """Returns the key of the section with the largest integers in it, and its value: the choice of
    the section itself where it has none.
    """
    sizes = {key: _size(value) for key, value in section.model_dump(mode="json").items()}
    key = max(sizes, key=lambda name: sizes[name])
    if sizes[key] == 0:
        return group, getattr(section, "name", "null")
    return f"{group}.{key}", section.model_dump(mode="json")[key]


def _size(value: Any) -> int:
    """Returns the largest integer within a setting; 0 where there is none."""
    if isinstance(value, list):
        return max((_size(each) for each in value), default=0)
    if isinstance(value, dict):
        return max((_size(each) for each in value.values()), default=0)
    return abs(value) if isinstance(value, int) and not isinstance(value, bool) else 0
