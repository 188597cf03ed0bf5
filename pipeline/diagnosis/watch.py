"""A run's verdicts, as its steps are made."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.common.types import RoundReport, StepReport, Verdict
from pipeline.diagnosis.causes import APART, RULES, Facts, Rule
from pipeline.diagnosis.evidence import Evidence, Look

GONE = 5
"""Looks without a sign after which a cause is over."""
MEANT = {
    "learning_rate": "the learning rate is too high",
    "step_size": "the step size is too large",
    "chains_stand": "the step size is too small",
    "chains_short": "the chains are too short",
    "not_finite": "energies or gradients are not finite",
    "pool": "the chains of one pool are not like the others'",
    "lag": "the negatives are too old",
    "ladder": "the rungs are too far apart",
    "scale": "the data are far from the base law",
    "box": "the data are at the walls of the box",
}
"""The causes that a divergence may have."""


class Diagnosis:
    """Watches a run for causes of trouble. `known` are those that its data show before it starts,
    which explain what chains show later.
    """

    def __init__(self, facts: Facts, known: Sequence[Verdict] = ()) -> None:
        self._facts = facts
        self._evidence = Evidence(facts.config.chains.per_pool)
        self._known = tuple(known)
        self.verdicts = list(known)
        """In the order in which they were found."""
        self._streaks: dict[str, list[int]] = {}  # by cause, the steps at which it was seen, lately

    def observe(self, report: StepReport, rounds: Sequence[RoundReport]) -> list[Verdict]:
        """Takes in a step. Returns the verdicts that are new with it."""
        look = self._evidence.add(report, rounds)
        if look is None:
            return []
        rules = APART if self._known else (*RULES, *APART)
        seen, found = set[str](), []
        looks = list(self._evidence.looks)
        for rule in rules:
            if seen and rule in RULES:
                continue
            words = rule.seen(looks, self._facts)
            if words is not None:
                seen.add(rule.cause)
                found += self._see(rule, words, look)
        self._forget(seen, look)
        return found

    def _see(self, rule: Rule, words: str, look: Look) -> list[Verdict]:
        """Takes in that a cause was seen; returns a verdict where that makes one."""
        steps = self._streaks.setdefault(rule.cause, [])
        steps.append(look.step)
        if len(steps) < rule.looks or self._open(rule.cause) is not None:
            return []
        verdict = Verdict(rule.cause, words, since=steps[0])
        self.verdicts.append(verdict)
        return [verdict]

    def _forget(self, seen: set[str], look: Look) -> None:
        """Ends what was not seen for a while."""
        for cause, steps in list(self._streaks.items()):
            if cause in seen or look.step - steps[-1] < GONE * (look.step - self._before(look)):
                continue
            del self._streaks[cause]
            number = self._open(cause)
            if number is not None:
                self.verdicts[number] = self.verdicts[number]._replace(until=steps[-1])

    def _before(self, look: Look) -> int:
        looks = self._evidence.looks
        return looks[-2].step if len(looks) > 1 else look.step - 1

    def _open(self, cause: str) -> int | None:
        """The number of the verdict on a cause that is still at work."""
        for number, verdict in enumerate(self.verdicts):
            if verdict.cause == cause and verdict.until is None:
                return number
        return None

    def diverged(self, version: int, why: str) -> Verdict:
        """Takes in that the run diverged at `version`, and is put back or ends. Returns the
        verdict: what the data showed, else the cause that was seen lately, else the learning rate.
        """
        causes = [*(verdict.cause for verdict in self._known), *self._streaks]
        cause = next((cause for cause in causes if cause in MEANT), "learning_rate")
        verdict = Verdict(cause, f"diverged at {version}: {MEANT[cause]}; {why}", since=version)
        self.verdicts.append(verdict._replace(until=version))
        return verdict

    def begin(self, version: int, from_scratch: bool = False) -> None:
        """Says that the run goes on from `version`, maybe with weights that nothing has shaped."""
        self._facts = self._facts._replace(from_scratch=from_scratch and version == 0)
        self._evidence.reset()
        self._streaks.clear()
        self.verdicts = [
            verdict._replace(until=version)
            if verdict.until is None and verdict not in self._known
            else verdict
            for verdict in self.verdicts
        ]

    @property
    def last(self) -> Look | None:
        """The newest look."""
        return self._evidence.looks[-1] if self._evidence.looks else None
