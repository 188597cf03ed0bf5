"""The law of some components given the others, against enumeration and closed forms; and through
the door that draws from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.chains.sampler import ChainPlan, Sampler
from pipeline.energies.base import Energy
from pipeline.energies.clamped import Clamped, as_positions, by_pattern
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.discrete import all_states
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.laws import Gaussian
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.kernels import gibbs, gibbs_with_gradients, hmc, mala, single_site
from pipeline.kernels.replica_exchange import over
from pipeline.sample import main
from tests.system.test_run import train

CHAINS = 4000


def chains(
    energy: Energy, kernel: object, transitions: int, rungs: int = 1, **parameters: float
) -> Tensor:
    """The ends of many chains from the base law, on a ladder of several rungs the model's."""
    plan = ChainPlan(kernel, parameters, transitions, 0.0, rungs=rungs)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(energy, plan, CHAINS, generator)
    sampler.advance(generator, transitions)
    return sampler.position[-CHAINS:]


def machine(seed: int = 1) -> BernoulliRBM:
    torch.manual_seed(seed)
    rbm = BernoulliRBM((6,), 4, 1.0).requires_grad_(False)
    rbm.visible_bias.copy_(torch.randn(6))
    return rbm


@pytest.mark.parametrize("kernel", [gibbs, gibbs_with_gradients, single_site])
def test_chains_of_a_machine_have_the_conditional_law(kernel: object) -> None:
    """Of 3 of 6 units given the others, over their 8 states: each frequency within 5 standard
    errors (6e-7 each). Given another value of the others it is another law.
    """
    rbm, free = machine(), torch.tensor([True, False, True, False, False, True])
    held = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
    law = Clamped(rbm, held, free)
    states = torch.cat(list(all_states(2, 3))).float()
    truth = torch.softmax(-law(states).double(), 0)
    other = torch.softmax(-Clamped(rbm, 1 - held, free)(states).double(), 0)
    drawn = chains(law, kernel.kernel, 60)  # type: ignore[attr-defined]
    found = (drawn[:, None] == states).all(2).double().mean(0)
    errors = (truth * (1 - truth) / CHAINS).sqrt()
    assert ((found - truth).abs() < 5 * errors).all()
    assert ((found - other).abs() > 5 * errors).any()


def deep_machine() -> DeepBoltzmannMachine:
    torch.manual_seed(4)
    machine = DeepBoltzmannMachine((4,), [3, 2], 2.0, 5).requires_grad_(False)
    machine.visible_bias.copy_(torch.randn(4))
    machine.hidden_bias.copy_(torch.randn(5))
    return machine


def potts_machine() -> PottsRBM:
    torch.manual_seed(2)
    machine = PottsRBM((4,), 3, 3, 1.5).requires_grad_(False)
    machine.visible_bias.copy_(torch.randn(12))
    return machine


@pytest.mark.parametrize("rungs", [1, 3])
@pytest.mark.parametrize("kind", [deep_machine, potts_machine, lambda: machine(5)])
def test_gibbs_blocks_keep_what_is_held(kind: Callable[[], Energy], rungs: int) -> None:
    """The law of two visible units that are free, given the others and with latent ones summed out,
    by enumeration: each frequency within 5 standard errors (6e-7 each), also at the end of a ladder
    with swaps. Chains have one of two rows each, and so one of two laws.
    """
    energy = kind()
    levels, visible = energy.levels or 2, math.prod(energy.data_shape)
    rows = torch.stack([torch.arange(visible) % 2, torch.arange(visible) // 2 % 2]).float()
    rows[:, :2] = torch.nan
    values = as_positions(energy, rows)
    free = values[0].isnan()
    law = Clamped(energy, values, free)
    kernel = gibbs.kernel if rungs == 1 else over(gibbs.kernel, rungs, 1)
    drawn = chains(law, kernel, 80 if rungs == 1 else 40, rungs)[:, :2]
    pairs = torch.cat(list(all_states(levels, 2))).float()
    truths = []
    for number in range(2):
        one = Clamped(energy, values[number : number + 1], free)
        states = torch.cat(list(all_states(levels, one.dimension))).float()
        share = torch.softmax(-one(states).double(), 0)
        truth = torch.stack([share[(states[:, :2] == pair).all(1)].sum() for pair in pairs])
        mine = drawn[number::2]
        found = (mine[:, None] == pairs).all(2).double().mean(0)
        assert ((found - truth).abs() < 5 * (truth * (1 - truth) / len(mine)).sqrt()).all()
        truths.append(truth)
    assert (truths[0] - truths[1]).abs().max() > 0.05  # which is more than those errors


def test_contexts_and_held_values_go_together() -> None:
    """Chain i under context i mod 2 given row i mod 2: the free site's conditional by enumeration,
    each frequency within 5 standard errors (6e-7 each).
    """
    torch.manual_seed(0)
    energy = PairwiseEnergy((3,), (2,), 3, "all", []).requires_grad_(False)
    energy.coupling.normal_()
    contexts = torch.tensor([[1.0, -1.0], [-2.0, 0.5]])
    values, free = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 2.0]]), torch.tensor([1, 0, 0]).bool()
    drawn = chains(Clamped(energy.given(contexts), values, free), single_site.kernel, 30)
    for number in range(2):
        states = values[number].repeat(3, 1)
        states[:, 0] = torch.arange(3)
        truth = torch.softmax(-energy.given(contexts[number : number + 1])(states).double(), 0)
        found = (drawn[number::2] == torch.arange(3)).double().mean(0)
        assert ((found - truth).abs() < 5 * (truth * (1 - truth) / (CHAINS / 2)).sqrt()).all()


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (mala, {"step_size": 0.15}),
        (hmc, {"step_size": 0.3, "leapfrog_steps": 5, "jitter": 0.2, "mass": 1.0}),
    ],
)
def test_chains_of_a_gaussian_have_its_conditional(
    kernel: object, parameters: dict[str, float]
) -> None:
    """Mean and variance of one component given the other, in closed form; each chain is given its
    own value.
    """
    law = Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.6], [0.6, 0.8]]))
    given = torch.linspace(-2, 2, CHAINS)
    held = torch.stack([torch.zeros(CHAINS), given], 1)
    clamped = Clamped(law, held, torch.tensor([True, False]))
    drawn = chains(clamped, kernel.kernel, 100, **parameters)[:, 0]  # type: ignore[attr-defined]
    excess = (drawn - (1.0 + 0.6 / 0.8 * (given + 1.0))).double()
    variance = 1.0 - 0.6**2 / 0.8
    assert abs(float(excess.mean())) < 5 * (variance / CHAINS) ** 0.5
    assert abs(float(excess.var()) - variance) < 5 * variance * (2 / CHAINS) ** 0.5
    assert torch.equal(clamped.whole(drawn[:, None])[:, 1], given)


@pytest.mark.parametrize("kind", ["mlp", "rbm", "gaussian_rbm", "potts"])
def test_energy_and_gradient_are_the_whole_ones(kind: str) -> None:
    """In the free components; on a ladder they are those of the path."""
    torch.manual_seed(0)
    energies: dict[str, Energy] = {
        "mlp": MLPEnergy((2, 3), [8], 1.5, spectral_norm=False),
        "rbm": BernoulliRBM((2, 3), 4, 1.0),
        "gaussian_rbm": GaussianRBM((2, 3), 4, 1.0),
        "potts": PottsLattice((2, 3), 3, 0.5, periodic=False),
    }
    energy = energies[kind].double().requires_grad_(False)
    x = energy.sample_base(7, torch.Generator().manual_seed(0)).double()
    free = torch.tensor([[True, False, True], [False, False, True]])
    law = Clamped(energy, x, free)
    z = law.chosen(x)
    assert torch.equal(law.whole(z), x)
    value, gradient = law.energy_and_gradient(z)
    whole, of_whole = energy.energy_and_gradient(x)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(gradient, of_whole[:, free])
    if kind == "mlp":
        beta = torch.full((7,), 0.3, dtype=torch.float64)
        for found, right in zip(
            law.energy_and_gradient(z, beta), Energy.energy_and_gradient(law, z, beta), strict=True
        ):
            torch.testing.assert_close(found, right)


def test_rows_are_told_apart_by_their_holes() -> None:
    nan = float("nan")
    rows = torch.tensor([[nan, 1.0], [2.0, nan], [nan, 3.0], [nan, nan]])
    found = sorted(piece.tolist() for piece in by_pattern(rows))
    assert found == [[0, 2], [1], [3]]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["rbm", "deep"])
def test_samples_are_clamped_through_the_door(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows with other holes each, over again: what is there stays, what is not is drawn."""
    train(kind, tmp_path / "run", "evaluation.samples=0", "evaluation.ais_temperatures=0")
    rows = np.ones((2, 8, 8), np.float32)
    rows[0, :4], rows[1, :, :2] = np.nan, np.nan
    np.save(tmp_path / "rows.npy", rows)
    asked = [f"run={tmp_path / 'run'}", f"output={tmp_path / 'out'}", "samples=6", "transitions=5"]
    clamp = f"clamp={tmp_path / 'rows.npy'}"
    for start in ("noise", "data"):
        assert main([*asked, clamp, f"start={start}"]) == 0
        with pa.ipc.open_file(tmp_path / "out" / "samples.arrow") as file:
            found = np.array(file.read_all()["position"].to_pylist()).reshape(6, 8, 8)
        for number, sample in enumerate(found):
            there = ~np.isnan(rows[number % 2])
            assert (sample[there] == 1.0).all()
            assert not (sample[~there] == 1.0).all()
            assert np.isfinite(sample).all()
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["start"] == start
    capsys.readouterr()
    np.save(tmp_path / "whole.npy", np.ones((2, 8, 8), np.float32))
    assert main([*asked, f"clamp={tmp_path / 'whole.npy'}"]) == 2
    assert "no row lacks a number: nothing is to be drawn" in capsys.readouterr().err
    assert main([*asked, f"clamp={tmp_path / 'rows.csv'}"]) == 2
    assert "clamp=" in capsys.readouterr().err
