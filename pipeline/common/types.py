"""The messages between the parts: plain named tuples, apart from whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Rows(NamedTuple):
    """Rows of data, as tensors, or as arrays on their way between processes.

    A conditional model conditions on `context` [N, *context_shape], and `position` is [N, *shape].
    `number` [N] int64 says which training rows they are. `weight` [N], of mean 1, says how much
    each counts. Context, numbers or weights are None where there are none.
    """

    position: Any
    context: Any = None
    number: Any = None
    weight: Any = None

    def map(self, function: Callable[[Any], Any]) -> Rows:
        """Returns the function's value of each field that is there."""
        return Rows(*(None if field is None else function(field) for field in self))

    def chunk(self, pieces: int) -> list[Rows]:
        """Returns at most so many `pieces`, cut as `torch.chunk` cuts."""
        fields = [[None] * pieces if field is None else field.chunk(pieces) for field in self]
        return [Rows(*piece) for piece in zip(*fields, strict=True)]


class Weights(NamedTuple):
    """Everything an energy needs, as one array `flat` [P] float32: its state dict's tensors end to
    end, buffers included. `version` counts the steps that shaped them.
    """

    version: int
    flat: np.ndarray


class Negatives(NamedTuple):
    """One pool's round, decoded. Tensors are views of the batch's own memory: read them, never
    write.

    `position` is [M, d] float32. `energy` [M] float32, in nats, is under the weights of `version`
    that shaped it. `age` [M] int64 counts transitions since the chain's start.

    Under contexts, `context` [M, c] is each chain's. Where chains are kept by row, `number` [M]
    int64 is its training row. Where the batch brings rows along, `start` [M, d'] is the row that
    the chain was sent. Where transitions are replayed, `previous` [M, d] is the position before the
    last L of them, and `noise` [L, M, d] is what they drew. Each is None elsewhere.
    """

    position: Tensor
    energy: Tensor
    age: Tensor
    pool: int
    incarnation: int
    round: int
    version: int
    previous: Tensor | None = None
    noise: Tensor | None = None
    context: Tensor | None = None
    number: Tensor | None = None
    start: Tensor | None = None


class Usage(NamedTuple):
    """A process's use of its machine in one round or step.

    `seconds` are of processor time, over all threads. At the end of it, `resident` bytes were in
    memory, and `device` bytes were allocated on the GPU, if it uses one.
    """

    seconds: float
    resident: int
    device: int


class EnergyMoments(NamedTuple):
    """The mean (nats) and the variance (nats squared, over the count) of the energies of a batch of
    so many `chains` of a `pool`, under the weights that learn from it.
    """

    pool: int
    mean: float
    variance: float
    chains: int


class Motion(NamedTuple):
    """The way that a round moved a pool's chains, all under the weights of the round.

    `change` is the median change of a chain's energy from the round's beginning to its end, nats;
    `spread` the standard deviation of the energies at its end, from their quartiles; `memory` the
    rank correlation over chains of the energies then and now. `distance` is the median chain's root
    mean square displacement of a component, or over levels the share of components that changed.
    """

    change: float
    spread: float
    memory: float
    distance: float


class Bridged(NamedTuple):
    """A ladder's estimate of log Z of its model, nats, from one round of a pool, with the variance
    of its error. Of so many `systems`, one chain on every rung each, so many are `counting`
    (`pipeline.kernels.bridging.along_ladder`).
    """

    log_partition: float
    variance: float
    systems: int
    counting: float


class RoundReport(NamedTuple):
    """A pool's account of one round, beside its batch.

    `transitions` are summed over chains; `acceptance` is their mean acceptance probability; `swaps`
    hold the mean swap probability of each pair of a ladder's neighbours. So many chains were
    `reseeded` because they were not finite, and `restarted` by chains.restart. `tuning` is what the
    chains have learned about their kernel by now, for whoever goes on in their place. `motion` is
    there every few rounds, and `bridged` every few versions, on a ladder.
    """

    pool: int
    incarnation: int
    round: int
    version: int
    transitions: int
    acceptance: float
    step_size: float | None
    swaps: tuple[float, ...]
    reseeded: int
    restarted: int
    seconds: float
    usage: Usage
    tuning: dict[str, Any] | None = None
    motion: Motion | None = None
    bridged: Bridged | None = None


class LagChoice(NamedTuple):
    """The findings of a run that chooses its lag, so far.

    `treatment` is what stale negatives get now: plain, reweighted, moved, or none, in lock-step.
    `bias` has, by treatment, the square of the error that the newest trial found it to bring into
    the gradient, as a ratio of the variance that fresh negatives give it; `ess` is that trial's, a
    ratio, None where no weights are valid. `possible` is the most that lag could make of
    lock-step's speed, and `gain` what it was measured to make of it, both ratios, None until they
    are known. `settled`: it will look no further.
    """

    treatment: str
    bias: dict[str, float]
    ess: float | None
    possible: float | None
    gain: float | None
    settled: bool


class StepReport(NamedTuple):
    """The learner's account of one step.

    `parts` holds the mean of each part of the objective before its weight; `ess` are ratios in (0,
    1] by group; `seconds` are by stage; `energy_moments` are of the batches; `usage` is by rank, of
    the step before; `lag_choice` is there where the run chooses its lag. `rate_factor` is what
    rollbacks have multiplied the learning rate by. `figures` are those of a probe
    (`pipeline.training.probe`), every few steps, and of a graph that changes.
    """

    version: int
    loss: float
    parts: dict[str, float]
    gradient_norm: float
    learning_rate: float
    negatives: int
    lags: tuple[int, ...]
    ess: tuple[float, ...]
    lag_bound: int
    skipped: bool
    seconds: dict[str, float]
    energy_moments: tuple[EnergyMoments, ...]
    usage: tuple[Usage, ...]
    lag_choice: LagChoice | None = None
    rate_factor: float = 1.0
    figures: Mapping[str, float] = MappingProxyType({})


class Flow(NamedTuple):
    """The runner's account of what happened around one step.

    So many rounds are `in_flight`, finished batches are `waiting`, and `pools` are there. `dropped`
    counts batches by reason and `restarts` actors by role, both since the step before. So many
    pools moved to another node (`handovers`). `server_leaves` says that a node of the parameter
    server is about to leave. `seconds` were waited, by stage. The step ended so many seconds `ago`.
    So many checkpoints were found to be `damaged` since the step before.
    """

    in_flight: int
    waiting: int
    pools: int
    dropped: dict[str, int]
    restarts: dict[str, int]
    handovers: int
    server_leaves: bool
    seconds: dict[str, float]
    ago: float = 0.0
    damaged: int = 0


class Verdict(NamedTuple):
    """A finding about a run: the `cause` that is at work, and in `words` what was seen, with its
    numbers, and what would be right. `since` is the step from which on it was seen, `until` the one
    where it no longer was; None while it is. `well`: nothing is to be done about it.
    """

    cause: str
    words: str
    since: int = 0
    until: int | None = None
    well: bool = False


class Part(NamedTuple):
    """One file of a checkpoint as the manifest records it."""

    name: str
    bytes: int
    sha256: str


class Progress(NamedTuple):
    """A long piece of work is `done` in part: so many of its `total` units."""

    stage: str
    done: int
    total: int


Figures = dict[str, Any]
