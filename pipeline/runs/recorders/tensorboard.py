"""`tensorboard`: event files that TensorBoard shows, in the run's folder."""

from __future__ import annotations

import struct
import time
from typing import Any, cast

from pipeline.common.json_text import to_json
from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.paced import Ending, folder_of, settings_of


class TensorBoard:
    """Writes to `<output>/tensorboard`. A run that goes on, or is put back, adds to it an event
    that has readers forget the figures of later steps.
    """

    name = "tensorboard"
    modules: tuple[str, ...] = ("tensorboard",)

    def open(self, run: RecordedRun, step: int) -> int:
        """Begins an event file, with the run's settings as hyperparameters."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = folder_of(run, self.name)
        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else 0)
        self._events = cast(Any, self._writer.file_writer)  # not typed there
        metrics = {"ebm_loss": 0.0, "summary/test_log_likelihood": 0.0}
        for summary in hparams(settings_of(run), metrics):
            self._events.add_summary(summary, step + 1 if step else 0)
        told = to_json(run.config.model_dump(mode="json"), indent=1)
        self._writer.add_text("configuration", f"```\n{told}\n```", step + 1 if step else 0)
        return step

    def back(self, step: int, last: int) -> int:  # noqa: ARG002 - readers forget what was
        """Has readers forget what is of later steps than `step`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        restart = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(step=step + 1, session_log=restart))
        return step

    def record(self, step: int, at: float, figures: dict[str, float]) -> None:
        """Adds one event with all figures."""
        self._add({name: {"simple_value": value} for name, value in figures.items()}, step, at)

    def close(self, ending: Ending | None) -> None:
        """Adds the figures, words and pictures of the end."""
        if ending is not None:
            step = int(ending.figures["version"])
            figures = {f"summary/{name}": value for name, value in ending.figures.items()}
            self.record(step, time.time(), figures)
            pictures = {name: {"image": _image(png)} for name, png in ending.pictures.items()}
            self._add(pictures, step, time.time())
            self._writer.add_text("summary", f"```\n{ending.text}\n```", step)
        self._writer.close()

    def _add(self, values: dict[str, dict[str, Any]], step: int, at: float) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        each = [Summary.Value(tag=name, **value) for name, value in values.items()]
        self._events.add_summary(Summary(value=each), step, walltime=at)


def _image(png: bytes) -> Any:
    """Returns a PNG file as TensorBoard has an image. Its size stands behind its first 16 bytes."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = struct.unpack(">II", png[16:24])
    return Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
