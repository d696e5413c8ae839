"""Deliveries: the outbox. One row per subject and destination, from `queued` to its proof.

`due` makes them inside the commit of their instance. `claim` records the attempt before anybody
dials, so that a crash cannot hammer a peer. Every change of state runs through `_shift`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    UID,
    Arrival,
    Attributes,
    DeliveryKind,
    DeliveryState,
    HoldReason,
    InstanceId,
    ObjectId,
    Origin,
    StudyId,
    StudyState,
    require_transition,
)
from edgepacs.store import audit, rules
from edgepacs.store.db import Database, Transaction

NOT_SENT = "not sent: "  # how the last error begins where our own copy could not be read
RESPONSE = "response"  # the proof that a destination answered success
LOSSY_RESPONSE = "response for a lossy copy"  # never a proof that the instance itself has arrived
STAT = 100  # the priority of what a person sends at once

# Nothing of a study somebody stopped leaves, by whatever way it would come back into the queue.
_MAY_LEAVE = "COALESCE(study, 0) NOT IN (SELECT id FROM study WHERE state IN ('held', 'rejected'))"
_STILL_STANDS = (
    "(kind != 'instance' OR subject IN (SELECT id FROM instance WHERE state = 'stored'))"
)

_FACTS = """
SELECT instance.source AS calling_ae, instance.origin, series.modality,
       instance.sop_class_uid AS sop_class, series.station_name AS station, series.body_part,
       study.description, series.description AS series_description, study.institution,
       series.laterality
FROM instance JOIN series ON series.id = instance.series JOIN study ON study.id = instance.study
WHERE instance.id = ?"""


def due(
    tx: Transaction,
    instance: InstanceId,
    study: StudyId,
    arrival: Arrival,
    attributes: Attributes,
) -> bool:
    """Make the deliveries the routing rules want for a new instance; whether there are any."""
    if not arrival.origin.routed:
        return False
    facts = {
        "calling_ae": arrival.source,
        "origin": str(arrival.origin),
        "modality": attributes.modality,
        "sop_class": attributes.sop_class_uid,
        "station": attributes.station_name,
        "body_part": attributes.body_part,
        "description": attributes.study_description,
        "series_description": attributes.series_description,
        "institution": attributes.institution,
        "laterality": attributes.laterality,
    }
    return _route(tx, instance, study, facts)


def due_again(tx: Transaction, instance: InstanceId) -> None:
    """The same for an instance that is in the index already, e.g. a version just accepted."""
    row = tx.first(_FACTS, instance)
    study = tx.number("SELECT study FROM instance WHERE id = ?", instance)
    if row is None:
        raise NotFound(f"instance: there is no instance {instance}")
    facts = dict(zip(rules.FIELDS, row, strict=True))
    if Origin(facts["origin"]).routed:
        _route(tx, instance, StudyId(study), facts)


def _route(tx: Transaction, instance: InstanceId, study: StudyId, facts: rules.Facts) -> bool:
    destinations = tx.rows("SELECT id, ae_title FROM destination")
    if not destinations:
        return False
    due = False
    matching = [rule for rule in rules.within(tx) if rules.compile_match(rule.match)(facts)]
    for number, ae_title in destinations:
        mine = [rule for rule in matching if rule.destination in (None, number)]
        if mine and ae_title != facts["calling_ae"]:
            reason = _reason_to_hold(tx, study, wait=any(rule.hold for rule in mine))
            _add(tx, instance, study, number, max(rule.priority for rule in mine), reason)
            due = True
    return due


def _reason_to_hold(tx: Transaction, study: StudyId, *, wait: bool) -> HoldReason | None:
    row = tx.first("SELECT state FROM study WHERE id = ?", study)
    state = StudyState(row[0]) if row else StudyState.RECEIVED
    # Asked first: the release of a stopped study does not release what waits for verification.
    if wait and state is not StudyState.VERIFIED:
        return HoldReason.UNVERIFIED
    if state in (StudyState.HELD, StudyState.REJECTED):
        return HoldReason.STUDY
    return None


def _add(
    tx: Transaction,
    instance: InstanceId,
    study: StudyId,
    destination: int,
    priority: int,
    reason: HoldReason | None,
) -> None:
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


def _shift(
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


def _settle(tx: Transaction, selection: Selection) -> None:
    """What comes back into the queue after its study was stopped, or its instance replaced."""
    queued = [DeliveryState.QUEUED]
    _shift(
        tx,
        selection,
        queued,
        DeliveryState.SUPERSEDED,
        actor="forward",
        only=f"NOT {_STILL_STANDS}",
    )
    _shift(
        tx,
        selection,
        queued,
        DeliveryState.HELD,
        actor="forward",
        extra={"hold_reason": HoldReason.STUDY},
        only=f"NOT {_MAY_LEAVE}",
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
    return _shift(
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
    return _shift(
        tx,
        selection,
        [DeliveryState.HELD],
        DeliveryState.QUEUED,
        actor=actor,
        extra={"hold_reason": "", "next_ms": 0},
        only=f"hold_reason IN ({names}) AND {_MAY_LEAVE}",
    )


def retry(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Queue again what failed or was cancelled, and try what waits for its time now."""
    hurried = tx.run(
        f"UPDATE delivery SET next_ms = 0 WHERE state = 'queued' AND next_ms > 0 "  # noqa: S608
        f"AND {selection.where}",
        *selection.values,
    )
    old = [DeliveryState.FAILED, DeliveryState.CANCELLED]
    return hurried + _shift(
        tx,
        selection,
        old,
        DeliveryState.QUEUED,
        actor=actor,
        extra={"next_ms": 0},
        only=f"{_MAY_LEAVE} AND {_STILL_STANDS}",
    )


def cancel(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Say that what is queued, held or failed shall not be sent; how many deliveries."""
    old = [DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED]
    extra = {"hold_reason": ""}
    return _shift(tx, selection, old, DeliveryState.CANCELLED, actor=actor, extra=extra)


def supersede(tx: Transaction, instance: InstanceId, *, actor: str) -> None:
    """Close the open deliveries of an instance another version has replaced."""
    open_states = [DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED]
    for (number,) in tx.rows(
        "SELECT id FROM delivery WHERE kind = 'instance' AND subject = ?", instance
    ):
        selection = Selection(delivery=number)
        extra = {"hold_reason": ""}
        _shift(tx, selection, open_states, DeliveryState.SUPERSEDED, actor=actor, extra=extra)


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
            _add(tx, InstanceId(instance), study, destination, STAT, None)
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
            _shift(
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
        changed = _shift(
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
            _settle(tx, Selection(delivery=number))


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
            if _shift(
                tx,
                selection,
                [DeliveryState.SENDING],
                DeliveryState.QUEUED,
                actor="forward",
                extra={"last_error": result},
            ):
                tx.run("UPDATE delivery SET attempts = attempts - 1 WHERE id = ?", number)
                _settle(tx, selection)


def may_leave(db: Database, claimed: Claim) -> bool:
    """Whether it is still wanted: a person may have stopped it since it was claimed."""
    with db.read() as tx:
        return bool(
            tx.first(
                f"SELECT 1 FROM delivery WHERE id = ? AND {_MAY_LEAVE} AND {_STILL_STANDS}",  # noqa: S608
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
        left = _shift(tx, selection, [DeliveryState.SENDING], DeliveryState.QUEUED, actor="forward")
        _settle(tx, selection)
        return left


def next_due_ms(db: Database, destination: int) -> int | None:
    """When the next delivery to a destination is due (0: now); None with nothing queued."""
    with db.read() as tx:
        row = tx.first(
            "SELECT MIN(next_ms) FROM delivery WHERE state = 'queued' AND destination = ?",
            destination,
        )
    return None if row is None or row[0] is None else int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one study has come on its way to one destination: a row per state."""

    study: int
    destination: int
    destination_name: str
    state: DeliveryState = field(metadata={"make": DeliveryState})
    hold_reason: str
    count: int
    changed_ms: int
    next_ms: int
    attempts: int
    last_error: str


_PROGRESS = """
SELECT delivery.study, destination, destination.name AS destination_name, delivery.state,
       hold_reason, COUNT(*) AS count, MAX(changed_ms) AS changed_ms, MIN(next_ms) AS next_ms,
       MAX(attempts) AS attempts, MAX(last_error) AS last_error
FROM delivery JOIN destination ON destination.id = delivery.destination
WHERE kind = 'instance' AND {where}
GROUP BY delivery.study, destination, delivery.state, hold_reason
ORDER BY delivery.study, destination.name, delivery.state"""


def progress_of_studies(db: Database, studies: Sequence[int]) -> dict[int, list[Progress]]:
    """Progress by study, for the studies given."""
    where = f"delivery.study IN ({', '.join('?' * len(studies))})"
    found: dict[int, list[Progress]] = {study: [] for study in studies}
    with db.read() as tx:
        for row in tx.records(Progress, _PROGRESS.format(where=where), *studies):
            found[row.study].append(row)
    return found


def outbox(db: Database, state: DeliveryState | None = None) -> list[Progress]:
    """The whole queue, summed by study, destination and state; without a state, all unfinished."""
    finished = "delivery.state NOT IN ('sent', 'committed', 'confirmed_by_query', 'superseded')"
    where = "delivery.state = ?" if state else finished
    values: list[Any] = [state] if state else []
    with db.read() as tx:
        return tx.records(Progress, _PROGRESS.format(where=where), *values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of the ledger of an instance."""

    id: int
    destination_name: str
    state: DeliveryState = field(metadata={"make": DeliveryState})
    hold_reason: str
    attempts: int
    last_error: str
    proof: str
    created_ms: int
    changed_ms: int


def of_instance(db: Database, instance: InstanceId) -> list[Delivery]:
    """Where one instance goes and how far it has come."""
    with db.read() as tx:
        return tx.records(
            Delivery,
            "SELECT delivery.id, destination.name AS destination_name, delivery.state, "
            "hold_reason, attempts, last_error, proof, delivery.created_ms, changed_ms "
            "FROM delivery JOIN destination ON destination.id = delivery.destination "
            "WHERE kind = 'instance' AND subject = ? ORDER BY destination.name",
            instance,
        )
