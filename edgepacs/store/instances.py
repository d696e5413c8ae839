"""Instances: the one commit point, and what may happen to an instance afterwards.

`commit` is the only function that makes an instance known. It runs in one transaction after the
sealed bytes are durable, so a row exists if and only if its bytes do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgepacs.errors import Conflict
from edgepacs.model import (
    INSTANCE_TRANSITIONS,
    KEY_OBJECTS,
    UID,
    Attributes,
    InstanceId,
    InstanceState,
    ObjectId,
    Origin,
    Outcome,
    Receipt,
    StudyId,
    require_transition,
)
from edgepacs.store import audit, compressions, deliveries, placing, routing
from edgepacs.store.db import Database, Transaction
from edgepacs.store.drafts import Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One row of `instance`."""

    id: InstanceId
    study: StudyId
    series: int
    sop_instance_uid: UID
    sop_class_uid: UID
    transfer_syntax_uid: UID
    received_syntax_uid: UID
    state: InstanceState = field(metadata={"make": InstanceState})
    version: int
    object_id: ObjectId
    byte_length: int
    sealed_length: int
    received_digest: bytes
    native_digest: bytes | None  # of the native frames, where it was compressed
    pixel_offset: int
    instance_number: str
    rows: int
    columns: int
    frames: int
    flags: str
    origin: Origin = field(metadata={"make": Origin})
    source: str
    received_ms: int
    corrects: InstanceId | None = None  # the received version it stands for, written anew


_COLUMNS = ", ".join(Instance.__slots__)
OWN_NOTE = f"(instance.origin = 'local' AND instance.sop_class_uid = '{KEY_OBJECTS}')"
"""A rejection note made here, as an SQL condition: it is sent, and is nothing of its study."""
_LIVE = (InstanceState.STORED, InstanceState.COMPARING, InstanceState.QUARANTINED)
_SUPERSEDED = InstanceState.SUPERSEDED


def instance(db: Database, number: InstanceId) -> Instance:
    """The instance of that row number; raises NotFound."""
    with db.read() as tx:
        return within(tx, number)


def within(tx: Transaction, number: InstanceId) -> Instance:
    """The same, as this transaction sees it."""
    sql = f"SELECT {_COLUMNS} FROM instance WHERE id = ?"  # noqa: S608
    return tx.record(Instance, f"instance: there is no instance {number}", sql, number)


def of_series(db: Database, series: int) -> list[Instance]:
    """The stored instances of a series, by instance number and then arrival."""
    sql = (
        f"SELECT {_COLUMNS} FROM instance WHERE series = ? AND state = 'stored' "  # noqa: S608
        "ORDER BY CAST(instance_number AS INTEGER), id"
    )
    with db.read() as tx:
        return tx.records(Instance, sql, series)


def waiting(db: Database, state: InstanceState, study: StudyId | None = None) -> list[Instance]:
    """The instances being compared or in quarantine, of one study or of all, oldest first."""
    sql = (
        f"SELECT {_COLUMNS} FROM instance "  # noqa: S608
        "WHERE state = ?1 AND state IN ('comparing', 'quarantined') "  # what has an index
        "AND (?2 IS NULL OR study = ?2) ORDER BY id"
    )
    with db.read() as tx:
        return tx.records(Instance, sql, state, study)


def stored_version(db: Database, sop_instance_uid: UID) -> Instance | None:
    """The version a SOP Instance UID stands for, if there is one."""
    sql = (
        f"SELECT {_COLUMNS} FROM instance "  # noqa: S608
        "WHERE sop_instance_uid = ? AND state = 'stored'"
    )
    with db.read() as tx:
        return next(iter(tx.records(Instance, sql, sop_instance_uid)), None)


def of_uid(db: Database, sop_instance_uid: UID) -> list[Instance]:
    """Every version of a SOP Instance UID, tombstones included, the oldest first."""
    sql = f"SELECT {_COLUMNS} FROM instance WHERE sop_instance_uid = ? ORDER BY id"  # noqa: S608
    with db.read() as tx:
        return tx.records(Instance, sql, sop_instance_uid)


def newest(db: Database) -> int:
    """The number of the instance that arrived last; 0 for none."""
    with db.read() as tx:
        return tx.number("SELECT MAX(id) FROM instance")


def corrected(db: Database) -> int:
    """How many instances stand for a received version, written anew by an order."""
    with db.read() as tx:
        sql = "SELECT COUNT(*) FROM instance WHERE corrects IS NOT NULL AND state = 'stored'"
        return tx.number(sql)


def standing(db: Database, draft: Draft) -> ObjectId | None:
    """The object of the version that was received as the same bytes as `draft`, if there is one."""
    with db.read() as tx:
        row = tx.first(
            "SELECT object_id FROM instance WHERE sop_instance_uid = ? AND received_digest = ? "
            "AND received_syntax_uid = ? AND state IN ('stored', 'comparing', 'quarantined')",
            draft.arrival.sop_instance_uid,
            draft.received_digest,
            draft.arrival.transfer_syntax_uid,
        )
    return None if row is None else ObjectId(row[0])


def commit(db: Database, drafts: Sequence[Draft]) -> list[Receipt]:
    """Make sealed instances known, all in one transaction; durable on return.

    Of the same bytes again the new copy is kept, because it is known to be good; the object it
    has replaced is in the receipt. Every answer is Success to the modality (PS3.4 B.2.3).
    """
    with db.write() as tx:
        return committed(tx, drafts)


def committed(tx: Transaction, drafts: Sequence[Draft]) -> list[Receipt]:
    """The same within a transaction; nothing of it is durable before that has ended."""
    return [_commit_one(tx, draft) for draft in drafts]


def _commit_one(tx: Transaction, draft: Draft) -> Receipt:
    versions = tx.rows(
        "SELECT id, study, series, state, object_id, received_digest, received_syntax_uid, "
        "version, byte_length FROM instance WHERE sop_instance_uid = ?",
        draft.arrival.sop_instance_uid,
    )
    same = (draft.received_digest, draft.arrival.transfer_syntax_uid)
    known = [row for row in versions if row[3] in _LIVE]
    for row in known:
        if row[4] == draft.object_id:  # this very draft: its first COMMIT only seemed to fail
            return Receipt(outcome=Outcome.STORED, instance_id=row[0], study_id=row[1])
        if row[5:7] == same:
            return _take_again(tx, draft, row)
    standing = next((row for row in known if row[3] == InstanceState.STORED), None)
    former = _former(tx, draft, standing) if draft.arrival.corrects else None
    if former is not None:  # the index is being rebuilt
        number = stand_in(tx, draft, within(tx, former), actor=draft.arrival.source)
        return Receipt(
            outcome=Outcome.STORED, instance_id=number, study_id=within(tx, number).study
        )
    corrected = [row[0] for row in versions if row[5:7] == same and row[3] == _SUPERSEDED]
    for standing_for, study in _corrections_of(tx, corrected):
        # What was corrected, sent once more: its correction stands for it.
        receipt = _answer(tx, draft, Outcome.DUPLICATE, standing_for, study)
        return replace(receipt, replaced=draft.object_id)
    alone = standing is None
    evicted = [row for row in versions if row[3] == InstanceState.EVICTED]
    for row in evicted if alone else ():
        if row[5:7] == same:
            return _take_back(tx, draft, row)
    # What differs from what has gone out under this UID must not follow it unseen.
    alone = alone and not (evicted and draft.arrival.origin.routed)
    version = 1 + max((row[7] for row in versions), default=0)
    return _take_new(tx, draft, Outcome.STORED if alone else Outcome.COMPARING, version)


def _former(tx: Transaction, draft: Draft, standing: tuple[Any, ...] | None) -> InstanceId | None:
    """What a correction was written anew of: under its own UID, else under another."""
    if standing is not None:
        return InstanceId(standing[0])
    sql = "SELECT id FROM instance WHERE received_digest = ? AND state = 'stored'"
    row = tx.first(sql, draft.arrival.corrects)
    return None if row is None else InstanceId(row[0])


def _corrections_of(tx: Transaction, received: Sequence[int]) -> list[tuple[int, int]]:
    """Number and study of what stands for received versions now, whatever its UID."""
    sql = "SELECT id, study FROM instance WHERE corrects = ? AND state = 'stored'"
    return [(row[0], row[1]) for number in received for row in tx.rows(sql, number)]


def _take_back(tx: Transaction, draft: Draft, row: tuple[Any, ...]) -> Receipt:
    """The same bytes as were evicted: kept again, and sent only where they have not arrived."""
    number, study, series, _, former, _, _, _, length = row
    move(tx, number, InstanceState.STORED, actor=draft.arrival.source)
    association = _association(tx, draft)
    _replace_object(tx, number, draft, association)
    _own(tx, number, draft)
    placing.count(tx, study, series, 0, draft.byte_length - length, draft.received_ms)
    due = _due(tx, draft, number, study)
    receipt = _answer(tx, draft, Outcome.STORED, number, study)
    return replace(receipt, replaced=ObjectId(former), due=due, association=association)


def _take_again(tx: Transaction, draft: Draft, row: tuple[Any, ...]) -> Receipt:
    """The same bytes once more.

    What was fetched never takes the place of what a modality or a person brought.
    """
    number, study, series, state, former, _, _, _, length = row
    if not draft.arrival.origin.routed and _is_own(tx, number):
        receipt = _answer(tx, draft, Outcome.DUPLICATE, number, study)
        return replace(receipt, replaced=draft.object_id)
    association = _association(tx, draft)
    _replace_object(tx, number, draft, association)
    longer = draft.byte_length - length if state == InstanceState.STORED else 0
    placing.count(tx, study, series, 0, longer, draft.received_ms)
    if _own(tx, number, draft) and state == InstanceState.STORED:
        _due(tx, draft, number, study)
    receipt = _answer(tx, draft, Outcome.DUPLICATE, number, study)
    return replace(receipt, replaced=ObjectId(former), due=True, association=association)


def _is_own(tx: Transaction, number: int) -> bool:
    row = tx.first("SELECT origin FROM instance WHERE id = ?", number)
    return row is not None and Origin(row[0]).routed


def _own(tx: Transaction, number: int, draft: Draft) -> bool:
    """What was fetched and is then brought by a modality or a person is theirs from then on."""
    if not draft.arrival.origin.routed:
        return False
    arrival = draft.arrival
    fetched = (Origin.PREFETCH, Origin.FETCH_BACK)
    sql = "UPDATE instance SET origin = ?, source = ? WHERE id = ? AND origin IN (?, ?)"
    return tx.run(sql, arrival.origin, arrival.source, number, *fetched) > 0


def _take_new(tx: Transaction, draft: Draft, outcome: Outcome, version: int) -> Receipt:
    """Bytes not known before; where another version stands for the UID they wait."""
    stored = outcome is Outcome.STORED
    study, series = placing.place(tx, draft)
    association = _association(tx, draft)
    placed = {"series": series, "study": study, "association": association}
    number = _insert(tx, draft, outcome, version, placed)
    placing.count(tx, study, series, int(stored), draft.byte_length * stored, draft.received_ms)
    due = stored and _due(tx, draft, number, study)
    return replace(_answer(tx, draft, outcome, number, study), due=due, association=association)


def _due(tx: Transaction, draft: Draft, number: int, study: int) -> bool:
    """Whether the routing rules send it somewhere; its deliveries are made."""
    return routing.due(
        tx,
        InstanceId(number),
        StudyId(study),
        draft.arrival,
        draft.attributes,
        draft.received_ms,
    )


def _association(tx: Transaction, draft: Draft) -> int | None:
    """The row of the association it came by, written with its first instance: an echo has none."""
    caller = draft.arrival.caller
    if caller is None or caller.number is not None:
        return None if caller is None else caller.number
    return tx.insert(
        "association",
        {
            "calling_ae": caller.calling_ae,
            "called_ae": caller.called_ae,
            "host": caller.host,
            "implementation": caller.implementation,
            "started_ms": draft.received_ms,
        },
    )


def _replace_object(tx: Transaction, number: int, draft: Draft, association: int | None) -> None:
    """The copy just sealed is good; the earlier one may have been damaged since.

    Where it first came from stays: a prior fetched again must not make a modality's own unrouted.
    """
    tx.run(
        "UPDATE instance SET object_id = ?, byte_length = ?, sealed_length = ?, "
        "transfer_syntax_uid = ?, pixel_offset = ?, native_digest = ?, received_ms = ?, "
        "association = COALESCE(?, association) WHERE id = ?",
        draft.object_id,
        draft.byte_length,
        draft.sealed_length,
        draft.transfer_syntax_uid,
        draft.pixel_offset,
        draft.native_digest,
        draft.received_ms,
        association,
        number,
    )
    _note_compression(tx, number, draft)
    deliveries.readable_again(tx, InstanceId(number))


def _note_compression(tx: Transaction, number: int, draft: Draft) -> None:
    """What came compressed already stands so; another copy as received waits for it anew."""
    if draft.at_rest is None:
        compressions.stands_native(tx, InstanceId(number))
    else:
        compressions.stands_compressed(
            tx,
            InstanceId(number),
            draft.transfer_syntax_uid,
            received_length=draft.at_rest.received_length,
            byte_length=draft.byte_length,
        )


def _answer(tx: Transaction, draft: Draft, outcome: Outcome, number: int, study: int) -> Receipt:
    audit.record(
        tx,
        actor=draft.arrival.source,
        act=f"instance {outcome}",
        kind="instance",
        subject=number,
        detail=draft.arrival.origin,
    )
    return Receipt(outcome=outcome, instance_id=InstanceId(number), study_id=StudyId(study))


def _insert(
    tx: Transaction,
    draft: Draft,
    outcome: Outcome,
    version: int,
    placed: dict[str, int | None],
) -> int:
    arrival, attributes = draft.arrival, draft.attributes
    state = InstanceState.STORED if outcome is Outcome.STORED else InstanceState.COMPARING
    number = tx.insert(
        "instance",
        {
            **placed,
            "sop_instance_uid": arrival.sop_instance_uid,
            "sop_class_uid": arrival.sop_class_uid,
            "transfer_syntax_uid": draft.transfer_syntax_uid,
            "received_syntax_uid": arrival.transfer_syntax_uid,
            "state": state,
            "version": version,
            "object_id": draft.object_id,
            "byte_length": draft.byte_length,
            "sealed_length": draft.sealed_length,
            "received_digest": draft.received_digest,
            "native_digest": draft.native_digest,
            "pixel_offset": draft.pixel_offset,
            "instance_number": attributes.instance_number,
            "rows": attributes.rows,
            "columns": attributes.columns,
            "frames": attributes.frames,
            "flags": " ".join(attributes.flags),
            "origin": arrival.origin,
            "source": arrival.source,
            "received_ms": draft.received_ms,
        },
    )
    if draft.at_rest is not None:
        _note_compression(tx, number, draft)
    return number


def move(tx: Transaction, number: InstanceId, new: InstanceState, *, actor: str) -> Instance:
    """Bring an instance into another state, with its audit row; the instance as it was."""
    old = within(tx, number)
    require_transition(INSTANCE_TRANSITIONS, old.state, new)
    tx.run("UPDATE instance SET state = ? WHERE id = ?", new, number)
    audit.record(
        tx, actor=actor, act=f"instance {new}", kind="instance", subject=number, detail=old.state
    )
    if old.state is InstanceState.QUARANTINED and not tx.number(
        "SELECT COUNT(*) FROM instance WHERE state = 'quarantined' AND study = ?", old.study
    ):
        placing.unflag_study(tx, old.study, "conflict")
    if InstanceState.STORED in (old.state, new):
        sign = 1 if new is InstanceState.STORED else -1
        placing.count(tx, old.study, old.series, sign, sign * old.byte_length)
    if InstanceState.EVICTED in (old.state, new):
        sign = 1 if new is InstanceState.EVICTED else -1
        for table, row in (("study", old.study), ("series", old.series)):
            sql = f"UPDATE {table} SET evicted_count = evicted_count + ? WHERE id = ?"  # noqa: S608
            tx.run(sql, sign, row)
    return old


def accept_version(db: Database, number: InstanceId, *, actor: str) -> None:
    """Let a quarantined version stand for its UID; the former one is kept, never forwarded.

    Raises Conflict when it is not quarantined, NotFound.
    """
    with db.write() as tx:
        chosen = within(tx, number)
        if chosen.state is not InstanceState.QUARANTINED:
            raise Conflict(f"instance: it is {chosen.state}, not quarantined")
        for (former,) in tx.rows(
            "SELECT id FROM instance WHERE sop_instance_uid = ? AND state = 'stored'",
            chosen.sop_instance_uid,
        ):
            move(tx, former, InstanceState.SUPERSEDED, actor=actor)
            deliveries.supersede(tx, former, actor=actor)
        move(tx, number, InstanceState.STORED, actor=actor)
        routing.due_again(tx, number)
        compressions.consider(tx, number)


def stand_in(tx: Transaction, draft: Draft, former: Instance, *, actor: str) -> InstanceId:
    """Let a correction stand for the instance it was written anew of; its row number.

    The received version is kept as superseded. Study and series take on what it says; what was
    due of the former and has not left is due of it.
    """
    move(tx, former.id, InstanceState.SUPERSEDED, actor=actor)
    placing.rehome(tx, former.study, draft.attributes)
    study, series = placing.place(tx, draft)
    version = 1 + tx.number(
        "SELECT MAX(version) FROM instance WHERE sop_instance_uid = ?",
        draft.arrival.sop_instance_uid,
    )
    placed: dict[str, int | None] = {"series": series, "study": study, "association": None}
    placed["corrects"] = former.corrects or former.id
    number = InstanceId(_insert(tx, draft, Outcome.STORED, version, placed))
    placing.count(tx, study, series, 1, draft.byte_length, former.received_ms)
    placing.side(tx, series, draft.attributes)
    audit.record(
        tx,
        actor=actor,
        act="instance corrected",
        kind="instance",
        subject=number,
        detail=f"stands for {former.id}",
    )
    deliveries.pass_on(tx, former.id, number, StudyId(study), actor=actor)
    return number


def step_back(
    tx: Transaction, correction: Instance, as_received: Attributes, *, actor: str
) -> ObjectId:
    """Let the received version stand again for the UID of a correction, which is given up.

    `as_received` is what was sealed with it. Returns the object of the correction, to be removed
    once this is durable. Raises Conflict where it is no correction that stands.
    """
    if correction.corrects is None or correction.state is not InstanceState.STORED:
        raise Conflict("instance: no correction stands for it")
    move(tx, correction.id, InstanceState.SUPERSEDED, actor=actor)
    move(tx, correction.id, InstanceState.DISCARDED, actor=actor)
    received = move(tx, correction.corrects, InstanceState.STORED, actor=actor)
    if received.study == correction.study:
        placing.rehome(tx, received.study, as_received)
    placing.side(tx, received.series, as_received)
    deliveries.pass_on(tx, correction.id, received.id, received.study, actor=actor)
    compressions.consider(tx, received.id)
    return correction.object_id


def quarantine(db: Database, number: InstanceId) -> None:
    """Compared and found different: it waits for a person."""
    with db.write() as tx:
        old = move(tx, number, InstanceState.QUARANTINED, actor="upkeep")
        placing.flag_study(tx, old.study, "conflict")


def known_objects(db: Database) -> dict[ObjectId, tuple[InstanceId, InstanceState]]:
    """Every object a row names, those of tombstones included."""
    with db.read() as tx:
        rows = tx.rows("SELECT object_id, id, state FROM instance")
    return {
        ObjectId(object_id): (InstanceId(number), InstanceState(state))
        for object_id, number, state in rows
    }
