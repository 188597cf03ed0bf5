"""From a configuration to the learner of one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pipeline.assembly.chains import moving_plan
from pipeline.assembly.data import (
    first_contexts,
    initialise,
    keeps_chains,
    noisy_sample,
    sample_weights,
)
from pipeline.assembly.energies import make_energy
from pipeline.assembly.graph import restrict, schedule
from pipeline.assembly.refusals import refusing
from pipeline.common.process import keep_freed_memory
from pipeline.common.rng import torch_generator
from pipeline.config import parts
from pipeline.config.objectives import FastPCDObjective, MixtureObjective, terms_of
from pipeline.config.run import RunConfig
from pipeline.data.base import AllRows, DataSet, Positives
from pipeline.energies.base import Energy
from pipeline.objectives.base import Term
from pipeline.objectives.contrastive import FastWeights
from pipeline.training.imputation import ImputedPositives
from pipeline.training.learner import Learner
from pipeline.training.probe import Probe
from pipeline.training.ranks import ALONE, Ranks


def make_learner(config: RunConfig, data: DataSet, ranks: Ranks = ALONE) -> Learner:
    """The learner of this rank, with its share of the positives. Raises `ConfigError`."""
    keep_freed_memory()
    energy = make_energy(config, data.shape, data.context_shape)
    initialise(config, energy, data)
    restrict(config, energy, data)
    rows, context = energy.into_domain(noisy_sample(config, data)), first_contexts(data, 1)
    dtype = next(energy.parameters()).dtype
    terms = make_terms(
        config,
        energy,
        rows.to(dtype),
        None if context is None else context.to(dtype),
        sample_weights(data),
    )
    for term in terms:
        term.objective.total_weight = data.total_weight
    positives: Positives = AllRows(data)
    if config.trainer.batch_size is not None:
        positives = data.positives(config.seed, ranks.rank, ranks.size)
    fast, kept = fast_weights(config), keeps_chains(config, data)
    # rank 0 looks for all; of a model that is split it has a part alone
    looks = ranks.rank == 0 and config.trainer.sharding == "none"
    probe = Probe(config, data.whole(), torch.device(config.device)) if looks else None
    plan = moving_plan(config)
    with refusing("trainer", config.trainer):
        return Learner(
            config,
            energy,
            terms,
            positives,
            fast,
            kept,
            ranks,
            plan,
            probe,
            imputing(config, data),
            schedule(config),
        )


def imputing(config: RunConfig, data: DataSet) -> Callable[[Positives, Energy], Positives] | None:
    """The way that holes of training rows are filled; None where there are none."""
    if data.missing is None:
        return None
    return partial(
        ImputedPositives,
        rows=data.sample,
        missing=data.missing,
        sweeps=config.kernel.within.transitions,
        seed=config.seed,
    )


def make_terms(
    config: RunConfig,
    energy: Energy,
    rows: Tensor,
    context: Tensor | None = None,
    weights: Tensor | None = None,
) -> list[Term]:
    """The objectives of the sum, started from training rows `[S, *shape]` and their `weights` [S],
    a few contexts, and the untrained `energy`.

    Raises `ConfigError` where an objective cannot be had of this energy or these rows.
    """
    several = isinstance(config.objective, MixtureObjective)
    shares = config.objective.weights if isinstance(config.objective, MixtureObjective) else {}
    terms = []
    for name, section in terms_of(config.objective).items():
        objective = parts.make_of("objective", section.name)(section, config)
        with refusing(f"objective.terms.{name}" if several else "objective", section):
            objective.initialise(
                energy.given(context), rows, torch_generator(config.seed, "objective", 1), weights
            )
        terms.append(Term(f"{name}." if several else "", shares.get(name, 1.0), objective))
    return terms


def fast_weights(config: RunConfig) -> Callable[[Sequence[Tensor]], FastWeights] | None:
    """The fast weights from the energy's parameters; None under an objective without them."""
    section = config.contrastive
    if not isinstance(section, FastPCDObjective):
        return None
    return partial(FastWeights, rate=section.fast_rate, decay=section.fast_decay)
