"""What `tests/conftest.py` asks of xdist."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process has no groups")
def test_xdist_knows_the_groups(request: pytest.FixtureRequest) -> None:
    """It writes them behind names of tests. pytest 9.2 hides that from pytest-xdist 3.8, and two
    Rays would be on the machine at a time.
    """
    assert request.node.nodeid.endswith("@test_groups.py")
