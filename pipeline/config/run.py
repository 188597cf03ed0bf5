"""The configuration as one frozen, typed object.

Light to import (neither torch nor ray), so that `--help` and every refusal are quick;
`pipeline.config.compose` fills it from `conf/` and the command line, and
`pipeline.config.combinations` says which of its values go together. It holds numbers and names
only: no value can name code to run, since every name is looked up in the registry of parts
(`pipeline.config.parts`) or is an entry point that an installed package registered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.common.errors import ConfigError
from pipeline.config.data import DataConfig, RowsData
from pipeline.config.energies import CustomEnergy, EnergyConfig, MaxentEnergy
from pipeline.config.fields import Device, Names, NonNegativeInt, Section, Url, about, digest
from pipeline.config.kernels import KernelConfig, MetropolisHastingsKernel
from pipeline.config.objectives import FastPCDObjective, ObjectiveConfig, ObjectiveSection, terms_of
from pipeline.config.parts import PARTS
from pipeline.config.sections import (
    Chains,
    Checkpoint,
    Cluster,
    Evaluation,
    Metrics,
    Optimizer,
    Trainer,
)

LEAST_PER_CONTEXT = 8
CHOSEN_LAG = 1
"""The bound on lag that trainer.lag=auto may choose: sampling and learning overlap from 1 on."""
CHOSEN_REFRESH = 2
"""The transitions that trainer.lag=auto may choose to move negatives by, unless told otherwise."""
GROUPS = (*PARTS, "trainer", "cluster", "experiment")


class RunConfig(Section):
    """A whole run. Validated once; what depends on the data's size is checked when the data are
    opened.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = about(
        "names the run in its folder and metrics; null: as the experiment says, or else the data's"
    )
    output: Url | None = about(
        "where the run's files go: any fsspec URL; null: runs/<name>-<hash of the configuration>"
    )
    resume: Literal["auto", "never"] = about(
        "auto: go on from the newest checkpoint in output; never: start over"
    )
    init_from: Url | None = about("URL of another run to start from")
    init_what: Literal["weights", "all"] = about(
        "weights: its averaged weights alone, on any rows; all: its optimizer, chains, place in the"
        " rows and steps too"
    )
    seed: NonNegativeInt = about("seed of every random stream of the run")
    device: Device = about("cpu, cuda or cuda:N")
    energy: EnergyConfig
    kernel: KernelConfig
    objective: ObjectiveConfig
    data: DataConfig
    trainer: Trainer
    optimizer: Optimizer
    chains: Chains
    checkpoint: Checkpoint
    metrics: Metrics
    recorders: Names = about(
        "where figures go: prometheus, series, tensorboard, mlflow, wandb, or entry points of the"
        " group pipeline.recorders"
    )
    evaluation: Evaluation
    cluster: Cluster

    @property
    def contrastive(self) -> ObjectiveSection | None:
        """The objective, or the term of the mixture, that consumes chains; None where none does."""
        return next((term for term in terms_of(self.objective).values() if term.start), None)

    @property
    def conditional(self) -> bool:
        """True where positions are learned given the rows' contexts."""
        return self.energy.conditional

    @property
    def starts_at_data(self) -> bool:
        return self.contrastive is not None and self.contrastive.start == "data"

    @property
    def sends_starts(self) -> bool:
        """True where chains are sent a step's rows: to start at, or to run under their contexts."""
        return self.contrastive is not None and (self.starts_at_data or self.conditional)

    @property
    def keeps_chains(self) -> bool:
        """True where pools may keep chains by training row, of which no batch has all."""
        persistent = self.contrastive is not None and self.contrastive.start == "persistent"
        return persistent and self.conditional

    @property
    def pools(self) -> int:
        """Pools that are started: none where no objective consumes chains."""
        return self.chains.pools if self.contrastive is not None else 0

    @property
    def most_pools(self) -> int:
        """Pools that the run may come to use."""
        return max(self.pools, self.chains.max_pools or 0) if self.pools else 0

    @property
    def negatives(self) -> int:
        """Negatives a step consumes."""
        return (self.trainer.negatives or self.pools * self.chains.per_pool) if self.pools else 0

    @property
    def batches_per_step(self) -> int:
        """Pool batches a step consumes."""
        return self.negatives // self.chains.per_pool

    def pools_of_step(self, step: int) -> list[int]:
        """The pools whose rounds step `step` consumes, in order, when rounds are assigned to steps:
        each in its turn.
        """
        first = step * self.batches_per_step
        return [(first + number) % self.chains.pools for number in range(self.batches_per_step)]

    @property
    def at_equilibrium(self) -> bool:
        """True where negatives are taken for draws of exp(-E): an objective whose chains are near
        equilibrium, and a kernel that leaves it invariant.
        """
        near = self.contrastive is not None and self.contrastive.equilibrium_negatives
        return near and self.kernel.leaves_invariant(self.energy)

    @property
    def bridged(self) -> bool:
        """True where a ladder tells log Z: its rungs keep their laws exactly, its chains run under
        the weights that learn alone, and a position has no latent columns.
        """
        own = not isinstance(self.contrastive, FastPCDObjective)
        exact = own and self.kernel.ladder and self.kernel.leaves_invariant(self.energy)
        return exact and self.pools > 0 and not self.energy.latents

    @property
    def reweightable(self) -> bool:
        """True where importance weights for stale negatives are valid: of negatives at equilibrium,
        at least 8 under each context, for a softmax over one chain is 1.
        """
        enough = not self.conditional or self.chains.per_context >= LEAST_PER_CONTEXT
        return self.at_equilibrium and enough

    @property
    def reweight(self) -> bool:
        """True where stale negatives get importance weights; those that are moved get none."""
        if self.trainer.reweight == "auto":
            return self.reweightable and not self.trainer.refresh
        return self.trainer.reweight

    @property
    def chooses_lag(self) -> bool:
        """True where the run finds out by itself whether lag is free. One process has nothing to
        overlap.
        """
        return self.trainer.lag == "auto" and self.cluster.name != "inline"

    @property
    def lag(self) -> int:
        """The most versions that negatives may be old by; where the run chooses, the most that it
        may choose.
        """
        if self.trainer.lag == "auto":
            return CHOSEN_LAG if self.chooses_lag else 0
        return self.trainer.lag

    @property
    def refresh(self) -> int:
        """The transitions that stale negatives are moved by before they are learned from; where the
        run chooses, those that it may choose. 0: none are moved.
        """
        if not (self.lag and self.at_equilibrium):
            return 0
        if self.trainer.refresh is None:
            return CHOSEN_REFRESH if self.chooses_lag else 0
        return self.trainer.refresh

    @property
    def assigned_rounds(self) -> bool:
        """True where step t consumes round t (lock-step, exact lag), False where it takes those
        that come first.
        """
        return self.lag == 0 or self.trainer.lag_mode == "exact"

    @property
    def batches_carry_rows(self) -> bool:
        """True where a round's batch brings the rows along that its chains were sent, for the step
        that will consume it.
        """
        return self.sends_starts and not self.assigned_rounds

    def carrying(
        self, energy: Any = None, proposal: Any = None, features: Any = None, rows: Any = None
    ) -> RunConfig:
        """This configuration with a module, a proposal, features or rows (`GivenRows`) given in
        code, which travel with it but are not part of it.

        Raises `ConfigError` where energy.name is not custom, kernel.name not metropolis_hastings,
        energy.name not maxent, data.name not rows.
        """
        config = self
        if energy is not None:
            if not isinstance(self.energy, CustomEnergy):
                raise ConfigError(
                    "energy", self.energy.name, "a module given in code goes with energy=custom"
                )
            section = self.energy.model_copy(update={"given": _called(type(energy))})
            section._module = energy
            config = config.model_copy(update={"energy": section})
        if proposal is not None:
            within = self.kernel.within
            if not isinstance(within, MetropolisHastingsKernel):
                raise ConfigError(
                    "kernel",
                    self.kernel.name,
                    "a proposal given in code goes with kernel=metropolis_hastings",
                )
            within = within.model_copy(update={"given": _called(proposal)})
            within._proposal = proposal
            kernel = (
                self.kernel.model_copy(update={"inner": within}) if self.kernel.ladder else within
            )
            config = config.model_copy(update={"kernel": kernel})
        if features is not None:
            if not isinstance(self.energy, MaxentEnergy):
                raise ConfigError(
                    "energy", self.energy.name, "features given in code go with energy=maxent"
                )
            family = self.energy.model_copy(
                update={"given": ", ".join(_called(function) for function in features)}
            )
            family._features = tuple(features)
            config = config.model_copy(update={"energy": family})
        if rows is not None:
            config = config._carrying_rows(rows)
        return config

    def _carrying_rows(self, rows: Any) -> RunConfig:
        if not isinstance(self.data, RowsData):
            raise ConfigError("data", self.data.name, "rows given in code go with data=rows")
        kept = rows.kept_out
        told = {"given": rows.in_words(), **({} if kept is None else {"held_out": kept})}
        data = self.data.model_copy(update=told)
        data._rows = rows
        return self.model_copy(update={"data": data})

    def without_rows(self) -> RunConfig:
        """This configuration without rows given in code, for whoever reads none of them."""
        if not isinstance(self.data, RowsData):
            return self
        data = self.data.model_copy()
        data._rows = None
        return self.model_copy(update={"data": data})

    def digest(self) -> str:
        """Returns ten hexadecimal digits that name what is learned: the configuration without
        where, how and how long it is run.
        """
        places = ("output", "resume", "cluster", "device")
        accounts = ("metrics", "recorders", "checkpoint", "evaluation")
        default = ("init_what",) if self.init_what == "weights" else ()
        apart: dict[str, Any] = dict.fromkeys((*places, *accounts, *default), True)
        apart["trainer"] = {"steps", "rollbacks", "patience", "until_pearson"}
        if getattr(self.energy, "graph", None) == "fixed":
            apart["energy"] = {"graph", "edge_steps"}
        apart["optimizer"] = set() if self.optimizer.name == "natural" else {"damping"}
        return digest(self.model_dump(mode="json", exclude=apart))


def _called(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
