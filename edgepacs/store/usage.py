"""Usage: what each line has carried and how it has been, and when its queue will be empty."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from edgepacs.clock import wall_ms
from edgepacs.model import LinkState
from edgepacs.store import hours
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import STAT
from edgepacs.store.destinations import Destination
from edgepacs.store.hours import Hours

MIB = 1 << 20
_DAYS_KEPT = 400
_SAMPLE = 2000  # queued deliveries whose length is looked up; the others are taken for like them
_FARTHEST_DAYS = 366  # of a forecast

# --- what was carried --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What a line has carried on one local day."""

    day: str
    bytes: int


def add(db: Database, destination: int, carried: Mapping[date, int], rate: int = 0) -> None:
    """Add bytes carried, by local day, and the `rate` (bytes a second) they went at, 0 for none."""
    with db.write() as tx:
        if not _exists(tx, destination):
            return
        for day, count in carried.items():
            tx.run(
                "INSERT INTO line_usage VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
                *(destination, day.isoformat(), count),
            )
        tx.run(
            "DELETE FROM line_usage WHERE destination = ?1 AND day <= (SELECT day FROM line_usage "
            "WHERE destination = ?1 ORDER BY day DESC LIMIT 1 OFFSET ?2)",
            *(destination, _DAYS_KEPT),
        )
        if rate:
            _measure(tx, destination, "rate", rate)


def days(db: Database, destination: int, most: int = 31) -> list[Day]:
    """The last days on which a line carried anything, newest first."""
    with db.read() as tx:
        return tx.records(
            Day,
            "SELECT day, bytes FROM line_usage WHERE destination = ? ORDER BY day DESC LIMIT ?",
            destination,
            most,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Bytes a line has carried on the local day and in the local month of an instant."""

    day: int
    month: int


def used(db: Database, destination: int, today: date) -> Used:
    """What a line has carried today and this month."""
    with db.read() as tx:
        return _used(tx, destination, today)


def _used(tx: Transaction, destination: int, today: date) -> Used:
    row = tx.first(
        "SELECT SUM(CASE day WHEN ?2 THEN bytes END), SUM(bytes) FROM line_usage "
        "WHERE destination = ?1 AND day BETWEEN ?3 AND ?4",
        destination,
        today.isoformat(),
        today.replace(day=1).isoformat(),
        (hours.next_month(today) - timedelta(days=1)).isoformat(),
    )
    assert row is not None
    return Used(day=int(row[0] or 0), month=int(row[1] or 0))


# --- what was measured -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on a line when it was last used; 0 where nothing was yet.

    `rate` is in bytes of data set a second, over minutes of sending; `round_trip_ms` is that of
    a TCP connect, `lanes` how many associations at once were best.
    """

    rate: int = 0
    round_trip_ms: int = 0
    lanes: int = 0


def measured(db: Database, destination: int) -> Measured:
    """The rate, the round trip and the width of a line."""
    with db.read() as tx:
        return _measured(tx, destination)


def _measured(tx: Transaction, destination: int) -> Measured:
    sql = "SELECT rate, round_trip_ms, lanes FROM line_measure WHERE destination = ?"
    found = tx.records(Measured, sql, destination)
    return found[0] if found else Measured()


def set_round_trip(db: Database, destination: int, round_trip_ms: int) -> None:
    """Remember the round trip of a line."""
    with db.write() as tx:
        if _exists(tx, destination):
            _measure(tx, destination, "round_trip_ms", round_trip_ms)


def set_lanes(db: Database, destination: int, lanes: int) -> None:
    """Remember how many associations at once are best for a line."""
    with db.write() as tx:
        if _exists(tx, destination):
            _measure(tx, destination, "lanes", lanes)


def _measure(tx: Transaction, destination: int, column: str, value: int) -> None:
    tx.run(
        f"INSERT INTO line_measure (destination, {column}) VALUES (?, ?) "  # noqa: S608
        f"ON CONFLICT DO UPDATE SET {column} = excluded.{column}",
        destination,
        value,
    )


def _exists(tx: Transaction, destination: int) -> bool:
    return bool(tx.first("SELECT 1 FROM destination WHERE id = ?", destination))


# --- how it has been ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of what was known of a line."""

    at_ms: int
    link: LinkState = field(metadata={"make": LinkState})
    words: str


def changes(db: Database, destination: int, most: int = 50) -> list[Change]:
    """The last changes of the state of a line, newest first."""
    with db.read() as tx:
        return tx.records(
            Change,
            "SELECT at_ms, link, words FROM line_change WHERE destination = ? "
            "ORDER BY id DESC LIMIT ?",
            destination,
            most,
        )


# --- what is to come ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """When the queue of a destination will be empty, as far as can be told.

    `bytes` are those of the sealed data sets, estimated from a sample where the queue is long;
    `shut_out` of the `instances` are too little urgent for a metered line and not counted in it.
    `rate` is in bytes a second, 0 where none is known; `empty_ms` is None for never or unknown,
    and `words` say which and why.
    """

    destination: str
    instances: int
    bytes: int
    shut_out: int
    rate: int
    empty_ms: int | None
    words: str


def forecast(db: Database, destination: Destination, now_ms: int | None = None) -> Forecast:
    """When the queue of a destination will be empty at its rate, within its quotas and hours.

    A line that is down is taken to be back now.
    """
    now = (wall_ms() if now_ms is None else now_ms) / 1000
    with db.read() as tx:
        going, shut_out, length = _queue(tx, destination)
        known = _measured(tx, destination.id)
        carried = _used(tx, destination.id, hours.day_of(now))
    cap = destination.kbits * 125
    rate = min(known.rate, cap) if known.rate and cap else known.rate or cap
    end = _end(destination, rate, carried, length, now) if rate else None
    return Forecast(
        destination=destination.name,
        instances=going + shut_out,
        bytes=length,
        shut_out=shut_out,
        rate=rate,
        empty_ms=None if end is None or (shut_out and not going) else int(end * 1000),
        words=_words(destination, going, shut_out, rate, end),
    )


def _queue(tx: Transaction, destination: Destination) -> tuple[int, int, int]:
    """Instances that go, instances a metered line shuts out, bytes of those that go.

    The queue is counted out of its index alone; lengths are looked up for a sample of it, chosen
    by a hash of the number, since numbers of one destination may be every second or third.
    """
    least = min(destination.least_priority or -(2**31), STAT)
    row = tx.first(
        "SELECT COUNT(*), SUM(priority >= ?2) FROM delivery "
        "WHERE state = 'queued' AND kind = 'instance' AND destination = ?1",
        destination.id,
        least,
    )
    assert row is not None
    total, going = int(row[0]), int(row[1] or 0)
    step = -(-going // _SAMPLE) or 1
    seen = tx.first(
        "SELECT COUNT(*), SUM(byte_length) FROM delivery JOIN instance "
        "ON instance.id = delivery.subject WHERE delivery.state = 'queued' AND destination = ?1 "
        "AND priority >= ?2 AND (delivery.id * 2654435761 >> 12) % ?3 = 0 AND kind = 'instance'",
        *(destination.id, least, step),
    )
    assert seen is not None
    looked_at, length = int(seen[0]), int(seen[1] or 0)
    return going, total - going, length * going // looked_at if looked_at else 0


def _end(
    destination: Destination, rate: int, carried: Used, length: int, now: float
) -> float | None:
    """The instant by which `length` bytes have gone; None where it is farther than a year."""
    open_hours = Hours.read(destination.hours)
    day, since = hours.day_of(now), hours.second_of_day(now)
    today, month = carried.day, carried.month
    for _ in range(_FARTHEST_DAYS):
        share = min(
            open_hours.open_seconds(since) * rate,
            _left(destination.daily_mib, today),
            _left(destination.monthly_mib, month),
        )
        if length <= share:
            second = open_hours.after(since, length / rate)
            return max(now, hours.midnight(day) + second)
        length -= int(share)
        following = day + timedelta(days=1)
        month = 0 if following.day == 1 else month + int(share)
        day, since, today = following, 0.0, 0
    return None


def _left(quota_mib: int, carried: int) -> float:
    return max(0, quota_mib * MIB - carried) if quota_mib else float("inf")


def _words(
    destination: Destination, going: int, shut_out: int, rate: int, end: float | None
) -> str:
    said = []
    if not going and not shut_out:
        return "nothing waits"
    if shut_out:
        least = destination.least_priority
        said.append(f"{shut_out} wait for another line: this one takes priority {least} and above")
    if going and destination.link is LinkState.DOWN:
        said.append("the line is down; counted from when it returns")
    if going and not rate:
        said.append("nothing has been sent yet, so its rate is not known")
    elif going and end is None:
        said.append("not within a year at this rate, with these hours and quotas")
    return "; ".join(said)
