"""The folder of YAML groups, `conf/`: what each group offers, with which settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config import parts
from pipeline.config.run import GROUPS


def conf_directory() -> Path:
    """The folder of the YAML groups, inside the installed package, or beside it in a checkout.

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
    """Names that `group=NAME` accepts: files in `conf/group/`, and parts of installed packages."""
    files = {path.stem for path in (conf_directory() / group).glob("*.yaml")}
    return sorted(files | set(parts.installed(group)))


def default_choices() -> dict[str, str | None]:
    """The choice of each group in config.yaml."""
    import yaml

    defaults = yaml.safe_load((conf_directory() / "config.yaml").read_text())["defaults"]
    return {
        group: choice
        for entry in defaults
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }


def settings_of(group: str, choice: str) -> dict[str, Any]:
    """The settings of a choice as its file has them, or the package that brings it."""
    import yaml

    file = conf_directory() / group / f"{choice}.yaml"
    if not file.exists():
        return parts.defaults_of(group, choice)
    return yaml.safe_load(file.read_text()) or {}


def keys_of(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the keys of nested dictionaries, `section.key`, but for the name of a section."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{prefix}{key}.")
        elif key != "name" or not prefix:
            yield prefix + key


def fields_of(values: dict[str, Any]) -> dict[str, Any]:
    """A choice's fields and their defaults. A choice within it ("/kernel@inner") is a field too."""
    fields = {key: value for key, value in values.items() if key not in ("defaults", "name")}
    for entry in values.get("defaults", []):
        if isinstance(entry, dict):
            fields |= {at.partition("@")[2]: choice for at, choice in entry.items()}
    return fields
