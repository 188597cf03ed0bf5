"""The diagnosis of a run that ends, for `summary.json` and for its last lines."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.common.types import Figures, Verdict
from pipeline.diagnosis.causes import EARLY
from pipeline.diagnosis.evidence import Look
from pipeline.diagnosis.watch import Diagnosis

MEMORISED = 0.25
"""The share of samples that may be closer to a training row than 95 % of held-out rows are."""
COPIES = 0.05
"""The share of held-out rows that may be training rows too."""


def ending(made: Diagnosis, chains: int, figures: Figures) -> Figures:
    """Returns `diagnosis`: the verdicts and the last look of what was `made` of the steps of a run
    with so many `chains`, and what the figures of its evaluation show.
    """
    look = made.last
    found = [*made.verdicts, *_of_samples(figures.get("samples_likeness", {}))]
    at_work = [verdict for verdict in found if verdict.until is None]
    numbers = {} if look is None else numbers_of(look, chains)
    if not at_work and look is not None and look.step > EARLY and "memory" in numbers:
        found.append(Verdict("well", _chains_in_words(numbers, chains), look.step, well=True))
    diagnosis = {"verdicts": [verdict._asdict() for verdict in found], "figures": numbers}
    return {"diagnosis": diagnosis}


def numbers_of(look: Look, chains: int) -> dict[str, float]:
    """Returns the numbers of a look, by name, those that there are; `independent_chains` is how
    many chains of the `chains` are a new draw after a round, as their energies' order tells: (1 -
    r) / (1 + r) of them, r the memory, as in a chain whose memory fades by r each round.
    """
    numbers = {
        "energy_gap": look.gap,
        "energy_spread": look.spread,
        "acceptance": look.acceptance,
        "memory": look.memory,
        "distance_moved": look.distance,
        "gradient_norm": look.norm,
        "r_hat": look.r_hat,
        "importance_ess": look.ess,
        "lag": look.lag,
        "skipped_steps": look.skipped,
        "lost_chains": look.reseeded,
        "restarted_chains": look.restarted,
        "least_swap": min(look.swaps, default=math.nan),
        **look.figures,
    }
    if math.isfinite(look.memory):
        numbers["spreads_from_rest"] = look.shift
        memory = max(look.memory, 0.0)
        numbers["independent_chains"] = chains * (1 - memory) / (1 + memory)
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _chains_in_words(numbers: Mapping[str, float], chains: int) -> str:
    words = (
        f"chains mix: after a round about {numbers['independent_chains']:.0f} of {chains} are new"
        f" draws (the order of their energies keeps {numbers['memory']:.2f}), acceptance"
        f" {numbers.get('acceptance', 1.0):.2f}"
    )
    return words + (f", R-hat over pools {numbers['r_hat']:.2f}" if "r_hat" in numbers else "")


def _of_samples(likeness: Figures) -> list[Verdict]:
    """The verdicts on the samples that were drawn at the end, and on held-out rows."""
    found = []
    if likeness.get("memorised", 0.0) > MEMORISED:
        found.append(
            Verdict(
                "memorises",
                f"memorises: {likeness['memorised']:.0%} of the samples are closer to a training"
                " row than 95 % of the held-out rows are (0.05 is what draws of the data's law"
                " would have): give more rows, or a smaller energy",
            )
        )
    if likeness.get("held_out_copies", 0.0) > COPIES:
        found.append(
            Verdict(
                "copies",
                f"{likeness['held_out_copies']:.0%} of the held-out rows are training rows too:"
                " what is scored on them flatters; hold out rows of another source",
            )
        )
    return found


def in_words(diagnosis: Figures) -> list[str]:
    """Returns the last lines of a run on its diagnosis, one a verdict; none of a run that is too
    old to have one.
    """
    lines: list[str] = []
    for verdict in diagnosis.get("verdicts", ()):
        since, until = verdict["since"], verdict["until"]
        if verdict["well"]:
            when = ""
        elif until is None:
            when = f" (since step {since})" if since else ""
        else:
            when = f" (step {since} to {until})" if until > since else ""
        lines.append(f"  {'diagnosis' if not lines else '':<11} {verdict['words']}{when}")
    return lines
