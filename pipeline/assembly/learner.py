"""The one table from configuration to objects. A new energy, kernel, objective or data set is one
line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from pipeline.assembly.data import _first_contexts, keeps_chains, noisy_sample
from pipeline.assembly.energies import make_energy
from pipeline.assembly.kernels import replay_of
from pipeline.assembly.refusals import refusing
from pipeline.common.process import keep_freed_memory
from pipeline.common.rng import torch_generator
from pipeline.config.objectives import FastPCDObjective, MixtureObjective, terms_of
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.objectives.base import Objective, Term
from pipeline.objectives.contrastive import ContrastiveDivergence, FastWeights
from pipeline.objectives.improved import ImprovedContrastiveDivergence
from pipeline.objectives.labels import LabelLikelihood
from pipeline.objectives.likelihood import MaximumLikelihood
from pipeline.objectives.moments import MomentMatching, MomentMatchingByChains
from pipeline.objectives.noise_contrastive import ConditionalNoiseContrastive, NoiseContrastive
from pipeline.objectives.probes import PROBES
from pipeline.objectives.pseudo import PseudoLikelihood, RatioMatching
from pipeline.objectives.score_matching import (
    DenoisingScoreMatching,
    FiniteDifferenceDenoising,
    FiniteDifferenceScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from pipeline.training.learner import Learner
from pipeline.training.ranks import ALONE, Ranks

MOMENTS = {"exact": MomentMatching, "chains": MomentMatchingByChains}
# an objective from its section and the run's
OBJECTIVES: dict[str, Callable[[Any, RunConfig], Objective]] = {
    "pcd": lambda section, _: ContrastiveDivergence(section.energy_l2),
    "cd": lambda section, _: ContrastiveDivergence(section.energy_l2),
    "short_run": lambda section, _: ContrastiveDivergence(section.energy_l2),
    "fast_pcd": lambda section, _: ContrastiveDivergence(section.energy_l2),
    "improved_cd": lambda section, config: ImprovedContrastiveDivergence(
        section.energy_l2, section.kl, section.entropy, replay_of(config.kernel)
    ),
    "maximum_likelihood": lambda section, _: MaximumLikelihood(section.grid),
    "label_likelihood": lambda _, __: LabelLikelihood(),
    "score_matching": lambda _, __: ScoreMatching(PROBES["basis"], 0),
    "hutchinson": lambda section, _: ScoreMatching(PROBES[section.probe], section.probes),
    "sliced": lambda section, _: SlicedScoreMatching(PROBES[section.probe], section.probes),
    "finite_difference": lambda section, _: FiniteDifferenceScoreMatching(
        PROBES[section.probe], section.probes, section.epsilon
    ),
    "denoising": lambda section, _: DenoisingScoreMatching(section.sigmas, section.draws),
    "denoising_finite_difference": lambda section, _: FiniteDifferenceDenoising(
        section.sigmas, section.draws, PROBES[section.probe], section.epsilon
    ),
    "nce": lambda section, _: NoiseContrastive(section.draws),
    "conditional_nce": lambda section, _: ConditionalNoiseContrastive(section.draws, section.scale),
    "pseudo_likelihood": lambda section, _: PseudoLikelihood(section.sites),
    "ratio_matching": lambda section, _: RatioMatching(section.sites),
    "moments": lambda section, _: MOMENTS[section.expectation](
        section.moments, section.l1, section.l2
    ),
}


def make_learner(config: RunConfig, data: DataSet, ranks: Ranks = ALONE) -> Learner:
    """The learner of this rank, with its share of the positives. Raises `ConfigError`."""
    keep_freed_memory()
    energy = make_energy(config, data.shape, data.context_shape)
    energy.initialise(noisy_sample(config, data))
    rows, context = energy.into_domain(noisy_sample(config, data)), _first_contexts(data, 1)
    dtype = next(energy.parameters()).dtype
    terms = make_terms(
        config, energy, rows.to(dtype), None if context is None else context.to(dtype)
    )
    positives = data.positives(config.seed, ranks.rank, ranks.size)
    fast, kept = fast_weights(config), keeps_chains(config, data)
    with refusing("trainer", config.trainer):
        return Learner(config, energy, terms, positives, fast, kept, ranks)


def make_terms(
    config: RunConfig, energy: Energy, rows: Tensor, context: Tensor | None = None
) -> list[Term]:
    """The objectives of the sum, started from training rows `[S, *shape]`, a few contexts, and the
    untrained `energy`. Raises `ConfigError`.
    """
    several = config.objective.name == "mixture"
    weights = config.objective.weights if isinstance(config.objective, MixtureObjective) else {}
    terms = []
    for name, section in terms_of(config.objective).items():
        objective = OBJECTIVES[name](section, config)
        with refusing(f"objective.terms.{name}" if several else "objective", section):
            objective.initialise(
                energy.given(context), rows, torch_generator(config.seed, "objective", 1)
            )
        terms.append(Term(f"{name}." if several else "", weights.get(name, 1.0), objective))
    return terms


def fast_weights(config: RunConfig) -> Callable[[Sequence[Tensor]], FastWeights] | None:
    section = config.contrastive
    if not isinstance(section, FastPCDObjective):
        return None
    return partial(FastWeights, rate=section.fast_rate, decay=section.fast_decay)
