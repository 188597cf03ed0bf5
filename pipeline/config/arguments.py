"""Command lines about runs that are there already: settings of the entry point, and overrides of
what the run was told.
"""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pipeline.common.errors import ConfigError, PipelineError
from pipeline.common.output import lasting_output
from pipeline.common.proxies import keep_loopback_direct
from pipeline.config.compose import compose_raw, readable, validate
from pipeline.config.domains import check_domains
from pipeline.config.fields import Section
from pipeline.config.help import listed
from pipeline.config.mistakes import FORM, malformed
from pipeline.config.run import RunConfig

S = TypeVar("S", bound=Section)
# taken as they stand: paths and URLs
TEXTS = ("run", "runs", "output", "points", "features", "ood", "start", "clamp", "clamp_mask", "to")


def parse(
    arguments: Sequence[str], settings: type[S], overridable: Sequence[str]
) -> tuple[S, list[str]]:
    """The entry point's own settings, and the arguments that override what the run was told:
    `overridable` and what is below.

    Raises `ConfigError` for a key that is neither, and for a bad value.
    """
    values: dict[str, Any] = {}
    overrides = []
    for number, text in enumerate(arguments):
        key, equals, value = text.partition("=")
        if not equals or text.startswith("-"):
            known, runs = list(settings.model_fields), "run" in values or "runs" in values
            if not (equals or text.startswith("-") or text in known or runs):
                raise ConfigError(text, "(missing)", f"write run={text}: {FORM}")
            raise malformed(arguments, number, known, overridable)
        if key.startswith(tuple(f"{name}." for name in overridable)) or key in overridable:
            overrides.append(text)
        elif key == "run" and "runs" in settings.model_fields:
            values["runs"] = _value("runs", value)
        elif key in settings.model_fields:
            values[key] = _value(key, value)
        else:
            near = difflib.get_close_matches(
                key, [*settings.model_fields, *overridable], n=2, cutoff=0.5
            )
            raise ConfigError(
                key,
                value,
                (
                    f"unknown key; did you mean {' or '.join(near)}?"
                    if near
                    else "unknown key; see --help"
                ),
            )
    try:
        return settings.model_validate(values), overrides
    except ValidationError as error:
        if not values.keys() & {"run", "runs"}:
            remedy = "give the folder or the URL of a run, such as run=runs/latest"
            raise ConfigError("run", "(missing)", remedy) from error
        raise readable(error) from error


def _value(key: str, text: str) -> Any:
    if key == "runs":
        return [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",")]
    if key in TEXTS:
        return text or None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(key, text, "no number, name or list such as [1,2]") from error


def reconfigured(stored: dict[str, Any], overrides: Sequence[str]) -> RunConfig:
    """A run's configuration under other settings of its kernel or evaluation, or with its data at
    another place.

    Training is over: a kernel is checked against the energy and the data, not against the
    objective.
    """
    raw = copy.deepcopy(stored)
    keys = [text.partition("=")[0] for text in overrides]
    chosen = {group: raw[group]["name"] for group in ("kernel", "data", "energy")}
    if "inner" in raw["kernel"]:
        chosen["kernel.inner"] = raw["kernel"]["inner"]["name"]
    if "kernel" in keys:
        del chosen["kernel"]
        chosen.pop("kernel.inner", None)
    given = compose_raw(
        [*(f"{key}={name}" for key, name in chosen.items() if key not in keys), *overrides]
    )
    # of a training run's beginning, and of places where its figures go: older checkpoints have none
    raw |= {key: given[key] for key in ("init_what", "recorders")}
    for group in ("data", "energy"):  # settings that older checkpoints lack have their defaults
        raw[group] = {**given[group], **raw[group]}
    for key in keys:
        *path, last = key.split(".")
        target, source = raw, given
        for part in path:
            target, source = target[part], source[part]
        target[last] = source[last]
    return validate(raw, check_domains)


def usage(text: str, settings: type[Section], prefix: str = "") -> str:
    """`--help`: the module's docstring, and the keys with their defaults."""
    lines = [text.strip(), "", "Keys, with their defaults:"]
    fields = settings.model_fields.items()
    keys = [
        (prefix + name, "" if field.is_required() else field.default, field.description or "")
        for name, field in fields
    ]
    return "\n".join([*lines, *listed(keys)])


def carry_out(
    arguments: Sequence[str], help_text: str, work: Callable[[Sequence[str]], None]
) -> int:
    """The command line of an entry point; its exit status: 0 done, 2 refused, 1 failed, 130
    interrupted.
    """
    keep_loopback_direct()
    with lasting_output():
        return _carry_out(arguments, help_text, work)


def _carry_out(
    arguments: Sequence[str], help_text: str, work: Callable[[Sequence[str]], None]
) -> int:
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text)
        return 0
    try:
        work(arguments)
    except PipelineError as error:
        print(
            f"{'refused' if error.exit_status == 2 else 'failed'}: {error}",
            file=sys.stderr,
            flush=True,
        )
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted: what was begun is not finished", file=sys.stderr, flush=True)
        return 130
    return 0
