"""What other installed packages add by name: entry points in the groups `pipeline.energies` and
`pipeline.proposals`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from pipeline.common.errors import ConfigError


def find(group: str, name: str, key: str) -> Callable[..., Any]:
    """The function that an installed package registered as `name` in `group`; `key` is what the
    configuration calls it.
    """
    installed = {point.name: point for point in entry_points(group=group)}
    if name not in installed:
        known = ", ".join(sorted(installed)) or "none is installed"
        raise ConfigError(key, name, f"no entry point of that name in the group {group} ({known})")
    try:
        function: Callable[..., Any] = installed[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(key, name, f"its package cannot be imported ({error})") from error
    return function


def call(function: Callable[..., Any], key: str, options: dict[str, Any], *arguments: Any) -> Any:
    """`function(*arguments, **options)`; options that it does not take, or takes for wrong, are a
    `ConfigError` about `key`.
    """
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise ConfigError(key, options, str(error)) from error
    try:
        return function(*arguments, **options)
    except ValueError as error:
        raise ConfigError(key, options, str(error)) from error
