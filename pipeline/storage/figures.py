"""Pictures, written to any fsspec file system."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

from matplotlib.figure import Figure

from pipeline.storage.files import write_file

_DRAWING = threading.Lock()


def write_figure(figure: Figure, output: str, name: str) -> None:
    """Saves `figure` as the PNG `output/name`, on any fsspec file system."""
    write_file(output, name, drawn(lambda: figure))


def draw_figure(make: Callable[[], Figure], output: str, name: str) -> dict[str, str]:
    """Saves the figure that `make` returns as the PNG `output/name`.

    No picture is worth a run: where it cannot be drawn nothing is written, and `{"undrawn_NAME":
    why}` is returned, without the ending; else nothing. Raises what the file system raises.
    """
    try:
        content = drawn(make)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return {f"undrawn_{name.removesuffix('.png')}": why}
    write_file(output, name, content)
    return {}


def drawn(make: Callable[[], Figure]) -> bytes:
    """Returns the figure that `make` returns as the content of a PNG.

    One is drawn at a time, whichever thread asks: Matplotlib's settings and caches are the whole
    process's.
    """
    buffer = io.BytesIO()
    with _DRAWING:
        make().savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def smaller(content: bytes) -> bytes:
    """Returns a PNG in 64 colours, a third of the bytes."""
    from PIL import Image  # Matplotlib brings it

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").quantize(64).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
