"""Items inside A-ASSOCIATE PDUs: presentation contexts and user information.

Layouts: PS3.8 9.3.2 and 9.3.3, PS3.8 D.1 (maximum length), PS3.7 D.3.3 (the other user
information). Decoders read from memoryviews, check every length before they use it and raise
ProtocolError; items of unknown type are skipped (PS3.8 9.3.1).
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from edgepacs.dimse.faults import ProtocolError
from edgepacs.errors import InvalidValue

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1
DEFAULT_MAX_LENGTH = 16_384  # assumed of a peer that leaves the item of PS3.8 D.1 out

_HEADER = struct.Struct(">BxH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_LENGTH_MAX = 0xFFFF


class ItemType(IntEnum):
    """First byte of an item (PS3.8 9.3.2, 9.3.3; PS3.8 D.1; PS3.7 D.3.3)."""

    APPLICATION_CONTEXT = 0x10
    CONTEXT_PROPOSED = 0x20
    CONTEXT_ANSWERED = 0x21
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    IMPLEMENTATION_CLASS_UID = 0x52
    OPERATIONS_WINDOW = 0x53
    ROLE_SELECTION = 0x54
    IMPLEMENTATION_VERSION = 0x55
    EXTENDED_NEGOTIATION = 0x56
    COMMON_EXTENDED_NEGOTIATION = 0x57
    USER_IDENTITY = 0x58
    USER_IDENTITY_ANSWER = 0x59


class ContextResult(IntEnum):
    """Result of one presentation context (PS3.8 9.3.3.2)."""

    ACCEPTED = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class Roles:
    """Roles of the association requestor for one SOP class (PS3.7 D.3.3.4)."""

    scu: bool = True
    scp: bool = False


DEFAULT_ROLES = Roles()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedContext:
    """One presentation context of an A-ASSOCIATE-RQ (PS3.8 9.3.2.2).

    It is joined with what the user information says about its SOP class: its roles, its
    `application_information` (PS3.7 D.3.3.5) and `service_class` (PS3.7 D.3.3.6), both empty
    where nothing was said. `id` 0 lets the requestor choose.
    """

    id: int = 0
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]
    roles: Roles | None = None
    application_information: bytes = b""
    service_class: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredContext:
    """One presentation context of an A-ASSOCIATE-AC (PS3.8 9.3.3.2)."""

    id: int
    result: int
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class OperationsWindow:
    """Operations that may be outstanding at once, 0 without limit (PS3.7 D.3.3.3).

    `invoked` by the association requestor, `performed` by it.
    """

    invoked: int = 1
    performed: int = 1


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """Roles proposed or accepted for a SOP class (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    roles: Roles


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """Service class application information of a SOP class (PS3.7 D.3.3.5)."""

    sop_class_uid: str
    application_information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """Service class and related general SOP classes of a SOP class (PS3.7 D.3.3.6)."""

    sop_class_uid: str
    service_class_uid: str
    related: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserIdentity:
    """Who the requestor's user is (PS3.7 D.3.3.7).

    Kinds: 1 name, 2 name and passcode, 3 Kerberos, 4 SAML, 5 JSON web token. The fields may be
    secret and stay out of `repr`.
    """

    kind: int
    response_requested: bool = False
    primary: bytes = field(repr=False)
    secondary: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInformation:
    """The user information item (PS3.8 9.3.2.3, 9.3.3.3). `max_length` 0 means no limit.

    `identity_answer` stands only in an A-ASSOCIATE-AC, `identity` and `common` only in an RQ.
    """

    max_length: int = DEFAULT_MAX_LENGTH
    implementation_class_uid: str = ""
    implementation_version: str = ""
    window: OperationsWindow | None = None
    roles: tuple[RoleSelection, ...] = ()
    extended: tuple[ExtendedNegotiation, ...] = ()
    common: tuple[CommonExtendedNegotiation, ...] = ()
    identity: UserIdentity | None = None
    identity_answer: bytes | None = field(default=None, repr=False)


# --- reading -----------------------------------------------------------------------------------


def walk(view: memoryview, where: str) -> Iterator[tuple[int, memoryview]]:
    """Type and value of each item in `view`; ProtocolError where a length overruns `where`."""
    at, end = 0, len(view)
    while at < end:
        if end - at < _HEADER.size:
            raise ProtocolError(where, f"{end - at} stray bytes after the last item")
        kind, length = _HEADER.unpack_from(view, at)
        at += _HEADER.size
        if length > end - at:
            raise ProtocolError(where, f"item {kind:#04x} of {length} bytes, {end - at} are left")
        yield kind, view[at : at + length]
        at += length


def text(view: memoryview) -> str:
    """A UID or name as sent, padding removed (PS3.8 F: UIDs are not padded, but some pad).

    Any byte becomes a character, so that what is odd can be refused with the proper answer.
    """
    return str(view, "latin-1").strip("\0 ")


def context_id(number: int) -> int:
    """`number` where it may be a presentation context ID: odd, 1 to 255 (PS3.8 9.3.2.2)."""
    if not number % 2:
        raise ProtocolError("presentation context ID", f"{number} is not odd (PS3.8 9.3.2.2)")
    return number


def decode_proposed(view: memoryview) -> ProposedContext:
    """A presentation context item of an A-ASSOCIATE-RQ (PS3.8 9.3.2.2), without its header."""
    require(view, 4, "presentation context item")
    number = context_id(view[0])
    abstract: list[str] = []
    transfer: list[str] = []
    for kind, value in walk(view[4:], "presentation context item"):
        if kind == ItemType.ABSTRACT_SYNTAX:
            abstract.append(text(value))
        elif kind == ItemType.TRANSFER_SYNTAX:
            transfer.append(text(value))
    if len(abstract) != 1:
        raise ProtocolError("presentation context item", f"{len(abstract)} abstract syntaxes")
    if not transfer:
        raise ProtocolError("presentation context item", "no transfer syntax")
    return ProposedContext(
        id=number, abstract_syntax=abstract[0], transfer_syntaxes=tuple(transfer)
    )


def decode_answered(view: memoryview) -> AnsweredContext:
    """A presentation context item of an A-ASSOCIATE-AC (PS3.8 9.3.3.2), without its header."""
    require(view, 4, "presentation context item")
    syntax = ""
    for kind, value in walk(view[4:], "presentation context item"):
        if kind == ItemType.TRANSFER_SYNTAX:
            syntax = text(value)
    return AnsweredContext(id=context_id(view[0]), result=view[2], transfer_syntax=syntax)


def decode_user_information(view: memoryview) -> UserInformation:
    """The user information item, without its header; of a repeated single item the last counts."""
    single: dict[str, Any] = {}
    listed: dict[str, list[Any]] = {"roles": [], "extended": [], "common": []}
    for kind, value in walk(view, "user information item"):
        if kind not in _READERS:
            continue
        name, read = _READERS[kind]
        if name in listed:
            listed[name].append(read(value))
        else:
            single[name] = read(value)
    single.update((name, tuple(entries)) for name, entries in listed.items())
    return UserInformation(**single)


def require(view: memoryview, size: int, where: str) -> None:
    """Raise ProtocolError unless `view` holds `size` bytes."""
    if len(view) < size:
        raise ProtocolError(where, f"{len(view)} bytes, needs {size}")


def _counted(view: memoryview, at: int, where: str) -> tuple[memoryview, int]:
    """The value behind a two-byte length at `at`, and where the next one begins."""
    require(view[at:], 2, where)
    end = at + 2 + _U16.unpack_from(view, at)[0]
    require(view, end, where)
    return view[at + 2 : end], end


def _read_max_length(view: memoryview) -> int:
    require(view, 4, "maximum length item")
    length: int = _U32.unpack_from(view)[0]
    return length


def _read_window(view: memoryview) -> OperationsWindow:
    require(view, 4, "asynchronous operations window item")
    return OperationsWindow(_U16.unpack_from(view)[0], _U16.unpack_from(view, 2)[0])


def _read_role(view: memoryview) -> RoleSelection:
    sop_class, end = _counted(view, 0, "role selection item")
    require(view, end + 2, "role selection item")
    return RoleSelection(text(sop_class), Roles(scu=view[end] == 1, scp=view[end + 1] == 1))


def _read_extended(view: memoryview) -> ExtendedNegotiation:
    sop_class, end = _counted(view, 0, "extended negotiation item")
    return ExtendedNegotiation(text(sop_class), bytes(view[end:]))


def _read_common(view: memoryview) -> CommonExtendedNegotiation:
    where = "common extended negotiation item"
    sop_class, end = _counted(view, 0, where)
    service, end = _counted(view, end, where)
    listed, _ = _counted(view, end, where)
    related, at = [], 0
    while at < len(listed):
        one, at = _counted(listed, at, where)
        related.append(text(one))
    return CommonExtendedNegotiation(text(sop_class), text(service), tuple(related))


def _read_identity(view: memoryview) -> UserIdentity:
    require(view, 2, "user identity item")
    primary, end = _counted(view, 2, "user identity item")
    secondary, _ = _counted(view, end, "user identity item")
    return UserIdentity(
        kind=view[0],
        response_requested=view[1] == 1,
        primary=bytes(primary),
        secondary=bytes(secondary),
    )


def _read_identity_answer(view: memoryview) -> bytes:
    return bytes(_counted(view, 0, "user identity answer item")[0])


_READERS: dict[int, tuple[str, Callable[[memoryview], object]]] = {
    ItemType.MAXIMUM_LENGTH: ("max_length", _read_max_length),
    ItemType.IMPLEMENTATION_CLASS_UID: ("implementation_class_uid", text),
    ItemType.IMPLEMENTATION_VERSION: ("implementation_version", text),
    ItemType.OPERATIONS_WINDOW: ("window", _read_window),
    ItemType.ROLE_SELECTION: ("roles", _read_role),
    ItemType.EXTENDED_NEGOTIATION: ("extended", _read_extended),
    ItemType.COMMON_EXTENDED_NEGOTIATION: ("common", _read_common),
    ItemType.USER_IDENTITY: ("identity", _read_identity),
    ItemType.USER_IDENTITY_ANSWER: ("identity_answer", _read_identity_answer),
}


# --- writing -----------------------------------------------------------------------------------


def item(kind: int, value: bytes) -> bytes:
    """One item; InvalidValue when its value does not fit the two-byte length (PS3.8 9.3.1)."""
    if len(value) > _LENGTH_MAX:
        raise InvalidValue(f"item {kind:#04x}", f"longer than {_LENGTH_MAX} bytes")
    return _HEADER.pack(kind, len(value)) + value


def encode_proposed(context: ProposedContext) -> bytes:
    """A presentation context item of an A-ASSOCIATE-RQ (PS3.8 9.3.2.2)."""
    value = bytes((context.id, 0, 0, 0))
    value += item(ItemType.ABSTRACT_SYNTAX, _ascii(context.abstract_syntax))
    value += b"".join(
        item(ItemType.TRANSFER_SYNTAX, _ascii(syntax)) for syntax in context.transfer_syntaxes
    )
    return item(ItemType.CONTEXT_PROPOSED, value)


def encode_answered(context: AnsweredContext) -> bytes:
    """A presentation context item of an A-ASSOCIATE-AC (PS3.8 9.3.3.2).

    Its transfer syntax item stands there even where the result makes it insignificant.
    """
    value = bytes((context.id, 0, context.result, 0))
    value += item(ItemType.TRANSFER_SYNTAX, _ascii(context.transfer_syntax))
    return item(ItemType.CONTEXT_ANSWERED, value)


def encode_user_information(information: UserInformation) -> bytes:
    """The user information item with its sub-items in the order of their types."""
    parts = [
        item(ItemType.MAXIMUM_LENGTH, _U32.pack(information.max_length)),
        item(ItemType.IMPLEMENTATION_CLASS_UID, _ascii(information.implementation_class_uid)),
    ]
    if information.window is not None:
        window = _U16.pack(information.window.invoked) + _U16.pack(information.window.performed)
        parts.append(item(ItemType.OPERATIONS_WINDOW, window))
    parts.extend(item(ItemType.ROLE_SELECTION, _role(entry)) for entry in information.roles)
    if information.implementation_version:
        version = _ascii(information.implementation_version)
        parts.append(item(ItemType.IMPLEMENTATION_VERSION, version))
    parts.extend(
        item(ItemType.EXTENDED_NEGOTIATION, _extended(entry)) for entry in information.extended
    )
    parts.extend(
        item(ItemType.COMMON_EXTENDED_NEGOTIATION, _common(entry)) for entry in information.common
    )
    parts.extend(_identities(information))
    return item(ItemType.USER_INFORMATION, b"".join(parts))


def _role(entry: RoleSelection) -> bytes:
    return _count(_ascii(entry.sop_class_uid)) + bytes((entry.roles.scu, entry.roles.scp))


def _extended(entry: ExtendedNegotiation) -> bytes:
    return _count(_ascii(entry.sop_class_uid)) + entry.application_information


def _common(entry: CommonExtendedNegotiation) -> bytes:
    related = b"".join(_count(_ascii(one)) for one in entry.related)
    return (
        _count(_ascii(entry.sop_class_uid))
        + _count(_ascii(entry.service_class_uid))
        + _count(related)
    )


def _identities(information: UserInformation) -> Iterable[bytes]:
    identity = information.identity
    if identity is not None:
        value = bytes((identity.kind, identity.response_requested))
        value += _count(identity.primary) + _count(identity.secondary)
        yield item(ItemType.USER_IDENTITY, value)
    if information.identity_answer is not None:
        yield item(ItemType.USER_IDENTITY_ANSWER, _count(information.identity_answer))


def _count(value: bytes) -> bytes:
    """`value` behind its two-byte length."""
    if len(value) > _LENGTH_MAX:
        raise InvalidValue("user information sub-item", f"longer than {_LENGTH_MAX} bytes")
    return _U16.pack(len(value)) + value


def _ascii(value: str) -> bytes:
    try:
        return value.encode("ascii")
    except UnicodeEncodeError:
        raise InvalidValue("association item", "not ASCII") from None
