"""One connection of the DICOM upper layer: whole PDUs in, bytes out, each with a deadline.

The socket blocks, with a short kernel timeout (a tick), so that one call serves for waiting and
reading and every deadline is looked at once a tick. PDUs are read into one buffer and handed on
as views of it, without a copy.
"""

import contextlib
import select
import socket
import ssl
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgepacs.clock import monotonic
from edgepacs.dimse.faults import AssociationClosed, PeerTimedOut
from edgepacs.dimse.pdu import HEADER_SIZE, whole_length

_TICK: Final = 0.5  # seconds; the least exact a deadline is
_FIRST_BUFFER: Final = 65_536  # bytes, until the association is accepted
_TIMEVAL = struct.Struct("@ll")
_INTERNET = (socket.AF_INET, socket.AF_INET6)
# Buffers of associations that have ended, for the next ones: the kernel clears fresh memory of that
# size page by page.
_SPARE: deque[bytearray] = deque(maxlen=8)
_SPARE_MOST: Final = 524_288  # bytes
_HARDLY: Final = 4096  # bytes not sent yet, below which there is hardly anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an association may cost: seconds and bytes unless said otherwise.

    `pdu_cap` bounds what is received, above the `max_pdu_length` we ask for, because some peers
    count the header in. `idle` runs between messages, `stall` inside one and while the peer
    takes nothing of what we send, `response` until the answer to a request.
    """

    max_pdu_length: int = 262_144  # offered (PS3.8 D.1)
    pdu_cap: int = 1_048_576
    pdu_deadline: float = 30.0  # from the first byte of a PDU to its last
    artim: float = 30.0  # PS3.8 9.1.5
    release: float = 30.0  # until the answer to A-RELEASE-RQ
    idle: float = 600.0
    stall: float = 60.0
    response: float = 120.0
    object_deadline: float = 3600.0  # one data set
    object_bytes: int = 4_294_967_296  # one data set
    fragments: int = 2_000_000  # of one data set, against PDVs of a few bytes
    command_bytes: int = 65_536
    reply_bytes: int = 4_194_304  # data set of a response, which is kept in memory
    identity_bytes: int = 16_384  # user identity (PS3.7 D.3.3.7)
    cancels: int = 1000  # C-CANCELs of nothing in progress
    early_messages: int = 4  # requests that arrive while we wait for a response
    send_pdu_length: int = 131_072  # longest PDU sent, if the peer's maximum allows it
    unsent: int = 131_072  # bytes the kernel may hold unsent, so that progress means something
    operations: int = 16  # asynchronous operations accepted (PS3.7 D.3.3.3)
    linger: float = 1.0  # given to the peer to read our last PDU and close

    @property
    def tick(self) -> float:
        """How long one wait in the kernel lasts before the deadlines are looked at."""
        shortest = min(
            self.pdu_deadline,
            self.artim,
            self.release,
            self.idle,
            self.stall,
            self.response,
            self.linger,
        )
        return max(0.01, min(_TICK, shortest / 4))


def _buffer(size: int) -> bytearray:
    """A buffer of at least `size` bytes."""
    try:
        spare = _SPARE.pop()
    except IndexError:
        return bytearray(size)
    return spare if len(spare) >= size else bytearray(size)


class Line:
    """A connected socket, plain or TLS, and the buffer its PDUs are read into."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._socket = sock
        self._limits = limits
        self._internet = sock.family in _INTERNET
        self._open = True
        self._use(bytearray(_FIRST_BUFFER))
        self._begin = self._next = self._end = 0  # current PDU, the one behind it, bytes read
        self.hasten = False  # a data set is arriving: acknowledge what comes at once
        self._configure()

    def _use(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)

    def _configure(self) -> None:
        sock, tick = self._socket, self._limits.tick
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(tick)  # the TLS layer retries what a kernel timeout interrupts
        else:
            sock.setblocking(True)
            timeval = _TIMEVAL.pack(int(tick), int(tick % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        if self._internet:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._limits.unsent)

    @property
    def is_open(self) -> bool:
        """Whether close has not been called."""
        return self._open

    def widen(self) -> None:
        """Make room for PDUs of the length we offer, once the peer is known to be welcome."""
        if len(self._buffer) < self._limits.max_pdu_length + HEADER_SIZE:
            self._make_room(self._limits.max_pdu_length + HEADER_SIZE + _FIRST_BUFFER)

    def pdu(self, deadline: float, awaiting: str) -> tuple[int, memoryview]:
        """Type and variable field of the next PDU; the view is good until the next call.

        `deadline` (monotonic seconds) bounds the wait for the first byte; from then on the whole
        PDU must come within the limit. Raises ProtocolError, PeerTimedOut, AssociationClosed.
        """
        self._begin = self._next
        if self._begin == self._end:
            self._begin = self._next = self._end = 0
            self._end = self._receive(deadline, awaiting)
        deadline, awaiting = monotonic() + self._limits.pdu_deadline, "the rest of a PDU"
        while (have := self._end - self._begin) < (whole := self._whole(have)):
            if self._begin + whole > len(self._buffer):
                self._make_room(whole)
            self._acknowledge()
            self._end += self._receive(deadline, awaiting)
        self._next = self._begin + whole
        kind = self._buffer[self._begin]
        return kind, self._view[self._begin + HEADER_SIZE : self._next]

    def _whole(self, have: int) -> int:
        """Bytes to have before the next step: the header's, then the whole PDU's."""
        if have < HEADER_SIZE:
            return HEADER_SIZE
        return whole_length(self._buffer, self._begin, self._limits.pdu_cap)

    def _make_room(self, size: int) -> None:
        """Move what was read of the current PDU to the front of a buffer that holds `size`."""
        kept = self._view[self._begin : self._end]
        if size > len(self._buffer):
            self._use(_buffer(size))
        self._view[: len(kept)] = kept
        self._begin, self._next, self._end = 0, self._next - self._begin, len(kept)

    def _receive(self, deadline: float, awaiting: str) -> int:
        """Read once into the free room; the number of bytes, never 0."""
        while True:
            if monotonic() >= deadline:
                raise PeerTimedOut(f"silent or too slow: waited for {awaiting}")
            try:
                count = self._socket.recv_into(self._view[self._end :])
            except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._acknowledge()
                continue
            except OSError as error:
                raise AssociationClosed(f"connection lost: {error.strerror}") from error
            if count == 0:
                raise AssociationClosed("connection closed by the peer")
            if self.hasten:
                self._acknowledge()
            return count

    def _acknowledge(self) -> None:
        """Send a delayed TCP acknowledgement now.

        A sender that leaves Nagle's algorithm on holds its next segment back until it comes,
        40 ms each time.
        """
        if self._internet and hasattr(socket, "TCP_QUICKACK"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def waiting(self, seconds: float = 0.0) -> bool:
        """Whether something more has arrived already, or does within `seconds`."""
        if self._next < self._end:
            return True
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def send(self, data: bytes | memoryview, patience: float | None = None) -> None:
        """Send all of `data`; PeerTimedOut when the peer takes nothing for `patience` seconds.

        Without `patience` the stall limit holds.
        """
        rest = memoryview(data)
        patience = self._limits.stall if patience is None else patience
        deadline = 0.0
        while rest:
            try:
                count = self._socket.send(rest)
            except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                count = 0
            except OSError as error:
                raise AssociationClosed(f"connection lost: {error.strerror}") from error
            if count == len(rest):
                return
            rest = rest[count:]
            if count or not deadline:
                deadline = monotonic() + patience
            elif monotonic() >= deadline:
                raise PeerTimedOut("the peer takes nothing of what is sent")

    def send_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send all of `parts`, one behind the other, in few writes; raises as `send` does."""
        if isinstance(self._socket, ssl.SSLSocket):
            self.send(b"".join(parts))
            return
        try:
            count = self._socket.sendmsg(parts)
        except (BlockingIOError, TimeoutError):
            count = 0
        except OSError as error:
            raise AssociationClosed(f"connection lost: {error.strerror}") from error
        for part in parts:
            if count >= len(part):
                count -= len(part)
            else:
                self.send(memoryview(part)[count:])
                count = 0

    def keep_unsent(self, size: int) -> None:
        """Let the kernel hold no more than about `size` bytes that are not sent yet."""
        with contextlib.suppress(OSError):  # closed meanwhile, which the next call says
            # The kernel doubles it, for its own bookkeeping (socket(7)).
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def await_sent(self, seconds: float) -> None:
        """Wait, no longer than that, until the kernel holds hardly anything it has not sent.

        What was sent and is not acknowledged is not waited for: the line has it.
        """
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile, which the next call says
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _HARDLY)
            poll.poll(seconds * 1000)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)

    def interrupt(self, last_words: bytes) -> None:
        """From any thread: try to send `last_words` and end both directions at once."""
        with contextlib.suppress(OSError):
            if not isinstance(self._socket, ssl.SSLSocket):
                self._socket.send(last_words, socket.MSG_DONTWAIT)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def hang_up(self, last_words: bytes) -> None:
        """Send `last_words`, give the peer until the linger limit to read them, and close.

        Closing with unread bytes would reset the connection and take the words with it.
        """
        if not self._open:
            return
        with contextlib.suppress(AssociationClosed, PeerTimedOut):
            self.send(last_words, self._limits.linger)
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_WR)
            self.drain(monotonic() + self._limits.linger)
        self.close()

    def drain(self, deadline: float) -> None:
        """Read and drop what still comes, until the peer closes (PS3.8 9.2, Sta13)."""
        self._begin = self._next = self._end = 0
        with contextlib.suppress(AssociationClosed, PeerTimedOut):
            while True:
                self._receive(deadline, "the peer to close")

    def close(self) -> None:
        """Close the connection; again is harmless."""
        if self._open and _FIRST_BUFFER < len(self._buffer) <= _SPARE_MOST:
            _SPARE.append(self._buffer)
            self._use(bytearray())
        self._open = False
        self._socket.close()
