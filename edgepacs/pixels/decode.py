"""Decoding one frame, whatever its transfer syntax."""

from edgepacs.errors import EdgePacsError, Undecodable
from edgepacs.pixels.description import Frame, PixelDescription
from edgepacs.pixels.syntaxes import syntax


def decode_frame(data: bytes, description: PixelDescription, *, first_bit: int = 0) -> Frame:
    """Decode the bytes of one frame, all its fragments joined.

    `first_bit` is where a native frame begins in `data`; frames of 1-bit cells need not begin
    at a byte. The array has `description.shape` and `description.dtype`, colour by pixel, every
    allocated bit kept (see `stored_values`); it may be a read-only view of `data`.

    Raises Undecodable, and nothing else, when the frame cannot be decoded.
    """
    row = syntax(description.transfer_syntax_uid)
    if row is None:
        raise Undecodable("Transfer syntax: unknown to this node")
    if row.decoder is None:
        raise Undecodable(f"Transfer syntax: {row.name} is not decoded here")
    try:
        return row.decoder(data, description, first_bit)
    except EdgePacsError:
        raise
    except Exception as error:  # each codec has its own family of exceptions
        raise Undecodable(f"Pixel data: broken {row.name}") from error
