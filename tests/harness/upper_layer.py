"""The DICOM upper layer in raw bytes, for peers that judge the node: nothing of it is the node's.

Just enough of PS3.8 9.3 and PS3.7 6.3.1, E.1 to play an SCP, and to call back with a report.
"""

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
C_STORE_RQ, C_FIND_RQ, C_ECHO_RQ = 0x0001, 0x0020, 0x0030  # PS3.7 E.1
N_EVENT_REPORT_RQ, N_ACTION_RQ = 0x0100, 0x0130
RESPONSE = 0x8000
NO_DATA_SET = 0x0101

_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION = b"1.2.826.0.1.3680043.8.498.99"
_LONGEST_PDU = 16 << 20  # bytes; a peer that sends more is at fault


class Ended(Exception):
    """The connection is gone, or the peer released or aborted; `how` says which."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What an A-ASSOCIATE-RQ asks for: by context ID the abstract and the transfer syntaxes."""

    called: str
    calling: str
    contexts: Mapping[int, tuple[str, tuple[str, ...]]]
    max_pdu: int
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # SOP class: SCU, SCP
    identity: bytes = b""  # the primary field of a user identity
    passcode: bytes = b""


class Wire:
    """One connection: whole PDUs in and out."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = connection.makefile("rb", buffering=262_144)

    def pdu(self) -> tuple[int, bytes]:
        """Type and variable field of the next PDU (PS3.8 9.3.1); raises Ended."""
        kind, _, length = struct.unpack(">BBI", self._read(6))
        if length > _LONGEST_PDU:  # no PDU at all, a TLS hello for one
            raise Ended("nonsense")
        return kind, self._read(length)

    def _read(self, size: int) -> bytes:
        try:
            got = self._file.read(size)
        except (OSError, ValueError) as error:
            raise Ended("lost") from error
        if len(got) < size:
            raise Ended("lost")
        return got

    def send(self, data: bytes) -> None:
        """Send all of `data`; raises Ended."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Ended("lost") from error

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """End the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


def pdu(kind: int, body: bytes) -> bytes:
    """One PDU (PS3.8 9.3.1)."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def rejection(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return pdu(ASSOCIATE_RJ, bytes((0, result, source, reason)))


def abort(source: int = 0, reason: int = 0) -> bytes:
    """An A-ABORT (PS3.8 9.3.8)."""
    return pdu(ABORT, bytes((0, 0, source, reason)))


RELEASE_REQUEST = pdu(RELEASE_RQ, bytes(4))
RELEASE_ANSWER = pdu(RELEASE_RP, bytes(4))


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _items(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(raw):
        kind, _, length = struct.unpack_from(">BBH", raw, at)
        yield kind, raw[at + 4 : at + 4 + length]
        at += 4 + length


def read_proposal(body: bytes) -> Proposal:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2, PS3.7 D.3.3)."""
    contexts: dict[int, tuple[str, tuple[str, ...]]] = {}
    roles: dict[str, tuple[int, int]] = {}
    max_pdu, identity, passcode = 0, b"", b""
    for kind, value in _items(body[68:]):
        if kind == 0x20:
            inner = [(one, text.rstrip(b"\0 ").decode()) for one, text in _items(value[4:])]
            abstract = next(text for one, text in inner if one == 0x30)
            contexts[value[0]] = (abstract, tuple(text for one, text in inner if one == 0x40))
        elif kind == 0x50:
            for one, part in _items(value):
                if one == 0x51:
                    (max_pdu,) = struct.unpack(">I", part)
                elif one == 0x54:  # PS3.7 D.3.3.4
                    (size,) = struct.unpack_from(">H", part)
                    roles[part[2 : 2 + size].decode()] = (part[2 + size], part[3 + size])
                elif one == 0x58:  # PS3.7 D.3.3.7
                    (size,) = struct.unpack_from(">H", part, 2)
                    identity, passcode = part[4 : 4 + size], part[6 + size :]
    return Proposal(
        called=body[4:20].decode("ascii", "replace").strip(),
        calling=body[20:36].decode("ascii", "replace").strip(),
        contexts=contexts,
        max_pdu=max_pdu,
        roles=roles,
        identity=identity,
        passcode=passcode,
    )


def acceptance(
    proposal: Proposal, answers: Mapping[int, str], *, max_pdu: int, reports: str = ""
) -> bytes:
    """An A-ASSOCIATE-AC (PS3.8 9.3.3): by context ID the transfer syntax, empty where refused.

    Roles proposed for the SOP class `reports` are accepted as they were proposed.
    """
    contexts = b""
    for number, (_, proposed) in proposal.contexts.items():
        syntax = answers.get(number, "")
        known = any(answers.get(other) for other in proposal.contexts)
        result = 0 if syntax else 4 if known else 3  # PS3.8 table 9-18
        name = _item(0x40, (syntax or proposed[0]).encode())
        contexts += _item(0x21, bytes((number, 0, result, 0)) + name)
    roles = b""
    if reports in proposal.roles:
        name = reports.encode()
        roles = _item(0x54, struct.pack(">H", len(name)) + name + bytes(proposal.roles[reports]))
    return pdu(
        ASSOCIATE_AC,
        _head(proposal.called, proposal.calling) + contexts + _user_information(max_pdu, roles),
    )


def request(
    *, calling: str, called: str, abstract: str, syntaxes: tuple[str, ...], roles: tuple[int, int]
) -> bytes:
    """An A-ASSOCIATE-RQ for one abstract syntax, with the roles of its requestor (SCU, SCP)."""
    inner = _item(0x30, abstract.encode()) + b"".join(_item(0x40, x.encode()) for x in syntaxes)
    name = abstract.encode()
    chosen = _item(0x54, struct.pack(">H", len(name)) + name + bytes(roles))
    context = _item(0x20, bytes((1, 0, 0, 0)) + inner)
    head = _head(called, calling)
    return pdu(ASSOCIATE_RQ, head + context + _user_information(131_072, chosen))


def read_acceptance(body: bytes) -> dict[int, str]:
    """By context ID the transfer syntax an A-ASSOCIATE-AC accepted."""
    accepted = {}
    for kind, value in _items(body[68:]):
        if kind == 0x21 and value[2] == 0:
            ((_, name),) = _items(value[4:])
            accepted[value[0]] = name.rstrip(b"\0 ").decode()
    return accepted


def _head(called: str, calling: str) -> bytes:
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    return struct.pack(">HH", 1, 0) + titles + bytes(32) + _item(0x10, _APPLICATION_CONTEXT)


def _user_information(max_pdu: int, more: bytes) -> bytes:
    length = _item(0x51, struct.pack(">I", max_pdu))
    return _item(0x50, length + _item(0x52, _IMPLEMENTATION) + more)


def command_elements(raw: bytes) -> dict[int, bytes]:
    """The elements of a command set (PS3.7 6.3.1: Implicit VR Little Endian) by element number."""
    return dict(_command_elements(raw))


def _command_elements(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(raw):
        _group, element, length = struct.unpack_from("<HHI", raw, at)
        yield element, raw[at + 8 : at + 8 + length]
        at += 8 + length


def command(elements: Mapping[int, int | str]) -> bytes:
    """A command set with its group length; numbers are US, texts UI or AE or LO."""
    body = b""
    for element in sorted(elements):
        value = elements[element]
        raw = struct.pack("<H", value) if isinstance(value, int) else _even(value)
        body += struct.pack("<HHI", 0, element, len(raw)) + raw
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _even(text: str) -> bytes:
    raw = text.encode("ascii", "replace")
    return raw + b"\0" * (len(raw) % 2)


def messages(context: int, elements: Mapping[int, int | str], data: bytes | None = None) -> bytes:
    """One DIMSE message as P-DATA-TF PDUs (PS3.8 9.3.5, E.2); the data set in one fragment."""
    whole = {0x0800: NO_DATA_SET if data is None else 0x0001, **elements}
    out = _pdv(context, 0x03, command(whole))
    return out if data is None else out + _pdv(context, 0x02, data)


def _pdv(context: int, control: int, fragment: bytes) -> bytes:
    return pdu(P_DATA, struct.pack(">IBB", len(fragment) + 2, context, control) + fragment)


def fragments(body: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Context ID, message control header and fragment of each PDV in a P-DATA-TF."""
    at, view = 0, memoryview(body)
    while at + 6 <= len(body):
        length, context, control = struct.unpack_from(">IBB", body, at)
        yield context, control, view[at + 6 : at + 4 + length]
        at += 4 + length


def text(raw: bytes) -> str:
    """A UID or AE title out of a command set."""
    return raw.rstrip(b"\0 ").decode("ascii", "replace")


def number(raw: bytes) -> int:
    """A US value out of a command set."""
    return int.from_bytes(raw[:2], "little")
