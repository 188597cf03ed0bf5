"""The one place where files are reached: on this machine, or at any URL that fsspec serves."""

from __future__ import annotations

import fsspec

from pipeline.common.errors import ConfigError


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
