"""Run the notebooks in examples/, and keep their outputs in them.

    python -m benchmarks.notebooks [NAME ...]

Each runs in a kernel of its own, from top to bottom, in an empty folder, which their outputs call
`...`. Everything that differs from one execution to the next for no reason, such as the times at
which cells ran, is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SECONDS = 600
"""The longest that a cell may take."""


def executed(path: Path, folder: str, sizes: str = "") -> nbformat.NotebookNode:
    """Returns the notebook at `path` as it is after it ran in `folder`. `sizes`, a line of code,
    stands in the place of the cell that is tagged so. Raises
    `nbclient.exceptions.CellExecutionError`.
    """
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if sizes and "sizes" in cell.metadata.get("tags", ()):
            cell.source = sizes
    where = {"metadata": {"path": folder}}
    NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources=where).execute()
    return book


def tidied(book: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """Returns the notebook without times and versions, and with `folder` as `...`."""
    book.metadata.language_info = {"name": "python"}
    for cell in book.cells:
        cell.metadata.pop("execution", None)
    text = json.dumps(book, ensure_ascii=False).replace(str(Path(folder).resolve()), "...")
    return nbformat.from_dict(json.loads(text))


def main() -> None:
    """Runs those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", default=known, metavar="NAME", help=", ".join(known))
    for name in parser.parse_args().names:
        path = EXAMPLES / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            book = tidied(executed(path, folder), folder)
        nbformat.write(book, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
