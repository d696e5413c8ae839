"""MLLP: messages on a connection, each between VT and FS CR (HL7 v2 MLLP, release 1)."""

import socket
from dataclasses import dataclass

from edgepacs.clock import monotonic
from edgepacs.errors import LimitExceeded

START = b"\x0b"
END = b"\x1c"
_READ = 65_536
_BETWEEN_MOST = 1024  # bytes between messages: line ends, and what a sender did not mean
_NOISE = b"\r\n \t\0"
_HEAD = 4096  # bytes of a message that is broken off, from which it may be answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one connection may take: bytes of a message, seconds between two and for each."""

    message_bytes: int
    idle: float
    message: float = 60.0
    answer: float = 30.0


class BrokenOff(LimitExceeded):
    """A message that cannot be read to its end; `begun` is what has come of it."""

    def __init__(self, words: str, begun: bytes) -> None:
        super().__init__(words)
        self.begun = begun


class Framed:
    """Messages in and answers out of one connection."""

    def __init__(self, connection: socket.socket, bounds: Bounds) -> None:
        self._connection = connection
        self._bounds = bounds
        self._pending = b""  # of what follows a message

    def message(self) -> bytes | None:
        """The next message without its framing; None when the peer has closed in between.

        FS alone ends a message: not every sender adds CR, and it occurs in none. Where a sender
        begins again before it has ended, the one begun last counts. Raises BrokenOff for what is
        not ended, in time or within its size, LimitExceeded for what is no message at all, and
        OSError.
        """
        if not self._begin():
            return None
        begun = bytearray()
        deadline = monotonic() + self._bounds.message
        while True:
            piece, end, rest = self._pending.partition(END)
            begun += piece
            if len(begun) > self._bounds.message_bytes:
                words = f"a message of more than {self._bounds.message_bytes >> 10} KiB"
                raise BrokenOff(words, bytes(begun[:_HEAD]))
            if end:
                self._pending = rest
                return bytes(begun).rpartition(START)[2]
            self._pending = self._more(deadline, begun)

    def _begin(self) -> bool:
        """Read up to the start of a message; False where the peer is gone."""
        deadline = monotonic() + self._bounds.idle
        between = 0
        while True:
            before, start, rest = self._pending.partition(START)
            between += len(before.strip(_NOISE))
            if between > _BETWEEN_MOST:
                raise LimitExceeded(f"more than {_BETWEEN_MOST} bytes that are no message")
            if start:
                self._pending = rest
                return True
            self._pending = self._read(deadline)
            if not self._pending:
                return False

    def _more(self, deadline: float, begun: bytearray) -> bytes:
        try:
            found = self._read(deadline)
        except TimeoutError:
            words = f"a message not ended within {self._bounds.message:g} s"
            raise BrokenOff(words, bytes(begun[:_HEAD])) from None
        if not found:
            raise BrokenOff("the connection ended within a message", bytes(begun[:_HEAD]))
        return found

    def _read(self, deadline: float) -> bytes:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv(_READ)

    def answer(self, message: bytes) -> None:
        """Send one message framed; raises OSError, also for a peer that does not read."""
        self._connection.settimeout(self._bounds.answer)
        self._connection.sendall(START + message + END + b"\r")
