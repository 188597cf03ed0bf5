"""Several ranks: two processes that meet by gloo learn what one learns from all their rows; what
they lose, and refuse.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn

from actors.parameter_server import ParameterServer
from pipeline.assembly.chains import make_chains
from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import make_learner
from pipeline.chains.batch import encode
from pipeline.common.errors import CheckpointError, ConfigError, StorageError
from pipeline.common.types import Rows, StepReport
from pipeline.config.compose import compose
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.energies.weights import flatten, unflatten_
from pipeline.storage.parts import write_snapshots
from pipeline.storage.store import CheckpointStore, find
from pipeline.training.learner import Learner
from pipeline.training.ranks import ALONE, Ranks, free_address, share_of
from pipeline.training.reports import merged
from tests.conftest import SMALL, SMALL_DEEP
from tests.patience import PATIENCE

pytestmark = pytest.mark.slow  # processes of their own
SGD = (
    *(
        "optimizer.name=sgd",
        "optimizer.learning_rate=0.05",
        "optimizer.schedule=constant",
        "optimizer.warmup=0",
    ),
    *("optimizer.momentum=0.5", "optimizer.ema=0.9"),
)
MANY = ("trainer.steps=50", "trainer.lag=4", "chains.pools=4")
RBM = (*SMALL["rbm"], *SGD, *MANY)
MLP = (*SMALL["deep"], *SGD, *MANY, "objective.energy_l2=0.1", "optimizer.weight_decay=0.01")
ADAM = (*SMALL["deep"], *MANY, "optimizer.warmup=0", "optimizer.clip_norm=0.3")
CONV = (*SMALL["conv"], *SGD, *MANY)
TOY = (*SMALL["deep"], *SGD, "data=toy", "trainer.steps=50")
MIXTURE = (
    *ADAM,
    "objective=mixture",
    "objective.weights={nce:0.5,pcd:1,hutchinson:0.1}",
    "trainer.chunk_rows=5",
)
CHUNKED = "trainer.chunk_rows=5"
FSDP = "trainer.sharding=fsdp"


# -- two processes ---------------------------------------------------------------------------------


class Pair:
    """Two processes; `pair(work, ...)` has both meet, call `work(ranks, ...)` and part again, and
    returns what each got.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = [None, None]
        self._pipes: list[Any] = [None, None]
        for rank in range(2):
            self.start(rank)

    def start(self, rank: int) -> None:
        self._pipes[rank], theirs = self._context.Pipe()
        self._processes[rank] = self._context.Process(
            target=serve, args=(rank, theirs), daemon=True
        )
        self._processes[rank].start()
        theirs.close()

    def __call__(
        self, work: Callable[..., Any], *arguments: Any, timeout: float = PATIENCE
    ) -> list[Any]:
        """Raises what a rank raised; a rank that died has `EOFError` for an answer."""
        answers = self.answers(work, *arguments, timeout=timeout)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def answers(
        self, work: Callable[..., Any], *arguments: Any, timeout: float = PATIENCE
    ) -> list[Any]:
        """As above, with errors among the answers."""
        address = free_address("127.0.0.1")
        for pipe in self._pipes:
            pipe.send((work, address, timeout, arguments))
        answers: list[Any] = []
        for pipe in self._pipes:
            assert pipe.poll(2 * PATIENCE), "a rank hangs"
            try:
                answers.append(pipe.recv())
            except EOFError as error:
                answers.append(error)
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def serve(rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        work, address, timeout, arguments = pipe.recv()
        try:
            ranks = Ranks.join(address, rank, 2, "cpu", timeout)
            try:
                answer = work(ranks, *arguments)
            finally:
                ranks.leave()
        except Exception as error:
            traceback.print_exc()
            answer = error
        try:
            pipe.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError):
            pipe.send(RuntimeError(repr(answer)))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    both = Pair()
    yield both
    both.close()


# -- what they do ----------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A learner's flat weights after each step, and its average, once it has taken them; what else
    it says of itself.
    """

    weights: list[np.ndarray]
    averaged: np.ndarray
    reports: list[StepReport]
    controller: dict[str, float]
    beside: dict[str, Tensor]
    held: int


def configured(ranks: Ranks, overrides: Sequence[str]) -> RunConfig:
    """For so many ranks; one has nothing to shard."""
    return compose(
        [
            *overrides,
            f"trainer.replicas={ranks.size}",
            *(["trainer.sharding=none"] if ranks.size == 1 else []),
        ]
    )


def made_negatives(config: RunConfig, energy: Energy, step: int) -> list[pa.RecordBatch]:
    """A batch of each pool, drawn at random: of odd pools two versions old, so that its weights are
    not uniform.
    """
    batches = []
    for pool in range(config.pools):
        generator = torch.Generator().manual_seed(1000 * step + pool)
        count = config.chains.per_pool
        position = energy.sample_base(count, generator).float()
        with torch.no_grad():
            then = energy(position.to(next(energy.parameters()).dtype)).float() + 0.5 * torch.randn(
                count, generator=generator
            )
        version = max(0, step - 2 * (pool % 2))
        facts = {"pool": pool, "incarnation": 0, "round": step, "version": version}
        batches.append(
            encode(position, then.float(), torch.ones(count), torch.full((count,), 9), **facts)
        )
    return batches


def share(
    batches: Sequence[pa.RecordBatch], ranks: Ranks, step: int, uneven: bool
) -> Sequence[pa.RecordBatch]:
    """This rank's batches: as many as the other's, or where `uneven`, in turn: three and one, all
    and none.
    """
    first = len(batches) // 2 if not uneven else len(batches) - 1 + step % 2
    return batches if ranks.size == 1 else (batches[:first], batches[first:])[ranks.rank]


def train(
    ranks: Ranks,
    overrides: Sequence[str],
    steps: int,
    uneven: bool = False,
    module: Callable[[], nn.Module] | None = None,
) -> Trained:
    """Of so many steps, in float64; with a module of one's own in float32, which is all that such
    may be.
    """
    torch.set_default_dtype(torch.float32 if module else torch.float64)
    try:
        config = configured(ranks, overrides).carrying(energy=module() if module else None)
        data = open_data(config)
        learner, energy = make_learner(config, data, ranks), make_energy(config, data.shape)
        weights, reports = [], []
        for step in range(steps):
            report, published = learner.step(
                share(made_negatives(config, energy, step), ranks, step, uneven)
            )
            weights.append(published.flat)
            reports.append(report._replace(seconds={}))
        held = sum(
            (p.to_local() if hasattr(p, "to_local") else p).numel()
            for p in learner._updates.parameters
        )
        beside = learner._objectives.state_dict()
        return Trained(
            weights,
            learner.averaged(),
            reports,
            learner._stale._controller.state_dict(),
            beside,
            held,
        )
    finally:
        torch.set_default_dtype(torch.float32)


def together(
    pair: Pair, overrides: Sequence[str], steps: int = 20, uneven: bool = False, **given: Any
) -> tuple[Trained, ...]:
    """What one rank learns, and the first of two, with the reports of both as one, and the second;
    the two agree in all that is decided.
    """
    first, second = pair(train, overrides, steps, uneven, *given.values())
    for reports in zip(first.reports, second.reports, strict=True):
        said = [(report.loss, report.gradient_norm, report.skipped) for report in reports]
        assert said[0] == said[1] or reports[0].skipped
    first = first._replace(
        reports=list(map(merged, zip(first.reports, second.reports, strict=True)))
    )
    assert first.controller == second.controller
    assert np.array_equal(first.averaged, second.averaged)
    assert all(flat.size == 0 for flat in second.weights), "the weights are published once"
    return train(ALONE, overrides, steps, **given), first, second


def assert_equal(one: Trained, two: Trained, tolerance: float = 1e-6) -> None:
    """After the first step and the last, and in every figure of every step."""
    assert np.abs(one.weights[-1] - one.weights[0]).max() > 1e-3, "nothing was learned"
    np.testing.assert_allclose(two.weights[0], one.weights[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(two.weights[-1], one.weights[-1], rtol=0, atol=tolerance)
    np.testing.assert_allclose(two.averaged, one.averaged, rtol=0, atol=tolerance)
    for a, b in zip(one.reports, two.reports, strict=True):
        assert (a.version, a.negatives, a.lags, a.skipped) == (
            b.version,
            b.negatives,
            b.lags,
            b.skipped,
        )
        assert b.loss == pytest.approx(a.loss, rel=1e-5, abs=1e-5)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=1e-5, abs=1e-6)
        assert b.parts == pytest.approx(a.parts, rel=1e-5, abs=1e-5)
        assert b.ess == pytest.approx(a.ess, rel=1e-5)
        assert b.lag_bound == a.lag_bound
    assert two.controller == pytest.approx(one.controller)


# -- equality --------------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("settings", [RBM, MLP, (*MLP, CHUNKED)], ids=["rbm", "mlp", "chunked"])
def test_two_ranks_are_one(pair: Pair, settings: tuple[str, ...], uneven: bool) -> None:
    """SGD on stale, reweighted negatives, in float64, to 1e-6 after 1 and 20 steps; also where a
    rank has none of them.
    """
    one, two, _ = together(pair, settings, uneven=uneven)
    assert two.weights[0].dtype == np.float64
    assert min(two.reports[5].ess) < 0.95
    assert max(two.reports[5].lags) == 2
    assert_equal(one, two)


@pytest.mark.parametrize(
    "settings",
    [
        (*TOY, "objective=score_matching", "trainer.chunk_rows=3", "optimizer.weight_decay=0.01"),
        (*TOY, "objective=maximum_likelihood"),
        (*SMALL["rbm"], *SGD, "objective=pseudo_likelihood"),
        (*MLP, "energy.spectral_norm=true"),
        (*RBM, "objective=fast_pcd", "trainer.lag=2"),
        CONV,
    ],
    ids=[
        "score_matching",
        "maximum_likelihood",
        "pseudo_likelihood",
        "spectral_norm",
        "fast_pcd",
        "conv",
    ],
)
def test_what_draws_nothing_is_equal_too(pair: Pair, settings: tuple[str, ...]) -> None:
    """Parameters that no pass touches (no gradient, no decay), buffers, fast weights."""
    one, two, _ = together(pair, settings)
    assert_equal(one, two)


def test_parameters_of_objectives_are_reduced(pair: Pair) -> None:
    """The log Z of noise-contrastive estimation, which later passes of a step never touch, moves
    alike on both ranks.
    """
    one, first, second = together(pair, MIXTURE, 6, uneven=True)
    name = "0.log_z"
    assert torch.equal(first.beside[name], second.beside[name])
    assert not torch.equal(first.beside[name], train(ALONE, MIXTURE, 0).beside[name])
    assert not np.allclose(one.weights[-1], first.weights[-1], rtol=0, atol=1e-9), (
        "ranks draw noise of their own"
    )


def stream(ranks: Ranks) -> int:
    """The seed of what this rank's objective draws from."""
    config = configured(ranks, TOY)
    return make_learner(config, open_data(config), ranks)._generator.initial_seed()


def test_ranks_draw_from_streams_of_their_own(pair: Pair) -> None:
    """The first as one rank alone does."""
    first, second = pair(stream)
    assert first == stream(ALONE)
    assert first != second


def conditional(ranks: Ranks) -> tuple[list[np.ndarray], list[StepReport]]:
    """Four steps of a conditional model whose two pools run under the first weights, one for each
    rank or both for one.
    """
    config = configured(
        ranks,
        [
            *SMALL["conditional"],
            *SGD,
            "kernel.transitions=1",
            "trainer.lag=1",
            "trainer.lag_mode=exact",
        ],
    )
    data = open_data(config)
    learner = make_learner(config, data, ranks)
    pools = [
        make_chains(config, data.shape, pool, data.context_shape) for pool in range(config.pools)
    ]
    fixed = make_learner(config, data).publish()
    weights, reports = [], []
    for step in range(4):
        mine = range(len(pools))[ranks.rank :: ranks.size]
        rows = learner.starts(step).chunk(len(mine))
        batches = [
            pools[pool].advance(fixed._replace(version=step), piece)[0]
            for pool, piece in zip(mine, rows, strict=True)
        ]
        report, published = learner.step(batches)
        weights.append(published.flat)
        reports.append(report._replace(seconds={}))
    return weights, reports


def test_a_conditional_model_is_equal(pair: Pair) -> None:
    """Each rank's chains run under its own rows; float32, which is what travels."""
    (first, reports), (_, others) = pair(conditional)
    one, _ = conditional(ALONE)
    assert [report.loss for report in reports] == [report.loss for report in others]
    np.testing.assert_allclose(first[-1], one[-1], rtol=0, atol=1e-6)
    assert np.abs(one[-1] - one[0]).max() > 1e-3


# -- FSDP2 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "uneven"),
    [
        (RBM, False),
        (MLP, True),
        ((*MLP, CHUNKED), True),
        (ADAM, True),
        ((*MLP, "energy.spectral_norm=true"), False),
        ((*CONV, "energy.spectral_norm=true", "energy.scales=2"), True),
    ],
    ids=["rbm", "mlp", "chunked", "adam_clipped", "spectral_norm", "conv"],
)
def test_sharded_is_equal(pair: Pair, settings: tuple[str, ...], uneven: bool) -> None:
    """To one rank that holds it all, after 1 and 20 steps; each of two holds half, up to rows that
    cannot be halved.
    """
    one, first, second = together(pair, (*settings, FSDP), uneven=uneven)
    assert_equal(one, first)
    assert first.held + second.held == one.held
    assert 0.4 * one.held < second.held < 0.5 * one.held + 1


@pytest.mark.parametrize(
    "settings",
    [
        (*SMALL["deep"], *SGD, "chains.pools=4", "objective=short_run"),
        (*SMALL["deep"], *SGD, "chains.pools=4", "objective=cd", "trainer.batch_size=32"),
        (
            *SMALL["deep"],
            *SGD,
            "objective=finite_difference",
            "objective.epsilon=0.1",
            "trainer.chunk_rows=3",
        ),
        (*SMALL["deep"], *SGD, "objective=denoising_finite_difference"),
        (*SMALL["deep"], *SGD, "objective=conditional_nce"),
        (*SMALL["rbm"], *SGD, "objective=pseudo_likelihood"),
        (*SMALL["rbm"], *SGD, "objective=ratio_matching"),
        (
            *SMALL["deep"],
            *SGD,
            *MANY,
            "objective=mixture",
            "objective.weights={conditional_nce:0.5,pcd:1}",
        ),
        (*RBM, "energy=quadratic", "kernel=single_site"),
        (*RBM, "energy=lattice", "kernel=gibbs_with_gradients"),
        (*RBM, "data.encoding=categorical", "energy=potts_rbm"),
        (*RBM, "data.encoding=real", "energy=gaussian_rbm", "optimizer.clip_norm=1"),
    ],
    ids=lambda settings: "-".join(
        word.partition("=")[2] for word in settings if word.startswith(("objective=", "energy="))
    ),
)
def test_all_that_can_be_sharded_is_as_unsharded(pair: Pair, settings: tuple[str, ...]) -> None:
    """Each of two ranks draws what it draws either way."""
    compose([*settings, "trainer.replicas=2", FSDP])
    unsharded, _ = pair(train, settings, 4, True)
    sharded, _ = pair(train, (*settings, FSDP), 4, True)
    assert np.abs(unsharded.weights[-1] - unsharded.weights[0]).max() > 1e-4
    np.testing.assert_allclose(sharded.weights[-1], unsharded.weights[-1], rtol=0, atol=1e-9)


class Odd(nn.Module):
    """A weight in two layers, one that is frozen, one of the module itself, a layer that is read
    and not called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.second(torch.tanh(self.frozen(self.first(x.flatten(1))))))
        return (nn.functional.linear(z, self.read.weight, self.read.bias) * self.scale).sum(1)


class Untied(Odd):
    """The same with a weight for each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(64, 64)


class Number(Odd):
    """With a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.ones(()))


def odd(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return kind()


def tied() -> nn.Module:
    return odd(Odd)


def untied() -> nn.Module:
    return odd(Untied)


def number() -> nn.Module:
    return odd(Number)


@pytest.mark.parametrize("module", [tied, untied])
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_modules_of_ones_own(pair: Pair, module: Callable[[], nn.Module], sharding: str) -> None:
    """Whatever way they use their parameters; in float32."""
    settings = (*SMALL_DEEP, *SGD, *MANY, "energy=custom", f"trainer.sharding={sharding}")
    one, first, _ = together(pair, settings, 10, uneven=True, module=module)
    assert_equal(one, first, 1e-5)


def test_a_number_cannot_be_sharded(pair: Pair) -> None:
    with pytest.raises(
        ConfigError, match=r"trainer\.sharding=fsdp: .*without a dimension.*module\.number"
    ):
        pair(train, (*SMALL_DEEP, "energy=custom", FSDP), 1, False, number)


# -- what is not finite ----------------------------------------------------------------------------


class NanGradient(torch.autograd.Function):
    """A finite value whose gradient is NaN."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override] # noqa: ARG004
        return gradient * torch.nan


def trip(
    ranks: Ranks, settings: Sequence[str], kind: str
) -> tuple[list[StepReport], bool, np.ndarray]:
    """Three steps, in the second of which the last rank's loss or gradient is NaN; whether that
    step left the weights alone.
    """
    config = configured(ranks, settings)
    data = open_data(config)
    learner, energy = make_learner(config, data, ranks), make_energy(config, data.shape)
    network, averages, reports = learner.energy.network, [], []  # type: ignore[union-attr]
    for step in range(3):
        if step == 1 and ranks.rank == ranks.size - 1:
            spoil = (
                (lambda x: network(x) * torch.nan)
                if kind == "loss"
                else (lambda x: NanGradient.apply(network(x)))
            )
            learner.energy.network = spoil
            learner.energy.energies_and_pull = lambda _: None  # type: ignore[method-assign]
        report, _ = learner.step(share(made_negatives(config, energy, step), ranks, 0, False))
        learner.energy.network = network
        reports.append(report._replace(seconds={}))
        averages.append(learner.averaged())
    return reports, np.array_equal(averages[0], averages[1]), averages[2]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_what_is_not_finite_on_one_rank_is_skipped_on_all(
    pair: Pair, kind: str, sharding: str
) -> None:
    """Weights, average and optimizer stay as they were on both; the next step goes on."""
    (reports, kept, after), (others, kept_too, after_too) = pair(
        trip, (*MLP, f"trainer.sharding={sharding}"), kind
    )
    assert (
        [report.skipped for report in reports]
        == [report.skipped for report in others]
        == [False, True, False]
    )
    assert kept
    assert kept_too
    assert reports[2].loss == others[2].loss
    assert np.array_equal(after, after_too)
    assert np.isfinite(after).all()


# -- checkpoints -----------------------------------------------------------------------------------

# what draws noise, in the data and in the objective, and rows ahead of their step
DRAWS = (
    *(
        *SMALL["deep"],
        "trainer.batch_size=32",
        "chains.pools=4",
        "trainer.lag=2",
        "trainer.lag_mode=exact",
        "data.noise=0.1",
        "optimizer.warmup=0",
    ),
    *("objective=mixture", "objective.weights={cd:1,conditional_nce:0.5}"),
)


def go(
    ranks: Ranks,
    overrides: Sequence[str],
    steps: int,
    output: str | None,
    start: str | None,
    ahead: int = 0,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Goes on from the checkpoint at `start` or the beginning, and writes one to `output`: the
    weights (of the first rank), the average, and the rows that the next two steps would have.
    """
    config = configured(ranks, overrides)
    data = open_data(config)
    learner, energy = make_learner(config, data, ranks), make_energy(config, data.shape)
    learner.start(None if start is None else find(start), None)
    for step in range(learner.version, learner.version + steps):
        learner.starts(step + ahead)
        learner.step(share(made_negatives(config, energy, step), ranks, step, False))
    if output is not None:
        store = CheckpointStore(output, keep=2)
        written = ranks.gather(write_snapshots(learner.snapshots(), store.folder(learner.version)))
        if ranks.rank == 0:
            store.commit(
                learner.version, [part for parts in written for part in parts], config, energy
            )
        ranks.gather(None)
    rows = [learner.starts(learner.version + step).position.numpy() for step in range(2)]
    return learner.publish().flat, learner.averaged(), rows


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_ranks_resume_bitwise(pair: Pair, tmp_path: Path, sharding: str) -> None:
    """Moments, average, streams of noise and rows drawn ahead, of each rank."""
    settings = (*DRAWS, f"trainer.sharding={sharding}")
    output = str(tmp_path / "run")
    whole = pair(go, settings, 5, None, None, 2)
    pair(go, settings, 3, output, None, 2)
    assert {path.name for path in (tmp_path / "run/checkpoints/00000003").iterdir()} == {
        *("learner.safetensors", "energy.safetensors", "rank-1.safetensors", "manifest.json")
    }
    resumed = pair(go, settings, 2, None, output, 2)
    for (flat, averaged, rows), (flat_too, averaged_too, rows_too) in zip(
        whole, resumed, strict=True
    ):
        assert np.array_equal(flat, flat_too)
        assert np.array_equal(averaged, averaged_too)
        assert all(np.array_equal(a, b) for a, b in zip(rows, rows_too, strict=True))
    assert not np.array_equal(resumed[0][2][0], resumed[1][2][0])


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_the_number_of_ranks_may_change(pair: Pair, tmp_path: Path, sharding: str) -> None:
    """One, two sharded or not, one again: what is drawn by no rank alone goes on as in a run of one
    rank, to rounding; and so do rows that were drawn ahead.
    """
    one = (*SMALL["deep"], *MANY, "trainer.batch_size=32", "optimizer.warmup=0", "data.noise=0.1")
    two = (*one, f"trainer.sharding={sharding}")
    outputs = [str(tmp_path / name) for name in ("first", "second")]
    flat, averaged, rows = go(ALONE, one, 6, None, None, 2)
    go(ALONE, one, 2, outputs[0], None, 2)
    pair(go, two, 2, outputs[1], outputs[0], 2)
    stored = find(outputs[1]).read("learner")
    assert stored["optimizer"]["state"][0]["exp_avg"].shape == (16, 64)
    flat_too, averaged_too, rows_too = go(ALONE, one, 2, None, outputs[1], 2)
    np.testing.assert_allclose(flat_too, flat, rtol=0, atol=1e-5)
    np.testing.assert_allclose(averaged_too, averaged, rtol=0, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(rows, rows_too, strict=True))


def test_streamed_rows_stay_with_as_many_ranks(pair: Pair, tmp_path: Path) -> None:
    """Each rank has rows of its own, and the place in them means nothing to another number of
    ranks.
    """
    path = tmp_path / "rows.parquet"
    values = np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32)
    table = pa.table({f"x{i}": values[:, i] for i in range(8)})
    parquet.write_table(table, path, row_group_size=500)
    settings = (
        *(
            *SMALL["deep"],
            "data=columns",
            f"data.path={path}",
            "data.memory_limit=65536",
            "data.held_out=100",
        ),
        "objective=conditional_nce",
    )
    output = str(tmp_path / "run")
    whole = pair(go, settings, 3, None, None)
    pair(go, settings, 2, output, None)
    resumed = pair(go, settings, 1, None, output)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(whole, resumed, strict=True))
    assert not np.array_equal(whole[0][2][0], whole[1][2][0])
    with pytest.raises(CheckpointError, match="resume with as many ranks as before"):
        go(ALONE, settings, 1, None, output)


def drawn_where_rank_1_fails(ranks: Ranks) -> str:
    """What a rank says of the rows of a step that rank 1 cannot read."""

    class Rows:
        def starts(self, step: int) -> None:
            if ranks.rank == 1:
                raise StorageError("s3://bucket/rows.parquet", f"no rows for step {step}")

    server = ParameterServer.__new__(ParameterServer)
    server._ranks = ranks
    server._config = configured(ranks, SMALL["deep"])
    server._data = open_data(server._config)._replace(streamed=True)
    try:
        server._draw(Rows(), 7)  # type: ignore[arg-type]
    except StorageError as error:
        return str(error)
    return "nothing"


def test_rows_that_one_rank_cannot_read_stop_every_rank(pair: Pair) -> None:
    """All say the same, with nothing done yet: a last checkpoint can be written."""
    words = "s3://bucket/rows.parquet: no rows for step 7"
    assert pair(drawn_where_rank_1_fails) == [words, words]


def warm(ranks: Ranks, overrides: Sequence[str], url: str) -> np.ndarray:
    """The average of a learner that starts from another run's."""
    config = configured(ranks, overrides)
    learner = make_learner(config, open_data(config), ranks)
    learner.start(None, find(url))
    return learner.averaged()


def test_sharded_ranks_start_from_another_runs_weights(pair: Pair, tmp_path: Path) -> None:
    one = (*SMALL["deep"], *MANY)
    averaged = go(ALONE, one, 2, str(tmp_path), None)[1]
    for started in pair(warm, (*one, "seed=7", FSDP), str(tmp_path)):
        assert np.array_equal(started, averaged)


# -- death -----------------------------------------------------------------------------------------


def die(ranks: Ranks, settings: Sequence[str], how: str) -> None:
    """The last rank ends, or hangs, where the others wait for it."""
    config = configured(ranks, settings)
    data = open_data(config)
    learner, energy = make_learner(config, data, ranks), make_energy(config, data.shape)
    for step in range(2):
        if step == 1 and ranks.rank == 1:
            if how == "ends":
                os._exit(1)
            time.sleep(5)
            return
        learner.step(share(made_negatives(config, energy, step), ranks, step, False))


@pytest.mark.parametrize("how", ["ends", "hangs"])
def test_the_death_of_a_rank_is_an_error_of_the_others(pair: Pair, how: str) -> None:
    """Within the time limit; and the process that raised it meets others again."""
    before = time.monotonic()
    survivor, _ = pair.answers(die, MLP, how, timeout=3.0 if how == "hangs" else PATIENCE)
    assert isinstance(survivor, RuntimeError)
    assert time.monotonic() - before < 15
    if how == "ends":
        pair.start(1)
    one, two, _ = together(pair, MLP, 3)
    assert_equal(one, two)


# -- the pieces ------------------------------------------------------------------------------------


def test_alone_there_is_no_group() -> None:
    """One rank asks nothing of torch.distributed."""
    assert (ALONE.rank, ALONE.size) == (0, 1)
    assert ALONE.gather("thing") == ["thing"]
    assert ALONE.share(7) == ALONE.share(0) == 1.0
    assert not torch.distributed.is_initialized()


def test_an_address_is_free() -> None:
    address = free_address("192.0.2.1")
    assert address.startswith("tcp://192.0.2.1:")
    assert 0 < int(address.rpartition(":")[2]) < 65536


def test_the_report_of_a_step_is_of_all_ranks_rows(pair: Pair) -> None:
    """In the order of the ranks; a part that one lacks counts as nothing."""
    first, second = pair(train, MLP, 1, True)
    reports = [first.reports[0], second.reports[0]]
    one = merged(reports)
    assert one.negatives == sum(report.negatives for report in reports) > 0
    assert one.lags == reports[0].lags + reports[1].lags
    assert one.energy_moments == reports[0].energy_moments + reports[1].energy_moments
    assert len(one.usage) == 2
    named = [reports[0]._replace(parts={"positive": 1.0, "negative": 4.0})]
    named.append(reports[1]._replace(parts={"positive": 3.0}))
    assert merged(named).parts == {"positive": 2.0, "negative": 2.0}


def test_rows_are_dealt_anew() -> None:
    """Those of three ranks to two, in order, whatever a row holds."""
    pieces = [
        Rows(torch.arange(4.0)[:, None] + 4 * rank, None, torch.arange(4) + 4 * rank)
        for rank in range(3)
    ]
    first, second = (share_of(pieces, rank, 2) for rank in range(2))
    assert first.number.tolist() == [0, 1, 2, 3, 4, 5]
    assert second.position.flatten().tolist() == [6, 7, 8, 9, 10, 11]
    assert second.context is None


def test_a_learner_follows_the_precision_of_its_energy() -> None:
    """What comes in float32 is learned from in float64, where the weights are."""
    settings = (*MLP, "trainer.steps=3")
    trained = train(ALONE, settings, 2)
    assert trained.weights[0].dtype == trained.averaged.dtype == np.float64
    config = compose(settings)
    learner = make_learner(config, open_data(config))
    assert isinstance(learner, Learner)
    assert learner.publish().flat.dtype == np.float32
    energy = make_energy(config, (8, 8))
    unflatten_(energy, learner.publish().flat)
    assert np.array_equal(flatten(energy), learner.publish().flat)
