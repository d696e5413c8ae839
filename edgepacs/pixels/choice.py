"""Which transfer syntax: at rest by a trial on one frame, on the way out by what a peer accepts."""

from collections.abc import Collection, Iterator

import imagecodecs

from edgepacs.pixels.codecs import native_frame_bits
from edgepacs.pixels.conditions import INDEXED
from edgepacs.pixels.description import EXPLICIT_LITTLE, IMPLICIT_LITTLE, PixelDescription
from edgepacs.pixels.encode import Unencodable, encode_frame, obstacle
from edgepacs.pixels.encoders import DEFLATE_LEVEL
from edgepacs.pixels.syntaxes import (
    DEFLATED_DATA_SET,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    syntax,
)

MIN_SIDE = 32  # at rest; smaller pictures gain little and break other people's decoders
MIN_BYTES = 1 << 10  # of a frame; below it the attributes weigh more than the pixels
MAX_DEFLATED = 64 << 20  # native bytes of all frames: a deflated data set is inflated whole

_GREY = (JPEG_LS,)
_COLOUR = (HTJ2K, JPEG_LS)
_SMALLEST_FIRST = (JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, DEFLATED_DATA_SET, RLE)
_NATIVE = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)


def choose(
    description: PixelDescription, frame: bytes, *, extra: Collection[str] = ()
) -> str | None:
    """The transfer syntax that a series is to stand in at rest, by one native frame of it.

    Greyscale and palettes are tried in JPEG-LS, colour in HTJ2K and JPEG-LS, everything
    deflated as a whole data set (PS3.5 A.5), and what `extra` names besides. The smallest
    wins. None where the frame is to stay native: nothing makes it smaller, or it is too small.

    Deflated frames (1.2.840.10008.1.2.8.1) are never chosen: hardly a peer knows them, while
    a deflated data set goes to nearly all as it is.
    """
    sizes = {uid: size for uid, size in _trial(description, frame, extra) if size < len(frame)}
    return min(sizes, key=sizes.__getitem__) if sizes else None


def _trial(
    description: PixelDescription, frame: bytes, extra: Collection[str]
) -> Iterator[tuple[str, int]]:
    if len(frame) < MIN_BYTES:
        return
    grey = description.photometric_interpretation in INDEXED
    best = len(frame)
    for uid in (*(_GREY if grey else _COLOUR), *extra):
        if min(description.rows, description.columns) < MIN_SIDE or obstacle(description, uid):
            continue
        try:
            size = len(encode_frame(frame, description, uid))
        except Unencodable:
            continue
        best = min(best, size)
        yield uid, size
    if description.number_of_frames * len(frame) <= MAX_DEFLATED:
        yield from _deflated(frame, best)


def _deflated(frame: bytes, best: int) -> Iterator[tuple[str, int]]:
    """A quick look first: real pictures are told from flat screens at a tenth of the cost."""
    if len(imagecodecs.deflate_encode(frame, 1, raw=True)) < best + best // 2:
        yield DEFLATED_DATA_SET, len(imagecodecs.deflate_encode(frame, DEFLATE_LEVEL, raw=True))


def out_choices(
    accepted: Collection[str], stored: str, description: PixelDescription | None = None
) -> tuple[str, ...]:
    """The transfer syntaxes in which an instance may go to a peer, the best first.

    `accepted` are those the peer takes, `stored` the one the instance stands in, which goes as
    it is. Then come the lossless ones from the smallest to the largest, native last. Without
    the `description` of its native pixel data those it cannot be encoded in are among them.
    Empty where nothing can go: a video, say, to a peer that takes none.
    """
    first = (stored,) if stored in accepted else ()
    row = syntax(stored)
    if row is None or row.decoder is None:
        return first
    able = [uid for uid in _SMALLEST_FIRST if _can_be(uid, description)]
    return (*first, *(uid for uid in (*able, *_NATIVE) if uid in accepted and uid != stored))


def _can_be(uid: str, description: PixelDescription | None) -> bool:
    if description is None:
        return True
    if uid != DEFLATED_DATA_SET:
        return not obstacle(description, uid)
    bits = native_frame_bits(description) * description.number_of_frames
    return bits <= 8 * MAX_DEFLATED
