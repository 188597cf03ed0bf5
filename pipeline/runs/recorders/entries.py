"""Whose entry in another tool's store a run's is: a small file in the run's folder."""

from __future__ import annotations

import json
from typing import Any

from pipeline.common.json_text import to_json
from pipeline.storage.files import read_file, write_file


def remembered(output: str, tool: str) -> dict[str, Any]:
    """Returns what `remember` was told last of the run under `output`, or nothing."""
    try:
        entry = json.loads(read_file(f"{output}/{tool}.json"))
    except (FileNotFoundError, ValueError):
        return {}
    return entry if isinstance(entry, dict) else {}


def remember(output: str, tool: str, entry: dict[str, Any]) -> None:
    """Writes `<output>/<tool>.json`."""
    write_file(output, f"{tool}.json", to_json(entry).encode())
