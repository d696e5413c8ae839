"""Data elements written anew in another encoding, the bytes of every value kept.

What changes between the native transfer syntaxes (PS3.5 A.1, A.2, A.3) is how an element is
announced, and the order of bytes within a number: so nothing is decoded here, and nothing that a
parser would put in order is put in order. What cannot be followed is refused, never guessed.
"""

import struct
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from pydicom.datadict import dictionary_VR

from edgepacs.custody.scan import (
    ITEM,
    ITEM_END,
    MAX_DEPTH,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
)
from edgepacs.errors import Undecodable

_PIXEL_REPRESENTATION = 0x00280103
_META_GROUP = 0x0002
_LONGEST_SHORT = 0xFFFE  # of an even value whose length has 16 bits (PS3.5 7.1.2)
_BYTEWISE = frozenset(b"AE AS CS DA DS DT IS LO LT OB PN SH ST TM UC UI UR UT".split())
_NUMBERS = {  # bytes of a number, by VR (PS3.5 6.2, 7.3)
    **dict.fromkeys(b"AT OW SS US".split(), 2),
    **dict.fromkeys(b"FL OF OL SL UL".split(), 4),
    **dict.fromkeys(b"FD OD OV SV UV".split(), 8),
}

Changes = Mapping[int, bytes | None]
"""Values by tag that stand in place of the received ones; None leaves the element out."""

Revision = Callable[[int, bytes, bytes], bytes]
"""What a value becomes, by tag, VR and what it is, padding included; at whatever depth."""


class Encoding(NamedTuple):
    """How elements are announced and numbers ordered."""

    implicit: bool = False
    big_endian: bool = False

    @property
    def order(self) -> str:
        """The byte order in `struct`'s words."""
        return ">" if self.big_endian else "<"


EXPLICIT = Encoding()
IMPLICIT = Encoding(implicit=True)


class Element(NamedTuple):
    """One element's announcement; `vr` is b"" where implicit, `start` that of its value."""

    tag: int
    vr: bytes
    length: int
    start: int


def recoded(
    data: bytes,
    source: Encoding,
    target: Encoding = EXPLICIT,
    *,
    signed: bool = False,
    changes: Changes = MappingProxyType({}),
    revise: Revision | None = None,
    between: tuple[int, int] = (-1, 1 << 32),
) -> bytes:
    """The elements `data` consists of, written in `target`, which is little endian.

    `changes` are of elements at the top; `revise` is asked of every value that is no sequence.
    Group lengths, which would be wrong, and group 0002, which belongs to the meta information of
    a file (PS3.10 7.1), are left out. `signed` is the Pixel Representation (0028,0103) of what
    `data` was taken from: some VRs depend on it.
    Raises Undecodable where an element cannot be followed or its VR is not to be known, and where
    elements at the top are not in order or their tags not `between` two others, since readers
    would differ about what they mean.
    """
    writer = _Writer(data, changes, between=between, revise=revise)
    way = _Way(source, target, signed=signed, depth=0, revised=revise is not None)
    written, end = writer.data_set(0, len(data), way)
    if end != len(data):
        raise Undecodable("Data set: a delimiter stands where an element should begin")
    return written


def values(data: bytes, encoding: Encoding, tags: Collection[int]) -> dict[int, bytes]:
    """The values of the elements at the top that `tags` names; raises as `recoded`."""
    writer = _Writer(data, {}, wanted=tags)
    writer.data_set(0, len(data), _Way(encoding, encoding, signed=False, depth=0))
    return writer.found


def announced(data: bytes, at: int, encoding: Encoding) -> Element:
    """The element announced at `at`; raises Undecodable where the announcement is cut short."""
    try:
        group, element = struct.unpack_from(encoding.order + "HH", data, at)
        tag = group << 16 | element
        if encoding.implicit or group == 0xFFFE:
            (length,) = struct.unpack_from(encoding.order + "I", data, at + 4)
            return Element(tag, b"", length, at + 8)
        vr = data[at + 4 : at + 6]
        if vr in SHORT_VRS:
            (length,) = struct.unpack_from(encoding.order + "H", data, at + 6)
            return Element(tag, vr, length, at + 8)
        if not vr.isalpha():
            raise Undecodable("Data set: an element without a VR")
        (length,) = struct.unpack_from(encoding.order + "I", data, at + 8)
    except struct.error:
        raise Undecodable("Data set: it ends within an element") from None
    return Element(tag, vr, length, at + 12)


class _Way(NamedTuple):
    """From which encoding into which, and what is known of the data set around."""

    source: Encoding
    target: Encoding
    signed: bool
    depth: int
    revised: bool = False  # what stands in sequences may change as well

    @property
    def verbatim(self) -> bool:
        return self.source == self.target and not self.revised

    def inside(self, vr: bytes) -> "_Way":
        """The way of the items of a sequence; in a UN they are implicit (PS3.5 6.2.2)."""
        if self.depth >= MAX_DEPTH:
            raise Undecodable(f"Data set: sequences nested deeper than {MAX_DEPTH}")
        deeper = self._replace(depth=self.depth + 1)
        return deeper._replace(source=IMPLICIT, target=IMPLICIT) if vr == b"UN" else deeper


class _Writer:
    """Walks over `data` once, writing as it goes; every method returns (bytes, where it ended)."""

    def __init__(
        self,
        data: bytes,
        changes: Changes,
        *,
        between: tuple[int, int] = (-1, 1 << 32),
        wanted: Collection[int] = (),
        revise: Revision | None = None,
    ) -> None:
        self._data = data
        self._changes = changes
        self._revise = revise
        self._last, self._end = between
        self._wanted = wanted
        self.found: dict[int, bytes] = {}

    def data_set(self, at: int, end: int, way: _Way) -> tuple[bytes, int]:
        """Elements up to `end` or the delimiter of the item they stand in."""
        parts = []
        while at < end:
            element = announced(self._data, at, way.source)
            if element.tag >> 16 == 0xFFFE:
                break
            if element.tag == _PIXEL_REPRESENTATION and element.length == 2:
                way = way._replace(signed=any(self._data[element.start : element.start + 2]))
            begin, (written, at) = at, self._element(element, end, way)
            if way.depth == 0:
                if not self._last < element.tag < self._end:
                    raise Undecodable("Data set: elements out of order, or one twice")
                self._last = element.tag
                if element.tag in self._wanted and element.length != UNDEFINED:
                    self.found[element.tag] = self._data[element.start : at]
                written = self._changed(element, written, way)
            elif way.verbatim:
                written = self._data[begin:at]
            elif element.tag & 0xFFFF == 0:
                written = b""  # a group length, wrong by now
            parts.append(written)
        return b"".join(parts), at

    def _changed(self, element: Element, written: bytes, way: _Way) -> bytes:
        """A top element as it is to be; b"" for one that is left out."""
        if element.tag & 0xFFFF == 0 or element.tag >> 16 == _META_GROUP:
            return b""
        if element.tag not in self._changes:
            return written
        value = self._changes[element.tag]
        vr = element.vr or _known_vr(element.tag, len(value or b""), signed=way.signed)
        return b"" if value is None else announce(element.tag, vr, len(value), way.target) + value

    def _element(self, element: Element, end: int, way: _Way) -> tuple[bytes, int]:
        start, length = element.start, element.length
        if length == UNDEFINED:
            return self._sequence_of_undefined_length(element, end, way)
        stop = start + length
        if stop > end:
            raise Undecodable("Data set: an element runs past the end")
        vr = element.vr or _known_vr(element.tag, length, signed=way.signed)
        if vr == b"SQ" and not way.verbatim:
            value, stopped = self._items(start, stop, way.inside(vr))
            if stopped != stop:
                raise Undecodable("Data set: a sequence does not end with its items")
        else:
            value = self._data[start:stop]
            if way.source.big_endian != way.target.big_endian:
                value = _swapped(value, vr)
            if self._revise is not None:
                value = self._revise(element.tag, vr, value)
        if vr in SHORT_VRS and len(value) > _LONGEST_SHORT and not way.target.implicit:
            vr = b"UN"  # PS3.5 6.2.2: a value too long for its VR
        return announce(element.tag, vr, len(value), way.target) + value, stop

    def _sequence_of_undefined_length(
        self, element: Element, end: int, way: _Way
    ) -> tuple[bytes, int]:
        vr = element.vr or _known_vr(element.tag, UNDEFINED, signed=way.signed)
        if vr not in (b"SQ", b"UN") or (vr == b"UN" and way.source.big_endian):
            raise Undecodable("Data set: an undefined length where there is no sequence")
        items, at = self._items(element.start, end, way.inside(vr))
        delimiter = announced(self._data, at, way.source)
        if (delimiter.tag, delimiter.length) != (SEQUENCE_END, 0):
            raise Undecodable("Data set: a sequence without its delimiter")
        head = announce(element.tag, vr, UNDEFINED, way.target)
        return head + items + announce(SEQUENCE_END, b"", 0, way.target), delimiter.start

    def _items(self, at: int, end: int, way: _Way) -> tuple[bytes, int]:
        """Items up to `end` or the delimiter of their sequence (PS3.5 7.5)."""
        parts = []
        while at < end:
            item = announced(self._data, at, way.source)
            if item.tag == SEQUENCE_END:
                break
            if item.tag != ITEM:
                raise Undecodable("Data set: no item where one should begin")
            written, at = self._item(item, end, way)
            parts.append(written)
        return b"".join(parts), at

    def _item(self, item: Element, end: int, way: _Way) -> tuple[bytes, int]:
        undefined = item.length == UNDEFINED
        stop = end if undefined else item.start + item.length
        if stop > end:
            raise Undecodable("Data set: an item runs past its sequence")
        value, at = self.data_set(item.start, stop, way)
        if not undefined:
            if at != stop:
                raise Undecodable("Data set: an item does not end with its elements")
            return announce(ITEM, b"", len(value), way.target) + value, at
        delimiter = announced(self._data, at, way.source)
        if (delimiter.tag, delimiter.length) != (ITEM_END, 0):
            raise Undecodable("Data set: an item without its delimiter")
        ending = announce(ITEM_END, b"", 0, way.target)
        return announce(ITEM, b"", UNDEFINED, way.target) + value + ending, delimiter.start


def announce(tag: int, vr: bytes, length: int, target: Encoding) -> bytes:
    """What stands before a value in `target`, which is little endian (PS3.5 7.1, 7.5)."""
    group, element = tag >> 16, tag & 0xFFFF
    if target.implicit or group == 0xFFFE:
        return struct.pack("<HHI", group, element, length)
    if vr in SHORT_VRS:
        return struct.pack("<HH2sH", group, element, vr, length)
    return struct.pack("<HH2sxxI", group, element, vr, length)


def _swapped(value: bytes, vr: bytes) -> bytes:
    """A big endian value in little endian (PS3.5 7.3)."""
    if vr in _BYTEWISE or not value:
        return value
    size = _NUMBERS.get(vr, 0)
    if not size or len(value) % size:
        raise Undecodable("Data set: a big endian value whose numbers are not known")
    return byte_swapped(value, size)


def byte_swapped(value: bytes, size: int) -> bytes:
    """Numbers of `size` bytes each in the other byte order."""
    swapped = bytearray(len(value))
    for offset in range(size):
        swapped[offset::size] = value[size - 1 - offset :: size]
    return bytes(swapped)


def _known_vr(tag: int, length: int, *, signed: bool) -> bytes:
    """The VR of an element that came without: the data dictionary's (PS3.6), or UN."""
    vr = _dictionary_vr(tag)
    if vr == "US or SS":
        return b"SS" if signed else b"US"
    if vr in ("US or OW", "US or SS or OW"):
        return b"US" if length == 2 else b"OW"
    # PS3.5 A.1: what may be bytes or words stands as words in implicit VR.
    return b"OW" if vr == "OB or OW" else vr.encode()


@lru_cache(maxsize=4096)
def _dictionary_vr(tag: int) -> str:
    if tag >> 16 & 1:  # private: PS3.5 7.8.1 reserves the low elements for creators
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    if tag & 0xFFFF == 0:
        return "UL"
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"
