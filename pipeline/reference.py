"""`python -m pipeline.reference > docs/kernels.md`: the kernels' reference, from the registry itself."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from pipeline.build import KERNELS
from pipeline.compose import compose_raw
from pipeline.sections import Kernel, KernelConfig

HEAD = """# Kernels

Made by `python -m pipeline.reference` from the code's registry (`pipeline/build.py`, `pipeline/sections.py`).
Every kernel is a pair `init(position, target) -> State`, `step(generator, state, target, **parameters) -> (State, Info)`
(`pipeline/kernels/NAME.py`, whose docstring has the formulas and their source), and works on all chains of a batch at once.
`tests/statistics` proves each on the laws named here: that it leaves them as they are, that it finds them from a bad start, and
that a broken variant of it is caught; the discrete ones by their whole transition matrix. While a step size or a ladder is
adapted, invariance holds in the limit of slow changes; after `adapt_rounds` it is exact.

| kernel | domain | leaves exp(-E) invariant | at a box's walls | proven on |
|---|---|---|---|---|
"""

PARAMETERS = """
## Parameters

`kernel=NAME kernel.KEY=VALUE`, with the defaults of `conf/kernel/`.

| kernel | key | default | range | meaning |
|---|---|---|---|---|
"""


def kernels() -> str:
    """The page, in Markdown."""
    rows = [(name, _section(name)) for name in KERNELS]
    overview = [
        f"| `{name}` | {_domain(section)} | {section.invariance} | {section.at_walls} | {', '.join(KERNELS[name].laws)} |"
        for name, section in rows
    ]
    return HEAD + "\n".join(overview) + "\n" + PARAMETERS + "\n".join(line for row in rows for line in _parameters(*row)) + "\n"


def _section(name: str) -> type[Kernel]:
    """The section class of the kernel `name`."""
    members = KernelConfig.__origin__.__args__  # type: ignore[attr-defined]
    return next(member for member in members if name in member.model_fields["name"].annotation.__args__)


def _domain(section: type[Kernel]) -> str:
    if section.needs_conditionals:
        return "energies with conditionals (RBMs)"
    return {"continuous": "R^d, boxes", "discrete": "{0, ..., q-1}^d", "any": "any"}[section.domain]


def _parameters(name: str, section: type[Kernel]) -> list[str]:
    defaults = compose_raw([f"kernel={name}"])["kernel"]
    lines = []
    for key, field in section.model_fields.items():
        if key == "name":
            continue
        inner = key == "inner"
        default = defaults[key]["name"] if inner else "null" if defaults[key] is None else defaults[key]
        allowed = "a kernel but this one" if inner else _range(TypeAdapter(section).json_schema()["properties"][key])
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
    low = f"[{schema['minimum']:g}" if "minimum" in schema else f"({schema['exclusiveMinimum']:g}"
    high = f"{schema['maximum']:g}]" if "maximum" in schema else f"{schema.get('exclusiveMaximum', 'inf')})"
    return f"{'integers in ' if schema['type'] == 'integer' else ''}{low}, {high}"


if __name__ == "__main__":
    print(kernels(), end="")
