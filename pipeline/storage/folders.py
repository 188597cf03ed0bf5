"""The folders of checkpoints: which of them are this project's, moved aside, and removed.

Somebody's own files may lie beside checkpoints, and within them. Nothing is removed but files that
this project names, and a folder only where nothing else is in it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.common.errors import CheckpointError, ConfigError, DamagedError
from pipeline.config.fields import Section
from pipeline.storage import files
from pipeline.storage.lease import LEASE_FOLDER, LEASE_NAME
from pipeline.storage.manifest import MANIFEST, STEP_NAME, RunId
from pipeline.storage.parts import FILE

RUN = "run.json"
RUNS, LATEST = "runs", "latest"


class RunRecord(Section):
    """The content of `run.json`."""

    run: RunId


def refuse_folder_of_a_run(output: str) -> None:
    """Raises `ConfigError` where a run's output is to be a folder within the output of a run: a
    checkpoint, the one that holds the checkpoints, or that of the lease.
    """
    output = output.rstrip("/")
    found, newest = files.names(output), steps_in(output)[-1:]
    if MANIFEST in found:
        what = "is a checkpoint"
    elif RUN in found or any(MANIFEST in files.names(f"{output}/{n:08d}") for n in newest):
        what = "holds the checkpoints of a run"
    elif output.rpartition("/")[2] == LEASE_FOLDER and any(map(LEASE_NAME.fullmatch, found)):
        what = "holds the lease of a run"
    else:
        return
    remedy = f"{what}; give the run's own output to go on, or init_from=.. for weights"
    raise ConfigError("output", output, remedy)


def point_latest(output: str) -> None:
    """Makes `runs/latest` a symbolic link to `output`, where that lies in a local folder called
    runs. What stands there and is no link stays, and where links cannot be made there is none.
    """
    place = files.locate(output)
    folder = Path(place.path)
    link = folder.parent / LATEST
    if not place.local or folder.parent.name != RUNS or (link.exists() and not link.is_symlink()):
        return
    with suppress(OSError):
        made = link.with_name(f".{LATEST}-{uuid.uuid4().hex}")
        made.symlink_to(folder.name)
        made.replace(link)


def run_of(root: str) -> str | None:
    """Returns the id of the run that the checkpoints in `root` are of, or None where that is not
    recorded.

    Raises `DamagedError` where the record names no run, and `CheckpointError` where a folder is in
    its place, which could not be written over.
    """
    try:
        return RunRecord.model_validate_json(files.read_file(f"{root}/{RUN}")).run
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise CheckpointError(f"{root}/{RUN} is a folder; move it away") from error
    except ValueError as error:
        raise DamagedError(f"{root}/{RUN} is damaged: it names no run") from error


def steps_in(root: str) -> list[int]:
    """Returns the steps whose folders are in `root`, rising: names of eight digits, or more where
    the step has more. What is in them is not looked at.
    """
    return sorted(
        int(name)
        for name in files.names(root)
        if STEP_NAME.fullmatch(name) and f"{int(name):08d}" == name
    )


def holds_only_parts(folder: str) -> bool:
    """Returns whether `folder` is what an interrupted save leaves: parts, no manifest, and nothing
    else.
    """
    found = files.names(folder)
    return bool(found) and all(FILE.fullmatch(name) for name in found)


def clear_parts(folder: str) -> None:
    """Removes the parts in `folder`, and the folder where nothing else is in it."""
    found = files.names(folder)
    parts = [name for name in found if FILE.fullmatch(name)]
    if parts and len(parts) == len(found):
        files.remove(folder)
    else:
        for name in parts:
            files.remove(f"{folder}/{name}")


def remove_checkpoint(folder: str) -> None:
    """Removes the checkpoint in `folder`. The manifest goes first: what is left of an interrupted
    removal is then no checkpoint.
    """
    files.remove(f"{folder}/{MANIFEST}")
    clear_parts(folder)


def set_aside(folders: Sequence[str]) -> list[str]:
    """Renames the `folders` so that they are not looked for as checkpoints any more, and returns
    their new URLs. Each can still be opened by its URL.
    """
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    moved = []
    for folder in folders:
        target = f"{folder}.aside-{now}"
        files.move(folder, target)
        moved.append(target)
    return moved
