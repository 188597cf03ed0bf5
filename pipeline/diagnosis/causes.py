"""The causes that a run's looks speak for, each with what was seen and what would be right."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pipeline.config.run import RunConfig
from pipeline.diagnosis.evidence import Look

EARLY = 100
"""Steps in which chains are on their way from noise, and nearly anything is well."""
STEADY = 60
"""Steps from which on chains that are below the data are a sign."""
STILL = 0.015
"""Of their standard deviation, what energies change by at least between two looks, while a model
learns."""
FAR_APART = 8.0
"""Standard errors of its mean energy that a pool may be from the others: more than chance allows,
since chains that hardly move keep what they differ by for long."""


class Facts(NamedTuple):
    """The facts of a run that do not change: its configuration, the rows' standard deviation (NaN
    where there are none), whether it began at step 0 with weights of its own, and whether its
    held-out rows were chosen to be unlike the training rows (`DataSet.held_out_apart`).
    """

    config: RunConfig
    row_spread: float = math.nan
    from_scratch: bool = False
    held_out_apart: bool = False

    @property
    def persistent(self) -> bool:
        """True where chains go on from round to round, and are meant to be draws of the model."""
        contrastive = self.config.contrastive
        return contrastive is not None and contrastive.start == "persistent"


class Rule(NamedTuple):
    """A `cause`; what tells of it at the last of some looks, in words, or None; and how many looks
    in a row it must have been told of.
    """

    cause: str
    seen: Callable[[Sequence[Look], Facts], str | None]
    looks: int


def not_finite(looks: Sequence[Look], facts: Facts) -> str | None:  # noqa: ARG001
    look = looks[-1]
    if look.skipped > 0.05:
        return (
            f"the loss or its gradient was not finite in {look.skipped:.0%} of steps, which were"
            " skipped: look at the data and at the energy for what is not, or lower"
            " optimizer.learning_rate"
        )
    if look.reseeded > 0.02:
        return (
            f"{look.reseeded:.1%} of the chains were lost in a round, at energies that are not"
            " finite: look at the energy far from the data, or lower kernel.step_size"
        )
    return None


def bad_pool(looks: Sequence[Look], facts: Facts) -> str | None:  # noqa: ARG001
    """One pool of several is unlike the others: its chains move less, are lost, or have energies
    that are not theirs.
    """
    pools = looks[-1].pools
    if len(pools) < 2:
        return None
    for pool, own in pools.items():
        others = [each for number, each in pools.items() if number != pool]
        moves = statistics.median(each.distance for each in others)
        if own.distance < 0.1 * moves:
            return (
                f"the chains of pool {pool} move {own.distance:.2g} in a round, those of the other"
                f" pools {moves:.2g}: look at the process that hosts it, or begin it anew"
            )
        lost = statistics.median(each.reseeded for each in others)
        if own.reseeded > 0.02 and own.reseeded > 10 * lost:
            return (
                f"pool {pool} lost {own.reseeded:.1%} of its chains in a round to energies that are"
                f" not finite, the other pools {lost:.1%}: look at the process that hosts it"
            )
    apart = {pool: own.level / own.noise for pool, own in pools.items() if own.noise > 0}
    worst = max(apart, key=lambda pool: abs(apart[pool]), default=None)
    if worst is None or abs(apart[worst]) < FAR_APART:
        return None
    # of two, the middle is between them: the one that is further from the data is odd
    if len(pools) == 2 and looks[-1].gap < 0:
        worst = min(apart, key=lambda pool: apart[pool])
    elif len(pools) == 2:
        worst = max(apart, key=lambda pool: apart[pool])
    return (
        f"the chains of pool {worst} have energies {abs(pools[worst].level):.3g} nats from the"
        f" middle of the pools, {abs(apart[worst]):.0f} standard errors: they do not sample what"
        " the other pools do; look at the process that hosts it, or begin it anew"
    )


def step_size(looks: Sequence[Look], facts: Facts) -> str | None:
    look, kernel = looks[-1], facts.config.kernel
    if not look.acceptance < 0.08 or look.restarted > 0.2:
        return None
    key = "kernel.inner.step_size" if kernel.ladder else "kernel.step_size"
    now = getattr(kernel.within, "step_size", None)
    if now is None:
        return (
            f"{look.acceptance:.1%} of the proposals are accepted: chains stand still; choose"
            " another proposal, or another kernel"
        )
    adapt = key.replace("step_size", "target_acceptance")
    return (
        f"{look.acceptance:.1%} of the proposals are accepted: {key}={now:g} is too large; try"
        f" {now / 10:g}, or let it adapt ({adapt}=0.6)"
    )


def chains_stand(looks: Sequence[Look], facts: Facts) -> str | None:
    look, kernel = looks[-1], facts.config.kernel
    size = getattr(kernel.within, "step_size", None)
    moved = look.distance / facts.row_spread
    if size is None or not (look.memory > 0.97 and moved < 0.1 and look.acceptance > 0.3):
        return None
    key = "kernel.inner.step_size" if kernel.ladder else "kernel.step_size"
    return (
        f"chains move {moved:.2g} of the data's standard deviation in a round, and the order of"
        f" their energies stays ({look.memory:.2f}): {key}={size:g} is too small; try"
        f" {10 * size:g}, or let it adapt ({key.replace('step_size', 'target_acceptance')}=0.6)"
    )


def restarts(looks: Sequence[Look], facts: Facts) -> str | None:
    look, config = looks[-1], facts.config
    above = look.gap / look.spread if look.spread > 0 else math.nan
    if look.restarted < 0.15 or not facts.persistent or not above > 0.5:
        return None
    return (
        f"{look.restarted:.0%} of the chains begin anew each round and are {above:.1f} standard"
        f" deviations of their energies above the data: lower chains.restart"
        f" ({config.chains.restart:g}), or raise chains.burn_in or kernel.transitions"
    )


def ladder(looks: Sequence[Look], facts: Facts) -> str | None:
    look = looks[-1]
    if not look.swaps or not min(look.swaps) < 0.02:
        return None
    pair = look.swaps.index(min(look.swaps))
    rungs = getattr(facts.config.kernel, "rungs", len(look.swaps) + 1)
    return (
        f"rungs {pair} and {pair + 1} of the ladder swap with probability {min(look.swaps):.2g}:"
        f" they are too far apart; try kernel.rungs={2 * rungs}"
    )


def lag(looks: Sequence[Look], facts: Facts) -> str | None:
    look, config = looks[-1], facts.config
    if not look.lag > 0:
        return None
    if look.ess < 0.2:
        return (
            f"negatives are {look.lag:.0f} steps old, and their weights leave an ESS of"
            f" {look.ess:.0%}: lower trainer.lag ({config.trainer.lag}) or optimizer.learning_rate"
        )
    if _behind(looks, facts) and _turnover(looks) > 0.25:
        return (
            f"negatives are {look.lag:.0f} steps old, and a model of {look.lag:.0f} steps ago is"
            f" another one: lower trainer.lag ({config.trainer.lag}) or optimizer.learning_rate"
        )
    return None


def chains_short(looks: Sequence[Look], facts: Facts) -> str | None:
    """Chains that remember where a round began, and are far from rest."""
    look, config = looks[-1], facts.config
    if look.step <= EARLY or not facts.persistent or not look.memory > 0.95:
        return None
    above = look.gap / look.spread if look.spread > 0 else math.nan
    if not (look.shift > 2 or above > 2):
        return None
    k = config.kernel.transitions
    return (
        f"k = {k} is too short: after a round the order of the chains' energies is still that of"
        f" before ({look.memory:.2f}), {look.shift:.1f} standard deviations from rest; try"
        f" kernel.transitions={_longer(k, look.memory)}, or a larger step size"
    )


def _longer(k: int, memory: float) -> int:
    """The transitions after which half of the memory is left, at most 20 times as many."""
    times = math.log(0.5) / math.log(min(max(memory, 0.01), 0.999))
    return k * min(max(2, math.ceil(times)), 20)


def learning_rate(looks: Sequence[Look], facts: Facts) -> str | None:
    look = looks[-1]
    rate = f"optimizer.learning_rate={facts.config.optimizer.learning_rate:g} is too high"
    remedy = f"{rate}; try {facts.config.optimizer.learning_rate / 10:g}"
    below = -_middle(one.gap / one.spread for one in looks[-3:] if one.spread > 0)
    if look.step > STEADY and below > 0.4:
        return (
            f"the data lie {below:.1f} standard deviations of the chains' energies above the"
            f" chains: the weights overshoot, {remedy}"
        )
    if not facts.persistent or look.step <= EARLY:
        return None
    if _behind(looks, facts) and _turnover(looks) > 0.25:
        unlike = _middle(_figure(looks[-3:], "energy_distance"))
        return (
            f"the energies are others every {look.step - looks[-2].step} steps"
            f" ({_turnover(looks):.1f} of their standard deviation), and chains are as unlike the"
            f" data as before (energy distance {unlike:.3f}): {remedy}"
        )
    if _lost(looks):
        return (
            f"the energies go to and fro ({_turnover(looks):.2f} of their standard deviation every"
            f" {look.step - looks[-2].step} steps), and the pseudo-log-likelihood stays where it"
            f" began ({look.sofar.best:.2f}): {remedy}"
        )
    return None


def _behind(looks: Sequence[Look], facts: Facts) -> bool:
    """True where chains have long been unlike the data, and do not become like them."""
    if not facts.persistent or looks[-1].step <= EARLY:
        return False
    distances = list(_figure(looks, "energy_distance"))
    if len(distances) < 6:
        return False
    now = _middle(distances[-3:])
    return now > 0.02 and now > 0.7 * _middle(distances[-8:-4] or distances[:2])


def _lost(looks: Sequence[Look]) -> bool:
    """True of a model over levels that has learned nothing to speak of, and yet moves."""
    sofar = looks[-1].sofar
    if looks[-1].step < 2 * EARLY or len(looks) < 8 or math.isnan(sofar.began):
        return False
    gained = sofar.best - sofar.began
    swings = _middle(_figure(looks[-6:], "persistence")) < -0.2
    return gained < 0.03 * abs(sofar.began) and _turnover(looks) > 0.2 and swings


def no_learning(looks: Sequence[Look], facts: Facts) -> str | None:
    """Weights that hardly move from where they began."""
    look = looks[-1]
    begun = max(EARLY, facts.config.optimizer.warmup)
    if not facts.from_scratch or look.step < begun or math.isnan(look.sofar.turnover):
        return None
    if look.sofar.turnover < STILL:
        seen = (
            f"the energies have changed by at most {look.sofar.turnover:.2g} of their standard"
            f" deviation in {look.step - looks[-2].step} steps"
        )
    elif look.spread < 0.05:  # of weights that began at 0, any change is large
        seen = f"the chains' energies differ by {look.spread:.2g} nats, as under no model at all"
    else:
        return None
    rate = facts.config.optimizer.learning_rate
    return (
        f"{seen}: nothing is learned; optimizer.learning_rate={rate:g} is too low, try"
        f" {10 * rate:g}, or weight decay too high"
    )


def over_fits(looks: Sequence[Look], facts: Facts) -> str | None:
    if facts.held_out_apart:  # then any model tells them from training rows
        return None
    figures = looks[-1].figures
    apart = figures.get("told_apart", math.nan)
    if not apart > 0.65:
        return None
    gap = figures["held_out"] - figures["training"]
    return (
        f"over-fits: held-out rows lie {gap:.3g} nats above training rows, and are told from them"
        f" with a chance of {apart:.0%}: give more rows, a smaller energy or more weight decay, or"
        " end earlier (trainer.patience)"
    )


def _figure(looks: Iterable[Look], name: str) -> Iterable[float]:
    values = (look.figures.get(name, math.nan) for look in looks)
    return (value for value in values if math.isfinite(value))


def _turnover(looks: Sequence[Look]) -> float:
    return _middle(_figure(looks[-5:], "turnover"))


def _middle(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan


RULES = (
    Rule("pool", bad_pool, 2),
    Rule("not_finite", not_finite, 1),
    Rule("step_size", step_size, 2),
    Rule("chains_stand", chains_stand, 2),
    Rule("chains_short", restarts, 3),
    Rule("ladder", ladder, 3),
    Rule("lag", lag, 3),
    Rule("chains_short", chains_short, 3),
    Rule("learning_rate", learning_rate, 3),
    Rule("no_learning", no_learning, 1),
)
"""Of those that are told of at one look, the first counts: it explains the others."""
APART = (Rule("over_fits", over_fits, 2),)
"""Causes that others do not explain."""
