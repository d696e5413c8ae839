"""Commands that are broken, contradict themselves or ask too much: BAD-INPUT 27 to 35.

As with what is broken below them: answered within 2 s and 64 MiB, recorded with the field and the
limit, and nobody beside them notices.
"""

import struct
from contextlib import suppress

import pytest
from dimse.dimse_node import CONTEXTS, command_pdu, data_pdu, echo_rq
from harness.made import CT, ct
from hostile.attacker import ABORTED, ACCEPTED, CLOSED, P_DATA, Attacker, bounded
from hostile.receiver import Receiver
from store.making import small

from edgepacs.dimse import ProposedContext, pdu
from edgepacs.dimse.command import Element, Field
from edgepacs.dimse.contexts import (
    EXPLICIT_VR_LE,
    MODALITY_WORKLIST_FIND,
    STORAGE_COMMITMENT_PUSH,
)
from edgepacs.dimse.query import STUDY_ROOT_FIND

bad_input = pytest.mark.bad_input


# -- DIMSE


@pytest.mark.parametrize(
    ("changed", "has_data", "status", "words"),
    [
        pytest.param(
            {Element.AFFECTED_SOP_INSTANCE_UID: ""},
            True,
            0xC000,
            "Affected SOP Instance UID (0000,1000)",
            marks=bad_input(27),
            id="no Affected SOP Instance UID",
        ),
        pytest.param(
            {Element.AFFECTED_SOP_INSTANCE_UID: "1.2.3.5"},
            True,
            0xA900,
            "SOP Instance UID differs from the command's",
            marks=bad_input(28),
            id="UIDs differ",
        ),
        pytest.param(
            {Element.DATA_SET_TYPE: 0x0101},
            False,
            0xC000,
            "data set: absent",
            marks=bad_input(29),
            id="no data set",
        ),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(
    receiver: Receiver,
    attacker: Attacker,
    changed: dict[int, int | str],
    has_data: bool,  # noqa: FBT001
    status: int,
    words: str,
) -> None:
    elements = {
        Element.AFFECTED_SOP_CLASS_UID: CT,
        Element.COMMAND_FIELD: Field.C_STORE_RQ,
        Element.MESSAGE_ID: 7,
        Element.DATA_SET_TYPE: 1,
        Element.AFFECTED_SOP_INSTANCE_UID: "1.2.3.4",
    }
    data = data_pdu(small(sop="1.2.3.4"), context=1) if has_data else b""
    attacker.proposing(CT)
    with bounded(receiver):
        attacker.send(command_pdu(1, {**elements, **changed}) + data)
        answer, comment = attacker.status()
        assert (answer, words in comment) == (status, True), comment
        assert attacker.store(ct())[0] == 0  # the association lives on
    assert not receiver.versions("1.2.3.4")
    receiver.owes("instance refused", words)


@bad_input(31)
def test_a_message_id_twice_is_answered_twice(receiver: Receiver, attacker: Attacker) -> None:
    with bounded(receiver):
        attacker.proposing(CT)
        for _ in range(2):
            assert attacker.store(ct()) == (0, "")


@bad_input(32)
def test_a_flood_of_cancels_is_aborted(receiver: Receiver, attacker: Attacker) -> None:
    cancel = command_pdu(
        1,
        {
            Element.COMMAND_FIELD: Field.C_CANCEL_RQ,
            Element.RESPONDED_MESSAGE_ID: 1,
            Element.DATA_SET_TYPE: 0x0101,
        },
    )
    assert attacker.associate()[0] == ACCEPTED
    before = receiver.cpu()
    with bounded(receiver):
        attacker.send(cancel * 1000 + echo_rq())
        assert attacker.pdu()[0] == P_DATA  # so many are ignored (PS3.7 9.3.2.3)
        with suppress(ConnectionError):
            attacker.send(cancel * 100_000)
        assert attacker.pdu()[0] in (ABORTED, CLOSED)
    assert receiver.cpu() - before < 1
    receiver.owes("association broken", "C-CANCEL: more than 1000 on one association")


# -- services beside storage, asked with what no modality sends

FIND = {Element.COMMAND_FIELD: Field.C_FIND_RQ, Element.MESSAGE_ID: 1, Element.DATA_SET_TYPE: 1}
ACTION = {
    Element.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
    Element.REQUESTED_SOP_INSTANCE_UID: "1.2.840.10008.1.20.1.1",
    Element.COMMAND_FIELD: Field.N_ACTION_RQ,
    Element.MESSAGE_ID: 1,
    Element.DATA_SET_TYPE: 1,
    Element.ACTION_TYPE_ID: 1,
}
WILDCARD = b"\x10\0\x10\0PN\2\0* "  # every patient
JUNK_RANGE = b"\x08\0\x20\0DA\x12\0-99999999-0000abc-\x08\0\x52\0CS\x06\0STUDY "  # (0008,0020)
REFERENCES = (
    struct.pack("<HH2s2xI", 0x0008, 0x1199, b"SQ", 0xFFFFFFFF)
    + (struct.pack("<HHI", 0xFFFE, 0xE000, 16) + b"\x08\0\x55\x11UI\x08\x001.2.3.4\0") * 1_000_000
)


@pytest.mark.parametrize(
    ("sop_class", "elements", "data", "status"),
    [
        pytest.param(
            MODALITY_WORKLIST_FIND,
            {Element.AFFECTED_SOP_CLASS_UID: MODALITY_WORKLIST_FIND, **FIND},
            WILDCARD,
            0x0000,
            marks=bad_input(33),
            id="wildcard worklist query",
        ),
        pytest.param(
            STUDY_ROOT_FIND,
            {Element.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND, **FIND},
            JUNK_RANGE,
            0xA900,
            marks=bad_input(34),
            id="junk date range",
        ),
        pytest.param(
            STORAGE_COMMITMENT_PUSH,
            ACTION,
            REFERENCES,
            0x0115,
            marks=bad_input(35),
            id="N-ACTION with a million references",
        ),
    ],
)
def test_what_is_asked_of_a_service_costs_little(
    receiver: Receiver,
    attacker: Attacker,
    host: str,
    sop_class: str,
    elements: dict[int, int | str],
    data: bytes,
    status: int,
) -> None:
    """Answered within bounds, and the next is served (PS3.4 C.4.1.1.4, PS3.7 C.5)."""
    context = ProposedContext(id=5, abstract_syntax=sop_class, transfer_syntaxes=(EXPLICIT_VR_LE,))
    with bounded(receiver, seconds=5):
        kind, body = attacker.associate(contexts=(*CONTEXTS, context))
        assert kind == ACCEPTED
        answers = pdu.decode_associate_accept(memoryview(body)).contexts
        assert [one.result for one in answers] == [0, 0, 0]  # PS3.8 9.3.3.2
        attacker.send(command_pdu(5, elements) + b"".join(pieces(data, context=5)))
        assert attacker.status()[0] == status
    other = Attacker(receiver.port, host)
    assert other.proposing(CT) == 0
    assert other.store(ct())[0] == 0
    other.close()


def pieces(data: bytes, *, context: int) -> list[bytes]:
    """`data` as P-DATA-TF PDUs of 256 KiB."""
    size = 1 << 18
    starts = range(0, len(data), size)
    return [
        data_pdu(data[at : at + size], last=at + size >= len(data), context=context)
        for at in starts
    ]


# -- in the end


def test_the_records_name_field_and_limit(receiver: Receiver, attacker: Attacker) -> None:
    """One record at least for each of the attacks above; so it stands last."""
    attacker.proposing(CT)
    attacker.send(command_pdu(1, {Element.COMMAND_FIELD: Field.C_ECHO_RQ}))
    assert attacker.pdu()[0] == ABORTED
    receiver.owes("association broken", "(0000,0110) Message ID: absent")
    receiver.require_records()
