"""Broken PDUs, associations and commands against a receiver of its own: BAD-INPUT 1 to 26 and 30.

Every attack is answered as its case says, within 2 s and 64 MiB, and leaves a record that names
the field and the limit; the process lives on, and an association beside it stores as ever.
"""

import dataclasses
import socket
import ssl
import struct
import time
from contextlib import ExitStack, suppress
from statistics import median

import pytest
from dimse.dimse_node import CONTEXTS, command_pdu, data_pdu, echo_rq, store_rq
from harness.made import CT, ct
from harness.waiting import until
from hostile.attacker import (
    ABORTED,
    ACCEPTED,
    APPLICATION,
    CLOSED,
    P_DATA,
    REJECTED,
    RELEASED,
    Attacker,
    bounded,
    harness_rq,
    raw_rq,
    whole,
)
from hostile.receiver import Receiver, store
from store.making import small

from edgepacs.dimse import ProposedContext, pdu
from edgepacs.dimse.command import Element, Field
from edgepacs.dimse.contexts import (
    EXPLICIT_VR_LE,
)
from edgepacs.dimse.items import UserIdentity, UserInformation
from edgepacs.errors import PeerRefused
from edgepacs.store import peers

USER, PROVIDER = 0, 2  # PS3.8 9.3.8
bad_input = pytest.mark.bad_input

# -- PDUs and associations


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        pytest.param(
            bytes.fromhex("0100ffffffff"),
            "PDU length: 4294967295 bytes, the limit is 1048576",
            marks=bad_input(1),
            id="length of 4 GiB",
        ),
        pytest.param(
            bytes.fromhex("010000000000"),
            "A-ASSOCIATE-RQ length: 0 bytes, needs 68",
            marks=bad_input(2),
            id="length of 0",
        ),
        pytest.param(
            bytes.fromhex("090000000004"),
            "PDU type: 0x09 is none of PS3.8 9.3",
            marks=bad_input(3),
            id="unknown type",
        ),
        pytest.param(echo_rq(), "P-DATA-TF: not expected", marks=bad_input(10), id="data first"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PDU type: 0x47", marks=bad_input(12), id="HTTP"
        ),
        pytest.param(
            bytes.fromhex("16030100c8010000c40303"), "PDU type: 0x16", marks=bad_input(13), id="TLS"
        ),
        pytest.param(
            raw_rq(items=b"\x20\0\0\x40\1\0\0\0\x30\0\xff\xff"),
            "A-ASSOCIATE-RQ: item 0x20 of 64 bytes, 8 are left",
            marks=bad_input(18),
            id="item overrun",
        ),
        pytest.param(
            raw_rq(items=b"\x20\0\0\x0c\1\0\0\0\x30\0\xff\xff1.2."),
            "presentation context item: item 0x30 of 65535 bytes, 4 are left",
            marks=bad_input(18),
            id="UID overrun",
        ),
        pytest.param(
            harness_rq(contexts=(dataclasses.replace(CONTEXTS[0], id=2),)),
            "presentation context ID: 2 is not odd",
            marks=bad_input(9),
            id="even context ID",
        ),
        pytest.param(
            harness_rq(contexts=(CONTEXTS[0], CONTEXTS[0])),
            "presentation context ID: used more than once",
            marks=bad_input(19),
            id="context ID twice",
        ),
    ],
)
def test_what_is_no_request_to_associate_is_aborted(
    receiver: Receiver, attacker: Attacker, sent: bytes, words: str
) -> None:
    with bounded(receiver):
        attacker.send(sent)
        assert attacker.pdu() == (ABORTED, bytes((0, 0, USER, 0)))
        assert attacker.pdu()[0] == CLOSED
    receiver.owes("association broken", words)


UNKNOWN_COMMAND = command_pdu(1, {Element.COMMAND_FIELD: 0x0777, Element.MESSAGE_ID: 1})


@pytest.mark.parametrize(
    ("sent", "reason", "words"),
    [
        pytest.param(
            bytes.fromhex("0400ffffffff"), 6, "PDU length", marks=bad_input(1), id="length of 4 GiB"
        ),
        pytest.param(
            bytes.fromhex("040000000000"), 6, "P-DATA-TF length", marks=bad_input(2), id="length 0"
        ),
        pytest.param(
            bytes.fromhex("080000000004"), 1, "PDU type", marks=bad_input(3), id="unknown type"
        ),
        pytest.param(
            whole(4, bytes.fromhex("00000009 0103 00")),
            6,
            "PDV length: 9 bytes, 3 are left",
            marks=bad_input(6),
            id="PDV longer than its PDU",
        ),
        pytest.param(
            whole(4, bytes.fromhex("00000001 0103")),
            6,
            "PDV length: 1 bytes, needs 2",
            marks=bad_input(7),
            id="PDV of 1 byte",
        ),
        pytest.param(
            whole(4, bytes.fromhex("80000000 0103")),
            6,
            "PDV length: 2147483648 bytes",
            marks=bad_input(8),
            id="PDV of 2 GiB",
        ),
        pytest.param(
            echo_rq(context=2),
            6,
            "presentation context ID: 2 was not accepted",
            marks=bad_input(9),
            id="even context ID",
        ),
        pytest.param(
            echo_rq(context=99),
            6,
            "presentation context ID: 99 was not accepted",
            marks=bad_input(9),
            id="unknown context ID",
        ),
        pytest.param(
            harness_rq(), 2, "A-ASSOCIATE-RQ: not expected", marks=bad_input(11), id="second RQ"
        ),
        pytest.param(
            store_rq() + data_pdu(bytes(1000), last=False) + pdu.RELEASE_RQ,
            2,
            "A-RELEASE-RQ: not expected",
            marks=bad_input(26),
            id="release inside data",
        ),
        pytest.param(
            UNKNOWN_COMMAND,
            6,
            "(0000,0100) Command Field: 0x0777 is unknown",
            marks=bad_input(30),
            id="unknown command",
        ),
    ],
)
def test_what_breaks_an_association_aborts_it(
    receiver: Receiver, attacker: Attacker, sent: bytes, reason: int, words: str
) -> None:
    assert attacker.associate()[0] == ACCEPTED
    with bounded(receiver):
        attacker.send(sent)
        assert attacker.pdu() == (ABORTED, bytes((0, 0, PROVIDER, reason)))
        assert attacker.pdu()[0] == CLOSED
    receiver.owes("association broken", words)


@pytest.mark.parametrize(
    ("sent", "answer", "words"),
    [
        pytest.param(
            raw_rq(calling=b"CT\x07", items=APPLICATION),
            (1, 1, 3),
            "calling AE title: not 1 to 16 printable ASCII",
            marks=bad_input(20),
            id="control character",
        ),
        pytest.param(
            raw_rq(calling=b"CT\xe9", items=APPLICATION),
            (1, 1, 3),
            "calling AE title: not 1 to 16 printable ASCII",
            marks=bad_input(20),
            id="not ASCII",
        ),
        pytest.param(
            raw_rq(called=b"\x1b[31m", items=APPLICATION),
            (1, 1, 7),
            "called AE title: not 1 to 16 printable ASCII",
            marks=bad_input(20),
            id="escape in the called AE title",
        ),
        pytest.param(
            harness_rq(calling_ae="STRANGER"),
            (1, 1, 3),
            "unknown calling AE title",
            marks=bad_input(21),
            id="stranger",
        ),
        pytest.param(
            harness_rq(
                user_information=UserInformation(
                    identity=UserIdentity(kind=1, primary=bytes(65_400))
                )
            ),
            (1, 2, 1),
            "user identity: 65400 bytes, the limit is 16384",
            marks=bad_input(22),
            id="user identity of 64 KiB",
        ),
    ],
)
def test_who_may_not_associate_is_rejected(
    receiver: Receiver,
    attacker: Attacker,
    sent: bytes,
    answer: tuple[int, int, int],
    words: str,
) -> None:
    with bounded(receiver):
        attacker.send(sent)
        assert attacker.pdu() == (REJECTED, bytes((0, *answer)))
    receiver.owes("association refused", words)


@bad_input(21)
def test_a_stranger_is_listed(receiver: Receiver, attacker: Attacker) -> None:
    attacker.send(harness_rq(calling_ae="PASSERBY"))
    assert attacker.pdu()[0] == REJECTED
    until(
        lambda: "PASSERBY" in [one.calling_ae for one in peers.refused(receiver.store.db)],
        "PASSERBY among the refused",
    )


@bad_input(17)
def test_128_contexts_of_many_syntaxes_are_answered_in_full(
    receiver: Receiver, attacker: Attacker
) -> None:
    syntaxes = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(600, 895))
    contexts = tuple(
        ProposedContext(
            id=2 * number + 1,
            abstract_syntax=f"1.2.276.0.99.{number}",
            transfer_syntaxes=(*syntaxes, EXPLICIT_VR_LE),
        )
        for number in range(128)
    )
    assert 1_000_000 < len(harness_rq(contexts=contexts)) <= 1 << 20  # as much as one PDU may hold
    with bounded(receiver):
        kind, body = attacker.associate(contexts=contexts)
        assert kind == ACCEPTED
        answers = pdu.decode_associate_accept(memoryview(body)).contexts
        assert [one.result for one in answers] == [0] * 128
        assert {one.transfer_syntax for one in answers} == {EXPLICIT_VR_LE}
        attacker.send(pdu.RELEASE_RQ)
        assert attacker.pdu()[0] == RELEASED


# -- TLS


def secure_echo_seconds(receiver: Receiver) -> float:
    """How long it takes to connect by TLS, associate, echo and release."""
    trust = ssl.create_default_context(cafile=str(receiver.trust))
    trust.check_hostname = False
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", receiver.tls_port), 10) as plain:
        peer = Attacker.__new__(Attacker)
        peer.sock = trust.wrap_socket(plain)
        assert peer.associate()[0] == ACCEPTED
        peer.send(echo_rq())
        assert peer.pdu()[0] == P_DATA
        peer.send(pdu.RELEASE_RQ)
        assert peer.pdu()[0] == RELEASED
        took = time.monotonic() - began
        peer.close()
    return took


@bad_input(14)
def test_a_plain_peer_on_the_tls_port_is_closed(receiver: Receiver, host: str) -> None:
    with bounded(receiver):
        peer = Attacker(receiver.tls_port, host)
        peer.send(harness_rq())
        with suppress(ConnectionError):
            while peer.sock.recv(1000):  # a TLS alert, RFC 8446 6
                pass
        peer.close()
    receiver.owes("association broken", "SSL")
    assert secure_echo_seconds(receiver) < 2


@bad_input(15)
def test_silent_and_slow_tls_peers_delay_others_by_less_than_100_ms(
    receiver: Receiver, host: str
) -> None:
    alone = median(secure_echo_seconds(receiver) for _ in range(5))
    with bounded(receiver), ExitStack() as stack:
        for number in range(30):
            peer = stack.enter_context(
                socket.create_connection(
                    ("127.0.0.1", receiver.tls_port), 10, source_address=(host, 0)
                )
            )
            if number % 2:
                peer.sendall(bytes.fromhex("160301"))  # the beginning of a TLS record
        beside = median(secure_echo_seconds(receiver) for _ in range(5))
    assert beside < alone + 0.1


# -- more than there is room for


@bad_input(16)
def test_of_200_idle_associations_the_excess_is_rejected(receiver: Receiver, host: str) -> None:
    with receiver.associate() as bystander, ExitStack() as stack:
        answers = []
        for _ in range(200):
            peer = Attacker(receiver.port, host)
            stack.callback(peer.close)
            answers.append(peer.associate())
        accepted = [kind for kind, _ in answers if kind == ACCEPTED]
        rejected = [body for kind, body in answers if kind == REJECTED]
        assert len(accepted) + len(rejected) == 200
        assert 0 < len(accepted) <= receiver.store.config.dicom.max_associations
        # PS3.8 9.3.4: transient, by the presentation service provider
        assert {body[1:3] for body in rejected} == {bytes((2, 3))}
        assert store(bystander, ct())[0] == 0
    receiver.owes("association refused", "associations: the limit is 16 of one AE title, 64 of all")
    until(lambda: served(receiver), "others are served again")


@bad_input(16)
def test_200_silent_connections_keep_nobody_out(receiver: Receiver, host: str) -> None:
    with bounded(receiver, seconds=10), ExitStack() as stack:
        for _ in range(200):
            peer = socket.create_connection(
                ("127.0.0.1", receiver.port), 10, source_address=(host, 0)
            )
            stack.callback(peer.close)
        began = time.monotonic()
        assert served(receiver)
        assert time.monotonic() - began < 2


def served(receiver: Receiver) -> bool:
    """Whether a known caller may associate and store now."""
    try:
        with receiver.associate(calling="CT1") as association:
            return store(association, ct())[0] == 0
    except PeerRefused:
        return False


@bad_input(23)
def test_fragments_of_one_byte_cost_little(receiver: Receiver, attacker: Attacker) -> None:
    one = ct()
    crumbs = b"".join(struct.pack(">IBBB", 3, 1, 0, byte) for byte in one.data[:-1])
    assert len(crumbs) > 200_000
    attacker.proposing(CT)
    before = receiver.cpu()
    with bounded(receiver, seconds=5):
        attacker.send(
            command_pdu(
                1,
                {
                    Element.AFFECTED_SOP_CLASS_UID: CT,
                    Element.COMMAND_FIELD: Field.C_STORE_RQ,
                    Element.MESSAGE_ID: 1,
                    Element.DATA_SET_TYPE: 1,
                    Element.AFFECTED_SOP_INSTANCE_UID: one.sop_instance,
                },
            )
        )
        for at in range(0, len(crumbs), 70_000):
            attacker.send(whole(4, crumbs[at : at + 70_000]))
        attacker.send(data_pdu(one.data[-1:], context=1))
        assert attacker.status()[0] == 0
    assert receiver.cpu() - before < 4
    (row,) = receiver.versions(one.sop_instance)
    assert receiver.sealed(row) == one.data


@bad_input(24)
def test_a_data_set_without_an_end_is_aborted_at_the_cap(
    receiver: Receiver, attacker: Attacker
) -> None:
    endless = struct.pack("<HH2s2xI", 0x0029, 0x1010, b"OB", 0xFFFFFFFE)
    objects = receiver.objects()
    attacker.proposing(CT)
    attacker.send(on_context_1(store_rq()))
    attacker.send(data_pdu(small(sop="1.2.3.1") + endless, last=False, context=1))
    block = data_pdu(bytes(1 << 18), last=False, context=1)
    with bounded(receiver, seconds=10):
        for _ in range(4 * 135):
            attacker.send(block)
        assert attacker.status()[0] == 0xC000  # at 128 MiB; what comes is read, and dropped
        assert attacker.pdu() == (ABORTED, bytes((0, 0, USER, 0)))  # at the cap
    assert receiver.objects() == objects + 1  # the bystander's
    assert not receiver.versions("1.2.3.1")
    receiver.owes("instance refused", "data set: longer than 128 MiB")
    receiver.owes("association broken", "data set: more than 135266304 bytes")


def on_context_1(message: bytes) -> bytes:
    """A message of one PDV, made for context 3, on context 1 instead."""
    return message[:10] + b"\1" + message[11:]


@bad_input(25)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_reset_inside_a_store_leaves_nothing(
    receiver: Receiver, attacker: Attacker, share: float
) -> None:
    one = ct(side=600)
    objects = receiver.objects()
    attacker.proposing(CT)
    with bounded(receiver):
        request = data_pdu(one.data, context=1)
        attacker.send(on_context_1(store_rq()))
        attacker.send(request[: int(share * len(request))])
        attacker.reset()
    until(lambda: receiver.objects() == objects + 1, "only the bystander's object is there")
    assert not receiver.versions(one.sop_instance)
    receiver.owes("association broken", "connection")


# -- in the end


def test_the_records_name_field_and_limit(receiver: Receiver, host: str) -> None:
    """One record at least for each of the attacks above; so it stands last."""
    peer = Attacker(receiver.port, host)
    peer.send(bytes.fromhex("0a0000000000"))
    assert peer.pdu()[0] == ABORTED
    peer.close()
    receiver.owes("association broken", "PDU type: 0x0a is none of PS3.8 9.3")
    receiver.require_records()
