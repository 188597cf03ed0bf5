"""The configuration as frozen, typed objects, and the combinations of them that make sense.

Light to import (neither torch nor ray), so that `--help` and every refusal are quick; `pipeline.compose` fills it from `conf/`
and the command line. A configuration holds numbers and
names only: no value can name code to run, since every name is looked up in this project's own tables.

Raises `ConfigError` for an unknown key, a bad value, and combinations that make no sense.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError

GROUPS = ("energy", "kernel", "objective", "data", "trainer", "cluster", "experiment")

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]
Shape = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class Section(BaseModel):
    """One frozen part of the configuration; strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _about(text: str) -> Any:
    return Field(description=text)


# -- energies ---------------------------------------------------------------------------------------------------------


class ContinuousEnergy(Section):
    binary: ClassVar[bool] = False
    has_conditionals: ClassVar[bool] = False
    base_scale: PositiveFloat = _about("standard deviation s of the Gaussian base term |x|^2 / (2 s^2), in data units")
    spectral_norm: bool = _about("divide every layer's weight by its largest singular value (Miyato et al. 2018)")


class MLPEnergy(ContinuousEnergy):
    name: Literal["mlp"]
    hidden: Sizes = _about("widths of the hidden layers")


class ConvEnergy(ContinuousEnergy):
    name: Literal["conv"]
    channels: Sizes = _about("output channels of the 3x3 convolutions; all but the first halve the image")
    hidden: PositiveInt = _about("width of the dense layer behind them")


class RBMEnergy(Section):
    binary: ClassVar[bool] = True
    has_conditionals: ClassVar[bool] = True
    name: Literal["rbm"]
    hidden: PositiveInt = _about("number of hidden units")
    weight_scale: PositiveFloat = _about("standard deviation of the initial weights (Hinton 2010: 0.01)")


EnergyConfig = Annotated[MLPEnergy | ConvEnergy | RBMEnergy, Field(discriminator="name")]


# -- kernels ----------------------------------------------------------------------------------------------------------


class Kernel(Section):
    needs_gradient: ClassVar[bool] = False
    needs_conditionals: ClassVar[bool] = False
    transitions: PositiveInt = _about("k, the transitions of a round")

    @property
    def invariant(self) -> bool:
        """Whether the kernel leaves exp(-E) itself invariant (ULA untempered: up to its discretisation error)."""
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """What `step` of this kernel takes beside generator, state and target."""
        return {key: value for key, value in self.model_dump().items() if key not in ("name", "transitions")}


class ULAKernel(Kernel):
    needs_gradient: ClassVar[bool] = True
    name: Literal["ula"]
    step_size: PositiveFloat = _about("epsilon, the drift's step, in squared data units per nat")
    noise: NonNegativeFloat | None = _about("noise's standard deviation; null: sqrt(2 epsilon), the untempered chain")

    @property
    def invariant(self) -> bool:
        return self.noise is None


class MALAKernel(Kernel):
    needs_gradient: ClassVar[bool] = True
    name: Literal["mala"]
    step_size: PositiveFloat = _about("epsilon, in squared data units per nat")


class GibbsKernel(Kernel):
    needs_conditionals: ClassVar[bool] = True
    name: Literal["gibbs"]


KernelConfig = Annotated[ULAKernel | MALAKernel | GibbsKernel, Field(discriminator="name")]


# -- objectives -------------------------------------------------------------------------------------------------------


class ContrastiveObjective(Section):
    starts_at_data: ClassVar[bool]
    equilibrium_negatives: ClassVar[bool]
    energy_l2: NonNegativeFloat = _about("weight of the mean squared energy of positives and negatives")


class PCDObjective(ContrastiveObjective):
    starts_at_data: ClassVar[bool] = False
    equilibrium_negatives: ClassVar[bool] = True
    name: Literal["pcd"]


class CDObjective(ContrastiveObjective):
    starts_at_data: ClassVar[bool] = True
    equilibrium_negatives: ClassVar[bool] = False
    name: Literal["cd"]


ObjectiveConfig = Annotated[PCDObjective | CDObjective, Field(discriminator="name")]


# -- data -------------------------------------------------------------------------------------------------------------


class Data(Section):
    held_out: PositiveInt = _about("rows kept out of training")
    split_seed: NonNegativeInt = _about("seed of the split, apart from `seed` so that runs compare")
    noise: NonNegativeFloat = _about("standard deviation of the Gaussian noise added afresh to every row drawn")

    @property
    def binary(self) -> bool:
        return getattr(self, "encoding", "real") == "binary"


Encoding = Annotated[
    Literal["real", "binary"],
    Field(description="real: grey levels scaled to [-1, 1]; binary: 1 from the middle grey level up, else 0"),
]


class DigitsData(Data):
    name: Literal["digits"]
    encoding: Encoding


class IDXData(Data):
    name: Literal["idx"]
    encoding: Encoding
    path: str = _about("an IDX file of images, or a folder with train-images-idx3-ubyte[.gz] (and t10k-...)")


class ToyData(Data):
    name: Literal["toy"]
    law: Literal["8gaussians", "two_moons", "checkerboard"] = _about("which 2-D law, each of known density")
    rows: PositiveInt = _about("rows drawn from it, held-out ones included")


class ColumnsData(Data):
    name: Literal["columns"]
    path: str = _about("Parquet or Arrow files: a path, an fsspec URL or a glob")
    columns: Names = _about("one column of fixed-size lists, or numeric columns; empty: all there are")
    shape: Shape = _about("shape of one row, such as [8,8]; empty: flat")
    encoding: Annotated[Literal["real", "binary"], Field(description="real: numbers as they are; binary: every value 0 or 1")]
    memory_limit: PositiveInt = _about("bytes; a larger data set is streamed instead of loaded")


DataConfig = Annotated[DigitsData | IDXData | ToyData | ColumnsData, Field(discriminator="name")]


# -- the rest ---------------------------------------------------------------------------------------------------------


class Trainer(Section):
    steps: PositiveInt = _about("optimizer updates in all")
    batch_size: PositiveInt = _about("positives a step")
    negatives: PositiveInt | None = _about("negatives a step, whole batches of chains.per_pool; null: all pools' chains")
    lag: NonNegativeInt = _about("how many versions old negatives may be; 0 is lock-step")
    lag_mode: Literal["bound", "exact"] = _about("bound: at most `lag`; exact: step t consumes what version t-lag made")
    reweight: Literal["auto"] | bool = _about("importance weights for stale negatives; auto: where they are valid")
    min_ess: Probability = _about("the bound on lag goes down while the smoothed ESS ratio of the weights is below this")


class Optimizer(Section):
    name: Literal["adam", "sgd"]
    learning_rate: PositiveFloat = _about("at the start of its schedule")
    schedule: Literal["constant", "linear", "cosine"] = _about("how it falls to 0 at trainer.steps")
    warmup: NonNegativeInt = _about("steps over which it first rises from 0")
    momentum: Probability = _about("SGD's momentum, or Adam's beta1 (IGEBM practice: 0)")
    beta2: Probability = _about("Adam's second-moment decay")
    weight_decay: NonNegativeFloat = _about(
        "times the learning rate: Adam's is decoupled (Loshchilov & Hutter 2019), SGD's the gradient's"
    )
    clip_norm: PositiveFloat | None = _about("largest gradient norm; null: as it is")
    ema: Probability = _about("decay of the weights' moving average, used for evaluation; 0: the last weights")


class Chains(Section):
    pools: PositiveInt = _about("chain pools (actors)")
    per_pool: PositiveInt = _about("persistent chains in each")
    restart: Probability = _about("chance a round that a chain starts anew from noise (Du & Mordatch 2019: 0.05)")
    burn_in: NonNegativeInt = _about("transitions after which a chain that started anew counts as a negative")


class Checkpoint(Section):
    every: PositiveInt = _about("steps between checkpoints")
    keep: PositiveInt = _about("how many of the newest to keep")


class Metrics(Section):
    port: Annotated[int, Field(ge=0, le=65535)] = _about("port of the Prometheus endpoint; 0: none")
    every: PositiveInt = _about("steps between rows of metrics.jsonl")


class Evaluation(Section):
    samples: NonNegativeInt = _about("chains started at noise for samples.png; 0: no picture")
    transitions: PositiveInt = _about("transitions from noise to sample")
    ais_temperatures: NonNegativeInt = _about("intermediate laws of annealed importance sampling; 0: no AIS")
    ais_particles: PositiveInt = _about("particles of annealed importance sampling")


class Cluster(Section):
    name: Literal["inline", "local", "ray"]
    threads: PositiveInt = _about("torch threads of each pool and of the parameter server")
    pool_cpus: NonNegativeFloat = _about("CPUs that Ray reserves for a pool")
    pool_gpus: NonNegativeFloat = _about("GPUs for a pool (fractions share one)")
    server_cpus: NonNegativeFloat = _about("CPUs that Ray reserves for the parameter server")
    server_gpus: NonNegativeFloat = _about("GPUs for the parameter server")
    timeout: PositiveFloat = _about("seconds without a step after which the run is given up")


class RunConfig(Section):
    """A whole run. Validated once; what depends on the data's size is checked when the data are opened."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = _about("names the run in its folder and metrics")
    output: str | None = _about("where the run's files go: any fsspec URL; null: runs/<name>-<hash of the configuration>")
    resume: Literal["auto", "never"] = _about("auto: go on from the newest checkpoint in output; never: start over")
    init_from: str | None = _about("URL of another run whose weights to start from")
    seed: NonNegativeInt = _about("seed of every random stream of the run")
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = _about("cpu, cuda or cuda:N")
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
    def negatives(self) -> int:
        """Negatives a step consumes."""
        return self.trainer.negatives or self.chains.pools * self.chains.per_pool

    @property
    def batches_per_step(self) -> int:
        """Pool batches a step consumes."""
        return self.negatives // self.chains.per_pool

    @property
    def reweightable(self) -> bool:
        """Whether importance weights for stale negatives are valid: an invariant kernel, negatives near equilibrium."""
        return self.kernel.invariant and self.objective.equilibrium_negatives

    @property
    def reweight(self) -> bool:
        return self.reweightable if self.trainer.reweight == "auto" else self.trainer.reweight

    @property
    def assigned_rounds(self) -> bool:
        """Whether step t consumes round t (lock-step, exact lag, starts at data) or whichever rounds come first."""
        return self.trainer.lag == 0 or self.trainer.lag_mode == "exact" or self.objective.starts_at_data

    def digest(self) -> str:
        """Ten hexadecimal digits that name what is learned: the configuration without where, how and how long it is run."""
        apart = {"output", "resume", "cluster", "metrics", "checkpoint", "device", "evaluation"}
        content = self.model_dump(mode="json", exclude={**dict.fromkeys(apart, True), "trainer": {"steps"}})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def check_combinations(config: RunConfig) -> None:
    energy, kernel, data, trainer, chains = config.energy, config.kernel, config.data, config.trainer, config.chains
    if kernel.needs_conditionals and not energy.has_conditionals:
        raise ConfigError(
            "kernel", kernel.name, f"energy={energy.name} has no conditionals; use kernel=mala or ula, or energy=rbm"
        )
    if kernel.needs_gradient and energy.binary:
        raise ConfigError("kernel", kernel.name, f"energy={energy.name} is over {{0,1}}^d; use kernel=gibbs")
    if energy.binary and not data.binary:
        raise ConfigError("data", data.name, f"energy={energy.name} needs binary data; set data.encoding=binary")
    if data.binary and not energy.binary:
        raise ConfigError("data.encoding", "binary", f"energy={energy.name} is a density on R^d; use real, or energy=rbm")
    if data.binary and data.noise:
        raise ConfigError("data.noise", data.noise, "binary data take no Gaussian noise; use data.noise=0")
    if energy.name == "conv" and data.name == "toy":
        raise ConfigError("energy", "conv", "convolutions need images; use energy=mlp for data=toy")
    total = chains.pools * chains.per_pool
    if config.negatives % chains.per_pool or config.negatives > total:
        raise ConfigError(
            "trainer.negatives",
            trainer.negatives,
            f"must be a multiple of chains.per_pool={chains.per_pool}, at most all {total} chains",
        )
    if config.objective.starts_at_data and config.negatives != trainer.batch_size:
        raise ConfigError(
            "trainer.batch_size",
            trainer.batch_size,
            f"objective=cd starts one chain at each positive; use {config.negatives} (= the step's negatives)",
        )
    if config.objective.starts_at_data and chains.restart:
        raise ConfigError("chains.restart", chains.restart, "objective=cd restarts every chain at data; use 0")
    if trainer.reweight is True and not config.reweightable:
        culprit = f"objective={config.objective.name}" if config.kernel.invariant else f"kernel={kernel.name} with its noise"
        raise ConfigError("trainer.reweight", "true", f"not valid for {culprit}: its negatives are not from exp(-E); use auto")
    if trainer.lag > 2 and not config.reweightable:
        raise ConfigError("trainer.lag", trainer.lag, "these negatives cannot be reweighted; use at most 2")
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
