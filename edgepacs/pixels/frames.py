"""Where the frames of a pixel data element lie, without reading the element whole.

`FrameIndex` answers for native and encapsulated pixel data alike. It reads through a callable,
so that a sealed object can serve just the bytes asked for; all offsets count from the first
byte of the value of the pixel data element, which for encapsulated data is the item tag of the
Basic Offset Table (PS3.5 A.4).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import unpack, unpack_from
from typing import BinaryIO, NamedTuple

from edgepacs.errors import NotFound, Undecodable
from edgepacs.pixels.codecs import native_frame_bits
from edgepacs.pixels.description import PixelDescription
from edgepacs.pixels.syntaxes import syntax

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)`: the bytes there, fewer only where the value ends."""

MAX_FRAGMENTS = 1 << 20
MAX_ENCODED_FRAME_BYTES = 1 << 29  # twice the cap of a decoded frame: no codec does worse

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_DELIMITATION = b"\xfe\xff\xdd\xe0"
_WINDOW = 1 << 16
_STARTS = (  # how a compressed frame begins: JPEG and JPEG-LS, JPEG 2000, JPEG XL
    b"\xff\xd8\xff",
    b"\xff\x4f\xff\x51",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
)
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000


class Span(NamedTuple):
    """A run of bytes within the value of the pixel data element."""

    offset: int
    length: int


class Location(NamedTuple):
    """Where one frame lies: its fragments in order, and the bit at which it begins in them."""

    fragments: tuple[Span, ...]
    first_bit: int = 0


class ExtendedOffsetTable(NamedTuple):
    """Values of (7FE0,0001) and (7FE0,0002): 64-bit offsets and lengths (PS3.3 C.7.6.3.1.8)."""

    offsets: bytes
    lengths: bytes


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """The bytes of one frame as `decode_frame` takes them."""

    data: bytes
    first_bit: int = 0


class FrameIndex:
    """The frames of one pixel data element.

    `length` is how many bytes `read_at` can serve from the start of the value; for undefined
    length up to the end of the data set, the delimiter being found here.

    A video is one bit stream over all its fragments and so counts as a single frame here
    (PS3.5 8.2.5).

    With an offset table a frame is found by reading a few item tags; without one the item tags
    of the whole value are read once, at construction.

    Raises Undecodable, here or in `locate`, where offset tables, items or lengths point outside
    the value or contradict the number of frames.
    """

    def __init__(
        self,
        read_at: ReadAt,
        length: int,
        description: PixelDescription,
        extended: ExtendedOffsetTable | None = None,
    ) -> None:
        row = syntax(description.transfer_syntax_uid)
        if row is None:
            raise Undecodable("Transfer syntax: unknown to this node")
        self._frames = 1 if row.video else description.number_of_frames
        self._read_at = read_at
        self._encapsulated = row.encapsulated
        self._locate: Callable[[int], Location]
        if row.encapsulated:
            self._locate = _encapsulated(_Items(read_at, length), self._frames, extended)
        else:
            self._locate = _native(length, description)

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._frames

    def locate(self, frame: int) -> Location:
        """Where `frame` lies, counted from 0.

        Raises NotFound for a frame there is none of, Undecodable for one that lies wrongly.
        """
        if not 0 <= frame < len(self):
            raise NotFound(f"Frame: not between 1 and {len(self)}")
        return self._locate(frame)

    def offsets(self) -> tuple[int, ...]:
        """Where each frame's first item tag stands, counted from the first fragment's.

        What a Basic Offset Table holds, whether or not there is one here. Raises NotFound for
        native pixel data, which has none, else as `locate`.
        """
        if not self._encapsulated:
            raise NotFound("Offset table: native frames have none")
        tags = [self.locate(frame).fragments[0].offset - 8 for frame in range(len(self))]
        return tuple(tag - tags[0] for tag in tags)

    def read(self, frame: int) -> EncodedFrame:
        """Read the bytes of `frame`, counted from 0, its fragments joined. Raises as `locate`."""
        location = self.locate(frame)
        if sum(span.length for span in location.fragments) > MAX_ENCODED_FRAME_BYTES:
            raise Undecodable(f"Pixel data: a frame exceeds {MAX_ENCODED_FRAME_BYTES} bytes")
        parts = [self._read_at(*span) for span in location.fragments]
        if any(
            len(part) != span.length for part, span in zip(parts, location.fragments, strict=True)
        ):
            raise Undecodable("Pixel data: cut short")
        return EncodedFrame(b"".join(parts), location.first_bit)


def reader(stream: BinaryIO, start: int) -> ReadAt:
    """Read from a seekable stream whose pixel data value begins at `start`."""

    def read_at(offset: int, length: int) -> bytes:
        stream.seek(start + offset)
        return stream.read(length)

    return read_at


def _native(length: int, description: PixelDescription) -> Callable[[int], Location]:
    bits = native_frame_bits(description)
    full = description.samples * description.bits_allocated
    if bits < full and 8 * length >= full * description.number_of_frames:
        bits = full  # some makers write YBR_FULL_422 but do not subsample

    def locate(frame: int) -> Location:
        first = frame * bits
        start, end = first // 8, (first + bits + 7) // 8
        if end > length:
            raise Undecodable("Pixel data: shorter than Rows, Columns and Number of Frames say")
        if description.word_swapped:  # whole words, so that their bytes can be put back
            start, end = start & ~1, min(end + (end & 1), length)
        return Location((Span(start, end - start),), first - 8 * start)

    return locate


class _Items:
    """The item tags of an encapsulated value, read through a window."""

    def __init__(self, read_at: ReadAt, length: int) -> None:
        self.read_at = read_at
        self.length = length
        self._window = b""
        self._window_start = 0

    def peek(self, offset: int, length: int) -> bytes:
        start = offset - self._window_start
        if start < 0 or start + length > len(self._window):
            self._window = self.read_at(offset, min(_WINDOW, max(self.length - offset, 0)))
            self._window_start, start = offset, 0
        return self._window[start : start + length]

    def item(self, offset: int) -> Span | None:
        """The value of the item whose tag stands at `offset`; None where the items end."""
        if offset == self.length:
            return None  # cut off right behind an item: nothing of a frame is missing
        header = self.peek(offset, 8)
        if len(header) < 8:
            raise Undecodable("Pixel data: cut short within an item tag")
        if header[:4] == _SEQUENCE_DELIMITATION:
            return None
        if header[:4] != _ITEM:
            raise Undecodable("Pixel data: no item where a fragment should begin")
        (length,) = unpack_from("<I", header, 4)
        if length > self.length - offset - 8:
            raise Undecodable("Pixel data: a fragment runs past the end")
        return Span(offset + 8, length)

    def fragments(self, offset: int, end: int | None = None) -> Iterator[Span]:
        """The fragments from the item tag at `offset`, up to exactly `end` or to the last."""
        for _ in range(MAX_FRAGMENTS):
            if offset == end:
                return
            span = self.item(offset)
            if span is None:
                if end is not None:
                    raise Undecodable("Offset table: points beyond the last fragment")
                return
            yield span
            offset = span.offset + span.length
            if end is not None and offset > end:
                raise Undecodable("Offset table: points into the middle of a fragment")
        raise Undecodable(f"Pixel data: more than {MAX_FRAGMENTS} fragments")


def _encapsulated(
    items: _Items, frames: int, extended: ExtendedOffsetTable | None
) -> Callable[[int], Location]:
    table = items.item(0)
    if table is None:
        raise Undecodable("Pixel data: no Basic Offset Table and no fragments")
    first = table.offset + table.length
    if items.item(first) is None:
        raise Undecodable("Pixel data: no fragments")
    if extended is not None and (extended.offsets or extended.lengths):
        return _by_extended_table(items, first, extended, frames)
    offsets = _basic_offsets(items, table, first)
    if frames == 1:
        whole = Location(tuple(items.fragments(first)))
        return lambda _frame: whole
    if len(offsets) == frames and _ascending(offsets):
        return _by_basic_table(items, first, offsets)
    return _by_contents(items, first, frames).__getitem__


def _basic_offsets(items: _Items, table: Span, first: int) -> tuple[int, ...]:
    if table.length % 4 or table.length > 4 * MAX_FRAGMENTS:
        raise Undecodable("Basic Offset Table: not a list of 32-bit offsets")
    value = items.read_at(*table)
    if len(value) != table.length:
        raise Undecodable("Basic Offset Table: cut short")
    offsets = unpack(f"<{table.length // 4}I", value)
    if any(first + offset + 8 > items.length for offset in offsets):
        raise Undecodable("Basic Offset Table: points beyond the end")
    return offsets


def _ascending(offsets: tuple[int, ...]) -> bool:
    # A table of zeros or in disorder is no table; the contents then decide.
    return offsets[0] == 0 and all(a < b for a, b in pairwise(offsets))


def _by_basic_table(
    items: _Items, first: int, offsets: tuple[int, ...]
) -> Callable[[int], Location]:
    def locate(frame: int) -> Location:
        start = first + offsets[frame]
        end = first + offsets[frame + 1] if frame + 1 < len(offsets) else None
        found = tuple(items.fragments(start, end))
        if not found:
            raise Undecodable("Basic Offset Table: points to no fragment")
        return Location(found)

    return locate


def _by_extended_table(
    items: _Items, first: int, extended: ExtendedOffsetTable, frames: int
) -> Callable[[int], Location]:
    """One fragment per frame is a condition of the table's use (PS3.3 C.7.6.3.1.8)."""
    if len(extended.offsets) != 8 * frames or len(extended.lengths) != 8 * frames:
        raise Undecodable("Extended Offset Table: not one entry per frame")

    def locate(frame: int) -> Location:
        (offset,) = unpack_from("<Q", extended.offsets, 8 * frame)
        (length,) = unpack_from("<Q", extended.lengths, 8 * frame)
        if first + offset + 8 + length > items.length:
            raise Undecodable("Extended Offset Table: points beyond the end")
        span = items.item(first + offset)
        # The length may leave out the byte that makes the fragment even.
        if span is None or not span.length - 1 <= length <= span.length:
            raise Undecodable("Extended Offset Table: does not fit the fragments")
        return Location((Span(span.offset, length),))

    return locate


def _by_contents(items: _Items, first: int, frames: int) -> list[Location]:
    """Frames without an offset table: one fragment each, or told apart by how they begin or end.

    A frame always begins with a new fragment (PS3.5 A.4), so only the edges are looked at.
    """
    spans = list(items.fragments(first))
    if len(spans) < frames:
        raise Undecodable("Number of Frames: more than there are fragments")
    if len(spans) == frames:
        return [Location((span,)) for span in spans]
    starts = [i for i, span in enumerate(spans) if _starts_frame(items, span)]
    if len(starts) != frames or starts[0] != 0:
        ends = [i + 1 for i, span in enumerate(spans) if _ends_frame(items, span)]
        starts = [0, *ends[:-1]]
        if len(ends) != frames or ends[-1] != len(spans):
            raise Undecodable("Pixel data: the fragments do not show where frames begin")
    edges = [*starts, len(spans)]
    return [Location(tuple(spans[a:b])) for a, b in pairwise(edges)]


def _starts_frame(items: _Items, span: Span) -> bool:
    return items.read_at(span.offset, min(span.length, 8)).startswith(_STARTS)


def _ends_frame(items: _Items, span: Span) -> bool:
    tail = min(span.length, 10)
    return _END in items.read_at(span.offset + span.length - tail, tail)
