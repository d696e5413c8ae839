"""DIMSE messages on their way out: cut into PDVs, gathered into few writes (PS3.8 9.3.5, E.1)."""

from collections.abc import Iterable

from edgepacs.dimse.line import Limits, Line
from edgepacs.dimse.pdu import COMMAND, LAST, PDV_HEADER_SIZE, p_data_header

_COMMAND_ROOM = 1024  # bytes; a command set shares the first write with its data set
_PARTS_MOST = 512  # buffers in one write, and those of one more PDU; the kernel takes 1024
_PIECES_MOST = 64  # buffers in one PDU


class Outbox:
    """Writes messages in P-DATA-TFs of one PDV each, none longer than the peer takes.

    PDUs are gathered, without a copy, and leave when there are enough of them or the message
    ends: a command set and a short data set are a single write, and memory stays constant.
    """

    def __init__(self, line: Line, peer_maximum: int, limits: Limits) -> None:
        maximum = min(peer_maximum or limits.send_pdu_length, limits.send_pdu_length)
        # The peer's maximum counts the PDV header in (PS3.8 D.1); fragments are of even length.
        self._fragment = (maximum - PDV_HEADER_SIZE) & ~1
        self._line = line
        self._enough = limits.send_pdu_length - _COMMAND_ROOM
        self._parts: list[bytes | memoryview] = []  # of finished PDUs
        self._size = 0

    def message(
        self, context: int, command: bytes, data: Iterable[bytes | memoryview] | None
    ) -> None:
        """Send one message; `data` is read while it is sent. Raises PeerUnreachable."""
        if data is None and len(command) <= self._fragment:
            self._line.send(p_data_header(context, COMMAND | LAST, len(command)) + command)
            return
        self._parts, self._size = [], 0
        self._part(context, COMMAND, (command,))
        if data is not None:
            self._part(context, 0, data)
        self._flush()

    def messages(self, context: int, command: bytes, data: Iterable[bytes]) -> None:
        """Send a message with the same command set for each of `data`, in few writes."""
        self._parts, self._size = [], 0
        for one in data:
            self._part(context, COMMAND, (command,))
            self._part(context, 0, (one,))
        self._flush()

    def _part(self, context: int, control: int, pieces: Iterable[bytes | memoryview]) -> None:
        """A command set or data set as PDVs, the last of them marked so."""
        begun: list[memoryview] = []  # the fragment that is not full yet
        room = self._fragment
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                if not room:
                    self._seal(context, control, begun, self._fragment)
                    begun, room = [], self._fragment
                taken = rest[:room]
                begun.append(taken)
                room -= len(taken)
                rest = rest[len(taken) :]
        self._seal(context, control | LAST, begun, self._fragment - room)

    def _seal(self, context: int, control: int, fragment: list[memoryview], length: int) -> None:
        """One PDU is complete."""
        self._parts.append(p_data_header(context, control, length))
        self._parts += fragment if len(fragment) < _PIECES_MOST else [b"".join(fragment)]
        self._size += length
        if self._size > self._enough or len(self._parts) > _PARTS_MOST:
            self._flush()

    def _flush(self) -> None:
        if self._parts:
            self._line.send_parts(self._parts)
        self._parts, self._size = [], 0
