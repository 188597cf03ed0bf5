"""The page about a run while it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from pipeline.common.masking import masked
from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.runs.metrics import RunMetrics
from pipeline.storage.rows import Row

SECONDS = 5.0
"""Between two drawings, however often the page is asked for."""
RENEWED = 15
"""Seconds after which a browser asks for it again."""


class LivePage:
    """The page of `pipeline.runs.page` about the run of `config` as it stands, by `metrics`.

    `known` gives what is known of the summary already, such as `diagnosis`. The page is made in
    whatever thread asks for it, and steps do not wait: it reads what they write, and keeps nothing
    that they need.
    """

    def __init__(
        self, config: RunConfig, output: str, metrics: RunMetrics, known: Callable[[], Figures]
    ) -> None:
        self._config, self._output, self._metrics = config, output, metrics
        self._known = known
        self._lock = threading.Lock()
        self._content, self._made_at = "", -SECONDS

    def __call__(self, rows: Sequence[Row]) -> str:
        """Returns the page with curves of `rows`: the newest one, or one that is made now."""
        with self._lock:
            if time.monotonic() - self._made_at >= SECONDS:
                self._content = self._make(rows)
                self._made_at = time.monotonic()
            return self._content

    def _make(self, rows: Sequence[Row]) -> str:
        from pipeline.evaluation.curves import curves  # brings Matplotlib
        from pipeline.runs.page import Read, page

        now = self._metrics.row()
        step = int(now["ebm_version"])
        if step > (rows[-1]["step"] if rows else 0):
            rows = [*rows, {"step": step, "time": time.time(), **now}]
        state = "training" if now["ebm_training"] else "at work before or after its steps"
        figures, told = masked(self._known()), masked(self._config.model_dump(mode="json"))
        try:
            pictures = {"curves.png": curves(rows, told["name"])} if len(rows) > 1 else {}
        except Exception as error:  # the rest of the page can be read without
            figures["undrawn_curves"] = masked(f"{type(error).__name__}: {error}")
            pictures = {}
        run = Read(self._output, step, told, figures, pictures, rows, state)
        return page([run], RENEWED)
