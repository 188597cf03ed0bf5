"""Train an energy-based model.

    python -m pipeline.train [group=choice ...] [key=value ...]

Alone it starts a Ray of its own on this machine; with RAY_ADDRESS set, or under
`ray job submit --working-dir . --`, it uses that cluster; with cluster=inline it
needs no Ray at all. The same command goes on from its newest checkpoint, and
runs/latest is the folder of the newest run.

    python -m pipeline.train
        a deep energy on handwritten digits, 1 to 3 minutes
    python -m pipeline.train experiment=digits_rbm seed=1
        an RBM, its likelihood computed exactly
    python -m pipeline.train experiment=toy data.law=two_moons
        a law in the plane, scored against the truth
    python -m pipeline.train experiment=toy objective=hutchinson
        score matching, which needs no chains
    python -m pipeline.train experiment=conditional_label
        digits and labels, generator and classifier at once
    python -m pipeline.train data=idx data.path=FOLDER energy=conv
        MNIST, Fashion-MNIST and their like

Exit status: 0 done, 2 refused before the start, 1 failed, 129, 130 or 143
interrupted after a last checkpoint (Ctrl-C, SIGTERM, a terminal that closed).
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import CheckpointError, ClusterError, ConfigError, PipelineError
from pipeline.common.masking import MaskingFormatter
from pipeline.common.output import lasting_output
from pipeline.common.proxies import keep_loopback_direct
from pipeline.config import help
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.diagnosis.ending import in_words as diagnosis_in_words
from pipeline.runs.supervision import AGAIN, end_with_parent, is_child, own_command, supervise

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.kernels.metropolis_hastings import Proposal
    from pipeline.runs.interruption import Interrupted
    from pipeline.runs.results import Run


def run(
    config: RunConfig,
    energy: nn.Module | None = None,
    proposal: Proposal | None = None,
    features: Sequence[Callable[[Tensor], Tensor]] | None = None,
    rows: Any = None,
    held_out: Any = None,
    weights: Any = None,
    held_out_weights: Any = None,
) -> Run:
    """Trains what `config` describes, and returns the run (`pipeline.runs.results.Run`), which as a
    mapping is what `summary.json` holds.

    It may be called in any thread, and where an event loop runs. Ctrl-C, or a notebook's interrupt,
    ends training after the step at hand, and a checkpoint is written. At a prompt the run as it
    then stands is returned; elsewhere, and where the signal is SIGTERM or SIGHUP, it raises
    `pipeline.runs.interruption.Interrupted`. Signals reach the main thread alone. Raises
    `PipelineError`.

    `energy` is a module of your own, `[N, *shape] -> [N]`, for energy=custom, which adds the base
    term of `energy.base_scale` to it on R^d; `proposal` one for kernel=metropolis_hastings;
    `features` are functions `[N, *shape] -> [N, F]`, for energy=maxent, behind those that it
    declares. They travel to the actors with the configuration; a checkpoint holds the module's
    parameters, and no code.

    `rows` are data in hand for data=rows: [N, *shape] as an array, a tensor, a torch Dataset, a
    pandas or polars frame, an Arrow table or a sparse matrix of SciPy, or a pair (rows, contexts).
    Of a frame data.categorical takes columns of text, categories and booleans.
    `held_out`, of the same kinds, are rows kept out of training in the place of data.held_out of
    the others. `weights` [N] say how much each row counts, 0 or more, and `held_out_weights` [H]
    those of `held_out`. A run that resumes must be given the same rows.
    """
    from actors.launch import launch
    from pipeline.data.given import given_rows
    from pipeline.runs.display import Display
    from pipeline.runs.interruption import Interrupted

    taken = None
    if rows is not None:
        taken = given_rows(rows, held_out, weights, held_out_weights, config.data)
    elif weights is not None:
        remedy = "go with rows=ROWS; those of a file are a column, data.weight"
        raise ConfigError("weights", type(weights).__name__, remedy)
    _check_portable(config, energy)
    display, config = Display(), config.carrying(energy, proposal, features, taken)
    try:
        summary = launch(config, display)
    except Interrupted as interrupted:
        stopped = _stopped(config, interrupted)
        display.say(str(interrupted))
        return stopped
    display.say(in_words(summary, "series" in config.recorders))
    from pipeline.runs.results import Run  # late, for it brings the evaluation

    return Run(config, summary)


def _stopped(config: RunConfig, interrupted: Interrupted) -> Run:
    """The run as an interrupt at a prompt left it. Raises `interrupted` where it was no such, and
    where it came before there was a checkpoint.
    """
    from pipeline.runs.prompt import at_prompt
    from pipeline.runs.results import as_it_stands
    from pipeline.storage.paths import resolve_output, with_absolute_paths

    if interrupted.signal != signal.SIGINT or not at_prompt():
        raise interrupted
    try:
        return as_it_stands(resolve_output(with_absolute_paths(config)), config)
    except CheckpointError:
        raise interrupted from None


def _check_portable(config: RunConfig, energy: nn.Module | None) -> None:
    from torch.nn.utils.parametrize import is_parametrized

    if (
        energy is not None
        and config.cluster.name != "inline"
        and any(map(is_parametrized, energy.modules()))
    ):
        remedy = (
            "modules with parametrizations cannot be sent to actors; make it an entry point"
            " (energy.entry_point)"
        )
        raise ConfigError("energy", type(energy).__name__, remedy)


def in_words(summary: Mapping[str, Any], series: bool) -> str:
    """Tells a person how a run ended: what was learned, how well, where everything is. `series`:
    whether there are rows of metrics, and curves drawn from them.
    """
    chains = (
        f", {summary['negatives_per_second']:,.0f} negatives/s,"
        f" {summary['transitions_per_second']:,.0f} transitions/s, mean lag"
        f" {summary['mean_lag']:.1f}"
        if summary["negatives_per_second"]
        else ", no chains"
    )
    lines = [
        "",
        (
            f"done: {summary['version']} steps; this time {summary['steps']} in"
            f" {summary['wall_seconds']:.0f} s ({summary['steps_per_second']:.1f} steps/s{chains}),"
            f" restarts {summary['restarts']}"
        ),
        *_at_work(summary),
        *_slowed(summary),
        *_ended_early(summary),
        *diagnosis_in_words(summary.get("diagnosis", {})),
        *([summary["lag_choice"]["words"]] if "lag_choice" in summary else []),
        *summary.get("words", []),
        *_pictured("samples", summary),
        *(
            f"  {Path(name).stem:<11} {summary['output']}/{name}"
            for name in summary.get("pictures", ())
        ),
        *(
            line
            for name in ("energies", "filters", "moments", "compositions", "contacts")
            if f"undrawn_{name}" in summary
            for line in _pictured(name, summary)
        ),
        *(
            (
                *_pictured("curves", summary),
                f"  metrics     {summary['output']}/metrics.jsonl",
            )
            if series
            else ()
        ),
        *_paged(summary),
        f"  summary     {summary['output']}/summary.json",
        f"  checkpoint  {summary['checkpoint']}",
        f"  in Python   energy = pipeline.load({summary['output']!r})",
    ]
    return "\n".join(lines)


def _pictured(name: str, summary: Mapping[str, Any]) -> list[str]:
    """The line on where the picture called `name` is, or why there is none; no line where no
    samples were asked for.
    """
    if name == "samples" and not summary["evaluation"]["samples"]:
        return []
    why = summary.get(f"undrawn_{name}")
    where = f"{summary['output']}/{name}.png" if why is None else f"no picture: {why}"
    return [f"  {name:<11} {where}"]


def _paged(summary: Mapping[str, Any]) -> list[str]:
    """The line on where the page is, or why there is none; none of a run that ended without."""
    if "undrawn_page" in summary:
        return [f"  page        no page: {summary['undrawn_page']}"]
    return [f"  page        {summary['output']}/{summary['page']}"] if "page" in summary else []


def _at_work(summary: Mapping[str, Any]) -> list[str]:
    """The line on what share of the time pools and parameter server computed, and what one process
    would have taken; none of a run in one process.
    """
    if "server_busy_share" not in summary:
        return []
    pools, alone = summary["pools_busy_share"], summary["one_process_seconds"]
    line = f"  at work     the parameter server {summary['server_busy_share']:.0%} of the time"
    if pools is not None:
        line += f", pools {pools:.0%}"
    if alone is not None:
        line += f"; one process on one core would have taken at most about {alone:.0f} s"
    return [line]


def _slowed(summary: Mapping[str, Any]) -> list[str]:
    """The line on rollbacks, of this process or of one before it; none where there were none."""
    if summary["rate_factor"] == 1:
        return []
    return [
        f"  diverged    rolled back {summary['rollbacks']} times this time; trained on at"
        f" {summary['rate_factor']:g} of optimizer.learning_rate"
    ]


def _ended_early(summary: Mapping[str, Any]) -> list[str]:
    """The line on a run that ended before its last step: its chains agree with the data, or its
    figure got no better.
    """
    if "ended_early" not in summary:
        return []
    ended = summary["ended_early"]
    if "until_pearson" in ended:
        return [
            f"  ended early the chains' two-site covariances correlate with the training rows' at"
            f" {ended['reached']:.3f} (slope {ended['slope']:.2f}), as"
            f" trainer.until_pearson={ended['until_pearson']:g} asks"
        ]
    return [
        f"  ended early {ended['figure']} has not been better than {ended['best']:.4g} since step"
        f" {ended['best_step']}"
    ]


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""
    keep_loopback_direct()
    with lasting_output():
        return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    supervised = is_child()
    try:
        topic = help.wanted(arguments)
        if topic is not None:
            print(help.page(__doc__ or "", topic))
            return 0
        config = compose(arguments)
        if supervised:
            end_with_parent()
        elif config.cluster.driver_restarts:
            command, say = own_command(arguments), partial(print, file=sys.stderr, flush=True)
            return supervise(command, config.cluster.driver_restarts, say)
        from pipeline.runs.interruption import Interrupted

        try:
            run(config)
        except Interrupted as interrupted:
            print(interrupted, flush=True)
            return interrupted.exit_status
    except PipelineError as error:
        print(
            f"{'refused' if error.exit_status == 2 else 'failed'}: {error}",
            file=sys.stderr,
            flush=True,
        )
        return AGAIN if supervised and isinstance(error, ClusterError) else error.exit_status
    except KeyboardInterrupt:
        print("interrupted before the first step of this time", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
