"""Claims: what a sender does with deliveries, from taking them on to how the attempt ended."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict
from edgepacs.model import UID, DeliveryState, InstanceId, ObjectId
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import (
    MAY_LEAVE,
    RESPONSE,
    STILL_STANDS,
    Selection,
    settle,
    shift,
)

HARD = 3  # broken lines from which on a delivery is tried only when nothing else waits
_LEAST = -(1 << 31)  # no priority is lower
FARTHEST_MS = 2 * 60 * 60 * 1000  # nothing waits longer; else the clock has been set back
# Key object selections and presentation states (PS3.4 B.5) say which images matter, and how.
_KEY_OBJECTS = ("1.2.840.10008.5.1.4.1.1.88.59", "1.2.840.10008.5.1.4.1.1.11.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One delivery a sender has taken on, with what it needs to send it.

    `breaks` counts the lines that broke while it was being sent.
    """

    id: int
    attempts: int
    instance: InstanceId
    object_id: ObjectId
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    received_syntax_uid: UID
    frames: int
    byte_length: int
    priority: int = 0
    breaks: int = 0
    study: int = 0
    send_as: str = ""  # as in a rule: '', 'lossless', 'native' or 'lossy:QUALITY'

    @property
    def hard(self) -> bool:
        """Whether it is to be tried only when nothing else waits."""
        return self.breaks >= HARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the attempt to send one delivery ended, `result` in words a technologist understands.

    `proof` is what there is of its arrival, where it did arrive; `breaks` how many lines have
    broken inside it by now.
    """

    delivery: int
    state: DeliveryState
    result: str
    next_ms: int = 0
    proof: str = RESPONSE
    breaks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """Claims whose sending never began, and why: not the deliveries' fault."""

    deliveries: Sequence[int]
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one lane asks for: up to `most` claims, none of a lower priority than `least`.

    Highest priority first and oldest within it; with `oldest` the oldest of all, so that what
    is less urgent is never starved.
    """

    most: int
    least: int = _LEAST
    oldest: bool = False


def exchange(
    db: Database,
    destination: int,
    *,
    ended: Sequence[Ended] = (),
    returned: Sequence[Returned] = (),
    wishes: Sequence[Wish] = (),
) -> list[list[Claim]]:
    """In one transaction record what has ended and grant new claims; claims by wish.

    What is granted is in `sending`, with its attempt recorded, before this returns. What ended
    and is no longer being sent (its destination was removed) is left alone.
    """
    with db.write() as tx:
        for alike in _alike(ended):
            _end(tx, destination, alike)
        for some in returned:
            _return(tx, some)
        return [_grant(tx, destination, wish) for wish in wishes]


def claim(db: Database, destination: int, most: int) -> list[Claim]:
    """Take up to `most` due deliveries to a destination, highest priority and oldest first."""
    return exchange(db, destination, wishes=[Wish(most=most)])[0]


def finish(
    db: Database,
    number: int,
    new: DeliveryState,
    *,
    result: str,
    next_ms: int = 0,
    proof: str = RESPONSE,
) -> None:
    """Record how one attempt ended; raises Conflict when the delivery is not being sent."""
    one = Ended(delivery=number, state=new, result=result, next_ms=next_ms, proof=proof)
    with db.write() as tx:
        if not _end(tx, 0, [one]):
            raise Conflict(f"delivery: {number} is not being sent")


def give_back(db: Database, numbers: Sequence[int], *, result: str) -> None:
    """Return claims whose sending never began."""
    with db.write() as tx:
        _return(tx, Returned(deliveries=numbers, result=result))


# --- granting ----------------------------------------------------------------------------------

_DUE = f"next_ms NOT BETWEEN ?2 + 1 AND ?2 + {FARTHEST_MS}"
_QUEUED = "state = 'queued' AND kind = 'instance'"  # what the indexes of instances stand on
_WAITING = (
    "FROM delivery JOIN instance ON instance.id = delivery.subject "
    f"WHERE delivery.{_QUEUED} AND destination = ?1 "
    f"AND {_DUE} AND delivery.priority >= ?3 "
    "AND instance.state = 'stored' "
)
_CLAIM = (
    "SELECT delivery.id, attempts + 1 AS attempts, instance.id AS instance, object_id, "
    "sop_class_uid, sop_instance_uid, transfer_syntax_uid, received_syntax_uid, frames, "
    "byte_length, delivery.priority, breaks, COALESCE(delivery.study, 0) AS study, send_as "
)
_EASY = f"{_CLAIM} {_WAITING} AND breaks < {HARD} "
_HARD = f"{_CLAIM} {_WAITING} AND breaks >= {HARD} "
_URGENT_FIRST = "ORDER BY delivery.priority DESC, delivery.id LIMIT ?4"


def _grant(tx: Transaction, destination: int, wish: Wish) -> list[Claim]:
    now = wall_ms()
    found = _chosen(tx, destination, wish, now)
    begin(tx, destination, [one.id for one in found])
    return found


def begin(tx: Transaction, destination: int, numbers: Sequence[int]) -> None:
    """Record an attempt of each of these deliveries, of whatever kind, before anybody makes it."""
    if not numbers:
        return
    selection = _these(destination, numbers)
    shift(tx, selection, [DeliveryState.QUEUED], DeliveryState.SENDING, actor="forward")
    now = wall_ms()
    for number in numbers:
        tx.run("UPDATE delivery SET attempts = attempts + 1 WHERE id = ?", number)
        tx.insert("attempt", {"delivery": number, "started_ms": now})


def _these(destination: int, numbers: Sequence[int]) -> Selection:
    """Deliveries to one destination that change together, with one audit row that names them."""
    if len(numbers) == 1:
        return Selection(delivery=numbers[0])
    return Selection(destination=destination, among=tuple(numbers))


def _chosen(tx: Transaction, destination: int, wish: Wish, now: int) -> list[Claim]:
    if wish.oldest and (level := _level_of_oldest(tx, destination, wish.least, now)) is not None:
        sql = f"{_EASY} AND delivery.priority = ?5 ORDER BY delivery.id LIMIT ?4"
        return tx.records(Claim, sql, destination, now, wish.least, wish.most, level)
    # Some more than wanted, so that the key objects of a study can go before its images.
    sql = _EASY + _URGENT_FIRST
    found = tx.records(Claim, sql, destination, now, wish.least, 2 * wish.most)
    if found or _busy_with_hard(tx, destination):
        return _key_objects_first(found)[: wish.most]
    return tx.records(Claim, _HARD + _URGENT_FIRST, destination, now, wish.least, 1)


def _level_of_oldest(tx: Transaction, destination: int, least: int, now: int) -> int | None:
    """The priority of the delivery that has waited longest; one look for each level there is."""
    sql = (
        f"SELECT id FROM delivery WHERE {_QUEUED} AND destination = ?1 "  # noqa: S608
        f"AND {_DUE} AND priority = ?3 AND breaks < {HARD} ORDER BY id LIMIT 1"
    )
    found = [
        (row[0], level)
        for level in _levels(tx, destination)
        if level >= least and (row := tx.first(sql, destination, now, level))
    ]
    return min(found)[1] if found else None


def _levels(tx: Transaction, destination: int) -> list[int]:
    """Every priority there is in the queue, the lowest first; one look in the index for each."""
    lowest = f"SELECT MIN(priority) FROM delivery WHERE {_QUEUED} AND destination = ?"  # noqa: S608
    found: list[int] = []
    row = tx.first(lowest, destination)
    while row is not None and row[0] is not None:
        found.append(int(row[0]))
        row = tx.first(lowest + " AND priority > ?", destination, found[-1])
    return found


def levels(db: Database, destination: int) -> list[int]:
    """Every priority there is in the queue to a destination, the lowest first."""
    with db.read() as tx:
        return _levels(tx, destination)


def _key_objects_first(found: list[Claim]) -> list[Claim]:
    """Within the study and priority of the first one; everything else in its order."""
    if not found:
        return found
    first = found[0]

    def later(claim: Claim) -> bool:
        same = (claim.study, claim.priority) == (first.study, first.priority)
        return not (same and claim.sop_class_uid.startswith(_KEY_OBJECTS))

    return sorted(found, key=later)


def _busy_with_hard(tx: Transaction, destination: int) -> bool:
    sql = (
        "SELECT 1 FROM delivery WHERE state = 'sending' AND destination = ? AND breaks >= ? "
        "AND kind = 'instance' LIMIT 1"
    )
    return tx.first(sql, destination, HARD) is not None


# --- ending ------------------------------------------------------------------------------------


def _alike(ended: Sequence[Ended]) -> list[list[Ended]]:
    """What ended in the same way, together; most of it was sent."""
    found: dict[Ended, list[Ended]] = {}
    for one in ended:
        found.setdefault(replace(one, delivery=0), []).append(one)
    return list(found.values())


def _end(tx: Transaction, destination: int, alike: Sequence[Ended]) -> bool:
    one = alike[0]
    sent = one.state is DeliveryState.SENT
    now = wall_ms()
    for each in alike:
        tx.run(
            "UPDATE attempt SET ended_ms = ?, result = ? WHERE delivery = ? AND ended_ms IS NULL",
            now,
            one.result,
            each.delivery,
        )
    selection = _these(destination, [each.delivery for each in alike])
    extra: dict[str, str | int | None] = {
        "last_error": "" if sent else one.result,
        "proof": one.proof if sent else "",
        "next_ms": one.next_ms,
        "breaks": one.breaks,
    }
    old = [DeliveryState.SENDING]
    changed = shift(tx, selection, old, one.state, actor="forward", extra=extra)
    if changed and one.state is DeliveryState.QUEUED:
        settle(tx, selection)
    return bool(changed)


def _return(tx: Transaction, some: Returned) -> None:
    for number in some.deliveries:
        tx.run(
            "UPDATE attempt SET ended_ms = ?, result = ? WHERE delivery = ? AND ended_ms IS NULL",
            wall_ms(),
            some.result,
            number,
        )
        selection = Selection(delivery=number)
        if shift(tx, selection, [DeliveryState.SENDING], DeliveryState.QUEUED, actor="forward"):
            # Why a hard one waits is still the thing to say.
            tx.run(
                "UPDATE delivery SET attempts = attempts - 1, "
                "last_error = CASE WHEN breaks < ? THEN ? ELSE last_error END WHERE id = ?",
                HARD,
                some.result,
                number,
            )
            settle(tx, selection)


# --- asking ------------------------------------------------------------------------------------


def may_leave(db: Database, claimed: Claim) -> bool:
    """Whether it is still wanted: a person may have stopped it since it was claimed."""
    with db.read() as tx:
        return bool(
            tx.first(
                "SELECT 1 FROM delivery WHERE id = ? AND state = 'sending' "  # noqa: S608
                f"AND {MAY_LEAVE} AND {STILL_STANDS}",
                claimed.id,
            )
        )


def recover(db: Database, destination: int | None = None) -> int:
    """After a crash or a fault: queue again what was left in `sending`; how many."""
    selection = Selection(destination=destination)
    with db.write() as tx:
        tx.run(
            "UPDATE attempt SET ended_ms = ?4, result = 'broken off' WHERE ended_ms IS NULL "  # noqa: S608
            f"AND delivery IN (SELECT id FROM delivery WHERE {selection.where})",
            *selection.values,
            wall_ms(),
        )
        left = shift(tx, selection, [DeliveryState.SENDING], DeliveryState.QUEUED, actor="forward")
        settle(tx, selection)
        return left


def in_doubt(db: Database, destination: int) -> bool:
    """Whether an instance to a destination is in `sending`."""
    sql = (
        "SELECT 1 FROM delivery WHERE state = 'sending' AND destination = ? "
        "AND kind = 'instance' LIMIT 1"
    )
    with db.read() as tx:
        return tx.first(sql, destination) is not None


def next_due_ms(db: Database, destination: int) -> int | None:
    """When the next delivery to a destination is due (0: now); None with nothing queued."""
    with db.read() as tx:
        row = tx.first(
            f"SELECT MIN(next_ms) FROM delivery WHERE {_QUEUED} AND destination = ?",  # noqa: S608
            destination,
        )
    return None if row is None or row[0] is None else int(row[0])


@dataclass(frozen=True, slots=True)
class Due:
    """The highest and the lowest priority of what may be sent now."""

    most: int
    least: int


def due(db: Database, destination: int) -> Due | None:
    """How urgent what is due now is; None with nothing due."""
    where = f"FROM delivery WHERE {_QUEUED} AND destination = ?1 AND {_DUE}"
    now = wall_ms()
    with db.read() as tx:
        first = tx.first(
            f"SELECT priority {where} ORDER BY priority DESC LIMIT 1",
            destination,
            now,
        )
        if first is None:
            return None
        last = tx.first(
            f"SELECT MIN(priority) FROM delivery WHERE {_QUEUED} AND destination = ?",  # noqa: S608
            destination,
        )
    assert last is not None
    return Due(int(first[0]), int(last[0]))


def waiting(db: Database, destination: int, least: int, most: int) -> int:
    """How many deliveries of priority `least` and above may be claimed now, counted up to `most`.

    Without those that are tried only when nothing else waits.
    """
    sql = (
        f"SELECT COUNT(*) FROM (SELECT 1 FROM delivery WHERE {_QUEUED} AND destination = ?1 "  # noqa: S608
        f"AND {_DUE} AND priority >= ?3 AND breaks < {HARD} LIMIT ?4)"
    )
    with db.read() as tx:
        return tx.number(sql, destination, wall_ms(), least, most)


def coming(db: Database, destination: int, most: int) -> list[tuple[UID, UID]]:
    """SOP class and transfer syntax of what is queued next, each pair once.

    What an association proposes beside its first claims, so that it serves those after them.
    """
    with db.read() as tx:
        rows = tx.rows(
            "SELECT DISTINCT sop_class_uid, transfer_syntax_uid FROM "  # noqa: S608  own words
            f"(SELECT subject FROM delivery WHERE {_QUEUED} AND destination = ? "
            "ORDER BY priority DESC, id LIMIT ?) AS waiting "
            "JOIN instance ON instance.id = waiting.subject WHERE instance.state = 'stored'",
            destination,
            most,
        )
    return [(UID(sop_class), UID(syntax)) for sop_class, syntax in rows]
