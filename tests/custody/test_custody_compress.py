"""Compression at rest: what was received comes back bit for bit, and what lies stays as it is."""

import base64
import contextlib
import hashlib
import io
import re
import struct
import warnings
import zlib
from itertools import islice
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from custody.pictures import LIES, NATIVE, colour, fields, gradient, picture
from custody.pressing import claim, press, received, row, sealed, settle
from harness import corpus
from harness.fault import flip_bit
from harness.made import ct, instance, new_uid
from harness.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, Part10
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from store.making import element, objects, opened_store, take_in_part

from edgepacs.clock import processor_ms
from edgepacs.custody import compress as compressing
from edgepacs.custody import readout, restore, standing
from edgepacs.custody.compress import Kept, compress
from edgepacs.errors import Conflict, EdgePacsError, Tampered
from edgepacs.model import CompressionState, InstanceId, ObjectId
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET, HTJ2K, JPEG_LS, JPEG_XL, syntax
from edgepacs.store import Store, compressions, fsck
from edgepacs.store.compressions import Made, Selection
from edgepacs.store.drafts import Draft
from edgepacs.store.rebuild import rebuild
from edgepacs.store.vault import new_object_id
from edgepacs.upkeep.crew import Limits


def take(store: Store, part: Part10) -> InstanceId:
    return take_in_part(store, part).instance_id


def pressed(store: Store, part: Part10) -> tuple[InstanceId, Made | Kept]:
    number = take(store, part)
    return number, press(store)[number]


def comes_back(store: Store, number: InstanceId, part: Part10) -> bool:
    return received(store, number) == part.data


# --- everything there is --------------------------------------------------------------------


def test_every_instance_of_the_corpus_comes_back_after_restart_and_again(tmp_path: Path):
    """Compressed, restarted, transcoded back, compressed once more, and back again."""
    parts: dict[InstanceId, Part10] = {}
    with opened_store(tmp_path / "node") as store:
        for part in corpus.everything():
            try:
                parts[take(store, part)] = part
            except EdgePacsError:  # refused at ingest: no identity, or cut short
                continue
        done = press(store)
    made = {number: one for number, one in done.items() if isinstance(one, Made)}
    assert len(made) > 60
    assert {one.transfer_syntax_uid for one in made.values()} >= {JPEG_LS, DEFLATED_DATA_SET}
    again = Store.open(store.config)
    try:
        assert all(comes_back(again, number, part) for number, part in parts.items())
        assert sum(one.byte_length for one in made.values()) < 0.5 * sum(
            len(parts[number].data) for number in made
        )
        _same_for_pydicom(again, parts, list(made))
        with again.db.write() as tx:
            compressions.again(tx, Selection(), actor="test")
        press(again, extra=(JPEG_XL,))
        assert all(comes_back(again, number, part) for number, part in parts.items())
        assert fsck.check(again).sound
    finally:
        again.close()


def _same_for_pydicom(
    store: Store, parts: dict[InstanceId, Part10], numbers: list[InstanceId]
) -> None:
    """What stands at rest is a data set like any other: its frames are what pydicom saw."""
    compared = 0
    for number in numbers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = pixel_array(io.BytesIO(parts[number].file()), raw=True)
            except Exception:  # noqa: BLE001 - pydicom refuses what we can read
                continue
        now = row(store, number)
        frames = list(readout.native_frames(store, now))
        expected = expected.astype(expected.dtype.newbyteorder("="))
        cells = expected.view(f"u{expected.itemsize}").reshape(len(frames), -1)
        stored = (1 << readout.content(store, now).BitsStored) - 1  # pydicom drops other bits
        for frame, one in zip(frames, cells, strict=True):
            mine = np.frombuffer(frame[-one.nbytes :], one.dtype)
            assert np.array_equal(mine & stored, one & stored), parts[number].path
        compared += 1
    assert compared > 50


# --- each encoding --------------------------------------------------------------------------


@pytest.mark.parametrize("transfer_syntax", NATIVE)
@pytest.mark.parametrize(
    "cells",
    [
        gradient(),
        gradient(depth=8).astype("u1"),
        (gradient() - 2048).astype("i2"),
        gradient(depth=16),
        gradient(61, 67),
    ],
    ids=["12 bits", "8 bits", "signed", "16 bits", "odd sides"],
)
def test_every_native_encoding(store: Store, transfer_syntax: str, cells: np.ndarray):
    part = picture(cells, transfer_syntax)
    number, made = pressed(store, part)
    assert isinstance(made, Made), made
    assert made.transfer_syntax_uid == JPEG_LS
    now = row(store, number)
    assert (now.transfer_syntax_uid, now.received_syntax_uid) == (JPEG_LS, transfer_syntax)
    assert now.byte_length < 0.65 * len(part.data)
    assert comes_back(store, number, part)


@pytest.mark.parametrize("transfer_syntax", NATIVE)
@pytest.mark.parametrize("planar", [0, 1])
def test_colour(store: Store, transfer_syntax: str, planar: int):
    part = colour(planar=bool(planar), transfer_syntax=transfer_syntax, frames=3)
    number, made = pressed(store, part)
    assert isinstance(made, Made), made
    head = readout._parse(store, row(store, number)).dataset
    if made.transfer_syntax_uid == HTJ2K:
        assert (head.PhotometricInterpretation, head.PlanarConfiguration) == ("YBR_RCT", 0)
    assert readout.content(store, row(store, number)).PhotometricInterpretation == "RGB"
    assert readout.content(store, row(store, number)).PlanarConfiguration == planar
    assert comes_back(store, number, part)


def test_bits_outside_bits_stored_come_back(store: Store):
    """Old overlays live in bits that are not stored (PS3.5 8.1.1)."""
    cells = gradient() | (np.indices((128, 128)).sum(0) % 3 == 0).astype("u2") << 14
    part = picture(cells, BitsStored=12, HighBit=11)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    assert comes_back(store, number, part)


def test_a_flat_screen_is_deflated_as_a_whole(store: Store):
    cells = np.zeros((400, 400), "u1")
    cells[::7] = 255
    cells[:, ::11] = 128
    part = picture(cells)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    assert made.transfer_syntax_uid == DEFLATED_DATA_SET
    assert row(store, number).pixel_offset == -1
    assert readout.picture(store, row(store, number), 0).startswith(b"\xff\xd8")
    assert comes_back(store, number, part)


def test_many_frames_are_found_by_their_table(store: Store):
    cells = np.stack([np.roll(gradient(), n, axis=1) for n in range(12)])
    part = picture(cells, NumberOfFrames=12)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    value = sealed(store, number)[made.pixel_offset + 12 :]
    tag, length = struct.unpack_from("<II", value)
    assert (tag, length) == (0xE000FFFE, 48)
    offsets = struct.unpack_from("<12I", value, 8)
    assert all(value[56 + at :].startswith(b"\xfe\xff\x00\xe0") for at in offsets)
    assert comes_back(store, number, part)


def test_frames_that_memory_does_not_hold_are_encoded_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compressing, "_KEPT_ENCODED", 20_000)
    cells = np.stack([np.roll(gradient(), n, axis=1) for n in range(12)])
    part = picture(cells, NumberOfFrames=12)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    assert made.byte_length > 40_000
    assert comes_back(store, number, part)


# --- what stands around the pixels ----------------------------------------------------------


def test_what_follows_the_pixels_comes_back(store: Store):
    dataset = ct().dataset()
    dataset.DataSetTrailingPadding = bytes(100)
    for transfer_syntax in NATIVE:
        dataset.SOPInstanceUID = new_uid()
        if transfer_syntax == EXPLICIT_BE:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        part = instance(dataset, transfer_syntax)
        number, made = pressed(store, part)
        assert isinstance(made, Made)
        assert element(0xFFFCFFFC, "OB", bytes(100)) in sealed(store, number)
        assert comes_back(store, number, part)


def test_private_blocks_cost_next_to_nothing(store: Store):
    """A head of 300 KiB that does not compress is told in terms of the one at rest."""
    chance = np.random.default_rng(5)
    dataset = ct().dataset()
    block = dataset.private_block(0x0029, "EDGEPACS TEST", create=True)
    for number in range(3):
        block.add_new(number, "OB", chance.bytes(100_000))
    for transfer_syntax in (EXPLICIT_LE, IMPLICIT_LE):
        dataset.SOPInstanceUID = new_uid()
        part = instance(dataset, transfer_syntax)
        number, made = pressed(store, part)
        assert isinstance(made, Made), made
        assert comes_back(store, number, part)
        now = row(store, number)
        assert now.sealed_length - now.byte_length < 20_000


def test_sequences_of_an_implicit_data_set(store: Store):
    dataset = ct().dataset()
    item, inner = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-1", "Liver"
    item.AnatomicRegionSequence = [inner]
    dataset.ReferencedImageSequence = [item, Dataset()]
    part = instance(dataset, IMPLICIT_LE)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    stood = readout._parse(store, row(store, number)).dataset
    assert stood.ReferencedImageSequence[0].AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert comes_back(store, number, part)


def test_group_lengths_and_group_2_come_back(store: Store):
    plain = picture().data
    data = element(0x00020010, "UI", "1.2.840.10008.1.2.4.50") + element(0x00080000, "UL", bytes(4))
    part = Part10(
        path=None,
        sop_class=ct().sop_class,
        sop_instance="",
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=data + plain,
    )
    sop = str(part.dataset().SOPInstanceUID)
    number, made = pressed(store, Part10(**{**fields(part), "sop_instance": sop}))
    assert isinstance(made, Made)
    assert not sealed(store, number).startswith(b"\x02\0")
    assert comes_back(store, number, part)


def test_the_trailer_is_as_documented_and_restores_without_us(store: Store):
    """docs/format.md, "Restoring", followed to the letter, but for the codec."""
    part = picture(transfer_syntax=IMPLICIT_LE)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    with store.vault.open(made.object_id) as reader:
        trailer, data = reader.trailer(), b"".join(reader.chunks())
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    further, restoring = page.split("| Further key |")[1].split("### Restoring")
    named = set(re.findall(r"^\| `(\w+)`", further, re.MULTILINE))
    assert named == {"received_syntax_uid", "received_length", "native_digest", "restore"}
    assert named <= set(trailer)
    recipe = trailer["restore"]
    assert set(re.findall(r"`(\w+)`", restoring.split("\n\n")[2])) >= {*recipe, *recipe["pixels"]}
    around = data[: recipe["stored_head"]] + data[len(data) - recipe["stored_tail"] :]
    packed, outside = base64.b64decode(recipe["outside"]), b""
    while len(outside) < recipe["outside_length"]:
        place = len(outside) * len(around) // recipe["outside_length"]
        dictionary = around[max(0, place - 8192) : place + 16384]
        inflater = zlib.decompressobj(-15, zdict=dictionary)
        outside += inflater.decompress(packed)
        packed = inflater.unused_data
    table = struct.unpack_from("<I", data, recipe["stored_head"] + 4)[0]
    (length,) = struct.unpack_from("<I", data, recipe["stored_head"] + 12 + table)
    start = recipe["stored_head"] + 16 + table
    cells = imagecodecs.jpegls_decode(data[start : start + length])
    head = outside[: recipe["head_length"]]
    assert head + cells.tobytes() + outside[recipe["head_length"] :] == part.data
    assert received(store, number) == part.data


# --- what stays as it is --------------------------------------------------------------------


@pytest.mark.bad_input(47, 48, 49, 50)
@pytest.mark.parametrize("name", LIES)
def test_what_lies_stays_as_it_is_and_says_why(store: Store, name: str):
    make, words = LIES[name]
    part = make()
    number, found = pressed(store, part)
    assert isinstance(found, Kept)
    assert words in found.reason
    (result,) = compressions.results(store.db, Selection(instance=number))
    assert (result.state, result.reason) == (CompressionState.NATIVE, found.reason)
    assert sealed(store, number) == part.data
    assert len(objects(store)) == 1
    assert fsck.check(store).sound


@pytest.mark.bad_input(52, 53, 54, 55)
def test_what_came_compressed_is_never_touched(store: Store):
    encapsulated = [
        part
        for part in corpus.sample()
        if (known := syntax(part.transfer_syntax)) is not None and known.encapsulated
    ]
    taken: dict[InstanceId, Part10] = {}
    for part in encapsulated:
        with contextlib.suppress(EdgePacsError):  # one names no instance
            taken[take(store, part)] = part
    assert len(taken) > 5
    assert press(store) == {}
    assert all(sealed(store, number) == part.data for number, part in taken.items())


@pytest.mark.bad_input(51)
def test_indices_beyond_the_palette_come_back(store: Store):
    """They are numbers like any other: nothing looks them up here."""
    dataset = picture(gradient(depth=8).astype("u1")).dataset()
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    dataset.add_new(0x00281101, "US", [4, 0, 16])
    dataset.add_new(0x00281201, "OW", bytes(8))
    part = instance(dataset)
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    assert comes_back(store, number, part)


def test_a_head_of_a_million_elements_takes_bounded_time(store: Store):
    count = corpus.count(200_000, 2_000_000)
    tags = (
        (group, element) for group in range(0x5001, 0x50FF, 2) for element in range(4096, 65535)
    )
    many = b"".join(struct.pack("<HH2sH", *tag, b"LO", 0) for tag in islice(tags, count))
    part = picture()
    at = part.data.index(b"\xe0\x7f\x10\0OW\0\0")
    part = Part10(**{**fields(part), "data": part.data[:at] + many + part.data[at:]})
    begin = processor_ms()
    number, _ = pressed(store, part)
    assert processor_ms() - begin < 1000 * Limits().seconds(len(part.data))
    assert comes_back(store, number, part)


def test_elements_out_of_order_are_left_as_they_are(store: Store):
    part = picture()
    rows, columns = element(0x00280010, "US", b"\x80\0"), element(0x00280011, "US", b"\x80\0")
    data = part.data.replace(rows + columns, columns + rows)
    assert data != part.data
    number, found = pressed(store, Part10(**{**fields(part), "data": data}))
    assert isinstance(found, Kept)
    assert "out of order" in found.reason
    assert sealed(store, number) == data


def test_a_head_too_long_to_be_restored_from_a_trailer(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compressing.seal, "TRAILER_LIMIT", 1000)
    part = picture(transfer_syntax=IMPLICIT_LE, PatientComments="".join(map(str, range(3000))))
    _, found = pressed(store, part)
    assert isinstance(found, Kept)
    assert "too long" in found.reason
    assert len(objects(store)) == 1


# --- proof ----------------------------------------------------------------------------------


def test_nothing_is_left_of_what_was_not_proved(store: Store, monkeypatch: pytest.MonkeyPatch):
    """The object is damaged between sealing and proof, as a bad disk would do it."""
    part = picture()
    number = take(store, part)
    (claimed,) = claim(store)
    name = new_object_id()

    def damage(point: str) -> None:
        assert point == "compress.sealed"
        flip_bit(store.paths.objects / name.hex()[:2] / name.hex(), 300)

    monkeypatch.setattr(compressing, "failpoint", damage)
    found = compress(store, claimed, name)
    assert isinstance(found, Kept)
    assert found.reason.startswith("Proof: ")
    settle(store, claimed, found)
    assert comes_back(store, number, part)
    assert len(objects(store)) == 1
    assert fsck.check(store).sound


def test_an_encoder_that_loses_a_bit_costs_nothing_but_its_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """Nothing else looks at the frames: the proof has to see it."""
    real = compressing.encode_frame

    def lossy(frame: bytes, *how: object) -> bytes:
        return real(frame[:-2] + bytes((frame[-2] ^ 1, frame[-1])), *how)  # type: ignore[arg-type]

    monkeypatch.setattr(compressing, "encode_frame", lossy)
    part = picture()
    number, made = pressed(store, part)
    assert made == Kept("Proof: it does not restore to what was received")
    assert sealed(store, number) == part.data
    assert len(objects(store)) == 1
    assert fsck.check(store).sound


def test_restoring_other_bytes_than_received_is_tampering(store: Store):
    """A codec that decoded otherwise one day would be found out before the last byte is given."""
    part = picture()
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    now = row(store, number)
    with store.vault.open(now.object_id) as reader:
        draft = Draft.from_trailer(reader.trailer(), now.object_id, now.sealed_length)
        data = b"".join(reader.chunks())
    key_id, key = store.keystore.ensure_study_key(draft.attributes.study_instance_uid)
    trailer = {**draft.trailer(), "received_digest": (b"\x02" + bytes(32)).hex()}
    writer = store.vault.new(now.sop_instance_uid)
    writer.write(data)
    writer.finish(key_id, key, trailer)
    with store.db.write() as tx:
        tx.run("UPDATE instance SET object_id = ? WHERE id = ?", writer.object_id, number)
    pieces = []
    with pytest.raises(Tampered, match="does not restore"):
        pieces.extend(restore.received_chunks(store, row(store, number)))
    assert len(b"".join(pieces)) < len(part.data)


def test_what_version_0_1_sealed_is_proved_by_its_sha256(store: Store):
    part = picture()
    number = take(store, part)
    now = row(store, number)
    with store.vault.open(now.object_id) as reader:
        trailer = reader.trailer()
    digest = hashlib.sha256(part.data).digest()
    del trailer["received_digest"]
    key_id, key = store.keystore.ensure_study_key(trailer["study_instance_uid"])
    writer = store.vault.new(now.sop_instance_uid)
    writer.write(part.data)
    size = writer.finish(key_id, key, {**trailer, "received_sha256": digest.hex()})
    with store.db.write() as tx:
        tx.run(
            "UPDATE instance SET object_id = ?, sealed_length = ?, received_digest = ?",
            writer.object_id,
            size,
            b"\x01" + digest,
        )
    store.vault.remove(now.object_id)
    assert fsck.check(store).sound
    assert isinstance(press(store)[number], Made)
    assert comes_back(store, number, part)
    with store.vault.open(row(store, number).object_id) as reader:
        assert reader.trailer()["received_digest"] == "01" + digest.hex()
    assert fsck.check(store).sound


def test_an_instance_that_has_changed_is_refused(store: Store):
    part = picture()
    take(store, part)
    (claimed,) = claim(store)
    take(store, part)  # the same bytes again: the new copy replaces the old
    with pytest.raises(Conflict):
        compress(store, claimed, new_object_id())
    assert len(objects(store)) == 1


def test_an_instance_that_changes_meanwhile_keeps_its_new_object(store: Store):
    part = picture()
    number = take(store, part)
    (claimed,) = claim(store)
    made = compress(store, claimed, new_object_id())
    assert isinstance(made, Made)
    take(store, part)
    with store.db.write() as tx, pytest.raises(Conflict):
        compressions.swap(tx, claimed, made)
    store.vault.remove(made.object_id)
    assert comes_back(store, number, part)
    assert fsck.check(store).sound


def test_a_reader_of_the_former_row_gets_the_present_object(store: Store):
    part = picture()
    number = take(store, part)
    before = row(store, number)
    press(store)
    now, reader = standing.opened(store, before)
    reader.close()
    assert now.transfer_syntax_uid == JPEG_LS
    assert b"".join(restore.received_chunks(store, before)) == part.data
    assert readout.display(store, before).rows == 128
    assert readout.picture(store, before, 0).startswith(b"\xff\xd8")


# --- versions, duplicates, sweeps -----------------------------------------------------------


def test_the_same_bytes_again_stand_native_and_are_compressed_again(store: Store):
    part = picture()
    number, made = pressed(store, part)
    assert isinstance(made, Made)
    size = store.vault.size(row(store, number).object_id)
    assert take(store, part) == number
    now = row(store, number)
    assert (now.transfer_syntax_uid, now.byte_length) == (EXPLICIT_LE, len(part.data))
    assert now.native_digest is None
    again = press(store)[number]
    assert isinstance(again, Made)
    assert store.vault.size(row(store, number).object_id) == size
    assert len(objects(store)) == 1
    assert comes_back(store, number, part)


def test_an_orphan_that_was_not_proved_is_removed(store: Store):
    """A crash between sealing and the swap: what it was made from still stands."""
    part = picture()
    number = take(store, part)
    (claimed,) = claim(store)
    assert isinstance(compress(store, claimed, new_object_id()), Made)
    assert len(objects(store)) == 2
    settled = fsck.sweep(store)
    assert (settled.removed, settled.adopted) == (1, 0)
    assert sealed(store, number) == part.data
    assert fsck.check(store).sound


def test_an_orphan_takes_the_place_of_what_no_longer_authenticates(store: Store):
    """What it was made from is there, but damaged: the orphan is all that is left of it."""
    part = picture()
    number = take(store, part)
    (claimed,) = claim(store)
    made = compress(store, claimed, new_object_id())
    assert isinstance(made, Made)
    (path,) = [one for one in objects(store) if one.name == claimed.object_id.hex()]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    settled = fsck.sweep(store)
    assert settled.adopted + settled.removed == 1
    assert row(store, number).object_id == made.object_id
    assert comes_back(store, number, part)
    assert len(objects(store)) == 1
    assert fsck.check(store).sound


def test_the_former_object_left_after_a_swap_is_settled(store: Store):
    """A crash right after the swap: either of the two may stand, one of them goes."""
    part = picture()
    number = take(store, part)
    (claimed,) = claim(store)
    made = compress(store, claimed, new_object_id())
    assert isinstance(made, Made)
    with store.db.write() as tx:
        compressions.swap(tx, claimed, made)
    assert fsck.sweep(store).removed == 1
    assert len(objects(store)) == 1
    assert comes_back(store, number, part)
    assert fsck.check(store).sound
    press(store)
    assert row(store, number).transfer_syntax_uid == JPEG_LS
    assert fsck.check(store).sound


def test_a_compressed_orphan_is_adopted_where_nothing_else_is_left(store: Store):
    """An older index was put back: its row names an object that is gone."""
    part = picture()
    number = take(store, part)
    before = row(store, number)
    press(store)
    with store.db.write() as tx:
        tx.run(
            "UPDATE instance SET object_id = ?, transfer_syntax_uid = ?, byte_length = ?, "
            "sealed_length = ?, pixel_offset = ?, native_digest = NULL WHERE id = ?",
            before.object_id,
            before.transfer_syntax_uid,
            before.byte_length,
            before.sealed_length,
            before.pixel_offset,
            number,
        )
        tx.run("DELETE FROM compression")
    assert fsck.check(store).missing == [number]
    fsck.sweep(store)
    assert fsck.check(store).sound
    now = row(store, number)
    assert now.transfer_syntax_uid == JPEG_LS
    assert now.native_digest is not None
    assert comes_back(store, number, part)


@pytest.mark.parametrize("swapped", [0, 1])
def test_an_index_made_again_after_a_crash_between_two_objects(store: Store, swapped: int):
    """Both objects of an instance are there, before the swap or after it."""
    part, other = picture(), picture(gradient(seed=2))
    number = take(store, part)
    (claimed,) = claim(store)
    made = compress(store, claimed, new_object_id())
    assert isinstance(made, Made)
    if swapped:
        with store.db.write() as tx:
            compressions.swap(tx, claimed, made)
    pressed(store, other)
    store.db.close()
    for path in store.paths.data_dir.glob("index.db*"):
        path.unlink()
    assert rebuild(store.config).instances == 2
    again = Store.open(store.config)
    try:
        assert len(objects(again)) == 3
        assert fsck.sweep(again).removed == 1
        assert fsck.check(again).sound
        by_uid = {one.sop_instance: one for one in (part, other)}
        for each in (row(again, InstanceId(1)), row(again, InstanceId(2))):
            assert received(again, each.id) == by_uid[each.sop_instance_uid].data
        press(again)
        assert {row(again, InstanceId(n)).transfer_syntax_uid for n in (1, 2)} == {JPEG_LS}
        assert number == 1
        assert fsck.check(again).sound
    finally:
        again.close()


def test_nothing_is_made_again_of_a_study_whose_key_is_gone(store: Store):
    """What was shredded meanwhile must not come to life again under a new key."""
    take(store, picture())
    (claimed,) = claim(store)
    keys = store.keystore._keys
    saved = dict(keys)
    with store.vault.open(claimed.object_id) as reader:
        assert reader.length
        keys.clear()
        try:
            with pytest.raises(EdgePacsError):
                compress(store, claimed, ObjectId(new_object_id()))
        finally:
            keys.update(saved)
    assert len(objects(store)) == 1
