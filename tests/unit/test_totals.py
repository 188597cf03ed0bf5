"""A run's sums: how busy its processes were, and what one process would have taken."""

from __future__ import annotations

import pytest

from pipeline.common.types import Usage
from pipeline.runs.totals import Totals
from pipeline.train import in_words
from tests.unit.test_metrics import FLOW, ROUND, STEP

SUMMARY = {
    "version": 4,
    "steps": 4,
    "restarts": 0,
    "evaluation": {"samples": 4},
    "output": "/runs/one",
    "checkpoint": "/runs/one/checkpoints/4",
}


def figures_of(
    usages: list[tuple[Usage, ...]], rounds: int = 2, pools: int = 2, gpu: int = 0
) -> dict[str, float | None]:
    """The figures of steps of 0.25 s, each with so many rounds of 0.5 s, on a clock of 8 s."""
    totals = Totals(apart=True)
    rounds_of = [ROUND._replace(usage=Usage(0.125, 0, gpu))] * rounds
    for usage in usages:
        step = STEP._replace(seconds={"gradient": 0.15, "update": 0.1}, usage=usage)
        totals.add(step, rounds_of, FLOW._replace(pools=pools))
    totals._began, totals._ended = 100.0, 108.0
    return totals.figures()


def test_shares_and_the_time_of_one_process() -> None:
    """The usage of a step rides on the next one: three of four are told, and stand for all."""
    used = (Usage(0.2, 0, 0),)
    found = figures_of([(Usage(0.0, 0, 0),), used, used, used])
    assert found["pools_busy_share"] == pytest.approx(4 * 2 * 0.5 / (8 * 2))
    assert found["server_busy_share"] == pytest.approx(4 * 0.25 / 8)
    assert found["one_process_seconds"] == pytest.approx(4 * (2 * 0.125 + 0.2))


def test_nothing_is_said_that_is_not_known() -> None:
    used = (Usage(0.2, 0, 0),)
    alone = figures_of([used], rounds=0, pools=0)
    assert (alone["pools_busy_share"], alone["one_process_seconds"]) == (None, pytest.approx(0.2))
    assert figures_of([used], gpu=1)["one_process_seconds"] is None
    ranks = figures_of([used, used * 2])
    assert (ranks["server_busy_share"], ranks["one_process_seconds"]) == (0.0625, None)
    inline = Totals()
    inline.add(STEP, [ROUND], FLOW)
    assert not {"pools_busy_share", "server_busy_share", "one_process_seconds"} & set(
        inline.figures()
    )


@pytest.mark.parametrize(
    ("pools", "alone", "said"),
    [
        (
            0.784,
            51.6,
            "50% of the time, pools 78%;"
            " one process on one core would have taken at most about 52 s",
        ),
        (
            None,
            51.6,
            "50% of the time; one process on one core would have taken at most about 52 s",
        ),
        (0.784, None, "50% of the time, pools 78%"),
    ],
)
def test_the_last_lines_say_it(pools: float | None, alone: float | None, said: str) -> None:
    told = Totals().figures() | SUMMARY
    busy = {"pools_busy_share": pools, "server_busy_share": 0.5, "one_process_seconds": alone}
    assert f"\n  at work     the parameter server {said}\n" in in_words(told | busy, series=False)
    assert "at work" not in in_words(told, series=False)
