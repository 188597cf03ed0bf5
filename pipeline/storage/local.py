"""Files on this machine's disks: there in full or not at all, also after a loss of power."""

from __future__ import annotations

import os
import uuid


def make_folders(path: str) -> None:
    """Makes a folder and those above it."""
    made = missing_folders(path)
    os.makedirs(path, exist_ok=True)
    for folder in made:
        sync_folder(os.path.dirname(folder))


def missing_folders(path: str) -> list[str]:
    """Returns those of a local folder and the ones above it that are not there, the topmost
    first.
    """
    missing: list[str] = []
    while path and not os.path.lexists(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing


def write_durably(folder: str, name: str, content: bytes) -> None:
    """Writes under a temporary name, and renames when the disk has it all."""
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(folder, name))
    except BaseException:
        if os.path.lexists(temporary):
            os.remove(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Has the disk keep the names in a local folder. Some network disks have no such call."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def append_durably(path: str, content: bytes) -> None:
    """Adds `content` to the file at `path`. After a failure part of it may be there."""
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def cut_durably(path: str, length: int) -> None:
    """Cuts the file at `path` to so many bytes; it is made where it is not there."""
    with open(path, "ab") as file:
        if file.tell() != length:
            file.truncate(length)
            os.fsync(file.fileno())
