"""Claims: what a sender does with deliveries, from taking them on to how the attempt ended."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict
from edgepacs.model import UID, DeliveryState, InstanceId, ObjectId
from edgepacs.store.db import Database
from edgepacs.store.deliveries import MAY_LEAVE, RESPONSE, STILL_STANDS, Selection, settle, shift


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One delivery a sender has taken on, with what it needs to send it."""

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


def claim(db: Database, destination: int, most: int) -> list[Claim]:
    """Take up to `most` due deliveries to a destination, highest priority and oldest first.

    They are in `sending`, with their attempt recorded, before this returns.
    """
    now = wall_ms()
    with db.write() as tx:
        claims = tx.records(
            Claim,
            "SELECT delivery.id, attempts + 1 AS attempts, instance.id AS instance, object_id, "
            "sop_class_uid, sop_instance_uid, transfer_syntax_uid, received_syntax_uid, frames, "
            "byte_length FROM delivery JOIN instance ON instance.id = delivery.subject "
            "WHERE delivery.state = 'queued' AND destination = ? AND kind = 'instance' "
            "AND next_ms <= ? AND instance.state = 'stored' "
            "ORDER BY delivery.priority DESC, delivery.id LIMIT ?",
            destination,
            now,
            most,
        )
        for one in claims:
            tx.insert("attempt", {"delivery": one.id, "started_ms": now})
            shift(
                tx,
                Selection(delivery=one.id),
                [DeliveryState.QUEUED],
                DeliveryState.SENDING,
                actor="forward",
                extra={"attempts": one.attempts},
            )
        return claims


def finish(
    db: Database,
    number: int,
    new: DeliveryState,
    *,
    result: str,
    next_ms: int = 0,
    proof: str = RESPONSE,
) -> None:
    """Record how an attempt ended; `result` in words a technologist understands.

    `proof` is what there is of its arrival, where it did arrive.
    """
    error = "" if new is DeliveryState.SENT else result
    proof = proof if new is DeliveryState.SENT else ""
    with db.write() as tx:
        tx.run(
            "UPDATE attempt SET ended_ms = ?, result = ? WHERE delivery = ? AND ended_ms IS NULL",
            wall_ms(),
            result,
            number,
        )
        changed = shift(
            tx,
            Selection(delivery=number),
            [DeliveryState.SENDING],
            new,
            actor="forward",
            extra={"last_error": error, "proof": proof, "next_ms": next_ms},
        )
        if not changed:
            raise Conflict(f"delivery: {number} is not being sent")
        if new is DeliveryState.QUEUED:
            settle(tx, Selection(delivery=number))


def give_back(db: Database, numbers: Sequence[int], *, result: str) -> None:
    """Return claims whose sending never began: the line broke first. Not the delivery's fault."""
    with db.write() as tx:
        for number in numbers:
            tx.run(
                "UPDATE attempt SET ended_ms = ?, result = ? "
                "WHERE delivery = ? AND ended_ms IS NULL",
                wall_ms(),
                result,
                number,
            )
            selection = Selection(delivery=number)
            if shift(
                tx,
                selection,
                [DeliveryState.SENDING],
                DeliveryState.QUEUED,
                actor="forward",
                extra={"last_error": result},
            ):
                tx.run("UPDATE delivery SET attempts = attempts - 1 WHERE id = ?", number)
                settle(tx, selection)


def may_leave(db: Database, claimed: Claim) -> bool:
    """Whether it is still wanted: a person may have stopped it since it was claimed."""
    with db.read() as tx:
        return bool(
            tx.first(
                f"SELECT 1 FROM delivery WHERE id = ? AND {MAY_LEAVE} AND {STILL_STANDS}",  # noqa: S608
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


def next_due_ms(db: Database, destination: int) -> int | None:
    """When the next delivery to a destination is due (0: now); None with nothing queued."""
    with db.read() as tx:
        row = tx.first(
            "SELECT MIN(next_ms) FROM delivery WHERE state = 'queued' AND destination = ?",
            destination,
        )
    return None if row is None or row[0] is None else int(row[0])
