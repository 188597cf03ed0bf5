"""The data files at a path: a file, a folder as tools leave it, or a glob."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.common.errors import DataError
from pipeline.data import comma_separated, hdf5_files
from pipeline.storage.files import (
    Place,
    exists,
    files_below,
    files_matching,
    is_folder,
    read_file,
)

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
KINDS = (SUFFIXES, hdf5_files.SUFFIXES, comma_separated.SUFFIXES, (".npy", ".npz"))
"""Suffixes of files; of a folder with several kinds the first is taken."""
TABLES = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}
"""Tables of which a folder of files is not all, by what is in their folder."""
MAGIC = "*?["


def data_files(there: Place, given: str) -> list[Place]:
    """Returns the data files `there`, which data.path=`given` names, sorted by their paths.

    Of a folder these are the files in it, and in folders below, that have a known suffix: Parquet
    and Arrow files, where there are none HDF5, else CSV, else NumPy files. Of one that Hugging
    Face's `Dataset.save_to_disk` wrote they are those that its state.json names, in their order.
    Names that begin with _ or a dot are left out, unless the pattern has them: tools call their own
    files so. A path that exists is no glob, whatever characters it has. Raises `DataError` where
    there are no such files, or the folder is a table of which not every file is a part, or holds
    several splits.
    """
    if is_folder(there):
        found = _within(there, given)
    elif exists(there):
        found = [there]
    else:
        found = []
        for place in files_matching(there):
            if not _hidden(place.path, there.path):
                found += _within(place, given) if is_folder(place) else [place]
    if not found:
        raise DataError(
            "data.path",
            given,
            "no files there; give a file, a folder or a glob of"
            f" {', '.join(suffix for kind in KINDS for suffix in kind)} files (what begins with"
            " _ or . is passed over)",
        )
    return sorted(set(found), key=lambda place: place.path)


def _within(folder: Place, given: str) -> list[Place]:
    """Returns the data files below a folder. Raises `DataError` where it is a table."""
    places = files_below(folder)
    saved = _saved_by_hugging_face(folder, places, given)
    if saved is not None:
        return saved
    for place in places:
        _check_table(place.path, given)
    seen = [place for place in places if not _hidden(place.path, folder.path)]
    kinds = ([place for place in seen if place.path.endswith(kind)] for kind in KINDS)
    return next((found for found in kinds if found), [])


def _saved_by_hugging_face(
    folder: Place, places: Sequence[Place], given: str
) -> list[Place] | None:
    """Returns the files of a data set that `save_to_disk` wrote; None of another folder. Raises
    `DataError` for one of several splits, or whose records cannot be read.
    """
    there = {place.path for place in places}
    records = [folder / name for name in ("dataset_dict.json", "state.json", "dataset_info.json")]
    splits, state, info = (record if record.path in there else None for record in records)
    record = splits or (state if info is not None else None)
    if record is None:
        return None
    try:
        told = json.loads(read_file(record))
        if record is state:
            return [folder / str(each["filename"]) for each in told["_data_files"]]
        names = [str(name) for name in told["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("data.path", record, f"cannot be read ({error!r})") from error
    remedy = f"holds the splits {', '.join(names)}; give one, as in data.path={given}/{names[0]}"
    raise DataError("data.path", given, remedy)


def _check_table(path: str, given: str) -> None:
    *folders, name = path.split("/")
    kind = next((TABLES[folder] for folder in folders if folder in TABLES), None)
    if folders and folders[-1] == "metadata" and name.endswith(".metadata.json"):
        kind = "an Iceberg table"
    if kind is not None:
        raise DataError(
            "data.path",
            given,
            f"this is {kind}, whose folder holds files that are no longer part of it too; export it"
            " to Parquet files, or give the files that are part of it as a glob",
        )


def _hidden(path: str, pattern: str) -> bool:
    """Returns whether part of the path begins with _ or . that the pattern does not name so."""
    named = set(pattern.split("/"))
    return any(part.startswith(("_", ".")) for part in path.split("/") if part not in named)
