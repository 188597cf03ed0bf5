"""Every key that a configuration may have, with its default and what it means: what `--help`
lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.config import parts
from pipeline.config.compose import compose_raw
from pipeline.config.fields import Section
from pipeline.config.groups import choices, fields_of, settings_of
from pipeline.config.run import RunConfig


def describe() -> Iterator[tuple[str, Any, str]]:
    """Yields (key, default, meaning) of every key, under the default choice of each group and then
    under the others.
    """
    seen: set[str] = set()
    for key, default, meaning in _described("", RunConfig, compose_raw(())):
        seen.add(key)
        yield key, default, meaning
    for group in parts.PARTS:
        # default and meaning where it is first, and the choices that have it
        others: dict[str, tuple[Any, str, list[str]]] = {}
        for choice in choices(group):
            fields = parts.section_of(group, choice).model_fields
            for field, default in fields_of(settings_of(group, choice)).items():
                key = f"{group}.{field}"
                if key not in seen and field in fields:
                    meaning = fields[field].description or ""
                    others.setdefault(key, (default, meaning, []))[2].append(choice)
        for key, (default, meaning, owners) in others.items():
            yield key, default, f"({group}={', '.join(owners)}) {meaning}"


def _described(
    prefix: str, section: type[Section], values: dict[str, Any]
) -> Iterator[tuple[str, Any, str]]:
    """Yields what `describe` does for one section: its own keys, then those of the sections within
    it.
    """
    within = []
    for field, information in section.model_fields.items():
        default = values.get(field)
        choice = next((m for m in information.metadata if isinstance(m, parts.Choice)), None)
        nested = information.annotation
        if choice is not None and isinstance(default, dict):
            nested = parts.section_of(choice.group, default["name"])
        if isinstance(default, dict) and isinstance(nested, type) and issubclass(nested, Section):
            within.append((f"{prefix}{field}.", nested, default))
        elif field != "name" or not prefix:
            yield prefix + field, default, information.description or ""
    for deeper in within:
        yield from _described(*deeper)
