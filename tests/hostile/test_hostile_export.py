"""Group 0002 inside a data set: kept in the sealed object, gone from all that leaves (case 44)."""

import io
import random
import struct
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from forward.sending import forwarding, to
from harness.corpus import SEED, everything
from harness.part10 import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    deflated,
    inflated,
)
from harness.recorder import RecordingSCP
from harness.waiting import until
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.filereader import data_element_generator
from store.making import arrival, element, opened_store, small, states_of

from edgepacs.custody import ingest, outgoing, readout
from edgepacs.custody.export import without_group_2
from edgepacs.custody.scan import scan
from edgepacs.custody.standing import GROUP_2
from edgepacs.errors import EdgePacsError, Undecodable
from edgepacs.model import UID
from edgepacs.store import Store, instances

LYING_SYNTAX = element(0x00020010, "UI", "1.2.840.10008.1.2.4.90")
SEQ = struct.pack("<HH2s2xI", 0x0040, 0x0275, b"SQ", 0xFFFFFFFF)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQ_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
bad_input = pytest.mark.bad_input


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened_store(tmp_path / "node") as one:
        yield one


def sifted(data: bytes, syntax: str = EXPLICIT_LE, most: int = 1 << 17) -> bytes:
    """What leaves of `data` when it is read in pieces of up to `most` bytes."""
    chance, pieces, at = random.Random(SEED), [], 0
    while at < len(data):
        step = chance.randint(1, most)
        pieces.append(data[at : at + step])
        at += step
    return b"".join(without_group_2(pieces, UID(syntax)))


def starts(plain: bytes, syntax: str) -> list[int]:
    """Where elements begin, up to the first of undefined length that holds pixels: by pydicom."""
    stream, found = io.BytesIO(plain), [0]
    with warnings.catch_warnings(), suppress(EOFError):
        warnings.simplefilter("ignore")
        elements = data_element_generator(stream, syntax == IMPLICIT_LE, syntax != EXPLICIT_BE)
        for one in elements:
            if one.tag.group == 0x7FE0:
                break
            found.append(stream.tell())
    return found


def meta_elements(syntax: str) -> list[bytes]:
    """Elements of group 0002 of several shapes, as a data set of `syntax` would hold them."""
    order = ">" if syntax == EXPLICIT_BE else "<"
    if syntax == IMPLICIT_LE:
        return [
            struct.pack("<HHI", 2, number, len(value)) + value
            for number, value in ((0x10, b"1.2.840.10008.1.2.4.90"), (0x100, b""), (1, b"odd"))
        ]
    return [
        struct.pack(order + "HH2sH", 2, 0x10, b"UI", 22) + b"1.2.840.10008.1.2.4.90",
        struct.pack(order + "HH2sH", 2, 0x0016, b"AE", 0),
        struct.pack(order + "HH2s2xI", 2, 0x0102, b"OB", 70_000) + bytes(70_000),
        struct.pack(order + "HH2s2xI", 2, 0x0101, b"UN", 3) + b"odd",
    ]


SOUND = [
    part
    for part in everything()
    if len(part.data) < 200_000 and not (part.path and "truncated" in part.path.name)
]


@bad_input(44)
def test_whatever_the_encoding_only_group_2_is_taken_out() -> None:
    chance = random.Random(SEED)
    syntaxes = set()
    for part in SOUND:
        packed = part.transfer_syntax == DEFLATED_LE
        plain = inflated(part.data) if packed else part.data
        encoding = EXPLICIT_LE if plain[4:6].isalpha() and plain[4:6].isupper() else IMPLICIT_LE
        if part.transfer_syntax == EXPLICIT_BE:
            encoding = EXPLICIT_BE
        whole = plain
        places = sorted(chance.choices(starts(plain, encoding), k=3), reverse=True)
        for place in places:
            one = chance.choice(meta_elements(encoding))
            whole = whole[:place] + one + whole[place:]
        sent = deflated(whole) if packed else whole
        got = sifted(sent, part.transfer_syntax, chance.choice((40, 5000, 1 << 17)))
        assert len(whole) > len(plain)
        assert (inflated(got) if packed else got) == plain, part.path
        assert len(got) % 2 == len(plain) % 2 or packed
        syntaxes.add(encoding)
    assert {EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE} <= syntaxes


@bad_input(44)
@pytest.mark.parametrize(
    ("data", "left"),
    [
        (small() + SEQ + ITEM + LYING_SYNTAX + ITEM_END + SEQ_END, None),
        (
            LYING_SYNTAX
            + small()
            + SEQ
            + ITEM
            + SEQ_END
            + LYING_SYNTAX
            + element(0x00420010, "ST", ""),
            small() + SEQ + ITEM + SEQ_END + element(0x00420010, "ST", ""),
        ),
        (
            struct.pack("<HH2s2xI", 2, 0x10, b"SQ", 0xFFFFFFFF)
            + ITEM
            + LYING_SYNTAX
            + ITEM_END
            + SEQ_END
            + small(),
            small(),
        ),
        (LYING_SYNTAX + small() + ITEM_END + LYING_SYNTAX, small() + ITEM_END + LYING_SYNTAX),
        (LYING_SYNTAX + small() + (SEQ + ITEM) * 99, small() + (SEQ + ITEM) * 99),
        (LYING_SYNTAX + small() + b"\x28\0\2\0\1\2\3\4rest", small() + b"\x28\0\2\0\1\2\3\4rest"),
        (LYING_SYNTAX + small() + b"\x28\0\2", small() + b"\x28\0\2"),
        (LYING_SYNTAX * 1000, b""),
        (b"", None),
    ],
    ids=[
        "inside an item",
        "behind a sequence",
        "a sequence itself",
        "behind a stray delimiter",
        "before deep nesting",
        "before what is no VR",
        "before a cut header",
        "nothing else",
        "nothing",
    ],
)
def test_what_can_be_followed_is_sifted_and_the_rest_stays(data: bytes, left: bytes | None) -> None:
    for most in (1, 7, 1 << 17):
        assert sifted(data, most=most) == (data if left is None else left)


@bad_input(44)
def test_encapsulated_pixels_stay_as_they_are() -> None:
    fragment = LYING_SYNTAX + bytes(100)
    pixels = struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE000, len(fragment)) + fragment + SEQ_END
    assert sifted(LYING_SYNTAX + small() + pixels) == small() + pixels


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 10**6), st.binary(max_size=8), st.integers(0, 8)), max_size=5
    ),
    syntax=st.sampled_from([EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE]),
    most=st.sampled_from([1, 5, 64]),
)
def test_a_damaged_data_set_leaves_the_same_in_any_pieces(
    edits: list[tuple[int, bytes, int]], syntax: str, most: int
) -> None:
    """And byte for byte where the scanner has seen no group 0002."""
    data = LYING_SYNTAX + small(more=SEQ + ITEM + LYING_SYNTAX + ITEM_END + SEQ_END)
    for place, put, gone in edits:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + gone :]
    got = sifted(data, syntax)
    assert sifted(data, syntax, most) == got
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found, _ = scan(data, arrival(syntax=syntax))
        except EdgePacsError:
            return
    assert (got != data) == (GROUP_2 in found.flags)


@bad_input(44)
def test_sifting_takes_constant_memory() -> None:
    size = 64 << 20
    block = bytes(range(256)) * 512

    def pieces() -> Iterator[bytes]:
        yield LYING_SYNTAX + small() + struct.pack("<HH2s2xI", 0x0029, 0x1010, b"OB", size)
        for _ in range(size // len(block)):
            yield block
        yield LYING_SYNTAX * 10_000

    tracemalloc.start()
    length = sum(len(piece) for piece in without_group_2(pieces(), UID(EXPLICIT_LE)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length == len(small()) + 12 + size
    assert peak < 2 << 20


def test_a_broken_deflated_data_set_says_so() -> None:
    with pytest.raises(Undecodable, match="deflated"):
        sifted(b"\xff" * 100, DEFLATED_LE)


@bad_input(44)
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, DEFLATED_LE])
def test_neither_files_nor_destinations_get_it(
    store: Store, recorder: RecordingSCP, tmp_path: Path, syntax: str
) -> None:
    to(store, recorder)
    clean = small(sop="1.2.3.4", more=element(0x7FE00010, "OW", bytes(64)))
    whole = LYING_SYNTAX + clean
    sent = deflated(whole) if syntax == DEFLATED_LE else whole
    receipt = ingest.receive(store, arrival(syntax=syntax), [sent])
    row = instances.instance(store.db, receipt.instance_id)
    with readout.sealed(store, row) as reader:
        assert b"".join(reader.chunks()) == sent  # what was received is kept
    assert row.byte_length == len(sent)
    file = tmp_path / "one.dcm"
    file.write_bytes(b"".join(outgoing.part10(store, row)))
    read = pydicom.dcmread(file)
    assert read.file_meta.TransferSyntaxUID == syntax
    assert "group-2-in-data-set" in row.flags
    with forwarding(store):
        until(lambda: set(states_of(store)) == {"sent"}, "it is sent")
    got = recorder.by_uid()["1.2.3.4"]
    assert (inflated(got.data) if syntax == DEFLATED_LE else got.data) == clean
