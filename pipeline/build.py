"""The one table from configuration to objects. A new energy, kernel, objective or data set is one line here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline import energy_sections, kernel_sections, plugins
from pipeline.chains import Chains
from pipeline.config import RunConfig
from pipeline.data import columns, conditional_toys, images, ising, nothing, tags, toys
from pipeline.data.base import DataSet
from pipeline.energies.base import Energy
from pipeline.energies.conditional_mlp import ConditionalMLP
from pipeline.energies.conv import ConvEnergy
from pipeline.energies.custom import CustomEnergy
from pipeline.energies.dbm import DeepBoltzmannMachine
from pipeline.energies.exponential_family import family
from pipeline.energies.label_mlp import LabelMLP
from pipeline.energies.lattice import PottsLattice
from pipeline.energies.mlp import MLPEnergy
from pipeline.energies.pairwise import PairwiseEnergy
from pipeline.energies.quadratic import QuadraticBinary
from pipeline.energies.rbm import BernoulliRBM, GaussianRBM, PottsRBM
from pipeline.energy_sections import EnergyConfig
from pipeline.errors import ConfigError
from pipeline.kernel_sections import KernelConfig
from pipeline.kernels import (
    gibbs,
    gibbs_with_gradients,
    hmc,
    mala,
    metropolis_hastings,
    random_walk,
    replica_exchange,
    single_site,
    ula,
)
from pipeline.kernels.base import Kernel
from pipeline.kernels.metropolis_hastings import PROPOSALS
from pipeline.learner import Learner
from pipeline.memory import keep_freed_memory
from pipeline.objective_sections import FastPCDObjective, MixtureObjective, terms_of
from pipeline.objectives.base import Batch, Objective, Term
from pipeline.objectives.contrastive import ContrastiveDivergence, FastWeights
from pipeline.objectives.improved import ImprovedContrastiveDivergence, Replay
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
from pipeline.ranks import ALONE, Ranks
from pipeline.rng import torch_generator
from pipeline.sampler import ChainPlan, Sampler
from pipeline.types import Rows

ENERGIES: dict[str, Callable[..., Energy]] = {
    "mlp": MLPEnergy,
    "conv": ConvEnergy,
    "rbm": BernoulliRBM,
    "gaussian_rbm": GaussianRBM,
    "potts_rbm": PottsRBM,
    "dbm": DeepBoltzmannMachine,
    "lattice": PottsLattice,
    "quadratic": QuadraticBinary,
    "conditional_mlp": ConditionalMLP,
    "label_mlp": LabelMLP,
    "pairwise": PairwiseEnergy,
    "maxent": family,
}


class Registered(NamedTuple):
    """A kernel from its section, and the laws (of `tests/statistics/laws.py`) that it is proven on."""

    make: Callable[[Any], Kernel]
    laws: tuple[str, ...]


CONTINUOUS = ("gaussian", "mixture", "box")
DISCRETE = ("rbm", "potts_rbm", "lattice")
KERNELS = {
    "random_walk": Registered(lambda _: random_walk.kernel, (*CONTINUOUS, "rings")),
    "metropolis_hastings": Registered(lambda section: metropolis_hastings.with_proposal(find_proposal(section)), CONTINUOUS),
    "ula": Registered(lambda _: ula.kernel, ("gaussian", "box")),
    "mala": Registered(lambda _: mala.kernel, (*CONTINUOUS, "rings")),
    "hmc": Registered(lambda _: hmc.kernel, (*CONTINUOUS, "funnel")),
    "gibbs": Registered(lambda _: gibbs.kernel, ("rbm", "gaussian_rbm", "potts_rbm")),
    "gibbs_with_gradients": Registered(lambda _: gibbs_with_gradients.kernel, DISCRETE),
    "single_site": Registered(lambda _: single_site.kernel, DISCRETE),
    "replica_exchange": Registered(
        lambda section: replica_exchange.over(make_kernel(section.inner), section.rungs, section.inner.transitions),
        ("mixture", "gaussian", "rbm"),
    ),
}
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
    "moments": lambda section, _: MOMENTS[section.expectation](section.moments, section.l1, section.l2),
}
DATA: dict[str, Callable[[Any], DataSet]] = {
    "digits": images.digits,
    "idx": images.idx,
    "toy": toys.toy,
    "labelled_toys": toys.labelled_toys,
    "conditional_toy": conditional_toys.conditional_toy,
    "tags": tags.tags,
    "columns": columns.columns,
    "ising": ising.ising,
    "none": nothing.nothing,
}


def open_data(config: RunConfig) -> DataSet:
    """The data set, checked against what the configuration asks of it. Raises `ConfigError`, `DataError`."""
    data = DATA[config.data.name](config.data)
    if config.energy.takes_context and data.context is None:
        remedy = f"energy={config.energy.name} conditions on a context, and these rows have none; use data with contexts"
        raise ConfigError("data", config.data.name, remedy)
    if data.rows:
        _check_rows(config, data)
    dimension = math.prod(data.shape)
    mass = config.kernel.parameters.get("mass")
    if isinstance(mass, tuple) and len(mass) != dimension:
        key = "kernel.inner.mass" if config.kernel.name == "replica_exchange" else "kernel.mass"
        raise ConfigError(key, list(mass), f"a row has {dimension} components; give one mass for each")
    for term in terms_of(config.objective).values():
        key = "draws" if hasattr(term, "draws") else "probes"
        most = {"orthogonal": dimension, "hutch_pp": 3 * dimension + 2}.get(getattr(term, "probe", ""))
        if most is not None and getattr(term, key) > most:
            remedy = f"a row has {dimension} orthogonal directions; use at most {most}"
            raise ConfigError(f"objective.{key}", getattr(term, key), remedy)
    return data


def _check_rows(config: RunConfig, data: DataSet) -> None:
    """There are enough of them, and a box holds them."""
    if config.conditional and config.reweight and config.trainer.lag and not keeps_chains(config, data):
        remedy = (
            f"fewer than the {data.rows} training rows: chains start anew, and cannot be reweighted; keep as many, or use lag 0"
        )
        raise ConfigError("chains.kept_contexts", config.chains.kept_contexts, remedy)
    if config.energy.has_labels:
        _check_labels(config, data)
    if config.trainer.batch_size > data.rows:
        remedy = f"the data have {data.rows} training rows; use at most that"
        raise ConfigError("trainer.batch_size", config.trainer.batch_size, remedy)
    box = config.energy.domain.box
    low = float(min(data.sample.min(), data.held_out.min()))
    high = float(max(data.sample.max(), data.held_out.max()))
    if box is not None and (low < box[0] or high > box[1]):
        raise ConfigError("energy.box", list(box), f"the data reach from {low:g} to {high:g}; the box must hold them")


def _check_labels(config: RunConfig, data: DataSet) -> None:
    """Contexts are labels, and the energy knows each."""
    assert data.context is not None
    labels, classes = data.context.sample, config.energy.classes  # type: ignore[union-attr]
    known = ((labels == labels.floor()) & (labels >= 0) & (labels < classes)).all()
    if math.prod(data.context.shape) != 1 or not bool(known):
        remedy = f"the rows' contexts are not all labels 0, ..., {classes - 1}; set it to how many there are"
        raise ConfigError("energy.classes", classes, remedy)


def make_energy(config: RunConfig, shape: Sequence[int], context_shape: Sequence[int] | None = None) -> Energy:
    """The energy with its initial weights, from the stream "weights"; torch's global one is left as it was."""
    return construct_energy(config.energy, shape, context_shape, config.seed)


def construct_energy(
    section: EnergyConfig, shape: Sequence[int], context_shape: Sequence[int] | None = None, seed: int = 0
) -> Energy:
    """`make_energy` where only the energy's own section is known: what a checkpoint is loaded into."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "weights").initial_seed())
        if isinstance(section, energy_sections.CustomEnergy):
            domain = section.model_dump(include={"levels", "base_scale", "box"})
            return CustomEnergy(shape, find_module(section, shape), **domain)
        options = section.model_dump(exclude={"name"})
        if isinstance(section, energy_sections.MaxentEnergy):
            options["given"] = section._features
        if section.takes_context:
            options["context_shape"] = context_shape
        return ENERGIES[section.name](shape, **options)


def find_module(section: energy_sections.CustomEnergy, shape: Sequence[int]) -> nn.Module:
    """The user's module: a copy of the one given in code, or what the installed package's entry point makes."""
    if section._module is not None:
        return deepcopy(section._module)
    if section.entry_point is None:
        remedy = "name an entry point of an installed package (group pipeline.energies), or give energy= in code"
        raise ConfigError("energy.entry_point", "null", remedy)
    make = plugins.find("pipeline.energies", section.entry_point, "energy.entry_point")
    module: nn.Module = plugins.call(make, "energy.options", section.options, tuple(shape))
    return module


def find_proposal(section: kernel_sections.MetropolisHastingsKernel) -> metropolis_hastings.Proposal:
    """The proposal given in code, one of this project's, or what an installed package's entry point makes."""
    if section._proposal is not None:
        return section._proposal
    if section.proposal is None:
        remedy = (
            f"name one of {', '.join(PROPOSALS)}, an entry point in the group pipeline.proposals, or give proposal= in code"
        )
        raise ConfigError("kernel.proposal", "null", remedy)
    make = PROPOSALS.get(section.proposal) or plugins.find("pipeline.proposals", section.proposal, "kernel.proposal")
    proposal: metropolis_hastings.Proposal = plugins.call(make, "kernel.options", section.options)
    return proposal


def make_kernel(section: KernelConfig) -> Kernel:
    return KERNELS[section.name].make(section)


def replay_of(section: KernelConfig) -> Replay:
    replay = make_kernel(section).replay
    assert replay is not None, "improved contrastive divergence with another kernel is refused when a configuration is checked"
    return partial(replay, **section.parameters)


def make_plan(config: RunConfig) -> ChainPlan:
    """How the run's chains run."""
    kernel = config.kernel
    ladder = kernel if isinstance(kernel, kernel_sections.ReplicaExchangeKernel) else None
    within = ladder.inner if ladder else kernel
    tuned = within if isinstance(within, kernel_sections.TunedKernel) else None
    start = config.contrastive.start if config.contrastive else None
    return ChainPlan(
        make_kernel(kernel),
        kernel.parameters,
        kernel.transitions,
        {"persistent": config.chains.restart, "noise": 1.0}.get(start or "", 0.0),
        rungs=ladder.rungs if ladder else 1,
        ladder_rounds=ladder.adapt_rounds if ladder else 0,
        target_acceptance=tuned.target_acceptance if tuned else None,
        adapt_rounds=tuned.adapt_rounds if tuned else None,
        force=torch.bfloat16 if getattr(within, "force", None) == "bfloat16" else None,
        replayed=getattr(config.contrastive, "replayed", 0),
        start_at_data=config.starts_at_data,
        brings_rows=config.rows_ride,
        per_context=config.chains.per_context,
    )


def rehearse(config: RunConfig, energy: Energy, data: DataSet) -> None:
    """One transition of two chains and a first loss: what code of the user's own fails at, or an objective cannot have of this
    energy, a `ConfigError` says before anything starts.
    """
    generator = torch_generator(config.seed, "rehearsal")
    try:
        sampler = Sampler(deepcopy(energy), make_plan(config), 2, generator)
        sampler.bind(data.context.sample[:2] if data.context is not None else None)
        sampler.advance(generator, 1)
    except ConfigError:
        raise
    except Exception as error:
        remedy = f"a first transition on energy={config.energy.name} failed ({type(error).__name__}: {error})"
        raise ConfigError("kernel", config.kernel.name, remedy) from error
    rows, context = energy.noise(16, generator), _first_contexts(data, 16)
    try:
        for term in make_terms(config, energy, rows, context):
            # one draw a row: exact score matching would take as many second derivatives as there are dimensions
            drawn = tuple(values[:1] for values in term.objective.draw(energy.given(context), rows, generator))
            batch = Batch(rows, drawn, rows, context=context, negative_context=context)
            batch = batch._replace(previous=rows, noise=energy.noise(16, generator)[None], bank=energy.noise(16, generator))
            loss = torch.stack([part.total for part in term.objective.parts(deepcopy(energy), batch)]).sum()
            loss.backward()
            term.objective.check(energy, energy.into_domain(noisy_sample(config, data)))
    except ConfigError:
        raise
    except Exception as error:
        remedy = f"a first loss on energy={config.energy.name} failed ({type(error).__name__}: {error})"
        raise ConfigError("objective", config.objective.name, remedy) from error


def _first_contexts(data: DataSet, count: int) -> Tensor | None:
    """`count` contexts of training rows, over again where there are fewer; None where rows have none."""
    if data.context is None:
        return None
    return data.context.sample[torch.arange(count) % len(data.context.sample)]


def make_chains(config: RunConfig, shape: Sequence[int], pool: int, context_shape: Sequence[int] | None = None) -> Chains:
    keep_freed_memory()
    energy, plan = make_energy(config, shape, context_shape), make_plan(config)
    return Chains(energy, plan, config.chains.per_pool, pool=pool, seed=config.seed, device=config.device)


def rows_for_pool(config: RunConfig, data: DataSet, pool: int, incarnation: int) -> Rows:
    """As many training rows, drawn at random, as a pool has chains: where those of one that joins may begin."""
    generator = torch_generator(config.seed, "newcomers", pool, incarnation)
    return Rows(data.sample[torch.randint(len(data.sample), (config.chains.per_pool,), generator=generator)])


def noisy_sample(config: RunConfig, data: DataSet) -> Tensor:
    """At most 20,000 training rows as training sees them: with the data's noise, from a stream of its own."""
    rows = data.sample[:20000]
    return rows + data.noise * torch.randn(rows.shape, generator=torch_generator(config.data.split_seed, "sample-noise"))


def make_learner(config: RunConfig, data: DataSet, ranks: Ranks = ALONE) -> Learner:
    """The learner of this rank, with its share of the positives. Raises `ConfigError`."""
    keep_freed_memory()
    energy = make_energy(config, data.shape, data.context_shape)
    energy.initialise(noisy_sample(config, data))
    rows, context = energy.into_domain(noisy_sample(config, data)), _first_contexts(data, 1)
    dtype = next(energy.parameters()).dtype
    terms = make_terms(config, energy, rows.to(dtype), None if context is None else context.to(dtype))
    positives = data.positives(config.seed, ranks.rank, ranks.size)
    return Learner(config, energy, terms, positives, fast_weights(config), keeps_chains(config, data), ranks)


def keeps_chains(config: RunConfig, data: DataSet) -> bool:
    """Whether pools keep chains for each training row of a conditional model: rows of a set in memory, which have numbers."""
    persistent = config.contrastive is not None and config.contrastive.start == "persistent"
    return config.conditional and persistent and len(data.sample) == data.rows <= config.chains.kept_contexts


def make_terms(config: RunConfig, energy: Energy, rows: Tensor, context: Tensor | None = None) -> list[Term]:
    """The objectives of the sum, started from training rows `[S, *shape]`, a few contexts, and the untrained `energy`."""
    several = config.objective.name == "mixture"
    weights = config.objective.weights if isinstance(config.objective, MixtureObjective) else {}
    terms = []
    for name, section in terms_of(config.objective).items():
        objective = OBJECTIVES[name](section, config)
        objective.initialise(energy.given(context), rows, torch_generator(config.seed, "objective", 1))
        terms.append(Term(f"{name}." if several else "", weights.get(name, 1.0), objective))
    return terms


def fast_weights(config: RunConfig) -> Callable[[Sequence[Tensor]], FastWeights] | None:
    section = config.contrastive
    if not isinstance(section, FastPCDObjective):
        return None
    return partial(FastWeights, rate=section.fast_rate, decay=section.fast_decay)
