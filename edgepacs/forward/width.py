"""Width: how many associations at once carry what goes to one destination.

One association leaves the line empty for a round trip after each instance, and longer where the
peer is slow to answer. More of them fill it, as long as that makes the whole faster: what does
not is taken back and remembered for a while.
"""

import threading
from collections.abc import Callable
from math import ceil

from edgepacs.clock import monotonic
from edgepacs.dimse.requestor import CONTEXTS_MAX

MOST = 4
REMEMBER_SECONDS = 600.0  # what was learnt about a width, until it is tried once more
_LEAST_TRIP = 0.025  # seconds there and back, from which on one association is too few
_LEAST_IDLE = 0.03  # share of its time an association waits, below which another gains nothing
_LEAST_GAIN = 1.03  # by which another association must make the whole faster
_INSTANCES = 3  # of each association, before its width is judged
_SECONDS = 1.0  # of sending, likewise
_ROUND_TRIPS = 4  # likewise
_PATIENCE_SECONDS = 3.0


class Width:
    """How many lanes one destination gets; from any thread.

    `fixed` is what a person has set, 0 for as measured; `known` what was best when the line was
    last used, 0 where nobody knows. `news` is called when an association has been accepted.
    """

    def __init__(self, fixed: int, known: int = 0, news: Callable[[], None] = lambda: None) -> None:
        self._news = news
        self._lock = threading.Lock()
        self._fixed = fixed
        self._lanes = fixed or max(1, min(known, MOST))
        self._most = fixed or MOST
        self._hold_until = 0.0  # monotonic: no other width is tried before
        self._rates: dict[int, float] = {}  # bytes a second, by number of lanes
        self._taken, self._refused_until = 0, 0.0  # associations it took, monotonic
        self._under_way = 0
        self._open = 0  # associations
        self._begin(monotonic())
        self.round_trip = 0.0  # seconds, the shortest seen
        self.contexts = CONTEXTS_MAX

    def _begin(self, now: float) -> None:
        """Measure anew."""
        self._busy = 0.0  # seconds with at least one instance under way
        self._busy_since = now
        self._bytes = self._count = 0
        self._waited = self._spent = 0.0  # seconds of all lanes together

    @property
    def lanes(self) -> int:
        """How many associations are to be open at once while there is enough to send."""
        with self._lock:
            return self._lanes

    def opened(self, seconds: float, contexts: int, needs: float = 0.0) -> None:
        """An association was accepted so long after it was asked for: two round trips, and more.

        The peer takes `contexts` presentation contexts; the next instance `needs` so many seconds
        of the line, 0 where that is not known.
        """
        with self._lock:
            self._open += 1
            self.round_trip = min(self.round_trip or seconds, seconds)
            self.contexts = contexts
            if self._lanes == 1 and not self._fixed and monotonic() >= self._hold_until:
                self._lanes = self._guess(seconds / 2, needs)
        self._news()

    def _guess(self, trip: float, needs: float) -> int:
        """How many lanes fill a line that would else be empty for a round trip each time."""
        if trip < _LEAST_TRIP:
            return 1
        if not needs:
            return 2
        if trip < _LEAST_IDLE * (trip + needs):
            return 1
        return min(self._most, 1 + ceil(trip / needs))

    def closed(self) -> None:
        """One of them has ended."""
        with self._lock:
            self._open -= 1

    @property
    def alone(self) -> bool:
        """Whether no association is open."""
        return not self._open

    @property
    def patience(self) -> float:
        """Seconds another association is waited for while one is open."""
        return max(_PATIENCE_SECONDS, _ROUND_TRIPS * self.round_trip)

    def refused(self, standing: int) -> None:
        """The peer takes no more associations than the `standing` ones; remembered."""
        with self._lock:
            now = monotonic()
            self._taken, self._refused_until = standing, now + REMEMBER_SECONDS
            self._lanes = max(1, min(self._lanes, standing))
            self._hold(now)

    def full(self, lanes: int) -> bool:
        """Whether the peer has lately refused more than `lanes` associations."""
        with self._lock:
            return monotonic() < self._refused_until and lanes >= self._taken

    def begin(self) -> None:
        """A lane begins to send an instance."""
        with self._lock:
            if not self._under_way:
                self._busy_since = monotonic()
            self._under_way += 1

    def end(self, length: int, sending: float, waiting: float) -> None:
        """It has: `length` bytes handed on in `sending` seconds, then `waiting` for the answer.

        0 bytes where the line broke.
        """
        now = monotonic()
        with self._lock:
            self._under_way -= 1
            self._busy += now - self._busy_since
            self._busy_since = now
            self._bytes += length
            self._count += bool(length)
            self._spent += sending + waiting
            self._waited += waiting
            self._judge(now)

    def _judge(self, now: float) -> None:
        if self._fixed and now >= self._hold_until:
            self._lanes = self._fixed  # it may have been refused for a while
        if self._fixed:
            return
        least = max(_SECONDS, _ROUND_TRIPS * self.round_trip)
        if self._count < _INSTANCES * self._lanes or self._busy < least:
            return
        if now >= self._hold_until:
            if self._hold_until:
                self._rates.clear()
                self._hold_until = 0.0
            self._try_another(now)
        self._begin(now)

    def _try_another(self, now: float) -> None:
        rate = self._rates[self._lanes] = self._bytes / self._busy
        before = self._rates.get(self._lanes - 1, 0.0)
        if rate < before * _LEAST_GAIN:
            self._lanes -= 1
            self._hold(now)
        elif self._lanes < self._most and self._waited > _LEAST_IDLE * self._spent:
            self._lanes += 1
        else:
            self._hold(now)

    def _hold(self, now: float) -> None:
        self._rates.clear()
        self._hold_until = now + REMEMBER_SECONDS
