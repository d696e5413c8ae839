"""Rejection notes: made as the standard wants them, and read whoever made them."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from harness import dcmtk, made, notes
from harness.part10 import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Part10, decode
from harness.part10 import part10_file as in_a_file
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from store.making import commit, element, small, take_in, take_in_part
from store.ordering import image

from edgepacs.custody import ingest, rejection, restore
from edgepacs.custody.rejection import Note
from edgepacs.errors import EdgePacsError, Gone, InvalidValue, LimitExceeded
from edgepacs.model import UID, Arrival, InstanceState, Origin
from edgepacs.store import Store, audit, instances
from edgepacs.store.instances import Instance
from edgepacs.store.rejections import Title

AT_MS = 1_795_480_000_000


def note_of(store: Store, *rows: Instance, title: Title = Title.WORKLIST) -> Instance:
    """A note of these instances, made known."""
    with store.vault.writing():
        draft = rejection.drafted(store, rows, title=title, at_ms=AT_MS)
        return instances.instance(store.db, commit(store, draft).instance_id)


def received(store: Store, one: Instance) -> bytes:
    return b"".join(restore.received_chunks(store, one))


def two_series(store: Store) -> list[Instance]:
    receipts = [
        image(store, sop="1.1", PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100"),
        image(store, sop="1.2", SeriesInstanceUID="1.2.3.9"),
        image(store, sop="1.3", SeriesInstanceUID="1.2.3.9"),
    ]
    return [instances.instance(store.db, one.instance_id) for one in receipts]


# Type 1, and type 2, of the modules of PS3.3 A.35.4 (C.7.1.1, C.7.2.1, C.7.5.1, C.12.1, C.17.3,
# C.17.6.1, C.17.6.2).
FILLED = """SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber Modality
 InstanceNumber ContentDate ContentTime CurrentRequestedProcedureEvidenceSequence ValueType
 ConceptNameCodeSequence ContinuityOfContent ContentTemplateSequence ContentSequence"""
THERE = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID
 Manufacturer AccessionNumber ReferringPhysicianName ReferencedPerformedProcedureStepSequence"""


def test_a_note_says_what_the_standard_wants(store: Store) -> None:
    one = note_of(store, *two_series(store))
    assert (one.origin, one.sop_class_uid) == (Origin.LOCAL, notes.KEY_OBJECTS)
    dataset = decode(received(store, one), EXPLICIT_LE)
    assert [name for name in FILLED.split() if not dataset.get(name)] == []
    assert [name for name in THERE.split() if name not in dataset] == []
    assert (dataset.Modality, dataset.PatientName) == ("KO", "Müller^Jörg")
    assert (dataset.StudyInstanceUID, dataset.AccessionNumber) == ("1.2.3.1", "A1")
    assert dataset.SeriesInstanceUID not in ("1.2.3.2", "1.2.3.9")
    (title,) = dataset.ConceptNameCodeSequence
    wanted = codes.CID7010.IncorrectModalityWorklistEntry  # type: ignore[attr-defined]
    assert (title.CodeValue, title.CodingSchemeDesignator) == (
        wanted.value,
        wanted.scheme_designator,
    )
    assert title.CodeMeaning == wanted.meaning
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == "1.2.3.1"
    evidence = {
        one.SeriesInstanceUID: [sop.ReferencedSOPInstanceUID for sop in one.ReferencedSOPSequence]
        for one in study.ReferencedSeriesSequence
    }
    assert evidence == {"1.2.3.2": ["1.1"], "1.2.3.9": ["1.2", "1.3"]}
    content = [
        (
            item.RelationshipType,
            item.ValueType,
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID,
        )
        for item in dataset.ContentSequence
    ]
    assert content == [("CONTAINS", "IMAGE", uid) for uid in ("1.1", "1.2", "1.3")]
    assert rejection.read(store, one) == Note(Title.WORKLIST, ("1.1", "1.2", "1.3"))
    assert_well_formed(dataset)


def assert_well_formed(dataset: Dataset) -> None:
    """Every element has the VR and multiplicity of PS3.6, in every item."""
    for item in dataset.iterall():
        assert dictionary_VR(item.tag) == item.VR, item.tag
        assert dictionary_VM(item.tag) != "1" or item.VM <= 1 or item.VR == "SQ", item.tag


@pytest.mark.peers
def test_dcmtk_reads_a_note_as_a_document(store: Store, tmp_path: Path) -> None:
    one = note_of(store, *two_series(store), title=Title.SAFETY)
    file = tmp_path / "note.dcm"
    file.write_bytes(
        in_a_file(one.sop_class_uid, one.sop_instance_uid, EXPLICIT_LE, received(store, one))
    )
    command = [dcmtk.require("dsrdump"), "-v", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert run.returncode == 0, run.stderr
    assert "error" not in run.stderr.lower()
    assert run.stderr.lower().count("warning") == 0, run.stderr
    assert "Key Object Selection Document" in run.stdout
    assert "Rejected for Patient Safety Reasons" in run.stdout
    assert run.stdout.count("contains IMAGE") == 3


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE])
def test_it_is_of_the_patient_of_what_it_names_however_that_came(store: Store, syntax: str) -> None:
    dataset = made.ct(patient_id="7").dataset()
    dataset.SpecificCharacterSet = "ISO_IR 144"
    dataset.PatientName, dataset.IssuerOfPatientID = "Дойл^Яна", "Бюро"
    receipt = take_in_part(store, made.instance(dataset, syntax))
    one = note_of(store, instances.instance(store.db, receipt.instance_id))
    said = decode(received(store, one), EXPLICIT_LE)
    assert (said.PatientName, said.PatientID, said.IssuerOfPatientID) == ("Дойл^Яна", "7", "Бюро")
    assert one.study == receipt.study_id


def test_documents_and_waveforms_are_named_as_what_they_are(store: Store) -> None:
    ecg = "1.2.840.10008.5.1.4.1.1.9.1.1"
    rows = []
    for sop, sop_class in (("1.1", "1.2.840.10008.5.1.4.1.1.104.1"), ("1.2", ecg)):
        arrival = Arrival(
            sop_class_uid=UID(sop_class),
            sop_instance_uid=UID(sop),
            transfer_syntax_uid=UID(EXPLICIT_LE),
            origin=Origin.MODALITY,
            source="CT1",
        )
        receipt = ingest.receive(store, arrival, [small(sop=sop, sop_class=sop_class)])
        rows.append(instances.instance(store.db, receipt.instance_id))
    dataset = decode(received(store, note_of(store, *rows)), EXPLICIT_LE)
    assert [one.ValueType for one in dataset.ContentSequence] == ["COMPOSITE", "WAVEFORM"]


def test_what_cannot_be_said_is_not_said(store: Store) -> None:
    one = instances.instance(store.db, take_in(store).instance_id)
    with pytest.raises(InvalidValue):
        rejection.drafted(store, [], title=Title.WORKLIST, at_ms=AT_MS)
    with pytest.raises(InvalidValue):
        rejection.drafted(store, [one], title=Title.QUALITY, at_ms=AT_MS)
    with store.db.write() as tx:
        instances.move(tx, one.id, InstanceState.EVICTED, actor="test")
    with pytest.raises(Gone):
        rejection.drafted(
            store, [instances.instance(store.db, one.id)], title=Title.WORKLIST, at_ms=AT_MS
        )
    assert audit.broken_at(store.db) is None


# --- those of others ---------------------------------------------------------------------------


def read(store: Store, part: Part10) -> Note | None:
    receipt = take_in_part(store, part)
    return rejection.read(store, instances.instance(store.db, receipt.instance_id))


@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE])
@pytest.mark.parametrize("title", list(Title))
def test_notes_of_others_are_read(store: Store, title: Title, syntax: str) -> None:
    part = notes.rejection(["1.1", "1.2", "1.1"], title=title, syntax=syntax)
    assert read(store, part) == Note(title, ("1.1", "1.2"))


def test_sequences_of_undefined_length_are_read(store: Store) -> None:
    dataset = notes.document(["1.1"], title=notes.QUALITY)
    for one in dataset.iterall():
        if one.VR == "SQ":
            one.is_undefined_length = True
            for item in one.value:
                item.is_undefined_length_sequence_item = True
    assert read(store, made.instance(dataset)) == Note(Title.QUALITY, ("1.1",))


def test_other_key_objects_reject_nothing(store: Store) -> None:
    assert read(store, notes.rejection(["1.1"], title="113000")) is None  # Of Interest
    assert read(store, notes.rejection(["1.1"], scheme="99HERE")) is None
    untitled = notes.document(["1.1"], title=notes.WORKLIST)
    del untitled.ConceptNameCodeSequence
    assert read(store, made.instance(untitled)) is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error"),
    [
        (element(0x0040A730, "SQ", b"\xfe\xff\x00\xe0" + bytes(4)), None),
        (element(0x0040A730, "SQ", (b"\xfe\xff\x00\xe0" + bytes(4)) * 100_001), LimitExceeded),
        (element(0x0040A730, "SQ", b"\xfe\xff\x00\xe0" + b"\xff\xff\xff\x7f"), EdgePacsError),
        (element(0x7FE00010, "OB", bytes(16 << 20)), LimitExceeded),
    ],
)
def test_hostile_notes_are_refused(
    store: Store, more: bytes, error: type[EdgePacsError] | None
) -> None:
    head = small(sop="1.9", sop_class=notes.KEY_OBJECTS)
    title = b"".join(
        (
            element(0x00080100, "SH", notes.SAFETY),
            element(0x00080102, "SH", "DCM"),
        )
    )
    item = b"\xfe\xff\x00\xe0" + len(title).to_bytes(4, "little") + title
    one = arrived(store, head + element(0x0040A043, "SQ", item) + more)
    if error is None:
        assert rejection.read(store, one) == Note(Title.SAFETY, ())
        return
    with pytest.raises(error):
        rejection.read(store, one)


def test_a_note_that_is_nested_without_end_is_refused(store: Store) -> None:
    data = b""
    for _ in range(9):
        item = b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data
        data = element(0x0040A730, "SQ", item)
    one = arrived(store, small(sop="1.9", sop_class=notes.KEY_OBJECTS) + data)
    with pytest.raises(InvalidValue):
        rejection.read(store, one)


def test_a_note_that_names_no_uid_is_refused(store: Store) -> None:
    part = notes.rejection(["1.2.3.4567"])
    part = replace(part, data=part.data.replace(b"1.2.3.4567", b"1.2.3.JANE"))
    with pytest.raises(InvalidValue) as caught:
        read(store, part)
    assert "JANE" not in str(caught.value)


def arrived(store: Store, data: bytes) -> Instance:
    arrival = Arrival(
        sop_class_uid=UID(notes.KEY_OBJECTS),
        sop_instance_uid=UID("1.9"),
        transfer_syntax_uid=UID(EXPLICIT_LE),
        origin=Origin.MODALITY,
        source="CT1",
    )
    receipt = ingest.receive(store, arrival, [data])
    return instances.instance(store.db, receipt.instance_id)
