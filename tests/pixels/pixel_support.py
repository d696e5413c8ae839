"""Pictures and data sets the tests of pixels/ share."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import Frame, PixelDescription, SampleKind, describe
from edgepacs.pixels.frames import FrameIndex, reader

LITTLE = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"
DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"


def instance(name: str) -> Dataset:
    path = get_testdata_file(name, download=False)
    assert path is not None, f"{name} ships with pydicom or pydicom-data"
    return dcmread(path, force=True)


def grey(
    rows: int, columns: int, allocated: int = 16, syntax: str = LITTLE, **others: Any
) -> PixelDescription:
    values = {
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": allocated,
        "BitsStored": allocated,
        "PhotometricInterpretation": "MONOCHROME2",
        **others,
    }
    return describe(values, syntax)


def colour(rows: int, columns: int, syntax: str = LITTLE, **others: Any) -> PixelDescription:
    return grey(
        rows,
        columns,
        8,
        syntax,
        **{"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", **others},
    )


def described(dataset: Dataset) -> PixelDescription:
    element = next(dataset[kind.value] for kind in SampleKind if kind.value in dataset)
    return describe(
        dataset,
        dataset.file_meta.TransferSyntaxUID,
        vr=element.VR,
        sample_kind=SampleKind(element.keyword),
    )


def index_of(dataset: Dataset, description: PixelDescription | None = None) -> FrameIndex:
    description = description or described(dataset)
    value = dataset[description.sample_kind.value].value
    return FrameIndex(reader(BytesIO(value), 0), len(value), description)


def decoded(dataset: Dataset, frame: int = 0) -> Frame:
    description = described(dataset)
    encoded = index_of(dataset, description).read(frame)
    return decode_frame(encoded.data, description, first_bit=encoded.first_bit)


def gradient(rows: int = 48, columns: int = 64, bits: int = 12) -> np.ndarray[Any, Any]:
    """A picture with edges, slopes and every bit in use."""
    y, x = np.mgrid[:rows, :columns]
    picture = (x * 37 + y * 11 + (x // 8 % 2) * (1 << bits - 1)) % (1 << bits)
    return picture.astype(np.uint8 if bits <= 8 else np.uint16)


def recording(value: bytes) -> tuple[Callable[[int, int], bytes], list[tuple[int, int]]]:
    """A `read_at` over `value`, and the list of what was asked of it."""
    asked: list[tuple[int, int]] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return value[offset : offset + length]

    return read_at, asked


def index_over(value: bytes, description: PixelDescription, **others: Any) -> FrameIndex:
    return FrameIndex(recording(value)[0], len(value), description, **others)


def wrapped(frames: list[bytes], **options: Any) -> bytes:
    return encapsulate(frames, **{"has_bot": False, **options})
