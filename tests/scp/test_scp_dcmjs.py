"""Every service, asked by dcmjs-dimse: a stack in JavaScript that shares nothing with ours."""

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from custody.outcome import frames_of, written
from harness import made
from harness.corpus import pydicom_file
from harness.javascript import script
from harness.part10 import EXPLICIT_LE, Part10, read
from harness.waiting import free_port, until
from scp.serving import Serving, serving
from scp.test_scp_retrieve import Dest
from store.making import CT, take_in, take_in_part
from store.population import populate

from edgepacs.dimse.contexts import MODALITY_WORKLIST_FIND
from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.dimse.retrieve import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from edgepacs.model import UID, EntryOrigin, EntryState, Service, StepState
from edgepacs.scp import reporter
from edgepacs.scp.query import PATIENT_ROOT_FIND
from edgepacs.scp.retrieve import PATIENT_ROOT_GET, PATIENT_ROOT_MOVE
from edgepacs.store import instances, peers, pledges, steps, worklist
from edgepacs.store.worklist import Entry, Patient

pytestmark = pytest.mark.peers

PEER = Path(__file__).parent.parent / "dcmjs" / "peer.cjs"
STUDY, SERIES, STEP = "1.2.3.1", "1.2.3.2", "1.2.3.77"
PENDING = 0xFF00
Happening = dict[str, Any]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        know(one, free_port())
        yield one


def know(node: Serving, port: int) -> None:
    with node.store.db.write() as tx:
        peers.add_ae(
            tx, title="DCMJS", host="127.0.0.1", port=port, services=tuple(Service), actor="test"
        )


def happening(node: Serving, *requests: Happening, **job: Any) -> Iterator[Happening]:
    """What happens, as it happens, while one association asks for `requests`."""
    asked = {"port": node.port, "calling": "DCMJS", "requests": requests, **job}
    with subprocess.Popen(script(PEER), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.close()
        yield from map(json.loads, process.stdout)
    assert process.returncode == 0


def ask(node: Serving, *requests: Happening, **job: Any) -> list[Happening]:
    """All that happens until the association has ended by its release."""
    *happened, last = happening(node, *requests, **job)
    assert last["event"] == "released", (happened, last)
    return happened


def responses(happened: Sequence[Happening], number: int = 0) -> list[Happening]:
    return [one for one in happened if one["event"] == "response" and one["number"] == number]


def of_kind(happened: Sequence[Happening], event: str) -> list[Happening]:
    return [one for one in happened if one["event"] == event]


@contextmanager
def listening(node: Serving) -> Iterator[list[Happening]]:
    """dcmjs-dimse as DCMJS where the node calls it; what happens there, as it happens."""
    happened: list[Happening] = []
    with subprocess.Popen(script(PEER), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        know(node, json.loads(process.stdout.readline())["port"])
        lines = process.stdout
        thread = threading.Thread(
            target=lambda: happened.extend(map(json.loads, lines)), daemon=True
        )
        thread.start()
        try:
            yield happened
        finally:
            process.stdin.close()
            thread.join(20)
            process.kill()


def digest(part: Part10) -> str:
    return hashlib.sha256(part.dataset().PixelData).hexdigest()


def j2k_plain() -> tuple[Part10, str]:
    """An instance in JPEG 2000, and the digest of its pixels as they are when native."""
    part = read(pydicom_file("JPEG2000.dcm"))
    ((pixels, _, _),) = frames_of(part.data, part.transfer_syntax)
    return part, hashlib.sha256(pixels).hexdigest()


# -- C-ECHO, C-STORE


def test_it_echoes_and_stores_native_and_encapsulated(node: Serving, tmp_path: Path) -> None:
    native, coded = made.ct(), j2k_plain()[0]
    files = [part.write(tmp_path / f"{n}.dcm") for n, part in enumerate((native, coded))]
    requests = [{"service": "store", "instance": str(file)} for file in files]
    happened = ask(node, {"service": "echo"}, *requests)
    assert [one["status"] for one in happened] == [0, 0, 0]
    for part in (native, coded):
        stored = instances.stored_version(node.store.db, UID(part.sop_instance))
        assert stored is not None
        syntax, data = written(node.store, stored, EXPLICIT_LE, part.transfer_syntax)
        assert frames_of(data, syntax) == frames_of(part.data, part.transfer_syntax)


# -- C-FIND


@pytest.mark.parametrize("root", [PATIENT_ROOT_FIND, STUDY_ROOT_FIND])
def test_it_finds_what_the_oracle_says(node: Serving, root: str) -> None:
    population = populate(node.store)
    keys = {
        "PatientName": (0x00100010, "山田*"),
        "ModalitiesInStudy": (0x00080061, "CT"),
        "StudyDate": (0x00080020, "20200101-20210304"),
    }
    if root == PATIENT_ROOT_FIND:  # PS3.4 C.4.1.3.1.1: the unique key of the level above
        keys["PatientID"] = (0x00100020, "P3")
    requests, expected = [], []
    for name, (tag, key) in keys.items():
        asked = {name: (tag, key)}
        if "PatientID" in keys:
            asked["PatientID"] = keys["PatientID"]
        values = {known: value for known, (_, value) in asked.items()}
        requests.append(
            {
                "service": "find",
                "sop_class": root,
                "values": {
                    "SpecificCharacterSet": "ISO_IR 192",
                    "QueryRetrieveLevel": "STUDY",
                    "StudyInstanceUID": "",
                    **values,
                },
            }
        )
        matching = {0x0020000D: "", **dict(asked.values())}
        at = sorted(matching).index(0x0020000D)
        expected.append(sorted(row[at] for row in population.expected("STUDY", matching)))
    happened = ask(node, *requests)
    for number, uids in enumerate(expected):
        *found, final = responses(happened, number)
        assert final["status"] == 0
        assert {one["status"] for one in found} <= {PENDING}
        assert sorted(one["data"]["StudyInstanceUID"] for one in found) == uids
    assert any(expected)
    first = responses(happened)[0]["data"]["PatientName"][0]
    assert first["Ideographic"].startswith("山田^")


def test_it_reads_every_level(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4", study=STUDY, series=SERIES)
    above = {"PatientID": "P1", "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES}
    levels = {"PATIENT": 1, "STUDY": 2, "SERIES": 3, "IMAGE": 3}
    keys = [
        {**dict(list(above.items())[:upto]), "SOPInstanceUID": ""}
        if level == "IMAGE"
        else dict(list(above.items())[:upto])
        for level, upto in levels.items()
    ]
    happened = ask(
        node,
        *(
            {
                "service": "find",
                "sop_class": PATIENT_ROOT_FIND,
                "values": {"QueryRetrieveLevel": level, **values},
            }
            for level, values in zip(levels, keys, strict=True)
        ),
    )
    for number, values in enumerate(keys):
        one, final = responses(happened, number)
        assert (one["status"], final["status"]) == (PENDING, 0)
        assert {name: one["data"][name] for name in values} == {
            name: value or "1.2.3.4" for name, value in values.items()
        }


# -- C-MOVE, C-GET


@pytest.mark.parametrize("root", [PATIENT_ROOT_MOVE, STUDY_ROOT_MOVE])
def test_it_has_a_study_moved_to_itself(node: Serving, root: str) -> None:
    (coded, plain), native = j2k_plain(), made.ct()
    expected = {coded.sop_instance: plain, native.sop_instance: digest(native)}
    requests = []
    for part in (coded, native):
        take_in_part(node.store, part)
        data = part.dataset()
        values = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": str(data.StudyInstanceUID)}
        if root == PATIENT_ROOT_MOVE:
            values["PatientID"] = str(data.PatientID)
        one = {"service": "move", "sop_class": root, "destination": "DCMJS", "values": values}
        requests.append(one)
    with listening(node) as there:
        happened = ask(node, *requests)
        until(lambda: len(of_kind(there, "stored")) == len(expected), "all have come")
    for number in range(len(requests)):
        final = responses(happened, number)[-1]
        assert (final["status"], final["completed"], final["failed"]) == (0, 1, 0)
    assert {one["uid"]: one["pixels"] for one in of_kind(there, "stored")} == expected
    assert {one["syntax"] for one in of_kind(there, "stored")} == {EXPLICIT_LE}


@pytest.mark.parametrize("root", [PATIENT_ROOT_GET, STUDY_ROOT_GET])
def test_it_gets_a_study_on_its_own_association(node: Serving, root: str) -> None:
    parts = [made.ct(study=STUDY, series=SERIES) for _ in range(3)]
    for part in parts:
        take_in_part(node.store, part)
    values = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}
    if root == PATIENT_ROOT_GET:
        values["PatientID"] = "TEST-PATIENT"
    happened = ask(node, {"service": "get", "sop_class": root, "values": values})
    *_, final = responses(happened)
    assert (final["status"], final["completed"], final["failed"]) == (0, 3, 0)
    got = {one["uid"]: one["pixels"] for one in of_kind(happened, "stored")}
    assert got == {part.sop_instance: digest(part) for part in parts}


def test_it_cancels_a_move(node: Serving) -> None:
    for number in range(1, 21):
        take_in(node.store, sop=f"1.2.3.4.{number}")
    dest, cancelled = Dest(), threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            assert cancelled.wait(20)

    dest.before = hold
    values = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY}
    move = {"service": "move", "sop_class": STUDY_ROOT_MOVE, "destination": "DEST"}
    happened = []
    with dest.up(node):
        for one in happening(node, {**move, "values": values}, cancel=True):
            happened.append(one)
            if one["event"] == "cancelled":
                cancelled.set()
    final = responses(happened)[-1]
    assert (final["status"], final["completed"], final["failed"]) == (0xFE00, len(dest.got), 0)
    assert final["completed"] + final["remaining"] == 20
    assert final["remaining"]


# -- worklist, procedure steps


def ordered(node: Serving, number: int, **changes: str) -> int:
    entry = Entry(
        patient=Patient(patient_id="P1", name="Yamada^Tarou=山田^太郎"),
        study_instance_uid=f"{STUDY}.{number}",
        accession_number="ACC1",
        step_id=f"SPS{number}",
        **{"modality": "CT", "start_date": "20261123", "start_time": "1015", **changes},
    )
    with node.store.db.write() as tx:
        return worklist.put(
            tx, entry, origin=EntryOrigin.LOCAL, source="eve", key=str(number), actor="eve"
        )


def test_it_reads_the_worklist(node: Serving) -> None:
    ordered(node, 1)
    ordered(node, 2, modality="MR")
    ordered(node, 3, start_date="20261201")
    step = {
        "Modality": "CT",
        "ScheduledProcedureStepStartDate": "20261120-20261124",
        "ScheduledProcedureStepID": "",
    }
    values = {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": "山田*",
        "StudyInstanceUID": "",
        "ScheduledProcedureStepSequence": [step],
    }
    asked = {"service": "find", "sop_class": MODALITY_WORKLIST_FIND, "values": values}
    one, final = ask(node, asked)
    assert (one["status"], final["status"]) == (PENDING, 0)
    assert one["data"]["StudyInstanceUID"] == f"{STUDY}.1"
    assert one["data"]["PatientName"][0]["Ideographic"] == "山田^太郎"
    (told,) = one["data"]["ScheduledProcedureStepSequence"]
    assert (told["ScheduledProcedureStepID"], told["Modality"]) == ("SPS1", "CT")


def begun() -> dict[str, Any]:
    """An N-CREATE data set (PS3.4 table F.7.2-1)."""
    scheduled = {
        "StudyInstanceUID": f"{STUDY}.1",
        "ReferencedStudySequence": [],
        "AccessionNumber": "ACC1",
        "RequestedProcedureID": "",
        "ScheduledProcedureStepID": "SPS1",
    }
    return {
        "ScheduledStepAttributesSequence": [scheduled],
        "PatientName": "Yamada^Tarou",
        "PatientID": "P1",
        "PatientBirthDate": "",
        "PatientSex": "",
        "Modality": "CT",
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "DCMJS",
        "PerformedProcedureStepStartDate": "20261123",
        "PerformedProcedureStepStartTime": "101500",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "PerformedSeriesSequence": [],
    }


def ended(uid: str) -> dict[str, Any]:
    performed = {
        "SeriesInstanceUID": SERIES,
        "ProtocolName": "Lung",
        "ReferencedImageSequence": [{"ReferencedSOPClassUID": CT, "ReferencedSOPInstanceUID": uid}],
    }
    return {
        "PerformedProcedureStepStatus": "COMPLETED",
        "PerformedProcedureStepEndDate": "20261123",
        "PerformedProcedureStepEndTime": "103000",
        "PerformedSeriesSequence": [performed],
    }


def test_it_tells_of_a_procedure_step(node: Serving) -> None:
    entry = ordered(node, 1)
    take_in(node.store, sop="1.2.3.4", study=f"{STUDY}.1", series=SERIES)
    create = {"service": "create", "instance": STEP, "values": begun()}
    last = {"service": "set", "instance": STEP, "values": ended("1.2.3.4")}
    happened = ask(node, create, last, last)
    assert [one["status"] for one in happened] == [0, 0, 0x0110]  # PS3.4 F.7.2.2.4
    (step,) = steps.listed(node.store.db)
    assert (step.state, step.listed, step.arrived) == (StepState.COMPLETED, 1, 1)
    with node.store.db.read() as tx:
        assert worklist.entry(tx, entry).state is EntryState.COMPLETED


# -- storage commitment


def committing(*uids: str) -> Happening:
    items = [{"ReferencedSOPClassUID": CT, "ReferencedSOPInstanceUID": uid} for uid in uids]
    values = {"TransactionUID": "1.2.9", "ReferencedSOPSequence": items}
    return {"service": "commit", "values": values}


def check_report(report: Happening) -> None:
    """1.2.3.4 is committed, 1.2.3.5 is not there."""
    assert (report["type"], report["data"]["TransactionUID"]) == (2, "1.2.9")
    (one,) = report["data"]["ReferencedSOPSequence"]
    (missing,) = report["data"]["FailedSOPSequence"]
    assert one["ReferencedSOPInstanceUID"] == "1.2.3.4"
    assert (missing["ReferencedSOPInstanceUID"], missing["FailureReason"]) == ("1.2.3.5", 0x0112)


def test_it_is_reported_to_on_the_association_that_asked(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4")
    answer, report = ask(node, committing("1.2.3.4", "1.2.3.5"), report=True)
    assert answer["status"] == 0
    check_report(report)
    node.idle()
    assert [str(one.state) for one in pledges.listed(node.store.db, None, 9)] == ["reported"]


def test_it_is_called_back(node: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepacs.scp.commitment.AT_ONCE_BYTES", 10)  # not on the association
    take_in(node.store, sop="1.2.3.4")
    stop = threading.Event()
    thread = threading.Thread(target=reporter.run, args=(node.store, stop), daemon=True)
    with listening(node) as there:
        (answer,) = ask(node, committing("1.2.3.4", "1.2.3.5"))
        thread.start()
        try:
            until(lambda: of_kind(there, "report"), "the report has come")
        finally:
            stop.set()
            reporter.wake(node.store)
            thread.join(20)
    assert not thread.is_alive()
    assert answer["status"] == 0
    check_report(of_kind(there, "report")[0])
