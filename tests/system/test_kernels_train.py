"""Every kernel trains a model through the door a user takes: `python -m pipeline.train
kernel=NAME`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import parts
from pipeline.config.compose import compose
from pipeline.config.energies import EnergySection
from pipeline.config.kernels import KernelSection
from pipeline.config.parts import ENERGIES, KERNELS
from pipeline.train import main
from tests.beside import defaults
from tests.system.test_systems import SHORT

COMMON = (
    *("cluster=inline", "metrics.port=0", "evaluation.samples=40", "evaluation.transitions=100"),
    *("chains.per_pool=50", "optimizer.warmup=20", "checkpoint.every=1000"),
)
TOY = (
    "experiment=toy",
    "energy.hidden=[32,32]",
    "trainer.steps=250",
    "trainer.batch_size=128",
    "chains.burn_in=20",
)
DIGITS = (
    "trainer.steps=300",
    "trainer.batch_size=100",
    "objective.energy_l2=0",
    "optimizer.learning_rate=0.01",
)
BINARY = (*DIGITS, "data.encoding=binary", "data.noise=0", "chains.restart=0")
SCORES = ("log_likelihood", "log_likelihood_bound", "pseudo_log_likelihood")
# kernel: (energy, what else is given)
CASES = {
    "random_walk": ("mlp", TOY),
    "metropolis_hastings": ("mlp", (*TOY, "kernel.options={scale:2.0}")),
    "ula": ("mlp", (*TOY, "kernel.step_size=0.02")),
    "mala": ("mlp", (*TOY, "kernel.force=bfloat16")),
    "hmc": ("mlp", (*TOY, "energy.box=[-4,4]")),
    "gibbs": ("gaussian_rbm", (*DIGITS, "data.noise=0.3", "chains.restart=0", "energy.hidden=16")),
    "gibbs_with_gradients": ("quadratic", BINARY),
    "single_site": ("lattice", BINARY),
    "replica_exchange": (
        "rbm",
        (*BINARY, "kernel.inner=gibbs", "kernel.rungs=4", "energy.hidden=16"),
    ),
}
MORE = [
    ("gibbs", "potts_rbm", (*BINARY, "data.encoding=categorical", "energy.hidden=16")),
    (
        "gibbs_with_gradients",
        "potts_rbm",
        (*BINARY, "data.encoding=categorical", "energy.hidden=16"),
    ),
    (
        "gibbs",
        "potts",
        (*BINARY, "data.encoding=categorical", "energy.levels=4", "trainer.steps=120"),
    ),
    ("gibbs", "dbm", (*BINARY, "energy.hidden=[16,8]")),
    (
        "replica_exchange",
        "dbm",
        (*BINARY, "kernel.inner=gibbs", "kernel.rungs=3", "energy.hidden=[16,8]"),
    ),
    ("replica_exchange", "mlp", (*TOY, "kernel.rungs=4", "kernel.inner.target_acceptance=0.6")),
    (
        "mala",
        "conv",
        (
            *DIGITS,
            "trainer.steps=60",
            "energy.channels=[4,8]",
            "energy.hidden=16",
            "evaluation.ais_temperatures=100",
        ),
    ),
]


# whose AIS goes site by site: the pseudo-likelihood tells as much in a moment
BY_SITES = {"lattice", "potts", "quadratic"}


def derived() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(kernel, energy, what else is given) for the parts that nothing is said of above, nor trained
    by a preset of its own (`tests/system/test_systems.py`).
    """
    for name in sorted(set(KERNELS) - set(CASES)):
        section = parts.section_of("kernel", name)
        assert issubclass(section, KernelSection)
        if section.needs_conditionals:
            yield name, "rbm", (*BINARY, "energy.hidden=16")
        else:
            yield (
                (name, "quadratic", BINARY) if section.domain == "discrete" else (name, "mlp", TOY)
            )
    trained = {energy for energy, _ in CASES.values()} | {energy for _, energy, _ in MORE}
    trained |= {compose([f"experiment={name}"]).energy.name for name in SHORT}
    trained |= {"custom"}  # a user's module: tests/system/test_custom_energy.py
    trained |= {"mixed_rbm"}  # tables of several kinds: tests/system/test_mixed_tables.py
    for name in sorted(set(ENERGIES) - trained):
        section = defaults("energy", name)
        assert isinstance(section, EnergySection)
        if section.domain.levels is None:
            yield "mala", name, (TOY[0], *TOY[2:])
        else:
            encoding = "binary" if section.domain.levels == 2 else "categorical"
            levels = (*BINARY, f"data.encoding={encoding}", f"data.levels={section.domain.levels}")
            yield "gibbs" if section.has_conditionals else "gibbs_with_gradients", name, levels


@pytest.mark.slow
@pytest.mark.single
@pytest.mark.usefixtures("undrawn", "coarse")
@pytest.mark.parametrize(
    ("kernel", "energy", "overrides"),
    [*((k, *v) for k, v in CASES.items()), *MORE, *derived()],
)
def test_the_model_gets_better(
    kernel: str, energy: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    """Held-out rows gain at least half a nat over the untrained model; chains stay finite."""
    assert (
        main(
            [
                *overrides[:1],
                f"energy={energy}",
                f"kernel={kernel}",
                *COMMON,
                *overrides[1:],
                *(["evaluation.ais_temperatures=0"] if energy in BY_SITES else []),
                f"output={tmp_path}",
            ]
        )
        == 0
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    score = next(summary[f"test_{kind}"] for kind in SCORES if f"test_{kind}" in summary)
    assert score > summary["baselines"]["untrained"] + 0.5
    assert summary["reseeded_chains"] == 0
