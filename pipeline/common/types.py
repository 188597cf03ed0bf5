"""What travels between the parts: plain named tuples, apart from whatever carries them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Rows(NamedTuple):
    """Rows of data. `position` [N, *shape]; `context` [N, *context_shape] is what a conditional
    model conditions on, and `number` [N] int64 says which training rows they are; None where there
    is no context, or rows have no numbers. Tensors, or arrays on their way between processes.
    """

    position: Any
    context: Any = None
    number: Any = None

    def map(self, function: Callable[[Any], Any]) -> Rows:
        """The function's value of each field that is there."""
        return Rows(*(None if field is None else function(field) for field in self))

    def chunk(self, pieces: int) -> list[Rows]:
        """As `torch.chunk` cuts them."""
        fields = [[None] * pieces if field is None else field.chunk(pieces) for field in self]
        return [Rows(*piece) for piece in zip(*fields, strict=True)]


class Weights(NamedTuple):
    """Everything an energy needs, as one flat array: its state dict's tensors end to end, buffers
    included.
    """

    version: int
    flat: np.ndarray


class Negatives(NamedTuple):
    """One pool's round, decoded. Tensors are views of the batch's own memory: read them, never
    write.

    `position` [M, d] float32; `energy` [M] float32, nats, under the weights of `version` that
    shaped it; `age` [M] int64, transitions since the chain's start. Under contexts, `context` [M,
    c] is each chain's, and `number` [M] int64 its training row, where chains are kept by row;
    `start` [M, d'] is the row that it was sent, where the batch brings it along. Where transitions
    are replayed, `previous` [M, d] is the position before the last L of them, and `noise` [L, M, d]
    what they drew; else None.
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
    """What a process used: processor `seconds` of one round or step, all threads; bytes resident in
    memory, and allocated on its device, if that is a GPU, at the end of it.
    """

    seconds: float
    resident: int
    device: int


class EnergyMoments(NamedTuple):
    """Mean (nats) and variance (nats squared, over the count) of the energies of a batch's so many
    `chains`, under the weights that learn from it; of which pool.
    """

    pool: int
    mean: float
    variance: float
    chains: int


class RoundReport(NamedTuple):
    """What a pool says of one round beside its batch. `swaps`: mean swap probability by pair of a
    ladder's neighbours.
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


class StepReport(NamedTuple):
    """What the learner says of one step. `parts`: the mean of each part of the objective, before
    its weight; seconds by stage; `ess` as ratios in (0, 1] by group; `energy_moments` of the batches;
    `usage` by rank, of the step before.
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


class Flow(NamedTuple):
    """What the runner saw around one step: rounds in flight, finished batches waiting, pools that
    are there, what was lost, pools that moved to another node, whether a node of the parameter
    server's is about to leave, seconds waited.
    """

    in_flight: int
    waiting: int
    pools: int
    dropped: dict[str, int]
    restarts: dict[str, int]
    handovers: int
    server_leaves: bool
    seconds: dict[str, float]


class Part(NamedTuple):
    """One file of a checkpoint as the manifest records it."""

    name: str
    bytes: int
    sha256: str


class Progress(NamedTuple):
    """How far a long piece of work has come."""

    stage: str
    done: int
    total: int


Figures = dict[str, Any]
