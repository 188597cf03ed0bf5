"""Proxies that the environment names, and what must not go through them."""

from __future__ import annotations

import os

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def keep_loopback_direct() -> None:
    """Has this process, and those that it starts, ask this machine without a proxy, where the
    environment names one: an object store, or a Ray, on this machine is not behind it.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = dict.fromkeys([*filter(None, map(str.strip, named.split(","))), *LOOPBACK])
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)
