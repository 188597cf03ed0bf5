"""The picture `curves.png`: the run's series, drawn from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.storage.figures import draw_figure, drawn

Row = dict[str, float]
ENERGY = 'ebm_energy_nats{{source="{}"}}'
LIKELIHOOD = 'ebm_log_likelihood_nats{{bound="{}"}}'
BOUNDS = ("estimate", "at_least", "at_most")
HELD_OUT = ENERGY.format("held_out")


def draw_curves(rows: Sequence[Row], output: str, title: str) -> dict[str, str]:
    """Draws mean energies, or else the objective's parts, loss, gradient norm and speed, by step;
    with chains, their acceptance, lag and ESS too. Returns what `draw_figure` returns; without rows
    there is no picture.
    """
    return draw_figure(lambda: _curves(rows, title), output, "curves.png") if rows else {}


def curves(rows: Sequence[Row], title: str) -> bytes:
    """Returns the same picture as the content of a PNG. There is one row at least."""
    return drawn(lambda: _curves(rows, title))


def _curves(rows: Sequence[Row], title: str) -> Figure:
    steps = np.array([row["step"] for row in rows])
    probed = HELD_OUT in rows[-1]
    panels: list[Callable[..., None]]
    panels = [_draw_energies if probed else _draw_parts, _draw_loss, _draw_gradient, _draw_speed]
    if rows[-1]["ebm_negatives_total"]:
        panels[3:3] = [_draw_acceptance, _draw_staleness]
    if LIKELIHOOD.format("estimate") in rows[-1]:
        panels.insert(0, _draw_likelihood)
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        columns = -(-len(panels) // 2)
        figure = Figure(figsize=(3.4 * columns, 6), layout="constrained")
        axes = figure.subplots(2, columns)
        for axis, draw in zip(axes.flat, panels, strict=False):
            draw(axis, steps, rows)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis in axes[1]:
            axis.set_xlabel("step")
        figure.suptitle(title)
    return figure


def _draw_likelihood(axis: Any, _: np.ndarray, rows: Sequence[Row]) -> None:
    """Draws each estimate at the version that it is of, with its bounds."""
    found = {
        row["ebm_log_likelihood_version"]: [row[LIKELIHOOD.format(bound)] for bound in BOUNDS]
        for row in rows
        if LIKELIHOOD.format("estimate") in row
    }
    versions = list(found)
    values, low, high = np.array(list(found.values())).T
    axis.fill_between(versions, low, high, alpha=0.3, label="90 % interval")
    axis.plot(versions, values, linewidth=1, label="held-out rows")
    # the first weights are far below, and would flatten the rest
    axis.set_ylim(bottom=float(np.quantile(low, 0.1)))
    axis.legend()
    axis.set_title("log-likelihood, nats a row")


def _draw_energies(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    """Draws the mean energy of held-out rows less that of training rows, and that of the chains
    less that of the step's positives. Each pair is of the same weights: the level of all energies,
    which may swing by tens of nats from step to step and means nothing, falls out.
    """
    pairs = {"held-out rows": ("held_out", "training"), "chains": ("negatives", "positives")}
    for label, sources in pairs.items():
        values = np.array(
            [[row.get(ENERGY.format(source), np.nan) for source in sources] for row in rows]
        )
        if np.isfinite(values).any():
            axis.plot(steps, values[:, 0] - values[:, 1], label=label, linewidth=1)
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.legend()
    axis.set_title("energy above training rows', nats")


def _draw_parts(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    keys = sorted({key for row in rows for key in row if key.startswith("ebm_loss_part")})
    _plot(axis, steps, rows, {key.partition('="')[2].rstrip('"}'): key for key in keys})
    axis.set_title("parts of the objective")


def _draw_loss(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    _plot(axis, steps, rows, {"loss": "ebm_loss"})
    axis.set_title("loss")


def _draw_gradient(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    _plot(axis, steps, rows, {"before clipping": "ebm_gradient_norm"})
    axis.set_yscale("log")
    axis.set_title("gradient norm")


def _draw_speed(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    key = "ebm_negatives_total" if rows[-1]["ebm_negatives_total"] else "ebm_steps_total"
    elapsed = np.diff([row["time"] for row in rows], prepend=np.nan)
    elapsed[elapsed <= 0] = np.nan  # the system's clock was set back meanwhile
    axis.plot(steps, _increments(rows, key) / elapsed)
    axis.set_ylim(bottom=0)
    axis.set_title(f"{key.split('_')[1]} per second")


def _draw_acceptance(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    """Draws acceptance by pool; with a ladder, the first pool's swap rates by pair of rungs too."""
    keys = sorted({key for row in rows for key in row})
    pools = [key for key in keys if key.startswith("ebm_acceptance_ratio")]
    swaps = [key for key in keys if key.startswith("ebm_swap_ratio") and 'pool="0"' in key]
    _plot(
        axis,
        steps,
        rows,
        {key.partition("{")[2].rstrip("}").replace('"', ""): key for key in pools},
    )
    for key in swaps:
        axis.plot(steps, [row.get(key, np.nan) for row in rows], color="0.6", linewidth=0.8)
    axis.set_ylim(0, 1.05)
    axis.set_title("acceptance by pool" + (" (grey: swaps)" if swaps else ""))


def _draw_staleness(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):  # between two rows there may be no batch
        lag = _increments(rows, "ebm_lag_steps_sum") / _increments(rows, "ebm_lag_steps_count")
        ess = _increments(rows, "ebm_ess_ratio_sum") / _increments(rows, "ebm_ess_ratio_count")
    bound = np.array([row.get("ebm_lag_bound_steps", np.nan) for row in rows])
    axis.plot(steps, lag, label="mean lag (left)")
    axis.plot(
        steps, bound, color="C0", linestyle=":", label="its bound, as the ESS steers it (left)"
    )
    axis.plot([], [], color="C1", label="mean ESS ratio (right)")
    axis.set_ylim(0, max(1.0, 1.1 * np.nanmax(lag, initial=0), 1.1 * np.nanmax(bound, initial=0)))
    axis.legend(loc="lower left")
    axis.set_title("staleness")
    other = axis.twinx()
    other.plot(steps, ess, color="C1")
    other.set_ylim(0, 1.05)
    other.grid(False)


def _plot(axis: Any, steps: np.ndarray, rows: Sequence[Row], series: dict[str, str]) -> None:
    for label, key in series.items():
        axis.plot(steps, [row.get(key, np.nan) for row in rows], label=label, linewidth=1)
    axis.legend()


def _increments(rows: Sequence[Row], key: str) -> np.ndarray:
    """Returns a counter's growth from row to row; NaN where a resumed process began again at 0."""
    grown = np.diff([row.get(key, np.nan) for row in rows], prepend=np.nan)
    return np.where(grown >= 0, grown, np.nan)
