"""Broken and hostile peers against the acceptor: each gets its answer, and nobody else suffers."""

import contextlib
import dataclasses
import random
import socket
import struct
import threading
import time
import tracemalloc

import pytest
from dimse_node import (
    CONTEXTS,
    CT,
    QUICK,
    Node,
    Script,
    associate_rq,
    command_pdu,
    data_pdu,
    echo_rq,
    store_elements,
    store_rq,
    take,
)

from edgepacs.dimse import (
    AssociationAborted,
    AssociationClosed,
    AssociationRejected,
    PeerTimedOut,
    ProposedContext,
    ProtocolError,
    pdu,
    request,
)
from edgepacs.dimse.command import Element, Field, decode, encode
from edgepacs.dimse.contexts import EXPLICIT_VR_LE
from edgepacs.dimse.items import AnsweredContext, UserIdentity, UserInformation
from edgepacs.errors import EdgePacsError, LimitExceeded

USER, PROVIDER = 0, 2
ACCEPTED, REJECTED, RESPONSE, ABORTED, CLOSED = 2, 3, 4, 7, 0


def whole(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def raw_rq(called: bytes = b"EDGEPACS", calling: bytes = b"CT1", items: bytes = b"") -> bytes:
    fixed = b"\0\1\0\0" + called.ljust(16) + calling.ljust(16) + bytes(32)
    return whole(1, fixed + items)


def still_serves(node: Node) -> None:
    """Another peer is answered as ever."""
    other = Script(node.port)
    assert other.associate()[0] == ACCEPTED
    other.send(echo_rq())
    assert other.pdu()[0] == RESPONSE
    other.send(pdu.RELEASE_RQ)
    assert other.pdu()[0] == 6
    other.close()


# Cases 1 to 4, 10, 12, 13, 18: before an association stands, AA-1 aborts as the service user.
@pytest.mark.bad_input(1, 2, 3, 10, 12, 13, 18)
@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (bytes.fromhex("0100ffffffff"), "the limit is 1048576"),
        (bytes.fromhex("010000000000"), "needs 68"),
        (bytes.fromhex("090000000004"), "none of PS3.8"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "none of PS3.8"),
        (bytes.fromhex("16030100c8010000c40303"), "none of PS3.8"),
        (echo_rq(), "before an association"),
        (pdu.RELEASE_RQ, "before an association"),
        (raw_rq(items=b"\x20\0\0\x40\1\0\0\0\x30\0\xff\xff"), "are left"),
        (raw_rq(items=b"\x10\0\xff\xff"), "are left"),
    ],
    ids=["4gib", "empty", "type", "http", "tls", "data", "release", "uid-overrun", "item-overrun"],
)
def test_not_an_association_request(node, script, sent, named):
    one = node()
    peer = script(one)
    began = time.monotonic()
    peer.send(sent)
    assert peer.pdu() == (ABORTED, bytes((0, 0, USER, 0)))
    assert time.monotonic() - began < 2
    (error,) = one.join()
    assert isinstance(error, ProtocolError)
    assert named in str(error)
    still_serves(one)


@pytest.mark.bad_input(4)
def test_silence_ends_with_artim_without_a_word(node, script):
    one = node()
    peer = script(one)
    assert peer.pdu()[0] == CLOSED
    assert isinstance(one.join()[0], PeerTimedOut)


@pytest.mark.bad_input(4)
def test_case_4_short_header_then_silence(node, script):
    one = node()
    peer = script(one)
    peer.send(b"\1\0\0")
    assert peer.pdu()[0] == CLOSED
    assert isinstance(one.join()[0], PeerTimedOut)


def trickle(peer: Script, data: bytes, pause: float) -> float:
    """Send `data` byte by byte until the peer ends it; how long that took."""
    began = time.monotonic()
    for at in range(len(data)):
        try:
            peer.send(data[at : at + 1])
        except ConnectionError:
            break
        time.sleep(pause)
    return time.monotonic() - began


def until_refused(peer: Script, data: bytes, pause: float) -> float:
    """Send `data` again and again until the peer ends it; how long that took."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 5:
            peer.send(data)
            time.sleep(pause)
    return time.monotonic() - began


@pytest.mark.bad_input(5)
def test_case_5_trickle_is_cut_at_the_deadline_of_the_whole_pdu(node, script):
    one = node()
    assert trickle(script(one), associate_rq(), 0.02) < 2
    assert isinstance(one.join()[0], PeerTimedOut)


@pytest.mark.bad_input(5)
def test_case_5_trickle_inside_a_data_set(node, script):
    one = node()
    peer = script(one)
    peer.associate()
    peer.send(store_rq())
    assert trickle(peer, data_pdu(bytes(1000)), 0.02) < 2
    assert isinstance(one.join()[0], PeerTimedOut)
    assert one.received == []


@pytest.mark.bad_input(5)
def test_case_5_trickled_pdus_end_at_the_deadline_of_the_data_set(node, script):
    one = node(dataclasses.replace(QUICK, object_deadline=0.6))
    peer = script(one)
    peer.associate()
    peer.send(store_rq())
    assert until_refused(peer, data_pdu(b"x", last=False), 0.02) < 2
    (error,) = one.join()
    assert isinstance(error, LimitExceeded | PeerTimedOut)


# Cases 6 to 9, 11, 26 and 30: on an association, AA-8 aborts as the service provider.
@pytest.mark.bad_input(1, 3, 6, 7, 8, 9, 11, 26, 30)
@pytest.mark.parametrize(
    ("sent", "reason", "named"),
    [
        (whole(4, bytes.fromhex("00000009 0103 00")), 6, "are left"),
        (whole(4, bytes.fromhex("00000001 0103")), 6, "needs 2"),
        (whole(4, bytes.fromhex("80000000 0103")), 6, "are left"),
        (echo_rq(context=2), 6, "2 was not accepted"),
        (echo_rq(context=5), 6, "5 was not accepted"),
        (associate_rq(), 2, "A-ASSOCIATE-RQ"),
        (store_rq() + pdu.RELEASE_RQ, 2, "A-RELEASE-RQ"),
        (store_rq() + data_pdu(b"ab", last=False) + pdu.RELEASE_RQ, 2, "A-RELEASE-RQ"),
        (command_pdu(1, {Element.COMMAND_FIELD: 0x0777, Element.MESSAGE_ID: 1}), 6, "0x0777"),
        (data_pdu(b"ab"), 6, "where a command set is due"),
        (store_rq() + echo_rq(), 6, "inside a data set"),
        (store_rq() + data_pdu(b"ab", context=1), 6, "context changes"),
        (pdu.RELEASE_RP, 2, "A-RELEASE-RP"),
        (bytes.fromhex("080000000004"), 1, "none of PS3.8"),
        (bytes.fromhex("0400ffffffff"), 6, "the limit is"),
        (pdu.encode_p_data(1, 3, b"\0\0\0\0"), 6, "stray"),
        (pdu.encode_p_data(1, 1, b"\0\0\0\0") + pdu.RELEASE_RQ, 2, "A-RELEASE-RQ"),
        (
            command_pdu(
                1,
                {
                    Element.COMMAND_FIELD: Field.C_ECHO_RSP,
                    Element.RESPONDED_MESSAGE_ID: 1,
                    Element.STATUS: 0,
                },
            ),
            6,
            "answers nothing",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_broken_on_an_association(node, script, sent, reason, named):
    one = node()
    peer = script(one)
    assert peer.associate()[0] == ACCEPTED
    peer.send(sent)
    assert peer.pdu() == (ABORTED, bytes((0, 0, PROVIDER, reason)))
    (error,) = one.join()
    assert isinstance(error, ProtocolError)
    assert named in str(error)
    assert one.received == []
    still_serves(one)


@pytest.mark.bad_input(9)
def test_case_9_even_context_id_in_the_request(node, script):
    one = node()
    peer = script(one)
    even = dataclasses.replace(CONTEXTS[0], id=2)
    assert peer.associate(contexts=(even,))[0] == ABORTED
    assert "not odd" in str(one.join()[0])


@pytest.mark.bad_input(19)
def test_case_19_duplicate_context_ids(node, script):
    one = node()
    assert script(one).associate(contexts=(CONTEXTS[0], CONTEXTS[0]))[0] == ABORTED
    assert "more than once" in str(one.join()[0])


@pytest.mark.bad_input(17)
def test_case_17_most_contexts_with_many_syntaxes_are_answered_in_full(node, script):
    many = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(600, 900))
    contexts = tuple(
        ProposedContext(
            id=2 * number + 1,
            abstract_syntax=f"1.2.276.0.99.{number}",
            transfer_syntaxes=(*many, EXPLICIT_VR_LE),
        )
        for number in range(128)
    )
    one = node(dataclasses.replace(QUICK, pdu_deadline=5, artim=5, pdu_cap=2_000_000))
    peer = script(one)
    tracemalloc.start()
    began = time.monotonic()
    kind, body = peer.associate(contexts=contexts)
    took, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kind == ACCEPTED
    answers = pdu.decode_associate_accept(memoryview(body)).contexts
    assert len(answers) == 128
    assert {answer.transfer_syntax for answer in answers} == {EXPLICIT_VR_LE}
    assert took < 2
    assert peak < 64 << 20


def test_contexts_that_are_no_uids_are_refused_one_by_one(node, script):
    contexts = (
        ProposedContext(id=1, abstract_syntax="../../etc", transfer_syntaxes=(EXPLICIT_VR_LE,)),
        ProposedContext(id=3, abstract_syntax="1.2", transfer_syntaxes=("1" * 65_000,)),
        ProposedContext(id=5, abstract_syntax="1.2", transfer_syntaxes=("?", EXPLICIT_VR_LE)),
    )
    one = node()
    kind, body = script(one).associate(contexts=contexts)
    assert kind == ACCEPTED
    answers = pdu.decode_associate_accept(memoryview(body)).contexts
    assert [answer.result for answer in answers] == [3, 4, 0]


@pytest.mark.bad_input(20)
@pytest.mark.parametrize("title", [b"", b"CT\x07", b"CT\0", b"CT\xe9", b"CT\\1", b"CT\r\nX"])
def test_case_20_calling_ae_title_of_odd_characters(node, script, title):
    one = node()
    peer = script(one)
    peer.send(raw_rq(calling=title, items=b"\x10\0\0\x15" + b"1.2.840.10008.3.1.1.1"))
    assert peer.pdu() == (REJECTED, bytes((0, 1, 1, 3)))
    (error,) = one.join()
    assert isinstance(error, AssociationRejected)
    still_serves(one)


@pytest.mark.bad_input(20)
def test_case_20_called_ae_title_of_odd_characters(node, script):
    one = node()
    peer = script(one)
    peer.send(raw_rq(called=b"\x1b[31m", items=b"\x10\0\0\x15" + b"1.2.840.10008.3.1.1.1"))
    assert peer.pdu() == (REJECTED, bytes((0, 1, 1, 7)))


class Strict:
    def admit(self, _request, _peer):
        return pdu.CALLING_AE_NOT_RECOGNISED

    def context(self, _proposed):
        raise AssertionError("a refused peer's contexts are nobody's business")


@pytest.mark.bad_input(21)
def test_case_21_admission_refuses_a_calling_ae_title(node, script):
    one = node(admission=Strict())
    assert script(one).associate() == (REJECTED, bytes((0, 1, 1, 3)))
    (error,) = one.join()
    assert isinstance(error, AssociationRejected)
    assert (error.calling_ae, error.called_ae) == ("CT1", "EDGEPACS")
    assert "calling AE title not recognised" in str(error)


class Broken:
    def admit(self, _request, _peer):
        raise EdgePacsError("the table is locked")

    context = None


def test_an_admission_that_cannot_decide_rejects_for_now(node, script):
    one = node(admission=Broken())
    assert script(one).associate() == (REJECTED, bytes((0, 2, 3, 1)))
    assert "locked" in str(one.join()[0])


@pytest.mark.bad_input(22)
def test_case_22_user_identity_of_64_kib(node, script):
    identity = UserIdentity(kind=1, primary=bytes(65_400))
    one = node()
    kind, body = script(one).associate(user_information=UserInformation(identity=identity))
    assert (kind, body) == (REJECTED, bytes((0, 1, 2, 1)))


def test_protocol_version_and_application_context_are_checked(node, script):
    one = node()
    assert script(one).associate(protocol_version=2) == (REJECTED, bytes((0, 1, 2, 2)))
    assert script(one).associate(application_context="1.2") == (REJECTED, bytes((0, 1, 1, 2)))


def test_a_maximum_length_that_would_mean_byte_by_byte_aborts(node, script):
    one = node()
    assert script(one).associate(user_information=UserInformation(max_length=7))[0] == ABORTED


@pytest.mark.bad_input(23)
def test_case_23_pdvs_of_one_byte(node, script):
    one = node(dataclasses.replace(QUICK, fragments=20_000))
    peer = script(one)
    peer.associate()
    crumbs = b"".join(struct.pack(">IBBB", 3, 3, 0, 65) for _ in range(10_000))
    began = time.process_time()
    peer.send(store_rq() + whole(4, crumbs) + data_pdu(b"!"))
    assert peer.pdu()[0] == RESPONSE
    assert time.process_time() - began < 2
    assert one.received == [b"A" * 10_000 + b"!"]
    peer.send(store_rq(2) + whole(4, crumbs) * 3)
    assert peer.pdu()[0] == ABORTED
    assert "more than 20000 fragments" in str(one.join()[0])


@pytest.mark.bad_input(23)
def test_empty_pdvs_are_bounded_too(node, script):
    one = node(dataclasses.replace(QUICK, fragments=20_000))
    peer = script(one)
    peer.associate()
    peer.send(store_rq() + whole(4, struct.pack(">IBB", 2, 3, 0) * 10_000) * 3)
    assert peer.pdu()[0] == ABORTED
    assert "fragments" in str(one.join()[0])


@pytest.mark.bad_input(24)
def test_case_24_the_last_fragment_never_comes_while_data_does(node, script):
    one = node(dataclasses.replace(QUICK, object_bytes=1_000_000))
    peer = script(one)
    peer.associate()
    peer.send(store_rq())
    assert until_refused(peer, data_pdu(bytes(65_536), last=False), 0) < 2
    (error,) = one.join()
    assert isinstance(error, LimitExceeded)
    assert "1000000 bytes" in str(error)
    assert one.received == []


@pytest.mark.bad_input(24)
def test_case_24_the_last_fragment_never_comes_at_all(node, script):
    one = node()
    peer = script(one)
    peer.associate()
    peer.send(store_rq() + data_pdu(b"ab", last=False))
    assert peer.pdu() == (ABORTED, bytes((0, 0, USER, 0)))
    assert isinstance(one.join()[0], PeerTimedOut)


@pytest.mark.bad_input(25)
@pytest.mark.parametrize("cut", [7, 40, 150, 1000])
def test_case_25_reset_inside_a_message(node, script, cut):
    one = node()
    peer = script(one)
    peer.associate()
    peer.send((store_rq() + data_pdu(bytes(2000)))[:cut])
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert isinstance(one.join()[0], AssociationClosed)
    assert one.received == []


def test_abort_by_the_peer(node, script):
    one = node()
    peer = script(one)
    peer.associate()
    peer.send(store_rq() + data_pdu(b"ab", last=False) + pdu.encode_abort(pdu.Abort(2, 4)))
    (error,) = one.join()
    assert isinstance(error, AssociationAborted)
    assert (error.source, error.reason) == (2, 4)


def answered(body: bytes) -> dict:
    return dict(decode(memoryview(body)[6:]))


@pytest.mark.bad_input(27, 29, 31)
def test_cases_27_29_and_31_reach_the_service_which_answers(node, script):
    seen = []

    def judge(association, message, box) -> None:
        seen.append((message.command.sop_instance_uid, message.data is None))
        association.respond(message, 0xA900, comment="x" * 99, offending=(0x00080018,))

    one = node(service=judge)
    peer = script(one)
    peer.associate()
    nameless = store_elements()
    del nameless[Element.AFFECTED_SOP_INSTANCE_UID]
    peer.send(command_pdu(3, nameless) + data_pdu(b"ab"))
    answer = answered(peer.pdu()[1])
    assert answer[Element.STATUS] == 0xA900
    assert answer[Element.OFFENDING_ELEMENT] == (0x00080018,)
    assert len(answer[Element.ERROR_COMMENT]) == 64
    peer.send(command_pdu(3, {**store_elements(), Element.DATA_SET_TYPE: 0x0101}))
    assert answered(peer.pdu()[1])[Element.STATUS] == 0xA900
    peer.send(store_rq(1) + data_pdu(b"ab") + store_rq(1) + data_pdu(b"ab"))
    for _ in range(2):
        assert answered(peer.pdu()[1])[Element.RESPONDED_MESSAGE_ID] == 1
    assert seen == [("", False), ("1.2.3.1", True), ("1.2.3.1", False), ("1.2.3.1", False)]


def cancel_rq(message_id: int = 1) -> bytes:
    return command_pdu(
        1,
        {
            Element.COMMAND_FIELD: Field.C_CANCEL_RQ,
            Element.RESPONDED_MESSAGE_ID: message_id,
            Element.DATA_SET_TYPE: 0x0101,
        },
    )


@pytest.mark.bad_input(32)
def test_case_32_cancels_of_nothing_are_ignored_until_they_flood(node, script):
    one = node(dataclasses.replace(QUICK, cancels=100))
    peer = script(one)
    peer.associate()
    peer.send(cancel_rq() * 100 + echo_rq())
    assert peer.pdu()[0] == RESPONSE
    peer.send(cancel_rq())
    assert peer.pdu()[0] == ABORTED
    assert isinstance(one.join()[0], LimitExceeded)


def test_an_endless_command_set_is_cut(node, script):
    one = node(dataclasses.replace(QUICK, command_bytes=10_000))
    peer = script(one)
    peer.associate()
    peer.send(pdu.encode_p_data(1, pdu.COMMAND, bytes(6000)) * 2)
    assert peer.pdu()[0] == ABORTED
    assert "more than 10000 bytes" in str(one.join()[0])


def test_idle_associations_are_ended(node, script):
    one = node()
    peer = script(one)
    peer.associate()
    began = time.monotonic()
    assert peer.pdu() == (ABORTED, bytes((0, 0, USER, 0)))
    assert 0.3 < time.monotonic() - began < 2
    assert isinstance(one.join()[0], PeerTimedOut)


def test_a_pdu_above_the_offer_but_below_the_cap_is_taken(node, script):
    one = node(dataclasses.replace(QUICK, max_pdu_length=16_384))
    peer = script(one)
    peer.associate()
    peer.send(store_rq() + data_pdu(bytes(600_000)) + store_rq(2) + data_pdu(b"after"))
    assert peer.pdu()[0] == RESPONSE
    assert peer.pdu()[0] == RESPONSE
    assert one.received == [bytes(600_000), b"after"]


def test_a_peer_that_takes_no_answers_is_given_up(node):
    def flood(association, message, box) -> None:
        while True:
            association.respond(message, 0xFF00, data=bytes(100_000))

    one = node(service=flood)
    peer = Script(one.port)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.associate()
    peer.send(echo_rq())
    assert isinstance(one.join()[0], PeerTimedOut)
    peer.close()


def test_thousands_of_mutated_streams_end_in_declared_errors(node):
    """Whatever comes, an association ends by release or with an error of ours."""
    random_ = random.Random(20260103)
    session = (
        associate_rq()
        + echo_rq()
        + store_rq(2)
        + data_pdu(bytes(40), last=False)
        + data_pdu(bytes(40))
        + pdu.RELEASE_RQ
    )
    limits = dataclasses.replace(QUICK, linger=0.05)
    one = node(limits, service=take)
    for _ in range(1000):
        changed = bytearray(session)
        for _ in range(random_.randint(1, 3)):
            at = random_.randrange(len(changed))
            changed[at] = random_.choice((0, 1, 0xFF, changed[at] ^ 1 << random_.randrange(8)))
        if random_.random() < 0.2:
            del changed[random_.randrange(len(changed)) :]
        peer = Script(one.port)
        with contextlib.suppress(ConnectionError):
            peer.send(bytes(changed))
            peer.sock.shutdown(socket.SHUT_WR)
            while peer.sock.recv(65_536):
                pass
        peer.close()
    undeclared = {
        repr(error)
        for error in one.join()
        if error is not None and not isinstance(error, EdgePacsError)
    }
    assert undeclared == set()
    assert sum(error is None for error in one.ended) > 100
    assert len({type(error) for error in one.ended}) > 3
    assert len(one.ended) == 1000
    still_serves(one)


def test_mutated_answers_raise_only_declared_errors(node):
    """The same for the requestor: the peer's A-ASSOCIATE-AC and responses are no better."""
    answer = pdu.encode_associate_accept(
        pdu.AssociateAccept(
            called_ae="EDGEPACS",
            calling_ae="CT1",
            contexts=(
                AnsweredContext(id=1, result=0, transfer_syntax="1.2.840.10008.1.2"),
                AnsweredContext(id=3, result=0, transfer_syntax=EXPLICIT_VR_LE),
            ),
            user_information=UserInformation(implementation_class_uid="1.2.3"),
        )
    )
    response = pdu.encode_p_data(
        3,
        3,
        encode(
            {
                Element.COMMAND_FIELD: Field.C_STORE_RSP,
                Element.RESPONDED_MESSAGE_ID: 1,
                Element.DATA_SET_TYPE: 0x0101,
                Element.STATUS: 0,
            }
        ),
    )
    random_ = random.Random(20260104)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(300):
            sock, _ = listener.accept()
            changed = bytearray(answer + response + pdu.RELEASE_RP)
            for _ in range(random_.randint(0, 2)):
                changed[random_.randrange(len(changed))] = random_.randrange(256)
            sock.sendall(changed)
            sock.shutdown(socket.SHUT_WR)
            while True:
                try:
                    if not sock.recv(65_536):
                        break
                except ConnectionError:
                    break
            sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    outcomes = {"fine": 0, "error": 0}
    limits = dataclasses.replace(QUICK, linger=0.05)
    for _ in range(300):
        try:
            with request(
                "127.0.0.1",
                listener.getsockname()[1],
                calling="CT1",
                called="EDGEPACS",
                contexts=CONTEXTS,
                limits=limits,
            ) as association:
                association.store(3, CT, "1.2.3", (bytes(100),))
        except EdgePacsError:
            outcomes["error"] += 1
        else:
            outcomes["fine"] += 1
    thread.join(10)
    listener.close()
    assert outcomes["fine"] > 50
    assert outcomes["error"] > 50
