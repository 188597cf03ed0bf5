"""Runs that resume with another shape or on another device: what is kept, and what begins anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.parameter_server import ParameterServer
from pipeline.chains.dealing import LIVES
from pipeline.common.rng import torch_generator
from pipeline.config.run import RunConfig
from pipeline.runs.inline import InlineRunner
from pipeline.storage.checkpoint import Checkpoint
from pipeline.storage.parts import decode
from tests.unit.test_checkpoint import final_weights, save, trained

Small = Callable[..., RunConfig]
# the same chains in all: 2 pools of 8, or of 32 in the conditional model
SAME = {
    "deep": [(4, 4), (1, 16), (8, 2)],
    "ladder": [(4, 4), (1, 16)],
    "conditional": [(4, 16), (1, 64)],
}


def shaped(small: Small, kind: str, pools: int, per_pool: int, *more: str) -> RunConfig:
    shape = (f"chains.pools={pools}", f"chains.per_pool={per_pool}")
    return small(kind, "cluster=inline", *shape, *more)


def stored(small: Small, kind: str, output: Path, steps: int = 4, *more: str) -> Checkpoint:
    """The checkpoint of a run of as many steps, with the shape that is the default of its kind."""
    config = small(kind, "cluster=inline", *more)
    return save(trained(config, steps), config, str(output), steps)


def states(runner: InlineRunner) -> list[dict[str, Any]]:
    return [pool.state_dict() for pool in runner._pools]


def joined(parts: list[dict[str, Any]], name: str, rungs: int = 1) -> Tensor:
    """The field of all pools' chains, end to end, `[R, N, ...]`."""
    return torch.cat([part[name].unflatten(0, (rungs, -1)) for part in parts], 1)


def began(config: RunConfig, checkpoint: Checkpoint) -> InlineRunner:
    return trained(config, 0, checkpoint)


@pytest.mark.parametrize("kind", SAME)
def test_chains_ages_and_tuning_are_kept(small: Small, tmp_path: Path, kind: str) -> None:
    """With as many chains in all, and back again to the shape of before; and runs go on."""
    more = ("kernel.target_acceptance=0.6",) if kind == "deep" else ()
    checkpoint = stored(small, kind, tmp_path, 4, *more)
    rungs = 3 if kind == "ladder" else 1
    old = [checkpoint.read(f"pool-{n}") for n in range(2)]
    sizes = [part["tuning"]["steps"]["logs"] for part in old if "steps" in part["tuning"]]
    for pools, per_pool in SAME[kind]:
        config = shaped(small, kind, pools, per_pool, *more)
        runner = began(config, checkpoint)
        new = states(runner)
        assert joined(new, "position", rungs).equal(joined(old, "position", rungs))
        assert joined(new, "age").equal(joined(old, "age"))
        if sizes:
            learned = sizes[1] if pools > 1 else np.mean(sizes, 0)
            found = new[-1]["tuning"]["steps"]
            np.testing.assert_allclose(found["logs"], learned, rtol=1e-12)
            assert found["updates"] == 4
            assert sizes[0] != sizes[1]
        assert trained(config, 2, checkpoint)._learner.version == 6
        there = save(runner, config, str(tmp_path / f"{pools}"), 4)
        back = states(began(small(kind, "cluster=inline", *more), there))
        assert joined(back, "position", rungs).equal(joined(old, "position", rungs))


def test_chains_of_rows_are_kept(small: Small, tmp_path: Path) -> None:
    """Of each row that a pool had chains for, one of its heirs has them."""
    checkpoint = stored(small, "conditional", tmp_path, 12)
    old = [checkpoint.read(f"pool-{n}")["kept"] for n in range(2)]
    runner = began(shaped(small, "conditional", 4, 16), checkpoint)
    new = [part["kept"] for part in states(runner)]
    for before, heirs in ((old[0], new[:2]), (old[1], new[2:])):
        there = before["age"][:, 0] >= 0
        counts = sum((heir["age"][:, 0] >= 0).int() for heir in heirs)
        assert counts.tolist() == there.int().tolist()
        for heir in heirs:
            own = heir["age"][:, 0] >= 0
            assert 0 < int(own.sum()) < int(there.sum())
            assert heir["position"][own].equal(before["position"][own])


@pytest.mark.parametrize("newcomers", ["snapshot", "data", "noise"])
def test_newcomers_begin_as_the_configuration_says(
    small: Small, tmp_path: Path, newcomers: str
) -> None:
    """16 chains become 24: copies of the first 8, or training rows, or draws of the base law under
    the weights of the checkpoint, which are made when the first round begins.
    """
    checkpoint = stored(small, "rbm", tmp_path, 4, "chains.per_pool=8", "energy.hidden=4")
    more = (f"chains.newcomers={newcomers}", "energy.hidden=4")
    runner = began(shaped(small, "rbm", 2, 12, *more), checkpoint)
    old = joined([checkpoint.read(f"pool-{n}") for n in range(2)], "position")
    new = states(runner)
    assert joined(new, "position")[:, :16].equal(old)
    fresh, ages = new[1]["position"][4:], new[1]["age"][4:]
    if newcomers == "snapshot":
        assert fresh.equal(old[0, :8])
    else:
        assert ages.eq(0).all()
    if newcomers == "data":
        rows = runner._data.sample.flatten(1)
        distances = torch.cdist(fresh.flatten(1), rows, p=1).min(1).values
        assert distances.eq(0).all()
    waiting = [pool._unplaced for pool in runner._pools]
    assert waiting[0] is None
    if newcomers == "noise":
        assert waiting[1] is not None
        assert waiting[1].tolist() == [False] * 4 + [True] * 8
        kept = began(runner._config, save(runner, runner._config, str(tmp_path / "again"), 4))
        for one in (runner, kept):  # a checkpoint in between changes nothing
            one._pools[1].adopt(one._learner.publish())
            one._pools[1].begin()
        assert states(kept)[1]["position"].equal(states(runner)[1]["position"])
        assert states(runner)[1]["position"][:4].equal(new[1]["position"][:4])
        assert not states(runner)[1]["position"][4:].equal(fresh)
    else:
        assert waiting[1] is None


def seeds(runner: InlineRunner) -> set[int]:
    return {pool.generator.initial_seed() for pool in runner._pools}


def test_a_new_shape_has_new_random_streams(small: Small, tmp_path: Path) -> None:
    """None that was used before; back and forth, too, and after a pool has died in between. A pool
    that goes on as it was draws the numbers that come next.
    """
    config = shaped(small, "deep", 2, 8)
    runner = trained(config, 2)
    used = seeds(runner)
    for step, (pools, per_pool) in enumerate([(4, 4), (2, 8), (4, 4), (1, 16)], 3):
        checkpoint = save(runner, runner._config, str(tmp_path / str(step)), step - 1)
        runner = trained(shaped(small, "deep", pools, per_pool), 1, checkpoint)
        assert len(seeds(runner)) == pools
        assert not used & seeds(runner)
        assert all(pool.incarnation == LIVES * step + 1 for pool in runner._pools)
        died = [torch_generator(0, "chains", n, LIVES * step + 2) for n in range(pools)]
        used |= seeds(runner) | {generator.initial_seed() for generator in died}
    checkpoint = save(runner, runner._config, str(tmp_path / "one"), 6)
    (old,) = states(runner)
    first, second = states(began(shaped(small, "deep", 2, 16), checkpoint))
    assert first["generator"].equal(old["generator"])
    assert first["round"] == old["round"]
    assert second["position"].equal(old["position"]), "newcomers copy it"
    assert not second["generator"].equal(old["generator"])


def test_pools_whose_turn_has_not_come_begin_where_they_would_have(
    small: Small, tmp_path: Path
) -> None:
    """A checkpoint before the first round of a pool: the run goes on as if it was never stopped."""
    config = small("rbm", "cluster=inline", "trainer.negatives=20", "energy.hidden=4")
    whole = trained(config, 4)
    checkpoint = save(trained(config, 1), config, str(tmp_path), 1)
    assert np.array_equal(final_weights(trained(config, 3, checkpoint)), final_weights(whole))


def on_cuda(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as if its parts were written on a GPU, whose streams have other states."""
    read = checkpoint.read

    def of_cuda(name: str) -> dict[str, Any]:
        state = read(name)
        if "device" in state:
            state |= {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
        if state.get("refresh"):
            state["refresh"]["generator"] = state["generator"]
        return state

    checkpoint.read = of_cuda  # type: ignore[method-assign]
    return checkpoint


@pytest.mark.parametrize("pools", [2, 4])
def test_another_device_takes_the_chains_up(small: Small, tmp_path: Path, pools: int) -> None:
    """In new random streams, of the learner too, which are those of this step."""
    moved = ("trainer.lag=1", "trainer.lag_mode=exact", "trainer.refresh=2")
    config = small("deep", "cluster=inline", *moved)
    checkpoint = on_cuda(save(trained(config, 3), config, str(tmp_path), 3))
    old = joined([checkpoint.read(f"pool-{n}") for n in range(2)], "position")
    config = shaped(small, "deep", pools, 16 // pools, *moved)
    runner = began(config, checkpoint)
    assert joined(states(runner), "position").equal(old)
    assert runner._pools[0].incarnation == (1 if pools == 2 else LIVES * 4 + 1)
    learner = runner._learner
    expected = torch_generator(config.seed, "objective", 0, 4)
    assert learner._generator.get_state().equal(expected.get_state())
    refresher = learner._stale._refresher
    assert refresher is not None
    expected = torch_generator(config.seed, "refresh", 0, 4)
    assert refresher._generator.get_state().equal(expected.get_state())
    runner.step()


FIRST_COME = ("objective=cd", "trainer.batch_size=40", "trainer.lag=2")


@pytest.mark.parametrize(
    ("before", "more", "wanted"),
    [
        # two steps' rows that are drawn ahead
        ((), (), [100, 100]),
        ((), ("trainer.batch_size=50",), [50] * 4),
        ((), ("trainer.batch_size=120",), [120]),
        # of the rows for two pools, those that were dealt to none yet
        (FIRST_COME, FIRST_COME, [20]),
        (FIRST_COME, (*FIRST_COME, "chains.pools=4", "chains.per_pool=10"), [10, 10]),
        (FIRST_COME, (*FIRST_COME, "chains.pools=1", "chains.per_pool=40"), []),
    ],
)
def test_rows_drawn_ahead_are_cut_anew(
    small: Small, before: tuple[str, ...], more: tuple[str, ...], wanted: list[int]
) -> None:
    """To the size that this run deals; what fills none is left out."""
    learner = InlineRunner(small("rbm", "energy.hidden=4", *before))._learner
    if before:
        learner.deal()
    else:
        learner.starts(1)
    state = learner.state_dict()
    resumed = InlineRunner(small("rbm", "energy.hidden=4", *more))._learner
    resumed.load_state_dict(state)
    drawn = resumed._rows._drawn
    assert [len(rows.position) for rows in drawn] == wanted
    rows = torch.cat([rows[0] for rows in state["drawn"]])
    assert torch.cat([rows[:0], *(one.position for one in drawn)]).equal(rows[: sum(wanted)])


@pytest.mark.parametrize("shape", [(2, 8), (4, 4), (3, 8)])
def test_a_pool_that_has_not_come_is_stored_as_it_was(
    small: Small, tmp_path: Path, shape: tuple[int, int]
) -> None:
    """By the checkpoints that are written without it; one with no chains of its own is new."""
    checkpoint = stored(small, "deep", tmp_path)
    config = shaped(small, "deep", *shape)
    server, last = ParameterServer(config), config.pools - 1
    server.snapshot_absent(1, last, 1, 0, None, None, checkpoint)
    while server.written(1, str(tmp_path / "parts")) is None:
        time.sleep(0.01)
    part = decode((tmp_path / "parts" / f"pool-{last}.safetensors").read_bytes())
    if config.pools == 3:
        assert (part["unplaced"].all(), part["round"]) == (True, 0)
        return
    old = checkpoint.read("pool-1")
    assert part["position"].equal(old["position"][-shape[1] :])
    assert part["age"].equal(old["age"][-shape[1] :])
    assert (part["generator"] is None) == (config.pools == 4)
