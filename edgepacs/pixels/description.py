"""What the Image Pixel Module says about pixel data, checked before anything is decoded.

`describe` is the only gate: whoever holds a PixelDescription holds one whose numbers agree
with each other and whose decoded frame fits the cap, so nothing behind it checks them again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepacs.errors import NotFound, Undecodable

Pixels = NDArray[Any]

MAX_FRAME_BYTES = 1 << 28  # one decoded frame, 8-bit samples counted as 2; codecs need 3 times it
MAX_FRAMES = (1 << 31) - 2  # an IS holds up to 2^31 - 1 (PS3.5 6.2), no data set comes near
IMPLICIT_LITTLE = "1.2.840.10008.1.2"  # Implicit VR Little Endian
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"  # Explicit VR Little Endian
BIG_ENDIAN = "1.2.840.10008.1.2.2"  # Explicit VR Big Endian, retired
_MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})


class Values(Protocol):
    """Attribute values by keyword: a pydicom Dataset or a plain mapping."""

    def get(self, key: str, /) -> Any:
        """Return the value of the attribute named `key`, or None."""


class SampleKind(StrEnum):
    """Which pixel data element holds the samples (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25)."""

    INTEGER = "PixelData"
    FLOAT = "FloatPixelData"
    DOUBLE = "DoubleFloatPixelData"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelDescription:
    """One instance's pixel data: its shape, the layout of a pixel cell and its encoding.

    `number_of_frames` is at least 1. `high_bit` counts from 0. `word_swapped` tells that the
    value is a big endian OW of 8-bit or smaller cells, whose bytes are exchanged pairwise
    (PS3.5 8.1.1 with the byte ordering of 7.3).
    """

    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    photometric_interpretation: str
    planar_configuration: int
    number_of_frames: int
    transfer_syntax_uid: str
    sample_kind: SampleKind = SampleKind.INTEGER
    word_swapped: bool = False

    @property
    def samples(self) -> int:
        """Samples in one frame."""
        return self.rows * self.columns * self.samples_per_pixel

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell as numpy holds it: 1, 2, 4 or 8."""
        return next(size for size in (1, 2, 4, 8) if self.bits_allocated <= 8 * size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a decoded sample, in native byte order."""
        if self.sample_kind is not SampleKind.INTEGER:
            return np.dtype(f"f{self.bits_allocated // 8}")
        return np.dtype(f"{'ui'[self.pixel_representation]}{self.cell_bytes}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a decoded frame: (rows, columns) or (rows, columns, samples)."""
        if self.samples_per_pixel == 1:
            return (self.rows, self.columns)
        return (self.rows, self.columns, self.samples_per_pixel)


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: every allocated bit of every cell, and what the samples now mean.

    `array` has the description's shape and dtype. `photometric_interpretation` is what the
    decoder left: a JPEG or JPEG 2000 decoder that undid the colour transform says RGB.
    """

    array: Pixels
    photometric_interpretation: str


def stored_values(cells: Pixels, description: PixelDescription) -> Pixels:
    """`cells` without the bits outside Bits Stored, sign extended (PS3.5 8.1.1).

    Old data sets keep overlays in the bits above High Bit; they are no part of the value.
    """
    unused = 8 * description.cell_bytes - description.bits_stored
    if description.sample_kind is not SampleKind.INTEGER or not unused:
        return cells
    above = 8 * description.cell_bytes - 1 - description.high_bit
    return np.right_shift(np.left_shift(cells, above), unused)


def describe(
    values: Values,
    transfer_syntax_uid: str,
    *,
    vr: str = "OW",
    sample_kind: SampleKind | None = None,
) -> PixelDescription:
    """Describe the pixel data of the data set whose attributes `values` gives by keyword.

    `vr` is that of the pixel data element and matters in big endian only. Without
    `sample_kind` a data set of 32 or 64 bits that lacks Bits Stored is taken as floating point,
    since those modules do not have it (PS3.3 C.7.6.24, C.7.6.25).

    Raises NotFound when the object has no pixels, Undecodable when its attributes contradict
    each other, the standard or MAX_FRAME_BYTES.
    """
    rows = _integer(values, "Rows")
    columns = _integer(values, "Columns")
    if rows is None and columns is None:
        raise NotFound("This object has no pixels: Rows and Columns are absent")
    allocated = _required(values, "BitsAllocated")
    kind = sample_kind or _kind(values, allocated)
    stored = _integer(values, "BitsStored", allocated) if kind is SampleKind.INTEGER else allocated
    frames = _integer(values, "NumberOfFrames", 1)
    assert stored is not None
    assert frames is not None
    description = PixelDescription(
        rows=rows or 0,
        columns=columns or 0,
        samples_per_pixel=_integer(values, "SamplesPerPixel", 1) or 0,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_high_bit(values, kind, stored),
        pixel_representation=_representation(values, kind),
        photometric_interpretation=_photometric_interpretation(values),
        planar_configuration=_integer(values, "PlanarConfiguration", 0) or 0,
        number_of_frames=1 if frames == 0 else frames,  # several makers write 0 for "not used"
        transfer_syntax_uid=transfer_syntax_uid,
        sample_kind=kind,
        word_swapped=transfer_syntax_uid == BIG_ENDIAN and vr == "OW" and allocated <= 8,
    )
    _check_shape(description)
    _check_cell(description)
    return description


def _check_shape(description: PixelDescription) -> None:
    for name, number in (("Rows", description.rows), ("Columns", description.columns)):
        if not 1 <= number <= 0xFFFF:
            raise Undecodable(f"{name}: not between 1 and 65535")
    if not 1 <= description.number_of_frames <= MAX_FRAMES:
        raise Undecodable(f"Number of Frames: not between 1 and {MAX_FRAMES}")
    expected = 1 if description.photometric_interpretation in _MONOCHROME else 3
    if description.samples_per_pixel not in (1, 3):
        raise Undecodable("Samples per Pixel: neither 1 nor 3")
    if description.samples_per_pixel != expected:
        raise Undecodable("Samples per Pixel: does not fit the Photometric Interpretation")
    if description.planar_configuration not in (0, 1):
        raise Undecodable("Planar Configuration: neither 0 nor 1")
    if description.samples * max(2, description.cell_bytes) > MAX_FRAME_BYTES:
        raise Undecodable(f"Rows x Columns: a decoded frame exceeds {MAX_FRAME_BYTES} bytes")


def _check_cell(description: PixelDescription) -> None:
    allocated = description.bits_allocated
    if description.sample_kind is SampleKind.INTEGER and allocated != 1 and allocated % 8:
        raise Undecodable("Bits Allocated: neither 1 nor a multiple of 8")  # PS3.5 8.1.1
    if not 1 <= description.bits_stored <= allocated:
        raise Undecodable("Bits Stored: not between 1 and Bits Allocated")
    if not description.bits_stored - 1 <= description.high_bit < allocated:
        raise Undecodable("High Bit: does not fit Bits Stored and Bits Allocated")
    if description.pixel_representation not in (0, 1):
        raise Undecodable("Pixel Representation: neither 0 nor 1")


def _kind(values: Values, allocated: int) -> SampleKind:
    if allocated not in (32, 64) or values.get("BitsStored") is not None:
        return SampleKind.INTEGER
    return SampleKind.FLOAT if allocated == 32 else SampleKind.DOUBLE


def _high_bit(values: Values, kind: SampleKind, stored: int) -> int:
    found = _integer(values, "HighBit", stored - 1) if kind is SampleKind.INTEGER else stored - 1
    assert found is not None
    return found


def _representation(values: Values, kind: SampleKind) -> int:
    if kind is not SampleKind.INTEGER:
        return 0
    return _integer(values, "PixelRepresentation", 0) or 0


def _photometric_interpretation(values: Values) -> str:
    text = _plain(values, "PhotometricInterpretation")
    if not isinstance(text, str) or not text.strip():
        raise Undecodable("Photometric Interpretation: missing")
    return text.strip()


def _required(values: Values, keyword: str) -> int:
    number = _integer(values, keyword)
    if number is None or not 1 <= number <= 64:
        raise Undecodable("Bits Allocated: not between 1 and 64")
    return number


def _integer(values: Values, keyword: str, default: int | None = None) -> int | None:
    value = _plain(values, keyword)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Undecodable(f"{keyword}: not a single integer") from error


def _plain(values: Values, keyword: str) -> Any:
    try:
        return values.get(keyword)
    except Exception as error:  # pydicom converts late and raises whatever the conversion does
        raise Undecodable(f"{keyword}: cannot be read") from error
