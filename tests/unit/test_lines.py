"""Lines between actors, over real sockets and without Ray."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors import lines
from actors.chain_pool import ChainPool
from actors.lines import GREETING, HEADER, LENGTH, Line, LineBroken, Lines, sent_rows
from pipeline.chains.batch import encode
from pipeline.common.types import Rows, Weights
from pipeline.config.run import RunConfig
from tests.patience import PATIENCE

SECRET = bytes(range(32))
HOST = "127.0.0.1"


def pair(patience: float = PATIENCE) -> tuple[Line, Line]:
    """Both ends of a line."""
    door = socket.create_server((HOST, 0))
    one = socket.create_connection(door.getsockname())
    other, _ = door.accept()
    door.close()
    return Line(one, patience), Line(other, patience)


@pytest.fixture
def ends() -> Iterator[tuple[Line, Line]]:
    both = pair()
    yield both
    for end in both:
        end.close()


@pytest.fixture
def rank() -> Iterator[Lines]:
    """Lines whose door is open, at `rank.address`."""
    made = Lines()
    made.address = made.listen(HOST)  # type: ignore[attr-defined]
    yield made
    made.close()


def behind(do: Callable[..., Any], *arguments: Any) -> threading.Thread:
    """Does it in a thread, for what may be too large for a socket's buffer."""
    thread = threading.Thread(target=do, args=arguments, daemon=True)
    thread.start()
    return thread


def a_batch(round: int, chains: int = 5, numbered: bool = False) -> pa.RecordBatch:
    generator = torch.Generator().manual_seed(round)
    position = torch.randn(chains, 2, 3, generator=generator)
    age = torch.arange(chains)
    return encode(
        position,
        position.sum((1, 2)),
        torch.full((chains,), 0.5),
        age,
        pool=1,
        incarnation=0,
        round=round,
        version=round + 7,
        number=age if numbered else None,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 3_000_001])
def test_weights_arrive_as_they_were(ends: tuple[Line, Line], dtype: type, size: int) -> None:
    """Bit for bit, NaN and -0 included, in whichever precision, of more bytes than a buffer has;
    and in memory of their own.
    """
    flat = np.random.default_rng(0).normal(size=size).astype(dtype)
    flat[0] = np.nan if size > 1 else -0.0
    sent = behind(ends[0].send_weights, Weights(12345678901, flat))
    found = ends[1].receive_weights()
    sent.join()
    assert found.version == 12345678901
    assert found.flat.dtype == dtype
    assert found.flat.tobytes() == flat.tobytes()
    assert found.flat.flags.writeable


def test_weights_that_are_not_contiguous_arrive(ends: tuple[Line, Line]) -> None:
    every_second = np.arange(20, dtype=np.float32)[::2]
    ends[0].send_weights(Weights(3, every_second))
    assert np.array_equal(ends[1].receive_weights().flat, every_second)


def test_rows_arrive_as_they_were(ends: tuple[Line, Line]) -> None:
    """Fields that are not there stay so; none at all are None."""
    rows = Rows(torch.randn(4, 8, 8, dtype=torch.float64), context=torch.randn(4, 3))
    for sent in (rows, None):
        ends[0].send(sent_rows(sent))
    found = Rows(*ends[1].receive()).map(torch.from_numpy)
    assert torch.equal(found.position, rows.position)
    assert torch.equal(found.context, rows.context)  # type: ignore[arg-type]
    assert found.number is None
    assert ends[1].receive() is None


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("chains", [1, 5, 100_000])
def test_batches_arrive_as_they_were(ends: tuple[Line, Line], chains: int, numbered: bool) -> None:
    """Several, of one stream."""
    batches = [a_batch(round, chains, numbered) for round in range(3)]

    def send() -> None:
        for batch in batches:
            ends[0].send_batch(batch)

    sent = behind(send)
    for batch in batches:
        found = ends[1].receive_batch()
        found.validate(full=True)
        assert found.equals(batch)
        assert found.schema == batch.schema
    sent.join()


def test_rounds_follow_each_other_on_one_line(ends: tuple[Line, Line]) -> None:
    """Rows, weights and a batch back, as often as there are steps: no reader takes of the next
    message what it has not been asked for.
    """
    rank, pool = ends
    for step in range(4):
        rank.send(sent_rows(Rows(torch.full((2, 3), float(step)))))
        rank.send_weights(Weights(step, np.full(7, step, np.float32)))
        assert pool.receive()[0][0, 0] == step
        assert pool.receive_weights().version == step
        pool.send_batch(a_batch(step))
        assert rank.receive_batch().equals(a_batch(step))


def send_often(send: Callable[[Line, Any], None], end: Line, thing: Any) -> None:
    """The first may still find room in a buffer."""
    for _ in range(100):
        send(end, thing)


RECEIVE = [Line.receive, Line.receive_weights, Line.receive_batch]


@pytest.mark.parametrize("receive", RECEIVE)
def test_a_line_that_the_other_end_closed_is_broken(
    ends: tuple[Line, Line], receive: Callable[[Line], Any]
) -> None:
    """In both directions, and for whoever waits at it already."""
    failures = []

    def wait() -> None:
        with pytest.raises(LineBroken) as failure:
            receive(ends[1])
        failures.append(failure)

    waiting = behind(wait)
    ends[0].close()
    waiting.join(PATIENCE)
    assert failures
    batch, weights = a_batch(0, 1000), Weights(0, np.zeros(100_000, np.float32))
    for send, thing in (
        (Line.send, b"0" * 100_000),
        (Line.send_weights, weights),
        (Line.send_batch, batch),
    ):
        with pytest.raises(LineBroken):
            send_often(send, ends[1], thing)


@pytest.mark.parametrize("receive", RECEIVE)
@pytest.mark.parametrize(
    "part", [b"\1", LENGTH.pack(100) + b"abc", HEADER.pack(90, 40, b"<f4") + b"abc"]
)
def test_a_message_that_ends_too_early_breaks_the_line(
    ends: tuple[Line, Line], receive: Callable[[Line], Any], part: bytes
) -> None:
    ends[0]._send(part)
    ends[0].close()
    with pytest.raises(LineBroken):
        receive(ends[1])


@pytest.mark.parametrize("length", [-1, 1 << 50])
def test_a_length_that_cannot_be_breaks_the_line(ends: tuple[Line, Line], length: int) -> None:
    ends[0]._send(LENGTH.pack(length), HEADER.pack(0, length, b"<f4"))
    for receive in (Line.receive, Line.receive_weights):
        with pytest.raises(LineBroken, match="a message of"):
            receive(ends[1])


@pytest.mark.parametrize("receive", RECEIVE)
def test_an_end_that_says_nothing_breaks_the_line(
    monkeypatch: pytest.MonkeyPatch, receive: Callable[[Line], Any]
) -> None:
    """After the line's patience, and for good: what comes too late is half of something."""
    monkeypatch.setattr(lines, "LEAST_SECONDS", 0.01)
    silent, waiting = pair()
    waiting.wait_at_most(-1.0)
    for _ in range(2):
        with pytest.raises(LineBroken):
            receive(waiting)
        silent._send(b"12345")


def test_an_end_that_takes_nothing_breaks_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LEAST_SECONDS", 0.01)
    _stopped, sending = pair()
    sending.wait_at_most(0.0)
    with pytest.raises(LineBroken):
        sending.send_weights(Weights(0, np.zeros(20_000_000, np.uint8)))
    _stopped, sending = pair()
    sending.wait_at_most(0.0)
    with pytest.raises(LineBroken):
        sending.send_batch(a_batch(0, 1_000_000))


# -- doors ---------------------------------------------------------------------------------------


def test_lines_are_opened_to_every_address(rank: Lines) -> None:
    """Two pools at two ranks; each end knows the other by its number."""
    second = Lines()
    addresses = [rank.address, second.listen(HOST)]  # type: ignore[attr-defined]
    pools = {2: Lines(), 5: Lines()}
    for number, pool in pools.items():
        pool.connect(SECRET, number, addresses, PATIENCE)
    for place, one in enumerate((rank, second)):
        one.accept(SECRET, list(pools), PATIENCE)
        for number, pool in pools.items():
            one[number].send((place, number))
            assert pool[place].receive() == (place, number)
    with pytest.raises(LineBroken, match="no line to 3"):
        rank[3]
    for each in (second, *pools.values()):
        each.close()


def stranger(rank: Lines, said: bytes) -> socket.socket:
    connected = socket.create_connection(rank.address)  # type: ignore[attr-defined]
    connected.sendall(said)
    return connected


class Trap:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a stranger's words were unpickled",))


def test_strangers_are_not_let_in_and_keep_nobody_waiting(rank: Lines) -> None:
    """With a wrong secret, garbage, half of the secret, nothing at all, or gone at once."""
    there = [
        stranger(rank, said)
        for said in (
            b"",
            SECRET[:7],
            GREETING.pack(bytes(32), 4),
            GREETING.pack(SECRET[::-1], 4),
            pickle.dumps(Trap()),
            b"GET / HTTP/1.1\r\nHost: ray\r\n\r\n" * 100,
        )
    ]
    stranger(rank, b"").close()
    stranger(rank, SECRET).close()
    pool = Lines()
    pool.connect(SECRET, 4, [rank.address], PATIENCE)  # type: ignore[attr-defined]
    accepting = behind(rank.accept, SECRET, [4], PATIENCE)
    accepting.join(lines.DOOR_SECONDS / 2)
    assert not accepting.is_alive(), "a stranger was waited for"
    pool[0].send("pool 4")
    assert rank[4].receive() == "pool 4"
    for one in there:
        one.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            assert one.recv(1) == b"", "a stranger got an answer"
    pool.close()


def test_a_pool_that_does_not_come_is_not_waited_for(
    rank: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many strangers do; and the door is shut then."""
    monkeypatch.setattr(lines, "DOOR_SECONDS", 0.1)
    silent = stranger(rank, b"")
    pool = Lines()
    pool.connect(SECRET, 0, [rank.address], PATIENCE)  # type: ignore[attr-defined]
    with pytest.raises(LineBroken, match=r"\[1\] did not come"):
        rank.accept(SECRET, [0, 1], PATIENCE)
    with pytest.raises(LineBroken):
        pool.connect(SECRET, 1, [rank.address], PATIENCE)  # type: ignore[attr-defined]
    silent.close()


def test_a_greeting_may_come_in_pieces(rank: Lines) -> None:
    accepting = behind(rank.accept, SECRET, [6], PATIENCE)
    slow, said = stranger(rank, b""), pickle.dumps(9, protocol=5)
    greeting = GREETING.pack(SECRET, 6)
    for byte in greeting[:-1]:
        slow.sendall(bytes([byte]))
        time.sleep(0.001)
    slow.sendall(greeting[-1:] + LENGTH.pack(len(said)) + said)
    accepting.join(PATIENCE)
    assert rank[6].receive() == 9, "what came after the greeting was lost"


def test_an_address_where_nothing_listens_breaks_all_lines(rank: Lines) -> None:
    pool = Lines()
    addresses = [rank.address, (HOST, 1)]  # type: ignore[attr-defined]
    with pytest.raises(LineBroken, match=r"127\.0\.0\.1:1"):
        pool.connect(SECRET, 0, addresses, PATIENCE)
    with pytest.raises(LineBroken, match="no line to 0"):
        pool[0]


def test_a_door_at_an_address_of_another_machine_cannot_be_opened() -> None:
    with pytest.raises(LineBroken):
        Lines().listen("192.0.2.1")  # of no machine, by RFC 5737


def test_lines_opened_anew_end_the_old_ones(rank: Lines) -> None:
    pool = Lines()
    pool.connect(SECRET, 0, [rank.address], PATIENCE)  # type: ignore[attr-defined]
    rank.accept(SECRET, [0], PATIENCE)
    old = pool[0]
    address = rank.listen(HOST)
    with pytest.raises(LineBroken):
        old.receive()
    pool.connect(SECRET, 0, [address], PATIENCE)
    rank.accept(SECRET, [0], PATIENCE)
    rank[0].send("anew")
    assert pool[0].receive() == "anew"


def test_a_pool_that_fails_in_a_stretch_ends_its_lines(
    rank: Lines, small: Callable[..., RunConfig]
) -> None:
    """Nobody waits for the batch that never comes; the pool's error is its own."""
    pool = ChainPool(small("deep"), (8, 8), 0, None)
    assert pool.connect(SECRET, [rank.address], PATIENCE)  # type: ignore[attr-defined]
    rank.accept(SECRET, [0], PATIENCE)
    rank[0].send(None)
    rank[0].send_weights(Weights(0, np.zeros(3, np.float32)))  # of no model here
    with pytest.raises(ValueError, match="do not fit"):
        pool.stretch(0, 0, 1)
    with pytest.raises(LineBroken) as failure:
        rank[0].receive_batch()
    assert not isinstance(failure.value.__cause__, TimeoutError)
