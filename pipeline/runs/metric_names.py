"""Every Prometheus name of the project, in one table.

Names follow https://prometheus.io/docs/practices/naming/: prefix `ebm_`, base units, `_total` for
counters.
"""

from __future__ import annotations

from typing import NamedTuple


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
