"""Chains under contexts: what a pool is sent, what it keeps, what a batch says, and how its
negatives are weighed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import make_learner
from pipeline.chains import batch as negatives
from pipeline.chains.kept import KeptChains
from pipeline.common.errors import ConfigError
from pipeline.common.types import Rows, Weights
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.weights import flatten, unflatten_
from pipeline.runs.inline import InlineRunner
from pipeline.training.staleness import batch_weights
from tests.conftest import descended

Small = Callable[..., RunConfig]
FOUR = ("chains.per_context=4", "trainer.batch_size=16")


def published(config: RunConfig, version: int = 0) -> Weights:
    data = open_data(config)
    return Weights(version, flatten(make_energy(config, data.shape, data.context_shape)))


def some_rows(config: RunConfig, numbers: list[int] | None = None) -> Rows:
    """The first rows a step would send, or the training rows `numbers`."""
    rows = open_data(config).positives(0).next(4)
    if numbers is None:
        return rows
    data = open_data(config)
    assert data.context is not None
    return Rows(data.sample[numbers], data.context.sample[numbers], torch.tensor(numbers))


def test_kept_chains_come_back_to_their_rows() -> None:
    """Two chains a row; rows not met before are fresh, and ages go along."""
    kept = KeptChains(2)
    fresh = torch.arange(8.0).view(8, 1)
    number = torch.tensor([5, 2, 7, 0]).repeat_interleave(2)
    position, age = kept.take(number, fresh)
    assert torch.equal(position, fresh)
    assert age.tolist() == [0] * 8
    kept.put(number, position + 10, age + 3)
    again = torch.tensor([0, 1, 300, 5]).repeat_interleave(2)
    position, age = kept.take(again, -fresh)
    assert position.flatten().tolist() == [16, 17, -2, -3, -4, -5, 10, 11]
    assert age.tolist() == [3, 3, 0, 0, 0, 0, 3, 3]
    restored = KeptChains(2)
    restored.load_state_dict(kept.state_dict(), torch.device("cpu"))
    assert torch.equal(restored.take(again, -fresh)[0], position)


def test_a_batch_tells_the_contexts_and_the_rows(small: Small) -> None:
    """Per row as many chains as asked for, one after the other; the energy is that under the row's
    own context.
    """
    config = small("conditional")
    chains, rows = make_chains(config, (8,), 0, (8, 5)), some_rows(config)
    batch, _ = chains.advance(published(config), rows)
    received = negatives.decode(batch)
    assert received.context is not None
    assert received.number is not None
    copies = config.chains.per_context
    assert received.number.tolist() == rows.number.repeat_interleave(copies).tolist()
    contexts = received.context.view(-1, 8, 5)
    assert torch.equal(contexts, rows.context.repeat_interleave(copies, 0))
    energy = make_energy(config, (8,), (8, 5))
    torch.testing.assert_close(received.energy, energy.given(contexts)(received.position).detach())
    wrong = energy.given(contexts.roll(copies, 0))(received.position).detach()
    assert not torch.allclose(received.energy, wrong, atol=1e-2), (
        "contexts do not matter here: this tests nothing"
    )


def test_chains_go_on_where_their_row_left_them(small: Small) -> None:
    """Also when the row is sent again much later and at another place; without numbers they start
    anew, of age 0.
    """
    config = small("conditional", "kernel=single_site", "kernel.transitions=1")
    chains, weights = make_chains(config, (8,), 0, (8, 5)), published(config)
    first = negatives.decode(chains.advance(weights, some_rows(config, [3, 9, 1, 4]))[0])
    chains.advance(weights, some_rows(config, [0, 2, 5, 6]))
    again = negatives.decode(chains.advance(weights, some_rows(config, [4, 7, 3, 8]))[0])
    # one transition changes one site of eight: what was kept is seen in the others
    before, after = (received.position.view(4, -1, 8) for received in (first, again))
    assert (after[2] == before[0]).float().mean() >= 7 / 8
    assert (after[0] == before[3]).float().mean() >= 7 / 8
    assert (after[1] == before[1]).float().mean() < 7 / 8
    assert again.age.view(4, -1)[:, 0].tolist() == [2, 1, 2, 1]
    anew = negatives.decode(
        chains.advance(weights, some_rows(config, [4, 7, 3, 8])._replace(number=None))[0]
    )
    assert anew.number is None
    assert set(anew.age.tolist()) == {1}


def test_chains_start_at_the_data_of_their_context(small: Small) -> None:
    config = small("conditional", "objective=cd", "kernel=single_site", "kernel.transitions=1")
    chains, rows = make_chains(config, (8,), 0, (8, 5)), some_rows(config)
    received = negatives.decode(chains.advance(published(config), rows)[0])
    same = received.position.view(4, -1, 8) == rows.position[:, None]
    assert same.float().mean((1, 2)).min() >= 7 / 8
    assert set(received.age.tolist()) == {1}


def test_a_pool_that_comes_back_has_the_chains_of_its_last_rows(small: Small) -> None:
    config = small("conditional")
    chains, weights = make_chains(config, (8,), 0, (8, 5)), published(config)
    rows = some_rows(config, [3, 9, 1, 4])
    last, _ = chains.advance(weights, rows)
    fresh = make_chains(config, (8,), 0, (8, 5))
    fresh.revive(1, 1, last)
    number = rows.number.repeat_interleave(config.chains.per_context)
    position, age = fresh._kept.take(number, torch.full((len(number), 8), -1.0))
    assert torch.equal(position, negatives.decode(last).position)
    assert age.tolist() == negatives.decode(last).age.tolist()


def test_a_pool_that_comes_back_has_the_chains_that_an_older_state_kept(small: Small) -> None:
    """Those of rows that are not in its last batch; those that are in it are newer there."""
    config = small("conditional")
    chains, weights = make_chains(config, (8,), 0, (8, 5)), published(config)
    chains.advance(weights, some_rows(config, [3, 9, 1, 4]))
    stored = copy.deepcopy(chains.state_dict())
    last, _ = chains.advance(weights, some_rows(config, [5, 9, 2, 4]))
    fresh = make_chains(config, (8,), 0, (8, 5))
    fresh.revive(1, 2, last, stored=stored)
    number = torch.tensor([1, 2, 3, 4, 5, 9]).repeat_interleave(config.chains.per_context)
    nothing = torch.full((len(number), 8), -1.0)
    for found, expected in zip(
        fresh._kept.take(number, nothing), chains._kept.take(number, nothing), strict=True
    ):
        assert torch.equal(found, expected)


def test_weights_are_normalised_within_each_context() -> None:
    """By hand, a context at a time; contexts share a batch's weight evenly, whatever the size of
    their energies' changes.
    """
    generator = torch.Generator().manual_seed(0)
    then, now = torch.randn(2, 24, generator=generator)
    now[8:16] += 50.0  # a whole context's shift is a change of its Z alone
    counts = torch.rand(24, generator=generator) > 0.3
    counts[16:] = False
    weights, ess = batch_weights(then, now, counts, 3, True, contexts=3)
    ratios = []
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        chosen = counts[part] if counts[part].any() else torch.ones(8, dtype=torch.bool)
        by_hand = torch.zeros(8, dtype=torch.float64)
        by_hand[chosen] = torch.softmax((then[part].double() - now[part].double())[chosen], 0)
        torch.testing.assert_close(weights[part], by_hand / 3)
        ratios.append(float(1 / (chosen.sum() * by_hand.square().sum())))
    assert ess == pytest.approx(sum(ratios) / 3)
    uniform, one = batch_weights(then, now, counts, 0, True, contexts=3)
    assert one == 1.0
    assert uniform[:8].unique().tolist() == [0.0, 1 / (3 * int(counts[:8].sum()))]
    assert uniform[16:].tolist() == [1 / 24] * 8


def test_a_step_is_the_gradient_given_the_contexts(small: Small) -> None:
    """theta' = theta - rate (mean grad E(y+ | x) - mean grad E(y- | x-)), each under its own
    contexts, in chunks or at once.
    """
    plain = (
        "optimizer.name=sgd",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=0.1",
        "optimizer.warmup=0",
    )
    for chunks in ((), ("trainer.chunk_rows=5",)):
        config = small("conditional", *plain, "optimizer.momentum=0", *chunks)
        data = open_data(config)
        learner = make_learner(config, data)
        rows = learner.starts(0)
        assert rows.number is not None
        pools = [make_chains(config, data.shape, pool, data.context_shape) for pool in range(2)]
        batches = [
            pool.advance(learner.publish(), some)[0]
            for pool, some in zip(pools, rows.chunk(2), strict=True)
        ]
        energy = make_energy(config, data.shape, data.context_shape)
        unflatten_(energy, learner.publish().flat)
        received = [negatives.decode(batch) for batch in batches]
        position = torch.cat([one.position for one in received])
        contexts = torch.cat([_contexts(one) for one in received])
        (
            energy.given(rows.context)(rows.position).mean()
            - energy.given(contexts)(position).mean()
        ).backward()
        expected = descended(energy, 0.1)
        _, weights = learner.step(batches)
        torch.testing.assert_close(torch.from_numpy(weights.flat), expected, rtol=0, atol=1e-6)


def _contexts(received: negatives.Negatives) -> Tensor:
    assert received.context is not None
    return received.context.view(-1, 8, 5)


def test_many_contexts_are_not_kept(small: Small) -> None:
    """Where there are more training rows than chains may be kept for, the learner sends rows
    without numbers.
    """
    for limit, kept in ((60, True), (59, False)):
        config = small(
            "conditional", f"chains.kept_contexts={limit}", "data.rows=80", "data.held_out=20"
        )
        learner = make_learner(config, open_data(config))
        assert (learner.starts(0).number is not None) == kept


def test_stale_negatives_are_reweighted_within_contexts(small: Small) -> None:
    """At an exact lag of 3, 8 chains a context: the ESS is below 1 from the first stale step on;
    with fewer it is refused.
    """
    config = small(
        "conditional", "trainer.lag=3", "trainer.lag_mode=exact", "optimizer.learning_rate=0.1"
    )
    assert config.reweight
    runner = InlineRunner(config)
    runner.start(None, None)
    ess = [runner.step()[0].ess for _ in range(6)]
    assert ess[0] == (1.0, 1.0)
    assert max(ess[-1]) < 1.0


def test_chains_that_start_anew_are_not_reweighted(small: Small) -> None:
    config = small(
        "conditional", "trainer.lag=3", "trainer.lag_mode=exact", "chains.kept_contexts=10"
    )
    with pytest.raises(ConfigError, match=r"chains\.kept_contexts=10: .* 160 training rows"):
        open_data(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*FOUR, "trainer.reweight=true"], r"chains\.per_context=4: .* use chains\.per_context=8"),
        ([*FOUR, "trainer.lag=2"], r"trainer\.lag=2: .* at most 1"),
        (["chains.per_context=5"], r"chains\.per_context=5: must divide"),
        (["trainer.batch_size=16"], r"trainer\.batch_size=16: .* use 8 \(of 64 negatives: .*\)"),
        (
            ["kernel=replica_exchange", "kernel.inner=gibbs_with_gradients"],
            r"kernel=replica_exchange: .* conditional",
        ),
        (["objective=nce"], r"objective=nce: learns one log Z"),
        (["objective=label_likelihood"], r"objective=label_likelihood: .* use energy=label_mlp"),
        (["energy=rbm"], r"data=tags: energy=rbm is over"),
    ],
)
def test_what_makes_no_sense_is_refused(small: Small, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_data(small("conditional", *overrides))


def test_contexts_are_needed_and_of_one_chain_where_there_are_none(small: Small) -> None:
    with pytest.raises(
        ConfigError, match=r"data=toy: energy=conditional_mlp conditions on a context"
    ):
        open_data(compose(["experiment=toy", "energy=conditional_mlp", "trainer.batch_size=256"]))
    with pytest.raises(ConfigError, match=r"chains\.per_context=2: energy=mlp has no contexts"):
        small("deep", "chains.per_context=2")
