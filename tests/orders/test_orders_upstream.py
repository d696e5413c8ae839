"""The worklist upstream: DCMTK's as the central RIS, and one that does as the test says."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness.dcmtk import require
from harness.waiting import free_port, until
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from store.making import opened_store

from edgepacs import clock
from edgepacs.model import EntryOrigin, EntryState, TwinState
from edgepacs.orders import upstream
from edgepacs.store import Store, sources, twins, worklist
from edgepacs.store.worklist import Criteria, Entry, Held, Patient

MWL = "1.2.840.10008.5.1.4.31"


def listed(number: int, *, name: str = "Doe^Jane", day: str = "") -> Dataset:
    """One entry as a RIS answers it."""
    step = Dataset()
    step.Modality = "CT"
    step.ScheduledStationAETitle = "CT1"
    step.ScheduledProcedureStepStartDate = day or clock.iso(clock.wall_ms())[:10].replace("-", "")
    step.ScheduledProcedureStepStartTime = "101500"
    step.ScheduledProcedureStepID = f"S{number}"
    step.ScheduledProcedureStepDescription = "Head"
    found = Dataset()
    found.SpecificCharacterSet = "ISO_IR 192"
    found.AccessionNumber = f"A{number}"
    found.PatientName = name
    found.PatientID = f"P{number}"
    found.PatientBirthDate = "19700101"
    found.PatientSex = "F"
    found.StudyInstanceUID = f"1.2.3.{number}"
    found.RequestedProcedureID = f"R{number}"
    found.RequestedProcedureDescription = "Head"
    found.ScheduledProcedureStepSequence = [step]
    return found


class Ris:
    """A recording worklist: answers what it is given, with `final` as its last status."""

    def __init__(self) -> None:
        self.port = free_port()
        self.answers: list[Dataset] = []
        self.final = 0x0000
        self.asked: list[Dataset] = []
        self._server = None
        self.up()

    def up(self) -> None:
        ae = AE("RIS")
        ae.add_supported_context(MWL)
        handlers = [(evt.EVT_C_FIND, self._find)]
        at = ("127.0.0.1", self.port)
        self._server = ae.start_server(at, block=False, evt_handlers=handlers)

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.asked.append(event.identifier)
        for one in self.answers:
            yield 0xFF00, one
        if self.final:
            yield self.final, None


@pytest.fixture
def ris() -> Iterator[Ris]:
    one = Ris()
    yield one
    one.down()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened_store(tmp_path / "node") as one:
        yield one


def add(store: Store, port: int, title: str = "RIS", character_set: str = "") -> None:
    with store.db.write() as tx:
        sources.add(
            tx,
            name="ris",
            title=title,
            host="127.0.0.1",
            port=port,
            schedule=sources.Schedule(character_set=character_set),
            actor="test",
        )


def ask(store: Store) -> sources.Source:
    upstream.ask(store, sources.named(store.db, "ris"))
    return sources.named(store.db, "ris")


def held(store: Store, origin: EntryOrigin = EntryOrigin.UPSTREAM) -> dict[str, Held]:
    with store.db.read() as tx:
        found = worklist.entries(tx, Criteria(origin=origin, limit=10_000))
    return {one.entry.accession_number: one for one in found}


def walk_in(store: Store, number: int, **values: str) -> worklist.EntryId:
    entry = Entry(
        patient=Patient(patient_id=f"P{number}", name="Doe^Jane"),
        modality="CT",
        start_date=clock.iso(clock.wall_ms())[:10].replace("-", ""),
        **values,
    )
    with store.db.write() as tx:
        return worklist.put(
            tx, entry, origin=EntryOrigin.LOCAL, source="test", key=f"w{number}", actor="test"
        )


def shift(store: Store, number: worklist.EntryId, state: EntryState) -> None:
    with store.db.write() as tx:
        worklist.shift(tx, number, state, actor="test")


def test_text_of_a_worklist_that_names_no_character_set(store: Store, ris: Ris) -> None:
    add(store, ris.port, character_set="ISO_IR 144")
    unnamed, ascii_said, named = listed(1), listed(2), listed(3, name="山田^太郎")
    for one in (unnamed, ascii_said):
        one.PatientName = "Люксембург^Роза".encode("iso8859-5")
    del unnamed.SpecificCharacterSet
    ascii_said.SpecificCharacterSet = "ISO_IR 6"
    ris.answers = [unnamed, ascii_said, named]
    assert ask(store).words == ""
    names = {number: one.entry.patient.name for number, one in held(store).items()}
    assert names == {"A1": "Люксембург^Роза", "A2": "Люксембург^Роза", "A3": "山田^太郎"}


def test_entries_come_change_go_and_come_again(store: Store, ris: Ris) -> None:
    add(store, ris.port)
    ris.answers = [listed(1, name="山田^太郎"), listed(2), listed(3)]
    assert ask(store).entries == 3
    found = held(store)
    assert found["A1"].entry.patient.name == "山田^太郎"
    assert (found["A2"].entry.study_instance_uid, found["A2"].entry.step_id) == ("1.2.3.2", "S2")
    (asked,) = ris.asked
    assert "-" in asked.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate
    shift(store, found["A3"].id, EntryState.STARTED)
    ris.answers = [listed(1, name="Roe^Jane")]
    ask(store)
    assert {number: one.state for number, one in held(store).items()} == {
        "A1": EntryState.SCHEDULED,
        "A2": EntryState.RETIRED,  # never deleted
        "A3": EntryState.STARTED,  # a RIS hides what has begun
    }
    assert held(store)["A1"].entry.patient.name == "Roe^Jane"
    ris.answers = [listed(1), listed(2)]
    ask(store)
    assert held(store)["A2"].state is EntryState.SCHEDULED
    assert held(store)["A2"].id == found["A2"].id


def test_what_is_answered_in_part_changes_nothing(store: Store, ris: Ris) -> None:
    add(store, ris.port)
    ris.answers = [listed(1), listed(2)]
    ask(store)
    before = held(store)
    for final in (0xA700, 0xC001, 0xFE00):
        ris.answers, ris.final = [listed(1)], final
        source = ask(store)
        assert source.words
        assert held(store) == before
    ris.answers, ris.final = [], 0
    assert "asked again" in ask(store).words
    assert held(store) == before
    ask(store)
    assert {one.state for one in held(store).values()} == {EntryState.RETIRED}


def test_72_hours_without_the_line(store: Store, ris: Ris, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, ris.port)
    ris.answers = [listed(1), listed(2), listed(3), listed(4)]
    ask(store)
    before, ahead = held(store), 0
    now = clock.wall_ms()
    monkeypatch.setattr("edgepacs.store.sources.wall_ms", lambda: now + ahead)
    ris.down()
    for _ in range(72):
        ahead += 3_600_000
        source = ask(store)
        assert source.stale
        assert source.as_of_ms <= now
    assert held(store) == before
    scheduled = walk_in(store, 5, accession_number="A5")
    begun = walk_in(store, 6)
    shift(store, begun, EntryState.STARTED)
    other = walk_in(store, 7, accession_number="A8")  # somebody else's number
    again = [walk_in(store, 9), walk_in(store, 10)]
    with store.db.write() as tx:  # twice the same person, by hand
        second = worklist.entry(tx, again[1]).entry
        patient = Patient(patient_id="P9", name="Doe^Jane")
        changed = replace(second, patient=patient)
        worklist.change(tx, again[1], changed, actor="test")
    ris.up()
    ris.answers = [listed(number) for number in (1, 2, 3, 5, 6, 8, 9)]
    assert not ask(store).stale
    with store.db.read() as tx:
        states = {one: worklist.entry(tx, one).state for one in (scheduled, begun, other, *again)}
        assert twins.partner(tx, begun) == held(store)["A6"].id
    assert states == {
        scheduled: EntryState.RETIRED,
        begun: EntryState.STARTED,
        other: EntryState.SCHEDULED,
        again[0]: EntryState.SCHEDULED,
        again[1]: EntryState.SCHEDULED,
    }
    found = held(store)
    assert found["A4"].state is EntryState.RETIRED
    assert found["A5"].state is EntryState.SCHEDULED
    assert found["A6"].state is EntryState.STARTED  # offered no more: somebody is at it
    for_people = twins.listed(store.db)
    assert {one.entered for one in for_people} == {other, *again}
    settled = next(one for one in for_people if one.entered == again[0])
    with store.db.write() as tx:
        twins.settle(tx, settled.id, TwinState.MERGED, actor="test")
        assert worklist.entry(tx, again[0]).state is EntryState.RETIRED
    assert len(twins.listed(store.db)) == 2


def test_a_removed_source_leaves_nothing_scheduled(store: Store, ris: Ris) -> None:
    add(store, ris.port)
    ris.answers = [listed(1)]
    ask(store)
    with store.db.write() as tx:
        assert sources.remove(tx, "ris", actor="test") == 1
    assert held(store)["A1"].state is EntryState.RETIRED


def test_it_is_asked_when_due(store: Store, ris: Ris) -> None:
    add(store, ris.port)
    ris.answers = [listed(1)]
    stop = threading.Event()
    upstream.ask_due(store, stop)
    upstream.ask_due(store, stop)  # not due yet
    assert len(ris.asked) == 1


@contextmanager
def wlmscpfs(folder: Path, entries: list[Dataset]) -> Iterator[int]:
    """DCMTK's worklist over files."""
    program, port, place = require("wlmscpfs"), free_port(), folder / "DCMTK"
    place.mkdir(parents=True)
    (place / "lockfile").touch()
    for number, one in enumerate(entries):
        one.save_as(
            place / f"{number}.wl", implicit_vr=False, little_endian=True, enforce_file_format=False
        )
    command = [program, "-csk", "-dfp", str(folder), "-dfr", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield port
        finally:
            child.terminate()


@pytest.mark.peers
def test_dcmtk_is_a_ris(store: Store, tmp_path: Path) -> None:
    assert shutil.which("wlmscpfs")
    with wlmscpfs(tmp_path / "wl", [listed(n, name="Müller^Änne") for n in range(1, 6)]) as port:
        add(store, port, "DCMTK")

        def heard() -> bool:
            return ask(store).entries == 5

        until(heard, "wlmscpfs answers")
    found = held(store)
    assert sorted(found) == ["A1", "A2", "A3", "A4", "A5"]
    assert {one.entry.patient.name for one in found.values()} == {"Müller^Änne"}
    assert {one.entry.modality for one in found.values()} == {"CT"}
    assert found["A1"].entry.start_time == "101500"
