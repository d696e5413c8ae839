"""Entries that people bring: by a form, as a CSV file, or as DICOM worklist files.

People are held to the standard, as what comes from other systems is not: who types can type it
again. Messages name the row and the field, never what stands there.
"""

import csv
import difflib
import hashlib
import io
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from edgepacs.clock import wall_ms
from edgepacs.custody import ingest, scheduled
from edgepacs.dimse import identifier
from edgepacs.errors import InvalidValue, LimitExceeded
from edgepacs.model import EntryId, EntryOrigin, ae_title, uid
from edgepacs.store import worklist
from edgepacs.store.db import Database
from edgepacs.store.worklist import ENTRY_FIELDS, PATIENT_FIELDS, Entry, Patient

FIELDS = (*PATIENT_FIELDS, *ENTRY_FIELDS)
FILE_MOST = 16 << 20  # bytes
ROWS_MOST = 10_000
_COLUMNS_MOST = 100
_SAID_MOST = 5  # problems of one file that are told
_DELIMITERS = ",;\t"
_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")
_TIME = re.compile(r"(\d{2}):?(\d{2})(?::?(\d{2}))?")
_CODE = re.compile(r"[A-Z0-9 _]{1,16}")  # PS3.5 6.2, VR CS
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?")
_SEXES = {"F": "F", "M": "M", "O": "O", "FEMALE": "F", "MALE": "M", "OTHER": "O"}
_SIDES = {"L": "L", "R": "R", "B": "B", "LEFT": "L", "RIGHT": "R", "BOTH": "B"}
_GROUP_MOST = 64  # characters of one component group (PS3.5 6.2, VR PN)
_LENGTHS = {"SH": 16, "LO": 64, "LT": 10240}  # characters (PS3.5 6.2)


def entered(said: Mapping[str, str], before: Entry | None = None) -> Entry:
    """The entry that fields by name make, as people write them; else as it was `before`.

    Dates may be written YYYY-MM-DD, that of the start `today`, times HH:MM, names "Family, Given".
    Raises InvalidValue, naming the field.
    """
    for name in said:
        if name not in FIELDS:
            raise InvalidValue("field", f"none is called {name[:40]!r}; see `worklist fields`")
    values = {name: _normal(name, text.strip()) for name, text in said.items()}
    patient: dict[str, Any] = {n: value for n, value in values.items() if n in PATIENT_FIELDS}
    rest: dict[str, Any] = {n: value for n, value in values.items() if n in ENTRY_FIELDS}
    base = replace(before or Entry(patient=Patient()), **rest)
    return worklist.checked(replace(base, patient=replace(base.patient, **patient)))


def require_enough(entry: Entry) -> None:
    """Raise InvalidValue unless a modality can work by it: it needs a name and a modality."""
    for name, value in (("name", entry.patient.name), ("modality", entry.modality)):
        if not value:
            raise InvalidValue(name, "is missing")


def add(db: Database, entry: Entry, *, actor: str) -> EntryId:
    """Put somebody on the worklist by hand: a walk-in, an emergency, an encounter at a bedside.

    The start is now unless said. A patient without an ID gets a temporary one; who was not
    ordered, having neither accession number nor visit, gets a visit number, by which the images
    are found (IHE RAD, Encounter-Based Imaging Workflow). Raises InvalidValue.
    """
    require_enough(entry)
    now = _now()
    said: dict[str, Any] = {}
    if not entry.start_date:
        said = {"start_date": f"{now:%Y%m%d}", "start_time": entry.start_time or f"{now:%H%M%S}"}
    if not entry.accession_number and not entry.admission_id:
        said["admission_id"] = f"V{now:%y%m%d}-{secrets.token_hex(3).upper()}"
    whole = replace(entry, **said)
    with db.write() as tx:
        return worklist.put(
            tx,
            whole,
            origin=EntryOrigin.LOCAL,
            source=actor,
            key=secrets.token_hex(16),
            actor=actor,
        )


def _now() -> datetime:
    return datetime.fromtimestamp(wall_ms() / 1000).astimezone()


def _normal(name: str, text: str) -> str:
    """A value as the standard wants it; '' stays ''."""
    if not text:
        return ""
    check = _BY_NAME.get(name) or _BY_VR.get(scheduled.VRS[name], _text)
    return check(name, text)


def _text(name: str, text: str) -> str:
    most = _LENGTHS[scheduled.VRS[name]]
    if any(len(one) > most for one in text.split("\\")):
        raise InvalidValue(name, f"longer than {most} characters")
    return text


def _date(name: str, text: str) -> str:
    found = _DATE.fullmatch(text)
    if not found:
        raise InvalidValue(name, "not a date as YYYY-MM-DD")
    return "".join(found.groups())


def _start_date(name: str, text: str) -> str:
    """A date, of this machine where it is `today`, as the list's dates are."""
    return f"{_now():%Y%m%d}" if text.lower() == "today" else _date(name, text)


def _time(name: str, text: str) -> str:
    found = _TIME.fullmatch(text)
    if not found:
        raise InvalidValue(name, "not a time as HH:MM")
    return "".join(part or "00" for part in found.groups())


def _code(name: str, text: str) -> str:
    if not _CODE.fullmatch(text.upper()):
        raise InvalidValue(name, "not 1 to 16 letters, digits, spaces or underscores")
    return text.upper()


def _number(name: str, text: str) -> str:
    plain = text.replace(",", ".")
    if not _NUMBER.fullmatch(plain):
        raise InvalidValue(name, "not a number")
    return plain


def _titles(name: str, text: str) -> str:
    return "\\".join(ae_title(one, name) for one in text.split("\\"))


def _person(name: str, text: str) -> str:
    """A person name; "Family, Given" becomes Family^Given."""
    family, comma, given = text.partition(",")
    written = f"{family.strip()}^{given.strip()}" if comma and "^" not in text else text
    groups = written.split("=")
    if len(groups) > 3 or any(len(g) > _GROUP_MOST or g.count("^") > 4 for g in groups):
        raise InvalidValue(name, f"not 1 to 3 groups of 5 parts and {_GROUP_MOST} characters")
    return written


def _uid(name: str, text: str) -> str:
    return uid(text, name)


def _one_of(words: Mapping[str, str]) -> Callable[[str, str], str]:
    def check(name: str, text: str) -> str:
        if text.upper() not in words:
            raise InvalidValue(name, f"none of {', '.join(words)}")
        return words[text.upper()]

    return check


_BY_VR: Mapping[str, Callable[[str, str], str]] = {
    "DA": _date,
    "TM": _time,
    "CS": _code,
    "DS": _number,
    "AE": _titles,
    "PN": _person,
    "UI": _uid,
}
_BY_NAME: Mapping[str, Callable[[str, str], str]] = {
    "start_date": _start_date,
    "sex": _one_of(_SEXES),
    "laterality": _one_of(_SIDES),
    "pregnancy": _one_of({one: one for one in "1234"}),
    "procedure_code": lambda _, text: text,  # its parts are bounded as a whole
    "step_code": lambda _, text: text,
    "other_ids": lambda _, text: text,
}


# --- files -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of a file: entries that are new, and those that were known and are up to date."""

    added: int = 0
    updated: int = 0


def take_in(db: Database, raw: bytes, *, actor: str) -> Imported:
    """Put the entries of a file on the worklist, all of them or none.

    A file that is taken in again brings its entries up to date. Raises InvalidValue, naming rows
    and fields, and LimitExceeded.
    """
    if len(raw) > FILE_MOST:
        raise LimitExceeded(f"file: larger than {FILE_MOST >> 20} MiB")
    is_dicom = raw[128:132] == b"DICM"
    brought = of_dicom(raw) if is_dicom else of_csv(raw)
    source = "dicom" if is_dicom else "csv"
    added = 0
    with db.write() as tx:
        for entry in brought:
            key = _key(entry)
            added += worklist.by_key(tx, EntryOrigin.IMPORT, source, key) is None
            worklist.put(tx, entry, origin=EntryOrigin.IMPORT, source=source, key=key, actor=actor)
    return Imported(added=added, updated=len(brought) - added)


def _key(entry: Entry) -> str:
    """By what an entry of a file is known again: its step, else who is to be examined, and when."""
    patient = entry.patient
    if entry.step_id and (entry.study_instance_uid or entry.accession_number):
        parts = [entry.study_instance_uid or entry.accession_number, entry.step_id]
    else:
        parts = [patient.patient_id, patient.issuer, patient.name, patient.birth_date]
        parts += [entry.accession_number, entry.admission_id, entry.modality, entry.start_date]
        parts += [entry.start_time, entry.step_description, entry.procedure_description]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def of_dicom(raw: bytes) -> Sequence[Entry]:
    """The entries of one DICOM worklist file (PS3.10 7.1), one for each of its steps."""
    meta, start = ingest.file_meta(raw)
    syntax = meta.get(0x0010, b"").decode("ascii", "replace").strip("\0 ")
    found = scheduled.entries_of(identifier.decode(raw[start:], syntax))
    checked = [worklist.checked(entry) for entry in found]
    for entry in checked:
        require_enough(entry)
    return checked


def of_csv(raw: bytes) -> Sequence[Entry]:
    """The entries of a CSV file in UTF-8, whose first row names the fields.

    Comma, semicolon or tab stand between values. Raises InvalidValue for the first few rows that
    are wrong, with their numbers, and the line and column of each.
    """
    rows = _rows(_decoded(raw))
    _, first = next(rows, (0, []))
    header = [one.strip().lower().replace(" ", "_") for one in first]
    _require_header(header)
    found: list[Entry] = []
    problems: list[str] = []
    for number, (line, row) in enumerate(rows, 2):
        if number > ROWS_MOST + 1:
            raise LimitExceeded(f"file: more than {ROWS_MOST} rows")
        if not any(one.strip() for one in row):
            continue
        try:
            found.append(_of_row(header, row))
        except InvalidValue as error:
            problems.append(f"row {number}: {error} ({_place(header, line, error.field)})")
            if len(problems) >= _SAID_MOST:
                break
    if problems:
        raise InvalidValue("file", "; ".join(problems))
    return found


def _decoded(raw: bytes) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeError:
        raise InvalidValue("file", "neither a DICOM file nor text in UTF-8") from None
    if "\0" in text:
        raise InvalidValue("file", "holds binary data")
    return text


def _place(header: Sequence[str], line: int, name: str) -> str:
    """Where in the file it stands: a value in quotes may go over several lines."""
    return f"line {line}, column {header.index(name) + 1}" if name in header else f"line {line}"


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line it begins in."""
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error:
        raise InvalidValue("file", f"line {reader.line_num} is not CSV") from None


def _require_header(header: Sequence[str]) -> None:
    if len(header) > _COLUMNS_MOST:
        raise LimitExceeded(f"file: more than {_COLUMNS_MOST} columns")
    for place, name in enumerate(header, 1):
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            meant = f"; {near[0]} may be meant" if near else ""
            raise InvalidValue("file", f"column {place} of the first row names no field{meant}")
    if len(set(header)) < len(header):
        raise InvalidValue("file", "the first row names a field twice")
    if "name" not in header or "modality" not in header:
        raise InvalidValue("file", "the first row must name at least name and modality")


def _of_row(header: Sequence[str], row: Sequence[str]) -> Entry:
    if len(row) != len(header):
        raise InvalidValue("row", f"has {len(row)} values, not {len(header)}")
    entry = entered(dict(zip(header, row, strict=True)))
    require_enough(entry)
    if not entry.patient.patient_id:
        raise InvalidValue("patient_id", "is missing")
    return entry
