"""Worklists that are asked on a schedule: which, how often, and how old the copy here is."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import AETitle, EntryOrigin, ae_title
from edgepacs.store import audit, worklist
from edgepacs.store.db import Database, Transaction
from edgepacs.store.peers import host_name, port_number

NAME_MOST = 64
INTERVAL_SECONDS = 60
STALE_SECONDS = 900
DAYS = 7
_BOUNDS = {"interval": (5, 86_400), "stale": (10, 30 * 86_400), "days": (0, 366)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One worklist upstream; the comments of migrations 0017 and 0023 say what the fields mean."""

    name: str
    ae_title: AETitle
    host: str
    port: int
    tls: int
    interval_s: int
    stale_s: int
    days: int
    modality: str
    character_set: str
    created_ms: int
    tried_ms: int
    as_of_ms: int
    entries: int
    doubts: int
    words: str

    @property
    def stale(self) -> bool:
        """Whether the copy here is older than it may be."""
        return wall_ms() - self.as_of_ms > 1000 * self.stale_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How often a worklist is asked, from when its copy is stale, how many days ahead it is asked.

    `modality` narrows what is asked for; '' for all, else with a backslash between.
    `character_set` is the Specific Character Set (0008,0005) of answers that name none.
    """

    interval: int = INTERVAL_SECONDS
    stale: int = STALE_SECONDS
    days: int = DAYS
    modality: str = ""
    character_set: str = ""


_SOURCE = f"SELECT {', '.join(Source.__slots__)} FROM worklist_source "  # noqa: S608  own names


def add(
    tx: Transaction,
    *,
    name: str,
    title: str,
    host: str,
    port: int,
    schedule: Schedule,
    actor: str,
    tls: int = 0,
) -> None:
    """Ask a worklist from now on; replaces what was said of it before. Raises InvalidValue."""
    if not name.strip() or len(name) > NAME_MOST or not name.isprintable():
        raise InvalidValue("name", f"not 1 to {NAME_MOST} printable characters")
    for key, (least, most) in _BOUNDS.items():
        value = getattr(schedule, key)
        if not least <= value <= most:
            raise InvalidValue(key, f"{value} is not between {least} and {most}")
    tx.run(
        "INSERT INTO worklist_source (name, ae_title, host, port, tls, interval_s, stale_s, days, "
        "modality, character_set, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET "
        "ae_title = excluded.ae_title, host = excluded.host, port = excluded.port, "
        "tls = excluded.tls, interval_s = excluded.interval_s, stale_s = excluded.stale_s, "
        "days = excluded.days, modality = excluded.modality, "
        "character_set = excluded.character_set, tried_ms = 0",
        *(name, ae_title(title), host_name(host), port_number(port), tls),
        *(schedule.interval, schedule.stale, schedule.days, schedule.modality),
        *(schedule.character_set, wall_ms()),
    )
    audit.record(
        tx, actor=actor, act="worklist source added", kind="source", subject=None, detail=name
    )


def remove(tx: Transaction, name: str, *, actor: str) -> int:
    """Ask it no more; how many of its entries are retired by that. Raises NotFound."""
    if not tx.run("DELETE FROM worklist_source WHERE name = ?", name):
        raise NotFound(f"worklist source: {name!r} is not known")
    retired = worklist.retire_missing(tx, EntryOrigin.UPSTREAM, name, (), actor=actor)
    audit.record(
        tx, actor=actor, act="worklist source removed", kind="source", subject=None, detail=name
    )
    return retired


def every(db: Database) -> Sequence[Source]:
    """All of them, by name."""
    with db.read() as tx:
        return tx.records(Source, _SOURCE + "ORDER BY name")


def named(db: Database, name: str) -> Source:
    """One of them; raises NotFound."""
    with db.read() as tx:
        missing = f"worklist source: {name!r} is not known"
        return tx.record(Source, missing, _SOURCE + "WHERE name = ?", name)


def is_asked(tx: Transaction, name: str) -> bool:
    """Whether there is one of that name."""
    return tx.first("SELECT 1 FROM worklist_source WHERE name = ?", name) is not None


def is_due(source: Source, now_ms: int) -> bool:
    """Whether it is to be asked again; a clock set back does not stop that."""
    return not source.tried_ms <= now_ms < source.tried_ms + 1000 * source.interval_s


def heard(tx: Transaction, name: str, *, entries: int, words: str) -> None:
    """It was heard in full just now; `words` say what of it cannot be an entry, if anything."""
    now = wall_ms()
    tx.run(
        "UPDATE worklist_source SET tried_ms = ?, as_of_ms = ?, entries = ?, doubts = 0, "
        "words = ? WHERE name = ?",
        *(now, now, entries, words, name),
    )


def failed(tx: Transaction, name: str, words: str, *, doubts: int = 0) -> None:
    """It was not heard, or not believed: what is here stays as it is, and grows older."""
    tx.run(
        "UPDATE worklist_source SET tried_ms = ?, doubts = ?, words = ? WHERE name = ?",
        *(wall_ms(), doubts, words, name),
    )
