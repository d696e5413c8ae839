"""A thin line on loopback: a TCP relay with a rate, a round trip, a bounded queue and outages.

It stands in user space, since no kernel of a test machine needs a traffic shaper. What it models
is one modem: all connections share its rate, each way has a queue of its own, and a sender that is
faster than the line finds the queue full. What it cannot model is TCP across the line: segments
are acknowledged by the relay, as accelerators of satellite links do, headers cost nothing and
nothing is lost but by an outage. So the rate is that of TCP payload, and 100 % of it is possible.
"""

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from harness.waiting import free_port

_SEGMENT = 1460  # bytes a segment carries on Ethernet
_SLICE = 0.005  # seconds of the line one piece takes, so that connections share it fairly
_QUEUE_SECONDS = 0.1  # of the line, in the modem, unless said otherwise
_LEAST_QUEUE = 16_384
_UNSHAPED = 262_144  # bytes a piece, where there is no rate
_KERNEL = 16_384  # bytes the kernel may hold of what the relay has not read yet
_BACKLOG = 16
_IDLE = 0.5  # seconds
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass(slots=True)
class Way:
    """What went one way: `entered` the modem, `arrived` at the other end, in bytes."""

    entered: int = 0
    arrived: int = 0
    first_at: float | None = None  # time.monotonic, of what arrived
    last_at: float | None = None
    _free: float = 0.0  # when the line will have sent all that entered


@dataclass(slots=True)
class _Half:
    """One way of one connection: pieces under way, None for the end of the stream."""

    source: socket.socket
    sink: socket.socket
    way: Way
    opens: float  # monotonic; nothing enters earlier
    under_way: deque[tuple[float, memoryview | None]] = field(default_factory=deque)
    held: int = 0
    read_all: bool = False
    ended: bool = False
    blocked: bool = False  # the sink takes nothing now


@dataclass(slots=True)
class _Connection:
    halves: tuple[_Half, _Half]
    frozen: bool = False  # nothing moves on it ever again, and nobody is told

    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self.halves[0].source, self.halves[1].source


class Shaper:
    """The line to `port` on loopback; those who use it connect to `self.port`.

    `rate` in bit/s each way, 0 for no limit; `round_trip` in seconds; `queue_bytes` is what the
    modem holds each way. One thread carries everything.
    """

    def __init__(
        self, port: int, *, rate: float = 0.0, round_trip: float = 0.0, queue_bytes: int = 0
    ) -> None:
        self.target = port
        self.port = free_port()
        self.rate = rate
        self.round_trip = round_trip
        self.queue_bytes = queue_bytes or max(_LEAST_QUEUE, int(rate / 8 * _QUEUE_SECONDS))
        self._piece = max(_SEGMENT, int(rate / 8 * _SLICE)) if rate else _UNSHAPED
        self.forth, self.back = Way(), Way()
        self.opened: list[float] = []  # when each connection was, monotonic
        self.resets = 0  # connections an outage has ended
        self.intervals: list[list[float]] = []  # when the line was there: begin and end, monotonic
        self.most_held = 0  # bytes between both ends, kernels apart
        self._live: list[_Connection] = []
        self._stalled_at: float | None = None
        self._listener: socket.socket | None = None
        self._stuffing: list[socket.socket] = []
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]]
        self._orders = queue.SimpleQueue()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="shaper", daemon=True)
        self._timers: list[threading.Timer] = []

    # --- what a test does ----------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        self._do(self._end)
        self._thread.join(10)
        self._bell.close()
        self._ear.close()

    def up(self) -> None:
        """The line is there: what was stalled goes on, new connections are taken."""
        self._do(self._up)

    def refuse(self) -> None:
        """The line is gone and says so: connections are reset, new ones refused."""
        self._do(self._refuse)

    def silence(self) -> None:
        """A black hole: nothing moves, connecting gets no answer; what was open may go on later."""
        self._do(self._silence)

    def lose(self) -> None:
        """As `silence`, and the connections of before stay dead without a word: half open."""
        self._do(self._lose)

    def cut(self) -> None:
        """Reset every connection; the line itself stays."""
        self._do(self._reset_all)

    def cut_every(self, seconds: float, times: int) -> None:
        """Reset every connection each `seconds`, so often, beginning in `seconds`."""
        for number in range(1, times + 1):
            self.after(number * seconds, self.cut)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do `act`, one of the methods above, in `seconds`."""
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def outage(self, at: float, seconds: float, kind: Callable[[], None] | None = None) -> None:
        """In `at` seconds the line goes, in the way `kind` (else `refuse`), for `seconds`."""
        self.after(at, kind or self.refuse)
        self.after(at + seconds, self.up)

    @property
    def connections(self) -> int:
        """How many were opened so far."""
        return len(self.opened)

    @property
    def open_connections(self) -> int:
        """How many connections there are, dead ones that nobody has noticed included."""
        return len(self._live)

    def available(self, begin: float, end: float) -> float:
        """How many seconds between two moments (time.monotonic) the line was there."""
        spans = [(max(begin, one), min(end, other)) for one, other in map(tuple, self.intervals)]
        return sum(max(0.0, other - one) for one, other in spans)

    def optimum(self, begin: float, size: int) -> float:
        """When `size` bytes that begin to enter at `begin` could have arrived, monotonic seconds.

        Counted are the rate, half a round trip, and the outages as far as they have happened.
        """
        left = size * 8 / self.rate
        for one, other in map(tuple, self.intervals):
            span = max(0.0, other - max(begin, one))
            if span >= left:
                return max(begin, one) + left + self.round_trip / 2
            left -= span
        raise AssertionError("the line was not there for long enough")

    def share(self) -> float:
        """Of what the line could have carried forth, first to last byte arrived, how much it did.

        1.0 where it was never idle.
        """
        way = self.forth
        assert way.first_at is not None, "nothing has arrived"
        assert way.last_at is not None
        return way.arrived * 8 / self.rate / self.available(way.first_at, way.last_at)

    # --- in the thread -------------------------------------------------------------------------

    def _do(self, act: Callable[[], None]) -> None:
        """Let the thread do something, and wait until it has."""
        done = threading.Event()
        self._orders.put((act, done))
        with contextlib.suppress(OSError):
            self._bell.send(b"!")
        if self._thread.is_alive():
            assert done.wait(10), "the shaper hangs"

    def _run(self) -> None:
        while not self._stop:
            self._obey()
            now = time.monotonic()
            pause = _IDLE
            if self._stalled_at is None:
                pause = self._move(now)
            for key, _ in self._selector.select(max(0.0, pause)):
                if key.fileobj is self._ear:
                    with contextlib.suppress(BlockingIOError):
                        self._ear.recv(4096)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._ready(key.data)
        self._selector.close()

    def _obey(self) -> None:
        while not self._orders.empty():
            act, done = self._orders.get()
            act()
            done.set()

    def _up(self) -> None:
        now = time.monotonic()
        if self._stalled_at is not None:
            self._shift(now - self._stalled_at)
            self._stalled_at = None
        if self.intervals and self.intervals[-1][1] == float("inf"):
            return
        self._unstuff()
        if self._listener is None:
            self._listener = _listening(self.port)
            self._selector.register(self._listener, selectors.EVENT_READ)
        self.intervals.append([now, float("inf")])

    def _shift(self, seconds: float) -> None:
        for way in (self.forth, self.back):
            way._free += seconds
        for connection in self._live:
            for half in connection.halves:
                half.opens += seconds
                half.under_way = deque((due + seconds, piece) for due, piece in half.under_way)

    def _gone(self) -> None:
        if self.intervals and self.intervals[-1][1] == float("inf"):
            self.intervals[-1][1] = time.monotonic()

    def _refuse(self) -> None:
        self._gone()
        self._close_listener()
        self._reset_all()

    def _silence(self) -> None:
        """Linux drops a SYN for a listener whose queue is full, as a dead line does."""
        self._gone()
        self._close_listener()
        self._stalled_at = self._stalled_at or time.monotonic()
        listener = _listening(self.port, backlog=0)
        self._stuffing = [listener]
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._stuffing.append(filler)
        self._watch_nobody()

    def _lose(self) -> None:
        self._silence()
        for connection in self._live:
            connection.frozen = True

    def _watch_nobody(self) -> None:
        for connection in self._live:
            for one in connection.sockets():
                self._watch(one, connection, 0)

    def _unstuff(self) -> None:
        for one in self._stuffing:
            one.close()
        self._stuffing = []

    def _close_listener(self) -> None:
        self._unstuff()
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _end(self) -> None:
        self._gone()
        self._close_listener()
        self._reset_all()
        self._stop = True

    def _reset_all(self) -> None:
        for connection in list(self._live):
            self._reset(connection)
            self.resets += 1

    def _reset(self, connection: _Connection) -> None:
        for one in connection.sockets():
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        for one in connection.sockets():
            self._watch(one, connection, 0)
            one.close()
        self._live.remove(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            near, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        far = socket.socket()
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.rate:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL)
        with contextlib.suppress(BlockingIOError):
            far.connect(("127.0.0.1", self.target))
        now = time.monotonic()
        # The handshake crosses the line: SYN forth, SYN+ACK back, and only then what is sent.
        forth = _Half(near, far, self.forth, now + self.round_trip)
        back = _Half(far, near, self.back, now + self.round_trip / 2)
        self._live.append(_Connection((forth, back)))
        self.opened.append(now)

    def _ready(self, connection: _Connection) -> None:
        """A socket may be read from, or written to again; `_move` does it."""
        for half in connection.halves:
            half.blocked = False

    def _move(self, now: float) -> float:
        """Deliver what is due, take in what there is room for; seconds until the next turn."""
        for connection in list(self._live):
            if not connection.frozen:
                try:
                    self._carry(connection, now)
                except OSError:  # one end is gone: the other learns of it
                    self._reset(connection)
        if self._live:  # who found the modem full is the first to find room in it
            self._live.append(self._live.pop(0))
        held = sum(half.held for one in self._live for half in one.halves)
        self.most_held = max(self.most_held, held)
        return min((self._pause(one, now) for one in self._live if not one.frozen), default=_IDLE)

    def _carry(self, connection: _Connection, now: float) -> None:
        for half in connection.halves:
            self._deliver(half, now)
            self._take(half, now)
        if all(half.ended for half in connection.halves):
            self._drop(connection)

    def _deliver(self, half: _Half, now: float) -> None:
        while half.under_way and half.under_way[0][0] <= now and not half.blocked:
            due, piece = half.under_way.popleft()
            if piece is None:
                half.ended = True
                with contextlib.suppress(OSError):
                    half.sink.shutdown(socket.SHUT_WR)
                return
            try:
                count = half.sink.send(piece)
            except BlockingIOError:
                count = 0
            half.held -= count
            half.way.arrived += count
            if count:
                half.way.first_at = half.way.first_at or due
                half.way.last_at = now
            if count < len(piece):
                half.under_way.appendleft((due, piece[count:]))
                half.blocked = True

    def _take(self, half: _Half, now: float) -> None:
        if half.read_all or half.opens > now or not self._room(half, now):
            return
        try:
            got = half.source.recv(self._piece)
        except BlockingIOError:
            return
        way = half.way
        begins = max(now, way._free)
        way._free = begins + (len(got) * 8 / self.rate if self.rate else 0.0)
        half.under_way.append((way._free + self.round_trip / 2, memoryview(got) if got else None))
        half.read_all = not got
        half.held += len(got)
        way.entered += len(got)

    def _room(self, half: _Half, now: float) -> bool:
        """Whether the modem has room, and the far end takes what arrives."""
        in_modem = (half.way._free - now) * self.rate / 8
        late = bool(half.under_way) and half.under_way[0][0] < now  # the sink is slow
        return in_modem < self.queue_bytes and not (late and half.held > self.queue_bytes)

    def _pause(self, connection: _Connection, now: float) -> float:
        """How long nothing can happen by itself; what is waited for besides is watched."""
        pause = _IDLE
        wanted = dict.fromkeys(connection.sockets(), 0)
        for half in connection.halves:
            if half.under_way and half.blocked:
                wanted[half.sink] |= selectors.EVENT_WRITE
            elif half.under_way:
                pause = min(pause, half.under_way[0][0] - now)
            if half.read_all:
                continue
            if half.opens > now:
                pause = min(pause, half.opens - now)
            elif self._room(half, now):
                wanted[half.source] |= selectors.EVENT_READ
            elif self.rate:
                full = half.way._free - now - self.queue_bytes * 8 / self.rate
                pause = min(pause, max(full, _SLICE))
        for one, events in wanted.items():
            self._watch(one, connection, events)
        return pause

    def _watch(self, one: socket.socket, connection: _Connection, events: int) -> None:
        known = self._selector.get_map().get(one.fileno()) if one.fileno() >= 0 else None
        if known is not None and known.events == events:
            return
        if known is not None and not events:
            self._selector.unregister(one)
        elif known is not None:
            self._selector.modify(one, events, connection)
        elif events:
            self._selector.register(one, events, connection)


def _listening(port: int, *, backlog: int = _BACKLOG) -> socket.socket:
    """A listener with the buffers and segments of a line, which its connections inherit."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", port))
    listener.listen(backlog)
    return listener
