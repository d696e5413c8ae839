import struct
import threading
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from custody.pictures import colour
from custody.pressing import press, row
from harness.corpus import pydicom_file
from harness.fault import flip_bit
from harness.made import ct, instance
from harness.part10 import (
    DEFLATED_LE,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    Part10,
    encode,
    read,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from store.making import arrival, element, objects, small, take_in_part

from edgepacs import upkeep
from edgepacs.custody import ingest
from edgepacs.model import InstanceId, InstanceState, Outcome
from edgepacs.pixels.syntaxes import JPEG_LS
from edgepacs.store import Store, instances, studies
from edgepacs.upkeep.comparison import compare_waiting

SOP = "1.2.3.4.5"


def dataset() -> Dataset:
    made = ct(sop=SOP, study="1.2.1", series="1.2.2").dataset()
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "T-1", "Liver"
    made.AnatomicRegionSequence = [item]
    return made


def take(store: Store, part: Part10) -> InstanceState:
    """Take in, compare, and what became of it."""
    receipt = take_in_part(store, part)
    compare_waiting(store)
    return instances.instance(store.db, receipt.instance_id).state


def big_endian(changed: Dataset) -> Part10:
    changed.PixelData = np.frombuffer(changed.PixelData, "<u2").astype(">u2").tobytes()
    return instance(changed, EXPLICIT_BE)


def rle(changed: Dataset) -> Part10:
    uid = changed.SOPInstanceUID
    changed.file_meta = FileMetaDataset()
    changed.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    changed.compress(RLELossless, generate_instance_uid=False)
    assert uid == changed.SOPInstanceUID
    return Part10(
        path=None,
        sop_class=str(changed.SOPClassUID),
        sop_instance=str(uid),
        transfer_syntax=RLELossless,
        modality="CT",
        data=encode(changed, EXPLICIT_LE),
    )


def repacked(changed: Dataset) -> Part10:
    """Deflated, by other means than the first time."""
    packer = zlib.compressobj(1, wbits=-15)
    data = packer.compress(encode(changed, EXPLICIT_LE)) + packer.flush()
    made = instance(changed, DEFLATED_LE)
    return Part10(
        path=None,
        sop_class=made.sop_class,
        sop_instance=made.sop_instance,
        transfer_syntax=DEFLATED_LE,
        modality="CT",
        data=data,
    )


def undefined(changed: Dataset) -> Part10:
    changed["AnatomicRegionSequence"].is_undefined_length = True
    return instance(changed)


def padded(changed: Dataset) -> Part10:
    changed.add_new(0xFFFCFFFC, "OB", bytes(64))  # Data Set Trailing Padding
    return instance(changed)


def group_length(changed: Dataset) -> Part10:
    part = instance(changed)
    return Part10(
        path=None,
        sop_class=part.sop_class,
        sop_instance=part.sop_instance,
        transfer_syntax=part.transfer_syntax,
        modality="CT",
        data=element(0x00080000, "UL", struct.pack("<I", 4)) + part.data,
    )


SAME: dict[str, Callable[[Dataset], Part10]] = {
    "implicit": lambda d: instance(d, IMPLICIT_LE),
    "big endian": big_endian,
    "deflated": repacked,
    "RLE": rle,
    "undefined length": undefined,
    "trailing padding": padded,
    "group length": group_length,
}


@pytest.mark.parametrize("name", list(SAME))
def test_the_same_once_more_in_another_encoding_is_given_up(store: Store, name: str) -> None:
    first = take_in_part(store, instance(dataset()))
    again = take_in_part(store, SAME[name](dataset()))
    assert again.outcome is Outcome.COMPARING
    assert compare_waiting(store) == 1
    assert instances.instance(store.db, again.instance_id).state is InstanceState.DISCARDED
    assert instances.instance(store.db, first.instance_id).state is InstanceState.STORED
    assert len(objects(store)) == 1
    assert studies.study(store.db, first.study_id).flags == ""
    assert compare_waiting(store) == 0


def _pixel(d: Dataset) -> None:
    d.PixelData = bytes([d.PixelData[0] ^ 1]) + d.PixelData[1:]


def _overlay_bit(d: Dataset) -> None:
    d.PixelData = d.PixelData[:-1] + bytes([d.PixelData[-1] ^ 0x80])


def _item(d: Dataset) -> None:
    d.AnatomicRegionSequence[0].CodeMeaning = "Spleen"


def _gone(d: Dataset) -> None:
    del d.AnatomicRegionSequence


OTHER: dict[str, Callable[[Dataset], object]] = {
    "name": lambda d: setattr(d, "PatientName", "Other^Name"),
    "window": lambda d: setattr(d, "WindowCenter", "77"),
    "spacing": lambda d: setattr(d, "PixelSpacing", ["0.5", "0.5"]),
    "private": lambda d: d.private_block(0x0099, "TEST", create=True).add_new(1, "LO", "x"),
    "new empty attribute": lambda d: setattr(d, "PatientComments", ""),
    "item": _item,
    "sequence gone": _gone,
    "pixel": _pixel,
    "bit above the stored ones": _overlay_bit,
    "rows and columns": lambda d: (setattr(d, "Rows", 64), setattr(d, "Columns", 256)),
    "sign": lambda d: setattr(d, "PixelRepresentation", 0),
}


@pytest.mark.parametrize("name", list(OTHER))
@pytest.mark.parametrize("way", ["explicit", "implicit", "RLE"])
def test_other_content_is_quarantined(store: Store, name: str, way: str) -> None:
    first = take_in_part(store, instance(dataset()))
    changed = dataset()
    OTHER[name](changed)
    part = instance(changed) if way == "explicit" else SAME[way](changed)
    assert take(store, part) is InstanceState.QUARANTINED
    assert instances.instance(store.db, first.instance_id).state is InstanceState.STORED
    assert len(objects(store)) == 2
    assert studies.study(store.db, first.study_id).flags == "conflict"


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "rtplan.dcm", "rtdose.dcm", "MR_small_bigendian.dcm"]
)
def test_real_files_re_encoded_are_the_same(store: Store, name: str) -> None:
    part = read(pydicom_file(name))
    if part.transfer_syntax == EXPLICIT_BE:
        other = IMPLICIT_LE
        changed = part.dataset()
        if int(changed.BitsAllocated) == 16:
            changed.PixelData = np.frombuffer(changed.PixelData, ">u2").astype("<u2").tobytes()
    else:
        other = EXPLICIT_LE if part.transfer_syntax == IMPLICIT_LE else IMPLICIT_LE
        changed = part.dataset()
    take_in_part(store, part)
    assert take(store, instance(changed, other)) is InstanceState.DISCARDED


@pytest.mark.xfail(
    strict=True,
    reason="a private attribute nobody knows is bytes in Implicit VR: judged other, quarantined",
)
def test_unknown_private_attributes_in_another_encoding_are_the_same(store: Store) -> None:
    """Implicit VR says no VR: text nobody knows is bytes there (PS3.5 6.2.2)."""
    one = dataset()
    one.private_block(0x0099, "NOBODY KNOWS", create=True).add_new(1, "LO", "abc")
    one.private_block(0x0099, "NOBODY KNOWS").add_new(2, "US", 7)
    take_in_part(store, instance(one))
    assert take(store, instance(one, IMPLICIT_LE)) is InstanceState.DISCARDED


def test_a_tampered_object_does_not_keep_the_others_waiting(store: Store) -> None:
    parts = [ct(patient_name="First^Name") for _ in range(3)]
    waiting: list[InstanceId] = []
    for part in parts:
        take_in_part(store, part)
        changed = part.dataset()
        changed.PatientName = "Other^Name"
        waiting.append(take_in_part(store, instance(changed)).instance_id)
    row = instances.instance(store.db, waiting[0])
    name = row.object_id.hex()
    flip_bit(store.paths.objects / name[:2] / name, 2000)
    assert compare_waiting(store) == 3
    found = [instances.instance(store.db, one).state for one in waiting]
    assert found == [InstanceState.COMPARING] + [InstanceState.QUARANTINED] * 2


@pytest.mark.parametrize(
    "more",
    [
        element(0x00280030, "DS", "no number"),
        element(0x00280030, "IS", "1.5.5"),
        struct.pack("<HH2sH", 0x0040, 0x0244, b"QQ", 4) + b"\0\0\0\0",
        struct.pack("<HH2sH", 0x0028, 0x0010, b"US", 3) + b"\0\0\0",
        (
            struct.pack("<HH2s2xI", 0x0040, 0x0275, b"SQ", 0xFFFFFFFF)
            + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        )
        * 2000,
        struct.pack("<HH2s2xI", 0x0040, 0x0275, b"SQ", 20) + b"x" * 20,
    ],
)
def test_what_cannot_be_read_is_never_the_same_and_stops_nothing(store: Store, more: bytes) -> None:
    found = []
    for name in ("First", "Other"):
        data = small(sop=SOP, name=name, more=more)
        found.append(ingest.receive(store, arrival(sop=SOP), [data]))
    take_in_part(store, ct(sop="1.9.9"))
    other = take_in_part(store, ct(sop="1.9.9", patient_name="Other"))
    assert compare_waiting(store) == 2
    for one in (found[1], other):
        state = instances.instance(store.db, one.instance_id).state
        assert state is InstanceState.QUARANTINED


def test_where_the_stored_one_is_missing_the_other_is_quarantined(store: Store) -> None:
    first = take_in_part(store, instance(dataset()))
    name = instances.instance(store.db, first.instance_id).object_id.hex()
    (store.paths.objects / name[:2] / name).unlink()
    assert take(store, instance(dataset(), IMPLICIT_LE)) is InstanceState.QUARANTINED


@pytest.mark.parametrize("other", [IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE])
def test_what_stands_compressed_is_compared_as_it_was_received(store: Store, other: str) -> None:
    first = take_in_part(store, instance(dataset()))
    press(store)
    assert row(store, first.instance_id).transfer_syntax_uid == JPEG_LS
    again = big_endian(dataset()) if other == EXPLICIT_BE else instance(dataset(), other)
    assert take(store, again) is InstanceState.DISCARDED
    changed = dataset()
    changed.PatientName = "Other^Name"
    assert take(store, instance(changed, other if other != EXPLICIT_BE else IMPLICIT_LE)) is (
        InstanceState.QUARANTINED
    )


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_that_stands_compressed_is_the_same_colour(store: Store, planar: int) -> None:
    part = colour(planar=bool(planar))
    first = take_in_part(store, part)
    press(store)
    assert row(store, first.instance_id).transfer_syntax_uid != part.transfer_syntax
    assert take(store, instance(part.dataset(), IMPLICIT_LE)) is InstanceState.DISCARDED


def test_the_role_works_when_rung_and_ends_when_stopped(store: Store) -> None:
    stop = threading.Event()
    worker = threading.Thread(target=upkeep.run, args=(store, stop))
    worker.start()
    try:
        take_in_part(store, instance(dataset()))
        again = take_in_part(store, instance(dataset(), IMPLICIT_LE))
        waiting = threading.Event()
        for _ in range(1000):
            if instances.instance(store.db, again.instance_id).state.gone:
                break
            waiting.wait(0.01)
        else:
            pytest.fail("not compared after a ring")
    finally:
        stop.set()
        worker.join(10)
    assert not worker.is_alive()
