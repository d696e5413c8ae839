"""Which transfer syntax at rest, and which to a peer."""

from typing import Any

import numpy as np
import pytest
from pixel_support import described, gradient, grey, index_of, instance

from edgepacs.pixels.choice import MAX_DEFLATED, MIN_BYTES, choose, out_choices
from edgepacs.pixels.description import EXPLICIT_LITTLE, IMPLICIT_LITTLE, PixelDescription
from edgepacs.pixels.syntaxes import (
    DEFLATED_DATA_SET,
    DEFLATED_FRAME,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    JPEG_XL,
    RLE,
)


def chosen(name: str) -> str | None:
    dataset = instance(name)
    description = described(dataset)
    return choose(description, index_of(dataset, description).read(0).data)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("693_UNCR.dcm", JPEG_LS),  # CT
        ("MR2_UNCR.dcm", JPEG_LS),
        ("RG3_UNCR.dcm", JPEG_LS),  # CR
        ("US1_UNCI.dcm", HTJ2K),  # RGB with speckle
        ("US1_UNCR.dcm", DEFLATED_DATA_SET),  # RGB, mostly screen
        ("SC_rgb_jpeg_dcmd.dcm", JPEG_LS),  # RGB, neither
        ("examples_palette.dcm", JPEG_LS),  # a picture through a palette
        ("gdcm-US-ALOKA-16.dcm", DEFLATED_DATA_SET),  # a screen of indices
        ("mlut_18.dcm", DEFLATED_DATA_SET),  # flat, 66 times smaller
        ("SC_rgb.dcm", DEFLATED_DATA_SET),
        ("liver.dcm", DEFLATED_DATA_SET),  # 1 bit
        ("rtdose.dcm", None),  # 32 bit, 10 x 10
        ("MR_small_padded.dcm", JPEG_LS),  # 64 x 64
    ],
)
def test_real_instances(name: str, expected: str | None) -> None:
    assert chosen(name) == expected


def noise(description: PixelDescription) -> bytes:
    return np.random.default_rng(2).bytes(description.samples * description.bits_allocated // 8)


def test_what_nothing_makes_smaller_stays_native() -> None:
    for description in (
        grey(128, 128, 16),
        grey(128, 128, 32),
        grey(128, 128, 64, BitsStored=None),
        grey(128, 128, 8, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        grey(128, 128, 8, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422"),
    ):
        frame = noise(description)
        if "422" in description.photometric_interpretation:
            frame = frame[: 2 * 128 * 128]
        assert choose(description, frame) is None


def test_sides_under_32_meet_no_codec() -> None:
    description = grey(31, 600, 16)
    smooth = (np.arange(31 * 600) // 7).astype("<u2").tobytes()
    assert len(smooth) > MIN_BYTES
    assert choose(description, smooth) == DEFLATED_DATA_SET
    assert choose(grey(32, 600, 16), gradient(32, 600).tobytes()) is not None


def test_small_frames_stay_native() -> None:
    assert choose(grey(31, 33, 8), bytes(31 * 33)) is None
    assert choose(grey(32, 32, 8), bytes(32 * 32)) is not None


def test_what_is_large_when_inflated_is_not_deflated() -> None:
    pattern = np.random.default_rng(4).integers(0, 256, (16, 16), dtype=np.uint8)
    frame = np.tile(pattern, (32, 32)).tobytes()
    fits = grey(512, 512, 8, NumberOfFrames=MAX_DEFLATED >> 18)
    assert choose(fits, frame) == DEFLATED_DATA_SET
    assert choose(grey(512, 512, 8, NumberOfFrames=(MAX_DEFLATED >> 18) + 1), frame) == JPEG_LS


def test_jpeg_xl_only_where_it_is_asked_for() -> None:
    dataset = instance("RG3_UNCR.dcm")
    description = described(dataset)
    frame = index_of(dataset, description).read(0).data
    assert choose(description, frame) == JPEG_LS
    assert choose(description, frame, extra=(JPEG_XL,)) == JPEG_XL


ALL = {
    JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, DEFLATED_DATA_SET, RLE, EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("accepted", "stored", "expected"),
    [
        ({JPEG_LS, JPEG_2000, EXPLICIT_LITTLE}, JPEG_LS, (JPEG_LS, JPEG_2000, EXPLICIT_LITTLE)),
        ({RLE, JPEG_LOSSLESS, IMPLICIT_LITTLE}, HTJ2K, (JPEG_LOSSLESS, RLE, IMPLICIT_LITTLE)),
        ({EXPLICIT_LITTLE, IMPLICIT_LITTLE}, JPEG_LS, (EXPLICIT_LITTLE, IMPLICIT_LITTLE)),
        ({IMPLICIT_LITTLE}, IMPLICIT_LITTLE, (IMPLICIT_LITTLE,)),
        ({JPEG_2000}, EXPLICIT_LITTLE, (JPEG_2000,)),
        ({"1.2.3"}, JPEG_LS, ()),
        (set(), JPEG_LS, ()),
        ({EXPLICIT_LITTLE}, "1.2.840.10008.1.2.4.102", ()),  # a video cannot be decoded
        ({"1.2.840.10008.1.2.4.102"}, "1.2.840.10008.1.2.4.102", ("1.2.840.10008.1.2.4.102",)),
        ({"1.2.3", EXPLICIT_LITTLE}, "1.2.3", ("1.2.3",)),  # unknown here: as it is or not
        (ALL - {DEFLATED_DATA_SET}, "1.2.840.10008.1.2.4.50",
         (JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, RLE, EXPLICIT_LITTLE, IMPLICIT_LITTLE)),
    ],
)  # fmt: skip
def test_to_a_peer_as_stored_or_the_smallest_it_takes(
    accepted: set[str], stored: str, expected: tuple[str, ...]
) -> None:
    assert out_choices(accepted, stored) == expected


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (grey(16, 16, 16), (JPEG_LS, JPEG_LOSSLESS, DEFLATED_DATA_SET, RLE)),
        (grey(64, 64, 32), (DEFLATED_DATA_SET, RLE)),
        (grey(64, 64, 1), (DEFLATED_DATA_SET,)),
        (grey(512, 512, 16, NumberOfFrames=500),
         (JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, RLE)),
    ],
)  # fmt: skip
def test_to_a_peer_only_what_the_frames_allow(
    description: PixelDescription, expected: tuple[Any, ...]
) -> None:
    found = out_choices(ALL, DEFLATED_FRAME, description)
    assert found == (*expected, EXPLICIT_LITTLE, IMPLICIT_LITTLE)
