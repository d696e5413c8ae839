"""Encoding one frame without loss, and proof that nothing was lost.

A frame goes in and comes back as its native little endian bytes (`native`), so that every
allocated bit is compared: overlays in unused bits, padding, planes, signs.
"""

import zlib
from dataclasses import replace

import numpy as np

from edgepacs.errors import EdgePacsError, Undecodable
from edgepacs.pixels.codecs import inflate_frame, native_frame_bits
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import PixelDescription, Pixels
from edgepacs.pixels.native import native_cells, native_frame
from edgepacs.pixels.syntaxes import DEFLATED_FRAME, TransferSyntax, syntax

_BAND = 1 << 20  # bytes that are compared at once


class Unencodable(EdgePacsError):
    """A frame cannot be encoded as asked without loss; it stays as it is. Says why."""

    http_status = 422
    exit_code = 65  # EX_DATAERR


def obstacle(description: PixelDescription, transfer_syntax_uid: str) -> str:
    """Why native frames of `description` cannot be encoded in a transfer syntax; "" if they can.

    The frames of a data set that is deflated as a whole (PS3.5 A.5) are not encoded at all.
    """
    row = syntax(transfer_syntax_uid)
    if row is None:
        return "Transfer syntax: unknown to this node"
    if row.encoder is None:
        return f"Transfer syntax: {row.name} is not encoded here"
    origin = syntax(description.transfer_syntax_uid)
    if origin is None or origin.encapsulated:
        return "Transfer syntax: these frames are not native"
    return row.conditions.obstacle(description)


def encoded_as(description: PixelDescription, transfer_syntax_uid: str) -> PixelDescription:
    """What the data set has to say of its frames once they are encoded.

    Of its attributes only Photometric Interpretation (YBR_RCT for RGB in JPEG 2000 and HTJ2K,
    PS3.3 C.7.6.3.1.2) and Planar Configuration (0, where samples are interleaved) can differ.
    Raises Unencodable.
    """
    row = _row(description, transfer_syntax_uid)
    meaning, planes = description.photometric_interpretation, description.planar_configuration
    return replace(
        description,
        transfer_syntax_uid=row.uid,
        photometric_interpretation="YBR_RCT" if row.transforms and meaning == "RGB" else meaning,
        planar_configuration=planes if row.keeps_planes else 0,
        word_swapped=False,
    )


def encode_frame(frame: bytes, description: PixelDescription, transfer_syntax_uid: str) -> bytes:
    """Encode a native little endian frame; `description` is that of the native pixel data.

    The result has the length the codec gave it, which may be odd; `framing` pads it. It has not
    been proved: see `encode_verified`. Raises Unencodable, and nothing else.
    """
    row = _row(description, transfer_syntax_uid)
    if len(frame) != (native_frame_bits(description) + 7) // 8:
        raise Unencodable("Pixel data: not of the length Rows and Columns say")
    assert row.encoder is not None
    try:
        return row.encoder(frame, description)
    except Exception as error:  # each codec has its own family of exceptions
        raise Unencodable(f"Pixel data: {row.name} refuses the frame") from error


def encode_verified(frame: bytes, description: PixelDescription, transfer_syntax_uid: str) -> bytes:
    """Encode as `encode_frame` does, decode, and compare every allocated bit.

    Raises Unencodable, and nothing else: also when what comes back is not what went in.
    """
    data = encode_frame(frame, description, transfer_syntax_uid)
    try:
        same = _is_same(data, frame, description, transfer_syntax_uid)
    except EdgePacsError as error:
        raise Unencodable(f"Pixel data: its own encoding does not decode: {error}") from error
    if not same:
        raise Unencodable("Pixel data: decodes to other bits than were encoded")
    return data


def restore_frame(data: bytes, description: PixelDescription, transfer_syntax_uid: str) -> bytes:
    """Return the native little endian frame out of which `encode_frame` made `data`.

    `description` is that of the native pixel data, its Planar Configuration included. Raises
    Unencodable where `encode_frame` would, Undecodable for `data` it cannot have made.
    """
    if transfer_syntax_uid == DEFLATED_FRAME:
        return _inflated(data, description)
    return native_frame(_decoded(data, description, transfer_syntax_uid), description)


def _is_same(data: bytes, frame: bytes, description: PixelDescription, uid: str) -> bool:
    if uid == DEFLATED_FRAME:
        return _inflated(data, description) == frame
    back, sent = _decoded(data, description, uid), native_cells(frame, description)
    if back.shape != sent.shape:
        return False
    # In bands of rows: a large frame in memory once more is what a small box may not have.
    rows = max(1, _BAND * len(sent) // max(1, sent.nbytes))
    bands = range(0, len(sent), rows)
    return all(np.array_equal(back[at : at + rows], sent[at : at + rows]) for at in bands)


def _decoded(data: bytes, description: PixelDescription, uid: str) -> Pixels:
    frame = decode_frame(data, encoded_as(description, uid))
    if frame.photometric_interpretation != description.photometric_interpretation:
        raise Undecodable("Photometric Interpretation: decodes to another colour space")
    return frame.array


def _inflated(data: bytes, description: PixelDescription) -> bytes:
    """A deflated frame holds native bytes whatever they mean, subsampled colour too."""
    length = (native_frame_bits(description) + 7) // 8
    try:
        inflated = inflate_frame(data, description)[:length]
    except zlib.error as error:
        raise Undecodable("Pixel data: broken deflated frame") from error
    if len(inflated) != length:
        raise Undecodable("Pixel data: the frame is cut short")
    return inflated


def _row(description: PixelDescription, transfer_syntax_uid: str) -> TransferSyntax:
    problem = obstacle(description, transfer_syntax_uid)
    row = syntax(transfer_syntax_uid)
    if problem or row is None:
        raise Unencodable(problem)
    return row
