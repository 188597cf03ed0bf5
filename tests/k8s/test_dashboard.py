"""The dashboard is what the code makes, and speaks of the metrics that there are."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

pytest.importorskip("promql_parser", reason="make k8s-check installs what this needs")
from k8s import expressions, panels
from k8s.dashboard import PATH
from k8s.dashboard import dashboard as built
from pipeline.runs.metrics import RunMetrics
from tests.unit.test_metrics import FLOW, ROUND, STEP

pytestmark = pytest.mark.k8s


@pytest.fixture
def parts() -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Dashboard, rules and pages, to be broken at will."""
    return copy.deepcopy((expressions.dashboard(), expressions.rules(), expressions.pages()))


def test_the_file_is_what_the_code_makes() -> None:
    assert PATH.read_text() == built() == built(), "python -m k8s.dashboard writes it anew"


def test_code_dashboard_alerts_and_pages_know_the_same_metrics(parts: Any) -> None:
    assert expressions.problems(*parts) == []


def test_a_scrape_has_the_names_that_are_counted_on() -> None:
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    metrics["ebm_run_info"].labels("name", "energy", "kernel", "objective").set(1)
    metrics["ebm_recorder_failures"].labels("series")
    metrics["ebm_lag_treatment"].labels("none")
    metrics["ebm_verdict"].labels("learning_rate")
    metrics["ebm_log_likelihood_nats"].labels("estimate")
    assert {
        sample.name for family in metrics.registry.collect() for sample in family.samples
    } == set(expressions.served())


def test_a_misspelt_metric_in_a_panel_is_found(parts: Any) -> None:
    panel = next(panel for panel in parts[0]["panels"] if panel["title"] == "Objective")
    panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace("ebm_loss", "ebm_los")
    assert expressions.problems(*parts) == [
        "panel 'Objective': no metric is called ebm_los",
        "ebm_loss: in no panel",
    ]


def test_a_counter_without_its_ending_is_found(parts: Any) -> None:
    panel = next(panel for panel in parts[0]["panels"] if panel["title"] == "Steps")
    panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace("_total", "")
    assert "panel 'Steps': no metric is called ebm_steps" in expressions.problems(*parts)


def test_a_misspelt_metric_in_a_variable_is_found(parts: Any) -> None:
    variable = next(
        variable for variable in parts[0]["templating"]["list"] if variable["name"] == "run"
    )
    variable["query"] = "label_values(ebm_run_inf, run)"
    assert expressions.problems(*parts) == ["variable 'run': no metric is called ebm_run_inf"]


def test_a_misspelt_metric_in_a_rule_is_found(parts: Any) -> None:
    rule = parts[1]["groups"][0]["rules"][0]
    rule["expr"] = rule["expr"].replace("ebm_steps_total", "ebm_step_total")
    assert expressions.problems(*parts) == [
        f"alert {rule['alert']}: no metric is called ebm_step_total"
    ]


def test_a_misspelt_metric_in_a_page_is_found(parts: Any) -> None:
    parts[2]["docs/architecture.md"] += "see `ebm_reseeded_chain_total`"
    assert expressions.problems(*parts) == [
        "docs/architecture.md: no metric is called ebm_reseeded_chain_total"
    ]


def test_what_is_no_promql_is_found(parts: Any) -> None:
    parts[1]["groups"][0]["rules"][0]["expr"] += " and"
    (problem,) = expressions.problems(*parts)
    assert problem.startswith("alert EbmNoSteps: no PromQL")


def test_a_metric_that_no_panel_shows_is_found(parts: Any) -> None:
    parts[0]["panels"] = [
        panel for panel in parts[0]["panels"] if panel["title"] != "Learning rate"
    ]
    assert expressions.problems(*parts) == ["ebm_learning_rate: in no panel"]


def test_every_panel_says_what_it_shows() -> None:
    shown = expressions.panels(expressions.dashboard())
    for panel in shown:
        title = panel["title"]
        assert re.fullmatch(r"[A-Z].*\.", panel["description"]), title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert all(query["legendFormat"] for query in panel["targets"]), title
        assert all('run="$run"' in query["expr"] for query in panel["targets"]), title
    assert len({(panel["title"], panel["type"]) for panel in shown}) == len(shown)


def test_rates_are_over_the_interval_that_grafana_knows() -> None:
    text = json.dumps([query.promql for query in expressions.of_dashboard(expressions.dashboard())])
    assert set(re.findall(r"\[([^\]\[]*)\]", text[1:-1])) == {"$__rate_interval"}


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in expressions.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    lowest = max(y for _, y in taken)
    assert taken == {(x, y) for x in range(24) for y in range(lowest + 1)}


def test_limits_that_are_drawn_are_those_of_the_alerts() -> None:
    rules = {
        rule["alert"]: " ".join(rule["expr"].split())
        for group in expressions.rules()["groups"]
        for rule in group["rules"]
    }
    assert f" < {panels.LEAST_ACCEPTANCE} " in rules["EbmAcceptanceCollapsed"]
    assert f" > {panels.MOST_R_HAT} " in rules["EbmRHatHigh"]
    assert f" > {panels.MOST_GAP_NATS} " in rules["EbmEnergyGapRunningAway"]
    assert f" > {panels.MOST_CHECKPOINT_AGE_SECONDS} " in rules["EbmCheckpointTooOld"]
