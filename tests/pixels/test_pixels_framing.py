"""Encapsulated pixel data as we write it: read back here, and by pydicom."""

import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from struct import pack, unpack

import pytest
from pixel_support import JPEG, grey, index_over
from pydicom.encaps import generate_frames, parse_basic_offsets

from edgepacs.errors import InvalidValue, NotFound, Undecodable
from edgepacs.pixels.deflated import deflate, inflate
from edgepacs.pixels.description import PixelDescription
from edgepacs.pixels.frames import ExtendedOffsetTable, FrameIndex
from edgepacs.pixels.framing import (
    DELIMITER,
    PIXEL_DATA_HEADER,
    basic_offset_table,
    encapsulated,
    encapsulated_length,
    offset_tables,
)

FRAMES = [b"\xff\xd8\xff" + bytes([n]) * (n * 7) + b"\xff\xd9" for n in range(9)]  # odd and even
LENGTHS = [len(frame) for frame in FRAMES]


def stored(frames: int) -> PixelDescription:
    return grey(8, 8, 8, JPEG + "80", NumberOfFrames=frames)


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_frames_come_back_here_and_in_pydicom(count: int, with_table: bool) -> None:  # noqa: FBT001
    tables = offset_tables(LENGTHS[:count])
    assert tables.extended is None
    basic = tables.basic if with_table else b""
    value = b"".join(encapsulated(FRAMES[:count], basic))
    assert len(value) == encapsulated_length(LENGTHS[:count], basic)
    index = index_over(value, stored(count))
    even = [frame + b"\0" * (len(frame) % 2) for frame in FRAMES[:count]]
    assert [index.read(n).data for n in range(count)] == even
    assert list(generate_frames(value, number_of_frames=count)) == even
    if with_table:
        assert parse_basic_offsets(value) == list(index.offsets())


def test_the_element_around_the_value() -> None:
    """PS3.5 A.4: OB of undefined length in explicit VR, ended by a delimiter of no length."""
    assert pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) == PIXEL_DATA_HEADER
    assert pack("<HHI", 0xFFFE, 0xE0DD, 0) == DELIMITER
    assert b"".join(encapsulated([])) == pack("<HHI", 0xFFFE, 0xE000, 0) + DELIMITER


def test_frames_are_asked_for_one_at_a_time() -> None:
    asked: list[int] = []

    def made() -> Iterator[bytes]:
        for number in range(3):
            asked.append(number)
            yield bytes(1000)

    pieces = encapsulated(made())
    next(pieces)
    assert asked == []
    next(pieces)
    assert asked == [0]


def test_beyond_four_gibibytes_the_table_is_the_extended_one() -> None:
    """PS3.3 C.7.6.3.1.8; the offsets are of 64 bits and the Basic Offset Table is empty."""
    lengths = [0x7FFFFFFF] * 3
    assert len(offset_tables(lengths[:2]).basic) == 8
    assert len(offset_tables([0x7FFFFFF5, 0x7FFFFFF6, 1]).basic) == 12  # the last at 2^32 - 4
    assert offset_tables([0x7FFFFFF8, 0x7FFFFFF8, 1]).extended is not None  # at 2^32
    tables = offset_tables(lengths)
    assert tables.basic == b""
    assert tables.extended is not None
    assert unpack("<3Q", tables.extended.offsets) == (0, 0x80000008, 0x100000010)
    assert unpack("<3Q", tables.extended.lengths) == (0x80000000,) * 3


def test_an_extended_table_finds_a_frame_beyond_four_gibibytes() -> None:
    lengths = [0x80000000, 0x80000000, 10]
    tables = offset_tables(lengths)
    edges = [0, 8]
    for length in lengths:
        edges.append(edges[-1] + 8 + length)

    def read_at(offset: int, length: int) -> bytes:
        if offset in edges[1:-1]:  # an item tag
            return pack("<HHI", 0xFFFE, 0xE000, lengths[edges.index(offset) - 1])[:length]
        return pack("<HHI", 0xFFFE, 0xE000, 0)[:length] if offset == 0 else b"x" * length

    index = FrameIndex(read_at, edges[-1], stored(3), tables.extended)
    assert index.read(2).data == b"x" * 10
    assert index.locate(2).fragments[0].offset == 8 + 2 * 0x80000008 + 8


def test_what_no_fragment_can_hold() -> None:
    for length in (0xFFFFFFFF, 1 << 40, -1):
        with pytest.raises(InvalidValue):
            offset_tables([length])
    assert offset_tables([0xFFFFFFFE]).extended is None
    assert offset_tables([]) == (b"", None)


def test_a_missing_table_is_built_from_the_items() -> None:
    value = b"".join(encapsulated(FRAMES))
    index = index_over(value, stored(9))
    assert basic_offset_table(index.offsets()) == offset_tables(LENGTHS).basic


def test_a_missing_table_of_frames_in_several_fragments() -> None:
    halves = [part for frame in FRAMES for part in (frame[:2], frame[2:])]
    value = b"".join(encapsulated(halves))
    index = index_over(value, stored(9))
    assert [index.read(n).data.rstrip(b"\0") for n in range(9)] == FRAMES
    again = b"".join(encapsulated(halves, basic_offset_table(index.offsets())))
    with_table = index_over(again, stored(9))
    assert [with_table.read(n).data.rstrip(b"\0") for n in range(9)] == FRAMES


def test_native_frames_have_no_offset_table() -> None:
    with pytest.raises(NotFound):
        index_over(bytes(128), grey(8, 8, 8, NumberOfFrames=2)).offsets()


def test_the_extended_table_is_what_pydicom_reads() -> None:
    even = [frame + b"\0" * (len(frame) % 2) for frame in FRAMES]
    offsets = unpack("<9I", offset_tables(LENGTHS).basic)
    extended = (pack("<9Q", *offsets), pack("<9Q", *map(len, even)))
    value = b"".join(encapsulated(FRAMES))
    assert list(generate_frames(value, extended_offsets=extended)) == even
    index = index_over(value, stored(9), extended=ExtendedOffsetTable(*extended))
    assert [index.read(n).data for n in range(9)] == even


def test_a_data_set_deflated_and_inflated() -> None:
    data = b"".join(bytes([n % 251]) * (n % 40) for n in range(5000))
    deflated = deflate(data)
    assert len(deflated) % 2 == 0
    assert len(deflated) < len(data) // 5
    for step in (1, 7, 1 << 20):
        chunks = [deflated[n : n + step] for n in range(0, len(deflated), step)]
        assert b"".join(inflate(chunks, len(data))) == data


def test_a_deflated_data_set_that_is_broken_or_cut_short() -> None:
    deflated = deflate(bytes(range(256)) * 50)
    for broken in (b"", deflated[:-4], b"\xff" * 40):
        with pytest.raises(Undecodable):
            list(inflate([broken], 1 << 20))


def test_a_data_set_that_inflates_without_end() -> None:
    bomb = deflate(bytes(64 << 20))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="more than"):
            max(map(len, inflate([bomb], 10 << 20)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_reading_from_a_stream_of_pieces() -> None:
    stream = BytesIO()
    for piece in encapsulated(FRAMES, offset_tables(LENGTHS).basic):
        stream.write(piece)
    assert index_over(stream.getvalue(), stored(9)).read(4).data == FRAMES[4] + b"\0"
