"""Link: what is known of the line to one destination, and when it is to be tried.

A line that is down is asked for ever, but cheaply: a TCP connect tells whether anybody is there,
and only then, where the destination has not shown lately that it works, a C-ECHO or its like.
Nothing is claimed for a line that is not up, so an outage of any length costs no attempts.
"""

import errno
import os
import queue
import random
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from edgepacs.clock import Jumps, monotonic
from edgepacs.dimse import AssociationAborted
from edgepacs.errors import EdgePacsError, PeerBusy, PeerError, PeerUnreachable
from edgepacs.model import LinkState
from edgepacs.store import Store, destinations, usage
from edgepacs.store.destinations import Destination
from edgepacs.telemetry import log

CONNECT_SECONDS = 2.25  # a thread waits for a connect; the kernel tries again after 1 s
PROBE_SECONDS = 3.75  # from one probe of a line that is down to the next: noticed within 5 s
QUICK_SECONDS = 0.5  # the same, in the first minute: most outages are short
LEAST_SECONDS = 0.25  # from the end of one to the next, where the connect took its time
QUICK_FOR_SECONDS = 60.0
REFUSED_FIRST_SECONDS = 5.0  # how soon one that refuses is asked again, doubled each time
REFUSED_MOST_SECONDS = 60.0
BUSY_MOST_SECONDS = 900.0  # however long a busy one asks to be left alone
_PATIENCE_SECONDS = 3.5  # until a connect is given up: a round trip longer than all others
_NAME_SECONDS = 2.0  # a thread waits for a host name
_NAMES_MOST = 4  # questions for a host name under way at once; the resolver cannot be hurried
_WORDS_SECONDS = 60.0  # between two records of the same state in other words
_RTT_AT = 68  # bytes into tcp_info of linux/tcp.h stands tcpi_rtt, in microseconds
_ROUND_TRIP_NEWS = 0.2  # of the round trip, from which on a change is remembered

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class Link:
    """The line to one destination; `echo` is how its transport asks it, raising PeerError.

    It may be used when `wait()` is 0 and it is up, or `probe()` says so now; or `reach()` does, and
    what is asked of it then is the probe. Both belong to one thread; everything else may be
    called from any. Nothing is raised.
    """

    def __init__(
        self, store: Store, destination: Destination, echo: Callable[[Store, Destination], None]
    ) -> None:
        self._store = store
        self.destination = destination
        self._echo = echo
        self._knocker = _Knocker()
        self._lock = threading.Lock()
        self._state = LinkState.UNKNOWN  # whatever the index says: that was before a restart
        self._not_before = 0.0  # monotonic, as all times here
        self._worked_at = 0.0
        self._broken_at = 0.0
        self._proven = False  # something has worked since it broke last
        self._trusted = False  # it had, before it broke: no echo is needed once it is reached
        self._failures = 0  # exchanges that failed since something worked
        self._reached = False  # a connect came through, and whatever was to follow is awaited
        self._round_trip = usage.measured(store.db, destination.id).round_trip_ms / 1000
        self._written = (destination.link, destination.link_note)
        self._written_at = 0.0  # 0: not by this process
        self._jumps = Jumps()

    @property
    def state(self) -> LinkState:
        """What is known of the line since start; `unknown` until it has been tried."""
        return self._state

    @property
    def round_trip(self) -> float:
        """Seconds a TCP connect takes, the last ones weighing most; 0 where it is not known."""
        return self._round_trip

    def wait(self) -> float:
        """Seconds until the line may be tried; 0 for now."""
        return max(0.0, self._not_before - monotonic())

    def wake(self) -> None:
        """Something has changed (settings, the network, a person asks): it may be tried at once."""
        self._not_before = 0.0

    def adopt(self, destination: Destination) -> None:
        """The same destination with other settings: what it refused before, it may take now."""
        with self._lock:
            self.destination = destination
            self._trusted = self._proven = False
        self.wake()

    def worked(self) -> None:
        """The destination has answered on an association; cheap, to be called for every answer."""
        self._worked_at = monotonic()
        if self._state is LinkState.UP and self._proven and not self._failures:
            return
        with self._lock:
            self._failures = 0
            self._proven = True
            self._not_before = 0.0
            self._note(LinkState.UP, "")

    def broke(self, error: PeerError) -> None:
        """An association could not be made, or ended before its time.

        The first of several lanes that lose theirs at once decides; `probe` finds out the rest.
        """
        with self._lock:
            if self._state not in (LinkState.UP, LinkState.UNKNOWN) and not self._reached:
                return
            self._failed(error)

    def reach(self) -> bool:
        """Whether somebody listens there now; `worked` or `broke` says what came of it then."""
        begun = monotonic()
        self._follow_clock()
        try:
            trip = self._knocker.knock(_endpoint(self.destination), CONNECT_SECONDS)
        except OSError as error:
            if self._worked_at > begun:
                return True
            with self._lock:
                self._missed(error, monotonic() - begun)
            return False
        self._feel(trip)
        self._reached = True
        return True

    def probe(self) -> bool:
        """Ask whether the line is up, in a few seconds at most where nobody is there."""
        begun = monotonic()
        if not self.reach():
            return False
        if not self._trusted and self._worked_at <= begun:
            try:
                self._echo(self._store, self.destination)
            except PeerError as error:
                with self._lock:
                    self._failed(error)
                return False
        with self._lock:
            self._trusted = False
            self._not_before = 0.0
            self._note(LinkState.UP, "")
        return True

    def _missed(self, error: OSError, taken: float) -> None:
        """Nobody is there, which took so many seconds to learn."""
        now = monotonic()
        if self._state is not LinkState.DOWN:
            self._broken_at = now
        soon = now - self._broken_at < QUICK_FOR_SECONDS
        pause = QUICK_SECONDS if soon else PROBE_SECONDS
        self._not_before = now + max(LEAST_SECONDS, pause - taken)
        self._note(LinkState.DOWN, f"cannot connect: {_words(error)}")

    def _failed(self, error: PeerError) -> None:
        """Somebody is there, or was until now, but the exchange failed."""
        now = monotonic()
        self._failures += 1
        if self._proven:
            self._broken_at = now
        said_no = not isinstance(error, PeerUnreachable) or isinstance(error, AssociationAborted)
        if isinstance(error, PeerBusy):
            pause = max(QUICK_SECONDS, min(error.seconds, BUSY_MOST_SECONDS))
        elif self._proven and isinstance(error, PeerUnreachable):
            pause = 0.0  # it worked until now: a connect will show
        elif said_no:
            doubled = REFUSED_FIRST_SECONDS * 2 ** min(self._failures - 1, 10)
            pause = min(doubled, REFUSED_MOST_SECONDS) * random.uniform(0.8, 1.0)  # noqa: S311
        else:
            soon = now - self._broken_at < QUICK_FOR_SECONDS
            pause = QUICK_SECONDS if soon else PROBE_SECONDS
        self._trusted = self._proven and isinstance(error, PeerUnreachable | PeerBusy)
        self._proven = False
        self._not_before = now + pause
        self._note(LinkState.DEGRADED, str(error))

    def _note(self, state: LinkState, words: str) -> None:
        """Keep the state, and write down what is news; other words for the same now and then."""
        now = monotonic()
        self._state, self._reached = state, False
        same_state = state is self._written[0]
        if self._written == (state, words):
            return
        if same_state and self._written_at and now - self._written_at < _WORDS_SECONDS:
            return
        try:
            destinations.set_link(self._store.db, self.destination.id, state, words)
        except EdgePacsError as error:
            log.warning("destination %d: link not recorded: %s", self.destination.id, error)
            return
        self._written, self._written_at = (state, words), now

    def _follow_clock(self) -> None:
        """Where the clock was set, the line is down no longer and no shorter than before."""
        jumped = self._jumps.since_last()
        if not jumped or not self._written_at:
            return
        try:
            destinations.move_link_time(self._store.db, self.destination.id, jumped)
        except EdgePacsError as error:
            log.warning("destination %d: link not recorded: %s", self.destination.id, error)

    def _feel(self, trip: float) -> None:
        """A connect has taken `trip` seconds."""
        if not trip:
            return
        before = self._round_trip
        self._round_trip = before * 0.7 + trip * 0.3 if before else trip
        milliseconds = max(1, round(self._round_trip * 1000))
        if abs(self._round_trip - before) <= before * _ROUND_TRIP_NEWS:
            return
        try:
            usage.set_round_trip(self._store.db, self.destination.id, milliseconds)
        except EdgePacsError as error:
            log.warning("destination %d: round trip not kept: %s", self.destination.id, error)


class _Knocker:
    """Connects to where a destination listens, without ever blocking for long.

    A connect that has not been answered goes on while the next one is made, so that a round
    trip longer than one wait is no obstacle.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._begun: dict[socket.socket, float] = {}
        self._questions = threading.BoundedSemaphore(_NAMES_MOST)

    def knock(self, endpoint: tuple[str, int], seconds: float) -> float:
        """Connect within `seconds`; the round trip, 0.0 where it cannot be told.

        Raises OSError: TimeoutError, ConnectionRefusedError, gaierror ...
        """
        now = monotonic()
        self._forget(now - _PATIENCE_SECONDS)
        addresses = self._addresses(*endpoint)
        deadline = monotonic() + seconds
        fresh = self._begin(addresses)
        while True:
            ready = self._selector.select(max(0.0, deadline - monotonic()))
            for key, _ in ready:
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                trip = 0.0 if problem else _round_trip(sock)
                self._end(sock)
                fresh.discard(sock)
                if not problem:
                    self._forget(monotonic())
                    return trip
                if not fresh:
                    raise OSError(problem, os.strerror(problem))
            if monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "no answer in time")

    def _begin(self, addresses: Sequence[Address]) -> set[socket.socket]:
        """Begin a connect to every address; raises OSError where none can be begun."""
        begun = set()
        problem = OSError(errno.EADDRNOTAVAIL, "no address")
        for family, where in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            number = sock.connect_ex(where)
            if number not in (0, errno.EINPROGRESS):
                problem = OSError(number, os.strerror(number))
                sock.close()
                continue
            self._begun[sock] = monotonic()
            self._selector.register(sock, selectors.EVENT_WRITE)
            begun.add(sock)
        if not begun:
            raise problem
        return begun

    def _end(self, sock: socket.socket) -> None:
        self._begun.pop(sock)
        self._selector.unregister(sock)
        sock.close()

    def _forget(self, before: float) -> None:
        """Give up the connects begun up to then."""
        for sock in [one for one, begun in self._begun.items() if begun <= before]:
            self._end(sock)

    def _addresses(self, host: str, port: int) -> Sequence[Address]:
        """Where a host is; a name that takes too long to find is looked for elsewhere meanwhile."""
        with suppress(socket.gaierror):
            return _look_up(host, port, socket.AI_NUMERICHOST)
        if not self._questions.acquire(blocking=False):
            raise TimeoutError(errno.ETIMEDOUT, "the host name is not found in time")
        answer: queue.SimpleQueue[Sequence[Address] | OSError] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(host, port, answer), daemon=True).start()
        try:
            found = answer.get(timeout=_NAME_SECONDS)
        except queue.Empty:
            raise TimeoutError(errno.ETIMEDOUT, "the host name is not found in time") from None
        if isinstance(found, OSError):
            raise found
        return found

    def _ask(
        self, host: str, port: int, answer: "queue.SimpleQueue[Sequence[Address] | OSError]"
    ) -> None:
        try:
            answer.put(_look_up(host, port))
        except OSError as error:
            answer.put(error)
        finally:
            self._questions.release()


def _round_trip(sock: socket.socket) -> float:
    """Seconds, as the kernel measured them, tries that were lost left out; 0.0 for not."""
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    return float(int.from_bytes(information[_RTT_AT:], sys.byteorder)) / 1e6


def _look_up(host: str, port: int, flags: int = 0) -> Sequence[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label of a name that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "no host name") from error
    return [(one[0], one[4]) for one in found]  # type: ignore[misc]  # never AF_UNIX


def _endpoint(destination: Destination) -> tuple[str, int]:
    """Host and port a destination listens on, whatever its transport."""
    if destination.transport == "stow":
        parts = urlsplit(destination.url)
        return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    return destination.host, destination.port


def _words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens on that port"
    return error.strerror or "no answer in time"
