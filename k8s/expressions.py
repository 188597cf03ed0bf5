"""The PromQL expressions of the dashboard and the alerts, and a check of their metrics.

These, the code and the pages must know the same metrics.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

from pipeline.runs.metric_names import METRICS

MONITORING = Path(__file__).parent / "monitoring"
ROOT = Path(__file__).parents[1]
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
COMPARISONS = ("==", "!=", ">", "<", ">=", "<=")


class Expression(NamedTuple):
    where: str
    promql: str


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "dashboard.json").read_text())


def rules() -> dict[str, Any]:
    """Return the plain rule groups, as Prometheus itself reads them."""
    return yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]


def pages() -> dict[str, str]:
    """Return the project's pages by name."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
    }


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give all panels with queries, those of collapsed rows included."""
    nested = [inner for panel in board["panels"] for inner in (panel, *panel.get("panels", ()))]
    return [panel for panel in nested if panel["type"] != "row"]


def of_dashboard(board: Mapping[str, Any]) -> list[Expression]:
    return [
        Expression(f"panel {panel['title']!r}", query["expr"])
        for panel in panels(board)
        for query in panel["targets"]
    ]


def of_variables(board: Mapping[str, Any]) -> list[Expression]:
    """Return the series that the dashboard's variables take their choices from.

    They are the SERIES in `label_values(SERIES, label)`.
    """
    queries = {
        variable["name"]: variable["query"]
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    }
    series = {
        name: re.fullmatch(r"label_values\((.*), *\w+\)", query) for name, query in queries.items()
    }
    return [
        Expression(f"variable {name!r}", found[1] if found else queries[name])
        for name, found in series.items()
    ]


def of_rules(spec: Mapping[str, Any]) -> list[Expression]:
    return [
        Expression(f"alert {rule['alert']}", rule["expr"])
        for group in spec["groups"]
        for rule in group["rules"]
    ]


def filled_in(promql: str, run: str, interval: str) -> str:
    """Return the expression as Grafana sends it, with every pool chosen."""
    return promql.replace("$__rate_interval", interval).replace("$run", run).replace("$pool", ".*")


def parsed(promql: str) -> Any:
    """Parse the expression. Raises `ValueError` where it is no PromQL."""
    return promql_parser.parse(filled_in(promql, "run", "1m"))


def names(promql: str) -> set[str]:
    """Return the names of the metrics in it."""
    found: set[str] = set()

    def note(part: Any) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.add(part.name or "(no name)")

    promql_parser.walk(parsed(promql), note)
    return found


def compared(promql: str) -> list[str]:
    """Return the parts of an alert that must return data whether it fires or not.

    These are what is compared, what is joined, or all of it.
    """
    leaves: list[str] = []

    def descend(part: Any) -> None:
        if isinstance(part, promql_parser.ParenExpr):
            descend(part.expr)
        elif isinstance(part, promql_parser.BinaryExpr) and str(part.op) in (
            *COMPARISONS,
            "and",
            "or",
            "unless",
        ):
            descend(part.lhs)
            descend(part.rhs)
        elif not isinstance(part, promql_parser.NumberLiteral):
            leaves.append(part.prettify())

    descend(parsed(promql))
    return leaves


def served() -> dict[str, str]:
    """Return the name of each series in a scrape, with the metric in the code that it is of."""
    return {metric.name + part: metric.name for metric in METRICS for part in PARTS[metric.kind]}


def problems(
    board: Mapping[str, Any], spec: Mapping[str, Any], texts: Mapping[str, str]
) -> list[str]:
    """Return the metrics that code, dashboard, alerts and pages do not have in common."""
    known = served()
    found: list[str] = []
    shown: set[str] = set()
    for expression in (*of_dashboard(board), *of_variables(board), *of_rules(spec)):
        try:
            inside = names(expression.promql)
        except ValueError as error:
            found.append(f"{expression.where}: no PromQL: {error}")
            continue
        found += unknown(expression.where, inside, known)
        if expression.where.startswith("panel"):
            shown |= {known[name] for name in inside & known.keys()}
    for page, text in texts.items():
        # pages may call a histogram by its family's name
        found += unknown(page, set(re.findall(r"\bebm_[a-z0-9_]+", text)), {*known, *histograms()})
    return found + [f"{metric.name}: in no panel" for metric in METRICS if metric.name not in shown]


def histograms() -> set[str]:
    return {metric.name for metric in METRICS if metric.kind == "histogram"}


def unknown(where: str, inside: Iterable[str], known: Iterable[str]) -> list[str]:
    return [f"{where}: no metric is called {name}" for name in sorted(set(inside) - set(known))]
