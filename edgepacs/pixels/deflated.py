"""Data sets deflated as a whole: Deflated Explicit VR Little Endian (PS3.5 A.5)."""

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain

import imagecodecs

from edgepacs.errors import Undecodable
from edgepacs.pixels.encoders import DEFLATE_LEVEL

_STEP = 1 << 20


def deflate(data_set: bytes) -> bytes:
    """Deflate an explicit VR little endian data set (RFC 1951), padded to even length."""
    deflated = bytes(imagecodecs.deflate_encode(data_set, DEFLATE_LEVEL, raw=True))
    return deflated + b"\0" * (len(deflated) % 2)


def deflate_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same for a data set that comes in `pieces`, in constant memory."""
    deflater = zlib.compressobj(DEFLATE_LEVEL, wbits=-zlib.MAX_WBITS)
    length = 0
    for piece in pieces:
        if packed := deflater.compress(piece):
            length += len(packed)
            yield packed
    last = deflater.flush()
    yield last + bytes((length + len(last)) % 2)


def inflate(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Inflate a data set that arrives in `chunks`, in pieces of at most a mebibyte.

    Raises Undecodable when it is broken or cut short, or as soon as it has yielded `limit`
    bytes and there are more.
    """
    inflater, left = zlib.decompressobj(wbits=-zlib.MAX_WBITS), limit
    for chunk in chain(chunks, (b"",)):
        for piece in _pieces(inflater, chunk):
            left -= len(piece)
            if left < 0:
                raise Undecodable(f"Its data set inflates to more than {limit} bytes")
            yield piece
    if not inflater.eof:
        raise Undecodable("Its deflated data set is cut short")


def _pieces(inflater: "zlib._Decompress", waiting: bytes) -> Iterator[bytes]:
    while not inflater.eof:
        try:
            piece = inflater.decompress(waiting, _STEP)
        except zlib.error as error:
            raise Undecodable("Its deflated data set is broken") from error
        if not piece:
            return
        yield piece
        waiting = inflater.unconsumed_tail
