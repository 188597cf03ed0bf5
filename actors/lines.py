"""Direct connections between ranks of the parameter server and pools, for stretches of steps that
they make in lock-step among themselves.

A call through Ray costs a millisecond or more on the way; a step of a small model takes a few. On
a line travel, in this order for each round: from the pool's rank the rows that its chains are sent
(a pickle), from rank 0 the weights (raw), and back to the rank an Arrow record batch, of one IPC
stream. Lines are TCP, also within a node, and are opened with a secret of the run's, which travels
through Ray.
"""

from __future__ import annotations

import hmac
import pickle
import selectors
import socket
import struct
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common.types import Rows, Weights
from pipeline.training.exchange import fill

HEADER = struct.Struct("<qq8s")
"""Of weights: their version, how many bytes they are, and the numpy name of their type."""
LENGTH = struct.Struct("<q")
GREETING = struct.Struct("<32sq")
"""Of whoever opens a line: the secret, and the number that it has here."""
LARGEST = 1 << 40  # bytes; a longer message is no message
DOOR_SECONDS = 10.0
"""For lines to be opened: long for a connection, short for a run that waits."""
LEAST_SECONDS = 1.0
"""For the other end to answer, however little time is left."""


class LineBroken(Exception):  # noqa: N818 - it names what happened
    """The other end is gone, or did not answer in time."""


class Line:
    """One end of a line, which waits at most `timeout` seconds for the other."""

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(timeout)
        self._socket = connected
        self._incoming = connected.makefile("rb")
        self._outgoing = connected.makefile("wb")
        self._written: pa.RecordBatchStreamWriter | None = None
        self._read: pa.RecordBatchStreamReader | None = None

    def send(self, thing: Any) -> None:
        """Raises `LineBroken`."""
        message = pickle.dumps(thing, protocol=5)
        self._send(LENGTH.pack(len(message)), message)

    def receive(self) -> Any:
        """Raises `LineBroken`."""
        (length,) = LENGTH.unpack(self._exactly(bytearray(LENGTH.size)))
        return pickle.loads(self._exactly(bytearray(self._checked(length))))

    def send_weights(self, weights: Weights) -> None:
        """Raises `LineBroken`."""
        flat = np.ascontiguousarray(weights.flat)
        header = HEADER.pack(weights.version, flat.nbytes, flat.dtype.str.encode())
        self._send(header, flat.view(np.uint8).data)

    def receive_weights(self) -> Weights:
        """Raises `LineBroken`."""
        version, size, name = HEADER.unpack(self._exactly(bytearray(HEADER.size)))
        flat = np.empty(self._checked(size), np.uint8)
        self._exactly(flat.data)
        return Weights(version, flat.view(np.dtype(name.rstrip(b"\0").decode())))

    def send_batch(self, batch: pa.RecordBatch) -> None:
        """Raises `LineBroken`."""
        try:
            if self._written is None:
                self._written = pa.ipc.new_stream(self._outgoing, batch.schema)
            self._written.write_batch(batch)
            self._outgoing.flush()
        except (OSError, ValueError) as error:
            raise LineBroken(str(error)) from error

    def receive_batch(self) -> pa.RecordBatch:
        """Raises `LineBroken`."""
        try:
            if self._read is None:
                self._read = pa.ipc.open_stream(self._incoming)
            return self._read.read_next_batch()
        except (OSError, ValueError, StopIteration) as error:  # pa.ArrowInvalid is a ValueError
            raise LineBroken(str(error)) from error

    def wait_at_most(self, seconds: float) -> None:
        """Waits from now on for so long, and for `LEAST_SECONDS` at least."""
        self._socket.settimeout(max(seconds, LEAST_SECONDS))

    def close(self) -> None:
        """Ends the line: whoever waits at the other end is told."""
        with suppress(OSError):  # the other end may have done so before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, *pieces: Any) -> None:
        try:
            for piece in pieces:
                self._socket.sendall(piece)
        except OSError as error:
            raise LineBroken(str(error)) from error

    def _exactly(self, into: Any) -> Any:
        """Fills the buffer `into`, and returns it."""
        try:
            return fill(into, self._incoming.readinto)
        except OSError as error:
            raise LineBroken(str(error)) from error

    @staticmethod
    def _checked(length: int) -> int:
        if not 0 <= length < LARGEST:
            raise LineBroken(f"a message of {length} bytes")
        return length


class Lines:
    """The lines of one process, by the number of the pool, or of the rank, at the other end."""

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}
        self._door: socket.socket | None = None

    def __getitem__(self, number: int) -> Line:
        """Raises `LineBroken` where there is none."""
        if number not in self._lines:
            raise LineBroken(f"no line to {number}")
        return self._lines[number]

    def listen(self, host: str) -> tuple[str, int]:
        """Opens a door on this machine, known to the others as `host`, and returns its address.

        Raises `LineBroken` where it cannot.
        """
        self.close()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            # whoever comes before `accept` waits in the backlog
            self._door = socket.create_server((host, 0), family=family, backlog=4096)
        except OSError as error:
            raise LineBroken(f"{host}: {error}") from error
        return host, self._door.getsockname()[1]

    def accept(self, secret: bytes, numbers: Collection[int], patience: float) -> None:
        """Waits for all of the `numbers` to come through the door, each with the `secret` of 32
        bytes, and closes it. Their lines wait `patience` seconds for the other end.

        A stranger, who says something else or nothing, keeps nobody waiting. Raises `LineBroken`
        where not all come within `DOOR_SECONDS`.
        """
        assert self._door is not None, "accept comes after listen"
        deadline = time.monotonic() + DOOR_SECONDS
        with self._door as door, selectors.DefaultSelector() as there:
            self._door = None
            door.setblocking(False)
            there.register(door, selectors.EVENT_READ)
            try:
                while absent := set(numbers) - set(self._lines):
                    seconds = deadline - time.monotonic()
                    if seconds < 0:
                        raise LineBroken(f"{sorted(absent)} did not come")
                    for key, _ in there.select(seconds):
                        if key.fileobj is door:
                            _let_in(door, there)
                        elif (said := _hear(key, there)) is not None:
                            self._admit(key.fileobj, said, secret, patience)
            finally:
                strangers: list[Any] = [key.fileobj for key in there.get_map().values()]
                for stranger in strangers:
                    stranger.close()

    def _admit(self, guest: Any, said: bytes, secret: bytes, patience: float) -> None:
        """Keeps the line of a `guest` who `said` the secret."""
        told, number = GREETING.unpack(said)
        if hmac.compare_digest(told, secret):
            self._lines[number] = Line(guest, patience)
        else:
            guest.close()

    def connect(
        self, secret: bytes, own: int, addresses: Collection[tuple[str, int]], patience: float
    ) -> None:
        """Opens a line to each of the `addresses`, which are numbered in order, as number `own`.
        They wait `patience` seconds for the other end.

        Raises `LineBroken` where one cannot be reached within `DOOR_SECONDS`; then there are none.
        """
        self.close()
        for number, address in enumerate(addresses):
            try:
                connected = socket.create_connection(address, DOOR_SECONDS)
                connected.sendall(GREETING.pack(secret, own))
            except OSError as error:
                self.close()
                raise LineBroken(f"{address[0]}:{address[1]}: {error}") from error
            self._lines[number] = Line(connected, patience)

    def close(self) -> None:
        """Ends all of them, and shuts the door."""
        if self._door is not None:
            self._door.close()
            self._door = None
        for line in self._lines.values():
            line.close()
        self._lines = {}


def _let_in(door: socket.socket, there: selectors.BaseSelector) -> None:
    """Takes in a guest, who has said nothing yet."""
    with suppress(OSError):  # gone again
        guest, _ = door.accept()
        guest.setblocking(False)
        there.register(guest, selectors.EVENT_READ, bytearray())


def _hear(key: selectors.SelectorKey, there: selectors.BaseSelector) -> bytes | None:
    """Returns the whole greeting of a guest who has something to say, once it is there."""
    guest: Any = key.fileobj
    heard = b""
    with suppress(OSError):
        heard = guest.recv(GREETING.size - len(key.data))
    key.data.extend(heard)
    whole = len(key.data) == GREETING.size
    if whole or not heard:
        there.unregister(guest)
    if not heard:
        guest.close()
    return bytes(key.data) if whole else None


def sent_rows(rows: Rows | None) -> Any:
    """Rows as they travel, of arrays."""
    return None if rows is None else tuple(rows.map(lambda field: field.numpy()))
