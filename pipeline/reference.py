"""Pages and lists that are made from the registry of parts and from `conf/` (`make docs`).

    python -m pipeline.reference kernels|objectives|configmaps

`kernels` and `objectives` print the reference pages of `docs/`; `configmaps` prints
`conf/kustomization.yml`.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from pydantic import TypeAdapter

from pipeline.config.compose import compose_raw
from pipeline.config.fields import MOST_INT, Part
from pipeline.config.groups import conf_directory
from pipeline.config.kernels import KernelSection
from pipeline.config.objectives import MixtureObjective, ObjectiveSection
from pipeline.config.parts import KERNELS, OBJECTIVES, section_of

HEAD = """# Kernels

Made by `python -m pipeline.reference kernels` from the registry (`pipeline/config/parts.py`) and
the sections that it names. Every kernel is a pair `init(position, target) -> State`,
`step(generator, state, target, **parameters) -> (State, Info)`, and works on all chains of a batch
at once. The docstring of its `step` has the formulas and their source. `tests/statistics` proves
each on the laws named here: it leaves them as they are, finds them from a bad start, and a broken
variant of it is caught. Discrete kernels are proven by their whole transition matrix. While a step
size or a ladder is adapted, invariance holds in the limit of slow changes. After `adapt_rounds` it
is exact.

| kernel | domain | leaves exp(-E) invariant | at a box's walls | proven on |
|---|---|---|---|---|
"""

OBJECTIVES_HEAD = """# Objectives

Made by `python -m pipeline.reference objectives` from the registry (`pipeline/config/parts.py`) and
the sections that it names. An objective is a function of an energy and a batch
(`pipeline/objectives/`, whose docstrings have the formulas and their source). Its random inputs are
drawn beforehand and come in as data. Its loss is in parts, sums with their counts, so that the
learner may work on `trainer.chunk_rows` rows and `trainer.chunk_draws` directions, noises or sites
of each at once: memory is a setting. Where no chains are needed, no pool is started.
`tests/statistics` holds each against enumeration, quadrature or closed forms, its gradient as well.
It sees each recover a law that is known, and sees broken variants caught.
[Results](every_objective.md) shows what each learns in practice, and
[performance](performance.md) what each costs.

| objective | what | domain | chains start at | old negatives may be reweighted |
|---|---|---|---|---|
"""

PARAMETERS = """
## Parameters

`GROUP=NAME GROUP.KEY=VALUE`, with the defaults of `conf/GROUP/`.

| GROUP | key | default | range | meaning |
|---|---|---|---|---|
"""


CONFIGMAPS_HEAD = """\
# Made by `python -m pipeline.reference configmaps` (`make docs`) from the files of this folder.
# The configuration as ConfigMaps, one a folder, since a key of a ConfigMap may hold no "/". The
# head mounts them as one folder and reads that (EBM_CONF), so that a change in conf/ needs no new
# image. Kustomize has no wildcards. Names end in a hash of the content: a run, and every retry of
# it, keeps what it began with. Called .yml, since every .yaml in conf/ is a part of the
# configuration itself.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
generatorOptions:
  immutable: true
configMapGenerator:
  - name: ebm-conf
    files: [config.yaml]
"""


def kernels() -> str:
    """The page of kernels, in Markdown."""
    rows = [(name, section_of("kernel", name)) for name in KERNELS]
    overview = [
        f"| `{name}` | {_domain(section)} | {section.invariance} | {section.at_walls} |"
        f" {', '.join(KERNELS[name].laws)} |"
        for name, section in rows
        if issubclass(section, KernelSection)
    ]
    return HEAD + "\n".join(overview) + "\n" + _all_parameters("kernel", rows)


def objectives() -> str:
    """The page of objectives, in Markdown."""
    rows = [(name, section_of("objective", name)) for name in sorted(OBJECTIVES)]
    overview = [_of_objective(name, section) for name, section in rows]
    return OBJECTIVES_HEAD + "\n".join(overview) + "\n" + _all_parameters("objective", rows)


def configmaps() -> str:
    """`conf/kustomization.yml`: a ConfigMap for each folder of `conf/`, file by file."""
    folder = conf_directory()
    lines = []
    for group in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        lines += [f"  - name: ebm-conf-{group}", "    files:"]
        lines += [
            f"      - {group}/{file.name}" for file in sorted((folder / group).glob("*.yaml"))
        ]
    return CONFIGMAPS_HEAD + "\n".join(lines) + "\n"


def _of_objective(name: str, section: type[Part]) -> str:
    sentence = re.match(r"(.*?\)|[^.]*)\.", " ".join((section.__doc__ or "").split()))
    assert sentence is not None, f"the docstring of {section.__name__} has no first sentence"
    what = sentence[1]
    if not issubclass(section, ObjectiveSection):
        return f"| `{name}` | {what} | of its terms | of its terms | as its terms |"
    domain = {
        "continuous": "R^d",
        "discrete": "{0, ..., q-1}^d",
        "binary": "{0, 1}^d",
        "continuous or binary": "R^d, {0, 1}^d",
        "any": "any",
    }[section.domain]
    start = section.model_validate(compose_raw([f"objective={name}"])["objective"]).start
    where = {"persistent": "where they were", "data": "the positives", "noise": "noise", None: "-"}[
        start
    ]
    reweighted = "-" if start is None else "yes" if section.equilibrium_negatives else "no"
    return f"| `{name}` | {what} | {domain} | {where} | {reweighted} |"


def _all_parameters(group: str, rows: list[tuple[str, type[Part]]]) -> str:
    lines = [line for name, section in rows for line in _parameters(group, name, section)]
    return PARAMETERS.replace("GROUP", group) + "\n".join(lines) + "\n"


def _domain(section: type[KernelSection]) -> str:
    if section.needs_conditionals:
        return "energies with conditionals (restricted and deep Boltzmann machines)"
    return {"continuous": "R^d, boxes", "discrete": "{0, ..., q-1}^d", "any": "any"}[section.domain]


def _parameters(group: str, name: str, section: type[Part]) -> list[str]:
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
    """The values that a JSON schema allows, in few words."""
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
        if schema.get("maximum", MOST_INT) < MOST_INT
        else f"{schema.get('exclusiveMaximum', 'inf')})"
    )
    return f"{'integers in ' if schema['type'] == 'integer' else ''}{low}, {high}"


if __name__ == "__main__":
    pages = {"kernels": kernels, "objectives": objectives, "configmaps": configmaps}
    print(pages[sys.argv[1]](), end="")
