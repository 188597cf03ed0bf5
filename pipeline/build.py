"""The one table from configuration to objects. A new energy, kernel, objective or data set is one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pipeline.chains import ChainPlan, Chains
from pipeline.config import EnergyConfig, RunConfig
from pipeline.data import columns, images, toys
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.energies.deep import ConvEnergy, MLPEnergy
from pipeline.energies.rbm import BernoulliRBM
from pipeline.errors import ConfigError
from pipeline.kernels import gibbs, mala, ula
from pipeline.kernels.base import Kernel
from pipeline.learner import Learner
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.rng import torch_generator

ENERGIES: dict[str, Callable[..., Energy]] = {"mlp": MLPEnergy, "conv": ConvEnergy, "rbm": BernoulliRBM}
KERNELS: dict[str, Kernel] = {"ula": ula.kernel, "mala": mala.kernel, "gibbs": gibbs.kernel}
OBJECTIVES: dict[str, Callable[..., ContrastiveDivergence]] = {
    "pcd": ContrastiveDivergence,
    "cd": ContrastiveDivergence,
}
DATA: dict[str, Callable[[Any], DataSet]] = {
    "digits": images.digits,
    "idx": images.idx,
    "toy": toys.toy,
    "columns": columns.columns,
}


def open_data(config: RunConfig) -> DataSet:
    """The data set, checked against what the configuration asks of it. Raises `ConfigError`, `DataError`."""
    data = DATA[config.data.name](config.data)
    if config.trainer.batch_size > data.rows:
        remedy = f"the data have {data.rows} training rows; use at most that"
        raise ConfigError("trainer.batch_size", config.trainer.batch_size, remedy)
    return data


def make_energy(config: RunConfig, shape: Sequence[int]) -> Energy:
    """The energy with its initial weights, from the stream "weights"; torch's global one is left as it was."""
    return construct_energy(config.energy, shape, config.seed)


def construct_energy(energy: EnergyConfig, shape: Sequence[int], seed: int = 0) -> Energy:
    """`make_energy` where only the energy's own section is known: what a checkpoint is loaded into."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "weights").initial_seed())
        return ENERGIES[energy.name](shape, **energy.model_dump(exclude={"name"}))


def make_chains(config: RunConfig, shape: Sequence[int], pool: int) -> Chains:
    plan = ChainPlan(KERNELS[config.kernel.name], config.kernel.parameters, config.kernel.transitions, config.chains.restart)
    energy = make_energy(config, shape)
    return Chains(energy, plan, config.chains.per_pool, pool=pool, seed=config.seed, device=config.device)


def make_learner(config: RunConfig, data: DataSet) -> Learner:
    energy = make_energy(config, data.shape)
    energy.initialise(data.sample.mean(0))
    objective = OBJECTIVES[config.objective.name](**config.objective.model_dump(exclude={"name"}))
    return Learner(config, energy, objective, data.positives(config.seed))
