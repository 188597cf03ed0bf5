"""Files that one of several writers creates."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from pipeline.storage.files import Place, exists, locate, make_folder, read_file
from pipeline.storage.retries import patiently


def create_file(url: str, content: bytes) -> bool:
    """Creates the file at `url`, and returns whether it did: False where there is one already.

    Of several that create it at the same time, one alone does, on this machine's file systems, in
    memory, and where the store writes on a condition: S3, Google's and Azure's do, by the clients
    s3fs, gcsfs and adlfs. Other file systems are asked whether the file is there, and it is then
    written. Two that ask at the same moment both write it, and both may be told that they created
    it; the file is that of the last. `content` must name its writer, so that whoever reads it
    later can tell. Raises `StorageError`.
    """
    place = locate(url)

    def attempt() -> bool:
        if place.local:
            with suppress(FileNotFoundError):  # who ends there just now removes an empty folder
                return _create_local(place, content)
            return _create_local(place, content)
        make_folder(_above(place))
        try:
            if not exists(place):
                _pipe_new(place, content)
        except OSError:
            # stores name a conflict in several ways: whether there is a file tells
            if not exists(place):
                raise
        # a request that was repeated because its answer was lost has met its own file
        return read_file(place) == content

    return patiently("written", url, attempt)


def _above(place: Place) -> Place:
    return place._replace(path=place.path.rpartition("/")[0])


def _create_local(place: Place, content: bytes) -> bool:
    make_folder(_above(place))
    try:
        descriptor = os.open(place.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:  # the disk is full: an empty file would stand for its writer
        os.remove(place.path)
        raise
    return True


def _pipe_new(place: Place, content: bytes) -> None:
    """Writes a file on condition that there is none, where the file system can."""
    file_system, path = place
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
    place = locate(folder)
    if place.local:
        with suppress(OSError):
            os.rmdir(place.path)
