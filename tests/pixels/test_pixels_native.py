"""Native pixel data of every cell size, made by plain integer arithmetic."""

from typing import Any, Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_support import BIG, LITTLE, grey, index_over

from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import PixelDescription, describe, stored_values
from edgepacs.pixels.frames import FrameIndex

BYTES_ALLOCATED = (1, 2, 3, 4, 5, 8)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[PixelDescription, list[list[int]], bytes]:
    """A description, the cells of each frame in pixel order as unsigned numbers, and the value."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    samples, frames = draw(st.sampled_from((1, 3))), draw(st.integers(1, 3))
    size = draw(st.sampled_from(BYTES_ALLOCATED))
    stored = draw(st.integers(1, 8 * size))
    high = draw(st.integers(stored - 1, 8 * size - 1))
    planar = draw(st.integers(0, 1))
    syntax = draw(st.sampled_from((LITTLE, BIG)))
    description = describe(
        {
            "Rows": rows,
            "Columns": columns,
            "SamplesPerPixel": samples,
            "PhotometricInterpretation": "RGB" if samples == 3 else "MONOCHROME1",
            "PlanarConfiguration": planar if samples == 3 else None,
            "BitsAllocated": 8 * size,
            "BitsStored": stored,
            "HighBit": high,
            "PixelRepresentation": draw(st.integers(0, 1)),
            "NumberOfFrames": frames,
        },
        syntax,
        vr="OB",
    )
    count = rows * columns * samples
    cells = [
        draw(st.lists(st.integers(0, 256**size - 1), min_size=count, max_size=count))
        for _ in range(frames)
    ]
    order: Literal["little", "big"] = "little" if syntax == LITTLE else "big"
    value = b""
    by_plane = [i for plane in range(3) for i in range(plane, count, 3)]
    wire_order = by_plane if samples == 3 and planar == 1 else range(count)
    for frame in cells:
        value += b"".join(frame[i].to_bytes(size, order) for i in wire_order)
    return description, cells, value


def as_stored(cell: int, description: PixelDescription) -> int:
    stored = cell >> (description.high_bit + 1 - description.bits_stored)
    stored &= (1 << description.bits_stored) - 1
    if description.pixel_representation and stored >> (description.bits_stored - 1):
        stored -= 1 << description.bits_stored
    return stored


@settings(max_examples=150, deadline=None)
@given(pictures())
def test_any_native_picture(picture: tuple[PixelDescription, list[list[int]], bytes]) -> None:
    description, cells, value = picture
    index = index_over(value + b"\0" * (len(value) % 2), description)
    assert len(index) == len(cells)
    mask = (1 << description.bits_allocated) - 1
    for number, expected in enumerate(cells):
        encoded = index.read(number)
        array = decode_frame(encoded.data, description, first_bit=encoded.first_bit).array
        assert array.shape == description.shape
        assert array.dtype == description.dtype
        assert [int(cell) & mask for cell in array.ravel()] == expected
        found = [int(value) for value in stored_values(array, description).ravel()]
        assert found == [as_stored(cell, description) for cell in expected]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    frames=st.integers(1, 5),
    seed=st.integers(0, 99),
    syntax=st.sampled_from((LITTLE, BIG)),
    vr=st.sampled_from(("OB", "OW")),
)
def test_frames_of_single_bits_follow_without_gaps(**case: Any) -> None:
    shape = (case["frames"], case["rows"], case["columns"])
    bits = np.random.default_rng(case["seed"]).integers(0, 2, shape).astype(np.uint8)
    value = np.packbits(bits, bitorder="little").tobytes()
    value += b"\0" * (len(value) % 2)
    if (case["syntax"], case["vr"]) == (BIG, "OW"):
        value = np.frombuffer(value, "u2").byteswap().tobytes()
    description = describe(
        {
            "Rows": case["rows"],
            "Columns": case["columns"],
            "NumberOfFrames": case["frames"],
            "BitsAllocated": 1,
            "PhotometricInterpretation": "MONOCHROME2",
        },
        case["syntax"],
        vr=case["vr"],
    )
    index = index_over(value, description)
    for number, expected in enumerate(bits):
        encoded = index.read(number)
        frame = decode_frame(encoded.data, description, first_bit=encoded.first_bit)
        np.testing.assert_array_equal(frame.array, expected)


def test_big_endian_words_of_eight_bit_cells() -> None:
    """OW of 8-bit cells is a run of 16-bit words, whose bytes big endian exchanges."""
    values = {
        "Rows": 1,
        "Columns": 3,
        "NumberOfFrames": 2,
        "BitsAllocated": 8,
        "PhotometricInterpretation": "MONOCHROME2",
    }
    description = describe(values, BIG, vr="OW")
    index = index_over(bytes([2, 1, 4, 3, 6, 5]), description)
    found = [
        decode_frame(index.read(n).data, description, first_bit=index.read(n).first_bit)
        for n in (0, 1)
    ]
    assert [frame.array.ravel().tolist() for frame in found] == [[1, 2, 3], [4, 5, 6]]


def test_only_the_frame_asked_for_is_read() -> None:
    description = grey(64, 64, NumberOfFrames=10_000)
    asked: list[tuple[int, int]] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(length)

    FrameIndex(read_at, 64 * 64 * 2 * 10_000, description).read(9_999)
    assert asked == [(9_999 * 8192, 8192)]
