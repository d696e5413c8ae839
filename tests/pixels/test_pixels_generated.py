"""Every allocated bit comes back, for pixel data of every kind; `make soak` makes 10,000."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from harness.corpus import SEED, count
from pixel_generator import attributes, frames

from edgepacs.errors import Undecodable
from edgepacs.pixels.choice import choose
from edgepacs.pixels.deflated import deflate, inflate
from edgepacs.pixels.description import PixelDescription
from edgepacs.pixels.encode import (
    Unencodable,
    encode_frame,
    encode_verified,
    encoded_as,
    obstacle,
    restore_frame,
)
from edgepacs.pixels.frames import FrameIndex, reader
from edgepacs.pixels.framing import encapsulated, encapsulated_length, offset_tables
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET, TABLE

BATCHES = 20
PER_BATCH = count(15, 500)
MAX_BYTES = count(300_000, 6_000_000)
ENCODED = [row.uid for row in TABLE.values() if row.encoder]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_allocated_bit_comes_back(batch: int) -> None:
    described = 0
    for number in range(PER_BATCH):
        chance = np.random.default_rng((SEED, batch, number))
        made = attributes(chance, MAX_BYTES)
        try:
            description = made.description()
        except Undecodable:  # stays as received
            assert made.values["BitsAllocated"] % 8 or made.values["SamplesPerPixel"] == 4
            continue
        described += 1
        native = frames(chance, description)
        for uid in ENCODED:
            _one_frame(chance, description, native, uid)
        _whole_value(chance, description, native)
    assert described > PER_BATCH // 2


def _one_frame(
    chance: np.random.Generator, description: PixelDescription, native: list[bytes], uid: str
) -> None:
    frame = native[int(chance.integers(len(native)))]
    if obstacle(description, uid):
        with pytest.raises(Unencodable):
            encode_frame(frame, description, uid)
        return
    data = encode_verified(frame, description, uid)  # raises where a bit differs
    padded = data + b"\0" * (len(data) % 2)
    assert restore_frame(padded, description, uid) == frame, description


def _whole_value(
    chance: np.random.Generator, description: PixelDescription, native: list[bytes]
) -> None:
    """All frames in one syntax, as a value with or without its table, read in any order."""
    able = [uid for uid in ENCODED if not obstacle(description, uid)]
    uid = choose(description, native[0])
    if uid == DEFLATED_DATA_SET:
        assert b"".join(inflate([deflate(b"".join(native))], 1 << 30)) == b"".join(native)
    if uid is None or uid == DEFLATED_DATA_SET:
        if not able:
            return
        uid = able[int(chance.integers(len(able)))]
    encoded = [encode_frame(frame, description, uid) for frame in native]
    lengths = [len(data) for data in encoded]
    basic = offset_tables(lengths).basic if chance.random() < 0.5 else b""
    value = b"".join(encapsulated(encoded, basic))
    assert len(value) == encapsulated_length(lengths, basic)
    stored = encoded_as(description, uid)
    index = FrameIndex(reader(BytesIO(value), 0), len(value), stored)
    for number in chance.permutation(len(native)):
        data = index.read(int(number)).data
        assert restore_frame(data, description, uid) == native[number], description
    assert replace(
        stored, transfer_syntax_uid="", photometric_interpretation="", planar_configuration=0
    ) == replace(
        description, transfer_syntax_uid="", photometric_interpretation="", planar_configuration=0
    )
