"""A real Prometheus that scrapes real runs answers every expression of dashboard and alerts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

pytest.importorskip("promql_parser", reason="make k8s-check installs what this needs")
from k8s import expressions
from k8s.expressions import filled_in
from k8s.live import Prometheus, free_port, kill_a_pool, prometheus, training, wait_for
from k8s.picture import Span, draw, lines
from pipeline.common.types import EnergyMoments, Flow, RoundReport, StepReport, Usage
from pipeline.config.compose import compose
from pipeline.runs.metrics import RunMetrics

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.ray,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="needs prometheus: make k8s-check"
    ),
]
RATES = "10s"
DIGITS = (
    *("experiment=digits_rbm", "cluster=local", "chains.pools=2", "trainer.lag=2"),
    *("trainer.steps=1000000", "optimizer.schedule=constant", "checkpoint.every=50"),
)
LADDER = (
    *(
        "cluster=inline",
        "kernel=replica_exchange",
        "kernel.rungs=3",
        "kernel.transitions=1",
        "energy.hidden=[16,16]",
    ),
    *(
        "chains.per_pool=8",
        "trainer.batch_size=16",
        "trainer.steps=1000000",
        "optimizer.schedule=constant",
    ),
)
ONLY_ON_A_LADDER = {
    "ebm_step_size": "Gibbs kernels have no step size",
    "ebm_swap_ratio": "only kernel=replica_exchange swaps",
}
"""Metrics that the digits' run has no series of, with the reason; the ladder's run has."""
ONLY_AFTER_FAULTS = {
    "ebm_skipped_steps_total": "a loss that is not finite",
    "ebm_reseeded_chains_total": "a chain that is not finite",
    "ebm_checkpoint_failures_total": "storage that fails",
    "ebm_handovers_total": "a node that announces that it leaves",
    "ebm_device_memory_bytes": "a GPU",
}
"""Metrics that are 0 in a run that is well, with what it takes for more; runs that are made up have
that.
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes two real runs, one that lost a pool to SIGKILL and one with a ladder, and three made
    up of what goes wrong.
    """
    folder = tmp_path_factory.mktemp("live")
    ports = [free_port() for _ in range(5)]
    made_up = {name: RunMetrics(name) for name in ("broken", "hung", "gone")}
    served = {}
    for (name, metrics), port in zip(made_up.items(), ports[2:], strict=True):
        served[name], _ = prometheus_client.start_http_server(port, registry=metrics.served)
        metrics.describe(compose(["experiment=digits_rbm"]))
        metrics["ebm_training"].set(1)
    with (
        training(folder / "digits_rbm", ports[0], *DIGITS, "evaluation.live=true") as run,
        training(folder / "ladder", ports[1], *LADDER),
        prometheus(folder, ports) as server,
    ):
        wait_for(
            has(server, 'ebm_pools{run="broken"}', 'ebm_training{run="gone"} == 1'),
            "a first scrape of what is made up",
        )
        served["gone"].shutdown()
        served["gone"].server_close()
        go_wrong(made_up["broken"])
        wait_for(
            has(
                server,
                'ebm_checkpoints_total{run="digits_rbm"} > 0',
                'ebm_log_likelihood_version{run="digits_rbm"} > 0',
            ),
            "a checkpoint and a likelihood of the digits' run",
        )
        kill_a_pool(run)
        restarted = 'ebm_restarts_total{run="digits_rbm",role="pool"} > 0'
        wait_for(
            has(server, restarted, 'ebm_swap_ratio{run="ladder"}'),
            "the pool's restart, and the ladder's swaps",
        )
        wait_for(
            has(
                server,
                'ebm_pools{run="digits_rbm"} == 2',
                'increase(ebm_restarts_total{run="digits_rbm"}[1m]) > 0',
            ),
            "it",
        )
        yield server
    for name in ("broken", "hung"):
        served[name].shutdown()
        served[name].server_close()
    assert run.returncode == 143, "a run that SIGTERM ends says so, after a checkpoint"


def has(server: Prometheus, *queries: str) -> Callable[[], bool]:
    return lambda: all(server.now(query) for query in queries)


def go_wrong(metrics: RunMetrics) -> None:
    """All that the alerts are there for, but a hang and an end."""
    usage = Usage(0.1, 1000, 2**30)
    step = StepReport(
        version=1,
        loss=float("nan"),
        parts={"positive": -20.0, "negative": 500.0},
        gradient_norm=float("nan"),
        learning_rate=0.1,
        negatives=40,
        lags=(4, 4),
        ess=(0.02, 0.04),
        lag_bound=4,
        skipped=True,
        seconds={"gradient": 0.1},
        energy_moments=(EnergyMoments(0, 0.0, 1.0, 20), EnergyMoments(1, 9.0, 1.0, 20)),
        usage=(usage,),
    )
    round = RoundReport(1, 0, 0, 0, 100, 0.01, 0.1, (), 3, 0, 0.1, usage)
    flow = Flow(0, 0, 1, {"stale": 1}, {"pool": 5}, 1, False, {})
    for again in range(
        2
    ):  # a rate wants series that were there before; those of pools begin with their first round
        if again:
            time.sleep(2.5)
        metrics.observe(step, [round], flow)
        metrics["ebm_checkpoint_failures"].inc()
    metrics["ebm_checkpoint_timestamp_seconds"].set(time.time() - 7200)


def of_run(series: list[dict[str, Any]], run: str) -> list[dict[str, Any]]:
    return [one for one in series if one["metric"].get("run") == run]


def without_data(
    server: Prometheus, found: list[expressions.Expression], run: str
) -> list[expressions.Expression]:
    return [one for one in found if not server.now(filled_in(one.promql, run, RATES))]


def test_every_query_of_the_dashboard_returns_data(server: Prometheus) -> None:
    """Of the run that lost a pool; but for what only a ladder has, which the other run has, for
    what only a run that chooses its lag has, and for verdicts: it is well.
    """
    board = expressions.dashboard()
    queries = [*expressions.of_dashboard(board), *expressions.of_variables(board)]
    empty = without_data(server, queries, "digits_rbm")
    ladder = [one for one in queries if expressions.names(one.promql) & ONLY_ON_A_LADDER.keys()]
    assert [one for one in empty if one not in ladder] == [
        one
        for one in queries
        if {"ebm_lag_treatment", "ebm_verdict"} & set(expressions.names(one.promql))
    ]
    assert without_data(server, ladder, "ladder") == []


def test_the_pool_that_was_killed_is_counted(server: Prometheus) -> None:
    (restarts,) = server.now('ebm_restarts_total{run="digits_rbm",role="pool"}')
    assert float(restarts["value"][1]) == 1


def test_what_alerts_compare_returns_data_of_a_run_that_is_well(server: Prometheus) -> None:
    for expression in expressions.of_rules(expressions.rules()):
        for part in expressions.compared(expression.promql):
            assert of_run(server.now(part), "digits_rbm"), f"{expression.where}: {part}"


def test_what_only_faults_have_is_seen(server: Prometheus) -> None:
    for name in ONLY_AFTER_FAULTS:
        assert server.now(f'{name}{{run="broken"}} > 0'), name
        assert not server.now(f'{name}{{run="digits_rbm"}} > 0'), name


def test_every_alert_is_raised_by_what_goes_wrong_and_none_by_a_run_that_is_well(
    server: Prometheus,
) -> None:
    """As Prometheus itself evaluates the rules: pending counts, since it keeps some for minutes."""
    expected = {"hung": {"EbmNoSteps"}, "gone": {"EbmMetricsGone"}}
    every = {rule["alert"] for group in expressions.rules()["groups"] for rule in group["rules"]}
    expected["broken"] = every - {"EbmNoSteps", "EbmMetricsGone"}

    def raised(run: str) -> set[str]:
        return {
            alert["labels"]["alertname"]
            for alert in server.alerts()
            if alert["labels"]["run"] == run
        }

    wait_for(
        lambda: all(raised(run) >= alerts for run, alerts in expected.items()), "the alerts", 30
    )
    firing = [
        alert for alert in server.alerts() if alert["labels"]["run"] in ("digits_rbm", "ladder")
    ]
    assert [alert for alert in firing if alert["state"] == "firing"] == []


def test_the_picture_is_drawn_with_every_panel_filled(server: Prometheus, tmp_path: Path) -> None:
    now = time.time()
    span = Span("digits_rbm", now - 15, now, RATES)
    titles = [
        panel["title"]
        for panel in expressions.panels(expressions.dashboard())
        if not lines(panel, server, span)
    ]
    assert titles == ["Verdicts", "Step size", "Swaps of a ladder"]
    draw(server, span, tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")
