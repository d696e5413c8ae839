import io
import random
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from custody.outcome import (
    BIG_ENDIAN,
    CODED,
    DEFLATED,
    HTJ2K,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    RLE,
    ROOT,
    attributes_of,
    compress_all,
    frames_of,
    written,
)
from harness import corpus, made
from harness.fault import flip_bit
from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, Part10, decode, read
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid
from store.making import element, small, take_in, take_in_part

from edgepacs.custody import outgoing as module
from edgepacs.custody import restore, rewriting
from edgepacs.custody.outgoing import offers, outgoing, part10
from edgepacs.errors import EdgePacsError, Gone, NotOffered, Tampered, Undecodable
from edgepacs.model import UID, InstanceState
from edgepacs.pixels.encode import Unencodable
from edgepacs.pixels.syntaxes import Loss, syntax
from edgepacs.store import Store, disposal, instances
from edgepacs.store.instances import Instance


def stored(store: Store, part: Part10) -> Instance:
    return instances.instance(store.db, take_in_part(store, part).instance_id)


def of_file(store: Store, name: str) -> tuple[Part10, Instance]:
    part = read(corpus.pydicom_file(name))
    return part, stored(store, part)


# -- whatever is received, in whatever is accepted


def _tried(part: Part10, chance: random.Random) -> tuple[str, ...]:
    every = (*NATIVE, DEFLATED, *CODED)
    some = every if corpus.soak() else (*NATIVE, *chance.sample(every[2:], 2))
    return tuple(one for one in some if one != part.transfer_syntax)


@pytest.mark.filterwarnings("ignore")
def test_every_instance_in_every_transfer_syntax_is_the_same(store: Store) -> None:
    """Native pixels and all other attributes; what cannot be had says so before a byte is out."""
    chance = random.Random(corpus.SEED)
    converted, broken = 0, {}
    for part in corpus.everything() if corpus.soak() else corpus.sample(150_000):
        try:
            row = stored(store, part)
            frames = frames_of(part.data, part.transfer_syntax)
        except EdgePacsError:
            continue  # not taken in, or not decoded: see the tests of those
        if "encoding-differs" in row.flags:
            continue  # those who believe its transfer syntax read something else
        can = offers(store, row)
        assert can[0] == part.transfer_syntax
        for wanted in _tried(part, chance):
            if wanted not in can:
                with pytest.raises(NotOffered):
                    outgoing(store, row, {UID(wanted)})
                continue
            if row.sop_instance_uid in broken:
                continue
            try:
                uid, data = written(store, row, wanted)
            except NotOffered as error:
                broken[row.sop_instance_uid] = str(error)
                continue
            assert uid == wanted
            assert frames_of(data, wanted) == frames, (part.path, wanted)
            _require_same_attributes(part, data, wanted)
            converted += 1
    assert converted > 100
    assert len(broken) <= converted // 100
    assert all("Data set: " in words for words in broken.values()), "it can be followed"


def _require_same_attributes(part: Part10, data: bytes, wanted: str) -> None:
    as_if = IMPLICIT_LE if wanted == IMPLICIT_LE else EXPLICIT_LE
    try:
        before = dict(attributes_of(part.data, part.transfer_syntax, as_if))
    except Exception:  # noqa: BLE001  pydicom cannot write it: nothing to compare with
        return
    after = dict(attributes_of(data, wanted))
    if part.transfer_syntax == IMPLICIT_LE:  # a private VR is not known: pydicom guesses some
        before = {tag: value for tag, value in before.items() if not tag >> 16 & 1}
        after = {tag: value for tag, value in after.items() if not tag >> 16 & 1}
    row = syntax(part.transfer_syntax)
    if row is not None and row.loss is Loss.ALWAYS:
        assert after.pop(0x00282110) == "01"  # PS3.3 C.7.6.1.1.5
        before.pop(0x00282110, None)
    different = [
        hex(tag) for tag in before.keys() | after.keys() if before.get(tag) != after.get(tag)
    ]
    assert not different, (part.path, wanted)


def test_the_best_that_is_accepted_goes(store: Store) -> None:
    part, row = of_file(store, "CT_small.dcm")
    assert part.transfer_syntax == EXPLICIT_LE
    every = (EXPLICIT_LE, JPEG_2000, JPEG_LS, HTJ2K, JPEG_LOSSLESS, DEFLATED, RLE, IMPLICIT_LE)
    assert offers(store, row) == every
    for number, best in enumerate(every):
        assert (
            outgoing(store, row, {UID(one) for one in every[number:]}).transfer_syntax_uid == best
        )


def test_what_is_accepted_as_it_stands_is_not_looked_at(store: Store) -> None:
    """Broken or unknown, it goes as it is, its length told."""
    row = instances.instance(store.db, take_in(store, more=b"\x09\x00\x01\x00??\0\0").instance_id)
    going = outgoing(store, row, {row.transfer_syntax_uid, UID(IMPLICIT_LE)})
    assert going.length == row.byte_length
    assert len(b"".join(going.chunks)) == row.byte_length
    with pytest.raises(NotOffered, match="cannot be converted"):
        outgoing(store, row, {UID(IMPLICIT_LE)})


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        (ROOT + ".4.102", "video .MPEG-4 AVC/H.264 High Profile / Level 4.1. goes only as it is"),
        ("1.2.840.113619.5.2", "not known here"),
    ],
)
def test_what_nobody_here_decodes_goes_only_as_it_is(store: Store, uid: str, words: str) -> None:
    part = replace(made.ct(), transfer_syntax=uid)
    row = stored(store, part)
    assert offers(store, row) == (uid,)
    with pytest.raises(NotOffered, match=words):
        outgoing(store, row, {UID(EXPLICIT_LE), UID(JPEG_2000)})
    assert written(store, row, uid) == (uid, part.data)


def test_nothing_is_written_big_endian(store: Store) -> None:
    _, row = of_file(store, "CT_small.dcm")
    with pytest.raises(NotOffered):
        outgoing(store, row, {UID(BIG_ENDIAN)})


# -- what was compressed at rest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "examples_palette.dcm"])
def test_what_was_compressed_comes_back_bit_for_bit(store: Store, name: str) -> None:
    part, before = of_file(store, name)
    compress_all(store)
    row = instances.instance(store.db, before.id)
    assert row.transfer_syntax_uid != row.received_syntax_uid == part.transfer_syntax
    assert written(store, row, part.transfer_syntax) == (part.transfer_syntax, part.data)
    assert b"".join(part10(store, row)).endswith(part.data)
    # Its row as it was read before is as good: another object, another transfer syntax.
    assert written(store, before, part.transfer_syntax) == (part.transfer_syntax, part.data)


@pytest.mark.filterwarnings("ignore")
def test_what_was_compressed_goes_out_in_anything(store: Store) -> None:
    """As it stands where that is accepted, else from what was received, never from the copy."""
    part, row = of_file(store, "CT_small.dcm")
    frames = frames_of(part.data, part.transfer_syntax)
    compress_all(store)
    row = instances.instance(store.db, row.id)
    assert row.transfer_syntax_uid == JPEG_LS
    assert written(store, row, JPEG_LS, JPEG_2000, EXPLICIT_LE)[0] == JPEG_LS
    assert written(store, row, JPEG_2000, EXPLICIT_LE)[0] == JPEG_2000
    for wanted in (*CODED, DEFLATED, *NATIVE):
        uid, data = written(store, row, wanted)
        assert (uid, frames_of(data, uid)) == (wanted, frames)
        _require_same_attributes(part, data, wanted)


def test_of_native_ones_the_one_received_comes_first(store: Store) -> None:
    part = made.instance(made.ct(side=128).dataset(), IMPLICIT_LE)
    first = stored(store, part)
    compress_all(store)
    row = instances.instance(store.db, first.id)
    assert row.transfer_syntax_uid not in NATIVE
    assert written(store, row, EXPLICIT_LE, IMPLICIT_LE) == (IMPLICIT_LE, part.data)


def test_what_does_not_restore_never_leaves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = of_file(store, "CT_small.dcm")
    compress_all(store)
    row = instances.instance(store.db, first.id)
    real = restore.native_frame

    def wrong(*values: object) -> bytes:
        return bytes(len(real(*values)))  # type: ignore[arg-type]

    monkeypatch.setattr(restore, "native_frame", wrong)
    for wanted in (EXPLICIT_LE, IMPLICIT_LE, JPEG_2000):
        with pytest.raises(Tampered):
            written(store, row, wanted)


# -- attributes


def test_private_elements_and_odd_values_pass_as_bytes(store: Store) -> None:
    """Explicit to implicit: no value is put in order, and none is lost."""
    private = element(0x00090010, "LO", "MAKER") + element(0x00091001, "DS", " 1.500 ")
    inner = element(0x00091002, "OB", b"secret 7")
    item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
    nested = element(0x00091003, "SQ", item)
    data = small(sop="1.2.77", description="made by \xff\xfe \\ y \\")
    at = data.index(b"\x10\x00\x10\x00PN")
    data = data[:at] + private + nested + data[at:]
    row = stored(store, replace(made.ct(), data=data, sop_instance="1.2.77"))
    got = decode(written(store, row, IMPLICIT_LE)[1], IMPLICIT_LE)
    before = decode(data, EXPLICIT_LE)
    for tag in (0x00081030, 0x00091001, 0x00100010):
        assert got.get_item(tag).value == before.get_item(tag).value
    assert b"secret 7" in got.get_item(0x00091003).value


def test_group_lengths_and_group_2_do_not_outlive_a_conversion(store: Store) -> None:
    length = element(0x00080000, "UL", (1234).to_bytes(4, "little"))
    meta = element(0x00020010, "UI", JPEG_LS)
    part = replace(made.ct(), data=meta + length + made.ct().data)
    uid = decode(part.data, EXPLICIT_LE).SOPInstanceUID
    row = stored(store, replace(part, sop_instance=str(uid)))
    assert "group-2" in row.flags
    for wanted in (EXPLICIT_LE, IMPLICIT_LE, JPEG_2000):
        _, data = written(store, row, wanted)
        got = decode(data, wanted)
        assert 0x00020010 not in got
        assert (0x00080000 in got) == (wanted == EXPLICIT_LE)


def test_colour_is_said_as_it_is_encoded(store: Store) -> None:
    """PS3.3 C.7.6.3.1.2: the reversible transform has a name; planes become pixels and back."""
    part, row = _planar(store)
    for wanted, meaning, planes in (
        (JPEG_2000, "YBR_RCT", 0),
        (HTJ2K, "YBR_RCT", 0),
        (JPEG_LS, "RGB", 0),
        (RLE, "RGB", 1),
        (IMPLICIT_LE, "RGB", 1),
        (DEFLATED, "RGB", 1),
    ):
        got = decode(written(store, row, wanted)[1], wanted)
        assert (got.PhotometricInterpretation, got.PlanarConfiguration) == (meaning, planes), wanted
    assert part.dataset().PlanarConfiguration == 1


def _planar(store: Store) -> tuple[Part10, Instance]:
    dataset = made.ct().dataset()
    rows = columns = 48
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 3
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 1
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    ramp = np.arange(3 * rows * columns) // 7 % 251
    dataset.PixelData = ramp.astype("u1").tobytes()
    dataset["PixelData"].VR = "OB"
    part = made.instance(dataset)
    return part, stored(store, part)


def test_a_decoded_jpeg_says_that_it_has_lost_something(store: Store) -> None:
    """PS3.3 C.7.6.1.1.5: 01 is never taken back, and who left it out is helped."""
    part = read(corpus.pydicom_file("SC_rgb_jpeg_dcmtk.dcm"))
    said = b"\x28\x00\x10\x21CS\x02\x0001"
    assert (part.transfer_syntax, part.data.count(said)) == (JPEG_BASELINE, 1)
    row = stored(store, replace(part, data=part.data.replace(said, b"")))
    for wanted in (EXPLICIT_LE, JPEG_2000, IMPLICIT_LE):
        got = decode(written(store, row, wanted)[1], wanted)
        assert got.LossyImageCompression == "01"
        assert got.SOPInstanceUID == row.sop_instance_uid
        assert got.PhotometricInterpretation == ("YBR_RCT" if wanted == JPEG_2000 else "RGB")


def test_an_icon_is_decoded_with_its_image(store: Store) -> None:
    """PS3.5 A.4: an icon may be encapsulated only as its image is."""
    dataset = dcmread(corpus.pydicom_file("MR_small_RLE.dcm"))
    icon = Dataset()
    icon.Rows, icon.Columns, icon.SamplesPerPixel = 64, 64, 1
    icon.PhotometricInterpretation = "MONOCHROME2"
    icon.BitsAllocated, icon.BitsStored, icon.HighBit = 16, 16, 15
    icon.PixelRepresentation = 1
    icon.PixelData = dataset.PixelData
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = True
    dataset.IconImageSequence = [icon]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    path = Path(str(buffer))  # only named: nothing is written
    part = _read(buffer.getvalue(), path)
    row = stored(store, part)
    pixels = dcmread(corpus.pydicom_file("MR_small.dcm")).PixelData
    for wanted in (*NATIVE, DEFLATED, JPEG_LS):
        (got,) = decode(written(store, row, wanted)[1], wanted).IconImageSequence
        assert got.PixelData == pixels
    icon.PixelData = encapsulate([b"no picture at all"])
    dataset.SOPInstanceUID = generate_uid()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    row = stored(store, _read(buffer.getvalue(), path))
    assert "IconImageSequence" not in decode(written(store, row, IMPLICIT_LE)[1], IMPLICIT_LE)


def _read(file: bytes, path: Path) -> Part10:
    dataset = dcmread(io.BytesIO(file))
    return Part10(
        path=path,
        sop_class=str(dataset.SOPClassUID),
        sop_instance=str(dataset.SOPInstanceUID),
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        modality="MR",
        data=file[144 + int.from_bytes(file[140:144], "little") :],
    )


# -- what is large, late or broken


def _cine(store: Store, frames: int, side: int = 256) -> tuple[Part10, Instance]:
    dataset = made.ct().dataset()
    dataset.Rows = dataset.Columns = side
    dataset.NumberOfFrames = frames
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    frame = (np.arange(side * side) % 251).astype("u1")
    dataset.PixelData = b"".join(np.roll(frame, number).tobytes() for number in range(frames))
    dataset["PixelData"].VR = "OB"
    part = made.instance(dataset)
    return part, stored(store, part)


def test_frames_that_outgrow_memory_go_without_their_table(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PS3.5 A.4: an empty Basic Offset Table is legal."""
    part, row = _cine(store, 12)
    frames = frames_of(part.data, part.transfer_syntax)
    table = written(store, row, RLE)[1]
    monkeypatch.setattr(rewriting, "GATHERED", 200_000)
    without = written(store, row, RLE)[1]
    assert len(table) - len(without) == 4 * 12
    assert frames_of(table, RLE) == frames_of(without, RLE) == frames


def test_memory_stays_bounded_whatever_the_number_of_frames(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, row = _cine(store, 400)
    monkeypatch.setattr(rewriting, "GATHERED", 1 << 20)
    for wanted in (IMPLICIT_LE, RLE, DEFLATED):
        tracemalloc.start()
        length = sum(map(len, outgoing(store, row, {UID(wanted)}).chunks))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert length > 100_000
        assert peak < 8 << 20, wanted  # of 26 MB


def test_what_follows_the_pixels_follows_them_still(store: Store) -> None:
    ending = element(0x7FE10010, "LO", "MAKER") + element(0xFFFCFFFC, "OB", bytes(6))
    for name in ("CT_small.dcm", "MR_small_RLE.dcm"):
        part = read(corpus.pydicom_file(name))
        plain = part.data.split(b"\xfc\xff\xfc\xff")[0]
        row = stored(store, replace(part, data=plain + ending))
        for wanted in (EXPLICIT_LE, IMPLICIT_LE, JPEG_LS, DEFLATED):
            got = decode(written(store, row, wanted)[1], wanted)
            assert got[0x7FE10010].value in ("MAKER", b"MAKER "), (name, wanted)
            assert got[0xFFFCFFFC].value == bytes(6)


@pytest.mark.parametrize("change", [-2, 2, 700])
def test_pixel_data_of_another_length_is_only_ever_copied(store: Store, change: int) -> None:
    dataset = made.ct().dataset()
    value = dataset.PixelData
    dataset.PixelData = value[:change] if change < 0 else value + bytes(change)
    row = stored(store, made.instance(dataset))
    assert decode(written(store, row, IMPLICIT_LE)[1], IMPLICIT_LE).PixelData == dataset.PixelData
    with pytest.raises(NotOffered, match="not of the length its attributes say"):
        outgoing(store, row, {UID(JPEG_LS), UID(JPEG_2000)})
    assert written(store, row, JPEG_LS, IMPLICIT_LE)[0] == IMPLICIT_LE


def test_pixel_data_that_makes_no_sense_is_only_ever_copied(store: Store) -> None:
    dataset = made.ct().dataset()
    dataset.BitsStored = 99
    row = stored(store, made.instance(dataset))
    assert offers(store, row) == (EXPLICIT_LE, DEFLATED, IMPLICIT_LE)
    assert decode(written(store, row, IMPLICIT_LE)[1], IMPLICIT_LE).PixelData == dataset.PixelData


@pytest.mark.parametrize("frame", [0, 2])
def test_a_broken_frame_is_never_sent_for_a_whole_one(
    store: Store, frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is found before a byte is out, a later one where it stands."""
    monkeypatch.setattr(rewriting, "GATHERED", 1)
    _, first = _cine(store, 4)
    _, data = written(store, first, RLE)
    row = _coded(store, data, frame)
    with pytest.raises((NotOffered, Undecodable)):
        written(store, row, EXPLICIT_LE)
    with pytest.raises((NotOffered, Undecodable)):
        written(store, row, JPEG_LS)
    if frame:
        going = outgoing(store, row, {UID(EXPLICIT_LE)})
        assert len(next(going.chunks)) > 0
        with pytest.raises(Undecodable):
            list(going.chunks)
    else:
        with pytest.raises(NotOffered, match="RLE"):
            outgoing(store, row, {UID(EXPLICIT_LE)})


def _coded(store: Store, data: bytes, broken: int) -> Instance:
    """An RLE instance of four frames, one of which says it has 14 segments."""
    dataset = decode(data, RLE)
    uid = str(dataset.SOPInstanceUID)
    fresh = uid[:-1] + ("1" if uid[-1] != "1" else "2")
    at = data.index(b"\xe0\x7f\x10\x00OB")
    items = data[at:].split(b"\xfe\xff\x00\xe0")
    items[2 + broken] = items[2 + broken][:4] + b"\x0e" + items[2 + broken][5:]
    raw = data[:at].replace(uid.encode(), fresh.encode()) + b"\xfe\xff\x00\xe0".join(items)
    return stored(store, replace(made.ct(), data=raw, sop_instance=fresh, transfer_syntax=RLE))


def test_an_encoder_that_fails_gives_way_to_the_next_best(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, row = of_file(store, "CT_small.dcm")
    real = rewriting.encode_verified

    def refusing(frame: bytes, description: object, uid: str) -> bytes:
        if uid == JPEG_2000:
            raise Unencodable("Pixel data: refused")
        return real(frame, description, uid)  # type: ignore[arg-type]

    monkeypatch.setattr(rewriting, "encode_verified", refusing)
    assert written(store, row, JPEG_2000, JPEG_LS, IMPLICIT_LE)[0] == JPEG_LS
    with pytest.raises(NotOffered, match="refused"):
        outgoing(store, row, {UID(JPEG_2000)})


def test_a_tampered_object_never_leaves(store: Store) -> None:
    row = stored(store, made.ct(side=400))
    name = row.object_id.hex()
    flip_bit(store.paths.objects / name[:2] / name, 200_000)
    for wanted in (EXPLICIT_LE, IMPLICIT_LE, JPEG_LS):
        with pytest.raises(Tampered):
            written(store, row, wanted)


def test_what_is_gone_is_said_to_be_gone(store: Store) -> None:
    row = stored(store, made.ct())
    store.vault.remove(row.object_id)
    with pytest.raises(EdgePacsError, match="missing"):
        outgoing(store, row, {UID(IMPLICIT_LE)})


# -- loss, where it is asked for


@pytest.mark.parametrize(("colour", "uid"), [(False, ROOT + ".4.91"), (True, JPEG_BASELINE)])
def test_a_lossy_instance_says_what_it_is(store: Store, colour: bool, uid: str) -> None:  # noqa: FBT001
    """PS3.3 C.7.6.1.1.5, C.12.4: another instance, derived, lossy, by how much, from which."""
    dataset = (_planar(store)[0] if colour else made.ct()).dataset()
    del dataset.PixelPaddingValue
    dataset.SOPInstanceUID = made.new_uid()
    part = made.instance(dataset)
    row = stored(store, part)
    going, data = written(store, row, uid, EXPLICIT_LE, JPEG_LS, lossy=80)
    assert going == uid
    got, before = decode(data, uid), part.dataset()
    assert got.SOPInstanceUID != before.SOPInstanceUID
    assert got.SOPInstanceUID.startswith("2.25.")
    assert (got.SOPClassUID, got.StudyInstanceUID) == (before.SOPClassUID, before.StudyInstanceUID)
    assert got.ImageType[0] == "DERIVED"
    assert got.LossyImageCompression == "01"
    assert got.LossyImageCompressionMethod == ("ISO_10918_1" if colour else "ISO_15444_1")
    native = 3 * 48 * 48 if colour else 2 * 128 * 128
    (coded,) = generate_frames(got.PixelData, number_of_frames=1)
    assert float(got.LossyImageCompressionRatio) == pytest.approx(native / len(coded), rel=0.01)
    assert "Lossy compression" in got.DerivationDescription
    assert got.DerivationCodeSequence[0].CodeValue == "113040"
    (source,) = got.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121320"
    (_, shape, _), (cells, same_shape, _) = (
        frames_of(data, uid)[0],
        frames_of(part.data, EXPLICIT_LE)[0],
    )
    assert shape == same_shape
    kind = "u1" if colour else "i2"
    error = np.frombuffer(frames_of(data, uid)[0][0], kind).astype(float) - np.frombuffer(
        cells, kind
    )
    assert 0 < np.abs(error).mean() < (8 if colour else 40)
    assert written(store, row, uid, lossy=80)[1] == data, "a repeat is the same instance"
    assert written(store, row, EXPLICIT_LE, lossy=80) == (EXPLICIT_LE, part.data)
    meta = dcmread(io.BytesIO(b"".join(part10(store, row, [UID(uid)], lossy=80)))).file_meta
    assert meta.MediaStorageSOPInstanceUID == got.SOPInstanceUID


@pytest.mark.parametrize(
    "change",
    [
        {"PixelPaddingValue": 0x00280120},
        {"LossyImageCompression": "01"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"},  # RT Dose: numbers, not a picture
        {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0},  # something above bit 11
    ],
)
def test_what_had_better_not_lose_does_not(store: Store, change: dict[str, object]) -> None:
    dataset = made.ct().dataset()
    dataset.pop("PixelPaddingValue", None)
    for name, value in change.items():
        if name == "PixelPaddingValue":
            dataset.add_new(value, "SS", 0)
        else:
            setattr(dataset, name, value)
    if "BitsStored" in change:
        dataset.PixelData = b"\xff\xf0" * (128 * 128)
    dataset.SOPInstanceUID = made.new_uid()
    row = stored(store, made.instance(dataset))
    accepted = (JPEG_BASELINE, ROOT + ".4.91", EXPLICIT_LE)
    assert written(store, row, *accepted, lossy=80)[0] == EXPLICIT_LE


@pytest.mark.filterwarnings("ignore")
def test_a_palette_and_what_was_lossy_before_are_left_alone(store: Store) -> None:
    accepted = (JPEG_BASELINE, ROOT + ".4.91", EXPLICIT_LE, ROOT + ".4.51")
    for name, uid in (("examples_palette.dcm", EXPLICIT_LE), ("JPGExtended.dcm", ROOT + ".4.51")):
        part, row = of_file(store, name)
        assert written(store, row, *accepted, lossy=80) == (uid, part.data)


# -- as files


@pytest.mark.filterwarnings("ignore")
def test_a_file_comes_as_it_was_received_or_as_asked(store: Store) -> None:
    part, first = of_file(store, "CT_small.dcm")
    compress_all(store)
    row = instances.instance(store.db, first.id)
    for accepted, uid in (((), EXPLICIT_LE), ((JPEG_LS,), JPEG_LS), ((IMPLICIT_LE,), IMPLICIT_LE)):
        with warnings.catch_warnings():
            file = b"".join(part10(store, row, [UID(one) for one in accepted]))
        got = dcmread(io.BytesIO(file))
        assert got.file_meta.TransferSyntaxUID == uid
        assert got.file_meta.MediaStorageSOPInstanceUID == got.SOPInstanceUID
        if not accepted:
            assert file.endswith(part.data)


def test_a_version_given_up_meanwhile_is_not_found(store: Store) -> None:
    first = stored(store, made.ct())
    other = replace(made.ct(), sop_instance=first.sop_instance_uid)
    uid = str(decode(other.data, EXPLICIT_LE).SOPInstanceUID)
    assert len(uid) != 0
    second = take_in(store, sop=first.sop_instance_uid)
    disposal.discard(store, second.instance_id, actor="eve")
    row = instances.instance(store.db, second.instance_id)
    assert row.state is InstanceState.DISCARDED
    with pytest.raises(Gone, match="discarded"):
        module.outgoing(store, row, {row.transfer_syntax_uid})
