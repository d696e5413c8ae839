"""Peers that mean harm, and what is asked of a receiver whatever they do."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dimse.dimse_node import Script, associate_rq
from harness.made import ct, new_uid
from harness.part10 import Part10
from hostile.receiver import Receiver, store

from edgepacs.dimse import pdu
from edgepacs.dimse.command import Element, Field, decode, encode
from edgepacs.dimse.contexts import EXPLICIT_VR_LE
from edgepacs.dimse.items import ProposedContext

ACCEPTED, REJECTED, P_DATA, RELEASED, ABORTED, CLOSED = 2, 3, 4, 6, 7, 0
SECONDS = 2.0  # within which every rejection must come
MEMORY = 64 << 20  # bytes a rejection may cost


class Attacker(Script):
    """A peer scripted in bytes that calls from `host`."""

    def __init__(self, port: int, host: str) -> None:
        address = ("127.0.0.1", port)
        self.sock = socket.create_connection(address, 10, source_address=(host, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def associate(self, **changes: Any) -> tuple[int, bytes]:
        return super().associate(**{"calling_ae": "HARNESS", **changes})

    def proposing(self, sop_class: str, syntax: str = EXPLICIT_VR_LE) -> int:
        """Associate with context 1 for `sop_class`; its result (PS3.8 9.3.3.2)."""
        context = ProposedContext(id=1, abstract_syntax=sop_class, transfer_syntaxes=(syntax,))
        kind, body = self.associate(contexts=(context,))
        assert kind == ACCEPTED, kind
        return pdu.decode_associate_accept(memoryview(body)).contexts[0].result

    def store(self, one: Part10, *, context: int = 1, piece: int = 1 << 18) -> tuple[int, str]:
        """Send `one`; status and comment of the answer, for the association must not end."""
        elements: dict[int, Any] = {
            Element.AFFECTED_SOP_CLASS_UID: one.sop_class,
            Element.COMMAND_FIELD: Field.C_STORE_RQ,
            Element.MESSAGE_ID: 1,
            Element.PRIORITY: 0,
            Element.DATA_SET_TYPE: 1,
            Element.AFFECTED_SOP_INSTANCE_UID: one.sop_instance,
        }
        self.send(pdu.encode_p_data(context, 3, encode(elements)))
        view = memoryview(one.data)
        for at in range(0, max(1, len(view)), piece):
            last = pdu.LAST if at + piece >= len(view) else 0
            self.send(pdu.encode_p_data(context, last, view[at : at + piece]))
        return self.status()

    def status(self) -> tuple[int, str]:
        """Status and comment of the response that comes next."""
        kind, body = self.pdu()
        assert kind == P_DATA, f"PDU {kind} instead of a response"
        command = decode(memoryview(body)[pdu.PDV_HEADER_SIZE :])
        return command.status, command.comment

    def reset(self) -> None:
        """End the connection by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def whole(kind: int, body: bytes) -> bytes:
    """A PDU of any type."""
    return struct.pack(">BxI", kind, len(body)) + body


def harness_rq(**changes: Any) -> bytes:
    """An A-ASSOCIATE-RQ of a known caller."""
    return associate_rq(**{"calling_ae": "HARNESS", **changes})


def raw_rq(called: bytes = b"EDGEPACS", calling: bytes = b"HARNESS", items: bytes = b"") -> bytes:
    """An A-ASSOCIATE-RQ with AE titles and items as they are."""
    return whole(1, b"\0\1\0\0" + called.ljust(16) + calling.ljust(16) + bytes(32) + items)


APPLICATION = b"\x10\0\0\x15" + b"1.2.840.10008.3.1.1.1"


@contextmanager
def bounded(
    receiver: Receiver, *, seconds: float = SECONDS, memory: int = MEMORY
) -> Iterator[None]:
    """Assert what holds whatever the block does: time, memory, no crash, and others are served."""
    with receiver.associate() as bystander:
        before = receiver.forget_peak()
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        grown = receiver.peak() - before
        status, comment = store(bystander, ct(sop=new_uid()))
        assert status == 0, f"the association beside it was harmed: {status:04X} {comment}"
    receiver.require_sound()
    assert took < seconds, f"took {took:.2f} s"
    assert grown <= memory, f"cost {grown >> 20} MiB"
