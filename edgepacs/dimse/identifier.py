"""Small data sets as values by tag: what a report or a query says, and no more (PS3.5 7.1, 7.5).

Read and written here, since the receiver would be 20 MB larger with pydicom and what that loads.
Values are bytes as they came; sequences are tuples of their items.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.errors import InvalidValue

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
# CS, DA and LO; all the others written here are UI.
_SPACE_PADDED = frozenset(
    {QUERY_RETRIEVE_LEVEL, STUDY_DATE, MODALITIES_IN_STUDY, PATIENT_ID, ISSUER_OF_PATIENT_ID}
)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 7.5
_UNDEFINED = 0xFFFFFFFF
_DEPTH_MAX = 8
_TAG = struct.Struct("<HH")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")

Identifier = Mapping[int, "bytes | tuple[Identifier, ...]"]
Values = Mapping[int, "str | int | Sequence[Values]"]


def encode(values: Values) -> bytes:
    """`values` in Implicit VR Little Endian; text is ASCII, whole numbers are US.

    Raises InvalidValue for text that is not ASCII.
    """
    return b"".join(_encoded(tag, values[tag]) for tag in sorted(values))


def _encoded(tag: int, value: "str | int | Sequence[Values]") -> bytes:
    if isinstance(value, str):
        raw = _padded(tag, value)
    elif isinstance(value, int):
        raw = _U16.pack(value)
    else:
        items = (encode(item) for item in value)
        raw = b"".join(_head(_ITEM, len(item)) + item for item in items)
    return _head(tag, len(raw)) + raw


def _padded(tag: int, text: str) -> bytes:
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError:
        raise InvalidValue(f"({tag >> 16:04X},{tag & 0xFFFF:04X})", "is not ASCII") from None
    return raw + (b" " if tag in _SPACE_PADDED else b"\0") * (len(raw) % 2)  # PS3.5 6.2


def _head(tag: int, length: int) -> bytes:
    return _TAG.pack(tag >> 16, tag & 0xFFFF) + _U32.pack(length)


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
    if not undefined and head.vr != b"SQ" and (head.vr or head.tag not in _SEQUENCES):
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
