"""Instances with pixels made for compression, and such that lie about theirs."""

import struct
from collections.abc import Callable

import numpy as np
from harness.made import ct, instance
from harness.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Part10

NATIVE = (IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE)


def gradient(rows: int = 128, columns: int = 128, *, depth: int = 12, seed: int = 1) -> np.ndarray:
    """Something like a picture: smooth, with a little noise."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    smooth = (x * 3 + y * 2) % (1 << depth)
    return ((smooth + chance.integers(0, 4, (rows, columns))) % (1 << depth)).astype("u2")


def picture(
    cells: np.ndarray | None = None, transfer_syntax: str = EXPLICIT_LE, **changes: object
) -> Part10:
    """One instance of these cells, described as they are unless `changes` say otherwise."""
    cells = gradient() if cells is None else cells
    dataset = ct().dataset()
    for name in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
        dataset.pop(name, None)  # whose VR depends on the sign of pixels that are others now
    order = ">" if transfer_syntax == EXPLICIT_BE else "<"
    dataset.Rows, dataset.Columns = cells.shape[-2:] if cells.shape[-1] != 3 else cells.shape[-3:-1]
    dataset.BitsAllocated = 8 * cells.itemsize
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(cells.dtype.kind == "i")
    dataset.PixelData = cells.astype(cells.dtype.newbyteorder(order)).tobytes()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return instance(dataset, transfer_syntax)


def colour(*, planar: bool = False, transfer_syntax: str = EXPLICIT_LE, frames: int = 1) -> Part10:
    cells = np.stack([gradient(depth=8, seed=n).astype("u1") for n in range(3)], axis=-1)
    many = np.stack([np.roll(cells, n, axis=0) for n in range(frames)])
    if planar:
        many = many.transpose(0, 3, 1, 2)
    return picture(
        cells,
        transfer_syntax,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=int(planar),
        NumberOfFrames=frames,
        PixelData=many.tobytes(),
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
    )


def fields(part: Part10) -> dict[str, object]:
    return {name: getattr(part, name) for name in Part10.__slots__}


def lying(**changes: object) -> Callable[[], Part10]:
    return lambda: picture(**changes)  # type: ignore[arg-type]


def cut(part: Part10, less: int) -> Part10:
    """The same with its pixel data element shorter than its attributes say, yet well formed."""
    at = part.data.index(b"\xe0\x7f\x10\0OW\0\0")
    (length,) = struct.unpack_from("<I", part.data, at + 8)
    data = part.data[: at + 8] + struct.pack("<I", length - less) + part.data[at + 12 : -less]
    return Part10(**{**fields(part), "data": data})


def undefined(part: Part10) -> Part10:
    """A native syntax over encapsulated pixel data: the other way round than BAD-INPUT 47."""
    at = part.data.index(b"\xe0\x7f\x10\0OW\0\0")
    items = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    data = part.data[: at + 4] + b"OB\0\0\xff\xff\xff\xff" + items
    return Part10(**{**fields(part), "data": data})


LIES: dict[str, tuple[Callable[[], Part10], str]] = {
    "rows beyond": (lying(Rows=65535, Columns=65535), "exceeds"),
    "no rows": (lying(Rows=0), "Rows"),
    "2^31 frames": (lying(NumberOfFrames=2**31 - 1), "Number of Frames"),
    "more frames than there are": (lying(NumberOfFrames=400), "shorter"),
    "fewer frames than there are": (lying(Rows=64), "longer"),
    "stored above allocated": (lying(BitsStored=20), "Bits Stored"),
    "high bit above allocated": (lying(HighBit=30), "High Bit"),
    "samples that do not fit": (lying(SamplesPerPixel=4), "Samples per Pixel"),
    "palette without samples": (lying(SamplesPerPixel=3), "Samples per Pixel"),
    "allocated 12": (lying(BitsAllocated=12, BitsStored=12, HighBit=11), "Bits Allocated"),
    "cut short": (lambda: cut(picture(), 1000), "shorter"),
    "encapsulated all the same": (lambda: undefined(picture()), "not native"),
    "noise": (
        lambda: picture(np.random.default_rng(3).integers(0, 1 << 16, (128, 128)).astype("u2")),
        "smaller",
    ),
    "one bit": (
        lambda: picture(
            BitsAllocated=1,
            BitsStored=1,
            HighBit=0,
            PixelData=bytes(128 * 128 // 8),
        ),
        "single bits",
    ),
    "tiny": (lambda: picture(gradient(8, 8)), "smaller"),
}
