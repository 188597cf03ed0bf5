"""The surroundings of a Ray of the run's own: a folder for its sockets and files, and a place for
its token.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path

from pipeline.common.errors import ConfigError

log = logging.getLogger(__name__)
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes that the path of a socket in the file system (AF_UNIX) may have."""
SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1"
"""The longest of the paths that Ray makes for sockets, below the folder for temporary files."""
USUAL = "/tmp"
TOKEN_SETTINGS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def temporary_folder() -> Path:
    """Returns the folder for Ray's sockets and files: `ray` in RAY_TMPDIR, or TMPDIR. Where its
    path is too long for a socket, or it cannot be written to, it is the one in /tmp, with a
    warning.

    Raises `ConfigError` where that cannot be written to either.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    chosen = os.environ.get(name) or USUAL
    if _takes_sockets(chosen):
        return Path(chosen, "ray")
    longest = LONGEST_SOCKET - len(SOCKET) - 1
    wanted = (
        f"Ray wants an absolute path of at most {longest} bytes for its sockets, and files must be"
        " writable there"
    )
    if not _takes_sockets(USUAL):
        raise ConfigError(name, chosen, f"{wanted}; {USUAL}/ray cannot be written to either")
    log.warning("%s=%s: %s; it uses %s/ray", name, chosen, wanted, USUAL)
    return Path(USUAL, "ray")


def supply_token() -> None:
    """Ray writes the token that guards it to a file in the home folder. Where none can be written
    there, this process and those that it starts get one by their environment.
    """
    if not any(name in os.environ for name in TOKEN_SETTINGS) and not _home_has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _home_has_token() -> bool:
    """Returns whether the token is in the home folder, or can be written there."""
    try:
        file = Path.home() / ".ray" / "auth_token"
    except RuntimeError:  # HOME is unset, and the system does not know this user
        return False
    if os.path.lexists(file):
        return os.access(file, os.R_OK)
    return _takes_files(file.parent)


def _takes_sockets(folder: str) -> bool:
    path = Path(folder)
    short = len(os.fsencode(path / SOCKET)) <= LONGEST_SOCKET
    return short and path.is_absolute() and _takes_files(path / "ray")


def _takes_files(folder: Path) -> bool:
    """Returns whether files can be made in the `folder`, which is made where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
