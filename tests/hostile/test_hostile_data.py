"""Broken data sets and lying pixel data against a receiver of its own: BAD-INPUT 36 to 57.

What has an identity is stored as it came, with a flag; what has none is refused with its reason.
Nothing is decoded on the way in, and nobody beside it notices.
"""

import hashlib
import struct
import sys
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from subprocess import run

import pytest
from harness.made import CT, ct, new_uid
from harness.part10 import DEFLATED_LE, EXPLICIT_LE, Part10
from harness.waiting import until
from hostile.attacker import Attacker, bounded
from hostile.lying import Lie, lies
from hostile.receiver import Receiver
from store.making import element, small

from edgepacs.custody import outgoing, readout
from edgepacs.errors import NotFound, Undecodable

bad_input = pytest.mark.bad_input

SEQ = struct.pack("<HH2s2xI", 0x0040, 0x0275, b"SQ", 0xFFFFFFFF)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
EMPTY_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQ_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
PIXELS = element(0x7FE00010, "OW", bytes(64))


def part(data: bytes, sop: str = "1.2.3.4", syntax: str = EXPLICIT_LE) -> Part10:
    return Part10(
        path=None,
        sop_class=CT,
        sop_instance=sop,
        transfer_syntax=syntax,
        modality="CT",
        data=data,
    )


def long(tag: int, vr: str, length: int) -> bytes:
    """The header of an element with a four-byte length (PS3.5 7.1.2)."""
    return struct.pack("<HH2s2xI", tag >> 16, tag & 0xFFFF, vr.encode(), length)


# -- what is odd is stored as it came

_UN = long(0x00291010, "UN", 0xFFFFFFFF) + ITEM
_UN += struct.pack("<HHI", 0x0010, 0x0020, 4) + b"FAKE" + ITEM_END + SEQ_END


@pytest.mark.parametrize(
    ("before", "more", "flag"),
    [
        pytest.param(
            b"", (SEQ + ITEM) * 240, "nested-too-deep", marks=bad_input(37), id="240 deep"
        ),
        pytest.param(
            b"", (SEQ + ITEM) * 100_000, "nested-too-deep", marks=bad_input(37), id="10^5 deep"
        ),
        pytest.param(
            b"",
            SEQ + EMPTY_ITEM * 1_000_000 + SEQ_END,
            "too-many-items",
            marks=bad_input(38),
            id="10^6 items",
        ),
        pytest.param(
            b"",
            struct.pack("<HH2sH", 0x0040, 0x0244, b"SH", 3) + b"abc" + PIXELS,
            "odd-length",
            marks=bad_input(41),
            id="odd length",
        ),
        pytest.param(b"", _UN + PIXELS, "", marks=bad_input(42), id="UN of undefined length"),
        pytest.param(
            b"",
            long(0x00400275, "OB", 0xFFFFFFFF) + b"x" * 50,
            "undefined-length",
            marks=bad_input(42),
            id="OB of undefined length",
        ),
        pytest.param(
            b"",
            long(0x00400275, "UT", 0xFFFFFFFF) + ITEM + ITEM_END + SEQ_END,
            "undefined-length",
            marks=bad_input(42),
            id="UT of undefined length",
        ),
        pytest.param(
            b"", element(0x00280010, "LO", "many") + PIXELS, "", marks=bad_input(43), id="wrong VR"
        ),
        pytest.param(
            b"",
            element(0x00280010, "SQ", EMPTY_ITEM) + PIXELS,
            "",
            marks=bad_input(43),
            id="rows as a sequence",
        ),
        pytest.param(
            element(0x00020010, "UI", "1.2.840.10008.1.2.4.90"),
            PIXELS,
            "group-2-in-data-set",
            marks=bad_input(44),
            id="group 2",
        ),
        pytest.param(
            b"",
            element(0x00280010, "US", b"\1\0") * 2,
            "duplicate-element",
            marks=bad_input(45),
            id="duplicate",
        ),
        pytest.param(
            b"",
            element(0x00280010, "US", b"\1\0") + element(0x00280002, "US", b"\1\0"),
            "elements-out-of-order",
            marks=bad_input(46),
            id="out of order",
        ),
    ],
)
def test_what_is_odd_is_stored_as_it_came(
    receiver: Receiver, attacker: Attacker, before: bytes, more: bytes, flag: str
) -> None:
    sop = new_uid()
    data = before + small(sop=sop, more=more)
    attacker.proposing(CT)
    with bounded(receiver):
        assert attacker.store(part(data, sop)) == (0, "")
    (row,) = receiver.versions(sop)
    assert receiver.sealed(row) == data
    assert (flag in row.flags.split()) if flag else not row.flags
    file = b"".join(outgoing.part10(receiver.store, row))
    assert file.endswith(data[len(before) :])
    with suppress(Undecodable):  # shown as far as it can be
        assert readout.attribute_lines(receiver.store, row)


# -- what has no identity, or no end, is not


def deflated(data: bytes, zeros: int = 0) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(data)
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(zeros))
    return packed + packer.flush()


@pytest.mark.parametrize(
    ("data", "syntax", "status", "words"),
    [
        pytest.param(
            (SEQ + ITEM) * 240 + small(),
            EXPLICIT_LE,
            0xC000,
            "nested-too-deep, limit 32, before (0008,0016)",
            marks=bad_input(37),
            id="240 deep",
        ),
        pytest.param(
            (SEQ + ITEM) * 100_000 + small(),
            EXPLICIT_LE,
            0xC000,
            "nested-too-deep",
            marks=bad_input(37),
            id="10^5 deep",
        ),
        pytest.param(
            SEQ + EMPTY_ITEM * 1_000_000 + SEQ_END + small(),
            EXPLICIT_LE,
            0xC000,
            "too-many-items",
            marks=bad_input(38),
            id="10^6 items",
        ),
        pytest.param(
            deflated(small() + long(0x00291010, "OB", 1 << 30), zeros=1024),
            DEFLATED_LE,
            0xC000,
            "inflates to more than 200 times its size",
            marks=bad_input(39),
            id="deflated bomb",
        ),
        pytest.param(
            deflated(small())[:-4],
            DEFLATED_LE,
            0xC000,
            "ends in the middle of an element",
            marks=bad_input(39),
            id="deflated and cut",
        ),
        pytest.param(
            small(more=long(0x7FE00010, "OW", 0xFFFFFFFE) + bytes(1000)),
            EXPLICIT_LE,
            0xC000,
            "ends in the middle of an element, after (7FE0,0010)",
            marks=bad_input(40),
            id="OW of 4 GiB",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(
    receiver: Receiver, attacker: Attacker, data: bytes, syntax: str, status: int, words: str
) -> None:
    objects = receiver.objects()
    assert attacker.proposing(CT, syntax) == 0
    with bounded(receiver):
        answer, comment = attacker.store(part(data, syntax=syntax))
        assert answer == status
        assert attacker.store(part(data, syntax=syntax)) == (answer, comment)  # it lives on
    assert receiver.objects() == objects + 1  # the bystander's
    assert not receiver.versions("1.2.3.4")
    (record, *_) = until(lambda: refusals(receiver, words), "the refusal is in the trail")
    assert record.startswith(comment)
    assert len(comment) <= 64  # (0000,0902) is LO


def refusals(receiver: Receiver, words: str) -> list[str]:
    trail = receiver.trail()
    return [one.detail for one in trail if one.act == "instance refused" and words in one.detail]


# -- what there is no room for


@bad_input(36)
def test_without_room_nothing_is_acknowledged(tmp_path: Path) -> None:
    """The same while the disk fills up under way: tests/faults."""
    with Receiver(tmp_path / "node", reserve_mib=1 << 30) as receiver:
        attacker = Attacker(receiver.port, "127.0.0.1")
        attacker.proposing(CT)
        for _ in range(3):
            status, comment = attacker.store(ct())
            assert status == 0xA700  # PS3.4 B.2.3: refused, out of resources
            assert "reserve is 1073741824 MiB" in comment
        attacker.close()
        assert receiver.objects() == 0
        assert [one.act for one in receiver.trail()].count("instance refused") == 1
        receiver.require_sound()


@bad_input(57)
def test_a_private_element_of_100_mib_streams_in_and_out(
    receiver: Receiver, attacker: Attacker
) -> None:
    sop = new_uid()
    size = 100 << 20
    data = small(sop=sop, more=long(0x00291010, "OB", size)) + bytes(range(256)) * (size >> 8)
    data += PIXELS
    assert attacker.proposing(CT) == 0
    with bounded(receiver, seconds=10, memory=16 << 20):
        assert attacker.store(part(data, sop)) == (0, "")
    (row,) = receiver.versions(sop)
    assert not row.flags
    digest, length = hashlib.sha256(), 0
    tracemalloc.start()
    for piece in outgoing.outgoing(receiver.store, row, {row.transfer_syntax_uid}).chunks:
        digest.update(piece)
        length += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (length, digest.digest()) == (len(data), hashlib.sha256(data).digest())
    assert peak < 4 << 20


# -- pixel data that lies


@bad_input(47, 48, 49, 50, 51, 52, 53, 54, 55)
@pytest.mark.parametrize("lie", list(lies()), ids=lambda lie: f"{lie.case}, {lie.name}")
def test_a_lie_is_stored_as_it_came_and_decoded_nowhere(
    receiver: Receiver, attacker: Attacker, lie: Lie
) -> None:
    attacker.proposing(CT, lie.part.transfer_syntax)
    before = receiver.cpu()
    with bounded(receiver, memory=8 << 20):
        assert attacker.store(lie.part) == (0, "")
    assert receiver.cpu() - before < 0.5
    (row,) = receiver.versions(lie.part.sop_instance)
    assert receiver.sealed(row) == lie.part.data
    assert not row.flags
    with pytest.raises((Undecodable, NotFound)):
        readout.picture(receiver.store, row, 0)


@bad_input(47, 48, 49, 50, 51, 52, 53, 54, 55)
def test_a_receiver_has_no_codecs_to_decode_with(receiver: Receiver, attacker: Attacker) -> None:
    """Neither has it loaded any after all that came, nor does what it runs import them."""
    attacker.proposing(CT)
    assert attacker.store(ct())[0] == 0
    assert not [name for name in receiver.mapped() if "imagecodecs" in name]
    seen = "import sys, edgepacs.scp.listener; print(*sys.modules)"
    found = run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout
    assert "edgepacs.custody.ingest" in found
    decoders = ("edgepacs.pixels", "edgepacs.custody.readout", "imagecodecs")
    assert not [name for name in found.split() if name.startswith(decoders)]
