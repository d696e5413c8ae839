"""Procedure steps told again to the centre, where another stack (pynetdicom) hears them."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from forward.archive import encode
from forward.sending import forwarding, hasten
from harness.almanac import Almanac
from harness.box import Box
from harness.waiting import free_port, until
from powercut.node import Node
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (
    InstanceAvailabilityNotification,
    ModalityPerformedProcedureStep,
    Verification,
)
from store.making import CT, add_destination, take_in

from edgepacs import clock, config
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.forward import desk, messages
from edgepacs.forward.notices import Notifier
from edgepacs.model import UID, DeliveryKind, DeliveryState, StepState, StudyId
from edgepacs.store import (
    Store,
    claims,
    deliveries,
    destinations,
    dispatches,
    ledger,
    notifications,
    opened,
    steps,
)
from edgepacs.store.steps import Ordered, Received, Told


@dataclass
class Ris:
    """What the centre hears, in order, and what it answers."""

    port: int = field(default_factory=free_port)
    heard: list[tuple[str, str, str]] = field(default_factory=list)  # command, UID, status
    data: list[Dataset] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    answer: Callable[[str, int], int] = lambda _command, _order: 0
    sop_class: str = ModalityPerformedProcedureStep
    syntaxes: tuple[str, ...] = (IMPLICIT_VR_LE, EXPLICIT_VR_LE)
    stores: tuple[str, ...] = ()  # transfer syntaxes of the instances it takes
    stored: int = 0

    def __post_init__(self) -> None:
        self._server = None

    def start(self) -> None:
        ae = AE(ae_title="RIS")
        ae.add_supported_context(self.sop_class, list(self.syntaxes))
        ae.add_supported_context(Verification)
        for syntax in self.stores:
            ae.add_supported_context(CT, syntax)
        handlers = [
            (evt.EVT_N_CREATE, self._create),
            (evt.EVT_N_SET, self._set),
            (evt.EVT_C_STORE, self._store),
        ]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _store(self, _event: Event) -> int:
        self.stored += 1
        return 0

    def _create(self, event: Event) -> tuple[int | Dataset, Dataset | None]:
        uid, data = event.request.AffectedSOPInstanceUID, event.attribute_list
        state = str(data.get("PerformedProcedureStepStatus", ""))
        self._hear("create", uid, state, data)
        if code := self.answer("create", len(self.heard)):
            return code, None
        if uid in self.known:
            return 0x0111, None
        self.known[uid] = state
        return 0x0000, data

    def _set(self, event: Event) -> tuple[int | Dataset, Dataset | None]:
        uid, data = event.request.RequestedSOPInstanceUID, event.modification_list
        state = str(data.get("PerformedProcedureStepStatus", ""))
        self._hear("set", uid, state, data)
        if code := self.answer("set", len(self.heard)):
            return code, None
        if uid not in self.known:
            return 0x0112, None
        if self.known[uid] != "IN PROGRESS":
            closed = Dataset()
            closed.Status = 0x0110
            closed.ErrorID = 0xA710
            return closed, None
        self.known[uid] = state or self.known[uid]
        return 0x0000, data

    def _hear(self, command: str, uid: str, state: str, data: Dataset) -> None:
        self.heard.append((command, str(uid), state))
        self.data.append(data)


@pytest.fixture
def ris() -> Iterator[Ris]:
    one = Ris()
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 200)
    monkeypatch.setattr(messages, "AGAIN_SECONDS", 0.1)


def centre(store: Store, ris: Ris, **settings: str) -> int:
    number = add_destination(store, "ris", "RIS", ris.port)
    with store.db.write() as tx:
        destinations.change(tx, "ris", {"mpps": "1", **settings}, actor="eve")
    return number


_STATES = {
    StepState.IN_PROGRESS: "IN PROGRESS",
    StepState.COMPLETED: "COMPLETED",
    StepState.DISCONTINUED: "DISCONTINUED",
}


def said(state: StepState | None, text: str = "", syntax: str = IMPLICIT_VR_LE) -> Received:
    data = Dataset()
    if state is not None:
        data.PerformedProcedureStepStatus = _STATES[state]
    data.PerformedProcedureStepDescription = text
    return Received(UID(syntax), encode(data, syntax))


def begin(store: Store, uid: str, syntax: str = IMPLICIT_VR_LE) -> int:
    state = StepState.IN_PROGRESS
    with store.db.write() as tx:
        told = Told(state=state, orders=[Ordered("1.2.3.1")])
        return steps.create(tx, UID(uid), told, said(state, uid, syntax), source="CT1")


def go_on(store: Store, uid: str, state: StepState | None = None, text: str = "") -> None:
    with store.db.write() as tx:
        steps.change(tx, UID(uid), Told(state=state), said(state, text), source="CT1")


def whole(store: Store, uid: str) -> None:
    begin(store, uid)
    go_on(store, uid, text="half way")
    go_on(store, uid, StepState.COMPLETED)


def of(uid: str) -> list[tuple[str, str, str]]:
    return [("create", uid, "IN PROGRESS"), ("set", uid, ""), ("set", uid, "COMPLETED")]


def states(store: Store) -> list[str]:
    with store.db.read() as tx:
        return [row[0] for row in tx.rows("SELECT state FROM delivery ORDER BY id")]


def last_error(store: Store, number: int) -> str:
    with store.db.read() as tx:
        row = tx.first("SELECT last_error FROM delivery WHERE id = ?", number)
    assert row is not None
    return str(row[0])


def arrived(store: Store, count: int) -> None:
    until(lambda: states(store) == ["sent"] * count, f"all are sent, not {states(store)}")


# --- order -------------------------------------------------------------------------------------


def test_steps_are_told_again_in_order_and_as_they_came(store: Store, ris: Ris) -> None:
    centre(store, ris)
    ris.start()
    with forwarding(store):
        begin(store, "1.1")
        begin(store, "1.2")
        go_on(store, "1.1", text="half way")
        go_on(store, "1.2", StepState.DISCONTINUED)
        go_on(store, "1.1", StepState.COMPLETED)
        store.ring("forward")
        arrived(store, 5)
    assert [one for one in ris.heard if one[1] == "1.1"] == of("1.1")
    assert [one[2] for one in ris.heard if one[1] == "1.2"] == ["IN PROGRESS", "DISCONTINUED"]
    texts = [str(one.PerformedProcedureStepDescription) for one in ris.data]
    assert "half way" in texts


def test_a_destination_told_late_is_told_from_the_beginning(store: Store, ris: Ris) -> None:
    begin(store, "1.1")
    centre(store, ris)
    assert states(store) == []
    go_on(store, "1.1", StepState.COMPLETED)
    assert states(store) == ["queued", "queued"]
    ris.start()
    with forwarding(store):
        arrived(store, 2)
    assert [one[0] for one in ris.heard] == ["create", "set"]


def test_nobody_is_told_of_its_own_steps(store: Store, ris: Ris) -> None:
    centre(store, ris, ae_title="CT1")
    whole(store, "1.1")
    assert states(store) == []


def test_what_was_received_explicit_goes_to_a_centre_that_takes_implicit_alone(
    store: Store, ris: Ris
) -> None:
    centre(store, ris)
    begin(store, "1.1", EXPLICIT_VR_LE)
    ris.syntaxes = (IMPLICIT_VR_LE,)
    ris.start()
    with forwarding(store):
        arrived(store, 1)
    assert ris.data[0].PerformedProcedureStepDescription == "1.1"


def test_what_follows_waits_for_what_a_person_has_to_see_to(store: Store, ris: Ris) -> None:
    centre(store, ris)
    ris.answer = lambda command, _order: 0x0106 if command == "create" else 0
    ris.start()
    whole(store, "1.1")
    whole(store, "1.2")
    expected = ["failed", "queued", "queued"] * 2
    with forwarding(store):
        until(lambda: states(store) == expected, f"both have failed, not {states(store)}")
        assert last_error(store, 1).startswith("the destination answered 0106, invalid attribute")
        ris.answer = lambda _command, _order: 0
        with store.db.write() as tx:
            deliveries.retry(tx, deliveries.Selection(delivery=1), actor="eve")
        store.ring("forward")
        until(lambda: states(store)[:3] == ["sent"] * 3, "the first has arrived")
    assert states(store)[3:] == ["failed", "queued", "queued"]
    assert [one for one in ris.heard if one[1] == "1.1"] == [of("1.1")[0], *of("1.1")]


def test_instances_and_messages_go_to_the_same_destination(store: Store, ris: Ris) -> None:
    centre(store, ris, proof="response")
    ris.stores = (EXPLICIT_VR_LE,)
    for _ in range(5):
        take_in(store)
    whole(store, "1.1")
    ris.start()
    with forwarding(store):
        arrived(store, 8)
    assert ris.stored == 5
    assert ris.heard == of("1.1")


def test_outside_its_hours_nothing_is_told(store: Store, ris: Ris) -> None:
    opening = (datetime.now() + timedelta(hours=3)).strftime("%H:00")  # noqa: DTZ005
    closing = (datetime.now() + timedelta(hours=4)).strftime("%H:00")  # noqa: DTZ005
    number = centre(store, ris, hours=f"{opening}-{closing}")
    ris.start()
    whole(store, "1.1")
    with forwarding(store) as sender:
        until(lambda: number in sender._couriers, "the destination is seen to")
        courier = sender._couriers[number]
        until(lambda: courier.gear.pace.closed_for(0) is not None, "it is closed")
        assert courier._messages.turn() > 0
        assert not courier._messages.at_work
    assert states(store) == ["queued"] * 3
    assert ris.heard == []


def test_what_is_refused_for_now_is_told_again(store: Store, ris: Ris) -> None:
    centre(store, ris)
    ris.answer = lambda _command, order: 0x0213 if order <= 2 else 0
    ris.start()
    whole(store, "1.1")
    with forwarding(store):
        arrived(store, 3)
    assert ris.heard == [of("1.1")[0]] * 2 + of("1.1")


def test_a_centre_that_takes_none_is_offered_them_again_later(store: Store, ris: Ris) -> None:
    number = centre(store, ris)
    ris.sop_class = InstanceAvailabilityNotification
    ris.start()
    whole(store, "1.1")
    with forwarding(store):
        until(lambda: bool(last_error(store, 1)), "it is put off")
    assert last_error(store, 1) == "the destination does not accept performed procedure steps"
    assert states(store) == ["queued"] * 3
    due = dispatches.next_ms(store.db, number, messages.SOP_CLASSES)
    assert due
    assert due > clock.wall_ms()


# --- outages and crashes -----------------------------------------------------------------------


def test_an_outage_of_72_hours_costs_no_attempt_and_no_order(
    store: Store, ris: Ris, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    almanac = Almanac(tmp_path / "ahead")
    monkeypatch.setattr(clock, "_AHEAD", str(almanac.file))
    number = centre(store, ris)
    uids = [f"1.{hour}" for hour in range(6)]
    with forwarding(store):
        for uid in uids:
            whole(store, uid)
            almanac.pass_(days=0.5)
            store.ring("forward")
            until(lambda: destinations.named(store.db, "ris").link == "down", "it is down")
        with store.db.read() as tx:
            assert tx.number("SELECT COUNT(*) FROM attempt") == 0
        assert states(store) == ["queued"] * 18
        ris.start()
        arrived(store, 18)
    assert sorted(ris.heard) == sorted(one for uid in uids for one in of(uid))
    for uid in uids:
        assert [one for one in ris.heard if one[1] == uid] == of(uid)
    assert dispatches.next_ms(store.db, number, messages.SOP_CLASSES) is None


def test_a_line_that_breaks_at_every_message_loses_and_repeats_nothing_that_was_answered(
    store: Store, ris: Ris
) -> None:
    centre(store, ris)
    for number in range(3):
        whole(store, f"1.{number}")
    broken: set[int] = set()
    original = ris._hear

    def hear(command: str, uid: str, state: str, data: Dataset) -> None:
        original(command, uid, state, data)
        if len(ris.heard) % 2 and len(broken) < 4:
            broken.add(len(ris.heard))
            server = ris._server
            for one in server.active_associations:  # type: ignore[attr-defined]
                one.dul.socket.close()

    ris._hear = hear  # type: ignore[method-assign]
    ris.start()
    with forwarding(store):
        arrived(store, 9)
    assert len(broken) == 4
    for number in range(3):
        mine = [one for one in ris.heard if one[1] == f"1.{number}"]
        assert list(dict.fromkeys(mine)) == of(f"1.{number}")
        assert ris.known[f"1.{number}"] == "COMPLETED"
    assert len(ris.heard) <= 9 + len(broken)


@pytest.mark.parametrize("point", ["message.claimed", "message.told"])
def test_killed_between_attempts_everything_is_told_once(
    new_box: Callable[[], Box], ris: Ris, point: str
) -> None:
    box = new_box()
    box.cli(
        "destination", "add", "ris", "--ae", "RIS", "--host", "127.0.0.1", "--port", str(ris.port)
    )
    box.cli("destination", "set", "ris", "mpps=1")
    with opened(config.load(box.config)) as store:
        begin(store, "1.1")
        go_on(store, "1.1", StepState.COMPLETED)
    ris.start()
    for _ in range(2):  # over the N-CREATE, then over the N-SET
        node = Node(box)
        node.launch("forward", ("--kill-at", f"{point}:1"))
        assert node.wait("forward") == -signal.SIGKILL
    with opened(config.load(box.config)) as store, forwarding(store):
        arrived(store, 2)
    assert list(dict.fromkeys(ris.heard)) == [of("1.1")[0], of("1.1")[2]]
    assert len(ris.heard) <= 4
    assert ris.known == {"1.1": "COMPLETED"}


def test_instances_and_messages_are_found_without_looking_through_the_others(
    store: Store, ris: Ris
) -> None:
    number = centre(store, ris)
    of_messages = f"SELECT MIN(next_ms) {dispatches._MAY_GO}"
    of_instances = f"SELECT MIN(next_ms) FROM delivery WHERE {claims._QUEUED} AND destination = ?1"
    with store.db.read() as tx:
        for sql, index in ((of_messages, "delivery_message"), (of_instances, "delivery_next")):
            plan = tx.rows(f"EXPLAIN QUERY PLAN {sql}", number)
            assert f"INDEX {index} (destination=?)" in str(plan[0][3])


def test_a_claimed_message_is_named_by_its_attempt(store: Store, ris: Ris) -> None:
    number = centre(store, ris)
    whole(store, "1.1")
    one = dispatches.claim(store.db, number, [DeliveryKind.MPPS])
    assert one is not None
    assert dispatches.claim(store.db, number, [DeliveryKind.MPPS]) is None  # the next waits for it
    assert [a.ended_ms for a in ledger.attempts(store.db, one.id)] == [None]
    assert not one.doubtful
    assert dispatches.recover(store.db, number, [DeliveryKind.MPPS]) == 1
    again = dispatches.claim(store.db, number, [DeliveryKind.MPPS])
    assert again is not None
    assert (again.id, again.attempts, again.doubtful) == (one.id, 2, True)
    dispatches.finish(store.db, number, again, DeliveryState.SENT, "success (0000)")
    assert states(store) == ["sent", "queued", "queued"]


# --- availability ------------------------------------------------------------------------------


def told_of(store: Store, ris: Ris) -> int:
    """A destination that is told of studies, beside one that has them."""
    number = centre(store, ris, mpps="0", notify="1")
    ris.sop_class = InstanceAvailabilityNotification
    ris.start()
    return number


def proved(store: Store, destination: int, study: int) -> None:
    with store.db.write() as tx:
        deliveries.send_study(tx, StudyId(study), [destination], actor="eve")
        sql = "UPDATE delivery SET state = 'committed' WHERE study = ? AND destination = ?"
        tx.run(sql, study, destination)


def still(store: Store) -> None:
    with store.db.write() as tx:
        tx.run("UPDATE study SET received_ms = received_ms - ?", notifications.STILL_MS + 1000)


def test_a_study_that_is_there_is_told_of_once(store: Store, ris: Ris) -> None:
    pacs = add_destination(store, "pacs", "PACS")
    old = take_in(store, study="1.9", series="1.9.1").study_id
    told_of(store, ris)
    first, second = take_in(store, number="1"), take_in(store, number="2")
    notifier = Notifier(store)
    proved(store, pacs, old)  # it was here before anybody wanted to be told
    proved(store, pacs, first.study_id)
    assert notifier.round() == 0  # more may come
    still(store)
    begin(store, "1.1")
    assert Notifier(store).round() == 0  # the modality is at it
    go_on(store, "1.1", StepState.COMPLETED)
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'sent' WHERE subject = ?", second.instance_id)
    assert Notifier(store).round() == 0  # half of it is proved
    proved(store, pacs, first.study_id)
    assert Notifier(store).round() == 1
    assert Notifier(store).round() == 0
    with forwarding(store):
        until(lambda: len(ris.heard) == 1 and states(store)[-1] == "sent", "it was told")
    (data,) = ris.data
    assert data.StudyInstanceUID == "1.2.3.1"
    assert data.ReferencedPerformedProcedureStepSequence[0].ReferencedSOPInstanceUID == "1.1"
    (series,) = data.ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == 2
    assert {one.InstanceAvailability for one in series.ReferencedSOPSequence} == {"ONLINE"}
    assert {one.RetrieveAETitle for one in series.ReferencedSOPSequence} == {"PACS"}


def test_what_was_told_and_not_recorded_counts_as_there(store: Store, ris: Ris) -> None:
    pacs, number = add_destination(store, "pacs", "PACS"), told_of(store, ris)
    study = take_in(store).study_id
    proved(store, pacs, study)
    still(store)
    assert Notifier(store).round() == 1
    one = dispatches.claim(store.db, number, [DeliveryKind.NOTIFICATION])  # and then a crash
    assert one is not None
    ris.known[dispatches.content(store.db, one).sop_instance_uid] = ""
    with forwarding(store):
        until(lambda: states(store)[-1] == "sent", "it is there")
    results = [attempt.result for attempt in ledger.attempts(store.db, one.id)]
    assert results == ["broken off", "it was there already (0111)"]
