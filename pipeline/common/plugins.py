"""Parts that other installed packages add by name: entry points in groups called `pipeline.*`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pipeline.common.errors import ConfigError


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of `group` by name. Nothing of them is imported."""
    return _installed(group, tuple(sys.path))


@lru_cache
def _installed(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:  # noqa: ARG001
    """`installed` of one search path: reading the metadata of every package takes a while."""
    return {point.name: point for point in entry_points(group=group)}


def find(group: str, name: str, key: str) -> Any:
    """The object that an installed package registered as `name` in `group`; `key` is what the
    configuration calls it.

    Raises `ConfigError` where there is none, or it cannot be imported.
    """
    there = installed(group)
    if name not in there:
        known = ", ".join(sorted(there)) or "none is installed"
        raise ConfigError(key, name, f"no entry point of that name in the group {group} ({known})")
    try:
        return there[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(key, name, f"its package cannot be imported ({error})") from error


def call(function: Callable[..., Any], key: str, options: dict[str, Any], *arguments: Any) -> Any:
    """`function(*arguments, **options)`.

    Raises `ConfigError` about `key` for options that it does not take, or takes for wrong.
    """
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise ConfigError(key, options, str(error)) from error
    try:
        return function(*arguments, **options)
    except ValueError as error:
        raise ConfigError(key, options, str(error)) from error


def missing(modules: Iterable[str]) -> list[str]:
    """Returns those of the top-level `modules` that are not installed. A folder of such a name in
    the working directory is none.
    """
    found = {name: importlib.util.find_spec(name) for name in modules}
    return [name for name, spec in found.items() if spec is None or spec.origin is None]
