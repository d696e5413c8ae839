"""Decoding real instances, against independent decoders and against known pixels."""

import zlib

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
from pydicom.pixels import pixel_array

from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import stored_values
from edgepacs.pixels.syntaxes import TABLE, Loss, syntax

# pydicom reads these by numpy, pylibjpeg-rle and pylibjpeg-openjpeg, none of which we use.
AGAINST_PYDICOM = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_padded.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "ExplVR_BigEnd.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "color-pl.dcm",
    "color-px.dcm",
    "SC_rgb_32bit_2frame.dcm",
    "SC_rgb_expb_16bit_2frame.dcm",
    "rtdose.dcm",
    "rtdose_expb.dcm",
    "rtdose_rle.dcm",
    "liver.dcm",
    "liver_expb.dcm",
    "image_dfl.dcm",
    "OBXXXX1A_expb_2frame.dcm",
    "OBXXXX1A_rle_2frame.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_rle_32bit_2frame.dcm",
    "emri_small_RLE.dcm",
    "gdcm-US-ALOKA-16.dcm",
    "gdcm-US-ALOKA-16_big.dcm",
    "MR_small_jp2klossless.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "693_J2KI.dcm",
    "JPEG2000.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "US1_J2KI.dcm",
    "US1_J2KR.dcm",
    "emri_small_jpeg_2k_lossless.dcm",
    "examples_overlay.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm",
]

# Compressed instances, the same pixels uncompressed by somebody else, and the largest
# difference: 0 where compression was lossless or the other was decompressed from the first.
PAIRS = [
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
    ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_ebcr_dcmd.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_ebcyn1_dcmd.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cy+n2.dcm", "SC_rgb_dcmtk_ebcyn2_dcmd.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_ebcynp_dcmd.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_dcmtk_ebcys2_dcmd.dcm", 0),
    ("SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_dcmtk_ebcys4_dcmd.dcm", 0),
    ("SC_rgb_jls_lossy_line.dcm", "SC_rgb.dcm", 3),
    ("SC_rgb_jls_lossy_sample.dcm", "SC_rgb.dcm", 3),
    ("693_J2KR.dcm", "693_UNCR.dcm", 0),
    ("OBXXXX1A_rle.dcm", "OBXXXX1A.dcm", 0),
]


@pytest.mark.parametrize("name", AGAINST_PYDICOM)
def test_agrees_with_pydicom(name: str) -> None:
    dataset = instance(name)
    description = described(dataset)
    for frame in range(min(3, description.number_of_frames)):
        ours = decoded(dataset, frame)
        assert ours.array.shape == description.shape
        assert ours.array.dtype == description.dtype
        theirs = pixel_array(dataset, index=frame, raw=True)
        np.testing.assert_array_equal(stored_values(ours.array, description), theirs)


@pytest.mark.parametrize(("compressed", "native", "tolerance"), PAIRS)
def test_agrees_with_its_uncompressed_twin(compressed: str, native: str, tolerance: int) -> None:
    ours, theirs = decoded(instance(compressed)), decoded(instance(native))
    difference = np.abs(ours.array.astype(np.int64) - theirs.array)
    assert difference.max() <= tolerance
    if ours.array.ndim == 3:
        assert (ours.photometric_interpretation, theirs.photometric_interpretation) == (
            "RGB",
            "RGB",
        )


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("JPGExtended.dcm", (420, 140), 244),
        ("JPGExtended.dcm", (230, 120), 95),
        ("JPEG-LL.dcm", (420, 140), 227),
        ("JPEG-LL.dcm", (230, 120), 105),
        ("SC_rgb_jpeg_dcmtk.dcm", (5, 50), (254, 0, 0)),
        ("SC_rgb_small_odd_jpeg.dcm", (1, 1), (62, 87, 179)),
        ("SC_jpeg_no_color_transform.dcm", (0, 0), (244, 244, 244)),
    ],
)
def test_known_pixels(name: str, at: tuple[int, int], value: int | tuple[int, ...]) -> None:
    found = decoded(instance(name)).array[at].astype(int)
    assert np.abs(found - value).max() <= 1


@pytest.mark.parametrize("suffix", ["57", "70"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_lossless_by_another_decoder(suffix: str, bits: int) -> None:
    picture = gradient(bits=bits)
    data = imagecodecs.jpeg8_encode(picture, lossless=True, predictor=1, bitspersample=bits)
    frame = decode_frame(data, grey(*picture.shape, 8 if bits == 8 else 16, JPEG + suffix))
    np.testing.assert_array_equal(frame.array, imagecodecs.ljpeg_decode(data))
    np.testing.assert_array_equal(frame.array, picture)


@pytest.mark.parametrize("suffix", ["201", "202", "203"])
def test_htj2k_written_by_openjph(suffix: str) -> None:
    for picture in (gradient(bits=8), gradient(bits=16)):
        data = imagecodecs.htj2k_encode(picture)
        description = grey(*picture.shape, 8 * picture.itemsize, JPEG + suffix)
        np.testing.assert_array_equal(decode_frame(data, description).array, picture)
    rgb = np.stack([gradient(bits=8), gradient(bits=7), gradient(bits=6)], axis=-1)
    frame = decode_frame(
        imagecodecs.htj2k_encode(rgb),
        colour(48, 64, JPEG + suffix, PhotometricInterpretation="YBR_RCT"),
    )
    np.testing.assert_array_equal(frame.array, rgb)
    assert frame.photometric_interpretation == "RGB"


@pytest.mark.parametrize("container", [False, True])
def test_jpeg_xl_lossless(container: bool) -> None:  # noqa: FBT001 - a parameter, not a mode
    for picture in (gradient(bits=8), gradient(bits=12), gradient(bits=16)):
        data = imagecodecs.jpegxl_encode(picture, lossless=True, usecontainer=container)
        description = grey(*picture.shape, 8 * picture.itemsize, JPEG + "110")
        np.testing.assert_array_equal(decode_frame(data, description).array, picture)


def test_jpeg_xl_of_rgb_and_lossy() -> None:
    rgb = np.stack([gradient(32, 48, 8)] * 3, axis=-1)
    lossless = decode_frame(
        imagecodecs.jpegxl_encode(rgb, lossless=True), colour(32, 48, JPEG + "110")
    )
    np.testing.assert_array_equal(lossless.array, rgb)
    flat = np.full((32, 48, 3), 90, np.uint8)
    lossy = decode_frame(
        imagecodecs.jpegxl_encode(flat, lossless=False, level=90),
        colour(32, 48, JPEG + "112", PhotometricInterpretation="XYB"),
    )
    assert lossy.photometric_interpretation == "RGB"
    assert np.abs(lossy.array.astype(int) - 90).max() <= 2


@pytest.mark.parametrize("suffix", ["51", "53", "55"])
def test_twelve_bit_jpeg(suffix: str) -> None:
    smooth = (np.add.outer(np.arange(64), np.arange(48)) * 36).astype(np.uint16)
    data = imagecodecs.jpeg8_encode(smooth, level=100, bitspersample=12)
    frame = decode_frame(data, grey(64, 48, 16, JPEG + suffix, BitsStored=12))
    assert np.abs(frame.array.astype(int) - smooth).max() <= 2


@pytest.mark.parametrize(("family", "suffix"), [("jpegls", "80"), ("jpeg2k", "90")])
@pytest.mark.parametrize("precision", [12, 16])
def test_signed_samples(family: str, suffix: str, precision: int) -> None:
    """A codestream without a sign, or with one, gives the same signed cells."""
    signed = (gradient(bits=12).astype(np.int16)) - 2048
    masked = (signed.view(np.uint16) & ((1 << precision) - 1)).astype(np.uint16)
    if family == "jpegls":
        data = imagecodecs.jpegls_encode(masked)
    else:
        data = imagecodecs.jpeg2k_encode(
            masked, reversible=True, codecformat="j2k", bitspersample=precision
        )
    description = grey(48, 64, 16, JPEG + suffix, BitsStored=12, PixelRepresentation=1)
    frame = decode_frame(data, description)
    assert frame.array.dtype == np.int16
    np.testing.assert_array_equal(stored_values(frame.array, description), signed)


def test_signed_codestream_of_an_unsigned_data_set() -> None:
    signed = gradient(bits=12).astype(np.int16) - 2048
    data = imagecodecs.jpeg2k_encode(signed, reversible=True, codecformat="j2k")
    description = grey(48, 64, 16, JPEG + "90")
    assert (decode_frame(data, description).array == signed.view(np.uint16)).all()


def test_jpeg_2000_inside_jp2_boxes_or_without_its_end_marker() -> None:
    picture = gradient(bits=12)
    description = grey(48, 64, 16, JPEG + "90")
    boxed = imagecodecs.jpeg2k_encode(picture, reversible=True, codecformat="jp2")
    np.testing.assert_array_equal(decode_frame(boxed, description).array, picture)
    bare = imagecodecs.jpeg2k_encode(picture, reversible=True, codecformat="j2k")
    assert bare.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(decode_frame(bare[:-2], description).array, picture)
    np.testing.assert_array_equal(decode_frame(bare + b"\0", description).array, picture)


def test_jpeg_colour_follows_the_bit_stream_before_the_data_set() -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = 200, 30
    jfif = imagecodecs.jpeg8_encode(rgb, level=98)
    for claimed in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        description = colour(16, 16, JPEG + "50", PhotometricInterpretation=claimed)
        frame = decode_frame(jfif, description)
        assert frame.photometric_interpretation == "RGB"
        assert np.abs(frame.array.astype(int) - (200, 30, 0)).max() <= 3
    silent = _without_app_segments(jfif)
    as_rgb = decode_frame(silent, colour(16, 16, JPEG + "50"))
    assert np.abs(as_rgb.array.astype(int) - (77, 84, 215)).max() <= 3  # its YCbCr, untouched


def test_jpeg_component_identifiers_that_say_rgb() -> None:
    data = _without_app_segments(imagecodecs.jpeg8_encode(np.full((16, 16, 3), 90, np.uint8)))
    start, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    named = bytearray(data)
    for number, letter in enumerate(b"RGB"):
        named[start + 3 * number] = named[scan + 2 * number] = letter
    description = colour(16, 16, JPEG + "50", PhotometricInterpretation="YBR_FULL")
    frame = decode_frame(bytes(named), description)
    assert np.abs(frame.array.astype(int) - (90, 128, 128)).max() <= 2  # its YCbCr, untouched


def _without_app_segments(data: bytes) -> bytes:
    assert data[2:4] == b"\xff\xe0"
    length = int.from_bytes(data[4:6], "big")
    return data[:2] + data[4 + length :]


def test_native_422_is_brought_to_full_resolution() -> None:
    dataset = instance("SC_ybr_full_422_uncompressed.dcm")
    ours = decoded(dataset)
    assert ours.photometric_interpretation == "YBR_FULL"
    np.testing.assert_array_equal(ours.array, pixel_array(dataset, raw=True))


def test_422_that_was_not_subsampled() -> None:
    cells = bytes(range(24)) * 2
    dataset = instance("SC_ybr_full_422_uncompressed.dcm")
    dataset.Rows, dataset.Columns, dataset.PixelData = 2, 8, cells
    np.testing.assert_array_equal(decoded(dataset).array.ravel(), list(cells))


def test_encapsulated_uncompressed_and_deflated_frames() -> None:
    bits = (gradient(5, 7, 8) & 1).astype(np.uint8)
    packed = np.packbits(bits, bitorder="little").tobytes()
    deflater = zlib.compressobj(wbits=-15)
    deflated = deflater.compress(packed) + deflater.flush()
    deflated += b"\0" * (len(deflated) % 2)
    for data, uid in ((packed, LITTLE + ".98"), (deflated, DEFLATED_FRAME)):
        frame = decode_frame(data, grey(5, 7, 1, uid))
        np.testing.assert_array_equal(frame.array, bits)


def test_floating_point() -> None:
    for allocated, kind in ((32, np.float32), (64, np.float64)):
        values = np.linspace(-3.5, 1e6, 12, dtype=kind).reshape(3, 4)
        description = grey(3, 4, allocated, BitsStored=None)
        frame = decode_frame(values.tobytes(), description)
        assert frame.array.dtype == kind
        np.testing.assert_array_equal(frame.array, values)
        np.testing.assert_array_equal(stored_values(frame.array, description), values)


def test_rle_of_24_bits_is_widened() -> None:
    values = np.array([1, 70000, 0xFFFFFF, 5], np.uint32)
    segments = [bytes([3, *(int(v) >> s & 255 for v in values)]) + b"\0" for s in (16, 8, 0)]
    offsets = [64, 70, 76]
    header = np.array([3, *offsets, *[0] * 12], "<u4").tobytes()
    frame = decode_frame(header + b"".join(segments), grey(2, 2, 24, RLE))
    np.testing.assert_array_equal(frame.array.ravel(), values)


def test_the_table() -> None:
    assert syntax("1.2.3") is None
    assert all(uid == row.uid for uid, row in TABLE.items())
    assert [row.uid for row in TABLE.values() if row.big_endian] == ["1.2.840.10008.1.2.2"]
    assert [row.uid for row in TABLE.values() if not row.explicit_vr] == ["1.2.840.10008.1.2"]
    assert [row.uid for row in TABLE.values() if row.deflated] == ["1.2.840.10008.1.2.1.99"]
    assert all((row.decoder is None) == row.video for row in TABLE.values())
    assert all(row.loss is Loss.NEVER for row in TABLE.values() if not row.encapsulated)


def test_frames_of_a_real_cine_loop_differ() -> None:
    dataset = instance("color3d_jpeg_baseline.dcm")
    frames = [decoded(dataset, n).array for n in (0, 60, 119)]
    assert len(index_of(dataset)) == 120
    assert not (frames[0] == frames[1]).all()
    assert not (frames[1] == frames[2]).all()
