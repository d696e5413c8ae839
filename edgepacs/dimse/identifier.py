"""Small data sets as values by tag: what a report or a query says, and no more (PS3.5 7.1, 7.5).

Read and written here, since the receiver would be 20 MB larger with pydicom and what that loads.
Values are bytes as they came; sequences are tuples of their items.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from edgepacs.dimse import dictionary
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.errors import InvalidValue

SPECIFIC_CHARACTER_SET = 0x00080005
QUERY_RETRIEVE_LEVEL = 0x00080052
SOP_CLASSES_REFERENCED = 0x00081150  # Referenced SOP Class UID
SOP_INSTANCES_REFERENCED = 0x00081155  # Referenced SOP Instance UID
TRANSACTION_UID = 0x00081195
FAILURE_REASON = 0x00081197
FAILED_SOP_SEQUENCE = 0x00081198
REFERENCED_SOP_SEQUENCE = 0x00081199
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
STUDY_DATE = 0x00080020
MODALITIES_IN_STUDY = 0x00080061
SOP_CLASSES_IN_STUDY = 0x00080062
PATIENT_ID = 0x00100020
ISSUER_OF_PATIENT_ID = 0x00100021
STUDY_RELATED_INSTANCES = 0x00201208  # Number of Study Related Instances

_SEQUENCES = frozenset({FAILED_SOP_SEQUENCE, REFERENCED_SOP_SEQUENCE})
# The VRs of what is asked of nearly every peer; those of all else are in the dictionary.
_VRS: Mapping[int, str] = {
    SPECIFIC_CHARACTER_SET: "CS",
    QUERY_RETRIEVE_LEVEL: "CS",
    SOP_CLASSES_REFERENCED: "UI",
    SOP_INSTANCES_REFERENCED: "UI",
    TRANSACTION_UID: "UI",
    FAILURE_REASON: "US",
    FAILED_SOP_SEQUENCE: "SQ",
    REFERENCED_SOP_SEQUENCE: "SQ",
    SOP_INSTANCE_UID: "UI",
    STUDY_INSTANCE_UID: "UI",
    SERIES_INSTANCE_UID: "UI",
    STUDY_DATE: "DA",
    MODALITIES_IN_STUDY: "CS",
    SOP_CLASSES_IN_STUDY: "UI",
    PATIENT_ID: "LO",
    ISSUER_OF_PATIENT_ID: "LO",
    STUDY_RELATED_INSTANCES: "IS",
}
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_ZERO_PADDED = frozenset({"UI", "OB", "UN"})  # PS3.5 6.2
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 7.5
_UNDEFINED = 0xFFFFFFFF
_DEPTH_MAX = 8
_TAG = struct.Struct("<HH")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_IMPLICIT = struct.Struct("<HHI")
_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<HH2sxxI")
_SHORT_MOST = 0xFFFF
_Heading = Callable[[int, str, int], bytes]

Identifier = Mapping[int, "bytes | tuple[Identifier, ...]"]
Values = Mapping[int, "str | bytes | int | Sequence[Values]"]


def vr(tag: int) -> str:
    """The VR of an attribute, UN where it is not known (PS3.6)."""
    return _VRS.get(tag) or dictionary.vr_of(tag)


def encode(values: Values, transfer_syntax: str = IMPLICIT_VR_LE) -> bytes:
    """`values` in Implicit or Explicit VR Little Endian.

    Text is ASCII; bytes are text already encoded, or what else their VR holds. Whole numbers are
    written as their VR wants them. Raises InvalidValue for text that is not ASCII and for what
    does not fit its VR.
    """
    head = _explicit_head if transfer_syntax == EXPLICIT_VR_LE else _implicit_head
    return _encoded_items(values, head)


def _encoded_items(values: Values, head: "_Heading") -> bytes:
    return b"".join(_encoded(tag, values[tag], head) for tag in sorted(values))


def _encoded(tag: int, value: "str | bytes | int | Sequence[Values]", head: "_Heading") -> bytes:
    kind = vr(tag)
    if isinstance(value, str | bytes | int):
        raw = _padded(tag, kind, value)
    else:
        kind = "SQ"  # also of a private attribute
        items = (_encoded_items(item, head) for item in value)
        raw = b"".join(_implicit_head(_ITEM, "", len(item)) + item for item in items)
    return head(tag, kind, len(raw)) + raw


def _padded(tag: int, kind: str, value: str | bytes | int) -> bytes:
    try:
        raw = value if isinstance(value, bytes) else _plain(kind, value)
    except UnicodeEncodeError:
        raise InvalidValue(tag_text(tag), "is not ASCII") from None
    except (struct.error, ValueError):
        raise InvalidValue(tag_text(tag), f"does not fit a {kind}") from None
    return raw + (b"\0" if kind in _ZERO_PADDED else b" ") * (len(raw) % 2)


def _plain(kind: str, value: str | int) -> bytes:
    if kind in _NUMBERS:
        many = [value] if isinstance(value, int) else [int(one) for one in value.split("\\") if one]
        return struct.pack(f"<{len(many)}{_NUMBERS[kind]}", *many)
    return str(value).encode("ascii")


def tag_text(tag: int) -> str:
    """A tag as people write it: (gggg,eeee)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _implicit_head(tag: int, _kind: str, length: int) -> bytes:
    return _IMPLICIT.pack(tag >> 16, tag & 0xFFFF, length)


def _explicit_head(tag: int, kind: str, length: int) -> bytes:
    """PS3.5 7.1.2: the length of some VRs has four bytes, behind two that are reserved."""
    vr_bytes = kind.encode("ascii")
    if vr_bytes in _LONG_VRS:
        return _LONG.pack(tag >> 16, tag & 0xFFFF, vr_bytes, length)
    if length > _SHORT_MOST:
        raise InvalidValue(tag_text(tag), f"{length} bytes, a {kind} holds {_SHORT_MOST}")
    return _SHORT.pack(tag >> 16, tag & 0xFFFF, vr_bytes, length)


def decode(raw: bytes, transfer_syntax: str) -> Identifier:
    """The data set in `raw`; raises InvalidValue for what cannot be read, or is too deep."""
    if transfer_syntax not in (EXPLICIT_VR_LE, IMPLICIT_VR_LE):
        raise InvalidValue("transfer syntax", "is not native little endian")
    try:
        values, at = _elements(raw, _Span(0, len(raw), transfer_syntax == IMPLICIT_VR_LE, 0))
    except struct.error:
        raise InvalidValue("data set", "ends inside an element") from None
    if at != len(raw):
        raise InvalidValue("data set", "has an end of item without an item")
    return values


def text(values: Identifier, tag: int) -> str:
    """An element's text without its padding, empty where it is absent."""
    value = values.get(tag, b"")
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else ""


def numbers(values: Identifier, tag: int) -> str:
    """An element of binary numbers as decimal text, backslashes between; '' where it is absent.

    Raises InvalidValue where its length does not fit its VR.
    """
    value, kind = values.get(tag, b""), _NUMBERS[vr(tag)]
    if not isinstance(value, bytes) or len(value) % struct.calcsize(kind):
        raise InvalidValue(tag_text(tag), f"its length does not fit a {vr(tag)}")
    return "\\".join(str(one) for (one,) in struct.iter_unpack(f"<{kind}", value))


def is_binary(tag: int) -> bool:
    """Whether an attribute holds binary numbers, which `numbers` reads."""
    return vr(tag) in _NUMBERS


def number(values: Identifier, tag: int) -> int:
    """A US element, 0 where it is absent."""
    value = values.get(tag, b"")
    return int(_U16.unpack(value)[0]) if isinstance(value, bytes) and len(value) == 2 else 0


def items(values: Identifier, tag: int) -> tuple[Identifier, ...]:
    """The items of a sequence, none where it is absent."""
    value = values.get(tag, ())
    return value if isinstance(value, tuple) else ()


class _Span(NamedTuple):
    """Where elements or items stand, in which encoding, and how deep."""

    start: int
    end: int
    implicit: bool
    depth: int


class _Head(NamedTuple):
    tag: int
    vr: bytes
    length: int
    start: int  # of the value


def _elements(raw: bytes, span: _Span) -> tuple[Identifier, int]:
    """The elements of a data set or item, and where they end."""
    values: dict[int, bytes | tuple[Identifier, ...]] = {}
    at = span.start
    while at < span.end:
        head = _read_head(raw, at, implicit=span.implicit)
        if head.tag == _ITEM_END:
            return values, head.start
        inside = _sequence_span(head, span)
        if inside is not None:
            values[head.tag], at = _items(raw, inside)
        else:
            at = _end(head, span)
            values[head.tag] = raw[head.start : at]
    return values, at


def _read_head(raw: bytes, at: int, *, implicit: bool) -> _Head:
    group, element = _TAG.unpack_from(raw, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return _Head(tag, b"", _U32.unpack_from(raw, at + 4)[0], at + 8)
    vr = raw[at + 4 : at + 6]
    if vr in _LONG_VRS:
        return _Head(tag, vr, _U32.unpack_from(raw, at + 8)[0], at + 12)
    return _Head(tag, vr, _U16.unpack_from(raw, at + 6)[0], at + 8)


def _sequence_span(head: _Head, span: _Span) -> _Span | None:
    """Where the items of a sequence stand; None for another element.

    What is of undefined length is a sequence; of UN it is one in implicit VR (PS3.5 6.2.2).
    """
    undefined = head.length == _UNDEFINED
    if not undefined and head.vr != b"SQ" and (head.vr or vr(head.tag) != "SQ"):
        return None
    if span.depth >= _DEPTH_MAX:
        raise InvalidValue("data set", f"sequences nested more than {_DEPTH_MAX} deep")
    end = span.end if undefined else _end(head, span)
    return _Span(head.start, end, span.implicit or head.vr == b"UN", span.depth + 1)


def _items(raw: bytes, span: _Span) -> tuple[tuple[Identifier, ...], int]:
    found: list[Identifier] = []
    at = span.start
    while at < span.end:
        head = _read_head(raw, at, implicit=True)
        if head.tag == _SEQUENCE_END:
            return tuple(found), head.start
        if head.tag != _ITEM:
            raise InvalidValue("data set", "something else stands where an item is due")
        end = span.end if head.length == _UNDEFINED else _end(head, span)
        item, at = _elements(raw, span._replace(start=head.start, end=end))
        found.append(item)
    return tuple(found), at


def _end(head: _Head, span: _Span) -> int:
    end = head.start + head.length
    if end > span.end:
        raise InvalidValue("data set", "an element is longer than what holds it")
    return end
