"""The head of a JPEG XL codestream (ISO/IEC 18181-1), as far as size and channels."""

from dataclasses import dataclass
from struct import unpack_from

from edgepacs.errors import Undecodable
from edgepacs.pixels.codestreams import Header

_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_HEAD = 256  # bytes that surely hold the size and the image metadata
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def jpeg_xl_header(data: bytes) -> Header:
    """Header of a JPEG XL codestream, bare or in its container.

    Raises Undecodable when it is none, or holds an animation, a preview or further channels,
    none of which a frame of pixel data may have.
    """
    codestream, recompressed = _codestream(data)
    if not codestream.startswith(b"\xff\x0a"):
        raise Undecodable("Pixel data: not a JPEG XL codestream")
    bits = _Bits(codestream[2:])
    rows, columns = _size(bits)
    precision, components, xyb = _metadata(bits)
    return Header(
        rows=rows,
        columns=columns,
        components=components,
        precision=precision,
        transformed=xyb or recompressed,
    )


def _codestream(data: bytes) -> tuple[bytes, bool]:
    """The first bytes of the codestream, and whether it is a recompressed JPEG."""
    if not data.startswith(_SIGNATURE):
        return data[:_HEAD], False
    head, recompressed, position = b"", False, 0
    for _ in range(64):  # boxes; a real container has fewer than ten
        if position + 8 > len(data) or len(head) >= _HEAD:
            break
        length, kind = unpack_from(">I4s", data, position)
        start = position + 8
        if length == 1 and position + 16 <= len(data):
            (length,) = unpack_from(">Q", data, start)
            start += 8
        end = position + length if length else len(data)
        if end < start or end > len(data):
            raise Undecodable("Pixel data: the JPEG XL container is cut short")
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0
            head += data[start : min(end, start + _HEAD)]
        recompressed = recompressed or kind == b"jbrd"
        position = end
    return head, recompressed


@dataclass(slots=True)
class _Bits:
    """Little endian bit reader over the head of the codestream."""

    data: bytes
    position: int = 0

    def take(self, count: int) -> int:
        if self.position + count > 8 * len(self.data):
            raise Undecodable("Pixel data: the JPEG XL codestream is cut short")
        whole = int.from_bytes(self.data, "little")
        value = whole >> self.position & ((1 << count) - 1)
        self.position += count
        return value

    def choose(self, *ways: tuple[int, int]) -> int:
        """One of four (constant, further bits) distributions, selected by two bits."""
        constant, count = ways[self.take(2)]
        return constant + self.take(count)


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    rows = _dimension(bits, small)
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio - 1]
        return rows, rows * numerator // denominator
    return rows, _dimension(bits, small)


def _dimension(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.choose((1, 9), (1, 13), (1, 18), (1, 30))


def _metadata(bits: _Bits) -> tuple[int, int, bool]:
    """Bits per sample, colour channels, and whether they are coded as XYB."""
    if bits.take(1):  # all default: 8 bits, RGB, XYB
        return 8, 3, True
    if bits.take(1):  # extra fields
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # intrinsic size
        if bits.take(1) or bits.take(1):
            raise Undecodable("Pixel data: a JPEG XL preview or animation")
    if bits.take(1):
        precision = bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
    else:
        precision = bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)  # 16-bit buffers suffice
    if bits.choose((0, 0), (1, 0), (2, 4), (1, 12)):
        raise Undecodable("Pixel data: JPEG XL channels besides the colours")
    xyb = bool(bits.take(1))
    if bits.take(1):  # default colour encoding: sRGB
        return precision, 3, xyb
    bits.take(1)  # an ICC profile follows
    grey = bits.choose((0, 0), (1, 0), (2, 4), (18, 6)) == 1
    return precision, 1 if grey else 3, xyb
