"""Where files are and go."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec

from pipeline.common.errors import ConfigError
from pipeline.config.run import RunConfig


def resolve_output(config: RunConfig) -> str:
    """Where the run's files go, as an absolute path or a URL.

    Relative paths are of the working directory, but inside a submitted Ray job, whose working
    directory is thrown away, of EBM_RUNS or the home folder. Raises `ConfigError` for a URL that no
    installed file system serves.
    """
    output = config.output or f"runs/{config.name}-{config.digest()}"
    if "://" in output:
        try:
            fsspec.core.url_to_fs(output)
        except (ValueError, ImportError) as error:
            raise ConfigError("output", output, str(error)) from error
        return output
    if os.path.isabs(output):
        return output
    if (
        "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    ):  # set by Ray for the entry point of a submitted job
        base = os.environ.get("EBM_RUNS") or str(Path.home())
        return f"{base.rstrip('/')}/{output}"
    return str(Path(output).absolute())


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """`data.path` made absolute: an actor's working directory need not be the driver's."""
    path = getattr(config.data, "path", None)
    if path is None or "://" in path:
        return config
    return config.model_copy(
        update={"data": config.data.model_copy(update={"path": os.path.abspath(path)})}
    )
