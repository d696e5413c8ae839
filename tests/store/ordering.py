"""Orders for tests: entries of the worklist, and studies that are of them or differ."""

from dataclasses import replace

from harness import made
from store.making import take_in_part

from edgepacs.model import EntryId, EntryOrigin, Receipt, StudyId, WorklistMatch
from edgepacs.store import Store, reconciliation, worklist
from edgepacs.store.reconciliation import Reconciliation
from edgepacs.store.worklist import Entry, Patient

UID_OF_ORDER = "1.2.3.1"
DOE = Patient(patient_id="P1", name="Doe^Jane", birth_date="19700101", sex="F")
CT_OF_DOE = Entry(
    patient=DOE,
    study_instance_uid=UID_OF_ORDER,
    accession_number="A1",
    modality="CT",
    start_date="20261123",
    start_time="101500",
    step_id="S1",
    procedure_id="RP1",
)
_SAYS = {
    "StudyInstanceUID": UID_OF_ORDER,
    "SeriesInstanceUID": "1.2.3.2",
    "PatientID": "P1",
    "PatientName": "DOE^Jane^",
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "AccessionNumber": "A1",
    "StudyDate": "20261123",
    "StudyTime": "1030",
    "StationName": "CT1",
}


def order(store: Store, entry: Entry = CT_OF_DOE, *, key: str = "1", **other: str) -> EntryId:
    """An entry of the worklist: of Doe's CT, but for what is said otherwise."""
    with store.db.write() as tx:
        return worklist.put(
            tx, replace(entry, **other), origin=EntryOrigin.HL7, source="RIS", key=key, actor="RIS"
        )


def image(store: Store, *, sop: str = "", source: str = "CT1", **says: str) -> Receipt:
    """Take in one CT of Doe's order, but for what is said otherwise."""
    dataset = made.ct(sop=sop).dataset()
    for keyword, value in {**_SAYS, **says}.items():
        setattr(dataset, keyword, value)
    return take_in_part(store, made.instance(dataset), source=source)


def found(store: Store, number: StudyId) -> Reconciliation:
    """What was found of a study."""
    row = reconciliation.of_study(store.db, number)
    assert row is not None
    return row


def match(store: Store, number: StudyId) -> WorklistMatch:
    """What the study's row says of its order."""
    with store.db.read() as tx:
        row = tx.first("SELECT worklist FROM study WHERE id = ?", number)
    assert row is not None
    return WorklistMatch(row[0])
