"""The moments that laws can have, M = {E_p[phi]: p any law} = conv{phi(x)} (Wainwright & Jordan
2008, section 3.4): a law with moments mu exists where mu lies in M, and one of an exponential
family, with a finite parameter, where mu lies in its relative interior.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.energies.discrete import all_states
from pipeline.energies.maxent.exponential_family import ExponentialFamily
from pipeline.energies.maxent.features import ComponentFeatures, FeatureMap, Pairs, Polynomial
from pipeline.energies.quadrature import product

STATES = 2**16  # most states, or points of a grid, of a linear programme
SIDE = {1: 4096, 2: 128}
TOLERANCE = 1e-7
# to which moments must obey the linear equations that the features do, in units of their range
EQUATION = 1e-5


class Verdict(NamedTuple):
    """`kind`: "inside" the relative interior, on its "boundary", "outside"; "possible" where no
    condition is broken but not all were tried. `reason` says in words what shows it.
    """

    kind: str
    reason: str = ""


def locate(energy: ExponentialFamily, mu: Tensor, slack: float = 0.0) -> Verdict:
    """Of the moments `mu` [F], each allowed to miss by `slack` (the box relaxation).

    Over all states where there are at most 2^16, or a grid in one or two real dimensions, by a
    linear programme: exact but for the grid. Else by conditions that are necessary: each
    component's moments by a programme of its own; for two levels max(0, m_i + m_j - 1) <= m_ij <=
    min(m_i, m_j) (Frechet 1935); and a positive semidefinite matrix of second moments.
    """
    mu = mu.double().cpu()
    points = _grid(energy)
    if points is not None:
        with torch.no_grad():
            phi = energy.features(points.to(energy.natural)).double().cpu()
        return _by_programme(phi.numpy(), mu.numpy(), energy.names, slack)
    verdicts = [
        *_by_component(energy, mu, slack),
        *_by_pairs(energy, mu, slack),
        _by_second_moments(energy, mu, slack),
    ]
    broken = [verdict for verdict in verdicts if verdict.kind in ("outside", "boundary")]
    return min(broken, key=lambda verdict: verdict.kind != "outside", default=Verdict("possible"))


def _grid(energy: ExponentialFamily) -> Tensor | None:
    """All states `[S, *shape]`, or a grid of points; None where there are too many."""
    if energy.levels is not None:
        if energy.levels**energy.dimension > STATES:
            return None
        states = torch.cat(list(all_states(energy.levels, energy.dimension)))
        return states.view(-1, *energy.shape)
    if energy.dimension not in SIDE:
        return None
    side = torch.linspace(*energy.window, SIDE[energy.dimension], dtype=torch.float64)
    return product(side, energy.shape)


def _by_programme(phi: np.ndarray, mu: np.ndarray, names: tuple[str, ...], slack: float) -> Verdict:
    """With c the mean of all rows of `phi` [S, F], which lies in the relative interior of their
    convex hull:

        maximise t subject to sum_s r_s phi_s + t c = m, sum_s r_s + t = 1, r >= 0, |m - mu| <=
        slack.

    m is inside where t > 0, on the boundary at 0, outside below; infeasible where it is not even in
    their affine hull.
    """
    centre = phi.mean(0)
    scale = np.abs(phi - centre).max(0)
    scale[scale < 1e-12] = 1.0  # a constant feature
    rows, wanted = (phi - centre) / scale, (mu - centre) / scale
    normals = _constant_forms(rows)
    off = normals @ (normals.T @ wanted)
    if slack == 0 and np.abs(off).max(initial=0.0) > EQUATION:
        form = _tidy(off / scale)
        form = form * np.sign(form[np.abs(form).argmax()])
        return Verdict(
            "outside",
            f"{_in_words(form, names)} is always {_number(centre @ form)}, not"
            f" {_number(mu @ form)}",
        )
    wanted = wanted - off if slack == 0 else wanted  # what rounding put off it
    done = _solved(rows, wanted, slack / scale)
    if done.status != 0:
        return Verdict(
            "outside",
            f"within {slack:g} of them the features break a linear equation that they always obey",
        )
    depth = -done.fun
    if depth > TOLERANCE:
        return Verdict("inside")
    form = _tidy(done.eqlin.marginals[:-1] / scale)
    form = form if form @ (mu - centre) > 0 else -form
    most, asked = (phi @ form).max(), mu @ form - slack * np.abs(form).sum()
    if depth < -TOLERANCE:
        return Verdict(
            "outside",
            f"{_in_words(form, names)} is at most {_number(most)}, so {_number(asked)} is no mean"
            " of it",
        )
    return Verdict(
        "boundary",
        f"{_in_words(form, names)} would have to be {_number(most)}, its maximum, always",
    )


def _solved(rows: np.ndarray, wanted: np.ndarray, room: np.ndarray) -> Any:
    """scipy's result for the programme of `_by_programme`, in centred `rows` [S, F] of one scale:
    the moments `wanted` [F] may be missed by `room` [F] each.
    """
    from scipy.optimize import linprog  # a third of a second, that most processes do without

    count, features = rows.shape
    # variables: r, t, and the miss of each moment
    equations = np.zeros((features + 1, count + 1 + features))
    equations[:-1, :count] = rows.T
    equations[:-1, count + 1 :] = np.eye(features)
    equations[-1, : count + 1] = 1
    cost = np.zeros(count + 1 + features)
    cost[count] = -1
    return linprog(
        cost,
        A_eq=equations,
        b_eq=np.append(wanted, 1),
        bounds=[(0, None)] * count + [(None, None)] + [(-most, most) for most in room],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    )


def _constant_forms(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the linear forms that are 0 on all centred `rows` [S, F], in
    columns.
    """
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    basis: np.ndarray = vectors[:, values <= 1e-12]
    return basis


def _tidy(form: np.ndarray) -> np.ndarray:
    form = form / max(np.abs(form).max(), 1e-300)
    return np.where(np.abs(form) < 1e-9, 0.0, form)


def _in_words(form: np.ndarray, names: tuple[str, ...], most: int = 6) -> str:
    """A linear form of the features, its largest terms first."""
    order = [number for number in np.argsort(-np.abs(form), kind="stable") if form[number]]
    text = ""
    for number in order[:most]:
        name = f"({names[number]})" if " " in names[number] else names[number]
        size = abs(form[number])
        text += (" - " if form[number] < 0 else " + ") + (
            name if abs(size - 1) < 1e-9 else f"{size:.4g} {name}"
        )
    text = f"-{text[3:]}" if text.startswith(" - ") else text[3:]
    return text + (" + ..." if len(order) > most else "")


def _number(value: float) -> str:
    return f"{round(float(value), 9):.6g}"


def _places(energy: ExponentialFamily) -> list[tuple[FeatureMap, slice]]:
    """The maps, and where the features of each stand."""
    places, start = [], 0
    for some in energy.maps:
        places.append((some, slice(start, start + len(some.names))))
        start += len(some.names)
    return places


def _values(energy: ExponentialFamily) -> Tensor:
    """The values of one component, or a grid of them, `[V]` float64."""
    if energy.levels is not None:
        return torch.arange(energy.levels, dtype=torch.float64)
    return torch.linspace(*energy.window, 1025, dtype=torch.float64)


def _by_component(energy: ExponentialFamily, mu: Tensor, slack: float) -> list[Verdict]:
    """A programme for the features of each component alone."""
    own = [(some, place) for some, place in _places(energy) if isinstance(some, ComponentFeatures)]
    if not own:
        return []
    phi = torch.cat([some.of_values(_values(energy)) for some, _ in own], 1).numpy()
    by_component = torch.cat([mu[place].view(energy.dimension, -1) for _, place in own], 1).numpy()
    verdicts = []
    for number in range(energy.dimension):
        names: tuple[str, ...] = ()
        for some, _ in own:
            each = len(some.names) // energy.dimension
            names += some.names[number * each : (number + 1) * each]
        verdicts.append(_by_programme(phi, by_component[number], names, slack))
    return verdicts


def _means(energy: ExponentialFamily, mu: Tensor) -> Tensor | None:
    """E[x_i], `[d]`, where they are among the moments."""
    for some, place in _places(energy):
        if isinstance(some, Polynomial):
            return mu[place].view(energy.dimension, -1)[:, 0]
    return None


def _by_pairs(energy: ExponentialFamily, mu: Tensor, slack: float) -> list[Verdict]:
    """Frechet's bounds, with slack on all three moments."""
    means = _means(energy, mu)
    verdicts: list[Verdict] = []
    if energy.levels != 2 or means is None:
        return verdicts
    for some, place in _places(energy):
        if not isinstance(some, Pairs):
            continue
        first, second, joint = means[some.first], means[some.second], mu[place]
        low, high = (first + second - 1).clamp(min=0), torch.minimum(first, second)
        excess = torch.maximum(low - joint, joint - high) - 3 * slack
        worst = int(excess.argmax())
        if float(excess[worst]) < -TOLERANCE:
            continue
        a, b = float(first[worst]), float(second[worst])
        reason = (
            f"with means {a:.6g} and {b:.6g} the mean of {some.names[worst]} is between"
            f" {float(low[worst]):.6g} and {float(high[worst]):.6g}, and {float(joint[worst]):.6g}"
            " is asked"
        )
        verdicts.append(
            Verdict("outside" if float(excess[worst]) > TOLERANCE else "boundary", reason)
        )
    return verdicts


def _by_second_moments(energy: ExponentialFamily, mu: Tensor, slack: float) -> Verdict:
    """E[(1, x) (1, x)'] is positive semidefinite, where all its entries are among the moments;
    within `slack` d + 1 of it.
    """
    matrix = _second_moments(energy, mu)
    if matrix is None:
        return Verdict("possible")
    smallest = float(torch.linalg.eigvalsh(matrix)[0]) + slack * len(matrix)
    if smallest > TOLERANCE * float(matrix.diagonal().max()):
        return Verdict("possible")
    reason = (
        f"the matrix of their second moments has the eigenvalue {smallest:.3g}, and a law's has"
        " none below 0"
    )
    return Verdict("outside" if smallest < -TOLERANCE else "boundary", reason)


def _second_moments(energy: ExponentialFamily, mu: Tensor) -> Tensor | None:
    """E[(1, x) (1, x)'], `[1 + d, 1 + d]`."""
    d, means, squares, joint = energy.dimension, _means(energy, mu), None, None
    for some, place in _places(energy):
        if isinstance(some, Polynomial) and some.degree > 1:
            squares = mu[place].view(d, -1)[:, 1]
        if isinstance(some, Pairs) and len(some.first) == math.comb(d, 2):
            joint = (some, mu[place])
    squares = means if energy.levels == 2 and squares is None else squares
    if means is None or squares is None or joint is None:
        return None
    matrix = torch.eye(d + 1, dtype=mu.dtype)
    matrix[0, 1:] = matrix[1:, 0] = means
    pairs, values = joint
    matrix[pairs.first + 1, pairs.second + 1] = matrix[pairs.second + 1, pairs.first + 1] = values
    matrix[range(1, d + 1), range(1, d + 1)] = squares
    return matrix
