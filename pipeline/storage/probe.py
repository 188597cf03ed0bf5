"""Trying storage before a run starts, so that it is refused in a second and not after an hour."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress

from pipeline.common.errors import ConfigError, StorageError
from pipeline.common.masking import MASK
from pipeline.storage.files import (
    OBJECT_STORES,
    Place,
    exists,
    information,
    is_folder,
    locate,
    read_file,
    remove,
    write_file,
)
from pipeline.storage.local import missing_folders
from pipeline.storage.retries import FIRST_LIMIT, failure, patiently

MAGIC = re.compile(r"[*?\[]")


def check_output(url: str, key: str = "output", within: Sequence[str] = ()) -> None:
    """Writes a small file under `url`, reads it back and removes it; and so in those of the folders
    `within` that are there. Nothing of that stays. No local folder is made for it, for another run
    may be about to write in the same one: the folder above that is there is tried instead.

    Raises `ConfigError` about `key` where that cannot be done.
    """
    try:
        place = locate(url, key, FIRST_LIMIT)
        if "http" in place.protocols:
            raise StorageError(url, "web servers give files, and take none; give another place")
        _check_bucket(place)
        _try(_there(place) if place.local else place)
        for name in within:
            with suppress(FileNotFoundError):
                information(place / name, FIRST_LIMIT)
                _try(place / name)
    except (StorageError, FileNotFoundError, IsADirectoryError) as error:
        words = (
            error.words if isinstance(error, StorageError) else failure("read", url, error).words
        )
        raise ConfigError(key, url, words) from error


def _there(place: Place) -> Place:
    """Returns the lowest of a local folder and those above it that is there. Raises `StorageError`
    where the system takes no such name.
    """
    try:
        os.lstat(place.path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise failure("written", str(place), error) from error
    missing = missing_folders(place.path)
    return place._replace(path=os.path.dirname(missing[0])) if missing else place


def _try(folder: Place) -> None:
    """Writes a small file in a folder, reads it back and removes it."""
    name, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    write_file(folder, name, content, FIRST_LIMIT)
    if read_file(folder / name, FIRST_LIMIT) != content:
        raise StorageError(
            str(folder), "gives back something else than was written; use another place"
        )
    remove(folder / name, FIRST_LIMIT)


def _check_bucket(place: Place) -> None:
    """Raises `FileNotFoundError` where there is no such bucket: some servers make one for whoever
    writes. Not everybody who may write may ask for it, and whatever else is wrong shows at once.
    """
    if place.protocols & OBJECT_STORES:
        with suppress(StorageError):
            information(place.top, 0.0)


def check_run(url: str, key: str) -> None:
    """Looks at what is at `url`, where a run or a checkpoint should be.

    Raises `ConfigError` about `key` where that cannot be done, and where a file is there.
    """
    check_input(url, key)
    if exists(url) and not is_folder(url):
        raise ConfigError(key, url, "is a file; give a run's output or one of its checkpoints")


def check_input(url: str, key: str) -> None:
    """Looks at what is at `url`, and reads the first byte of a file; of a path with `*`, `?` or
    `[..]`, looks at the folder above.

    Raises `ConfigError` about `key` where that cannot be done, or where there is no such bucket.
    Whoever reads it says what else is missing there.
    """
    if MASK in url:
        raise ConfigError(key, url, "its secrets were not stored with the run; give it anew")
    try:
        place = locate(url, key, FIRST_LIMIT)
        if MAGIC.search(place.path) and "http" not in place.protocols:
            above = MAGIC.split(place.path, maxsplit=1)[0].rpartition("/")[0]
            place = place._replace(path=above)
        if information(place, FIRST_LIMIT)["type"] == "file":
            start = lambda: place.file_system.cat_file(place.path, start=0, end=1)  # noqa: E731
            patiently("read", url, start, FIRST_LIMIT)
    except FileNotFoundError:
        try:
            _check_bucket(place)
        except FileNotFoundError as error:
            raise ConfigError(key, url, "there is no such bucket; correct the name") from error
    except StorageError as error:
        raise ConfigError(key, url, error.words) from error
