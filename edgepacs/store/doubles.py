"""Doubles: whether a patient who is entered by hand may be one that is known already.

Nobody is merged by what is found here: a person is asked, and says which it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepacs.model import State
from edgepacs.store.db import Transaction
from edgepacs.store.placing import folded
from edgepacs.store.worklist import Patient

_LOOKED_AT = 500  # people who share the ID, the birth date or all words of the name
_SHOWN = 20


class Likeness(State):
    """Why somebody may be the same patient, the weightiest first."""

    OTHER_PERSON = "other_person", "the same ID stands for another name or birth date"
    OTHER_ID = "other_id", "the same name and birth date, under another ID"
    SAME_NAME = "same_name", "the same name, under another ID; a birth date is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Double:
    """Somebody who is known here, from the worklist or from studies."""

    likeness: Likeness
    patient_id: str = field(repr=False)
    issuer: str = field(repr=False)
    name: str = field(repr=False)
    birth_date: str = field(repr=False)
    sex: str = field(repr=False)


def doubles(tx: Transaction, patient: Patient) -> Sequence[Double]:
    """Who is known that `patient` may be, or be taken for; none where there is no doubt.

    Names are compared as sets of words, without case and accents: given and family name are
    often swapped.
    """
    found: list[Double] = []
    for row in _candidates(tx, patient):
        known = Patient(
            **dict(zip(("patient_id", "issuer", "name", "birth_date", "sex"), row, strict=True))
        )
        likeness = _likeness(patient, known)
        if likeness is not None:
            found.append(
                Double(
                    likeness=likeness,
                    patient_id=known.patient_id,
                    issuer=known.issuer,
                    name=known.name,
                    birth_date=known.birth_date,
                    sex=known.sex,
                )
            )
    order = list(Likeness)
    return sorted(found, key=lambda one: order.index(one.likeness))[:_SHOWN]


def _candidates(tx: Transaction, patient: Patient) -> list[tuple[str, ...]]:
    columns = "SELECT patient_id, issuer, {name}, birth_date, sex FROM {table} WHERE "
    selects, values = [], list[str]()
    words = sorted(_words(patient.name))
    for table, name in (("worklist", "name"), ("study", "patient_name")):
        conditions = []
        if patient.patient_id:
            conditions.append("patient_id = ?")
            values.append(patient.patient_id)
        if patient.birth_date:
            conditions.append("birth_date = ?")
            values.append(patient.birth_date)
        if words:
            conditions.append(" AND ".join(["INSTR(search_text, ?) > 0"] * len(words)))
            values += words
        if not conditions:
            return []
        either = " OR ".join(f"({one})" for one in conditions)
        selects.append(columns.format(table=table, name=name) + either)
    return tx.rows(" UNION ".join(selects) + f" LIMIT {_LOOKED_AT}", *values)


def _words(name: str) -> frozenset[str]:
    """The words of the first component group that has any."""
    groups = (frozenset(folded(group).split()) for group in name.split("="))
    return next((words for words in groups if words), frozenset())


def _likeness(one: Patient, known: Patient) -> Likeness | None:
    same_name = bool(_words(one.name)) and _words(one.name) == _words(known.name)
    dated = bool(one.birth_date and known.birth_date)
    same_date = dated and one.birth_date == known.birth_date
    if one.patient_id and (one.patient_id, one.issuer) == (known.patient_id, known.issuer):
        agree = same_name and (same_date or not dated)
        return None if agree else Likeness.OTHER_PERSON
    if not same_name or (dated and not same_date):
        return None
    return Likeness.OTHER_ID if dated else Likeness.SAME_NAME
