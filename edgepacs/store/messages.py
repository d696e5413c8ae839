"""HL7 v2 messages: each kept as it came before it is answered, and what it did to the worklist.

They are applied one after the other in the order they came, by whatever process finds them: one
that was kept when a crash came is applied at the next start.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict
from edgepacs.model import MESSAGE_TRANSITIONS, EntryId, MessageState, require_transition
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction

_KIND = re.compile(r"[A-Z]{3}\^[A-Z]\d{2}")
KEPT_MOST = 100_000  # the oldest beyond are deleted, never one that is not applied yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A message as it came; the comments of migration 0017 say what the fields mean."""

    host: str
    sender: str
    control_id: str
    kind: str
    digest: bytes
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a message is answered: MSA-1, where the error stands, its number, and words."""

    code: str
    place: str = ""
    error: int = 0
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A message as the store keeps it, without its bytes."""

    id: int
    received_ms: int
    changed_ms: int
    host: str
    sender: str
    control_id: str
    kind: str
    state: MessageState = field(metadata={"make": MessageState})
    code: str
    place: str
    error: int
    words: str
    repeats: int

    @property
    def verdict(self) -> Verdict:
        """What it is answered."""
        return Verdict(code=self.code, place=self.place, error=self.error, words=self.words)


_KEPT = f"SELECT {', '.join(Kept.__slots__)} FROM message "  # noqa: S608  own names only


def keep(tx: Transaction, arrived: Arrived) -> int:
    """Keep a message; its row number: that of the first one where it came before.

    The same message is one from the same sender with the same control ID that says the same:
    senders that start anew count from 1 again.
    """
    known = tx.first(
        "SELECT id FROM message WHERE sender = ? AND control_id = ? AND digest = ? "
        "ORDER BY id DESC LIMIT 1",
        *(arrived.sender, arrived.control_id, arrived.digest),
    )
    if known is not None:
        tx.run("UPDATE message SET repeats = repeats + 1 WHERE id = ?", known[0])
        return int(known[0])
    now = wall_ms()
    values = {name: getattr(arrived, name) for name in Arrived.__slots__}
    state = MessageState.RECEIVED
    row = {"received_ms": now, "changed_ms": now, "state": state, **values}
    number = tx.insert("message", row)
    tx.run("DELETE FROM message WHERE id <= ? AND state != 'received'", number - KEPT_MOST)
    return number


def next_received(db: Database) -> tuple[int, bytes] | None:
    """The oldest message that waits to be applied, and its bytes."""
    with db.read() as tx:
        row = tx.first("SELECT id, raw FROM message WHERE state = 'received' ORDER BY id LIMIT 1")
    return None if row is None else (int(row[0]), bytes(row[1]))


def is_next(tx: Transaction, number: int) -> bool:
    """Whether no other process has applied it meanwhile, nor any is to go before it."""
    return tx.number("SELECT MIN(id) FROM message WHERE state = 'received'") == number


def applied(
    tx: Transaction, number: int, entries: Collection[EntryId], *, words: str, actor: str
) -> None:
    """What it says is in the worklist, by this same transaction; raises NotFound, Conflict."""
    verdict = Verdict(code="AA", words=words)
    _shift(tx, number, MessageState.APPLIED, verdict, actor)
    for entry in entries:
        tx.insert("message_entry", {"message": number, "entry": entry})


def refused(tx: Transaction, number: int, verdict: Verdict, *, actor: str) -> None:
    """It is answered with an error; raises NotFound, Conflict."""
    _shift(tx, number, MessageState.REFUSED, verdict, actor)


def replay(tx: Transaction, number: int, *, actor: str) -> None:
    """Try one again that was refused, now that something has been set right; it goes last.

    Raises NotFound, and Conflict for one that is applied: saying it again could undo what later
    ones said.
    """
    _shift(tx, number, MessageState.RECEIVED, Verdict(code=""), actor)


def _shift(tx: Transaction, number: int, state: MessageState, verdict: Verdict, actor: str) -> None:
    known = _one(tx, number)
    if known.state is MessageState.APPLIED and state is MessageState.RECEIVED:
        raise Conflict(f"message {number} is in the worklist already")
    require_transition(MESSAGE_TRANSITIONS, known.state, state)
    tx.run(
        "UPDATE message SET state = ?, code = ?, place = ?, error = ?, words = ?, changed_ms = ? "
        "WHERE id = ?",
        *(state, verdict.code, verdict.place, verdict.error, verdict.words, wall_ms(), number),
    )
    kind = known.kind if _KIND.fullmatch(known.kind) else "message"  # else it may be anything
    detail = f"{kind} {verdict.code}".strip()
    audit.record(
        tx, actor=actor, act=f"message {state}", kind="message", subject=number, detail=detail
    )


def listed(
    db: Database, *, state: MessageState | None = None, entry: int | None = None, most: int = 200
) -> list[Kept]:
    """Messages, the newest first: of a state, or those that changed an entry."""
    sql = _KEPT + (  # noqa: S608  own names only
        "WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR id IN "
        "(SELECT message FROM message_entry WHERE entry = ?2)) ORDER BY id DESC LIMIT ?3"
    )
    with db.read() as tx:
        return tx.records(Kept, sql, state, entry, most)


def numbered(db: Database, number: int) -> Kept:
    """One message; raises NotFound."""
    with db.read() as tx:
        return _one(tx, number)


def _one(tx: Transaction, number: int) -> Kept:
    return tx.record(Kept, f"message: there is no message {number}", _KEPT + "WHERE id = ?", number)


def raw(db: Database, number: int) -> bytes:
    """A message as it came; raises NotFound."""
    with db.read() as tx:
        _one(tx, number)
        row = tx.first("SELECT raw FROM message WHERE id = ?", number)
    assert row is not None
    return bytes(row[0])


def entries_of(db: Database, number: int) -> Sequence[EntryId]:
    """The entries of the worklist a message changed."""
    with db.read() as tx:
        rows = tx.rows("SELECT entry FROM message_entry WHERE message = ? ORDER BY entry", number)
    return [EntryId(row[0]) for row in rows]
