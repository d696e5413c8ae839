"""PDUs and command sets: golden bytes, round trips, and bytes no peer should send."""

import contextlib
import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepacs.dimse import (
    AssociateRequest,
    ProposedContext,
    ProtocolError,
    Rejection,
    Roles,
    command,
    items,
    pdu,
)
from edgepacs.dimse.command import Element, Field
from edgepacs.errors import InvalidValue

HEADER = 6


def sub(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


# PS3.8 9.3.2 written out by hand.
GOLDEN_CONTEXT = sub(
    0x20,
    bytes((1, 0, 0, 0)) + sub(0x30, b"1.2.840.10008.1.1") + sub(0x40, b"1.2.840.10008.1.2"),
)
GOLDEN_USER = sub(
    0x50,
    sub(0x51, bytes.fromhex("00004000"))
    + sub(0x52, b"1.2.276.0.1")
    + sub(0x53, bytes.fromhex("00050001"))
    + sub(0x54, b"\x00\x11" + b"1.2.840.10008.1.1" + b"\x00\x01")
    + sub(0x55, b"VERSION_1")
    + sub(0x56, b"\x00\x11" + b"1.2.840.10008.1.1" + b"\x02\x00\x03\x00\x00")
    + sub(0x57, b"\x00\x03" + b"1.2" + b"\x00\x03" + b"1.3" + b"\x00\x05" + b"\x00\x03" + b"1.4")
    + sub(0x58, b"\x02\x01" + b"\x00\x04" + b"user" + b"\x00\x04" + b"pass"),
)
GOLDEN_BODY = (
    b"\x00\x01\x00\x00"
    b"ARCHIVE         "
    b"MODALITY        "
    + bytes(32)
    + sub(0x10, b"1.2.840.10008.3.1.1.1")
    + GOLDEN_CONTEXT
    + GOLDEN_USER
)
GOLDEN_RQ = b"\x01\x00" + struct.pack(">I", len(GOLDEN_BODY)) + GOLDEN_BODY
GOLDEN_REQUEST = AssociateRequest(
    called_ae="ARCHIVE",
    calling_ae="MODALITY",
    contexts=(
        ProposedContext(
            id=1,
            abstract_syntax="1.2.840.10008.1.1",
            transfer_syntaxes=("1.2.840.10008.1.2",),
        ),
    ),
    user_information=items.UserInformation(
        max_length=16384,
        implementation_class_uid="1.2.276.0.1",
        implementation_version="VERSION_1",
        window=items.OperationsWindow(5, 1),
        roles=(items.RoleSelection("1.2.840.10008.1.1", Roles(scu=False, scp=True)),),
        extended=(items.ExtendedNegotiation("1.2.840.10008.1.1", bytes((2, 0, 3, 0, 0))),),
        common=(items.CommonExtendedNegotiation("1.2", "1.3", ("1.4",)),),
        identity=items.UserIdentity(
            kind=2, response_requested=True, primary=b"user", secondary=b"pass"
        ),
    ),
)


def test_associate_request_golden_bytes():
    assert pdu.encode_associate_request(GOLDEN_REQUEST) == GOLDEN_RQ
    assert pdu.decode_associate_request(memoryview(GOLDEN_RQ)[HEADER:]) == GOLDEN_REQUEST


def test_short_pdus_golden_bytes():
    assert pdu.encode_rejection(Rejection(1, 1, 3)).hex() == "03000000000400010103"
    assert pdu.encode_abort(pdu.Abort(2, 6)).hex() == "07000000000400000206"
    assert pdu.RELEASE_RQ.hex() == "05000000000400000000"
    assert pdu.RELEASE_RP.hex() == "06000000000400000000"
    assert pdu.encode_p_data(3, 2, b"ab").hex() == "0400000000080000000403026162"
    assert pdu.decode_rejection(memoryview(b"\0\1\1\3")) == Rejection(1, 1, 3)
    assert pdu.decode_abort(memoryview(b"\0\0\2\6")) == pdu.Abort(2, 6)


def test_echo_command_golden_bytes():
    raw = command.encode(
        {
            Element.AFFECTED_SOP_CLASS_UID: "1.2.840.10008.1.1",
            Element.COMMAND_FIELD: Field.C_ECHO_RQ,
            Element.MESSAGE_ID: 7,
            Element.DATA_SET_TYPE: command.NO_DATA_SET,
        }
    )
    assert raw == bytes.fromhex(
        "00000000 04000000 38000000"
        "00000200 12000000 312e322e3834302e31303030382e312e3100"
        "00000001 02000000 3000"
        "00001001 02000000 0700"
        "00000008 02000000 0101"
    )
    decoded = command.decode(memoryview(raw))
    assert decoded.message_id == 7
    assert decoded.sop_class_uid == "1.2.840.10008.1.1"
    assert not decoded.has_data_set


uids = st.from_regex(r"[1-9](\.[1-9][0-9]{0,6}){1,7}", fullmatch=True)
names = st.from_regex(r"[A-Z0-9_]{1,16}", fullmatch=True)
u16 = st.integers(0, 0xFFFF)
roles = st.builds(Roles, scu=st.booleans(), scp=st.booleans())
informations = st.builds(
    items.UserInformation,
    max_length=st.integers(0, 2**32 - 1),
    implementation_class_uid=uids,
    implementation_version=names,
    window=st.none() | st.builds(items.OperationsWindow, u16, u16),
    roles=st.lists(st.builds(items.RoleSelection, uids, roles), max_size=3).map(tuple),
    extended=st.lists(
        st.builds(items.ExtendedNegotiation, uids, st.binary(max_size=9)), max_size=3
    ).map(tuple),
    common=st.lists(
        st.builds(
            items.CommonExtendedNegotiation, uids, uids, st.lists(uids, max_size=3).map(tuple)
        ),
        max_size=3,
    ).map(tuple),
    identity=st.none()
    | st.builds(
        items.UserIdentity,
        kind=st.integers(1, 5),
        response_requested=st.booleans(),
        primary=st.binary(max_size=40),
        secondary=st.binary(max_size=40),
    ),
    identity_answer=st.none() | st.binary(max_size=40),
)
odd_ids = st.lists(st.integers(0, 127), unique=True, max_size=6).map(
    lambda numbers: [2 * number + 1 for number in numbers]
)


@given(odd_ids, uids, st.lists(uids, min_size=1, max_size=4), names, names, informations)
def test_associate_request_round_trip(ids, abstract, transfer, calling, called, information):
    request = AssociateRequest(
        called_ae=called,
        calling_ae=calling,
        contexts=tuple(
            ProposedContext(id=one, abstract_syntax=abstract, transfer_syntaxes=tuple(transfer))
            for one in ids
        ),
        user_information=information,
    )
    raw = pdu.encode_associate_request(request)
    assert pdu.whole_length(bytearray(raw), 0, 1 << 20) == len(raw)
    assert pdu.decode_associate_request(memoryview(raw)[HEADER:]) == request


@given(odd_ids, uids, st.integers(0, 4), names, names, informations)
def test_associate_accept_round_trip(ids, transfer, result, calling, called, information):
    accept = pdu.AssociateAccept(
        called_ae=called,
        calling_ae=calling,
        contexts=tuple(
            items.AnsweredContext(id=one, result=result, transfer_syntax=transfer) for one in ids
        ),
        user_information=information,
    )
    raw = pdu.encode_associate_accept(accept)
    assert pdu.decode_associate_accept(memoryview(raw)[HEADER:]) == accept


texts = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_ ]{0,14}[A-Za-z0-9_])?", fullmatch=True)
commands = st.fixed_dictionaries(
    {
        int(Element.COMMAND_FIELD): st.sampled_from([int(one) for one in Field]),
        int(Element.MESSAGE_ID): u16,
        int(Element.RESPONDED_MESSAGE_ID): u16,
        int(Element.STATUS): u16,
    },
    optional={
        int(Element.AFFECTED_SOP_CLASS_UID): uids,
        int(Element.REQUESTED_SOP_INSTANCE_UID): uids,
        int(Element.DATA_SET_TYPE): u16,
        int(Element.ERROR_COMMENT): texts,
        int(Element.MOVE_DESTINATION): texts,
        int(Element.REMAINING): u16,
        int(Element.OFFENDING_ELEMENT): st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple),
    },
)


@given(commands)
def test_command_round_trip(elements):
    raw = command.encode(elements)
    assert struct.unpack_from("<I", raw, 8)[0] == len(raw) - 12
    assert dict(command.decode(memoryview(raw))) == elements


def element(number: int, value: bytes, group: int = 0) -> bytes:
    return struct.pack("<HHI", group, number, len(value)) + value


FIELD, ID = element(0x0100, b"\x30\0"), element(0x0110, b"\1\0")


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "Command Field"),
        (FIELD, "Message ID"),
        (element(0x0100, b"\x30\x80"), "Message ID Being Responded To"),
        (element(0x0100, b"\x30\x80") + element(0x0120, b"\1\0"), "Status"),
        (ID + FIELD, "out of order"),
        (FIELD + FIELD + ID, "repeated"),
        (FIELD + ID + b"\0\0\0", "stray"),
        (FIELD + element(0x0110, b"\1\0", group=8), "group 0008"),
        (FIELD + struct.pack("<HHI", 0, 0x0110, 1 << 31) + b"\1\0", "are left"),
        (FIELD + element(0x0110, b"\1\0\0"), "must be 2"),
        (FIELD + ID + element(0x0901, b"\1\0"), "multiple of 4"),
    ],
)
def test_malformed_command_sets_name_what_is_wrong(raw, named):
    with pytest.raises(ProtocolError, match=named):
        command.decode(memoryview(raw))


def test_command_encoding_refuses_what_does_not_fit():
    with pytest.raises(InvalidValue, match="0000,0110"):
        command.encode({Element.MESSAGE_ID: 65536})
    with pytest.raises(InvalidValue, match="0000,0902"):
        command.encode({Element.ERROR_COMMENT: "é"})


def body(contexts: bytes = b"", user: bytes = b"") -> memoryview:
    fixed = b"\0\1\0\0" + b"A".ljust(16) + b"B".ljust(16) + bytes(32)
    return memoryview(fixed + contexts + sub(0x50, user))


def context(number: int, *syntaxes: bytes) -> bytes:
    return sub(0x20, bytes((number, 0, 0, 0)) + b"".join(syntaxes))


ABSTRACT, TRANSFER = sub(0x30, b"1.2.3"), sub(0x40, b"1.2.4")


@pytest.mark.parametrize(
    ("contexts", "user", "named"),
    [
        (context(2, ABSTRACT, TRANSFER), b"", "not odd"),
        (context(1, ABSTRACT, TRANSFER) * 2, b"", "more than once"),
        (context(1, TRANSFER), b"", "0 abstract syntaxes"),
        (context(1, ABSTRACT, ABSTRACT, TRANSFER), b"", "2 abstract syntaxes"),
        (context(1, ABSTRACT), b"", "no transfer syntax"),
        (sub(0x20, b"\1"), b"", "needs 4"),
        (context(1, b"\x30\0\xff\xff1.2"), b"", "65535 bytes"),
        (b"\x20\0\xff\xff", b"", "65535 bytes"),
        (b"", sub(0x51, b"\0\0"), "maximum length item"),
        (b"", sub(0x53, b"\0\1"), "operations window"),
        (b"", sub(0x54, b"\0\x40" + b"1.2"), "role selection"),
        (b"", sub(0x54, b"\0\3" + b"1.2" + b"\1"), "role selection"),
        (b"", sub(0x57, b"\0\3" + b"1.2"), "common extended"),
        (b"", sub(0x58, b"\1"), "user identity"),
        (b"", sub(0x58, b"\1\0\0\xff" + b"x"), "user identity"),
        (b"", b"\x51\0", "stray"),
    ],
)
def test_malformed_requests_name_what_is_wrong(contexts, user, named):
    with pytest.raises(ProtocolError, match=named):
        pdu.decode_associate_request(body(contexts, user))


def test_unknown_items_are_skipped():
    request = pdu.decode_associate_request(
        body(sub(0x99, b"?") + context(1, ABSTRACT, sub(0x77, b"?"), TRANSFER), sub(0x5F, b"?"))
    )
    assert request.contexts[0].transfer_syntaxes == ("1.2.4",)


def test_secrets_stay_out_of_repr():
    assert "pass" not in repr(GOLDEN_REQUEST)
    assert "user'" not in repr(GOLDEN_REQUEST)


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("04000000ffff", None),
        ("0400ffffffff", "the limit is"),
        ("040000000000", "needs 6"),
        ("080000000004", "none of PS3.8"),
        ("474554202f20", "none of PS3.8"),
        ("160301020001", "none of PS3.8"),
        ("070000000005", "must be 4"),
        ("050000000000", "needs 4"),
        ("010000000010", "needs 68"),
    ],
)
def test_headers_are_checked_before_the_rest_is_read(header, named):
    raw = bytearray.fromhex(header)
    if named is None:
        assert pdu.whole_length(raw, 0, 1 << 20) == 6 + 0xFFFF
    else:
        with pytest.raises(ProtocolError, match=named):
            pdu.whole_length(raw, 0, 1 << 20)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ("00000001 03", "needs 6"),
        ("00000001 0303 00", "needs 2"),
        ("00000009 0303 00", "are left"),
        ("80000000 0303 00", "are left"),
    ],
)
def test_malformed_pdvs_name_what_is_wrong(raw, named):
    with pytest.raises(ProtocolError, match=named):
        pdu.next_pdv(memoryview(bytes.fromhex(raw)), 0)


def mutated(random_: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(changed))
        act = random_.randrange(4)
        if act == 0:
            changed[at] = random_.randrange(256)
        elif act == 1:
            changed[at] ^= 1 << random_.randrange(8)
        elif act == 2:
            del changed[at : at + random_.randint(1, 8)]
        else:
            changed[at:at] = random_.randbytes(random_.randint(1, 8))
        if not changed:
            changed = bytearray(raw)
    return bytes(changed)


def test_thousands_of_mutated_requests_raise_only_protocol_errors():
    random_ = random.Random(20260101)
    refused = 0
    for _ in range(10_000):
        try:
            pdu.decode_associate_request(memoryview(mutated(random_, GOLDEN_BODY)))
        except ProtocolError:
            refused += 1
    assert 1000 < refused < 10_000


def test_thousands_of_mutated_commands_raise_only_protocol_errors():
    random_ = random.Random(20260102)
    raw = command.encode(
        {
            Element.AFFECTED_SOP_CLASS_UID: "1.2.840.10008.5.1.4.1.1.2",
            Element.COMMAND_FIELD: Field.C_STORE_RQ,
            Element.MESSAGE_ID: 1,
            Element.PRIORITY: 0,
            Element.DATA_SET_TYPE: 1,
            Element.AFFECTED_SOP_INSTANCE_UID: "1.2.3.4",
            Element.MOVE_ORIGINATOR: "MOVER",
        }
    )
    refused = 0
    for _ in range(10_000):
        try:
            decoded = command.decode(memoryview(mutated(random_, raw)))
        except ProtocolError:
            refused += 1
        else:
            _ = (decoded.name, decoded.sop_class_uid, decoded.status, decoded.has_data_set)
    assert 1000 < refused < 10_000


@pytest.mark.parametrize(
    "flood",
    [
        sub(0x50, sub(0x54, b"\0\0\0\0") * 8191) * 15,
        sub(0x50, sub(0x56, b"\0\0") * 10_921) * 15,
        sub(0x20, b"\1\0\0\0" + ABSTRACT + TRANSFER) * 40_000,
        sub(0x99, b"") * 250_000,
        sub(0x50, sub(0x57, b"\0\0\0\0" + b"\xea\x60" + b"\0\0" * 30_000)) * 15,
    ],
    ids=["roles", "extended", "contexts", "unknown", "related"],
)
def test_a_full_pdu_of_small_items_is_read_in_time(flood):
    began = time.process_time()
    with contextlib.suppress(ProtocolError):
        pdu.decode_associate_request(body(flood))
    assert time.process_time() - began < 2
