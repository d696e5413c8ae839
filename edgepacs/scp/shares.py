"""Shares: what each calling AE takes of this node at once, in associations and in work.

Nobody keeps anybody else out: the last places are for AEs that have none. And nobody slows
anybody else down by numbers: while several AEs send, each has few instances at work, and its
other associations wait. What they send stays unread, so TCP makes their senders wait as well, and
nothing piles up here. An AE that sends alone is not held back (docs/decisions/0016).
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgepacs.clock import monotonic
from edgepacs.errors import LimitExceeded
from edgepacs.model import AETitle

AT_WORK = 2  # instances of one AE while others send: one arrives as another is made durable
SENDING_SECONDS = 1.0  # so long after its last instance an AE still counts as one that sends
_LAST_PLACES = 4  # one in so many places is kept for AEs that have none


@dataclass(slots=True)
class Share:
    """What one AE has: places, instances at work, and those that wait for a turn, in order."""

    places: int = 0
    working: int = 0
    waiting: deque[threading.Lock] = field(default_factory=deque)
    last: float = 0.0  # when it last took or ended a turn (monotonic)

    def sends(self, now: float) -> bool:
        """Whether it has instances at work, or had until just now."""
        return self.working > 0 or now - self.last < SENDING_SECONDS


class Shares:
    """The shares of all calling AEs in `places` associations; for all threads."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._lock = threading.Lock()
        self._shares: dict[AETitle, Share] = {}

    def take(self, title: AETitle, most: int, object_bytes: int) -> "Place | None":
        """A place for one more association of `title`, which may have `most`; None for none.

        No data set that comes in there may be longer than `object_bytes`.
        """
        with self._lock:
            self._forget()
            share = self._shares.setdefault(title, Share())
            kept = self._places // _LAST_PLACES if share.places else 0
            if share.places >= most or self._taken >= self._places - kept:
                return None
            share.places += 1
            self._taken += 1
        return Place(self, share, object_bytes)

    def _forget(self) -> None:
        """Forget AEs that have nothing any more; under the lock."""
        now = monotonic()
        for title, share in list(self._shares.items()):
            if not share.places and not share.sends(now):
                del self._shares[title]

    def leave(self, share: Share) -> None:
        """Give one place back."""
        with self._lock:
            share.places -= 1
            self._taken -= 1

    def begin(self, share: Share) -> None:
        """Return when an instance of this AE may be worked at."""
        with self._lock:
            share.last = now = monotonic()
            if self._may_work(share, now):
                share.working += 1
                return
            mine = threading.Lock()
            mine.acquire()
            share.waiting.append(mine)
        mine.acquire()  # until `end` hands a turn on

    def end(self, share: Share) -> None:
        """End a turn. Whoever waits is let go here: it waits only while its own AE is at work."""
        with self._lock:
            share.last = now = monotonic()
            share.working -= 1
            while share.waiting and self._may_work(share, now):
                share.working += 1
                share.waiting.popleft().release()

    def _may_work(self, share: Share, now: float) -> bool:
        if share.working < AT_WORK:
            return True
        return not any(one is not share and one.sends(now) for one in self._shares.values())


class Place:
    """One association's place among those of its AE, and its turns at work; for one thread."""

    def __init__(self, shares: Shares, share: Share, object_bytes: int) -> None:
        self._shares = shares
        self._share = share
        self._object_bytes = object_bytes
        self._working = False
        self._left = False

    def turns(self, fragments: Iterable[memoryview]) -> Iterator[memoryview]:
        """The fragments of one data set, each handed on in its turn; what follows has one as well.

        While the next fragment is awaited there is no turn: a slow line costs nobody a turn. The
        last one ends with `rest`. Raises LimitExceeded when the data set is too long.
        """
        length = 0
        for fragment in fragments:
            length += len(fragment)
            if length > self._object_bytes:
                raise LimitExceeded(f"data set: longer than {self._object_bytes >> 20} MiB")
            self._work()
            yield fragment
            self.rest()
        self._work()

    def _work(self) -> None:
        self._shares.begin(self._share)
        self._working = True

    def rest(self) -> None:
        """End the turn, if there is one: an instance is done, or was given up."""
        if self._working:
            self._working = False
            self._shares.end(self._share)

    def leave(self) -> None:
        """Give the place to others, at the end of the association; again is harmless."""
        self.rest()
        if not self._left:
            self._left = True
            self._shares.leave(self._share)
