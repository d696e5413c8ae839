"""What is sent: templates made once, and the names that make each copy an instance of its own.

Names are numbers of a fixed length, so that a sender writes them into encoded PDUs in place, and
so that what a server holds can be compared with what was sent without keeping either.
"""

import hashlib
import random
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from harness import corpus, part10
from pydicom.dataset import Dataset

_PATIENT, _STUDY, _SERIES, _INSTANCE = range(4)
_NATIVE = ("PixelData", "FloatPixelData", "DataSetTrailingPadding")
_FRAME = (480, 640, 3)  # rows, columns, samples of 8 bits
_CINE_FRAMES = (6, 43, 11, 22)  # 5.5, 39.6, 10.1 and 20.3 MB
_LARGE_SIDE = 1024


class Grouping(NamedTuple):
    """How many instances share a series, a study and a patient."""

    series: int
    study: int
    patient: int


class Identity(NamedTuple):
    """The names of one instance, encoded, each of a fixed and even length."""

    patient: bytes
    study: bytes
    series: bytes
    sop: bytes


@dataclass(frozen=True, slots=True)
class Names:
    """The names of everything one sender sends in one run."""

    run: int
    sender: int

    def identity(self, number: int, grouping: Grouping) -> Identity:
        """The names of its instance `number`."""
        patient = f"B{self.run % 10**9:09d}{self.sender:02d}{number // grouping.patient:04d}"
        return Identity(
            patient.encode(),
            self._uid(_STUDY, number // grouping.study),
            self._uid(_SERIES, number // grouping.series),
            self._uid(_INSTANCE, number),
        )

    def _uid(self, level: int, number: int) -> bytes:
        """A UID of 44 characters (PS3.5 B.2)."""
        return b"2.25.1%018d%03d%d%016d" % (self.run, self.sender, level, number)


_PLACEHOLDERS = Names(0, 0).identity(0, Grouping(1, 1, 1))


def new_run() -> int:
    """A number no earlier run had."""
    return 10**17 + secrets.randbelow(9 * 10**17)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One kind of instance; its data set is `head` and then `repeats` times `piece`.

    The head holds placeholders for the names; everything after it is pixel data.
    """

    sop_class: str
    head: bytes = field(repr=False)
    piece: bytes = field(repr=False)
    repeats: int
    grouping: Grouping
    transfer_syntax: str = part10.EXPLICIT_LE

    @property
    def length(self) -> int:
        """Bytes of the data set."""
        return len(self.head) + len(self.piece) * self.repeats

    def pieces(self) -> Iterator[bytes]:
        """The data set with the placeholders in it."""
        yield self.head
        for _ in range(self.repeats):
            yield self.piece

    def sha256(self, identity: Identity) -> bytes:
        """The digest of the data set under these names."""
        head = bytearray(self.head)
        for value, at in zip(identity, places(self.head), strict=True):
            head[at : at + len(value)] = value
        digest = hashlib.sha256(head)
        for _ in range(self.repeats):
            digest.update(self.piece)
        return digest.digest()


def places(head: bytes) -> list[int]:
    """Where the names stand in an encoded head; AssertionError unless each stands there once."""
    for placeholder in _PLACEHOLDERS:
        assert head.count(placeholder) == 1, "a name is missing, repeated, or cut by a PDU"
    return [head.index(placeholder) for placeholder in _PLACEHOLDERS]


def placeholder_uid() -> str:
    """The SOP Instance UID that stands in every head."""
    return _PLACEHOLDERS.sop.decode()


def ct() -> Template:
    """A CT of 512 x 512 from the package pydicom-data: 0.53 MB."""
    dataset = _real("693_UNCR.dcm")
    pixels = bytes(dataset.PixelData)
    return _template(dataset, pixels, 1, Grouping(100, 300, 300))


def small() -> Template:
    """The MR of pydicom's own files, cropped no smaller than 80 x 80: 14 KB."""
    dataset = _real("MR_small.dcm")
    dataset.Rows = dataset.Columns = 80
    return _template(dataset, _noise(2 * 80 * 80), 1, Grouping(20, 40, 80))


def cines() -> tuple[Template, ...]:
    """Native ultrasound cine loops of 5.5 to 39.6 MB: a real header, noise for pixels."""
    rows, columns, samples = _FRAME
    made = []
    for frames in _CINE_FRAMES:
        dataset = _cine(rows, columns, frames)
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = samples, 0
        dataset.PhotometricInterpretation = "RGB"
        frame = _noise(rows * columns * samples)
        made.append(_template(dataset, frame, frames, Grouping(8, 8, 8)))
    return tuple(made)


def large(mib: int) -> Template:
    """A greyscale cine loop of that many MiB, one a frame."""
    dataset = _cine(_LARGE_SIDE, _LARGE_SIDE, mib)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    del dataset.PlanarConfiguration
    return _template(dataset, _noise(_LARGE_SIDE * _LARGE_SIDE), mib, Grouping(1, 1, 1))


def _real(name: str) -> Dataset:
    (path,) = [one for one in corpus.files() if one.name == name]
    return part10.read(path).dataset()


def _cine(rows: int, columns: int, frames: int) -> Dataset:
    dataset = _real("examples_ybr_color.dcm")
    dataset.remove_private_tags()
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
    return dataset


def _noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def _template(dataset: Dataset, piece: bytes, repeats: int, grouping: Grouping) -> Template:
    for tag in list(dataset.keys()):
        if tag.element == 0:  # group lengths (PS3.5 7.2) would no longer be right
            del dataset[tag]
    for keyword in _NATIVE:
        dataset.pop(keyword, None)
    names = [value.decode() for value in _PLACEHOLDERS]
    dataset.PatientID, dataset.StudyInstanceUID = names[_PATIENT], names[_STUDY]
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = names[_SERIES], names[_INSTANCE]
    vr = b"OW" if dataset.BitsAllocated > 8 else b"OB"
    pixel_data = struct.pack("<HH2sHI", 0x7FE0, 0x0010, vr, 0, len(piece) * repeats)
    return Template(
        sop_class=str(dataset.SOPClassUID),
        head=part10.encode(dataset, part10.EXPLICIT_LE) + pixel_data,
        piece=piece,
        repeats=repeats,
        grouping=grouping,
    )
