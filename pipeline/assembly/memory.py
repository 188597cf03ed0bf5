"""Sizes that no machine holds are refused, before the system ends the process for them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from pipeline.common.errors import ConfigError
from pipeline.config.cores import on_this_machine
from pipeline.config.fields import Section
from pipeline.config.run import RunConfig

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
        raise ConfigError(key, value, _too_much(psutil.virtual_memory().total)) from error


def check_chains(config: RunConfig, dimension: int) -> None:
    """Raises `ConfigError` where the chains of all pools, each of so many numbers, would take more
    memory than this machine has, and all pools are on it.
    """
    chains = config.chains
    key = "per_pool" if chains.per_pool >= chains.pools else "pools"
    if on_this_machine(config):
        numbers = config.pools * chains.per_pool * dimension
        check_numbers(f"chains.{key}", getattr(chains, key), numbers)


def check_evaluation(config: RunConfig, dimension: int) -> None:
    """Raises `ConfigError` where what is drawn in the end, each of so many numbers, would take more
    memory than this machine has.
    """
    asked = config.evaluation
    check_numbers("evaluation.samples", asked.samples, asked.samples * dimension)
    if asked.ais_temperatures:
        particles = asked.ais_particles * dimension
        check_numbers("evaluation.ais_particles", asked.ais_particles, particles)
        key = "evaluation.ais_temperatures"
        check_numbers(key, asked.ais_temperatures, asked.ais_temperatures)


def check_numbers(key: str, value: int, numbers: int) -> None:
    """Raises `ConfigError` about `key`=`value` where so many numbers in float32 are more than this
    machine's memory holds.
    """
    room = psutil.virtual_memory().total
    if 4 * numbers > room:
        raise ConfigError(key, value, _too_much(room))


def _too_much(room: int) -> str:
    return f"takes more than this machine's {room / GIB:.0f} GiB of memory; use less"


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
