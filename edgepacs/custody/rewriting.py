"""An instance written anew in another transfer syntax.

Attributes pass as bytes (`elements`); only what says how pixels are encoded changes with their
encoding (PS3.3 C.7.6.3). Every frame that is encoded without loss is decoded again and compared.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from struct import pack
from typing import NamedTuple

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import BaseTag

from edgepacs.custody import elements
from edgepacs.custody.elements import EXPLICIT, IMPLICIT, Encoding
from edgepacs.custody.original import PIXELS, CodedPixels, Original
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.deflated import deflate_pieces
from edgepacs.pixels.description import PixelDescription, SampleKind, describe
from edgepacs.pixels.encode import Unencodable, encode_verified, encoded_as
from edgepacs.pixels.frames import FrameIndex
from edgepacs.pixels.framing import OFFSET_TABLES, PIXEL_DATA_HEADER, encapsulated, offset_tables
from edgepacs.pixels.native import native_as, native_frame
from edgepacs.pixels.syntaxes import Loss, syntax

GATHERED = 16 << 20  # bytes of encoded frames that may wait for their offset table
MAX_NATIVE = 0xFFFFFFFE  # PS3.5 7.1.1: the longest defined length that is even
_ICON = 0x00880200
_LONG_VRS = frozenset(
    ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")  # PS3.5 7.1.2
)


@dataclass(slots=True)
class Edits:
    """What of the attributes is to be otherwise: `put` stands in place of what was there."""

    put: Dataset = field(default_factory=Dataset)
    dropped: set[int] = field(default_factory=set)


def written(original: Original, uid: str) -> Iterator[bytes]:
    """The data set in transfer syntax `uid`, in pieces; an original can be written once.

    Raises Unencodable where it cannot be had in `uid`, Undecodable, Tampered.
    """
    row = syntax(uid)
    if row is None or row.big_endian:
        raise Unencodable("Transfer syntax: not written here")
    if row.encapsulated:
        if original.native is None:
            raise Unencodable("Pixel data: there is none to encode")
        return coded(original, lossless(original.native, uid))
    if row.deflated:
        return deflate_pieces(_native(original, EXPLICIT))
    return _native(original, EXPLICIT if row.explicit_vr else IMPLICIT)


def _native(original: Original, target: Encoding) -> Iterator[bytes]:
    pixels, edits = original.pixels, Edits()
    if pixels is None:
        yield attributes(original, edits, target)
        return
    if isinstance(pixels, CodedPixels):
        assert pixels.description is not None
        edits = _described_anew(original, pixels.description)
    length = pixels.length + pixels.length % 2 * isinstance(pixels, CodedPixels)
    if length > MAX_NATIVE:
        raise Unencodable("Pixel data: too long to be native")
    value = pixels.value()
    first = next(value, b"")  # what cannot be decoded fails before anything is given out
    yield attributes(original, edits, target)
    yield _announcement(original, pixels.vr, length, target)
    yield first
    yield from value
    if tail := original.tail():
        yield elements.recoded(tail, original.encoding, target, signed=_is_signed(original))


def _announcement(original: Original, vr: bytes, length: int, target: Encoding) -> bytes:
    kind = original.said.sample_kind if original.said else SampleKind.INTEGER
    tag = next(tag for tag, one in PIXELS.items() if one is kind)
    group, element = tag >> 16, tag & 0xFFFF
    if target.implicit:
        return pack("<HHI", group, element, length)
    return pack("<HH2sxxI", group, element, vr, length)


class Coding(NamedTuple):
    """One way to encode native frames: what the attributes then say, and how it is done.

    `derived` are further edits, by the ratio of native to encoded bytes.
    """

    said: PixelDescription
    encode: Callable[[bytes], bytes]
    derived: Callable[[float], Edits]


def lossless(native: PixelDescription, uid: str) -> Coding:
    """Encoding frames of `native` in `uid` and comparing each; raises Unencodable."""
    return Coding(
        encoded_as(native, uid),
        lambda frame: encode_verified(frame, native, uid),
        lambda _ratio: Edits(),
    )


def coded(original: Original, coding: Coding) -> Iterator[bytes]:
    """The data set with its frames encoded; raises as `written`.

    The frames get an offset table where they fit into memory together. Else it is left empty,
    which is legal (PS3.5 A.4).
    """
    assert original.pixels is not None
    native_bytes = 0

    def encode(frame: bytes) -> bytes:
        nonlocal native_bytes
        native_bytes += len(frame)
        return coding.encode(frame)

    frames = map(encode, original.pixels.frames())
    gathered, size, is_whole = [], 0, True
    for frame in frames:
        gathered.append(frame)
        size += len(frame)
        if size > GATHERED:
            is_whole = False
            break
    edits = _described_anew(original, coding.said)
    derived = coding.derived(native_bytes / max(1, size))
    edits.put.update(derived.put)
    edits.dropped |= derived.dropped
    basic = offset_tables([len(frame) for frame in gathered]).basic if is_whole else b""
    yield attributes(original, edits, EXPLICIT)
    yield PIXEL_DATA_HEADER
    yield from encapsulated(chain(gathered, frames), basic)
    if tail := original.tail():
        yield elements.recoded(tail, original.encoding, EXPLICIT, signed=_is_signed(original))


def _described_anew(original: Original, said: PixelDescription) -> Edits:
    """The edits by which the attributes say of the pixels what `said` says."""
    assert original.said is not None
    edits = Edits(dropped=set(OFFSET_TABLES))
    if said.photometric_interpretation != original.said.photometric_interpretation:
        edits.put.PhotometricInterpretation = said.photometric_interpretation
    if said.samples_per_pixel > 1 and original.dataset.get("PlanarConfiguration") != (
        said.planar_configuration
    ):
        edits.put.PlanarConfiguration = said.planar_configuration
    if original.row.encapsulated:
        _decode_icon(original, edits)
        # PS3.3 C.7.6.1.1.5: once lost is always lost. So far the transfer syntax has said it.
        if original.row.loss is Loss.ALWAYS and not _is_marked_lossy(original.dataset):
            edits.put.LossyImageCompression = "01"
    return edits


def _is_marked_lossy(dataset: Dataset) -> bool:
    try:
        return str(dataset.get("LossyImageCompression", "")).strip() == "01"
    except Exception:  # noqa: BLE001  pydicom converts late and raises whatever the conversion does
        return False


def _decode_icon(original: Original, edits: Edits) -> None:
    """Make an encapsulated icon native; one that cannot be decoded is left out, being optional.

    Frames of an icon may be encapsulated only in the transfer syntax of the data set (PS3.5 A.4).
    """
    dataset = original.dataset
    if _ICON not in dataset:
        return
    try:
        icons = [_native_icon(icon, original.row.uid) for icon in dataset[_ICON].value]
    except Exception:  # noqa: BLE001  whatever is wrong with it
        edits.dropped.add(_ICON)
        return
    edits.put.IconImageSequence = icons


def _native_icon(icon: Dataset, uid: str) -> Dataset:
    element = icon["PixelData"]
    if not element.is_undefined_length:
        return icon
    said, value = describe(icon, uid), bytes(element.value)
    index = FrameIndex(lambda at, length: value[at : at + length], len(value), said)
    frame = decode_frame(index.read(0).data, said)
    plain = native_frame(frame.array, native_as(said, frame))
    made = Dataset()
    made.update(icon)
    made.PhotometricInterpretation = frame.photometric_interpretation
    if said.samples_per_pixel > 1:
        made.PlanarConfiguration = 0
    made.add_new(
        0x7FE00010, "OW" if said.bits_allocated > 8 else "OB", plain + b"\0"[: len(plain) % 2]
    )
    return made


def _is_signed(original: Original) -> bool:
    if original.said is not None:
        return original.said.pixel_representation == 1
    try:
        return int(original.dataset.get("PixelRepresentation", 0)) == 1
    except Exception:  # noqa: BLE001  as above
        return False


def attributes(original: Original, edits: Edits, target: Encoding) -> bytes:
    """What stands before the pixel data, edited, in the encoding `target`."""
    head = spliced(original.head, original.encoding, edits)
    return elements.recoded(head, original.encoding, target, signed=_is_signed(original))


def spliced(head: bytes, encoding: Encoding, edits: Edits) -> bytes:
    """`head` with elements put in, replaced or left out; every other byte stays."""
    new: dict[int, bytes] = dict.fromkeys(edits.dropped, b"")
    for element in edits.put:
        new[int(element.tag)] = _encoded(element.tag, edits.put, encoding)
    return replaced(head, encoding, new)


def replaced(head: bytes, encoding: Encoding, new: Mapping[int, bytes]) -> bytes:
    """`head` with whole elements, by tag, in place of what was there; b"" leaves one out."""
    places = elements_of(head, encoding) if new else []
    parts, at = [], 0
    for tag in sorted(new):
        begin = next((where for one, where in places if one >= tag), len(head))
        end = next((where for one, where in places if one > tag), len(head))
        parts += [head[at:begin], new[tag]]
        at = end
    return b"".join((*parts, head[at:]))


def elements_of(head: bytes, encoding: Encoding) -> list[tuple[int, int]]:
    """Tag and offset of every element at the top."""
    stream = io.BytesIO(head)
    places: list[tuple[int, int]] = []

    def note(tag: BaseTag, vr: str | None, _length: int) -> bool:
        places.append((int(tag), stream.tell() - (12 if vr in _LONG_VRS else 8)))
        return False

    read_dataset(stream, encoding.implicit, is_little_endian=True, stop_when=note)
    return places


def _encoded(tag: BaseTag, put: Dataset, encoding: Encoding) -> bytes:
    one = Dataset()
    one.add(put[tag])
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, encoding.implicit
    write_dataset(buffer, one)
    return bytes(buffer.getvalue())
