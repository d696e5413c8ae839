"""Headers of the compressed bit streams, read before a codec is let loose on them.

A codestream's own header decides how much memory and time its decoder takes, so it is compared
with the data set first. Only markers are walked, in time proportional to their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack_from

from edgepacs.errors import Undecodable

MAX_SCANS = 256  # a progressive JPEG of three 12-bit components needs fewer than 100
MAX_PRECINCTS = 1 << 20
MAX_PACKETS = 1 << 24  # precincts x quality layers
MAX_CODE_BLOCKS = 1 << 20

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP0, _APP14, _SOF55 = 0xE0, 0xEE, 0xF7
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI (T.81 B.1.1.3)
_SOF = frozenset({*range(0xC0, 0xD0), _SOF55} - {0xC4, 0xC8, 0xCC})  # not DHT, JPG, DAC
_COD, _COC, _SOT, _SOD = 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SOC_SIZ = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"  # EOI and EOC alike
_SIGNED = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a codestream says of itself.

    `transformed` tells that its components are YCbCr on the wire and come out as RGB; None
    where the codestream does not say.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    transformed: bool | None = None
    lossless_process: bool = False


def jpeg_header(data: bytes) -> Header:
    """Header of a JPEG (ITU-T T.81) or JPEG-LS (T.87) bit stream.

    Raises Undecodable when it is neither, lacks its end, or has more than MAX_SCANS scans.
    """
    if not data.startswith(b"\xff\xd8"):
        raise Undecodable("Pixel data: not a JPEG bit stream")
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise Undecodable(f"Pixel data: a JPEG bit stream of more than {MAX_SCANS} scans")
    # libjpeg fills what is missing with grey and says nothing; marker codes cannot occur
    # inside entropy-coded data (T.81 B.1.1.5), so a missing end marker means missing rows.
    if data.rfind(_END) < 0:
        raise Undecodable("Pixel data: the JPEG bit stream is cut short")
    jfif, adobe, frame = False, None, None
    for marker, start, end in _jpeg_segments(data):
        if marker == _APP0:
            jfif = jfif or data[start:end].startswith(b"JFIF")
        elif marker == _APP14 and data[start:end].startswith(b"Adobe") and end - start >= 12:
            adobe = data[start + 11] != 0
        elif marker in _SOF and frame is None:
            frame = (marker, data[start:end])
    if frame is None:
        raise Undecodable("Pixel data: the JPEG bit stream has no frame header")
    return _jpeg_frame(*frame, jfif=jfif, adobe=adobe)


def is_jpeg_ls(data: bytes) -> bool:
    """Whether the first frame header of this JPEG family bit stream is that of JPEG-LS."""
    return any(marker == _SOF55 for marker, _, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the parameters of each segment before the first scan."""
    position = 0
    while True:
        if data[position : position + 1] != b"\xff":
            raise Undecodable("Pixel data: the JPEG bit stream has broken markers")
        while data[position : position + 1] == b"\xff":  # fill bytes (T.81 B.1.1.2)
            position += 1
        if position + 3 > len(data):
            raise Undecodable("Pixel data: the JPEG bit stream is cut short")
        marker = data[position]
        position += 1
        if marker in (_SOS, _EOI):
            return
        if marker in _STANDALONE:
            continue
        (length,) = unpack_from(">H", data, position)
        if length < 2 or position + length > len(data):
            raise Undecodable("Pixel data: a JPEG marker segment runs past the end")
        yield marker, position + 2, position + length
        position += length


def _jpeg_frame(marker: int, frame: bytes, *, jfif: bool, adobe: bool | None) -> Header:
    if len(frame) < 6:
        raise Undecodable("Pixel data: the JPEG frame header is cut short")
    precision, rows, columns, components = unpack_from(">BHHB", frame)
    identifiers = frame[6 : 6 + 3 * components : 3]
    transformed = adobe
    if identifiers in (b"RGB", b"rgb"):
        transformed = False
    elif adobe is None and jfif:
        transformed = True  # JFIF knows no other colour space
    return Header(
        rows=rows,
        columns=columns,
        components=components,
        precision=precision,
        transformed=transformed,
        lossless_process=marker in (0xC3, 0xC7, 0xCB, 0xCF, _SOF55),
    )


def jpeg_2000_header(data: bytes) -> Header:
    """Header of a JPEG 2000 or HTJ2K codestream (T.800 A.5, A.6.1).

    Raises Undecodable when it is no codestream or cut short in its main header.
    """
    codestream = _unwrapped(data)
    size = _Size.parse(codestream)
    transformed = False
    for marker, start, _ in _jpeg_2000_segments(codestream, 2, _SOT):
        if marker == _COD:
            transformed = codestream[start + 4] == 1
    return Header(
        rows=size.rows,
        columns=size.columns,
        components=size.components,
        precision=size.precision,
        signed=size.signed,
        transformed=transformed,
    )


def whole_jpeg_2000(data: bytes) -> bytes:
    """Return the codestream proper, its end marker added where only that is missing.

    Raises Undecodable when tile-parts are cut short or missing, which the decoders take for
    good, or when it asks for more precincts or code-blocks than its size can need.
    """
    codestream = _unwrapped(data)
    size = _Size.parse(codestream)
    position = 2
    for marker, start, end in _jpeg_2000_segments(codestream, position, _SOT):
        _check_coding_style(size, marker, codestream[start:end])
        position = end
    end = _walk_tile_parts(codestream, position, size)
    if codestream[end : end + 2] == _END:
        return codestream
    return codestream[:end] + _END


def _unwrapped(data: bytes) -> bytes:
    """The codestream without the JP2 boxes that some put around it against PS3.5 A.4.4."""
    start = 0 if data.startswith(_SOC_SIZ) else data.find(_SOC_SIZ, 0, 4096)
    if start < 0 or (start and data[4:8] != b"jP  "):
        raise Undecodable("Pixel data: not a JPEG 2000 codestream")
    return data[start:]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool
    tiles: int

    @classmethod
    def parse(cls, data: bytes) -> "_Size":
        width, height, left, top, tile_width, tile_height, tile_left, tile_top, components = (
            unpack_from(">8IH", data, 8)  # after SOC, SIZ, Lsiz, Rsiz
        )
        if not (components and tile_width and tile_height and width > left and height > top):
            raise Undecodable("Pixel data: the JPEG 2000 image size is empty")
        details = {bytes(data[42 + 3 * i : 45 + 3 * i]) for i in range(components)}
        if len(details) != 1 or next(iter(details))[1:] != b"\1\1":
            raise Undecodable("Pixel data: JPEG 2000 components of different size or precision")
        depth = next(iter(details))[0]
        across = -(-(width - tile_left) // tile_width)
        down = -(-(height - tile_top) // tile_height)
        return cls(
            rows=height - top,
            columns=width - left,
            components=components,
            precision=(depth & 0x7F) + 1,
            signed=bool(depth & _SIGNED),
            tiles=across * down,
        )


def _jpeg_2000_segments(data: bytes, position: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the parameters of each segment from `position` up to `stop`."""
    while True:
        if position + 4 > len(data):
            raise Undecodable("Pixel data: the JPEG 2000 codestream is cut short")
        marker, length = unpack_from(">HH", data, position)
        if marker == stop:
            return
        if marker < 0xFF00 or length < 2 or position + 2 + length > len(data):
            raise Undecodable("Pixel data: the JPEG 2000 codestream has broken markers")
        yield marker, position + 4, position + 2 + length
        position += 2 + length


def _check_coding_style(size: _Size, marker: int, parameters: bytes) -> None:
    """Refuse coding styles whose bookkeeping alone exhausts memory (T.800 A.6.1, A.6.2)."""
    if marker == _COD:
        (layers,) = unpack_from(">H", parameters, 2)
        style, rest = parameters[0], parameters[5:]
    elif marker == _COC:
        skip = 1 if size.components < 257 else 2
        layers, style, rest = 1, parameters[skip], parameters[skip + 1 :]
    else:
        return
    levels, width_exponent, height_exponent = rest[0], (rest[1] & 15) + 2, (rest[2] & 15) + 2
    exponents = rest[5 : 6 + levels] if style & 1 else b"\xff" * (levels + 1)
    if levels > 32 or len(exponents) != levels + 1:
        raise Undecodable("Pixel data: broken JPEG 2000 coding style")
    precincts = size.tiles * (levels + 1)
    for level, exponent in enumerate(exponents):
        reduce = levels - level
        precincts += ((size.columns >> reduce >> (exponent & 15)) + 1) * (
            (size.rows >> reduce >> (exponent >> 4)) + 1
        )
    precincts *= size.components
    blocks = (
        size.components
        * ((size.columns >> width_exponent) + 1)
        * ((size.rows >> height_exponent) + 1)
    )
    if precincts > MAX_PRECINCTS or precincts * layers > MAX_PACKETS or blocks > MAX_CODE_BLOCKS:
        raise Undecodable("Pixel data: more JPEG 2000 precincts, layers or blocks than can be real")


def _walk_tile_parts(data: bytes, position: int, size: _Size) -> int:
    """Where the last tile-part ends. Decoders take a codestream without its tail for good."""
    tiles_seen = set()
    while data[position : position + 2] == b"\xff\x90":
        tile, length = unpack_from(">HI", data, position + 4)
        tiles_seen.add(tile)
        for marker, start, end in _jpeg_2000_segments(data, position + 12, _SOD):
            _check_coding_style(size, marker, data[start:end])
        if length == 0:  # the last tile-part, up to the end marker (T.800 A.4.2)
            length = data.rfind(_END) - position
        if length < 14 or position + length > len(data):
            raise Undecodable("Pixel data: the JPEG 2000 codestream is cut short")
        position += length
    if len(tiles_seen) != size.tiles:
        raise Undecodable("Pixel data: the JPEG 2000 codestream lacks tiles")
    return position
