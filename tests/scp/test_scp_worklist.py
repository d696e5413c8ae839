"""The modality worklist, asked by DCMTK and pynetdicom, against an oracle (PS3.4 K.4, K.6.1)."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from dimse.dimse_node import Script, command_pdu, data_pdu
from harness.dcmtk import require
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom import association as pynetdicom_association
from scp.serving import Serving, serving
from store.oracle import day, matches, microsecond

from edgepacs.dimse import ProposedContext, identifier
from edgepacs.dimse.command import Element, Field, decode
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, MODALITY_WORKLIST_FIND
from edgepacs.model import EntryId, EntryOrigin, EntryState, Service
from edgepacs.scp import worklist as service
from edgepacs.store import peers, worklist
from edgepacs.store.worklist import Entry, Patient

NAMES = (
    "Doe^Jane",
    "DOE^JOHN^^Dr",
    "Müller^Änne",
    "Люксембург",
    "قباني^لنزار",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "Hong^Gildong=洪^吉洞=홍^길동",
    "Wang^XiaoDong=王^小东",
)
# Field: tag, VR, and whether it stands inside Scheduled Procedure Step Sequence.
KEYS = {
    "name": (0x00100010, "PN", False),
    "patient_id": (0x00100020, "LO", False),
    "accession_number": (0x00080050, "SH", False),
    "study_instance_uid": (0x0020000D, "UI", False),
    "procedure_description": (0x00321060, "LO", False),
    "referring_physician": (0x00080090, "PN", False),
    "admission_id": (0x00380010, "LO", False),
    "pregnancy": (0x001021C0, "US", False),
    "modality": (0x00080060, "CS", True),
    "station_ae": (0x00400001, "AE", True),
    "start_date": (0x00400002, "DA", True),
    "start_time": (0x00400003, "TM", True),
    "performing_physician": (0x00400006, "PN", True),
    "step_description": (0x00400007, "LO", True),
    "step_id": (0x00400009, "SH", True),
}


def population() -> list[Entry]:
    """Entries that differ in all that is asked for."""
    return [
        Entry(
            patient=Patient(
                patient_id=f"P{number % 11}",
                name=NAMES[number % len(NAMES)],
                pregnancy=("", "1", "4")[number % 3],
                birth_date="19600101",
            ),
            study_instance_uid=f"1.2.{number % 20}",
            accession_number=("", "A1", "A12", "B1")[number % 4],
            admission_id=("", "V1")[number % 2],
            procedure_id=f"R{number}",
            procedure_description=("", "Abdomen", "[a]*", "Übersicht")[number // 2 % 4],
            referring_physician=NAMES[number * 3 % len(NAMES)],
            performing_physician=("", *NAMES)[number * 5 % 9],
            modality=("CT", "MR", "US")[number % 3],
            station_ae=("", "CT1", "CT1\\CT2", "MR1")[number % 4],
            start_date=("", "20261122", "20261123", "20261201")[number // 3 % 4],
            start_time=("", "0900", "093000", "22")[number // 5 % 4],
            step_id=f"S{number}",
            step_description=("Abd", "Skull", "")[number % 3],
            procedure_code="1^99X^Abdomen" if number % 2 else "2^99X^Skull\\3^99Y^Bauch",
        )
        for number in range(60)
    ]


def fill(node: Serving, entries: Sequence[Entry]) -> list[EntryId]:
    with node.store.db.write() as tx:
        return [
            worklist.put(
                tx, one, origin=EntryOrigin.UPSTREAM, source="RIS", key=str(n), actor="test"
            )
            for n, one in enumerate(entries)
        ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("worklist") / "node") as node:
        node.allow(services=(Service.ECHO, Service.WORKLIST))
        fill(node, population())
        yield node


Asker = pynetdicom_association.Association
Answer = tuple[int, Dataset]


@contextmanager
def asking(node: Serving, syntax: str = ExplicitVRLittleEndian) -> Iterator[Asker]:
    entity = AE(ae_title="HARNESS")
    entity.add_requested_context(MODALITY_WORKLIST_FIND, syntax)
    association = entity.associate("127.0.0.1", node.port, ae_title="EDGEPACS")
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


@pytest.fixture(scope="module", params=[ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def asker(filled: Serving, request: pytest.FixtureRequest) -> Iterator[Asker]:
    with asking(filled, request.param) as association:
        yield association


def query(keys: dict[str, str], character_set: str = "ISO_IR 192") -> Dataset:
    """An identifier that has the fields' step IDs returned, and all `keys`."""
    one, step = Dataset(), Dataset()
    if character_set:
        one.SpecificCharacterSet = character_set.split("\\")
    step.ScheduledProcedureStepID = ""
    for field, key in keys.items():
        tag, vr, inside = KEYS[field]
        value: str | int | None = key
        if vr == "US":
            value = int(key) if key else None
        (step if inside else one).add_new(tag, vr, value)
    one.ScheduledProcedureStepSequence = [step]
    return one


def asked(association: Asker, what: Dataset) -> list[Answer]:
    found = association.send_c_find(what, MODALITY_WORKLIST_FIND)
    return [(status.Status, one) for status, one in found]


def steps(answers: list[Answer]) -> list[str]:
    """The step IDs of the pending answers, which are all there is."""
    assert answers[-1][0] == 0x0000, answers[-1]
    return sorted(
        str(one.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID)
        for _, one in answers[:-1]
    )


def value_of(entry: Entry, field: str) -> str:
    return str(getattr(entry.patient, field, "") or getattr(entry, field, ""))


def expected(keys: dict[str, str]) -> list[str]:
    return sorted(
        entry.step_id
        for entry in population()
        if all(matches(KEYS[f][1], key, value_of(entry, f)) for f, key in keys.items())
    )


def key_near(data: st.DataObject, field: str) -> str:
    """A key of one of the kinds of matching, near what is there."""
    vr = KEYS[field][1]
    value = data.draw(st.sampled_from(sorted({value_of(one, field) for one in population()})))
    value = value.split("\\")[0]
    kinds = ["", value]
    if vr in ("LO", "SH", "CS", "AE") and value:
        kinds += [value[:1] + "*", "*" + value[-1:], "?" + value[1:], "*"]
    if vr == "PN" and value:
        kinds += [value[:3] + "*", value.upper(), value.split("=")[-1], "=" + value[-2:] + "*"]
    if vr == "UI" and value:
        kinds += [value + "\\1.2.7", "1.2.99"]
    if vr == "DA":
        kinds += ["20261122-20261123", "-20261123", "20261123-", "20261123"]
    if vr == "TM":
        kinds += ["0900-0930", "-0930", "2200-", "09"]
    return data.draw(st.sampled_from(kinds))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pynetdicom_gets_what_the_oracle_says(asker: Asker, data: st.DataObject) -> None:
    fields = data.draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, min_size=1, max_size=4))
    keys = {field: key_near(data, field) for field in fields}
    if all("-" in keys.get(field, "") for field in ("start_date", "start_time")):
        del keys["start_time"]  # ranges of both are one: a test of its own
    assert steps(asked(asker, query(keys))) == expected(keys)


@pytest.mark.parametrize(
    ("date", "time", "first", "last"),
    [
        ("20261122-20261123", "0930-0900", ("20261122", "0930"), ("20261123", "0900")),
        ("20261122-20261123", "0930-", ("20261122", "0930"), ("20261123", "235959")),
        ("-20261123", "-0900", ("00000101", "00"), ("20261123", "0900")),
        ("20261123-", "0915-1000", ("20261123", "0915"), ("99991231", "235959")),
    ],
)
def test_ranges_of_date_and_time_are_one(
    asker: Asker, date: str, time: str, first: tuple[str, str], last: tuple[str, str]
) -> None:
    """PS3.4 table K.6-1, Scheduled Procedure Step Start Time."""

    def moment(day_: str, hour: str) -> tuple[int, int] | None:
        at, then = day(day_), microsecond(hour)
        return None if at is None or then is None else (at, then)

    low, high = moment(*first), moment(*last)
    assert low is not None
    assert high is not None
    wanted = sorted(
        one.step_id
        for one in population()
        if (at := moment(one.start_date, one.start_time)) is not None and low <= at <= high
    )
    assert wanted
    assert steps(asked(asker, query({"start_date": date, "start_time": time}))) == wanted


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", NAMES[2]),
        ("ISO_IR 144", NAMES[3]),
        ("ISO_IR 127", NAMES[4]),
        ("\\ISO 2022 IR 87", NAMES[5]),
        ("\\ISO 2022 IR 149", NAMES[6]),
        ("GB18030", NAMES[7]),
        ("ISO_IR 192", NAMES[7]),
    ],
)
def test_answers_come_in_the_character_set_of_who_asks(
    asker: Asker, character_set: str, name: str
) -> None:
    answers = asked(asker, query({"name": name}, character_set))
    assert steps(answers) == expected({"name": name})
    for _, one in answers[:-1]:
        one.decode()
        assert one[0x00080005].value == query({}, character_set)[0x00080005].value
        assert str(one.PatientName) == name


def test_what_the_asker_cannot_write_comes_in_unicode(asker: Asker) -> None:
    answers = asked(asker, query({"name": ""}, "ISO_IR 100"))
    for _, one in answers[:-1]:
        one.decode()
    found = {str(one.PatientName): one.get("SpecificCharacterSet", "") for _, one in answers[:-1]}
    assert found[NAMES[3]] == "ISO_IR 192"
    assert found[NAMES[2]] == "ISO_IR 100"
    assert found[NAMES[0]] == ""  # ASCII is read in any


# --- sequences, return keys, keys we do not know -----------------------------------------------


def test_a_sequence_is_matched_within_one_item(asker: Asker) -> None:
    """PS3.4 C.2.2.2.6: both keys in the same item, of a sequence that has several."""

    def of_code(value: str, scheme: str) -> list[str]:
        what, code = query({}), Dataset()
        code.CodeValue, code.CodingSchemeDesignator = value, scheme
        what.RequestedProcedureCodeSequence = [code]
        return steps(asked(asker, what))

    even = sorted(f"S{number}" for number in range(0, 60, 2))
    assert of_code("2", "99X") == of_code("3", "99Y") == of_code("3", "") == even
    assert of_code("2", "99Y") == []


def test_an_empty_sequence_is_returned_whole(asker: Asker) -> None:
    what = Dataset()
    what.PatientID = "P0"
    what.RequestedProcedureCodeSequence = []
    what.ReferencedStudySequence = []
    what.ScheduledProcedureStepSequence = []
    (_, one), *_ = asked(asker, what)
    (step,) = one.ScheduledProcedureStepSequence
    assert step.Modality == "CT"
    assert step.ScheduledProcedureStepStatus == "SCHEDULED"
    assert [code.CodeMeaning for code in one.RequestedProcedureCodeSequence] == ["Skull", "Bauch"]
    assert list(one.ReferencedStudySequence) == []


def test_every_key_of_the_table_is_answered(asker: Asker) -> None:
    """PS3.4 table K.6-1: all keys of type R, 1 and 2, and those of type 1C we hold."""
    what, step, code = Dataset(), Dataset(), Dataset()
    for keyword in ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning"):
        setattr(code, keyword, "")
    for keyword in [
        "ScheduledStationAETitle",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
        "Modality",
        "ScheduledPerformingPhysicianName",
        "ScheduledProcedureStepDescription",
        "ScheduledStationName",
        "ScheduledProcedureStepLocation",
        "PreMedication",
        "ScheduledProcedureStepID",
        "RequestedContrastAgent",
        "ScheduledProcedureStepStatus",
        "CommentsOnTheScheduledProcedureStep",
    ]:
        setattr(step, keyword, "")
    step.ScheduledProtocolCodeSequence = [code]
    for keyword in [
        "RequestedProcedureID",
        "RequestedProcedureDescription",
        "StudyInstanceUID",
        "RequestedProcedurePriority",
        "PatientTransportArrangements",
        "AccessionNumber",
        "RequestingPhysician",
        "ReferringPhysicianName",
        "AdmissionID",
        "CurrentPatientLocation",
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "ConfidentialityConstraintOnPatientDataDescription",
        "PatientState",
        "MedicalAlerts",
        "Allergies",
        "SpecialNeeds",
        "RequestingService",
        "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest",
    ]:
        setattr(what, keyword, "")
    what.PatientWeight = what.PatientSize = what.PregnancyStatus = None
    what.ReferencedStudySequence = what.ReferencedPatientSequence = []
    what.OtherPatientIDsSequence = []
    what.RequestedProcedureCodeSequence = [code]
    what.ScheduledProcedureStepSequence = [step]
    (status, one), *_ = asked(asker, what)
    assert status == 0xFF00
    one.pop(0x00080005, None)
    assert set(one.keys()) == set(what.keys())
    assert set(one.ScheduledProcedureStepSequence[0].keys()) == set(step.keys())


def test_an_optional_key_we_do_not_know_is_said(asker: Asker) -> None:
    what = query({"patient_id": "P0"})
    what.PatientComments = "anything"
    answers = asked(asker, what)
    assert {status for status, _ in answers[:-1]} == {0xFF01}
    assert steps(answers) == expected({"patient_id": "P0"})
    assert "PatientComments" not in answers[0][1]


@pytest.mark.parametrize(
    ("field", "key"),
    [("start_date", "tomorrow"), ("start_time", "25x"), ("study_instance_uid", "x")],
)
def test_what_cannot_be_matched_is_refused(asker: Asker, field: str, key: str) -> None:
    what = query({})
    tag, _, inside = KEYS[field]
    place = what.ScheduledProcedureStepSequence[0] if inside else what
    place.add_new(tag, "SH", key)  # pydicom writes no such date
    assert [status for status, _ in asked(asker, what)] == [0xC000]


def test_two_items_in_a_key_are_refused(asker: Asker) -> None:
    what = query({})
    what.ScheduledProcedureStepSequence = [Dataset(), Dataset()]
    assert [status for status, _ in asked(asker, what)] == [0xA900]


# --- who sees what, states, limits -------------------------------------------------------------


@pytest.fixture
def small(node: Serving) -> Serving:
    """A receiver with three entries: for CT1, for MR1, for no station in particular."""
    node.allow(services=(Service.WORKLIST,))
    made = [
        Entry(patient=Patient(name="A"), step_id="S1", modality="CT", station_ae="CT1"),
        Entry(patient=Patient(name="B"), step_id="S2", modality="MR", station_ae="MR1\\MR2"),
        Entry(patient=Patient(name="C"), step_id="S3", modality="US"),
    ]
    fill(node, made)
    return node


def seen(node: Serving, what: Dataset | None = None) -> list[str]:
    with asking(node) as association:
        return steps(asked(association, what or query({})))


@pytest.mark.parametrize(
    ("stations", "modalities", "wanted"),
    [
        ((), (), ["S1", "S2", "S3"]),
        (("CT1",), (), ["S1", "S3"]),
        (("MR2", "CT1"), (), ["S1", "S2", "S3"]),
        (("NONE",), (), ["S3"]),
        ((), ("MR", "US"), ["S2", "S3"]),
        (("CT1",), ("MR",), []),
    ],
)
def test_nobody_sees_what_is_not_for_them(
    small: Serving, stations: tuple[str, ...], modalities: tuple[str, ...], wanted: list[str]
) -> None:
    with small.store.db.write() as tx:
        peers.show(tx, "HARNESS", stations=stations, modalities=modalities, actor="test")
    assert seen(small) == wanted


def test_who_may_not_use_the_worklist_gets_no_context(node: Serving) -> None:
    entity = AE(ae_title="HARNESS")
    entity.add_requested_context(MODALITY_WORKLIST_FIND)
    association = entity.associate("127.0.0.1", node.port, ae_title="EDGEPACS")
    assert not association.is_established


def test_only_what_is_scheduled_is_offered_unless_started_is_asked_for(small: Serving) -> None:
    with small.store.db.write() as tx:
        by_step = {one.entry.step_id: one.id for one in worklist.entries(tx)}
        worklist.shift(tx, by_step["S1"], EntryState.STARTED, actor="test")
        worklist.shift(tx, by_step["S2"], EntryState.CANCELLED, actor="test")
    assert seen(small) == ["S3"]
    for status, wanted in (("STARTED", ["S1"]), ("S*", ["S1", "S3"]), ("CANCELLED", [])):
        what = query({})
        what.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus = status
        assert seen(small, what) == wanted


def test_too_many_answers_end_in_a_refusal_that_says_so(
    small: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ANSWERS_MOST", 2)
    with asking(small) as association:
        assert [status for status, _ in asked(association, query({}))] == [0xFF00, 0xFF00, 0xA700]
        what = query({"performing_physician": ""})
        what.ScheduledProcedureStepSequence[0].ScheduledProcedureStepLocation = '""'
        assert asked(association, what)[-1][0] == 0xA700


def test_c_cancel_ends_the_answers(filled: Serving) -> None:
    """PS3.4 K.4.1.3. It comes in one write with what it cancels, so it is there in time."""
    peer = Script(filled.port)
    contexts = (
        ProposedContext(
            id=1, abstract_syntax=MODALITY_WORKLIST_FIND, transfer_syntaxes=(EXPLICIT_VR_LE,)
        ),
    )
    peer.associate(calling_ae="HARNESS", contexts=contexts)
    request = {
        Element.AFFECTED_SOP_CLASS_UID: MODALITY_WORKLIST_FIND,
        Element.COMMAND_FIELD: Field.C_FIND_RQ,
        Element.MESSAGE_ID: 7,
        Element.PRIORITY: 0,
        Element.DATA_SET_TYPE: 1,
    }
    cancel = {
        Element.COMMAND_FIELD: Field.C_CANCEL_RQ,
        Element.RESPONDED_MESSAGE_ID: 7,
        Element.DATA_SET_TYPE: 0x0101,
    }
    keys = identifier.encode({0x00100010: ""}, EXPLICIT_VR_LE)
    peer.send(command_pdu(1, request) + data_pdu(keys, context=1) + command_pdu(1, cancel))
    _, body = peer.pdu()
    peer.close()
    assert decode(body[6:]).status == 0xFE00


@pytest.mark.peers
def test_findscu_finds_its_patient(filled: Serving, tmp_path: Path) -> None:
    command = [require("findscu"), "-W", "-X", "-aet", "HARNESS", "-aec", "EDGEPACS", "-od"]
    command += [str(tmp_path), "127.0.0.1", str(filled.port)]
    keys = ("0008,0005=ISO_IR 100", "0010,0010=muller*", "0010,0020", "0040,0100[0].0040,0009")
    for key in (*keys, "0040,0100[0].0040,0002=20261122-20261123", "0040,0100[0].0008,0060=CT"):
        command += ["-k", key]
    run = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    wanted = expected({"name": "muller*", "start_date": "20261122-20261123", "modality": "CT"})
    assert len(list(tmp_path.glob("*.dcm"))) == len(wanted) > 0
