"""From the command line to a configuration: YAML groups composed by Hydra, errors in words a person
can act on.

Hydra's compose API only, not its `main` decorator: nothing in `hydra.*` may be set, since its
callbacks could name code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import ConfigError
from pipeline.config import mistakes, parts
from pipeline.config.combinations import check_combinations
from pipeline.config.cores import wants_share, with_share
from pipeline.config.groups import (
    choices,
    conf_directory,
    default_choices,
    fields_of,
    keys_of,
    settings_of,
)
from pipeline.config.run import GROUPS, RunConfig

PATH_KEYS = (
    *("output", "init_from", "metrics.address"),
    *("data.path", "data.held_out_path", "data.weights_path", "data.contacts", "energy.edges"),
)
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

# for what pydantic names by its Python type
WANTED = {
    "tuple_type": "should be a list such as [a,b]",
    "dict_type": "should be a dictionary such as {name:value}",
    "string_type": "should be text; put a number or a word such as true in quotes",
    "bool_type": "should be true or false",
    **dict.fromkeys(("int_parsing", "int_from_float", "int_type"), "should be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "should be a number"),
    "string_pattern_mismatch": "should be of letters, digits, `_`, `.` and `-` alone",
}

PLAIN = {
    "Input should": "should",
    "Tuple should": "should",
    " after validation": "",
    "or should be": "or",
}

ENDINGS = (
    r"\.(csv|tsv|parquet|arrow|feather|ipc|npy|npz|h5|hdf5"
    r"|fasta|fa|fas|afa|aln|a2m|a3m|sto|stockholm)(\.gz)?$"
)
CALLED_BY_PATH = ("columns", "images", "fasta")


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The validated configuration of `[group=choice ...] [key=value ...]`. Raises `ConfigError`."""
    return validate(compose_raw(overrides))


def compose_raw(overrides: Sequence[str]) -> dict[str, Any]:
    """The composition of the overrides by Hydra, as plain containers, before validation.

    Raises `ConfigError` for what may not be set, and for keys that there are not.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_form(overrides)
    overrides = [_quoted(text) for text in overrides]
    parser = OverridesParser.create()
    given = dict(_check_override(text, parser) for text in overrides)
    overrides = [_as_hydra_has_it(text) for text in overrides]
    _tell_hydra(given)
    try:
        with initialize_config_dir(str(conf_directory()), version_base="1.3"):
            composed = hydra_compose("config", list(overrides))
        raw = OmegaConf.to_container(composed, resolve=True)
    # a ValueError is of a key under a list that is no number
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _unknown_key(overrides, str(error)) from error
    assert isinstance(raw, dict)
    raw = _without_strangers({str(key): value for key, value in raw.items()}, given)
    if raw["objective"].get("name") == "mixture":
        _fill_in_terms(raw["objective"], given)
    return raw


def _tell_hydra(given: dict[str, Any]) -> None:
    """Stores the defaults of chosen parts that installed packages bring, where Hydra finds them."""
    from hydra.core.config_store import ConfigStore

    chosen = {(group, choice) for group, choice in default_choices().items()}
    chosen |= set(_chosen_by(given["experiment"]).items()) if given.get("experiment") else set()
    chosen |= {(group, given[group]) for group in parts.PARTS if isinstance(given.get(group), str)}
    chosen.add(("kernel", given.get(INNER.rstrip("="))))
    for group, choice in chosen:
        if choice in parts.installed(group):
            ConfigStore.instance().store(choice, settings_of(group, choice), group=group)


def _chosen_by(experiment: str) -> dict[str, str]:
    """The choices of an experiment by group."""
    return {
        key.removeprefix("override /"): choice
        for entry in settings_of("experiment", experiment)["defaults"]
        if isinstance(entry, dict)
        for key, choice in entry.items()
    }


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
    terms = mixture["terms"]
    if not isinstance(terms, dict) or not all(isinstance(term, dict) for term in terms.values()):
        remedy = "should be a dictionary such as {hutchinson:{probes:2}}"
        raise ConfigError("objective.terms", terms, remedy)
    for name in mixture["terms"]:
        if name not in weights:
            raise ConfigError(
                f"objective.terms.{name}",
                mixture["terms"][name],
                "not among objective.weights; add it there",
            )
    mixture["terms"] = {
        name: settings_of("objective", name) | mixture["terms"].get(name, {}) for name in weights
    }


def _without_strangers(raw: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """An experiment's settings of a group are meant for its own choice: another one, given beside
    it, has its own again.
    """
    if given.get("experiment") is None:
        return raw
    experiment = settings_of("experiment", given["experiment"])
    chosen = _chosen_by(given["experiment"])
    for group in parts.PARTS:
        if given.get(group, chosen[group]) == chosen[group]:
            continue
        own = settings_of(group, given[group])
        for key in experiment.get(group, {}):
            if f"{group}.{key}" not in given:
                raw[group].pop(key, None)
                raw[group] |= {key: own[key]} if key in own else {}
    return raw


def _as_hydra_has_it(text: str) -> str:
    if text.startswith(INNER):
        return text.replace(INNER, INNER_GROUP, 1)
    return f"++{text}" if text.startswith(OPTIONS) else text


def _quoted(text: str) -> str:
    """A path in quotes, as Hydra's grammar takes any: `=`, commas, braces and `~` are common in
    paths and mean other things there.
    """
    key, _, value = text.partition("=")
    if key not in PATH_KEYS or value in ("", "null") or value[0] in "'\"":
        return text
    return f"{key}='" + value.replace("'", "\\'") + "'"


def _check_form(overrides: Sequence[str]) -> None:
    """Every override is a key and a value, or takes a key away, which is refused elsewhere."""
    for number, text in enumerate(overrides):
        if text.startswith("-") or not ("=" in text or text.startswith("~")):
            offered = {group: choices(group) for group in reversed(GROUPS)}
            raise mistakes.malformed(overrides, number, list(_known()), GROUPS, offered)


def _check_override(text: str, parser: Any) -> tuple[str, Any]:
    """The override's key and value. Raises `ConfigError` for what may not be set so."""
    from hydra.errors import HydraException

    name, _, given = text.partition("=")
    if text.startswith("~"):
        remedy = "a key cannot be taken away; give it another value, or null"
        raise ConfigError(name, given or "(none)", remedy)
    try:
        override = parser.parse_override(text)
    except HydraException as error:
        near = mistakes.meant_by(name, list(_known()), GROUPS, 1)
        remedy = (
            "not of the form group=choice or key=value; a value with blanks or signs of its own"
            " needs quotes"
        )
        if ":" in name and near:
            remedy = f"write {near[0].rstrip('=')}=VALUE"
        raise ConfigError(name, given, remedy) from error
    key = override.key_or_group
    if not key:
        raise ConfigError(name, given, "no key stands before this value; use key=value")
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
    wrong = value not in there if isinstance(value, str) else inner or not isinstance(value, dict)
    if (inner or key in GROUPS) and wrong:
        group = "kernel" if inner else key
        raise ConfigError(key, given, mistakes.no_such_choice(group, given, there))
    return key, value


def _unknown_key(overrides: Sequence[str], message: str) -> ConfigError:
    """Hydra's complaint, turned to the override it is about.

    Hydra's errors have no field for the key, but their text has it in quotes, which
    `tests/unit/test_config.py` holds them to.
    """
    for text in reversed(overrides):
        key, _, value = text.lstrip("+").partition("=")
        if f"full_key: {key}\n" in f"{message}\n" and "nterpolation" in message:
            why = message.splitlines()[0]
            return ConfigError(key, value, f"{why}; give the value itself")
        if f"'{key}'" in message:
            key = key.removeprefix("kernel@")
            if "already at" in message:
                return ConfigError(key, value, "this key is there already; leave out the +")
            return ConfigError(key, value, f"unknown key; {_nearest(key)}")
    return ConfigError("configuration", " ".join(overrides), " ".join(message.split()))


def _known() -> dict[str, list[str]]:
    """The keys that there are, those under the default choices first, each with the choices that
    have it; from the files in `conf/` alone: no part is imported.
    """
    owners: dict[str, list[str]] = {key: [] for key in keys_of(compose_raw(()))}
    for group in parts.PARTS:
        for choice in choices(group):
            if choice not in parts.installed(group):
                for field in fields_of(settings_of(group, choice)):
                    owners.setdefault(f"{group}.{field}", []).append(choice)
    return owners


def _nearest(key: str) -> str:
    """Advice on an unknown key."""
    known = _known()
    if known.get(key):
        return f"it goes with {key.partition('.')[0]}={', '.join(known[key])}"
    near = mistakes.meant_by(key, list(known), GROUPS)
    return (
        f"did you mean {' or '.join(near)}? (--help lists all)" if near else "--help lists all keys"
    )


def validate(
    raw: dict[str, Any], check: Callable[[RunConfig], None] = check_combinations
) -> RunConfig:
    """The typed and frozen configuration of plain containers, `cluster.threads=auto` as a number,
    and a run without a name under that of its data.

    Raises `ConfigError`, which names the first thing wrong, and the keys of the others.
    """
    for group, section in raw.items():
        for key, value in section.items() if isinstance(section, dict) else ():
            if value == "???":
                raise ConfigError(
                    f"{group}.{key}", value, f"must be given for {group}={section.get('name')}"
                )
    if raw.get("name", "") is None:
        raw = {**raw, "name": _name_of(raw["data"])}
    shared = wants_share(raw)
    if shared:  # a number until the rest is known to be valid, which the share depends on
        raw = {**raw, "cluster": {**raw["cluster"], "threads": 1}}
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise readable(error) from error
    if shared:
        config = with_share(config)
    check(config)
    return config


def _name_of(data: dict[str, Any]) -> str:
    """The name of a run without one: of columns, images and alignments what their files are
    called, else the data set's.
    """
    name, path = str(data["name"]), data.get("path")
    if name not in CALLED_BY_PATH or not isinstance(path, str):
        return name
    # without user, password and query: a name is shown everywhere
    bare = re.sub(r"^.*@", "", re.sub(r"\?[^/]*=.*$", "", path.rpartition("://")[2]))
    parts = [part for part in bare.split("/") if part.strip("*?.")]
    while len(parts) > 1 and any(sign in parts[-1] for sign in "*?["):
        parts.pop()
    stem = parts[-1] if parts else name
    if not stem.startswith(".") and "." in stem:
        stem = re.sub(ENDINGS, "", stem)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem)[:40] or name


def readable(error: ValidationError) -> ConfigError:
    """The first thing wrong in a validation, as a person can act on it."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = _path(first["loc"])
    value = first["input"]
    if first["type"] == "extra_forbidden":
        remedy = f"unknown key; {_nearest(key)}"
    elif first["type"] == "no_such_choice":
        value, remedy = first["ctx"]["name"], first["msg"]
    elif first["type"] == "missing":
        value, remedy = "(missing)", "this key must be given"
    else:
        messages = [
            WANTED.get(problem["type"], problem["msg"])
            for problem in problems
            if _path(problem["loc"]) == key
        ]
        remedy = " or ".join(messages)
        for said, plain in PLAIN.items():
            remedy = remedy.replace(said, plain)
    others = sorted({_path(problem["loc"]) for problem in problems} - {key})
    if others:
        remedy += f" (also wrong: {', '.join(others)})"
    return ConfigError(key, "null" if value is None else value, remedy)


def _path(location: tuple[int | str, ...]) -> str:
    """`trainer.reweight` of pydantic's `("trainer", "reweight", "bool")`: it puts a field's type
    behind its name where there may be several.
    """
    return ".".join(
        part
        for part in map(str, location)
        if part not in ("literal['auto']", "bool") and "constrained" not in part
    )
