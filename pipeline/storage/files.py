"""The one place where files are reached: on this machine, or at any URL that fsspec serves.

Every operation tries again for a minute where a failure may pass (`pipeline.storage.retries`), and
raises `StorageError`, whose text is one line without secrets, for those that are left.
`FileNotFoundError` says that a file is not there, and nothing else does. On a local disk what was
written is there in full or not at all, also after a loss of power. Buckets are never made.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.masking import masked
from pipeline.storage.local import (
    append_durably,
    cut_durably,
    make_folders,
    sync_folder,
    write_durably,
)
from pipeline.storage.reader import Reader
from pipeline.storage.retries import failure, patiently

# the first name of a path there is a bucket or a container, and folders need not be made
OBJECT_STORES = {
    *("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "cos", "cosn", "obs", "tos"),
    *("b2", "r2", "swift", "hf", "http", "https"),
}
ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!//|:)/*(.*)", re.DOTALL)

PIECE = 2**20  # bytes of a file that are hashed at once


class Place(NamedTuple):
    """A file or folder: its file system, and its path there without a slash at its end."""

    file_system: fsspec.AbstractFileSystem
    path: str

    def __str__(self) -> str:
        path = self.path if self.local else self.file_system.unstrip_protocol(self.path)
        return str(masked(path))

    def __truediv__(self, name: str) -> Place:
        return Place(self.file_system, f"{self.path.rstrip('/')}/{name}")

    @property
    def local(self) -> bool:
        return isinstance(self.file_system, LocalFileSystem)

    @property
    def top(self) -> Place:
        """The topmost folder on the way: in an object store, the bucket."""
        root = len(self.path) - len(self.path.lstrip("/"))
        end = self.path.find("/", root)
        return self._replace(path=self.path if end < 0 else self.path[:end])

    @property
    def protocols(self) -> set[str]:
        names = self.file_system.protocol
        return {names} if isinstance(names, str) else set(names)


def expanded(url: str, key: str = "output") -> str:
    """Returns `url` with the home folder for a `~` at its start.

    Raises `ConfigError` about `key` where no installed file system serves it, where slashes are
    missing, as in `s3:/bucket`, and where nothing is behind them.
    """
    found = ONE_SLASH.fullmatch(url)
    if found and found[1].lower() in fsspec.available_protocols():
        protocol, rest = found[1].lower(), found[2]
        right = f"{protocol}://{'/' if protocol in LocalFileSystem.protocol else ''}{rest}"
        raise ConfigError(key, url, f"a URL has two slashes behind its colon: {right}")
    if "://" not in url:
        return os.path.expanduser(url)
    if not url.rpartition("://")[2].strip("/") and "::" not in url:
        raise ConfigError(key, url, "names nothing: a bucket, a host or a folder is missing")
    try:
        fsspec.get_filesystem_class(url.partition("://")[0].partition("::")[0])
    except (ValueError, ImportError) as error:
        raise ConfigError(key, url, str(error)) from error
    return url


def locate(url: str, key: str = "output", limit: float | None = None) -> Place:
    """Returns the file system of `url`, and the path there without a slash at its end.

    Raises `ConfigError` about `key` where no installed file system serves the URL, or the archive
    is not there that it is within, and `StorageError` where one that connects at once cannot.
    """
    url = expanded(url, key)
    try:
        connect = lambda: fsspec.core.url_to_fs(url)  # noqa: E731
        file_system, path = patiently("reached", url, connect, limit)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(key, url, failure("reached", url, error).words) from error
    except StorageError as error:
        if isinstance(error.__cause__, (ValueError, ImportError)):
            raise ConfigError(key, url, str(error.__cause__)) from error
        raise
    return Place(file_system, path.rstrip("/"))


def _located(url: str | Place, limit: float | None = None) -> Place:
    return url if isinstance(url, Place) else locate(url, limit=limit)


def read_file(url: str | Place, limit: float | None = None) -> bytes:
    """Returns the content of the file at `url`. Raises `FileNotFoundError` where there is none."""
    file_system, path = _located(url, limit)
    return bytes(patiently("read", str(url), lambda: file_system.cat_file(path), limit))


def write_file(folder: str | Place, name: str, content: bytes, limit: float | None = None) -> None:
    """Writes `content` as `folder/name`, on any file system; the folder is made, a bucket is not.

    On a local disk the file has its old content until the new one is safe there. Raises
    `StorageError`.
    """
    place = _located(folder, limit)

    def attempt() -> None:
        make_folder(place)
        if place.local:
            write_durably(place.path, name, content)
        else:
            place.file_system.pipe_file((place / name).path, content)

    try:
        patiently("written", f"{folder}/{name}", attempt, limit)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise failure("written", f"{folder}/{name}", error) from error


def make_folder(place: Place) -> None:
    """Makes a folder and those above it. Raises `FileNotFoundError` rather than make the topmost
    one of a distant file system: it may be a bucket, or a share.
    """
    file_system, path = place
    if place.local:
        make_folders(path)
    elif not place.protocols & OBJECT_STORES:
        if "memory" not in place.protocols:
            file_system.info(place.top.path)
        file_system.makedirs(path, exist_ok=True)


def append_file(folder: str, name: str, content: bytes) -> bool:
    """Adds `content` to the file `folder/name`, and returns True; returns False where the file is
    on no local disk, for others cannot append.

    Raises `StorageError`, at the first failure: part of the content may be there then.
    """
    place = locate(folder)
    if not place.local:
        return False
    path = os.path.join(place.path, name)
    try:
        append_durably(path, content)
    except OSError as error:
        raise failure("written", path, error) from error
    return True


def cut_file(folder: str, name: str, length: int) -> None:
    """Cuts the file `folder/name` on a local disk to so many bytes; it is made where it is not
    there. Raises `StorageError`.
    """
    place = locate(folder)

    def attempt() -> None:
        make_folder(place)
        cut_durably(os.path.join(place.path, name), length)

    patiently("cut", f"{folder}/{name}", attempt)


def write_pieces(folder: str, name: str, pieces: Callable[[], Iterable[bytes]]) -> None:
    """Writes what `pieces()` yields as the file `folder/name`, end to end, without ever holding all
    of it. The old content is there until the new one is. Raises `StorageError`.
    """
    place, partial = locate(folder), f".{name}.partial"

    def attempt() -> None:
        make_folder(place)
        with place.file_system.open((place / partial).path, "wb") as file:
            for piece in pieces():
                file.write(piece)
            if place.local:
                file.flush()
                os.fsync(file.fileno())

    patiently("written", f"{folder}/{name}", attempt)
    move(f"{folder}/{partial}", f"{folder}/{name}")


def information(url: str | Place, limit: float | None = None) -> dict[str, Any]:
    """Returns what the file system says now of the file or folder at `url`: its `type`, and of a
    file its `size`. Raises `FileNotFoundError` where there is nothing.
    """
    place = _located(url, limit)

    def attempt() -> dict[str, Any]:
        place.file_system.invalidate_cache()
        return dict(place.file_system.info(place.path))

    return patiently("read", str(url), attempt, limit)


def size(url: str | Place) -> int | None:
    """Returns the bytes of the file at `url`, or None where its file system does not tell.

    Raises `FileNotFoundError` where there is none, and `IsADirectoryError` for a folder.
    """
    info = information(url)
    if info["type"] == "directory":
        raise IsADirectoryError(str(url))
    found: int | None = info["size"]
    return found


def checksum(url: str | Place) -> tuple[int, str]:
    """Returns the bytes of the file at `url` and the SHA-256 of its content, which is read piece by
    piece. Raises `FileNotFoundError` where there is none.
    """
    place = _located(url)

    def attempt() -> tuple[int, str]:
        place.file_system.invalidate_cache()
        found, length = hashlib.sha256(), 0
        with place.file_system.open(place.path, "rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
                length += len(piece)
        return length, found.hexdigest()

    return patiently("read", str(url), attempt)


def exists(url: str | Place) -> bool:
    """Returns whether something is at `url`. That there is nothing is believed from
    `FileNotFoundError` alone: any other failure is raised.
    """
    try:
        information(url)
    except FileNotFoundError:
        return False
    return True


def is_folder(url: str | Place) -> bool:
    """Returns whether a folder is at `url`."""
    try:
        return bool(information(url)["type"] == "directory")
    except FileNotFoundError:
        return False


def names(folder: str | Place) -> list[str]:
    """Returns the sorted names of what is in the folder at the URL; none where there is no folder.

    Raises `StorageError` for any other failure.
    """
    try:
        paths = _listed(folder, detail=False)
    except FileNotFoundError:
        return []
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def _listed(folder: str | Place, detail: bool) -> list[Any]:
    """Returns the path of each thing in a folder, or with `detail` what the file system says of
    it.
    """
    place = _located(folder)

    def attempt() -> list[Any]:
        place.file_system.invalidate_cache()
        return list(place.file_system.ls(place.path, detail=detail))

    return patiently("listed", str(folder), attempt)


def files_below(folder: Place) -> list[Place]:
    """Returns the files in a folder and in those below it, sorted by their paths.

    Raises `StorageError` where any of the folders cannot be listed: none is passed over.
    """
    file_system, path = folder
    if folder.protocols & OBJECT_STORES:  # one listing tells all of them
        found = list(patiently("listed", str(folder), lambda: file_system.find(path)))
    else:
        found, folders = [], [path]
        while folders:
            at = folders.pop()
            for entry in _listed(Place(file_system, at), detail=True):
                if entry["type"] != "directory":
                    found.append(entry["name"])
                elif entry["name"].rstrip("/") != at:
                    folders.append(entry["name"].rstrip("/"))
    return [Place(file_system, path) for path in sorted(found)]


def files_matching(pattern: Place) -> list[Place]:
    """Returns what matches a path with `*`, `?` or `[..]` in it, sorted by path."""
    file_system, path = pattern
    found = patiently("listed", str(pattern), lambda: file_system.glob(path))
    return [Place(file_system, path) for path in sorted(found)]


def open_file(url: str | Place) -> Reader:
    """Opens the file at `url` for reading. Raises `FileNotFoundError` where there is none."""
    place = _located(url)
    return Reader(place.file_system, place.path, str(url))


def move(source: str, target: str) -> None:
    """Renames the file or folder at the URL `source`; both are on one file system.

    Raises `FileNotFoundError` where there is none.
    """
    place, there = locate(source), locate(target)

    def attempt(again: bool) -> None:
        try:
            place.file_system.mv(place.path, there.path, recursive=True)
        except FileNotFoundError:
            if not (again and exists(there)):
                raise
        if place.local:
            sync_folder(os.path.dirname(place.path))
            sync_folder(os.path.dirname(there.path))

    _change("moved", source, attempt)


def remove(url: str | Place, limit: float | None = None) -> None:
    """Removes the file, or the folder with all that is in it, at `url`.

    Raises `FileNotFoundError` where there is none.
    """
    place = _located(url, limit)

    def attempt(again: bool) -> None:
        try:
            place.file_system.rm(place.path, recursive=True)
        except FileNotFoundError:
            if not again:
                raise

    _change("removed", str(url), attempt, limit)


def _change(
    done: str, url: str, attempt: Callable[[bool], None], limit: float | None = None
) -> None:
    """Calls `attempt` until it succeeds, and tells it whether it was called before: then a file
    that is not there any more may be the work of that call, whose answer was lost.
    """
    again = False

    def counted() -> None:
        nonlocal again
        first, again = not again, True
        attempt(not first)

    patiently(done, url, counted, limit)
