"""The chains of `python -m pipeline.sample`: their law, where they begin, and their run."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pipeline.assembly.data import typical_sample
from pipeline.chains.sampler import ChainPlan
from pipeline.common.errors import ConfigError
from pipeline.common.rng import torch_generator
from pipeline.common.types import Progress
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.clamped import Clamped, by_pattern
from pipeline.evaluation.samples import Drawn, Way, draw_from_noise, instants
from pipeline.runs.rows import read_rows
from pipeline.runs.trained import Trained, bound

if TYPE_CHECKING:
    from pipeline.config.sample import Settings


class Aim(NamedTuple):
    """The law that is sampled: an energy of positions alone; the samples' contexts [samples,
    *context_shape], where a single run is bound to any; the log Z of the parts that "or" used; and
    the `run` where it is a single one.
    """

    energy: Energy
    context: Tensor | None = None
    log_z: list[float] | None = None
    run: Trained | None = None

    def of(self, chains: Tensor) -> Energy:
        """The law of some `chains`, by number, each under its own context."""
        if self.energy.contexts == 1 or self.context is None or self.run is None:
            return self.energy
        return bound(self.run, self.context[chains])


def starts(settings: Settings, config: RunConfig, energy: Energy, run: Trained) -> Tensor | None:
    """Returns training rows, or rows of a file, for the chains to begin at, over again where there
    are fewer; None where they begin at noise. Raises `ConfigError` where the data are not there.
    """
    if settings.start == "noise":
        return None
    if settings.start == "data":
        rows = typical_sample(run.config, run.data)
        if not len(rows):
            remedy = "the data are not there; give data.path, or use noise"
            raise ConfigError("start", "data", remedy)
    else:
        rows = read_rows("start", settings.start, settings.columns, run)
    chosen = rows[torch.arange(config.evaluation.samples) % len(rows)]
    position = energy.with_latents(energy.into_domain(chosen))
    if position.shape == chosen.shape:
        return position
    # latent units at their means: each is drawn, and a row's own stay as they are, 0 or 1
    return position.bernoulli(generator=torch_generator(settings.seed, "latents"))


def draw(
    settings: Settings,
    config: RunConfig,
    plan: ChainPlan,
    aim: Aim,
    begin_at: Tensor | None,
    rows: Tensor | None,
) -> Generator[Progress, None, Drawn]:
    """Yields progress, and returns the ends of chains that begin at the positions `begin_at`, at
    noise without; given what is not NaN of `rows`, both `[samples, *shape]`. They run on the
    settings' device, and are returned on the CPU. Rows that lack the same are drawn together, and
    those that lack nothing stay as they are.
    """
    generator = torch_generator(settings.seed, "sample", device=settings.device)
    count, transitions = config.evaluation.samples, config.evaluation.transitions
    pieces = [torch.arange(count)] if rows is None else by_pattern(rows)
    seen_at = instants(settings.order, transitions) if settings.order else ()
    ends: list[Drawn] = []
    for piece in pieces:
        law = aim.of(piece)
        if rows is not None and not bool(rows[piece[0]].isnan().any()):
            ends.append(_as_they_are(law, rows[piece], seen_at))
            continue
        law, own = law.to(settings.device), plan
        begin = None if begin_at is None else begin_at[piece].to(settings.device)
        if rows is not None:
            free = rows[piece[0]].isnan()
            law = Clamped(law, rows[piece], free).to(settings.device)
            begin = None if begin is None else law.chosen(begin)
            own = _of_components(plan, free)
        drawing = draw_from_noise(law, own, len(piece), transitions, generator, begin, seen_at)
        drawn = yield from _one_of(drawing, len(ends), len(pieces))
        law.cpu()
        ends.append(_whole(drawn, law))
    return ends[0] if len(ends) == 1 else _in_order(ends, pieces)


def _one_of(
    drawing: Generator[Progress, None, Drawn], number: int, pieces: int
) -> Generator[Progress, None, Drawn]:
    """Yields the progress of one of so many `pieces` as that of all, and returns its chains."""
    while True:
        try:
            stage, done, total = next(drawing)
        except StopIteration as stop:
            drawn: Drawn = stop.value
            return drawn
        yield Progress(stage, number * total + done, pieces * total)


def _of_components(plan: ChainPlan, free: Tensor) -> ChainPlan:
    """Returns the plan for the `free` [*shape] components alone: masses are one for each."""
    mass = plan.parameters.get("mass")
    if not isinstance(mass, tuple):
        return plan
    chosen = tuple(mass[number] for number in free.flatten().nonzero()[:, 0].tolist())
    return plan._replace(parameters=plan.parameters | {"mass": chosen})


@torch.no_grad()
def _as_they_are(law: Energy, rows: Tensor, seen_at: Sequence[int]) -> Drawn:
    """Returns rows that lack nothing, as the ends of chains that did not move."""
    energy = law(rows)
    way = None
    if seen_at:
        stays = torch.stack([rows] * len(seen_at)), torch.stack([energy] * len(seen_at))
        way = Way(seen_at, *stays)
    return Drawn(rows, energy, math.nan, None, way)


def _whole(drawn: Drawn, law: Energy) -> Drawn:
    """Returns the same on the CPU, with what was held put back."""

    def whole(position: Tensor) -> Tensor:
        return law.whole(position.cpu()) if isinstance(law, Clamped) else position.cpu()

    way = drawn.way
    if way is not None:
        way = way._replace(position=torch.stack([whole(each) for each in way.position]))
    return drawn._replace(position=whole(drawn.position), energy=drawn.energy.cpu(), way=way)


def _in_order(ends: Sequence[Drawn], pieces: Sequence[Tensor]) -> Drawn:
    """Returns chains that were drawn in pieces, by number, as one."""
    order = torch.cat(list(pieces)).argsort()
    moved = [
        (len(piece), end.acceptance)
        for piece, end in zip(pieces, ends, strict=True)
        if not math.isnan(end.acceptance)
    ]
    ways = [end.way for end in ends if end.way is not None]
    way = None
    if ways:
        way = Way(
            ways[0].transitions,
            torch.cat([each.position for each in ways], 1)[:, order],
            torch.cat([each.energy for each in ways], 1)[:, order],
        )
    return Drawn(
        torch.cat([end.position for end in ends])[order],
        torch.cat([end.energy for end in ends])[order],
        sum(count * rate for count, rate in moved) / sum(count for count, _ in moved),
        None,
        way,
    )
