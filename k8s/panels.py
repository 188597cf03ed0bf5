"""The dashboard's panels with their queries, a table.

`k8s.dashboard` builds the dashboard of it, and `k8s.picture` draws it. In queries `$run` and
`$pool` are the dashboard's variables, and rates are over Grafana's `$__rate_interval`.
"""

from __future__ import annotations

from typing import NamedTuple

# the alerts' limits (k8s/monitoring/rules.yaml), drawn where a panel shows what they are of
LEAST_ACCEPTANCE = 0.1
MOST_R_HAT = 1.2
MOST_GAP_NATS = 100
MOST_CHECKPOINT_AGE_SECONDS = 3600


class Query(NamedTuple):
    promql: str
    legend: str


class Chart(NamedTuple):
    """One panel.

    `limit` is drawn as a line; `bad_below` says on which side of it the bad values are.
    """

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 6
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    bad_below: bool = False
    stacked: bool = False
    logarithmic: bool = False


class Stat(NamedTuple):
    """One newest value, large.

    `named` shows the legend instead of the value, and `words` say what a value means.
    """

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 4
    named: bool = False
    words: tuple[tuple[str, str], ...] = ()


def one(promql: str, legend: str) -> tuple[Query, ...]:
    return (Query(promql, legend),)


def rate(selector: str) -> str:
    return f"rate({selector}[$__rate_interval])"


def mean(histogram: str) -> str:
    return f"{rate(histogram + '_sum' + RUN)} / {rate(histogram + '_count' + RUN)}"


def quantile(which: float, histogram: str) -> str:
    return f"histogram_quantile({which}, {rate(histogram + '_bucket' + RUN)})"


RUN = '{run="$run"}'
OF_POOLS = '{run="$run",pool=~"$pool"}'
STEPS_PER_SECOND = one(rate(f"ebm_steps_total{RUN}"), "steps/s")
AGE = f"time() - (ebm_checkpoint_timestamp_seconds{RUN} > 0)"

AT_A_GLANCE = (
    Stat(
        "State",
        "Whether steps are being made: not before the first one, nor while the end is evaluated.",
        "none",
        one(f"ebm_training{RUN}", "training"),
        words=(("0", "no steps"), ("1", "training")),
    ),
    Stat(
        "Model",
        "Energy, kernel and objective of the run.",
        "none",
        one(f"ebm_run_info{RUN}", "{{energy}} · {{kernel}} · {{objective}}"),
        named=True,
    ),
    Stat("Step", "Version of the newest weights.", "none", one(f"ebm_version{RUN}", "step")),
    Stat(
        "Steps per second",
        "Optimizer updates a second, skipped ones included.",
        "none",
        STEPS_PER_SECOND,
    ),
    Stat(
        "Age of the last checkpoint",
        "Time since the last checkpoint, or since the begin.",
        "s",
        one(AGE, "age"),
    ),
    Stat(
        "Restarts",
        "Actors that died and came back since the driver started.",
        "none",
        one(f"sum(ebm_restarts_total{RUN})", "restarts"),
    ),
)

TRAINING = (
    Chart(
        "Steps",
        "Optimizer updates a second, skipped ones included.",
        "none",
        STEPS_PER_SECOND,
        low=0,
    ),
    Chart(
        "Version of the weights",
        "Grows by one a step; falls back where a parameter server came back from its checkpoint.",
        "none",
        one(f"ebm_version{RUN}", "version"),
        low=0,
    ),
    Chart(
        "Objective",
        "Its value at the newest step, in its own unit.",
        "none",
        one(f"ebm_loss{RUN}", "objective"),
    ),
    Chart(
        "Parts of the objective",
        "Mean of each part, before its weight.",
        "none",
        one(f"ebm_loss_part{RUN}", "{{part}}"),
    ),
    Chart(
        "Energies",
        "Mean energy of a step's positives and negatives, and of the same few held-out and training"
        " rows.",
        "suffix: nats",
        one(f"ebm_energy_nats{RUN}", "{{source}}"),
    ),
    Chart(
        "Energy gap",
        "Mean energy of the negatives less that of the positives: near 0 where the model has"
        " learned the data's law.",
        "suffix: nats",
        one(
            'ebm_energy_nats{run="$run",source="negatives"} - ignoring(source)'
            ' ebm_energy_nats{run="$run",source="positives"}',
            "gap",
        ),
        limit=MOST_GAP_NATS,
    ),
    Chart(
        "Held-out gap",
        "Mean energy of held-out rows less that of training rows: it rises where the model comes to"
        " prefer the rows that it was trained on.",
        "suffix: nats",
        one(f"ebm_held_out_gap_nats{RUN}", "gap"),
    ),
    Chart(
        "Log-likelihood",
        "Held-out log-likelihood and its 90 % interval, on a ladder, or where evaluation.live is"
        " set.",
        "suffix: nats",
        one(f"ebm_log_likelihood_nats{RUN}", "{{bound}}"),
    ),
    Chart(
        "Age of the log-likelihood",
        "How many versions ago the weights were learned that it is of.",
        "none",
        one(f"ebm_version{RUN} - (ebm_log_likelihood_version{RUN} > 0)", "versions"),
        low=0,
        width=4,
    ),
    Chart(
        "Pseudo-likelihood",
        "Mean pseudo-log-likelihood of held-out rows, of models over levels.",
        "suffix: nats",
        one(f"ebm_pseudo_log_likelihood_nats{RUN}", "pseudo-log-likelihood"),
        width=4,
    ),
    Chart(
        "Covariances of sequences",
        "Two-site covariances of the chains against those of the training sequences: Pearson's"
        " correlation, and the slope of the least-squares line.",
        "none",
        (
            *one(f"ebm_two_site_pearson{RUN}", "Pearson"),
            *one(f"ebm_two_site_slope{RUN}", "slope"),
        ),
        width=4,
    ),
    Chart(
        "Coupled pairs",
        "Pairs of sites that a graph which grows, or is decimated, couples.",
        "none",
        one(f"ebm_coupled_pairs{RUN}", "pairs"),
        width=4,
    ),
    Chart(
        "Gradient norm",
        "Euclidean norm of the gradient before clipping.",
        "none",
        one(f"ebm_gradient_norm{RUN}", "norm"),
        logarithmic=True,
        width=4,
    ),
    Chart(
        "Learning rate",
        "As its schedule has it.",
        "none",
        one(f"ebm_learning_rate{RUN}", "learning rate"),
        low=0,
        width=4,
    ),
    Chart(
        "Verdicts",
        "Causes of trouble that the run's diagnosis has found: 1 while one is at work, 0 when it is"
        " over; a run that is well shows nothing.",
        "none",
        one(f"ebm_verdict{RUN}", "{{cause}}"),
        width=24,
        low=0,
        high=1,
    ),
)

CHAINS = (
    Chart(
        "Acceptance",
        "Mean acceptance probability of each pool's last round; Gibbs kernels always accept.",
        "percentunit",
        one(f"ebm_acceptance_ratio{OF_POOLS}", "pool {{pool}}"),
        width=8,
        low=0,
        high=1,
        limit=LEAST_ACCEPTANCE,
        bad_below=True,
    ),
    Chart(
        "Step size",
        "Of each pool's kernel, adapted or fixed; kernels without one show nothing.",
        "none",
        one(f"ebm_step_size{OF_POOLS}", "pool {{pool}}"),
        width=8,
        low=0,
    ),
    Chart(
        "R-hat across pools",
        "Of the energies of each pool's newest chains: 1 where the pools agree.",
        "none",
        one(f"ebm_r_hat{RUN}", "R-hat"),
        width=8,
        limit=MOST_R_HAT,
    ),
    Chart(
        "Swaps of a ladder",
        "Mean swap probability of neighbouring rungs, over pools; kernels without a ladder show"
        " nothing.",
        "percentunit",
        one(f"avg by (pair) (ebm_swap_ratio{OF_POOLS})", "rungs {{pair}} and next"),
        width=12,
        low=0,
        high=1,
    ),
    Chart(
        "Chains started anew",
        "Chains a second that were restarted by chains.restart, or reseeded because they were not"
        " finite.",
        "none",
        (
            Query(f"sum({rate(f'ebm_restarted_chains_total{OF_POOLS}')})", "restarted"),
            Query(f"sum({rate(f'ebm_reseeded_chains_total{OF_POOLS}')})", "reseeded"),
        ),
        width=12,
        low=0,
    ),
)

FLOW = (
    Chart(
        "Lag",
        "How many versions old batches were when they were consumed, and the bound that is steered."
        " Under trainer.lag=auto, 1 for what stale negatives get.",
        "none",
        (
            Query(mean("ebm_lag_steps"), "mean"),
            Query(quantile(0.9, "ebm_lag_steps"), "nine in ten at most"),
            Query(f"ebm_lag_bound_steps{RUN}", "bound"),
            Query(f"ebm_lag_treatment{RUN}", "{{treatment}}"),
        ),
        width=8,
        low=0,
    ),
    Chart(
        "ESS of the importance weights",
        "Effective sample size over the batch's size; below the floor (trainer.min_ess) the bound"
        " on the lag goes down.",
        "percentunit",
        (
            Query(mean("ebm_ess_ratio"), "mean"),
            Query(quantile(0.1, "ebm_ess_ratio"), "nine in ten at least"),
            Query(f"ebm_ess_floor_ratio{RUN}", "floor"),
        ),
        width=8,
        low=0,
        high=1,
    ),
    Chart(
        "Rounds and batches on their way",
        "Rounds asked of the pools and not consumed yet; of those, finished batches that wait for"
        " the parameter server.",
        "none",
        (
            Query(f"ebm_rounds_in_flight{RUN}", "rounds in flight"),
            Query(f"ebm_queue_depth{RUN}", "batches waiting"),
        ),
        width=8,
        low=0,
    ),
    Chart(
        "Negatives",
        "Negative samples consumed a second.",
        "none",
        one(rate(f"ebm_negatives_total{RUN}"), "negatives/s"),
        low=0,
    ),
    Chart(
        "Transitions",
        "Kernel transitions a second, summed over a pool's chains.",
        "none",
        one(rate(f"ebm_transitions_total{OF_POOLS}"), "pool {{pool}}"),
        low=0,
        stacked=True,
    ),
    Chart(
        "The parameter server's time",
        "Share of the wall clock by stage of a step; what is left is waiting.",
        "percentunit",
        one(rate('ebm_stage_seconds_total{run="$run",stage!~"round|wait_.*"}'), "{{stage}}"),
        low=0,
        high=1,
        stacked=True,
    ),
    Chart(
        "Who waits for whom",
        "Share of the wall clock that the driver waits for pools, for steps and for checkpoints,"
        " and that pools spend in rounds.",
        "percentunit",
        (
            Query(rate('ebm_stage_seconds_total{run="$run",stage=~"wait_.*"}'), "{{stage}}"),
            Query(rate(f"ebm_checkpoint_stall_seconds_total{RUN}"), "wait_for_checkpoints"),
            Query(
                rate('ebm_stage_seconds_total{run="$run",stage="round"}')
                + f" / ignoring(stage) ebm_pools{RUN}",
                "pools in rounds",
            ),
        ),
        low=0,
    ),
)

FAULTS = (
    Chart(
        "Restarts",
        "Actors that died and came back since the driver started, by role.",
        "none",
        one(f"ebm_restarts_total{RUN}", "{{role}}"),
        low=0,
    ),
    Chart(
        "Dropped batches",
        "Batches never learned from since the driver started, by reason.",
        "none",
        one(f"ebm_dropped_batches_total{RUN}", "{{reason}}"),
        low=0,
    ),
    Chart(
        "Skipped steps and rollbacks",
        "Since the driver started: steps skipped because loss or gradient was not finite, and "
        "times that the run went back because it diverged.",
        "none",
        (
            Query(f"ebm_skipped_steps_total{RUN}", "skipped"),
            Query(f"ebm_rollbacks_total{RUN}", "rollbacks"),
        ),
        low=0,
    ),
    Chart(
        "Hand-overs",
        "Pools that handed over their chains before their node left, since the driver started.",
        "none",
        one(f"ebm_handovers_total{RUN}", "pools"),
        low=0,
    ),
    Chart(
        "Pools",
        "Pools that were there at the newest step, and how many the run wants at least.",
        "none",
        (Query(f"ebm_pools{RUN}", "there"), Query(f"ebm_pools_minimum{RUN}", "wanted at least")),
        low=0,
    ),
    Chart(
        "Age of the last checkpoint",
        "Time since the last checkpoint, or since the begin.",
        "s",
        one(AGE, "age"),
        low=0,
        limit=MOST_CHECKPOINT_AGE_SECONDS,
    ),
    Chart(
        "Size of the last checkpoint",
        "All its files.",
        "bytes",
        one(f"ebm_checkpoint_bytes{RUN}", "size"),
        low=0,
    ),
    Chart(
        "Checkpoints",
        "Since the driver started: checkpoints that were written, those that were not for an "
        "error, those that were found damaged, times that older ones could not be removed, and "
        "failures of recorders, whose figures may be missing.",
        "none",
        (
            Query(f"ebm_checkpoints_total{RUN}", "written"),
            Query(f"ebm_checkpoint_failures_total{RUN}", "failed"),
            Query(f"ebm_checkpoints_damaged_total{RUN}", "damaged"),
            Query(f"ebm_checkpoint_prune_failures_total{RUN}", "not removed"),
            Query(f"ebm_lease_failures_total{RUN}", "lease not renewed"),
            Query(f"ebm_recorder_failures_total{RUN}", "recorder {{recorder}}"),
        ),
        low=0,
    ),
)

RESOURCES = (
    Chart(
        "Processor time",
        "Processors that each process keeps busy with rounds and steps.",
        "none",
        one(rate(f"ebm_cpu_seconds_total{RUN}"), "{{process}}"),
        width=8,
        low=0,
        stacked=True,
    ),
    Chart(
        "Resident memory",
        "Memory that each process holds, pages that it shares with others included.",
        "bytes",
        one(f"ebm_resident_memory_bytes{RUN}", "{{process}}"),
        width=8,
        low=0,
    ),
    Chart(
        "Device memory",
        "GPU memory that each process has allocated; 0 where it works on the CPU.",
        "bytes",
        one(f"ebm_device_memory_bytes{RUN}", "{{process}}"),
        width=8,
        low=0,
    ),
)

ROWS: tuple[tuple[str, tuple[Chart | Stat, ...]], ...] = (
    ("Run", (*AT_A_GLANCE, *TRAINING)),
    ("Chains", CHAINS),
    ("Flow", FLOW),
    ("Faults and checkpoints", FAULTS),
    ("Resources", RESOURCES),
)
