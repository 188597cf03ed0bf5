"""From an argument that the mathematics refuses to the key of the configuration that gave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.errors import ArgumentError, ConfigError
from pipeline.config.fields import Section


@contextmanager
def refusing(group: str, section: Section) -> Iterator[None]:
    """A context for making or using the object of `section`, the configuration's `group`. Raises
    `ConfigError` where an `ArgumentError` is raised within it: about the section's key of the
    argument's name, or about the choice of the section itself where it has none.
    """
    try:
        yield
    except ArgumentError as error:
        if error.argument in type(section).model_fields:
            key, value, remedy = f"{group}.{error.argument}", error.value, error.remedy
        else:
            key, value, remedy = group, getattr(section, "name", "null"), str(error)
        raise ConfigError(key, value, remedy) from error
