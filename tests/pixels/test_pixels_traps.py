"""Known ways to lose pixels, or the reader of them: each has happened to somebody."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from struct import unpack_from
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pixel_support import decoded, described, gradient, grey, instance
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from edgepacs.errors import Undecodable
from edgepacs.pixels import encode, syntaxes
from edgepacs.pixels.codestreams import jpeg_2000_header, jpeg_header
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import PixelDescription
from edgepacs.pixels.encode import (
    Unencodable,
    encode_frame,
    encode_verified,
    encoded_as,
    obstacle,
    restore_frame,
)
from edgepacs.pixels.native import native_as, native_cells, native_frame
from edgepacs.pixels.syntaxes import (
    DEFLATED_FRAME,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    JPEG_XL,
    RLE,
    TABLE,
)

ENCODED = [row.uid for row in TABLE.values() if row.encoder]
CODECS = [uid for uid in ENCODED if uid not in (RLE, DEFLATED_FRAME)]


def rgb(rows: int = 40, columns: int = 50, **others: Any) -> PixelDescription:
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsStored": 8}
    return grey(rows, columns, 8, **{**colour, **others})


def noise(description: PixelDescription, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(description.samples * description.bits_allocated // 8)


def test_rle_of_colour_by_plane_reads_as_the_same_colours() -> None:
    """pydicom 3.0.2 writes colour by plane as if it were by pixel, and says nothing."""
    description = rgb(PlanarConfiguration=1)
    frame = noise(description)
    data = encode_verified(frame, description, RLE)
    dataset = Dataset()
    dataset.Rows, dataset.Columns = description.rows, description.columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.PlanarConfiguration = encoded_as(description, RLE).planar_configuration
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 8, 8, 0
    dataset.PixelData = encapsulate([data])
    theirs, _ = get_decoder(RLELossless).as_array(dataset, raw=True, decoding_plugin="pydicom")
    np.testing.assert_array_equal(theirs, native_cells(frame, description))


@pytest.mark.parametrize("uid", ENCODED)
@pytest.mark.parametrize("planar", [0, 1])
def test_planar_configuration_is_normalised_and_comes_back(uid: str, planar: int) -> None:
    description = rgb(PlanarConfiguration=planar)
    frame = noise(description)
    data = encode_verified(frame, description, uid)
    stored = encoded_as(description, uid)
    assert stored.planar_configuration == (planar if uid in (RLE, DEFLATED_FRAME) else 0)
    by_pixel = decode_frame(data, stored).array
    np.testing.assert_array_equal(by_pixel, native_cells(frame, description))
    assert restore_frame(data, description, uid) == frame


@pytest.mark.parametrize("uid", ENCODED)
def test_overlays_in_unused_bits_are_kept(uid: str) -> None:
    """Encoders that trust Bits Stored drop what stands above it."""
    cells = gradient(bits=12).astype("<u2") | (gradient(bits=4).astype("<u2") << 12)
    description = grey(48, 64, 16, BitsStored=12)
    data = encode_verified(cells.tobytes(), description, uid)
    assert restore_frame(data, description, uid) == cells.tobytes()


@pytest.mark.parametrize("name", ["examples_overlay.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm"])
@pytest.mark.parametrize("uid", ENCODED)
def test_real_overlays_are_kept(uid: str, name: str) -> None:
    dataset = instance(name)
    description = described(dataset)
    frame = dataset.PixelData[: description.samples * description.bits_allocated // 8]
    assert restore_frame(encode_verified(frame, description, uid), description, uid) == frame


@pytest.mark.parametrize("uid", ENCODED)
@pytest.mark.parametrize("high", [11, 13, 15])
def test_values_that_do_not_begin_at_the_lowest_bit_are_kept(uid: str, high: int) -> None:
    description = grey(48, 64, 16, BitsStored=10, HighBit=high)
    frame = (gradient(bits=10).astype("<u2") << (high - 9)).tobytes()
    encode_verified(frame, description, uid)


@pytest.mark.parametrize("uid", ENCODED)
def test_encoding_changes_nothing_but_what_it_must(uid: str) -> None:
    """`compress()` gives the instance a new UID; two attributes can change here."""
    allowed = {"transfer_syntax_uid", "photometric_interpretation", "planar_configuration"}
    for description in (rgb(PlanarConfiguration=1), grey(40, 50, 16, BitsStored=12)):
        said = encoded_as(description, uid)
        changed = {
            one.name
            for one in fields(description)
            if getattr(said, one.name) != getattr(description, one.name)
        }
        assert changed <= allowed
    meaning = encoded_as(rgb(), uid).photometric_interpretation
    assert meaning == ("YBR_RCT" if uid in (HTJ2K, JPEG_2000) else "RGB")


def test_rle_of_16_allocated_and_8_stored_has_two_segments() -> None:
    """pylibjpeg-rle makes one of it, which nobody can decode."""
    description = grey(48, 64, 16, BitsStored=8)
    frame = gradient(bits=8).astype("<u2").tobytes()
    data = encode_verified(frame, description, RLE)
    assert unpack_from("<I", data) == (2,)


@pytest.mark.parametrize("allocated", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("samples", [1, 3])
def test_rle_has_a_segment_for_each_byte_up_to_fifteen(allocated: int, samples: int) -> None:
    colour = {"SamplesPerPixel": samples, "PhotometricInterpretation": "RGB"} if samples > 1 else {}
    description = grey(7, 9, allocated, **{"BitsStored": allocated, **colour})
    count = samples * allocated // 8
    if count > 15:
        assert "15" in obstacle(description, RLE)
        return
    data = encode_verified(noise(description), description, RLE)
    number, *offsets = unpack_from("<16I", data)
    assert number == count
    assert offsets[0] == 64
    assert len(data) % 2 == 0
    assert all(offset % 2 == 0 for offset in offsets)


@pytest.mark.parametrize("uid", [JPEG_2000, HTJ2K])
@pytest.mark.parametrize(("rows", "columns"), [(31, 200), (200, 31), (1, 1)])
def test_sides_under_32_are_not_for_openjpeg(uid: str, rows: int, columns: int) -> None:
    description = grey(rows, columns, 16)
    assert "32" in obstacle(description, uid)
    with pytest.raises(Unencodable, match="32"):
        encode_frame(noise(description), description, uid)
    smallest = grey(32, 32, 16)
    encode_verified(noise(smallest), smallest, uid)


@pytest.mark.parametrize(("rows", "columns"), [(5, 90), (90, 5), (1, 1)])
def test_sides_under_6_are_not_for_jpeg_ls(rows: int, columns: int) -> None:
    assert "6" in obstacle(grey(rows, columns, 16), JPEG_LS)
    smallest = grey(6, 6, 16)
    encode_verified(noise(smallest), smallest, JPEG_LS)


@pytest.mark.parametrize("stored", [9, 12, 15])
@pytest.mark.parametrize("uid", [JPEG_LS, JPEG_LOSSLESS])
def test_signed_samples_are_encoded_in_16_bits_where_the_codec_knows_no_sign(
    uid: str, stored: int
) -> None:
    """With a precision of Bits Stored other readers lose the sign."""
    description = grey(48, 64, 16, BitsStored=stored, PixelRepresentation=1)
    cells = gradient(bits=stored).astype("<i2") - (1 << stored - 1)
    assert cells.min() < 0
    data = encode_verified(cells.tobytes(), description, uid)
    assert jpeg_header(data).precision == 16
    # A reader that takes the cells as they are, without looking at Bits Stored:
    read = imagecodecs.jpegls_decode if uid == JPEG_LS else imagecodecs.ljpeg_decode
    np.testing.assert_array_equal(read(data).view(np.int16), cells)


@pytest.mark.parametrize("uid", [JPEG_2000, HTJ2K])
def test_signed_samples_are_signed_in_jpeg_2000(uid: str) -> None:
    description = grey(48, 64, 16, BitsStored=12, PixelRepresentation=1)
    cells = gradient(bits=12).astype("<i2") - 2048
    assert jpeg_2000_header(encode_verified(cells.tobytes(), description, uid)).signed


def test_signed_samples_without_sign_extension_are_kept() -> None:
    description = grey(48, 64, 16, BitsStored=12, PixelRepresentation=1)
    frame = gradient(bits=12).astype("<u2").tobytes()  # negative values, zeros above
    for uid in ENCODED:
        encode_verified(frame, description, uid)


@pytest.mark.parametrize("allocated", [24, 32, 64])
@pytest.mark.parametrize("uid", CODECS)
def test_cells_of_more_than_16_bits_are_refused(uid: str, allocated: int) -> None:
    """The JPEG 2000 binding keeps 26 bits of 32 and calls it lossless."""
    assert "Bits Allocated" in obstacle(grey(48, 64, allocated), uid)


def test_the_jpeg_2000_binding_is_still_lossy_at_32_bits() -> None:
    """If this fails the row of the table may take 32 bits."""
    cells = np.random.default_rng(3).integers(0, 1 << 32, (64, 64), np.uint32)
    data = imagecodecs.jpeg2k_encode(cells, reversible=True, codecformat="j2k")
    assert not np.array_equal(imagecodecs.jpeg2k_decode(data), cells)


@pytest.mark.parametrize("uid", [*CODECS, RLE])
def test_floating_point_and_single_bits_are_refused(uid: str) -> None:
    assert "floating" in obstacle(grey(48, 64, 32, BitsStored=None), uid)
    assert "Bits Allocated" in obstacle(grey(48, 64, 1), uid)


@pytest.mark.parametrize("uid", CODECS)
def test_subsampled_and_unknown_colour_is_refused(uid: str) -> None:
    for meaning in ("YBR_FULL_422", "YBR_PARTIAL_422", "YBR_RCT", "HSV"):
        assert "Photometric" in obstacle(rgb(PhotometricInterpretation=meaning), uid)


def test_colour_of_16_bits_as_ycbcr_is_not_for_jpeg_lossless() -> None:
    """libjpeg-turbo 3.1 encodes it, and to other pixels."""
    ybr = grey(40, 50, 16, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL")
    assert "Photometric" in obstacle(ybr, JPEG_LOSSLESS)
    cells = native_cells(noise(ybr), ybr)
    spaces = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"}
    data = imagecodecs.jpeg8_encode(cells, lossless=True, predictor=1, bitspersample=16, **spaces)
    assert not np.array_equal(imagecodecs.jpeg8_decode(data, **spaces), cells)


@pytest.mark.parametrize("uid", [HTJ2K, JPEG_XL])
def test_ybr_full_is_not_for_those_with_a_colour_space_of_their_own(uid: str) -> None:
    assert "Photometric" in obstacle(rgb(PhotometricInterpretation="YBR_FULL"), uid)


@pytest.mark.parametrize("uid", [JPEG_LS, JPEG_2000, RLE])
def test_ybr_full_goes_through_no_transform(uid: str) -> None:
    description = rgb(PhotometricInterpretation="YBR_FULL")
    data = encode_verified(noise(description), description, uid)
    assert decode_frame(data, encoded_as(description, uid)).photometric_interpretation == "YBR_FULL"


@pytest.mark.parametrize("uid", CODECS)
@pytest.mark.parametrize(("rows", "columns"), [(33, 33), (47, 33), (101, 63)])
def test_odd_sizes(uid: str, rows: int, columns: int) -> None:
    """GDCM aborts the process on some; every codestream of ours may be padded as items are."""
    for description in (grey(rows, columns, 8), grey(rows, columns, 16), rgb(rows, columns)):
        data = encode_verified(noise(description), description, uid)
        padded = data + b"\0" * (1 + len(data) % 2)
        assert restore_frame(padded, description, uid) == noise(description)


def test_noise_that_grows_is_encoded_all_the_same() -> None:
    """The JPEG-LS binding reckons too little room for it by itself."""
    description = grey(100, 101, 8)
    data = encode_verified(noise(description), description, JPEG_LS)
    assert len(data) > 100 * 101
    with pytest.raises(imagecodecs.JpeglsError):
        imagecodecs.jpegls_encode(native_cells(noise(description), description))


def test_a_single_column_or_row_in_rle() -> None:
    for shape in ((1, 1), (1, 300), (300, 1)):
        description = grey(*shape, 16)
        encode_verified(noise(description), description, RLE)


def test_jpeg_xl_of_noise_does_not_abort_the_process() -> None:
    """libjxl 0.11 does at its fastest effort, where 16 bits cannot be made fewer."""
    script = (
        "import numpy as np; from edgepacs.pixels.description import describe\n"
        "from edgepacs.pixels.encode import encode_verified\n"
        "d = describe({'Rows': 167, 'Columns': 256, 'BitsAllocated': 16,\n"
        "    'PhotometricInterpretation': 'MONOCHROME2'}, '1.2.840.10008.1.2.1')\n"
        f"encode_verified(np.random.default_rng(0).bytes(85504), d, {JPEG_XL!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_htj2k_is_judged_by_a_decoder_that_reports_errors() -> None:
    """OpenJPH's binding takes what is cut short for good."""
    description = grey(64, 64, 16)
    data = encode_verified(noise(description), description, HTJ2K)
    for length in range(len(data) // 4, len(data) - 2, len(data) // 9):
        with pytest.raises(Undecodable):
            restore_frame(data[:length], description, HTJ2K)


@pytest.mark.parametrize("uid", ENCODED)
@pytest.mark.parametrize("flaw", ["one bit", "refuses", "raises"])
def test_an_encoder_that_loses_a_bit_is_caught(
    uid: str, flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison itself: with an encoder of the table made to fail, nothing passes."""
    row = TABLE[uid]
    sound = row.encoder
    assert sound is not None
    ways: dict[str, tuple[Callable[..., bytes], str]] = {
        "one bit": (lambda frame, d: sound(bytes([frame[0] ^ 1]) + frame[1:], d), "other bits"),
        "refuses": (lambda _frame, _d: b"\0" * 80, "does not decode|other bits"),
        "raises": (lambda _frame, _d: bytes(-1), "refuses"),
    }
    encoder, words = ways[flaw]
    monkeypatch.setitem(syntaxes.TABLE, uid, replace(row, encoder=encoder))
    description = grey(48, 64, 16, BitsStored=12)
    with pytest.raises(Unencodable, match=words):
        encode.encode_verified(gradient().astype("<u2").tobytes(), description, uid)


@pytest.mark.parametrize("uid", ENCODED)
def test_a_frame_of_another_length_is_refused(uid: str) -> None:
    description = grey(40, 40, 16)
    for length in (0, 3199, 3201):
        with pytest.raises(Unencodable, match="length"):
            encode_frame(bytes(length), description, uid)


def test_what_is_not_native_is_not_encoded() -> None:
    with pytest.raises(Unencodable, match="not native"):
        encode_frame(bytes(3200), grey(40, 40, 16, RLE), JPEG_LS)
    for uid in ("1.2.3", TABLE[JPEG_LS].uid.replace(".80", ".81"), "1.2.840.10008.1.2.1.99"):
        with pytest.raises(Unencodable, match="Transfer syntax"):
            encode_frame(bytes(3200), grey(40, 40, 16), uid)


def test_decoded_frames_become_native_of_what_they_now_mean() -> None:
    dataset = instance("SC_rgb_gdcm_KY.dcm")  # YBR_RCT
    description = described(dataset)
    frame = decoded(dataset)
    native = native_as(description, frame)
    assert (native.photometric_interpretation, native.planar_configuration) == ("RGB", 0)
    data = native_frame(frame.array, native)
    encode_verified(data, native, JPEG_LS)
    np.testing.assert_array_equal(native_cells(data, native), frame.array)


def test_big_endian_frames_become_native_little_endian() -> None:
    dataset = instance("MR_small_bigendian.dcm")
    twin = instance("MR_small.dcm")
    frame = decoded(dataset)
    description = native_as(described(dataset), frame)
    assert native_frame(frame.array, description) == twin.PixelData


def test_single_bits_are_deflated_frame_by_frame_only_where_frames_begin_at_bytes() -> None:
    fits = grey(5, 8, 1, NumberOfFrames=3)
    assert not obstacle(fits, DEFLATED_FRAME)
    encode_verified(bytes([1, 2, 3, 4, 255]), fits, DEFLATED_FRAME)
    assert "whole bytes" in obstacle(grey(5, 7, 1, NumberOfFrames=3), DEFLATED_FRAME)
    encode_verified(bytes([1, 2, 3, 4, 7]), grey(5, 7, 1), DEFLATED_FRAME)
