"""`examples/*.ipynb` run from top to bottom; a kernel trains, is interrupted, and lives."""

from __future__ import annotations

import json
import queue
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from benchmarks.notebooks import EXAMPLES, executed
from tests.patience import PATIENCE

# log Z of a plane is integrated on a grid, which is most of the time of a short run
COARSE = "from pipeline.evaluation import likelihood\nlikelihood.GRID = 50"
SIZES = {
    "first_steps": "steps, temperatures = 20, 10",
    "own_energy": f"steps, transitions, draws = 10, 10, 20\n{COARSE}",
    "table_with_anomalies": "steps = 5",
}
PLACE = re.compile(r"/(?:home|root|tmp|work)/")
MOST_BYTES = 250_000
SHORT = [
    *("cluster=inline", "trainer.batch_size=16", "chains.per_pool=8", "energy.hidden=[8]"),
    *("evaluation.samples=0", "evaluation.ais_temperatures=0", "metrics.port=0"),
    "metrics.every=1",
]


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    """A cell that raises raises here."""
    book = executed(EXAMPLES / f"{name}.ipynb", str(tmp_path), SIZES[name])
    assert SIZES[name] in [cell.source for cell in book.cells]


@pytest.mark.parametrize("name", SIZES)
def test_what_is_committed_has_outputs_that_are_small_and_name_no_place(name: str) -> None:
    path = EXAMPLES / f"{name}.ipynb"
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(len(cell.outputs) for cell in cells) >= 5
    assert path.stat().st_size < MOST_BYTES
    texts = json.dumps([o for cell in cells for o in cell.outputs if "image/png" not in str(o)])
    assert not PLACE.search(re.sub(r"base64,[^\"]*", "", texts))


class Answer(NamedTuple):
    """What came of a cell: its printed text, what it displayed, what was renewed in its place, and
    the error that it raised.
    """

    text: str
    shown: list[dict[str, str]]
    renewed: list[dict[str, str]]
    error: str


class Kernel:
    """A kernel, as a notebook has one."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def __call__(self, code: str, interrupt_at: int = 0) -> Answer:
        """Carries a cell out; it is interrupted when it has renewed a display so many times."""
        cell, text, error = self.client.execute(code), "", ""
        shown: list[dict[str, str]] = []
        renewed: list[dict[str, str]] = []
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                message = self.client.get_iopub_msg(timeout=5)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != cell:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind in ("display_data", "execute_result"):
                shown.append(content["data"])
            elif kind == "update_display_data":
                renewed.append(content["data"])
                if len(renewed) == interrupt_at:
                    self.manager.interrupt_kernel()
            elif kind == "error":
                error = f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return Answer(text, shown, renewed, error)
        raise TimeoutError(text)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    manager, client = start_new_kernel(cwd=str(tmp_path_factory.mktemp("kernel")))
    yield Kernel(manager, client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def training(steps: int, output: str) -> str:
    return f"run(compose([*{SHORT!r}, 'trainer.steps={steps}', 'output={output}']))"


def test_a_kernel_trains_is_interrupted_and_lives(kernel: Kernel) -> None:
    """In its running event loop, in the main thread and in another. The bar is one display, renewed
    in its place; what is returned shows itself; and handlers of signals are as before.
    """
    begun = kernel(
        "import asyncio, signal, threading\n"
        "from pipeline.config.compose import compose\n"
        "from pipeline.train import run\n"
        "kinds = signal.SIGINT, signal.SIGTERM, signal.SIGHUP\n"
        "before = [signal.getsignal(kind) for kind in kinds]\n"
        "print(asyncio.get_running_loop().is_running())"
    )
    assert (begun.text, begun.error) == ("True\n", "")
    stopped = kernel(f"stopped = {training(1_000_000, 'stopped')}\nstopped", interrupt_at=2)
    assert stopped.error == ""
    assert re.search(r"interrupted at step \d+ of 1000000; the checkpoint is ", stopped.text)
    bar, itself = stopped.shown
    assert '<progress value="0" max="1000000">' in bar["text/html"]
    assert bar["text/plain"] == "step  0/1000000"
    assert "loss" in stopped.renewed[-1]["text/plain"]
    assert "not evaluated" in itself["text/plain"]
    assert '<img alt="curves"' in itself["text/html"]
    left = kernel(
        "print([signal.getsignal(kind) for kind in kinds] == before,\n"
        "      stopped['version'] == stopped.curves.index[-1])"
    )
    assert (left.text, left.error) == ("True True\n", "")
    other = kernel(
        "found = []\n"
        f"thread = threading.Thread(target=lambda: found.append({training(5, 'thread')}))\n"
        "thread.start(); thread.join()\n"
        "print(found[0]['version'])"
    )
    assert other.error == ""
    assert other.text.endswith("\n5\n")


def test_an_estimator_shows_its_bar_and_its_interrupt_is_the_kernels(kernel: Kernel) -> None:
    fit = "EBM(hidden=(8,), steps={}, verbose=1, settings={{'metrics.held_out_every': 0}}).fit(X)"
    kernel("import numpy as np\nfrom pipeline.sklearn import EBM\nX = np.random.rand(50, 2)")
    done = kernel(fit.format(3) + ".summary_['version']")
    assert done.error == ""
    assert [shown["text/plain"] for shown in done.shown][-1] == "3"
    assert "step  3/3" in done.renewed[-1]["text/plain"] + done.renewed[0]["text/plain"]
    stopped = kernel(fit.format(1_000_000), interrupt_at=2)
    assert stopped.error.startswith("KeyboardInterrupt: interrupted at step ")
