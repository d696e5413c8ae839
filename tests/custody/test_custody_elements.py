"""Elements written anew in another encoding: what pydicom reads from them stays the same."""

import struct
from collections.abc import Iterator

import numpy as np
import pytest
from harness import corpus
from harness.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Part10, decode, encode
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from store.making import element

from edgepacs.custody.elements import EXPLICIT, IMPLICIT, Encoding, recoded, values
from edgepacs.errors import Undecodable

BIG = Encoding(big_endian=True)
ENCODINGS = {EXPLICIT_LE: EXPLICIT, IMPLICIT_LE: IMPLICIT, EXPLICIT_BE: BIG}
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


def bare(tag: int, length: int, value: bytes = b"") -> bytes:
    """An item, a delimiter, or an implicit element."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + value


def undefined(tag: int, vr: str, items: bytes) -> bytes:
    head = struct.pack("<HH2sxxI", tag >> 16, tag & 0xFFFF, vr.encode(), 0xFFFFFFFF)
    return head + items + bare(SEQUENCE_END, 0)


def native_heads() -> Iterator[tuple[Part10, bytes, Dataset]]:
    """Every native data set of the corpus up to its pixel data, with what pydicom makes of it."""
    for part in corpus.everything():
        if part.transfer_syntax not in ENCODINGS:
            continue
        try:
            dataset = part.dataset()
            for tag in (0x7FE00008, 0x7FE00009, 0x7FE00010):
                dataset.pop(tag, None)
            yield part, encode(dataset, part.transfer_syntax), dataset
        except Exception:  # noqa: BLE001 - pydicom cannot write what it could read
            continue


def plain(dataset: Dataset, *, big: bool = False) -> list[tuple[int, object]]:
    """Tags and values, without group lengths; words that pydicom leaves in big endian are turned.

    Of private elements the tags alone: without a VR what they mean stays with whoever made them.
    """
    return [
        (int(tag), None if tag.is_private else value(dataset[tag], big=big))
        for tag in sorted(dataset.keys())
        if tag.element and tag.group != 2
    ]


def value(one: DataElement, *, big: bool) -> object:
    if isinstance(one.value, Sequence):
        return [plain(item, big=big) for item in one.value]
    if big and one.VR == "OW":
        return bytes(np.frombuffer(one.value, "u2").byteswap()).rstrip(b"\0 ")
    if one.VR in ("US", "SS"):  # which of them, or OW, may depend on another element
        numbers = one.value if one.VM > 1 else [one.value] if one.VM else []
        return b"".join(struct.pack("<H", number & 0xFFFF) for number in numbers).rstrip(b"\0 ")
    if isinstance(one.value, bytes):
        return one.value.rstrip(b"\0 ")
    return str(one.value or "") if one.VM == 0 else str(one.value)


def test_every_native_data_set_means_the_same_in_every_encoding():
    tried = 0
    for part, head, dataset in native_heads():
        signed = dataset.get("PixelRepresentation", 0) == 1
        source = ENCODINGS[part.transfer_syntax]
        try:
            explicit = recoded(head, source, EXPLICIT, signed=signed)
        except Undecodable:
            continue
        tried += 1
        try:
            expected = plain(dataset, big=source.big_endian)
        except Exception:  # noqa: BLE001 - broken values raise when pydicom reads them
            continue
        assert plain(decode(explicit, EXPLICIT_LE)) == expected, part.path
        implicit = recoded(explicit, EXPLICIT, IMPLICIT)
        assert plain(decode(implicit, IMPLICIT_LE)) == expected, part.path
        assert recoded(implicit, IMPLICIT, IMPLICIT) == implicit
        assert recoded(explicit, EXPLICIT, EXPLICIT) == explicit
    assert tried > 100


def test_lengths_of_nested_sequences_are_made_anew():
    inner = bare(ITEM, 18, bare(0x00080100, 2, b"T1") + bare(0x00420011, 0))
    nested = bare(0x00081140, len(inner), inner)
    implicit = bare(0x00081115, 8 + len(nested), bare(ITEM, len(nested), nested))
    explicit = recoded(implicit, IMPLICIT, EXPLICIT)
    item = element(0x00080100, "SH", "T1") + element(0x00420011, "OB", b"")
    inside = element(0x00081140, "SQ", bare(ITEM, len(item), item))
    assert explicit == element(0x00081115, "SQ", bare(ITEM, len(inside), inside))
    assert recoded(explicit, EXPLICIT, IMPLICIT) == implicit


def test_undefined_lengths_stay_undefined():
    item = element(0x00080100, "SH", "T1")
    data = undefined(0x00081115, "SQ", bare(ITEM, 0xFFFFFFFF, item) + bare(ITEM_END, 0))
    assert recoded(data, EXPLICIT) == data
    assert recoded(recoded(data, EXPLICIT, IMPLICIT), IMPLICIT) == data


def test_a_private_sequence_without_a_vr_stays_implicit_inside():
    """PS3.5 6.2.2: what is UN of undefined length holds implicit elements."""
    items = bare(ITEM, 0xFFFFFFFF, bare(0x00091002, 2, b"ab")) + bare(ITEM_END, 0)
    implicit = bare(0x00091001, 0xFFFFFFFF, items) + bare(SEQUENCE_END, 0)
    assert recoded(implicit, IMPLICIT) == undefined(0x00091001, "UN", items)
    assert recoded(undefined(0x00091001, "UN", items), EXPLICIT, IMPLICIT) == implicit


@pytest.mark.parametrize(("signed", "vr"), [(0, "US"), (1, "SS")])
def test_the_sign_of_the_pixels_decides(signed: int, vr: str):
    data = bare(0x00280106, 2, b"\x01\xff")
    assert recoded(data, IMPLICIT, signed=bool(signed)) == element(0x00280106, vr, b"\x01\xff")
    own = bare(0x00280103, 2, struct.pack("<H", signed)) + data
    assert recoded(own, IMPLICIT).endswith(element(0x00280106, vr, b"\x01\xff"))


def test_what_is_not_known_is_un_and_creators_are_text():
    data = bare(0x00090010, 4, b"MINE") + bare(0x00091001, 2, b"ab") + bare(0x60020022, 2, b"ab")
    assert recoded(data, IMPLICIT) == (
        element(0x00090010, "LO", b"MINE")
        + element(0x00091001, "UN", b"ab")
        + element(0x60020022, "LO", b"ab")
    )


def test_a_value_too_long_for_its_vr_is_un():
    long = b"1" * 0x10000
    made = recoded(bare(0x00181147, len(long), long), IMPLICIT)
    assert made[:8] == struct.pack("<HH2sxx", 0x0018, 0x1147, b"UN")
    assert recoded(made, EXPLICIT, IMPLICIT) == bare(0x00181147, len(long), long)


def test_group_lengths_and_group_2_are_left_out():
    kept = element(0x00080060, "CS", "CT")
    data = element(0x00020010, "UI", "1.2") + element(0x00080000, "UL", bytes(4)) + kept
    assert recoded(data, EXPLICIT) == kept


def test_changes():
    data = element(0x00280004, "CS", "RGB ") + element(0x00280006, "US", b"\1\0")
    made = recoded(data, EXPLICIT, changes={0x00280004: b"YBR_RCT ", 0x00280006: None})
    assert made == element(0x00280004, "CS", "YBR_RCT ")


def test_values():
    data = element(0x00280010, "US", b"\2\0") + element(0x00280011, "US", b"\3\0")
    assert values(data, EXPLICIT, {0x00280011, 0x00280100}) == {0x00280011: b"\3\0"}


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (element(0x00280010, "US", b"\1\0")[:-1], EXPLICIT),
        (element(0x00280010, "US", b"\1\0")[:5], EXPLICIT),
        (bare(0x00280010, 0xFFFFFFFE, b"\1\0"), IMPLICIT),
        (element(0x00280011, "US", b"\1\0") + element(0x00280010, "US", b"\1\0"), EXPLICIT),
        (element(0x00280010, "US", b"\1\0") * 2, EXPLICIT),
        (bare(0x00280010, 0xFFFFFFFF), IMPLICIT),
        (bare(0x00081115, 8, bare(0x00080060, 0)), IMPLICIT),
        (bare(0x00081115, 12, bare(ITEM, 8, b"abcd")), IMPLICIT),
        (bare(0x00081115, 12, bare(ITEM, 4, b"abcd")), IMPLICIT),
        (undefined(0x00081115, "SQ", b"")[:-8], EXPLICIT),
        (undefined(0x00081115, "SQ", bare(ITEM, 0xFFFFFFFF)), EXPLICIT),
        (undefined(0x00200032, "DS", b""), EXPLICIT),
        (bare(ITEM_END, 0), IMPLICIT),
        (b"\x28\x00\x10\x00\x00\x00\x02\x00\x01\x00", EXPLICIT),
        (b"\x00\x09\x10\x01UN\0\0\x00\x00\x00\x02ab", BIG),
        (b"\x00\x28\x00\x10UL\x00\x03abc", BIG),
    ],
)
def test_what_cannot_be_followed_is_refused(data: bytes, encoding: Encoding):
    with pytest.raises(Undecodable):
        recoded(data, encoding, EXPLICIT if encoding != EXPLICIT else IMPLICIT)


def test_nesting_is_bounded_and_takes_linear_time():
    data = b""
    for _ in range(200):
        data = undefined(0x00081115, "SQ", bare(ITEM, 0xFFFFFFFF, data) + bare(ITEM_END, 0))
    with pytest.raises(Undecodable, match="nested"):
        recoded(data, EXPLICIT)
