"""`python -m pipeline.reference kernels|objectives`: reference pages, from the registries
themselves (`make docs`).
"""

from __future__ import annotations

import re
import sys
from typing import Any

from pydantic import TypeAdapter

from pipeline.assembly.kernels import KERNELS
from pipeline.config.compose import choices, compose_raw
from pipeline.config.fields import Section
from pipeline.config.kernels import Kernel, KernelConfig
from pipeline.config.objectives import MixtureObjective, ObjectiveConfig, ObjectiveSection

HEAD = """# Kernels

Made by `python -m pipeline.reference kernels` from the code's registry (`pipeline/assembly/`, `pipeline/config/kernels.py`).
Every kernel is a pair `init(position, target) -> State`, `step(generator, state, target, **parameters) -> (State, Info)`
(`pipeline/kernels/NAME.py`, whose docstring has the formulas and their source), and works on all chains of a batch at once.
`tests/statistics` proves each on the laws named here: that it leaves them as they are, that it finds them from a bad start, and
that a broken variant of it is caught; the discrete ones by their whole transition matrix. While a step size or a ladder is
adapted, invariance holds in the limit of slow changes; after `adapt_rounds` it is exact.

| kernel | domain | leaves exp(-E) invariant | at a box's walls | proven on |
|---|---|---|---|---|
"""

OBJECTIVES_HEAD = """# Objectives

Made by `python -m pipeline.reference objectives` from the code's registry (`pipeline/assembly/`,
`pipeline/config/objectives.py`). An objective is a function of an energy and a batch (`pipeline/objectives/`, whose
docstrings have the formulas and their source); what it needs of chance is drawn beforehand and comes in as data. Its loss is in
parts, sums with their counts, so that the trainer may work on `trainer.chunk_rows` rows and `trainer.chunk_draws` directions,
noises or sites of each at once: memory is a setting. Where no chains are needed, no pool is started. `tests/statistics` holds
each against enumeration, quadrature or closed forms, its gradient as well, sees it recover a law that is known, and sees broken
variants of it caught. What each learns in practice: [results](every_objective.md); what each costs:
[performance](performance.md).

| objective | what | domain | chains start at | old negatives may be reweighted |
|---|---|---|---|---|
"""

PARAMETERS = """
## Parameters

`GROUP=NAME GROUP.KEY=VALUE`, with the defaults of `conf/GROUP/`.

| GROUP | key | default | range | meaning |
|---|---|---|---|---|
"""


def kernels() -> str:
    """The page, in Markdown."""
    rows = [(name, _section(KernelConfig, name)) for name in KERNELS]
    overview = [
        f"| `{name}` | {_domain(section)} | {section.invariance} | {section.at_walls} |"
        f" {', '.join(KERNELS[name].laws)} |"
        for name, section in rows
    ]
    return HEAD + "\n".join(overview) + "\n" + _all_parameters("kernel", rows)


def objectives() -> str:
    """The page, in Markdown."""
    rows = [(name, _section(ObjectiveConfig, name)) for name in choices("objective")]
    overview = [_of_objective(name, section) for name, section in rows]
    return OBJECTIVES_HEAD + "\n".join(overview) + "\n" + _all_parameters("objective", rows)


def _of_objective(name: str, section: type[Section]) -> str:
    what = re.match(r"(.*?\)|[^.]*)\.", " ".join((section.__doc__ or "").split()))[1]  # type: ignore[index]
    if not issubclass(section, ObjectiveSection):
        return f"| `{name}` | {what} | of its terms | of its terms | as its terms |"
    domain = {
        "continuous": "R^d",
        "discrete": "{0, ..., q-1}^d",
        "binary": "{0, 1}^d",
        "any": "any",
    }[section.domain]
    if section.domain == "any" and not section.in_box:
        domain = "R^d, {0, 1}^d"
    start = section.model_validate(compose_raw([f"objective={name}"])["objective"]).start
    where = {"persistent": "where they were", "data": "the positives", "noise": "noise", None: "-"}[
        start
    ]
    reweighted = "-" if start is None else "yes" if section.equilibrium_negatives else "no"
    return f"| `{name}` | {what} | {domain} | {where} | {reweighted} |"


def _all_parameters(group: str, rows: list[tuple[str, Any]]) -> str:
    lines = [line for name, section in rows for line in _parameters(group, name, section)]
    return PARAMETERS.replace("GROUP", group) + "\n".join(lines) + "\n"


def _section(config: Any, name: str) -> Any:
    """The section class of the choice `name`, of the union `config`."""
    members = config.__origin__.__args__
    return next(
        member for member in members if name in member.model_fields["name"].annotation.__args__
    )


def _domain(section: type[Kernel]) -> str:
    if section.needs_conditionals:
        return "energies with conditionals (restricted and deep Boltzmann machines)"
    return {"continuous": "R^d, boxes", "discrete": "{0, ..., q-1}^d", "any": "any"}[section.domain]


def _parameters(group: str, name: str, section: type[Section]) -> list[str]:
    defaults = compose_raw([f"{group}={name}"])[group]
    lines = []
    for key, field in section.model_fields.items():
        if key == "name":
            continue
        inner = key == "inner"
        default = (
            defaults[key]["name"] if inner else "null" if defaults[key] is None else defaults[key]
        )
        allowed = (
            "a kernel but this one"
            if inner
            else _range(TypeAdapter(section).json_schema()["properties"][key])
        )
        if section is MixtureObjective:
            default, allowed = "as terms need" if key == "terms" else default, "a dictionary"
        lines.append(f"| `{name}` | `{key}` | {default} | {allowed} | {field.description} |")
    return lines


def _range(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in few words."""
    if "anyOf" in schema:
        return " or ".join(_range(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if schema["type"] == "array":
        return f"list of {_range(schema['items'])}"
    if schema["type"] not in ("number", "integer"):
        return {"null": "null", "string": "a name", "object": "keyword arguments"}[schema["type"]]
    if not {"minimum", "exclusiveMinimum"} & set(schema):
        return "a number"
    low = f"[{schema['minimum']:g}" if "minimum" in schema else f"({schema['exclusiveMinimum']:g}"
    high = (
        f"{schema['maximum']:g}]"
        if "maximum" in schema
        else f"{schema.get('exclusiveMaximum', 'inf')})"
    )
    return f"{'integers in ' if schema['type'] == 'integer' else ''}{low}, {high}"


if __name__ == "__main__":
    print({"kernels": kernels, "objectives": objectives}[sys.argv[1]](), end="")
