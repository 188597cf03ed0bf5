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
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common.types import Rows, Weights

HEADER = struct.Struct("<qq8s")
"""Of weights: their version, how many bytes they are, and the numpy name of their type."""
LENGTH = struct.Struct("<q")
LARGEST = 1 << 40  # bytes; a longer message is no message


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
        view, filled = memoryview(into), 0
        try:
            while filled < len(view):
                count = self._incoming.readinto(view[filled:])
                if not count:
                    raise LineBroken("the other end is gone")
                filled += count
        except OSError as error:
            raise LineBroken(str(error)) from error
        return into

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
        """Opens a door on this machine, known to the others as `host`, and returns its address."""
        self.close()
        self._door = socket.create_server((host, 0))
        return host, self._door.getsockname()[1]

    def accept(self, secret: bytes, numbers: Collection[int], timeout: float) -> None:
        """Waits for all of the `numbers` to come through the door, each with the `secret`, and
        closes it. Raises `LineBroken` where they do not within `timeout` seconds.
        """
        assert self._door is not None, "accept comes after listen"
        with self._door as door:
            self._door = None
            door.settimeout(timeout)
            while set(numbers) - set(self._lines):
                try:
                    connected, _ = door.accept()
                except OSError as error:
                    raise LineBroken(f"nobody came: {error}") from error
                line = Line(connected, timeout)
                told = bytes(line._exactly(bytearray(len(secret))))
                if not hmac.compare_digest(told, secret):
                    line.close()
                    continue
                self._lines[line.receive()] = line

    def connect(
        self, secret: bytes, own: int, addresses: Collection[tuple[str, int]], timeout: float
    ) -> None:
        """Opens a line to each of the `addresses`, which are numbered in order, as number `own`.

        Raises `LineBroken` where one cannot be reached within `timeout` seconds.
        """
        self.close()
        for number, address in enumerate(addresses):
            try:
                line = Line(socket.create_connection(address, timeout), timeout)
            except OSError as error:
                raise LineBroken(f"{address[0]}:{address[1]}: {error}") from error
            line._send(secret)
            line.send(own)
            self._lines[number] = line

    def close(self) -> None:
        """Ends all of them."""
        for line in self._lines.values():
            line.close()
        self._lines = {}


def sent_rows(rows: Rows | None) -> Any:
    """Rows as they travel, of arrays."""
    return None if rows is None else tuple(rows.map(lambda field: field.numpy()))
