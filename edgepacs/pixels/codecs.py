"""One decoder per family of transfer syntaxes: bytes of one frame in, cells out.

Every decoder compares the header of the codestream with the description before it lets the
codec run, and `fit` afterwards, so that nothing a codestream claims can outgrow the caps.
What a codec itself raises is turned into Undecodable where decoders are called.
"""

import zlib
from collections.abc import Callable
from itertools import pairwise
from struct import unpack_from

import imagecodecs
import numpy as np

from edgepacs.errors import Undecodable
from edgepacs.pixels import codestreams
from edgepacs.pixels.codestreams import Header
from edgepacs.pixels.description import BIG_ENDIAN, Frame, PixelDescription, Pixels, SampleKind
from edgepacs.pixels.jpeg_xl import jpeg_xl_header

Decoder = Callable[[bytes, PixelDescription, int], Frame]  # data, description, first bit

_RLE_HEADER = 64
_CHROMA_422 = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})


def native_frame_bits(description: PixelDescription) -> int:
    """Bits one native frame takes, frames following each other without gaps (PS3.5 8.1.1)."""
    if description.photometric_interpretation in _CHROMA_422:
        return 2 * description.rows * description.columns * description.bits_allocated
    return description.samples * description.bits_allocated


def decode_native(data: bytes, description: PixelDescription, first_bit: int = 0) -> Frame:
    """Decode a native frame that begins `first_bit` bits into `data`."""
    if description.word_swapped:
        data = np.frombuffer(data[: len(data) // 2 * 2], "u2").byteswap().tobytes()
    data = data[first_bit // 8 :]
    meaning = description.photometric_interpretation
    if meaning == "YBR_PARTIAL_420":
        raise Undecodable("Photometric Interpretation: YBR_PARTIAL_420 has no native form")
    if meaning in _CHROMA_422 and 8 * len(data) < description.samples * description.bits_allocated:
        return _decode_native_422(data, description)
    if 8 * len(data) - first_bit % 8 < description.samples * description.bits_allocated:
        raise Undecodable("Pixel data: the frame is cut short")
    if description.bits_allocated == 1:
        cells = _unpack_bits(data, first_bit % 8, description.samples)
    else:
        cells = _cells(data, description)
    return Frame(_ordered(cells, description), meaning.replace("_422", ""))


def _unpack_bits(data: bytes, first_bit: int, count: int) -> Pixels:
    # The first pixel stands in the least significant bit (PS3.5 8.1.1).
    packed = np.frombuffer(data, "u1", count=(first_bit + count + 7) // 8)
    return np.unpackbits(packed, bitorder="little")[first_bit : first_bit + count]


def _cells(data: bytes, description: PixelDescription) -> Pixels:
    count, wire_bytes = description.samples, description.bits_allocated // 8
    big_endian = description.transfer_syntax_uid == BIG_ENDIAN
    if wire_bytes == description.cell_bytes:
        wire = description.dtype.newbyteorder(">" if big_endian else "<")
        return np.frombuffer(data, wire, count=count).astype(description.dtype, copy=False)
    octets = np.frombuffer(data, "u1", count=count * wire_bytes).reshape(count, wire_bytes)
    wide = np.zeros((count, description.cell_bytes), "u1")
    wide[:, :wire_bytes] = octets[:, ::-1] if big_endian else octets
    return _extend_sign(wide.view(f"<u{description.cell_bytes}")[:, 0], description, 8 * wire_bytes)


def _ordered(cells: Pixels, description: PixelDescription) -> Pixels:
    """`cells` in the description's shape, colour by plane made colour by pixel."""
    if description.samples_per_pixel > 1 and description.planar_configuration == 1:
        planes = cells.reshape(description.samples_per_pixel, description.rows, description.columns)
        cells = planes.transpose(1, 2, 0).copy(order="C")  # whose strides every codec accepts
    return cells.reshape(description.shape).astype(description.dtype, copy=False)


def _decode_native_422(data: bytes, description: PixelDescription) -> Frame:
    """Y1 Y2 Cb Cr for each pair of pixels of a row (PS3.3 C.7.6.3.1.2)."""
    pixels = description.rows * description.columns
    if description.columns % 2 or description.bits_allocated != 8:
        raise Undecodable("YBR_FULL_422: needs an even number of Columns of 8 bits")
    if len(data) < 2 * pixels:
        raise Undecodable("Pixel data: the frame is cut short")
    groups = np.frombuffer(data, "u1", count=2 * pixels).reshape(-1, 4)
    full = np.empty((len(groups), 2, 3), "u1")
    full[:, :, 0] = groups[:, :2]
    full[:, :, 1:] = groups[:, None, 2:]
    meaning = description.photometric_interpretation.replace("_422", "")
    return Frame(full.reshape(description.shape).astype(description.dtype, copy=False), meaning)


def decode_deflated(data: bytes, description: PixelDescription, first_bit: int = 0) -> Frame:
    """Decode a frame of Deflated Image Frame Compression, inflating no more than its size."""
    return decode_native(inflate_frame(data, description), description, first_bit)


def inflate_frame(data: bytes, description: PixelDescription) -> bytes:
    """The native bytes of a frame of Deflated Image Frame Compression, perhaps one more to pad.

    Raises Undecodable when it inflates beyond that; zlib's own error when it is broken.
    """
    expected = (native_frame_bits(description) + 7) // 8
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)  # RFC 1951, no zlib header
    inflated = inflater.decompress(data, expected + 2)
    if len(inflated) > expected + 1:  # one byte may pad to even length
        raise Undecodable("Pixel data: the frame inflates beyond its size")
    return inflated


def decode_rle(data: bytes, description: PixelDescription, _first_bit: int = 0) -> Frame:
    """Decode a frame of RLE Lossless (PS3.5 G): one segment per byte of a composite pixel."""
    wire_bytes = description.bits_allocated // 8
    count = description.samples_per_pixel * wire_bytes
    if not wire_bytes:
        raise Undecodable("Bits Allocated: RLE knows no cells of 1 bit")
    pixels = description.rows * description.columns
    planes = np.zeros((description.samples_per_pixel, pixels, description.cell_bytes), "u1")
    for index, segment in enumerate(_rle_segments(data, count)):
        sample, byte = divmod(index, wire_bytes)  # most significant byte first (PS3.5 G.2)
        planes[sample, :, wire_bytes - 1 - byte] = _rle_segment(segment, pixels)
    cells = planes.view(f"<u{description.cell_bytes}")[:, :, 0].T.reshape(description.shape)
    cells = _extend_sign(np.ascontiguousarray(cells), description, 8 * wire_bytes)
    return Frame(cells, description.photometric_interpretation)


def _rle_segments(data: bytes, count: int) -> list[bytes]:
    if len(data) < _RLE_HEADER:
        raise Undecodable("Pixel data: the RLE header is cut short")
    number, *offsets = unpack_from("<16I", data)
    if number != count or number > 15:  # PS3.5 G.5
        raise Undecodable("Pixel data: the RLE segments do not fit the samples and bits")
    edges = [*offsets[:number], len(data)]
    if edges[0] < _RLE_HEADER or any(a >= b for a, b in pairwise(edges)):
        raise Undecodable("Pixel data: an RLE segment lies outside the frame")
    return [data[a:b] for a, b in pairwise(edges)]


def _rle_segment(segment: bytes, pixels: int) -> Pixels:
    """Exactly `pixels` bytes; the codec refuses more (overrun), and fewer are refused here."""
    decoded = imagecodecs.packbits_decode(segment, out=bytearray(pixels))
    if len(decoded) != pixels:
        raise Undecodable("Pixel data: an RLE segment is cut short")
    return np.frombuffer(decoded, "u1")


def decode_jpeg(data: bytes, description: PixelDescription, _first_bit: int = 0) -> Frame:
    """Decode any JPEG process libjpeg-turbo knows: sequential, progressive and lossless.

    Colour coded as YCbCr comes out as RGB. Whether it is so coded the bit stream says (JFIF,
    Adobe, component identifiers); only where it is silent does the data set decide.
    """
    header = codestreams.jpeg_header(data)
    if codestreams.is_jpeg_ls(data):
        raise Undecodable("Pixel data: JPEG-LS in a transfer syntax of JPEG")
    _require(header, description)
    meaning = description.photometric_interpretation
    if header.components == 1:
        return Frame(fit(imagecodecs.jpeg8_decode(data), header, description), meaning)
    transformed = header.transformed
    if transformed is None:
        transformed = meaning != "RGB"
    if header.lossless_process:  # libjpeg converts no colours here
        cells = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
        return Frame(fit(cells, header, description), meaning.replace("_422", ""))
    stored = "YCBCR" if transformed else "RGB"
    cells = imagecodecs.jpeg8_decode(data, colorspace=stored, outcolorspace="RGB")
    return Frame(fit(cells, header, description), "RGB")


def decode_jpeg_ls(data: bytes, description: PixelDescription, _first_bit: int = 0) -> Frame:
    """Decode JPEG-LS, lossless or near-lossless. It knows no sign: the description gives it."""
    header = codestreams.jpeg_header(data)
    if not codestreams.is_jpeg_ls(data):
        raise Undecodable("Pixel data: not a JPEG-LS bit stream")
    _require(header, description)
    cells = fit(imagecodecs.jpegls_decode(data), header, description)
    return Frame(cells, description.photometric_interpretation)


def decode_jpeg_2000(data: bytes, description: PixelDescription, _first_bit: int = 0) -> Frame:
    """Decode JPEG 2000 and HTJ2K by OpenJPEG.

    OpenJPH would be twice as fast on HTJ2K, but its binding drops errors on the way out, so
    that broken frames pass for good, and a broken header can keep it busy for ever.
    """
    header = codestreams.jpeg_2000_header(data)
    _require(header, description)
    codestream = codestreams.whole_jpeg_2000(data)
    cells = fit(imagecodecs.jpeg2k_decode(codestream), header, description)
    return Frame(cells, _after_transform(header, description))


def decode_jpeg_xl(data: bytes, description: PixelDescription, _first_bit: int = 0) -> Frame:
    """Decode JPEG XL; XYB and recompressed JPEG come out as RGB."""
    header = jpeg_xl_header(data)
    _require(header, description)
    cells = fit(imagecodecs.jpegxl_decode(data, index=0, numthreads=1), header, description)
    return Frame(cells, _after_transform(header, description))


def _after_transform(header: Header, description: PixelDescription) -> str:
    meaning = description.photometric_interpretation
    if header.components == 1:
        return meaning
    # YBR_RCT, YBR_ICT and XYB name a transform inside the codestream: none there, none to undo.
    if header.transformed or meaning in ("YBR_RCT", "YBR_ICT", "XYB"):
        return "RGB"
    return meaning.replace("_422", "")


def _require(header: Header, description: PixelDescription) -> None:
    """Raise Undecodable unless the codestream holds the frame that the data set announces."""
    if (header.rows, header.columns) != (description.rows, description.columns):
        raise Undecodable("Rows, Columns: the compressed frame has another size")
    if header.components != description.samples_per_pixel:
        raise Undecodable("Samples per Pixel: the compressed frame has another number")
    if header.precision > description.bits_allocated:
        raise Undecodable("Bits Allocated: less than the precision of the compressed frame")
    if description.sample_kind is not SampleKind.INTEGER:
        raise Undecodable("Pixel data: floating point samples in an integer codestream")


def fit(cells: Pixels, header: Header, description: PixelDescription) -> Pixels:
    """`cells` from a codec in the shape and type of the description, sign extended if signed."""
    if cells.shape == (*description.shape, 1):
        cells = cells[..., 0]
    if cells.shape != description.shape or cells.dtype.kind not in "iu":
        raise Undecodable("Pixel data: the decoded frame has another shape than the data set says")
    if cells.dtype.kind == description.dtype.kind == "i":
        return np.ascontiguousarray(cells.astype(description.dtype, copy=False))
    bits = header.precision if not header.signed else description.bits_allocated
    unsigned = cells.astype(f"u{description.cell_bytes}", copy=False)
    return _extend_sign(np.ascontiguousarray(unsigned), description, bits)


def _extend_sign(cells: Pixels, description: PixelDescription, bits: int) -> Pixels:
    """Unsigned cells of `bits` significant bits as the description's type."""
    unused = 8 * description.cell_bytes - bits
    signed: Pixels = cells.view(description.dtype)
    if description.pixel_representation == 0 or not unused:
        return signed
    return np.right_shift(np.left_shift(signed, unused), unused)
