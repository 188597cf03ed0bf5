"""Places: of the files that a run writes, and of the data that it reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.run import RunConfig
from pipeline.storage.files import expanded

DATA_PATHS = ("path", "held_out_path", "weights_path", "contacts")
"""Settings of data that name files."""


def resolve_output(config: RunConfig) -> str:
    """Returns where the run's files go, as an absolute path or a URL.

    A `~` at the start is the home folder. Relative paths are of the working directory. Inside a
    submitted Ray job, whose working directory is thrown away, they are of EBM_RUNS or the home
    folder. Raises `ConfigError` for a URL that no installed file system serves, or that is none.
    """
    output = expanded(config.output or f"runs/{config.name}-{config.digest()}")
    if "://" in output:
        return output
    if os.path.isabs(output):
        return output
    # Ray sets it for the entry point of a submitted job
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        base = os.environ.get("EBM_RUNS") or str(Path.home())
        return f"{base.rstrip('/')}/{output}"
    return str(Path(output).absolute())


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Returns `config` with the files of its data (`DATA_PATHS`) and energy from the root.

    An actor's working directory need not be the driver's. Raises `ConfigError` for a URL that no
    installed file system serves, or that is none.
    """
    update = {}
    for name in DATA_PATHS:
        path = getattr(config.data, name, None)
        if path is not None:
            update[name] = absolute(path, f"data.{name}")
    changed: dict[str, Any] = {"data": config.data.model_copy(update=update)}
    edges = getattr(config.energy, "edges", None)
    if edges is not None:
        absolute_edges = {"edges": absolute(edges, "energy.edges")}
        changed["energy"] = config.energy.model_copy(update=absolute_edges)
    return config.model_copy(update=changed)


def absolute(url: str, key: str) -> str:
    """Returns a path from the root, or a URL as it is. Raises `ConfigError` about `key` for a URL
    that no installed file system serves, or that is none.
    """
    url = expanded(url, key)
    return url if "://" in url else os.path.abspath(url)


def check_shared(config: RunConfig, output: str) -> None:
    """Raises `ConfigError` where a run in several processes is to have files in the memory of
    one.
    """
    if config.cluster.name == "inline":
        return
    urls = {"output": output, **{f"data.{n}": getattr(config.data, n, None) for n in DATA_PATHS}}
    urls |= {"init_from": config.init_from, "energy.edges": getattr(config.energy, "edges", None)}
    for key, url in urls.items():
        if url and "memory://" in url:
            remedy = (
                "is in the memory of this process, which the actors cannot see; give a path or"
                " another URL, or use cluster=inline"
            )
            raise ConfigError(key, url, remedy)
