"""Placing: the rows of patient, study and series that an instance belongs to, and their counts.

A patient is (Patient ID, issuer), or one per study where the ID is empty. A study keeps its own
demographics; one Study Instance UID with two patients is flagged, never merged.
"""

import unicodedata

from edgepacs.clock import wall_ms
from edgepacs.model import Attributes, StudyState
from edgepacs.store.db import Transaction
from edgepacs.store.drafts import Draft


def place(tx: Transaction, draft: Draft) -> tuple[int, int]:
    """The rows of its study and series, made or brought up to date."""
    a = draft.attributes
    found = tx.first(
        "SELECT patient.id, study.id, study.modalities, series.id FROM patient "
        "LEFT JOIN study ON study.study_instance_uid = ? AND study.patient = patient.id "
        "LEFT JOIN series ON series.study = study.id AND series.series_instance_uid = ? "
        "WHERE patient.patient_id = ? AND patient.issuer = ? AND patient.alone_in = ?",
        a.study_instance_uid,
        a.series_instance_uid,
        a.patient_id,
        a.issuer_of_patient_id,
        _alone_in(a),
    )
    patient, study, modalities, series = found or (None, None, None, None)
    if patient is None:
        patient = _new_patient(tx, a, draft.received_ms)
    if study is None:
        study = _new_study(tx, draft, patient)
    elif a.modality and a.modality not in modalities.split("\\"):
        _add_modality(tx, study, modalities, a.modality)
    if series is None:
        series = _new_series(tx, draft, study)
    return study, series


def _alone_in(a: Attributes) -> str:
    """A patient is (Patient ID, issuer), or one per study where the ID is empty."""
    return "" if a.patient_id else a.study_instance_uid


def _new_patient(tx: Transaction, a: Attributes, now_ms: int) -> int:
    return tx.insert(
        "patient",
        {
            "patient_id": a.patient_id,
            "issuer": a.issuer_of_patient_id,
            "alone_in": _alone_in(a),
            "name": a.patient_name,
            "birth_date": a.patient_birth_date,
            "sex": a.patient_sex,
            "created_ms": now_ms,
        },
    )


def _add_modality(tx: Transaction, study: int, modalities: str, modality: str) -> None:
    """Bring a study's Modalities in Study (0008,0061) up to date."""
    every = sorted(one for one in [*modalities.split("\\"), modality] if one)
    tx.run("UPDATE study SET modalities = ? WHERE id = ?", "\\".join(every), study)


def _new_study(tx: Transaction, draft: Draft, patient: int) -> int:
    """A new study; one Study Instance UID with two patients is flagged, never merged."""
    a = draft.attributes
    others = tx.rows("SELECT id FROM study WHERE study_instance_uid = ?", a.study_instance_uid)
    number = tx.insert(
        "study",
        {
            "study_instance_uid": a.study_instance_uid,
            "patient": patient,
            "state": StudyState.RECEIVED,
            "state_ms": draft.received_ms,
            "patient_name": a.patient_name,
            "patient_id": a.patient_id,
            "issuer": a.issuer_of_patient_id,
            "birth_date": a.patient_birth_date,
            "sex": a.patient_sex,
            "study_date": a.study_date,
            "study_time": a.study_time,
            "study_id": a.study_id,
            "accession_number": a.accession_number,
            "description": a.study_description,
            "referring_physician": a.referring_physician,
            "institution": a.institution,
            "modalities": a.modality,
            "search_text": _search_text(a),
            "created_ms": draft.received_ms,
            "received_ms": 0,
        },
    )
    for study in [number, *(row[0] for row in others)] if others else []:
        flag_study(tx, study, "two-patients")
    return number


def flag_study(tx: Transaction, study: int, word: str) -> None:
    """Add a word to a study's flags, once."""
    tx.run(
        "UPDATE study SET flags = TRIM(flags || ' ' || ?) "
        "WHERE id = ? AND INSTR(' ' || flags || ' ', ' ' || ? || ' ') = 0",
        word,
        study,
        word,
    )


def unflag_study(tx: Transaction, study: int, word: str) -> None:
    """Take a word out of a study's flags."""
    tx.run(
        "UPDATE study SET flags = TRIM(REPLACE(' ' || flags || ' ', ' ' || ? || ' ', ' ')) "
        "WHERE id = ?",
        word,
        study,
    )


def folded(text: str) -> str:
    """`text` for searching: without case, accents or name separators."""
    plain = unicodedata.normalize("NFKD", text.replace("^", " ").replace("=", " "))
    return "".join(c for c in plain if not unicodedata.combining(c)).casefold()


def _new_series(tx: Transaction, draft: Draft, study: int) -> int:
    a = draft.attributes
    tx.run("UPDATE study SET series_count = series_count + 1 WHERE id = ?", study)
    return tx.insert(
        "series",
        {
            "study": study,
            "series_instance_uid": a.series_instance_uid,
            "modality": a.modality,
            "number": a.series_number,
            "description": a.series_description,
            "body_part": a.body_part,
            "station_name": a.station_name,
            "laterality": a.laterality,
            "created_ms": draft.received_ms,
            "received_ms": 0,
        },
    )


def count(
    tx: Transaction, study: int, series: int, instances: int, length: int, received_ms: int = 0
) -> None:
    """Bring the counts of study and series up to date, and to the second when they last grew.

    To the second, because a study's place in the list by age is a page more to write.
    """
    second = received_ms // 1000 * 1000
    tx.run(
        "UPDATE series SET instance_count = instance_count + ?, byte_size = byte_size + ?, "
        "received_ms = MAX(received_ms, ?) WHERE id = ?",
        *(instances, length, second, series),
    )
    tx.run(
        "UPDATE study SET instance_count = instance_count + ?, byte_size = byte_size + ? "
        "WHERE id = ?",
        *(instances, length, study),
    )
    tx.run("UPDATE study SET received_ms = ?1 WHERE id = ?2 AND received_ms < ?1", second, study)


# --- when what it says has been corrected ------------------------------------------------------


def rehome(tx: Transaction, study: int, a: Attributes) -> None:
    """Let a study be of the patient and the order that `a` names.

    Where that patient has a row for the same Study Instance UID already, it stays as it is: what
    is placed next goes there.
    """
    row = tx.first("SELECT study_instance_uid, patient FROM study WHERE id = ?", study)
    if row is None or row[0] != a.study_instance_uid:
        return
    patient = tx.number(
        "SELECT id FROM patient WHERE patient_id = ? AND issuer = ? AND alone_in = ?",
        *(a.patient_id, a.issuer_of_patient_id, _alone_in(a)),
    ) or _new_patient(tx, a, wall_ms())
    if tx.first(
        "SELECT 1 FROM study WHERE study_instance_uid = ? AND patient = ? AND id != ?",
        *(a.study_instance_uid, patient, study),
    ):
        return
    tx.run(
        "UPDATE study SET patient = ?, patient_name = ?, patient_id = ?, issuer = ?, "
        "birth_date = ?, sex = ?, accession_number = ?, referring_physician = ?, "
        "search_text = ? WHERE id = ?",
        *(patient, a.patient_name, a.patient_id, a.issuer_of_patient_id),
        *(a.patient_birth_date, a.patient_sex, a.accession_number, a.referring_physician),
        *(_search_text(a), study),
    )
    _leave(tx, row[1], patient, a)


def _leave(tx: Transaction, former: int, patient: int, a: Attributes) -> None:
    """Of a patient nothing is left of, no row is; one of a single study says what that says."""
    tx.run(
        "DELETE FROM patient WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM study WHERE patient = ?1)",
        former,
    )
    tx.run(
        "UPDATE patient SET name = ?2, birth_date = ?3, sex = ?4 WHERE id = ?1 AND "
        "(SELECT COUNT(*) FROM study WHERE patient = ?1) = 1",
        *(patient, a.patient_name, a.patient_birth_date, a.patient_sex),
    )


def side(tx: Transaction, series: int, said: Attributes) -> None:
    """A series is of the side that what stands in it says."""
    sql = "UPDATE series SET laterality = ?1 WHERE id = ?2 AND laterality != ?1"
    tx.run(sql, said.laterality, series)


def _search_text(a: Attributes) -> str:
    return folded(f"{a.patient_name}\n{a.patient_id}\n{a.accession_number}\n{a.study_description}")
