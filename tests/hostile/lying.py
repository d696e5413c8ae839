"""Instances whose pixel data is not what their attributes say (BAD-INPUT 47 to 55)."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from harness.made import ct, instance
from harness.part10 import EXPLICIT_LE, Part10
from pydicom.dataset import Dataset

JPEG_2000 = "1.2.840.10008.1.2.4.90"
JPEG_LS = "1.2.840.10008.1.2.4.80"
RLE = "1.2.840.10008.1.2.5"
_NO_TABLE = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


class Lie(NamedTuple):
    """One lying instance, and its number in BAD-INPUT."""

    case: int
    name: str
    part: Part10


def _changed(**values: Any) -> Dataset:
    dataset = ct().dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
        if dataset[name].VR == "US or SS":
            dataset[name].VR = "US"
    return dataset


def _native(**values: Any) -> Part10:
    return instance(_changed(**values))


def _encapsulated(value: bytes, syntax: str, **values: Any) -> Part10:
    """An instance whose pixel data element holds `value`, items and all (PS3.5 A.4)."""
    dataset = _changed(**values)
    del dataset.PixelData
    part = instance(dataset, EXPLICIT_LE)
    head = struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
    data = part.data + head + value
    return Part10(
        path=None,
        sop_class=part.sop_class,
        sop_instance=part.sop_instance,
        transfer_syntax=syntax,
        modality="CT",
        data=data,
    )


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def _j2k(rows: int, columns: int) -> bytes:
    """A JPEG 2000 main header of that size, and an empty tile-part (T.800 A.4.2, A.5.1, A.6.1)."""
    size = struct.pack(
        ">HHHHIIIIIIIIHBBB",
        *(0xFF4F, 0xFF51, 41, 0, columns, rows, 0, 0, columns, rows, 0, 0, 1, 15, 1, 1),
    )
    style = struct.pack(">HHBBHBBBBBB", 0xFF52, 12, 0, 0, 1, 0, 5, 4, 4, 0, 1)
    return size + style + struct.pack(">HHHIBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93) + b"\xff\xd9"


def _jls(rows: int, columns: int) -> bytes:
    """A JPEG-LS start of frame and scan of that size, and nothing in it (T.87 C.2.2)."""
    frame = struct.pack(">HHBHHBBBB", 0xFFF7, 11, 16, rows, columns, 1, 1, 0x11, 0)
    scan = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 0, 0, 0)
    return b"\xff\xd8" + frame + scan + bytes(64) + b"\xff\xd9"


def lies() -> Iterator[Lie]:
    """One instance or more for each case."""
    native = ct()
    yield Lie(47, "native for JPEG 2000", instance(native.dataset(), JPEG_2000))
    yield Lie(48, "65535 x 65535", _native(Rows=65535, Columns=65535))
    yield Lie(49, "2^31 frames", _native(NumberOfFrames=str(2**31 - 1)))
    yield Lie(49, "-1 frames", _native(NumberOfFrames="-1"))
    yield Lie(50, "17 of 16 bits", _native(BitsStored=17, HighBit=16))
    palette = {
        f"{colour}PaletteColorLookupTable{what}": value
        for colour in ("Red", "Green", "Blue")
        for what, value in (("Descriptor", [4, 0, 16]), ("Data", bytes(8)))
    }
    yield Lie(51, "palette of 4", _native(PhotometricInterpretation="PALETTE COLOR", **palette))
    run = struct.pack("<16I", 2, 64, 68, *[0] * 13)
    rle = run + b"\x81\x00\x81\x00" * 2
    table = _item(struct.pack("<I", 9999))
    yield Lie(52, "table beyond the end", _encapsulated(table + _item(rle) + _END, RLE))
    yield Lie(53, "no fragments", _encapsulated(_NO_TABLE + _END, JPEG_2000))
    yield Lie(53, "no items at all", _encapsulated(_END, JPEG_2000))
    huge = {"Rows": 60_000, "Columns": 60_000}
    for syntax, stream in ((JPEG_2000, _j2k(60_000, 60_000)), (JPEG_LS, _jls(60_000, 60_000))):
        bomb = _NO_TABLE + _item(stream + bytes(len(stream) % 2)) + _END
        yield Lie(54, "bomb", _encapsulated(bomb, syntax))
        yield Lie(54, "bomb of its size", _encapsulated(bomb, syntax, **huge))
    overrun = run + b"\x81\x00" * 20_000
    yield Lie(55, "RLE overrun", _encapsulated(_NO_TABLE + _item(overrun) + _END, RLE))
