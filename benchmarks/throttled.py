"""A slow store, `throttled:///folder`: this machine's disk at so many bytes a second."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from actors.chain_pool import ChainPool
from actors.parameter_server import ParameterServer

BYTES_PER_SECOND = 20e6


class Throttled(fsspec.AbstractFileSystem):
    """A store to which each process has a connection of its own, of `BYTES_PER_SECOND`: what the
    threads of a process read and write there goes one after the other.
    """

    protocol = "throttled"
    cachable = False
    _connection = threading.Lock()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._disk = LocalFileSystem()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("throttled://").rstrip("/")

    def _transfer(self, size: int) -> None:
        with self._connection:
            time.sleep(size / BYTES_PER_SECOND)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._transfer(len(value))
        self._disk.pipe_file(self._strip_protocol(path), value, mode)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        content = bytes(self._disk.cat_file(self._strip_protocol(path), start, end))
        self._transfer(len(content))
        return content

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode == "rb":
            self._transfer(os.path.getsize(path))
        return self._disk.open(path, mode)

    def info(self, path: str, **_: Any) -> Any:
        return self._disk.info(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self._disk.ls(self._strip_protocol(path), detail=detail)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._disk.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        self._disk.mv(self._strip_protocol(path1), self._strip_protocol(path2))

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        self._disk.rm(self._strip_protocol(path), recursive, maxdepth)


class ThrottledPool(ChainPool):
    """A chain pool whose process knows the store: whoever unpickles the class imports this file."""


class ThrottledServer(ParameterServer):
    """A parameter server whose process knows the store."""


fsspec.register_implementation("throttled", Throttled, clobber=True)
