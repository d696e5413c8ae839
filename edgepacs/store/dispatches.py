"""Dispatches: deliveries of messages, of whatever kind but instances, as a sender sees them.

They stand in the outbox with the instances, wait in an index of their own, and go in strict order
within one ordering key: the next of a key is not claimed before the one ahead of it has arrived.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    UID,
    DeliveryKind,
    DeliveryState,
    require_transition,
)
from edgepacs.store import claims
from edgepacs.store.claims import FARTHEST_MS, Ended
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import Selection, shift

ANSWER = "answer"  # the proof that a message was answered with success
_SENDING = DeliveryState.SENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """One message a sender has taken on; `doubtful` where it may have arrived already."""

    id: int
    kind: DeliveryKind = field(metadata={"make": DeliveryKind})
    subject: int
    attempts: int
    breaks: int

    @property
    def doubtful(self) -> bool:
        """Whether a former attempt broke off, so that nobody knows what became of it."""
        return self.breaks > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a dispatch says: a DIMSE-N command ('create' or 'set') about one SOP instance."""

    command: str
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    body: bytes = field(repr=False)


_QUEUED = "delivery.state = 'queued' AND delivery.kind != 'instance'"
# What comes before it in its key has neither arrived nor been given up by a person.
_FIRST = """(delivery.ordering_key = '' OR NOT EXISTS (
  SELECT 1 FROM delivery AS ahead
  WHERE ahead.ordering_key = delivery.ordering_key AND ahead.destination = delivery.destination
    AND ahead.id < delivery.id AND ahead.ordering_key != ''
    AND ahead.state IN ('queued', 'sending', 'held', 'failed')))"""
# By its name, or the index of all states would be taken, and all instances in it looked through.
_MESSAGES = "delivery INDEXED BY delivery_message"
_MAY_GO = f"FROM {_MESSAGES} WHERE {_QUEUED} AND destination = ?1 AND {_FIRST}"
_DUE = f"next_ms NOT BETWEEN ?2 + 1 AND ?2 + {FARTHEST_MS}"


def _among(kinds: Collection[DeliveryKind]) -> str:
    return "kind IN ({})".format(", ".join(f"'{kind}'" for kind in kinds))


def next_ms(db: Database, destination: int, kinds: Collection[DeliveryKind]) -> int | None:
    """When the next message of `kinds` may go (0: now); None with none queued."""
    with db.read() as tx:
        row = tx.first(f"SELECT MIN(next_ms) {_MAY_GO} AND {_among(kinds)}", destination)
    if row is None or row[0] is None:
        return None
    due, now = int(row[0]), wall_ms()
    return due if now < due <= now + FARTHEST_MS else 0


def kinds_due(
    db: Database, destination: int, kinds: Collection[DeliveryKind]
) -> list[DeliveryKind]:
    """Those of `kinds` of which something may go now."""
    sql = f"SELECT DISTINCT kind {_MAY_GO} AND {_DUE} AND {_among(kinds)} ORDER BY kind"
    with db.read() as tx:
        rows = tx.rows(sql, destination, wall_ms())
    return [DeliveryKind(row[0]) for row in rows]


def claim(db: Database, destination: int, kinds: Collection[DeliveryKind]) -> Dispatch | None:
    """Take on the next message of one of `kinds`; its attempt is recorded before this returns.

    The highest priority first, the oldest within it.
    """
    with db.write() as tx:
        found = tx.records(
            Dispatch,
            f"SELECT id, kind, subject, attempts + 1 AS attempts, breaks {_MAY_GO} AND {_DUE} "
            f"AND {_among(kinds)} ORDER BY priority DESC, id LIMIT 1",
            destination,
            wall_ms(),
        )
        claims.begin(tx, destination, [one.id for one in found])
    return found[0] if found else None


def finish(
    db: Database,
    destination: int,
    one: Dispatch,
    state: DeliveryState,
    words: str,
    *,
    again_ms: int = 0,
) -> None:
    """Record how an attempt ended; what is queued again goes not before `again_ms`."""
    ended = Ended(
        delivery=one.id,
        state=state,
        result=words,
        next_ms=again_ms,
        proof=ANSWER,
        breaks=one.breaks,
    )
    _end(db, destination, one, ended)


def broke(db: Database, destination: int, one: Dispatch, words: str, *, again_ms: int) -> None:
    """The line ended before the answer: it is queued again, and in doubt from now on."""
    ended = Ended(
        delivery=one.id,
        state=DeliveryState.QUEUED,
        result=words,
        next_ms=again_ms,
        breaks=one.breaks + 1,
    )
    _end(db, destination, one, ended)


def _end(db: Database, destination: int, one: Dispatch, ended: Ended) -> None:
    require_transition(DELIVERY_TRANSITIONS[one.kind], _SENDING, ended.state)
    claims.exchange(db, destination, ended=[ended])


def recover(db: Database, destination: int, kinds: Collection[DeliveryKind]) -> int:
    """Queue again what a crash has left of `kinds` in `sending`, in doubt; how many.

    The destination itself tells a message that comes twice: it need not be asked first.
    """
    with db.write() as tx:
        rows = tx.rows(
            "SELECT id FROM delivery WHERE state = 'sending' AND destination = ? "  # noqa: S608
            f"AND {_among(kinds)}",
            destination,
        )
        for (number,) in rows:
            tx.run(
                "UPDATE attempt SET ended_ms = ?, result = 'broken off' WHERE delivery = ? "
                "AND ended_ms IS NULL",
                wall_ms(),
                number,
            )
            tx.run("UPDATE delivery SET breaks = breaks + 1 WHERE id = ?", number)
            selection = Selection(delivery=number)
            shift(tx, selection, [_SENDING], DeliveryState.QUEUED, actor="forward")
    return len(rows)


def put_off(db: Database, destination: int, kind: DeliveryKind, words: str, until_ms: int) -> None:
    """A destination takes no messages of a kind: what waits of it says so, and waits longer."""
    with db.write() as tx:
        tx.run(
            f"UPDATE {_MESSAGES} SET last_error = ?, next_ms = MAX(next_ms, ?) WHERE {_QUEUED} "  # noqa: S608
            "AND destination = ? AND kind = ?",
            *(words, until_ms, destination, kind),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One message that has not arrived."""

    id: int
    kind: DeliveryKind = field(metadata={"make": DeliveryKind})
    destination_name: str
    state: DeliveryState = field(metadata={"make": DeliveryState})
    attempts: int
    next_ms: int
    last_error: str
    created_ms: int


def unfinished(db: Database, most: int) -> list[Waiting]:
    """The messages that have not arrived, the oldest first."""
    with db.read() as tx:
        return tx.records(
            Waiting,
            "SELECT delivery.id, kind, destination.name AS destination_name, delivery.state, "
            "attempts, next_ms, last_error, delivery.created_ms FROM delivery "
            "JOIN destination ON destination.id = delivery.destination "
            "WHERE delivery.study IS NULL AND delivery.state IN "
            "('queued', 'sending', 'held', 'failed') AND kind != 'instance' "
            "ORDER BY delivery.id LIMIT ?",
            most,
        )


# --- what they say -----------------------------------------------------------------------------

_CONTENT = {
    DeliveryKind.MPPS: (
        "SELECT command, step.sop_instance_uid, transfer_syntax_uid, body "
        "FROM step_message JOIN step ON step.id = step_message.step WHERE step_message.id = ?"
    ),
    DeliveryKind.NOTIFICATION: (
        "SELECT 'create' AS command, sop_instance_uid, transfer_syntax_uid, body "
        "FROM notification WHERE id = ?"
    ),
}


def content(db: Database, one: Dispatch) -> Content:
    """What a message says; raises NotFound."""
    with db.read() as tx:
        return tx.record(Content, "message: it is no longer here", _CONTENT[one.kind], one.subject)


def add(
    tx: Transaction, kind: DeliveryKind, subject: int, destination: int, *, key: str = ""
) -> None:
    """Queue a message for one destination, unless it was; with a `key` after others of it."""
    now = wall_ms()
    tx.run(
        "INSERT INTO delivery (kind, subject, destination, state, ordering_key, created_ms, "
        "changed_ms) VALUES (?, ?, ?, 'queued', ?, ?, ?) ON CONFLICT DO NOTHING",
        *(kind, subject, destination, key, now, now),
    )
