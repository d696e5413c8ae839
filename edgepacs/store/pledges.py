"""Pledges: storage commitment that modalities have asked us for (PS3.4 J.3), until it is reported.

A request is written down before it is answered. What is reported was read and authenticated
shortly before; a report is tried again, across restarts, until it is taken or days have gone by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, EdgePacsError, LimitExceeded, NotFound
from edgepacs.model import (
    PLEDGE_TRANSITIONS,
    UID,
    AETitle,
    InstanceState,
    PledgeState,
    require_transition,
)
from edgepacs.store import Store, audit, instances
from edgepacs.store.db import Database, Transaction
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance

INSTANCES_MOST = 20_000  # of one request
OPEN_MOST = 1000  # requests of one AE that are not reported yet
PAUSES_MS = (10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000)
"""From one attempt to deliver a report to the next."""
GIVE_UP_MS = 3 * 24 * 60 * 60 * 1000
FRESH_MS = 600_000  # what was looked at longer ago is looked at again before it is reported
COMPARED_MS = 600_000  # so long what is being compared is waited for
_FARTHEST_MS = 2 * PAUSES_MS[-1]  # nothing is put off further; else the clock has been set back
_KEPT_MS = 90 * 24 * 60 * 60 * 1000


class Reason(IntEnum):
    """Why an instance is not committed (PS3.3 C.14-1); 0 where it is."""

    COMMITTED = 0
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_CONFLICT = 0x0119


@dataclass(frozen=True, slots=True, kw_only=True)
class Pledge:
    """One request; the `words` say why its report is not delivered."""

    id: int
    ae: AETitle
    called_ae: AETitle
    host: str
    transaction_uid: UID
    state: PledgeState = field(metadata={"make": PledgeState})
    asked_ms: int
    checked_ms: int
    changed_ms: int
    attempts: int
    next_ms: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One instance of a request; `reason` is None until it has been looked at."""

    sop_class_uid: UID
    sop_instance_uid: UID
    reason: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A request as it is shown: how many instances, and how many of them are committed or not."""

    id: int
    ae: AETitle
    state: PledgeState = field(metadata={"make": PledgeState})
    asked_ms: int
    instances: int
    committed: int
    failed: int
    attempts: int
    next_ms: int
    words: str


_COLUMNS = ", ".join(Pledge.__slots__)


# --- asked for ---------------------------------------------------------------------------------


def ask(
    tx: Transaction,
    *,
    ae: AETitle,
    called_ae: AETitle,
    host: str,
    transaction_uid: UID,
    items: Sequence[Item],
    grace_ms: int = 0,
) -> int:
    """Write a request down; its number. The same once more is looked at and reported once more.

    Nobody else sees to it during the next `grace_ms`. Raises Conflict where its Transaction UID
    was used for other instances, LimitExceeded where too many wait.
    """
    now = wall_ms()
    known = tx.first(
        "SELECT id FROM pledge WHERE ae = ? AND transaction_uid = ?", ae, transaction_uid
    )
    if known is not None:
        return _ask_again(tx, known[0], items, now + grace_ms)
    open_ones = "SELECT COUNT(*) FROM pledge WHERE ae = ? AND state IN ('asked', 'checked')"
    if tx.number(open_ones, ae) >= OPEN_MOST:
        raise LimitExceeded(f"storage commitment: {OPEN_MOST} requests wait to be reported")
    tx.run(
        "DELETE FROM pledge WHERE state IN ('reported', 'given_up') "
        "AND changed_ms NOT BETWEEN ? AND ?",
        now - _KEPT_MS,
        now + _KEPT_MS,
    )
    number = tx.insert(
        "pledge",
        {
            "ae": ae,
            "called_ae": called_ae,
            "host": host,
            "transaction_uid": transaction_uid,
            "state": PledgeState.ASKED,
            "asked_ms": now,
            "changed_ms": now,
            "next_ms": now + grace_ms,
        },
    )
    for position, one in enumerate(items):
        row = (number, position, one.sop_class_uid, one.sop_instance_uid)
        tx.run("INSERT INTO pledge_item VALUES (?, ?, ?, ?, NULL)", *row)
    detail = f"{len(items)} instances"
    audit.record(tx, actor=ae, act="commitment asked", kind="pledge", subject=number, detail=detail)
    return number


def _ask_again(tx: Transaction, number: int, items: Sequence[Item], next_ms: int) -> int:
    before = [(one.sop_class_uid, one.sop_instance_uid) for one in _items(tx, number)]
    if before != [(one.sop_class_uid, one.sop_instance_uid) for one in items]:
        raise Conflict("Transaction UID (0008,1195): used before, for other instances")
    if within(tx, number).state is not PledgeState.ASKED:
        _shift(tx, number, PledgeState.ASKED)
    tx.run("UPDATE pledge SET asked_ms = ?, next_ms = ? WHERE id = ?", wall_ms(), next_ms, number)
    return number


def within(tx: Transaction, number: int) -> Pledge:
    """One request as this transaction sees it; raises NotFound."""
    sql = f"SELECT {_COLUMNS} FROM pledge WHERE id = ?"  # noqa: S608  own names
    return tx.record(Pledge, f"commitment: there is no request {number}", sql, number)


def pledge(db: Database, number: int) -> Pledge:
    """One request; raises NotFound."""
    with db.read() as tx:
        return within(tx, number)


def items(db: Database, number: int) -> list[Item]:
    """The instances of a request, as they were named."""
    with db.read() as tx:
        return _items(tx, number)


def _items(tx: Transaction, number: int) -> list[Item]:
    sql = (
        "SELECT sop_class_uid, sop_instance_uid, reason FROM pledge_item "
        "WHERE pledge = ? ORDER BY position"
    )
    return tx.records(Item, sql, number)


def byte_size(db: Database, number: int) -> int:
    """Bytes on the disk that have to be read to look at a request."""
    with db.read() as tx:
        return tx.number(
            "SELECT SUM(sealed_length) FROM instance WHERE state = 'stored' AND sop_instance_uid "
            "IN (SELECT sop_instance_uid FROM pledge_item WHERE pledge = ?)",
            number,
        )


def listed(db: Database, state: PledgeState | None, limit: int) -> list[Listed]:
    """Requests, the newest first."""
    with db.read() as tx:
        return tx.records(
            Listed,
            "SELECT pledge.id, ae, state, asked_ms, COUNT(*) AS instances, "
            "COALESCE(SUM(reason = 0), 0) AS committed, COALESCE(SUM(reason > 0), 0) AS failed, "
            "attempts, next_ms, words FROM pledge JOIN pledge_item ON pledge = pledge.id "
            "WHERE ?1 IS NULL OR state = ?1 GROUP BY pledge.id ORDER BY pledge.id DESC LIMIT ?2",
            state,
            limit,
        )


# --- looking at the instances ------------------------------------------------------------------


def examined(store: Store, one: Item) -> Reason | None:
    """Whether an instance is here, durable and whole; None while that is being decided.

    Its object is read to the end and authenticated, and must be what its row says it is.
    """
    rows = instances.of_uid(store.db, one.sop_instance_uid)
    states = {row.state for row in rows}
    if InstanceState.COMPARING in states:
        return None
    if InstanceState.QUARANTINED in states:  # which of both was meant nobody knows
        return Reason.PROCESSING_FAILURE
    stored = next((row for row in rows if row.state is InstanceState.STORED), None)
    if stored is None:
        return Reason.NO_SUCH_INSTANCE
    if stored.sop_class_uid != one.sop_class_uid:
        return Reason.CLASS_CONFLICT
    return _authentic(store, stored)


def _authentic(store: Store, row: Instance) -> Reason | None:
    try:
        with store.vault.open(row.object_id, row.sop_instance_uid) as reader:
            length = sum(map(len, reader.chunks()))
            draft = Draft.from_trailer(reader.trailer(), row.object_id, row.sealed_length)
    except NotFound:
        again = instances.instance(store.db, row.id)
        same = again.object_id == row.object_id and again.state is row.state
        return Reason.NO_SUCH_INSTANCE if same else None
    except EdgePacsError:
        return Reason.PROCESSING_FAILURE
    sealed = (draft.arrival.sop_instance_uid, draft.received_digest, draft.transfer_syntax_uid)
    said = (row.sop_instance_uid, row.received_digest, row.transfer_syntax_uid)
    whole = (*sealed, length) == (*said, row.byte_length)
    return Reason.COMMITTED if whole else Reason.PROCESSING_FAILURE


def check(store: Store, number: int, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Look at every instance of a request, and write down what is found.

    False where versions of one are still being compared: it is looked at again later. So it is
    where `stopped` says between two of them that there is no more time.
    """
    known: dict[Item, Reason | None] = {}
    asked = items(store.db, number)
    for one in asked:
        bare = Item(sop_class_uid=one.sop_class_uid, sop_instance_uid=one.sop_instance_uid)
        if stopped():
            return False
        if bare not in known:
            known[bare] = examined(store, bare)
    with store.db.write() as tx:
        now, before = wall_ms(), within(tx, number)
        if None in known.values() and 0 <= now - before.asked_ms < COMPARED_MS:
            tx.run("UPDATE pledge SET next_ms = ? WHERE id = ?", now + PAUSES_MS[0], number)
            return False
        for position, one in enumerate(asked):
            bare = Item(sop_class_uid=one.sop_class_uid, sop_instance_uid=one.sop_instance_uid)
            found = known[bare]
            reason = Reason.PROCESSING_FAILURE if found is None else found
            sql = "UPDATE pledge_item SET reason = ? WHERE pledge = ? AND position = ?"
            tx.run(sql, int(reason), number, position)
        if before.state is PledgeState.ASKED:
            _shift(tx, number, PledgeState.CHECKED)
        tx.run("UPDATE pledge SET checked_ms = ? WHERE id = ?", now, number)
    return True


def is_fresh(one: Pledge) -> bool:
    """Whether it was looked at so lately that it may be reported."""
    return 0 <= wall_ms() - one.checked_ms < FRESH_MS


# --- reporting ---------------------------------------------------------------------------------


def recover(db: Database) -> None:
    """What an earlier process has looked at is looked at again, and its grace is over."""
    with db.write() as tx:
        for (number,) in tx.rows("SELECT id FROM pledge WHERE state = 'checked'"):
            _shift(tx, number, PledgeState.ASKED)
        tx.run("UPDATE pledge SET next_ms = 0 WHERE state = 'asked'")


def leave(db: Database, number: int) -> None:
    """Whoever has written it down leaves it to others, who may have to wait for something."""
    with db.write() as tx:
        sql = "UPDATE pledge SET next_ms = 0 WHERE id = ? AND next_ms > ?"
        tx.run(sql, number, wall_ms() + PAUSES_MS[0])


def due(db: Database) -> list[Pledge]:
    """The requests that something is to be done about now, the oldest first."""
    sql = (
        f"SELECT {_COLUMNS} FROM pledge WHERE state IN ('asked', 'checked') "  # noqa: S608
        f"AND next_ms NOT BETWEEN ?1 + 1 AND ?1 + {_FARTHEST_MS} ORDER BY id"
    )
    with db.read() as tx:
        return tx.records(Pledge, sql, wall_ms())


def reported(db: Database, number: int) -> None:
    """Whoever asked has taken the report."""
    with db.write() as tx:
        one = within(tx, number)
        if one.state is PledgeState.CHECKED:
            _shift(tx, number, PledgeState.REPORTED)
            sql = "UPDATE pledge SET attempts = attempts + 1, words = '' WHERE id = ?"
            tx.run(sql, number)
            audit.record(tx, actor=one.ae, act="commitment reported", kind="pledge", subject=number)


def undelivered(db: Database, number: int, words: str, *, at_once: bool = False) -> PledgeState:
    """A report was not taken: it is tried again later, `at_once` for the first, or given up."""
    with db.write() as tx:
        one = within(tx, number)
        now = wall_ms()
        if one.state not in (PledgeState.ASKED, PledgeState.CHECKED):
            return one.state
        if now - one.asked_ms >= GIVE_UP_MS:
            _shift(tx, number, PledgeState.GIVEN_UP)
            audit.record(
                tx,
                actor="scp",
                act="commitment given up",
                kind="pledge",
                subject=number,
                detail=words,
            )
            next_ms, state = 0, PledgeState.GIVEN_UP
        else:
            pause = 0 if at_once else PAUSES_MS[min(one.attempts, len(PAUSES_MS) - 1)]
            next_ms, state = now + pause, one.state
        sql = "UPDATE pledge SET attempts = attempts + ?, next_ms = ?, words = ? WHERE id = ?"
        tx.run(sql, int(not at_once), next_ms, words, number)
        return state


def again(db: Database, number: int, *, actor: str) -> None:
    """Look at a request and report it once more, from now on; raises NotFound."""
    with db.write() as tx:
        if within(tx, number).state is not PledgeState.ASKED:
            _shift(tx, number, PledgeState.ASKED)
        sql = "UPDATE pledge SET asked_ms = ?, attempts = 0, next_ms = 0 WHERE id = ?"
        tx.run(sql, wall_ms(), number)
        act = "commitment to be reported again"
        audit.record(tx, actor=actor, act=act, kind="pledge", subject=number)


def _shift(tx: Transaction, number: int, new: PledgeState) -> None:
    require_transition(PLEDGE_TRANSITIONS, within(tx, number).state, new)
    tx.run("UPDATE pledge SET state = ?, changed_ms = ? WHERE id = ?", new, wall_ms(), number)
