"""Pictures, written to any fsspec file system."""

from __future__ import annotations

import io

import fsspec
from matplotlib.figure import Figure


def write_figure(figure: Figure, output: str, name: str) -> None:
    """Saves `figure` as the PNG `output/name`, on any fsspec file system."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    file_system, root = fsspec.core.url_to_fs(output)
    file_system.pipe_file(f"{root.rstrip('/')}/{name}", buffer.getvalue())
