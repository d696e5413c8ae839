"""Encapsulated pixel data as it is written: items around frames, and their offset tables.

PS3.5 A.4: a Basic Offset Table, a fragment for each frame, a delimiter. A table needs the
lengths of all frames before the first of them; without them it is left empty, which is legal,
and readers find frames by walking the items (`frames.FrameIndex`).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from struct import pack
from typing import NamedTuple

from edgepacs.errors import InvalidValue
from edgepacs.pixels.frames import ExtendedOffsetTable

PIXEL_DATA_HEADER = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"  # explicit VR, undefined length
# Extended Offset Table, its lengths (PS3.3 C.7.6.3) and Encapsulated Pixel Data Value Total Length
OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"

_ITEM = b"\xfe\xff\x00\xe0"
_MAX_ITEM = 0xFFFFFFFE  # PS3.5 7.5: FFFFFFFF means undefined, and items are of even length


class OffsetTables(NamedTuple):
    """Where the frames of a value lie: the value of its Basic Offset Table, or else the other.

    `extended` goes into the data set as (7FE0,0001) and (7FE0,0002), before the pixel data; the
    Basic Offset Table is then empty (PS3.3 C.7.6.3.1.8).
    """

    basic: bytes
    extended: ExtendedOffsetTable | None = None


def offset_tables(lengths: Sequence[int]) -> OffsetTables:
    """Tables for frames of these lengths in bytes, a fragment each: 32-bit offsets where they do.

    Raises InvalidValue for a frame that no fragment can hold.
    """
    if any(not 0 <= length <= _MAX_ITEM for length in lengths):
        raise InvalidValue("Pixel data", f"a frame exceeds {_MAX_ITEM} bytes")
    even = [length + length % 2 for length in lengths]
    offsets = [0, *accumulate(8 + length for length in even)][: len(even)]
    if not offsets or offsets[-1] <= 0xFFFFFFFF:
        return OffsetTables(basic_offset_table(offsets))
    count = len(even)
    extended = ExtendedOffsetTable(pack(f"<{count}Q", *offsets), pack(f"<{count}Q", *even))
    return OffsetTables(b"", extended)


def basic_offset_table(offsets: Sequence[int]) -> bytes:
    """The value of a Basic Offset Table; offsets are of item tags, from the first fragment's."""
    return pack(f"<{len(offsets)}I", *offsets)


def encapsulated(frames: Iterable[bytes], basic: bytes = b"") -> Iterator[bytes]:
    """The value of encapsulated pixel data, in pieces, the delimiter included.

    `basic` is the value of its Basic Offset Table. Frames are asked for one at a time, as their
    turn comes. Raises InvalidValue for a frame that no fragment can hold.
    """
    yield _ITEM + pack("<I", len(basic)) + basic
    for frame in frames:
        length = len(frame)
        if length > _MAX_ITEM:
            raise InvalidValue("Pixel data", f"a frame exceeds {_MAX_ITEM} bytes")
        yield _ITEM + pack("<I", length + length % 2)
        yield frame
        if length % 2:
            yield b"\0"
    yield DELIMITER


def encapsulated_length(lengths: Iterable[int], basic: bytes = b"") -> int:
    """How many bytes `encapsulated` yields for frames of these lengths."""
    items = sum(8 + length + length % 2 for length in lengths)
    return 8 + len(basic) + items + len(DELIMITER)
