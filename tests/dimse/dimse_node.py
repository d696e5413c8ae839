"""Peers scripted in bytes, and an acceptor on loopback that records what reaches it."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edgepacs.dimse import (
    AssociateRequest,
    Association,
    ContextAnswer,
    Limits,
    Message,
    Peer,
    ProposedContext,
    Rejection,
    accept,
    pdu,
)
from edgepacs.dimse.command import Element, Field, encode
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE, VERIFICATION, storage_answer
from edgepacs.dimse.items import UserInformation

CT = "1.2.840.10008.5.1.4.1.1.2"
QUICK = Limits(
    pdu_deadline=0.5, artim=0.5, idle=0.5, stall=0.5, response=2.0, linger=0.2, object_deadline=2.0
)
CONTEXTS = (
    ProposedContext(id=1, abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_VR_LE,)),
    ProposedContext(id=3, abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_VR_LE,)),
)


class Open:
    """Admits everybody to storage and verification."""

    def admit(self, _request: AssociateRequest, _peer: Peer) -> Rejection | None:
        return None

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        return storage_answer(proposed)

    def limits(self, node: Limits) -> Limits:
        return node


def take(association: Association, message: Message, box: list[bytes]) -> None:
    """Keep the data set and answer Success."""
    if message.data is not None:
        box.append(b"".join(bytes(part) for part in message.data))
    association.respond(message, 0x0000)


Service = Callable[[Association, Message, list[bytes]], None]


@dataclass
class Node:
    """An acceptor; every association runs in its own thread."""

    limits: Limits
    admission: object = field(default_factory=Open)
    service: Service = take
    received: list[bytes] = field(default_factory=list)
    ended: list[BaseException | None] = field(default_factory=list)
    associations: list[Association] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                sock, address = self.listener.accept()
                thread = threading.Thread(target=self._serve, args=(sock, address), daemon=True)
                self.threads.append(thread)
                thread.start()

    def wrap(self, sock: socket.socket) -> socket.socket:
        return sock

    def _serve(self, sock: socket.socket, address: tuple[str, int]) -> None:
        try:
            with accept(self.wrap(sock), address, self.admission, self.limits) as association:
                self.associations.append(association)
                for message in association.messages():
                    self.service(association, message, self.received)
        except BaseException as error:  # noqa: BLE001 - the tests judge it
            self.ended.append(error)
        else:
            self.ended.append(None)

    def join(self) -> list[BaseException | None]:
        """How each association ended, once all have."""
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive(), "an association hangs"
        return self.ended

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


class Script:
    """A peer that speaks in bytes."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                return data
            data += part
        return data

    def pdu(self) -> tuple[int, bytes]:
        """Type and body of the next PDU; type 0 when the connection has ended."""
        try:
            header = self.exactly(6)
        except ConnectionError:
            return 0, b""
        if len(header) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", header)
        return kind, self.exactly(length)

    def associate(self, **changes: Any) -> tuple[int, bytes]:
        self.send(associate_rq(**changes))
        return self.pdu()

    def close(self) -> None:
        self.sock.close()


def associate_rq(**changes: Any) -> bytes:
    values = {
        "called_ae": "EDGEPACS",
        "calling_ae": "CT1",
        "contexts": CONTEXTS,
        "user_information": UserInformation(implementation_class_uid="1.2.3"),
    }
    return pdu.encode_associate_request(AssociateRequest(**{**values, **changes}))


def echo_rq(message_id: int = 1, context: int = 1) -> bytes:
    return command_pdu(
        context,
        {
            Element.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            Element.COMMAND_FIELD: Field.C_ECHO_RQ,
            Element.MESSAGE_ID: message_id,
            Element.DATA_SET_TYPE: 0x0101,
        },
    )


def store_elements(message_id: int = 1) -> dict:
    return {
        Element.AFFECTED_SOP_CLASS_UID: CT,
        Element.COMMAND_FIELD: Field.C_STORE_RQ,
        Element.MESSAGE_ID: message_id,
        Element.PRIORITY: 0,
        Element.DATA_SET_TYPE: 1,
        Element.AFFECTED_SOP_INSTANCE_UID: f"1.2.3.{message_id}",
    }


def store_rq(message_id: int = 1) -> bytes:
    return command_pdu(3, store_elements(message_id))


def command_pdu(context: int, elements: dict) -> bytes:
    return pdu.encode_p_data(context, pdu.COMMAND | pdu.LAST, encode(elements))


def data_pdu(data: bytes, *, last: bool = True, context: int = 3) -> bytes:
    return pdu.encode_p_data(context, pdu.LAST if last else 0, data)
