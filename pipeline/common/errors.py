"""Errors that a person is meant to read. An entry point prints one line and takes its status."""

from __future__ import annotations

from pipeline.common.masking import masked

VALUE, LINE = 200, 1000
"""Characters that are shown of a value, and of a whole message."""


def one_line(text: object, most: int = LINE) -> str:
    """Returns `text` as one line of at most `most` characters: white space as single blanks, what
    no terminal should be sent escaped, the middle of a longer one left out.
    """
    line = " ".join(str(text).split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    if len(line) <= most:
        return line
    return f"{line[: most * 2 // 3]} ... {line[-(most // 3 - 5) :]}"


def refusal(name: str, value: object, remedy: str) -> str:
    """Returns the line that says that what is called `name` may not be `value`."""
    named, shown = (one_line(text, VALUE) or "''" for text in (name, value))
    return one_line(f"{named}={shown}: {one_line(remedy, LINE // 2)}")


class ArgumentError(ValueError):
    """The mathematics refuses an argument: `argument` is its name in the code, `value` what it had,
    and `remedy` says what would be right. Where a configuration gave the argument,
    `pipeline.assembly.refusals` turns this into the `ConfigError` about its key.
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        super().__init__(argument, value, remedy)  # as they are, so that the error can be pickled
        self.argument, self.value, self.remedy = argument, value, remedy

    def __str__(self) -> str:
        return refusal(self.argument, self.value, self.remedy)


class PipelineError(Exception):
    """The base of the errors below, whose texts show no secrets. The process ends with
    `exit_status`.
    """

    exit_status = 1

    def __str__(self) -> str:
        return one_line(masked(super().__str__()))


class RefusedError(PipelineError):
    """Something that was asked for was refused before anything started.

    `key` had `value`; `remedy` says what is wrong with it, and what would be right.
    """

    exit_status = 2

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(key, value, remedy)  # as they are: errors cross process borders pickled
        self.key, self.value, self.remedy = key, value, remedy

    def __str__(self) -> str:
        return refusal(self.key, masked(self.value), str(masked(self.remedy)))


class ConfigError(RefusedError):
    """The configuration is wrong in itself, or does not go with the data."""


class DataError(RefusedError):
    """The data could not be read, or are not what the configuration says they are."""


class StorageError(PipelineError):
    """The file at `url` could not be read or written; `words` say why, and what would be right."""

    def __init__(self, url: str, words: str) -> None:
        super().__init__(url, words)  # as they are, so that the error can be pickled
        self.url, self.words = url, words

    def __str__(self) -> str:
        return one_line(masked(f"{self.url}: {self.words}"))


class CheckpointError(PipelineError):
    """There is no complete checkpoint, it is damaged, or it does not fit this run."""

    exit_status = 2


class DamagedError(CheckpointError):
    """The manifest or a part of a checkpoint is gone, or is not what was written. An older
    checkpoint may be whole.
    """


class FormatError(CheckpointError):
    """Another version of this package wrote the checkpoint, in the run whose id is `run`."""

    def __init__(self, message: str, run: str) -> None:
        super().__init__(message, run)  # as they are, so that the error can be pickled
        self.run = run

    def __str__(self) -> str:
        return str(self.args[0])


class LostLeaseError(PipelineError):
    """Another run has taken the output over: this one may no longer write there."""


class DivergenceError(PipelineError):
    """The run diverged: steps had a loss or a gradient that is not finite, or figures that no
    model of the data has.
    """


class OutOfStepError(PipelineError):
    """An actor is not where its driver left it: a new process, which nobody saw die."""


class ServerOutOfStepError(OutOfStepError):
    """The parameter server is that actor. Whoever waits for its answer says so too."""


class ClusterError(PipelineError):
    """Actors died, or hung, and could not be brought back in time."""
