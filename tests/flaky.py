"""Storage that fails as it is told to: `flaky://`, a file system in this process's memory."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Flaky(MemoryFileSystem):
    """Each call takes the next of `failures`, and raises it; `fails` chooses calls instead.

    Its paths begin with a bucket, which is there from the start. A user and password, and a query,
    may stand in its URLs.
    """

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = ["", "/bucket"]
    cachable = False
    failures: ClassVar[list[Exception]] = []
    fails: ClassVar[Callable[[str, str], Exception | None] | None] = None
    calls: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.removeprefix("flaky://").partition("?")[0]
        path = path.rpartition("@")[2].strip("/")
        return f"/{path}" if path else ""

    def unstrip_protocol(self, name: str) -> str:
        return "flaky://" + self._strip_protocol(name).lstrip("/")

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[None]:
        fsspec.register_implementation("flaky", cls, clobber=True)
        cls.store.clear()
        cls.pseudo_dirs[:] = ["", "/bucket"]
        cls.failures[:], cls.fails = [], None
        cls.calls.clear()
        yield
        cls.failures[:], cls.fails = [], None

    def _may_fail(self, call: str, path: str) -> None:
        self.calls[call] += 1
        error = self.failures.pop(0) if self.failures else None
        if error is None and Flaky.fails is not None:
            error = Flaky.fails(call, path)
        if error is not None:
            raise error

    def info(self, path: str, **options: Any) -> Any:
        self._may_fail("info", path)
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._may_fail("ls", path)
        return super().ls(path, detail=detail, **options)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self._may_fail("cat_file", path)
        content = bytes(super().cat_file(path, **options))
        return content[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._may_fail("pipe_file", path)
        super().pipe_file(path, value, mode, **options)

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        self._may_fail("rm", path)
        super().rm(path, recursive=recursive, maxdepth=maxdepth)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self._may_fail("mv", path1)
        super().mv(path1, path2, **options)

    def open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if mode == "rb":
            self._may_fail("open", path)
        file = super().open(path, mode, *arguments, **options)
        return _FlakyFile(self, path, file) if mode == "rb" else file


class _FlakyFile:
    """A file that is read through the failures of its file system."""

    def __init__(self, system: Flaky, path: str, file: Any) -> None:
        self._system, self._path = system, path
        self._content, self._position = bytes(file.getvalue()), 0

    def read(self, size: int = -1) -> bytes:
        self._system._may_fail("read", self._path)
        end = None if size < 0 else self._position + size
        piece = self._content[self._position : end]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, len(self._content))[whence]
        return self._position

    def close(self) -> None: ...

    def __enter__(self) -> _FlakyFile:
        return self

    def __exit__(self, *_: object) -> None: ...


class ClientError(Exception):
    """A failure with an HTTP status, as botocore has it."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(f"An error occurred ({code}) when calling the PutObject operation")
        self.response = {
            "Error": {"Code": code or str(status)},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }


class EndpointConnectionError(Exception):
    """Nothing answers, as botocore has it: no `OSError`."""


class NoCredentialsError(Exception):
    """No key was found, as botocore has it."""


def translated(error: OSError, status: int, code: str = "") -> OSError:
    """An error as s3fs makes it of botocore's."""
    error.__cause__ = ClientError(status, code)
    return error


def transient_failures() -> dict[str, Exception]:
    return {
        "reset": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        "no answer": EndpointConnectionError("Could not connect to the endpoint URL"),
        "timeout": TimeoutError("the read timed out"),
        "throttled": translated(OSError(errno.EBUSY, "Please reduce"), 503, "SlowDown"),
        "too slow": translated(TimeoutError("idle"), 400, "RequestTimeout"),
        "server": translated(OSError(errno.EIO, "We encountered an internal error"), 500),
        "status": ClientError(502),
        "unknown": OSError("something went wrong"),
    }


def permanent_failures() -> dict[str, tuple[Exception, str]]:
    """Each with what its message has to say."""
    return {
        "denied": (translated(PermissionError("Access Denied."), 403), "its secret"),
        "google": (OSError("Forbidden: bucket/run"), "its secret"),
        "no key": (NoCredentialsError("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
        "invalid": (translated(OSError(errno.EINVAL, "Invalid"), 400), "check the URL"),
        "read-only": (OSError(errno.EROFS, "Read-only file system"), "is read-only"),
        "full": (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        "a file": (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "a folder is wanted"),
        "argument": (ValueError("bad value"), "check the URL"),
    }
