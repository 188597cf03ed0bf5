"""Places: of the files that a run writes, and of the data that it reads."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.run import RunConfig
from pipeline.storage.files import locate


def resolve_output(config: RunConfig) -> str:
    """Returns where the run's files go, as an absolute path or a URL.

    Relative paths are of the working directory. Inside a submitted Ray job, whose working directory
    is thrown away, they are of EBM_RUNS or the home folder. Raises `ConfigError` for a URL that no
    installed file system serves.
    """
    output = config.output or f"runs/{config.name}-{config.digest()}"
    if "://" in output:
        locate(output)
        return output
    if os.path.isabs(output):
        return output
    # Ray sets it for the entry point of a submitted job
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        base = os.environ.get("EBM_RUNS") or str(Path.home())
        return f"{base.rstrip('/')}/{output}"
    return str(Path(output).absolute())


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Returns `config` with an absolute `data.path`.

    An actor's working directory need not be the driver's.
    """
    path = getattr(config.data, "path", None)
    if path is None or "://" in path:
        return config
    return config.model_copy(
        update={"data": config.data.model_copy(update={"path": os.path.abspath(path)})}
    )
