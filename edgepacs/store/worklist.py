"""The worklist: scheduled procedure steps, each with its procedure, request, visit and patient.

Entries come from HL7 messages, from the worklist upstream, from files and from people; each is
known to its source by a key. They are never deleted: what its source has no more is retired.
"""

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import (
    ENTRY_TRANSITIONS,
    EntryId,
    EntryOrigin,
    EntryState,
    PrefetchReason,
    new_uid,
    require_transition,
    uid,
)
from edgepacs.store import audit, prefetches
from edgepacs.store.db import Transaction
from edgepacs.store.matching import Criterion, Period, criterion, folded_name
from edgepacs.store.placing import folded

OPEN = (EntryState.SCHEDULED, EntryState.STARTED)
# Those whose images may be here, or may still come: a patient who changes, changes in these.
_CONCERNED = (*OPEN, EntryState.COMPLETED, EntryState.DISCONTINUED)
_LONGEST = 1024  # characters of a value; no VR that is used here but LT has more (PS3.5 6.2)
_LONGEST_TEXT = 10_240
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAK = re.compile(r"[\t\n\f\r]")
_TEMPORARY = "TEMP-"
_NUMBER = re.compile(r"\d{1,4}", re.ASCII)
_DATE = re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Patient:
    """Who is to be examined; text decoded, '' where absent.

    `name` is a person name with its component groups (PS3.5 6.2.1). Dates are YYYYMMDD, `weight`
    is in kg, `size` in m. `other_ids`, `allergies` and `alerts` may hold several values with a
    backslash between them, each of `other_ids` as ID^ISSUER. `pregnancy` is 1 not, 2 possibly,
    3 definitely pregnant, 4 unknown (PS3.3 C.2.4).
    """

    patient_id: str = ""
    issuer: str = ""
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    weight: str = ""
    size: str = ""
    other_ids: str = ""
    pregnancy: str = ""
    allergies: str = ""
    alerts: str = ""
    patient_state: str = ""
    special_needs: str = ""
    confidentiality: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """One scheduled procedure step with its requested procedure, imaging service request, patient.

    Text decoded, '' where absent. Codes are written value^scheme^meaning, several of them, and
    several of `station_ae`, with a backslash between. `start_date` is YYYYMMDD, `start_time`
    HHMMSS. `admission_id` is the number of the visit. `location` is where the step is to be done,
    `patient_location` where the patient is. `laterality` is R, L or B. The comments of migration
    0016 name the attribute of each field.
    """

    patient: Patient
    study_instance_uid: str = ""
    accession_number: str = ""
    admission_id: str = ""
    procedure_id: str = ""
    procedure_description: str = ""
    procedure_code: str = ""
    procedure_priority: str = ""
    referring_physician: str = ""
    requesting_physician: str = ""
    requesting_service: str = ""
    placer_order: str = ""
    filler_order: str = ""
    step_id: str = ""
    step_description: str = ""
    step_code: str = ""
    modality: str = ""
    station_ae: str = ""
    station_name: str = ""
    start_date: str = ""
    start_time: str = ""
    performing_physician: str = ""
    location: str = ""
    laterality: str = ""
    comments: str = ""
    patient_location: str = ""
    transport: str = ""
    pre_medication: str = ""
    contrast_agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An entry as the store holds it; `as_of_ms` is when its source last said so."""

    id: EntryId
    entry: Entry
    state: EntryState
    origin: EntryOrigin
    source: str
    key: str
    as_of_ms: int
    created_ms: int
    changed_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What a list of entries is narrowed to; empty fields do not narrow it.

    Words of `text` must each occur in name, patient ID, accession number or description. Dates
    are YYYYMMDD, both ends included, and those of the start.
    """

    states: Sequence[EntryState] = ()
    origin: EntryOrigin | None = None
    modality: str = ""
    from_date: str = ""
    to_date: str = ""
    text: str = ""
    limit: int = 500
    offset: int = 0


PATIENT_FIELDS = tuple(one.name for one in fields(Patient))
ENTRY_FIELDS = tuple(one.name for one in fields(Entry) if one.name != "patient")
_OWN = ("id", "state", "origin", "source", "key", "as_of_ms", "created_ms", "changed_ms")
_PATIENT_AT = len(_OWN)
_ENTRY_AT = _PATIENT_AT + len(PATIENT_FIELDS)
_COLUMNS = ", ".join((*_OWN, *PATIENT_FIELDS, *ENTRY_FIELDS))
_SELECT = f"SELECT {_COLUMNS} FROM worklist "  # noqa: S608  own names only
_SEVERAL = frozenset(
    {"other_ids", "allergies", "alerts", "procedure_code", "step_code", "station_ae"}
)
_MADE = ("study_instance_uid", "procedure_id", "step_id")  # type 1 in an answer (PS3.4 K.6.1.2.2)


def _held(row: Sequence[Any]) -> Held:
    patient = Patient(**dict(zip(PATIENT_FIELDS, row[_PATIENT_AT:_ENTRY_AT], strict=True)))
    own = dict(zip(_OWN, row[:_PATIENT_AT], strict=True))
    own["state"], own["origin"] = EntryState(own["state"]), EntryOrigin(own["origin"])
    rest = dict(zip(ENTRY_FIELDS, row[_ENTRY_AT:], strict=True))
    return Held(entry=Entry(patient=patient, **rest), **own)


def _values(entry: Entry) -> dict[str, str]:
    """What is written of an entry, by column."""
    patient = {name: getattr(entry.patient, name) for name in PATIENT_FIELDS}
    return patient | {name: getattr(entry, name) for name in ENTRY_FIELDS}


def _search_text(entry: Entry) -> str:
    patient = entry.patient
    words = (
        patient.name,
        patient.patient_id,
        entry.accession_number,
        entry.admission_id,
        entry.procedure_description,
        entry.step_description,
    )
    return folded(" ".join(words))


# --- what is put in ----------------------------------------------------------------------------


def put(
    tx: Transaction, entry: Entry, *, origin: EntryOrigin, source: str, key: str, actor: str
) -> EntryId:
    """Insert an entry, or update the one of the same origin, source and key; its row number.

    Study Instance UID, requested procedure and step ID are made where a new entry has none, and
    kept where an update has none; a patient without an ID who is entered here gets a temporary
    one. What was retired is scheduled again. Raises InvalidValue, naming the field, for what
    cannot be put in a data set.
    """
    whole = checked(entry)
    known = by_key(tx, origin, source, key)
    if known is not None:
        return _update(tx, known, whole, actor)
    if origin is EntryOrigin.LOCAL and not whole.patient.patient_id:
        whole = replace(whole, patient=replace(whole.patient, patient_id=temporary_id()))
    made: dict[str, Any] = {name: getattr(whole, name) or _new(name) for name in _MADE}
    whole = replace(whole, **made)
    now = wall_ms()
    number = tx.insert(
        "worklist",
        {
            "state": EntryState.SCHEDULED,
            "origin": origin,
            "source": source,
            "key": key,
            "as_of_ms": now,
            "created_ms": now,
            "changed_ms": now,
            "search_text": _search_text(whole),
            "folded_name": folded_name(whole.patient.name),
            **_values(whole),
        },
    )
    audit.record(tx, actor=actor, act="entry added", kind="worklist", subject=number, detail=origin)
    patient = whole.patient
    prefetches.wanted(
        tx, patient.patient_id, patient.issuer, reason=PrefetchReason.WORKLIST, subject=number
    )
    return EntryId(number)


def _new(name: str) -> str:
    if name == "study_instance_uid":
        return new_uid()
    return ("P" if name == "procedure_id" else "S") + secrets.token_hex(6).upper()


def temporary_id() -> str:
    """A Patient ID for somebody who has none yet, never given before."""
    return _TEMPORARY + secrets.token_hex(5).upper()


def is_temporary(patient_id: str) -> bool:
    """Whether an ID was made here for somebody who had none."""
    return patient_id.startswith(_TEMPORARY)


def _update(tx: Transaction, known: Held, entry: Entry, actor: str) -> EntryId:
    kept = {name: getattr(known.entry, name) for name in _MADE if not getattr(entry, name)}
    whole = replace(entry, **kept)
    if not whole.patient.patient_id:
        patient = replace(whole.patient, patient_id=known.entry.patient.patient_id)
        whole = replace(whole, patient=patient)
    if known.state is EntryState.RETIRED:
        shift(tx, known.id, EntryState.SCHEDULED, actor=actor, why="its source has it again")
    _write(tx, known, whole, actor=actor, act="entry changed")
    tx.run("UPDATE worklist SET as_of_ms = ? WHERE id = ?", wall_ms(), known.id)
    return known.id


def _write(tx: Transaction, known: Held, entry: Entry, *, actor: str, act: str) -> None:
    """Write what differs, and which fields those were; nothing where nothing does."""
    old, new = _values(known.entry), _values(entry)
    changed = {name: value for name, value in new.items() if value != old[name]}
    if not changed:
        return
    said = " ".join(changed)
    changed["search_text"] = _search_text(entry)
    changed["folded_name"] = folded_name(entry.patient.name)
    sets = ", ".join(f"{name} = ?" for name in changed)
    tx.run(
        f"UPDATE worklist SET changed_ms = ?, {sets} WHERE id = ?",  # noqa: S608
        wall_ms(),
        *changed.values(),
        known.id,
    )
    audit.record(tx, actor=actor, act=act, kind="worklist", subject=known.id, detail=said)


def change(tx: Transaction, number: EntryId, entry: Entry, *, actor: str) -> None:
    """A person corrects an entry, whatever its source; raises NotFound, InvalidValue.

    What its source says of it later counts again.
    """
    known = _one(tx, number)
    whole = checked(entry)
    kept = {name: getattr(known.entry, name) for name in _MADE if not getattr(whole, name)}
    _write(tx, known, replace(whole, **kept), actor=actor, act="entry changed by a person")


def shift(
    tx: Transaction, number: EntryId, state: EntryState, *, actor: str, why: str = ""
) -> None:
    """The only change of an entry's state; raises NotFound, Conflict."""
    row = tx.first("SELECT state FROM worklist WHERE id = ?", number)
    if row is None:
        raise _missing(number)
    old = EntryState(row[0])
    require_transition(ENTRY_TRANSITIONS, old, state)
    tx.run("UPDATE worklist SET state = ?, changed_ms = ? WHERE id = ?", state, wall_ms(), number)
    detail = f"{old}: {why}" if why else str(old)
    audit.record(
        tx, actor=actor, act=f"entry {state}", kind="worklist", subject=number, detail=detail
    )


# --- what is asked for -------------------------------------------------------------------------


def _missing(number: EntryId) -> NotFound:
    return NotFound(f"worklist: there is no entry {number}")


def _all(tx: Transaction, condition: str, *values: str | int) -> list[Held]:
    return [_held(row) for row in tx.rows(f"{_SELECT} WHERE {condition} ORDER BY id", *values)]


def _one(tx: Transaction, number: EntryId) -> Held:
    found = _all(tx, "id = ?", number)
    if not found:
        raise _missing(number)
    return found[0]


def entry(tx: Transaction, number: EntryId) -> Held:
    """The entry of that row number; raises NotFound."""
    return _one(tx, number)


def by_key(tx: Transaction, origin: EntryOrigin, source: str, key: str) -> Held | None:
    """The entry a source knows by that key."""
    found = _all(tx, "origin = ? AND source = ? AND key = ?", origin, source, key)
    return found[0] if found else None


def of_order(tx: Transaction, accession_number: str) -> Sequence[Held]:
    """The entries of an accession number; none for ''."""
    return _all(tx, "accession_number = ? AND accession_number != ''", accession_number)


def of_patient(tx: Transaction, patient_id: str, issuer: str) -> Sequence[Held]:
    """The entries of a patient, of whatever state; none for ''.

    A temporary ID is one of ours, whatever issuer others put beside it.
    """
    if not patient_id:
        return []
    if is_temporary(patient_id):
        return _all(tx, "patient_id = ?", patient_id)
    return _all(tx, "patient_id = ? AND issuer = ?", patient_id, issuer)


def of_study(tx: Transaction, study_instance_uid: str) -> Sequence[Held]:
    """The entries of a Study Instance UID."""
    return _all(tx, "study_instance_uid = ?", study_instance_uid)


def of_step(tx: Transaction, study_instance_uid: str, step_id: str) -> Held | None:
    """The entry of one step of a study; the newest where a source has told of it twice."""
    found = _all(tx, "study_instance_uid = ? AND step_id = ?", study_instance_uid, step_id)
    return found[-1] if found else None


def entries(tx: Transaction, criteria: Criteria | None = None) -> Sequence[Held]:
    """Entries by their start, the earliest first."""
    wanted = criteria or Criteria()
    conditions, values = ["1"], list[str | int]()
    if wanted.states:
        conditions.append(f"state IN ({', '.join('?' * len(wanted.states))})")
        values += wanted.states
    for word in folded(wanted.text).split():
        conditions.append("INSTR(search_text, ?) > 0")
        values.append(word)
    for column, operator, value in (
        ("origin", "=", wanted.origin or ""),
        ("modality", "=", wanted.modality),
        ("start_date", ">=", wanted.from_date),
        ("start_date", "<=", wanted.to_date),
    ):
        if value:
            conditions.append(f"{column} {operator} ?")
            values.append(value)
    sql = f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY start_date, start_time, id "
    rows = tx.rows(sql + "LIMIT ? OFFSET ?", *values, wanted.limit, wanted.offset)
    return [_held(row) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a modality asks for: criteria by field, and a start within `period`.

    It sees what is in one of `states`, for one of `stations` or for none in particular, and of
    one of `modalities`; backslash between them, '' for all.
    """

    criteria: Mapping[str, Criterion]
    states: Sequence[EntryState]
    period: Period | None = None
    stations: str = ""
    modalities: str = ""


def matching(tx: Transaction, query: Query, most: int | None = None) -> Iterator[Held]:
    """The entries a query is about, by their start, up to `most`; made while they are asked for."""
    clauses: list[tuple[str, tuple[str, ...]]] = [
        (f"state IN ({', '.join('?' * len(query.states))})", tuple(query.states)),
        *(_clause(field, one) for field, one in query.criteria.items()),
    ]
    if query.period is not None:
        clauses.append(query.period.clause("start_date", "start_time"))
    stations, modalities = criterion("AE", query.stations), criterion("CS", query.modalities)
    if stations is not None:
        sql, values = stations.clause_of_any("station_ae")
        clauses.append((f"(station_ae = '' OR {sql})", values))
    if modalities is not None:
        clauses.append(modalities.clause("modality"))
    condition = " AND ".join(sql for sql, _ in clauses)
    bound = [value for _, some in clauses for value in some]
    sql = f"{_SELECT} WHERE {condition} ORDER BY start_date, start_time, id LIMIT ?"
    return map(_held, tx.rows(sql, *bound, -1 if most is None else most))


def _clause(field: str, one: Criterion) -> tuple[str, tuple[str, ...]]:
    if field == "name":
        return one.clause("folded_name")
    return one.clause_of_any(field) if field in _SEVERAL else one.clause(field)


# --- patients ----------------------------------------------------------------------------------


def change_patient(tx: Transaction, patient: Patient, *, actor: str) -> int:
    """What is known of a patient has changed (ADT A08); how many entries that changed.

    Every entry of that ID and issuer changes but those cancelled and retired: the images of what
    is completed may still be here. An empty field says nothing, and leaves what there is.
    """
    return _change_each(
        tx, (patient.patient_id, patient.issuer), patient, actor=actor, act="patient changed"
    )


def merge_patient(tx: Transaction, *, gone: tuple[str, str], into: Patient, actor: str) -> int:
    """One ID, (ID, issuer), was given up for another (ADT A40); how many entries that changed.

    Those entries that `change_patient` would change. Each keeps the ID that is gone among the
    patient's other IDs.
    """
    return _change_each(tx, gone, into, actor=actor, act="patient merged")


def _change_each(
    tx: Transaction, whose: tuple[str, str], patient: Patient, *, actor: str, act: str
) -> int:
    if not whose[0]:
        return 0
    count = 0
    for known in of_patient(tx, *whose):
        if known.state not in _CONCERNED:
            continue
        new = _revised(known.entry.patient, patient)
        if new == known.entry.patient:
            continue
        whole = checked(replace(known.entry, patient=new))
        _write(tx, known, whole, actor=actor, act=act)
        count += 1
        if new.patient_id != whose[0]:
            reason = PrefetchReason.WORKLIST
            prefetches.wanted(tx, new.patient_id, new.issuer, reason=reason, subject=known.id)
    return count


def _revised(old: Patient, said: Patient) -> Patient:
    """`old` with what is said, and with the ID it had before among the others."""
    new = {name: getattr(said, name) for name in PATIENT_FIELDS if getattr(said, name)}
    if said.patient_id != old.patient_id:
        new["issuer"] = said.issuer
        former = f"{old.patient_id}^{old.issuer}" if old.issuer else old.patient_id
        others = (new.get("other_ids") or old.other_ids).split("\\")
        new["other_ids"] = "\\".join(dict.fromkeys([*filter(None, others), former]))
    return replace(old, **new)


# --- what is over ------------------------------------------------------------------------------


def retire_missing(
    tx: Transaction, origin: EntryOrigin, source: str, keys: Collection[str], *, actor: str
) -> int:
    """Retire what a source that has been heard in full has no more; how many entries.

    Only what is still scheduled: a source may well hide what has begun.
    """
    rows = tx.rows(
        "SELECT id, key FROM worklist WHERE origin = ? AND source = ? AND state = 'scheduled'",
        *(origin, source),
    )
    missing = [EntryId(number) for number, key in rows if key not in keys]
    for number in missing:
        shift(tx, number, EntryState.RETIRED, actor=actor, why="its source has it no more")
    return len(missing)


def retire_past(tx: Transaction, before: str, *, actor: str) -> int:
    """Retire what was to be done before a day, YYYYMMDD, and never was; how many entries."""
    rows = tx.rows(
        "SELECT id FROM worklist WHERE state = 'scheduled' AND start_date < ? AND start_date != ''",
        before,
    )
    for (number,) in rows:
        shift(tx, EntryId(number), EntryState.RETIRED, actor=actor, why="long past")
    return len(rows)


# --- what an entry may hold --------------------------------------------------------------------


def checked(entry: Entry) -> Entry:
    """`entry` without padding; raises InvalidValue for what would break a data set.

    Sources further up are not held to the lengths of PS3.5 6.2: an order that is a character too
    long is an order. People are, by `require_standard`.
    """
    patient = replace(entry.patient, **_clean(entry.patient, PATIENT_FIELDS))
    whole = replace(entry, patient=patient, **_clean(entry, ENTRY_FIELDS))
    if whole.study_instance_uid:
        uid(whole.study_instance_uid, "study_instance_uid")
    for name, value in (("start_date", whole.start_date), ("birth_date", patient.birth_date)):
        if value and not _DATE.fullmatch(value):
            raise InvalidValue(name, "not a date as YYYYMMDD")
    if patient.pregnancy and not _NUMBER.fullmatch(patient.pregnancy):
        raise InvalidValue("pregnancy", "not a number of 1 to 4 digits")  # it is binary, a US
    if whole.start_time and not _TIME.fullmatch(whole.start_time):
        raise InvalidValue("start_time", "not a time as HHMMSS")
    return whole


def _clean(one: Patient | Entry, names: Sequence[str]) -> Mapping[str, Any]:
    return {name: _clean_value(name, getattr(one, name)) for name in names}


def _clean_value(name: str, text: str) -> str:
    lines = name == "comments"
    value = (text if lines else _BREAK.sub(" ", text)).strip()
    if _CONTROL.search(value):
        raise InvalidValue(name, "holds control characters")
    if "\\" in value and name not in _SEVERAL and not lines:
        raise InvalidValue(name, "holds a backslash, which would make two values of it")
    if len(value) > (_LONGEST_TEXT if lines else _LONGEST):
        raise InvalidValue(name, f"longer than {_LONGEST_TEXT if lines else _LONGEST} characters")
    return value
