"""Benchmarks compare like with like: a bare loop knows nothing of the project, and runs the very chains its kernel does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from benchmarks import loops
from benchmarks.kernels import ENTRIES, MODELS, Pair, selected
from pipeline.energies.base import Energy
from pipeline.energies.conv import ConvEnergy
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM


def test_loops_import_nothing_of_the_project() -> None:
    nodes = list(ast.walk(ast.parse(Path(loops.__file__).read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= {"__future__", "collections", "typing", "torch"}


def tiny(model: str) -> Energy:
    torch.manual_seed(0)
    if model == "784x500 RBM":
        return BernoulliRBM((12,), hidden=5, weight_scale=1.0)
    if model == "28x28 conv":
        return ConvEnergy((9, 7), (3, 4, 5), hidden=6, scales=1, spectral_norm=False, base_scale=1.5)
    return MLPEnergy((2 if model == "2-D MLP" else 20,), (16, 8), base_scale=1.5, spectral_norm=False)


@pytest.mark.parametrize(("name", "model"), list(selected(None)))
def test_kernel_and_loop_run_the_same_chains(name: str, model: str) -> None:
    """With one seed they end in the same places; the other precision of a force is float64 here, lest rounding matter."""
    entry, energy = ENTRIES[name], tiny(model)
    if entry.force is not None:
        entry = entry._replace(force=torch.float64)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pair = Pair(entry, energy, 24, torch.Generator().manual_seed(0))
    pair.adapt(5)
    loop = pair.loop()
    pair.generator.manual_seed(1)
    ours = pair.ours(6)
    pair.generator.manual_seed(1)
    theirs = loop(6)
    assert entry.acceptance is None or 0.1 < float(pair.acceptance.mean()) < 0.999
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_every_energy_is_timed() -> None:
    assert {model for _, model in selected(None)} == set(MODELS)
