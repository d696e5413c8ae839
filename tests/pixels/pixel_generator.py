"""Pixel data of every kind, made from a seed: what modalities send, and what they should not."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepacs.pixels.codecs import native_frame_bits
from edgepacs.pixels.description import PixelDescription, describe

LITTLE = "1.2.840.10008.1.2.1"
GREY = ("MONOCHROME1", "MONOCHROME2", "MONOCHROME2", "PALETTE COLOR")
COLOUR = ("RGB", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")
ODD = ("YBR_RCT", "YBR_ICT", "XYB", "HSV", "ARGB", "CMYK")
MAX_SIDE, MAX_FRAMES = 600, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The Image Pixel Module of one generated instance; not all of them can be described."""

    values: dict[str, Any]

    def description(self) -> PixelDescription:
        return describe(self.values, LITTLE)


def attributes(chance: np.random.Generator, max_bytes: int) -> Attributes:
    """Of 1 to 32 bits allocated, any stored and high bit, any size, meaning and plane order."""
    meaning = str(chance.choice(GREY * 3 + COLOUR * 2 + ODD))
    samples = 1 if meaning in GREY else 4 if meaning in ("ARGB", "CMYK") else 3
    usual = chance.random() < 0.9
    allocated = (
        int(chance.choice((1, 8, 8, 16, 16, 16, 16, 24, 32))) if usual else chance.integers(1, 33)
    )
    stored = int(chance.integers(1, int(allocated) + 1))
    high = stored - 1 if chance.random() < 0.7 else int(chance.integers(stored - 1, int(allocated)))
    rows, columns, frames = (_spread(chance, most) for most in (MAX_SIDE, MAX_SIDE, MAX_FRAMES))
    frame_bytes = max(1, rows * columns * samples * int(allocated) // 8)
    return Attributes(
        values={
            "Rows": rows,
            "Columns": columns,
            "NumberOfFrames": max(1, min(frames, max_bytes // frame_bytes)),
            "SamplesPerPixel": samples,
            "PhotometricInterpretation": meaning,
            "PlanarConfiguration": int(chance.integers(2)) if samples > 1 else None,
            "BitsAllocated": int(allocated),
            "BitsStored": stored,
            "HighBit": high,
            "PixelRepresentation": int(chance.integers(2)),
        }
    )


def _spread(chance: np.random.Generator, most: int) -> int:
    """1 to `most`, the small as often as the large."""
    return int(np.exp(chance.uniform(0, np.log(most + 1))))


def frames(chance: np.random.Generator, description: PixelDescription) -> list[bytes]:
    """Native little endian frames; a third of the instances have dirt in their unused bits."""
    bits = native_frame_bits(description)
    length = (bits + 7) // 8
    kind, dirty = chance.integers(5), chance.random() < 0.35
    made = []
    for number in range(description.number_of_frames):
        if kind == 0 or description.bits_allocated == 1:
            octets = chance.integers(0, 256, length, dtype=np.uint8)
        else:
            octets = _picture(chance, description, int(kind), dirty=bool(dirty), number=number)
        octets = octets[:length].copy()
        if bits % 8:
            octets[-1] &= (1 << bits % 8) - 1
        made.append(octets.tobytes())
    return made


def _picture(
    chance: np.random.Generator,
    description: PixelDescription,
    kind: int,
    *,
    dirty: bool,
    number: int,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth with noise, flat, a flat screen with text, or the extremes; as wire bytes."""
    d, count = description, description.samples
    ramp = np.arange(count, dtype=np.uint64) // max(1, d.samples_per_pixel)
    top = (1 << d.bits_stored) - 1
    if kind == 1:
        values = ramp * np.uint64(7) // np.uint64(d.columns) + chance.integers(0, 9, count).astype(
            "u8"
        )
    elif kind == 2:
        values = np.full(count, chance.integers(0, top, endpoint=True), np.uint64)
    elif kind == 3:
        values = np.where(chance.random(count) < 0.02, top, number).astype(np.uint64)
    else:
        values = chance.choice(
            np.array([0, 1, top // 2, top - 1 if top else 0, top], np.uint64), count
        )
    values &= np.uint64(top)
    if d.pixel_representation and chance.random() < 0.7:  # sign extended, as most makers do
        negative = values >> np.uint64(d.bits_stored - 1) & np.uint64(1)
        values |= negative * np.uint64((1 << 64) - (1 << d.bits_stored))
    values <<= np.uint64(d.high_bit + 1 - d.bits_stored)
    if dirty:
        mask = top << (d.high_bit + 1 - d.bits_stored)
        dirt = chance.integers(0, 1 << d.bits_allocated, count, dtype=np.uint64)
        values = (values & np.uint64(mask)) | (dirt & ~np.uint64(mask))
    wire = values.astype("<u8").view("u1").reshape(count, 8)[:, : d.bits_allocated // 8]
    return np.ascontiguousarray(wire).ravel()
