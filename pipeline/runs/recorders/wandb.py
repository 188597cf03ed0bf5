"""`wandb`: a run of Weights & Biases, offline where no key is given."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.entries import remember, remembered
from pipeline.runs.recorders.paced import Ending, folder_of

PROJECT = "ebm-pipeline"


class WandB:
    """Writes to WANDB_DIR, else to `<output>/wandb`.

    A run is offline, for `wandb sync`, unless WANDB_MODE or WANDB_API_KEY say otherwise. Steps of a
    run only go up, so that those which are there already are left out.
    """

    name = "wandb"
    modules: tuple[str, ...] = ("wandb",)

    def open(self, run: RecordedRun, step: int) -> int:
        """Begins the run, under the id that it has had where it goes on."""
        import wandb

        known = remembered(run.output, self.name) if step else {}
        self._output = run.output
        self._id, last = known.get("id", uuid.uuid4().hex), int(known.get("step", -1))
        # it makes a folder `wandb` there itself
        folder = os.environ.get("WANDB_DIR") or str(Path(folder_of(run, self.name)).parent)
        Path(folder).mkdir(parents=True, exist_ok=True)
        online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=folder,
            id=self._id,
            name=run.name,
            config=run.config.model_dump(mode="json"),
            mode=None if online else "offline",
            resume="allow" if online else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
        remember(run.output, self.name, {"id": self._id, "step": last})
        return last

    def back(self, step: int, last: int) -> int:  # noqa: ARG002
        """Leaves out what is there already."""
        return last

    def record(self, step: int, at: float, figures: dict[str, float]) -> None:
        """Adds the figures of a step, and keeps in the run's folder that they are there."""
        self._run.log({**figures, "_timestamp": at}, step=step)
        remember(self._output, self.name, {"id": self._id, "step": step})

    def close(self, ending: Ending | None) -> None:
        """Adds the figures, words and pictures of the end."""
        if ending is None:
            self._run.finish(exit_code=1)
            return
        import wandb

        self._run.summary.update({f"summary/{name}": v for name, v in ending.figures.items()})
        self._run.summary["words"] = ending.text
        with tempfile.TemporaryDirectory() as folder:
            for name, content in ending.pictures.items():
                path = Path(folder, f"{name}.png")
                path.write_bytes(content)
                # at the last step, which is not over before the run is
                self._run.log({name: wandb.Image(str(path))})
            self._run.finish()
