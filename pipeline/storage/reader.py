"""A file that is read through failures of its storage."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from pipeline.storage.retries import patiently


class Reader(io.RawIOBase):
    """The file at `path`, open for reading at any position; messages call it `shown`. Where a read
    fails in a way that may pass, the file is opened anew and read from the same position on.

    Raises `FileNotFoundError` where there is none, and `StorageError`.
    """

    def __init__(self, file_system: Any, path: str, shown: str) -> None:
        self._file_system, self._path, self._shown = file_system, path, shown
        self._position = 0
        self._file: Any = None
        self._patiently(lambda file: file.seek(0))

    def _patiently(self, use: Callable[[Any], Any]) -> Any:
        def attempt() -> Any:
            try:
                if self._file is None:
                    self._file = self._file_system.open(self._path, "rb")
                    self._file.seek(self._position)
                return use(self._file)
            except Exception:
                file, self._file = self._file, None
                if file is not None:
                    file.close()
                raise

        return patiently("read", self._shown, attempt)

    def read(self, size: int = -1) -> bytes:
        """Returns the next `size` bytes, fewer at the end of the file; all of them for -1."""

        def use(file: Any) -> bytes:
            file.seek(self._position)
            return bytes(file.read(size))

        content: bytes = self._patiently(use)
        self._position += len(content)
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._position = self._patiently(lambda file: file.seek(offset, whence))
        else:
            self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()
