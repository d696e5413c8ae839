"""Look-up tables of a data set: modality, VOI and palette colour (PS3.3 C.11.1, C.11.2, C.7.9)."""

from dataclasses import dataclass
from struct import unpack_from
from typing import Any

import numpy as np

from edgepacs.errors import Undecodable
from edgepacs.pixels.description import Pixels, Values

MAX_SEGMENTS = 1 << 16  # no palette has more entries
_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True, eq=False)
class Lut:
    """A table of `entries` of `bits` bits for the inputs `first`, `first` + 1 and so on."""

    first: int
    entries: Pixels  # uint16
    bits: int

    def look_up(self, inputs: Pixels) -> Pixels:
        """Entries for `inputs`; those outside get the nearest end (PS3.3 C.11.1.1, C.11.2.1.1)."""
        index = np.clip(inputs.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index]


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """A palette of RGB `colours`, shape (entries, 3), uint8, for `first`, `first` + 1 and so on."""

    first: int
    colours: Pixels

    def look_up(self, indices: Pixels) -> Pixels:
        """RGB for palette `indices`. Raises Undecodable when one is out of bounds."""
        lowest, highest = int(indices.min()), int(indices.max())
        if lowest < self.first or highest >= self.first + len(self.colours):
            raise Undecodable("Palette: a pixel's index is out of bounds")
        if self.first:
            indices = indices.astype(np.int64) - self.first
        return np.take(self.colours, indices, axis=0)


def lut(item: Values, *, signed: bool) -> Lut | None:
    """The LUT in an item of a Modality or VOI LUT Sequence; None where it cannot be used.

    `signed` says whether the table's input is signed, which decides how the descriptor's
    second value is meant (PS3.3 C.11.1.1.1).
    """
    try:
        descriptor = _descriptor(item, "LUTDescriptor", signed=signed)
        entries = _entries(item.get("LUTData"), descriptor)
    except Undecodable:
        return None
    return Lut(descriptor.first, entries, descriptor.bits)


def palette(values: Values, *, signed: bool) -> Palette:
    """The palette of a data set of PALETTE COLOR, plain or segmented (PS3.3 C.7.6.3.1.5, C.7.9.2).

    Raises Undecodable when it is missing or broken.
    """
    planes, first, bits = [], 0, 8
    for colour in _COLOURS:
        name = f"{colour}PaletteColorLookupTable"
        descriptor = _descriptor(values, f"{name}Descriptor", signed=signed)
        segmented = _value(values, f"Segmented{name}Data")
        if segmented:
            entries = _expand(segmented, descriptor)
        else:
            entries = _entries(_value(values, f"{name}Data"), descriptor)
        planes.append(entries)
        first, bits = descriptor.first, descriptor.bits
    if len({len(plane) for plane in planes}) != 1:
        raise Undecodable("Palette: its colours have different numbers of entries")
    colours = np.stack(planes, axis=1)
    if bits > 8 and colours.max() > 0xFF:  # some makers write 8-bit entries and call them 16
        colours >>= bits - 8
    return Palette(first, colours.astype(np.uint8))


@dataclass(frozen=True, slots=True)
class _Descriptor:
    length: int
    first: int
    bits: int


def _descriptor(values: Values, keyword: str, *, signed: bool) -> _Descriptor:
    try:
        length, first, bits = (int(number) for number in _value(values, keyword))
    except (TypeError, ValueError) as error:
        raise Undecodable(f"{keyword}: not three integers") from error
    if signed and first > 0x7FFF:
        first -= 0x10000  # read as US although the input is signed
    length = (length & 0xFFFF) or 0x10000  # 0 stands for 2^16 (PS3.3 C.11.1.1.1)
    if not 1 <= bits <= 16:
        raise Undecodable(f"{keyword}: entries of other than 1 to 16 bits")
    return _Descriptor(length, first, bits)


def _value(values: Values, keyword: str) -> Any:
    try:
        return values.get(keyword)
    except Exception as error:  # pydicom converts late and raises whatever the conversion does
        raise Undecodable(f"{keyword}: cannot be read") from error


def _words(data: Any, bits: int, length: int) -> Pixels:
    """LUT data as unsigned numbers: 8-bit entries may be packed two to a word (C.7.6.3.1.6)."""
    if isinstance(data, bytes | bytearray):
        packed = bits <= 8 and len(data) < 2 * length
        return np.frombuffer(data[: len(data) // 2 * 2], "<u2" if not packed else "u1")
    try:
        return np.array(data, dtype=np.int64).reshape(-1).astype(np.uint16)
    except (TypeError, ValueError, OverflowError) as error:
        raise Undecodable("LUT data: not a list of integers") from error


def _entries(data: Any, descriptor: _Descriptor) -> Pixels:
    if data is None:
        raise Undecodable("LUT data: missing")
    words = _words(data, descriptor.bits, descriptor.length)
    if len(words) < descriptor.length:
        raise Undecodable("LUT data: shorter than its descriptor says")
    return words[: descriptor.length].astype(np.uint16)


def _expand(data: Any, descriptor: _Descriptor) -> Pixels:
    """Expand segmented palette data (PS3.3 C.7.9.2)."""
    if not isinstance(data, bytes | bytearray):
        raise Undecodable("Segmented palette: not bytes")
    width = 1 if descriptor.bits <= 8 else 2
    words = np.frombuffer(data[: len(data) // width * width], f"<u{width}")
    expanded = _Segments(words, bytes(data), width, descriptor.length)
    expanded.run(0, len(words), depth=0)
    if len(expanded.entries) < descriptor.length:
        raise Undecodable("Segmented palette: shorter than its descriptor says")
    return np.array(expanded.entries[: descriptor.length], np.uint16)


class _Segments:
    def __init__(self, words: Pixels, data: bytes, width: int, limit: int) -> None:
        self.words, self.data, self.width, self.limit = words, data, width, limit
        self.entries: list[int] = []
        self._expanded = 0

    def run(self, position: int, count: int, *, depth: int) -> None:
        """Expand up to `count` segments from the word at `position`."""
        for _ in range(count):
            if len(self.entries) >= self.limit or position + 2 > len(self.words):
                return
            self._expanded += 1
            if self._expanded > MAX_SEGMENTS:
                raise Undecodable(f"Segmented palette: more than {MAX_SEGMENTS} segments")
            opcode, length = int(self.words[position]), int(self.words[position + 1])
            position += 2
            if opcode == 0:
                position = self._discrete(position, length)
            elif opcode == 1:
                position = self._linear(position, length)
            elif opcode == 2 and not depth:  # indirect segments may not be nested
                position = self._indirect(position, length)
            else:
                raise Undecodable("Segmented palette: unknown segment type")

    def _discrete(self, position: int, length: int) -> int:
        if position + length > len(self.words):
            raise Undecodable("Segmented palette: a segment runs past the end")
        self.entries += [int(word) for word in self.words[position : position + length]]
        return position + length

    def _linear(self, position: int, length: int) -> int:
        if not self.entries or not length or position >= len(self.words):
            raise Undecodable("Segmented palette: a linear segment without its ends")
        start, end = self.entries[-1], int(self.words[position])
        steps = np.rint(np.linspace(start, end, length + 1)[1:])
        self.entries += [int(step) for step in steps]
        return position + 1

    def _indirect(self, position: int, count: int) -> int:
        size = 4 // self.width  # a 32-bit offset in bytes, its least significant part first
        if position + size > len(self.words):
            raise Undecodable("Segmented palette: a segment runs past the end")
        (offset,) = unpack_from("<I", self.data, position * self.width)
        if offset % self.width or offset // self.width >= position - 2:
            raise Undecodable("Segmented palette: an indirect segment points nowhere")
        self.run(offset // self.width, count, depth=1)
        return position + size
