"""Objectives from their sections: the `make` of each that this project registers."""

from __future__ import annotations

from pipeline.assembly.kernels import replay_of
from pipeline.config import objectives as sections
from pipeline.config.run import RunConfig
from pipeline.objectives.base import Objective
from pipeline.objectives.contrastive import ContrastiveDivergence
from pipeline.objectives.improved import ImprovedContrastiveDivergence
from pipeline.objectives.labels import LabelLikelihood
from pipeline.objectives.likelihood import MaximumLikelihood
from pipeline.objectives.moments import CouplingMoments, MomentMatching, MomentMatchingByChains
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

# ruff: noqa: ARG001 - every one is made of its section and the run's configuration


def contrastive(section: sections.ContrastiveObjective, config: RunConfig) -> Objective:
    return ContrastiveDivergence(section.energy_l2)


def improved_contrastive(section: sections.ImprovedCDObjective, config: RunConfig) -> Objective:
    replay = replay_of(config.kernel)
    return ImprovedContrastiveDivergence(section.energy_l2, section.kl, section.entropy, replay)


def maximum_likelihood(
    section: sections.MaximumLikelihoodObjective, config: RunConfig
) -> Objective:
    return MaximumLikelihood(section.grid)


def label_likelihood(section: sections.LabelLikelihoodObjective, config: RunConfig) -> Objective:
    return LabelLikelihood()


def exact_score_matching(
    section: sections.ExactScoreMatchingObjective, config: RunConfig
) -> Objective:
    return ScoreMatching(PROBES["basis"], 0)


def hutchinson(section: sections.HutchinsonObjective, config: RunConfig) -> Objective:
    return ScoreMatching(PROBES[section.probe], section.probes)


def sliced(section: sections.SlicedObjective, config: RunConfig) -> Objective:
    return SlicedScoreMatching(PROBES[section.probe], section.probes)


def finite_difference(section: sections.FiniteDifferenceObjective, config: RunConfig) -> Objective:
    return FiniteDifferenceScoreMatching(PROBES[section.probe], section.probes, section.epsilon)


def denoising(section: sections.DenoisingObjective, config: RunConfig) -> Objective:
    return DenoisingScoreMatching(section.sigmas, section.draws)


def denoising_finite_difference(
    section: sections.FiniteDifferenceDenoisingObjective, config: RunConfig
) -> Objective:
    probe = PROBES[section.probe]
    return FiniteDifferenceDenoising(section.sigmas, section.draws, probe, section.epsilon)


def nce(section: sections.NCEObjective, config: RunConfig) -> Objective:
    return NoiseContrastive(section.draws)


def conditional_nce(section: sections.ConditionalNCEObjective, config: RunConfig) -> Objective:
    return ConditionalNoiseContrastive(section.draws, section.scale)


def pseudo_likelihood(section: sections.PseudoLikelihoodObjective, config: RunConfig) -> Objective:
    return PseudoLikelihood(section.sites, section.l2_fields, section.l2_couplings)


def ratio_matching(section: sections.RatioMatchingObjective, config: RunConfig) -> Objective:
    return RatioMatching(section.sites)


def moments(section: sections.MomentsObjective, config: RunConfig) -> Objective:
    if config.energy.has_couplings:
        return CouplingMoments(section.l2)
    matching = {"exact": MomentMatching, "chains": MomentMatchingByChains}[section.expectation]
    return matching(section.moments, section.l1, section.l2)
