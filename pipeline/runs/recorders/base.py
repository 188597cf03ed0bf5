"""The form of a recorder: a place where a run's figures go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry

from pipeline.common.types import Figures
from pipeline.config.run import RunConfig
from pipeline.storage.rows import Row


class RecordedRun(NamedTuple):
    """The facts that a recorder is told of a run when it starts.

    The run is called `name`, its files are under the path or URL `output`, and `registry` holds
    every metric as it is now, each series with the label `run`. `output` and the configuration may
    hold a password: `pipeline.common.masking.masked(output)` and `config.model_dump(mode="json")`
    are without. `page` makes the page about the run, HTML without secrets, from rows of its series;
    any thread may call it.
    """

    name: str
    output: str
    config: RunConfig
    registry: CollectorRegistry
    page: Callable[[Sequence[Row]], str] | None = None


class Recorder(Protocol):
    """A place where a run's figures go. Another package registers a class, or a function that makes
    one, as an entry point of the group `pipeline.recorders`; it is called with no arguments.

    A recorder may also have `rewind(step)`, which says that the run stands at `step` again: figures
    of later steps are of steps that will be made anew. And it may have `flush()`, which says that a
    checkpoint was written: a run that is resumed keeps the figures of the steps up to there.

    What a recorder raises never ends a run, but for a `ConfigError` of `start`.
    """

    def start(self, run: RecordedRun) -> None:
        """Makes ready, before anything of the run has started. It writes nothing: the run may be
        refused yet, and its folder need not be there. Raises `ConfigError` where the configuration
        asks for something that cannot be had.
        """

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Takes the value of every series at `step`, each `metrics.every` steps and at the end, and
        `time`, Unix seconds, when the step was made: it may be told of a little later.
        """

    def finish(self, summary: Figures | None) -> None:
        """Ends, with what `summary.json` holds, or None where the run did not come to its end."""
