"""Read-out: sealed objects as pictures and attributes; `outgoing` gives them out as data sets.

Nothing unauthenticated ever leaves: a chunk that fails its tag raises Tampered before a byte of
it is used.
"""

import io
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple, cast

from pydicom import Dataset
from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from edgepacs.custody import restore, standing
from edgepacs.custody.scan import MAX_ITEMS
from edgepacs.errors import EdgePacsError, NotFound, Undecodable
from edgepacs.model import ObjectId
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import PixelDescription, SampleKind, describe
from edgepacs.pixels.display import DisplayParameters, Window, display_parameters
from edgepacs.pixels.frames import ExtendedOffsetTable, FrameIndex, reader
from edgepacs.pixels.render import default_window, encode_jpeg, render
from edgepacs.pixels.syntaxes import TransferSyntax, syntax
from edgepacs.store import Store
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
from edgepacs.store.vault import ObjectReader

MAX_HEAD = 64 << 20  # bytes before the pixel data that are parsed for show
MAX_INFLATED = 512 << 20
MAX_LINES = 5000
MAX_LINE_TEXT = 256
MAX_CONVERTED = 1 << 16  # bytes of one value turned into text
_MAX_DEPTH = 32
_KEPT_OPEN = 8
_PIXEL_TAGS = {
    0x7FE00008: SampleKind.FLOAT,
    0x7FE00009: SampleKind.DOUBLE,
    0x7FE00010: SampleKind.INTEGER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """What a viewer needs to know before it asks for pictures.

    `frame_ms` is the recorded time of a frame in milliseconds, 0 where it is no cine. `windows`
    are (name, centre, width) in modality units, the first the default. `aspect` is the height of
    a pixel divided by its width. `note` says in plain words why there is no picture, or is "".
    """

    frames: int = 0
    rows: int = 0
    columns: int = 0
    frame_ms: float = 0.0
    windows: tuple[tuple[str, float, float], ...] = ()
    windowable: bool = False
    aspect: float = 1.0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeLine:
    """One attribute of a data set as text; `depth` counts the sequences around it."""

    depth: int
    tag: str
    vr: str
    name: str
    value: str


@dataclass(slots=True)
class _Opened:
    """An instance opened for pictures. Its stream has one position, hence the lock."""

    dataset: Dataset
    description: PixelDescription
    index: FrameIndex
    stream: BinaryIO
    lock: threading.Lock = field(default_factory=threading.Lock)
    default: Window | None = None


class _Shelf:
    """The instances opened last, so that a cine does not parse its head for every frame."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[ObjectId, _Opened] = OrderedDict()

    def take(self, store: Store, instance: Instance) -> _Opened:
        object_id = standing.object_of(instance)
        with self._lock:
            if object_id in self._kept:
                self._kept.move_to_end(object_id)
                return self._kept[object_id]
        opened = _open_pictures(store, instance)
        with self._lock:
            self._kept[object_id] = opened
            if len(self._kept) > _KEPT_OPEN:
                self._kept.popitem(last=False)  # closed when its last user lets go
        return opened


_shelf = _Shelf()


def sealed(store: Store, instance: Instance) -> ObjectReader:
    """The sealed data set of an instance, as a reader; raises NotFound, Tampered."""
    return standing.opened(store, instance).reader


def display(store: Store, instance: Instance) -> Display:
    """How an instance is to be shown; raises NotFound, Tampered."""
    row = syntax(instance.transfer_syntax_uid)
    if row is not None and row.video:
        return Display(note=f"Video ({row.name}): kept and forwarded as received, not shown here.")
    try:
        opened = _shelf.take(store, instance)
        with opened.lock:
            return _describe_display(opened)
    except (Undecodable, NotFound) as error:
        if not instance.frames:
            return Display(note="This object has no pictures; see its attributes.")
        return Display(note=str(error))


def _describe_display(opened: _Opened) -> Display:
    description = opened.description
    parameters = display_parameters(opened.dataset, description)
    windowable = description.photometric_interpretation.startswith("MONOCHROME")
    windows: tuple[tuple[str, float, float], ...] = ()
    if windowable:
        default = _default_window(opened, parameters)
        given = [w for w in parameters.windows if w.usable]
        windows = tuple(
            (w.name or ("As recorded" if i == 0 else f"Window {i + 1}"), w.centre, w.width)
            for i, w in enumerate(given)
        ) or (("Automatic", default.centre, default.width),)
    return Display(
        frames=len(opened.index),
        rows=description.rows,
        columns=description.columns,
        frame_ms=_frame_ms(opened.dataset) if len(opened.index) > 1 else 0.0,
        windows=windows,
        windowable=windowable,
        aspect=parameters.pixel_aspect,
    )


def _frame_ms(dataset: Dataset) -> float:
    """The recorded time between frames (PS3.3 C.7.6.5): Frame Time, its vector, or a rate."""
    try:
        if dataset.get("FrameTime"):
            return float(dataset.FrameTime)
        if dataset.get("FrameTimeVector"):
            times = [float(value) for value in dataset.FrameTimeVector][1:]
            return sum(times) / len(times) if times else 0.0
        rate = dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate")
        return 1000.0 / float(rate) if rate else 0.0
    except (ValueError, TypeError, ArithmeticError):
        return 0.0


def picture(
    store: Store,
    instance: Instance,
    frame: int,
    *,
    window: tuple[float, float] | None = None,
    max_edge: int | None = None,
) -> bytes:
    """Frame `frame`, counted from 0, as a JPEG with square pixels.

    `window` is (centre, width) in modality units; no edge is longer than `max_edge`. Raises
    NotFound for a frame there is none of, InvalidValue, Undecodable, Tampered.
    """
    opened = _shelf.take(store, instance)
    with opened.lock:
        encoded = opened.index.read(frame)
        parameters = display_parameters(opened.dataset, opened.description, frame)
        chosen = Window(centre=window[0], width=window[1]) if window else None
        if chosen is None and not parameters.windows and parameters.voi_lut is None:
            chosen = _default_window(opened, parameters)
    decoded = decode_frame(encoded.data, opened.description, first_bit=encoded.first_bit)
    shown = render(decoded, opened.description, parameters, window=chosen, max_edge=max_edge)
    return encode_jpeg(shown)


def native_frames(store: Store, instance: Instance) -> Iterator[bytes]:
    """Every frame decoded: its shape and meaning, then all its bits, little endian by pixel.

    Raises NotFound where there are no pixels, Undecodable, Tampered.
    """
    opened = _open_pictures(store, instance)
    for number in range(len(opened.index)):
        encoded = opened.index.read(number)
        frame = decode_frame(encoded.data, opened.description, first_bit=encoded.first_bit)
        kind = f"{frame.array.shape} {frame.array.dtype} {frame.photometric_interpretation}"
        yield kind.encode() + frame.array.tobytes()


def content(store: Store, instance: Instance) -> Dataset:
    """The data set up to its pixel data as it was received, parsed.

    Raises NotFound, Tampered, Undecodable.
    """
    now, stored = standing.opened(store, instance)
    if now.transfer_syntax_uid == now.received_syntax_uid:
        return _parse(store, now).dataset
    draft = Draft.from_trailer(stored.trailer(), now.object_id, now.sealed_length)
    head = restore.received(stored, draft).head
    return _parsed(io.BytesIO(head), syntax(now.received_syntax_uid), len(head))[0]


def _default_window(opened: _Opened, parameters: DisplayParameters) -> Window:
    """One window for all frames, from the middle one: a cine must not flicker."""
    if opened.default is None:
        middle = opened.index.read(len(opened.index) // 2)
        decoded = decode_frame(middle.data, opened.description, first_bit=middle.first_bit)
        opened.default = default_window(decoded, opened.description, parameters)
    return opened.default


def _open_pictures(store: Store, instance: Instance) -> _Opened:
    instance, stream, dataset, explicit = _parse(store, instance)
    row = _known_syntax(instance)
    header = stream.read(12)
    order: Literal["big", "little"] = "big" if row.big_endian else "little"
    tag = int.from_bytes(header[0:2], order) << 16 | int.from_bytes(header[2:4], order)
    if tag not in _PIXEL_TAGS:
        raise NotFound("This object has no pictures")
    vr = header[4:6].decode("ascii", "replace") if explicit else "OW"
    long_form = explicit and vr in ("OB", "OW", "OF", "OD", "UN", "OL", "OV")
    start = stream.tell() - 12 + (12 if long_form else 8)
    description = describe(
        dataset, instance.transfer_syntax_uid, vr=vr, sample_kind=_PIXEL_TAGS[tag]
    )
    end = stream.seek(0, io.SEEK_END)
    length_at = header[8:12] if long_form else header[4:8]
    length = int.from_bytes(length_at, order)
    room = end - start if length == 0xFFFFFFFF else min(length, end - start)
    extended = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        extended = ExtendedOffsetTable(
            dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
        )
    index = FrameIndex(reader(stream, start), room, description, extended)
    return _Opened(dataset, description, index, stream)


def _known_syntax(instance: Instance) -> TransferSyntax:
    row = syntax(instance.transfer_syntax_uid)
    if row is None:
        raise Undecodable("Its transfer syntax is not known here; it is kept as received")
    return row


class _Parsed(NamedTuple):
    """The row of what was opened, its stream left at the pixel data or the end, what is before."""

    instance: Instance
    stream: BinaryIO
    dataset: Dataset
    explicit: bool


def _parse(store: Store, instance: Instance) -> _Parsed:
    instance, raw = standing.opened(store, instance)
    row = syntax(instance.transfer_syntax_uid)
    stream = cast("BinaryIO", io.BufferedReader(raw, 1 << 16))
    if row is not None and row.deflated:
        stream = _inflated(raw)
    if instance.pixel_offset > MAX_HEAD or (instance.pixel_offset < 0 and raw.length > MAX_HEAD):
        raise Undecodable(f"Its attributes exceed {MAX_HEAD >> 20} MiB; it is kept as received")
    dataset, explicit = _parsed(stream, row, instance.pixel_offset)
    return _Parsed(instance, stream, dataset, explicit)


def _parsed(
    stream: BinaryIO, row: TransferSyntax | None, pixel_offset: int
) -> tuple[Dataset, bool]:
    """What stands in `stream` before its pixel data, and whether VRs are explicit."""
    first = stream.read(6)
    stream.seek(0)
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    little = row is None or not row.big_endian
    _require_few_items(stream, pixel_offset, little=little)
    try:
        dataset = read_dataset(stream, not explicit, little, stop_when=_at_pixels)
    except EdgePacsError:
        raise
    except Exception as error:  # a broken data set raises nearly anything in the parser
        raise Undecodable("Its data set cannot be parsed; it is kept as received") from error
    if first and not dataset:  # the parser keeps nothing of what ends too early for it
        raise Undecodable("Its data set cannot be parsed; it is kept as received")
    return dataset, explicit


def _require_few_items(stream: BinaryIO, pixel_offset: int, *, little: bool) -> None:
    """Raise Undecodable for more items than may be parsed: each costs a hundred times its bytes."""
    head = stream.read(pixel_offset) if pixel_offset >= 0 else stream.read()
    stream.seek(0)
    if head.count(b"\xfe\xff\x00\xe0" if little else b"\xff\xfe\xe0\x00") > MAX_ITEMS:
        raise Undecodable(f"It has more than {MAX_ITEMS} sequence items; it is kept as received")


def _inflated(raw: ObjectReader) -> BinaryIO:
    """A deflated data set (PS3.5 A.5) as it was before, in memory and bounded."""
    inflater = zlib.decompressobj(-15)
    plain = io.BytesIO()
    try:
        for chunk in raw.chunks():
            plain.write(inflater.decompress(chunk, MAX_INFLATED - plain.tell() + 1))
            if plain.tell() > MAX_INFLATED:
                raise Undecodable(f"Its data set inflates to more than {MAX_INFLATED >> 20} MiB")
    except zlib.error:
        raise Undecodable("Its deflated data set is broken; it is kept as received") from None
    plain.seek(0)
    return plain


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) in _PIXEL_TAGS


def attribute_lines(store: Store, instance: Instance) -> list[AttributeLine]:
    """Every attribute up to the pixel data as text, sequences flattened.

    Raises NotFound, Tampered, Undecodable.
    """
    dataset = content(store, instance)
    lines: list[AttributeLine] = []
    for line in _lines(dataset, 0):
        lines.append(line)
        if len(lines) == MAX_LINES:
            break
    return lines


def _lines(dataset: Dataset, depth: int) -> Iterator[AttributeLine]:
    for tag in sorted(dataset.keys()):
        try:
            raw = dataset.get_item(tag)
            if isinstance(raw, RawDataElement) and _is_long(raw):
                yield _unread_line(tag, depth, vr=raw.VR or "", value=f"{raw.length} bytes")
                continue
            element = dataset[tag]
            line = _line(element, depth)
        except Exception:  # noqa: BLE001  one broken element must not hide the others
            yield _unread_line(tag, depth, vr="", value="cannot be read")
            continue
        yield line
        if element.VR == "SQ" and depth < _MAX_DEPTH:
            for item in element.value:
                yield from _lines(item, depth + 1)


def _is_long(raw: RawDataElement) -> bool:
    """Whether converting it would cost far more than it can show: a hundred times its bytes."""
    if raw.value is None or len(raw.value) <= MAX_CONVERTED:
        return False
    return (raw.VR or (dictionary_VR(raw.tag) if dictionary_has_tag(raw.tag) else "UN")) != "SQ"


def _unread_line(tag: BaseTag, depth: int, *, vr: str, value: str) -> AttributeLine:
    name = dictionary_description(tag) if dictionary_has_tag(tag) else ""
    text = f"({tag.group:04X},{tag.element:04X})"
    return AttributeLine(depth=depth, tag=text, vr=vr, name=name, value=value)


def _line(element: DataElement, depth: int) -> AttributeLine:
    return AttributeLine(
        depth=depth,
        tag=f"({element.tag.group:04X},{element.tag.element:04X})",
        vr=str(element.VR),
        name=element.name,
        value=_value_text(element),
    )


def _value_text(element: DataElement) -> str:
    value: Any = element.value
    if element.VR == "SQ":
        return f"{len(value)} item" + ("" if len(value) == 1 else "s")
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if value is None:
        return ""
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    text = "\\".join(str(one) for one in value) if several and element.VM > 1 else str(value)
    return text if len(text) <= MAX_LINE_TEXT else text[:MAX_LINE_TEXT] + "…"
