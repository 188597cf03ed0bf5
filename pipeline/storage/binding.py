"""The settings that a run has in common with the checkpoint it resumes from: one table of what may
change and what may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Content = dict[str, Any]
"""What binds of the data themselves: counts and shapes of rows, and a digest of some of them."""


class Rule(NamedTuple):
    """A setting `key`, or all of the section that it names, and whether it must be as it was. The
    rule of the longest key decides.
    """

    key: str
    binds: bool
    why: str


RULES = (
    Rule("seed", True, "every random stream is drawn from it"),
    Rule("energy", True, "the weights are this energy's"),
    Rule("kernel.name", True, "chains keep what this kernel has adapted"),
    Rule("kernel.inner.name", True, "chains keep what this kernel has adapted"),
    Rule("kernel.rungs", True, "each rung has chains of its own"),
    Rule("kernel", False, "step size, transitions and adaptation hold from the next round on"),
    Rule("objective.name", True, "it decides where chains begin, and has random streams"),
    Rule("objective.weights", True, "each term has random streams"),
    Rule("objective", False, "penalties and the like hold from the next step on"),
    Rule("data", True, "the place in the stream of rows is that of these rows"),
    Rule("data.path", False, "data may be moved: their content binds"),
    Rule("data.held_out_path", False, "data may be moved: their content binds"),
    Rule("data.weights_path", False, "data may be moved: their content binds"),
    Rule("data.contacts", False, "a model is held against them after the last step"),
    Rule("data.contact_distance", False, "a model is held against them after the last step"),
    Rule("optimizer.name", True, "its moments are kept"),
    Rule("optimizer", False, "rates, schedule and decays hold from the next step on"),
    Rule("chains.pools", False, "chains are dealt out anew to the pools there are"),
    Rule("chains.per_pool", False, "chains are dealt out anew to the pools there are"),
    Rule("chains.per_context", True, "chains are kept by context"),
    Rule("chains.kept_contexts", True, "it decides whether chains are kept by row"),
    Rule("chains", False, "restarts, burn-in and bounds on pools hold from the next round on"),
    Rule("trainer", False, "steps, batches and lag hold from the next step on"),
    Rule(
        "trainer.replicas", False, "rows in memory are dealt anew; streamed rows keep their ranks"
    ),
    Rule("device", False, "states are stored without a device; random streams begin anew"),
    Rule("cluster", False, "it says where the run is, not what is learned"),
    Rule("checkpoint", False, "it says what is kept, not what is learned"),
    Rule("metrics", False, "it says what is told, not what is learned"),
    Rule("recorders", False, "they say what is told, not what is learned"),
    Rule("evaluation", False, "it comes after the last step"),
    Rule("name", False, "a name"),
    Rule("output", False, "a run's folder may be moved"),
    Rule("resume", False, "it is read at the start alone"),
    Rule("init_from", False, "it is read at the start of a new run alone"),
    Rule("init_what", False, "it is read at the start of a new run alone"),
)
FOLLOWS = ("scale",)
"""What follows from the rows, whose digest binds."""
SECTIONS = ("energy", "data")
"""Sections that bind as a whole, of which each setting is compared by itself."""


def rule_of(key: str) -> Rule | None:
    """Returns the rule for a setting, such as data.noise; None where there is none."""
    fitting = [rule for rule in RULES if f"{key}.".startswith(f"{rule.key}.")]
    return max(fitting, key=lambda rule: len(rule.key), default=None)


def differences(
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    their_content: Content | None,
    our_content: Content | None,
) -> list[str]:
    """Returns every binding setting that differs between a checkpoint's configuration and this
    run's, both as plain values, with both values; and so for what their data hold.

    A setting that one of the two does not know of, being of another version, is no difference. Of a
    checkpoint without `their_content`, the path of the data binds in its place.
    """
    keys = [key for rule in RULES if rule.binds for key in _settings(rule.key, theirs, ours)]
    if their_content is None:
        keys.append("data.path")
    found = []
    for key in keys:
        old, new = _lookup(theirs, key), _lookup(ours, key)
        if old != new:
            found.append(f"{key}={old} there, {new} here")
    if their_content is not None and our_content is not None:
        found += [
            f"data ({name}): {their_content[name]} there, {new} here"
            for name, new in our_content.items()
            if name in their_content and name not in FOLLOWS and their_content[name] != new
        ]
    return found


def _settings(key: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yields the settings of a section that both know and that bind; else the key itself."""
    if key not in SECTIONS:
        yield key
        return
    for name in theirs[key]:
        rule = rule_of(f"{key}.{name}")
        if name in ours[key] and rule is not None and rule.binds:
            yield f"{key}.{name}"


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = (value or {}).get(part)
    return value
