"""What our encoders write, other people's decoders read: to the same pixels, bit for bit."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_peers import by_djxl, by_openjpeg, by_openjph, by_program, by_pydicom, written
from pixel_support import described, gradient, grey, index_of, instance

from edgepacs.pixels.description import PixelDescription, Pixels, stored_values
from edgepacs.pixels.encode import encode_verified, obstacle
from edgepacs.pixels.native import native_cells
from edgepacs.pixels.syntaxes import (
    DEFLATED_DATA_SET,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    JPEG_XL,
    RLE,
)

pytestmark = pytest.mark.peers

Decode = Callable[[Path, PixelDescription, Sequence[bytes]], list[Pixels]]
DECODERS: dict[str, dict[str, Decode]] = {
    JPEG_LS: {"dcmtk": by_program("dcmdjpls", "+pr"), "gdcm": by_program("gdcmconv", "--raw")},
    JPEG_2000: {"gdcm": by_program("gdcmconv", "--raw"), "openjpeg": by_openjpeg},
    HTJ2K: {"openjpeg": by_openjpeg, "openjph": by_openjph},
    JPEG_LOSSLESS: {
        "dcmtk": by_program("dcmdjpeg", "+cn"),
        "gdcm": by_program("gdcmconv", "--raw"),
    },
    JPEG_XL: {"djxl": by_djxl},
    RLE: {"dcmtk": by_program("dcmdrle"), "pydicom": by_pydicom},
    DEFLATED_DATA_SET: {"dcmtk": by_program("dcmconv", "+te"), "pydicom": by_pydicom},
}


def _grey(bits: int, *, rows: int = 48, columns: int = 64, **others: Any) -> Any:
    allocated = others.pop("allocated", 8 if bits <= 8 else 16)
    signed = others.get("PixelRepresentation", 0)
    picture = gradient(rows, columns, bits).astype(f"u{allocated // 8}")
    if signed:
        picture = picture - np.array(1 << bits - 1, picture.dtype)  # wraps: sign extended
    description = grey(rows, columns, allocated, BitsStored=bits, **others)
    return description, [picture.tobytes(), np.ascontiguousarray(picture[::-1]).tobytes()][
        : description.number_of_frames
    ]


def _colour(allocated: int = 8, planar: int = 0, meaning: str = "RGB", rows: int = 45) -> Any:
    rgb = np.stack([gradient(rows, 62, allocated - n) for n in range(3)], axis=-1)
    rgb = rgb.astype(f"u{allocated // 8}")
    description = grey(
        rows, 62, allocated, SamplesPerPixel=3, PhotometricInterpretation=meaning,
        PlanarConfiguration=planar,
    )  # fmt: skip
    return description, [(rgb.transpose(2, 0, 1) if planar else rgb).tobytes()]


def _overlaid() -> Any:
    cells = gradient(bits=12).astype("u2") | (gradient(bits=4).astype("u2") << 12)
    return grey(48, 64, 16, BitsStored=12), [cells.tobytes()]


def _real(name: str) -> Any:
    dataset = instance(name)
    description = described(dataset)
    index = index_of(dataset, description)
    return description, [index.read(n).data for n in range(len(index))]


PICTURES: dict[str, Callable[[], tuple[PixelDescription, list[bytes]]]] = {
    "8 bit": lambda: _grey(8),
    "12 bit, two frames": lambda: _grey(12, NumberOfFrames=2),
    "16 bit": lambda: _grey(16),
    "16 bit signed": lambda: _grey(16, PixelRepresentation=1),
    "12 bit signed": lambda: _grey(12, PixelRepresentation=1),
    "8 stored of 16": lambda: _grey(8, allocated=16),
    "odd sizes": lambda: _grey(12, rows=33, columns=47),
    "odd sizes of bytes": lambda: _grey(8, rows=33, columns=47),
    "overlay in unused bits": _overlaid,
    "palette": lambda: _grey(8, PhotometricInterpretation="PALETTE COLOR"),
    "RGB": _colour,
    "RGB by plane": lambda: _colour(planar=1),
    "RGB of 16 bit": lambda: _colour(16),
    "YBR_FULL": lambda: _colour(meaning="YBR_FULL"),
    "32 bit": lambda: _grey(31, allocated=32),
    "MR": lambda: _real("MR_small.dcm"),
    "CT": lambda: _real("693_UNCR.dcm"),
    "US": lambda: _real("examples_rgb_color.dcm"),
}
CLEARED = {(JPEG_LOSSLESS, "gdcm"), (RLE, "pydicom")}  # they drop unused bits as they decode


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(
    ("uid", "peer"), [(uid, peer) for uid, peers in DECODERS.items() for peer in peers]
)
def test_peers_decode_the_same_pixels(tmp_path: Path, uid: str, peer: str, picture: str) -> None:
    description, native = PICTURES[picture]()
    if uid == DEFLATED_DATA_SET:
        encoded = native
    elif obstacle(description, uid):
        pytest.skip(obstacle(description, uid))
    else:
        encoded = [encode_verified(frame, description, uid) for frame in native]
    path = written(tmp_path / "encoded.dcm", description, encoded, uid)
    found = DECODERS[uid][peer](path, description, encoded)
    cleared = (uid, peer) in CLEARED
    for frame, cells in zip(native, found, strict=True):
        sent = native_cells(frame, description)
        both = [stored_values(one, description) if cleared else one for one in (cells, sent)]
        np.testing.assert_array_equal(*both)
