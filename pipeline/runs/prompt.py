"""Python at a prompt, where whoever interrupts a run goes on in the same process."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """Returns whether this process is a Jupyter kernel, whose front end shows HTML."""
    return hasattr(_shell(), "kernel")


def at_prompt() -> bool:
    """Returns whether a person types into this process: a notebook, IPython, or `python` alone."""
    return _shell() is not None or hasattr(sys, "ps1")


def _shell() -> Any:
    """Returns the shell of IPython where this process has one; it is not imported for that."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
