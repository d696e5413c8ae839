"""Corrections: what a study is to say by its order, from the asking to its undoing.

A person asks for one in the console; upkeep/ carries it out (`custody.amendment`), all of it in
one transaction. The received versions are kept as superseded, and undoing it lets them stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import (
    CORRECTION_TRANSITIONS,
    Attributes,
    CorrectionPolicy,
    CorrectionState,
    DeliveryState,
    EntryId,
    HoldReason,
    InstanceId,
    InstanceState,
    ObjectId,
    StudyId,
    StudyState,
    require_transition,
)
from edgepacs.store import (
    announcing,
    audit,
    deliveries,
    instances,
    placing,
    policies,
    reconciliation,
    rejections,
    studies,
    worklist,
)
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import STAT, Selection, Wanted
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
from edgepacs.store.policies import LEFT, Plan
from edgepacs.store.reconciliation import Sides, sides_of

_S = CorrectionState


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One correction; the comments of migration 0019 say what the fields mean."""

    id: int
    study: StudyId
    entry: EntryId
    state: CorrectionState = field(metadata={"make": CorrectionState})
    sides: Sides = field(metadata={"make": sides_of}, repr=False)
    actor: str
    instances: int
    result: StudyId | None
    words: str
    asked_ms: int
    changed_ms: int


_COLUMNS = ", ".join(Correction.__slots__)
_INSTANCE = ", ".join(f"instance.{name}" for name in Instance.__slots__)


def of_study(db: Database, study: StudyId) -> list[Correction]:
    """The corrections of a study, and those that led to it, the newest first."""
    sql = f"SELECT {_COLUMNS} FROM correction WHERE ? IN (study, result) ORDER BY id DESC"  # noqa: S608
    with db.read() as tx:
        return tx.records(Correction, sql, study)


def waiting(db: Database) -> list[Correction]:
    """Those that wait to be carried out, the oldest first."""
    sql = f"SELECT {_COLUMNS} FROM correction WHERE state = 'waiting' ORDER BY id"  # noqa: S608
    with db.read() as tx:
        return tx.records(Correction, sql)


def within(tx: Transaction, number: int) -> Correction:
    """One correction; raises NotFound."""
    sql = f"SELECT {_COLUMNS} FROM correction WHERE id = ?"  # noqa: S608  own names only
    return tx.record(Correction, f"correction: there is no correction {number}", sql, number)


def ask(tx: Transaction, study: StudyId, *, actor: str) -> int:
    """Ask for a study to say what its order says; the number of the correction.

    Raises Conflict where it has no order, differs in nothing, or is not whole here.
    """
    known = reconciliation.within(tx, study)
    if known is None or known.entry is None:
        raise Conflict("study: no order was found for it; link one first")
    if not known.flags:
        raise Conflict("study: it says what its order says")
    if tx.first("SELECT 1 FROM correction WHERE study = ? AND state = 'waiting'", study):
        raise Conflict("study: it is being corrected already")
    if tx.number("SELECT evicted_count FROM study WHERE id = ?", study):
        raise Conflict("study: a part of it is evicted, and cannot be written anew")
    now = wall_ms()
    number = tx.insert(
        "correction",
        {
            "study": study,
            "entry": known.entry,
            "state": _S.WAITING,
            "sides": reconciliation.sides_text(known.sides),
            "actor": actor,
            "asked_ms": now,
            "changed_ms": now,
        },
    )
    words = f"entry {known.entry}; {' '.join(known.flags)}"
    audit.record(
        tx, actor=actor, act="correction asked for", kind="study", subject=study, detail=words
    )
    return number


_DUE = (
    "FROM instance JOIN series ON series.id = instance.series WHERE series.study = ? "
    "AND state = 'stored' AND origin IN ('modality', 'import', 'local') "
    f"AND NOT {instances.OWN_NOTE}"
)


def due(tx: Transaction, study: StudyId) -> list[Instance]:
    """The instances of a study that were brought here and stand; in the order of arrival."""
    return tx.records(Instance, f"SELECT {_INSTANCE} {_DUE} ORDER BY instance.id", study)


def is_any_due(tx: Transaction, study: StudyId) -> bool:
    """Whether there is anything of a study that could be corrected."""
    return tx.first(f"SELECT 1 {_DUE} LIMIT 1", study) is not None


class Uids(NamedTuple):
    """Under which UIDs an instance stands."""

    study: str
    series: str
    instance: str


def uids(tx: Transaction, number: InstanceId) -> Uids:
    """The UIDs of one instance; raises NotFound."""
    sql = (
        "SELECT study_instance_uid, series_instance_uid, sop_instance_uid FROM instance "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "WHERE instance.id = ?"
    )
    row = tx.first(sql, number)
    if row is None:
        raise NotFound(f"instance: there is no instance {number}")
    return Uids(*row)


def moved_before(tx: Transaction, study: StudyId, entry: EntryId) -> dict[str, str]:
    """Under which UIDs study and series stand where others of it were corrected by this order.

    By the UIDs received; empty where none was, or all of it is still in `study`.
    """
    rows = tx.rows(
        "SELECT DISTINCT old_study.study_instance_uid, study.study_instance_uid, "
        "old_series.series_instance_uid, series.series_instance_uid "
        "FROM series AS old_series JOIN study AS old_study ON old_study.id = old_series.study "
        "JOIN instance AS received ON received.series = old_series.id "
        "AND received.state = 'superseded' "
        "JOIN instance ON instance.corrects = received.id AND instance.state = 'stored' "
        "JOIN series ON series.id = instance.series JOIN study ON study.id = series.study "
        "JOIN reconciliation ON reconciliation.study = study.id "
        "WHERE old_series.study = ?1 AND study.id != ?1 AND reconciliation.entry = ?2",
        *(study, entry),
    )
    found: dict[str, str] = {}
    for was_study, is_study, was_series, is_series in rows:
        found |= {was_study: is_study, was_series: is_series}
    return {was: now for was, now in found.items() if was != now}


def being_sent(tx: Transaction, study: StudyId) -> bool:
    """Whether something of a study is on the line at this moment, or was when a crash came."""
    sql = "SELECT 1 FROM delivery WHERE study = ? AND state = 'sending' LIMIT 1"
    return tx.first(sql, study) is not None


class Anew(NamedTuple):
    """An instance that stands, and what is to stand in its place; None for what was received."""

    former: Instance
    draft: Draft | None


class Note(NamedTuple):
    """A rejection note, sealed, for the destinations that have all it names."""

    draft: Draft
    destinations: tuple[int, ...]


class Overtaken(Conflict):
    """What was to be corrected has been sent further meanwhile: it is to be looked at anew."""


def finish(
    tx: Transaction,
    correction: Correction,
    made: Sequence[Anew],
    received: "AsReceived",
    plans: Sequence[Plan] = (),
    notes: Sequence[Note] = (),
) -> list[ObjectId]:
    """Let what was written anew stand, and begin what destinations get that had it before.

    Returns the objects to be removed after it. Raises Conflict where an instance has changed since
    it was read, Overtaken where it is at more destinations than `plans` know of.
    """
    if policies.within(tx, correction.study) != list(plans):
        raise Overtaken("study: more of it has left meanwhile")
    former = policies.former_id(tx, correction.study)
    gone = [_replace(tx, one, received, correction.actor) for one in made]
    result = correction.study
    for one in made[:1]:
        result = _standing(tx, one).study
    for note in notes:
        _add_note(tx, correction, note, moved=result != correction.study)
    for plan in plans:  # before rules are asked again what goes there
        _give(tx, correction, plan, made, former)
    _end(tx, correction, len(made), result)
    _hold_for_notes(tx, result, correction.actor)
    return [one for one in gone if one]


AsReceived = dict[InstanceId, Attributes]
"""What was sealed with received versions that may stand again."""


def _replace(tx: Transaction, one: Anew, received: AsReceived, actor: str) -> ObjectId | None:
    now = instances.within(tx, one.former.id)
    if now.state is not InstanceState.STORED:
        raise Conflict("instance: it has changed while it was written anew")
    if one.draft is None:
        assert now.corrects is not None
        return instances.step_back(tx, now, received[now.corrects], actor=actor)
    instances.stand_in(tx, one.draft, now, actor=actor)
    if now.corrects is None:
        return None
    instances.move(tx, now.id, InstanceState.DISCARDED, actor=actor)
    return now.object_id


def _standing(tx: Transaction, one: Anew) -> Instance:
    """What stands for an instance now."""
    uid = one.draft.arrival.sop_instance_uid if one.draft else one.former.sop_instance_uid
    sql = f"SELECT {_INSTANCE} FROM instance WHERE sop_instance_uid = ? AND state = 'stored'"  # noqa: S608
    return tx.record(Instance, "instance: nothing stands for it", sql, uid)


def _end(tx: Transaction, correction: Correction, count: int, result: StudyId) -> None:
    for older in tx.rows(
        "SELECT id FROM correction WHERE ? IN (study, result) AND state = 'done'", correction.study
    ):
        _shift(tx, older[0], _S.REVERTED, "another correction stands in its place")
    _shift(tx, correction.id, _S.DONE, "")
    tx.run(
        "UPDATE correction SET instances = ?, result = ? WHERE id = ?",
        *(count, result, correction.id),
    )
    words = f"{count} instances by entry {correction.entry}"
    _record(tx, correction.study, "study corrected", words, correction.actor)
    if result != correction.study:
        _record(tx, result, "study corrected", f"{words}, from study {correction.study}", "upkeep")
        _carry_state(tx, correction.study, result, correction.actor)
    reconciliation.corrected(tx, correction.study, result, correction.entry, correction.actor)


def _carry_state(tx: Transaction, former: StudyId, study: StudyId, actor: str) -> None:
    """What a person said of a study counts for what has become of it."""
    said = studies.within(tx, former).state
    if studies.within(tx, study).state is StudyState.RECEIVED and said is not StudyState.RECEIVED:
        studies.set_state(tx, study, said, actor=actor)


def _record(tx: Transaction, study: StudyId, act: str, words: str, actor: str) -> None:
    audit.record(tx, actor=actor, act=act, kind="study", subject=study, detail=words)


# --- what destinations get that had it before -------------------------------------------------

THERE = (
    "the version before the correction is there: have it corrected or deleted there, then release "
    "this"
)
TOLD = "it was told by HL7 ADT, and corrects its own copy"
REJECTED = "waits until the rejection note for the version before it has arrived there"
# A destination that never overwrites would answer success and keep what it has.
_AFTER: Mapping[CorrectionPolicy, tuple[DeliveryState, str, str]] = {
    CorrectionPolicy.HOLD: (DeliveryState.HELD, HoldReason.PERSON, THERE),
    CorrectionPolicy.ADT: (DeliveryState.SUPERSEDED, "", TOLD),
    CorrectionPolicy.REJECT: (DeliveryState.HELD, HoldReason.REJECTION, REJECTED),
}
_IN_ITS_PLACE = f"""
INSERT INTO delivery (kind, subject, study, destination, state, hold_reason, last_error, priority,
                      send_as, created_ms, changed_ms)
SELECT kind, ?2, (SELECT study FROM instance WHERE id = ?2), destination, ?4, ?5, ?6, priority,
       send_as, ?7, ?7
FROM delivery WHERE kind = 'instance' AND destination = ?3 AND state IN {LEFT}
  AND subject IN (SELECT version.id FROM instance JOIN instance AS version USING (sop_instance_uid)
                  WHERE instance.id = ?1)
ORDER BY id DESC LIMIT 1
ON CONFLICT DO NOTHING"""  # noqa: S608  own words


def _give(
    tx: Transaction,
    correction: Correction,
    plan: Plan,
    made: Sequence[Anew],
    former: tuple[str, str],
) -> None:
    """What one destination gets for what it has."""
    has = set(plan.instances)
    for one in made:
        if one.former.id in has:
            now = _standing(tx, one).id
            after = (plan.destination, *_AFTER[plan.policy], wall_ms())
            tx.run(_IN_ITS_PLACE, one.former.id, now, *after)
    if plan.trigger is not None:
        announcing.announce(
            tx,
            destination=plan.destination,
            study=correction.study,
            correction=correction.id,
            trigger=plan.trigger,
            patient=worklist.entry(tx, correction.entry).entry.patient,
            former_id=former if plan.trigger is announcing.Trigger.A40 else None,
            actor=correction.actor,
        )


def _add_note(tx: Transaction, correction: Correction, note: Note, *, moved: bool) -> None:
    """A rejection note stands, and goes where what it names has gone."""
    (receipt,) = instances.committed(tx, [note.draft])
    for destination in note.destinations:
        wanted = Wanted(destination=destination, priority=STAT)
        deliveries.add(tx, receipt.instance_id, receipt.study_id, wanted)
        values = {"correction": correction.id, "destination": destination}
        tx.insert("correction_note", {**values, "instance": receipt.instance_id})
    if moved:
        placing.flag_study(tx, receipt.study_id, rejections.FLAG)


def _hold_for_notes(tx: Transaction, study: StudyId, actor: str) -> None:
    """Nothing of a study goes before the notes that reject what was sent of it."""
    rows = tx.rows(
        "SELECT delivery.id FROM delivery WHERE delivery.study = ?1 AND delivery.state = 'queued' "
        "AND kind = 'instance' AND destination IN (SELECT destination FROM correction_note "
        "JOIN correction ON correction.id = correction WHERE open = 1 AND result = ?1) "
        "AND subject NOT IN (SELECT instance FROM correction_note)",
        study,
    )
    if rows:
        selection = Selection(study=study, among=tuple(row[0] for row in rows))
        deliveries.hold(tx, selection, actor=actor, reason=HoldReason.REJECTION)


def release_after_notes(db: Database) -> int:
    """Let go what waited for rejection notes that have arrived; how many notes that were."""
    with db.read() as tx:
        if tx.first(_ARRIVED) is None:
            return 0
    with db.write() as tx:
        arrived = tx.rows(_ARRIVED)
        for correction, destination, _ in arrived:
            _close_note(tx, correction, destination)
        for _, destination, result in arrived:
            if tx.first(_STILL_OPEN, result, destination) is None:
                selection = Selection(study=result, destination=destination)
                reasons = [HoldReason.REJECTION]
                deliveries.release(tx, selection, actor="upkeep", reasons=reasons)
    return len(arrived)


_STILL_OPEN = """
SELECT 1 FROM correction_note JOIN correction ON correction.id = correction
WHERE open = 1 AND result = ? AND correction_note.destination = ?"""


_ARRIVED = """
SELECT correction, correction_note.destination, result FROM correction_note
JOIN correction ON correction.id = correction
JOIN delivery ON delivery.kind = 'instance' AND delivery.subject = correction_note.instance
  AND delivery.destination = correction_note.destination
WHERE open = 1
  AND delivery.state IN ('sent', 'awaiting_commitment', 'committed', 'confirmed_by_query')"""


def _close_note(tx: Transaction, correction: int, destination: int) -> None:
    sql = "UPDATE correction_note SET open = 0 WHERE correction = ? AND destination = ?"
    tx.run(sql, correction, destination)


# --- when nothing comes of it -----------------------------------------------------------------


def fail(tx: Transaction, correction: Correction, words: str) -> None:
    """Nothing has come of it; `words` say why, and hold nothing of a patient.

    Where another process has carried it out meanwhile, that counts.
    """
    if within(tx, correction.id).state is not _S.WAITING:
        return
    _shift(tx, correction.id, _S.FAILED, words)
    _record(tx, correction.study, "correction failed", words, "upkeep")


def _shift(tx: Transaction, number: int, new: CorrectionState, words: str) -> None:
    """The only change of a correction's state; raises NotFound, Conflict."""
    row = tx.first("SELECT state FROM correction WHERE id = ?", number)
    if row is None:
        raise NotFound(f"correction: there is no correction {number}")
    require_transition(CORRECTION_TRANSITIONS, CorrectionState(row[0]), new)
    sql = "UPDATE correction SET state = ?, words = ?, changed_ms = ? WHERE id = ?"
    tx.run(sql, new, words, wall_ms(), number)


# --- undoing it --------------------------------------------------------------------------------


def corrected_in(tx: Transaction, study: StudyId) -> list[Instance]:
    """The instances of a study that stand for a received version."""
    return [one for one in due(tx, study) if one.corrects is not None]


def revert(
    tx: Transaction, correction: Correction, received: AsReceived, *, actor: str
) -> list[ObjectId]:
    """Let what was received stand again; the objects to be removed once this is durable.

    Raises Conflict where that has been done, or something corrected has left by now.
    """
    now = within(tx, correction.id)
    if now.state is not _S.DONE or now.result is None:
        raise Conflict("correction: there is nothing to go back from")
    standing = corrected_in(tx, now.result)
    notes = _notes(tx, now.result)
    if any(_has_left(tx, one.id) for one in standing + notes):
        raise Conflict("correction: what it made has been sent; correct it anew instead")
    if not announcing.revoke(tx, now.id, actor=actor):
        raise Conflict("correction: a destination was told of it by ADT; correct it anew instead")
    gone = [_give_up(tx, one, actor) for one in notes]
    gone += [
        instances.step_back(tx, one, received[one.corrects], actor=actor)
        for one in standing
        if one.corrects is not None
    ]
    _shift(tx, now.id, _S.REVERTED, f"undone by {actor}")
    _record(tx, now.study, "correction undone", f"{len(gone)} instances", actor)
    placing.unflag_study(tx, now.study, rejections.FLAG)
    for study in {now.study, now.result}:
        reconciliation.consider(tx, study)
    return gone


def _notes(tx: Transaction, study: StudyId) -> list[Instance]:
    """The rejection notes of what stands in a study now."""
    sql = (
        f"SELECT DISTINCT {_INSTANCE} FROM correction_note JOIN instance "  # noqa: S608
        "ON instance.id = correction_note.instance AND instance.state = 'stored' "
        "JOIN correction ON correction.id = correction WHERE result = ?"
    )
    return tx.records(Instance, sql, study)


def _give_up(tx: Transaction, note: Instance, actor: str) -> ObjectId:
    """A rejection note that has not left is not sent; the object to be removed."""
    deliveries.supersede(tx, note.id, actor=actor)
    tx.run("UPDATE correction_note SET open = 0 WHERE instance = ?", note.id)
    instances.move(tx, note.id, InstanceState.SUPERSEDED, actor=actor)
    instances.move(tx, note.id, InstanceState.DISCARDED, actor=actor)
    return note.object_id


def _has_left(tx: Transaction, number: InstanceId) -> bool:
    sql = f"SELECT 1 FROM delivery WHERE kind = 'instance' AND subject = ? AND state IN {LEFT}"  # noqa: S608
    return tx.first(sql, number) is not None
