"""The live likelihood: against the exact one, by quadrature, and by AIS with more effort; and that
it changes nothing of a run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.assembly.data import noisy_sample, open_data
from pipeline.assembly.energies import make_energy
from pipeline.common.errors import ConfigError
from pipeline.common.rng import torch_generator
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.weights import flatten
from pipeline.evaluation import likelihood
from pipeline.evaluation.conditional import reach
from pipeline.evaluation.live import Live
from pipeline.runs.inline import InlineRunner
from tests.statistics.test_evaluation import run

Small = Callable[..., RunConfig]


def scored(config: RunConfig, energy: Energy) -> dict[str, float]:
    """The figures of an estimate that has all the time it wants."""
    live = Live(config, open_data(config))
    live._credit = 1e9
    figures = live.spend(7, lambda: flatten(energy))
    assert figures["log_likelihood_version"] == 7
    return figures


def changed(config: RunConfig, scale: float) -> Energy:
    """The run's energy, away from its first weights."""
    energy = make_energy(config, open_data(config).shape).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in energy.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return energy


def test_a_machine_that_can_be_summed_over_is_exact(small: Small) -> None:
    config = small("rbm", "energy.hidden=8")
    data, energy = open_data(config), changed(config, 0.3)
    figures = scored(config, energy)
    log_z = energy.log_partition()
    assert log_z is not None
    truth = likelihood.exact(energy, log_z, data.held_out, data.sample)["test_log_likelihood"]
    for name in ("", "_at_least", "_at_most"):
        assert figures[f"log_likelihood{name}"] == pytest.approx(truth, abs=1e-4)


def test_a_model_in_the_plane_is_near_quadrature(small: Small) -> None:
    config = small("deep", "data=toy")
    data, energy = open_data(config), changed(config, 0.2)
    noise = torch_generator(config.data.split_seed, "held-out-noise")
    test = data.held_out + data.noise * torch.randn(data.held_out.shape, generator=noise)
    truth = likelihood.two_dimensional(energy, data, test, reach(energy, data))
    assert scored(config, energy)["log_likelihood"] == pytest.approx(
        truth["test_log_likelihood"], abs=0.01
    )


@pytest.mark.parametrize(
    ("settings", "scale"), [(("rbm", "energy.hidden=24"), 0.1), (("deep",), 0.02)]
)
def test_bounds_enclose_what_more_effort_finds(
    small: Small, settings: tuple[str, ...], scale: float
) -> None:
    """Where log Z is by AIS: with ten times the temperatures the estimate is between them."""
    effort = ("evaluation.ais_temperatures=1000", "evaluation.ais_particles=100")
    config = small(*settings, *effort)
    data, energy = open_data(config), changed(config, scale)
    figures = scored(config, energy)
    with torch.no_grad():
        rows = noisy_sample(config, data)
        noise = torch_generator(config.data.split_seed, "held-out-noise")
        draws = torch.randn(data.held_out.shape, generator=noise)
        test = data.held_out + (0.0 if energy.levels is not None else data.noise) * draws
        truth = run(likelihood.by_annealing(energy, test, rows, config))
    assert "unreliable" not in truth
    low, high = figures["log_likelihood_at_least"], figures["log_likelihood_at_most"]
    assert low < truth["test_log_likelihood"] < high
    assert high - low < 40


def test_a_run_learns_the_same_with_it(small: Small) -> None:
    """Bit for bit; its figures come with the steps at which estimates end."""
    ends, told = [], 0
    for live in ("false", "true"):
        runner = InlineRunner(small("rbm", "cluster=inline", f"evaluation.live={live}"))
        runner.start(None, None)
        if live == "true":
            assert runner._scoring._live is not None
            runner._scoring._live._credit = 1e9
        for _ in range(5):
            told += "log_likelihood" in runner.step()[0].figures
        ends.append(runner._learner.publish().flat)
    assert np.array_equal(*ends)
    assert told == 5


def test_it_takes_its_share_and_no_more(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but for what a temperature takes: 1 of 20 seconds."""
    config = small("deep")
    clock = [0.0]
    monkeypatch.setattr("pipeline.evaluation.live.time.perf_counter", lambda: clock[0])
    live, energy = Live(config, open_data(config)), changed(config, 0.02)
    worked = []

    def work(_: int) -> object:
        while True:
            clock[0] += 0.5
            worked.append(True)
            yield

    live._estimate = work  # type: ignore[method-assign, assignment]
    for _ in range(100):
        clock[0] += 1.0
        live.spend(1, lambda: flatten(energy))
    assert 0.5 * len(worked) <= 0.05 * clock[0] + 0.5
    assert len(worked) >= 9


def test_a_model_of_many_laws_has_none(small: Small) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.live"):
        small("conditional", "evaluation.live=true")
