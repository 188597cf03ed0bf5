"""The hidden units' values of points, as a file."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.energies.base import Energy
from pipeline.storage.files import write_file
from pipeline.storage.probe import check_output

FORMS = (".npy", ".csv", ".parquet")


def check_features(url: str, energy: Energy) -> None:
    """Raises `ConfigError` where no file can be written at `url`, its name says no form, or the
    `energy` has no hidden units.
    """
    if not url.endswith(FORMS):
        raise ConfigError("features", url, f"its name should end in one of {', '.join(FORMS)}")
    with torch.no_grad():
        row = energy.sample_base(1, torch.Generator())
        if energy.activations(energy.visible(row)) is None:
            remedy = "its energy has no hidden units; Boltzmann machines and networks have"
            raise ConfigError("features", url, remedy)
    check_output(_place(url)[0])


def write_features(url: str, energy: Energy, points: Tensor, energies: Tensor) -> None:
    """Writes the hidden units' values [N, units] of `points` [N, *shape], in a table beside their
    `energies` [N].
    """
    found = energy.activations(points)
    assert found is not None
    buffer = io.BytesIO()
    if url.endswith(".npy"):
        np.save(buffer, found.numpy())
    else:
        columns = {f"h{number}": column for number, column in enumerate(found.T.numpy())}
        table = pa.table(columns | {"energy": energies.numpy()})
        write = csv.write_csv if url.endswith(".csv") else parquet.write_table
        write(table, buffer)
    write_file(*_place(url), buffer.getvalue())


def _place(url: str) -> tuple[str, str]:
    """The folder and the name of a file."""
    folder, slash, name = url.rpartition("/")
    return (folder if slash else "."), name
