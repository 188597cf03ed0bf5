"""Energies and proposals of a user's own: in code, and from an installed package, from outside the
working directory.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import ArgumentError, CheckpointError, ConfigError
from pipeline.config.compose import compose
from pipeline.energies.custom import CustomEnergy
from pipeline.kernels.metropolis_hastings import independence
from pipeline.storage.parts import decode
from pipeline.train import main, run
from tests.patience import PATIENCE

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "own_energy"
SMALL = (
    "chains.per_pool=8",
    "trainer.batch_size=16",
    "evaluation.transitions=20",
    "evaluation.samples=8",
    "evaluation.ais_temperatures=20",
    "evaluation.ais_particles=8",
    "metrics.port=0",
)


pytestmark = pytest.mark.usefixtures("undrawn")


class Quartic(nn.Module):
    """f(x) = sum_i a_i x_i^4."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).pow(4) @ self.scale.exp()


class Counting(nn.Linear):
    """A buffer that is no float."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))


class Rounding(nn.Module):
    """A function of whole numbers: it has no gradient in x."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.flatten(1).long()].sum(1)


def test_a_module_in_code_trains_and_is_read_back(tmp_path: Path) -> None:
    """The module given is left as it was; what is loaded is the averaged weights in a module of the
    same signature.
    """
    module = Quartic(64)
    before = copy.deepcopy(module.state_dict())
    config = compose(
        ["energy=custom", "cluster=inline", "trainer.steps=5", f"output={tmp_path}/a", *SMALL]
    )
    summary = run(config, energy=module)
    assert summary["version"] == 5
    assert torch.equal(module.scale, before["scale"])
    loaded = pipeline.load(f"{tmp_path}/a", energy=Quartic(64))
    x = torch.randn(3, 8, 8)
    scale: Tensor = loaded.module.scale  # type: ignore[union-attr, assignment]
    expected = x.flatten(1).pow(4) @ scale.exp() + x.flatten(1).square().sum(1) / 2
    torch.testing.assert_close(loaded(x), expected)
    assert not torch.equal(scale, before["scale"])
    with pytest.raises(CheckpointError, match="given in code"):
        pipeline.load(f"{tmp_path}/a")
    with pytest.raises(ConfigError, match=r"must map \[2, 8, 8\] to \[2\]; it failed"):
        pipeline.load(f"{tmp_path}/a", energy=Quartic(63))
    with pytest.raises(CheckpointError, match=r"energy\.given=.*Quartic there, .*Sequential here"):
        run(config, energy=nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)))


def test_a_proposal_in_code(tmp_path: Path) -> None:
    config = compose(
        [
            "experiment=toy",
            "kernel=metropolis_hastings",
            "cluster=inline",
            "trainer.steps=3",
            f"output={tmp_path}/a",
            *SMALL,
        ]
    )
    assert run(config, proposal=independence(2.0))["version"] == 3


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 3), r"must map \[2, 2\] to \[2\]; it gave \(2, 3\)"),
        (nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.1), nn.Flatten(0)), "Dropout: refused"),
        (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1), nn.Flatten(0)), "BatchNorm1d: refused"),
        ("mlp", "must be a torch.nn.Module"),
        (nn.Flatten(0), "has no parameter to learn"),
        (Counting(), r"calls \(torch.int64\): weights travel as float32"),
        (nn.Sequential(nn.Linear(2, 1), nn.Unflatten(1, (2, 2))), r"it failed"),
    ],
)
def test_what_is_no_energy_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CustomEnergy((2,), module, None, 1.0, None)


def test_code_and_configuration_must_agree() -> None:
    with pytest.raises(ConfigError, match="energy=custom"):
        run(compose([]), energy=Quartic())
    with pytest.raises(ConfigError, match="kernel=metropolis_hastings"):
        run(compose([]), proposal=independence(1.0))
    with pytest.raises(ConfigError, match=r"energy\.entry_point=null"):
        make_energy(compose(["energy=custom"]), (8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["energy=custom", "energy.entry_point=nothing"],
            "refused: energy.entry_point=nothing: no entry point",
        ),
        (
            ["kernel=metropolis_hastings", "kernel.proposal=nothing"],
            "refused: kernel.proposal=nothing: no entry point",
        ),
        (
            ["kernel=metropolis_hastings", "kernel.options={width:1}"],
            "refused: kernel.options={'width': 1}: ",
        ),
        (["energy=custom"], "refused: energy.entry_point=null: name an entry point"),
        (["energy.box=[-0.5,1]"], "refused: energy.box=[-0.5, 1.0]: the data reach from -1 to 1"),
        (
            ["kernel=hmc", "kernel.mass=[1,2]"],
            "refused: kernel.mass=[1.0, 2.0]: a row has 64 components",
        ),
    ],
)
def test_refusals_name_key_value_and_remedy(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"output={tmp_path}/a"]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "a").exists()


BINARY = (
    "energy=custom",
    "energy.levels=2",
    "data.encoding=binary",
    "data.noise=0",
    "cluster=inline",
    "trainer.steps=3",
)


def test_what_fails_in_a_kernel_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A module without a gradient trains by single-site Gibbs; Gibbs-with-gradients is refused in
    words.
    """
    output = f"output={tmp_path}/a"
    with pytest.raises(
        ConfigError,
        match=r"kernel=gibbs_with_gradients: a first transition .* failed \(RuntimeError",
    ):
        run(compose([*BINARY, "kernel=gibbs_with_gradients", output, *SMALL]), energy=Rounding())
    assert not (tmp_path / "a").exists()
    assert (
        run(compose([*BINARY, "kernel=single_site", output, *SMALL]), energy=Rounding())["version"]
        == 3
    )


def test_modules_that_cannot_be_sent_are_refused(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 1)), nn.Flatten(0)
    )
    with pytest.raises(ConfigError, match="parametrizations cannot be sent to actors"):
        run(compose(["energy=custom", f"output={tmp_path}/a"]), energy=module)


def test_few_states_of_a_users_energy_are_counted() -> None:
    energy = CustomEnergy((3,), Rounding(), 2, 1.0, None)
    table: Tensor = energy.module.table  # type: ignore[assignment]
    expected = 3 * torch.logsumexp(-table.double(), 0)
    assert energy.log_partition() == pytest.approx(float(expected.detach()), abs=1e-9)


def test_a_module_is_given_only_where_one_is_wanted(tmp_path: Path) -> None:
    run(
        compose(
            [
                "cluster=inline",
                "trainer.steps=1",
                "energy.hidden=[4]",
                f"output={tmp_path}/a",
                *SMALL,
            ]
        )
    )
    with pytest.raises(CheckpointError, match="its energy is mlp, which needs no module"):
        pipeline.load(f"{tmp_path}/a", energy=Quartic(64))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The example as an installed package: an environment in which its entry point is found."""
    site = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, "--target", str(site), str(EXAMPLE)], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.mark.slow
@pytest.mark.ray
def test_the_example_as_an_installed_package(installed: dict[str, str], tmp_path: Path) -> None:
    """Through the command line and Ray, from an empty folder; read back there in a fresh process
    without being given code.
    """
    train = [
        *("-m", "pipeline.train", "energy=custom", "energy.entry_point=student_experts"),
        *("energy.options={experts:16}", "trainer.steps=10", "output=own", *SMALL),
    ]
    subprocess.run(
        [sys.executable, *train], cwd=tmp_path, env=installed, check=True, timeout=PATIENCE
    )
    read = (
        "import pipeline; e = pipeline.load('own'); print(sorted(n for n, _ in"
        " e.named_parameters()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", read],
        cwd=tmp_path,
        env=installed,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (
        done.stdout.strip()
        == "['module.filters.bias', 'module.filters.weight', 'module.log_weights']"
    )
    manifest = json.loads(next((tmp_path / "own").rglob("manifest.json")).read_text())
    assert ["module.filters.weight", [16, 64], "float32"] in manifest["signature"]


@pytest.mark.slow
@pytest.mark.ray
def test_the_example_in_code_travels_to_the_actors(tmp_path: Path) -> None:
    """`in_code.py` from an empty folder, in one process and through Ray: the same weights, bit for
    bit.
    """
    ends = []
    for cluster in ("inline", "local"):
        arguments = [
            str(EXAMPLE / "in_code.py"),
            "trainer.steps=10",
            f"cluster={cluster}",
            f"output={cluster}",
            *SMALL,
        ]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "8448 parameters, read back from" in done.stdout
        part = next((tmp_path / cluster).rglob("energy.safetensors"))
        ends.append(decode(part.read_bytes())["weights"])
    assert torch.equal(*ends)
