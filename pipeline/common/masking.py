"""Secrets in URLs and messages, put out of sight before anything is printed or stored."""

from __future__ import annotations

import logging
import re
from typing import Any

MASK = "***"
SECRET = r"[^=&;\s'\"]*(?:token|sig|secret|passw|pwd|key|credential|auth)[^=&;\s'\"]*"
# (what is looked for, what is put there); a port, `host:8080/`, is no password
PATTERNS = [
    (re.compile(r"(://)[^\s/:@'\"]*:(?!\d+(?:[/\s]|$))[^\s'\"]*@"), rf"\1{MASK}@"),
    (re.compile(r"(https?://)[^\s/@'\"]+@", re.IGNORECASE), rf"\1{MASK}@"),
    (re.compile(rf"([?&;]{SECRET}=)[^&;\s'\"]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"(['\"]{SECRET}['\"]: ?)(['\"])[^'\"]*\2", re.IGNORECASE), rf"\1\2{MASK}\2"),
]


def masked(value: Any) -> Any:
    """Returns `value` with `***` for each secret in its texts: the user and password of a URL,
    query parameters such as token=, sig= and X-Amz-Signature=, and the values of storage options
    such as 'secret': '...'. Dictionaries, lists and tuples are gone through; what has no secret
    comes back as it was.
    """
    if isinstance(value, str):
        for pattern, put in PATTERNS:
            value = pattern.sub(put, value)
        return value
    if isinstance(value, dict):
        return {key: masked(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(masked(entry) for entry in value)
    return value


class MaskingFormatter(logging.Formatter):
    """Formats log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, its traceback included."""
        return str(masked(super().format(record)))
