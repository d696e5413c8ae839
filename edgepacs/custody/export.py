"""What leaves the node: a data set as it came, but for elements of group 0002.

Group 0002 belongs to the meta information of a file (PS3.10 7.1). Where a data set holds such
elements, a reader may take them for the file's own and decode by a transfer syntax that lies.
The sealed object keeps them; what is sent or saved does not.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from edgepacs.custody.scan import (
    ITEM,
    ITEM_END,
    MAX_DEPTH,
    MAX_ITEMS,
    PIXEL_TAGS,
    SEQUENCE_END,
    SHORT_VRS,
    UNDEFINED,
)
from edgepacs.dimse.contexts import DEFLATED_EXPLICIT_VR_LE, EXPLICIT_VR_BE
from edgepacs.errors import Undecodable
from edgepacs.model import UID
from edgepacs.pixels.deflated import deflate_pieces

_META_GROUP = 0x0002
_AT_ONCE = 1 << 20  # bytes inflated in one step


class _Level(NamedTuple):
    """One open sequence or item of undefined length, and whether VRs are implicit inside it."""

    sequence: bool
    implicit: bool


def without_group_2(pieces: Iterable[bytes], transfer_syntax_uid: UID) -> Iterator[bytes]:
    """An encoded data set without its elements of group 0002, every other byte as it came.

    Works in constant memory. Elements inside sequences stay, and so does everything from where
    the data set can no longer be followed: pixel data of undefined length, a delimiter out of
    place, a VR that is none, nesting or items beyond the caps. A deflated data set (PS3.5 A.5)
    is deflated anew: what it inflates to is as it came. Raises Undecodable where it is broken.
    """
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LE:
        return deflate_pieces(_sifted(_inflated(pieces), "<"))
    return _sifted(pieces, ">" if transfer_syntax_uid == EXPLICIT_VR_BE else "<")


def _sifted(pieces: Iterable[bytes], order: str) -> Iterator[bytes]:
    sieve = _Sieve(order)
    for piece in pieces:
        if kept := sieve.sift(piece):
            yield kept
    if sieve.rest:
        yield sieve.rest


def _inflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-15)
    for piece in pieces:
        rest, more = piece, True
        while more and not inflater.eof:
            try:
                plain = inflater.decompress(rest, _AT_ONCE)
            except zlib.error:
                raise Undecodable("Its deflated data set is broken; it is kept as it is") from None
            rest = inflater.unconsumed_tail
            more = bool(rest) or len(plain) == _AT_ONCE
            yield plain


class _Sieve:
    """Follows the elements of a data set fed in pieces of any size, and lets go of group 0002."""

    def __init__(self, order: str) -> None:
        self._pair = struct.Struct(order + "HH").unpack_from
        self._u16 = struct.Struct(order + "H").unpack_from
        self._u32 = struct.Struct(order + "I").unpack_from
        self._implicit: bool | None = None  # until the first element shows it
        self._levels: list[_Level] = []
        self._items = 0
        self._skip = 0  # bytes of the current value that are still to come
        self._dropping = False
        self._lost = False  # the data set cannot be followed any further
        self.rest = b""  # the beginning of an element, to go on with

    def sift(self, data: bytes) -> bytes:
        """What of `data`, and of what was kept back before, may be passed on."""
        buffer, self.rest = self.rest + data, b""
        if self._lost:
            return buffer
        kept: list[bytes] = []
        start = at = 0  # of what is not yet in `kept`, and of what has not been looked at
        while step := self._step(buffer, at):
            if self._dropping:
                kept.append(buffer[start:at])
                start = at + step
            at += step
        kept.append(buffer[start:at])
        self.rest = buffer[at:]
        return b"".join(kept)

    def _step(self, buffer: bytes, at: int) -> int:
        """How far to go on from `at`, 0 where more bytes are needed; sets `_dropping`."""
        left = len(buffer) - at
        if self._skip or self._lost:
            step = left if self._lost else min(self._skip, left)
            self._skip = max(0, self._skip - step)
            return step
        if left < 8:
            return 0
        group, element = self._pair(buffer, at)
        if not self._levels:
            self._dropping = group == _META_GROUP
        if group == 0xFFFE:
            self._delimiter(group << 16 | element, self._u32(buffer, at + 4)[0])
            return left if self._lost else 8
        if self._implicit is None:  # the bytes are believed, whatever the syntax claims
            vr = buffer[at + 4 : at + 6]
            self._implicit = not (vr.isalpha() and vr.isupper())
        return self._element(group << 16 | element, buffer, at, left)

    def _element(self, tag: int, buffer: bytes, at: int, left: int) -> int:
        vr, length, head = self._head(buffer, at, left)
        if not head:
            return 0
        if length != UNDEFINED:
            self._skip = length
        elif vr in (b"SQ", b"UN", b"") and (self._levels or tag not in PIXEL_TAGS):
            # PS3.5 6.2.2: a UN of undefined length holds implicit VRs.
            self._open(_Level(sequence=True, implicit=self._is_implicit() or vr == b"UN"))
        else:
            self._lose()
        return left if self._lost else head

    def _head(self, buffer: bytes, at: int, left: int) -> tuple[bytes, int, int]:
        """VR (b"" where implicit), value length and header length; the last 0 for: need more."""
        if self._is_implicit():
            return b"", self._u32(buffer, at + 4)[0], 8
        vr = buffer[at + 4 : at + 6]
        if vr in SHORT_VRS:
            return vr, self._u16(buffer, at + 6)[0], 8
        if not vr.isalpha():
            self._lose()
            return vr, 0, 8
        return (vr, self._u32(buffer, at + 8)[0], 12) if left >= 12 else (vr, 0, 0)

    def _is_implicit(self) -> bool:
        return self._levels[-1].implicit if self._levels else bool(self._implicit)

    def _open(self, level: _Level) -> None:
        if len(self._levels) >= 2 * MAX_DEPTH:
            self._lose()
        self._levels.append(level)

    def _delimiter(self, tag: int, length: int) -> None:
        """An item or delimiter inside a sequence of undefined length (PS3.5 7.5)."""
        self._items += tag == ITEM
        if not self._levels or self._items > MAX_ITEMS:
            self._lose()
        elif tag == ITEM and length == UNDEFINED:
            self._open(_Level(sequence=False, implicit=self._levels[-1].implicit))
        elif tag == ITEM:
            self._skip = length
        elif tag in (ITEM_END, SEQUENCE_END):
            # An item that lacks its own end is closed by that of its sequence.
            while tag == SEQUENCE_END and len(self._levels) > 1 and not self._levels[-1].sequence:
                self._levels.pop()
            self._levels.pop()
        else:
            self._lose()

    def _lose(self) -> None:
        self._lost, self._dropping = True, False
