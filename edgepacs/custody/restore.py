"""Data sets as they were received, bit for bit, whatever stands at rest.

A compressed object keeps, in its trailer, what its own bytes do not say: the received head and
what followed the frames, told in terms of what stands around its own frames, and what the native
frames were like. Nothing is parsed to restore: frames are decoded, the rest is put around them.
"""

import base64
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

from edgepacs.custody.elements import EXPLICIT, Encoding, announced, byte_swapped, values
from edgepacs.custody.scan import UNDEFINED
from edgepacs.custody.standing import opened
from edgepacs.errors import Tampered, Undecodable
from edgepacs.model import UID
from edgepacs.pixels.choice import MAX_DEFLATED
from edgepacs.pixels.codecs import native_frame_bits
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.deflated import inflate
from edgepacs.pixels.description import BIG_ENDIAN, PixelDescription, SampleKind, describe
from edgepacs.pixels.frames import FrameIndex, reader
from edgepacs.pixels.native import native_frame
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET
from edgepacs.store import Store
from edgepacs.store.drafts import AtRest, Draft
from edgepacs.store.fingerprint import Fingerprint
from edgepacs.store.instances import Instance
from edgepacs.store.vault import ObjectReader

MAX_OUTSIDE = 16 << 20  # bytes before and after the frames that are held in memory

_PIXEL_DATA = 0x7FE00010
_BLOCK = 1 << 13
_BUFFER = 1 << 17
_NUMBERS = {
    0x00280002: "SamplesPerPixel",
    0x00280006: "PlanarConfiguration",
    0x00280010: "Rows",
    0x00280011: "Columns",
    0x00280100: "BitsAllocated",
    0x00280101: "BitsStored",
    0x00280102: "HighBit",
    0x00280103: "PixelRepresentation",
}
_TEXTS = {0x00280004: "PhotometricInterpretation", 0x00280008: "NumberOfFrames"}
_PIXEL_TAGS = frozenset((*_NUMBERS, *_TEXTS))


def received_chunks(store: Store, instance: Instance) -> Iterator[bytes]:
    """The data set of an instance as it was received, bit for bit, in pieces.

    Its syntax is `received_syntax_uid`. Of a compressed object the last piece is held back until
    the whole is known to be what was received. Raises NotFound, Tampered, Undecodable.
    """
    _, stored = opened(store, instance)
    with stored:
        draft = Draft.from_trailer(stored.trailer(), instance.object_id, sealed_length=0)
        if draft.at_rest is None:
            yield from stored.chunks()
            return
        pieces = iter(received(stored, draft).chunks())
        fingerprint = Fingerprint.like(draft.received_digest)
        held = b""
        for piece in filter(None, pieces):
            yield held
            fingerprint.update(piece)
            held = piece
        if fingerprint.value() != draft.received_digest:
            raise Tampered("object: does not restore to what was received")
        yield held


@dataclass(frozen=True, slots=True)
class Received:
    """A data set with native pixel data as it was received: head, frames, rest.

    `head` goes up to the value of its pixel data element, `rest` begins behind the last frame.
    `frame(n)` is a native little endian frame, whatever the byte order of the data set.
    """

    head: bytes
    rest: bytes
    description: PixelDescription
    frame: Callable[[int], bytes]

    @property
    def length(self) -> int:
        """Bytes of the data set."""
        return len(self.head) + frames_length(self.description) + len(self.rest)

    def frames(self) -> Iterator[bytes]:
        """Every frame, native and little endian; raises Undecodable, Tampered."""
        return map(self.frame, range(self.description.number_of_frames))

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they were received; raises as `frames`."""
        yield self.head
        for frame in self.frames():
            yield turned(frame, self.description)
        yield self.rest

    @property
    def padding(self) -> int:
        """How many bytes of `rest` still belong to the pixel data element."""
        encoding = encoding_of(self.head, self.description.transfer_syntax_uid)
        start = len(self.head) - (8 if encoding.implicit else 12)
        return announced(self.head, start, encoding).length - frames_length(self.description)


def received(stored: ObjectReader, draft: Draft) -> Received:
    """The received form of the data set sealed in `stored` as `draft`.

    Raises NotFound or Undecodable where it has no native pixel data to be taken apart, Tampered.
    """
    stream = cast("BinaryIO", io.BufferedReader(stored, _BUFFER))
    syntax_uid = draft.arrival.transfer_syntax_uid
    if draft.at_rest is None:
        return taken_apart(stream, stored.length, syntax_uid, draft.pixel_offset)
    return put_together(stream, stored.length, syntax_uid, draft.at_rest)


def put_together(
    stream: BinaryIO, length: int, received_syntax_uid: UID, at_rest: AtRest
) -> Received:
    """The received form of a compressed data set; raises Undecodable, Tampered."""
    recipe = Recipe.from_json(at_rest.restore)
    description = recipe.description(received_syntax_uid)
    if at_rest.transfer_syntax_uid == DEFLATED_DATA_SET:
        return _inflated(stream, recipe, description)
    return _decoded(stream, length, recipe, description, at_rest)


def encoding_of(head: bytes, transfer_syntax_uid: str) -> Encoding:
    """How a native data set is encoded: its first bytes are believed, whatever it claims."""
    vr = head[4:6]
    return Encoding(
        implicit=not (vr.isalpha() and vr.isupper()), big_endian=transfer_syntax_uid == BIG_ENDIAN
    )


def described(head: bytes, encoding: Encoding, transfer_syntax_uid: str) -> PixelDescription:
    """What the head of a data set says about its pixels; raises Undecodable, NotFound."""
    element, before = _pixel_element(head, encoding)
    found = values(before, encoding, _PIXEL_TAGS)
    attributes: dict[str, Any] = {
        name: _text(found.get(tag, b"")) for tag, name in _TEXTS.items()
    } | {name: _number(found.get(tag, b""), encoding, name) for tag, name in _NUMBERS.items()}
    return describe(attributes, transfer_syntax_uid, vr=element, sample_kind=SampleKind.INTEGER)


def _pixel_element(head: bytes, encoding: Encoding) -> tuple[str, bytes]:
    """The VR of the pixel data element that ends `head`, and the elements before it."""
    start = len(head) - (8 if encoding.implicit else 12)
    element = announced(head, max(0, start), encoding)
    if start < 0 or (element.tag, element.start) != (_PIXEL_DATA, len(head)):
        raise Undecodable("Pixel data: not where it was seen")
    if element.vr not in (b"", b"OB", b"OW"):
        raise Undecodable("Pixel data: of a VR that holds no pixels")
    return element.vr.decode() or "OW", head[:start]


def _text(raw: bytes) -> str | None:
    return raw.decode("ascii", "replace").strip("\0 ") or None


def _number(raw: bytes, encoding: Encoding, name: str) -> int | None:
    if len(raw) not in (0, 2):
        raise Undecodable(f"{name}: not a single number of 16 bits")
    return int.from_bytes(raw, "big" if encoding.big_endian else "little") if raw else None


def frames_length(description: PixelDescription) -> int:
    """Bytes of all native frames together."""
    return description.number_of_frames * (native_frame_bits(description) // 8)


def turned(frame: bytes, description: PixelDescription) -> bytes:
    """A little endian native frame in the byte order of its data set, or the other way round."""
    if description.transfer_syntax_uid != BIG_ENDIAN:
        return frame
    size = 2 if description.word_swapped else description.bits_allocated // 8
    return byte_swapped(frame, size) if size > 1 else frame


def taken_apart(stream: BinaryIO, length: int, syntax_uid: UID, pixel_offset: int) -> Received:
    """A data set of `length` bytes as it was received, its pixel data element at `pixel_offset`.

    Raises NotFound or Undecodable where it has no native pixel data, or holds other than it says.
    """
    if not 0 <= pixel_offset <= MAX_OUTSIDE:
        raise Undecodable(f"Pixel data: none seen within {MAX_OUTSIDE >> 20} MiB")
    head = stream.read(pixel_offset + 12)
    encoding = encoding_of(head, syntax_uid)
    element = announced(head, pixel_offset, encoding)
    head = head[: element.start]
    if element.length == UNDEFINED or element.start + element.length > length:
        raise Undecodable("Pixel data: not native, whatever the transfer syntax says")
    description = described(head, encoding, syntax_uid)
    size = native_frame_bits(description) // 8
    if native_frame_bits(description) % 8 or (description.word_swapped and size % 2):
        raise Undecodable("Pixel data: frames do not begin at whole bytes or words")
    excess = element.length - frames_length(description)
    if excess not in (0, 1):
        less_or_more = "shorter" if excess < 0 else "longer"
        raise Undecodable(f"Pixel data: {less_or_more} than Rows, Columns and Number of Frames say")
    end = element.start + frames_length(description)
    if length - end > MAX_OUTSIDE:
        raise Undecodable(f"Data set: more than {MAX_OUTSIDE >> 20} MiB behind the pixels")
    stream.seek(end)
    rest = stream.read(length - end)
    if len(rest) != length - end:
        raise Undecodable("Data set: shorter than it was")

    def frame(number: int) -> bytes:
        stream.seek(element.start + number * size)
        return turned(stream.read(size), description)

    return Received(head, rest, description, frame)


def _decoded(
    stream: BinaryIO,
    length: int,
    recipe: "Recipe",
    description: PixelDescription,
    at_rest: AtRest,
) -> Received:
    """The received form of an encapsulated data set."""
    around = stream.read(recipe.stored_head)
    stored = described(around, EXPLICIT, at_rest.transfer_syntax_uid)
    room = length - recipe.stored_head - recipe.stored_tail
    index = FrameIndex(reader(stream, recipe.stored_head), room, stored)

    def frame(number: int) -> bytes:
        decoded = decode_frame(index.read(number).data, stored)
        if decoded.photometric_interpretation != description.photometric_interpretation:
            raise Undecodable("Photometric Interpretation: decodes to another colour space")
        return native_frame(decoded.array, description)

    stream.seek(length - recipe.stored_tail)
    around += stream.read(recipe.stored_tail)
    return Received(*recipe.around(around), description, frame)


def _inflated(stream: BinaryIO, recipe: "Recipe", description: PixelDescription) -> Received:
    """The received form of a data set deflated as a whole (PS3.5 A.5), held in memory."""
    chunks = iter(lambda: stream.read(_BUFFER), b"")
    plain = b"".join(inflate(chunks, MAX_DEFLATED + MAX_OUTSIDE))
    first, size = recipe.stored_head, native_frame_bits(description) // 8
    around = plain[:first] + plain[len(plain) - recipe.stored_tail :]
    if len(plain) != first + frames_length(description) + recipe.stored_tail:
        raise Tampered("object: its length is not what its trailer says")

    def frame(number: int) -> bytes:
        return plain[first + number * size : first + (number + 1) * size]

    return Received(*recipe.around(around), description, frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What gives the received bytes around the frames back (docs/format.md, "Restoring").

    `outside` are those bytes, `head_length` of them before the frames, packed against the ones
    that stand before (`stored_head` bytes) and behind (`stored_tail`) the pixels at rest.
    """

    outside: bytes
    outside_length: int
    head_length: int
    stored_head: int
    stored_tail: int
    pixels: Mapping[str, Any]

    @classmethod
    def of(cls, whole: Received, head: bytes, tail: bytes) -> "Recipe":
        """The recipe that leads from `head` and `tail` back to what is around the frames."""
        outside = whole.head + whole.rest
        pixels = asdict(whole.description)
        del pixels["transfer_syntax_uid"], pixels["sample_kind"]
        return cls(
            outside=_packed(outside, head + tail),
            outside_length=len(outside),
            head_length=len(whole.head),
            stored_head=len(head),
            stored_tail=len(tail),
            pixels=pixels,
        )

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> "Recipe":
        """The recipe a trailer holds."""
        return cls(**{**made, "outside": base64.b64decode(made["outside"])})

    def as_json(self) -> dict[str, Any]:
        """As it stands in a trailer."""
        return {**asdict(self), "outside": base64.b64encode(self.outside).decode()}

    def description(self, received_syntax_uid: UID) -> PixelDescription:
        """What the native frames were."""
        return PixelDescription(**self.pixels, transfer_syntax_uid=received_syntax_uid)

    def around(self, stored: bytes) -> tuple[bytes, bytes]:
        """Head and rest as received, from what stands around the pixels at rest."""
        outside = _unpacked(self.outside, self.outside_length, stored)
        return outside[: self.head_length], outside[self.head_length :]


def _packed(data: bytes, model: bytes) -> bytes:
    """`data` in terms of `model`, which resembles it: a raw deflate stream for every 8 KiB.

    Each stream has for its dictionary what stands near its own place in `model`, so that a head
    of any length costs little more than what differs.
    """
    parts = []
    for at in range(0, len(data), _BLOCK):
        near = _near(model, at, len(data))
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS, zdict=near)
        parts += [packer.compress(data[at : at + _BLOCK]), packer.flush()]
    return b"".join(parts)


def _unpacked(packed: bytes, length: int, model: bytes) -> bytes:
    """The inverse of `_packed`, for `length` bytes; raises Tampered."""
    parts = []
    for at in range(0, length, _BLOCK):
        inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_near(model, at, length))
        try:
            parts.append(inflater.decompress(packed, _BLOCK))
        except zlib.error:
            raise Tampered("object: what restores it is broken") from None
        packed = inflater.unused_data
    data = b"".join(parts)
    if len(data) != length:
        raise Tampered("object: what restores it is broken")
    return data


def _near(model: bytes, at: int, whole: int) -> bytes:
    """24 KiB of `model` around the place that `at` has in `whole`."""
    place = at * len(model) // whole
    return model[max(0, place - _BLOCK) : place + 2 * _BLOCK]
