"""The pages that are made from the code are in step with it."""

from __future__ import annotations

from pathlib import Path

from pipeline.assembly.kernels import KERNELS
from pipeline.assembly.learner import OBJECTIVES
from pipeline.config.compose import choices
from pipeline.reference import kernels, objectives

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_kernels_page_is_what_the_registry_says() -> None:
    """`make docs` makes it."""
    assert (ROOT / "docs" / "kernels.md").read_text() == kernels()


def test_the_objectives_page_is_what_the_registry_says() -> None:
    """`make docs` makes it."""
    assert (ROOT / "docs" / "objectives.md").read_text() == objectives()


def test_the_registry_is_what_the_groups_offer() -> None:
    assert sorted(KERNELS) == choices("kernel")
    assert sorted([*OBJECTIVES, "mixture"]) == choices("objective")
    assert all(len(entry.laws) >= 2 for entry in KERNELS.values())
