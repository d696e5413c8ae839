"""Frames with loss, where somebody asked for it: JPEG Baseline and JPEG 2000.

What comes of it is another image of the same thing. It is decoded again, so that at least it is
one, but nothing proves how much of it is left.
"""

from dataclasses import replace
from typing import NamedTuple

import imagecodecs
import numpy as np

from edgepacs.errors import EdgePacsError
from edgepacs.pixels.conditions import MONOCHROME
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import PixelDescription, Pixels, SampleKind, stored_values
from edgepacs.pixels.encode import Unencodable
from edgepacs.pixels.native import native_cells

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.91"
_MIN_SIDE = 32
_MOST_ERROR = 0.1  # mean, of the range of values: beyond it something else went wrong


class Method(NamedTuple):
    """One lossy transfer syntax, and what Lossy Image Compression Method (0028,2114) calls it."""

    transfer_syntax_uid: str
    defined_term: str
    name: str


_JPEG = Method(JPEG_BASELINE, "ISO_10918_1", "JPEG Baseline")
_JPEG_2000 = Method(JPEG_2000_LOSSY, "ISO_15444_1", "JPEG 2000")


def method(description: PixelDescription) -> Method | None:
    """How frames of `description`, native, may lose something; None where they had better not.

    Eight bits go into JPEG Baseline, 9 to 16 into JPEG 2000. Palettes, single bits and numbers
    that mean something by themselves never lose any.
    """
    meaning, stored = description.photometric_interpretation, description.bits_stored
    if description.sample_kind is not SampleKind.INTEGER:
        return None
    if min(description.rows, description.columns) < _MIN_SIDE:
        return None
    if description.high_bit != stored - 1 or meaning not in MONOCHROME | {"RGB"}:
        return None
    if stored == description.bits_allocated == 8 and not description.pixel_representation:
        return _JPEG
    if 8 < stored <= description.bits_allocated == 16 and meaning in MONOCHROME:
        return _JPEG_2000
    return None


def lossy_as(description: PixelDescription, way: Method) -> PixelDescription:
    """What the data set has to say of its frames once they are encoded."""
    meaning = description.photometric_interpretation
    return replace(
        description,
        transfer_syntax_uid=way.transfer_syntax_uid,
        photometric_interpretation="YBR_FULL_422" if meaning == "RGB" else meaning,
        planar_configuration=0,
        word_swapped=False,
    )


def encode_lossy(frame: bytes, description: PixelDescription, way: Method, quality: int) -> bytes:
    """Encode a native little endian frame by `quality`, 1 to 100.

    In JPEG it is that of libjpeg; in JPEG 2000 it stands for a signal to noise ratio of
    30 + quality / 2 decibels. Raises Unencodable, and nothing else.
    """
    cells = native_cells(frame, description)
    if not np.array_equal(stored_values(cells, description), cells):
        raise Unencodable("Pixel data: something stands in the unused bits")
    try:
        data = _encoded(cells, description, way, quality)
        decoded = decode_frame(data, lossy_as(description, way)).array
    except EdgePacsError as error:
        raise Unencodable(f"Pixel data: its own encoding does not decode: {error}") from error
    except Exception as error:  # each codec has its own family of exceptions
        raise Unencodable(f"Pixel data: {way.name} refuses the frame") from error
    range_of_values = float(1 << description.bits_stored)
    error_of_all = np.abs(decoded.astype(np.float32) - cells.astype(np.float32)).mean()
    if error_of_all > _MOST_ERROR * range_of_values:
        raise Unencodable("Pixel data: its encoding shows something else")
    return data


def _encoded(cells: Pixels, description: PixelDescription, way: Method, quality: int) -> bytes:
    if way is _JPEG:
        rgb = "RGB" if cells.ndim == 3 else None
        coded = "YCBCR" if cells.ndim == 3 else None
        return bytes(
            imagecodecs.jpeg8_encode(
                cells, level=quality, colorspace=rgb, outcolorspace=coded, subsampling="422"
            )
        )
    return bytes(
        imagecodecs.jpeg2k_encode(
            cells,
            level=30 + quality // 2,
            codecformat="j2k",
            reversible=False,
            mct=False,
            bitspersample=description.bits_stored,
            numthreads=1,
        )
    )
