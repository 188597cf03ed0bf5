"""`prometheus`: the endpoint that a Prometheus scrapes."""

from __future__ import annotations

from typing import Any

import prometheus_client

from pipeline.common.errors import ConfigError
from pipeline.common.types import Figures
from pipeline.runs.recorders.base import RecordedRun


class Prometheus:
    """Serves `/metrics` on every interface at `metrics.port`, as long as the run goes on."""

    def __init__(self) -> None:
        self._server: Any = None

    def start(self, run: RecordedRun) -> None:
        """Serves the registry, but for port 0. Raises `ConfigError` where the port is taken."""
        port = run.config.metrics.port
        if not port:
            return
        try:
            self._server, _ = prometheus_client.start_http_server(port, registry=run.registry)
        except OSError as error:
            remedy = f"cannot listen there ({error.strerror}); give another port, or 0 for none"
            raise ConfigError("metrics.port", port, remedy) from error

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Does nothing: a scrape reads the registry as it is then."""

    def finish(self, summary: Figures | None) -> None:  # noqa: ARG002 - a scrape has no summary
        """Closes the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
