"""Which choices go together: what a configuration is refused for beyond a bad value of one key."""

from __future__ import annotations

from pipeline.common.errors import ConfigError
from pipeline.config.kernels import MetropolisHastingsKernel, ReplicaExchangeKernel
from pipeline.config.objectives import MixtureObjective, PlainObjective, terms_of
from pipeline.config.run import LEAST_PER_CONTEXT, RunConfig

# energies that read their parameters in `forward` alone, where FSDP2 has gathered them
SHARDABLE = ("mlp", "conv", "custom", "rbm", "gaussian_rbm", "potts_rbm", "quadratic", "lattice")


def check_combinations(config: RunConfig) -> None:
    """Raises `ConfigError` for the first of them that makes no sense."""
    _check_no_data(config)
    check_domains(config)
    for name, objective in terms_of(config.objective).items():
        _check_objective(config, name, objective)
    _check_batches(config)
    _check_pools(config)
    _check_ranks(config)
    _check_devices(config)


def _check_no_data(config: RunConfig) -> None:
    """What is learned needs rows, or comes with its moments."""
    if config.data.name == "none" and config.objective.name != "moments":
        raise ConfigError(
            "data",
            "none",
            f"objective={config.objective.name} learns from rows; use objective=moments",
        )
    if config.data.name == "none" and config.objective.moments is None:  # type: ignore[union-attr]
        raise ConfigError(
            "objective.moments",
            "null",
            "with data=none there are no rows to take them from; give them",
        )


def check_domains(config: RunConfig) -> None:
    """Energy, kernel and data live in one domain."""
    energy, data, domain = config.energy, config.data, config.energy.domain
    ladder = config.kernel if isinstance(config.kernel, ReplicaExchangeKernel) else None
    kernel, key = (ladder.inner, "kernel.inner") if ladder else (config.kernel, "kernel")
    remedy = (
        "use gibbs_with_gradients or single_site"
        if domain.levels
        else "use mala, hmc or random_walk"
    )
    if kernel.needs_conditionals and not energy.has_conditionals:
        raise ConfigError(
            key, kernel.name, f"energy={energy.name} has no conditionals; {remedy}, or energy=rbm"
        )
    if kernel.domain == ("continuous" if domain.levels else "discrete"):
        raise ConfigError(key, kernel.name, f"energy={energy.name} is over {domain}; {remedy}")
    if (
        domain.levels
        and isinstance(kernel, MetropolisHastingsKernel)
        and kernel.proposal == "independence"
    ):
        raise ConfigError(
            f"{key}.proposal",
            kernel.proposal,
            f"energy={energy.name} is over {domain}; bring your own",
        )
    if domain.levels and domain.box:
        raise ConfigError(
            "energy.box",
            list(domain.box),
            f"energy.levels={domain.levels} is a domain already; give one of them",
        )
    if data.discrete_levels != domain.levels:
        encoded = getattr(data, "encoding", "real") != "real"
        if domain.levels is None:
            remedy = f"energy={energy.name} is a density on {domain}; use "
            remedy += (
                "real, or energy=rbm, potts_rbm, quadratic, lattice"
                if encoded
                else "energy=pairwise"
            )
            raise ConfigError(
                "data.encoding" if encoded else "data",
                getattr(data, "encoding", data.name) if encoded else data.name,
                remedy,
            )
        if not hasattr(data, "encoding"):
            where = f"{{0, ..., {data.discrete_levels - 1}}}^d" if data.discrete_levels else "R^d"
            remedy = (
                f"energy={energy.name} is over {domain}, data={data.name} in {where}; use another"
                " energy"
            )
            raise ConfigError("data", data.name, remedy)
        wanted = "binary" if domain.levels == 2 else f"categorical data.levels={domain.levels}"
        raise ConfigError(
            "data", data.name, f"energy={energy.name} is over {domain}; set data.encoding={wanted}"
        )
    if domain.levels and data.noise:
        raise ConfigError(
            "data.noise", data.noise, "discrete data take no Gaussian noise; use data.noise=0"
        )
    if domain.box is not None and domain.box[0] >= domain.box[1]:
        raise ConfigError("energy.box", list(domain.box), "must be [low, high] with low < high")
    if energy.name == "conv" and data.name == "toy":
        raise ConfigError("energy", "conv", "convolutions need images; use energy=mlp for data=toy")


def _check_objective(config: RunConfig, name: str, objective: PlainObjective) -> None:
    """The objective is defined on the energy's domain, and can be had with this kernel."""
    domain, kernel = config.energy.domain, config.kernel
    where = f"energy={config.energy.name} is over {domain}"
    if objective.domain == "continuous" and domain.levels:
        raise ConfigError(
            "objective", name, f"{where}; use pcd, pseudo_likelihood, nce or conditional_nce"
        )
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
            raise ConfigError(
                "objective.scale",
                objective.scale,
                f"{where}, where it is the chance of a flip; use less than 1",
            )
    if getattr(objective, "probe", None) == "hutch_pp" and getattr(objective, "probes", 1) < 3:
        raise ConfigError(
            "objective.probes",
            objective.probes,  # type: ignore[union-attr]
            "hutch_pp divides them among three uses; use at least 3",
        )
    if config.conditional and objective.name in ("nce", "improved_cd"):
        reason = {
            "nce": "learns one log Z",
            "improved_cd": "takes neighbours for draws of one law",
        }[objective.name]
        raise ConfigError(
            "objective",
            name,
            f"{reason}, energy={config.energy.name} has one for each context; use pcd or cd",
        )
    if objective.name == "moments" and config.energy.name != "maxent":
        raise ConfigError(
            "objective",
            name,
            f"energy={config.energy.name} declares no features; use energy=maxent",
        )
    if objective.needs_labels and not config.energy.has_labels:
        raise ConfigError(
            "objective", name, f"energy={config.energy.name} knows no labels; use energy=label_mlp"
        )
    if config.energy.latents and not objective.latents:
        remedy = (
            f"energy={config.energy.name} has latent units, for whose means {name} is not defined;"
            " use pcd or fast_pcd"
        )
        raise ConfigError("objective", name, remedy)
    if objective.name == "improved_cd":
        if not kernel.replays:
            raise ConfigError(
                "kernel",
                kernel.name,
                "objective=improved_cd goes back through transitions; use kernel=ula",
            )
        if objective.replayed > kernel.transitions:
            remedy = f"a round has kernel.transitions={kernel.transitions}; replay at most that"
            raise ConfigError("objective.replayed", objective.replayed, remedy)


def _check_batches(config: RunConfig) -> None:
    """Steps, batches and chains fit one another, and old negatives are used only where they may be."""
    kernel, trainer, chains, objective = (
        config.kernel,
        config.trainer,
        config.chains,
        config.contrastive,
    )
    if isinstance(config.objective, MixtureObjective):
        consumers = [name for name, term in config.objective.terms.items() if term.start]
        if len(consumers) > 1:
            remedy = "at most one objective of a mixture consumes chains"
            raise ConfigError("objective.weights", ", ".join(consumers), remedy)
    if objective is None:
        if trainer.lag:
            raise ConfigError(
                "trainer.lag",
                trainer.lag,
                f"objective={config.objective.name} has no chains to lag; use 0",
            )
        if trainer.reweight is True:
            raise ConfigError(
                "trainer.reweight",
                "true",
                f"objective={config.objective.name} has no negatives; use auto",
            )
        return
    total = chains.pools * chains.per_pool
    if config.negatives % chains.per_pool or config.negatives > total:
        raise ConfigError(
            "trainer.negatives",
            trainer.negatives,
            f"must be a multiple of chains.per_pool={chains.per_pool}, at most all {total} chains",
        )
    if chains.per_context > 1 and not config.conditional:
        raise ConfigError(
            "chains.per_context",
            chains.per_context,
            f"energy={config.energy.name} has no contexts; use 1",
        )
    if chains.per_pool % chains.per_context:
        remedy = f"must divide chains.per_pool={chains.per_pool}"
        raise ConfigError("chains.per_context", chains.per_context, remedy)
    rows = config.negatives // chains.per_context
    if config.sends_starts and rows != trainer.batch_size:
        remedy = "objective=cd starts one chain at each positive"
        if config.conditional:
            remedy = (
                f"a conditional model has chains.per_context={chains.per_context} chains for each"
                " row of a step"
            )
        raise ConfigError(
            "trainer.batch_size",
            trainer.batch_size,
            f"{remedy}; use {rows} (of {config.negatives} negatives)",
        )
    if config.conditional and kernel.name == "replica_exchange":
        remedy = (
            f"energy={config.energy.name} is conditional, and a ladder's chains stay under one law;"
            " use its inner kernel"
        )
        raise ConfigError("kernel", kernel.name, remedy)
    if objective.start != "persistent" and kernel.name == "replica_exchange":
        remedy = (
            f"objective={objective.name} starts chains at {objective.start}, a ladder's are its"
            " own; use objective=pcd"
        )
        raise ConfigError("kernel", kernel.name, remedy)
    if trainer.reweight is True and not config.reweightable:
        invariant = config.kernel.leaves_invariant(config.energy)
        culprit = (
            f"objective={objective.name}"
            if invariant
            else f"kernel={config.kernel.name} with its noise, or in a box"
        )
        if config.conditional and objective.equilibrium_negatives and invariant:
            remedy = (
                "weights are normalised over one context's chains; use"
                f" chains.per_context={LEAST_PER_CONTEXT} or more"
            )
            raise ConfigError("chains.per_context", chains.per_context, remedy)
        raise ConfigError(
            "trainer.reweight",
            "true",
            f"not valid for {culprit}: its negatives are not from exp(-E); use auto",
        )
    most = 1 if config.conditional and objective.equilibrium_negatives else 2
    if trainer.lag > most and not config.reweightable:
        raise ConfigError(
            "trainer.lag", trainer.lag, f"these negatives cannot be reweighted; use at most {most}"
        )


def _check_pools(config: RunConfig) -> None:
    """How many there may be, and how many rounds of each."""
    chains, trainer = config.chains, config.trainer
    if chains.min_pools is not None and chains.min_pools > chains.pools:
        raise ConfigError(
            "chains.min_pools",
            chains.min_pools,
            f"a run begins with chains.pools={chains.pools}; use at most that",
        )
    if chains.max_pools is not None and chains.max_pools < chains.pools:
        raise ConfigError(
            "chains.max_pools",
            chains.max_pools,
            f"a run begins with chains.pools={chains.pools}; use that or more",
        )
    given = "at lag 0" if trainer.lag == 0 else "with trainer.lag_mode=exact"
    if config.assigned_rounds and config.most_pools > config.pools:
        remedy = (
            f"{given} each step consumes the rounds of given pools; for pools that come and go use"
            " a bound of 1 or more"
        )
        raise ConfigError("chains.max_pools", chains.max_pools, remedy)
    if config.assigned_rounds and trainer.inflight is not None and trainer.inflight <= trainer.lag:
        raise ConfigError(
            "trainer.inflight",
            trainer.inflight,
            f"{given} a pool has lag + 1 rounds in flight; use null",
        )
    if config.cluster.name == "inline" and config.most_pools > config.pools:
        raise ConfigError(
            "chains.max_pools",
            chains.max_pools,
            "cluster=inline has one process, which no pool joins; use null",
        )


def _check_ranks(config: RunConfig) -> None:
    """What several trainers, each with its share of a step's rows, can be right about, and what can
    be sharded among them.
    """
    trainer, ranks = config.trainer, config.trainer.replicas
    if ranks == 1:
        if trainer.sharding == "fsdp":
            raise ConfigError(
                "trainer.sharding",
                "fsdp",
                "one rank has nothing to share; use trainer.replicas=2 or more, or none",
            )
        return
    if config.cluster.name == "inline":
        raise ConfigError(
            "trainer.replicas", ranks, "cluster=inline has one process; use 1, or cluster=local"
        )
    if trainer.batch_size % ranks:
        remedy = (
            f"each of trainer.replicas={ranks} ranks learns from as many rows; use a multiple of"
            f" {ranks}"
        )
        raise ConfigError("trainer.batch_size", trainer.batch_size, remedy)
    if config.batches_per_step % ranks:
        remedy = (
            f"a step's {config.batches_per_step} batches of"
            f" chains.per_pool={config.chains.per_pool} are shared evenly among"
            f" trainer.replicas={ranks} ranks; use a multiple of {ranks * config.chains.per_pool},"
            " from that many chains or more"
        )
        raise ConfigError("trainer.negatives", config.negatives, remedy)
    if config.device.startswith("cuda") and config.cluster.server_gpus < 1:
        remedy = f"nccl needs a GPU for each of trainer.replicas={ranks} ranks; use 1"
        raise ConfigError("cluster.server_gpus", config.cluster.server_gpus, remedy)
    for name, objective in terms_of(config.objective).items():
        if not objective.additive:
            remedy = (
                "it looks for neighbours among all negatives of a step; use trainer.replicas=1"
                f" (not {ranks}), or pcd"
            )
            raise ConfigError("objective", name, remedy)
        if trainer.sharding == "fsdp" and not objective.shardable:
            remedy = (
                f"FSDP2 goes back once through calls of E(x), and objective={name} needs more than"
                " that; use none, or "
            )
            raise ConfigError("trainer.sharding", "fsdp", remedy + "objective=pcd")
    if trainer.sharding == "fsdp" and config.energy.name not in SHARDABLE:
        remedy = (
            f"energy={config.energy.name} uses parameters outside of E(x); use none, or one of"
            f" {', '.join(SHARDABLE)}"
        )
        raise ConfigError("trainer.sharding", "fsdp", remedy)


def _check_devices(config: RunConfig) -> None:
    """The optimizer's decays and the cluster's shares."""
    if config.optimizer.ema == 1 or config.optimizer.momentum == 1 or config.optimizer.beta2 == 1:
        raise ConfigError(
            "optimizer", "decay of 1", "moving averages never move with a decay of 1; use less"
        )
    if config.cluster.name == "inline" and (config.cluster.pool_gpus or config.cluster.server_gpus):
        raise ConfigError(
            "cluster.pool_gpus",
            config.cluster.pool_gpus,
            "cluster=inline has one process; set device",
        )
    if config.cluster.name != "inline" and config.device.startswith("cuda"):
        if config.device != "cuda":
            raise ConfigError(
                "device", config.device, "Ray numbers each actor's GPUs itself; use device=cuda"
            )
        for key, amount in (
            ("pool_gpus", config.cluster.pool_gpus),
            ("server_gpus", config.cluster.server_gpus),
        ):
            if not amount:
                raise ConfigError(
                    f"cluster.{key}",
                    amount,
                    "device=cuda needs a GPU, or a fraction of one, in each actor",
                )
