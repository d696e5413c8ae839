"""Room: the space there is, what could go, what may not and why, and when it will be full.

A survey reads every row that has bytes; upkeep/ makes one now and then and notes it, so that a
page costs nothing.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.config import Config
from edgepacs.model import Kept
from edgepacs.store import Store, audit
from edgepacs.store.db import Database, Transaction
from edgepacs.store.evictions import DAY_MS, standings

RATE_DAYS = 7  # looked back on for how much arrives in a day
SOON_DAYS = 7.0  # until it is full: from there on somebody should know


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system the objects lie on: bytes in all that may be written, and bytes free."""

    total: int
    free: int

    @property
    def used_percent(self) -> float:
        """How much of it is in use."""
        return 100.0 * (1 - self.free / self.total) if self.total else 100.0


def disk(store: Store) -> Disk:
    """The file system as it is now; what only root may write counts as in use by nobody."""
    stat = os.statvfs(store.paths.objects)
    used = stat.f_blocks - stat.f_bfree
    return Disk((used + stat.f_bavail) * stat.f_frsize, stat.f_bavail * stat.f_frsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermarks:
    """Bytes free: below `begin` eviction begins, at `until` it ends; 0 for never.

    Small disks keep twice and three times the reserve free, whatever their percentages say:
    C-STORE must not be answered A700 while there is something that may go.
    """

    begin: int
    until: int

    @classmethod
    def of(cls, config: Config, total: int) -> "Watermarks":
        """Those of a node on a file system of `total` bytes."""
        wanted, reserve = config.retention, config.node.reserve_mib << 20
        if wanted.high == 100:
            return cls(begin=0, until=0)
        return cls(
            begin=min(total, max(total * (100 - wanted.high) // 100, 2 * reserve)),
            until=min(total, max(total * (100 - wanted.low) // 100, 3 * reserve)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one look at all rows found; all in bytes on the disk."""

    measured_ms: int
    evictable: int
    blocked: Mapping[Kept, int]
    daily: int  # arriving in a day


def keep_ms(config: Config) -> int:
    """The least age of what may go."""
    return config.retention.keep_days * DAY_MS


def survey(store: Store) -> Survey:
    """Look at everything that has bytes here."""
    blocked: dict[Kept, int] = {}
    evictable, least_age = 0, keep_ms(store.config)
    for one in standings(store.db):
        why = one.kept(least_age)
        if why is None:
            evictable += one.sealed
        else:
            blocked[why] = blocked.get(why, 0) + one.sealed
    return Survey(
        measured_ms=wall_ms(), evictable=evictable, blocked=blocked, daily=_daily(store.db)
    )


def _daily(db: Database) -> int:
    """Bytes that arrive in a day, over the last few; of less than a day what there was.

    Studies of that time alone are looked at. Evicted instances count: they arrived.
    """
    now = wall_ms()
    since = now - RATE_DAYS * DAY_MS
    with db.read() as tx:
        row = tx.first(
            "SELECT SUM(sealed_length), MIN(instance.received_ms) FROM study "
            "JOIN series ON series.study = study.id JOIN instance ON instance.series = series.id "
            "WHERE study.received_ms >= ?1 AND instance.received_ms BETWEEN ?1 AND ?2 "
            "AND instance.state != 'discarded'",
            since // 1000 * 1000,
            now,
        )
        first = tx.number("SELECT MIN(created_ms) FROM study")
    arrived = int(row[0] or 0) if row else 0
    days = min(float(RATE_DAYS), max(1.0, (now - first) / DAY_MS))
    return int(arrived / days)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The space as it is now, with what the last survey found."""

    disk: Disk
    reserve: int
    watermarks: Watermarks
    survey: Survey

    @property
    def days_to_full(self) -> float | None:
        """Days until C-STORE is answered A700 as things arrive now; None while nothing does."""
        left = self.disk.free + self.survey.evictable - self.reserve
        if self.survey.daily <= 0:
            return None
        return max(0.0, left / self.survey.daily)

    @property
    def alarm(self) -> str:
        """What somebody should know, in a sentence without figures that change; '' for nothing."""
        if self.disk.free < self.reserve:
            return "The disk is full: instances are refused."
        if self.disk.free + self.survey.evictable < self.watermarks.begin:
            return "The disk is nearly full, and too little of what it holds may be deleted."
        days = self.days_to_full
        if days is not None and days < SOON_DAYS:
            return f"The disk will be full in less than {SOON_DAYS:.0f} days."
        return ""


def room(store: Store, found: Survey, now: Disk | None = None) -> Room:
    """The space there is, by what `found` says of the rows."""
    there = now or disk(store)
    return Room(
        disk=there,
        reserve=store.config.node.reserve_mib << 20,
        watermarks=Watermarks.of(store.config, there.total),
        survey=found,
    )


def note(tx: Transaction, found: Survey, alarm: str) -> None:
    """Keep a survey for whoever asks; the trail gets an alarm when it begins and ends."""
    row = tx.first("SELECT alarm FROM room")
    if alarm != (row[0] if row else ""):
        audit.record(
            tx,
            actor="upkeep",
            act="room alarm" if alarm else "room again",
            kind="room",
            subject=None,
            detail=alarm,
        )
    tx.run(
        "INSERT OR REPLACE INTO room VALUES (1, ?, ?, ?, ?, ?)",
        found.measured_ms,
        found.evictable,
        json.dumps(dict(found.blocked)),
        found.daily,
        alarm,
    )


def noted(db: Database) -> Survey | None:
    """The last survey; None before the first."""
    with db.read() as tx:
        row = tx.first("SELECT measured_ms, evictable, blocked, daily FROM room")
    if row is None:
        return None
    measured, evictable, blocked, daily = row
    return Survey(
        measured_ms=measured,
        evictable=evictable,
        blocked={Kept(name): size for name, size in json.loads(blocked).items()},
        daily=daily,
    )
