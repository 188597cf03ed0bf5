"""`prometheus`: the endpoint that a Prometheus scrapes, and where a person sees the run's page."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import prometheus_client

from pipeline.common.errors import ConfigError
from pipeline.common.masking import masked
from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.live_rows import LiveRows

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


def page_of(config: RunConfig) -> str | None:
    """Returns the URL of the page that a run of `config` serves, or None where it serves none."""
    metrics = config.metrics
    if "prometheus" not in config.recorders or not metrics.port or not metrics.page:
        return None
    address = address_of(config)
    if address in (EVERY, EVERY_IPV4):
        address = socket.gethostname()
    return f"http://{f'[{address}]' if ':' in address else address}:{metrics.port}/"


class Prometheus:
    """Serves `/metrics` at `metrics.address` and `metrics.port`, and with `metrics.page` the run's
    page at `/`, as long as the run goes on.

    Until somebody asks for the page, it costs no more than the rows that its curves are drawn from:
    `LiveRows`, some megabytes. It is made in the thread of who asks.
    """

    def __init__(self) -> None:
        self._server: Any = None
        self._rows: LiveRows | None = None

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
        if run.config.metrics.page and run.page is not None:
            make, rows = run.page, LiveRows(run.output)
            self._rows = rows
            self._server.set_app(_with_page(self._server.get_app(), lambda: make(rows.all())))

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Keeps a row for the page; a scrape reads the registry as it is then."""
        if self._rows is not None:
            self._rows.add({"step": step, **figures})

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps than `step`."""
        if self._rows is not None:
            self._rows.rewind(step)

    def finish(self, summary: Figures | None) -> None:  # noqa: ARG002 - a scrape has no summary
        """Closes the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _with_page(metrics: Any, page: Callable[[], str]) -> Any:
    """Returns the WSGI application that has `page` at /, and `metrics` everywhere else."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/":
            found: Iterable[bytes] = metrics(environ, start_response)
            return found
        try:
            status, content = "200 OK", page()
        except Exception as error:
            status = "500 Internal Server Error"
            content = escape(f"no page: {masked(f'{type(error).__name__}: {error}')}")
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
        start_response(status, headers)
        return [content.encode()]

    return application
