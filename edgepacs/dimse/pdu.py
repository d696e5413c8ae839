"""The seven PDUs of the DICOM upper layer (PS3.8 9.3), as values and as bytes.

Encoders return whole PDUs. Decoders take the variable field behind the six-byte header, check
every length before they use it and raise ProtocolError naming the field and the limit.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from edgepacs.dimse.faults import AbortReason, ProtocolError
from edgepacs.dimse.items import (
    APPLICATION_CONTEXT,
    AnsweredContext,
    ItemType,
    ProposedContext,
    UserInformation,
    decode_answered,
    decode_proposed,
    decode_user_information,
    encode_answered,
    encode_proposed,
    encode_user_information,
    item,
    require,
    text,
    walk,
)
from edgepacs.errors import InvalidValue
from edgepacs.model import AE_TITLE_MAX_LENGTH

HEADER_SIZE = 6  # type, reserved, four-byte length (PS3.8 9.3.1)
PDV_HEADER_SIZE = 6  # length, presentation context ID, message control header (PS3.8 9.3.5.1)
PROTOCOL_VERSION = 1  # bit 0 (PS3.8 9.3.2)

COMMAND = 0x01  # message control header, bit 0 (PS3.8 E.2)
LAST = 0x02  # message control header, bit 1 (PS3.8 E.2)

_HEADER = struct.Struct(">BxI")
_PDV = struct.Struct(">IBB")
_P_DATA = struct.Struct(">BxIIBB")
_ASSOCIATE = struct.Struct(">Hxx16s16s32x")
_FIXED_LENGTH = 4  # of the variable field of RJ, RELEASE and ABORT (PS3.8 9.3.4, 9.3.6 to 9.3.8)


class PduType(IntEnum):
    """First byte of a PDU (PS3.8 9.3)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


_NAMES = {
    PduType.ASSOCIATE_RQ: "A-ASSOCIATE-RQ",
    PduType.ASSOCIATE_AC: "A-ASSOCIATE-AC",
    PduType.ASSOCIATE_RJ: "A-ASSOCIATE-RJ",
    PduType.P_DATA: "P-DATA-TF",
    PduType.RELEASE_RQ: "A-RELEASE-RQ",
    PduType.RELEASE_RP: "A-RELEASE-RP",
    PduType.ABORT: "A-ABORT",
}
# What a PDU of each type must hold at least: an A-ASSOCIATE its fixed fields, a P-DATA one PDV.
_SMALLEST = {
    PduType.ASSOCIATE_RQ: _ASSOCIATE.size,
    PduType.ASSOCIATE_AC: _ASSOCIATE.size,
    PduType.P_DATA: PDV_HEADER_SIZE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2). AE titles as received, trimmed, any characters."""

    called_ae: str
    calling_ae: str
    contexts: tuple[ProposedContext, ...]
    user_information: UserInformation
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociateAccept:
    """A-ASSOCIATE-AC (PS3.8 9.3.3); the AE titles are a copy of the request's, never tested."""

    called_ae: str
    calling_ae: str
    contexts: tuple[AnsweredContext, ...]
    user_information: UserInformation
    application_context: str = APPLICATION_CONTEXT


@dataclass(frozen=True, slots=True)
class Rejection:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4): result 1 is permanent, 2 transient."""

    result: int
    source: int
    reason: int

    @property
    def words(self) -> str:
        """The reason in plain words."""
        code = (self.source, self.reason)
        return _REJECTIONS.get(code, f"source {self.source}, reason {self.reason}")


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 9.3.8); `source` and `reason` as received."""

    source: int
    reason: int


_REJECTIONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given by its service provider",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
NO_REASON = Rejection(1, 1, 1)
APPLICATION_CONTEXT_NOT_SUPPORTED = Rejection(1, 1, 2)
CALLING_AE_NOT_RECOGNISED = Rejection(1, 1, 3)
CALLED_AE_NOT_RECOGNISED = Rejection(1, 1, 7)
PROVIDER_REFUSED = Rejection(1, 2, 1)
PROTOCOL_VERSION_NOT_SUPPORTED = Rejection(1, 2, 2)
TEMPORARY_CONGESTION = Rejection(2, 3, 1)
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2)


# --- reading -----------------------------------------------------------------------------------


def whole_length(buffer: bytearray, at: int, cap: int) -> int:
    """Bytes of the whole PDU whose header stands at `at`, checked before any more of it is read.

    Raises ProtocolError for an unknown type, a length no PDU of its type has, or one above `cap`.
    """
    kind, length = _HEADER.unpack_from(buffer, at)
    if kind not in _NAMES:
        problem = f"{kind:#04x} is none of PS3.8 9.3"
        raise ProtocolError("PDU type", problem, AbortReason.UNRECOGNISED_PDU)
    if length > cap:
        raise ProtocolError("PDU length", f"{length} bytes, the limit is {cap}")
    smallest = _SMALLEST.get(kind, _FIXED_LENGTH)
    if length < smallest:
        raise ProtocolError(f"{name(kind)} length", f"{length} bytes, needs {smallest}")
    if kind not in _SMALLEST and length != _FIXED_LENGTH:
        raise ProtocolError(f"{name(kind)} length", f"{length} bytes, must be {_FIXED_LENGTH}")
    return HEADER_SIZE + int(length)


def name(kind: int) -> str:
    """The standard's name of a PDU type."""
    return _NAMES[PduType(kind)]


def unexpected(kind: int, when: str) -> ProtocolError:
    """The error for a PDU of a known type at the wrong time (PS3.8 9.2, AA-8)."""
    return ProtocolError(name(kind), f"not expected {when}", AbortReason.UNEXPECTED_PDU)


def next_pdv(body: memoryview, at: int) -> tuple[int, int, int]:
    """Context ID, message control header and end of the PDV at `at` (PS3.8 9.3.5.1).

    Its fragment is `body[at + PDV_HEADER_SIZE : end]`.
    """
    if len(body) - at < PDV_HEADER_SIZE:
        raise ProtocolError("PDV", f"{len(body) - at} bytes left in its PDU, needs 6")
    length, context, control = _PDV.unpack_from(body, at)
    end = at + 4 + length
    if length < 2:
        raise ProtocolError("PDV length", f"{length} bytes, needs 2")
    if end > len(body):
        raise ProtocolError("PDV length", f"{length} bytes, {len(body) - at - 4} are left")
    return context, control, end


def decode_associate_request(body: memoryview) -> AssociateRequest:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2); context IDs are odd and unique, or ProtocolError."""
    version, called, calling = _fixed(body)
    contexts: list[ProposedContext] = []
    application, information = "", UserInformation()
    for kind, value in walk(body[_ASSOCIATE.size :], "A-ASSOCIATE-RQ"):
        if kind == ItemType.CONTEXT_PROPOSED:
            contexts.append(decode_proposed(value))
        elif kind == ItemType.APPLICATION_CONTEXT:
            application = text(value)
        elif kind == ItemType.USER_INFORMATION:
            information = decode_user_information(value)
    _require_unique([context.id for context in contexts])
    return AssociateRequest(
        called_ae=called,
        calling_ae=calling,
        contexts=tuple(contexts),
        user_information=information,
        application_context=application,
        protocol_version=version,
    )


def decode_associate_accept(body: memoryview) -> AssociateAccept:
    """An A-ASSOCIATE-AC (PS3.8 9.3.3); context IDs are odd and unique, or ProtocolError."""
    _, called, calling = _fixed(body)
    contexts: list[AnsweredContext] = []
    application, information = "", UserInformation()
    for kind, value in walk(body[_ASSOCIATE.size :], "A-ASSOCIATE-AC"):
        if kind == ItemType.CONTEXT_ANSWERED:
            contexts.append(decode_answered(value))
        elif kind == ItemType.APPLICATION_CONTEXT:
            application = text(value)
        elif kind == ItemType.USER_INFORMATION:
            information = decode_user_information(value)
    _require_unique([context.id for context in contexts])
    return AssociateAccept(
        called_ae=called,
        calling_ae=calling,
        contexts=tuple(contexts),
        user_information=information,
        application_context=application,
    )


def decode_rejection(body: memoryview) -> Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    require(body, _FIXED_LENGTH, "A-ASSOCIATE-RJ")
    return Rejection(body[1], body[2], body[3])


def decode_abort(body: memoryview) -> Abort:
    """An A-ABORT (PS3.8 9.3.8)."""
    require(body, _FIXED_LENGTH, "A-ABORT")
    return Abort(body[2], body[3])


def _fixed(body: memoryview) -> tuple[int, str, str]:
    """Protocol version, called and calling AE title of an A-ASSOCIATE PDU."""
    require(body, _ASSOCIATE.size, "A-ASSOCIATE")
    version, called, calling = _ASSOCIATE.unpack_from(body)
    return version, called.decode("latin-1").strip(" "), calling.decode("latin-1").strip(" ")


def _require_unique(ids: list[int]) -> None:
    if len(set(ids)) != len(ids):
        raise ProtocolError("presentation context ID", "used more than once (PS3.8 9.3.2.2)")


# --- writing -----------------------------------------------------------------------------------


def encode_associate_request(request: AssociateRequest) -> bytes:
    """A whole A-ASSOCIATE-RQ (PS3.8 9.3.2); InvalidValue for what does not fit its fields."""
    contexts = b"".join(encode_proposed(context) for context in request.contexts)
    return _associate(PduType.ASSOCIATE_RQ, request, contexts)


def encode_associate_accept(accept: AssociateAccept) -> bytes:
    """A whole A-ASSOCIATE-AC (PS3.8 9.3.3)."""
    contexts = b"".join(encode_answered(context) for context in accept.contexts)
    return _associate(PduType.ASSOCIATE_AC, accept, contexts)


def encode_rejection(rejection: Rejection) -> bytes:
    """A whole A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return _whole(
        PduType.ASSOCIATE_RJ, bytes((0, rejection.result, rejection.source, rejection.reason))
    )


def encode_abort(abort: Abort) -> bytes:
    """A whole A-ABORT (PS3.8 9.3.8)."""
    return _whole(PduType.ABORT, bytes((0, 0, abort.source, abort.reason)))


def encode_p_data(context: int, control: int, fragment: bytes | memoryview) -> bytes:
    """A whole P-DATA-TF with one PDV (PS3.8 9.3.5)."""
    return p_data_header(context, control, len(fragment)) + bytes(fragment)


def p_data_header(context: int, control: int, length: int) -> bytes:
    """The 12 bytes before a fragment of `length` bytes that fills a P-DATA-TF of its own."""
    return _P_DATA.pack(PduType.P_DATA, length + PDV_HEADER_SIZE, length + 2, context, control)


RELEASE_RQ = _HEADER.pack(PduType.RELEASE_RQ, _FIXED_LENGTH) + bytes(_FIXED_LENGTH)  # PS3.8 9.3.6
RELEASE_RP = _HEADER.pack(PduType.RELEASE_RP, _FIXED_LENGTH) + bytes(_FIXED_LENGTH)  # PS3.8 9.3.7


def _associate(kind: PduType, value: AssociateRequest | AssociateAccept, contexts: bytes) -> bytes:
    version = value.protocol_version if isinstance(value, AssociateRequest) else PROTOCOL_VERSION
    fixed = _ASSOCIATE.pack(version, _title(value.called_ae), _title(value.calling_ae))
    application = item(ItemType.APPLICATION_CONTEXT, value.application_context.encode("ascii"))
    return _whole(
        kind, fixed + application + contexts + encode_user_information(value.user_information)
    )


def _title(title: str) -> bytes:
    """An AE title as 16 bytes padded with spaces (PS3.8 9.3.2)."""
    raw = title.encode("latin-1")
    if len(raw) > AE_TITLE_MAX_LENGTH:
        raise InvalidValue("AE title", f"longer than {AE_TITLE_MAX_LENGTH} characters")
    return raw.ljust(AE_TITLE_MAX_LENGTH)


def _whole(kind: PduType, body: bytes) -> bytes:
    return _HEADER.pack(kind, len(body)) + body
