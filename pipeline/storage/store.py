"""The checkpoints of a run: written, found, and removed when they are not to be kept.

`<output>/checkpoints/run.json` names the run that the output is of. Checkpoints of other runs are
neither taken up nor removed.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pipeline.common.errors import CheckpointError, DamagedError, FormatError
from pipeline.common.json_text import to_json
from pipeline.common.types import Part
from pipeline.common.version import VERSION
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.weights import signature
from pipeline.storage import files
from pipeline.storage.binding import Content
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.folders import (
    RUN,
    clear_parts,
    holds_only_parts,
    remove_checkpoint,
    run_of,
    set_aside,
    steps_in,
)
from pipeline.storage.manifest import FORMAT, MANIFEST, parse, read_manifest, seal
from pipeline.storage.retention import Kept, kept_steps

log = logging.getLogger(__name__)
A_RUN = "the folder or the URL of a run, such as runs/latest"
CHECKPOINTS = "checkpoints"
READ_BACK = 16 << 20
"""Bytes of a checkpoint up to which the older ones that are kept are read at each save."""


class CheckpointStore:
    """The checkpoints of the run under `output`, of which `keep` newest are kept; with them each
    whose step is a multiple of `every`, and the one that is best by the figure that `best` names
    (see `pipeline.storage.retention.Kept`).

    `check` is called before anything is written or removed, and raises where it may not be. `count`
    is told the name of a counter: `ebm_checkpoints_damaged` for each checkpoint that is found to be
    damaged, `ebm_checkpoint_prune_failures` where older ones could not be removed.
    """

    def __init__(
        self,
        output: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
        *,
        every: int | None = None,
        best: str | None = None,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._root = f"{output.rstrip('/')}/{CHECKPOINTS}"
        self._kept, self._check, self._count = Kept(keep, every, best), check, count
        self._run: str | None = None  # the id of this run, where it is known
        self._old: list[str] = []  # folders that go once the new run has a checkpoint
        self._moved: dict[int, str] = {}  # where `prepare` moved what was there, by step
        self._damaged: set[str] = set()  # folders of checkpoints that were told to be damaged
        self._unnamed = False  # whether the file that names the run was told to be damaged
        self._whole: dict[int, Checkpoint] = {}  # those of this run that were once seen whole

    def folder(self, step: int) -> str:
        return f"{self._root}/{step:08d}"

    @property
    def run(self) -> str:
        """The id of the run that writes here: that of the run that the output is of, or a new
        one.
        """
        if self._run is None:
            latest = self.latest()
            known = latest.manifest.run if latest is not None else None
            self._run = self._recorded() or known or uuid.uuid4().hex
        return self._run

    def check_places(self, every: int, last: int) -> None:
        """Raises `CheckpointError` where a file is in the place of a checkpoint that is to be made:
        of each step that is a multiple of `every`, and of the `last`.
        """
        due = (n for n in steps_in(self._root) if n == last or (n < last and n % every == 0))
        for step in due:
            if not files.is_folder(self.folder(step)):
                raise CheckpointError(
                    f"{self.folder(step)} is a file, and has the name of a checkpoint's folder;"
                    " move it away"
                )

    def start_over(self) -> None:
        """Says that a new run begins here. The checkpoints of the one before are removed once the
        new run has one.
        """
        self._check()
        current = self._recorded()
        self._old = [
            self.folder(step)
            for step in steps_in(self._root)
            if holds_only_parts(self.folder(step)) or self._of_run(step, current)
        ]
        self._run, self._whole = uuid.uuid4().hex, {}

    def go_on_from(self, step: int) -> list[str]:
        """Says that the run goes on from its checkpoint at `step`. Later ones are moved aside, and
        their new URLs returned; what is left of interrupted saves is removed.
        """
        self._check()
        later = [n for n in steps_in(self._root) if n > step]
        run, leaving = self.run, []
        for n in later:
            if holds_only_parts(self.folder(n)):
                clear_parts(self.folder(n))
            elif self._of_run(n, run) or self.folder(n) in self._damaged:
                leaving.append(self.folder(n))
        return set_aside(leaving)

    def prepare(self, step: int) -> str:
        """Returns the folder that the parts of a checkpoint at `step` are to be written to. A
        checkpoint that is there is moved aside.
        """
        self._check()
        folder = self.folder(step)
        if MANIFEST not in files.names(folder):
            clear_parts(folder)
            return folder
        (moved,) = set_aside([folder])
        if folder not in self._old:  # else it goes as soon as the new one stands
            log.warning("%s: a checkpoint was there already, and is now %s", folder, moved)
        self._old = [moved if old == folder else old for old in self._old]
        self._moved[step] = moved
        return folder

    def give_up(self, step: int) -> None:
        """Says that the checkpoint at `step` could not be written: one that `prepare` moved aside
        is there again.
        """
        folder, moved = self.folder(step), self._moved.pop(step, None)
        try:
            if MANIFEST in files.names(folder):
                return
            clear_parts(folder)
            if moved is not None:
                files.move(moved, folder)
                self._old = [folder if old == moved else old for old in self._old]
        except Exception as error:
            log.warning("%s: what is left of the save stays there: %s", folder, error)

    def commit(
        self,
        step: int,
        parts: list[Part],
        config: RunConfig,
        energy: Energy,
        content: Content | None = None,
        row: Mapping[str, float] | None = None,
    ) -> Checkpoint:
        """Makes a folder of written parts a checkpoint, by its manifest; then removes those that
        are not to be kept. `content` says what the data hold (`pipeline.storage.binding`), and
        `row` holds the run's figures at `step`, for `best`.

        Raises `DamagedError` where a part that is read back is not what was written. That older
        checkpoints cannot be removed is told and counted, and is no error.
        """
        self._check()
        folder = self.folder(step)
        written = seal(
            {
                "format": FORMAT,
                "pipeline": VERSION,
                "torch": torch.__version__,
                "run": self.run,
                "step": step,
                "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "config": config.model_dump(mode="json"),
                "shape": list(energy.data_shape),
                "context_shape": (
                    None if energy.context_shape is None else list(energy.context_shape)
                ),
                "data": content,
                "signature": signature(energy),
                "figure": self._figure(step, row or {}),
                "parts": {
                    part.name: {"bytes": part.bytes, "sha256": part.sha256} for part in parts
                },
            }
        )
        checkpoint = Checkpoint(folder, parse(written))
        checkpoint.check_parts()
        files.write_file(folder, MANIFEST, written)
        self._whole[step] = checkpoint
        if self._recorded() != self.run:  # from here on the output is of this run
            files.write_file(self._root, RUN, to_json({"run": self.run}).encode())
        self._moved.pop(step, None)
        self._retire(step)
        return self._whole[step]

    def _figure(self, step: int, row: Mapping[str, float]) -> dict[str, Any] | None:
        """Returns the figure that `best` is about, as the manifest has it."""
        name = self._kept.figure
        if name is None:
            return None
        if not math.isfinite(row.get(name, math.nan)):
            log.warning("checkpoint.keep_best: there is no %s at step %d", name, step)
            return None
        return {"name": name, "value": float(row[name])}

    def _retire(self, step: int) -> None:
        """Removes what is not kept, now that the checkpoint at `step` stands. A failure is told and
        counted.
        """
        self._check()
        try:
            while self._old:
                self._remove(self._old[-1])
                self._old.pop()
            self._prune(step)
        except Exception as error:
            self._count("ebm_checkpoint_prune_failures")
            log.warning("checkpoints before step %d could not be removed: %s", step, error)

    def _prune(self, step: int) -> None:
        """Removes the checkpoints of this run before `step` that are not kept. Those that are
        damaged do not count, and go when they are older than all of the newest that are kept.
        """
        earlier = [n for n in steps_in(self._root) if n < step]
        newest = 1
        for n in reversed(earlier):
            # the newest few are looked at each time, the others once
            if (n not in self._whole or newest < self._kept.newest) and not self._is_whole(n):
                continue
            newest += 1
        whole = [n for n in (*earlier, step) if n in self._whole]
        kept = kept_steps(self._kept, [(n, self._whole[n].manifest.figure) for n in whole])
        oldest = whole[-self._kept.newest] if len(whole) >= self._kept.newest else 0
        for n in earlier:
            folder = self.folder(n)
            if n in self._whole:
                given_up = n not in kept
            else:
                given_up = holds_only_parts(folder) or (n < oldest and self._of_run(n, self.run))
            if given_up:
                self._remove(folder)
                self._whole.pop(n, None)

    def _is_whole(self, step: int) -> bool:
        """Returns whether there is a whole checkpoint of this run at `step`, and remembers it. A
        small one is read back.
        """
        self._whole.pop(step, None)
        try:
            checkpoint = self._open(step)
            if checkpoint is None or checkpoint.manifest.run != self.run:
                return False
            if checkpoint.bytes <= READ_BACK:
                checkpoint.check_parts()
        except DamagedError as error:
            self.tell_damage(self.folder(step), error)
            return False
        except FormatError:
            return False
        self._whole[step] = checkpoint
        return True

    def _remove(self, folder: str) -> None:
        if MANIFEST in files.names(folder):
            remove_checkpoint(folder)
        else:
            clear_parts(folder)

    def _of_run(self, step: int, run: str | None) -> bool:
        """Returns whether there is a checkpoint at `step` whose manifest holds and is of the `run`,
        or of any where that is None.
        """
        folder = self.folder(step)
        if MANIFEST not in files.names(folder):
            return False
        try:
            return run in (None, read_manifest(folder).run)
        except (DamagedError, FormatError):
            return False

    def committed(self) -> bool:
        """Returns whether there is a checkpoint of the run that the output is of which was complete
        once, whole or damaged now.
        """
        current = self._recorded()
        return self.latest() is not None or any(
            self._of_run(step, current) or self.folder(step) in self._damaged
            for step in steps_in(self._root)
        )

    def complete(self, besides: Collection[str] = ()) -> Iterator[Checkpoint]:
        """Yields the complete checkpoints of the run that the output is of, newest first; none of
        the runs `besides`. Damage within a part shows when it is read (`Checkpoint.read`), and the
        next one may be whole.

        Raises `FormatError` where another version of this package wrote one.
        """
        current = self._recorded()
        for step in reversed(steps_in(self._root)):
            try:
                checkpoint = self._open(step)
            except FormatError as error:
                if error.run in besides or current not in (None, error.run):
                    continue
                raise
            if checkpoint is None or checkpoint.manifest.run in besides:
                continue
            if current in (None, checkpoint.manifest.run):
                yield checkpoint

    def runs(self) -> set[str]:
        """Returns the ids of the runs that have a complete checkpoint here."""
        found = set()
        for step in steps_in(self._root):
            try:
                checkpoint = self._open(step)
            except FormatError as error:
                found.add(error.run)
            else:
                found |= set() if checkpoint is None else {checkpoint.manifest.run}
        return found

    def latest(self) -> Checkpoint | None:
        """Returns the newest complete checkpoint, or None."""
        return next(self.complete(), None)

    def tell_damage(self, folder: str, error: DamagedError) -> None:
        """Says that the checkpoint in `folder` is damaged, and counts it; once."""
        if folder not in self._damaged:
            self._damaged.add(folder)
            self._count("ebm_checkpoints_damaged")
            log.warning("%s", error)

    def _open(self, step: int) -> Checkpoint | None:
        """Returns the checkpoint at `step`; None where there is none, or it is damaged, which is
        told. Raises `FormatError`.
        """
        folder = self.folder(step)
        try:
            return Checkpoint.open(folder)
        except DamagedError as error:
            self.tell_damage(folder, error)
            return None

    def _recorded(self) -> str | None:
        """Returns the id of the run that the output is of, or None where that is not recorded."""
        try:
            return run_of(self._root)
        except DamagedError as error:
            if not self._unnamed:
                log.warning("%s", error)
            self._unnamed = True
            return None


def candidates(url: str) -> Iterator[Checkpoint]:
    """Yields the checkpoint at `url`, or the complete ones of the run there, newest first.

    Raises `ConfigError` where no installed file system serves the URL, `DamagedError` where the
    checkpoint at `url` is damaged, and `FormatError` where another version wrote one.
    """
    files.locate(url, "url")
    checkpoint = Checkpoint.open(url.rstrip("/"))
    if checkpoint is not None:
        yield checkpoint
    else:
        yield from CheckpointStore(url, keep=1).complete()


def find(url: str) -> Checkpoint:
    """Returns the checkpoint at `url`, or the newest one of the run there; no part of it is read.

    Raises `CheckpointError` where there is none.
    """
    checkpoint = next(candidates(url), None)
    if checkpoint is None:
        raise CheckpointError(f"{url}: no complete checkpoint there; give {A_RUN}")
    return checkpoint


def find_averaged(url: str, key: str = "url") -> tuple[Checkpoint, np.ndarray]:
    """Returns the newest checkpoint at `url` whose averaged weights are whole, and these weights,
    flat (see `pipeline.energies.weights.flatten`). Nothing else of it is read. `key` is what gave
    the URL.

    Raises `CheckpointError` where there is none, or where another version wrote it.
    """
    damage = ""
    for checkpoint in candidates(url):
        try:
            return checkpoint, checkpoint.averaged()
        except DamagedError as error:
            log.warning("%s; an older checkpoint is looked for", error)
            damage = f" ({error})"
    raise CheckpointError(f"{key}={url}: no complete checkpoint there{damage}; give {A_RUN}")
