"""The configuration as frozen, typed objects, and the combinations of them that make sense.

Light to import (neither torch nor ray), so that `--help` and every refusal are quick; `pipeline.compose` fills it from `conf/`
and the command line. A configuration holds numbers and
names only: no value can name code to run, since every name is looked up in this project's own tables or is an entry point that
an installed package registered.

Raises `ConfigError` for an unknown key, a bad value, and combinations that make no sense.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.data_sections import DataConfig
from pipeline.energy_sections import CustomEnergy, EnergyConfig, MaxentEnergy
from pipeline.errors import ConfigError
from pipeline.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    about,
)
from pipeline.kernel_sections import KernelConfig, MetropolisHastingsKernel, ReplicaExchangeKernel
from pipeline.objective_sections import MixtureObjective, ObjectiveConfig, PlainObjective, terms_of

LEAST_PER_CONTEXT = 8
GROUPS = ("energy", "kernel", "objective", "data", "trainer", "cluster", "experiment")


# -- the rest ---------------------------------------------------------------------------------------------------------


class Trainer(Section):
    steps: PositiveInt = about("optimizer updates in all")
    batch_size: PositiveInt = about("positives a step")
    negatives: PositiveInt | None = about("negatives a step, whole batches of chains.per_pool; null: all pools' chains")
    lag: NonNegativeInt = about("how many versions old negatives may be; 0 is lock-step")
    lag_mode: Literal["bound", "exact"] = about("bound: at most `lag`; exact: step t consumes what version t-lag made")
    reweight: Literal["auto"] | bool = about("importance weights for stale negatives; auto: where they are valid")
    min_ess: Probability = about("the bound on lag goes down while the smoothed ESS ratio of the weights is below this")
    chunk_rows: PositiveInt | None = about("rows that the gradient is worked out for at once, which bounds memory; null: all")
    chunk_draws: PositiveInt | None = about("directions, noises or sites of each row worked on at once; null: all")


class Optimizer(Section):
    name: Literal["adam", "sgd"]
    learning_rate: PositiveFloat = about("at the start of its schedule")
    schedule: Literal["constant", "linear", "cosine"] = about("how it falls to 0 at trainer.steps")
    warmup: NonNegativeInt = about("steps over which it first rises from 0")
    momentum: Probability = about("SGD's momentum, or Adam's beta1 (IGEBM practice: 0)")
    beta2: Probability = about("Adam's second-moment decay")
    weight_decay: NonNegativeFloat = about(
        "times the learning rate: Adam's is decoupled (Loshchilov & Hutter 2019), SGD's the gradient's"
    )
    clip_norm: PositiveFloat | None = about("largest gradient norm; null: as it is")
    ema: Probability = about("decay of the weights' moving average, used for evaluation; 0: the last weights")


class Chains(Section):
    pools: PositiveInt = about("chain pools (actors)")
    per_pool: PositiveInt = about("persistent chains in each")
    restart: Probability = about("chance a round that a persistent chain starts anew from noise (Du & Mordatch 2019: 0.05)")
    burn_in: NonNegativeInt = about("transitions after which a chain that started anew counts as a negative")
    per_context: PositiveInt = about("chains for each row of a step that a conditional model is trained on")
    kept_contexts: NonNegativeInt = about(
        "training rows up to which a conditional model's persistent chains are kept by row; beyond, they start anew each round"
    )


class Checkpoint(Section):
    every: PositiveInt = about("steps between checkpoints")
    keep: PositiveInt = about("how many of the newest to keep")


class Metrics(Section):
    port: Annotated[int, Field(ge=0, le=65535)] = about("port of the Prometheus endpoint; 0: none")
    every: PositiveInt = about("steps between rows of metrics.jsonl")


class Judgement(Section):
    """A figure of the summary, by name, and what it is held against: a number, or the name of another figure."""

    figure: str
    sense: Literal["at_least", "at_most"]
    reference: Number | str


class Evaluation(Section):
    samples: NonNegativeInt = about("chains started at noise for samples.png; 0: no picture")
    transitions: PositiveInt = about("transitions from noise to sample")
    ais_temperatures: NonNegativeInt = about("intermediate laws of annealed importance sampling; 0: no AIS")
    ais_particles: PositiveInt = about("particles of annealed importance sampling")
    judged: Judgement | None = about(
        "{figure, sense: at_least or at_most, reference}: what the summary's `judged` says; null: nothing"
    )


class Cluster(Section):
    name: Literal["inline", "local", "ray"]
    threads: PositiveInt = about("torch threads of each pool and of the parameter server")
    pool_cpus: NonNegativeFloat = about("CPUs that Ray reserves for a pool")
    pool_gpus: NonNegativeFloat = about("GPUs for a pool (fractions share one)")
    server_cpus: NonNegativeFloat = about("CPUs that Ray reserves for the parameter server")
    server_gpus: NonNegativeFloat = about("GPUs for the parameter server")
    timeout: PositiveFloat = about("seconds without a step after which the run is given up")


class RunConfig(Section):
    """A whole run. Validated once; what depends on the data's size is checked when the data are opened."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = about("names the run in its folder and metrics")
    output: str | None = about("where the run's files go: any fsspec URL; null: runs/<name>-<hash of the configuration>")
    resume: Literal["auto", "never"] = about("auto: go on from the newest checkpoint in output; never: start over")
    init_from: str | None = about("URL of another run whose weights to start from")
    seed: NonNegativeInt = about("seed of every random stream of the run")
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = about("cpu, cuda or cuda:N")
    energy: EnergyConfig
    kernel: KernelConfig
    objective: ObjectiveConfig
    data: DataConfig
    trainer: Trainer
    optimizer: Optimizer
    chains: Chains
    checkpoint: Checkpoint
    metrics: Metrics
    evaluation: Evaluation
    cluster: Cluster

    @property
    def contrastive(self) -> PlainObjective | None:
        """The objective, or the term of the mixture, that consumes chains; None where none does."""
        return next((term for term in terms_of(self.objective).values() if term.start), None)

    @property
    def conditional(self) -> bool:
        """Whether positions are learned given the rows' contexts."""
        return self.energy.conditional

    @property
    def starts_at_data(self) -> bool:
        return self.contrastive is not None and self.contrastive.start == "data"

    @property
    def sends_starts(self) -> bool:
        """Whether chains are sent a step's rows: to start at, or to run under their contexts."""
        return self.contrastive is not None and (self.starts_at_data or self.conditional)

    @property
    def pools(self) -> int:
        """Pools that are started: none where no objective consumes chains."""
        return self.chains.pools if self.contrastive is not None else 0

    @property
    def negatives(self) -> int:
        """Negatives a step consumes."""
        return (self.trainer.negatives or self.pools * self.chains.per_pool) if self.pools else 0

    @property
    def batches_per_step(self) -> int:
        """Pool batches a step consumes."""
        return self.negatives // self.chains.per_pool

    @property
    def reweightable(self) -> bool:
        """Whether importance weights for stale negatives are valid: an invariant kernel, negatives near equilibrium, and at
        least 8 of them under each context, for a softmax over one chain is 1.
        """
        objective = self.contrastive
        enough = not self.conditional or self.chains.per_context >= LEAST_PER_CONTEXT
        equilibrium = objective is not None and objective.equilibrium_negatives
        return equilibrium and enough and self.kernel.leaves_invariant(self.energy)

    @property
    def reweight(self) -> bool:
        return self.reweightable if self.trainer.reweight == "auto" else self.trainer.reweight

    @property
    def assigned_rounds(self) -> bool:
        """Whether step t consumes round t (lock-step, exact lag, chains sent a step's rows) or whichever come first."""
        return self.trainer.lag == 0 or self.trainer.lag_mode == "exact" or self.sends_starts

    def carrying(self, energy: Any = None, proposal: Any = None, features: Any = None) -> RunConfig:
        """This configuration with a module, a proposal or features given in code, which travel with it but are not part of it.

        Raises `ConfigError` where energy.name is not custom, kernel.name not metropolis_hastings, energy.name not maxent.
        """
        config = self
        if energy is not None:
            if not isinstance(self.energy, CustomEnergy):
                raise ConfigError("energy", self.energy.name, "a module given in code goes with energy=custom")
            section = self.energy.model_copy(update={"given": _called(type(energy))})
            section._module = energy
            config = config.model_copy(update={"energy": section})
        if proposal is not None:
            ladder = self.kernel if isinstance(self.kernel, ReplicaExchangeKernel) else None
            within = ladder.inner if ladder else self.kernel
            if not isinstance(within, MetropolisHastingsKernel):
                raise ConfigError("kernel", self.kernel.name, "a proposal given in code goes with kernel=metropolis_hastings")
            within = within.model_copy(update={"given": _called(proposal)})
            within._proposal = proposal
            kernel = ladder.model_copy(update={"inner": within}) if ladder else within
            config = config.model_copy(update={"kernel": kernel})
        if features is not None:
            if not isinstance(self.energy, MaxentEnergy):
                raise ConfigError("energy", self.energy.name, "features given in code go with energy=maxent")
            family = self.energy.model_copy(update={"given": ", ".join(_called(function) for function in features)})
            family._features = tuple(features)
            config = config.model_copy(update={"energy": family})
        return config

    def digest(self) -> str:
        """Ten hexadecimal digits that name what is learned: the configuration without where, how and how long it is run."""
        apart = {"output", "resume", "cluster", "metrics", "checkpoint", "device", "evaluation"}
        content = self.model_dump(mode="json", exclude={**dict.fromkeys(apart, True), "trainer": {"steps"}})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _called(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def check_combinations(config: RunConfig) -> None:
    """Raises `ConfigError` for the first of them that makes no sense."""
    _check_no_data(config)
    check_domains(config)
    for name, objective in terms_of(config.objective).items():
        _check_objective(config, name, objective)
    _check_batches(config)
    _check_devices(config)


def _check_no_data(config: RunConfig) -> None:
    """What is learned needs rows, or comes with its moments."""
    if config.data.name == "none" and config.objective.name != "moments":
        raise ConfigError("data", "none", f"objective={config.objective.name} learns from rows; use objective=moments")
    if config.data.name == "none" and config.objective.moments is None:  # type: ignore[union-attr]
        raise ConfigError("objective.moments", "null", "with data=none there are no rows to take them from; give them")


def check_domains(config: RunConfig) -> None:
    """Energy, kernel and data live in one domain."""
    energy, data, domain = config.energy, config.data, config.energy.domain
    ladder = config.kernel if isinstance(config.kernel, ReplicaExchangeKernel) else None
    kernel, key = (ladder.inner, "kernel.inner") if ladder else (config.kernel, "kernel")
    remedy = "use gibbs_with_gradients or single_site" if domain.levels else "use mala, hmc or random_walk"
    if kernel.needs_conditionals and not energy.has_conditionals:
        raise ConfigError(key, kernel.name, f"energy={energy.name} has no conditionals; {remedy}, or energy=rbm")
    if kernel.domain == ("continuous" if domain.levels else "discrete"):
        raise ConfigError(key, kernel.name, f"energy={energy.name} is over {domain}; {remedy}")
    if domain.levels and isinstance(kernel, MetropolisHastingsKernel) and kernel.proposal == "independence":
        raise ConfigError(f"{key}.proposal", kernel.proposal, f"energy={energy.name} is over {domain}; bring your own")
    if domain.levels and domain.box:
        raise ConfigError(
            "energy.box", list(domain.box), f"energy.levels={domain.levels} is a domain already; give one of them"
        )
    if data.discrete_levels != domain.levels:
        encoded = getattr(data, "encoding", "real") != "real"
        if domain.levels is None:
            remedy = f"energy={energy.name} is a density on {domain}; use "
            remedy += "real, or energy=rbm, potts_rbm, quadratic, lattice" if encoded else "energy=pairwise"
            raise ConfigError("data.encoding" if encoded else "data", data.encoding if encoded else data.name, remedy)  # type: ignore[union-attr]
        if not hasattr(data, "encoding"):
            where = f"{{0, ..., {data.discrete_levels - 1}}}^d" if data.discrete_levels else "R^d"
            remedy = f"energy={energy.name} is over {domain}, data={data.name} in {where}; use another energy"
            raise ConfigError("data", data.name, remedy)
        wanted = "binary" if domain.levels == 2 else f"categorical data.levels={domain.levels}"
        raise ConfigError("data", data.name, f"energy={energy.name} is over {domain}; set data.encoding={wanted}")
    if domain.levels and data.noise:
        raise ConfigError("data.noise", data.noise, "discrete data take no Gaussian noise; use data.noise=0")
    if domain.box is not None and domain.box[0] >= domain.box[1]:
        raise ConfigError("energy.box", list(domain.box), "must be [low, high] with low < high")
    if energy.name == "conv" and data.name == "toy":
        raise ConfigError("energy", "conv", "convolutions need images; use energy=mlp for data=toy")


def _check_objective(config: RunConfig, name: str, objective: PlainObjective) -> None:
    """The objective is defined on the energy's domain, and can be had with this kernel."""
    domain, kernel = config.energy.domain, config.kernel
    where = f"energy={config.energy.name} is over {domain}"
    if objective.domain == "continuous" and domain.levels:
        raise ConfigError("objective", name, f"{where}; use pcd, pseudo_likelihood, nce or conditional_nce")
    if objective.domain in ("discrete", "binary") and not domain.levels:
        raise ConfigError("objective", name, f"{where}; use pcd, hutchinson, denoising or nce")
    if objective.domain == "binary" and domain.levels != 2:
        raise ConfigError("objective", name, f"{where}; use pseudo_likelihood")
    if domain.box is not None and not objective.in_box:
        remedy = f"{where}, and {name} needs all of R^d; use energy.box=null, or pcd or nce"
        raise ConfigError("objective", name, remedy)
    if objective.name == "conditional_nce" and domain.levels:
        if domain.levels > 2:
            raise ConfigError("objective", name, f"{where}; use pseudo_likelihood or nce")
        if objective.scale >= 1:
            raise ConfigError("objective.scale", objective.scale, f"{where}, where it is the chance of a flip; use less than 1")
    if getattr(objective, "probe", None) == "hutch_pp" and getattr(objective, "probes", 1) < 3:
        raise ConfigError("objective.probes", objective.probes, "hutch_pp divides them among three uses; use at least 3")  # type: ignore[union-attr]
    if config.conditional and objective.name in ("nce", "improved_cd"):
        reason = {"nce": "learns one log Z", "improved_cd": "takes neighbours for draws of one law"}[objective.name]
        raise ConfigError("objective", name, f"{reason}, energy={config.energy.name} has one for each context; use pcd or cd")
    if objective.name == "moments" and config.energy.name != "maxent":
        raise ConfigError("objective", name, f"energy={config.energy.name} declares no features; use energy=maxent")
    if objective.needs_labels and not config.energy.has_labels:
        raise ConfigError("objective", name, f"energy={config.energy.name} knows no labels; use energy=label_mlp")
    if config.energy.latents and not objective.latents:
        remedy = f"energy={config.energy.name} has latent units, for whose means {name} is not defined; use pcd or fast_pcd"
        raise ConfigError("objective", name, remedy)
    if objective.name == "improved_cd":
        if not kernel.replays:
            raise ConfigError("kernel", kernel.name, "objective=improved_cd goes back through transitions; use kernel=ula")
        if objective.replayed > kernel.transitions:
            remedy = f"a round has kernel.transitions={kernel.transitions}; replay at most that"
            raise ConfigError("objective.replayed", objective.replayed, remedy)


def _check_batches(config: RunConfig) -> None:
    """Steps, batches and chains fit one another, and old negatives are used only where they may be."""
    kernel, trainer, chains, objective = config.kernel, config.trainer, config.chains, config.contrastive
    if isinstance(config.objective, MixtureObjective):
        consumers = [name for name, term in config.objective.terms.items() if term.start]
        if len(consumers) > 1:
            remedy = "at most one objective of a mixture consumes chains"
            raise ConfigError("objective.weights", ", ".join(consumers), remedy)
    if objective is None:
        if trainer.lag:
            raise ConfigError("trainer.lag", trainer.lag, f"objective={config.objective.name} has no chains to lag; use 0")
        if trainer.reweight is True:
            raise ConfigError("trainer.reweight", "true", f"objective={config.objective.name} has no negatives; use auto")
        return
    total = chains.pools * chains.per_pool
    if config.negatives % chains.per_pool or config.negatives > total:
        raise ConfigError(
            "trainer.negatives",
            trainer.negatives,
            f"must be a multiple of chains.per_pool={chains.per_pool}, at most all {total} chains",
        )
    if chains.per_context > 1 and not config.conditional:
        raise ConfigError("chains.per_context", chains.per_context, f"energy={config.energy.name} has no contexts; use 1")
    if chains.per_pool % chains.per_context:
        remedy = f"must divide chains.per_pool={chains.per_pool}"
        raise ConfigError("chains.per_context", chains.per_context, remedy)
    rows = config.negatives // chains.per_context
    if config.sends_starts and rows != trainer.batch_size:
        remedy = "objective=cd starts one chain at each positive"
        if config.conditional:
            remedy = f"a conditional model has chains.per_context={chains.per_context} chains for each row of a step"
        raise ConfigError("trainer.batch_size", trainer.batch_size, f"{remedy}; use {rows} (of {config.negatives} negatives)")
    if config.conditional and kernel.name == "replica_exchange":
        remedy = f"energy={config.energy.name} is conditional, and a ladder's chains stay under one law; use its inner kernel"
        raise ConfigError("kernel", kernel.name, remedy)
    if objective.start != "persistent" and kernel.name == "replica_exchange":
        remedy = f"objective={objective.name} starts chains at {objective.start}, a ladder's are its own; use objective=pcd"
        raise ConfigError("kernel", kernel.name, remedy)
    if trainer.reweight is True and not config.reweightable:
        invariant = config.kernel.leaves_invariant(config.energy)
        culprit = f"objective={objective.name}" if invariant else f"kernel={config.kernel.name} with its noise, or in a box"
        if config.conditional and objective.equilibrium_negatives and invariant:
            remedy = f"weights are normalised over one context's chains; use chains.per_context={LEAST_PER_CONTEXT} or more"
            raise ConfigError("chains.per_context", chains.per_context, remedy)
        raise ConfigError("trainer.reweight", "true", f"not valid for {culprit}: its negatives are not from exp(-E); use auto")
    most = 1 if config.conditional and objective.equilibrium_negatives else 2
    if trainer.lag > most and not config.reweightable:
        raise ConfigError("trainer.lag", trainer.lag, f"these negatives cannot be reweighted; use at most {most}")


def _check_devices(config: RunConfig) -> None:
    """The optimizer's decays and the cluster's shares."""
    if config.optimizer.ema == 1 or config.optimizer.momentum == 1 or config.optimizer.beta2 == 1:
        raise ConfigError("optimizer", "decay of 1", "moving averages never move with a decay of 1; use less")
    if config.cluster.name == "inline" and (config.cluster.pool_gpus or config.cluster.server_gpus):
        raise ConfigError("cluster.pool_gpus", config.cluster.pool_gpus, "cluster=inline has one process; set device")
    if config.cluster.name != "inline" and config.device.startswith("cuda"):
        if config.device != "cuda":
            raise ConfigError("device", config.device, "Ray numbers each actor's GPUs itself; use device=cuda")
        for key, amount in (("pool_gpus", config.cluster.pool_gpus), ("server_gpus", config.cluster.server_gpus)):
            if not amount:
                raise ConfigError(f"cluster.{key}", amount, "device=cuda needs a GPU, or a fraction of one, in each actor")
