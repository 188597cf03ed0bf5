"""The settings of `python -m pipeline.sweep`, and the trials that its command line asks for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose, readable
from pipeline.config.fields import PositiveInt, Section
from pipeline.config.run import RunConfig

PREFIX = "sweep."
MOST_TRIALS = 10_000
# one process a trial, which several trials share a machine with
OWN = ("cluster=inline", "recorders=[series]", "metrics.page=false")


class Settings(Section):
    rungs: Annotated[int, Field(ge=1, le=10)] = Field(
        3, description="times that trials are judged, the last at the end of their steps"
    )
    factor: Annotated[int, Field(ge=2, le=100)] = Field(
        3,
        description="of the trials at a rung, one in so many goes on, to so many times the steps",
    )
    workers: PositiveInt | None = Field(
        None, description="trials at once, each on a core or a GPU; null: as many as there are"
    )
    figure: str | None = Field(
        None,
        description="what trials are judged by: NAME (the lowest is best) or max:NAME, a figure of"
        " metrics.jsonl; null: the log-likelihood of held-out rows",
    )


class Sweep(NamedTuple):
    """A sweep as it is asked for: `swept` are the values of each key, and `trials` the overrides
    of each combination of them, in order. `base` is the configuration of the first trial.
    """

    settings: Settings
    swept: dict[str, list[str]]
    fixed: list[str]
    trials: list[list[str]]
    base: RunConfig

    def config(self, number: int, output: str) -> RunConfig:
        """Returns the configuration of trial `number`, whose files go to `output`. Raises
        `ConfigError`.
        """
        return compose([*self.fixed, *self.trials[number], *OWN, f"output={output}"])


def parse(arguments: Sequence[str]) -> Sweep:
    """Returns the sweep of a command line: `[group=choice ...] [key=value ...] key=a,b,c ...
    [sweep.key=value ...]`.

    Raises `ConfigError` where no key has several values, where there are too many trials, and for
    what any of them would be refused for.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, own, fixed = OverridesParser.create(), {}, []
    swept: dict[str, list[str]] = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if key.startswith(PREFIX) and equals:
            own[key.removeprefix(PREFIX)] = None if value == "null" else value
            continue
        try:
            override = parser.parse_override(text)
        except HydraException:
            fixed.append(text)  # which is told as for any run
            continue
        if not override.is_sweep_override():
            fixed.append(text)
        elif key in ("output", "cluster", "recorders"):
            raise ConfigError(key, value, "is the same for all trials; give one value")
        elif override.is_choice_sweep() or override.is_range_sweep():
            swept[key] = list(override.sweep_string_iterator())
        else:
            remedy = "values are given one by one: key=a,b,c, or key=range(1,4)"
            raise ConfigError(key, value, remedy)
    try:
        settings = Settings.model_validate(own, strict=False)
    except ValidationError as error:
        found = readable(error)
        raise ConfigError(f"{PREFIX}{found.key}", found.value, found.remedy) from error
    base = compose(fixed)  # what is wrong with all of them is told without a trial's values
    if not swept:
        raise ConfigError("sweep", "(missing)", "no key has several values; give key=a,b,c")
    trials = [
        [f"{key}={value}" for key, value in zip(swept, values, strict=True)]
        for values in itertools.islice(itertools.product(*swept.values()), MOST_TRIALS + 1)
    ]
    if len(trials) > MOST_TRIALS:
        raise ConfigError("sweep", "too many trials", f"at most {MOST_TRIALS:,}; give fewer values")
    for trial in trials:
        config = compose([*fixed, *trial, *OWN])
        if settings.figure is None and (config.conditional or not config.data.held_out):
            what = f"energy={config.energy.name} on data={config.data.name}"
            if config.data.has_rows and not config.data.held_out:
                what += " with data.held_out=0"
            remedy = f"{what} has no held-out log-likelihood; name a figure of metrics.jsonl"
            raise ConfigError(f"{PREFIX}figure", "null", remedy)
    return Sweep(settings, swept, fixed, trials, base)
