"""Proof of arrival: what is still to be proved, commitment that was asked for, what reports said.

Whoever receives a report, forward/ or scp/, writes it down here with `record`; forward/ alone acts
on it, with `settle`, in one transaction with the deliveries it is about. A request is written down
before it is sent, and remembered after its time is over: reports come late, and twice.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple

from edgepacs.clock import wall_ms
from edgepacs.model import UID, Callback, CommitmentState, DeliveryState, new_uid
from edgepacs.store import deliveries
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import Selection, shift

PATIENCE_MS = (120_000, 600_000, 3_000_000)
"""How long a report is awaited, the first time and each time after that."""
LOOK_AGAIN_MS = (10_000, 60_000, 300_000)
"""When what a query did not find is asked for again: archives index behind their answers."""
MISSES = 3  # times an instance may turn out not to be there until a person has to see to it
_SEND_AGAIN_MS = (15_000, 300_000)  # after the first and the next of them
_FARTHEST_MS = 2 * 60 * 60 * 1000  # nothing is put off further; else the clock has been set back
_NEVER_MS = 24 * 60 * 60 * 1000  # then a destination that never reports is tried once more
_LOOKED_THROUGH = 200  # deliveries, for two of one series
_KEPT_MS = 30 * 24 * 60 * 60 * 1000  # a report may be as late as that

_SENT, _AWAITING, _QUEUED = (
    DeliveryState.SENT,
    DeliveryState.AWAITING_COMMITMENT,
    DeliveryState.QUEUED,
)
_COMMITTABLE = (_AWAITING, _SENT, DeliveryState.CONFIRMED_BY_QUERY, _QUEUED, DeliveryState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """A delivery to be proved, and how its instance is named at the destination.

    `asked` counts the commitments that were asked for and never answered.
    """

    delivery: int
    sop_class_uid: UID
    sop_instance_uid: UID
    series_instance_uid: UID
    study_instance_uid: UID
    asked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A storage commitment request, written down and about to be sent."""

    id: int
    transaction_uid: str
    items: Sequence[Sought]


class Fate(Enum):
    """What is to become of an instance that a report names as not committed."""

    SEND_AGAIN = auto()
    ASK_AGAIN = auto()
    REFUSED = auto()


class Judgement(NamedTuple):
    """What a reason of PS3.3 C.14-1 means for a delivery, and in words."""

    fate: Fate
    words: str


# --- what is to be proved ----------------------------------------------------------------------

_SOUGHT = (
    "SELECT delivery.id AS delivery, sop_class_uid, sop_instance_uid, series_instance_uid, "
    "study_instance_uid, asked FROM delivery JOIN instance ON instance.id = delivery.subject "
    "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
    "WHERE kind = 'instance' AND destination = ?1 "
)
_UNPROVED = (
    f"{_SOUGHT} AND delivery.state = 'sent' AND delivery.proof = 'response' "
    f"AND next_ms NOT BETWEEN ?2 + 1 AND ?2 + {_FARTHEST_MS} "
    "AND (asked > 0 OR changed_ms NOT BETWEEN ?2 - ?3 AND ?2) "
    "AND asked BETWEEN ?4 AND ?5 ORDER BY next_ms LIMIT ?6"
)
_FOREVER = 1 << 31


def askable(db: Database, destination: int, *, age_ms: int, most: int) -> list[Sought]:
    """What commitment may be asked for: sent at least `age_ms` ago, and not asked in vain yet."""
    return _unproved(db, destination, age_ms, (0, len(PATIENCE_MS) - 1), most)


def findable(
    db: Database, destination: int, *, age_ms: int, most: int, asked: int = 0
) -> list[Sought]:
    """What may be queried for: sent at least `age_ms` ago, asked for in vain `asked` times."""
    return _unproved(db, destination, age_ms, (asked, _FOREVER), most)


def _unproved(
    db: Database, destination: int, age_ms: int, asked: tuple[int, int], most: int
) -> list[Sought]:
    with db.read() as tx:
        return tx.records(Sought, _UNPROVED, destination, wall_ms(), age_ms - 1, *asked, most)


def due_in_ms(db: Database, destination: int) -> int | None:
    """Milliseconds until something is to be asked again or has expired; None with nothing."""
    with db.read() as tx:
        unproved = tx.first(
            "SELECT MIN(next_ms) FROM delivery WHERE state = 'sent' AND proof = 'response' "
            "AND destination = ?",
            destination,
        )
        open_requests = tx.first(
            "SELECT MIN(asked_ms + patience_ms) FROM commitment "
            "WHERE state = 'asked' AND destination = ?",
            destination,
        )
    due = [int(row[0]) for row in (unproved, open_requests) if row and row[0] is not None]
    return max(0, min(due) - wall_ms()) if due else None


# --- storage commitment ------------------------------------------------------------------------


def begin(db: Database, destination: int, items: Sequence[Sought]) -> Request | None:
    """Write down a request about those of `items` that are still in `sent`; None for none.

    They are in `awaiting_commitment` before this returns.
    """
    patience = PATIENCE_MS[min(max(one.asked for one in items), len(PATIENCE_MS) - 1)]
    transaction_uid = new_uid()
    now = wall_ms()
    with db.write() as tx:
        left = _still_sent(tx, destination, items)
        items = [one for one in items if one.delivery in left]
        if not items:
            return None
        _forget_old(tx, now)
        values = (destination, transaction_uid, CommitmentState.ASKED, now, patience)
        tx.run(
            "INSERT INTO commitment (destination, transaction_uid, state, asked_ms, patience_ms) "
            "VALUES (?, ?, ?, ?, ?)",
            *values,
        )
        number = tx.number("SELECT last_insert_rowid()")
        for one in items:
            tx.insert(
                "commitment_item",
                {
                    "commitment": number,
                    "sop_instance_uid": one.sop_instance_uid,
                    "delivery": one.delivery,
                },
            )
        _shift(tx, destination, _numbers(items), [_SENT], _AWAITING)
    return Request(id=number, transaction_uid=transaction_uid, items=items)


def _still_sent(tx: Transaction, destination: int, items: Iterable[Sought]) -> set[int]:
    """Those that nobody else has asked for, or sent again, since they were read."""
    rows = tx.rows(
        f"SELECT id FROM delivery WHERE {_in(_numbers(items))} "  # noqa: S608  own numbers
        "AND +state = 'sent' AND proof = 'response' AND +destination = ?",
        destination,
    )
    return {row[0] for row in rows}


def _forget_old(tx: Transaction, now: int) -> None:
    tx.run(
        "DELETE FROM commitment WHERE state IN ('expired', 'settled') "
        "AND asked_ms NOT BETWEEN ? AND ?",
        now - _KEPT_MS,
        now + _KEPT_MS,
    )


def withdraw(db: Database, request: Request, *, words: str, counted: bool) -> None:
    """A request that was not accepted, or may not have arrived: its deliveries are `sent` again.

    `counted` where it was asked in vain, and is not asked again for a while; a line that broke is
    nobody's fault.
    """
    with db.write() as tx:
        if _close(tx, request.id, CommitmentState.ASKED, CommitmentState.EXPIRED):
            sql = "SELECT destination, patience_ms FROM commitment WHERE id = ?"
            ((destination, patience),) = tx.rows(sql, request.id)
            numbers = _of(tx, request.id)
            _unanswered(tx, destination, numbers, words, counted=int(counted))
            if counted:
                _put_off(tx, numbers, wall_ms() + patience)


def expire(db: Database, destination: int, *, words: str) -> int:
    """Give up waiting for reports whose time is over; how often at most one was asked in vain.

    An answer that comes later still counts. A request made in the future is over as well: the
    clock has been set back.
    """
    asked = 0
    for number in _expired(db, destination):
        with db.write() as tx:
            if not _close(tx, number, CommitmentState.ASKED, CommitmentState.EXPIRED):
                continue
            numbers = _of(tx, number)
            _unanswered(tx, destination, numbers, words)
            sql = f"SELECT MAX(asked) FROM delivery WHERE {_in(numbers)}"  # noqa: S608
            asked = max(asked, tx.number(sql))
    return asked


def _expired(db: Database, destination: int) -> list[int]:
    with db.read() as tx:
        rows = tx.rows(
            "SELECT id FROM commitment WHERE state = 'asked' AND destination = ?1 "
            "AND ?2 NOT BETWEEN asked_ms AND asked_ms + patience_ms - 1 ORDER BY id",
            destination,
            wall_ms(),
        )
    return [row[0] for row in rows]


def _unanswered(
    tx: Transaction, destination: int, numbers: Sequence[int], words: str, *, counted: int = 1
) -> None:
    """What is still awaited goes back to `sent`, to be asked for once more or in another way."""
    tx.run(
        f"UPDATE delivery SET asked = asked + ? WHERE {_in(numbers)} "  # noqa: S608  own numbers
        "AND +state = 'awaiting_commitment'",
        counted,
    )
    extra: dict[str, str | int] = {"last_error": words, "next_ms": 0}
    _shift(tx, destination, numbers, [_AWAITING], _SENT, extra)


def _put_off(tx: Transaction, numbers: Sequence[int], until_ms: int) -> None:
    sql = f"UPDATE delivery SET next_ms = ? WHERE {_in(numbers)} AND +state = 'sent'"  # noqa: S608
    tx.run(sql, until_ms)


def record(db: Database, transaction_uid: str, outcomes: Mapping[str, int], way: Callback) -> bool:
    """Write a report down: by SOP Instance UID 0, or why it is not committed (PS3.3 C.14-1).

    Returns whether the transaction is known. `way` is how the report came, which is learnt. The
    same report again changes nothing; what was said to be committed stays so.
    """
    with db.write() as tx:
        row = tx.first(
            "SELECT id, destination, state FROM commitment WHERE transaction_uid = ?",
            transaction_uid,
        )
        if row is None:
            return False
        number, destination, state = row
        news = sum(
            tx.run(
                "UPDATE commitment_item SET reason = ?1 WHERE commitment = ?2 "
                "AND sop_instance_uid = ?3 AND (reason IS NULL OR (reason != 0 AND ?1 = 0))",
                reason,
                number,
                sop_instance_uid,
            )
            for sop_instance_uid, reason in outcomes.items()
        )
        if news or state == CommitmentState.ASKED:
            tx.run("UPDATE commitment SET state = 'reported' WHERE id = ?", number)
        _learn_callback(tx, destination, way)
    return True


def reported(db: Database, destination: int) -> bool:
    """Whether a report has come that has not been acted on."""
    with db.read() as tx:
        sql = "SELECT 1 FROM commitment WHERE state = 'reported' AND destination = ? LIMIT 1"
        return tx.first(sql, destination) is not None


def settle(db: Database, destination: int, judge: Callable[[int], Judgement]) -> int:
    """Act on the reports that have come, one transaction each; how many."""
    with db.read() as tx:
        rows = tx.rows(
            "SELECT id FROM commitment WHERE state = 'reported' AND destination = ? ORDER BY id",
            destination,
        )
    for (number,) in rows:
        with db.write() as tx:
            if _close(tx, number, CommitmentState.REPORTED, CommitmentState.SETTLED):
                _settle(tx, destination, number, judge)
    return len(rows)


def _settle(
    tx: Transaction, destination: int, number: int, judge: Callable[[int], Judgement]
) -> None:
    committed = _of(tx, number, "AND reason = 0")
    extra = _proved(deliveries.COMMITTED_PROOF)
    _shift(tx, destination, committed, _COMMITTABLE, DeliveryState.COMMITTED, extra)
    # Of a delivery that has been asked for anew, only what is said in its favour counts.
    latest = (
        "NOT EXISTS (SELECT 1 FROM commitment_item AS later WHERE later.delivery = item.delivery "
        "AND later.commitment > item.commitment)"
    )
    for delivery, reason in tx.rows(
        "SELECT delivery, reason FROM commitment_item AS item "  # noqa: S608  own words
        f"WHERE commitment = ? AND reason > 0 AND {latest}",
        number,
    ):
        _failed(tx, destination, delivery, judge(reason))
    # What was acted on stays, below zero: that it is committed may yet be said.
    sql = "UPDATE commitment_item SET reason = -reason WHERE commitment = ? AND reason > 0"
    tx.run(sql, number)
    words = "the destination's report on it did not name it"
    _unanswered(tx, destination, _of(tx, number, f"AND reason IS NULL AND {latest}"), words)
    sql = "SELECT 1 FROM commitment_item WHERE commitment = ? AND reason IS NOT 0 LIMIT 1"
    if tx.first(sql, number) is None:
        tx.run("DELETE FROM commitment_item WHERE commitment = ?", number)


def _failed(tx: Transaction, destination: int, delivery: int, judgement: Judgement) -> None:
    if judgement.fate is Fate.ASK_AGAIN:
        _unanswered(tx, destination, [delivery], judgement.words)
    elif judgement.fate is Fate.REFUSED:
        extra = _lost(judgement.words)
        _shift(tx, destination, [delivery], _UNDECIDED, DeliveryState.FAILED, extra)
    else:
        _missed(tx, destination, delivery, judgement.words)


_UNDECIDED = (_AWAITING, _SENT)


def _lost(words: str) -> dict[str, str | int]:
    return {"last_error": words, "proof": "", "asked": 0, "looked": 0}


def _missed(tx: Transaction, destination: int, delivery: int, words: str) -> None:
    """It is not there: it is sent again, or has failed when that has happened too often."""
    sql = (
        "SELECT missed + 1 FROM delivery WHERE id = ? AND state IN ('sent', 'awaiting_commitment')"
    )
    missed = tx.number(sql, delivery)
    if not missed:
        return
    now = wall_ms()
    tx.run(  # the history of a delivery says what came of it after it was sent
        "INSERT INTO attempt (delivery, started_ms, ended_ms, result) VALUES (?1, ?2, ?2, ?3)",
        delivery,
        now,
        words,
    )
    # Another MISSES after a person has queued it again.
    failed = missed % MISSES == 0
    delay = _SEND_AGAIN_MS[min(missed % MISSES, len(_SEND_AGAIN_MS)) - 1]
    extra = {**_lost(words), "missed": missed, "next_ms": 0 if failed else now + delay}
    new = DeliveryState.FAILED if failed else _QUEUED
    _shift(tx, destination, [delivery], _UNDECIDED, new, extra)
    if not failed:
        deliveries.settle(tx, Selection(delivery=delivery))


# --- query -------------------------------------------------------------------------------------


def confirm(db: Database, destination: int, items: Collection[Sought]) -> None:
    """These were found at the destination."""
    if not items:
        return
    with db.write() as tx:
        new = DeliveryState.CONFIRMED_BY_QUERY
        _shift(tx, destination, _numbers(items), _UNDECIDED, new, _proved(deliveries.FOUND))


def not_found(db: Database, destination: int, items: Collection[Sought], *, words: str) -> None:
    """These were not found: they are looked for again, in the end they are sent again."""
    if not items:
        return
    now = wall_ms()
    with db.write() as tx:
        for number, looked in tx.rows(
            f"SELECT id, looked FROM delivery WHERE {_in(_numbers(items))}"  # noqa: S608  own numbers
        ):
            if looked < len(LOOK_AGAIN_MS):
                tx.run(
                    "UPDATE delivery SET looked = looked + 1, next_ms = ?, last_error = ? "
                    "WHERE id = ? AND state = 'sent'",
                    *(now + LOOK_AGAIN_MS[looked], words, number),
                )
            else:
                _missed(tx, destination, number, words)


def postpone(db: Database, items: Collection[Sought], *, seconds: float, words: str) -> None:
    """These could not be asked for now; `words` say why."""
    with db.write() as tx:
        tx.run(
            f"UPDATE delivery SET next_ms = ?, last_error = ? WHERE {_in(_numbers(items))} "  # noqa: S608
            "AND +state = 'sent'",
            wall_ms() + min(int(seconds * 1000), _FARTHEST_MS),
            words,
        )


def mark_unprovable(db: Database, items: Collection[Sought]) -> None:
    """No more proof is to be had of these: they stay in `sent`, and the ledger says so."""
    with db.write() as tx:
        tx.run(
            f"UPDATE delivery SET proof = ?, last_error = '' WHERE {_in(_numbers(items))} "  # noqa: S608
            "AND +state = 'sent'",
            deliveries.UNPROVABLE,
        )


def unprovable(db: Database, destination: int, *, most: int) -> list[Sought]:
    """Some of those of which no more proof was to be had."""
    sql = f"{_SOUGHT} AND delivery.state = 'sent' AND delivery.proof = ?2 LIMIT ?3"
    with db.read() as tx:
        return tx.records(Sought, sql, destination, deliveries.UNPROVABLE, most)


def reconsider(db: Database, destination: int) -> None:
    """The destination has begun to offer proof: all that had none is asked for."""
    with db.write() as tx:
        tx.run(
            "UPDATE delivery SET proof = ?, next_ms = 0 "
            "WHERE state = 'sent' AND destination = ? AND proof = ?",
            deliveries.RESPONSE,
            destination,
            deliveries.UNPROVABLE,
        )


def delivered_together(db: Database, destination: int) -> list[Sought]:
    """Two instances of one series that the destination has answered for, or nothing.

    A query for both shows whether it knows lists of UIDs.
    """
    with db.read() as tx:
        for state in ("committed", "confirmed_by_query", "awaiting_commitment", "sent"):
            series = tx.number(
                "SELECT series FROM (SELECT instance.series FROM delivery "
                "JOIN instance ON instance.id = subject WHERE delivery.state = ?1 "
                "AND destination = ?2 AND kind = 'instance' "
                "AND proof IN ('committed', 'found', 'response') "
                "ORDER BY delivery.study DESC LIMIT ?3) GROUP BY series HAVING COUNT(*) > 1",
                *(state, destination, _LOOKED_THROUGH),
            )
            sql = f"{_SOUGHT} AND delivery.state = ?2 AND instance.series = ?3 LIMIT 2"
            if series:
                return tx.records(Sought, sql, destination, state, series)
    return []


# --- doubts ------------------------------------------------------------------------------------


def doubts(db: Database, destination: int, *, most: int) -> list[Sought]:
    """What a crash has left in `sending`: nobody knows whether it arrived."""
    with db.read() as tx:
        sql = f"{_SOUGHT} AND delivery.state = 'sending' ORDER BY delivery.id LIMIT ?2"
        return tx.records(Sought, sql, destination, most)


def doubted(db: Database, destination: int, among: Collection[int]) -> list[Sought]:
    """Those of the deliveries `among` that are still in `sending`, a line having broken there."""
    numbers = ", ".join(str(int(one)) for one in among)
    with db.read() as tx:
        sql = f"{_SOUGHT} AND delivery.state = 'sending' AND delivery.id IN ({numbers})"
        return tx.records(Sought, sql, destination)


def resolve(
    db: Database,
    destination: int,
    items: Sequence[Sought],
    arrived: Collection[str],
    new: DeliveryState,
) -> None:
    """Finish doubts: what has `arrived`, by SOP Instance UID, goes to `new`, the rest is queued.

    `new` is `confirmed_by_query`, or `sent` where commitment is still to be asked for.
    """
    there = [one for one in items if one.sop_instance_uid in arrived]
    absent = [one for one in items if one.sop_instance_uid not in arrived]
    answered: dict[str, str | int] = {"proof": deliveries.RESPONSE, "last_error": ""}
    extra = answered if new is _SENT else _proved(deliveries.FOUND)
    sending = [DeliveryState.SENDING]
    with db.write() as tx:
        _end_attempts(tx, there, "broken off; the destination has it")
        _end_attempts(tx, absent, "broken off")
        _shift(tx, destination, _numbers(there), sending, new, {**extra, "next_ms": 0})
        _shift(tx, destination, _numbers(absent), sending, _QUEUED, {"next_ms": 0})
        for one in absent:
            deliveries.settle(tx, Selection(delivery=one.delivery))


def _end_attempts(tx: Transaction, items: Sequence[Sought], result: str) -> None:
    numbers = ", ".join(map(str, _numbers(items)))
    tx.run(
        "UPDATE attempt SET ended_ms = ?, result = ? WHERE ended_ms IS NULL "  # noqa: S608
        f"AND delivery IN ({numbers})",
        wall_ms(),
        result,
    )


# --- how reports come --------------------------------------------------------------------------


def callback(db: Database, destination: int) -> Callback:
    """How a destination's reports come; that none ever comes is believed for a day."""
    with db.read() as tx:
        row = tx.first("SELECT callback, callback_ms FROM destination WHERE id = ?", destination)
    if row is None:
        return Callback.UNKNOWN
    known = Callback(row[0])
    old = not 0 <= wall_ms() - row[1] < _NEVER_MS
    return Callback.UNKNOWN if known is Callback.NEVER and old else known


def set_callback(db: Database, destination: int, way: Callback) -> None:
    """Remember how a destination's reports come."""
    with db.write() as tx:
        _learn_callback(tx, destination, way)


def _learn_callback(tx: Transaction, destination: int, way: Callback) -> None:
    tx.run(
        "UPDATE destination SET callback = ?, callback_ms = ? WHERE id = ?",
        *(way, wall_ms(), destination),
    )


# --- pieces ------------------------------------------------------------------------------------


def _close(tx: Transaction, number: int, old: CommitmentState, new: CommitmentState) -> int:
    sql = "UPDATE commitment SET state = ? WHERE id = ? AND state = ?"
    return tx.run(sql, new, number, old)


def _numbers(items: Iterable[Sought]) -> list[int]:
    return [one.delivery for one in items]


def _in(numbers: Iterable[int]) -> str:
    """SQL for these deliveries; as numbers, so that nothing needs quoting."""
    return f"id IN ({', '.join(str(int(number)) for number in numbers)})"


def _of(tx: Transaction, number: int, further: str = "") -> list[int]:
    """The deliveries a request is about."""
    sql = f"SELECT delivery FROM commitment_item AS item WHERE commitment = ? {further}"  # noqa: S608
    return [row[0] for row in tx.rows(sql, number)]


def _proved(proof: str) -> dict[str, str | int]:
    return {"proof": proof, "last_error": ""}


def _shift(
    tx: Transaction,
    destination: int,
    numbers: Sequence[int],
    old: Sequence[DeliveryState],
    new: DeliveryState,
    extra: Mapping[str, str | int] = MappingProxyType({}),
) -> None:
    if len(numbers) == 1:
        selection = Selection(delivery=numbers[0])
    elif numbers:
        selection = Selection(destination=destination, among=tuple(numbers))
    else:
        return
    shift(tx, selection, old, new, actor="forward", extra=extra)
