"""Part 10 files as bytes: the data set exactly as it stands in the file, never decoded."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"

_LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV"}
_IMPLEMENTATION = "1.2.826.0.1.3680043.8.498.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part10:
    """One instance: what its C-STORE names, and its encoded data set."""

    path: Path | None
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    modality: str
    data: bytes = field(repr=False)

    def dataset(self) -> Dataset:
        """The data set decoded by pydicom."""
        return decode(self.data, self.transfer_syntax)

    def with_instance_uid(self, new: str) -> "Part10":
        """The same instance under a SOP Instance UID of the same length, every other byte kept."""
        assert len(new) == len(self.sop_instance)
        plain = inflated(self.data) if self.transfer_syntax == DEFLATED_LE else self.data
        start = plain.find(self.sop_instance.encode(), 0, 8192)
        if start < 0:  # the data set names no instance; only the command does
            return replace(self, path=None, sop_instance=new)
        plain = plain[:start] + new.encode() + plain[start + len(new) :]
        data = deflated(plain) if self.transfer_syntax == DEFLATED_LE else plain
        return replace(self, path=None, sop_instance=new, data=data)

    def file(self) -> bytes:
        """This instance as a Part 10 file with a fresh file meta information (PS3.10 7.1)."""
        return part10_file(self.sop_class, self.sop_instance, self.transfer_syntax, self.data)

    def write(self, path: Path) -> Path:
        """Write `file()` to `path` and return it."""
        path.write_bytes(self.file())
        return path


def deflated(plain: bytes) -> bytes:
    """`plain` as raw DEFLATE (PS3.5 A.5), padded to even length."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(plain) + packer.flush()
    return packed + b"\0" * (len(packed) % 2)


def inflated(packed: bytes) -> bytes:
    """The inverse of `deflated`."""
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(packed)


def decode(data: bytes, transfer_syntax: str) -> Dataset:
    """`data` decoded by pydicom under `transfer_syntax`."""
    plain = inflated(data) if transfer_syntax == DEFLATED_LE else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.filereader.read_dataset(
            io.BytesIO(plain), transfer_syntax == IMPLICIT_LE, transfer_syntax != EXPLICIT_BE
        )


def encode(dataset: Dataset, transfer_syntax: str) -> bytes:
    """`dataset` encoded by pydicom, without file meta information."""
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian = transfer_syntax != EXPLICIT_BE
    buffer.is_implicit_VR = transfer_syntax == IMPLICIT_LE
    pydicom.filewriter.write_dataset(buffer, dataset)
    plain = buffer.getvalue()
    return deflated(plain) if transfer_syntax == DEFLATED_LE else plain


def part10_file(sop_class: str, sop_instance: str, transfer_syntax: str, data: bytes) -> bytes:
    """A Part 10 file around an encoded data set."""

    def text(element: int, value: str) -> bytes:
        raw = value.encode()
        raw += b"\0" * (len(raw) % 2)
        return struct.pack("<HH2sH", 2, element, b"UI", len(raw)) + raw

    meta = struct.pack("<HH2s2xI", 2, 1, b"OB", 2) + b"\0\1"
    meta += text(2, sop_class) + text(3, sop_instance) + text(0x10, transfer_syntax)
    meta += text(0x12, _IMPLEMENTATION)
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    return b"\0" * 128 + b"DICM" + length + meta + data


def _meta_elements(raw: bytes, at: int) -> Iterator[tuple[int, bytes, int]]:
    """Each group 0002 element as (element number, value, end offset)."""
    while at + 8 <= len(raw):
        group, element, vr, short = struct.unpack_from("<HH2sH", raw, at)
        if group != 2:
            return
        if vr in _LONG_VRS:
            (length,) = struct.unpack_from("<I", raw, at + 8)
            at += 12
        else:
            length = short
            at += 8
        yield element, raw[at : at + length], at + length
        at += length


def read(path: Path) -> Part10:
    """The instance in `path`; files without preamble or file meta are read as pydicom guesses.

    Raises ValueError when neither file nor data set names a SOP class and instance.
    """
    raw = path.read_bytes()
    start = 132 if raw[128:132] == b"DICM" else 0
    meta: dict[int, str] = {}
    for element, value, end in _meta_elements(raw, start):
        start = end
        if element in (2, 3, 0x10):
            meta[element] = value.rstrip(b"\0 ").decode("ascii", "replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guess = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        # The data set is believed first, as senders do: tools forget the meta information.
        sop_class = str(guess.get("SOPClassUID", "")) or meta.get(2, "")
        sop_instance = str(guess.get("SOPInstanceUID", "")) or meta.get(3, "")
        modality = str(guess.get("Modality", ""))
    if not sop_class or not sop_instance:
        raise ValueError(f"{path}: names no SOP class and instance")
    implicit, little = guess.original_encoding
    native = IMPLICIT_LE if implicit else EXPLICIT_LE if little else EXPLICIT_BE
    return Part10(
        path=path,
        sop_class=sop_class,
        sop_instance=sop_instance,
        transfer_syntax=meta.get(0x10) or native,
        modality=modality,
        data=raw[start:],
    )
