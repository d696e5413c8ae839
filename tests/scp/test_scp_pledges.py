"""Storage commitment that modalities ask of us: requests, what is found, and reports about it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from forward.archive import INSTANCE, QUICK, encode
from forward.sending import Odd
from harness import sender
from harness.box import Box
from harness.fault import flip_bit
from harness.made import new_uid
from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, Part10
from harness.waiting import free_port, until
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from scp.serving import Serving, serving
from store.making import CT, objects, small, take_in

from edgepacs.clock import wall_ms
from edgepacs.dimse import (
    Association,
    ContextAnswer,
    Element,
    Field,
    Message,
    NoContextAccepted,
    ProposedContext,
    Roles,
    identifier,
    request,
)
from edgepacs.dimse.commitment import AS_SCP as REPORTING
from edgepacs.dimse.contexts import STORAGE_COMMITMENT_PUSH, native_answer
from edgepacs.errors import Conflict, LimitExceeded, NotFound, PeerError
from edgepacs.model import UID, AETitle, InstanceState, PledgeState, Service
from edgepacs.scp import commitment, listener, reporter
from edgepacs.store import Store, instances, peers, pledges
from edgepacs.store import db as database
from edgepacs.store.pledges import Item, Reason
from edgepacs.store.seal import HEADER_LENGTH

MR = "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(listener, "_POLL_SECONDS", 0.02)  # until it sees that it is to end
    with serving(tmp_path / "node") as one:
        know(one.store, free_port())
        yield one


def know(store: Store, port: int, title: str = "CT1", host: str = "127.0.0.1") -> None:
    services = (Service.ECHO, Service.STORE, Service.COMMITMENT)
    with store.db.write() as tx:
        peers.add_ae(tx, title=title, host=host, port=port, services=services, actor="test")


@contextmanager
def reporting(store: Store) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=reporter.run, args=(store, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        reporter.wake(store)
        thread.join(20)
        assert not thread.is_alive()


def call(
    port: int, *, title: str = "CT1", syntax: str = IMPLICIT_LE, roles: Roles | None = None
) -> Association:
    return request(
        "127.0.0.1",
        port,
        calling=AETitle(title),
        called=AETitle("EDGEPACS"),
        contexts=[
            ProposedContext(
                abstract_syntax=STORAGE_COMMITMENT_PUSH, transfer_syntaxes=(syntax,), roles=roles
            )
        ],
        limits=QUICK,
    )


def wanted(*uids: str, transaction: str = "", sop_class: str = CT) -> Dataset:
    asked = Dataset()
    asked.TransactionUID = transaction or new_uid()
    asked.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        asked.ReferencedSOPSequence.append(item)
    return asked


def ask(
    one: Association,
    asked: Dataset | bytes | None,
    *,
    action: int = 1,
    instance: str = INSTANCE,
) -> int:
    elements = {
        Element.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
        Element.COMMAND_FIELD: Field.N_ACTION_RQ,
        Element.REQUESTED_SOP_INSTANCE_UID: instance,
        Element.ACTION_TYPE_ID: action,
    }
    data = encode(asked, one.contexts[1].transfer_syntax) if isinstance(asked, Dataset) else asked
    (answer,) = one.ask(1, elements, None if data is None else (data,))
    return answer.status


Told = tuple[str, int, set[str], dict[str, int]]
"""Transaction UID, event type, committed, and reasons of what was not."""


def read(message: Message, data: bytes) -> Told:
    found = identifier.decode(data, message.context.transfer_syntax)
    uids = identifier.SOP_INSTANCES_REFERENCED
    return (
        identifier.text(found, identifier.TRANSACTION_UID),
        message.command.number(Element.EVENT_TYPE_ID),
        {
            identifier.text(one, uids)
            for one in identifier.items(found, identifier.REFERENCED_SOP_SEQUENCE)
        },
        {
            identifier.text(one, uids): identifier.number(one, identifier.FAILURE_REASON)
            for one in identifier.items(found, identifier.FAILED_SOP_SEQUENCE)
        },
    )


def hear(one: Association, status: int = 0) -> Told:
    """The report on the association that asked."""
    message = one.listen(20)
    assert message is not None
    assert message.data is not None
    assert message.command.field == Field.N_EVENT_REPORT_RQ
    assert message.command.sop_instance_uid == INSTANCE
    told = read(message, b"".join(map(bytes, message.data)))
    one.respond(message, status)
    return told


class Modality:
    """Takes reports on associations of the node's."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.statuses: list[int] = []  # answered in turn, then 0
        self.proposed: list[ProposedContext] = []

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        self.proposed.append(proposed)
        return native_answer(proposed, Roles(scu=False, scp=True))

    def answer(self, association: Association, message: Message, data: bytes) -> None:
        self.told.append(read(message, data))
        association.respond(message, self.statuses.pop(0) if self.statuses else 0)

    def up(self) -> Odd:
        return Odd(self.answer, context=self.context)


def states(store: Store) -> list[str]:
    return [str(one.state) for one in reversed(pledges.listed(store.db, None, 99))]


def spoil(store: Store, uid: str) -> None:
    """Flip one bit of what is sealed."""
    row = instances.stored_version(store.db, UID(uid))
    assert row is not None
    (path,) = [one for one in objects(store) if one.name == row.object_id.hex()]
    flip_bit(path, HEADER_LENGTH + 50)


def of_every_kind(store: Store) -> tuple[list[str], set[str], dict[str, int]]:
    """Instances to ask for; those that are committed, and why the others are not."""
    uids = {
        name: f"1.2.3.{number}"
        for number, name in enumerate(
            ("present", "missing", "quarantined", "altered", "evicted", "bare", "gone"), 4
        )
    }
    for name, uid in uids.items():
        if name != "missing":
            take_in(store, sop=uid)
    second = take_in(store, sop=uids["quarantined"], name="Other^Name")
    spoil(store, uids["altered"])
    evicted = instances.stored_version(store.db, UID(uids["evicted"]))
    gone = instances.stored_version(store.db, UID(uids["gone"]))
    assert evicted is not None
    assert gone is not None
    with store.db.write() as tx:
        instances.move(tx, second.instance_id, InstanceState.QUARANTINED, actor="test")
        instances.move(tx, evicted.id, InstanceState.EVICTED, actor="test")
    store.vault.remove(gone.object_id)
    reasons = {
        uids["missing"]: 0x0112,
        uids["quarantined"]: 0x0110,
        uids["altered"]: 0x0110,
        uids["evicted"]: 0x0112,
        uids["gone"]: 0x0112,
    }
    return list(uids.values()), {uids["present"], uids["bare"]}, reasons


# -- on the association that asked


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_LE])
def test_what_is_here_and_whole_is_committed_and_nothing_else(node: Serving, syntax: str) -> None:
    uids, committed, reasons = of_every_kind(node.store)
    asked = wanted(*uids)
    with call(node.port, syntax=syntax) as one:
        assert ask(one, asked) == 0
        assert states(node.store) == ["asked"] or states(node.store) == ["checked"]
        assert hear(one) == (asked.TransactionUID, 2, committed, reasons)
    node.idle()
    assert states(node.store) == ["reported"]


def test_all_committed_is_an_event_of_its_own(node: Serving) -> None:
    uids = [take_in(node.store, sop=f"1.2.3.{n}") and f"1.2.3.{n}" for n in range(4, 9)]
    asked = wanted(*uids)
    with call(node.port) as one:
        assert ask(one, asked) == 0
        assert hear(one) == (asked.TransactionUID, 1, set(uids), {})


def test_an_instance_under_another_class_is_a_conflict(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4")
    with call(node.port) as one:
        assert ask(one, wanted("1.2.3.4", sop_class=MR)) == 0
        assert hear(one)[1:] == (2, set(), {"1.2.3.4": 0x0119})


def test_what_is_sent_and_asked_for_at_once_is_committed(node: Serving) -> None:
    (answer,) = sender.send([a_small_ct("1.2.3.4")], node.port, calling="CT1")
    assert answer.status == 0
    with call(node.port) as one:
        assert ask(one, wanted("1.2.3.4")) == 0
        assert hear(one)[1:] == (1, {"1.2.3.4"}, {})


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda one: ask(one, wanted("1.2.3.4"), action=2), 0x0123),
        (lambda one: ask(one, wanted("1.2.3.4"), instance="1.2.3"), 0x0112),
        (lambda one: ask(one, wanted()), 0x0115),
        (lambda one: ask(one, wanted("1.2.x")), 0x0115),
        (lambda one: ask(one, wanted("1.2.3", transaction="zero")), 0x0115),
        (lambda one: ask(one, None), 0x0115),
        (lambda one: ask(one, b"\xff" * 30), 0x0115),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_request_is_refused_and_noted(
    node: Serving, make: Callable[[Association], int], status: int
) -> None:
    with call(node.port) as one:
        assert make(one) == status
        assert one.is_open
    node.idle()
    assert states(node.store) == []
    with node.store.db.read() as tx:
        ((detail,),) = tx.rows("SELECT detail FROM audit WHERE act = 'commitment refused'")
    assert "1.2" not in detail.replace("127.0.0.1", "")


def test_a_request_has_a_limit(node: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pledges, "INSTANCES_MOST", 2)
    with call(node.port) as one:
        assert ask(one, wanted("1.2", "1.3", "1.4")) == 0x0213
        assert ask(one, wanted("1.2", "1.3")) == 0
        hear(one)


def test_who_may_not_ask_is_told_so(node: Serving) -> None:
    node.allow("WS", services=(Service.STORE,))
    with pytest.raises(NoContextAccepted):
        call(node.port, title="WS")
    with call(node.port, roles=Roles(scu=False, scp=True)) as one:
        assert ask(one, wanted("1.2.3")) == 0x0211
    assert states(node.store) == []


# -- on an association of the node's own


def test_who_has_gone_is_called_in_the_role_of_scp(node: Serving) -> None:
    uids, committed, reasons = of_every_kind(node.store)
    modality = Modality()
    with modality.up() as scp:
        know(node.store, scp.port)
        asked = wanted(*uids)
        one = call(node.port)
        assert ask(one, asked) == 0
        one.release()
        with reporting(node.store):
            until(lambda: states(node.store) == ["reported"], "it is reported")
    assert modality.told == [(asked.TransactionUID, 2, committed, reasons)]
    (proposed,) = modality.proposed
    assert proposed.roles == REPORTING.roles == Roles(scu=False, scp=True)
    node.idle()
    with node.store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM audit WHERE act = 'association broken'") == 0


def test_large_requests_do_not_keep_the_association_waiting(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment, "AT_ONCE_BYTES", 10)
    take_in(node.store, sop="1.2.3.4")
    modality = Modality()
    with modality.up() as scp, reporting(node.store):
        know(node.store, scp.port)
        with call(node.port) as one:
            assert ask(one, wanted("1.2.3.4")) == 0
            until(lambda: modality.told, "the report has come by itself")
            assert one.listen(0.0) is None
        until(lambda: states(node.store) == ["reported"], "it is noted")
    assert modality.told[0][1:] == (1, {"1.2.3.4"}, {})


def test_a_report_is_repeated_until_it_is_taken(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pledges, "PAUSES_MS", (1, 2, 3))
    monkeypatch.setattr(reporter, "_LOOK_SECONDS", 0.01)
    take_in(node.store, sop="1.2.3.4")
    modality = Modality()
    modality.statuses = [0x0110, 0x0213]
    with modality.up() as scp:
        know(node.store, scp.port)
        one = call(node.port)
        assert ask(one, wanted("1.2.3.4")) == 0
        assert hear(one, 0x0110)[1] == 1
        one.release()
        with reporting(node.store):
            until(lambda: states(node.store) == ["reported"], "it is reported")
    assert [told[1:] for told in modality.told] == [(1, {"1.2.3.4"}, {})] * 3
    (listed,) = pledges.listed(node.store.db, None, 9)
    assert (listed.committed, listed.failed, listed.attempts) == (1, 0, 3)


def test_who_is_not_there_is_tried_again_later_and_given_up_after_days(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pledges, "PAUSES_MS", (1, 2))
    monkeypatch.setattr(reporter, "_LOOK_SECONDS", 0.01)
    one = call(node.port)
    assert ask(one, wanted("1.2.3.4")) == 0
    one.abort()
    with reporting(node.store):
        until(lambda: pledges.listed(node.store.db, None, 9)[0].attempts > 2, "three attempts")
        assert states(node.store) != ["given_up"]
        assert "nothing listens" in pledges.listed(node.store.db, None, 9)[0].words
        with node.store.db.write() as tx:
            tx.run("UPDATE pledge SET asked_ms = asked_ms - ?", pledges.GIVE_UP_MS)
        until(lambda: states(node.store) == ["given_up"], "it is given up")
        with node.store.db.read() as tx:
            assert tx.number("SELECT COUNT(*) FROM audit WHERE act = 'commitment given up'") == 1
        modality = Modality()
        with modality.up() as scp:
            know(node.store, scp.port)
            pledges.again(node.store.db, 1, actor="eve")
            until(lambda: states(node.store) == ["reported"], "a person has it reported")
    assert modality.told[0][1:] == (2, set(), {"1.2.3.4": 0x0112})


def test_an_ae_at_any_host_is_called_where_it_asked_from(node: Serving) -> None:
    modality = Modality()
    with modality.up() as scp:
        know(node.store, scp.port, host="*")
        one = call(node.port)
        assert ask(one, wanted("1.2.3.4")) == 0
        one.release()
        with reporting(node.store):
            until(lambda: states(node.store) == ["reported"], "it is reported")


def test_the_same_request_again_is_reported_again(node: Serving) -> None:
    asked = wanted("1.2.3.4")
    with call(node.port) as one:
        assert ask(one, asked) == 0
        assert hear(one)[1] == 2
        take_in(node.store, sop="1.2.3.4")
        assert ask(one, asked) == 0
        assert hear(one)[1:] == (1, {"1.2.3.4"}, {})
        assert ask(one, wanted("1.2.3.5", transaction=asked.TransactionUID)) == 0x0115
    node.idle()
    assert states(node.store) == ["reported"]


def test_what_was_looked_at_long_ago_is_looked_at_again(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4")
    modality = Modality()
    with modality.up() as scp:
        know(node.store, scp.port)
        one = call(node.port)
        assert ask(one, wanted("1.2.3.4")) == 0
        one.release()
        until(lambda: states(node.store) == ["checked"], "it was looked at")
        node.idle()
        spoil(node.store, "1.2.3.4")
        with reporting(node.store):  # which begins with that
            until(lambda: states(node.store) == ["reported"], "it is reported")
    assert modality.told[0][1:] == (2, set(), {"1.2.3.4": 0x0110})


def test_what_is_being_compared_is_waited_for(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pledges, "PAUSES_MS", (1, 2))
    monkeypatch.setattr(reporter, "_LOOK_SECONDS", 0.01)
    take_in(node.store, sop="1.2.3.4")
    second = take_in(node.store, sop="1.2.3.4", name="Other^Name")
    modality = Modality()
    with modality.up() as scp, reporting(node.store):
        know(node.store, scp.port)
        one = call(node.port)
        assert ask(one, wanted("1.2.3.4")) == 0
        one.release()
        node.idle()
        assert states(node.store) == ["asked"]
        with node.store.db.write() as tx:
            instances.move(tx, second.instance_id, InstanceState.DISCARDED, actor="test")
        until(lambda: states(node.store) == ["reported"], "it is reported")
    assert modality.told[0][1:] == (1, {"1.2.3.4"}, {})


# -- the store


def test_too_many_that_wait_are_refused(node: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pledges, "OPEN_MOST", 2)
    for number in range(2):
        write_down(node.store, f"1.2.{number}")
    with pytest.raises(LimitExceeded):
        write_down(node.store, "1.2.9")
    write_down(node.store, "1.2.1")
    write_down(node.store, "1.2.9", ae="CT2")
    with pytest.raises(Conflict):
        write_down(node.store, "1.2.1", uid="1.2.3.5")
    with pytest.raises(NotFound):
        pledges.pledge(node.store.db, 99)


def write_down(store: Store, transaction: str, *, ae: str = "CT1", uid: str = "1.2.3.4") -> int:
    with store.db.write() as tx:
        return pledges.ask(
            tx,
            ae=AETitle(ae),
            called_ae=AETitle("EDGEPACS"),
            host="127.0.0.1",
            transaction_uid=UID(transaction),
            items=[Item(sop_class_uid=UID(CT), sop_instance_uid=UID(uid))],
        )


def test_a_report_is_put_off_ever_longer_and_no_clock_set_back_holds_it_up(
    node: Serving,
) -> None:
    number = write_down(node.store, "1.2.1")
    assert pledges.check(node.store, number)
    pauses = []
    for _ in range(8):
        before = wall_ms()
        assert pledges.undelivered(node.store.db, number, "away") is PledgeState.CHECKED
        pauses.append(round((pledges.pledge(node.store.db, number).next_ms - before) / 1000))
        assert pledges.due(node.store.db) == []
    assert pauses == [10, 30, 60, 300, 900, 3600, 3600, 3600]
    with node.store.db.write() as tx:
        tx.run("UPDATE pledge SET next_ms = next_ms + 86400000")
    assert [one.id for one in pledges.due(node.store.db)] == [number]


def test_what_the_row_does_not_say_is_not_committed(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4")
    one = Item(sop_class_uid=UID(CT), sop_instance_uid=UID("1.2.3.4"))
    assert pledges.examined(node.store, one) is Reason.COMMITTED
    with node.store.db.write() as tx:
        tx.run("UPDATE instance SET byte_length = byte_length + 1")
    assert pledges.examined(node.store, one) is Reason.PROCESSING_FAILURE
    assert database.migrations()[14][1] == "0015_pledges.sql"


# -- through a crash, with other people's programs


@pytest.mark.parametrize("point", ["pledge.written", "pledge.checked", "pledge.told"])
def test_a_request_survives_a_crash_between_it_and_its_report(
    new_box: Callable[[], Box], point: str
) -> None:
    box = new_box()
    let_ask(box, free_port())
    box.start(env={"EDGEPACS_FAILPOINT": point})
    for uid in ("1.2.3.4", "1.2.3.5"):
        (answer,) = sender.send([a_small_ct(uid)], box.dicom_port, calling="CT1")
        assert answer.status == 0
    asked = wanted("1.2.3.4", "1.2.3.5", "1.2.3.6")
    # It dies before it answers, or after that.
    with suppress(PeerError), call(box.dicom_port) as one:
        assert ask(one, asked) == 0
        if point == "pledge.told":
            assert hear(one)[0] == asked.TransactionUID
            one.listen(20)
    until(lambda: "scp ended with -9" in box.log_text(), "it has died")
    box.kill()
    newest = max(box.objects(), key=lambda path: path.stat().st_mtime_ns)
    flip_bit(newest, HEADER_LENGTH + 50)
    modality = Modality()
    with modality.up() as scp:
        let_ask(box, scp.port)
        box.start()
        until(lambda: modality.told, "it is reported after all")
        until(
            lambda: box.cli("commitment", "list")[0]["state"] == "reported", "that is written down"
        )
    assert modality.told[0] == (
        asked.TransactionUID,
        2,
        {"1.2.3.4"},
        {"1.2.3.5": 0x0110, "1.2.3.6": 0x0112},
    )
    (listed,) = box.cli("commitment", "list", "--state", "reported")
    assert (listed["ae"], listed["instances"], listed["committed"]) == ("CT1", 3, 1)


def let_ask(box: Box, port: int) -> None:
    at = ("--host", "127.0.0.1", "--port", str(port))
    box.cli("ae", "add", "CT1", *at, "--allow", "echo,store,commitment")


def a_small_ct(uid: str) -> Part10:
    return Part10(
        path=None,
        sop_class=CT,
        sop_instance=uid,
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=small(sop=uid),
    )


def test_pynetdicom_is_reported_to_on_the_association_that_asked(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4")
    told: list[Dataset] = []
    heard = threading.Event()

    def reported(event: evt.Event) -> tuple[int, None]:
        told.append(event.event_information)
        heard.set()
        return 0x0000, None

    ae = AE(ae_title="CT1")
    ae.add_requested_context(StorageCommitmentPushModel)
    association = ae.associate(
        "127.0.0.1",
        node.port,
        ae_title="EDGEPACS",
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, reported)],
    )
    asked = wanted("1.2.3.4", transaction=generate_uid())
    status, _ = association.send_n_action(asked, 1, StorageCommitmentPushModel, INSTANCE)
    assert status.Status == 0
    assert heard.wait(20)
    association.release()
    assert told[0].TransactionUID == asked.TransactionUID
    assert [i.ReferencedSOPInstanceUID for i in told[0].ReferencedSOPSequence] == ["1.2.3.4"]


def test_pynetdicom_is_called_back(node: Serving) -> None:
    told: list[Dataset] = []

    def reported(event: evt.Event) -> tuple[int, None]:
        told.append(event.event_information)
        return 0x0000, None

    there = AE(ae_title="CT1")
    there.add_supported_context(Verification)
    there.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = there.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reported)]
    )
    assert server is not None
    try:
        know(node.store, server.socket.getsockname()[1])
        one = call(node.port)
        assert ask(one, wanted("1.2.3.4")) == 0
        one.release()
        with reporting(node.store):
            until(lambda: states(node.store) == ["reported"], "it is reported")
    finally:
        server.shutdown()
    (failed,) = told[0].FailedSOPSequence
    assert failed.FailureReason == 0x0112
