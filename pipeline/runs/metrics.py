"""Every Prometheus name of the project, in one table, and the one registry a run keeps.

Names follow https://prometheus.io/docs/practices/naming/: prefix `ebm_`, base units, `_total` for
counters. Pools and the parameter server report on the replies they send anyway; the driver alone
keeps the registry, so that a series survives the death of an actor. The figures that recorders take
(`pipeline.runs.recorders`) are made of it: those that are served have one label more, `run`, on
every series, and a row holds the value of each series at one step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from pipeline.common.process import used
from pipeline.common.types import EnergyMoments, Flow, RoundReport, StepReport, Usage, Verdict
from pipeline.config.run import RunConfig
from pipeline.diagnosis.mixing import potential_scale_reduction


class Metric(NamedTuple):
    """One metric. `kind` is counter, gauge or histogram.

    Counters are exposed with `_total` behind their name.
    """

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


LAGS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)

METRICS = (
    Metric("ebm_steps", "counter", "steps", "Optimizer updates, skipped ones included"),
    Metric(
        "ebm_skipped_steps",
        "counter",
        "steps",
        "Steps skipped for a loss or gradient that is not finite",
    ),
    Metric("ebm_negatives", "counter", "samples", "Negative samples consumed"),
    Metric(
        "ebm_transitions",
        "counter",
        "transitions",
        "Kernel transitions, summed over chains",
        ("pool",),
    ),
    Metric("ebm_version", "gauge", "steps", "Version of the newest weights"),
    Metric("ebm_loss", "gauge", "1", "Value of the objective, in its own unit"),
    Metric(
        "ebm_loss_part",
        "gauge",
        "1",
        "Mean of each part of the objective, before its weight",
        ("part",),
    ),
    Metric("ebm_energy_nats", "gauge", "nats", "Mean energy of a step's samples", ("source",)),
    Metric(
        "ebm_held_out_gap_nats",
        "gauge",
        "nats",
        "Mean energy of held-out rows less that of training rows; it rises where a model over-fits",
    ),
    Metric(
        "ebm_pseudo_log_likelihood_nats",
        "gauge",
        "nats",
        "Mean pseudo-log-likelihood of held-out rows, of most models from one site a row",
    ),
    Metric(
        "ebm_two_site_pearson",
        "gauge",
        "1",
        "Pearson correlation of the chains' two-site covariances with the training rows'",
    ),
    Metric(
        "ebm_two_site_slope",
        "gauge",
        "1",
        "Slope of the least-squares line of the chains' two-site covariances on the training rows'",
    ),
    Metric("ebm_coupled_pairs", "gauge", "1", "Pairs of sites on a graph that changes"),
    Metric(
        "ebm_log_likelihood_nats",
        "gauge",
        "nats",
        "Held-out log-likelihood (evaluation.live, or by a ladder), and its 90 % interval",
        ("bound",),
    ),
    Metric(
        "ebm_log_likelihood_version",
        "gauge",
        "steps",
        "Version of the weights that the log-likelihood is of",
    ),
    Metric(
        "ebm_verdict",
        "gauge",
        "1",
        "1 while a cause of trouble that the run's diagnosis found is at work, 0 when it is over",
        ("cause",),
    ),
    Metric("ebm_gradient_norm", "gauge", "1", "Euclidean norm of the gradient before clipping"),
    Metric("ebm_learning_rate", "gauge", "1", "Learning rate of the last step"),
    Metric(
        "ebm_acceptance_ratio",
        "gauge",
        "ratio",
        "Mean acceptance probability of the last round",
        ("pool",),
    ),
    Metric(
        "ebm_step_size", "gauge", "1", "Step size of the pool's kernel, adapted or fixed", ("pool",)
    ),
    Metric(
        "ebm_r_hat",
        "gauge",
        "1",
        "R-hat over the pools of their chains' energies, each one's newest; 1 where they agree",
    ),
    Metric(
        "ebm_swap_ratio",
        "gauge",
        "ratio",
        "Mean swap probability of neighbouring rungs",
        ("pool", "pair"),
    ),
    Metric("ebm_lag_steps", "histogram", "steps", "Lag of a batch when it was consumed", (), LAGS),
    Metric("ebm_lag_bound_steps", "gauge", "steps", "Bound on the lag, as it is steered"),
    Metric(
        "ebm_lag_treatment",
        "gauge",
        "1",
        "1 for what stale negatives get in a run that chooses its lag (none: lock-step), else 0",
        ("treatment",),
    ),
    Metric(
        "ebm_ess_floor_ratio",
        "gauge",
        "ratio",
        "ESS below which the bound on the lag goes down (trainer.min_ess)",
    ),
    Metric(
        "ebm_ess_ratio",
        "histogram",
        "ratio",
        "ESS of a batch's importance weights over its size",
        (),
        RATIOS,
    ),
    Metric(
        "ebm_stage_seconds",
        "counter",
        "seconds",
        "Time by stage of a step, of a round, and of waiting",
        ("stage",),
    ),
    Metric(
        "ebm_rounds_in_flight", "gauge", "rounds", "Rounds asked of the pools and not consumed yet"
    ),
    Metric(
        "ebm_queue_depth", "gauge", "batches", "Finished batches that wait for the parameter server"
    ),
    Metric("ebm_pools", "gauge", "pools", "Pools that are there"),
    Metric(
        "ebm_pools_minimum",
        "gauge",
        "pools",
        "Pools that a run wants at least (chains.min_pools, else chains.pools)",
    ),
    Metric(
        "ebm_handovers",
        "counter",
        "pools",
        "Pools whose chains were handed over before their node left",
    ),
    Metric("ebm_dropped_batches", "counter", "batches", "Batches never learned from", ("reason",)),
    Metric(
        "ebm_reseeded_chains",
        "counter",
        "chains",
        "Chains started anew because they were not finite",
        ("pool",),
    ),
    Metric(
        "ebm_restarted_chains",
        "counter",
        "chains",
        "Chains started anew by chains.restart",
        ("pool",),
    ),
    Metric("ebm_restarts", "counter", "restarts", "Actors that died and came back", ("role",)),
    Metric(
        "ebm_rollbacks",
        "counter",
        "rollbacks",
        "Times that the run diverged and went back to a good checkpoint, or to its beginning",
    ),
    Metric("ebm_checkpoints", "counter", "checkpoints", "Checkpoints written"),
    Metric(
        "ebm_checkpoint_failures", "counter", "checkpoints", "Checkpoints that could not be written"
    ),
    Metric(
        "ebm_checkpoints_damaged",
        "counter",
        "checkpoints",
        "Checkpoints that were found to be damaged, and passed over",
    ),
    Metric(
        "ebm_checkpoint_prune_failures",
        "counter",
        "failures",
        "Times that older checkpoints could not be removed",
    ),
    Metric(
        "ebm_lease_failures",
        "counter",
        "failures",
        "Times that the lease of the output could not be renewed",
    ),
    Metric(
        "ebm_checkpoint_stall_seconds",
        "counter",
        "seconds",
        "Time that steps waited for checkpoints: for copies of the state, and for a save before",
    ),
    Metric("ebm_checkpoint_bytes", "gauge", "bytes", "Size of the last checkpoint"),
    Metric(
        "ebm_checkpoint_timestamp_seconds",
        "gauge",
        "seconds",
        "Unix time of the last checkpoint, or of the begin",
    ),
    Metric(
        "ebm_recorder_failures",
        "counter",
        "failures",
        "Times that a recorder could not do what it was to do",
        ("recorder",),
    ),
    Metric(
        "ebm_cpu_seconds", "counter", "seconds", "Processor time of rounds and steps", ("process",)
    ),
    Metric(
        "ebm_resident_memory_bytes", "gauge", "bytes", "Memory that a process holds", ("process",)
    ),
    Metric(
        "ebm_device_memory_bytes",
        "gauge",
        "bytes",
        "GPU memory that a process has allocated",
        ("process",),
    ),
    Metric(
        "ebm_training",
        "gauge",
        "1",
        "1 while steps are made, 0 before the first and after the last",
    ),
    Metric(
        "ebm_run_info",
        "gauge",
        "1",
        "Always 1; says what the run trains",
        ("name", "energy", "kernel", "objective"),
    ),
)
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_count", "_sum")}
ROW_NAMES = {metric.name + suffix for metric in METRICS for suffix in SUFFIXES[metric.kind]}
"""The names of the figures in a row, without labels."""
UNKNOWN = (
    *("ebm_held_out_gap_nats", "ebm_pseudo_log_likelihood_nats"),
    *("ebm_two_site_pearson", "ebm_two_site_slope", "ebm_coupled_pairs"),
)
"""What is not a number until it is looked at."""
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
