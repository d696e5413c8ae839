"""Finding frames in encapsulated pixel data."""

from io import BytesIO
from struct import pack

import pytest
from pixel_support import JPEG, RLE, grey, index_over, instance, recording, wrapped
from pydicom.encaps import encapsulate_extended, generate_frames

from edgepacs.errors import NotFound, Undecodable
from edgepacs.pixels.frames import (
    MAX_FRAGMENTS,
    ExtendedOffsetTable,
    FrameIndex,
    reader,
)

ITEM = b"\xfe\xff\x00\xe0"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def jpegs(count: int, size: int = 40) -> list[bytes]:
    """Frames that begin and end like JPEG, each different and of even length."""
    return [
        b"\xff\xd8\xff\xe0" + bytes([n % 250]) * (size + 2 * n) + b"\xff\xd9" for n in range(count)
    ]


def item(value: bytes) -> bytes:
    return ITEM + pack("<I", len(value)) + value


def jpeg_index(
    value: bytes, frames: int, extended: ExtendedOffsetTable | None = None
) -> FrameIndex:
    return index_over(value, grey(8, 8, 8, JPEG + "50", NumberOfFrames=frames), extended=extended)


@pytest.mark.parametrize("has_bot", [True, False])
@pytest.mark.parametrize("fragments", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_frames_and_fragments(count: int, fragments: int, has_bot: bool) -> None:  # noqa: FBT001
    frames = jpegs(count)
    value = wrapped(frames, has_bot=has_bot, fragments_per_frame=fragments)
    index = jpeg_index(value, count)
    assert len(index) == count
    for number, frame in enumerate(frames):
        assert len(index.locate(number).fragments) == fragments
        assert index.read(number).data == frame


def test_fragments_told_apart_by_how_frames_end() -> None:
    """Frames whose beginnings cannot be told: only the end markers show."""
    value = item(b"") + item(b"abcd") + item(b"ef\xff\xd9") + item(b"gh\xff\xd9\0\0") + END
    index = jpeg_index(value, 2)
    assert [index.read(n).data for n in (0, 1)] == [b"abcdef\xff\xd9", b"gh\xff\xd9\0\0"]


def test_extended_offset_table() -> None:
    frames = jpegs(5)
    value, offsets, lengths = encapsulate_extended(frames)
    index = jpeg_index(value, 5, ExtendedOffsetTable(offsets, lengths))
    assert [index.read(n).data for n in range(5)] == frames


def test_extended_offset_table_leaves_out_the_padding() -> None:
    value = item(b"") + item(b"\xff\xd8\xff\xd9x\0") + END
    index = jpeg_index(value, 1, ExtendedOffsetTable(pack("<Q", 0), pack("<Q", 5)))
    assert index.read(0).data == b"\xff\xd8\xff\xd9x"


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_a_table_spares_reading_the_rest(table: str) -> None:
    frames = jpegs(400, 100_000)
    extended = None
    if table == "basic":
        value = wrapped(frames, has_bot=True)
    else:
        value, offsets, lengths = encapsulate_extended(frames)
        extended = ExtendedOffsetTable(offsets, lengths)
    read_at, asked = recording(value)
    description = grey(8, 8, 8, JPEG + "50", NumberOfFrames=400)
    index = FrameIndex(read_at, len(value), description, extended)
    assert index.read(399).data == frames[399]
    assert sum(length for _, length in asked) < 5 * 100_000


def test_without_a_table_only_the_edges_are_read() -> None:
    frames = jpegs(3, 3_000_000)
    value = wrapped(frames, fragments_per_frame=2)
    read_at, asked = recording(value)
    FrameIndex(read_at, len(value), grey(8, 8, 8, JPEG + "50", NumberOfFrames=3))
    assert sum(length for _, length in asked) < 1_000_000


def test_real_cine_loop_matches_pydicom() -> None:
    dataset = instance("color3d_jpeg_baseline.dcm")
    value = dataset.PixelData
    index = jpeg_index(value, 120)
    for number, frame in enumerate(generate_frames(value, number_of_frames=120)):
        assert index.read(number).data == frame


def test_video_is_one_stream() -> None:
    value = item(b"") + item(b"stream") + item(b"of video") + END
    index = index_over(value, grey(8, 8, 8, JPEG + "102", NumberOfFrames=500))
    assert len(index) == 1
    assert index.read(0).data == b"streamof video"


def test_a_delimiter_inside_a_fragment_does_not_end_it() -> None:
    inner = b"\xff\xd8" + END + b"\xff\xd9"
    assert jpeg_index(item(b"") + item(inner) + END, 1).read(0).data == inner


def test_a_missing_delimiter_right_after_the_last_fragment() -> None:
    frame = jpegs(1)[0]
    assert jpeg_index(item(b"") + item(frame), 1).read(0).data == frame


@pytest.mark.parametrize("offsets", [(0, 0), (4, 60), (0, 60, 70)])
def test_a_table_that_is_none_is_not_used(offsets: tuple[int, ...]) -> None:
    frames = jpegs(2)
    value = item(pack(f"<{len(offsets)}I", *offsets)) + item(frames[0]) + item(frames[1])
    index = jpeg_index(value + END, 2)
    assert [index.read(n).data for n in (0, 1)] == frames


def test_a_frame_there_is_none_of() -> None:
    index = jpeg_index(wrapped(jpegs(2)), 2)
    for number in (-1, 2, 1 << 40):
        with pytest.raises(NotFound):
            index.locate(number)


def test_reading_from_a_stream() -> None:
    frames = jpegs(2)
    value = wrapped(frames)
    description = grey(8, 8, 8, JPEG + "50", NumberOfFrames=2)
    index = FrameIndex(reader(BytesIO(b"before" + value), 6), len(value), description)
    assert index.read(1).data == frames[1]


FRAMES = jpegs(2)
FIRST = len(item(FRAMES[0]))
HOSTILE = {
    "nothing": b"",
    "no fragments": item(b"") + END,
    "table only, then silence": item(b""),
    "not an item": b"\x10\0\x10\0\0\0\0\0" * 4,
    "half an item tag": item(b"") + ITEM[:3],
    "table runs past the end": ITEM + pack("<I", 400) + b"\0" * 8,
    "table of undefined length": ITEM + b"\xff" * 4 + item(FRAMES[0]) + END,
    "table not of words": item(b"\0\0\0") + item(FRAMES[0]) + item(FRAMES[1]) + END,
    "table beyond the end": item(pack("<2I", 0, 9999)) + item(FRAMES[0]) + item(FRAMES[1]) + END,
    "fragment runs past the end": item(b"") + item(FRAMES[0]) + ITEM + pack("<I", 9999) + b"ab",
    "fragment of undefined length": item(b"") + ITEM + b"\xff" * 4 + FRAMES[0] + END,
    "fewer fragments than frames": item(b"") + item(FRAMES[0]) + END,
    "junk between fragments": item(b"") + item(FRAMES[0]) + b"junkjunk" + item(FRAMES[1]) + END,
    "fragments that show no frames": item(b"") + item(b"ab") + item(b"cd") + item(b"ef") + END,
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("uid", [JPEG + "50", RLE])
def test_hostile_encapsulation(value: bytes, uid: str) -> None:
    with pytest.raises(Undecodable):
        index_over(value, grey(8, 8, 8, uid, NumberOfFrames=2)).read(1)


@pytest.mark.bad_input(52)
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("offset", [9999, 0xFFFFFFFF, FIRST + len(item(FRAMES[1])) + 1])
def test_basic_table_beyond_the_end(frames: int, offset: int) -> None:
    table = pack("<2I", 0, offset)[-4 * frames :]
    value = item(table) + item(FRAMES[0]) + item(FRAMES[1]) + END
    with pytest.raises(Undecodable, match="beyond"):
        jpeg_index(value, frames).read(frames - 1)


@pytest.mark.parametrize("offset", [FIRST - 2, FIRST + 6, 1])
def test_basic_table_into_the_middle_of_a_fragment(offset: int) -> None:
    value = item(pack("<2I", 0, offset)) + item(FRAMES[0]) + item(FRAMES[1]) + END
    index = jpeg_index(value, 2)
    for number in (0, 1):
        with pytest.raises(Undecodable):
            index.read(number)


@pytest.mark.bad_input(52)
@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ((0,), (len(FRAMES[0]),)),
        ((0, 1 << 63), (len(FRAMES[0]), len(FRAMES[1]))),
        ((0, FIRST), (len(FRAMES[0]), (1 << 64) - 1)),
        ((0, FIRST), (len(FRAMES[0]), 4)),
        ((0, FIRST - 8), (len(FRAMES[0]), len(FRAMES[1]))),
        ((0, FIRST + len(item(FRAMES[1]))), (len(FRAMES[0]), 0)),
    ],
)
def test_lying_extended_table(offsets: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    value = item(b"") + item(FRAMES[0]) + item(FRAMES[1]) + END
    table = ExtendedOffsetTable(
        pack(f"<{len(offsets)}Q", *offsets), pack(f"<{len(lengths)}Q", *lengths)
    )
    with pytest.raises(Undecodable):
        jpeg_index(value, 2, table).read(1)


def test_a_reader_that_gives_less_than_its_length() -> None:
    value = wrapped(FRAMES)
    description = grey(8, 8, 8, JPEG + "50", NumberOfFrames=2)
    index = FrameIndex(lambda at, n: value[:-30][at : at + n], len(value), description)
    with pytest.raises(Undecodable):
        index.read(1)


def test_a_million_empty_fragments_end_in_bounded_time() -> None:
    value = item(b"") * (MAX_FRAGMENTS + 2)
    with pytest.raises(Undecodable, match="fragments"):
        jpeg_index(value, 1)


def test_native_shorter_than_announced() -> None:
    index = index_over(bytes(100), grey(4, 4, 16, NumberOfFrames=1 << 30))
    assert index.read(2).data == bytes(32)
    with pytest.raises(Undecodable):
        index.read(3)
