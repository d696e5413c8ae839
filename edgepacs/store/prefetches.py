"""Prefetches: whose priors are to be fetched from which destination, and how far that has come.

A task is one patient at one destination, for one reason. It names the patient and nothing else:
which studies there are is asked when its turn comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import (
    PREFETCH_TRANSITIONS,
    AETitle,
    PrefetchReason,
    PrefetchState,
    StudyId,
    require_transition,
)
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction

OPEN_MOST = 500  # tasks of one destination that wait; more than a day's patients
OVER_KEPT = 2000  # tasks of one destination that are over
TRIES_MOST = 6  # attempts that may fail for reasons that pass
RETRY_FIRST_MS = 60_000
RETRY_MOST_MS = 3_600_000
CROWDED = "more patients than can wait: given up for newer ones"
_LOOK_AT_ONCE = 200  # new studies
_FAR_MS = 2 * RETRY_MOST_MS  # nothing waits longer; else the clock has been set back
_UNASKABLE = frozenset("*?\\")  # PS3.4 C.2.2.2.4, PS3.5 6.2: these would match other patients
_OPEN = (PrefetchState.ASKING, PrefetchState.FETCHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """One task; the comments of migration 0013 say what the fields mean."""

    id: int
    destination: int
    destination_name: str
    reason: PrefetchReason = field(metadata={"make": PrefetchReason})
    subject: int
    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    state: PrefetchState = field(metadata={"make": PrefetchState})
    attempts: int
    next_ms: int
    studies: int
    instances: int
    byte_size: int
    words: str
    created_ms: int
    changed_ms: int


_TASK = (
    "SELECT prefetch.id, destination, destination.name AS destination_name, reason, subject, "
    "patient_id, issuer, state, attempts, next_ms, studies, instances, byte_size, words, "
    "prefetch.created_ms, changed_ms "
    "FROM prefetch JOIN destination ON destination.id = prefetch.destination "
)


# --- what is wanted ----------------------------------------------------------------------------


def wanted(
    tx: Transaction, patient_id: str, issuer: str, *, reason: PrefetchReason, subject: int
) -> int:
    """Somebody will want the priors of a patient; how many tasks that made.

    One for every destination priors are fetched from, and none twice for the same `subject`, the
    row number of what named the patient. Where too many wait, the oldest is dropped. None is
    made for a patient without an ID, or whose ID would match others in a query.
    """
    if not patient_id or not _UNASKABLE.isdisjoint(patient_id) or not patient_id.isascii():
        return 0
    made = 0
    for (destination,) in tx.rows("SELECT id FROM destination WHERE priors != 'none'"):
        made += _add(tx, destination, patient_id, issuer, reason, subject)
    return made


def _add(
    tx: Transaction,
    destination: int,
    patient_id: str,
    issuer: str,
    reason: PrefetchReason,
    subject: int,
) -> int:
    now = wall_ms()
    added = tx.run(
        "INSERT INTO prefetch (destination, reason, subject, patient_id, issuer, state, "
        "created_ms, changed_ms) VALUES (?, ?, ?, ?, ?, 'waiting', ?, ?) ON CONFLICT DO NOTHING",
        *(destination, reason, subject, patient_id, issuer, now, now),
    )
    if added:
        _keep_bounds(tx, destination, now)
    return added


def _keep_bounds(tx: Transaction, destination: int, now: int) -> None:
    """Only so many wait, the newest, and only so many that are over are remembered."""
    waiting = "FROM prefetch WHERE destination = ?1 AND state = 'waiting'"
    tx.run(
        f"UPDATE prefetch SET state = 'failed', words = ?3, changed_ms = ?4 WHERE id IN "  # noqa: S608
        f"(SELECT id {waiting} ORDER BY id DESC LIMIT -1 OFFSET ?2)",
        *(destination, OPEN_MOST, CROWDED, now),
    )
    over = "FROM prefetch WHERE destination = ?1 AND state IN ('done', 'failed', 'cancelled')"
    tx.run(
        f"DELETE FROM prefetch WHERE id IN (SELECT id {over} ORDER BY id DESC LIMIT -1 OFFSET ?2)",  # noqa: S608
        destination,
        OVER_KEPT,
    )


def look(db: Database) -> int:
    """Make tasks for the studies nobody has looked at yet; how many studies that were.

    Only a study that a modality or a person brought is somebody's next patient: what was fetched
    would fetch ever more. Nothing is written while there is nothing new, or nobody to ask.
    """
    with db.read() as tx:
        giving = tx.number("SELECT EXISTS (SELECT 1 FROM destination WHERE priors != 'none')")
        if not giving or not _unseen(tx):
            return 0
    with db.write() as tx:
        found = _unseen(tx)
        for study, patient_id, issuer, origin in found:
            if origin != "prefetch":
                wanted(tx, patient_id, issuer, reason=PrefetchReason.STUDY, subject=study)
        if found:
            tx.run("UPDATE prefetch_mark SET considered = ?", found[-1][0])
    return len(found)


def _unseen(tx: Transaction) -> Sequence[tuple[int, str, str, str]]:
    """Studies not looked at: number, Patient ID, issuer and the origin of the first instance."""
    return tx.rows(
        "SELECT study.id, patient_id, issuer, (SELECT origin FROM instance "
        "JOIN series ON series.id = instance.series WHERE series.study = study.id "
        "ORDER BY instance.id LIMIT 1) FROM study "
        "WHERE study.id > (SELECT considered FROM prefetch_mark) ORDER BY study.id LIMIT ?",
        _LOOK_AT_ONCE,
    )


def ask(db: Database, study: StudyId, *, actor: str) -> int:
    """Fetch the priors of a study's patient now, as a person asks; how many destinations that is.

    What was over begins anew. Raises NotFound, InvalidValue where the patient has no ID to ask
    for, and Conflict where no destination has priors to give.
    """
    with db.write() as tx:
        row = tx.first("SELECT patient_id, issuer FROM study WHERE id = ?", study)
        if row is None:
            raise NotFound(f"study: there is no study {study}")
        if not tx.number("SELECT COUNT(*) FROM destination WHERE priors != 'none'"):
            raise Conflict("priors: no destination is set to give any (setting priors)")
        tx.run(
            "DELETE FROM prefetch WHERE reason = 'person' AND subject = ? "
            "AND state IN ('waiting', 'done', 'failed', 'cancelled')",
            study,
        )
        made = wanted(tx, *row, reason=PrefetchReason.PERSON, subject=study)
        if not made and not _under_way(tx, study):
            raise InvalidValue("Patient ID", "absent, or not one that can be asked for exactly")
        audit.record(tx, actor=actor, act="priors asked for", kind="study", subject=study)
    return made


def _under_way(tx: Transaction, study: StudyId) -> bool:
    sql = "SELECT COUNT(*) FROM prefetch WHERE reason = 'person' AND subject = ?"
    return tx.number(sql, study) > 0


def cancel(db: Database, number: int, *, actor: str) -> None:
    """A person says these priors shall not be fetched; raises NotFound, Conflict."""
    with db.write() as tx:
        _shift(tx, number, PrefetchState.CANCELLED, "cancelled by a person")
        audit.record(tx, actor=actor, act="prefetch cancelled", kind="prefetch", subject=number)


def listed(db: Database, state: PrefetchState | None = None, most: int = 200) -> list[Prefetch]:
    """Tasks, the newest first."""
    sql = _TASK + "WHERE ?1 IS NULL OR state = ?1 ORDER BY prefetch.id DESC LIMIT ?2"
    with db.read() as tx:
        return tx.records(Prefetch, sql, state, most)


def numbered(db: Database, number: int) -> Prefetch:
    """One task; raises NotFound."""
    with db.read() as tx:
        return _task(tx, number)


def _task(tx: Transaction, number: int) -> Prefetch:
    missing = f"prefetch: there is no task {number}"
    return tx.record(Prefetch, missing, _TASK + "WHERE prefetch.id = ?", number)


# --- what comes of them ------------------------------------------------------------------------


def due(db: Database, destination: int) -> int | None:
    """The task whose turn it is at a destination: a person's first, then the newest patient's.

    None where none is due, or one is under way.
    """
    now = wall_ms()
    with db.read() as tx:
        row = tx.first(
            "SELECT id FROM prefetch WHERE destination = ?1 AND state = 'waiting' "
            "AND next_ms NOT BETWEEN ?2 + 1 AND ?2 + ?3 "
            "AND NOT EXISTS (SELECT 1 FROM prefetch WHERE destination = ?1 "
            "AND state IN ('asking', 'fetching')) "
            "ORDER BY reason = 'person' DESC, id DESC LIMIT 1",
            *(destination, now, _FAR_MS),
        )
    return None if row is None else int(row[0])


def begin(db: Database, number: int) -> Prefetch:
    """Take a task on; its attempt is recorded before anything is asked. Raises Conflict."""
    with db.write() as tx:
        _shift(tx, number, PrefetchState.ASKING, "")
        tx.run("UPDATE prefetch SET attempts = attempts + 1 WHERE id = ?", number)
        return _task(tx, number)


def fetching(db: Database, number: int, *, uid: str = "", message_id: int = 0) -> None:
    """Studies were found; `uid` and `message_id` name the one a C-MOVE begins to bring.

    Raises Conflict where a person has cancelled it meanwhile.
    """
    with db.write() as tx:
        if _state(tx, number) is not PrefetchState.FETCHING:
            _shift(tx, number, PrefetchState.FETCHING, "")
        tx.run(
            "UPDATE prefetch SET moving_uid = ?, moving_id = ? WHERE id = ?",
            *(uid, message_id, number),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What one attempt has brought: whole studies, instances and bytes."""

    studies: int = 0
    instances: int = 0
    byte_size: int = 0


def end(
    db: Database,
    number: int,
    state: PrefetchState,
    words: str,
    brought: Brought,
    *,
    at_once: bool = False,
) -> None:
    """Record how an attempt ended. Back in `waiting` it is tried later, or `at_once`.

    After too many attempts it has failed; what was interrupted `at_once` does not count as one.
    A task that a person has cancelled meanwhile, or whose destination is gone, is left alone.
    """
    now = wall_ms()
    with db.write() as tx:
        row = tx.first("SELECT attempts, state FROM prefetch WHERE id = ?", number)
        if row is None:
            return
        tx.run(
            "UPDATE prefetch SET studies = studies + ?, instances = instances + ?, "
            "byte_size = byte_size + ? WHERE id = ?",
            *(brought.studies, brought.instances, brought.byte_size, number),
        )
        if PrefetchState(row[1]).over:
            return
        attempts = int(row[0])
        if state is PrefetchState.WAITING and not at_once and attempts >= TRIES_MOST:
            state = PrefetchState.FAILED
        pause = 0 if at_once else _pause(attempts)
        _shift(tx, number, state, words)
        tx.run(
            "UPDATE prefetch SET next_ms = ?, attempts = attempts - ? WHERE id = ?",
            *(now + pause if pause else 0, int(at_once), number),
        )


def _pause(attempts: int) -> int:
    """Milliseconds until the next attempt after so many."""
    return min(RETRY_FIRST_MS << min(max(attempts - 1, 0), 10), RETRY_MOST_MS)


def recover(db: Database) -> int:
    """What a crash left under way waits again, or has failed after too many; how many."""
    with db.read() as tx:
        left = tx.rows("SELECT id FROM prefetch WHERE state IN ('asking', 'fetching')")
    for (number,) in left:
        end(db, number, PrefetchState.WAITING, "broken off in a crash", Brought())
    return len(left)


def stopped(db: Database, number: int) -> bool:
    """Whether a person has cancelled a task that is under way, or its destination is gone."""
    with db.read() as tx:
        row = tx.first("SELECT state FROM prefetch WHERE id = ?", number)
    return row is None or PrefetchState(row[0]) not in _OPEN


def _state(tx: Transaction, number: int) -> PrefetchState:
    row = tx.first("SELECT state FROM prefetch WHERE id = ?", number)
    if row is None:
        raise NotFound(f"prefetch: there is no task {number}")
    return PrefetchState(row[0])


def _shift(tx: Transaction, number: int, new: PrefetchState, words: str) -> None:
    """The only change of a task's state; raises NotFound, Conflict."""
    require_transition(PREFETCH_TRANSITIONS, _state(tx, number), new)
    tx.run(
        "UPDATE prefetch SET state = ?, words = ?, changed_ms = ?, moving_uid = '', moving_id = 0 "
        "WHERE id = ?",
        *(new, words, wall_ms(), number),
    )


# --- what is here already, and what comes by C-MOVE --------------------------------------------


def here(db: Database, task: Prefetch, studies: Sequence[str]) -> set[str]:
    """Which of these studies, by Study Instance UID, need not be fetched.

    Those that are here, unless fetching them was begun and broke off, and the one that named the
    patient.
    """
    marks = ", ".join("?" * len(studies))
    own = task.reason in (PrefetchReason.STUDY, PrefetchReason.PERSON)
    with db.read() as tx:
        rows = tx.rows(
            "SELECT DISTINCT study_instance_uid FROM study "  # noqa: S608  marks alone
            f"WHERE study_instance_uid IN ({marks}) AND (id = ? OR instance_count > 0 "
            "AND study_instance_uid NOT IN (SELECT study_instance_uid FROM prefetch_begun))",
            *studies,
            task.subject if own else 0,
        )
    return {str(row[0]) for row in rows}


def begin_study(db: Database, uid: str) -> bool:
    """Instances of a study will be fetched; whether some may be here from an earlier time."""
    with db.write() as tx:
        new = tx.run(
            "INSERT INTO prefetch_begun VALUES (?, ?) ON CONFLICT DO NOTHING", uid, wall_ms()
        )
        return not new or bool(
            tx.number(
                "SELECT COUNT(*) FROM study WHERE study_instance_uid = ? AND instance_count > 0",
                uid,
            )
        )


def end_study(db: Database, uid: str) -> None:
    """All of a study that its destination gives is here."""
    with db.write() as tx:
        tx.run("DELETE FROM prefetch_begun WHERE study_instance_uid = ?", uid)


def instances_here(db: Database, uid: str) -> set[str]:
    """The SOP Instance UIDs of a study of which a version stands here, or waits to be compared."""
    with db.read() as tx:
        rows = tx.rows(
            "SELECT sop_instance_uid FROM study JOIN series ON series.study = study.id "
            "JOIN instance ON instance.series = series.id WHERE study_instance_uid = ? "
            "AND instance.state IN ('stored', 'comparing', 'quarantined')",
            uid,
        )
    return {str(row[0]) for row in rows}


@dataclass(frozen=True, slots=True)
class Moving:
    """A C-MOVE under way: the study it brings, and the name of the destination it was asked of."""

    study_instance_uid: str
    destination_name: str


def moving(db: Database, caller: AETitle, message_id: int = 0) -> Moving | None:
    """The C-MOVE of ours that a sub-operation of `caller` belongs to (PS3.7 9.1.1.1), or None.

    Some destinations leave the Message ID out; without it, the one under way is meant.
    """
    with db.read() as tx:
        row = tx.first(
            "SELECT moving_uid, destination.name FROM prefetch "
            "JOIN destination ON destination.id = prefetch.destination "
            "WHERE prefetch.state = 'fetching' AND moving_uid != '' AND destination.ae_title = ?1 "
            "AND ?2 IN (0, moving_id) LIMIT 1",
            *(caller, message_id),
        )
    return None if row is None else Moving(str(row[0]), str(row[1]))


def arrived(db: Database, study_instance_uid: str) -> tuple[int, int]:
    """Instances and bytes of a study here that were fetched: what a C-MOVE has brought so far."""
    with db.read() as tx:
        row = tx.first(
            "SELECT COUNT(*), SUM(byte_length) FROM instance JOIN series "
            "ON series.id = instance.series JOIN study ON study.id = series.study "
            "WHERE study_instance_uid = ? AND origin = 'prefetch' AND instance.state = 'stored'",
            study_instance_uid,
        )
    return (int(row[0]), int(row[1] or 0)) if row else (0, 0)
