"""Rejections: instances that a rejection note names (IHE RAD-66), and what is done with them.

Nothing of them is deleted. What has not left is not sent, and most are offered no more by query
and retrieve (triggers of migration 0022 see to that, whichever came first). A person can send them
all the same, and say that a note does not count.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import UID, DeliveryState, InstanceId, Outcome, Receipt, State, StudyId
from edgepacs.store import audit, deliveries, placing
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import Selection
from edgepacs.store.instances import Instance

FLAG = "rejection-note"  # of a study with instances that are rejected
WORDS = "a rejection note names it"
_AT_ONCE = 1000  # UIDs in one transaction
_OPEN = (DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED)
_INSTANCE = ", ".join(f"instance.{name}" for name in Instance.__slots__)


class Title(State):
    """Why instances are rejected: the title of the note, by its code of DCM (PS3.16 CID 7010)."""

    QUALITY = "113001", "Rejected for Quality Reasons"
    SAFETY = "113037", "Rejected for Patient Safety Reasons"
    WORKLIST = "113038", "Incorrect Modality Worklist Entry"
    RETENTION = "113039", "Data Retention Policy Expired"

    @property
    def hides(self) -> bool:
        """Whether what it names is no longer offered; what is of poor quality may still serve."""
        return self is not Title.QUALITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """What one note says of one study: how many of its instances that stand it names."""

    note: InstanceId
    title: Title = field(metadata={"make": Title})
    instances: int
    source: str  # where the note came from
    read_ms: int

    @property
    def words(self) -> str:
        """The same in one sentence."""
        what = "1 instance is" if self.instances == 1 else f"{self.instances} instances are"
        offered = ", nor found or retrieved by others" if self.title.hides else ""
        said = f"{what} rejected by note {self.note} ({self.title.meaning})"
        return f"{said}: not sent from here by rules any more{offered}"


def unread(db: Database) -> list[Instance]:
    """Notes of modalities and people that wait to be read, the oldest first; some of them."""
    sql = (
        f"SELECT {_INSTANCE} FROM rejection_note JOIN instance "  # noqa: S608  own names only
        "ON instance.id = rejection_note.instance WHERE read_ms IS NULL "
        "AND state = 'stored' AND origin IN ('modality', 'import') ORDER BY instance.id LIMIT 50"
    )
    with db.read() as tx:
        return tx.records(Instance, sql)


def passed_over(db: Database, note: InstanceId, words: str = "") -> None:
    """A Key Object Selection Document rejects nothing; `words` say why it could not be read."""
    with db.write() as tx:
        _has_read(tx, note, "", 0, words)


def _has_read(tx: Transaction, note: InstanceId, title: str, named: int, words: str) -> None:
    tx.run(
        "UPDATE rejection_note SET title = ?, named = ?, words = ?, read_ms = ? WHERE instance = ?",
        *(title, named, words, wall_ms(), note),
    )


def reject(db: Database, note: Instance, title: Title, named: Sequence[UID]) -> None:
    """Do what a note says of the instances it names, here or yet to come; then it is read.

    In portions: one that a crash breaks off is read once more, and what was done stays done.
    """
    for start in range(0, len(named), _AT_ONCE):
        with db.write() as tx:
            _reject_some(tx, note, title, named[start : start + _AT_ONCE])
    with db.write() as tx:
        _has_read(tx, note.id, title, len(named), "")


def _reject_some(tx: Transaction, note: Instance, title: Title, named: Sequence[UID]) -> None:
    """Of what has been rejected under this title before, people may have thought otherwise."""
    fresh = tx.rows(
        "SELECT value FROM JSON_EACH(?1) WHERE NOT EXISTS "
        "(SELECT 1 FROM rejected WHERE sop_instance_uid = value AND title = ?2)",
        *(json.dumps(named), title),
    )
    uids = json.dumps([row[0] for row in fresh])
    tx.run(
        "INSERT INTO rejected SELECT value, ?2, ?3 FROM JSON_EACH(?1) WHERE true "
        "ON CONFLICT DO NOTHING",
        *(json.dumps(named), note.id, title),
    )
    here = tx.rows(
        "SELECT instance.id, study, source FROM JSON_EACH(?1) CROSS JOIN instance "
        "ON sop_instance_uid = value WHERE state = 'stored' AND instance.id != ?2 ORDER BY 1",
        *(uids, note.id),
    )
    _apply(tx, _Why(note.id, title, note.source), [_Here(*row) for row in here])


def arrived(tx: Transaction, receipts: Iterable[Receipt]) -> None:
    """The same for instances just committed that a note has named before they came.

    In their transaction, after their deliveries were made.
    """
    if not tx.first("SELECT 1 FROM rejected LIMIT 1"):
        return
    numbers = [one.instance_id for one in receipts if one.outcome is Outcome.STORED]
    found: dict[_Why, list[_Here]] = {}
    for *here, note, title, source in tx.rows(_NAMED_BEFORE, json.dumps(numbers)):
        found.setdefault(_Why(note, Title(title), source), []).append(_Here(*here))
    for why, those in found.items():
        _apply(tx, why, those)


_NAMED_BEFORE = """
SELECT one.id, one.study, one.source, note.id, rejected.title, note.source
FROM JSON_EACH(?) CROSS JOIN instance AS one ON one.id = value
CROSS JOIN rejected ON rejected.sop_instance_uid = one.sop_instance_uid
CROSS JOIN instance AS note ON note.id = rejected.note
WHERE one.state = 'stored' AND note.id != one.id ORDER BY one.id"""


class _Why(NamedTuple):
    """A note, its title and where it came from."""

    note: InstanceId
    title: Title
    source: str


class _Here(NamedTuple):
    """An instance that stands, and where it came from."""

    id: InstanceId
    study: StudyId
    source: str


def _apply(tx: Transaction, why: _Why, here: Sequence[_Here]) -> None:
    """Mark studies and keep back what has not left. A note counts whoever sends it."""
    for study in dict.fromkeys(one.study for one in here):
        mine = [one for one in here if one.study == study]
        placing.flag_study(tx, study, FLAG)
        words = f"{len(mine)} instances, {why.title.meaning}, by instance {why.note}"
        if any(one.source != why.source for one in mine):
            words += ", which did not come from where they did"
        _record(tx, study, "instances rejected", words, why.source)
    subjects = json.dumps([one.id for one in here])
    _keep_back(tx, [row[0] for row in tx.rows(_STILL_OPEN, subjects)])
    tx.run(_WATCH, subjects)


_OF_SUBJECTS = (
    "FROM JSON_EACH(?) CROSS JOIN delivery ON delivery.kind = 'instance' "
    "AND delivery.subject = value WHERE delivery.state"
)
_STILL_OPEN = f"SELECT delivery.id {_OF_SUBJECTS} IN ('queued', 'held', 'failed')"
_WATCH = f"INSERT OR IGNORE INTO rejected_under_way SELECT delivery.id {_OF_SUBJECTS} = 'sending'"


def _keep_back(tx: Transaction, numbers: Sequence[int]) -> None:
    if numbers:
        extra = {"last_error": WORDS, "hold_reason": ""}
        selection = Selection(among=tuple(numbers))
        cancelled = DeliveryState.CANCELLED
        deliveries.shift(tx, selection, _OPEN, cancelled, actor="upkeep", extra=extra)


def _record(tx: Transaction, study: StudyId, act: str, words: str, actor: str) -> None:
    audit.record(tx, actor=actor, act=act, kind="study", subject=study, detail=words)


def settle(db: Database) -> None:
    """Keep back what was on the line when it was rejected, and has come back from there."""
    sql = (
        "SELECT delivery.id, state FROM rejected_under_way JOIN delivery "
        "ON delivery.id = rejected_under_way.delivery WHERE state != 'sending'"
    )
    with db.read() as tx:
        if not tx.rows(sql):
            return
    with db.write() as tx:
        rows = tx.rows(sql)
        _keep_back(tx, [number for number, state in rows if state in _OPEN])
        ended = json.dumps([row[0] for row in rows])
        tx.run(
            "DELETE FROM rejected_under_way WHERE delivery IN (SELECT value FROM JSON_EACH(?))",
            ended,
        )


# --- for people --------------------------------------------------------------------------------

_IN_STUDY = """
FROM series CROSS JOIN instance AS one ON one.series = series.id
CROSS JOIN rejected ON rejected.sop_instance_uid = one.sop_instance_uid
CROSS JOIN instance AS note ON note.id = rejected.note
CROSS JOIN rejection_note ON rejection_note.instance = note.id
WHERE series.study = ? AND one.state = 'stored'"""


def of_study(db: Database, study: StudyId) -> list[Rejection]:
    """What notes say of the instances of a study that stand."""
    sql = (
        "SELECT note.id AS note, rejected.title, COUNT(*) AS instances, note.source, read_ms "
        f"{_IN_STUDY} GROUP BY note.id ORDER BY note.id"
    )
    with db.read() as tx:
        return tx.records(Rejection, sql, study)


def withdraw(tx: Transaction, note: InstanceId, *, actor: str) -> int:
    """Say that a note does not count: what it names is offered again; how many instances.

    Deliveries it has cancelled stay so until a person queues them. Raises NotFound where it is no
    rejection note, Conflict where it does not count any more.
    """
    row = tx.first("SELECT title FROM rejection_note WHERE instance = ?", note)
    if row is None or not row[0]:
        raise NotFound(f"rejection note: instance {note} is none")
    concerned = tx.rows(
        "SELECT DISTINCT study FROM rejected JOIN instance USING (sop_instance_uid) "
        "WHERE note = ? AND state = 'stored'",
        note,
    )
    removed = tx.run("DELETE FROM rejected WHERE note = ?", note)
    if not removed:
        raise Conflict(f"rejection note: instance {note} does not count any more")
    tx.run("UPDATE rejection_note SET words = ? WHERE instance = ?", f"withdrawn by {actor}", note)
    for (study,) in concerned:
        _record(tx, study, "rejection withdrawn", f"note: instance {note}", actor)
        if not tx.first(f"SELECT 1 {_IN_STUDY} LIMIT 1", study):
            placing.unflag_study(tx, study, FLAG)
    return removed
