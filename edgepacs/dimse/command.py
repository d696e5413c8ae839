"""Command sets: the group 0000 elements that begin every DIMSE message (PS3.7 6.3.1, annex E).

A command set is always Implicit VR Little Endian, its elements in ascending order behind their
group length. `Command` maps element numbers, without the group, to values: int for US and UL,
str for UI, AE and LO, a tuple of 32-bit tags for AT.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from types import MappingProxyType

from edgepacs.dimse.faults import ProtocolError
from edgepacs.errors import InvalidValue

Value = int | str | tuple[int, ...]

NO_DATA_SET = 0x0101  # (0000,0800): no data set follows (PS3.7 E.1)
DATA_SET = 0x0001  # any other value says that one follows
RESPONSE = 0x8000  # bit that a response's command field has over its request's (PS3.7 E.1)
COMMENT_MAX_LENGTH = 64  # (0000,0902) is LO

_ELEMENT = struct.Struct("<HHI")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")


class Field(IntEnum):
    """Command Field (0000,0100) (PS3.7 E.1)."""

    C_STORE_RQ = 0x0001
    C_GET_RQ = 0x0010
    C_FIND_RQ = 0x0020
    C_MOVE_RQ = 0x0021
    C_ECHO_RQ = 0x0030
    N_EVENT_REPORT_RQ = 0x0100
    N_GET_RQ = 0x0110
    N_SET_RQ = 0x0120
    N_ACTION_RQ = 0x0130
    N_CREATE_RQ = 0x0140
    N_DELETE_RQ = 0x0150
    C_CANCEL_RQ = 0x0FFF
    C_STORE_RSP = 0x8001
    C_GET_RSP = 0x8010
    C_FIND_RSP = 0x8020
    C_MOVE_RSP = 0x8021
    C_ECHO_RSP = 0x8030
    N_EVENT_REPORT_RSP = 0x8100
    N_GET_RSP = 0x8110
    N_SET_RSP = 0x8120
    N_ACTION_RSP = 0x8130
    N_CREATE_RSP = 0x8140
    N_DELETE_RSP = 0x8150


class Priority(IntEnum):
    """Priority (0000,0700) (PS3.7 E.1)."""

    MEDIUM = 0
    HIGH = 1
    LOW = 2


class Element(IntEnum):
    """Element numbers of group 0000 (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS_UID = 0x0002
    REQUESTED_SOP_CLASS_UID = 0x0003
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    RESPONDED_MESSAGE_ID = 0x0120
    MOVE_DESTINATION = 0x0600
    PRIORITY = 0x0700
    DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    OFFENDING_ELEMENT = 0x0901
    ERROR_COMMENT = 0x0902
    ERROR_ID = 0x0903
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    REQUESTED_SOP_INSTANCE_UID = 0x1001
    EVENT_TYPE_ID = 0x1002
    ATTRIBUTE_IDENTIFIERS = 0x1005
    ACTION_TYPE_ID = 0x1008
    REMAINING = 0x1020
    COMPLETED = 0x1021
    FAILED = 0x1022
    WARNING = 0x1023
    MOVE_ORIGINATOR = 0x1030
    MOVE_ORIGINATOR_MESSAGE_ID = 0x1031


_UID = frozenset(
    {
        Element.AFFECTED_SOP_CLASS_UID,
        Element.REQUESTED_SOP_CLASS_UID,
        Element.AFFECTED_SOP_INSTANCE_UID,
        Element.REQUESTED_SOP_INSTANCE_UID,
    }
)
_TEXT = frozenset({Element.MOVE_DESTINATION, Element.ERROR_COMMENT, Element.MOVE_ORIGINATOR})
_TAGS = frozenset({Element.OFFENDING_ELEMENT, Element.ATTRIBUTE_IDENTIFIERS})


class Command(Mapping[int, Value]):
    """One command set, without its group length. Text is as sent, padding removed, unchecked."""

    __slots__ = ("_elements",)

    def __init__(self, elements: Mapping[int, Value]) -> None:
        self._elements = elements if isinstance(elements, dict) else dict(elements)

    def __getitem__(self, element: int) -> Value:
        return self._elements[element]

    def __iter__(self) -> Iterator[int]:
        return iter(self._elements)

    def __len__(self) -> int:
        return len(self._elements)

    def __repr__(self) -> str:
        return f"Command({self.name})"  # its other values name instances and patients

    def number(self, element: int, default: int = 0) -> int:
        """A US or UL element, or `default` where it is absent."""
        value = self._elements.get(element, default)
        return value if isinstance(value, int) else default

    def text(self, element: int) -> str:
        """A UI, AE or LO element, empty where it is absent."""
        value = self._elements.get(element, "")
        return value if isinstance(value, str) else ""

    @property
    def field(self) -> int:
        """Command Field (0000,0100)."""
        return self.number(Element.COMMAND_FIELD)

    @property
    def name(self) -> str:
        """The standard's name of the command, e.g. C-STORE-RQ."""
        try:
            return Field(self.field).name.replace("_", "-")
        except ValueError:
            return f"command field {self.field:#06x}"

    @property
    def message_id(self) -> int:
        """Message ID (0000,0110) of a request."""
        return self.number(Element.MESSAGE_ID)

    @property
    def responded_message_id(self) -> int:
        """Message ID Being Responded To (0000,0120) of a response or C-CANCEL."""
        return self.number(Element.RESPONDED_MESSAGE_ID)

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows (PS3.7 E.1, Command Data Set Type)."""
        return self.number(Element.DATA_SET_TYPE, NO_DATA_SET) != NO_DATA_SET

    @property
    def status(self) -> int:
        """Status (0000,0900) of a response."""
        return self.number(Element.STATUS)

    @property
    def comment(self) -> str:
        """Error Comment (0000,0902) of a response, empty where there is none."""
        return self.text(Element.ERROR_COMMENT)

    @property
    def sop_class_uid(self) -> str:
        """Affected, else Requested SOP Class UID, unchecked; empty where neither is there."""
        return self.text(Element.AFFECTED_SOP_CLASS_UID) or self.text(
            Element.REQUESTED_SOP_CLASS_UID
        )

    @property
    def sop_instance_uid(self) -> str:
        """Affected, else Requested SOP Instance UID, unchecked; empty where neither is there."""
        return self.text(Element.AFFECTED_SOP_INSTANCE_UID) or self.text(
            Element.REQUESTED_SOP_INSTANCE_UID
        )


def encode(elements: Mapping[int, Value]) -> bytes:
    """`elements` as a command set behind its group length, in ascending order (PS3.7 6.3.1).

    Raises InvalidValue for text that is not ASCII and for numbers that do not fit.
    """
    body = b"".join(_encode_element(number, elements[number]) for number in sorted(elements))
    return _ELEMENT.pack(0, Element.GROUP_LENGTH, 4) + _U32.pack(len(body)) + body


def decode(view: bytes | memoryview) -> Command:
    """The command set in `view`.

    Raises ProtocolError for what cannot be read or lacks what every message has: a command
    field, and a message ID or the one responded to (PS3.7 9.3, 10.3).
    """
    elements: dict[int, Value] = {}
    at, end, previous = 0, len(view), -1
    while at < end:
        number, value, at = _decode_element(view, at)
        if number <= previous:
            raise ProtocolError("command set", f"(0000,{number:04X}) is out of order or repeated")
        previous = number
        elements[number] = value
    elements.pop(Element.GROUP_LENGTH, None)
    command = Command(elements)
    _require_identity(command)
    return command


def _encode_element(number: int, value: Value) -> bytes:
    try:
        raw = _encode_value(number, value)
    except (struct.error, UnicodeEncodeError):
        raise InvalidValue(f"(0000,{number:04X})", "does not fit a command set") from None
    return _ELEMENT.pack(0, number, len(raw)) + raw


def _encode_value(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _U16.pack(value)
    if isinstance(value, tuple):
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in value)
    raw = value.encode("ascii")
    padding = b"\0" if number in _UID else b" "  # PS3.5 9.1, 6.2
    return raw + padding if len(raw) % 2 else raw


def _decode_element(view: bytes | memoryview, at: int) -> tuple[int, Value, int]:
    """Number, value and end of the element at `at`."""
    left = len(view) - at
    if left < _ELEMENT.size:
        raise ProtocolError("command set", f"{left} stray bytes at its end")
    group, number, length = _ELEMENT.unpack_from(view, at)
    start = at + _ELEMENT.size
    if group != 0:
        raise ProtocolError("command set", f"element of group {group:04X}, must be 0000")
    if length > left - _ELEMENT.size:
        problem = f"length {length}, {left - _ELEMENT.size} bytes are left"
        raise ProtocolError(f"(0000,{number:04X})", problem)
    return number, _decode_value(number, view, start, length), start + length


def _decode_value(number: int, view: bytes | memoryview, start: int, length: int) -> Value:
    if number in _UID:
        return str(view[start : start + length], "latin-1").rstrip("\0 ")
    if number in _TEXT:
        return str(view[start : start + length], "latin-1").strip("\0 ")
    if number in _TAGS:
        return _decode_tags(number, view[start : start + length])
    reader = _NUMBERS.get(length)
    if reader is not None:
        value: int = reader(view, start)[0]
        return value
    if number in _KNOWN:
        raise ProtocolError(f"(0000,{number:04X})", f"length {length}, must be 2")
    return str(view[start : start + length], "latin-1")  # retired elements: kept, never read


def _decode_tags(number: int, view: bytes | memoryview) -> tuple[int, ...]:
    if len(view) % 4:
        raise ProtocolError(f"(0000,{number:04X})", f"length {len(view)} is no multiple of 4")
    return tuple(group << 16 | element for group, element in struct.iter_unpack("<HH", view))


def _require_identity(command: Command) -> None:
    field = command.field
    if Element.COMMAND_FIELD not in command:
        raise ProtocolError("(0000,0100) Command Field", "absent")
    if field & RESPONSE or field == Field.C_CANCEL_RQ:
        if Element.RESPONDED_MESSAGE_ID not in command:
            raise ProtocolError("(0000,0120) Message ID Being Responded To", "absent")
    elif Element.MESSAGE_ID not in command:
        raise ProtocolError("(0000,0110) Message ID", "absent")
    if field & RESPONSE and Element.STATUS not in command:
        raise ProtocolError("(0000,0900) Status", "absent")


_KNOWN = frozenset(int(element) for element in Element)
_NUMBERS: Mapping[int, Callable[[bytes | memoryview, int], tuple[int, ...]]] = MappingProxyType(
    {2: _U16.unpack_from, 4: _U32.unpack_from}
)
