"""What `benchmarks.chaos` puts into the processes of a run: storage that is away or slow when it is
told to be, and a recorder that keeps the time of every step that was told.

A folder that `install` makes, on the path of Python, brings them as entry points of an installed
package, so that the run's own command finds them in each of its processes.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.common.types import Figures
from pipeline.runs.recorders.base import RecordedRun

PROTOCOL = "chaos"
FOLDER = "EBM_CHAOS"
"""The environment variable that names the folder of the two files below."""
WEATHER, STEPS = "weather", "steps.txt"
ENTRY_POINTS = f"""[fsspec.specs]
{PROTOCOL} = benchmarks.chaos_parts:Weather

[pipeline.recorders]
steps = benchmarks.chaos_parts:Steps
"""


def install(folder: Path) -> dict[str, str]:
    """Makes `folder` a place that Python finds the parts in, and returns the environment for it."""
    about = folder / "chaos-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    root = Path(__file__).resolve().parent.parent
    path = [str(folder), str(root), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path)), FOLDER: str(folder)}


class Weather(fsspec.AbstractFileSystem):
    """The local file system as a distant one: `chaos:///path`. A file is there in full or not at
    all, as in an object store.

    The file `weather` says what it does: "down" (each call is refused), "full" (nothing can be
    written), or the seconds that each call takes. While it is not there, nothing is wrong.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._local = LocalFileSystem()
        self._weather = Path(os.environ[FOLDER]) / WEATHER

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix(f"{PROTOCOL}://").rstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        """Returns the URL of a path."""
        return f"{PROTOCOL}://{self._strip_protocol(name)}"

    def _reached(self, path: str, writes: bool = False) -> str:
        """Returns the path on disk, when the storage answers. Raises `OSError` where it is away, or
        where it is full and the call `writes`.
        """
        try:
            weather = self._weather.read_text()
        except FileNotFoundError:
            weather = ""
        if weather == "down":
            raise ConnectionRefusedError("the storage is away")
        if weather == "full":
            if writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif weather:
            time.sleep(float(weather))
        return self._strip_protocol(path)

    def info(self, path: str, **_: Any) -> Any:
        return self._local.info(self._reached(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self._local.ls(self._reached(path), detail=detail)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        return bytes(self._local.cat_file(self._reached(path), start, end))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Writes a file, with mode "create" only where there is none."""
        path = self._reached(path, writes=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        Path(temporary).write_bytes(value)
        if mode == "create":
            try:
                os.link(temporary, path)
            finally:
                os.remove(temporary)
        else:
            os.replace(temporary, path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._local.makedirs(self._reached(path), exist_ok=exist_ok)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._local.rm(self._reached(path), recursive=recursive, maxdepth=maxdepth)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        os.rename(self._reached(path1), self._strip_protocol(path2))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return open(self._reached(path), mode)


class Steps:
    """A line for each row of figures: seconds since 1970, the step, the driver's process id. None
    is ever taken back.
    """

    def start(self, run: RecordedRun) -> None:  # noqa: ARG002 - the protocol of recorders
        """Opens the file."""
        self._file = (Path(os.environ[FOLDER]) / STEPS).open("a")

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Writes the line at once."""
        print(figures["time"], step, os.getpid(), file=self._file, flush=True)

    def finish(self, summary: Figures | None) -> None:  # noqa: ARG002
        """Closes the file."""
        self._file.close()
