"""Coins that are tossed many at once, from bits in bulk: their law, to bits that decide rarely.

False alarms: |z| < 6.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.common.rng import random_words
from pipeline.energies.conditionals import WORTH_BULK, coins

Z_LIMIT = 6.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rare_coins_have_their_probability() -> None:
    """Probabilities between those of 16 bits: without the bits behind them the half of 2^-16 would
    be 0 or 2^-16, 11 standard errors off.
    """
    steps = torch.tensor([0.0, 0.5, 1.5, 1000.25, 65535.5, 65536.0])
    counts = torch.zeros(6)
    tosses, rounds = 1 << 18, 64
    generator = seeded()
    for _ in range(rounds):
        counts += coins((steps / 65536).repeat(tosses // 8, 8), generator).view(-1, 6).sum(0)
    total = tosses * rounds
    assert counts[0] == 0
    assert counts[5] == total
    p = steps[1:5].double() / 65536
    z = (counts[1:5] - total * p) / (total * p * (1 - p)).sqrt()
    assert float(z.abs().max()) < Z_LIMIT


def test_coins_know_nothing_of_one_another() -> None:
    """All pairs within a row, neighbours in a column, and one toss with the next."""
    p = torch.linspace(0.05, 0.95, 64).expand(1 << 14, 64)
    generator = seeded()
    first, second = ((coins(p.clone(), generator) - p) / (p * (1 - p)).sqrt() for _ in range(2))
    root = len(p) ** 0.5
    within = first.T @ first / root
    assert float(within.triu(1).abs().max()) < Z_LIMIT
    assert float((first[1:] * first[:-1]).sum(0).abs().max()) / root < Z_LIMIT
    assert float((first * second).sum(0).abs().max()) / root < Z_LIMIT
    assert float(first.sum(0).abs().max()) / root < Z_LIMIT


@pytest.mark.parametrize("count", [WORTH_BULK - 1, WORTH_BULK, WORTH_BULK + 3])
def test_coins_are_a_function_of_the_generator(count: int) -> None:
    """One seed gives the same coins, with any number of threads; they are tossed once each."""
    threads, p = torch.get_num_threads(), torch.full((1, count), 0.5)
    generator = seeded()
    tossed = coins(p.clone(), generator)
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(coins(p.clone(), seeded()), tossed)
    finally:
        torch.set_num_threads(threads)
    assert tossed.shape == p.shape
    assert not torch.equal(coins(p.clone(), generator), tossed)
    assert not torch.equal(coins(p.clone(), seeded(1)), tossed)


def test_words_have_every_bit_half_the_time() -> None:
    words = random_words(1 << 16, seeded())
    shares = [float((words >> bit & 1).mean()) for bit in range(64)]
    assert max(abs(share - 0.5) for share in shares) * 2 * 2**8 < Z_LIMIT
