"""Pixel data that lies, is cut short or wants to exhaust the machine: Undecodable, always."""

import random
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from struct import pack
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pixel_support import (
    DEFLATED_FRAME,
    JPEG,
    LITTLE,
    RLE,
    colour,
    decoded,
    described,
    gradient,
    grey,
    index_of,
    instance,
)

from edgepacs.errors import NotFound, Undecodable
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import SampleKind, describe
from edgepacs.pixels.syntaxes import TABLE

GOOD: Mapping[str, Any] = {
    "Rows": 4,
    "Columns": 4,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "NumberOfFrames": "1",
}


@pytest.mark.bad_input(48, 49, 50)
@pytest.mark.parametrize(
    "wrong",
    [
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 0},
        {"Columns": None},
        {"Rows": -1},
        {"Rows": 1 << 40},
        {"NumberOfFrames": str(2**31)},
        {"NumberOfFrames": "-1"},
        {"NumberOfFrames": "1A"},
        {"NumberOfFrames": ["1", "2"]},
        {"BitsStored": 17},
        {"BitsStored": 0},
        {"BitsAllocated": 9},
        {"BitsAllocated": 0},
        {"BitsAllocated": 1 << 31},
        {"BitsAllocated": None},
        {"HighBit": 255},
        {"HighBit": 3},
        {"PixelRepresentation": 7},
        {"SamplesPerPixel": 255},
        {"SamplesPerPixel": 3},
        {"SamplesPerPixel": 0},
        {"PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": ""},
        {"PhotometricInterpretation": None},
        {"PlanarConfiguration": 2},
        {"Rows": b"\x04\x00"},
        {"Rows": float("inf")},
    ],
)
def test_attributes_that_cannot_be(wrong: dict[str, Any]) -> None:
    assert describe(GOOD, LITTLE).bits_stored == 12
    with pytest.raises(Undecodable):
        describe({**GOOD, **wrong}, LITTLE)


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "waveform_ecg.dcm", "reportsi.dcm"])
def test_objects_without_pixels(name: str) -> None:
    with pytest.raises(NotFound, match="no pixels"):
        describe(instance(name), LITTLE)


def test_what_may_be_missing() -> None:
    few = {k: GOOD[k] for k in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")}
    found = describe({**few, "NumberOfFrames": "0"}, LITTLE)
    assert (found.bits_stored, found.high_bit, found.number_of_frames) == (16, 15, 1)
    assert describe({**few, "BitsAllocated": 32}, LITTLE).sample_kind is SampleKind.FLOAT


def test_an_attribute_that_raises_when_read() -> None:
    class Broken(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            if key == "Rows":
                raise NotImplementedError
            return super().get(key, default)

    with pytest.raises(Undecodable, match="Rows"):
        describe(Broken(GOOD), LITTLE)


def test_unknown_and_undecoded_transfer_syntaxes() -> None:
    with pytest.raises(Undecodable, match="unknown"):
        decode_frame(bytes(32), grey(4, 4, 16, "1.2.3.4"))
    with pytest.raises(Undecodable, match="not decoded"):
        decode_frame(bytes(32), grey(4, 4, 16, JPEG + "102"))


@pytest.mark.bad_input(47)
@pytest.mark.parametrize("uid", [uid for uid, row in TABLE.items() if row.encapsulated])
def test_syntax_that_lies(uid: str) -> None:
    """Every encapsulated syntax over native bytes, and over the codestreams of the others."""
    picture = gradient(16, 16, 8)
    description = grey(16, 16, 8, uid)
    others = [
        (b"4.5", imagecodecs.jpeg8_encode(picture)),
        (b"4.8", imagecodecs.jpegls_encode(picture)),
        (b"4.9", imagecodecs.jpeg2k_encode(picture, reversible=True, codecformat="j2k")),
        (b"4.11", imagecodecs.jpegxl_encode(picture, lossless=True)),
    ]
    decoder = TABLE[uid].decoder
    for data in (picture.tobytes(), bytes(256), b"", b"\xff\xd8\xff\xd9", *(d for _, d in others)):
        try:
            array = decode_frame(data, description).array
        except Undecodable:
            continue
        assert decoder is not None
        # What does decode is what the syntax names: the same family, or plain bytes.
        assert array.shape == (16, 16)
        if uid != "1.2.840.10008.1.2.1.98":
            assert np.abs(array.astype(int) - picture).max() < 60


def rle_frame(
    *segments: bytes, offsets: list[int] | None = None, count: int | None = None
) -> bytes:
    starts, position = [], 64
    for segment in segments:
        starts.append(position)
        position += len(segment)
    starts = offsets or starts
    number = len(segments) if count is None else count
    return pack("<16I", number, *starts, *[0] * (15 - len(starts))) + b"".join(segments)


@pytest.mark.bad_input(55)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        rle_frame(bytes([15, *range(16)]))[:63],
        rle_frame(bytes([0x81 + 100, 7]) + bytes([0x81, 7])),  # overrun by a run
        rle_frame(bytes([31, *range(32)])),  # overrun by a literal
        rle_frame(bytes([14, *range(15)])),  # one byte short
        rle_frame(bytes([15, *range(10)])),  # the literal runs past the segment
        rle_frame(bytes([15, *range(16)]), offsets=[10]),
        rle_frame(bytes([15, *range(16)]), offsets=[0xFFFFFFFF]),
        rle_frame(bytes([15, *range(16)]), count=0),
        rle_frame(bytes([15, *range(16)]), count=0xFFFFFFFF),
        rle_frame(bytes([15, *range(16)]), bytes([15, *range(16)])),
        rle_frame(bytes([15, *range(16)]), b"", offsets=[81, 64]),
    ],
)
def test_broken_rle(data: bytes) -> None:
    description = grey(4, 4, 8, RLE)
    good = decode_frame(rle_frame(bytes([15, *range(16)]) + b"\0"), description)
    assert good.array.ravel().tolist() == list(range(16))
    with pytest.raises(Undecodable):
        decode_frame(data, description)
    with pytest.raises(Undecodable, match="segment is cut short"):
        decode_frame(rle_frame(bytes([14, *range(15)])), description)


@pytest.mark.parametrize(
    ("suffix", "encode"),
    [
        ("50", lambda p: imagecodecs.jpeg8_encode((p >> 4).astype(np.uint8))),
        ("70", lambda p: imagecodecs.jpeg8_encode(p, lossless=True, bitspersample=12)),
        ("80", imagecodecs.jpegls_encode),
        ("90", lambda p: imagecodecs.jpeg2k_encode(p, reversible=True, codecformat="j2k")),
        ("201", imagecodecs.htj2k_encode),
        ("110", lambda p: imagecodecs.jpegxl_encode(p, lossless=True)),
    ],
)
def test_cut_anywhere(suffix: str, encode: Callable[[Any], bytes]) -> None:
    picture = gradient(48, 64, 12)
    data = bytes(encode(picture))
    description = grey(48, 64, 16, JPEG + suffix)
    decode_frame(data, description)
    for length in [*range(60), *range(60, len(data) - 3, max(1, len(data) // 40))]:
        with pytest.raises(Undecodable):
            decode_frame(data[:length], description)


def test_native_cut_short() -> None:
    with pytest.raises(Undecodable, match="short"):
        decode_frame(bytes(31), grey(4, 4, 16))
    with pytest.raises(Undecodable):
        decoded(instance("MR_truncated.dcm"))


@pytest.mark.bad_input(54)
@pytest.mark.parametrize("suffix", ["50", "70", "80", "90", "201", "110"])
def test_a_codestream_larger_than_its_data_set(suffix: str) -> None:
    """A bomb is told by its header: nothing of its size is ever allocated."""
    picture = np.zeros((4096, 4096), np.uint8)
    data = {
        "50": lambda: imagecodecs.jpeg8_encode(picture),
        "70": lambda: imagecodecs.jpeg8_encode(picture, lossless=True),
        "80": lambda: imagecodecs.jpegls_encode(picture),
        "90": lambda: imagecodecs.jpeg2k_encode(picture, reversible=True, codecformat="j2k"),
        "201": lambda: imagecodecs.htj2k_encode(picture),
        "110": lambda: imagecodecs.jpegxl_encode(picture, lossless=True),
    }[suffix]()
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="another size"):
            decode_frame(data, grey(64, 64, 8, JPEG + suffix))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def j2k_header(rows: int, columns: int, *, layers: int, style: bytes, tile: int = 0) -> bytes:
    """A JPEG 2000 main header and an empty tile-part (T.800 A.5.1, A.6.1, A.4.2)."""
    size = pack(
        ">HHHHIIIIIIIIHBBB",
        *(0xFF4F, 0xFF51, 41, 0, columns, rows, 0, 0, tile or columns, tile or rows, 0, 0, 1),
        *(7, 1, 1),
    )
    scod = 1 if len(style) > 5 else 0
    cod = pack(">HHBBHB", 0xFF52, 7 + len(style), scod, 0, layers, 0) + style
    part = pack(">HHHIBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93)
    return size + cod + part + b"\xff\xd9"


@pytest.mark.parametrize(
    "data",
    [
        j2k_header(8192, 8192, layers=1, style=bytes([5, 4, 4, 0, 1, *[0x00] * 6])),  # precincts
        j2k_header(8192, 8192, layers=65535, style=bytes([5, 4, 4, 0, 1, *[0x55] * 6])),
        j2k_header(8192, 8192, layers=1, style=bytes([5, 4, 4, 0, 1]), tile=1),
        j2k_header(8192, 8192, layers=1, style=bytes([5, 0, 0, 0, 1])),  # code-blocks of 4 x 4
        j2k_header(8192, 8192, layers=1, style=bytes([40, 4, 4, 0, 1])),
    ],
)
def test_jpeg_2000_bookkeeping_bombs(data: bytes) -> None:
    with pytest.raises(Undecodable, match=r"can be real|coding style"):
        decode_frame(data, grey(8192, 8192, 8, JPEG + "90"))


def test_jpeg_2000_without_all_its_tiles() -> None:
    """OpenJPEG would take what is missing for grey."""
    data = j2k_header(64, 64, layers=1, style=bytes([1, 4, 4, 0, 1]), tile=32)
    with pytest.raises(Undecodable, match="lacks tiles"):
        decode_frame(data, grey(64, 64, 8, JPEG + "90"))


def test_jpeg_of_a_thousand_scans() -> None:
    data = imagecodecs.jpeg8_encode(gradient(16, 16, 8))
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + b"\0" * 4
    with pytest.raises(Undecodable, match="scans"):
        decode_frame(data[:-2] + scan * 1000 + b"\xff\xd9", grey(16, 16, 8, JPEG + "55"))


def test_a_frame_that_inflates_without_end() -> None:
    deflater = zlib.compressobj(9, wbits=-15)
    data = deflater.compress(bytes(50_000_000)) + deflater.flush()
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable, match="beyond"):
            decode_frame(data, grey(64, 64, 8, DEFLATED_FRAME))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    for junk in (b"", b"\xff" * 40, data[:20]):
        with pytest.raises(Undecodable):
            decode_frame(junk, grey(512, 512, 8, DEFLATED_FRAME))


def test_more_channels_or_bits_than_announced() -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(Undecodable, match="Samples"):
        decode_frame(imagecodecs.jpeg8_encode(rgb), grey(16, 16, 8, JPEG + "50"))
    deep = imagecodecs.jpegls_encode(gradient(16, 16, 12))
    with pytest.raises(Undecodable, match="Bits"):
        decode_frame(deep, grey(16, 16, 8, JPEG + "80"))
    rgba = imagecodecs.jpegxl_encode(np.zeros((16, 16, 4), np.uint8), lossless=True)
    with pytest.raises(Undecodable):
        decode_frame(rgba, colour(16, 16, JPEG + "110"))


def test_jpeg_xl_animation() -> None:
    movie = imagecodecs.jpegxl_encode(np.zeros((3, 16, 16, 3), np.uint8), lossless=True)
    with pytest.raises(Undecodable, match="animation"):
        decode_frame(movie, colour(16, 16, JPEG + "110"))


FUZZED = [
    "MR_small_jp2klossless.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "MR_small_RLE.dcm",
]


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_frames(name: str) -> None:
    dataset = instance(name)
    description = described(dataset)
    good = index_of(dataset, description).read(0).data
    rng = random.Random(name)
    refused = 0
    for _ in range(250):
        data = bytearray(good)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((150, 1 << 30))))] = rng.randrange(256)
        try:
            assert decode_frame(bytes(data), description).array.shape == description.shape
        except Undecodable:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("suffix", ["201", "110"])
def test_damaged_frames_of_the_newer_codecs(suffix: str) -> None:
    picture = gradient(64, 64, 12)
    encode = imagecodecs.htj2k_encode if suffix == "201" else imagecodecs.jpegxl_encode
    good = bytes(encode(picture) if suffix == "201" else encode(picture, lossless=True))
    rng = random.Random(suffix)
    refused = 0
    for _ in range(250):
        data = bytearray(good)
        data[rng.randrange(min(len(data), rng.choice((120, 1 << 30))))] = rng.randrange(256)
        try:
            decode_frame(bytes(data), grey(64, 64, 16, JPEG + suffix))
        except Undecodable:
            refused += 1
    assert refused > 20
