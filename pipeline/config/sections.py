"""The sections of a configuration that are no group's choice of a part: trainer, optimizer, chains,
files, cluster.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    OpenProbability,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seconds,
    Section,
    about,
)


class Trainer(Section):
    steps: PositiveInt = about("optimizer updates in all")
    batch_size: PositiveInt | None = about(
        "positives a step; null: all training rows at once, each by its weight"
    )
    negatives: PositiveInt | None = about(
        "negatives a step, whole batches of chains.per_pool; null: all pools' chains"
    )
    lag: Literal["auto"] | NonNegativeInt = about(
        "how many versions old negatives may be; 0: lock-step; auto: 1 while the run finds that it"
        " is quicker and free, else 0"
    )
    inflight: PositiveInt | None = about(
        "rounds that a pool may have been asked for at once; null: one more than the lag"
    )
    lag_mode: Literal["bound", "exact"] = about(
        "bound: at most `lag`; exact: step t consumes what version t-lag made"
    )
    reweight: Literal["auto"] | bool = about(
        "importance weights for stale negatives; auto: where they are valid and nothing is moved"
    )
    refresh: NonNegativeInt | None = Field(
        None,
        description="transitions that the trainer moves stale negatives by, under the newest"
        " weights, before it learns from them; null: 0, or 2 where lag=auto finds them worth it",
    )
    min_ess: Probability = about(
        "the bound on lag goes down while the smoothed ESS ratio of the weights is below this"
    )
    patience: PositiveInt | None = Field(
        None,
        description="steps without a better figure of checkpoint.keep_best after which a run ends"
        " early; null: it makes all its steps",
    )
    until_pearson: OpenProbability | None = Field(
        None,
        description="Pearson correlation, of the two-site covariances of the chains with those of"
        " the training rows, at which a run ends (Muntoni et al. 2021: 0.95); null: it makes all"
        " its steps",
    )
    rollbacks: NonNegativeInt | None = Field(
        3,
        description="times that a run which diverges goes back to its last good checkpoint, at a"
        " tenth of the learning rate each time; 0: it stops at once; null: nobody watches",
    )
    replicas: PositiveInt = about(
        "parameter-server ranks, each with its share of positives and pools"
    )
    sharding: Literal["none", "fsdp"] = about(
        "none: every rank holds the whole model; fsdp: parameters and optimizer state are"
        " sharded over ranks (FSDP2)"
    )
    chunk_rows: PositiveInt | None = about(
        "rows that the gradient is worked out for at once, which bounds memory; null: all"
    )
    chunk_draws: PositiveInt | None = about(
        "directions, noises or sites of each row worked on at once; null: all"
    )


class Optimizer(Section):
    name: Literal["adam", "sgd", "natural", "lbfgs"] = about(
        "natural: SGD along the natural gradient of energy=potts at independent sites; lbfgs: with"
        " a line search"
    )
    learning_rate: PositiveFloat = about("at the start of its schedule")
    schedule: Literal["constant", "linear", "cosine"] = about("how it falls to 0 at trainer.steps")
    warmup: NonNegativeInt = about("steps over which it first rises from 0")
    momentum: Probability = about("SGD's momentum, or Adam's beta1 (IGEBM practice: 0)")
    beta2: Probability = about("Adam's second-moment decay")
    damping: PositiveFloat = Field(
        0.02,
        description="of natural gradients: added to the product of the frequencies of two letters,"
        " which holds back those of rare ones",
    )
    weight_decay: NonNegativeFloat = about(
        "times the learning rate: Adam's is decoupled (Loshchilov & Hutter 2019), SGD's the"
        " gradient's, that of natural added behind it"
    )
    clip_norm: PositiveFloat | None = about("largest gradient norm; null: as it is")
    ema: Probability = about(
        "decay of the weights' moving average, used for evaluation; 0: the last weights"
    )


class Chains(Section):
    pools: PositiveInt = about("chain pools (actors)")
    min_pools: PositiveInt | None = about(
        "pools without which steps wait; null: all to begin with, one to go on"
    )
    max_pools: PositiveInt | None = about(
        "pools taken on while the cluster has, or finds, room for them; null: chains.pools"
    )
    newcomers: Literal["snapshot", "data", "noise"] = about(
        "where the chains of a pool begin that joins, or whose own were lost: the newest batch of"
        " another pool, rows, noise"
    )
    per_pool: PositiveInt = about("persistent chains in each")
    restart: Probability = about(
        "chance a round that a persistent chain starts anew from noise (Du & Mordatch 2019: 0.05)"
    )
    burn_in: NonNegativeInt = about(
        "transitions after which a chain that started anew counts as a negative"
    )
    per_context: PositiveInt = about(
        "chains for each row of a step that a conditional model is trained on"
    )
    kept_contexts: NonNegativeInt = about(
        "training rows up to which a conditional model's persistent chains are kept by row; beyond,"
        " they start anew each round"
    )


class Checkpoint(Section):
    every: PositiveInt = about("steps between checkpoints")
    keep: PositiveInt = about("how many of the newest to keep")
    keep_every: PositiveInt | None = Field(
        None, description="steps between those that are kept for good; null: none are"
    )
    keep_best: Annotated[str, Field(pattern=r"^(max:)?[a-z]")] | None = Field(
        None,
        description="figure of metrics.jsonl: the checkpoint with its lowest value is kept, or"
        " its highest after max:; null: none is",
    )
    patience: PositiveInt = Field(10, description="failed saves in a row that end the run")


class Metrics(Section):
    port: Annotated[int, Field(ge=0, le=65535)] = about("port of the Prometheus endpoint; 0: none")
    address: str | None = Field(
        None,
        description="address that it listens at, of IPv4 or IPv6, such as 0.0.0.0 or ::1; null:"
        " this machine's own (127.0.0.1) with cluster=inline and local, else every one",
    )
    page: bool = Field(
        True,
        description="the run's page, as pipeline.report writes it, at / of the same port while the"
        " run goes on: for whoever reaches the port, with its configuration but for secrets",
    )
    every: PositiveInt = about("steps between rows of metrics.jsonl")
    held_out_every: NonNegativeInt = Field(
        20,
        description="steps between two looks at the mean energies of held-out and training rows,"
        " and over levels at the pseudo-likelihood; 0: never",
    )


class Judgement(Section):
    """A figure of the summary, by name, and what it is held against: a number, or the name of
    another figure.
    """

    figure: str
    sense: Literal["at_least", "at_most"]
    reference: Number | str


class Evaluation(Section):
    samples: NonNegativeInt = about("chains started at noise for samples.png; 0: no picture")
    transitions: PositiveInt = about("transitions from noise to sample")
    ais_temperatures: NonNegativeInt = about(
        "most intermediate laws of annealed importance sampling, for a short way takes fewer; 0: no"
        " AIS"
    )
    ais_particles: PositiveInt = about("particles of annealed importance sampling")
    live: bool = Field(
        False,
        description="the held-out log-likelihood with its interval while the run goes on, exactly"
        " or by AIS, at 5 % of its time; a ladder has it anyway, and then no AIS is made",
    )
    judged: Judgement | None = about(
        "{figure, sense: at_least or at_most, reference}: what the summary's `judged` says; null:"
        " nothing"
    )


class Cluster(Section):
    name: Literal["inline", "local", "ray", "kuberay"]
    threads: PositiveInt = about(
        "torch threads of each pool and of each rank; auto: an even share of this machine's cores,"
        " on a cluster the CPUs that a pool asks for"
    )
    pin: bool = Field(
        False,
        description="keep each pool and rank to one core, on a Ray of the run's own that has no"
        " more cores than those",
    )
    pool_cpus: NonNegativeFloat = about("CPUs that Ray reserves for a pool")
    pool_gpus: NonNegativeFloat = about("GPUs for a pool (fractions share one)")
    pool_labels: dict[str, str] = about(
        "labels that a pool's node must have, as Ray's label selectors have them"
    )
    pool_timeout: Seconds = about(
        "seconds without an answer after which a pool is taken for hung and restarted"
    )
    server_cpus: NonNegativeFloat = about("CPUs that Ray reserves for each parameter-server rank")
    server_gpus: NonNegativeFloat = about("GPUs for each parameter-server rank")
    server_labels: dict[str, str] = about("labels that a parameter-server rank's node must have")
    server_restarts: NonNegativeInt = Field(
        5, description="times within an hour that the parameter server is restarted when it died"
    )
    driver_restarts: NonNegativeInt = Field(
        0,
        description="times within an hour that `python -m pipeline.train` starts its driver again"
        " when that was killed or its cluster failed; it goes on from the newest checkpoint",
    )
    timeout: Seconds = about("seconds without a step after which the run is given up")
