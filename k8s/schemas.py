"""Checks objects strictly against their schemas.

These are Kubernetes' own for its kinds, and those of a CustomResourceDefinition for custom ones. An
API server drops a field that it does not know, and says nothing; here it is a problem.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

Json = Any
KUBERNETES = "1.37"
WHERE_TO_GET_THEM = """\
CRDS must name a folder with these CustomResourceDefinitions, as .yaml or .json.gz:
  https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases/
    ray.io_rayjobs.yaml  ray.io_rayclusters.yaml
  https://raw.githubusercontent.com/prometheus-operator/prometheus-operator/v0.93.0/
    example/prometheus-operator-crd/
    monitoring.coreos.com_podmonitors.yaml  monitoring.coreos.com_prometheusrules.yaml"""
SUFFIXES = (".yaml", ".yml", ".json", ".json.gz")


@functools.cache
def custom(folder: Path) -> Mapping[tuple[str, str], Json]:
    """Return schemas by (apiVersion, kind) of the definitions in `folder`.

    Raises `FileNotFoundError` where there is none.
    """
    schemas = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if not path.name.endswith(SUFFIXES):
            continue
        text = (
            gzip.decompress(path.read_bytes()).decode()
            if path.suffix == ".gz"
            else path.read_text()
        )
        definition = (
            json.loads(text) if ".json" in path.suffixes else yaml.load(text, Loader=_fast_loader())
        )
        spec = definition["spec"]
        for version in spec["versions"]:
            name = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            schemas[name] = version["schema"]["openAPIV3Schema"]
    if not schemas:
        raise FileNotFoundError(f"no definitions in {folder}\n{WHERE_TO_GET_THEM}")
    return schemas


def _fast_loader() -> type[yaml.SafeLoader]:
    """Return libyaml's loader where PyYAML has it: a definition is 10,000 lines."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def built_in_problems(value: Json) -> list[str]:
    """Check an object against Kubernetes' own schema; give the first thing wrong with it."""
    return list(_built_in_problems(json.dumps(value, sort_keys=True)))


@functools.cache
def _built_in_problems(text: str) -> tuple[str, ...]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (f"apiVersion: {error.message}",)
    except kubernetes_validate.ValidationError as error:
        worst = best_match([error]) if error.context else error
        return (f"{spelled(worst.absolute_path)}: {_words(worst)}",)
    return ()


def custom_problems(value: Json, schema: Json) -> list[str]:
    """Check an object, its metadata included, against its CustomResourceDefinition."""
    plain = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": value.get("metadata", {})}
    value = copy.deepcopy(value)
    apply_defaults(value, schema)
    found = [
        f"{spelled(error.absolute_path)}: {_words(error)}"
        for error in _validator(schema).iter_errors(value)
    ]
    return [
        *built_in_problems(plain),
        *found,
        *_rule_problems(value, schema, ()),
        *_key_problems(value, schema, ()),
    ]


def _words(error: Any) -> str:
    return str(error.message) if len(error.message) < 300 else f"{error.message[:300]} ..."


_validators: dict[int, tuple[Json, Draft202012Validator]] = {}


def _validator(schema: Json) -> Draft202012Validator:
    """Return the schema's validator, which is made once.

    The schema is kept, so that its identity stays its own.
    """
    if id(schema) not in _validators:
        top = strict(schema)
        top["properties"]["metadata"] = {"type": "object"}  # checked as any object's is
        _validators[id(schema)] = schema, Draft202012Validator(top)
    return _validators[id(schema)][1]


def strict(schema: Json) -> Json:
    """Return the schema in a form that allows only named properties.

    A schema that says itself what becomes of others stays as it is.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Json] = {}
    for key, part in schema.items():
        if key == "properties":
            made[key] = {name: strict(property_) for name, property_ in part.items()}
        elif not key.startswith("x-") and key not in ("default", "description", "format"):
            made[key] = strict(part)
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not free:
        made["additionalProperties"] = False
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


def apply_defaults(value: Json, schema: Json) -> None:
    """Fill in defaults, as an API server does before it validates."""
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
    for _, inner, part in _inside(value, schema):
        apply_defaults(inner, part)


def _inside(value: Json, schema: Json) -> Iterator[tuple[str | int, Json, Json]]:
    """Give (key, value, schema) of what an object or a list holds."""
    if isinstance(value, dict):
        other = schema.get("additionalProperties")
        for key, inner in value.items():
            part = schema.get("properties", {}).get(key, other if isinstance(other, dict) else None)
            if part is not None:
                yield key, inner, part
    elif isinstance(value, list) and "items" in schema:
        for index, inner in enumerate(value):
            yield index, inner, schema["items"]


def _rule_problems(value: Json, schema: Json, path: tuple[str | int, ...]) -> Iterator[str]:
    """Check the definition's CEL rules.

    Those of a change (`oldSelf`) are not asked: there is no object before this one.
    """
    import cel

    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"]:
            continue
        try:
            holds = cel.evaluate(rule["rule"], {"self": value})
        except Exception as error:  # whatever the library raises for a rule that it has no word for
            yield f"{spelled(path)}: the rule {rule['rule']!r} cannot be evaluated: {error}"
            continue
        if holds is not True:
            yield f"{spelled(path)}: {rule.get('message', rule['rule'])}"
    for key, inner, part in _inside(value, schema):
        yield from _rule_problems(inner, part, (*path, key))


def _key_problems(value: Json, schema: Json, path: tuple[str | int, ...]) -> Iterator[str]:
    """Look for keys that a list with x-kubernetes-list-map-keys has twice."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys and isinstance(value, list):
        names = [
            tuple(entry.get(key) for key in keys) for entry in value if isinstance(entry, dict)
        ]
        for name in sorted({str(name) for name in names if names.count(name) > 1}):
            yield f"{spelled(path)}: two entries with {', '.join(keys)} = {name}"
    for key, inner, part in _inside(value, schema):
        yield from _key_problems(inner, part, (*path, key))


def spelled(path: Sequence[str | int]) -> str:
    """Return a path as people write it, such as `spec.containers[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "(the whole)"
