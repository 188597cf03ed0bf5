"""Ranks of the parameter server: processes that each work on a share of a step's rows, and take one
step together.

A rank's loss is a mean over its own rows. With as many positives on every rank, and the weights of
its negatives times `Ranks.share`, the mean of the ranks' gradients is the gradient of the mean over
all rows:

    1/R sum_r (share_r / M_r) sum_j w_rj grad E(x_rj) = (1 / sum_r M_r) sum_rj w_rj grad E(x_rj),
    share_r = R M_r / sum_r M_r

How the model lies on the ranks is one of three: `Alone`, which is what one rank does and knows
nothing of torch.distributed; `Replicated`, the model whole on each, whose gradients are summed in
one call a step; `Sharded`, FSDP2 (`fully_shard`; Zhao et al. 2023), where parameters, their average
and the optimizer's moments are split among the ranks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.common.errors import ArgumentError
from pipeline.common.types import Rows
from pipeline.energies.base import Energy
from pipeline.energies.weights import unflatten_
from pipeline.training.exchange import MOST, Exchange

Thing = TypeVar("Thing")
Pass = Callable[[], Tensor]
"""A forward pass: the loss of a piece of the step, [], with a graph."""


def free_address(host: str) -> str:
    """An address at which ranks may meet: `tcp://host:port`, `host` being this machine as the
    others know it, with a port that is free.
    """
    with socket.socket() as found:
        found.bind(("", 0))
        return f"tcp://{host}:{found.getsockname()[1]}"


class Ranks:
    """This process among `size` of them, the one numbered `rank`. Every method is called by all
    ranks, in the same order.
    """

    def __init__(self, rank: int, size: int, device: str, exchange: Exchange | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._exchange = exchange

    @classmethod
    def alone(cls) -> Ranks:
        return cls(0, 1, "cpu")

    @classmethod
    def join(cls, address: str, rank: int, size: int, device: str, timeout: float) -> Ranks:
        """Meets the other ranks at `address` (see `free_address`; rank 0 is there), by gloo, or
        nccl for device cuda.

        What waits for a rank that died raises torch's errors (`RuntimeError`) at once, by its
        closed connection, and for one that hangs after `timeout` seconds; nccl, whose calls do not
        block, ends the process instead. Where a machine's name leads to its loopback interface,
        GLOO_SOCKET_IFNAME names the one to use.
        """
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(
            backend,
            init_method=address,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        few = backend == "gloo" and size <= MOST
        return cls(rank, size, device, Exchange(rank, size, address, timeout) if few else None)

    def leave(self) -> None:
        """Ends the group, also one that lost a rank; the process may then join another. Alone,
        there is none.
        """
        if self._exchange is not None:
            self._exchange.close()
        if self.size > 1:
            dist.destroy_process_group()

    def gather(self, thing: Thing) -> list[Thing]:
        """Every rank's, in their order."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def sums(self, *numbers: float) -> list[float]:
        """The sum over ranks of each of the `numbers`."""
        if self.size == 1:
            return list(numbers)
        return self.total(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks of the `values` [N], the same bits on each; they may be
        overwritten.
        """
        if self._exchange is None:
            dist.all_reduce(values)
            return values
        first, *others = map(torch.from_numpy, self._exchange.all(values.numpy()))
        total = first + others[0]
        for other in others[1:]:
            total += other
        return total

    def share(self, rows: int) -> float:
        """R M_r / sum M for this rank's M_r `rows`: what its mean counts in a mean over ranks."""
        (total,) = self.sums(rows)
        return self.size * rows / total if total else 1.0


ALONE = Ranks.alone()


def share_of(pieces: Sequence[Rows], rank: int, size: int) -> Rows:
    """The share of rank `rank` of `size` in rows dealt anew, those of all `pieces` end to end."""
    total = sum(len(rows.position) for rows in pieces)
    own = slice(total * rank // size, total * (rank + 1) // size)
    return joined(pieces).map(lambda field: field[own])


def joined(pieces: Sequence[Rows]) -> Rows:
    """All `pieces` end to end."""
    if len(pieces) == 1:
        return pieces[0]
    fields = [None if some[0] is None else torch.cat(some) for some in zip(*pieces, strict=True)]
    return Rows(*fields)


class Alone:
    """A model whole on this rank, and no other rank."""

    # whether each rank holds a part of the parameters; the last pass must then be one of positives
    # alone
    split = False

    def __init__(self, energy: Energy) -> None:
        self._energy = energy

    def backward(self, passes: Iterable[Pass]) -> list[Tensor]:
        """Adds the gradient of the sum of the losses to the parameters'; returns the losses of
        this rank.
        """
        return [_backward(work) for work in passes]

    def reduce(
        self,
        parameters: Sequence[nn.Parameter],  # noqa: ARG002
        figures: Sequence[float],
    ) -> list[float]:
        """Makes this rank's gradient of the `parameters` the mean over ranks, and returns the sums
        of the `figures` over ranks. To be called when all passes of a step are done.
        """
        return list(figures)

    def whole(self) -> AbstractContextManager[None]:
        """Within it the energy's parameters are whole, to be read."""
        return nullcontext()

    def fill(self, flat: np.ndarray) -> None:
        """Flat weights (see `flatten`) into the energy. Raises `ValueError` where they are not as
        many.
        """
        unflatten_(self._energy, flat)

    def flat(self, tensors: Iterable[Tensor]) -> np.ndarray:
        """The tensors of a state dict end to end, `[P]`."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu().numpy()


class Replicated(Alone):
    """A model whole on every rank. The gradient is summed once a step, as one array with the
    figures behind it: steps are short, and each call between processes has its price.
    """

    def __init__(self, energy: Energy, ranks: Ranks) -> None:
        super().__init__(energy)
        self._ranks = ranks

    @torch.no_grad()
    def reduce(self, parameters: Sequence[nn.Parameter], figures: Sequence[float]) -> list[float]:
        first = parameters[0]
        # a parameter that no pass touched on any rank keeps no gradient: no decay moves it
        touched = [0.0 if parameter.grad is None else 1.0 for parameter in parameters]
        pieces = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        numbers = torch.tensor([*touched, *figures], dtype=first.dtype, device=first.device)
        both = torch.cat([*(piece.reshape(-1) for piece in pieces), numbers])
        total = self._ranks.total(both)
        gradient, counts = (
            total[: -len(numbers)] / self._ranks.size,
            total[-len(numbers) :].tolist(),
        )
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, piece, values, count in zip(
            parameters, pieces, gradient.split(sizes), counts, strict=False
        ):
            parameter.grad = piece.copy_(values.view_as(piece)) if count else None
        return counts[len(parameters) :]


class Sharded(Alone):
    """A model split among the ranks, each parameter by rows (its first dimension), each layer
    gathered and reduced as one.

    For a step's gradient every layer is gathered first, and given back with the last pass: energies
    read parameters in other ways than by calling layers, and ranks may differ in how many passes
    they make. In the last pass gradients are reduced while it goes, layer by layer, so that it must
    call the energy as often on every rank: it is one of positives alone. A device so has room for
    the whole parameters and their gradient, and a share of all else: moments and average. Raises
    `ArgumentError` where a parameter is a single number, which cannot be split.
    """

    split = True

    def __init__(self, energy: Energy, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__(energy)
        self._ranks = ranks
        numbers = [name for name, parameter in energy.named_parameters() if parameter.ndim == 0]
        if numbers:
            remedy = (
                "parameters that are one number, without a dimension, cannot be split:"
                f" {', '.join(numbers)}; use none"
            )
            raise ArgumentError("sharding", "fsdp", remedy)
        for parameter in energy.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 knows no channels_last
        mesh = init_device_mesh(torch.device(ranks.device).type, (ranks.size,))
        self._layers: list[Any] = [
            fully_shard(layer, mesh=mesh, reshard_after_forward=False)
            for layer in (*_layers(energy), energy)
        ]

    def backward(self, passes: Iterable[Pass]) -> list[Tensor]:
        losses = []
        self._gather()
        for work, last in _until_last(passes):
            self._layers[-1].set_requires_gradient_sync(last)
            self._layers[-1].set_reshard_after_backward(last)
            losses.append(_backward(work))
        return losses

    def reduce(
        self,
        parameters: Sequence[nn.Parameter],  # noqa: ARG002
        figures: Sequence[float],
    ) -> list[float]:
        """The gradient is reduced by then, in the last pass."""
        return self._ranks.sums(*figures)

    @contextmanager
    def whole(self) -> Iterator[None]:
        self._gather()
        yield
        for layer in self._layers:
            layer.reshard()

    def _gather(self) -> None:
        for layer in self._layers:
            layer.unshard()

    @torch.no_grad()
    def fill(self, flat: np.ndarray) -> None:
        """Flat weights into the energy, each rank its share. Raises `ValueError` where the weights
        are not as many.
        """
        state = self._energy.state_dict()
        sizes = [tensor.numel() for tensor in state.values()]
        if flat.size != sum(sizes):
            raise ValueError(f"weights of {flat.size} numbers do not fit an energy of {sum(sizes)}")
        for tensor, piece in zip(state.values(), torch.from_numpy(flat).split(sizes), strict=True):
            tensor.copy_(split_as(piece.view(tensor.shape).to(tensor.device), tensor))

    def flat(self, tensors: Iterable[Tensor]) -> np.ndarray:
        """One after the other, so that no device holds them all."""
        return torch.cat([whole(tensor).reshape(-1).cpu() for tensor in tensors]).numpy()


def lay_out(energy: Energy, ranks: Ranks, sharding: str) -> Alone:
    """`energy` on the ranks; equal weights on every rank are given.

    With fsdp the parameters are others afterwards. Raises `ArgumentError` where they cannot be
    split.
    """
    if ranks.size == 1:
        return Alone(energy)
    return Sharded(energy, ranks) if sharding == "fsdp" else Replicated(energy, ranks)


def whole(value: Any) -> Any:
    """A tensor of the model, gathered where it is split among ranks; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def stored(value: Any) -> Any:
    """A value as `whole` has it, one that was split in the memory of the host."""
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def split_as(value: Any, like: Any) -> Any:
    """This rank's part of the whole tensor `value`, split as `like` is; itself where `like` is not,
    or is of another shape.
    """
    if (
        not hasattr(like, "full_tensor")
        or not isinstance(value, Tensor)
        or value.shape != like.shape
    ):
        return value
    split: Any = torch.empty_like(like, requires_grad=False)
    rank, pieces = like.device_mesh.get_local_rank(), value.chunk(like.device_mesh.size())
    if rank < len(pieces):
        split.to_local().copy_(pieces[rank])
    return split


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state dict, the same however the model lies on its ranks."""
    state = optimizer.state_dict()
    moments = {
        n: {key: stored(value) for key, value in values.items()}
        for n, values in state["state"].items()
    }
    return {**state, "state": moments}


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes up the moments of an `optimizer_state`; settings stay this optimizer's."""
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    moments = {
        n: {key: split_as(value, learned[n]) for key, value in values.items()}
        for n, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)


def _layers(energy: Energy) -> list[nn.Module]:
    """The energy's modules with parameters of their own, inner ones first, but for containers,
    which are never called. None where some parameters are shared by several modules, which are to
    be split as one.
    """
    if len(list(energy.named_parameters(remove_duplicate=False))) != len(list(energy.parameters())):
        return []
    owners = [
        module
        for module in energy.modules()
        if module is not energy and list(module.parameters(recurse=False))
    ]
    return [
        module
        for module in reversed(owners)
        if not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList)
    ]


def _backward(work: Pass) -> Tensor:
    loss = work()
    if loss.requires_grad:  # else its gradient is there already
        loss.backward()
    return loss.detach()


def _until_last(passes: Iterable[Pass]) -> Iterator[tuple[Pass, bool]]:
    """Each of them, and whether it is the last; the next one is made before one is worked on."""
    waiting: Pass | None = None
    for work in passes:
        if waiting is not None:
            yield waiting, False
        waiting = work
    if waiting is not None:
        yield waiting, True
