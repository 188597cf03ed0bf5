"""The one place where files are reached: on this machine, or at any URL that fsspec serves."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress

import fsspec

from pipeline.common.errors import ConfigError

PIECE = 2**20  # bytes of a file that are hashed at once


def locate(url: str, key: str = "output") -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of `url`, and the path there without a slash at its end.

    Raises `ConfigError` about `key` where no installed file system serves the URL.
    """
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(key, url, str(error)) from error
    return file_system, path.rstrip("/")


def read_file(url: str) -> bytes:
    """Returns the content of the file at `url`. Raises `FileNotFoundError` where there is none."""
    file_system, path = locate(url)
    return bytes(file_system.cat_file(path))


def write_file(folder: str, name: str, content: bytes) -> None:
    """Writes `content` as `folder/name`, on any file system; the folder is made."""
    file_system, path = locate(folder)
    file_system.makedirs(path, exist_ok=True)
    file_system.pipe_file(f"{path}/{name}", content)


def size(url: str) -> int | None:
    """Returns the bytes of the file at `url`, or None where its file system does not tell.

    Raises `FileNotFoundError` where there is none, and `IsADirectoryError` for a folder.
    """
    file_system, path = locate(url)
    info = file_system.info(path)
    if info["type"] == "directory":
        raise IsADirectoryError(url)
    found: int | None = info["size"]
    return found


def checksum(url: str) -> tuple[int, str]:
    """Returns the bytes of the file at `url` and the SHA-256 of its content, which is read piece by
    piece. Raises `FileNotFoundError` where there is none.
    """
    file_system, path = locate(url)
    file_system.invalidate_cache()
    found, length = hashlib.sha256(), 0
    with file_system.open(path, "rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
            length += len(piece)
    return length, found.hexdigest()


def exists(url: str) -> bool:
    """Returns whether something is at `url`. That there is nothing is believed from
    `FileNotFoundError` alone: any other failure is raised.
    """
    file_system, path = locate(url)
    file_system.invalidate_cache()
    try:
        file_system.info(path)
    except FileNotFoundError:
        return False
    return True


def names(folder: str) -> list[str]:
    """Returns the sorted names of what is in the folder at the URL; none where there is no folder.

    Raises what the file system raises for any other failure.
    """
    file_system, path = locate(folder)
    file_system.invalidate_cache()
    try:
        paths = file_system.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(found.rstrip("/").rpartition("/")[2] for found in paths)


def move(source: str, target: str) -> None:
    """Renames the file or folder at the URL `source`; both are on one file system."""
    file_system, path = locate(source)
    file_system.mv(path, locate(target)[1], recursive=True)


def remove(url: str) -> None:
    """Removes the file, or the folder with all that is in it, at `url`."""
    file_system, path = locate(url)
    file_system.rm(path, recursive=True)


def create_file(url: str, content: bytes) -> bool:
    """Creates the file at `url`, and returns whether it did: False where there is one already.

    Of several that create it at the same time, one alone does, on this machine's file systems, in
    memory, and where the store writes on a condition: S3, Google's and Azure's do, by the clients
    s3fs, gcsfs and adlfs. Other file systems are asked whether the file is there, and it is then
    written. Two that ask at the same moment both write it, and both may be told that they created
    it; the file is that of the last. `content` must name its writer, so that whoever reads it
    later can tell. Raises what the file system raises for any other failure.
    """
    file_system, path = locate(url)
    file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
    if _is_local(file_system):
        return _create_local(path, content)
    try:
        if not exists(url):
            _pipe_new(file_system, path, content)
    except OSError:
        # stores name a conflict in several ways: whether there is a file tells
        if not exists(url):
            raise
    # a request that was repeated because its answer was lost has met its own file
    return read_file(url) == content


def _create_local(path: str, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:  # the disk is full: an empty file would stand for its writer
        os.remove(path)
        raise
    return True


def _pipe_new(file_system: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Writes a file on condition that there is none, where the file system can."""
    try:
        file_system.pipe_file(path, content, mode="create")
        return
    except (TypeError, ValueError, NotImplementedError):  # its client knows no conditions
        pass
    except OSError as error:
        if error.errno != errno.ENOSYS:  # what s3fs makes of a server that knows none
            raise
    file_system.pipe_file(path, content)


def remove_if_empty(folder: str) -> None:
    """Removes the folder at the URL where nothing is in it. In stores without folders of their own
    it does nothing.
    """
    file_system, path = locate(folder)
    if _is_local(file_system):
        with suppress(OSError):
            os.rmdir(path)


def _is_local(file_system: fsspec.AbstractFileSystem) -> bool:
    return "file" in file_system.protocol
