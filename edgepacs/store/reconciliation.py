"""Reconciliation: every study matched with its order, before it is forwarded (IHE PIR).

A study is looked at in the transaction that commits the first instance of each of its series, so
that nothing of one that differs from its order has left before anybody could say so; and again
whenever an entry of the worklist changes. What people decide is undone by its opposite.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, StorageFault
from edgepacs.model import (
    EntryId,
    EntryState,
    FoundBy,
    HoldReason,
    Mismatch,
    Receipt,
    StudyId,
    WorklistMatch,
)
from edgepacs.store import audit, deliveries, placing, routing, worklist
from edgepacs.store.db import Database, Transaction
from edgepacs.store.instances import OWN_NOTE
from edgepacs.store.worklist import Entry, Held
from edgepacs.telemetry import log, place_of

ACTOR = "worklist"  # who acts where nobody does
DIFFERS = "order-mismatch"  # the flag of a study that differs from its order
_AT_ONCE = 200  # studies, or acts on the worklist
_NEAR = timedelta(hours=24)  # between the start of a step and a study that is matched by it
_OVER = (EntryState.CANCELLED, EntryState.RETIRED)
_STRENGTH = {found_by: place for place, found_by in enumerate(FoundBy)}
_ROUTED = "('modality', 'import', 'local')"
_M = Mismatch

Sides = Mapping[Mismatch, tuple[str, str]]
"""What a study says and what its order says, by field; only what either says."""


def _flags(text: str) -> tuple[Mismatch, ...]:
    return tuple(Mismatch(word) for word in text.split())


def sides_of(text: str) -> Sides:
    """Both sides as the table holds them."""
    return {Mismatch(name): (study, order) for name, (study, order) in json.loads(text).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """What was found of a study; the comments of migration 0019 say what the fields mean."""

    study: StudyId
    entry: EntryId | None
    found_by: FoundBy = field(metadata={"make": FoundBy})
    flags: tuple[Mismatch, ...] = field(metadata={"make": _flags})
    sides: Sides = field(metadata={"make": sides_of}, repr=False)
    kept: int
    by: str
    series_count: int
    looked_ms: int


def sides_text(sides: Sides) -> str:
    """The same as the table holds them."""
    return json.dumps(sides)


_COLUMNS = ", ".join(Reconciliation.__slots__)


def of_study(db: Database, study: StudyId) -> Reconciliation | None:
    """What was found of a study; None where nobody has looked, as where there is no worklist."""
    with db.read() as tx:
        return within(tx, study)


def within(tx: Transaction, study: StudyId) -> Reconciliation | None:
    """The same, as this transaction sees it."""
    sql = f"SELECT {_COLUMNS} FROM reconciliation WHERE study = ?"  # noqa: S608  own names only
    return next(iter(tx.records(Reconciliation, sql, study)), None)


# --- when it is looked -------------------------------------------------------------------------


def arrived(tx: Transaction, receipts: Iterable[Receipt]) -> None:
    """Look at the studies of instances just committed, where they are new or a series is.

    In their transaction, after their deliveries were made. Where there is no worklist at all
    nothing is looked for.
    """
    if not tx.first("SELECT 1 FROM worklist LIMIT 1"):
        return
    for study in dict.fromkeys(receipt.study_id for receipt in receipts):
        row = tx.first(
            "SELECT study.series_count = reconciliation.series_count FROM study "
            "LEFT JOIN reconciliation ON reconciliation.study = study.id WHERE study.id = ?",
            study,
        )
        if row is not None and not row[0]:
            _consider_apart(tx, study)


def _consider_apart(tx: Transaction, study: StudyId) -> None:
    """As `consider`; what it stumbles over costs nobody the instance, and `look` tries again."""
    try:
        with tx.part():
            consider(tx, study)
    except StorageFault:
        raise
    except Exception as error:  # noqa: BLE001  the modality is answered all the same
        log.error("study %d: not compared with its order: %s", study, place_of(error))


def look(db: Database) -> int:
    """Look at studies nobody has looked at, and at those whose entries changed; how many it was.

    Nothing is written while there is nothing new.
    """
    with db.read() as tx:
        if not _unseen(tx) and not _changes(tx):
            return 0
    with db.write() as tx:
        unseen, changes = _unseen(tx), _changes(tx)
        known = bool(tx.first("SELECT 1 FROM worklist LIMIT 1"))
        found = dict.fromkeys(StudyId(number) for number in unseen if known)
        found |= dict.fromkeys(_concerned(tx, [subject for _, subject in changes]))
        for study in found:
            consider(tx, study)
        if unseen:
            tx.run("UPDATE reconciliation_mark SET study = ?", unseen[-1])
        if changes:
            tx.run("UPDATE reconciliation_mark SET audit = ?", changes[-1][0])
    return len(found)


def _unseen(tx: Transaction) -> list[int]:
    sql = (
        "SELECT id FROM study WHERE id > (SELECT study FROM reconciliation_mark) "
        "ORDER BY id LIMIT ?"
    )
    return [row[0] for row in tx.rows(sql, _AT_ONCE)]


def _changes(tx: Transaction) -> list[tuple[int, int]]:
    """Acts on entries nobody has looked at: their number in the audit trail, and the entry's."""
    sql = (
        "SELECT id, subject FROM audit INDEXED BY audit_worklist "
        "WHERE kind = 'worklist' AND subject IS NOT NULL "
        "AND id > (SELECT audit FROM reconciliation_mark) ORDER BY id LIMIT ?"
    )
    return [(row[0], row[1]) for row in tx.rows(sql, _AT_ONCE)]


def _concerned(tx: Transaction, entries: Sequence[int]) -> list[StudyId]:
    """The studies matched with these entries, and those that may be from now on."""
    found: list[StudyId] = []
    for number in dict.fromkeys(entries):
        rows = tx.rows(
            "SELECT study FROM reconciliation WHERE entry = ?1 UNION "
            "SELECT study.id FROM worklist JOIN study "
            "ON study.study_instance_uid = worklist.study_instance_uid WHERE worklist.id = ?1 "
            "UNION SELECT study.id FROM worklist JOIN patient ON "
            "patient.patient_id = worklist.patient_id JOIN study ON study.patient = patient.id "
            "WHERE worklist.id = ?1 AND worklist.patient_id != '' UNION "
            "SELECT study.id FROM worklist JOIN reconciliation ON reconciliation.entry IS NULL "
            "JOIN study ON study.id = reconciliation.study "
            "AND study.accession_number = worklist.accession_number "
            "WHERE worklist.id = ?1 AND worklist.accession_number != ''",
            number,
        )
        found += [StudyId(row[0]) for row in rows]
    return found


# --- what is found -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """What a study says of itself; several values with a backslash between them."""

    study_instance_uid: str
    patient_name: str
    patient_id: str
    issuer: str
    birth_date: str
    sex: str
    accession_number: str
    study_date: str
    study_time: str
    modalities: str
    series_count: int
    worklist: WorklistMatch = field(metadata={"make": WorklistMatch})
    lateralities: str
    stations: str
    sources: str


_STUDY = f"""
SELECT study_instance_uid, patient_name, patient_id, issuer, birth_date, sex, accession_number,
  study_date, study_time, modalities, series_count, worklist,
  (SELECT COALESCE(GROUP_CONCAT(laterality, '\\'), '') FROM (SELECT DISTINCT laterality
     FROM series WHERE series.study = study.id AND laterality != '' ORDER BY 1)) AS lateralities,
  (SELECT COALESCE(GROUP_CONCAT(station_name, '\\'), '') FROM (SELECT DISTINCT station_name
     FROM series WHERE series.study = study.id AND station_name != '' ORDER BY 1)) AS stations,
  (SELECT COALESCE(GROUP_CONCAT(source, '\\'), '') FROM (SELECT DISTINCT (SELECT source
     FROM instance WHERE instance.series = series.id AND origin = 'modality' LIMIT 1) AS source
     FROM series WHERE series.study = study.id ORDER BY 1) WHERE source IS NOT NULL) AS sources
FROM study WHERE study.id = ?1 AND EXISTS (SELECT 1 FROM series JOIN instance
  ON instance.series = series.id WHERE series.study = ?1 AND state = 'stored'
  AND origin IN {_ROUTED} AND NOT {OWN_NOTE})"""  # noqa: S608  own words


def consider(tx: Transaction, study: StudyId) -> None:
    """Look at one study: find its order, compare, and hold what has not left or let it go.

    What was fetched from elsewhere, and what is no longer here, is left alone.
    """
    said = next(iter(tx.records(_Study, _STUDY, study)), None)
    if said is None:
        _nothing_left(tx, study)
        return
    known = within(tx, study)
    found_by, held = _order(tx, said, known)
    sides = compared(said, held.entry) if held else {}
    flags = [name for name, (mine, its) in sides.items() if _differs(name, mine, its)]
    kept = bool(flags and known and known.kept and known.sides == sides)
    tx.run(
        "INSERT INTO reconciliation (study, entry, found_by, flags, sides, kept, series_count, "
        "looked_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO UPDATE SET entry = ?2, "
        "found_by = ?3, flags = ?4, sides = ?5, kept = ?6, series_count = ?7, looked_ms = ?8",
        *(study, held.id if held else None, found_by, " ".join(flags), sides_text(sides)),
        *(int(kept), said.series_count, wall_ms()),
    )
    if held is None:
        match = WorklistMatch.UNMATCHED
    elif not flags:
        match = WorklistMatch.MATCHED
    else:
        match = WorklistMatch.KEPT if kept else WorklistMatch.MISMATCHED
    words = f"entry {held.id} {found_by}; {' '.join(flags) or 'the same'}" if held else found_by
    _become(tx, study, said.worklist, match, words)


def _nothing_left(tx: Transaction, study: StudyId) -> None:
    """Where all of a study has been corrected into another, nobody is asked about it any more."""
    sql = "UPDATE study SET worklist = 'none' WHERE id = ? AND worklist = 'mismatched'"
    if tx.run(sql, study):
        placing.unflag_study(tx, study, DIFFERS)
        words = "nothing of it stands here any more"
        audit.record(tx, actor=ACTOR, act="study none", kind="study", subject=study, detail=words)


def _become(
    tx: Transaction, study: StudyId, old: WorklistMatch, new: WorklistMatch, words: str
) -> None:
    if new is old:
        return
    tx.run("UPDATE study SET worklist = ? WHERE id = ?", new, study)
    audit.record(tx, actor=ACTOR, act=f"study {new}", kind="study", subject=study, detail=words)
    selection = deliveries.Selection(study=study)
    if new is WorklistMatch.MISMATCHED:
        placing.flag_study(tx, study, "order-mismatch")
        deliveries.hold(tx, selection, actor=ACTOR, reason=HoldReason.ORDER)
    elif old is WorklistMatch.MISMATCHED:
        placing.unflag_study(tx, study, DIFFERS)
        deliveries.release(tx, selection, actor=ACTOR, reasons=[HoldReason.ORDER])
    routing.study_changed(tx, study, "worklist")


def _order(
    tx: Transaction, said: _Study, known: Reconciliation | None
) -> tuple[FoundBy, Held | None]:
    """The order of a study: what a person said, else what says most; once found it stays so.

    An order that changes its patient is still the order.
    """
    if known and known.found_by is FoundBy.PERSON:
        return known.found_by, worklist.entry(tx, known.entry) if known.entry else None
    found_by, held = _found(tx, said)
    if known and known.entry and _STRENGTH[known.found_by] <= _STRENGTH[found_by]:
        former = worklist.entry(tx, known.entry)
        if former.state not in _OVER or held is None or held.state in _OVER:
            return known.found_by, former
    return found_by, held


def _found(tx: Transaction, said: _Study) -> tuple[FoundBy, Held | None]:
    # Instances that come late still name the patient the others were corrected from.
    told = tx.first(
        "SELECT entry FROM reconciliation JOIN study ON study.id = reconciliation.study "
        "WHERE study_instance_uid = ? AND found_by = 'person' ORDER BY looked_ms DESC LIMIT 1",
        said.study_instance_uid,
    )
    if told:
        return FoundBy.PERSON, worklist.entry(tx, EntryId(told[0]))
    ways = (
        (FoundBy.STUDY_UID, worklist.of_study(tx, said.study_instance_uid)),
        (FoundBy.ACCESSION, worklist.of_order(tx, said.accession_number)),
    )
    for found_by, entries in ways:
        current = [one for one in entries if one.state not in _OVER]
        if current or entries:
            return found_by, _nearest(said, current or entries)
    likely = [
        one
        for one in worklist.of_patient(tx, said.patient_id, said.issuer)
        if one.state not in _OVER
        and one.entry.modality in said.modalities.split("\\")
        and _apart(said, one.entry) <= _NEAR
    ]
    nearest = _nearest(said, likely) if likely else None
    return (FoundBy.PATIENT if nearest else FoundBy.NOTHING), nearest


def _nearest(said: _Study, entries: Sequence[Held]) -> Held:
    """Of several steps the one of the study's modality whose start is nearest."""
    modalities = said.modalities.split("\\")

    def far(one: Held) -> tuple[bool, timedelta, int]:
        return one.entry.modality not in modalities, _apart(said, one.entry), one.id

    return min(entries, key=far)


def _apart(said: _Study, entry: Entry) -> timedelta:
    made = _moment(said.study_date, said.study_time)
    planned = _moment(entry.start_date, entry.start_time)
    return abs(made - planned) if made and planned else timedelta.max


def _moment(date: str, time: str) -> datetime | None:
    """A DICOM date with its time, noon where it has none; None for no date."""
    digits = time.replace(":", "").partition(".")[0]
    clock = f"{digits:0<6}" if digits else "120000"
    try:
        return datetime.strptime(date + clock, "%Y%m%d%H%M%S")  # noqa: DTZ007  both are local
    except ValueError:
        return None


# --- what is compared --------------------------------------------------------------------------


def compared(said: _Study, entry: Entry) -> Sides:
    """Both sides of everything that either says anything of."""
    patient = entry.patient
    sides = {
        _M.NAME: (said.patient_name, patient.name),
        _M.ID: (_with_issuer(said.patient_id, said.issuer), ""),
        _M.BIRTH_DATE: (said.birth_date, patient.birth_date),
        _M.SEX: (said.sex, patient.sex),
        _M.ACCESSION: (said.accession_number, entry.accession_number),
        _M.LATERALITY: (said.lateralities, entry.laterality),
        _M.STATION: _stations(said, entry),
    }
    issuer = patient.issuer if said.issuer else ""  # of an ID alone no issuer is known
    sides[_M.ID] = (
        _with_issuer(said.patient_id, said.issuer if patient.issuer else ""),
        _with_issuer(patient.patient_id, issuer),
    )
    return {name: pair for name, pair in sides.items() if any(pair)}


def _with_issuer(patient_id: str, issuer: str) -> str:
    return f"{patient_id}^{issuer}" if issuer else patient_id


def _stations(said: _Study, entry: Entry) -> tuple[str, str]:
    """AE titles where the order names some, else station names."""
    if entry.station_ae:
        return said.sources, entry.station_ae
    return (said.stations, entry.station_name) if entry.station_name else ("", "")


def _differs(name: Mismatch, mine: str, its: str) -> bool:
    """Whether a study says otherwise than its order; an order that says nothing differs in none.

    What a study leaves out is a difference only where it says whose it is.
    """
    if not its or (not mine and name not in (_M.NAME, _M.ID, _M.ACCESSION)):
        return False
    if name is _M.NAME:
        return _other_person(mine, its)
    if name is _M.LATERALITY:
        return its in ("R", "L") and any(one in ("R", "L") and one != its for one in _several(mine))
    if name is _M.STATION:
        return not set(_several(mine)) & set(_several(its))
    return mine != its


def _several(text: str) -> list[str]:
    return [one.strip() for one in text.split("\\")]


def _other_person(mine: str, its: str) -> bool:
    """Whether two person names (PS3.5 6.2.1) are of different people, as far as both say."""
    pairs = zip(mine.split("="), its.split("="), strict=False)
    groups = [(one, other) for one, other in pairs if one.strip("^ ") and other.strip("^ ")]
    return not groups or any(_differing(*pair) for pair in groups)


def _differing(one: str, other: str) -> bool:
    """Of one component group: family and given name, the middle one where both have it."""
    mine, its = _components(one), _components(other)
    return mine[:2] != its[:2] or bool(mine[2] and its[2] and mine[2] != its[2])


def _components(group: str) -> list[str]:
    parts = [" ".join(placing.folded(part).split()) for part in group.split("^")]
    return [*parts, "", "", ""][:3]


# --- what a person decides ---------------------------------------------------------------------


def link(tx: Transaction, study: StudyId, entry: EntryId | None, *, actor: str) -> None:
    """Say which order a study is of; None lets it be found again. Raises NotFound.

    What was decided of the former order no longer counts.
    """
    known = _known(tx, study)
    if entry is not None:
        worklist.entry(tx, entry)
    tx.run(
        "UPDATE reconciliation SET entry = ?, found_by = ?, kept = 0, by = ? WHERE study = ?",
        *(entry, FoundBy.PERSON if entry else FoundBy.NOTHING, actor, study),
    )
    words = f"entry {entry or 'as found'}, was {known.entry or 'none'} {known.found_by}"
    audit.record(tx, actor=actor, act="study linked", kind="study", subject=study, detail=words)
    consider(tx, study)


def keep(tx: Transaction, study: StudyId, *, actor: str) -> None:
    """Say that a study stays as it is, though it differs; it goes on. Raises Conflict.

    Where its order says something else later, it is asked again.
    """
    known = _known(tx, study)
    if not known.flags or known.kept:
        raise Conflict("study: it does not differ from its order, or is kept as it is already")
    _set_kept(tx, known, 1, "study kept", actor)


def reopen(tx: Transaction, study: StudyId, *, actor: str) -> None:
    """Take back that a study stays as it is; raises Conflict."""
    known = _known(tx, study)
    if not known.kept:
        raise Conflict("study: nobody said that it stays as it is")
    _set_kept(tx, known, 0, "study reopened", actor)


def _set_kept(tx: Transaction, known: Reconciliation, kept: int, act: str, actor: str) -> None:
    sql = "UPDATE reconciliation SET kept = ?, by = ? WHERE study = ?"
    tx.run(sql, kept, actor, known.study)
    words = f"entry {known.entry}; {' '.join(known.flags)}"
    audit.record(tx, actor=actor, act=act, kind="study", subject=known.study, detail=words)
    consider(tx, known.study)


def corrected(tx: Transaction, former: StudyId, study: StudyId, entry: EntryId, actor: str) -> None:
    """A study says now what its order says; what that could not change stays as it is.

    `former` is the row its instances stood in before.
    """
    known = within(tx, former)
    if former != study and known is not None:
        link(tx, study, entry, actor=actor)
        consider(tx, former)
    consider(tx, study)
    now = within(tx, study)
    if now is not None and now.flags and not now.kept:
        keep(tx, study, actor=actor)
    if former != study:  # what was handed over was held in the name of the former
        selection = deliveries.Selection(study=study)
        deliveries.release(tx, selection, actor=ACTOR, reasons=[HoldReason.ORDER])


def _known(tx: Transaction, study: StudyId) -> Reconciliation:
    """What was found of a study, looked for now if nobody has; raises Conflict."""
    known = within(tx, study)
    if known is None:
        consider(tx, study)
        known = within(tx, study)
    if known is None:
        raise Conflict("study: it was not made here, or nothing of it is here")
    return known
