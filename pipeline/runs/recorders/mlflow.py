"""`mlflow`: a run of MLflow's, on a tracking server or in a database in the run's folder."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.runs.recorders.base import RecordedRun
from pipeline.runs.recorders.entries import remember, remembered
from pipeline.runs.recorders.paced import Ending, folder_of, settings_of

EXPERIMENT = "ebm-pipeline"
SEVERAL = 100
"""Parameters that MLflow takes at once."""
LONGEST = 5000
"""Characters of a parameter's or tag's value."""


class MLflow:
    """Writes to MLFLOW_TRACKING_URI, else to `<output>/mlflow/mlflow.db`, a SQLite database.

    MLflow can only add to a metric, so that steps which are there already are left out.
    """

    name = "mlflow"

    def __init__(self) -> None:
        self._uri = os.environ.get("MLFLOW_TRACKING_URI")
        store: tuple[str, ...] = () if self._uri else ("sqlalchemy", "alembic")
        self.modules: tuple[str, ...] = ("mlflow", *store)

    def open(self, run: RecordedRun, step: int) -> int:
        """Goes on in the run that the run's folder names, or creates one, with the run's settings
        as parameters. Those of a run that goes on stay what they were; its configuration of now is
        the artifact `configuration.json`.
        """
        import mlflow

        for noisy in ("mlflow", "alembic"):  # they tell how they set a database up
            logging.getLogger(noisy).setLevel(logging.WARNING)
        folder = None if self._uri else folder_of(run, self.name)
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(self._uri or f"sqlite:///{folder}/mlflow.db")
        found = self._known(run) if step else None
        if found is None:
            self._id = self._create(run, folder)
            last = -1
        else:
            self._id = found.info.run_id
            self._client.update_run(self._id, status="RUNNING")
            last = int(found.data.metrics.get("ebm_version", -1))
        configuration = run.config.model_dump(mode="json")
        self._client.log_dict(self._id, configuration, "configuration.json")
        return last

    def back(self, step: int, last: int) -> int:  # noqa: ARG002
        """Leaves out what is there already."""
        return last

    def record(self, step: int, at: float, figures: dict[str, float]) -> None:
        """Adds the figures in one request."""
        from mlflow.entities import Metric

        moment = round(1000 * at)
        metrics = [Metric(name, value, moment, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics)

    def close(self, ending: Ending | None) -> None:
        """Adds the figures, words and pictures of the end, and says how it ended."""
        if ending is None:
            self._client.set_terminated(self._id, "KILLED")
            return
        step = int(ending.figures["version"])
        figures = {f"summary/{name}": value for name, value in ending.figures.items()}
        self.record(step, time.time(), figures)
        self._client.set_tag(self._id, "mlflow.note.content", ending.text[:LONGEST])
        with tempfile.TemporaryDirectory() as folder:
            for name, content in ending.pictures.items():
                Path(folder, f"{name}.png").write_bytes(content)
            self._client.log_artifacts(self._id, folder, "pictures")
        self._client.set_terminated(self._id, "FINISHED")

    def _known(self, run: RecordedRun) -> Any:
        """The run of MLflow's that `run` began with, or None where it is gone."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(remembered(run.output, self.name).get("run_id", ""))
        except MlflowException:
            return None

    def _create(self, run: RecordedRun, folder: str | None) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        where = None if folder is None else Path(folder, "artifacts").as_uri()
        number = (
            self._client.create_experiment(name, where)
            if experiment is None
            else experiment.experiment_id
        )
        created: str = self._client.create_run(number, run_name=run.name).info.run_id
        settings = settings_of(run).items()
        params = [Param(key, str(value)[:LONGEST]) for key, value in settings]
        for first in range(0, len(params), SEVERAL):
            self._client.log_batch(created, params=params[first : first + SEVERAL])
        remember(run.output, self.name, {"run_id": created})
        return created
