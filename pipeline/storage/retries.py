"""Failures of storage: which pass by themselves and are waited out, and words for the others."""

from __future__ import annotations

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipeline.common.errors import PipelineError, StorageError
from pipeline.common.masking import masked

log = logging.getLogger(__name__)
T = TypeVar("T")
LIMIT = 60.0
"""Seconds after which an operation that fails over and over is given up."""
FIRST_LIMIT = 4.0
"""The same before a run starts: a wrong address is to be told at once."""
SHORTEST, LONGEST = 0.2, 8.0  # pauses between two attempts, seconds
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
DENIED = {401, 403}
TRANSIENT_CODES = {"SlowDown", "Throttling", "RequestTimeout", "OperationAborted"}
PERMANENT_ERRNO = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSYS, errno.EOPNOTSUPP, errno.EFBIG),
    *(errno.EXDEV, errno.EMFILE, errno.EREMCHG),
}
# by their names, for the clients that raise them need not be installed
PERMANENT_NAMES = (
    "Credential",
    "AuthenticationE",
    "ParamValidation",
    "FileExpired",
    "NonRetryable",
)
TRANSIENT_NAMES = (
    *("EndpointConnectionError", "HTTPClientError", "ConnectionClosedError", "ConnectTimeout"),
    *("ReadTimeout", "ConnectionError", "ProxyError", "ChunkedEncodingError", "ServerDisconnected"),
    *("ServiceRequestError", "ServiceResponseError", "IncompleteRead", "ClientPayloadError"),
    *("ClientConnectionError", "TransportError", "SSHException", "EOFError"),
)


def patiently(done: str, url: str, attempt: Callable[[], T], limit: float | None = None) -> T:
    """Returns what `attempt` returns, and tries again with growing pauses while it fails in a way
    that may pass, for `limit` seconds in all (None: `LIMIT`).

    `done` says what was to be done with the file at `url`, such as "read". `FileNotFoundError` and
    `IsADirectoryError` pass through. Raises `StorageError` for any other failure.
    """
    limit, began, pause = LIMIT if limit is None else limit, time.monotonic(), SHORTEST
    while True:
        try:
            return attempt()
        except (IsADirectoryError, PipelineError):
            raise
        except Exception as raised:
            error = _cause(raised)
            if isinstance(error, FileNotFoundError):
                raise
            elapsed = time.monotonic() - began
            if not transient(error) or elapsed + pause > limit:
                raise failure(done, url, error, elapsed) from error
            if pause == SHORTEST:
                log.warning("%s: not %s yet (%s); trying again", masked(url), done, reason(error))
        # several processes that lost one server should not come back in step
        if not _wait(pause * random.SystemRandom().uniform(0.5, 1.0)):
            raise StorageError(url, f"could not be {done}: the process is ending")
        pause = min(2 * pause, LONGEST)


def _cause(error: Exception) -> BaseException:
    """Returns the failure that a client has taken for the absence of a file, as that of HTTP does
    with any; else the error itself.
    """
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        return cause if transient(cause) or _status(cause) in DENIED else error
    return error


def _wait(seconds: float) -> bool:
    """Waits, and returns whether the process goes on: another thread than the main one does not
    outlive that.
    """
    main = threading.main_thread()
    if threading.current_thread() is main:
        time.sleep(seconds)
    else:
        main.join(seconds)
    return main.is_alive()


def failure(done: str, url: str, error: BaseException, seconds: float = 0.0) -> StorageError:
    """Returns the error of one line about what could not be done with the file at `url`."""
    lasted = f" for {seconds:.0f} s" if seconds >= 1 else ""
    return StorageError(url, f"could not be {done}{lasted} ({reason(error)}); {remedy(error)}")


def reason(error: BaseException) -> str:
    """Returns what an error says, in one line without secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    return str(masked(text if len(text) <= 300 else f"{text[:297]}..."))


def transient(error: BaseException) -> bool:
    """Returns whether a failure may pass by itself: a connection that is refused or breaks, a
    timeout, an answer of status 5xx or 429, throttling, or an `OSError` of no known cause.
    """
    for link in _chain(error):
        status = _status(link)
        if status is not None:
            return status in TRANSIENT_STATUS or _code(link) in TRANSIENT_CODES
        if _named(link, PERMANENT_NAMES):
            return False
    if isinstance(error, (ConnectionError, TimeoutError)) or _named(error, TRANSIENT_NAMES):
        return True
    if isinstance(error, (ValueError, NotImplementedError)) or not isinstance(error, OSError):
        return False
    if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError)):
        return False  # some clients raise them without a number
    if str(error).startswith("Forbidden"):  # gcsfs, of a status 403
        return False
    return error.errno not in PERMANENT_ERRNO


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, and what it was raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _named(error: BaseException, names: tuple[str, ...]) -> bool:
    """Returns whether one of `names` is in the name of the error's class, or of a base."""
    return any(name in kind.__name__ for kind in type(error).__mro__ for name in names)


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status within an error, as the clients of S3, Google's, Azure's and plain
    HTTP storage have it.
    """
    response: Any = getattr(error, "response", None)
    found = [getattr(error, name, None) for name in ("status_code", "status", "code")]
    if isinstance(response, dict):  # botocore
        found.insert(0, response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        found.insert(1, response.get("Error", {}).get("Code"))
    for value in found:
        if str(value).isdigit() and 100 <= int(str(value)) <= 599:
            return int(str(value))
    return None


def _code(error: BaseException) -> str:
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def remedy(error: BaseException) -> str:
    """Returns what would be right, in words for whoever gave the URL."""
    number = getattr(error, "errno", None)
    statuses = {_status(link) for link in _chain(error)}
    if any(_named(link, ("Credential",)) for link in _chain(error)):
        return (
            "no credentials were found, or they are not whole: give this storage's, such as"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        )
    if number == errno.EROFS:
        return "the file system is read-only; give another place"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "make room there"
    denied = isinstance(error, PermissionError) or "Forbidden" in str(error)
    if denied or statuses & DENIED or _named(error, ("AuthenticationE",)):
        return "check the user or key, its secret, and what it may do there"
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or folder: correct the name, or make it first"
    if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
        return "a file stands where a folder is wanted, or the other way round; give another place"
    if transient(error):
        return "check that the storage answers at its address, and the network to it"
    return "check the URL and the storage's settings"
