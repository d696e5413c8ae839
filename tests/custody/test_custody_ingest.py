import errno
import io
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness.corpus import sample
from harness.fault import flip_bit
from harness.made import ct
from harness.part10 import DEFLATED_LE, EXPLICIT_LE, Part10, part10_file, read
from store.making import (
    add_destination,
    arrival,
    element,
    objects,
    opened_store,
    small,
    take_in,
    take_in_part,
)

from edgepacs import config as configuration
from edgepacs.custody import ingest, outgoing, readout
from edgepacs.errors import (
    DatasetMismatch,
    EdgePacsError,
    InvalidValue,
    LimitExceeded,
    NoRoom,
    PeerUnreachable,
    StorageFault,
)
from edgepacs.model import UID, Origin, Outcome
from edgepacs.store import Store, fsck, instances, studies
from edgepacs.telemetry import Doorbell


def counts(store: Store) -> dict[str, int]:
    return studies.counts(store.db)


NOTHING = {"patient": 0, "study": 0, "series": 0, "instance": 0, "bytes": 0}


def breaking(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    raise PeerUnreachable("the line broke")


@pytest.mark.parametrize(
    ("fragments", "error"),
    [
        ([small(sop="9.9")], DatasetMismatch),
        ([small(study="")], DatasetMismatch),
        ([small()[:-3]], InvalidValue),
        ([b""], DatasetMismatch),
        ([], DatasetMismatch),
        (breaking(small() + bytes(400_000)), PeerUnreachable),
        ([small() + element(0x00291010, "OB", bytes(3 << 20))], LimitExceeded),
        ([element(0x00291010, "OB", bytes(1 << 20))] * 4, LimitExceeded),
    ],
    ids=["mismatch", "no study", "cut", "empty", "none", "line", "large", "large in parts"],
)
def test_nothing_stays_of_what_is_refused(
    store: Store, fragments: list[bytes], error: type[Exception]
) -> None:
    store = replace_limit(store, 2)
    with pytest.raises(error):
        ingest.receive(store, arrival(), fragments)
    assert objects(store) == []
    assert counts(store) == NOTHING
    assert fsck.check(store).sound
    assert take_in(store, sop="1.2.3.4").outcome is Outcome.STORED


def replace_limit(store: Store, mib: int) -> Store:
    dicom = replace(store.config.dicom, max_object_mib=mib)
    return replace(store, config=replace(store.config, dicom=dicom))


def test_what_is_received_is_sealed_as_it_came_and_known(store: Store) -> None:
    part = ct()
    receipt = take_in_part(store, part)
    assert receipt.outcome is Outcome.STORED
    row = instances.instance(store.db, receipt.instance_id)
    with readout.sealed(store, row) as sealed:
        assert b"".join(sealed.chunks()) == part.data
    assert (row.sop_instance_uid, row.transfer_syntax_uid) == (part.sop_instance, EXPLICIT_LE)
    assert (row.rows, row.columns, row.frames) == (128, 128, 1)
    assert row.byte_length == len(part.data)
    assert fsck.check(store).verified == 1


def test_the_same_again_keeps_one_object(store: Store) -> None:
    part = ct()
    for expected in (Outcome.STORED, Outcome.DUPLICATE, Outcome.DUPLICATE):
        assert take_in_part(store, part).outcome is expected
        assert len(objects(store)) == 1
    assert fsck.check(store).sound


def test_a_damaged_object_is_healed_by_the_same_again(store: Store) -> None:
    part = ct()
    receipt = take_in_part(store, part)
    flip_bit(objects(store)[0], 3000)
    assert not fsck.check(store).sound
    assert take_in_part(store, part).outcome is Outcome.DUPLICATE
    assert fsck.check(store).sound
    row = instances.instance(store.db, receipt.instance_id)
    with readout.sealed(store, row) as sealed:
        assert b"".join(sealed.chunks()) == part.data


def test_other_content_is_kept_and_upkeep_is_rung(store: Store) -> None:
    bell = Doorbell(store.paths.doorbell("upkeep"))
    take_in(store, sop="1.2")
    assert not bell.wait(0)
    assert take_in(store, sop="1.2", name="Other").outcome is Outcome.COMPARING
    assert bell.wait(0)
    assert len(objects(store)) == 2


def test_forward_is_rung(store: Store) -> None:
    bell = Doorbell(store.paths.doorbell("forward"))
    add_destination(store)
    take_in(store)
    assert bell.wait(0)


def test_a_bell_that_cannot_be_made_does_not_undo_a_commit(store: Store) -> None:
    run = store.paths.doorbell("forward").parent
    if run.exists():
        run.rename(run.with_name("moved"))
    run.write_text("in the way")
    assert take_in(store).outcome is Outcome.STORED


def test_below_the_reserve_nothing_is_taken(tmp_path: Path) -> None:
    with opened_store(tmp_path / "node") as store:
        path = store.config.path
        gib = (store.vault.free_bytes() >> 30) + 10
        path.write_text(path.read_text().replace("reserve_mib = 0", f"reserve_mib = {gib << 10}"))
        full = Store.open(configuration.load(path))
        with pytest.raises(NoRoom) as caught:
            take_in(full)
        assert caught.value.dimse_status == 0xA700
        assert objects(full) == []
        full.close()


def test_after_a_storage_fault_nothing_is_acknowledged_any_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync is asked once: what fails there is not asked again (the page cache may lie)."""

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", failing)
        with pytest.raises(StorageFault):
            take_in(store, sop="1.2")
    with pytest.raises(StorageFault):
        take_in(store, sop="1.3")
    assert counts(store)["instance"] == 0


# -- files


def test_files_of_every_kind_are_imported(store: Store) -> None:
    taken, refused = 0, []
    for part in sample():
        try:
            receipt = ingest.import_part10(store, io.BytesIO(part.file()), source="eve")
        except EdgePacsError as error:
            refused.append(str(error))
            continue
        taken += 1
        row = instances.instance(store.db, receipt.instance_id)
        assert (row.origin, row.source) == (Origin.IMPORT, "eve")
        assert row.transfer_syntax_uid == part.transfer_syntax
        with readout.sealed(store, row) as sealed:
            assert b"".join(sealed.chunks()) == part.data
    assert taken > 20
    assert all("UID" in words or "ends in" in words for words in refused)
    assert fsck.check(store).verified == taken


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 777))


def test_a_file_that_trickles_in_is_the_same(store: Store) -> None:
    part = ct(side=400)
    receipt = ingest.import_part10(store, Trickle(part.file()), source="eve")
    row = instances.instance(store.db, receipt.instance_id)
    with readout.sealed(store, row) as sealed:
        assert b"".join(sealed.chunks()) == part.data


def test_the_data_set_is_believed_not_the_meta_information(store: Store) -> None:
    part = ct()
    file = part10_file("1.2.3", "9.9.9", part.transfer_syntax, part.data)
    receipt = ingest.import_part10(store, io.BytesIO(file), source="eve")
    row = instances.instance(store.db, receipt.instance_id)
    assert (row.sop_instance_uid, row.sop_class_uid) == (part.sop_instance, part.sop_class)


@pytest.mark.bad_input(44)
def test_group_2_of_the_data_set_is_not_meta_information(store: Store) -> None:
    lie = element(0x00020010, "UI", "1.2.840.10008.1.2.4.90")
    data = lie + small(sop="1.2.3.4")
    file = part10_file("1.2.3", "9.9.9", EXPLICIT_LE, data)
    receipt = ingest.import_part10(store, io.BytesIO(file), source="eve")
    row = instances.instance(store.db, receipt.instance_id)
    assert row.transfer_syntax_uid == EXPLICIT_LE
    assert row.byte_length == len(data)
    assert "group-2-in-data-set" in row.flags


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "not a DICOM file"),
        (b"x" * 131, "not a DICOM file"),
        (b"PK\3\4" + b"\0" * 400, "not a DICOM file"),
        (bytes(128) + b"DICM", "Transfer Syntax UID"),
        (bytes(128) + b"DICM" + small(), "Transfer Syntax UID"),
        (part10_file("1.2", "1.3", "../../x", small()), "Transfer Syntax UID"),
        (part10_file("1.2", "1.3", EXPLICIT_LE, b""), "SOP Class UID"),
        (part10_file("1.2", "1.3", EXPLICIT_LE, small(sop="x")), "SOP Instance UID"),
        (part10_file("1.2", "1.3", DEFLATED_LE, b"garbage!"), "deflated"),
        (
            bytes(128)
            + b"DICM"
            + struct.pack("<HH2s2xI", 2, 1, b"OB", 0xFFFFFFF0)
            + part10_file("1.2", "1.3", EXPLICIT_LE, small())[132:],
            "Transfer Syntax UID",
        ),
    ],
)
def test_what_is_no_dicom_file_is_refused(store: Store, file: bytes, words: str) -> None:
    with pytest.raises(EdgePacsError, match=words):
        ingest.import_part10(store, io.BytesIO(file), source="eve")
    assert objects(store) == []
    assert counts(store) == NOTHING


# -- read-out


@pytest.mark.bad_input(56)
def test_a_file_leaves_as_its_data_set_came_with_a_zeroed_preamble(store: Store) -> None:
    for part in (*sample(400_000), ct()):
        try:
            receipt = ingest.import_part10(
                store, io.BytesIO(b"#!/bin/sh\n".ljust(128, b"x") + part.file()[128:]), source="e"
            )
        except EdgePacsError:
            continue
        row = instances.instance(store.db, receipt.instance_id)
        file = b"".join(outgoing.part10(store, row))
        assert file[:132] == bytes(128) + b"DICM"
        assert file.endswith(part.data)
        again = _read(file)
        assert (again.transfer_syntax, again.data) == (part.transfer_syntax, part.data)


def _read(file: bytes) -> Part10:

    with tempfile.NamedTemporaryFile(suffix=".dcm") as kept:
        kept.write(file)
        kept.flush()
        return read(Path(kept.name))


@pytest.mark.bad_input(44)
def test_group_2_of_the_data_set_is_dropped_on_export(store: Store) -> None:
    lie = element(0x00020010, "UI", "1.2.840.10008.1.2.4.90")
    data = lie + small(sop="1.2.3.4")
    receipt = ingest.receive(store, arrival(), [data])
    row = instances.instance(store.db, receipt.instance_id)
    file = b"".join(outgoing.part10(store, row))
    assert lie not in file
    assert file.endswith(small(sop="1.2.3.4"))
    with readout.sealed(store, row) as sealed:
        assert b"".join(sealed.chunks()) == data


def test_nothing_of_a_damaged_object_is_read_out(store: Store) -> None:
    part = ct(side=400)
    receipt = take_in_part(store, part)
    row = instances.instance(store.db, receipt.instance_id)
    (path,) = objects(store)
    for place in (130, 200_000, 300_000):
        flip_bit(path, place)
        pieces: list[bytes] = []
        with pytest.raises(EdgePacsError):
            pieces.extend(outgoing.part10(store, row))
        got = b"".join(pieces)
        start = got.find(part.data[:100])
        assert got[start:] == part.data[: len(got) - start] or start < 0
        flip_bit(path, place)
    assert b"".join(outgoing.part10(store, row)).endswith(part.data)


def test_a_reader_follows_a_rewritten_object(store: Store) -> None:
    """A rewrite is a new object: who finds the old one gone reads the row once more."""
    part = ct()
    receipt = take_in_part(store, part)
    row = instances.instance(store.db, receipt.instance_id)
    writer = store.vault.new(UID(part.sop_instance))
    writer.write(part.data)
    key = store.keystore.ensure_study_key(UID(str(part.dataset().StudyInstanceUID)))
    writer.finish(*key, {"sop_instance_uid": part.sop_instance})
    with store.db.write() as tx:
        tx.run("UPDATE instance SET object_id = ? WHERE id = ?", writer.object_id, row.id)
    store.vault.remove(row.object_id)
    with readout.sealed(store, row) as sealed:
        assert b"".join(sealed.chunks()) == part.data
    store.vault.remove(writer.object_id)
    with pytest.raises(EdgePacsError, match="missing"):
        readout.sealed(store, row)
