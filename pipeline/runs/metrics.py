"""The one registry of Prometheus metrics that a run keeps.

Pools and the parameter server report on the replies they send anyway; the driver alone
keeps the registry, so that a series survives the death of an actor. The figures that recorders take
(`pipeline.runs.recorders`) are made of it: those that are served have one label more, `run`, on
every series, and a row holds the value of each series at one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.common.process import used
from pipeline.common.types import EnergyMoments, Flow, RoundReport, StepReport, Usage, Verdict
from pipeline.config.run import RunConfig
from pipeline.diagnosis.mixing import potential_scale_reduction
from pipeline.runs.metric_names import METRICS, UNKNOWN, Metric

KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge}


class OfRun(Collector):
    """A registry's series, each with a label that says which run they are of."""

    def __init__(self, registry: CollectorRegistry, run: str) -> None:
        self._registry, self._run = registry, run

    def collect(self) -> Iterator[Family]:
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={"run": self._run, **sample.labels})
                for sample in family.samples
            ]
            yield family


class RunMetrics:
    """The metrics of the run called `run`, fed by reports.

    `registry` holds them; `served` holds the same series, each with the label `run`.
    """

    def __init__(self, run: str) -> None:
        prometheus_client.disable_created_metrics()
        self.registry = CollectorRegistry()
        self.served = CollectorRegistry()
        self.served.register(OfRun(self.registry, run))
        # each pool's newest, with its version
        self._energy_moments: dict[int, tuple[int, EnergyMoments]] = {}
        self._recent = 1  # steps within which every pool that keeps up is heard of
        self._of = {metric.name: self._make(metric) for metric in METRICS}
        self._spent = time.process_time()
        # 0 would be a figure of the model
        for name in UNKNOWN:
            self[name].set(math.nan)
        # a series that is there from the start, at 0, is one that a rate can be taken of
        for role in ("pool", "parameter_server"):
            self["ebm_restarts"].labels(role)
        server = "parameter_server_died"
        for reason in ("stale", "pool_died", server, "object_lost", "rolled_back"):
            self["ebm_dropped_batches"].labels(reason)

    def _make(self, metric: Metric) -> Any:
        if metric.kind == "histogram":
            return Histogram(
                metric.name,
                metric.help,
                metric.labels,
                registry=self.registry,
                buckets=metric.buckets,
            )
        return KINDS[metric.kind](metric.name, metric.help, metric.labels, registry=self.registry)

    def __getitem__(self, name: str) -> Any:
        return self._of[name]

    def describe(self, config: RunConfig) -> None:
        """Sets what stays as it is in a run of `config`, and the time when it began."""
        names = (config.name, config.energy.name, config.kernel.name, config.objective.name)
        self["ebm_run_info"].labels(*names).set(1)
        self["ebm_pools_minimum"].set(config.chains.min_pools or config.pools)
        if config.pools:
            self._recent = 2 * math.ceil(config.most_pools / config.batches_per_step)
        self["ebm_ess_floor_ratio"].set(config.trainer.min_ess)
        self["ebm_checkpoint_timestamp_seconds"].set(time.time())

    def observe(self, step: StepReport, rounds: Iterable[RoundReport], flow: Flow) -> None:
        """Takes in one step, the rounds that ended since the last one, and what the driver saw."""
        self.observe_flow(flow)
        self["ebm_steps"].inc()
        self["ebm_skipped_steps"].inc(step.skipped)
        self["ebm_negatives"].inc(step.negatives)
        self["ebm_version"].set(step.version)
        self["ebm_loss"].set(step.loss)
        for name, value in step.parts.items():
            self["ebm_loss_part"].labels(name).set(value)
            if name.endswith(("positive", "negative")):
                self["ebm_energy_nats"].labels(f"{name.rpartition('.')[2]}s").set(value)
        self._observe_probe(step.figures)
        self["ebm_gradient_norm"].set(step.gradient_norm)
        self["ebm_learning_rate"].set(step.learning_rate)
        self["ebm_lag_bound_steps"].set(step.lag_bound)
        if step.lag_choice is not None:
            for treatment in ("none", "plain", "reweighted", "moved"):
                chosen = step.lag_choice.treatment == treatment
                self["ebm_lag_treatment"].labels(treatment).set(chosen)
        for lag in step.lags:
            self["ebm_lag_steps"].observe(lag)
        for ratio in step.ess:
            if math.isfinite(ratio):  # one that is not would make the sum so for good
                self["ebm_ess_ratio"].observe(ratio)
        for stage, seconds in step.seconds.items():
            self["ebm_stage_seconds"].labels(stage).inc(seconds)
        for report in rounds:
            self._observe_round(report)
        self._observe_mixing(step)
        for rank, usage in enumerate(step.usage):
            self._observe_usage(f"parameter_server-{rank}", usage)
        self._observe_usage("driver", used(self._spent))
        self._spent = time.process_time()

    def _observe_probe(self, figures: Mapping[str, float]) -> None:
        for source in ("held_out", "training"):
            if source in figures:
                self["ebm_energy_nats"].labels(source).set(figures[source])
        if "held_out" in figures:
            gap = figures["held_out"] - figures["training"]
            self["ebm_held_out_gap_nats"].set(gap)
        if "pseudo_log_likelihood" in figures:
            self["ebm_pseudo_log_likelihood_nats"].set(figures["pseudo_log_likelihood"])
        if "two_site" in figures:
            self["ebm_two_site_pearson"].set(figures["two_site"])
            self["ebm_two_site_slope"].set(figures["two_site_slope"])
        if "coupled_pairs" in figures:
            self["ebm_coupled_pairs"].set(figures["coupled_pairs"])
        if "log_likelihood" in figures:
            self["ebm_log_likelihood_version"].set(figures["log_likelihood_version"])
            for bound in ("", "_at_least", "_at_most"):
                name = bound.lstrip("_") or "estimate"
                value = figures[f"log_likelihood{bound}"]
                self["ebm_log_likelihood_nats"].labels(name).set(value)

    def observe_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Takes in the verdicts up to now, in the order in which they were found."""
        for verdict in verdicts:
            self["ebm_verdict"].labels(verdict.cause).set(verdict.until is None)

    def observe_flow(self, flow: Flow) -> None:
        """The runner's account of pools and losses, with a step or while it waits for one."""
        for stage, seconds in flow.seconds.items():
            self["ebm_stage_seconds"].labels(stage).inc(seconds)
        if flow.restarts.get("parameter_server"):
            # what it learned since its checkpoint is undone: its versions will be of other weights
            self._energy_moments.clear()
        self["ebm_rounds_in_flight"].set(flow.in_flight)
        self["ebm_queue_depth"].set(flow.waiting)
        self["ebm_pools"].set(flow.pools)
        self["ebm_handovers"].inc(flow.handovers)
        self["ebm_checkpoints_damaged"].inc(flow.damaged)
        for reason, count in flow.dropped.items():
            self["ebm_dropped_batches"].labels(reason).inc(count)
        for role, count in flow.restarts.items():
            self["ebm_restarts"].labels(role).inc(count)

    def _observe_round(self, report: RoundReport) -> None:
        pool = str(report.pool)
        self["ebm_transitions"].labels(pool).inc(report.transitions)
        self["ebm_acceptance_ratio"].labels(pool).set(report.acceptance)
        if report.step_size is not None:
            self["ebm_step_size"].labels(pool).set(report.step_size)
        for pair, rate in enumerate(report.swaps):
            self["ebm_swap_ratio"].labels(pool, str(pair)).set(rate)
        self["ebm_reseeded_chains"].labels(pool).inc(report.reseeded)
        self["ebm_restarted_chains"].labels(pool).inc(report.restarted)
        self["ebm_stage_seconds"].labels("round").inc(report.seconds)
        self._observe_usage(f"pool-{pool}", report.usage)

    def _observe_mixing(self, step: StepReport) -> None:
        self._energy_moments |= {
            spread.pool: (step.version, spread) for spread in step.energy_moments
        }
        self._energy_moments = {
            pool: at
            for pool, at in self._energy_moments.items()
            if step.version - self._recent < at[0] <= step.version
        }
        r_hat = potential_scale_reduction([spread for _, spread in self._energy_moments.values()])
        if math.isfinite(r_hat):
            self["ebm_r_hat"].set(r_hat)

    def _observe_usage(self, process: str, usage: Usage) -> None:
        self["ebm_cpu_seconds"].labels(process).inc(usage.seconds)
        self["ebm_resident_memory_bytes"].labels(process).set(usage.resident)
        self["ebm_device_memory_bytes"].labels(process).set(usage.device)

    def row(self) -> dict[str, float]:
        """Returns the value of every series by the name that Prometheus shows, without buckets."""
        return {
            sample.name
            + (
                "{" + ",".join(f'{k}="{v}"' for k, v in sample.labels.items()) + "}"
                if sample.labels
                else ""
            ): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_bucket")
        }
