"""AIS of a Potts model from the data's rates: its path by definition, and log Z by enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config.compose import compose
from pipeline.energies import gauges
from pipeline.energies.potts import PottsModel
from pipeline.evaluation import ais, paths
from pipeline.evaluation.ais import Schedule, forward_log_partition, there_and_back
from pipeline.evaluation.likelihood import by_annealing, exact, untrained
from pipeline.evaluation.log_partition import LogPartition
from pipeline.evaluation.paths import from_rates, path_to
from pipeline.evaluation.sequences import likelihood_a_site, site_words
from pipeline.kernels.base import EnergyState
from tests.statistics.laws import scramble, seeded
from tests.statistics.test_evaluation import run
from tests.statistics.test_potts import EXACT, LEVELS, SITES, by_definition, model, states

LIMIT = 5.0
"""Standard errors that an estimate may be off; of 10 batches, with a chance of 7e-4."""


def known(scale: float = 1.0) -> tuple[PottsModel, float, Tensor]:
    """A model, its log Z by enumeration in float64, and 2,000 exact draws."""
    energy, x = model(scale=scale), states()
    logs = -by_definition(energy, x).detach()
    chosen = torch.multinomial(logs.softmax(0), 2000, replacement=True, generator=seeded(1))
    return energy.requires_grad_(False), float(logs.logsumexp(0)), x[chosen]


def test_the_path_is_that_from_the_rates() -> None:
    """E_0 are the logs of counts, each one more than it is; E_beta is linear in beta, and so are
    the fields that sites are drawn by.
    """
    energy, _, rows = known()
    path, x = path_to(energy, rows), states()[::5]
    assert isinstance(path, PottsModel)
    counts = torch.stack([(rows == a).sum(0) for a in range(LEVELS)], 1) + 1
    logs = counts.double().log()
    base = -(logs - logs.mean(1, keepdim=True))[range(SITES), x.long()].sum(1)
    torch.testing.assert_close(path.base(x), base, **EXACT)
    torch.testing.assert_close(path(x), by_definition(energy, x), **EXACT)
    for beta in (0.0, 0.3, 1.0):
        betas = torch.full((len(x),), beta, dtype=torch.float64)
        truth = (1 - beta) * base + beta * by_definition(energy, x)
        torch.testing.assert_close(path.tempered(x, betas), truth, **EXACT)
        others = [x.clone() for _ in range(LEVELS)]
        for a, moved in enumerate(others):
            moved[:, -1] = a
        law = (-torch.stack([path.tempered(moved, betas) for moved in others], 1)).log_softmax(1)
        last = path.conditional("descending", x, betas).log_prob(x)[:, -1]
        torch.testing.assert_close(last, law.gather(1, x[:, -1:].long())[:, 0], **EXACT)


def estimated(seed: int = 0, scale: float = 1.0) -> tuple[LogPartition, float]:
    energy, log_z, rows = known(scale)
    with torch.no_grad():
        path = path_to(energy.float(), rows.float())
        return run(forward_log_partition(path, 100, 200, seeded(seed))), log_z


def agrees(found: LogPartition, log_z: float) -> bool:
    error = found.standard_error
    return error is not None and abs(found.value - log_z) < LIMIT * error


def test_estimate_agrees_with_enumeration() -> None:
    found, log_z = estimated()
    assert agrees(found, log_z)
    assert found.standard_error is not None
    assert found.standard_error < 0.02


def test_there_and_back_encloses_the_truth() -> None:
    """In haste, of 5 temperatures. Of 30 bounds on a side each is wrong with a chance of 5 % at
    most: 7 or more are with one of 6e-4. On average each way is on its own side of the truth.
    """
    energy, log_z, rows = known(1.5)
    path, schedule = path_to(energy.float(), rows.float()), Schedule(torch.linspace(0, 1, 6), None)
    with torch.no_grad():
        found = [
            run(there_and_back(path, schedule, 40, seeded(seed), rows.float(), 5))[0]
            for seed in range(30)
        ]
    assert sum(one.at_least > log_z for one in found) < 7
    assert sum(one.at_most is None or one.at_most < log_z for one in found) < 7
    assert sum(one.forward for one in found) / 30 < log_z
    assert sum(one.backward or 0.0 for one in found) / 30 > log_z


def unshared(field: Tensor, coupling: Tensor, wanted: Tensor) -> Tensor:
    """What a field lacks goes to every pair whole."""
    return coupling + (len(field) - 1) * (gauges.with_fields(field, coupling, wanted) - coupling)


def turned(field: Tensor, coupling: Tensor, wanted: Tensor) -> Tensor:
    return gauges.with_fields(wanted, coupling, field)


def dropped(field: Tensor, coupling: Tensor, wanted: Tensor) -> Tensor:  # noqa: ARG001
    return coupling


def stays(path: Any, _: Any, target: Any, state: Any, beta: Tensor, new: Tensor) -> Any:
    """The energies at a new beta are those at the old one, moved the wrong way."""
    target.beta = new.expand(len(state.position))
    base = path.base(state.position)
    return EnergyState(state.position, base + beta / new * (state.energy - base))


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "what fields lack is not shared": (paths, "with_fields", unshared),
    "its sign": (paths, "with_fields", turned),
    "what fields lack is lost": (paths, "with_fields", dropped),
    "the base's log Z": (PottsModel, "base_log_partition", lambda path: 0.0),  # noqa: ARG005
    "the ratio of betas": (ais, "_at", stays),
}


@pytest.mark.parametrize("slip", BROKEN)
def test_broken_variant_is_caught(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[slip])
    assert not agrees(*estimated())


def test_a_model_of_one_site_has_its_own_path() -> None:
    energy = scramble(PottsModel((1,), 3), 0.5, 0)
    assert path_to(energy, torch.zeros(4, 1)) is energy


def test_an_untrained_model_is_its_base_law() -> None:
    """Whose log Z is known: no estimate is made of it."""
    energy, _, rows = known()
    with torch.no_grad():
        energy.coupling.zero_()
        found = run(untrained(energy, rows, rows[:50], 0))
    logs = energy.field.log_softmax(1)[range(SITES), rows[:50].long()].sum(1)
    assert found == pytest.approx(float(logs.mean()), abs=1e-9)


def test_energies_stay_in_another_gauge() -> None:
    """Whatever the fields are wanted to be."""
    energy, x = model(), states()
    wanted = torch.randn(SITES, LEVELS, generator=seeded(2)).double()
    other = from_rates(energy, x)
    with torch.no_grad():
        other.field.copy_(wanted)
        other.coupling.copy_(gauges.with_fields(energy.field, energy.coupling, wanted))
    torch.testing.assert_close(other(x), energy(x).detach(), **EXACT)


def test_likelihoods_a_site_are_those_of_rows() -> None:
    """Of held-out and training rows: both bounds, both ways, and the truth within the bounds."""
    energy, log_z, rows = known()
    energy, rows = energy.float(), rows.float()
    config = compose(["experiment=digits_rbm", "evaluation.ais_temperatures=60"])
    with torch.no_grad():
        figures = run(by_annealing(energy, rows[:500], rows[500:], config))
        truth = exact(energy, log_z, rows[:500], rows[500:1000])
    found = likelihood_a_site(figures, SITES)
    for name, key in (("held_out", "test_log_likelihood"), ("training", "train_log_likelihood")):
        told, level = found[name], truth[key]
        assert told["value"] == pytest.approx((level + log_z - figures["log_z"]) / SITES, abs=1e-6)
        for way in ("forward", "reverse"):
            of_way = figures[f"log_z_{way}"]
            assert told[way] == pytest.approx((level + log_z - of_way) / SITES, abs=1e-6)
        assert told["at_least"] <= level / SITES <= told["at_most"]
    first, second = site_words(found)
    assert first.startswith("log-likelihood a site: held-out sequences ")
    assert "wide); AIS forward" in first
    assert second.startswith("  training sequences ")
    alone = likelihood_a_site({"log_z": 1.0, "test_log_likelihood": -3.0}, 2)
    assert alone == {"held_out": {"value": -1.5}}
