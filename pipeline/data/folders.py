"""The data files at a path: a file, a folder as tools leave it, or a glob."""

from __future__ import annotations

from pipeline.common.errors import DataError
from pipeline.data import comma_separated
from pipeline.storage.files import Place, exists, files_below, files_matching, is_folder

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
KINDS = (SUFFIXES, comma_separated.SUFFIXES, (".npy", ".npz"))
"""Suffixes of files; of a folder with several kinds the first is taken."""
TABLES = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}
"""Tables of which a folder of files is not all, by what is in their folder."""
MAGIC = "*?["


def data_files(there: Place, given: str) -> list[Place]:
    """Returns the data files `there`, which data.path=`given` names, sorted by their paths.

    Of a folder these are the files in it, and in folders below, that have a known suffix: Parquet
    and Arrow files, where there are none CSV files, and where there are none NumPy's. Names
    that begin with _ or a dot are left out, unless the pattern has them: tools call their own files
    so. A path that exists is no glob, whatever characters it has. Raises `DataError` where there
    are no such files, or the folder is a table of which not every file is a part.
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
    for place in places:
        _check_table(place.path, given)
    seen = [place for place in places if not _hidden(place.path, folder.path)]
    kinds = ([place for place in seen if place.path.endswith(kind)] for kind in KINDS)
    return next((found for found in kinds if found), [])


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
