"""The picture `curves.png`: the run's series, drawn from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from pipeline.storage.figures import draw_figure, drawn

Row = dict[str, float]
ENERGY = 'ebm_energy_nats{{source="{}"}}'
LIKELIHOOD = 'ebm_log_likelihood_nats{{bound="{}"}}'
BOUNDS = ("estimate", "at_least", "at_most")
HELD_OUT = ENERGY.format("held_out")
PARTS, PENALTY = "ebm_loss_part", "energy_l2"
COVARIANCES = {"Pearson": "ebm_two_site_pearson", "slope": "ebm_two_site_slope"}
FEW = 30  # rows, each of which is drawn as a point of its own


def draw_curves(rows: Sequence[Row], output: str, title: str) -> dict[str, str]:
    """Draws what varies, by step: energies or else the objective's parts, the likelihood where it
    is followed, loss, gradient norm, acceptance, staleness and speed. What is the same throughout
    stands in the title. Returns what `draw_figure` returns; without rows there is no picture.
    """
    return draw_figure(lambda: _curves(rows, title), output, "curves.png") if rows else {}


def curves(rows: Sequence[Row], title: str) -> bytes:
    """Returns the same picture as the content of a PNG. There is one row at least."""
    return drawn(lambda: _curves(rows, title))


def _curves(rows: Sequence[Row], title: str) -> Figure:
    steps = np.array([row["step"] for row in rows])
    told, panels = _panels(rows)
    settings: dict[str, Any] = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    if len(rows) < FEW:
        settings |= {"lines.marker": "o", "lines.markersize": 3}
    with mpl.rc_context(settings):
        columns = -(-len(panels) // 2)
        figure = Figure(figsize=(3.7 * columns, 6), layout="constrained")
        axes = figure.subplots(2, columns, squeeze=False)
        for axis, draw in zip(axes.flat, panels, strict=False):
            draw(axis, steps, rows)
            axis.set_xlabel("step")
            plain_ticks(axis)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        figure.suptitle(", ".join([title, *told]))
    return figure


def _panels(rows: Sequence[Row]) -> tuple[list[str], list[Callable[..., None]]]:
    """Returns what is said of figures that are the same in all rows, and the panels of the
    others.
    """
    told: list[str] = []
    panels: list[Callable[..., None]] = []
    if LIKELIHOOD.format("estimate") in rows[-1]:
        panels.append(_draw_likelihood)
    panels += [_draw_energies if HELD_OUT in rows[-1] else _draw_parts]
    if HELD_OUT in rows[-1]:
        panels.append(_draw_gap)
    parts = {key.partition('="')[2].rstrip('"}') for key in rows[-1] if key.startswith(PARTS)}
    if not parts or parts - {"positive", "negative", PENALTY}:  # else it is the chains' gap
        panels.append(_draw_loss)
    panels.append(_draw_gradient)
    if rows[-1]["ebm_negatives_total"]:
        keys = [key for key in rows[-1] if key.startswith(("ebm_acceptance", "ebm_swap_ratio"))]
        if all(row.get(key) == 1 for row in rows for key in keys):
            told.append("every proposal accepted")
        else:
            panels.append(_draw_acceptance)
        if rows[-1].get("ebm_lag_steps_sum", 0) or rows[-1].get("ebm_lag_bound_steps", 0):
            panels.append(_draw_staleness)
        else:
            told.append("in lock-step")
    if np.isfinite([row.get(COVARIANCES["Pearson"], np.nan) for row in rows]).any():
        panels.append(_draw_covariances)
    return told, [*panels, _draw_speed]


def plain_ticks(axis: Any) -> None:
    """Writes the ticks of both axes as plain numbers: 10,000 and 0.01, no powers of ten."""
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if axis.get_yscale() == "log":
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


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
    sources = {"held-out rows": "held_out", "training rows": "training", "chains": "negatives"}
    series = {label: ENERGY.format(source) for label, source in sources.items()}
    there = {label: key for label, key in series.items() if any(key in row for row in rows)}
    _plot(axis, steps, rows, there)
    axis.set_title("mean energy, nats")


def _draw_gap(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    """Draws the mean energy of held-out rows less that of training rows, and that of the chains
    less that of the step's positives. Each pair is of the same weights: the level of all energies,
    which may swing by tens of nats from step to step and means nothing, falls out.
    """
    pairs = {
        "held-out less training rows": ("held_out", "training"),
        "chains less positives": ("negatives", "positives"),
    }
    for label, sources in pairs.items():
        values = np.array(
            [[row.get(ENERGY.format(source), np.nan) for source in sources] for row in rows]
        )
        if np.isfinite(values).any():
            axis.plot(steps, values[:, 0] - values[:, 1], label=label, linewidth=1)
    axis.axhline(0, color="0.6", linewidth=0.8, marker="")
    axis.legend()
    axis.set_title("gaps of energy, nats")


def _draw_parts(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    """Draws the terms of the objective, but for penalties that would rule the panel."""
    keys = sorted({key for row in rows for key in row if key.startswith(PARTS)})
    names = {key.partition('="')[2].rstrip('"}'): key for key in keys}
    _plot(axis, steps, rows, {name: key for name, key in names.items() if name != PENALTY})
    axis.set_title("parts of the objective, nats")


def _draw_loss(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    _plot(axis, steps, rows, {"loss": "ebm_loss"})
    axis.set_title("loss")


def _draw_gradient(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    _plot(axis, steps, rows, {"norm": "ebm_gradient_norm"})
    axis.set_yscale("log")
    axis.set_title("gradient norm before clipping")


def _draw_covariances(axis: Any, steps: np.ndarray, rows: Sequence[Row]) -> None:
    _plot(axis, steps, rows, COVARIANCES)
    axis.set_title("two-site covariances, chains against data")


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
    if len(series) > 1:
        axis.legend()


def _increments(rows: Sequence[Row], key: str) -> np.ndarray:
    """Returns a counter's growth from row to row; NaN where a resumed process began again at 0."""
    grown = np.diff([row.get(key, np.nan) for row in rows], prepend=np.nan)
    return np.where(grown >= 0, grown, np.nan)
