"""An instance opened to be written anew: attributes as bytes, frames as native bytes.

What is opened is always what was received, never what somebody has made of it since. One frame
after the other is in memory, never all of them.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from edgepacs.custody import elements, restore, standing
from edgepacs.custody.elements import EXPLICIT, Encoding, byte_swapped
from edgepacs.custody.scan import ITEM, MAX_ITEMS, SEQUENCE_END, UNDEFINED
from edgepacs.errors import EdgePacsError, Undecodable
from edgepacs.pixels.codecs import native_frame_bits
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.deflated import inflate
from edgepacs.pixels.description import EXPLICIT_LITTLE, PixelDescription, SampleKind, describe
from edgepacs.pixels.encode import Unencodable
from edgepacs.pixels.frames import ExtendedOffsetTable, FrameIndex, reader
from edgepacs.pixels.native import native_as, native_frame
from edgepacs.pixels.syntaxes import TransferSyntax, syntax
from edgepacs.store import Store
from edgepacs.store.instances import Instance
from edgepacs.store.vault import ObjectReader

MAX_ATTRIBUTES = 256 << 20  # bytes besides the pixel data
MAX_INFLATED = 16 << 30
PIXELS = {
    0x7FE00008: SampleKind.FLOAT,
    0x7FE00009: SampleKind.DOUBLE,
    0x7FE00010: SampleKind.INTEGER,
}
_IMPLICIT_VRS = {  # PS3.5 A.1
    SampleKind.FLOAT: b"OF",
    SampleKind.DOUBLE: b"OD",
    SampleKind.INTEGER: b"OW",
}
_FIRST_LOOK = 1 << 20
_STEP = 1 << 18
_BUFFER = 1 << 17


class Supply:
    """Bytes that come in pieces, taken as they are needed."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._waiting = b""

    def look(self, length: int) -> bytes:
        """The next `length` bytes, fewer only at the end; they stay where they are."""
        found, have = [self._waiting], len(self._waiting)
        while have < length and (piece := next(self._pieces, None)) is not None:
            found.append(piece)
            have += len(piece)
        self._waiting = b"".join(found)
        return self._waiting[:length]

    def take(self, length: int) -> bytes:
        """The next `length` bytes; raises Undecodable where there are fewer."""
        found = self.look(length)
        if len(found) < length:
            raise Undecodable("Data set: it is cut short")
        self._waiting = self._waiting[length:]
        return found

    def rest(self, most: int = MAX_ATTRIBUTES) -> bytes:
        """All that is left; raises Undecodable beyond `most` bytes."""
        found = self.look(most + 1)
        if len(found) > most:
            raise Undecodable(f"Data set: more than {most >> 20} MiB besides its pixel data")
        return self.take(len(found))


@dataclass(slots=True, kw_only=True)
class NativePixels:
    """Pixel data that came native.

    `description` is of it in little endian, None where its attributes make no sense. `swapped`
    are the bytes of a number that comes in big endian.
    """

    description: PixelDescription | None
    vr: bytes
    length: int
    supply: Supply
    swapped: int = 1

    def value(self) -> Iterator[bytes]:
        """The whole value in little endian, with whatever follows the frames in it."""
        step, left = _STEP * self.swapped, self.length
        while left:
            piece = self.supply.take(min(step, left))
            left -= len(piece)
            yield byte_swapped(piece, self.swapped) if self.swapped > 1 else piece

    def require_frames(self) -> None:
        """Raise Unencodable unless the value is made of the frames alone."""
        bits, number = _frames_of(self.description)
        total = bits // 8 * number
        if bits % 8 or self.length not in (total, total + total % 2):
            raise Unencodable("Pixel data: not of the length its attributes say")

    def frames(self) -> Iterator[bytes]:
        """The frames; raises as `require_frames`."""
        self.require_frames()
        bits, number = _frames_of(self.description)
        value = Supply(self.value())
        for _ in range(number):
            yield value.take(bits // 8)
        value.rest(1)


class CodedPixels:
    """Pixel data that came encapsulated; `description` is of it once decoded."""

    def __init__(self, index: FrameIndex, coded: PixelDescription) -> None:
        self._index = index
        self._coded = coded
        encoded = index.read(0)
        frame = decode_frame(encoded.data, coded, first_bit=encoded.first_bit)
        self.description: PixelDescription | None = replace(
            native_as(coded, frame), planar_configuration=coded.planar_configuration
        )

    def frames(self) -> Iterator[bytes]:
        """The frames decoded; raises Undecodable."""
        assert self.description is not None
        for number in range(len(self._index)):
            encoded = self._index.read(number)
            frame = decode_frame(encoded.data, self._coded, first_bit=encoded.first_bit)
            if frame.photometric_interpretation != self.description.photometric_interpretation:
                raise Undecodable("Photometric Interpretation: not the same in every frame")
            yield native_frame(frame.array, self.description)

    def require_frames(self) -> None:
        """It is made of nothing else."""

    def value(self) -> Iterator[bytes]:
        """The frames as one native value of even length; raises Undecodable."""
        bits, number = _frames_of(self.description)
        frames = self.frames()
        yield from _joined(frames, bits) if bits % 8 and number > 1 else frames
        if self.length % 2:
            yield b"\0"

    @property
    def length(self) -> int:
        """Bytes of the native frames, without padding."""
        bits, number = _frames_of(self.description)
        return (bits * number + 7) // 8

    @property
    def vr(self) -> bytes:
        """The VR of the native value (PS3.5 A.2)."""
        assert self.description is not None
        return b"OW" if self.description.bits_allocated > 8 else b"OB"


def _joined(frames: Iterable[bytes], bits: int) -> Iterator[bytes]:
    """Frames that do not fill their last byte, without gaps between them (PS3.5 8.1.1)."""
    left = np.empty(0, "u1")
    for frame in frames:
        more = np.unpackbits(np.frombuffer(frame, "u1"), bitorder="little")[:bits]
        left = np.concatenate((left, more))
        whole = len(left) // 8 * 8
        yield np.packbits(left[:whole], bitorder="little").tobytes()
        left = left[whole:]
    yield np.packbits(left, bitorder="little").tobytes()


def _frames_of(description: PixelDescription | None) -> tuple[int, int]:
    """Bits of a native frame, and how many frames there are."""
    if description is None:
        raise Unencodable("Pixel data: its attributes do not say what it is")
    return native_frame_bits(description), description.number_of_frames


@dataclass(slots=True, kw_only=True)
class Original:
    """An instance as it was received, opened to be written anew, once.

    `head` and what `tail` gives are little endian; `said` is how its attributes describe pixels.
    """

    row: TransferSyntax
    dataset: Dataset
    encoding: Encoding
    head: bytes
    tail: Callable[[], bytes]
    said: PixelDescription | None = None
    pixels: NativePixels | CodedPixels | None = None

    @property
    def native(self) -> PixelDescription | None:
        """Its pixels once native and little endian; None where they are not to be described."""
        return self.pixels.description if self.pixels else None


def opened(store: Store, instance: Instance) -> Original:
    """Open an instance to be written anew, as it was received.

    Raises NotFound, Undecodable, Tampered.
    """
    now, stored = standing.opened(store, instance)
    row = syntax(now.received_syntax_uid)
    if row is None or row.decoder is None:
        raise Undecodable(f"{row.name if row else 'Its transfer syntax'}: not decoded here")
    as_received = now.transfer_syntax_uid == now.received_syntax_uid
    pieces: Iterable[bytes] = restore.received_chunks(store, now)
    if row.deflated:
        pieces = inflate(pieces, MAX_INFLATED)
    supply = Supply(pieces)
    came = restore.encoding_of(supply.look(6), row.uid)
    offset = now.pixel_offset if as_received and not row.deflated else -1
    dataset, end, has_pixels = attributes_of(supply, came, offset)
    made = Original(
        row=row,
        dataset=dataset,
        encoding=Encoding(implicit=came.implicit),
        head=_little(supply.take(end), came),
        tail=lambda: _little(supply.rest(), came),
    )
    if has_pixels and row.encapsulated:
        _open_coded(made, supply, stored, end)
    elif has_pixels:
        _open_native(made, supply, came)
    return made


def attributes_of(supply: Supply, came: Encoding, offset: int) -> tuple[Dataset, int, bool]:
    """What stands before the pixel data, how many bytes that is, and whether there are any."""
    wanted = offset + 8 if offset >= 0 else _FIRST_LOOK
    while True:
        data = supply.look(wanted)
        whole = len(data) < wanted
        found = _parsed(data, came, whole=whole)
        if found is not None:
            return found
        if wanted > MAX_ATTRIBUTES:
            raise Undecodable(f"Data set: more than {MAX_ATTRIBUTES >> 20} MiB of attributes")
        wanted = max(8 * wanted, _FIRST_LOOK)


def _parsed(data: bytes, came: Encoding, *, whole: bool) -> tuple[Dataset, int, bool] | None:
    """The same of what `data` holds; None where it takes more of it to tell."""
    item = b"\xff\xfe\xe0\x00" if came.big_endian else b"\xfe\xff\x00\xe0"
    if data.count(item) > MAX_ITEMS:
        raise Undecodable(f"Data set: more than {MAX_ITEMS} sequence items")
    stream = io.BytesIO(data)
    try:
        dataset = read_dataset(stream, came.implicit, not came.big_endian, stop_when=_at_pixels)
    except Exception as error:  # a broken data set raises nearly anything in the parser
        if not whole:
            return None
        raise Undecodable("Data set: it cannot be parsed") from error
    end = stream.tell()
    if end + 8 <= len(data) and elements.announced(data[end:] + bytes(4), 0, came).tag in PIXELS:
        return dataset, end, True
    return (dataset, len(data), False) if whole else None


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) in PIXELS


def _little(data: bytes, came: Encoding) -> bytes:
    return elements.recoded(data, came) if came.big_endian else data


def _open_native(made: Original, supply: Supply, came: Encoding) -> None:
    element = elements.announced(supply.look(12), 0, came)
    if element.length == UNDEFINED:
        raise Undecodable("Pixel data: encapsulated in a native transfer syntax")
    supply.take(element.start)
    kind = PIXELS[element.tag]
    vr = element.vr or _IMPLICIT_VRS[kind]
    try:
        made.said = describe(made.dataset, made.row.uid, vr=vr.decode(), sample_kind=kind)
    except EdgePacsError:
        made.said = None
    swapped = 1
    if came.big_endian:
        swapped = _number_bytes(made.said) if made.said else 2
    little = made.said and replace(
        made.said, transfer_syntax_uid=EXPLICIT_LITTLE, word_swapped=False
    )
    made.pixels = NativePixels(
        description=little, vr=vr, length=element.length, supply=supply, swapped=swapped
    )


def _number_bytes(said: PixelDescription) -> int:
    """Bytes of a number in big endian pixel data (PS3.5 7.3)."""
    return 2 if said.word_swapped else max(1, said.bits_allocated // 8)


def _open_coded(made: Original, supply: Supply, stored: ObjectReader, at: int) -> None:
    """Open frames that were received encapsulated, and so stand at rest as they came."""
    element = elements.announced(supply.look(12), 0, EXPLICIT)
    if element.length != UNDEFINED:
        raise Undecodable("Pixel data: native in an encapsulated transfer syntax")
    start, dataset = at + element.start, made.dataset
    made.said = describe(
        dataset, made.row.uid, vr=element.vr.decode(), sample_kind=PIXELS[element.tag]
    )
    extended = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        extended = ExtendedOffsetTable(
            dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
        )
    stream = cast("BinaryIO", io.BufferedReader(stored, _BUFFER))
    index = FrameIndex(reader(stream, start), stored.length - start, made.said, extended)
    made.pixels = CodedPixels(index, made.said)
    made.tail = lambda: _behind(stream, start, stored.length)


def _behind(stream: BinaryIO, at: int, length: int) -> bytes:
    """What follows encapsulated pixel data whose first item stands at `at`."""
    stream.seek(at)
    while len(header := stream.read(8)) == 8:
        item = elements.announced(header, 0, EXPLICIT)
        if item.tag == SEQUENCE_END:
            break
        if item.tag != ITEM or item.length == UNDEFINED:
            raise Undecodable("Pixel data: no item where a fragment should begin")
        stream.seek(item.length, io.SEEK_CUR)
    if length - stream.tell() > MAX_ATTRIBUTES:
        raise Undecodable(f"Data set: more than {MAX_ATTRIBUTES >> 20} MiB behind its pixel data")
    return stream.read()
