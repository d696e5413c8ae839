"""Real instances through every encoder: of each frame every allocated bit comes back."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from itertools import chain, islice

import numpy as np
import pytest
from harness import corpus
from harness.part10 import Part10

from edgepacs.errors import NotFound, Undecodable
from edgepacs.pixels.choice import choose
from edgepacs.pixels.decode import decode_frame
from edgepacs.pixels.description import PixelDescription, SampleKind, describe
from edgepacs.pixels.encode import encode_verified, encoded_as, obstacle, restore_frame
from edgepacs.pixels.frames import FrameIndex, reader
from edgepacs.pixels.framing import encapsulated
from edgepacs.pixels.native import native_as, native_frame
from edgepacs.pixels.syntaxes import (
    DEFLATED_DATA_SET,
    DEFLATED_FRAME,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_XL,
    TABLE,
    syntax,
)

ENCODED = [row.uid for row in TABLE.values() if row.encoder]
FULL = corpus.soak() or bool(os.environ.get("EDGEPACS_DATA"))
FRAMES = 1000 if FULL else 1  # of each instance
SLOW = {JPEG_2000, JPEG_XL, JPEG_LOSSLESS, DEFLATED_FRAME}
LARGE = 1 << 40 if FULL else 1_500_000  # bytes; larger frames are spared the slow encoders


def native(part10: Part10) -> tuple[PixelDescription, Iterator[bytes]]:
    """What an instance holds, as native little endian frames.

    Raises NotFound where it has no pixels, Undecodable where they cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = part10.dataset()
        kind = next((kind for kind in SampleKind if dataset.get(kind.value)), None)
        if kind is None:
            raise NotFound("no pixels")
        value, vr = dataset[kind.value].value, dataset[kind.value].VR
        description = describe(dataset, part10.transfer_syntax, vr=vr, sample_kind=kind)
    index = FrameIndex(reader(BytesIO(value), 0), len(value), description)
    row = syntax(part10.transfer_syntax)
    if row is not None and not row.encapsulated and not row.big_endian and not _is_ragged(index):
        return description, (index.read(n).data for n in range(len(index)))
    encoded = (index.read(n) for n in range(len(index)))
    frames = (decode_frame(one.data, description, first_bit=one.first_bit) for one in encoded)
    first = next(frames)
    said = native_as(description, first)
    return said, (native_frame(frame.array, said) for frame in chain([first], frames))


def _is_ragged(index: FrameIndex) -> bool:
    return any(index.locate(n).first_bit for n in range(min(8, len(index))))


INSTANCES = corpus.chosen()


@pytest.mark.parametrize(
    "part10", INSTANCES, ids=[f"{n}-{one.modality}" for n, one in enumerate(INSTANCES)]
)
def test_every_allocated_bit_of_real_instances_comes_back(part10: Part10) -> None:
    try:
        description, frames = native(part10)
        kept = list(islice(frames, FRAMES))
    except (NotFound, Undecodable):
        return  # stays as received
    for frame in kept:
        for uid in ENCODED:
            if not obstacle(description, uid) and (len(frame) <= LARGE or uid not in SLOW):
                encode_verified(frame, description, uid)
    uid = choose(description, kept[0])
    if uid is None or uid == DEFLATED_DATA_SET:
        return
    encoded = [encode_verified(frame, description, uid) for frame in kept]
    value = b"".join(encapsulated(encoded))
    assert len(value) < sum(map(len, kept))
    stored = replace(encoded_as(description, uid), number_of_frames=len(kept))
    index = FrameIndex(reader(BytesIO(value), 0), len(value), stored)
    for number in reversed(range(len(kept))):
        assert restore_frame(index.read(number).data, description, uid) == kept[number]


def test_the_corpus_has_what_the_tests_above_are_for() -> None:
    kinds = {one.transfer_syntax for one in INSTANCES}
    assert len(INSTANCES) >= 50
    assert {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"} <= kinds
    assert np.sum([one.modality in ("CT", "MR", "CR", "US") for one in INSTANCES]) >= 10
