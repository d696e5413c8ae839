"""Pace: how fast a destination's line is used, and when it may not be used at all.

All lanes of a destination share one Pace: it keeps them below the cap, lets urgent traffic go
first, counts what was carried and measures at which rate.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import TypeVar

from edgepacs.clock import monotonic, wall_ms
from edgepacs.errors import EdgePacsError
from edgepacs.store import Store, hours, usage
from edgepacs.store.deliveries import STAT
from edgepacs.store.destinations import Destination
from edgepacs.store.hours import Hours
from edgepacs.store.usage import MIB, Used
from edgepacs.telemetry import log

ASK_AGAIN_SECONDS = 60.0  # how soon a closed line is looked at again: clocks and settings change
FLUSH_SECONDS = 4.0  # how long what was carried waits to be written down, while somebody asks
_UNASKED_SECONDS = 8.0  # from then on a lane does it itself
_SLICE_SECONDS = 0.05  # of the rate, at a time
_BURST_SECONDS = 0.1  # of the rate, saved up while nothing was sent
_SLICE_LEAST, _SLICE_MOST = 64, 262_144  # bytes
_WRITE_SECONDS = 0.25  # of the rate, that may be gathered before it is written
_WRITE_LEAST, _WRITE_MOST = 4096, 131_072  # bytes
_UNMEASURED = 262_144  # bytes a second a line is taken for until it has been measured
_TRICKLE = 0.05  # of the rate, left to the others while urgent traffic is under way
_TRICKLE_LEAST = 512.0  # bytes a second
_TRICKLE_SECONDS = 0.5  # of the trickle, at a time
_URGENT_SECONDS = 1.0  # after its last byte, urgent traffic still counts as under way
_STEP_SECONDS = 0.25  # how soon a lane that gave way sees that it need not any more
_THIN = 524_288  # bytes a second; on a faster line nobody waits for his turn
_TURN_SECONDS = 0.25  # that an instance takes of the line, from which on lanes take turns
_TURN_SLACK = 3.0  # seconds over twice its time, after which a turn is taken for stuck
_MEMORY_SECONDS = 60.0  # of sending, over which the rate is measured
_MEASURED_SECONDS = 1.0  # of sending, before the rate is believed
_Piece = TypeVar("_Piece", bytes, memoryview)


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a line may not be used now, and in how many seconds it is worth asking again.

    `until_ms` is when it opens (ms since 1970 UTC), None where only a person can change that.
    """

    seconds: float
    words: str
    until_ms: int | None = None


class Bucket:
    """A token bucket: bytes at `rate` a second, of which `burst` may be saved up; empty at first.

    What is taken may have to be waited for, so that bytes leave in the order they were asked
    for. As long as no `take` is larger than `burst`, at most `burst` + `rate` x t bytes leave in
    any t seconds.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = 0.0  # below zero: asked for, not yet earned
        self._at = now

    def change(self, rate: float, burst: float, now: float) -> None:
        """Fill at another rate from `now` on."""
        self._earn(now)
        self.rate, self.burst = rate, burst

    def take(self, count: int, now: float) -> float:
        """Take `count` bytes at `now`; the seconds to wait before they may leave."""
        self._earn(now)
        self._level -= count
        return self.shortage(0, now)

    def shortage(self, count: int, now: float) -> float:
        """Seconds from `now` until `count` bytes would be there."""
        self._earn(now)
        return max(0.0, (count - self._level) / self.rate)

    def _earn(self, now: float) -> None:
        if now > self._at:
            self._level = min(self.burst, self._level + self.rate * (now - self._at))
            self._at = now


class Meter:
    """The rate of a line: bytes a second of sending, over the last minutes of it."""

    def __init__(self, rate: float, now: float) -> None:
        self._seconds = _MEASURED_SECONDS if rate else 0.0  # of sending, the latest weigh most
        self._bytes = rate * self._seconds
        self._at = now
        self.sending = 0  # lanes that are

    def note(self, count: int, now: float) -> None:
        """`count` bytes have left."""
        if self.sending and now > self._at:
            faded = math.exp((self._at - now) / _MEMORY_SECONDS)
            self._bytes *= faded
            self._seconds = self._seconds * faded + now - self._at
        self._at = now
        self._bytes += count

    @property
    def rate(self) -> float:
        """Bytes a second; 0 where it is not known."""
        return self._bytes / self._seconds if self._seconds >= _MEASURED_SECONDS else 0.0


class Pace:
    """How fast the line to one destination is used; one for all its lanes, from any thread."""

    def __init__(self, store: Store, destination: Destination) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._meter = Meter(usage.measured(store.db, destination.id).rate, monotonic())
        self._turn_until = 0.0  # monotonic; 0.0: it is nobody's turn
        self._urgent_lanes = 0
        self._urgent_until = 0.0  # monotonic
        self._carried: dict[date, int] = {}  # bytes not yet in the table
        self._known: tuple[date, Used] | None = None  # as the table has it
        self._opening = (0.0, 0.0)  # as found in a minute: when the line opens
        self._flushed = monotonic()
        self._today = hours.day_of(wall_ms() / 1000)
        self._dated = monotonic()
        self.adopt(destination)

    def adopt(self, destination: Destination) -> None:
        """Go by these settings from now on; it must be the same destination."""
        with self._changed:
            self.destination = destination
            self._hours = Hours.read(destination.hours)
            self._opening = (0.0, 0.0)
            cap, now = destination.kbits * 125.0, monotonic()
            self._cap = Bucket(cap, max(cap * _BURST_SECONDS, _SLICE_LEAST), now) if cap else None
            self._trickle = Bucket(_TRICKLE_LEAST, _TRICKLE_LEAST, now)

    # --- whether it may be used at all ---------------------------------------------------------

    def closed_for(self, priority: int) -> Closed | None:
        """What keeps back what has this priority; None where nothing does.

        Hours and metering say when it is cheap to send, and a person who sends at once (STAT)
        has decided that this one is worth it: it passes. A quota is what the line's owner pays
        for: beyond it a line may be cut for everybody, so STAT passes it only as far as the
        setting `stat_mib` lets it.
        """
        self._flush_after(FLUSH_SECONDS)
        return self._used_up(priority) or self._outside(priority)

    def _outside(self, priority: int) -> Closed | None:
        if priority >= STAT:
            return None
        least = self.destination.least_priority
        if least and priority < least:
            return Closed(ASK_AGAIN_SECONDS, f"a metered line: it takes priority {least} and above")
        now = wall_ms() / 1000
        if self._hours.holds(now):
            return None
        if self._opening[0] != now // 60:
            self._opening = (now // 60, self._hours.opening(now))
        words = f"outside its hours ({self.destination.hours}): waits"
        return _closed(words, self._opening[1], now)

    def _used_up(self, priority: int) -> Closed | None:
        one = self.destination
        if not one.daily_mib and not one.monthly_mib:
            return None
        now = wall_ms() / 1000
        used = self._used(hours.day_of(now))
        more = one.stat_mib if priority >= STAT else 0
        if one.monthly_mib and used.month >= (one.monthly_mib + more) * MIB:
            words = f"the monthly quota of {one.monthly_mib} MiB is used up: waits"
            return _closed(words, hours.month_end(now), now)
        if one.daily_mib and used.day >= (one.daily_mib + more) * MIB:
            words = f"the daily quota of {one.daily_mib} MiB is used up: waits"
            return _closed(words, hours.day_end(now), now)
        return None

    def _used(self, today: date) -> Used:
        """What was carried today and this month, with what is not yet in the table."""
        with self._changed:
            known = self._known
            if known is None or known[0] != today:
                known = (today, usage.used(self._store.db, self.destination.id, today))
                self._known = known
            waiting = sum(self._carried.values())
        return Used(day=known[1].day + waiting, month=known[1].month + waiting)

    # --- how fast ------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Bytes a second of sending, all lanes together, over the last minutes; 0: not known."""
        with self._changed:
            return self._meter.rate

    @property
    def write_bytes(self) -> int:
        """The most that may be gathered before it is written to the line, an even number.

        Short on a slow line: only what has not been written can still give way.
        """
        with self._changed:
            share = int(self._expected() * _WRITE_SECONDS)
        return max(_WRITE_LEAST, min(_WRITE_MOST, share)) & ~1

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a lane sends: from its first byte to the answer. Only this time is measured."""
        with self._changed:
            self._meter.note(0, monotonic())
            self._meter.sending += 1
        try:
            yield
        finally:
            with self._changed:
                self._meter.note(0, monotonic())
                self._meter.sending -= 1
            self._flush_after(_UNASKED_SECONDS)

    @contextmanager
    def turn(self, size: int, priority: int) -> Iterator[bool]:
        """While an instance of `size` bytes is handed to the line; whether in turns with others.

        On a thin line lanes only fill each other's pauses: side by side they would be no faster,
        and an outage would find all of them inside an instance that has to be sent again. Urgent
        traffic waits for nobody; one that is stuck is waited for no longer than it should take.
        """
        with self._changed:
            needs = size / self._expected()
            turns = priority < STAT and self._expected() <= _THIN and needs >= _TURN_SECONDS
            if turns:
                self._changed.wait_for(lambda: not self._turn_until, self._turn_left())
                mine = self._turn_until = monotonic() + 2 * needs + _TURN_SLACK
        try:
            yield turns
        finally:
            if turns:
                with self._changed:
                    if self._turn_until == mine:
                        self._turn_until = 0.0
                        self._changed.notify_all()

    def _turn_left(self) -> float:
        return max(0.0, self._turn_until - monotonic())

    def carry(self, pieces: Iterable[bytes | memoryview], priority: int) -> Iterator[memoryview]:
        """The same bytes in pieces small enough for the line, each when it may leave.

        Counts them. While something with the priority STAT or above is carried to the same
        destination, what has less gets a trickle, so that its peer does not time out.
        """
        urgent = priority >= STAT
        with self.sending(), self._urgency(urgent):
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    count = self._leave(min(len(rest), self._share(urgent)))
                    yield rest[:count]
                    rest = rest[count:]

    def bring(self, pieces: Iterable[_Piece]) -> Iterator[_Piece]:
        """The same pieces, which come from the destination, each when the cap lets it be taken.

        Counts them like what is sent, which quotas do not tell apart; they say nothing of the rate
        of sending.
        """
        for piece in pieces:
            self.count(len(piece))
            yield piece

    def count(self, size: int) -> None:
        """`size` bytes have come from the destination; waits until the cap lets more come."""
        with self._changed:
            pause = self._cap.take(size, monotonic()) if self._cap else 0.0
            self._add(size)
        if pause:
            time.sleep(pause)  # the line's time, which nothing shortens
        self._flush_after(_UNASKED_SECONDS)

    @contextmanager
    def _urgency(self, urgent: bool) -> Iterator[None]:  # noqa: FBT001  a fact about the lane
        if not urgent:
            yield
            return
        with self._changed:
            self._urgent_lanes += 1
        try:
            yield
        finally:
            with self._changed:
                self._urgent_lanes -= 1
                self._urgent_until = monotonic() + _URGENT_SECONDS

    def _share(self, urgent: bool) -> int:  # noqa: FBT001
        """Bytes a lane may ask for at a time, little enough for others to come between.

        What is not urgent waits here for its share of the trickle, as long as something is.
        """
        with self._changed:
            while not urgent and (self._urgent_lanes or monotonic() < self._urgent_until):
                rate = max(_TRICKLE_LEAST, self._expected() * _TRICKLE)
                share = int(rate * _TRICKLE_SECONDS)
                now = monotonic()
                self._trickle.change(rate, share, now)
                shortage = self._trickle.shortage(share, now)
                if not shortage:
                    self._trickle.take(share, now)
                    return min(share, self._slice())
                self._changed.wait(min(shortage, _STEP_SECONDS))
            return self._slice()

    def _leave(self, count: int) -> int:
        """Wait until `count` bytes may leave; `count`."""
        with self._changed:
            now = monotonic()
            pause = self._cap.take(count, now) if self._cap else 0.0
            self._meter.note(count, now)
            self._add(count)
        if pause:
            time.sleep(pause)  # the line's time, which nothing shortens
        return count

    def _add(self, count: int) -> None:
        """Count bytes to the day they were carried on; under the lock."""
        now = monotonic()
        if now - self._dated >= 1:
            self._today, self._dated = hours.day_of(wall_ms() / 1000), now
        self._carried[self._today] = self._carried.get(self._today, 0) + count

    def _slice(self) -> int:
        share = int(self._expected() * _SLICE_SECONDS)
        return max(_SLICE_LEAST, min(_SLICE_MOST, share))

    def _expected(self) -> float:
        """Bytes a second the line is taken to carry."""
        measured = self._meter.rate
        if self._cap is None:
            return measured or _UNMEASURED
        return min(measured, self._cap.rate) if measured else self._cap.rate

    # --- what was carried ----------------------------------------------------------------------

    def flush(self) -> None:
        """Write down what was carried; at the end, and when there is nothing more to send.

        Raises nothing: what cannot be written now is counted on.
        """
        with self._writing:
            with self._changed:
                carried, rate = dict(self._carried), int(self._meter.rate)
                self._flushed = monotonic()
            if not carried:
                return
            try:
                usage.add(self._store.db, self.destination.id, carried, rate)
            except EdgePacsError as error:
                log.warning("destination %d: usage not recorded: %s", self.destination.id, error)
                return
            with self._changed:
                self._known = None
                for day, count in carried.items():
                    self._carried[day] -= count
                    if not self._carried[day]:
                        del self._carried[day]

    def _flush_after(self, seconds: float) -> None:
        if self._carried and monotonic() - self._flushed >= seconds:
            self.flush()


def _closed(words: str, opening: float, now: float) -> Closed:
    """Closed until an instant, which is told in local time."""
    at = datetime.fromtimestamp(opening)  # noqa: DTZ006  the wall clock beside the reader
    when = f"{at:%H:%M}" if hours.day_of(opening) == hours.day_of(now) else f"{at:%Y-%m-%d %H:%M}"
    seconds = min(ASK_AGAIN_SECONDS, max(1.0, opening - now))
    return Closed(seconds, f"{words} until {when}", int(opening * 1000))
