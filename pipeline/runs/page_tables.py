"""The tables of a run's page: its likelihood, its diagnosis, its figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from pipeline.common.json_text import to_json
from pipeline.evaluation.curves import BOUNDS, LIKELIHOOD
from pipeline.evaluation.words import KINDS, NAMES
from pipeline.storage.rows import Row

SPEED_ROWS = 10
"""Newest rows that the speed of a run which goes on is told from."""


class Likelihood(NamedTuple):
    """A held-out figure of a `kind`, nats a row, with its bounds where they are known."""

    kind: str
    at_least: float | None
    estimate: float | None
    at_most: float | None


def likelihood_of(summary: Mapping[str, Any], rows: Sequence[Row]) -> Likelihood | None:
    """Returns the likelihood of the summary, or else the newest one in `rows`, or None."""
    for key, kind in KINDS.items():
        if key in summary:
            low, high = (summary.get(f"{key}_{side}") for side in ("at_least", "at_most"))
            estimate = None if "unreliable" in summary else summary[key]
            if key.endswith("_bound"):
                kind = "variational bound, from below, of the log-likelihood"
            return Likelihood(f"held-out {kind}", low, estimate, high)
    if rows and LIKELIHOOD.format("estimate") in rows[-1]:
        estimate, low, high = (rows[-1][LIKELIHOOD.format(bound)] for bound in BOUNDS)
        version = int(rows[-1]["ebm_log_likelihood_version"])
        return Likelihood(f"held-out log-likelihood at step {version}", low, estimate, high)
    return None


def speed_of(summary: Mapping[str, Any], rows: Sequence[Row]) -> float | None:
    """Returns steps a second, of the whole run or of the newest rows; None where neither tells."""
    if "steps_per_second" in summary:
        return float(summary["steps_per_second"])
    newest = [row for row in rows[-SPEED_ROWS:] if "time" in row]
    seconds = newest[-1]["time"] - newest[0]["time"] if newest else 0.0
    return (newest[-1]["step"] - newest[0]["step"]) / seconds if seconds > 0 else None


def likelihood_table(summary: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Returns the table of the likelihood beside what others score on the same rows, or ""."""
    found = likelihood_of(summary, rows)
    if found is None:
        return ""
    others = {NAMES[name]: value for name, value in summary.get("baselines", {}).items()}
    if "true_log_likelihood" in summary:
        others["the law itself"] = summary["true_log_likelihood"]
    columns: Sequence[str] = ("at least", "estimate", "at most")
    lines: dict[str, Sequence[float | None]] = {"this model": found[1:]}
    lines |= {name: (None, score, None) for name, score in others.items()}
    if found.at_least is None and found.at_most is None:  # the figure alone
        columns, lines = ("nats",), {name: line[1:2] for name, line in lines.items()}
    notes = [f"{found.kind}, nats a row"]
    notes += [str(summary["method"])] if "method" in summary else []
    notes += [f"unreliable: {summary['unreliable']}"] if "unreliable" in summary else []
    body = ((name, *map(nats, line)) for name, line in lines.items())
    return f"<p>{escape('; '.join(notes))}</p>{grid(('', *columns), body, 'numbers')}"


def diagnosis(found: Mapping[str, Any]) -> str:
    """Returns the verdicts of `found` as a list, and its figures as a table that opens."""
    return verdicts(found) + folded("its numbers", table(found.get("figures", {})))


def verdicts(found: Mapping[str, Any]) -> str:
    """Returns the verdicts of `found` as a list."""
    items = []
    for verdict in found["verdicts"]:
        since, until = verdict["since"], verdict["until"]
        when = "" if verdict["well"] else f", since step {since}"
        when = when if until is None else f", step {since} to {until}"
        cause, words = (escape(str(verdict[key])) for key in ("cause", "words"))
        items.append(f"<li><b>{cause}</b>{when}: {words}</li>")
    return f"<ul>{''.join(items)}</ul>"


def folded(title: str, content: str) -> str:
    """Returns HTML that opens when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def grid(head: Sequence[str], body: Iterable[Sequence[str]], kind: str = "") -> str:
    """Returns a table of texts, which are no HTML; the first of each row is its heading. `kind` is
    a class of the page's style.
    """
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    rows = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(text)}</td>' for text in others)}</tr>"
        for first, *others in body
    )
    return f'<div class="wide"><table class="{kind}"><tr>{top}</tr>{rows}</table></div>'


def table(values: Mapping[str, Any]) -> str:
    """Returns a table of names and values."""
    rows = (
        f"<tr><th>{escape(key)}</th><td>{escape(shown(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested `values`, each with its key, with dots between."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def shown(value: Any) -> str:
    """Returns `value` for a person: a number with six digits, a text as it is, else as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else to_json(value)


def nats(value: float | None) -> str:
    """Returns nats with two digits behind the point; nothing where they are not known."""
    return "" if value is None else f"{value:.2f}"
