"""Laws in the plane whose density is known: a likelihood can be checked against their truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.config.data import LabelledToysData, ToyData
from pipeline.data.base import DataSet, LogDensity, held_out_of, in_memory, split

Draw = Callable[[np.random.RandomState, int], np.ndarray]


def toy(config: ToyData) -> DataSet:
    """Draws `rows` of the law, the last `held_out` kept out; `log_density` is the law's own (None
    once noise is added). Raises `ConfigError` where no training row is left.
    """
    draw, log_density = LAWS[config.law]
    held_out_of(config.held_out, config.rows)
    rows = draw(np.random.RandomState(config.split_seed), config.rows)
    train, held_out = split(rows, config.held_out, config.split_seed)
    return in_memory(train, held_out, config.noise, None if config.noise else log_density)


def labelled_toys(config: LabelledToysData) -> DataSet:
    """Draws `rows`, as many of each of the `laws`, with the number of its law for a context;
    `log_density` is that of a row's own law (None once noise is added). Raises `ConfigError` where
    no training row is left.
    """
    held_out_of(config.held_out, config.rows)
    random = np.random.RandomState(config.split_seed)
    labels = np.arange(config.rows) % len(config.laws)
    rows = np.empty((config.rows, 2))
    for number, law in enumerate(config.laws):
        rows[labels == number] = LAWS[law][0](random, int((labels == number).sum()))

    def log_density(position: Tensor, context: Tensor) -> Tensor:
        logs = torch.stack([LAWS[law][1](position) for law in config.laws], 1)
        return logs.gather(1, context.long()[:, None])[:, 0]

    pieces = [split(values, config.held_out, config.split_seed) for values in (rows, labels)]
    return in_memory(
        *pieces[0], config.noise, None if config.noise else log_density, context=pieces[1]
    )


EIGHT_RADIUS, EIGHT_STD = 2.0, 0.2


def _eight_centres() -> np.ndarray:
    angles = np.arange(8) * (2 * math.pi / 8)
    return EIGHT_RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1)


def draw_8gaussians(random: np.random.RandomState, count: int) -> np.ndarray:
    return _eight_centres()[random.randint(8, size=count)] + EIGHT_STD * random.randn(count, 2)


def log_8gaussians(x: Tensor) -> Tensor:
    """log p(x) = logsumexp_k [-|x - c_k|^2 / (2 s^2)] - log 8 - log(2 pi s^2), s = 0.2, centres on
    a circle of radius 2.
    """
    return _log_isotropic_mixture(x, torch.from_numpy(_eight_centres()), EIGHT_STD)


MOON_STD, MOON_NODES = 0.1, 512


def _moons(angles: np.ndarray) -> np.ndarray:
    """Points of the two half circles at `angles` [A] in [0, pi]; `[2, A, 2]`, centred, of radius
    1.5.
    """
    upper = np.stack([np.cos(angles), np.sin(angles)], -1)
    lower = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], -1)
    return 1.5 * (np.stack([upper, lower]) - np.array([0.5, 0.25]))


def draw_two_moons(random: np.random.RandomState, count: int) -> np.ndarray:
    arcs = _moons(math.pi * random.rand(count))
    return arcs[random.randint(2, size=count), np.arange(count)] + MOON_STD * random.randn(count, 2)


def log_two_moons(x: Tensor) -> Tensor:
    """log of (1 / 2 pi) sum over both arcs of the integral of N(x; arc(theta), s^2 I) d theta over
    [0, pi], s = 0.1.

    By the midpoint rule with 512 nodes an arc, far finer than s: the arcs become an isotropic
    mixture.
    """
    angles = (np.arange(MOON_NODES) + 0.5) * (math.pi / MOON_NODES)
    return _log_isotropic_mixture(x, torch.from_numpy(_moons(angles).reshape(-1, 2)), MOON_STD)


def draw_checkerboard(random: np.random.RandomState, count: int) -> np.ndarray:
    column = random.randint(4, size=count)
    row = 2 * random.randint(2, size=count) + column % 2
    inside = (
        random.randint(2**20, size=(count, 2)) + 0.5
    ) / 2**20  # never on an edge, in float32 either
    return np.stack([column, row], 1) - 2.0 + inside


def log_checkerboard(x: Tensor) -> Tensor:
    """-log 8 on the eight unit squares of [-2, 2]^2 whose column and row have one parity, -inf
    elsewhere.
    """
    cell = torch.floor(x.double() + 2).long()
    inside = ((cell >= 0) & (cell < 4)).all(1) & ((cell.sum(1) % 2) == 0)
    return torch.where(inside, torch.tensor(-math.log(8), dtype=torch.float64), -math.inf)


RING_RADIUS, RING_STD = 2.0, 0.3


def draw_ring(random: np.random.RandomState, count: int) -> np.ndarray:
    angles = 2 * math.pi * random.rand(count)
    return RING_RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1) + RING_STD * random.randn(
        count, 2
    )


def log_ring(x: Tensor) -> Tensor:
    """A circle of radius R = 2, uniform, in isotropic noise of s = 0.3: with r = |x| and the Bessel
    function I_0,

    log p(x) = log I_0(r R / s^2) - (r^2 + R^2) / (2 s^2) - log(2 pi s^2)
    """
    radius, variance = torch.linalg.vector_norm(x.double(), dim=1), RING_STD**2
    bessel = torch.special.i0e(
        radius * RING_RADIUS / variance
    ).log()  # of I_0(z) exp(-z), which completes the square
    return (
        bessel - (radius - RING_RADIUS).square() / (2 * variance) - math.log(2 * math.pi * variance)
    )


STRIPE_LENGTH, STRIPE_WIDTHS, STRIPE_SHARES = 1.5, (0.5, 1.5), (0.8, 0.2)


def draw_stripe(random: np.random.RandomState, count: int) -> np.ndarray:
    widths = np.where(random.rand(count) < STRIPE_SHARES[0], *STRIPE_WIDTHS)
    return np.stack([STRIPE_LENGTH * random.randn(count), widths * random.randn(count)], 1)


def log_stripe(x: Tensor) -> Tensor:
    """x_1 ~ N(0, 1.5^2) and, independent of it, x_2 ~ 0.8 N(0, 0.5^2) + 0.2 N(0, 1.5^2)."""
    length, width = x.double().unbind(1)
    parts = [
        math.log(share) + _log_normal(width, std)
        for share, std in zip(STRIPE_SHARES, STRIPE_WIDTHS, strict=True)
    ]
    return _log_normal(length, STRIPE_LENGTH) + torch.logsumexp(torch.stack(parts), 0)


def _log_normal(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2)."""
    return -(x / std).square() / 2 - math.log(std * math.sqrt(2 * math.pi))


def _log_isotropic_mixture(x: Tensor, centres: Tensor, std: float) -> Tensor:
    squared = torch.cdist(x.double(), centres.double()).square()
    return (
        torch.logsumexp(-squared / (2 * std**2), 1)
        - math.log(len(centres))
        - math.log(2 * math.pi * std**2)
    )


LAWS: dict[str, tuple[Draw, LogDensity]] = {
    "8gaussians": (draw_8gaussians, log_8gaussians),
    "two_moons": (draw_two_moons, log_two_moons),
    "checkerboard": (draw_checkerboard, log_checkerboard),
    "ring": (draw_ring, log_ring),
    "stripe": (draw_stripe, log_stripe),
}
