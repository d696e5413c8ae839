"""Studies: what lists show of them, and what a technologist does with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.model import (
    STUDY_TRANSITIONS,
    UID,
    HoldReason,
    SeriesId,
    StudyId,
    StudyState,
    require_transition,
)
from edgepacs.store import audit, deliveries, routing
from edgepacs.store.db import Database, Transaction
from edgepacs.store.placing import folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One row of `study`."""

    id: StudyId
    study_instance_uid: UID
    patient: int
    state: StudyState = field(metadata={"make": StudyState})
    state_by: str
    state_ms: int
    patient_name: str
    patient_id: str
    issuer: str
    birth_date: str
    sex: str
    study_date: str
    study_time: str
    study_id: str
    accession_number: str
    description: str
    referring_physician: str
    institution: str
    modalities: str
    series_count: int
    instance_count: int
    evicted_count: int
    byte_size: int
    flags: str
    created_ms: int
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One row of `series`."""

    id: SeriesId
    study: StudyId
    series_instance_uid: UID
    modality: str
    number: str
    description: str
    body_part: str
    station_name: str
    laterality: str
    instance_count: int
    evicted_count: int
    byte_size: int
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a list is narrowed to; empty fields do not narrow it.

    Words of `text` must each occur in name, patient ID, accession number or description.
    Dates are DICOM dates, YYYYMMDD, both ends included.
    """

    text: str = ""
    modality: str = ""
    state: StudyState | None = None
    from_date: str = ""
    to_date: str = ""
    limit: int = 100
    offset: int = 0


_STUDY = ", ".join(f"study.{name}" for name in Study.__slots__)
_SERIES = ", ".join(Series.__slots__)


def search(db: Database, wanted: Search) -> list[Study]:
    """Studies, the last received first."""
    conditions, values = ["1"], list[str | int]()
    for word in folded(wanted.text).split():
        conditions.append("search_text LIKE ? ESCAPE '!'")
        values.append(f"%{_literal(word)}%")
    if wanted.modality:
        conditions.append("INSTR('\\' || modalities || '\\', '\\' || ? || '\\') > 0")
        values.append(wanted.modality)
    for column, operator, value in (
        ("state", "=", wanted.state or ""),
        ("study_date", ">=", wanted.from_date),
        ("study_date", "<=", wanted.to_date),
    ):
        if value:
            conditions.append(f"{column} {operator} ?")
            values.append(value)
    sql = (
        f"SELECT {_STUDY} FROM study WHERE {' AND '.join(conditions)} "  # noqa: S608
        "ORDER BY received_ms DESC, id DESC LIMIT ? OFFSET ?"
    )
    with db.read() as tx:
        return tx.records(Study, sql, *values, wanted.limit, wanted.offset)


def _literal(word: str) -> str:
    return word.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def study(db: Database, number: StudyId) -> Study:
    """The study of that row number; raises NotFound."""
    with db.read() as tx:
        return within(tx, number)


def within(tx: Transaction, number: StudyId) -> Study:
    """The same, as this transaction sees it."""
    sql = f"SELECT {_STUDY} FROM study WHERE id = ?"  # noqa: S608
    return tx.record(Study, f"study: there is no study {number}", sql, number)


def series_of(db: Database, number: StudyId) -> list[Series]:
    """The series of a study, by series number."""
    sql = (
        f"SELECT {_SERIES} FROM series WHERE study = ? "  # noqa: S608
        "ORDER BY CAST(number AS INTEGER), id"
    )
    with db.read() as tx:
        return tx.records(Series, sql, number)


def last_change(db: Database) -> str:
    """A short text that differs whenever a list of studies may differ (an ETag)."""
    with db.read() as tx:
        acts = tx.number("SELECT MAX(id) FROM audit")
        lines = tx.number("SELECT MAX(id) FROM line_change")
    return f"{acts}-{lines}"


def set_state(tx: Transaction, number: StudyId, new: StudyState, *, actor: str) -> None:
    """Bring a study into another state and its deliveries with it; raises Conflict, NotFound.

    Verified releases what waited for that; held and rejected stop what has not left; received
    (released) lets go what the study itself had stopped. Rules that ask for its state apply anew.
    """
    old = within(tx, number)
    require_transition(STUDY_TRANSITIONS, old.state, new)
    tx.run(
        "UPDATE study SET state = ?, state_by = ?, state_ms = ? WHERE id = ?",
        new,
        actor,
        wall_ms(),
        number,
    )
    audit.record(
        tx, actor=actor, act=f"study {new}", kind="study", subject=number, detail=old.state
    )
    selection = deliveries.Selection(study=number)
    if new in (StudyState.HELD, StudyState.REJECTED):
        deliveries.hold(tx, selection, actor=actor, reason=HoldReason.STUDY)
        return
    reasons = [HoldReason.STUDY]
    if new is StudyState.VERIFIED:
        reasons.append(HoldReason.UNVERIFIED)
    deliveries.release(tx, selection, actor=actor, reasons=reasons)
    routing.study_changed(tx, number, "state")


def counts(db: Database) -> dict[str, int]:
    """How many patients, studies, series and stored instances there are, and their bytes."""
    with db.read() as tx:
        found = {
            table: tx.number(f"SELECT COUNT(*) FROM {table}")  # noqa: S608
            for table in ("patient", "study", "series")
        }
        found["instance"] = tx.number("SELECT COUNT(*) FROM instance WHERE state = 'stored'")
        found["bytes"] = tx.number("SELECT SUM(byte_size) FROM study")
    return found


def modalities_present(db: Database) -> Sequence[str]:
    """Every modality there is a series of, for the list's filter."""
    with db.read() as tx:
        return [
            str(row[0])
            for row in tx.rows("SELECT DISTINCT modality FROM series ORDER BY modality")
            if row[0]
        ]
