"""Entries that people bring: forms, CSV however hostile, DICOM worklist files."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from store.making import opened_store

from edgepacs import clock
from edgepacs.custody import entered
from edgepacs.errors import EdgePacsError, InvalidValue, LimitExceeded
from edgepacs.store import Store, hours, worklist
from edgepacs.store.worklist import Entry, Held

HEAD = "patient_id,name,modality"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened_store(tmp_path / "node") as one:
        yield one


def held(store: Store) -> list[Held]:
    with store.db.read() as tx:
        return list(worklist.entries(tx))


@pytest.mark.parametrize(
    ("field", "said", "kept"),
    [
        ("birth_date", "1960-01-31", "19600131"),
        ("birth_date", "19600131", "19600131"),
        ("start_time", "9:30", None),
        ("start_time", "09:30", "093000"),
        ("start_time", "093015", "093015"),
        ("birth_date", "31.1.1960", None),
        ("birth_date", "today", None),
        ("birth_date", "1960-02-31x", None),
        ("sex", "female", "F"),
        ("sex", "X", None),
        ("modality", "ct", "CT"),
        ("modality", "C/T", None),
        ("name", "Doe, Jane", "Doe^Jane"),
        ("name", "Yamada^Tarou=山田^太郎", "Yamada^Tarou=山田^太郎"),
        ("name", "a=b=c=d", None),
        ("name", "x" * 65, None),
        ("weight", "70,5", "70.5"),
        ("weight", "heavy", None),
        ("pregnancy", "4", "4"),
        ("pregnancy", "5", None),
        ("laterality", "left", "L"),
        ("station_ae", "CT1\\CT2", "CT1\\CT2"),
        ("station_ae", "x" * 17, None),
        ("accession_number", "A" * 17, None),
        ("study_instance_uid", "1.2.840", "1.2.840"),
        ("study_instance_uid", "abc", None),
        ("comments", "", ""),
        ("colour", "red", None),
    ],
)
def test_fields_are_read_as_people_write_them(field: str, said: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(InvalidValue) as refused:
            entered.entered({field: said})
        assert said not in str(refused.value)
        return
    entry = entered.entered({field: said})
    assert getattr(entry.patient, field, None) == kept or getattr(entry, field, None) == kept


def test_every_field_has_its_vr() -> None:
    assert set(entered.FIELDS) == set(entered.scheduled.VRS)


def test_csv_is_taken_in_and_again_brings_up_to_date(store: Store) -> None:
    rows = f"{HEAD},accession_number,step_id\r\nP1,Müller^Ä,CT,A1,S1\r\n\r\nP2,Roe^J,MR,A2,S1\r\n"
    for delimiter in ",;\t":
        raw = b"\xef\xbb\xbf" + rows.replace(",", delimiter).encode()
        entered.take_in(store.db, raw, actor="mara")
    assert [one.entry.patient.name for one in held(store)] == ["Müller^Ä", "Roe^J"]
    changed = rows.replace("Roe^J", "Doe^J").encode("utf-16")
    done = entered.take_in(store.db, changed, actor="mara")
    assert (done.added, done.updated) == (0, 2)
    assert [one.entry.patient.name for one in held(store)] == ["Müller^Ä", "Doe^J"]
    assert {(one.origin, one.source) for one in held(store)} == {("import", "csv")}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "at least name and modality"),
        (b"\x89PNG\r\n\x1a\n", "neither a DICOM file nor text in UTF-8"),
        (b"patient_id,name,modality\nP1,M\xfcller,CT\n", "neither a DICOM file nor text in UTF-8"),
        (b"patient_id,name,modality\nP1,a\0b,CT\n", "binary"),
        (b"patient_id,name,modality,owner\n", "column 4"),
        (
            b"patient_id,name,modality,Birthdate\n",
            "column 4 of the first row names no field; birth",
        ),
        (b"patient_id,name,modality,name\n", "twice"),
        (b"patient_id,name\nP1,Doe\n", "at least name and modality"),
        (b"patient_id,name,modality\nP1,Doe\n", "row 2: row: has 2 values, not 3"),
        (b"patient_id,name,modality\nP1,Doe,CT,more\n", "row 2: row: has 4 values, not 3"),
        (b"patient_id,name,modality\nP1,Doe,CT\n,Roe,CT\n", "row 3: patient_id: is missing"),
        (b"patient_id,name,modality\nP1,,CT\n", "row 2: name: is missing"),
        (b'patient_id,name,modality\nP1,"Doe,CT\n', "is not CSV"),
        (b'patient_id,name,modality\nP1,"Doe"x,CT\n', "is not CSV"),
        (b"patient_id,name,modality\nP1," + b"x" * 200_000 + b",CT\n", "is not CSV"),
        (b"patient_id,name,modality\nP1,a\x1b[2Jb,CT\n", "row 2: name: holds control characters"),
        (b"patient_id,name,modality\nA\\B,Doe,CT\n", "row 2: patient_id: holds a backslash"),
    ],
)
def test_hostile_csv_is_refused_whole(store: Store, raw: bytes, words: str) -> None:
    with pytest.raises(InvalidValue, match="file") as refused:
        entered.take_in(store.db, raw, actor="mara")
    assert words in str(refused.value)
    assert "Doe" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert held(store) == []


def test_what_is_wrong_in_a_file_is_said_by_line_and_column(store: Store) -> None:
    raw = f'{HEAD},comments\nP1,Doe,CT,"one\ntwo"\nP2,Doe,C/T,\nP3,Doe\n'.encode()
    with pytest.raises(InvalidValue) as refused:
        entered.take_in(store.db, raw, actor="mara")
    first, second = str(refused.value).split("; ")
    assert first.startswith("file: row 3: modality: ")
    assert first.endswith("(line 4, column 3)")
    assert second == "row 4: row: has 2 values, not 4 (line 5)"


def test_a_start_may_be_today() -> None:
    before = hours.day_of(clock.wall_ms() / 1000)
    said = entered.entered({"start_date": "Today"}).start_date
    after = hours.day_of(clock.wall_ms() / 1000)  # midnight may come between
    assert said in {f"{before:%Y%m%d}", f"{after:%Y%m%d}"}


def test_one_bad_row_keeps_all_others_out(store: Store) -> None:
    rows = [HEAD, *(f"P{n},Doe^{n},CT" for n in range(50)), *["P,Doe,C/T"] * 50]
    with pytest.raises(InvalidValue) as refused:
        entered.take_in(store.db, "\n".join(rows).encode(), actor="mara")
    assert str(refused.value).count("row ") == 5  # and not fifty
    assert "row 52: modality" in str(refused.value)
    assert held(store) == []


def test_a_file_has_bounds(store: Store) -> None:
    for raw in (
        "\n".join([HEAD, *["P,Doe,CT"] * (entered.ROWS_MOST + 1)]).encode(),
        ("," * 200).encode() + b"\n",
        b" " * (entered.FILE_MOST + 1),
    ):
        with pytest.raises(LimitExceeded):
            entered.take_in(store.db, raw, actor="mara")
    assert held(store) == []


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=100))
def test_no_bytes_do_anything_but_be_refused_or_read(raw: bytes, text: str) -> None:
    headed = f"{HEAD}\n{text}".encode("utf-8", "surrogatepass")
    for one in (raw, headed, bytes(128) + b"DICM" + raw):
        try:
            found = entered.of_dicom(one) if one[128:132] == b"DICM" else entered.of_csv(one)
        except EdgePacsError:
            continue
        assert all(isinstance(entry, Entry) for entry in found)


def test_what_a_spreadsheet_would_execute_is_only_text(store: Store) -> None:
    raw = f"{HEAD},step_description\nP1,Doe,CT,=cmd|' /C calc'!A0\n".encode()
    entered.take_in(store.db, raw, actor="mara")
    assert held(store)[0].entry.step_description == "=cmd|' /C calc'!A0"


# --- DICOM worklist files ----------------------------------------------------------------------


def dicom_file(one: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.31"
    one.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    one.file_meta.TransferSyntaxUID = syntax
    raw = io.BytesIO()
    one.save_as(raw, enforce_file_format=True)
    return raw.getvalue()


def scheduled(steps: int = 1) -> Dataset:
    one = Dataset()
    one.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    one.PatientName = "Yamada^Tarou=山田^太郎"
    one.PatientID = "P1"
    one.AccessionNumber = "A1"
    one.StudyInstanceUID = "1.2.3"
    one.RequestedProcedureID = "R1"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "Head^neck"
    one.RequestedProcedureCodeSequence = [code]
    one.PregnancyStatus = 4
    one.ScheduledProcedureStepSequence = []
    for number in range(steps):
        step = Dataset()
        step.Modality = "CT"
        step.ScheduledStationAETitle = ["CT1", "CT2"]
        step.ScheduledProcedureStepStartDate = "20261123"
        step.ScheduledProcedureStepID = f"S{number}"
        one.ScheduledProcedureStepSequence.append(step)
    return one


def test_a_dicom_worklist_file_brings_an_entry_for_each_step(store: Store) -> None:
    done = entered.take_in(store.db, dicom_file(scheduled(2)), actor="mara")
    assert (done.added, done.updated) == (2, 0)
    first, second = (one.entry for one in held(store))
    assert first.patient.name == "Yamada^Tarou=山田^太郎"
    assert (first.patient.pregnancy, first.accession_number) == ("4", "A1")
    assert (first.modality, first.station_ae) == ("CT", "CT1\\CT2")
    assert first.procedure_code == "1^99X^Head neck"
    assert (first.step_id, second.step_id) == ("S0", "S1")
    assert first.study_instance_uid == second.study_instance_uid == "1.2.3"
    again = entered.take_in(store.db, dicom_file(scheduled(2)), actor="mara")
    assert (again.added, again.updated) == (0, 2)


def test_a_dicom_file_that_is_no_worklist_is_refused(store: Store) -> None:
    other = Dataset()
    other.PatientID = "P1"
    for raw in (
        dicom_file(other),
        dicom_file(scheduled(), DeflatedExplicitVRLittleEndian),
        dicom_file(scheduled())[:-7],
        bytes(128) + b"DICM" + os.urandom(64),
    ):
        with pytest.raises(InvalidValue):
            entered.take_in(store.db, raw, actor="mara")
    assert held(store) == []
