"""docs/library.md: its examples run as they stand, from top to bottom, and are short."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "library.md"
BLOCK = re.compile(r"^```(pycon|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_LINES = 14


def test_the_examples_do_what_they_say() -> None:
    """One example goes on where the one before it ended."""
    torch.manual_seed(0)
    examples = [text for kind, text in BLOCK.findall(PAGE.read_text()) if kind == "pycon"]
    assert len(examples) >= 6
    source = "\n".join(examples)
    test = doctest.DocTestParser().get_doctest(source, {}, PAGE.name, str(PAGE), 0)
    told: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert result.attempted >= 40
    assert result.failed == 0, "".join(told)


def test_examples_are_short_and_those_of_others_are_python() -> None:
    for kind, text in BLOCK.findall(PAGE.read_text()):
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, text
        if kind == "python":
            ast.parse(text)
