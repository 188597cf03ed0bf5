"""The combinations that make sense: refusals beyond a bad value of one key.

They ask for capabilities that sections declare, not for names. Names in remedies are suggestions.
"""

from __future__ import annotations

from pipeline.common.errors import ConfigError
from pipeline.config import parts
from pipeline.config.domains import check_domain_of, check_domains
from pipeline.config.energies import EnergySection, PottsEnergy
from pipeline.config.objectives import ObjectiveSection, terms_of
from pipeline.config.run import RunConfig
from pipeline.config.staleness import check_staleness

OF_HELD_OUT = ("held_out", "log_likelihood")
"""What is in the names of figures of held-out rows."""


def check_combinations(config: RunConfig) -> None:
    """Raises `ConfigError` for the first combination that makes no sense."""
    if config.init_what != "weights" and config.init_from is None:
        raise ConfigError("init_what", config.init_what, "of which run? init_from=URL names it")
    _check_no_data(config)
    check_domains(config)
    for name, objective in terms_of(config.objective).items():
        check_domain_of(name, objective, config.energy)
        _check_energy_of(config, name, objective)
    _check_consumers(config)
    if config.contrastive is None:
        _check_without_chains(config)
    else:
        _check_batches(config)
        _check_ladder(config, config.contrastive)
        check_staleness(config, config.contrastive)
    _check_all_rows(config)
    _check_line_search(config)
    _check_natural(config)
    _check_graph(config)
    _check_pools(config)
    _check_patience(config)
    _check_until(config)
    _check_live(config)
    _check_held_out(config)
    _check_contacts(config)
    _check_ranks(config)
    _check_devices(config)


def _check_no_data(config: RunConfig) -> None:
    """There are rows, or the objective comes with its moments."""
    if config.data.has_rows:
        return
    if not config.objective.rows_optional:
        raise ConfigError(
            "data",
            config.data.name,
            f"objective={config.objective.name} learns from rows; use objective=moments",
        )
    if getattr(config.objective, "moments", None) is None:
        raise ConfigError(
            "objective.moments",
            "null",
            f"with data={config.data.name} there are no rows to take them from; give them",
        )


def _check_energy_of(config: RunConfig, name: str, objective: ObjectiveSection) -> None:
    """The objective can be had of this energy and with this kernel."""
    energy, kernel = config.energy, config.kernel
    if energy.conditional and objective.needs_one_law:
        remedy = (
            f"{objective.needs_one_law}, energy={energy.name} has one for each context; use pcd or"
            " cd"
        )
        raise ConfigError("objective", name, remedy)
    if objective.needs_features and not (energy.has_features or energy.has_couplings):
        remedy = f"energy={energy.name} declares no features; use energy=maxent or potts"
        raise ConfigError("objective", name, remedy)
    if objective.needs_labels and not energy.has_labels:
        remedy = f"energy={energy.name} knows no labels; use energy=label_mlp"
        raise ConfigError("objective", name, remedy)
    if energy.latents and not objective.latents:
        remedy = (
            f"energy={energy.name} has latent units, for whose means {name} is not defined;"
            " use pcd or fast_pcd"
        )
        raise ConfigError("objective", name, remedy)
    if objective.replays and not kernel.replays:
        remedy = f"objective={objective.name} goes back through transitions; use kernel=ula"
        raise ConfigError("kernel", kernel.name, remedy)
    objective.check(energy, kernel)


def _check_consumers(config: RunConfig) -> None:
    """One objective of a mixture consumes chains, or none."""
    consumers = [name for name, term in terms_of(config.objective).items() if term.start]
    if len(consumers) > 1:
        remedy = "at most one objective of a mixture consumes chains"
        raise ConfigError("objective.weights", ", ".join(consumers), remedy)


def _check_without_chains(config: RunConfig) -> None:
    """Nothing is asked for that is about chains, where there are none."""
    trainer, name = config.trainer, config.objective.name
    if trainer.lag:
        raise ConfigError(
            "trainer.lag", trainer.lag, f"objective={name} has no chains to lag; use 0"
        )
    if trainer.refresh:
        raise ConfigError(
            "trainer.refresh", trainer.refresh, f"objective={name} has no negatives; use null"
        )
    if trainer.reweight is True:
        raise ConfigError(
            "trainer.reweight", "true", f"objective={name} has no negatives; use auto"
        )


def _check_batches(config: RunConfig) -> None:
    """Steps, batches and chains fit one another."""
    trainer, chains = config.trainer, config.chains
    total = chains.pools * chains.per_pool
    if config.negatives % chains.per_pool or config.negatives > total:
        raise ConfigError(
            "trainer.negatives",
            trainer.negatives,
            f"must be a multiple of chains.per_pool={chains.per_pool}, at most all {total} chains",
        )
    if chains.per_context > 1 and not config.conditional:
        remedy = f"energy={config.energy.name} has no contexts; use 1"
        raise ConfigError("chains.per_context", chains.per_context, remedy)
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
        source = "" if trainer.negatives else f": all those of chains.pools={chains.pools}"
        remedy += f"; use {rows} (of {config.negatives} negatives{source})"
        raise ConfigError("trainer.batch_size", trainer.batch_size or "null", remedy)


def _check_ladder(config: RunConfig, objective: ObjectiveSection) -> None:
    """A ladder's chains stay where they are, and under one law."""
    kernel = config.kernel
    if config.conditional and kernel.ladder:
        remedy = (
            f"energy={config.energy.name} is conditional, and a ladder's chains stay under one law;"
            " use its inner kernel"
        )
        raise ConfigError("kernel", kernel.name, remedy)
    if objective.start != "persistent" and kernel.ladder:
        remedy = (
            f"objective={objective.name} starts chains at {objective.start}, a ladder's are its"
            " own; use objective=pcd"
        )
        raise ConfigError("kernel", kernel.name, remedy)


def _check_all_rows(config: RunConfig) -> None:
    """All rows at once are had by one rank, without noise that is another each time."""
    if config.trainer.batch_size is not None:
        return
    remedy = None
    if config.trainer.replicas > 1:
        remedy = f"trainer.replicas={config.trainer.replicas} ranks share a step's rows"
    elif config.data.noise:
        remedy = f"data.noise={config.data.noise} is drawn afresh for each row"
    elif not config.data.has_rows:
        remedy = f"data={config.data.name} has none"
    if remedy is not None:
        raise ConfigError("trainer.batch_size", "null", f"{remedy}; give a number of rows")


SEARCH = {
    **{"learning_rate": 1.0, "schedule": "constant", "warmup": 0, "weight_decay": 0.0},
    **{"clip_norm": None, "ema": 0.0},
}
"""The settings of an optimizer that a line search leaves nothing to."""


def _check_line_search(config: RunConfig) -> None:
    """L-BFGS looks for the minimum of one function, and sets its steps by itself."""
    if config.optimizer.name != "lbfgs":
        return
    if config.trainer.batch_size is not None:
        remedy = "optimizer.name=lbfgs needs the same rows at every step; use null, all of them"
        raise ConfigError("trainer.batch_size", config.trainer.batch_size, remedy)
    for name, objective in terms_of(config.objective).items():
        if not objective.deterministic:
            remedy = (
                f"objective={name} draws at random, and L-BFGS needs a loss that is the same each"
                " time; use adam, or objective=pseudo_likelihood with objective.sites=null"
            )
            raise ConfigError("optimizer.name", "lbfgs", remedy)
    if any(getattr(config.optimizer, key) != value for key, value in SEARCH.items()):
        settings = (
            f"optimizer.{key}={'null' if value is None else value}" for key, value in SEARCH.items()
        )
        remedy = f"a line search sets the steps; with it go {' '.join(settings)}"
        raise ConfigError("optimizer.name", "lbfgs", remedy)


def _check_natural(config: RunConfig) -> None:
    """A natural gradient wants a Fisher information."""
    if config.optimizer.name == "natural" and not config.energy.has_couplings:
        remedy = f"it is that of energy=potts; with energy={config.energy.name} use adam or sgd"
        raise ConfigError("optimizer.name", "natural", remedy)


def _check_graph(config: RunConfig) -> None:
    """Pairs are chosen by somebody, in the steps that there are, by an optimizer that bears it."""
    energy, optimizer = config.energy, config.optimizer
    if not isinstance(energy, PottsEnergy):
        return
    if energy.graph == "fixed":
        if energy.edges is None and energy.edge_share < 1:
            remedy = (
                "is a share of the pairs that energy.edges names; name some, use"
                " energy.graph=grown or decimated, or 1"
            )
            raise ConfigError("energy.edge_share", energy.edge_share, remedy)
        return
    if optimizer.name == "lbfgs":
        remedy = (
            "the minimum that optimizer.name=lbfgs looks for changes with the pairs; use adam, or"
            " fixed"
        )
        raise ConfigError("energy.graph", energy.graph, remedy)
    if energy.edge_steps > config.trainer.steps:
        remedy = f"a run has trainer.steps={config.trainer.steps} steps; use at most that"
        raise ConfigError("energy.edge_steps", energy.edge_steps, remedy)


def _check_pools(config: RunConfig) -> None:
    """The bounds on pools agree, and on the rounds of each."""
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
    given = "at lag 0" if config.lag == 0 else "with trainer.lag_mode=exact"
    if config.assigned_rounds and config.most_pools > config.pools:
        remedy = (
            f"{given} each step consumes the rounds of given pools; for pools that come and go use"
            " a bound of 1 or more"
        )
        raise ConfigError("chains.max_pools", chains.max_pools, remedy)
    if config.assigned_rounds and trainer.inflight is not None and trainer.inflight <= config.lag:
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


def _check_live(config: RunConfig) -> None:
    """A live likelihood is that of one law, whose weights one process has."""
    remedy = None
    if config.conditional:
        remedy = f"energy={config.energy.name} has a log Z for each context; use false"
    elif config.trainer.sharding == "fsdp":
        remedy = "no rank has the whole model under trainer.sharding=fsdp; use false"
    if config.evaluation.live and remedy is not None:
        raise ConfigError("evaluation.live", True, remedy)


def _check_held_out(config: RunConfig) -> None:
    """Nothing asks for a figure of held-out rows where none is kept out."""
    if config.data.held_out or not config.data.has_rows:
        return
    remedy = "is of held-out rows, and data.held_out=0 keeps none; use {}, or keep some out"
    if config.evaluation.live:
        raise ConfigError("evaluation.live", True, remedy.format("false"))
    best = config.checkpoint.keep_best
    if best is not None and any(name in best for name in OF_HELD_OUT):
        raise ConfigError("checkpoint.keep_best", best, remedy.format("ebm_loss or null"))
    judged = config.evaluation.judged
    if judged is not None and judged.figure.startswith("test_"):
        raise ConfigError("evaluation.judged.figure", judged.figure, remedy.format("another"))


def _check_contacts(config: RunConfig) -> None:
    """A known structure's contacts are held against couplings."""
    contacts = getattr(config.data, "contacts", None)
    if contacts is not None and not config.energy.has_couplings:
        remedy = f"energy={config.energy.name} has no couplings; use null, or energy=potts"
        raise ConfigError("data.contacts", contacts, remedy)


def _check_patience(config: RunConfig) -> None:
    """Patience is with a figure."""
    if config.trainer.patience is not None and config.checkpoint.keep_best is None:
        raise ConfigError(
            "trainer.patience",
            config.trainer.patience,
            "it waits for a better figure; name one, as in"
            " checkpoint.keep_best=ebm_held_out_gap_nats, or use null",
        )


def _check_until(config: RunConfig) -> None:
    """Covariances are of letters, of chains under one law, and looked at."""
    until, remedy = config.trainer.until_pearson, None
    if until is None:
        return
    if not config.energy.domain.levels:
        remedy = f"{config.energy.where}, whose rows have no letters to count; use null"
    elif not config.pools:
        remedy = f"objective={config.objective.name} has no chains; use pcd, or null"
    elif config.conditional:
        remedy = f"energy={config.energy.name} has a law for each context; use null"
    elif not config.metrics.held_out_every:
        remedy = "nobody looks with metrics.held_out_every=0; use 10"
    elif config.trainer.sharding == "fsdp":
        remedy = "nobody looks under trainer.sharding=fsdp; use null"
    if remedy is not None:
        raise ConfigError("trainer.until_pearson", until, remedy)


def _check_ranks(config: RunConfig) -> None:
    """Several ranks have equal shares of a step's rows, and can be right about its loss."""
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
    if (trainer.batch_size or 0) % ranks:
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
        if trainer.sharding == "fsdp":
            _check_sharding(config.energy, name, objective)


def _check_sharding(energy: EnergySection, name: str, objective: ObjectiveSection) -> None:
    """The energy's parameters can be sharded under the objective called `name`."""
    if not objective.shardable:
        remedy = (
            f"FSDP2 goes back once through calls of E(x), and objective={name} needs more than"
            " that; use none, or objective=pcd"
        )
        raise ConfigError("trainer.sharding", "fsdp", remedy)
    if not energy.shardable:
        sections = {other: parts.section_of("energy", other) for other in parts.names("energy")}
        shardable = [
            other
            for other, section in sections.items()
            if issubclass(section, EnergySection) and section.shardable
        ]
        remedy = (
            f"energy={energy.name} uses parameters outside of E(x); use none, or one of"
            f" {', '.join(shardable)}"
        )
        raise ConfigError("trainer.sharding", "fsdp", remedy)


def _check_devices(config: RunConfig) -> None:
    """Moving averages move, and actors have the devices that they are to use."""
    for key in ("ema", "momentum", "beta2"):
        if getattr(config.optimizer, key) == 1:
            remedy = "moving averages never move with a decay of 1; use less"
            raise ConfigError(f"optimizer.{key}", 1, remedy)
    if config.cluster.name == "inline":
        for key in ("pool_gpus", "server_gpus"):
            if amount := getattr(config.cluster, key):
                remedy = "cluster=inline has one process; use 0, and set device"
                raise ConfigError(f"cluster.{key}", amount, remedy)
    elif config.device.startswith("cuda"):
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
                    "device=cuda needs a GPU, or a fraction of one, in each actor: set"
                    " cluster.pool_gpus=0.5 cluster.server_gpus=1; without a GPU use device=cpu",
                )
