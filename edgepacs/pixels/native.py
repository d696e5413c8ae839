"""Frames as they stand in uncompressed little endian pixel data (PS3.5 8.1.1, A.1, A.2).

Such bytes are the measure of every comparison: they hold each allocated bit, those outside
Bits Stored included, in the order of the data set's Planar Configuration.
"""

from dataclasses import replace

import numpy as np

from edgepacs.pixels.codecs import decode_native
from edgepacs.pixels.description import EXPLICIT_LITTLE, Frame, PixelDescription, Pixels


def native_as(description: PixelDescription, frame: Frame) -> PixelDescription:
    """Describe the pixel data of `description` once decoded: what `native_frame` then writes.

    The colour space is what the decoder left of it, samples go by pixel, in little endian.
    """
    return replace(
        description,
        photometric_interpretation=frame.photometric_interpretation,
        planar_configuration=0,
        transfer_syntax_uid=EXPLICIT_LITTLE,
        word_swapped=False,
    )


def native_cells(frame: bytes, description: PixelDescription) -> Pixels:
    """The cells of a little endian native frame, colour by pixel, in the description's dtype.

    Raises Undecodable when it is cut short.
    """
    if description.transfer_syntax_uid != EXPLICIT_LITTLE:
        description = replace(description, transfer_syntax_uid=EXPLICIT_LITTLE, word_swapped=False)
    return decode_native(frame, description).array


def native_frame(cells: Pixels, description: PixelDescription) -> bytes:
    """The little endian native frame that holds `cells` (shape and dtype of `description`).

    Cells of 1 bit are packed from the first bit of the first byte, the last byte filled with 0.
    """
    if description.bits_allocated == 1:
        return np.packbits(cells.astype(bool, copy=False), bitorder="little").tobytes()
    if description.samples_per_pixel > 1 and description.planar_configuration == 1:
        cells = cells.transpose(2, 0, 1)
    wire_bytes = description.bits_allocated // 8
    if wire_bytes == description.cell_bytes:
        little = description.dtype.newbyteorder("<")
        return np.ascontiguousarray(cells, little).tobytes()
    unsigned = np.ascontiguousarray(cells).astype(f"<i{description.cell_bytes}", copy=False)
    octets = unsigned.view("u1").reshape(-1, description.cell_bytes)
    return octets[:, :wire_bytes].tobytes()
