"""Performed procedure steps told by a modality of another stack (pynetdicom), kept and answered."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import ModalityPerformedProcedureStep
from scp.serving import Serving, serving
from store.making import CT, take_in

from edgepacs.model import EntryOrigin, EntryState, Service, StepState
from edgepacs.scp import mpps
from edgepacs.scp.mpps import NO_LONGER
from edgepacs.store import audit, steps, worklist
from edgepacs.store.worklist import Entry, Patient

MPPS = ModalityPerformedProcedureStep
STUDY, STEP, SERIES = "1.2.3.1", "1.2.3.77", "1.2.3.2"
IMAGES = ("1.2.3.2.1", "1.2.3.2.2", "1.2.3.2.3")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        one.allow("CT1", services=(Service.MPPS,))
        yield one


@contextmanager
def modality(
    node: Serving, title: str = "CT1", syntax: str = ImplicitVRLittleEndian
) -> Iterator[Association]:
    ae = AE(ae_title=title)
    ae.add_requested_context(MPPS, syntax)
    association = ae.associate("127.0.0.1", node.port, ae_title="EDGEPACS")
    assert association.is_established
    try:
        yield association
    finally:
        association.release()
        ae.shutdown()


def item(**values: object) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def begun(**changes: object) -> Dataset:
    """An N-CREATE data set as modalities send it (PS3.4 table F.7.2-1)."""
    data = item(
        ScheduledStepAttributesSequence=[
            item(
                StudyInstanceUID=STUDY,
                ReferencedStudySequence=[],
                AccessionNumber="ACC1",
                RequestedProcedureID="RP1",
                ScheduledProcedureStepID="SPS1",
            )
        ],
        PatientName="Doe^Jane",
        PatientID="P1",
        PatientBirthDate="",
        PatientSex="F",
        Modality="CT",
        PerformedProcedureStepID="PPS1",
        PerformedStationAETitle="CT1",
        PerformedStationName="",
        PerformedProcedureStepStartDate="20261123",
        PerformedProcedureStepStartTime="101500",
        PerformedProcedureStepStatus="IN PROGRESS",
        PerformedProcedureStepEndDate="",
        PerformedProcedureStepEndTime="",
        PerformedSeriesSequence=[],
    )
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def ended(status: str = "COMPLETED", images: tuple[str, ...] = IMAGES) -> Dataset:
    return item(
        PerformedProcedureStepStatus=status,
        PerformedProcedureStepEndDate="20261123",
        PerformedProcedureStepEndTime="103000",
        PerformedSeriesSequence=[
            item(
                SeriesInstanceUID=SERIES,
                SeriesDescription="Thorax",
                ProtocolName="Lung",
                ReferencedImageSequence=[
                    item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=one) for one in images
                ],
                ReferencedNonImageCompositeSOPInstanceSequence=[],
            )
        ],
    )


def ordered(node: Serving) -> int:
    """An entry of the worklist for the step; its number."""
    entry = Entry(
        patient=Patient(patient_id="P1", name="Doe^Jane"),
        study_instance_uid=STUDY,
        accession_number="ACC1",
        step_id="SPS1",
    )
    with node.store.db.write() as tx:
        return worklist.put(tx, entry, origin=EntryOrigin.LOCAL, source="eve", key="1", actor="eve")


def entry_state(node: Serving, number: int) -> EntryState:
    with node.store.db.read() as tx:
        return worklist.entry(tx, number).state  # type: ignore[arg-type]


def only(node: Serving) -> steps.Counted:
    (one,) = steps.listed(node.store.db)
    return one


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_step_moves_its_entry_and_counts_what_arrives(node: Serving, syntax: str) -> None:
    entry = ordered(node)
    with modality(node, syntax=syntax) as association:
        status, _ = association.send_n_create(begun(), MPPS, STEP)
        assert status.Status == 0x0000
        assert entry_state(node, entry) is EntryState.STARTED
        assert only(node).completeness is steps.Completeness.OPEN
        for one in IMAGES[:2]:
            take_in(node.store, sop=one, study=STUDY, series=SERIES)
        status, _ = association.send_n_set(ended(), MPPS, STEP)
        assert status.Status == 0x0000
    assert entry_state(node, entry) is EntryState.COMPLETED
    step = only(node)
    assert (step.state, step.listed, step.arrived) == (StepState.COMPLETED, 3, 2)
    assert step.completeness is steps.Completeness.MISSING
    (series,) = steps.series_of(node.store.db, step.id)
    assert (series.description, series.protocol, series.arrived) == ("Thorax", "Lung", 2)
    take_in(node.store, sop=IMAGES[2], study=STUDY, series=SERIES)
    assert only(node).completeness is steps.Completeness.COMPLETE
    acts = [one.act for one in audit.of_subject(node.store.db, "step", step.id)]
    assert acts == ["step in_progress", "step completed"]


def test_a_discontinued_step_says_why_in_words(node: Serving) -> None:
    entry = ordered(node)
    last = ended("DISCONTINUED", ())
    last.PerformedProcedureStepDiscontinuationReasonCodeSequence = [
        item(CodeValue="110514", CodingSchemeDesignator="DCM", CodeMeaning="Incorrect worklist"),
        item(CodeValue="X1", CodingSchemeDesignator="99LOCAL", CodeMeaning="Table jammed"),
    ]
    with modality(node) as association:
        association.send_n_create(begun(), MPPS, STEP)
        assert association.send_n_set(last, MPPS, STEP)[0].Status == 0x0000
    assert entry_state(node, entry) is EntryState.DISCONTINUED
    assert only(node).reason == "an incorrect worklist entry was selected; Table jammed"
    assert only(node).completeness is steps.Completeness.UNLISTED


def test_steps_in_between_may_be_changed_and_names_are_read_in_their_character_set(
    node: Serving,
) -> None:
    start = begun(PatientName="Müller^Jörg")
    start.SpecificCharacterSet = "ISO_IR 100"
    with modality(node) as association:
        association.send_n_create(start, MPPS, STEP)
        between = item(PerformedProcedureStepDescription="CT of the chest")
        assert association.send_n_set(between, MPPS, STEP)[0].Status == 0x0000
    step = only(node)
    assert (step.patient_name, step.description) == ("Müller^Jörg", "CT of the chest")
    assert step.state is StepState.IN_PROGRESS


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"PerformedProcedureStepID": None}, 0x0120),
        ({"PerformedStationAETitle": ""}, 0x0121),
        ({"ScheduledStepAttributesSequence": []}, 0x0121),
        ({"ScheduledStepAttributesSequence": [item(AccessionNumber="A")]}, 0x0121),
        ({"PerformedProcedureStepStatus": "COMPLETED"}, 0x0106),
        ({"PerformedProcedureStepStatus": "PAUSED"}, 0x0106),
    ],
)
def test_a_step_that_lacks_what_it_needs_is_refused(
    node: Serving, changes: dict[str, object], status: int
) -> None:
    with modality(node) as association:
        answer, _ = association.send_n_create(begun(**changes), MPPS, STEP)
    assert answer.Status == status
    assert answer.ErrorComment
    assert steps.listed(node.store.db) == []


def test_of_one_step_only_so_much_is_told(node: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MESSAGES_MOST", 3)
    between = item(PerformedProcedureStepDescription="CT of the chest")
    with modality(node) as association:
        association.send_n_create(begun(), MPPS, STEP)
        answers = [association.send_n_set(between, MPPS, STEP)[0].Status for _ in range(3)]
    assert answers == [0x0000, 0x0000, 0x0213]  # resource limitation (PS3.7 C.5.26)


def test_a_step_told_twice_is_a_duplicate(node: Serving) -> None:
    with modality(node) as association:
        association.send_n_create(begun(), MPPS, STEP)
        answer, _ = association.send_n_create(begun(), MPPS, STEP)
    assert answer.Status == 0x0111


def test_a_step_without_a_name_is_given_one(node: Serving) -> None:
    with modality(node) as association:
        answer, _ = association.send_n_create(begun(), MPPS)
    assert answer.Status == 0x0000
    assert only(node).sop_instance_uid.startswith("2.25.")


def test_what_is_not_known_or_closed_is_not_changed(node: Serving) -> None:
    with modality(node) as association:
        assert association.send_n_set(ended(), MPPS, STEP)[0].Status == 0x0112
        association.send_n_create(begun(), MPPS, STEP)
        without = ended()
        del without.PerformedProcedureStepEndTime
        assert association.send_n_set(without, MPPS, STEP)[0].Status == 0x0120
        assert only(node).state is StepState.IN_PROGRESS
        association.send_n_set(ended(), MPPS, STEP)
        again = association.send_n_set(ended("DISCONTINUED"), MPPS, STEP)[0]
    assert (again.Status, again.ErrorID) == (0x0110, NO_LONGER)
    assert "no longer be updated" in again.ErrorComment
    assert only(node).state is StepState.COMPLETED


def test_other_commands_and_callers_without_leave_are_refused(node: Serving) -> None:
    with modality(node) as association:
        assert association.send_n_get([], MPPS, STEP)[0].Status == 0x0211
    node.allow("CT2", services=(Service.STORE,))
    ae = AE(ae_title="CT2")
    ae.add_requested_context(MPPS)
    association = ae.associate("127.0.0.1", node.port, ae_title="EDGEPACS")
    assert not association.accepted_contexts
    association.abort()
    ae.shutdown()


def test_a_data_set_that_cannot_be_read_is_refused_and_the_next_is_served(node: Serving) -> None:
    with modality(node) as association:
        broken = begun()
        broken.PerformedSeriesSequence = [item(SeriesInstanceUID="1.2.x")]
        assert association.send_n_create(broken, MPPS, STEP)[0].Status == 0x0106
        assert association.send_n_create(begun(), MPPS, STEP)[0].Status == 0x0000


def test_a_data_set_beyond_every_measure_is_refused(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpps, "_MOST_BYTES", 10_000)
    with modality(node) as association:
        association.send_n_create(begun(), MPPS, STEP)
        many = ended(images=tuple(f"1.2.3.{number}" for number in range(500)))
        assert association.send_n_set(many, MPPS, STEP)[0].Status == 0x0213
        assert association.send_n_set(ended(), MPPS, STEP)[0].Status == 0x0000
