"""Deliveries: the outbox. One row per subject and destination, from `queued` to its proof.

`routing` makes them inside the commit of their instance; `claims` records the attempt before
anybody dials, so that a crash cannot hammer a peer. Every change of state runs through `shift`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    DeliveryKind,
    DeliveryState,
    HoldReason,
    InstanceId,
    StudyId,
    StudyState,
    require_transition,
)
from edgepacs.store import audit
from edgepacs.store.db import Transaction

NOT_SENT = "not sent: "  # how the last error begins where our own copy could not be read
RESPONSE = "response"  # the proof that a destination answered success
LOSSY_RESPONSE = "response for a lossy copy"  # never a proof that the instance itself has arrived
STAT = 100  # the priority of what a person sends at once

# Nothing of a study somebody stopped leaves, by whatever way it would come back into the queue.
MAY_LEAVE = "COALESCE(study, 0) NOT IN (SELECT id FROM study WHERE state IN ('held', 'rejected'))"
STILL_STANDS = "(kind != 'instance' OR subject IN (SELECT id FROM instance WHERE state = 'stored'))"


def add(
    tx: Transaction,
    instance: InstanceId,
    study: StudyId,
    destination: int,
    priority: int,
    reason: HoldReason | None,
) -> None:
    """Make one delivery, unless there is one; held for `reason` where one is given."""
    now = wall_ms()
    tx.run(
        "INSERT INTO delivery (kind, subject, study, destination, state, hold_reason, priority, "
        "created_ms, changed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        DeliveryKind.INSTANCE,
        instance,
        study,
        destination,
        DeliveryState.HELD if reason else DeliveryState.QUEUED,
        reason or "",
        priority,
        now,
        now,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which deliveries an act is about; what is None does not narrow it."""

    delivery: int | None = None
    study: int | None = None
    destination: int | None = None

    @property
    def where(self) -> str:
        """The SQL condition for `values`."""
        return (
            "(?1 IS NULL OR id = ?1) AND (?2 IS NULL OR study = ?2) "
            "AND (?3 IS NULL OR destination = ?3)"
        )

    @property
    def values(self) -> tuple[int | None, int | None, int | None]:
        """The values `where` stands on."""
        return (self.delivery, self.study, self.destination)


def shift(
    tx: Transaction,
    selection: Selection,
    old: Sequence[DeliveryState],
    new: DeliveryState,
    *,
    actor: str,
    extra: Mapping[str, str | int] = {},
    only: str = "1",
) -> int:
    """Move all selected deliveries that are in `old` to `new`, with one audit row; how many."""
    for state in old:
        require_transition(DELIVERY_TRANSITIONS[DeliveryKind.INSTANCE], state, new)
    states = ", ".join(f"'{state}'" for state in old)
    values = {**extra, "state": new, "changed_ms": wall_ms()}
    columns = ", ".join(f"{name} = ?{i}" for i, name in enumerate(values, start=4))
    changed = tx.run(
        f"UPDATE delivery SET {columns} "  # noqa: S608  own names only
        f"WHERE state IN ({states}) AND {only} AND {selection.where}",
        *selection.values,
        *values.values(),
    )
    if changed:
        kind, subject = _named(selection)
        audit.record(
            tx,
            actor=actor,
            act=f"delivery {new}",
            kind=kind,
            subject=subject,
            detail=f"{changed} from {'|'.join(old)}",
        )
    return changed


def settle(tx: Transaction, selection: Selection) -> None:
    """What comes back into the queue after its study was stopped, or its instance replaced."""
    queued = [DeliveryState.QUEUED]
    shift(
        tx,
        selection,
        queued,
        DeliveryState.SUPERSEDED,
        actor="forward",
        only=f"NOT {STILL_STANDS}",
    )
    shift(
        tx,
        selection,
        queued,
        DeliveryState.HELD,
        actor="forward",
        extra={"hold_reason": HoldReason.STUDY},
        only=f"NOT {MAY_LEAVE}",
    )


def _named(selection: Selection) -> tuple[str, int | None]:
    for kind in ("delivery", "study", "destination"):
        number = getattr(selection, kind)
        if number is not None:
            return kind, number
    return "delivery", None


def hold(
    tx: Transaction, selection: Selection, *, actor: str, reason: HoldReason = HoldReason.PERSON
) -> int:
    """Stop what is queued; how many deliveries."""
    extra = {"hold_reason": str(reason)}
    return shift(
        tx, selection, [DeliveryState.QUEUED], DeliveryState.HELD, actor=actor, extra=extra
    )


def release(
    tx: Transaction,
    selection: Selection,
    *,
    actor: str,
    reasons: Sequence[HoldReason] = tuple(HoldReason),
) -> int:
    """Let go what is held for one of `reasons`, unless its study is stopped; how many."""
    names = ", ".join(f"'{reason}'" for reason in reasons)
    return shift(
        tx,
        selection,
        [DeliveryState.HELD],
        DeliveryState.QUEUED,
        actor=actor,
        extra={"hold_reason": "", "next_ms": 0},
        only=f"hold_reason IN ({names}) AND {MAY_LEAVE}",
    )


def retry(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Queue again what failed or was cancelled, and try what waits for its time now."""
    hurried = tx.run(
        f"UPDATE delivery SET next_ms = 0 WHERE state = 'queued' AND next_ms > 0 "  # noqa: S608
        f"AND {selection.where}",
        *selection.values,
    )
    old = [DeliveryState.FAILED, DeliveryState.CANCELLED]
    return hurried + shift(
        tx,
        selection,
        old,
        DeliveryState.QUEUED,
        actor=actor,
        extra={"next_ms": 0},
        only=f"{MAY_LEAVE} AND {STILL_STANDS}",
    )


def cancel(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Say that what is queued, held or failed shall not be sent; how many deliveries."""
    old = [DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED]
    extra = {"hold_reason": ""}
    return shift(tx, selection, old, DeliveryState.CANCELLED, actor=actor, extra=extra)


def supersede(tx: Transaction, instance: InstanceId, *, actor: str) -> None:
    """Close the open deliveries of an instance another version has replaced."""
    open_states = [DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED]
    for (number,) in tx.rows(
        "SELECT id FROM delivery WHERE kind = 'instance' AND subject = ?", instance
    ):
        selection = Selection(delivery=number)
        extra = {"hold_reason": ""}
        shift(tx, selection, open_states, DeliveryState.SUPERSEDED, actor=actor, extra=extra)


def readable_again(tx: Transaction, instance: InstanceId) -> None:
    """Queue what failed because our own copy of an instance could not be read."""
    for (number,) in tx.rows(
        "SELECT id FROM delivery WHERE kind = 'instance' AND subject = ? AND state = 'failed' "
        "AND last_error LIKE ?",
        instance,
        NOT_SENT + "%",
    ):
        retry(tx, Selection(delivery=number), actor="ingest")


def send_study(tx: Transaction, study: StudyId, destinations: Sequence[int], *, actor: str) -> int:
    """Queue what is not on its way yet, before everything else; how many are queued now."""
    row = tx.first("SELECT state FROM study WHERE id = ?", study)
    if row is None:
        raise NotFound(f"study: there is no study {study}")
    if StudyState(row[0]) in (StudyState.HELD, StudyState.REJECTED):
        raise Conflict(f"study: it is {row[0]}; release it before sending")
    if not destinations:
        raise NotFound("destination: none is configured; a field engineer adds one")
    queued = 0
    for destination in destinations:
        for (instance,) in tx.rows(
            "SELECT id FROM instance WHERE state = 'stored' "
            "AND series IN (SELECT id FROM series WHERE study = ?) ORDER BY id",
            study,
        ):
            add(tx, InstanceId(instance), study, destination, STAT, None)
        selection = Selection(study=study, destination=destination)
        release(tx, selection, actor=actor)
        retry(tx, selection, actor=actor)
        tx.run(
            "UPDATE delivery SET priority = MAX(priority, ?) "
            "WHERE study = ? AND destination = ? AND state = 'queued'",
            STAT,
            study,
            destination,
        )
        queued += tx.number(
            "SELECT COUNT(*) FROM delivery WHERE study = ? AND destination = ? "
            "AND state = 'queued'",
            study,
            destination,
        )
    audit.record(tx, actor=actor, act="study sent", kind="study", subject=study)
    return queued
