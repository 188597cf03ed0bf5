"""Benchmarks compare like with like: a bare loop knows nothing of the project, and runs the very
chains its kernel does.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from benchmarks import kernels, loops, objectives, peers
from benchmarks.kernels import ENTRIES, MODELS, Pair, rows
from benchmarks.reproductions import ROWS, arguments_of
from pipeline.config.compose import compose
from pipeline.energies.base import Energy
from pipeline.energies.conv import ConvEnergy
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.objectives import probes


def test_loops_import_nothing_of_the_project() -> None:
    nodes = list(ast.walk(ast.parse(Path(loops.__file__).read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= {
        "__future__",
        "collections",
        "typing",
        "torch",
    }


def tiny(model: str) -> Energy:
    torch.manual_seed(0)
    if model == "784x500 RBM":
        return BernoulliRBM((12,), hidden=5, weight_scale=1.0)
    if model == "28x28 conv":
        return ConvEnergy(
            (9, 7), (3, 4, 5), hidden=6, scales=1, spectral_norm=False, base_scale=1.5
        )
    return MLPEnergy(
        (2 if model == "2-D MLP" else 20,), (16, 8), base_scale=1.5, spectral_norm=False
    )


@pytest.mark.parametrize(("name", "model"), rows())
def test_kernel_and_loop_run_the_same_chains(name: str, model: str) -> None:
    """With one seed they end in the same places; the other precision of a force is float64 here,
    lest rounding matter.
    """
    entry, energy = ENTRIES[name], tiny(model)
    if entry.gradient_dtype is not None:
        entry = entry._replace(gradient_dtype=torch.float64)
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
    assert {model for _, model in rows()} == set(MODELS)


@pytest.mark.parametrize("model", peers.KERNELS)
def test_peers_are_measured_beside_ours_and_the_matmuls(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers are not installed here: the bare loop stands in for them."""
    small = MODELS[model]._replace(make=lambda: tiny(model), chains=16, share=2)
    monkeypatch.setitem(kernels.MODELS, model, small)
    monkeypatch.setitem(
        kernels.ENTRIES, peers.KERNELS[model], ENTRIES[peers.KERNELS[model]]._replace(draws=20)
    )
    monkeypatch.setattr(peers, "SECONDS", 0.001)
    monkeypatch.setattr(
        peers, "sides", lambda *given: {"ours": given[2].ours, "loop": given[2].loop()}
    )
    threads = torch.get_num_threads()
    try:
        rows = peers.measure(model, [1, 2], pairs=1)
    finally:
        torch.set_num_threads(threads)
    who = [(row["who"], row["threads"]) for row in rows]
    assert who == [(name, count) for count in (1, 2) for name in ("ours", "loop", "matmul")]
    for ours, loop, matmul in (rows[:3], rows[3:]):
        assert (ours["ratio_to_ours"], matmul["share_of_matmul_limit"]) == (1, 1)
        assert ours["share_of_matmul_limit"] == pytest.approx(1 / matmul["ratio_to_ours"])
        assert ours["chains"] == 16
        assert loop["ess_per_second"] > 0
        assert matmul["ess_per_second"] is None


def test_peers_sample_the_same_energy() -> None:
    energy = tiny("784-512-512-1 MLP")
    assert isinstance(energy, MLPEnergy)
    x = torch.randn(5, 20)
    torch.testing.assert_close(peers.module_of(energy)(x), energy(x).detach())


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(
        objectives.MODELS,
        "tiny",
        objectives.Model(("energy=mlp", "energy.hidden=[6]"), 8, 8, trained=2),
    )
    monkeypatch.setattr(objectives, "SECONDS", 0.001)
    return "tiny"


def test_objectives_are_measured_by_a_contrastive_step(tiny_model: str) -> None:
    names = ("cd", "hutchinson", "nce")
    contrastive, hutchinson, nce = (objectives.measure(name, tiny_model, pairs=1) for name in names)
    assert (
        contrastive["time_ratio"],
        contrastive["memory_ratio"],
        contrastive["gradient_variance"],
    ) == (1.0, 1.0, None)
    assert hutchinson.keys() == contrastive.keys()
    assert hutchinson["gradient_variance"] == pytest.approx(
        hutchinson["variance"] * hutchinson["time_ratio"]
    )
    assert (hutchinson["probes"], nce["probes"]) == (1, 8)
    assert nce["mib"] > contrastive["mib"] > 0


def test_the_exact_trace_has_no_variance(tiny_model: str) -> None:
    variance, deviation = objectives.Step("score_matching", tiny_model, 4, "cpu").spread(3)
    assert variance < 1e-9
    assert deviation < 1e-5


def test_the_meter_sees_what_is_held_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1 << 18)
        del first
        held = [torch.zeros(1 << 18) for _ in range(2)]
        held.clear()

    assert objectives.peak(work, "cpu") == 2 << 20


@pytest.mark.parametrize(
    "way", [objectives.double_backward, objectives.checkpointed, objectives.forward_over_reverse]
)
def test_every_way_to_the_second_derivative_leads_there(way: objectives.Curvature) -> None:
    energy, generator = tiny("784-512-512-1 MLP").double(), torch.Generator().manual_seed(0)
    x, v = (
        torch.randn(size, dtype=torch.float64, generator=generator)
        for size in ((5, 20), (3, 5, 20))
    )
    gradients = []
    for slope, curvatures in (energy.gradient_and_curvature(x, v), way(energy, x, v)):
        loss = slope.square().sum() + curvatures.square().sum()
        gradients.append(
            torch.autograd.grad(
                loss, [p for name, p in energy.named_parameters() if name != "layers.2.bias"]
            )
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)


def test_a_control_variate_leaves_the_mean_alone() -> None:
    """Over a whole basis it is nothing."""
    energy = tiny("784-512-512-1 MLP").double()
    x = torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = probes.basis(energy, x, 0, torch.Generator())
    plain, controlled = (
        way(energy, x, basis)[1].mean(0)
        for way in (type(energy).gradient_and_curvature, objectives.controlled)
    )
    torch.testing.assert_close(controlled, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_every_reproduction_is_a_valid_run(name: str) -> None:
    compose([*arguments_of(name), "data.path=x"])
