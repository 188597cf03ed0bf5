"""Pool of one pool: advance, adopt, restore, restart, and what happens when they break."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data, rows_for_pool
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import make_learner
from pipeline.chains import batch as negatives
from pipeline.chains.pool import Pool
from pipeline.chains.sampler import ChainPlan
from pipeline.common.types import Rows, Weights
from pipeline.config.run import RunConfig
from pipeline.energies.weights import Adoption, flatten
from pipeline.kernels import gibbs

Small = Callable[..., RunConfig]


def weights(config: RunConfig, version: int = 0, scale: float = 1.0) -> Weights:
    return Weights(version, scale * flatten(make_energy(config, (8, 8))))


def test_a_round_says_what_it_was(small: Small) -> None:
    """Versions, rounds, ages and energies of the batch are those of the round; the energy is the
    target's own.
    """
    config = small("deep", "chains.restart=0")
    chains, published = make_chains(config, (8, 8), 1), weights(config, version=5)
    for number in range(3):
        batch, report = chains.advance(published)
        assert report[:4] == (1, 0, number, 5)
        assert report.transitions == 2 * 8
    received = negatives.decode(batch)
    assert received[3:7] == (1, 0, 2, 5)
    assert received.age.tolist() == [6] * 8
    energy = make_energy(config, (8, 8))
    torch.testing.assert_close(received.energy, energy(received.position.view(-1, 8, 8)).detach())


def test_new_weights_are_sampled_from_at_once(small: Small) -> None:
    """Adopting initialises the kernel again: MALA's acceptance under much changed weights stays
    what it should be.

    A state kept across versions would compare energies of two models; in a trial acceptance fell to
    5e-5.
    """
    config = small("deep", "chains.per_pool=200", "kernel.step_size=0.0002", "chains.restart=0")
    chains = make_chains(config, (8, 8), 0)
    for version in range(6):
        _, report = chains.advance(weights(config, version, scale=1 + 5 * version))
        assert report.acceptance > 0.9


def test_a_number_seen_before_may_stand_for_other_weights(small: Small) -> None:
    """A parameter server that began again counts anew: its version 0 is not the one that a pool saw
    first, and energies are those of the weights that were sent.
    """
    config = small("deep", "chains.restart=0")
    chains, energy = make_chains(config, (8, 8), 0), make_energy(config, (8, 8))
    chains.advance(weights(config, version=0))
    chains.advance(weights(config, version=1, scale=2.0))
    again = weights(config, version=0, scale=3.0)
    received = negatives.decode(chains.advance(again)[0])
    assert received.version == 0
    Adoption(energy)(again.flat)
    torch.testing.assert_close(received.energy, energy(received.position.view(-1, 8, 8)).detach())


def test_state_dict_goes_on_bit_for_bit(small: Small) -> None:
    config = small("deep", "chains.restart=0.3")
    one, two = make_chains(config, (8, 8), 0), make_chains(config, (8, 8), 0)
    published = weights(config)
    for _ in range(3):
        one.advance(published)
    two.load_state_dict(one.state_dict())
    first, second = one.advance(published)[0], two.advance(published)[0]
    assert first.equals(second)


def test_a_stream_of_another_kind_of_device_is_begun_anew(small: Small) -> None:
    """A GPU's checkpoint goes on on a CPU: its chains, under a new incarnation's stream."""
    config = small("deep", "chains.restart=0")
    one, two = make_chains(config, (8, 8), 0), make_chains(config, (8, 8), 0)
    one.advance(weights(config))
    state = one.state_dict() | {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
    two.load_state_dict(state)
    assert torch.equal(two.state_dict()["position"], state["position"])
    assert two.incarnation == 1
    two.advance(weights(config))


def test_pools_and_seeds_have_streams_of_their_own(small: Small) -> None:
    config = small("deep")
    published = weights(config)
    ends = [
        negatives.decode(make_chains(c, (8, 8), pool).advance(published)[0]).position
        for c, pool in ((config, 0), (config, 1), (small("deep", "seed=1"), 0))
    ]
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_starts_are_where_chains_begin(small: Small) -> None:
    """With a step size of nearly nothing, chains stay where they are put; their age begins anew."""
    config = small("deep", "objective=cd", "kernel.step_size=1e-12")
    chains = make_chains(config, (8, 8), 0)
    start = torch.randn(8, 8, 8)
    received = negatives.decode(chains.advance(weights(config), Rows(start))[0])
    torch.testing.assert_close(received.position.view(8, 8, 8), start, rtol=0, atol=1e-4)
    assert received.age.tolist() == [2] * 8


def test_revived_chains_are_those_of_the_last_batch(small: Small) -> None:
    """Positions and ages are taken up; the random stream is the new incarnation's."""
    config = small("deep", "kernel.step_size=1e-12", "chains.restart=0")
    published = weights(config)
    chains, fresh, again = (make_chains(config, (8, 8), 0) for _ in range(3))
    last, _ = chains.advance(published)
    fresh.revive(1, 1, last)
    batch, report = fresh.advance(published)
    received = negatives.decode(batch)
    torch.testing.assert_close(
        received.position, negatives.decode(last).position, rtol=0, atol=1e-4
    )
    assert received.age.tolist() == [4] * 8
    assert (report.incarnation, report.round) == (1, 1)
    again.revive(2, 1, last)
    assert not torch.equal(
        negatives.decode(again.advance(published)[0]).position, received.position
    )


def test_chains_revived_without_a_batch_are_those_that_were_stored(small: Small) -> None:
    """Where the pool has sent none since; again in a new stream."""
    config = small("deep", "chains.restart=0")
    published = weights(config)
    chains, fresh = (make_chains(config, (8, 8), 0) for _ in range(2))
    chains.advance(published)
    stored = copy.deepcopy(chains.state_dict())
    fresh.revive(3, 1, None, stored=stored)
    assert torch.equal(fresh.sampler.position, stored["position"])
    ends = [pool.advance(published) for pool in (chains, fresh)]
    received = [negatives.decode(batch) for batch, _ in ends]
    assert received[1].age.tolist() == [4] * 8
    assert (ends[1][1].incarnation, ends[1][1].round) == (3, 1)
    assert not torch.equal(received[0].position, received[1].position)


@pytest.mark.parametrize("overrides", [("deep", "kernel=random_walk"), ("ladder",)], ids=str)
def test_revived_chains_keep_their_tuning(small: Small, overrides: tuple[str, ...]) -> None:
    """Step sizes, rungs, and how far their adaptation has come are those of the report beside the
    last batch, and not of a later round.
    """
    config = small(*overrides)
    published = weights(config)
    chains, fresh = (make_chains(config, (8, 8), 0) for _ in range(2))
    for _ in range(12):
        last, report = chains.advance(published)
    learned = copy.deepcopy(chains.sampler.tuning())
    chains.advance(published)
    configured = fresh.sampler.tuning()
    fresh.revive(1, 12, last, tuning=pickle.loads(pickle.dumps(report.tuning)))
    for name, state in fresh.sampler.tuning().items():
        for key, value in state.items():
            assert np.array_equal(value, learned[name][key]), f"{name} {key}"
    assert fresh.sampler.tuning()["steps"]["logs"] != configured["steps"]["logs"]
    assert fresh.advance(published)[1].tuning["steps"]["updates"] == 13  # type: ignore[index]


def test_a_newcomers_chains_begin_at_the_rows_that_it_is_given(small: Small) -> None:
    """They are training rows, as many as it has chains, and others for another incarnation."""
    config = small("deep", "kernel.step_size=1e-12", "chains.restart=0", "data.noise=0")
    data = open_data(config)
    given = rows_for_pool(config, data, 3, 0)
    assert not torch.equal(given.position, rows_for_pool(config, data, 3, 1).position)
    known = {row.numpy().tobytes() for row in data.sample.reshape(-1, 64)}
    assert all(row.numpy().tobytes() in known for row in given.position.reshape(-1, 64))
    chains = make_chains(config, (8, 8), 3)
    chains.revive(0, 0, None, given)
    received = negatives.decode(chains.advance(weights(config))[0])
    torch.testing.assert_close(received.position, given.position.flatten(1), rtol=0, atol=1e-4)
    assert received.age.tolist() == [2] * 8


def test_restarts_happen_with_their_probability(small: Small) -> None:
    """Counted over 40 rounds of 500 chains: within 5 standard deviations of a binomial (6e-7)."""
    config = small("deep", "chains.restart=0.1", "chains.per_pool=500", "kernel.transitions=1")
    chains, published = make_chains(config, (8, 8), 0), weights(config)
    restarted = sum(chains.advance(published)[1].restarted for _ in range(40))
    assert abs(restarted - 2000) < 5 * math.sqrt(20_000 * 0.1 * 0.9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_chains_start_anew_and_are_counted(small: Small, bad: float) -> None:
    """A chain that is not finite never leaves the pool as one."""
    config = small("deep", "chains.restart=0")
    chains, published = make_chains(config, (8, 8), 0), weights(config)
    state = chains.state_dict()
    state["unplaced"] = None  # they are where they are to begin
    state["position"][[2, 5]] = bad
    chains.load_state_dict(state)
    batch, report = chains.advance(published)
    received = negatives.decode(batch)
    assert report.reseeded == 2
    assert received.position.isfinite().all()
    assert received.energy.isfinite().all()
    assert received.age.tolist() == [2, 2, 0, 2, 2, 0, 2, 2]


def test_weights_may_be_read_only_memory(small: Small) -> None:
    config = small("rbm")
    published = weights(config)
    published.flat.setflags(write=False)
    before = published.flat.copy()
    make_chains(config, (8, 8), 0).advance(published)
    assert np.array_equal(before, published.flat)


def test_gibbs_batches_carry_the_free_energy(small: Small) -> None:
    config = small("rbm")
    energy = make_energy(config, (8, 8))
    plan = ChainPlan(gibbs.kernel, {}, transitions=1, restart=0.0)
    received = negatives.decode(
        Pool(energy, plan, 10, pool=0, seed=0, device="cpu").advance(weights(config))[0]
    )
    assert set(received.position.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(received.energy, energy(received.position).detach())


@pytest.mark.parametrize("kind", ["deep", "rbm", "conv"])
def test_weights_are_mapped_not_copied(small: Small, kind: str) -> None:
    """On the CPU a pool's parameters are the published array itself, and nothing writes to it: it
    is one for a whole node.
    """
    config = small(kind)
    learner = make_learner(config, open_data(config))
    pool = make_chains(config, open_data(config).shape, 0)
    weights = learner.publish()
    weights.flat.flags.writeable = False
    before = weights.flat.copy()
    pool.advance(weights)
    begin, end = weights.flat.ctypes.data, weights.flat.ctypes.data + weights.flat.nbytes
    inside = [begin <= parameter.data_ptr() < end for parameter in pool.energy.parameters()]
    assert all(inside) or kind == "conv", "kernels of convolutions lie in memory in another order"
    assert any(inside)
    assert (weights.flat == before).all()
