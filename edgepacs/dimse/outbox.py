"""DIMSE messages on their way out: cut into PDVs, gathered into few writes (PS3.8 9.3.5, E.1)."""

from collections.abc import Iterable

from edgepacs.dimse.line import Limits, Line
from edgepacs.dimse.pdu import (
    COMMAND,
    HEADER_SIZE,
    LAST,
    PDV_HEADER_SIZE,
    p_data_header,
)

_OVERHEAD = HEADER_SIZE + PDV_HEADER_SIZE
_COMMAND_ROOM = 1024  # bytes; a command set shares the first write with its data set


class Outbox:
    """Writes messages in P-DATA-TFs of one PDV each, none longer than the peer takes.

    PDUs are gathered in one buffer and leave it when it is full or the message ends, so that a
    command set and a short data set are a single write, and memory stays constant.
    """

    def __init__(self, line: Line, peer_maximum: int, limits: Limits) -> None:
        maximum = min(peer_maximum or limits.send_pdu_length, limits.send_pdu_length)
        # The peer's maximum counts the PDV header in (PS3.8 D.1); fragments are of even length.
        self._fragment = (maximum - PDV_HEADER_SIZE) & ~1
        self._line = line
        self._capacity = limits.send_pdu_length + _OVERHEAD + _COMMAND_ROOM
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._fill = 0  # bytes of finished PDUs and of the open one
        self._start = 0  # where the header of the open PDU stands

    def message(
        self, context: int, command: bytes, data: Iterable[bytes | memoryview] | None
    ) -> None:
        """Send one message; `data` is read while it is sent. Raises PeerUnreachable."""
        if data is None and len(command) <= self._fragment:
            self._line.send(p_data_header(context, COMMAND | LAST, len(command)) + command)
            return
        if not self._buffer:
            self._buffer = bytearray(self._capacity)
            self._view = memoryview(self._buffer)
        self._fill = self._start = 0
        self._part(context, COMMAND, (command,))
        if data is not None:
            self._part(context, 0, data)
        self._flush()

    def _part(self, context: int, control: int, pieces: Iterable[bytes | memoryview]) -> None:
        """A command set or data set as PDVs, the last of them marked so."""
        self._open()
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                room = self._room()
                if not room:
                    self._seal(context, control)
                    self._open()
                    room = self._room()
                taken = min(room, len(rest))
                self._view[self._fill : self._fill + taken] = rest[:taken]
                self._fill += taken
                rest = rest[taken:]
        self._seal(context, control | LAST)

    def _room(self) -> int:
        """Bytes that the open PDU still takes."""
        return self._fragment - (self._fill - self._start - _OVERHEAD)

    def _open(self) -> None:
        """Leave room for the header of the next PDU, behind what is in the buffer if it fits."""
        if self._fill + _OVERHEAD + self._fragment > self._capacity:
            self._flush()
        self._start = self._fill
        self._fill += _OVERHEAD

    def _seal(self, context: int, control: int) -> None:
        """Write the header of the open PDU."""
        header = p_data_header(context, control, self._fill - self._start - _OVERHEAD)
        self._view[self._start : self._start + _OVERHEAD] = header

    def _flush(self) -> None:
        if self._fill:
            self._line.send(self._view[: self._fill])
        self._fill = self._start = 0
