"""Corrections: what a study is to say by its order, from the asking to its undoing.

A person asks for one in the console; upkeep/ carries it out (`custody.amendment`), all of it in
one transaction. The received versions are kept as superseded, and undoing it lets them stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import (
    CORRECTION_TRANSITIONS,
    Attributes,
    CorrectionState,
    EntryId,
    InstanceId,
    InstanceState,
    ObjectId,
    StudyId,
    require_transition,
)
from edgepacs.store import audit, instances, reconciliation
from edgepacs.store.db import Database, Transaction
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
from edgepacs.store.reconciliation import Sides, sides_of

LEFT = "('sending', 'sent', 'awaiting_commitment', 'committed', 'confirmed_by_query')"
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


def due(tx: Transaction, study: StudyId) -> list[Instance]:
    """The instances of a study that were brought here and stand; in the order of arrival."""
    sql = (
        f"SELECT {_INSTANCE} FROM instance JOIN series ON series.id = instance.series "  # noqa: S608
        "WHERE series.study = ? AND state = 'stored' AND origin IN ('modality', 'import', 'local') "
        "ORDER BY instance.id"
    )
    return tx.records(Instance, sql, study)


def being_sent(tx: Transaction, study: StudyId) -> bool:
    """Whether something of a study is on the line at this moment, or was when a crash came."""
    sql = "SELECT 1 FROM delivery WHERE study = ? AND state = 'sending' LIMIT 1"
    return tx.first(sql, study) is not None


class Anew(NamedTuple):
    """An instance that stands, and what is to stand in its place; None for what was received."""

    former: Instance
    draft: Draft | None


def finish(
    tx: Transaction, correction: Correction, made: Sequence[Anew], received: "AsReceived"
) -> list[ObjectId]:
    """Let what was written anew stand under the same UIDs; the objects to be removed after it.

    Raises Conflict where an instance has changed since it was read.
    """
    gone = [_replace(tx, one, received, correction.actor) for one in made]
    result = correction.study
    for one in made[:1]:
        result = _standing(tx, one.former).study
    _end(tx, correction, len(made), result)
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
    number = instances.stand_in(tx, one.draft, now, actor=actor)
    tx.run(_HOLD_WHERE_IT_IS, now.id, number, THERE, wall_ms())
    if now.corrects is None:
        return None
    instances.move(tx, now.id, InstanceState.DISCARDED, actor=actor)
    return now.object_id


def _standing(tx: Transaction, former: Instance) -> Instance:
    """What stands for the UID of an instance now."""
    sql = (
        f"SELECT {_INSTANCE} FROM instance "  # noqa: S608  own names only
        "WHERE sop_instance_uid = ? AND state = 'stored'"
    )
    return tx.record(Instance, "instance: nothing stands for it", sql, former.sop_instance_uid)


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
    reconciliation.corrected(tx, correction.study, result, correction.entry, correction.actor)


def _record(tx: Transaction, study: StudyId, act: str, words: str, actor: str) -> None:
    audit.record(tx, actor=actor, act=act, kind="study", subject=study, detail=words)


THERE = (
    "the version before the correction is there under the same UID: have it corrected or deleted "
    "there, then release this"
)
# A destination that never overwrites would answer success and keep what it has.
_HOLD_WHERE_IT_IS = f"""
INSERT INTO delivery (kind, subject, study, destination, state, hold_reason, last_error, priority,
                      send_as, created_ms, changed_ms)
SELECT kind, ?2, (SELECT study FROM instance WHERE id = ?2), destination, 'held', 'person', ?3,
       priority, send_as, ?4, ?4
FROM delivery WHERE kind = 'instance' AND subject = ?1 AND state IN {LEFT} ORDER BY id
ON CONFLICT DO NOTHING"""  # noqa: S608  own words


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
    if any(_has_left(tx, one) for one in standing):
        raise Conflict("correction: what it made has been sent; correct it anew instead")
    gone = [
        instances.step_back(tx, one, received[one.corrects], actor=actor)
        for one in standing
        if one.corrects is not None
    ]
    _shift(tx, now.id, _S.REVERTED, f"undone by {actor}")
    _record(tx, now.study, "correction undone", f"{len(gone)} instances", actor)
    for study in {now.study, now.result}:
        reconciliation.consider(tx, study)
    return gone


def _has_left(tx: Transaction, one: Instance) -> bool:
    sql = f"SELECT 1 FROM delivery WHERE kind = 'instance' AND subject = ? AND state IN {LEFT}"  # noqa: S608
    return tx.first(sql, one.id) is not None
