"""From an argument that the mathematics refuses to the key of the configuration that gave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.errors import ArgumentError, ConfigError
from pipeline.config.fields import Section


@contextmanager
def refusing(group: str, section: Section) -> Iterator[None]:
    """Turns an `ArgumentError` that is raised within it, where `section` (the configuration's
    `group`) is made into an object or used, into a `ConfigError`: about the section's key of that
    name, or about the choice of the section itself where it has none.
    """
    try:
        yield
    except ArgumentError as error:
        if error.argument in type(section).model_fields:
            key, value, remedy = f"{group}.{error.argument}", error.value, error.remedy
        else:
            key, value, remedy = group, getattr(section, "name", "null"), str(error)
        raise ConfigError(key, value, remedy) from error
