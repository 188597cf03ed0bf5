"""The manifest of a checkpoint, `manifest.json`: what was written, by whom, and the checksums.

It is read as it must be: every key that is there is known, every value is of its type and range,
and the checksum over all the others holds. Whatever fails makes the checkpoint a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from pipeline.common.errors import DamagedError, FormatError
from pipeline.config.fields import NonNegativeInt, Number, Section
from pipeline.storage import files
from pipeline.storage.parts import FILE

# 1: before chains kept what they had adapted; 2: before objectives had random streams; 3: before
# contexts; 4: parts were pickled, the manifest had no checksum, and runs had no ids
FORMAT = 5
READ = (4, FORMAT)
MANIFEST = "manifest.json"
UNKNOWN_RUN = "0" * 32
"""The id of a run that began before runs had ids."""
STEP_NAME = re.compile(r"[0-9]{8,}")
_SECTIONS = ("energy", "kernel", "objective", "data", "optimizer")


def _with_sections(config: dict[str, Any]) -> dict[str, Any]:
    for key in _SECTIONS:
        section = config.get(key)
        if not isinstance(section, dict) or not isinstance(section.get("name"), str):
            raise ValueError(f"it has no {key} with a name")
    return config


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
FileName = Annotated[str, Field(pattern=rf"^{FILE.pattern}$")]
Config = Annotated[dict[str, Any], AfterValidator(_with_sections)]


class PartEntry(Section):
    """The size and the checksum of a part's file."""

    bytes: NonNegativeInt
    sha256: Sha256


class Figure(Section):
    """A figure of the run when the checkpoint was written: what `checkpoint.keep_best` names."""

    name: str
    value: Number


class Manifest(Section):
    """The content of `manifest.json`. `run` is the id of the run that wrote the checkpoint,
    `signature` the names, shapes and types of the parameters, and `data` what the data hold
    (`pipeline.storage.binding.Content`).
    """

    format: Literal[4, 5]
    pipeline: str
    torch: str
    run: RunId = UNKNOWN_RUN
    step: NonNegativeInt
    written: str
    config: Config
    shape: list[NonNegativeInt]
    context_shape: list[NonNegativeInt] | None = None
    signature: list[tuple[str, list[NonNegativeInt], str]]
    data: dict[str, Any] | None = None
    figure: Figure | None = None
    parts: dict[FileName, PartEntry]
    checksum: Sha256 | None = None


def seal(document: dict[str, Any]) -> bytes:
    """Returns the content of `manifest.json`: `document`, and a checksum over it."""
    sealed = {**document, "checksum": _checksum(document)}
    return json.dumps(sealed, indent=1, allow_nan=False).encode()


def parse(content: bytes) -> Manifest:
    """Returns the manifest whose file has this `content`.

    Raises `ValueError` where it is damaged, and `FormatError` where another version of this package
    wrote it.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    found = document.get("format")
    if type(found) is not int:  # true is one too
        raise ValueError("it has no format version")
    if found not in READ:
        words = f"its format is {found}, this version reads 4 and {FORMAT}"
        raise FormatError(words, str(document.get("run", UNKNOWN_RUN)))
    if found == FORMAT and document.get("checksum") != _checksum(document):
        raise ValueError("its checksum is not that of its content")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(key) for key in wrong["loc"])
        raise ValueError(f"{where}: {wrong['msg']}") from error


def read_manifest(folder: str) -> Manifest:
    """Returns the manifest in `folder`, which is known to have one.

    Raises `DamagedError` where it is damaged, or is of another step than the folder's name says;
    and `FormatError` where another version of this package wrote it.
    """
    try:
        manifest = parse(files.read_file(f"{folder}/{MANIFEST}"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedError(f"{folder}: damaged: its manifest is no file") from error
    except FormatError as error:
        raise FormatError(f"{folder}: {error}", error.run) from error
    except ValueError as error:
        raise DamagedError(f"{folder}: damaged: its manifest: {error}") from error
    name = folder.rpartition("/")[2]
    if STEP_NAME.fullmatch(name) and int(name) != manifest.step:
        raise DamagedError(f"{folder}: damaged: its manifest is of step {manifest.step}")
    return manifest


def _checksum(document: dict[str, Any]) -> str:
    """Returns the SHA-256 of everything but the checksum, in one order and spelling."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
