"""Metrics: one table, Prometheus's rules, and what a scrape and a row show of them."""

from __future__ import annotations

import math
import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.common.types import EnergyMoments, Flow, LagChoice, RoundReport, StepReport, Usage
from pipeline.runs.metric_names import METRICS
from pipeline.runs.metrics import RunMetrics
from pipeline.runs.totals import Totals

STEP = StepReport(
    version=3,
    loss=-1.5,
    parts={"pcd.positive": 2.0, "pcd.negative": 3.5},
    gradient_norm=0.7,
    learning_rate=0.1,
    negatives=40,
    lags=(0, 2),
    ess=(1.0, 0.4),
    lag_bound=2,
    skipped=False,
    seconds={"gradient": 0.25},
    energy_moments=(EnergyMoments(0, 1.0, 2.0, 10), EnergyMoments(1, 1.5, 2.0, 10)),
    usage=(Usage(0.25, 1000, 10),),
)
ROUND = RoundReport(
    pool=1,
    incarnation=0,
    round=3,
    version=2,
    transitions=200,
    acceptance=0.6,
    step_size=0.02,
    swaps=(0.5, 0.25),
    reseeded=1,
    restarted=2,
    seconds=0.5,
    usage=Usage(0.125, 2000, 0),
)
FLOW = Flow(
    in_flight=3,
    waiting=1,
    pools=2,
    dropped={"stale": 2},
    restarts={"pool": 1},
    handovers=1,
    server_leaves=False,
    seconds={"wait_for_pools": 0.125},
)


def test_names_follow_prometheus_rules() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"ebm_[a-z0-9_]+", metric.name)
        assert not metric.name.endswith("_total"), "prometheus-client adds it to counters"
        assert metric.help
        assert metric.unit
        assert (metric.kind == "histogram") == bool(metric.buckets)
        for unit in ("seconds", "ratio", "nats", "bytes"):
            if metric.unit == unit:
                assert metric.name.endswith(f"_{unit}"), metric.name


def test_a_scrape_shows_what_was_observed() -> None:
    """As Prometheus gets it, parsed by prometheus-client's own parser."""
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    metrics.observe(STEP, [ROUND], FLOW)
    text = generate_latest(metrics.served).decode()
    values = {
        (
            sample.name,
            tuple(value for name, value in sample.labels.items() if name != "run"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels["run"] == "mine"
    }
    assert values["ebm_steps_total", ()] == 2
    assert values["ebm_negatives_total", ()] == 80
    assert values["ebm_transitions_total", ("1",)] == 400
    assert values["ebm_energy_nats", ("positives",)] == 2.0
    assert values["ebm_energy_nats", ("negatives",)] == 3.5
    assert values["ebm_acceptance_ratio", ("1",)] == 0.6
    assert values["ebm_lag_steps_sum", ()] == 4
    assert values["ebm_lag_steps_bucket", ("0.0",)] == 2
    assert values["ebm_ess_ratio_count", ()] == 4
    assert values["ebm_stage_seconds_total", ("gradient",)] == 0.5
    assert values["ebm_stage_seconds_total", ("round",)] == 1.0
    assert values["ebm_dropped_batches_total", ("stale",)] == 4
    assert values["ebm_restarts_total", ("pool",)] == 2
    assert values["ebm_reseeded_chains_total", ("1",)] == 2
    assert values["ebm_queue_depth", ()] == 1
    assert values["ebm_r_hat", ()] == pytest.approx(math.sqrt(0.9 + 0.125 / (2.0 * 10 / 9)))
    assert values["ebm_cpu_seconds_total", ("parameter_server-0",)] == 0.5
    assert values["ebm_cpu_seconds_total", ("pool-1",)] == 0.25
    assert values["ebm_resident_memory_bytes", ("pool-1",)] == 2000
    assert values["ebm_device_memory_bytes", ("parameter_server-0",)] == 10
    assert 1e7 < values["ebm_resident_memory_bytes", ("driver",)] < 1e11
    families = {family.name for family in text_string_to_metric_families(text)}
    assert families == {metric.name for metric in METRICS}


def test_pools_and_restarts_are_seen_without_a_step() -> None:
    """A run may wait for pools, or for its parameter server, for as long as it takes."""
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    metrics.observe_flow(FLOW._replace(pools=1, restarts={"parameter_server": 1}, seconds={}))
    row = metrics.row()
    assert row["ebm_pools"] == 1
    assert row['ebm_restarts_total{role="parameter_server"}'] == 1
    assert row['ebm_restarts_total{role="pool"}'] == 1
    assert row["ebm_steps_total"] == 1


def test_r_hat_forgets_the_versions_of_a_parameter_server_that_died() -> None:
    """Version 1 of the one that began again is of other weights than version 1 of the dead one."""
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    known = metrics.row()["ebm_r_hat"]
    metrics.observe_flow(FLOW._replace(restarts={"parameter_server": 1}))
    one = STEP._replace(energy_moments=(STEP.energy_moments[0]._replace(mean=1e6),))
    metrics.observe(one, [ROUND], FLOW)
    assert metrics.row()["ebm_r_hat"] == known, "one pool's energies were compared with the dead's"


def test_an_ess_that_is_not_finite_spoils_no_sum() -> None:
    metrics = RunMetrics("mine")
    metrics.observe(STEP._replace(ess=(math.nan, 0.5)), [ROUND], FLOW)
    row = metrics.row()
    assert (row["ebm_ess_ratio_sum"], row["ebm_ess_ratio_count"]) == (0.5, 1)


def test_a_row_holds_the_same_series() -> None:
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    row = metrics.row()
    assert row["ebm_loss"] == -1.5
    assert row['ebm_acceptance_ratio{pool="1"}'] == 0.6
    assert not any("_bucket" in key or "_created" in key for key in row)


def test_what_stale_negatives_get_is_one_of_four() -> None:
    """In a run that chooses its lag; in others there is no such series."""
    metrics = RunMetrics("mine")
    metrics.observe(STEP, [ROUND], FLOW)
    assert not any("treatment" in key for key in metrics.row())
    for treatment in ("plain", "moved"):
        choice = LagChoice(treatment, {"plain": 0.02}, None, 1.9, 1.5, False)
        metrics.observe(STEP._replace(lag_choice=choice), [ROUND], FLOW)
        ones = [key for key, value in metrics.row().items() if "treatment" in key and value]
        assert ones == [f'ebm_lag_treatment{{treatment="{treatment}"}}']


def test_a_summary_says_what_was_found_out_about_lag() -> None:
    totals = Totals()
    totals.add(STEP, [ROUND], FLOW)
    assert "lag_choice" not in totals.figures()
    choice = LagChoice("moved", {"plain": 0.02, "moved": 0.001}, 0.4, 1.9, 1.5, False)
    totals.add(STEP._replace(lag_choice=choice), [ROUND], FLOW)
    found = totals.figures()["lag_choice"]
    assert found["bias"] == {"plain": 0.02, "moved": 0.001}
    assert found["words"] == (
        "lag: negatives one version old, moved under the newest weights first"
        " (bias^2 / variance of the gradient: plain 0.020, moved 0.001; ESS of the weights 0.40);"
        " 1.50 times the steps of lock-step"
    )
