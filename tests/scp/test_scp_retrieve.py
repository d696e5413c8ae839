"""C-MOVE and C-GET as SCP, with DCMTK, pynetdicom and our own engine as peers."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from custody.outcome import (
    CODED,
    DEFLATED,
    JPEG_2000,
    NATIVE,
    frames_of,
)
from forward.archive import QUICK, encode
from forward.sending import Odd, accepting
from harness import made
from harness.box import Box
from harness.corpus import pydicom_file
from harness.dcmtk import require
from harness.fault import flip_bit
from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, Part10, read
from harness.waiting import free_port, until
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelMove,
)
from scp.serving import Serving, serving
from scp.test_scp_memory import ULTRASOUND, Receiver, calling, cine
from store.making import CT, objects, small, take_in, take_in_part

from edgepacs.custody import prepared
from edgepacs.custody.converter import Converter
from edgepacs.custody.outgoing import writable
from edgepacs.dimse import (
    Association,
    Element,
    Field,
    Message,
    NoContextAccepted,
    ProposedContext,
    Response,
    Roles,
    identifier,
    request,
)
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.dimse.retrieve import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from edgepacs.model import UID, AETitle, InstanceState, Service, StudyState
from edgepacs.scp import conversions, listener, retrieve
from edgepacs.scp.carriers import NATIVE as PROPOSED_NATIVE
from edgepacs.scp.carriers import SMALLER
from edgepacs.scp.retrieve import PATIENT_ROOT_GET, PATIENT_ROOT_MOVE
from edgepacs.scp.services import PROVIDED
from edgepacs.store import Store, instances, peers, studies
from edgepacs.store.seal import HEADER_LENGTH

STUDY, SERIES = "1.2.3.1", "1.2.3.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
AS_SCP = Roles(scu=False, scp=True)
EVERYTHING = (Service.ECHO, Service.STORE, Service.MOVE, Service.GET)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(listener, "_POLL_SECONDS", 0.02)  # until it sees that it is to end
    with serving(tmp_path / "node") as one:
        one.allow("WS", services=(Service.MOVE, Service.GET))
        yield one


def know(node: Serving, title: str, port: int, host: str = "127.0.0.1") -> None:
    with node.store.db.write() as tx:
        peers.add_ae(tx, title=title, host=host, port=port, services=EVERYTHING, actor="test")


def call(
    node: Serving,
    abstract_syntax: str = STUDY_ROOT_MOVE,
    *more: ProposedContext,
    title: str = "WS",
    syntax: str = IMPLICIT_LE,
) -> Association:
    own = ProposedContext(abstract_syntax=abstract_syntax, transfer_syntaxes=(syntax,))
    return request(
        "127.0.0.1",
        node.port,
        calling=AETitle(title),
        called=AETitle("EDGEPACS"),
        contexts=[own, *more],
        limits=QUICK,
    )


def of_study(study: str = STUDY) -> dict[int, str]:
    return {identifier.QUERY_RETRIEVE_LEVEL: "STUDY", identifier.STUDY_INSTANCE_UID: study}


def asking(one: Association, destination: str = "DEST") -> dict[int, int | str]:
    (context,) = [c for c in one.contexts.values() if c.id == 1]
    moving = context.abstract_syntax in (STUDY_ROOT_MOVE, PATIENT_ROOT_MOVE)
    elements: dict[int, int | str] = {
        Element.AFFECTED_SOP_CLASS_UID: context.abstract_syntax,
        Element.COMMAND_FIELD: Field.C_MOVE_RQ if moving else Field.C_GET_RQ,
        Element.PRIORITY: 0,
    }
    return {**elements, Element.MOVE_DESTINATION: destination} if moving else elements


def move(
    one: Association, keys: dict[int, str] | None = None, destination: str = "DEST"
) -> list[Response]:
    syntax = one.contexts[1].transfer_syntax
    data = identifier.encode(keys or of_study(), syntax)
    return list(one.ask(1, asking(one, destination), (data,)))


def get(
    one: Association,
    keys: dict[int, str] | None = None,
    answer: Callable[[Message, bytes], int] = lambda *_: 0,
) -> list[Response]:
    responses = []
    for event in one.converse(1, asking(one), (identifier.encode(keys or of_study()),)):
        if isinstance(event, Response):
            responses.append(event)
        else:
            assert event.data is not None
            data = b"".join(map(bytes, event.data))
            one.respond(event, answer(event, data))
    return responses


def counts(response: Response) -> tuple[int | None, int, int, int]:
    """Remaining, completed, failed, warning; None for a number that is not there."""
    number = response.command.number
    left = number(Element.REMAINING) if Element.REMAINING in response.command else None
    return left, number(Element.COMPLETED), number(Element.FAILED), number(Element.WARNING)


def failed_list(response: Response, syntax: str = IMPLICIT_LE) -> list[str]:
    implicit = syntax == IMPLICIT_LE
    found = read_dataset(BytesIO(response.data), is_implicit_VR=implicit, is_little_endian=True)
    value = found.get("FailedSOPInstanceUIDList", [])
    return [value] if isinstance(value, str) else [str(one) for one in value]


class Dest:
    """Where instances are moved to."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, bytes]] = []
        self.commands: list[Message] = []
        self.status: Callable[[int], int] = lambda _: 0
        self.before: Callable[[int], None] = lambda _: None

    def answer(self, association: Association, message: Message, data: bytes) -> None:
        self.commands.append(message)
        self.before(len(self.commands))
        uid = message.command.sop_instance_uid
        self.got.append((uid, message.context.transfer_syntax, data))
        association.respond(message, self.status(len(self.commands)))

    @contextmanager
    def up(self, node: Serving, *accepted: str, title: str = "DEST") -> Iterator[Odd]:
        with Odd(self.answer, context=accepting(*(accepted or (EXPLICIT_LE,)))) as scp:
            know(node, title, scp.port)
            yield scp

    @property
    def uids(self) -> list[str]:
        return [uid for uid, _, _ in self.got]


def some(store: Store, number: int, **attributes: str) -> list[str]:
    uids = [f"1.2.3.4.{one}" for one in range(1, number + 1)]
    for uid in uids:
        take_in(store, sop=uid, **attributes)
    return uids


# -- C-MOVE


def test_a_study_is_moved_and_every_sub_operation_counted(node: Serving) -> None:
    uids = some(node.store, 3)
    dest = Dest()
    with dest.up(node) as scp, call(node) as one:
        responses = move(one)
        assert scp.associations == 1
    assert dest.uids == uids
    statuses = [response.status for response in responses]
    assert statuses == [0xFF00, 0xFF00, 0]
    assert [counts(one) for one in responses] == [(2, 1, 0, 0), (1, 2, 0, 0), (None, 3, 0, 0)]
    assert not responses[-1].data
    for message in dest.commands:  # PS3.7 9.1.1.1
        assert message.command.text(Element.MOVE_ORIGINATOR) == "WS"
        assert message.command.number(Element.MOVE_ORIGINATOR_MESSAGE_ID) == 1
    with node.store.db.read() as tx:
        sql = "SELECT actor, kind, detail FROM audit WHERE act = 'instances retrieved'"
        assert tx.rows(sql) == [("WS", "study", "3 instances, to DEST")]


def test_what_is_stored_goes_out_byte_for_byte(node: Serving) -> None:
    parts = [made.ct(study=STUDY) for _ in range(2)]
    for part in parts:
        take_in_part(node.store, part)
    dest = Dest()
    with dest.up(node, EXPLICIT_LE, IMPLICIT_LE, *CODED), call(node) as one:
        assert move(one)[-1].status == 0
    assert [data for _, _, data in dest.got] == [part.data for part in parts]


@pytest.mark.parametrize(("destination", "host"), [("NOBODY", ""), ("", ""), ("ANYWHERE", "*")])
def test_an_unknown_destination_is_refused(node: Serving, destination: str, host: str) -> None:
    some(node.store, 1)
    if host:
        know(node, destination, 104, host)
    with call(node) as one:
        (answer,) = move(one, destination=destination)
        assert answer.status == 0xA801
        assert one.is_open


def test_an_ae_at_any_host_may_have_things_moved_to_itself(node: Serving) -> None:
    uids = some(node.store, 1)
    dest = Dest()
    with Odd(dest.answer, context=accepting(EXPLICIT_LE)) as scp:
        know(node, "WS", scp.port, host="*")
        with call(node) as one:
            assert move(one, destination="WS")[-1].status == 0
    assert dest.uids == uids


def test_a_destination_that_cannot_be_reached_fails_all(node: Serving) -> None:
    uids = some(node.store, 2)
    know(node, "DEST", free_port())
    with call(node) as one:
        *_, final = move(one)
        assert final.status == 0xA702
        assert counts(final) == (None, 0, 2, 0)
        assert failed_list(final) == uids
        assert "move destination" in final.command.comment


@pytest.mark.parametrize("syntax", [IMPLICIT_LE, EXPLICIT_LE])
def test_failures_and_warnings_are_told_apart(node: Serving, syntax: str) -> None:
    uids = some(node.store, 4)
    dest = Dest()
    dest.status = lambda number: {1: 0xA700, 2: 0xB007}.get(number, 0)
    with dest.up(node), call(node, syntax=syntax) as one:
        *_, final = move(one)
    assert final.status == 0xB000
    assert counts(final) == (None, 2, 1, 1)
    assert failed_list(final, syntax) == uids[:1]


def test_an_association_that_breaks_is_opened_once_more(node: Serving) -> None:
    uids = some(node.store, 4)
    dest = Dest()
    cut = threading.Event()

    def answer(association: Association, message: Message, data: bytes) -> None:
        if len(dest.got) == 2 and not cut.is_set():
            cut.set()
            association.abort()
        else:
            dest.answer(association, message, data)

    with Odd(answer, context=accepting(EXPLICIT_LE)) as scp:
        know(node, "DEST", scp.port)
        with call(node) as one:
            *_, final = move(one)
        assert scp.associations == 2
    assert (final.status, counts(final)) == (0, (None, 4, 0, 0))
    assert dest.uids == uids


def test_a_destination_that_aborts_every_time_is_left_alone(node: Serving) -> None:
    some(node.store, 50)
    with Odd(lambda association, *_: association.abort(), context=accepting(EXPLICIT_LE)) as scp:
        know(node, "DEST", scp.port)
        with call(node) as one:
            *_, final = move(one)
        assert scp.associations == 1
    assert (final.status, counts(final)) == (0xA702, (None, 0, 50, 0))


def test_a_move_is_cancelled_between_sub_operations(node: Serving) -> None:
    some(node.store, 20)
    dest = Dest()
    asked, cancelled = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 3:
            asked.set()
            assert cancelled.wait(20)

    dest.before = hold
    with dest.up(node), call(node) as one:
        responses = one.ask(1, asking(one), (identifier.encode(of_study()),))
        assert asked.wait(20)
        one.cancel(1, one.last_message_id)
        cancelled.set()
        *_, final = responses
        assert one.is_open
    assert final.status == 0xFE00
    assert counts(final) == (17, 3, 0, 0)
    assert len(dest.got) == 3


def test_whoever_asked_and_is_gone_gets_nothing_more_sent(node: Serving) -> None:
    some(node.store, 20)
    dest = Dest()
    asked, gone = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            asked.set()
            assert gone.wait(20)

    dest.before = hold
    with dest.up(node):
        one = call(node)
        one.ask(1, asking(one), (identifier.encode(of_study()),))
        assert asked.wait(20)
        one.abort()
        gone.set()
        node.idle()
    assert len(dest.got) <= 3


def test_nothing_to_move_is_a_success(node: Serving) -> None:
    know(node, "DEST", free_port())
    with call(node) as one:
        (answer,) = move(one, of_study("1.2.99"))
        assert (answer.status, counts(answer)) == (0, (None, 0, 0, 0))


# -- what is named


@pytest.mark.parametrize(
    ("root", "keys"),
    [
        (STUDY_ROOT_MOVE, {}),
        (STUDY_ROOT_MOVE, {0x00080052: "PATIENT", 0x00100020: "P1"}),
        (STUDY_ROOT_MOVE, {0x00080052: "STUDY"}),
        (STUDY_ROOT_MOVE, {0x00080052: "STUDY", 0x0020000D: "*"}),
        (STUDY_ROOT_MOVE, {0x00080052: "SERIES", 0x0020000D: STUDY}),
        (STUDY_ROOT_MOVE, {0x00080052: "IMAGE", 0x0020000D: STUDY, 0x0020000E: SERIES}),
        (PATIENT_ROOT_MOVE, {0x00080052: "PATIENT", 0x0020000D: STUDY}),
        (PATIENT_ROOT_GET, {0x00080052: "FRAME", 0x0020000D: STUDY}),
    ],
)
def test_an_identifier_without_its_unique_key_is_refused(
    node: Serving, root: str, keys: dict[int, str]
) -> None:
    some(node.store, 1)
    know(node, "DEST", free_port())
    with call(node, root) as one:
        (answer,) = one.ask(1, asking(one), (identifier.encode(keys),))
        assert answer.status == 0xA900
        assert answer.command.comment
        assert one.is_open


@pytest.mark.parametrize(
    ("root", "level", "keys", "wanted"),
    [
        (PATIENT_ROOT_MOVE, "PATIENT", {0x00100020: "P1"}, "abcde"),
        (PATIENT_ROOT_MOVE, "STUDY", {0x00100020: "P1", 0x0020000D: "1.1\\1.2"}, "abcde"),
        (PATIENT_ROOT_MOVE, "STUDY", {0x00100020: "P2", 0x0020000D: "1.1\\1.2"}, ""),
        (STUDY_ROOT_MOVE, "STUDY", {0x0020000D: "1.1"}, "abc"),
        (STUDY_ROOT_MOVE, "SERIES", {0x0020000D: "1.1", 0x0020000E: "1.1.1"}, "ab"),
        (STUDY_ROOT_MOVE, "SERIES", {0x0020000E: "1.1.2\\1.2.1"}, "cde"),
        (STUDY_ROOT_MOVE, "IMAGE", {0x0020000D: "1.1", 0x00080018: "9.1\\9.3\\9.4"}, "ac"),
        (STUDY_ROOT_MOVE, "IMAGE", {0x00080018: "9.5\\9.6\\9.99"}, "ef"),
    ],
)
def test_keys_and_lists_of_uids(
    node: Serving, root: str, level: str, keys: dict[int, str], wanted: str
) -> None:
    tree = {"a": "1.1.1", "b": "1.1.1", "c": "1.1.2", "d": "1.2.1", "e": "1.2.1", "f": "1.3.1"}
    for number, (_, series) in enumerate(tree.items(), 1):
        patient = "P2" if series == "1.3.1" else "P1"
        study = series.rpartition(".")[0]
        take_in(node.store, sop=f"9.{number}", study=study, series=series, patient_id=patient)
    dest = Dest()
    with dest.up(node), call(node, root) as one:
        *_, final = move(one, {0x00080052: level, **keys})
        assert final.status == 0
    assert dest.uids == [f"9.{list(tree).index(one) + 1}" for one in wanted]


def test_a_patient_id_beyond_ascii(node: Serving) -> None:
    take_in(node.store, sop="1.2.3.4", patient_id="ПАЦ-1")
    take_in(node.store, sop="1.2.3.5", study="1.2.9", series="1.2.9.1", patient_id="ПАЦ-2")
    keys = Dataset()
    keys.SpecificCharacterSet, keys.QueryRetrieveLevel = "ISO_IR 144", "PATIENT"
    keys.PatientID = "ПАЦ-1"
    dest = Dest()
    with dest.up(node), call(node, PATIENT_ROOT_MOVE) as one:
        *_, final = one.ask(1, asking(one), (encode(keys),))
        assert final.status == 0
    assert dest.uids == ["1.2.3.4"]


@pytest.mark.parametrize("state", [StudyState.HELD, StudyState.REJECTED])
def test_nothing_of_a_study_that_was_stopped_leaves(node: Serving, state: StudyState) -> None:
    some(node.store, 2)
    study = studies.search(node.store.db, studies.Search())[0].id
    with node.store.db.write() as tx:
        studies.set_state(tx, study, state, actor="eve")
    know(node, "DEST", free_port())
    with call(node) as one:
        (answer,) = move(one)
        assert (answer.status, counts(answer)) == (0, (None, 0, 0, 0))


def test_only_the_version_that_stands_is_sent_and_what_was_evicted_is_missed(
    node: Serving,
) -> None:
    first, second, third = some(node.store, 3)
    quarantined = take_in(node.store, sop=first, name="Other^Name")
    evicted = instances.stored_version(node.store.db, second)
    assert evicted is not None
    with node.store.db.write() as tx:
        instances.move(tx, quarantined.instance_id, InstanceState.QUARANTINED, actor="test")
        instances.move(tx, evicted.id, InstanceState.EVICTED, actor="test")
    node.store.vault.remove(evicted.object_id)
    dest = Dest()
    with dest.up(node), call(node) as one:
        *_, final = move(one)
    assert (final.status, counts(final)) == (0xB000, (None, 2, 1, 0))
    assert failed_list(final) == [second]
    assert dest.uids == [first, third]
    assert b"Other" not in dest.got[0][2]


def test_an_altered_object_costs_its_own_sub_operation(node: Serving) -> None:
    uids = some(node.store, 3)
    row = instances.stored_version(node.store.db, uids[1])
    assert row is not None
    (path,) = [one for one in objects(node.store) if one.name == row.object_id.hex()]
    flip_bit(path, HEADER_LENGTH + 100)
    dest = Dest()
    with dest.up(node) as scp, call(node) as one:
        *_, final = move(one)
        assert scp.associations == 1
    assert (final.status, failed_list(final)) == (0xB000, [uids[1]])
    assert dest.uids == [uids[0], uids[2]]


def test_more_than_can_be_counted_is_refused(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieve, "MOST", 2)
    some(node.store, 3)
    know(node, "DEST", free_port())
    with call(node) as one:
        (answer,) = move(one)
        assert answer.status == 0xA701


def test_a_list_longer_than_an_element_holds_is_cut_to_whole_uids(node: Serving) -> None:
    number = 1100
    uids = [
        f"1.2.840.113619.2.5.1762583153.215519.978957063.78.1{one:013}" for one in range(number)
    ]
    one = retrieve._Retrieval.__new__(retrieve._Retrieval)
    one._failed = uids  # type: ignore[assignment]
    with call(node, syntax=EXPLICIT_LE) as association:
        one._message = Message(association.contexts[1], None)  # type: ignore[arg-type]
        listed = read_dataset(BytesIO(one._failed_list()), False, True).FailedSOPInstanceUIDList
    assert 1000 < len(listed) < number
    assert list(listed) == uids[: len(listed)]


# -- C-GET


def test_a_study_comes_back_on_the_association_that_asked(node: Serving) -> None:
    part = made.ct(study=STUDY)
    take_in_part(node.store, part)
    uids = [part.sop_instance, *some(node.store, 2)]
    took: list[tuple[str, bytes]] = []

    def take(message: Message, data: bytes) -> int:
        took.append((message.command.sop_instance_uid, data))
        assert Element.MOVE_ORIGINATOR not in message.command
        return 0

    with call(node, STUDY_ROOT_GET, storage(CT, EXPLICIT_LE)) as one:
        responses = get(one, answer=take)
        assert one.contexts[3].roles == AS_SCP
    assert sorted(uid for uid, _ in took) == sorted(uids)
    assert dict(took)[part.sop_instance] == part.data
    assert [counts(one) for one in responses] == [(2, 1, 0, 0), (1, 2, 0, 0), (None, 3, 0, 0)]


def storage(sop_class: str, *syntaxes: str, roles: Roles | None = AS_SCP) -> ProposedContext:
    return ProposedContext(abstract_syntax=sop_class, transfer_syntaxes=syntaxes, roles=roles)


def test_what_the_asker_takes_no_part_of_fails(node: Serving) -> None:
    mr = Part10(
        path=None,
        sop_class=MR,
        sop_instance="1.2.3.9",
        transfer_syntax=EXPLICIT_LE,
        modality="MR",
        data=small(sop="1.2.3.9", sop_class=MR),
    )
    take_in_part(node.store, mr)
    (uid,) = some(node.store, 1)
    took: list[str] = []

    def take(message: Message, _: bytes) -> int:
        took.append(message.command.sop_instance_uid)
        return 0

    with call(node, STUDY_ROOT_GET, storage(CT, IMPLICIT_LE, EXPLICIT_LE)) as one:
        *_, final = get(one, answer=take)
    assert (final.status, failed_list(final)) == (0xB000, ["1.2.3.9"])
    assert took == [uid]


def test_without_the_role_of_scp_nothing_comes(node: Serving) -> None:
    some(node.store, 1)
    node.allow("WS", services=(Service.STORE, Service.GET))
    with call(node, STUDY_ROOT_GET, storage(CT, EXPLICIT_LE, roles=None)) as one:
        *_, final = get(one)
        assert final.status == 0xA702


def test_a_get_is_cancelled_while_an_answer_is_awaited(node: Serving) -> None:
    some(node.store, 20)
    took: list[str] = []
    with call(node, STUDY_ROOT_GET, storage(CT, EXPLICIT_LE)) as one:

        def take(message: Message, _: bytes) -> int:
            took.append(message.command.sop_instance_uid)
            if len(took) == 4:
                one.cancel(1, 1)
            return 0

        *_, final = get(one, answer=take)
        assert final.status == 0xFE00
        assert counts(final) == (16, 4, 0, 0)
        took.clear()
        *_, final = get(one, {0x00080052: "IMAGE", 0x00080018: "1.2.3.4.7"}, take)
        assert (final.status, took) == (0, ["1.2.3.4.7"])


def test_who_may_only_fetch_cannot_store(node: Serving) -> None:
    with call(
        node, STUDY_ROOT_GET, storage(CT, EXPLICIT_LE, roles=Roles(scu=True, scp=True))
    ) as one:
        assert one.contexts[3].roles == AS_SCP
        elements = {
            Element.AFFECTED_SOP_CLASS_UID: CT,
            Element.COMMAND_FIELD: Field.C_STORE_RQ,
            Element.PRIORITY: 0,
            Element.AFFECTED_SOP_INSTANCE_UID: "1.2.3.4",
        }
        (answer,) = one.ask(3, elements, (b"",))
        assert answer.status == 0x0211
    assert instances.newest(node.store.db) == 0


@pytest.mark.parametrize(
    ("services", "root"),
    [
        ((Service.GET, Service.STORE), STUDY_ROOT_MOVE),
        ((Service.MOVE, Service.STORE), PATIENT_ROOT_GET),
    ],
)
def test_who_may_not_is_not_let(node: Serving, services: Sequence[Service], root: str) -> None:
    node.allow("WS", services=tuple(services))
    with pytest.raises(NoContextAccepted):
        call(node, root)


@pytest.mark.parametrize(
    ("proposed", "answer"), [(b"", b""), (b"\1", b"\1"), (b"\0", b"\0"), (b"\1\1", b"\1\0")]
)
def test_relational_retrieval_is_negotiated(proposed: bytes, answer: bytes) -> None:
    for root in (STUDY_ROOT_MOVE, STUDY_ROOT_GET, PATIENT_ROOT_MOVE, PATIENT_ROOT_GET):
        assert PROVIDED[root].options(proposed) == answer


@pytest.mark.parametrize("root", [STUDY_ROOT_MOVE, STUDY_ROOT_GET])
def test_other_operations_are_not_recognised(node: Serving, root: str) -> None:
    with call(node, root) as one:
        elements = {**asking(one), Element.COMMAND_FIELD: Field.C_FIND_RQ}
        (answer,) = one.ask(1, elements, (identifier.encode(of_study()),))
        assert answer.status == 0x0211


def test_a_large_object_is_sent_in_constant_memory(box: Box) -> None:
    receiver = Receiver(box)
    box.cli("ae", "add", "WS", "--host", "127.0.0.1", "--port", "104", "--allow", "get")
    with calling(box, ULTRASOUND) as one:
        for blocks in (5, 60):
            uid = "1.2.3.4" if blocks == 5 else "1.2.3.5"
            pieces = cine(blocks) if blocks == 5 else _renamed(cine(blocks))
            assert one.store(1, UID(ULTRASOUND), UID(uid), pieces).status == 0
    got: list[int] = []

    def take(_: Message, data: bytes) -> int:
        got.append(len(data))
        return 0

    own = ProposedContext(abstract_syntax=STUDY_ROOT_GET, transfer_syntaxes=(IMPLICIT_LE,))
    with request(
        "127.0.0.1",
        box.dicom_port,
        calling=AETitle("WS"),
        called=AETitle(box.ae_title),
        contexts=[own, storage(ULTRASOUND, EXPLICIT_LE)],
        limits=QUICK,
    ) as association:
        for uid in ("1.2.3.4", "1.2.3.5"):
            if uid == "1.2.3.5":
                receiver.forget_peak()
                before = receiver.rss
            keys = {0x00080052: "IMAGE", 0x00080018: uid}
            assert get(association, keys, take)[-1].status == 0
    assert got[1] > 60_000_000
    assert receiver.peak - before <= 8_000_000


def _renamed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield next(pieces).replace(b"1.2.3.4\0", b"1.2.3.5\0", 1)
    yield from pieces


# -- transcoding


def j2k() -> Part10:
    return read(pydicom_file("MR_small_jp2klossless.dcm"))


def in_study(part: Part10) -> dict[int, str]:
    return of_study(str(part.dataset().StudyInstanceUID))


@pytest.mark.parametrize("accepted", [NATIVE, (IMPLICIT_LE,)])
def test_jpeg_2000_goes_native_to_who_takes_nothing_else(
    node: Serving, accepted: tuple[str, ...]
) -> None:
    part = j2k()
    take_in_part(node.store, part)
    dest = Dest()
    with dest.up(node, *accepted), call(node) as one:
        *_, final = move(one, in_study(part))
        assert final.status == 0
    ((_, syntax, data),) = dest.got
    assert syntax == (EXPLICIT_LE if EXPLICIT_LE in accepted else IMPLICIT_LE)
    assert frames_of(data, syntax) == frames_of(part.data, part.transfer_syntax)


def test_the_smallest_that_is_accepted_is_sent_and_a_large_one_is_sealed_until_then(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "IN_MEMORY", 1000)
    parts = [made.ct(study=STUDY) for _ in range(3)]
    for part in parts:
        take_in_part(node.store, part)
    dest = Dest()
    left: list[list[Path]] = []
    dest.before = lambda _: left.append(list(node.store.paths.retrievals.glob("??/*")))
    with dest.up(node, JPEG_2000, IMPLICIT_LE), call(node) as one:
        *_, final = move(one)
        assert (final.status, counts(final)) == (0, (None, 3, 0, 0))
    assert {syntax for _, syntax, _ in dest.got} == {JPEG_2000}
    for (_, syntax, data), part in zip(dest.got, parts, strict=True):
        assert frames_of(data, syntax) == frames_of(part.data, part.transfer_syntax)
    assert left[0]
    assert not list(node.store.paths.retrievals.glob("??/*"))


def test_a_conversion_that_takes_long_is_said_to_go_on_and_can_be_cancelled(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = j2k()
    take_in_part(node.store, part)
    started: list[subprocess.Popen[bytes]] = []
    real = Converter._ready

    def ready(self: Converter) -> "subprocess.Popen[bytes]":
        process = real(self)
        process.send_signal(signal.SIGSTOP)
        started.append(process)
        return process

    monkeypatch.setattr(Converter, "_ready", ready)
    monkeypatch.setattr(retrieve, "_BREATH_SECONDS", 0.01)
    dest = Dest()
    with dest.up(node, IMPLICIT_LE), call(node) as one:
        responses = one.ask(1, asking(one), (identifier.encode(in_study(part)),))
        first = next(responses)
        assert (first.status, counts(first)) == (0xFF00, (1, 0, 0, 0))
        one.cancel(1, one.last_message_id)
        *_, final = responses
        assert (final.status, counts(final)) == (0xFE00, (1, 0, 0, 0))
    until(lambda: started, "it was started")[0].kill()
    assert not dest.got


def test_a_converter_that_dies_costs_one_instance_and_is_started_again(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [part.sop_instance for part in (made.ct(study=STUDY) for _ in range(2))]
    for uid in uids:
        take_in_part(node.store, made.ct(study=STUDY, sop=uid))
    dying = iter([True])
    real = Converter._ready

    def ready(self: Converter) -> "subprocess.Popen[bytes]":
        process = real(self)
        if next(dying, False):
            process.kill()
        return process

    monkeypatch.setattr(Converter, "_ready", ready)
    monkeypatch.setattr(conversions, "_IDLE_SECONDS", 0.01)
    dest = Dest()
    with dest.up(node, IMPLICIT_LE), call(node) as one:
        *_, final = move(one)
        assert (final.status, failed_list(final)) == (0xB000, uids[:1])
        until(lambda: conversions.of(node.store)._thread is None, "it has ended, being idle")
        assert move(one)[-1].status == 0
    assert dest.uids == [uids[1], *uids]


def test_what_cannot_be_converted_fails_alone(node: Serving) -> None:
    """Its transfer syntax is one nobody knows."""
    unknown = Part10(
        path=None,
        sop_class=CT,
        sop_instance="1.2.3.7",
        transfer_syntax="1.2.3.4.5",
        modality="CT",
        data=small(sop="1.2.3.7"),
    )
    (uid,) = some(node.store, 1)
    take_in_part(node.store, unknown)
    dest = Dest()
    with dest.up(node), call(node) as one:
        *_, final = move(one)
    assert (final.status, failed_list(final)) == (0xB000, ["1.2.3.7"])
    assert dest.uids == [uid]


def test_what_is_proposed_is_what_can_be_written() -> None:
    assert {*SMALLER, *PROPOSED_NATIVE} == set(writable(images=True))


def test_a_peer_that_refuses_what_is_stored_keeps_no_codec_in_the_receiver(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, edgepacs.scp.listener, edgepacs.scp.retrieve\n"
        "print([one for one in ('numpy', 'imagecodecs', 'pydicom') if one in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# -- other people's programs


@pytest.mark.parametrize("root", ["-P", "-S"])
@pytest.mark.parametrize(
    ("option", "syntaxes"), [("+x=", {EXPLICIT_LE}), ("+xi", {IMPLICIT_LE}), ("+xv", {JPEG_2000})]
)
def test_dcmtk_movescu(
    node: Serving, tmp_path: Path, root: str, option: str, syntaxes: set[str]
) -> None:
    parts = [j2k(), made.ct(patient_id=str(j2k().dataset().PatientID))]
    for part in parts:
        take_in_part(node.store, part)
    port = free_port()
    know(node, "MOVESCU", port)
    folder = tmp_path / "got"
    folder.mkdir()
    for part in parts:
        dataset = part.dataset()
        run = dcmtk(
            *("movescu", "-v", root, option, "--port", str(port), "-aem", "MOVESCU"),
            *("-od", str(folder), "-k", "0008,0052=STUDY"),
            *(
                "-k",
                f"0010,0020={dataset.PatientID}",
                "-k",
                f"0020,000d={dataset.StudyInstanceUID}",
            ),
            *("-aec", "EDGEPACS", "127.0.0.1", str(node.port)),
        )
        assert run.returncode == 0, run.stdout + run.stderr
    got = {one.sop_instance: one for one in map(read, folder.iterdir())}
    assert set(got) == {part.sop_instance for part in parts}
    assert {one.transfer_syntax for one in got.values()} <= {*syntaxes, EXPLICIT_LE}
    for part in parts:
        one = got[part.sop_instance]
        before = frames_of(part.data, part.transfer_syntax)
        assert frames_of(one.data, one.transfer_syntax) == before


def dcmtk(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [require(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_dcmtk_movescu_cancels(node: Serving, tmp_path: Path) -> None:
    some(node.store, 30)
    port = free_port()
    know(node, "MOVESCU", port)
    folder = tmp_path / "got"
    folder.mkdir()
    run = dcmtk(
        *("movescu", "-d", "-S", "--port", str(port), "--cancel", "2", "-od", str(folder)),
        *("-k", "0008,0052=STUDY", "-k", f"0020,000d={STUDY}", "-aem", "MOVESCU"),
        *("-aec", "EDGEPACS", "127.0.0.1", str(node.port)),
    )
    said = run.stdout + run.stderr
    assert "Sub-Operations terminated due to Cancel" in said or "0xfe00" in said.lower(), said
    assert len(list(folder.iterdir())) < 30


@pytest.mark.parametrize(("option", "syntax"), [("+xe", EXPLICIT_LE), ("+xv", JPEG_2000)])
def test_dcmtk_getscu(node: Serving, tmp_path: Path, option: str, syntax: str) -> None:
    part = j2k()
    take_in_part(node.store, part)
    node.allow("GETSCU", services=(Service.GET,))
    folder = tmp_path / "got"
    folder.mkdir()
    run = dcmtk(
        *("getscu", "-v", "-S", option, "-od", str(folder)),
        *("-k", "0008,0052=STUDY", "-k", f"0020,000d={part.dataset().StudyInstanceUID}"),
        *("-aec", "EDGEPACS", "127.0.0.1", str(node.port)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (one,) = map(read, folder.iterdir())
    assert one.transfer_syntax == syntax
    assert frames_of(one.data, syntax) == frames_of(part.data, part.transfer_syntax)


def test_pynetdicom_moves_a_patient(node: Serving) -> None:
    uids = some(node.store, 3)
    got: list[str] = []

    def stored(event: evt.Event) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    there = AE(ae_title="DEST")
    there.add_supported_context(CTImageStorage)
    server = there.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, stored)]
    )
    assert server is not None
    try:
        know(node, "DEST", server.socket.getsockname()[1])
        ae = AE(ae_title="WS")
        ae.add_requested_context(PatientRootQueryRetrieveInformationModelMove)
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.PatientID = "PATIENT", "P1"
        association = ae.associate("127.0.0.1", node.port, ae_title="EDGEPACS")
        root = PatientRootQueryRetrieveInformationModelMove
        said = [status for status, _ in association.send_c_move(keys, "DEST", root)]
        association.release()
    finally:
        server.shutdown()
    assert [one.Status for one in said] == [0xFF00, 0xFF00, 0]
    assert said[-1].NumberOfCompletedSuboperations == 3
    assert got == uids


def test_pynetdicom_gets_a_patient(node: Serving) -> None:
    uids = some(node.store, 3)
    got: list[str] = []

    def stored(event: evt.Event) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    ae = AE(ae_title="WS")
    ae.add_requested_context(PatientRootQueryRetrieveInformationModelGet)
    ae.add_requested_context(CTImageStorage)
    association = ae.associate(
        "127.0.0.1",
        node.port,
        ae_title="EDGEPACS",
        ext_neg=[build_role(CTImageStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, stored)],
    )
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.PatientID = "PATIENT", "P1"
    root = PatientRootQueryRetrieveInformationModelGet
    said = [status for status, _ in association.send_c_get(keys, root)]
    association.release()
    assert said[-1].Status == 0
    assert said[-1].NumberOfCompletedSuboperations == 3
    assert got == uids


def test_other_services_of_the_association_go_on(node: Serving) -> None:
    node.allow("WS", services=EVERYTHING)
    some(node.store, 1)
    echo = ProposedContext(abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_LE,))
    with call(node, STUDY_ROOT_GET, storage(CT, EXPLICIT_LE), echo) as one:
        assert get(one)[-1].status == 0
        assert one.echo() == 0
    until(lambda: not node.listener._attended, "it has ended")
    assert DEFLATED in SMALLER
