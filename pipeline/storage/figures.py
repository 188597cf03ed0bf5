"""Pictures, written to any fsspec file system."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from pipeline.storage.files import write_file


def write_figure(figure: Figure, output: str, name: str) -> None:
    """Saves `figure` as the PNG `output/name`, on any fsspec file system."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(output, name, buffer.getvalue())
