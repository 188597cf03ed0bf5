"""The summary of a run that ended before, where it still holds."""

from __future__ import annotations

import json

from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.runs.totals import Totals
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.files import read_file


def summary_of(output: str, config: RunConfig, checkpoint: Checkpoint | None) -> Figures | None:
    """Returns `summary.json` where the `checkpoint` is of the run's last step, or of one at which
    it ended early, and was evaluated as `config` says; else None.
    """
    if checkpoint is None:
        return None
    summary = summary_at(output, checkpoint.step)
    asked = {"evaluation": config.evaluation.model_dump()}
    # it was written in full, or the line about the end of the run could not be told
    if not {*asked, *Totals(apart=False).figures()} <= set(summary):
        return None
    if any(summary[key] != value for key, value in asked.items()):
        return None
    # one that ended early is done for whoever would end it there again
    ended, asked_for = summary.get("ended_early") or {}, config.trainer.model_dump()
    reasons = [
        ended[key] == asked_for[key] for key in ("patience", "until_pearson") if key in ended
    ]
    early = any(reasons)
    if checkpoint.step < config.trainer.steps and not early:
        return None
    # the folder may have been moved since
    return {**summary, "output": output, "checkpoint": checkpoint.folder}


def summary_at(output: str, step: int) -> Figures:
    """Returns what `summary.json` holds where it is of this step: one of an earlier step says
    nothing of a run that went on. Where there is none, or it was cut off, it is empty.
    """
    try:
        summary = json.loads(read_file(f"{output}/summary.json"))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) and summary.get("version") == step else {}
