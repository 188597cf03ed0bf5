"""A run as its user holds it: `pipeline.train.run` returns it, and `pipeline.open_run` opens it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.assembly.load import check_arguments, load_energy
from pipeline.common.errors import ArgumentError
from pipeline.common.masking import masked
from pipeline.common.types import Figures
from pipeline.common.work import result
from pipeline.config.report import Settings as PageSettings
from pipeline.config.run import RunConfig
from pipeline.config.sample import Settings
from pipeline.energies.base import Energy
from pipeline.runs.summaries import summary_at
from pipeline.runs.threads import own_threads
from pipeline.runs.trained import Trained, config_of, opened
from pipeline.storage.files import names
from pipeline.storage.paths import absolute
from pipeline.storage.probe import check_run
from pipeline.storage.rows import StoredRows
from pipeline.storage.store import find, find_averaged

if TYPE_CHECKING:
    import pandas as pd


class Run(Mapping[str, Any]):
    """A run by its files. As a mapping it is what its `summary.json` holds. Of a run that was not
    evaluated, since it goes on or was interrupted, it has `name`, `version` (its newest
    checkpoint's step), `output` and `checkpoint` alone.

    `config` is its configuration, with what was given in code. What it learned is that of
    `checkpoint`, its newest one when this object was made.
    """

    def __init__(self, config: RunConfig, summary: Figures) -> None:
        self.config, self._summary = config, summary

    def __getitem__(self, key: str) -> Any:
        return self._summary[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._summary)

    def __len__(self) -> int:
        return len(self._summary)

    def __repr__(self) -> str:
        steps = self.config.trainer.steps
        evaluated = "" if "evaluation" in self else ", not evaluated"
        return f"Run({masked(self.output)!r}: step {self['version']} of {steps}{evaluated})"

    def _repr_html_(self) -> str:
        """The run in short, as a notebook shows it: verdict, likelihood, curves and samples."""
        from pipeline.runs.page import in_short, read

        return in_short(read(self.output))

    @property
    def output(self) -> str:
        """The folder or URL of the run's files."""
        return str(self["output"])

    @property
    def report(self) -> str:
        """The run's page, report.html, a path or a URL. Where there is none, since the run was not
        evaluated, it is written. Raises `PipelineError` where it cannot be.
        """
        from pipeline.runs.page import PAGE, write_page

        if PAGE in names(self.output):
            return f"{self.output}/{PAGE}"
        return write_page(PageSettings.model_validate({"runs": (self.output,)}))

    @property
    def curves(self) -> pd.DataFrame:
        """The rows of `metrics.jsonl`, one for each step that was recorded, by step. A column is
        called as its series: `ebm_loss`, `ebm_energy_nats{source="held_out"}`, ... Raises
        `ImportError` where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "Run.curves is a pandas DataFrame, and pandas is not installed: pip install pandas"
            ) from error
        rows = pd.DataFrame(list(StoredRows(self.output)))
        return rows.astype({"step": int}).set_index("step") if len(rows) else rows

    @cached_property
    def energy(self) -> Energy:
        """The energy with its averaged weights, as `pipeline.load` gives it, whose errors it
        raises. What was given in code need not be given again.
        """
        section = self.config.energy
        module, features = (getattr(section, name, None) for name in ("_module", "_features"))
        return load_energy(self["checkpoint"], module, features)

    @cached_property
    def samples(self) -> Tensor:
        """The samples that a run shows at its end, `[evaluation.samples, *shape]` in the units of
        the data, without latent units: chains from noise, which are run again when they are first
        asked for. With `evaluation.samples=0` there are 40. Raises `PipelineError`.
        """
        from pipeline.evaluation.report import samples_from_noise
        from pipeline.runs.draw import SAMPLES, in_own_units

        run = self._trained
        evaluation = run.config.evaluation
        asked = evaluation.model_copy(update={"samples": evaluation.samples or SAMPLES})
        config = run.config.model_copy(update={"evaluation": asked})
        with own_threads():
            torch.set_num_threads(config.cluster.threads)
            drawn, bound, _ = result(samples_from_noise(config, run.energy, run.data))
        return in_own_units(run, bound, drawn)

    def sample(
        self, n: int, *, transitions: int | None = None, given: Any = None, seed: int = 0
    ) -> Tensor:
        """Draws `n` samples, `[n, *shape]` in the units of the data, without latent units, as
        `python -m pipeline.sample` does: chains from noise, with the run's kernel, of
        `transitions` each (by default as the run's evaluation), under the context `given` or a
        list of them, over again.

        Raises `ArgumentError` where an argument is out of range, and `PipelineError`.
        """
        from pipeline.runs.draw import samples_of

        asked = {"samples": n, "transitions": transitions, "given": given, "seed": seed}
        try:
            settings = Settings.model_validate({"runs": (self.output,), **asked})
        except ValidationError as error:
            wrong = error.errors()[0]
            name = "n" if wrong["loc"][0] == "samples" else str(wrong["loc"][0])
            raise ArgumentError(name, wrong["input"], wrong["msg"]) from error
        with own_threads():
            return samples_of(self._trained, settings)

    @cached_property
    def _trained(self) -> Trained:
        checkpoint, weights = find_averaged(self["checkpoint"])
        return opened(self.output, checkpoint, weights, self.config, needs_data=False)


def run_at(
    url: str | Path,
    energy: nn.Module | None = None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Run:
    """The run at `url`; see `pipeline.open_run`. Raises `CheckpointError`, `ConfigError` and
    `ArgumentError`.
    """
    check_arguments(url, energy, features)
    check_run(str(url), "url")
    where = absolute(str(url), "url")
    return as_it_stands(where, config_of(find(where)).carrying(energy=energy, features=features))


def as_it_stands(url: str, config: RunConfig) -> Run:
    """The run at `url` by its newest checkpoint, with what `config` carries. Raises
    `CheckpointError` where there is none.
    """
    checkpoint = find(url)
    output = checkpoint.folder.rpartition("/checkpoints/")[0] or checkpoint.folder
    summary = {"name": config.name, "version": checkpoint.step}
    summary |= summary_at(output, checkpoint.step)
    # the folder may have been moved since
    return Run(config, {**summary, "output": output, "checkpoint": checkpoint.folder})
