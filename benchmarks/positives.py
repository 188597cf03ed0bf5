"""Rows of a Parquet set larger than memory on their way to a trainer, by four readers in turn.

    python -m benchmarks.positives [--rows 200000] [--rounds 2] [--json [FILE]]

It needs pandas, for Ray Data. Files of 10,000 rows of 784 float32 numbers, as fixed-size lists, are
written to a temporary folder; they lie in the page cache. Every reader gives shuffled batches of
256 rows as tensors, and mixes rows over `WINDOW` of them:

    ahead      this project's positives: shuffled windows, the next read by a thread
    inline     the same, but each window is read when it is needed
    dataset    pyarrow.dataset's `to_batches` with its own readahead, and a shuffling buffer
    ray data   `read_parquet(...).iter_torch_batches(local_shuffle_buffer_size=...)` on a local Ray
               of two processors

The result is {"rows": [...]}, a row for each reader, of medians over rounds:

    rows_per_second, ratio  of an epoch, its start included; over those of `ahead` in the same round
    cpu_ms                  of processor time for 1,000 of these rows; null for Ray Data, whose
                            workers do the reading
    first_ms                until the first batch
    waited, longest_ms      by a consumer that takes 20 ms a batch, after its first: the share of
                            its time until it has the batches (a copy of one is 1% already), and the
                            longest for one batch
    same_order              whether every epoch came in one order, all under one seed
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import say
from pipeline.common.process import keep_freed_memory
from pipeline.config.compose import compose
from pipeline.config.data import ColumnsData
from pipeline.data.files import Source
from pipeline.data.streaming import StreamedPositives

WIDTH, FILE, BATCH = 784, 10_000, 256
WINDOW = 30_000
PACE, PACED = 0.02, 250
"""The slow consumer takes so many seconds for a batch, and so many batches."""

Reader = Callable[[Path], Generator[Tensor]]


class Inline(StreamedPositives):
    """This project's positives, but for each window being read when it is needed."""

    reads_ahead = False


def write(folder: Path, rows: int) -> None:
    """Write so many rows into files of `FILE` rows each."""
    random = np.random.default_rng(0)
    for start in range(0, rows, FILE):
        values = random.standard_normal(min(FILE, rows - start) * WIDTH, dtype=np.float32)
        table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)})
        pq.write_table(table, folder / f"{start:08}.parquet")


def positives(kind: type[StreamedPositives]) -> Reader:
    def read(folder: Path) -> Generator[Tensor]:
        section = compose(
            ["data=columns", f"data.path={folder}", f"data.memory_limit={8 * WIDTH * WINDOW}"]
        ).data
        assert isinstance(section, ColumnsData)
        stream = kind(Source(section), section, seed=0)
        while True:
            yield stream.next(BATCH).position

    return read


def dataset(folder: Path) -> Generator[Tensor]:
    """Give a batch of rows drawn from the buffer for each batch that comes into it."""
    random = np.random.default_rng(0)
    buffer, filled = np.empty((WINDOW, WIDTH), np.float32), 0
    for batch in pyarrow.dataset.dataset(folder).to_batches(batch_size=BATCH):
        rows = batch.column("x").flatten().to_numpy().reshape(-1, WIDTH)
        if filled + len(rows) <= WINDOW:
            buffer[filled : filled + len(rows)] = rows
            filled += len(rows)
            continue
        places = random.choice(filled, len(rows), replace=False)
        out = buffer[places]
        buffer[places] = rows
        yield torch.from_numpy(out)
    for places in np.array_split(random.permutation(filled), filled // BATCH):
        yield torch.from_numpy(buffer[places])


def ray_data(folder: Path) -> Generator[Tensor]:
    import ray.data

    table = ray.data.read_parquet(str(folder))
    for batch in table.iter_torch_batches(
        batch_size=BATCH, prefetch_batches=4, local_shuffle_buffer_size=WINDOW, local_shuffle_seed=0
    ):
        yield batch["x"]


def start_ray() -> None:
    """Start a local Ray of two processors, which says nothing.

    Raises `ImportError` where Ray Data lacks what it needs.
    """
    import ray
    import ray.data

    logging.disable(logging.WARNING)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False


READERS: dict[str, Reader] = {
    "ahead": positives(StreamedPositives),
    "inline": positives(Inline),
    "dataset": dataset,
    "ray data": ray_data,
}


class Epoch(NamedTuple):
    """One epoch of a reader.

    `rate` is in rows a second, `first` in seconds until the first batch, `processor` in processor
    seconds a row; `order` has a number of each batch.
    """

    rate: float
    first: float
    processor: float
    order: tuple[float, ...]


def epoch(reader: Reader, folder: Path, rows: int) -> Epoch:
    begin, processor, first, seen, order = time.perf_counter(), time.process_time(), 0.0, 0, []
    with closing(reader(folder)) as batches:
        for batch in batches:
            first = first or time.perf_counter() - begin
            seen += len(batch)
            order.append(float(batch[0, 0]))
            if seen >= rows - BATCH:
                break
    return Epoch(
        seen / (time.perf_counter() - begin),
        first,
        (time.process_time() - processor) / seen,
        tuple(order),
    )


def paced(reader: Reader, folder: Path) -> tuple[float, float]:
    """Return the share of the time that is waited, and the longest wait in seconds.

    The first batch is not counted.
    """
    with closing(reader(folder)) as batches:
        next(batches)
        waits, begin, before = [], time.perf_counter(), time.perf_counter()
        for _ in islice(batches, PACED):
            waits.append(time.perf_counter() - before)
            time.sleep(PACE)
            before = time.perf_counter()
    return sum(waits) / (before - begin), max(waits)


def measure(folder: Path, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Return the rows that the module's docstring describes."""

    def both(reader: Reader) -> tuple[Epoch, tuple[float, float]]:
        return epoch(reader, folder, rows), paced(reader, folder)

    found = harness.alternate(rounds, *(partial(both, reader) for reader in READERS.values()))
    made = []
    for name, side in zip(READERS, found, strict=True):
        epochs, waits = [one for one, _ in side], [waited for _, waited in side]
        rates, ours = ([one.rate for one, _ in each] for each in (side, found[0]))
        cpu_ms = 1e6 * statistics.median(one.processor for one in epochs)
        row = {
            "reader": name,
            "rows_per_second": statistics.median(rates),
            "ratio": harness.median_ratio(rates, ours),
            "cpu_ms": None if name == "ray data" else cpu_ms,
            "first_ms": 1e3 * statistics.median(one.first for one in epochs),
            "waited": statistics.median(share for share, _ in waits),
            "longest_ms": 1e3 * statistics.median(longest for _, longest in waits),
            "same_order": len({one.order for one in epochs}) == 1,
        }
        made.append(row)
    return made


def main() -> None:
    parser = harness.command_line(__doc__, "json")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        start_ray()
    except ImportError as error:
        parser.error(f"Ray Data cannot be imported ({error}): pip install 'ray[data]'")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.rows)
        rows = measure(Path(folder), arguments.rows, arguments.rounds)
    say(
        f"{'reader':<12}{'rows/s':>10}{'ratio':>8}{'cpu, ms':>9}{'first, ms':>11}{'waited':>9}"
        f"{'longest, ms':>13}  same order"
    )
    for row in rows:
        cpu = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.1f}"
        say(
            f"{row['reader']:<12}{row['rows_per_second']:10.0f}{row['ratio']:8.2f}{cpu:>9}"
            f"{row['first_ms']:11.0f}{row['waited']:9.2%}{row['longest_ms']:13.1f}"
            f"  {row['same_order']}"
        )
    harness.write({**harness.conditions("pyarrow", "ray"), "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
