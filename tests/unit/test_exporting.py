"""Exported energies: graphs that give their values, weights that load, a card that is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import pipeline
from pipeline.assembly.energies import construct_energy
from pipeline.common import plugins
from pipeline.common.errors import CheckpointError, ConfigError, PipelineError
from pipeline.config.compose import compose_raw
from pipeline.config.parts import Choice, names
from pipeline.energies.base import Energy
from pipeline.energies.tracing import inputs
from pipeline.export import main
from pipeline.runs import exporting
from pipeline.train import main as train
from tests.conftest import SMALL, undrawn

# energies, the shapes of a row and of its context, and settings
CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...] | None]] = {
    "mlp": ("energy=mlp energy.hidden=[8,8]", (4,), None),
    "mlp, spectral norm": ("energy=mlp energy.hidden=[8] energy.spectral_norm=true", (4,), None),
    "conv of odd sides": ("energy=conv energy.channels=[2,2] energy.hidden=4", (9, 11), None),
    "conv of three scales": (
        "energy=conv energy.channels=[2] energy.hidden=4 energy.scales=3 energy.box=[0,1]",
        (3, 21, 19),
        None,
    ),
    "rbm": ("energy=rbm energy.hidden=4", (2, 3), None),
    "gaussian_rbm": ("energy=gaussian_rbm energy.hidden=4", (5,), None),
    "potts_rbm": ("energy=potts_rbm energy.hidden=4 energy.levels=3", (5,), None),
    "potts_rbm, drelu": (
        "energy=potts_rbm energy.hidden=4 energy.levels=3 energy.units=drelu",
        (5,),
        None,
    ),
    "potts": ("energy=potts energy.levels=3", (5,), None),
    "potts of two letters": ("energy=potts energy.levels=2", (2, 2), None),
    "dbm": ("energy=dbm energy.hidden=[4,3]", (5,), None),
    "lattice": ("energy=lattice", (3, 3), None),
    "quadratic": ("energy=quadratic", (5,), None),
    "maxent of moments": (
        "energy=maxent energy.box=[-2,2] energy.features=[{kind:polynomial,degree:4}]",
        (1,),
        None,
    ),
    "maxent of pairs": (
        "energy=maxent energy.levels=3 energy.base_rates=[1,2,3]"
        " energy.features=[{kind:means},{kind:pairs,neighbours:true}]",
        (3, 3),
        None,
    ),
    "maxent of a histogram": (
        "energy=maxent energy.levels=4 energy.features=[{kind:histogram,low:-0.5,high:3.5,bins:4}]",
        (3,),
        None,
    ),
    "mixed_rbm": ("energy=mixed_rbm energy.kinds=[0,0,2,3,4] energy.hidden=4", (5,), None),
    "label_mlp": (
        "energy=label_mlp energy.hidden=[8] energy.class_conditional=true",
        (4,),
        (),
    ),
    "conditional_mlp": ("energy=conditional_mlp energy.hidden=[8]", (2,), (3,)),
    "pairwise": ("energy=pairwise", (4,), (4, 2)),
}


def made(settings: str, shape: Sequence[int], context_shape: Sequence[int] | None) -> Energy:
    """An energy with weights that are not near 0."""
    section = Choice("energy").resolve(compose_raw(settings.split())["energy"])
    energy = construct_energy(section, shape, context_shape).eval().requires_grad_(False)
    for parameter in energy.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return energy


def run_onnx(content: bytes, given: dict[str, np.ndarray]) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return list(session.run(None, given))


@pytest.mark.slow  # PyTorch takes a second or two for each
@pytest.mark.parametrize("name", CASES)
def test_graphs_have_energy_and_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the export's own comparison, of both forms: in ONNX Runtime the gradient is that of
    autograd, for one row too. Over levels it is the energy's own, between or in place of them. Of
    several kinds of components there is the energy alone.
    """
    energy = made(*CASES[name])
    graph, gradient = ("energy", False) if energy.kinds else ("energy_and_gradient", True)
    monkeypatch.setattr(exporting, "GRAPHS", {graph: gradient})
    with exporting._quiet():
        files = exporting._graphs(energy, ["torch", "onnx"], name)
    assert set(files) == {f"{graph}.pt2", f"{graph}.onnx"}
    x, *context = inputs(energy, 1, seed=3)
    bound = energy.given(context[0]) if context else energy
    if not gradient:
        wanted = bound(x)
    elif energy.levels is not None:
        wanted = bound.energy_and_gradient(x)[1]
    else:
        x.requires_grad_()
        (wanted,) = torch.autograd.grad(bound(x).sum(), x)
    given = dict(zip(("position", "context"), (x, *context), strict=False))
    given = {key: value.detach().numpy() for key, value in given.items()}
    found = run_onnx(files[f"{graph}.onnx"], given)[-1]
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-5, rtol=1e-5)


def test_every_energy_is_exported() -> None:
    """A custom one as its module allows (below)."""
    tried = {settings.split()[0].removeprefix("energy=") for settings, *_ in CASES.values()}
    assert tried | {"custom"} == set(names("energy"))


def test_an_energy_of_several_kinds_has_no_graph_of_a_gradient() -> None:
    with exporting._quiet():
        assert set(exporting._graphs(made(*CASES["mixed_rbm"]), ["torch"], "")) == {"energy.pt2"}


class Undecided(torch.nn.Module):
    """Decides by a value, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x @ self.weight
        return value if float(value.sum()) > 0 else value.square()


def test_an_energy_without_a_graph_is_refused_in_a_line() -> None:
    from pipeline.energies.custom import CustomEnergy

    energy = CustomEnergy((4,), Undecided(), None, 1.0, None)
    with pytest.raises(ConfigError, match=r"^format=torch: the custom energy has no graph"):
        exporting._graphs(energy, ["torch"], "custom")


def test_a_graph_that_gives_other_values_is_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of a nat is seen."""
    traced = exporting.traced

    def spoilt(energy: Energy, gradient: bool) -> Any:
        other = copy.deepcopy(energy)
        other.hidden_bias.add_(1e-3)  # type: ignore[operator]
        return traced(other, gradient)

    monkeypatch.setattr(exporting, "traced", spoilt)
    with pytest.raises(PipelineError, match="energy as torch: its values are up to"):
        exporting._graphs(made(*CASES["rbm"]), ["torch"], "rbm")


# -- through the door ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    with undrawn():
        assert train([*SMALL["rbm"], "cluster=inline", f"output={output}"]) == 0
    return output


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    to = trained.parent / "exported"
    assert main([f"run={trained}", f"to={to}"]) == 0
    return to


def test_all_forms_give_the_run_s_energy(trained: Path, exported: Path) -> None:
    energy = pipeline.load(trained)
    x = energy.sample_base(11, torch.Generator().manual_seed(0))
    wanted = energy(x).numpy()
    assert np.array_equal(pipeline.load(exported)(x).numpy(), wanted)
    for form in ("energy", "energy_and_gradient"):
        found = run_onnx((exported / f"{form}.onnx").read_bytes(), {"position": x.numpy()})
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
        found = torch.export.load(exported / f"{form}.pt2").module()(x)
        np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-5)


def test_the_card_says_what_hubs_read(trained: Path, exported: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    _, front, text = (exported / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert "license" not in metadata
    assert {"energy-based-model", "rbm", "pcd"} <= set(metadata["tags"])
    (result,) = metadata["model-index"][0]["results"]
    (metric,) = result["metrics"]
    assert metric["type"] == "log-likelihood"
    assert metric["value"] == pytest.approx(summary["test_log_likelihood"], abs=1e-4)
    assert result["dataset"]["name"] == "digits"
    assert summary["words"][0] in text
    assert str(trained) not in text


def test_what_was_exported_and_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    facts = json.loads((tmp_path / "config.json").read_text())
    facts["config"]["energy"]["hidden"] = 3
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        pipeline.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="model_type is bert"):
        pipeline.load(tmp_path)


def test_what_cannot_be_exported_is_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is written."""
    to = tmp_path / "to"
    for arguments, words in (
        (
            [f"run={tmp_path / 'none'}", f"to={to}"],
            f"run={tmp_path / 'none'}: no complete checkpoint",
        ),
        ([f"run={trained}", f"to={to}", "format=tflite"], "format=tflite"),
        ([f"run={trained}", f"to={trained}"], "a run has its files there"),
        ([f"run={trained}"], "to"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(plugins, "missing", lambda _: ["onnxruntime"])
    assert main([f"run={trained}", f"to={to}"]) == 2
    assert "pip install 'ebm-pipeline[onnx]'" in capsys.readouterr().err
    assert not to.exists()
