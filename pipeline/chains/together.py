"""The pools of one process, whose chains run as one batch where that gives the same bits."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.chains.pool import Pool
from pipeline.chains.sampler import Sampler
from pipeline.common.process import used
from pipeline.common.rng import Source, Streams
from pipeline.common.types import RoundReport, Weights

WHOLE_VECTORS = 64  # rows in a multiple of this leave torch's vector loops no scalar rest
PROBED_TRANSITIONS = 2, 20  # of such, and of others
SHIFT = 0.05  # standard deviation of what a probe adds to weights, which may begin at 0


class Together:
    """Makes the rounds of `abreast` pools at a time, of `pools` that differ in their streams alone.

    One batch of all rows costs less than one for each pool. In a larger batch a matrix product may
    add up a row in another order, and a function be rounded otherwise where a vector loop has a
    rest. So a probe on the pools' own energy decides, once.
    """

    def __init__(self, pools: Sequence[Pool], abreast: int) -> None:
        self._pools = pools
        self.as_one = abreast > 1 and agree(pools[0], abreast)
        if self.as_one:
            for pool in pools[1:]:
                pool.join(pools[0])

    def advance(
        self, numbers: Sequence[int], weights: Weights
    ) -> list[tuple[pa.RecordBatch, RoundReport]]:
        """A round of each of the pools `numbers`, as `Pool.advance` makes it where no rows are
        sent. Each has an equal share of the time that all took.
        """
        pools = [self._pools[number] for number in numbers]
        if not self.as_one:
            return [pool.advance(weights) for pool in pools]
        clock, spent = time.perf_counter(), time.process_time()
        pools[0].adopt(weights)
        restarted = [pool.begin()[1] for pool in pools]
        sampler = pools[0].sampler
        sampler.position = torch.cat([pool.sampler.position for pool in pools])
        streams = Streams(tuple(pool.generator for pool in pools))
        done = sampler.advance(streams, pools[0].plan.transitions)
        positions = sampler.position.chunk(len(pools))
        for pool, position in zip(pools, positions, strict=True):
            pool.sampler.position = position
        rounds = [
            pool.finish(piece, weights.version, count)
            for pool, piece, count in zip(pools, done.chunk(len(pools)), restarted, strict=True)
        ]
        usage = used(spent, sampler.position.device)
        usage = usage._replace(seconds=usage.seconds / len(pools))
        seconds = (time.perf_counter() - clock) / len(pools)
        return [(batch, report._replace(seconds=seconds, usage=usage)) for batch, report in rounds]


@torch.no_grad()
def agree(pool: Pool, abreast: int) -> bool:
    """Returns whether the chains of `abreast` pools like this one end in the same bits in one batch
    as apart, run both ways from the base law, under weights near those that the pool has.

    They do not where the kernel takes no `Streams`, and where a pool adapts something of its own:
    one batch has one step size.
    """
    plan, uneven = pool.plan, pool.count % WHOLE_VECTORS > 0
    if not plan.kernel.streams or plan.rungs > 1 or plan.target_acceptance is not None:
        return False
    energy = copy.deepcopy(pool.energy)
    generator = torch.Generator(pool.generator.device).manual_seed(0)
    for parameter in energy.parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        parameter.add_(noise, alpha=SHIFT)

    def run(rows: Tensor, source: Source) -> tuple[Tensor, ...]:
        sampler = Sampler(energy, plan, 1, generator)
        sampler.position = rows
        done = sampler.advance(source, PROBED_TRANSITIONS[uneven])
        return (sampler.position, done.energy, done.acceptance)

    def streams() -> tuple[torch.Generator, ...]:
        return tuple(torch.Generator(generator.device).manual_seed(i) for i in range(abreast))

    start = energy.sample_base(abreast * pool.count, generator)
    try:
        together = run(start, Streams(streams()))
    except (TypeError, AttributeError):  # a law of somebody else's that knows generators alone
        return False
    apart = [
        run(rows, stream) for rows, stream in zip(start.chunk(abreast), streams(), strict=True)
    ]
    pieces = zip(together, zip(*apart, strict=True), strict=True)
    return all(torch.equal(whole, torch.cat(parts)) for whole, parts in pieces)
