"""From the command line to a configuration: YAML groups composed by Hydra, errors in words a person
can act on.

Hydra's compose API only, not its `main` decorator: nothing in `hydra.*` may be set, since its
callbacks could name code.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import ConfigError
from pipeline.config.combinations import check_combinations
from pipeline.config.fields import Section
from pipeline.config.run import GROUPS, RunConfig

PATH_KEYS = ("output", "init_from", "data.path")
# a choice of the group `kernel` at another place, as people write it and as Hydra does
INNER, INNER_GROUP = "kernel.inner=", "kernel@kernel.inner="
# dictionaries whose keys are another function's affair
OPTIONS = (
    *(
        "energy.options",
        "kernel.options",
        "kernel.inner.options",
        "objective.terms",
        "objective.weights",
    ),
    *("cluster.pool_labels", "cluster.server_labels"),
)


def conf_directory() -> Path:
    """The folder of the YAML groups: inside the installed package, or beside it in a checkout.

    The environment variable EBM_CONF names another one, complete with config.yaml and every group:
    on Kubernetes, the ConfigMaps made from conf/, so that a change there needs no new image. Raises
    `ConfigError` where it is not one.
    """
    if given := os.environ.get("EBM_CONF"):
        folder = Path(given).absolute()
        missing = [name for name in ("config.yaml", *GROUPS) if not (folder / name).exists()]
        if missing:
            raise ConfigError(
                "EBM_CONF",
                given,
                f"not a folder of the configuration: no {', '.join(missing)} there",
            )
        return folder
    here = Path(__file__).resolve().parent.parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def choices(group: str) -> list[str]:
    """Names that `group=NAME` accepts."""
    return sorted(path.stem for path in (conf_directory() / group).glob("*.yaml"))


def default_choices() -> dict[str, str | None]:
    """What config.yaml chooses of each group."""
    import yaml

    defaults = yaml.safe_load((conf_directory() / "config.yaml").read_text())["defaults"]
    return {
        group: choice
        for entry in defaults
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The validated configuration of `[group=choice ...] [key=value ...]`. Raises `ConfigError`."""
    return validate(compose_raw(overrides))


def compose_raw(overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of the overrides, as plain containers, before validation."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [_quoted(text) for text in overrides]
    parser = OverridesParser.create()
    given = dict(_check_override(text, parser) for text in overrides)
    overrides = [_as_hydra_has_it(text) for text in overrides]
    try:
        with initialize_config_dir(str(conf_directory()), version_base="1.3"):
            composed = hydra_compose("config", list(overrides))
        raw = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _unknown_key(overrides, str(error)) from error
    assert isinstance(raw, dict)
    raw = _without_strangers({str(key): value for key, value in raw.items()}, given)
    if raw["objective"].get("name") == "mixture":
        _fill_in_terms(raw["objective"], given)
    return raw


def _fill_in_terms(mixture: dict[str, Any], given: dict[str, Any]) -> None:
    """A mixture's terms from `conf/objective/`, under what is set of them; weights that are given
    take the place of all.
    """
    weights = mixture["weights"] = given.get("objective.weights", mixture["weights"])
    there = [name for name in choices("objective") if name != "mixture"]
    if not isinstance(weights, dict) or not weights:
        raise ConfigError(
            "objective.weights", weights, "should be a dictionary such as {pcd:1.0,hutchinson:0.01}"
        )
    for name in weights:
        if name not in there:
            raise ConfigError(
                "objective.weights", name, f"no such objective; there are {', '.join(there)}"
            )
    for name in mixture["terms"]:
        if name not in weights:
            raise ConfigError(
                f"objective.terms.{name}",
                mixture["terms"][name],
                "not among objective.weights; add it there",
            )
    mixture["terms"] = {
        name: _yaml("objective", name) | mixture["terms"].get(name, {}) for name in weights
    }


def _without_strangers(raw: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """An experiment's settings of a group are meant for its own choice: another one, given beside
    it, has its own again.
    """
    if given.get("experiment") is None:
        return raw
    experiment = _yaml("experiment", given["experiment"])
    chosen = {
        key.removeprefix("override /"): choice
        for entry in experiment["defaults"]
        for key, choice in entry.items()
    }
    for group in GROUPS[:4]:
        if given.get(group, chosen[group]) == chosen[group]:
            continue
        own = _yaml(group, given[group])
        for key in experiment.get(group, {}):
            if f"{group}.{key}" not in given:
                raw[group].pop(key, None)
                raw[group] |= {key: own[key]} if key in own else {}
    return raw


def _yaml(group: str, choice: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((conf_directory() / group / f"{choice}.yaml").read_text()) or {}


def _as_hydra_has_it(text: str) -> str:
    if text.startswith(INNER):
        return text.replace(INNER, INNER_GROUP, 1)
    return f"++{text}" if text.startswith(OPTIONS) else text


def _quoted(text: str) -> str:
    """A path as Hydra's grammar takes any: `=`, commas, braces and `~` are common in paths and mean
    other things there.
    """
    key, _, value = text.partition("=")
    if key not in PATH_KEYS or value in ("", "null") or value[0] in "'\"":
        return text
    return f"{key}='" + value.replace("'", "\\'") + "'"


def _check_override(text: str, parser: Any) -> tuple[str, Any]:
    """The override's key and value. Raises `ConfigError` for what may not be set, or not like this."""
    from hydra.errors import HydraException

    name, _, given = text.partition("=")
    if text.startswith("-"):
        raise ConfigError(
            name, given, "unknown option; the arguments are group=choice and key=value (see --help)"
        )
    try:
        override = parser.parse_override(text)
    except HydraException as error:
        raise ConfigError(
            name, given, f"not of the form group=choice or key=value: {str(error).splitlines()[0]}"
        ) from error
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or "@" in name:
        raise ConfigError(key, given, "refused: only this project's own groups and keys may be set")
    if override.is_sweep_override():
        raise ConfigError(
            key, given, "one value is wanted, not a sweep; quote a comma, or use [a,b]"
        )
    value, inner = override.value(), key == INNER.rstrip("=")
    there = [
        name
        for name in choices("kernel" if inner else key)
        if not (inner and name == "replica_exchange")
    ]
    wrong = value not in there if isinstance(value, str) else inner
    if (inner or key in GROUPS) and wrong:
        raise ConfigError(key, given, f"no such choice; there are {', '.join(there)}")
    return key, value


def _unknown_key(overrides: Sequence[str], message: str) -> ConfigError:
    """Hydra's complaint, turned to the override it is about."""
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        if f"'{key}'" in message or f'"{key}"' in message or f" {key}" in message.splitlines()[0]:
            key = key.removeprefix("kernel@")
            return ConfigError(key, value, f"unknown key; {_nearest(key)}")
    return ConfigError("configuration", " ".join(overrides), " ".join(message.split()))


def _nearest(key: str) -> str:
    meanings = {name: meaning for name, _, meaning in describe()}
    if meanings.get(key, "").startswith("("):
        return f"it goes with {meanings[key][1:].partition(')')[0]}"
    known = list(meanings)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if not near:  # a right word under the wrong section, or the other way round
        last = key.rpartition(".")[2]
        near = [name for name in known if name.rpartition(".")[2] == last][:3]
    return (
        f"did you mean {' or '.join(near)}? (--help lists all)" if near else "--help lists all keys"
    )


def validate(
    raw: dict[str, Any], check: Callable[[RunConfig], None] = check_combinations
) -> RunConfig:
    """Typed and frozen, or a `ConfigError` that names the first thing wrong (and counts the
    others).
    """
    for group, section in raw.items():
        for key, value in section.items() if isinstance(section, dict) else ():
            if value == "???":
                raise ConfigError(
                    f"{group}.{key}", value, f"must be given for {group}={section.get('name')}"
                )
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise readable(error) from error
    check(config)
    return config


def readable(error: ValidationError) -> ConfigError:
    """The first thing wrong, as a person can act on it."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = _path(first["loc"])
    value = first["input"]
    if first["type"] == "extra_forbidden":
        remedy = f"unknown key; {_nearest(key)}"
    elif first["type"] == "missing":
        value, remedy = "(missing)", "this key must be given"
    else:
        messages = [problem["msg"] for problem in problems if _path(problem["loc"]) == key]
        remedy = " or ".join(messages).replace("Input should", "should")
    others = sorted({_path(problem["loc"]) for problem in problems} - {key})
    if others:
        remedy += f" (also wrong: {', '.join(others)})"
    return ConfigError(key, "null" if value is None else value, remedy)


def _path(location: tuple[int | str, ...]) -> str:
    """`energy.hidden` of pydantic's `("energy", "mlp", "hidden")`: it puts the chosen member of a
    union into the path.
    """
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in ("energy", "kernel", "objective", "data"):
        del parts[1]
    if parts[:2] == ["kernel", "inner"] and len(parts) > 3:
        del parts[2]
    if parts[:2] == ["objective", "terms"] and len(parts) > 3:
        del parts[3]
    # what pydantic puts behind the name of a field that may be of several types
    return ".".join(
        part
        for part in parts
        if part not in ("literal['auto']", "bool") and "constrained" not in part
    )


def describe() -> Iterator[tuple[str, Any, str]]:
    """(key, default, meaning) of every key, under the default choice of each group and then under
    the others.
    """
    raw = compose_raw(())
    seen: set[str] = set()
    sections: list[tuple[str, type[Section], dict[str, Any]]] = [("", RunConfig, raw)]
    for prefix, model, values in sections:
        for field, information in model.model_fields.items():
            key, default = prefix + field, values.get(field)
            nested = _section_of(information.annotation, default)
            if nested is not None and isinstance(default, dict):
                sections.append((f"{key}.", nested, default))
            elif field != "name" or not prefix:
                seen.add(key)
                yield key, default, information.description or ""
    for group in GROUPS[:4]:
        others: dict[
            str, tuple[Any, str, list[str]]
        ] = {}  # default and meaning where it is first, and the choices that have it
        for choice in choices(group):
            values = _yaml(group, choice)
            section = _section_of(RunConfig.model_fields[group].annotation, values)
            for entry in values.pop(
                "defaults", []
            ):  # a group's choice within a group, "/kernel@inner": it is a key as well
                values |= (
                    {at.partition("@")[2]: choice for at, choice in entry.items()}
                    if isinstance(entry, dict)
                    else {}
                )
            for field, value in values.items():
                key = f"{group}.{field}"
                if (
                    section is not None
                    and key not in seen
                    and field in section.model_fields
                    and field != "name"
                ):
                    others.setdefault(
                        key, (value, section.model_fields[field].description or "", [])
                    )[2].append(choice)
        for key, (value, meaning, owners) in others.items():
            yield key, value, f"({group}={', '.join(owners)}) {meaning}"


def _section_of(annotation: Any, values: Any) -> type[Section] | None:
    """The `Section` class that `values` belongs to, of the one or the union that `annotation`
    names.
    """
    members = getattr(annotation, "__args__", (annotation,))
    for member in members:
        if isinstance(member, type) and issubclass(member, Section) and isinstance(values, dict):
            tag = member.model_fields.get("name")
            if (
                tag is None
                or len(members) == 1
                or values.get("name") in getattr(tag.annotation, "__args__", ())
            ):
                return member
    return None
