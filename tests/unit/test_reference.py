"""The pages and lists that are made from the code are in step with it: `make docs` makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.groups import choices
from pipeline.config.parts import KERNELS, PARTS, names
from pipeline.reference import configmaps, kernels, objectives

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("file", "make"),
    [
        ("docs/kernels.md", kernels),
        ("docs/objectives.md", objectives),
        ("conf/kustomization.yml", configmaps),
    ],
)
def test_what_is_made_from_the_code_is_in_step_with_it(file: str, make: Callable[[], str]) -> None:
    assert (ROOT / file).read_text() == make()


@pytest.mark.parametrize("group", PARTS)
def test_the_registry_is_what_the_groups_offer(group: str) -> None:
    assert sorted(names(group)) == choices(group)


def test_every_kernel_is_proven_on_two_laws() -> None:
    assert all(len(set(entry.laws)) >= 2 for entry in KERNELS.values())
