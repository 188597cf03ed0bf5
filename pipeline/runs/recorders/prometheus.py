"""`prometheus`: the endpoint that a Prometheus scrapes."""

from __future__ import annotations

import errno
import socket
from typing import Any

import prometheus_client

from pipeline.common.errors import ConfigError
from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.runs.recorders.base import RecordedRun

NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
LOOPBACK, EVERY_IPV4, EVERY = "127.0.0.1", "0.0.0.0", "::"


def address_of(config: RunConfig) -> str:
    """Returns where the endpoint listens: as told, else at this machine's own address where the
    whole run is here, and at every address, of IPv4 and IPv6, where others are to reach it.
    """
    if config.metrics.address is not None:
        return config.metrics.address.removeprefix("[").removesuffix("]")
    if config.cluster.name in ("inline", "local"):
        return LOOPBACK
    return EVERY if socket.has_dualstack_ipv6() else EVERY_IPV4


class Prometheus:
    """Serves `/metrics` at `metrics.address` and `metrics.port`, as long as the run goes on."""

    def __init__(self) -> None:
        self._server: Any = None

    def start(self, run: RecordedRun) -> None:
        """Serves the registry, but for port 0. Raises `ConfigError` where the port is taken, or the
        address is none of this machine.
        """
        port, address = run.config.metrics.port, address_of(run.config)
        if not port:
            return
        try:
            self._server, _ = prometheus_client.start_http_server(
                port, address, registry=run.registry
            )
        except OSError as error:
            why = error.strerror or str(error)
            if isinstance(error, socket.gaierror) or error.errno in NO_SUCH_ADDRESS:
                remedy = f"cannot listen there ({why}); give an address of this machine, or null"
                raise ConfigError("metrics.address", address, remedy) from error
            remedy = f"cannot listen there ({why}); give another port, or 0 for none"
            raise ConfigError("metrics.port", port, remedy) from error

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Does nothing: a scrape reads the registry as it is then."""

    def finish(self, summary: Figures | None) -> None:  # noqa: ARG002 - a scrape has no summary
        """Closes the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
