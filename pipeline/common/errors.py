"""Errors that a person is meant to read. Entry points turn each into one line and its exit status."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of the errors below; `exit_status` is what the process ends with."""

    exit_status = 1


class ConfigError(PipelineError):
    """Refused before anything started: `key` had `value`; `remedy` says what would be right."""

    exit_status = 2

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(key, value, remedy)  # as they are: errors cross process borders pickled
        self.key, self.value, self.remedy = key, value, remedy

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.remedy}"


class DataError(PipelineError):
    """The data could not be read, or is not what the configuration says it is."""

    exit_status = 2


class CheckpointError(PipelineError):
    """No complete checkpoint, a checksum that does not hold, or one that does not fit this run."""

    exit_status = 2


class DivergenceError(PipelineError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class OutOfStepError(PipelineError):
    """An actor is not where its driver left it: its process was made anew without anybody having
    seen it die.
    """


class ServerOutOfStepError(OutOfStepError):
    """The parameter server is that actor; whoever waits for what it was to give says so too."""


class ClusterError(PipelineError):
    """Actors died, or hung, and could not be brought back in time."""
