"""The catalogue: what queries find of patients, studies, series and instances (PS3.4 C.6).

It holds what can be had by C-MOVE and C-GET, and nothing else: the version that stands for its SOP
Instance UID, while its bytes are here. What is quarantined, was superseded or evicted is not
found, nor what a rejection note hides, nor anything of a study that is held or rejected.

A patient is Patient ID and issuer, or one study where the ID is empty; what is said of a patient
is what came with the study received last.

Its order is the one a study was matched with, where the two agree or somebody let them differ.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from types import MappingProxyType

from edgepacs.store.db import Database, Transaction
from edgepacs.store.matching import (
    Clause,
    Criterion,
    Name,
    Pattern,
    Period,
    begins,
    each_of,
    of_parts,
)
from edgepacs.store.placing import folded


class Level(IntEnum):
    """Levels of the information model, the highest first (PS3.4 C.6.1.1, C.6.2.1)."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """An attribute the index can match and answer.

    `column` is its value in SQL. What is gathered from rows below has it from `gathered`, a FROM
    and WHERE, by the SQL of one row in `one`.
    """

    vr: str
    level: Level
    column: str
    gathered: str = ""
    one: str = ""


PATIENT_NAME, PATIENT_ID = 0x00100010, 0x00100020
STUDY_DATE, STUDY_TIME = 0x00080020, 0x00080030
STUDY_UID, SERIES_UID, SOP_UID = 0x0020000D, 0x0020000E, 0x00080018
REQUEST = 0x00400275  # Request Attributes Sequence
UNIQUE_KEYS: Mapping[Level, int] = MappingProxyType(
    {
        Level.PATIENT: PATIENT_ID,
        Level.STUDY: STUDY_UID,
        Level.SERIES: SERIES_UID,
        Level.IMAGE: SOP_UID,
    }
)

_SERIES_OF = "series WHERE series.study = study.id AND series.instance_count > series.hidden_count"
_INSTANCES_OF = (
    "series AS its CROSS JOIN instance AS one ON one.series = its.id "
    "WHERE its.study = study.id AND one.state = 'stored' AND NOT one.hidden"
)

# The order of a study, as `store.reconciliation` found it.
_ORDER = (
    "reconciliation AS found JOIN worklist AS entry ON entry.id = found.entry "
    "WHERE (found.flags = '' OR found.kept)"
)


def _shown(study: str) -> str:
    some = f"{study}.instance_count > {study}.hidden_count"
    return f"{some} AND {study}.state NOT IN ('held', 'rejected')"


_SAME_PATIENT = (
    "other.patient_id = study.patient_id AND other.issuer = study.issuer "
    "AND (other.id = study.id OR study.patient_id <> '')"
)
_STUDIES_OF = f"study AS other WHERE {_SAME_PATIENT} AND {_shown('other')}"
_FROM: Mapping[Level, str] = MappingProxyType(
    {
        Level.PATIENT: "study",
        Level.STUDY: "study",
        Level.SERIES: "study JOIN series ON series.study = study.id",
        Level.IMAGE: "study JOIN series ON series.study = study.id "
        "JOIN instance ON instance.series = series.id",
    }
)
_SHOWN: Mapping[Level, str] = MappingProxyType(
    {
        Level.PATIENT: f"{_shown('study')} AND NOT EXISTS (SELECT 1 FROM {_STUDIES_OF} "  # noqa: S608
        "AND other.id > study.id)",
        Level.STUDY: _shown("study"),
        Level.SERIES: f"{_shown('study')} AND series.instance_count > series.hidden_count",
        Level.IMAGE: f"{_shown('study')} AND instance.state = 'stored' AND NOT instance.hidden",
    }
)
_ROW: Mapping[Level, str] = MappingProxyType(
    {
        Level.PATIENT: "study.id",
        Level.STUDY: "study.id",
        Level.SERIES: "series.id",
        Level.IMAGE: "instance.id",
    }
)


def _plain(
    level: Level, table: str, columns: Mapping[int, tuple[str, str]]
) -> dict[int, Attribute]:
    return {
        tag: Attribute(vr=vr, level=level, column=f"{table}.{name}")
        for tag, (vr, name) in columns.items()
    }


def _count(level: Level, expression: str) -> Attribute:
    return Attribute(vr="IS", level=level, column=f"CAST({expression} AS TEXT)")


def _listed(vr: str, gathered: str, one: str) -> Attribute:
    values = f"SELECT DISTINCT {one} AS value FROM {gathered} AND {one} <> '' ORDER BY value"  # noqa: S608
    listed = f"(SELECT IFNULL(GROUP_CONCAT(value, '\\'), '') FROM ({values}))"  # noqa: S608
    return Attribute(vr=vr, level=Level.STUDY, column=listed, gathered=gathered, one=one)


ATTRIBUTES: Mapping[int, Attribute] = MappingProxyType(
    {
        **_plain(
            Level.PATIENT,
            "study",
            {
                PATIENT_NAME: ("PN", "patient_name"),
                PATIENT_ID: ("LO", "patient_id"),
                0x00100021: ("LO", "issuer"),
                0x00100030: ("DA", "birth_date"),
                0x00100040: ("CS", "sex"),
            },
        ),
        # Number of Patient Related Studies, Series, Instances (PS3.4 C.3.4)
        0x00201200: _count(Level.PATIENT, f"(SELECT COUNT(*) FROM {_STUDIES_OF})"),  # noqa: S608
        0x00201202: _count(
            Level.PATIENT,
            f"(SELECT COUNT(*) FROM study AS other JOIN series AS its ON its.study = other.id "  # noqa: S608
            "AND its.instance_count > its.hidden_count "
            f"WHERE {_SAME_PATIENT} AND {_shown('other')})",
        ),
        0x00201204: _count(
            Level.PATIENT,
            f"(SELECT SUM(other.instance_count - other.hidden_count) FROM {_STUDIES_OF})",  # noqa: S608
        ),
        **_plain(
            Level.STUDY,
            "study",
            {
                STUDY_DATE: ("DA", "study_date"),
                STUDY_TIME: ("TM", "study_time"),
                0x00080050: ("SH", "accession_number"),
                0x00080080: ("LO", "institution"),
                0x00080090: ("PN", "referring_physician"),
                0x00081030: ("LO", "description"),
                STUDY_UID: ("UI", "study_instance_uid"),
                0x00200010: ("SH", "study_id"),
            },
        ),
        0x00080061: _listed("CS", _SERIES_OF, "series.modality"),  # Modalities in Study
        0x00080062: _listed("UI", _INSTANCES_OF, "one.sop_class_uid"),  # SOP Classes in Study
        # Number of Study Related Series, Instances
        0x00201206: _count(Level.STUDY, f"(SELECT COUNT(*) FROM {_SERIES_OF})"),  # noqa: S608
        0x00201208: _count(Level.STUDY, "study.instance_count - study.hidden_count"),
        **_plain(
            Level.SERIES,
            "series",
            {
                0x00080060: ("CS", "modality"),
                0x00081010: ("SH", "station_name"),
                0x0008103E: ("LO", "description"),
                0x00180015: ("CS", "body_part"),
                SERIES_UID: ("UI", "series_instance_uid"),
                0x00200011: ("IS", "number"),
                0x00200060: ("CS", "laterality"),
            },
        ),
        # answered as the number of the order, whose items are its reader's to make
        REQUEST: Attribute(
            vr="SQ",
            level=Level.SERIES,
            column=f"IFNULL((SELECT CAST(entry.id AS TEXT) FROM {_ORDER} "  # noqa: S608
            "AND found.study = study.id), '')",
        ),
        # of Series Related Instances
        0x00201209: _count(Level.SERIES, "series.instance_count - series.hidden_count"),
        **_plain(
            Level.IMAGE,
            "instance",
            {
                0x00080016: ("UI", "sop_class_uid"),
                SOP_UID: ("UI", "sop_instance_uid"),
                0x00083002: ("UI", "transfer_syntax_uid"),  # Available Transfer Syntax UID
                0x00200013: ("IS", "instance_number"),
            },
        ),
        0x00280008: _count(Level.IMAGE, "instance.frames"),
        0x00280010: Attribute(vr="US", level=Level.IMAGE, column="CAST(instance.rows AS TEXT)"),
        0x00280011: Attribute(vr="US", level=Level.IMAGE, column="CAST(instance.columns AS TEXT)"),
    }
)

# The folded name in search_text, as the indices of names have it.
_NAME = "SUBSTR(study.search_text, 1, INSTR(study.search_text, CHAR(10)) - 1)"
_NAME_OF_ANY = _NAME.replace("study.", "named.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for at one level: criteria by tag, all of which must be met.

    `period` is asked of Study Date and Study Time together. `order` is asked of the order: by its
    field, and of a field that holds codes by the part of a code.
    """

    level: Level
    criteria: Mapping[int, Criterion]
    period: Period | None = None
    order: Mapping[str, Criterion | Mapping[int, Criterion]] = field(default_factory=dict)


def find(db: Database, query: Query, most: int) -> list[int]:
    """The row numbers of what matches, for `answers`; no more than `most`."""
    sql, values = statement(query, most)
    names = [one for _, one in _names(query)]
    with db.read() as tx, closing(tx.each(sql, *values)) as rows:
        found = (
            int(row[0])
            for row in rows
            if all(one.admits(name) for one, name in zip(names, row[1:], strict=True))
        )
        return list(islice(found, most))


def statement(query: Query, most: int) -> tuple[str, Sequence[str | int]]:
    """SQL of the row numbers, and of the names, among which `find` then chooses."""
    level, names = query.level, _names(query)
    clauses = [_clause(tag, one) for tag, one in query.criteria.items()]
    if query.period is not None:
        columns = ATTRIBUTES[STUDY_DATE].column, ATTRIBUTES[STUDY_TIME].column
        clauses.append(query.period.clause(*columns))
    if query.order:
        clauses.append(_ordered(query.order))
    conditions = " AND ".join([_SHOWN[level], *(sql for sql, _ in clauses)])
    read = ", ".join([_ROW[level], *(column for column, _ in names)])
    sql = f"SELECT {read} FROM {_FROM[level]} WHERE {conditions}"  # noqa: S608
    values = [value for _, bound in clauses for value in bound]
    return (sql, values) if names else (f"{sql} LIMIT ?", [*values, most])


def _names(query: Query) -> list[tuple[str, Criterion]]:
    """What SQL alone cannot decide, with its column: it knows case and accents of ASCII only."""
    asked = [(ATTRIBUTES[tag], one) for tag, one in query.criteria.items()]
    return [(attribute.column, one) for attribute, one in asked if attribute.vr == "PN"]


def answers(
    db: Database, level: Level, rows: Sequence[int], tags: Sequence[int]
) -> list[tuple[str, ...]]:
    """The values of `tags` of each of `rows`, in that order, as text."""
    with db.read() as tx:
        return _answers(tx, level, rows, [ATTRIBUTES[tag].column for tag in tags])


def _answers(
    tx: Transaction, level: Level, rows: Sequence[int], columns: Sequence[str]
) -> list[tuple[str, ...]]:
    tables = {
        Level.PATIENT: "study ON study.id = wanted.value",
        Level.STUDY: "study ON study.id = wanted.value",
        Level.SERIES: "series ON series.id = wanted.value CROSS JOIN study "
        "ON study.id = series.study",
        Level.IMAGE: "instance ON instance.id = wanted.value CROSS JOIN series "
        "ON series.id = instance.series CROSS JOIN study ON study.id = series.study",
    }
    # CROSS JOIN keeps the order: what is asked for leads.
    sql = (
        f"SELECT {', '.join(['wanted.value', *columns])} FROM JSON_EACH(?) AS wanted "  # noqa: S608
        f"CROSS JOIN {tables[level]}"
    )
    return [row[1:] for row in tx.rows(sql, json.dumps(list(rows)))]


def _clause(tag: int, criterion: Criterion) -> Clause:
    attribute = ATTRIBUTES[tag]
    if tag == PATIENT_NAME:
        return _near(criterion)
    if attribute.vr == "PN":
        return "1", ()  # checked by `find`
    if attribute.gathered:
        sql, values = criterion.clause(attribute.one)
        return f"EXISTS (SELECT 1 FROM {attribute.gathered} AND {sql})", values  # noqa: S608
    return criterion.clause(attribute.column)


def _ordered(wanted: Mapping[str, Criterion | Mapping[int, Criterion]]) -> Clause:
    """SQL of what there is an order for that meets all of it, found by what indices know best."""
    clauses = [
        one.clause(f"entry.{name}")
        if isinstance(one, Criterion)
        else of_parts(f"entry.{name}", one)
        for name, one in wanted.items()
    ]
    conditions = " AND ".join([_ORDER, *(sql for sql, _ in clauses)])
    sql = f"study.id IN (SELECT found.study FROM {conditions})"  # noqa: S608  own names only
    return sql, tuple(value for _, values in clauses for value in values)


# --- names -----------------------------------------------------------------------------------


def _near(criterion: Criterion) -> Clause:
    """SQL that an index serves, of patient names among which are all that match.

    What search_text says of a name is folded further than it is compared by, and shows where
    groups begin only as a space.
    """
    names = [one for one in each_of(criterion) if isinstance(one, Name)]
    if not names or len(names) < len(each_of(criterion)):
        return "1", ()
    parts = [part for name in names for part in _lookups(name)]
    sql = " UNION ALL ".join(
        f"SELECT named.id FROM study AS named WHERE {condition}"  # noqa: S608
        for condition, _ in parts
    )
    return f"study.id IN ({sql})", tuple(value for _, values in parts for value in values)


def _lookups(name: Name) -> list[Clause]:
    first = name.groups[0]
    leading = folded(first.prefix) if first is not None else ""
    if name.alone is not None and leading:
        return [_beginning(leading), _behind_first(name.alone)]
    if leading:
        return [_beginning(leading)]
    known = next(group for group in name.groups if group is not None)
    return [(f"{_NAME_OF_ANY} GLOB ?", (f"*{_loose(known)}*",))]


def _beginning(leading: str) -> Clause:
    parts = begins(_NAME_OF_ANY, leading)
    return " AND ".join(sql for sql, _ in parts), tuple(v for _, values in parts for v in values)


def _behind_first(group: Pattern) -> Clause:
    loose = f"* {_loose(group)}*"
    return f"INSTR(named.patient_name, '=') AND {_NAME_OF_ANY} GLOB ?", (loose,)


def _loose(pattern: Pattern) -> str:
    """The pattern with any characters wherever it leaves one open."""
    return "*".join(folded(piece).replace("[", "[[]") for piece in pattern.pieces)
