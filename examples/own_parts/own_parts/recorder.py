"""A recorder that keeps one line: the figures of the newest step."""

import json
from pathlib import Path

from pipeline.common.types import Figures
from pipeline.runs.recorders.base import RecordedRun


class LastLine:
    """Writes `last_line.json` in the run's folder, which is a local one."""

    def start(self, run: RecordedRun) -> None:
        self._file = Path(run.output) / "last_line.json"

    def record(self, step: int, figures: dict[str, float]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"step": step, **figures}))

    def finish(self, summary: Figures | None) -> None:
        """The line stays."""
