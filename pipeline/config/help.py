"""The text of `--help`: a page of what most people need, or every key, wrapped to the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.groups import choices, default_choices
from pipeline.config.keys import describe
from pipeline.config.run import GROUPS

NARROWEST, WIDEST = 60, 100
FIRST = 38  # columns of a key and its default, in front of what it means
COMMON = (
    *("output", "seed", "device", "trainer.steps", "trainer.batch_size"),
    *("optimizer.learning_rate", "chains.pools", "chains.per_pool", "kernel.transitions"),
    *("kernel.step_size", "checkpoint.every", "evaluation.samples"),
)
"""The keys that people set first."""


def wanted(arguments: Sequence[str]) -> str | None:
    """Returns what is asked for by `--help`: "" for the page, or the word behind it; None where
    `--help` is not there.
    """
    for number, text in enumerate(arguments):
        if text in ("-h", "--help"):
            return (*arguments[number + 1 :], "")[0]
    return None


def page(doc: str, topic: str) -> str:
    """Returns the help of `python -m pipeline.train`: its docstring, the groups with their choices
    and the keys that are set most. The `topic` all gives every key, and the name of a section or a
    group (trainer, kernel) the keys there. Raises `ConfigError` where there is no such topic.
    """
    found = list(describe())
    sections = sorted({key.partition(".")[0] for key, _, _ in found if "." in key})
    if topic == "":
        keys = [row for row in found if row[0] in COMMON]
        return "\n".join(
            [
                *(doc.strip(), "", *_groups(), ""),
                *("Keys that are set most, with their defaults:", *listed(keys), ""),
                *_wrapped(
                    "", f"--help all lists every key, --help SECTION those of {_or(sections)}."
                ),
            ]
        )
    if topic != "all":
        if topic.rstrip(".=") not in sections:
            raise ConfigError("--help", topic, f"no such section; give all, {_or(sections)}")
        found = [row for row in found if row[0].startswith(f"{topic.rstrip('.=')}.")]
    return "\n".join(
        [*(_groups() if topic == "all" else ()), "Keys, with their defaults:", *listed(found)]
    )


def listed(keys: Iterable[tuple[str, Any, str]]) -> list[str]:
    """Returns the lines of (key, default, meaning), wrapped."""
    return [
        line
        for key, default, meaning in keys
        for line in _wrapped(f"  {key}={_yaml(default)}", meaning)
    ]


def _groups() -> list[str]:
    chosen = default_choices()
    lines = ["Groups and their choices (* is the default):"]
    for group in GROUPS:
        names = (f"{name}*" if name == chosen[group] else name for name in choices(group))
        lines += _wrapped(f"  {group}=", " | ".join(names), 15)
    return lines


def _wrapped(head: str, text: str, first: int = FIRST) -> list[str]:
    """`text` beside its `head`, or below one that is too long for it."""
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    indent = " " * first if head else ""
    lines = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if not lines:
        return [head]
    if len(head) + 2 <= first:
        return [head + lines[0][len(head) :], *lines[1:]]
    return [head, *lines]


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")
