"""Acceptor and requestor against each other, and the corners of an association's life."""

import dataclasses
import hashlib
import random
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any, Never

import pytest
from dimse_node import (
    CONTEXTS,
    CT,
    QUICK,
    Node,
    Open,
    Script,
    associate_rq,
    command_pdu,
    data_pdu,
    echo_rq,
    store_rq,
    take,
)

from edgepacs.dimse import (
    AssociationAborted,
    AssociationClosed,
    AssociationRefused,
    AssociationRefusedForNow,
    ContextAnswer,
    ContextResult,
    Limits,
    MoveOriginator,
    PeerTimedOut,
    ProposedContext,
    ProtocolError,
    Roles,
    StoreResponse,
    pdu,
    request,
)
from edgepacs.dimse.command import Element, Field, Priority, decode
from edgepacs.dimse.contexts import (
    EXPLICIT_VR_LE,
    IMPLICIT_VR_LE,
    STORAGE_COMMITMENT_PUSH,
    STORAGE_SUPPORT,
    VERIFICATION,
    native_answer,
)
from edgepacs.dimse.items import (
    ExtendedNegotiation,
    OperationsWindow,
    UserIdentity,
    UserInformation,
)
from edgepacs.errors import InvalidValue, PeerRefused, PeerUnreachable


def call(port: int, contexts=CONTEXTS, limits: Limits = QUICK, **more: Any):
    return request(
        "127.0.0.1",
        port,
        calling="CT1",
        called="EDGEPACS",
        contexts=contexts,
        limits=limits,
        **more,
    )


def pieces(data: bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[at : at + size] for at in range(0, len(data), size)]


def test_echo_and_store_mixed_on_one_association(node):
    one = node()
    with call(one.port) as association:
        assert association.echo() == 0
        assert association.store(3, CT, "1.2.3", (b"abcd",)) == StoreResponse(0)
        assert association.echo() == 0
        assert association.store(3, CT, "1.2.4", (b"efgh",)) == StoreResponse(0)
    assert one.join() == [None]
    assert one.received == [b"abcd", b"efgh"]
    assert one.associations[0].calling_ae == "CT1"
    assert one.associations[0].called_ae == "EDGEPACS"
    assert one.associations[0].agreement.implementation_version.startswith("EDGEPACS_")
    assert one.associations[0].peer.host == "127.0.0.1"


@pytest.mark.parametrize("offered", [128, 129, 1000, 16_384, 131_072, 262_144])
@pytest.mark.parametrize("size", [2, 500, 65_536, 999_998])
def test_data_of_any_size_through_pdus_of_any_length(node, offered, size):
    data = random.Random(size).randbytes(size)
    one = node(dataclasses.replace(QUICK, max_pdu_length=offered))
    with call(one.port) as association:
        for step in (size, 4097):
            assert association.store(3, CT, "1.2.3", pieces(data, step)).status == 0
    assert one.join() == [None]
    assert one.received == [data, data]


def test_no_pdu_is_longer_than_the_peer_takes(node):
    lengths, pipe = [], socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = pipe.accept()
        peer = Script.__new__(Script)
        peer.sock = sock
        assert peer.pdu()[0] == 1
        peer.send(accept_bytes(max_length=1000))
        while True:
            kind, body = peer.pdu()
            if kind != 4:
                break
            lengths.append(len(body))
            if len(lengths) == 12:
                break
        sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    association = call(pipe.getsockname()[1])
    with pytest.raises(PeerUnreachable):
        association.store(3, CT, "1.2.3", (bytes(10_001),))
    association.close()
    thread.join(5)
    pipe.close()
    assert max(lengths) == 1000
    assert len(lengths) == 1 + 11


def accept_bytes(**information: Any) -> bytes:
    return pdu.encode_associate_accept(
        pdu.AssociateAccept(
            called_ae="EDGEPACS",
            calling_ae="CT1",
            contexts=(
                pdu.AnsweredContext(id=1, result=0, transfer_syntax=IMPLICIT_VR_LE),
                pdu.AnsweredContext(id=3, result=0, transfer_syntax=EXPLICIT_VR_LE),
            ),
            user_information=UserInformation(**information),
        )
    )


def test_memory_stays_constant_while_a_large_instance_streams(node):
    digest = hashlib.sha256()

    def consume(association, message, box) -> None:
        for part in message.data:
            digest.update(part)
        association.respond(message, 0)

    one = node(dataclasses.replace(QUICK, object_deadline=30), service=consume)
    block = bytes(range(256)) * 1024
    with call(one.port) as association:
        tracemalloc.start()
        association.store(3, CT, "1.2.3", (block for _ in range(400)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert digest.digest() == hashlib.sha256(block * 400).digest()
    assert peak < 2 << 20


def test_what_the_service_leaves_unread_is_drained(node):
    def refuse(association, message, box) -> None:
        if message.data is not None:
            box.append(bytes(next(message.data)))
        association.respond(message, 0xA700, comment="no room")

    one = node(service=refuse)
    with call(one.port) as association:
        for _ in range(3):
            answer = association.store(3, CT, "1.2.3", (bytes(500_000),))
            assert answer == StoreResponse(0xA700, "no room")
        assert association.echo() == 0xA700
    assert one.join() == [None]


def test_a_drained_data_set_never_looks_complete(node):
    kept = []

    def keep(association, message, box) -> None:
        if message.data is not None:
            kept.append(message.data)
        association.respond(message, 0)

    one = node(service=keep)
    with call(one.port) as association:
        association.store(3, CT, "1.2.3", (bytes(500_000),))
        association.echo()
        with pytest.raises(AssociationClosed, match="dropped"):
            next(kept[0])


def test_an_error_in_the_service_aborts_the_association(node):
    def crash(association, message, box) -> Never:
        next(message.data)
        raise OSError("disk on fire")

    one = node(service=crash)
    with call(one.port) as association, pytest.raises(AssociationAborted):
        association.store(3, CT, "1.2.3", (bytes(100_000),))
    assert isinstance(one.join()[0], OSError)


def test_an_error_in_the_data_aborts_the_association(node):
    def failing() -> Iterator[bytes]:
        yield bytes(300_000)
        raise ValueError("cannot unseal")

    one = node()
    with pytest.raises(ValueError, match="unseal"), call(one.port) as association:
        association.store(3, CT, "1.2.3", failing())
    assert isinstance(one.join()[0], AssociationAborted)
    assert one.received == []


def test_parameters_of_c_store_arrive(node):
    seen = []

    def look(association, message, box) -> None:
        seen.append(dict(message.command))
        take(association, message, box)

    one = node(service=look)
    with call(one.port) as association:
        association.store(
            3,
            CT,
            "1.2.3",
            (b"ab",),
            priority=Priority.HIGH,
            originator=MoveOriginator("MOVER", 77),
        )
    assert seen == [
        {
            Element.AFFECTED_SOP_CLASS_UID: CT,
            Element.COMMAND_FIELD: 1,
            Element.MESSAGE_ID: 1,
            Element.PRIORITY: 1,
            Element.DATA_SET_TYPE: 1,
            Element.AFFECTED_SOP_INSTANCE_UID: "1.2.3",
            Element.MOVE_ORIGINATOR: "MOVER",
            Element.MOVE_ORIGINATOR_MESSAGE_ID: 77,
        }
    ]


def test_pending_responses_with_data_then_the_final_one(node):
    def find(association, message, box) -> None:
        for number in range(3):
            association.respond(message, 0xFF00, data=b"match %d" % number)
        association.respond(message, 0x0000)

    one = node(service=find)
    with call(one.port) as association:
        elements = {Element.COMMAND_FIELD: Field.C_FIND_RQ, Element.AFFECTED_SOP_CLASS_UID: CT}
        answers = list(association.ask(3, elements, (b"query!",)))
    assert [answer.status for answer in answers] == [0xFF00] * 3 + [0]
    assert [answer.data for answer in answers] == [b"match 0", b"match 1", b"match 2", b""]


def test_cancel_stops_a_query_and_keeps_what_was_pipelined(node):
    def find(association, message, box) -> None:
        if message.command.field != Field.C_FIND_RQ:
            take(association, message, box)
            return
        while not association.cancelled(message):
            association.respond(message, 0xFF00, data=b"more")
        association.respond(message, 0xFE00)

    one = node(service=find)
    with call(one.port) as association:
        elements = {Element.COMMAND_FIELD: Field.C_FIND_RQ, Element.AFFECTED_SOP_CLASS_UID: CT}
        answers = association.ask(3, elements, (b"query!",))
        assert next(answers).status == 0xFF00
        association.cancel(3, association.last_message_id)
        assert [answer.status for answer in answers][-1] == 0xFE00
        assert association.store(3, CT, "1.2.3", (b"ab",)).status == 0
    assert one.join() == [None]
    assert one.received == [b"ab"]


def test_a_store_pipelined_behind_a_query_is_not_lost(node, script):
    looked = threading.Event()

    def find(association, message, box) -> None:
        if message.command.field != Field.C_ECHO_RQ:
            take(association, message, box)
            return
        assert looked.wait(5)
        assert association.cancelled(message) is False
        assert association.cancelled(message) is False
        association.respond(message, 0)

    one = node(service=find)
    peer = script(one)
    peer.associate()
    peer.send(echo_rq(1) + store_rq(2) + data_pdu(bytes(300_000)) + echo_rq(3))
    looked.set()
    answers = [decode(memoryview(peer.pdu()[1])[6:]) for _ in range(3)]
    assert [answer.responded_message_id for answer in answers] == [1, 2, 3]
    assert one.received == [bytes(300_000)]


def test_n_service_responses_name_the_affected_instance(node, script):
    one = node()
    peer = script(one)
    peer.associate()
    peer.send(
        command_pdu(
            1,
            {
                Element.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
                Element.COMMAND_FIELD: Field.N_ACTION_RQ,
                Element.MESSAGE_ID: 9,
                Element.DATA_SET_TYPE: 0x0101,
                Element.REQUESTED_SOP_INSTANCE_UID: "1.2.840.10008.1.20.1.1",
                Element.ACTION_TYPE_ID: 1,
            },
        )
    )
    answer = decode(memoryview(peer.pdu()[1])[6:])
    assert dict(answer) == {
        Element.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
        Element.COMMAND_FIELD: Field.N_ACTION_RSP,
        Element.RESPONDED_MESSAGE_ID: 9,
        Element.DATA_SET_TYPE: 0x0101,
        Element.STATUS: 0,
        Element.AFFECTED_SOP_INSTANCE_UID: "1.2.840.10008.1.20.1.1",
        Element.ACTION_TYPE_ID: 1,
    }


def test_a_request_that_overtakes_a_response_is_kept_for_messages(node):
    """A storage commitment report may come before the answer to the N-ACTION (PS3.4 J.3)."""

    def commit(association, message, box) -> None:
        elements = {
            Element.COMMAND_FIELD: Field.N_EVENT_REPORT_RQ,
            Element.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
            Element.AFFECTED_SOP_INSTANCE_UID: "1.2.840.10008.1.20.1.1",
            Element.EVENT_TYPE_ID: 1,
        }
        reports = association.ask(3, elements, (b"report",))
        association.respond(message, 0)
        box.extend(b"%d" % report.status for report in reports)

    one = node(service=commit)
    with call(one.port) as association:
        elements = {Element.COMMAND_FIELD: Field.N_ACTION_RQ, Element.ACTION_TYPE_ID: 1}
        assert [answer.status for answer in association.ask(3, elements)] == [0]
        report = next(association.messages())
        assert report.command.field == Field.N_EVENT_REPORT_RQ
        assert b"".join(map(bytes, report.data)) == b"report"
        association.respond(report, 0)
    assert one.join() == [None]
    assert one.received == [b"0"]


# --- negotiation ---------------------------------------------------------------------------


class Reversed(Open):
    def context(self, proposed):
        if proposed.abstract_syntax == STORAGE_COMMITMENT_PUSH:
            return native_answer(proposed, Roles(scu=False, scp=True))
        return super().context(proposed)


def test_roles_are_answered_and_never_widened(node):
    contexts = (
        ProposedContext(
            abstract_syntax=STORAGE_COMMITMENT_PUSH,
            transfer_syntaxes=(IMPLICIT_VR_LE,),
            roles=Roles(scu=False, scp=True),
        ),
        ProposedContext(
            abstract_syntax=CT,
            transfer_syntaxes=(EXPLICIT_VR_LE,),
            roles=Roles(scu=True, scp=True),
        ),
        CONTEXTS[0].__class__(abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_VR_LE,)),
    )
    one = node(admission=Reversed())
    with call(one.port, contexts) as association:
        assert [context.roles for context in association.contexts.values()] == [
            Roles(scu=False, scp=True),
            Roles(scu=True, scp=False),
            Roles(scu=True, scp=False),
        ]
        association.echo()
    assert one.join() == [None]
    mine = one.associations[0].contexts.values()
    assert [context.roles.scp for context in mine] == [True, False, False]


def test_user_information_is_answered(node, script):
    one = node()
    kind, body = script(one).associate(
        user_information=UserInformation(
            window=OperationsWindow(0, 5),
            identity=UserIdentity(kind=1, response_requested=True, primary=b"someone"),
            extended=(
                pdu_extended(CT, b"\3\0\0\0\0"),
                pdu_extended("1.2.840.10008.5.1.4.31", b"\1"),
            ),
        )
    )
    assert kind == 2
    answer = pdu.decode_associate_accept(memoryview(body)).user_information
    assert answer.window == OperationsWindow(16, 1)
    assert answer.identity_answer == b""
    assert answer.extended == (pdu_extended(CT, STORAGE_SUPPORT),)
    assert answer.max_length == QUICK.max_pdu_length


def pdu_extended(sop_class: str, value: bytes):
    return ExtendedNegotiation(sop_class, value)


def test_what_was_not_asked_for_is_not_answered(node, script):
    _, body = script(node()).associate()
    answer = pdu.decode_associate_accept(memoryview(body)).user_information
    assert (answer.window, answer.identity_answer) == (None, None)
    assert (answer.roles, answer.extended) == ((), ())


def test_accepted_finds_a_context_by_syntaxes(node):
    with call(node().port) as association:
        assert association.accepted(CT, EXPLICIT_VR_LE) == 3
        assert association.accepted(CT, IMPLICIT_VR_LE) is None
        assert association.accepted(CT) == 3
        assert association.accepted("1.2") is None
        with pytest.raises(ProtocolError, match="5 was not accepted"):
            association.store(5, CT, "1.2.3", (b"ab",))


class Rejecting(Open):
    def __init__(self, rejection) -> None:
        self.rejection = rejection

    def admit(self, _request, _peer):
        return self.rejection


def test_rejections_in_plain_words(node):
    refusing = node(admission=Rejecting(pdu.CALLING_AE_NOT_RECOGNISED))
    with pytest.raises(AssociationRefused, match="rejected: calling AE title not recognised") as no:
        call(refusing.port)
    assert isinstance(no.value, PeerRefused)
    assert not no.value.transient
    busy = node(admission=Rejecting(pdu.LOCAL_LIMIT_EXCEEDED))
    with pytest.raises(AssociationRefusedForNow, match="local limit exceeded") as later:
        call(busy.port)
    assert later.value.transient


class Nothing(Open):
    def context(self, _proposed):
        return ContextAnswer(result=ContextResult.USER_REJECTION)


def test_no_context_accepted_is_a_refusal(node):
    one = node(admission=Nothing())
    with pytest.raises(PeerRefused, match="none of the presentation contexts"):
        call(one.port)
    assert one.join() == [None]


def test_unreachable_peers_in_plain_words():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(PeerUnreachable, match="nothing listens") as refused:
            call(unused.getsockname()[1])
    assert refused.value.transient
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(PeerTimedOut, match="answer to A-ASSOCIATE-RQ"):
            call(silent.getsockname()[1])
        assert time.monotonic() - began < 3


def test_too_many_contexts_are_not_even_tried():
    with pytest.raises(InvalidValue, match="129"):
        call(1, [dataclasses.replace(CONTEXTS[0], id=0)] * 129)


# --- ending --------------------------------------------------------------------------------


def peers(script_of_peer):
    """A requestor of ours against a scripted acceptor; the association and a finisher."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve() -> None:
        sock, _ = listener.accept()
        peer = Script.__new__(Script)
        peer.sock = sock
        seen.append(peer.pdu()[0])
        peer.send(accept_bytes())
        script_of_peer(peer, seen)
        sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    association = call(listener.getsockname()[1])

    def finish() -> list[int]:
        thread.join(5)
        assert not thread.is_alive()
        listener.close()
        return seen

    return association, finish


def test_release_collision_as_requestor():
    def collide(peer, seen) -> None:
        peer.send(pdu.RELEASE_RQ)  # crosses the requestor's own
        seen.append(peer.pdu()[0])
        seen.append(peer.pdu()[0])
        peer.send(pdu.RELEASE_RP)
        seen.append(peer.pdu()[0])

    association, finish = peers(collide)
    association.release()
    assert finish() == [1, 5, 6, 0]


def test_release_collision_as_acceptor(node, script):
    def leave(association, message, box) -> None:
        association.release()

    one = node(service=leave)
    peer = script(one)
    peer.associate()
    peer.send(echo_rq())
    assert peer.pdu()[0] == 5
    peer.send(pdu.RELEASE_RQ)
    peer.send(pdu.RELEASE_RP)
    assert peer.pdu()[0] == 6
    assert isinstance(one.join()[0], AssociationClosed)


def test_data_that_crosses_a_release_is_dropped():
    def cross(peer, seen) -> None:
        peer.send(echo_rq())
        seen.append(peer.pdu()[0])
        peer.send(pdu.RELEASE_RP)

    association, finish = peers(cross)
    association.release()
    assert finish() == [1, 5]


def test_release_without_answer_ends_with_artim():
    association, finish = peers(lambda peer, seen: seen.extend((peer.pdu()[0], peer.pdu()[0])))
    with pytest.raises(PeerTimedOut, match="A-RELEASE-RP"):
        association.release()
    assert finish() == [1, 5, 7]


def test_release_instead_of_an_answer():
    def leave(peer, seen) -> None:
        seen.append(peer.pdu()[0])
        peer.send(pdu.RELEASE_RQ)
        seen.append(peer.pdu()[0])

    association, finish = peers(leave)
    with pytest.raises(AssociationClosed, match="released"):
        association.echo()
    assert finish() == [1, 4, 6]


def test_silence_instead_of_an_answer():
    limits = dataclasses.replace(QUICK, response=0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    with Silent(listener), pytest.raises(PeerTimedOut, match="a response"):
        call(listener.getsockname()[1], limits=limits).echo()


class Silent:
    def __init__(self, listener) -> None:
        self.listener = listener
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def serve(self):
        sock, _ = self.listener.accept()
        sock.recv(65_536)
        sock.sendall(accept_bytes())
        while sock.recv(65_536):
            pass
        sock.close()

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join(5)
        self.listener.close()


def test_an_abort_while_sending_says_why():
    def refuse(peer, seen) -> None:
        peer.pdu()
        peer.send(pdu.encode_abort(pdu.Abort(2, 6)))

    association, finish = peers(refuse)
    endless = (bytes(65_536) for _ in range(10_000))
    with pytest.raises(AssociationAborted, match="invalid parameter"):
        association.store(3, CT, "1.2.3", endless)
    finish()


def test_a_peer_that_stops_reading_is_given_up():
    stop = threading.Event()
    association, finish = peers(lambda _peer, _seen: stop.wait(10))
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield bytes(65_536)

    began = time.monotonic()
    with pytest.raises(PeerTimedOut, match="takes nothing"):
        association.store(3, CT, "1.2.3", endless())
    assert time.monotonic() - began < 3
    assert sent < 20 << 20
    stop.set()
    finish()


def test_abort_from_another_thread_ends_a_wait_at_once(node):
    started = threading.Event()

    def slow(association, message, box) -> None:
        started.set()
        list(message.data)

    one = node(dataclasses.replace(QUICK, stall=30, pdu_deadline=30), service=slow)
    peer = Script(one.port)
    peer.associate()
    peer.send(store_rq() + data_pdu(b"ab", last=False))
    assert started.wait(5)
    began = time.monotonic()
    one.associations[0].abort()
    assert peer.pdu() == (7, b"\0\0\0\0")
    assert isinstance(one.join()[0], AssociationClosed)
    assert time.monotonic() - began < 1
    peer.close()


def test_an_ended_association_says_so(node):
    association = call(node().port)
    association.release()
    assert not association.is_open
    with pytest.raises(AssociationClosed, match="no longer open"):
        association.echo()
    association.abort()
    association.close()


def test_many_associations_at_once(node):
    one = node()

    def run() -> None:
        with call(one.port) as association:
            for number in range(5):
                assert association.store(3, CT, f"1.2.{number}", (bytes(30_000),)).status == 0

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert one.join() == [None] * 20
    assert len(one.received) == 100


# --- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem",
        shell=True,
        check=True,
        cwd=folder,
        capture_output=True,
    )
    return folder


class Secure(Node):
    certificate = None

    def wrap(self, sock):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate / "cert.pem", self.certificate / "key.pem")
        sock.settimeout(5)
        return context.wrap_socket(sock, server_side=True)


def test_tls_both_ways(certificate):
    Secure.certificate = certificate
    one = Secure(QUICK)
    data = random.Random(7).randbytes(3_000_000)
    trusted = ssl.create_default_context(cafile=certificate / "cert.pem")
    with call(one.port, tls=trusted) as association:
        assert association.echo() == 0
        assert association.store(3, CT, "1.2.3", pieces(data, 65_536)).status == 0
    assert one.join() == [None]
    assert one.received == [data]
    assert one.associations[0].peer.tls
    idle = call(one.port, tls=trusted)
    one.threads[-1].join(5)
    with pytest.raises(PeerUnreachable):
        idle.echo()
    idle.close()
    with pytest.raises(PeerUnreachable, match="certificate not accepted"):
        call(one.port, tls=ssl.create_default_context())
    one.close()


def test_plain_against_tls_fails_cleanly(certificate):
    Secure.certificate = certificate
    one = Secure(QUICK)
    with pytest.raises((PeerUnreachable, ProtocolError)):
        call(one.port)
    one.close()
    one.join()


def test_tls_against_plain_fails_cleanly(node):
    with pytest.raises(PeerUnreachable, match="no TLS"):
        call(node().port, tls=ssl.create_default_context())


def test_the_buffer_handles_every_split(node, script):
    """The same session cut at random places arrives the same."""
    random_ = random.Random(5)
    one = node(dataclasses.replace(QUICK, max_pdu_length=70_000))
    for _ in range(20):
        peer = script(one)
        stream = associate_rq()
        for number in range(1, 5):
            size = random_.choice((2, 300, 65_000, 69_990, 131_000))
            stream += store_rq(number) + data_pdu(bytes(size), last=False) + data_pdu(b"%d" % size)
        while stream:
            cut = random_.randint(1, 150_000)
            peer.send(stream[:cut])
            stream = stream[cut:]
        for kind in (2, 4, 4, 4, 4):
            assert peer.pdu()[0] == kind
    one.associations[0].abort()
    assert all(
        len(data) - len(data.lstrip(b"\0")) == int(data.lstrip(b"\0")) for data in one.received
    )
    assert len(one.received) == 80
