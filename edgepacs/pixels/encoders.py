"""One encoder per family of transfer syntaxes: a native frame in, a compressed frame out.

All are reversible and keep every allocated bit. A codestream is therefore as deep as
Bits Allocated unless nothing stands outside Bits Stored: overlays live in unused bits, and JPEG-LS
knows no sign, so that a reader of fewer bits would lose it. Which frames each encoder takes
stands beside it in the table of `syntaxes`; what a codec raises is turned into Unencodable where
encoders are called.
"""

from collections.abc import Callable
from struct import pack

import imagecodecs
import numpy as np

from edgepacs.pixels.description import PixelDescription, Pixels, stored_values
from edgepacs.pixels.native import native_cells

Encoder = Callable[[bytes, PixelDescription], bytes]  # native frame, what it is; see `native`

DEFLATE_LEVEL = 9  # smaller than zlib's 6 on every picture tried, 12 is ten times slower
_RLE_SEGMENTS = 15


def encode_jpeg_ls(frame: bytes, description: PixelDescription) -> bytes:
    """Encode JPEG-LS Lossless (ITU-T T.87), colour interleaved, of precision Bits Allocated."""
    cells = _unsigned(native_cells(frame, description))
    room = cells.nbytes + cells.nbytes // 4 + 4096  # noise grows by up to a tenth
    return bytes(imagecodecs.jpegls_encode(cells, out=room))


def encode_htj2k(frame: bytes, description: PixelDescription) -> bytes:
    """Encode High-Throughput JPEG 2000 (ITU-T T.814), RGB through the reversible transform."""
    cells = _for_jpeg_2000(frame, description)
    return bytes(imagecodecs.htj2k_encode(cells, rgb=_is_rgb(description), reversible=True))


def encode_jpeg_2000(frame: bytes, description: PixelDescription) -> bytes:
    """Encode JPEG 2000 (ITU-T T.800) by the 5/3 filter, RGB through the reversible transform."""
    cells = _for_jpeg_2000(frame, description)
    data = imagecodecs.jpeg2k_encode(
        cells,
        codecformat="j2k",
        reversible=True,
        mct=_is_rgb(description),
        bitspersample=_precision(cells, description),
        numthreads=1,
    )
    return bytes(data)


def encode_jpeg_lossless(frame: bytes, description: PixelDescription) -> bytes:
    """Encode JPEG Lossless, Process 14, Selection Value 1 (ITU-T T.81 annex H)."""
    cells = _unsigned(native_cells(frame, description))
    space = "RGB" if _is_rgb(description) else None
    data = imagecodecs.jpeg8_encode(
        cells,
        lossless=True,
        predictor=1,
        bitspersample=_precision(cells, description),
        colorspace=space,
        outcolorspace=space,
    )
    return bytes(data)


def encode_jpeg_xl(frame: bytes, description: PixelDescription) -> bytes:
    """Encode JPEG XL (ISO/IEC 18181-1) without loss.

    Not by its fastest effort: libjxl 0.11 aborts the process there on some pictures of 16 bits.
    """
    cells = _unsigned(native_cells(frame, description))
    return bytes(imagecodecs.jpegxl_encode(cells, lossless=True, effort=2, numthreads=1))


def encode_rle(frame: bytes, description: PixelDescription) -> bytes:
    """Encode RLE Lossless (PS3.5 G): a segment for each byte of a composite pixel, rows apart.

    All bytes of Bits Allocated are written, however few bits are stored.
    """
    cells = native_cells(frame, description)
    cells = cells.reshape(description.rows, description.columns, description.samples_per_pixel)
    wire_bytes = description.bits_allocated // 8
    octets = cells.astype(cells.dtype.newbyteorder("<"), copy=False).view("u1")
    segments = [
        _rle_segment(octets[..., sample * description.cell_bytes + byte])
        for sample in range(description.samples_per_pixel)
        for byte in reversed(range(wire_bytes))  # the most significant first (PS3.5 G.2)
    ]
    offsets, position = [], 64
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    unused = [0] * (_RLE_SEGMENTS - len(segments))
    return b"".join((pack("<16I", len(segments), *offsets, *unused), *segments))


def _rle_segment(plane: Pixels) -> bytes:
    packed = bytes(imagecodecs.packbits_encode(plane.copy(order="C"), axis=-1))
    return packed + b"\0" * (len(packed) % 2)  # PS3.5 G.4


def encode_deflated(frame: bytes, _description: PixelDescription) -> bytes:
    """Encode a frame of Deflated Image Frame Compression: its native bytes in RFC 1951."""
    return bytes(imagecodecs.deflate_encode(frame, DEFLATE_LEVEL, raw=True))


def _is_rgb(description: PixelDescription) -> bool:
    return description.photometric_interpretation == "RGB"


def _unsigned(cells: Pixels) -> Pixels:
    return cells.view(f"u{cells.itemsize}")


def _for_jpeg_2000(frame: bytes, description: PixelDescription) -> Pixels:
    """Cells with their sign, which JPEG 2000 has; the colour transform is for unsigned ones."""
    cells = native_cells(frame, description)
    return cells if cells.ndim == 2 else _unsigned(cells)


def _precision(cells: Pixels, description: PixelDescription) -> int:
    """Bits Stored where no bit of any cell stands outside them, else Bits Allocated.

    Never so few that a reader would make its cells of fewer bytes than the data set says.
    """
    allocated, stored = description.bits_allocated, description.bits_stored
    loses_sign = description.pixel_representation == 1 and cells.dtype.kind == "u"
    if allocated == 8 or loses_sign or description.high_bit != stored - 1:
        return allocated
    if not np.array_equal(stored_values(cells, description), cells):
        return allocated
    return max(9, stored)
