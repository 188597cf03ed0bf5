"""A trained energy in the forms of other tools, each checked against the energy itself."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pipeline.assembly.load import open_energy
from pipeline.common import plugins
from pipeline.common.errors import ConfigError, PipelineError
from pipeline.common.types import Figures
from pipeline.config.export import Settings
from pipeline.energies.base import Energy
from pipeline.energies.tracing import CHECKED, NAMES, OUTPUTS, inputs, traced, values
from pipeline.runs.model_card import model_card
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.exported import CONFIG, MODEL, export_weights
from pipeline.storage.files import names, read_file, write_file
from pipeline.storage.lease import LEASE_FOLDER
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.paths import absolute
from pipeline.storage.probe import check_output, check_run
from pipeline.storage.store import CHECKPOINTS

TOLERANCE = 1e-5
"""The most that a graph may differ by, times 1 and the largest value there is."""
NEEDED = ("onnx", "onnxruntime", "onnxscript")
FORMS = {"torch": "pt2", "onnx": "onnx"}
"""The forms of graphs, with the suffix of their files."""
GRAPHS = {"energy": False, "energy_and_gradient": True}
Evaluated = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def export(settings: Settings) -> list[str]:
    """Writes what `settings` ask for, and returns what is to be told, line by line.

    Raises `ConfigError` where it cannot be had, before anything is written, `CheckpointError` where
    there is no checkpoint, and `PipelineError` where a graph gives other values than the energy.
    """
    wanted = ("torch", "onnx", "safetensors") if settings.format == "all" else (settings.format,)
    if "onnx" in wanted and (absent := plugins.missing(NEEDED)):
        remedy = f"onnx needs {', '.join(absent)}: pip install 'ebm-pipeline[onnx]'"
        raise ConfigError("format", settings.format, remedy)
    to = absolute(settings.to, "to")
    check_run(settings.run, "run")
    if not {CHECKPOINTS, LEASE_FOLDER, MANIFEST}.isdisjoint(names(to)):
        raise ConfigError("to", to, "a run has its files there; give a folder of its own")
    check_output(to, "to")
    checkpoint, energy = open_energy(settings.run, key="run")
    with _quiet():
        forms = [form for form in wanted if form in FORMS]
        made = _graphs(energy, forms, checkpoint.manifest.config["energy"]["name"])
    for name, content in made.items():
        write_file(to, name, content)
    told = [f"{name}: at most {TOLERANCE:g} from the energy itself" for name in made]
    if "safetensors" in wanted:
        export_weights(to, checkpoint, energy)
        card = model_card(checkpoint, _summary_of(checkpoint))
        write_file(to, "README.md", card.encode())
        told += [f"{MODEL}, {CONFIG}: energy = pipeline.load({to!r})", "README.md: a model card"]
    return [f"step {checkpoint.step} of {checkpoint.folder}, to {to}", *told]


def _graphs(energy: Energy, forms: Sequence[str], called: str) -> dict[str, bytes]:
    """Returns the content of the graphs' files by their names, each compared with the energy.

    Raises `ConfigError` where PyTorch or ONNX have no graph of it, `PipelineError` where one gives
    other values.
    """
    made: dict[str, bytes] = {}
    for name, gradient in GRAPHS.items() if forms else ():
        if gradient and energy.kinds is not None:  # a category has none
            continue
        with _refusing(forms[0], called):
            program = traced(energy, gradient)
        given = inputs(energy, CHECKED, seed=1)
        for form in forms:
            with _refusing(form, called):
                content, evaluated = (_torch if form == "torch" else _onnx)(program)
            _compare(values(energy, gradient)(*given), evaluated(given), f"{name} as {form}")
            made[f"{name}.{FORMS[form]}"] = content
    return made


@contextmanager
def _refusing(form: str, called: str) -> Iterator[None]:
    """Within, whatever an exporter raises becomes a `ConfigError`."""
    try:
        yield
    except Exception as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = f"the {called} energy has no graph of that form ({why})"
        raise ConfigError("format", form, remedy) from error


def _compare(wanted: Sequence[Tensor], found: Sequence[Tensor], what: str) -> None:
    """Raises `PipelineError` where the values differ."""
    for one, other in zip(wanted, found, strict=True):
        error = float((one - other).abs().max())
        if not error <= TOLERANCE * max(1.0, float(one.abs().max())):
            raise PipelineError(f"{what}: its values are up to {error:.2g} from the energy's")


def _torch(program: ExportedProgram) -> tuple[bytes, Evaluated]:
    """Returns the file of a graph, and the function that was read back from it."""
    file = io.BytesIO()
    torch.export.save(program, file)
    module = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda given: module(*given)


def _onnx(program: ExportedProgram) -> tuple[bytes, Evaluated]:
    """Returns the file of a graph, and the function that ONNX Runtime makes of it."""
    import onnxruntime

    given = len(program.graph_signature.user_inputs)
    made = torch.onnx.export(
        program,
        input_names=NAMES[:given],
        output_names=OUTPUTS[: len(program.graph_signature.user_outputs)],
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        made.save(path)
        content = path.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def evaluated(tensors: Sequence[Tensor]) -> list[Tensor]:
        named = {name: tensor.numpy() for name, tensor in zip(NAMES, tensors, strict=False)}
        return [torch.from_numpy(array) for array in session.run(None, named)]

    return content, evaluated


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, exporters do not tell of packages that are not there and of their own internals."""
    exporters = logging.getLogger("torch.onnx")
    level = exporters.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exporters.setLevel(logging.ERROR)
        try:
            yield
        finally:
            exporters.setLevel(level)


def _summary_of(checkpoint: Checkpoint) -> Figures | None:
    """Returns the summary of the run, where it is of this checkpoint."""
    folder = checkpoint.folder.rpartition(f"/{CHECKPOINTS}/")[0]
    if not folder or "summary.json" not in names(folder):
        return None
    summary: Figures = json.loads(read_file(f"{folder}/summary.json"))
    return summary if summary.get("version") == checkpoint.step else None
