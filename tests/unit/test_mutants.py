"""The list of mutations follows the code, and what is said of one is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import MUTANTS, ROOT, Mutant, Outcome, mutant


def test_names_are_different() -> None:
    assert len({slip.name for slip in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.parametrize("slip", MUTANTS, ids=lambda slip: slip.name.replace(" ", "_"))
def test_every_mutation_is_of_the_code_as_it_is(slip: Mutant) -> None:
    """Its text is there once, what it becomes is Python, and its tests' files are there."""
    text = (ROOT / slip.file).read_text()
    changed = slip.apply(text)
    assert changed != text
    compile(changed, slip.file, "exec")
    assert all((ROOT / test).exists() for test in slip.tests if not test.startswith("-"))


def test_text_that_is_not_there_once_is_refused() -> None:
    slip = mutant("slip", "file.py", "x + y", "x - y")
    assert slip.apply("z = x\n + y\n") == "z = x - y\n"
    for text in ("z = x - y", "x + y; x + y"):
        with pytest.raises(ValueError, match=r"slip: file.py has 'x \+ y' [02] times"):
            slip.apply(text)


SUM = "def add(a, b):\n    return a + b\n"
TEST = "from code_ import add\n\ndef test_sum():\n    assert add(1, 2) == 3\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "tests", "caught"),
    [
        ("return a - b", "test_sum.py", True),
        ("return b + a", "test_sum.py", False),
        ("return (", "test_sum.py", False),
        ("return a - b", "test_nothing.py", False),
    ],
    ids=["caught", "not caught", "cannot be collected", "no tests"],
)
def test_a_mutation_is_caught_by_a_test_that_fails(
    tmp_path: Path, new: str, tests: str, caught: bool
) -> None:
    (tmp_path / "code_.py").write_text(SUM)
    (tmp_path / "test_sum.py").write_text(TEST)
    (tmp_path / "test_nothing.py").write_text("")
    slip = mutant("slip", "code_.py", "return a + b", new, tests)
    outcome = mutants.try_out(tmp_path, slip)
    assert outcome.by == ("test_sum.py::test_sum" if caught else None)
    assert outcome.caught == caught
    mutants.check_unbroken(tmp_path, [outcome])
    assert (tmp_path / "code_.py").read_text() == SUM


def test_what_was_said_of_the_suite_before_stays(tmp_path: Path) -> None:
    slip = MUTANTS[0]
    mutants.record([slip], [Outcome("a", "1 failed", 1.0)], tmp_path)
    path = tmp_path / "mutants.json"
    path.write_text(path.read_text().replace('"before": null', BEFORE % slip.name))
    mutants.record([slip], [Outcome(None, "1 passed", 2.0)], tmp_path)
    assert "| caught | NOT CAUGHT |" in (tmp_path / "mutants.md").read_text()
    assert "commit abc" in (tmp_path / "mutants.md").read_text()


BEFORE = '"before": {"commit": "abc", "caught": {"%s": true}}'
