"""A rehearsal, so that what would fail later fails before anything starts."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from pipeline.assembly.chains import make_plan
from pipeline.assembly.data import first_contexts, noisy_sample, sample_weights
from pipeline.assembly.learner import make_terms
from pipeline.assembly.memory import refusing_excess
from pipeline.assembly.refusals import refusing
from pipeline.chains.sampler import Sampler
from pipeline.common.errors import ConfigError
from pipeline.common.rng import torch_generator
from pipeline.config.objectives import terms_of
from pipeline.config.run import RunConfig
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.objectives.base import Batch, NegativeSide, PositiveSide, Replayed, Term


def rehearse(config: RunConfig, energy: Energy, data: DataSet) -> None:
    """One transition of two chains and a first loss, on `energy`, which is not changed.

    Raises `ConfigError` where code of the user's own fails at these, or an objective cannot have
    this energy.
    """
    generator = torch_generator(config.seed, "rehearsal")
    try:
        with refusing_excess("kernel", config.kernel):
            sampler = Sampler(deepcopy(energy), make_plan(_brief(config)), 2, generator)
            sampler.bind(data.context.sample[:2] if data.context is not None else None)
            sampler.advance(generator, 1)
    except ConfigError:
        raise
    except Exception as error:
        remedy = (
            f"a first transition on energy={config.energy.name} failed ({type(error).__name__}:"
            f" {error})"
        )
        raise ConfigError("kernel", config.kernel.name, remedy) from error
    rows, context = energy.sample_base(16, generator), first_contexts(data, 16)
    try:
        with refusing_excess("objective", config.objective):
            terms = make_terms(config, energy, rows, context)
        for term, section in zip(terms, terms_of(config.objective).values(), strict=True):
            group = f"objective.terms.{section.name}" if term.name else "objective"
            with refusing_excess(group, section), refusing(group, section):
                _first_loss(term, energy, rows, context, generator)
                sample = energy.into_domain(noisy_sample(config, data))
                term.objective.check(energy, sample, sample_weights(data))
    except ConfigError:
        raise
    except Exception as error:
        remedy = (
            f"a first loss on energy={config.energy.name} failed ({type(error).__name__}: {error})"
        )
        raise ConfigError("objective", config.objective.name, remedy) from error


def _first_loss(
    term: Term, energy: Energy, rows: Tensor, context: Tensor | None, generator: torch.Generator
) -> None:
    """Works out the loss of a term on a few rows, with one draw for each, and its gradient: exact
    score matching would take as many second derivatives as there are dimensions.
    """
    drawn = tuple(
        values[:1] for values in term.objective.draw(energy.given(context), rows, generator)
    )
    noise, bank = (energy.sample_base(len(rows), generator) for _ in range(2))
    negatives = NegativeSide(rows, context, past=Replayed(rows, noise[None], bank))
    batch = Batch(PositiveSide(rows, drawn, context), negatives)
    parts = term.objective.parts(deepcopy(energy), batch)
    torch.stack([part.total for part in parts]).sum().backward()


def _brief(config: RunConfig) -> RunConfig:
    """The configuration with one transition between a ladder's rounds of swaps."""
    if not config.kernel.ladder:
        return config
    inner = config.kernel.within.model_copy(update={"transitions": 1})
    return config.model_copy(update={"kernel": config.kernel.model_copy(update={"inner": inner})})
