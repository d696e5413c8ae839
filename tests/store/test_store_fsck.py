import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness.fault import flip_bit, swap, truncate
from harness.made import ct, studies
from store.making import (
    add_destination,
    commit,
    draft,
    node_in,
    objects,
    opened_store,
    take_in,
    take_in_part,
    template,
)

from edgepacs import config as configuration
from edgepacs.errors import Busy, Conflict, InvalidValue, WrongKey
from edgepacs.model import UID, InstanceId
from edgepacs.store import Store, disposal, founding, fsck, instances, rebuild, users
from edgepacs.store.keystore import recovery_key


def path_of(store: Store, number: int) -> Path:
    row = instances.instance(store.db, InstanceId(number))
    name = row.object_id.hex()
    return store.paths.objects / name[:2] / name


@pytest.fixture
def filled(store: Store) -> Store:
    for number in range(4):
        take_in(store, study=f"1.2.{number % 2}", more=b"")
    return store


def test_a_sound_store_is_sound(filled: Store) -> None:
    report = fsck.check(filled)
    assert report.sound
    assert (report.rows, report.objects, report.verified) == (4, 4, 4)


def test_a_missing_object_is_reported(filled: Store) -> None:
    path_of(filled, 2).unlink()
    report = fsck.check(filled)
    assert (report.missing, report.verified, report.sound) == ([2], 3, False)


def test_an_object_replaced_while_it_is_checked_is_not_missing(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same instance comes again between the look at its row and the look at its object."""
    uid, ordinary = "1.2.99", os.open
    take_in(filled, sop=uid)
    old = path_of(filled, 5)

    def arriving(path: Path, *rest: int) -> int:
        if path == old:
            monkeypatch.undo()
            take_in(filled, sop=uid)
        return ordinary(path, *rest)

    monkeypatch.setattr(os, "open", arriving)
    report = fsck.check(filled)
    assert not old.exists()
    assert (report.sound, report.verified) == (True, 5)


@pytest.mark.parametrize("place", [0, 30, 110, 140, -60, -3])
def test_a_flipped_bit_is_reported(filled: Store, place: int) -> None:
    flip_bit(path_of(filled, 3), place)
    report = fsck.check(filled)
    assert (list(report.broken), report.verified, report.sound) == ([3], 3, False)


def test_swapped_and_truncated_objects_are_reported(filled: Store) -> None:
    swap(path_of(filled, 1), path_of(filled, 2))
    truncate(path_of(filled, 4), -1)
    report = fsck.check(filled)
    assert (sorted(report.broken), report.sound) == ([1, 2, 4], False)
    path_of(filled, 3).write_bytes(b"")
    assert sorted(fsck.check(filled).broken) == [1, 2, 3, 4]


def test_rows_that_say_other_than_their_object_are_reported(filled: Store) -> None:
    with filled.db.write() as tx:
        tx.run("UPDATE instance SET byte_length = byte_length + 1 WHERE id = 1")
        tx.run("UPDATE instance SET received_digest = zeroblob(33) WHERE id = 2")
        tx.run("UPDATE instance SET sop_instance_uid = '9.9.9' WHERE id = 3")
    report = fsck.check(filled)
    assert sorted(report.mismatched) == [1, 2]
    assert list(report.broken) == [3]
    assert not report.sound


def test_an_object_without_a_row_is_reported_and_made_known(filled: Store) -> None:
    orphan = draft(filled)
    report = fsck.check(filled)
    assert (report.orphans, report.sound) == ([orphan.object_id.hex()], False)
    assert fsck.sweep(filled) == fsck.Settled(adopted=1)
    assert fsck.check(filled).verified == 5
    assert instances.stored_version(filled.db, orphan.arrival.sop_instance_uid) is not None
    assert fsck.sweep(filled) == fsck.Settled()


def test_of_an_orphan_that_was_sent_again_one_copy_is_kept(filled: Store) -> None:
    orphan = draft(filled, sop="1.2.77")
    again = draft(filled, sop="1.2.77")
    commit(filled, again)
    assert fsck.sweep(filled) == fsck.Settled(removed=1)
    kept = [filled.vault.exists(one.object_id) for one in (orphan, again)]
    assert sorted(kept) == [False, True]
    assert fsck.check(filled).sound


@pytest.mark.parametrize("left", [1, 100, 128, 300, -1])
def test_a_finished_object_that_is_damaged_is_set_aside(filled: Store, left: int) -> None:
    orphan = draft(filled)
    name = orphan.object_id.hex()
    path = filled.paths.objects / name[:2] / name
    damaged = path.read_bytes()[:left]
    path.write_bytes(damaged)
    assert fsck.sweep(filled) == fsck.Settled(set_aside=1)
    assert not path.exists()
    assert (filled.paths.data_dir / "aside" / name).read_bytes() == damaged
    assert fsck.check(filled).sound


def test_an_object_whose_header_was_never_written_is_swept(filled: Store) -> None:
    writer = filled.vault.new(UID("1.2.3"))
    writer.write(bytes(400_000))
    assert len(objects(filled)) == 5
    assert fsck.sweep(filled) == fsck.Settled(removed=1)
    writer.discard()
    assert fsck.check(filled).sound


def test_a_finished_object_under_an_unknown_key_is_kept(tmp_path: Path) -> None:
    """Index and keystore came back from an older backup; the newer keystore may still be found."""
    with opened_store(tmp_path / "node") as store:
        old = {p: p.read_bytes() for p in (store.paths.keystore, store.paths.index)}
        take_in(store)
        store.close()
        for path in store.paths.data_dir.glob("index.db*"):
            path.unlink()
        for path, content in old.items():
            path.write_bytes(content)
        again = Store.open(store.config)
        fsck.sweep(again)
        again.close()
        assert len(objects(store)) == 1


def test_bytes_only_a_tombstone_names_are_swept(filled: Store) -> None:
    take_in(filled, sop="1.2.88")
    number = take_in(filled, sop="1.2.88", name="Other").instance_id
    path = path_of(filled, number)
    kept = path.read_bytes()
    disposal.discard(filled, number, actor="test")
    path.write_bytes(kept)  # as a crash between transaction and removal would leave it
    assert fsck.check(filled).orphans == [path.name]
    assert fsck.sweep(filled) == fsck.Settled(removed=1)
    assert fsck.check(filled).sound
    with filled.db.read() as tx:  # its commit made the tombstone durable before the bytes went
        assert tx.number("SELECT COUNT(*) FROM audit WHERE act = 'objects removed'") == 1


def test_while_somebody_writes_nothing_is_swept_or_called_an_orphan(filled: Store) -> None:
    coming = draft(filled)
    with filled.vault.writing():
        with pytest.raises(Busy):
            fsck.sweep(filled)
        report = fsck.check(filled)
        assert (report.orphans, report.unsettled) == ([], [coming.object_id.hex()])
        assert report.sound
    commit(filled, coming)
    assert fsck.sweep(filled) == fsck.Settled()
    assert fsck.check(filled).verified == 5


def test_strays_may_be_settled_beside_writers(filled: Store) -> None:
    """Whatever order the commits take, each row ends up with an object and each object with a row.

    Every orphan is sent again, by two associations at once, while the sweep makes it known.
    """
    uids = [f"1.2.77.{number}" for number in range(20)]
    for uid in uids:
        draft(filled, sop=uid)
    found = fsck.strays(filled)
    assert len(found.unknown) == len(uids)

    def send_all() -> None:
        for uid in uids:
            take_in(filled, sop=uid)

    with filled.vault.writing(), ThreadPoolExecutor() as pool:
        sending = [pool.submit(send_all) for _ in range(2)]
        settled = fsck.settle(filled, found, threading.Event())
        for one in sending:
            one.result()
    assert settled.removed + settled.adopted == len(uids)
    report = fsck.check(filled)
    assert (report.sound, report.rows, report.verified) == (True, 24, 24)
    assert len(objects(filled)) == 24


def test_what_another_sweep_has_settled_is_passed_over(filled: Store) -> None:
    draft(filled)
    writer = filled.vault.new(UID("1.2.3"))
    writer.write(bytes(400_000))
    found = fsck.strays(filled)
    assert fsck.sweep(filled) == fsck.Settled(removed=1, adopted=1)
    fsck.settle(filled, found, threading.Event())
    writer.discard()
    report = fsck.check(filled)
    assert (report.sound, report.rows) == (True, 5)


def test_a_sweep_ends_when_told(filled: Store) -> None:
    orphan = draft(filled)
    stop = threading.Event()
    stop.set()
    assert fsck.settle(filled, fsck.strays(filled), stop) == fsck.Settled()
    assert filled.vault.exists(orphan.object_id)


def test_an_orphan_on_a_bad_sector_keeps_nothing_from_starting(
    filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (draft(filled) for _ in range(2))
    ordinary = os.pread

    def failing(fd: int, length: int, offset: int) -> bytes:
        if Path(f"/proc/self/fd/{fd}").readlink().name == bad.object_id.hex():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return ordinary(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        assert fsck.sweep(filled) == fsck.Settled(adopted=1, left=1)
    assert instances.stored_version(filled.db, good.arrival.sop_instance_uid) is not None
    assert fsck.sweep(filled) == fsck.Settled(adopted=1)


def test_on_a_full_disk_orphans_wait_for_room(filled: Store) -> None:
    studies = [f"1.2.9.{number}" for number in range(40)]  # more than fits into begun pages
    orphans = [draft(filled, study=study, description="x" * 1000) for study in studies]
    writer = filled.db._writer
    pages = writer.pragma("page_count")
    writer.pragma("max_page_count", pages)
    settled = fsck.sweep(filled)
    assert settled.left
    assert settled.adopted + settled.left == len(orphans)
    writer.pragma("max_page_count", 100 * pages)
    assert fsck.sweep(filled) == fsck.Settled(adopted=settled.left)
    uids = [one.arrival.sop_instance_uid for one in orphans]
    assert all(instances.stored_version(filled.db, uid) for uid in uids)


def test_blanks_of_a_crash_are_swept_and_not_reported(filled: Store) -> None:
    for number in range(16):
        name = f"{number:032x}"
        (filled.paths.objects / name[:2] / name).touch()
    report = fsck.check(filled)
    assert (report.orphans, report.sound, report.objects) == ([], True, 4)
    assert fsck.sweep(filled) == fsck.Settled(removed=16)
    assert len(objects(filled)) == 4


def test_an_edited_trail_is_reported(filled: Store) -> None:
    with filled.db.write() as tx:
        tx.run("UPDATE audit SET actor = 'mallory' WHERE id = 3")
    report = fsck.check(filled)
    assert not report.sound
    assert [text for text in report.index if "audit record 3" in text]


# -- rebuilding


_QUERIES = {
    "patient": "SELECT patient_id, issuer, alone_in, name, birth_date, sex FROM patient",
    "study": (
        "SELECT study_instance_uid, patient_name, patient_id, issuer, birth_date, sex, study_date,"
        " study_time, study_id, accession_number, description, referring_physician, institution,"
        " modalities, series_count, instance_count, byte_size, flags, search_text, created_ms,"
        " received_ms FROM study"
    ),
    "series": (
        "SELECT series_instance_uid, modality, number, description, body_part, station_name,"
        " laterality, instance_count, byte_size, created_ms, received_ms FROM series"
    ),
    "instance": (
        "SELECT sop_instance_uid, sop_class_uid, transfer_syntax_uid, received_syntax_uid, state,"
        " version, object_id, byte_length, sealed_length, received_digest, pixel_offset,"
        " instance_number, rows, columns, frames, flags, origin, source, received_ms FROM instance"
    ),
}


def everything(store: Store) -> dict[str, list[tuple[object, ...]]]:
    with store.db.read() as tx:
        return {name: sorted(tx.rows(sql), key=repr) for name, sql in _QUERIES.items()}


def lose_the_index(store: Store) -> None:
    store.close()
    for path in store.paths.data_dir.glob("index.db*"):
        path.unlink()


def fill_for_rebuild(store: Store) -> None:
    for part in studies(patients=2, studies_each=2, series_each=2, each=2):
        take_in_part(store, part)
    take_in(store, sop="1.2.3", patient_id="", description="née Größe", name="Ångström^A")
    take_in(store, sop="1.2.3", patient_id="", name="Other^Content")  # waits to be compared
    take_in(store, study="1.5.5", patient_id="X")
    take_in(store, study="1.5.5", patient_id="Y")  # two patients
    take_in_part(store, ct(side=300))


@pytest.mark.parametrize("with_recovery_key", [False, True])
def test_a_lost_index_is_made_again(tmp_path: Path, *, with_recovery_key: bool) -> None:
    with opened_store(tmp_path / "node") as store:
        fill_for_rebuild(store)
        before = everything(store)
        add_destination(store)
        lose_the_index(store)
        config = store.config
        key = None
        if with_recovery_key:
            config.device_key_file.unlink()
            key = recovery_key(template()[1].recovery_key)
        result = rebuild.rebuild(config, key)
        assert result.instances == sum(1 for _ in before["instance"])
        assert result.unreadable == {}
        again = Store.unlock(config, key)
        again.db.require_current()
        try:
            assert everything(again) == before
            assert again.db.problems() == []
            assert fsck.check(again).sound
            assert users.log_in(again.db, result.user, result.password)
            found = instances.stored_version(again.db, UID("1.2.3"))
            assert found is not None
            assert found.version == 1
        finally:
            again.close()


def test_rebuilding_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    with opened_store(tmp_path / "node") as store:
        for _ in range(3):
            take_in(store)
        flip_bit(path_of(store, 2), -40)
        bad = path_of(store, 2).name
        (store.paths.objects / "00" / ("00" * 16)).touch()  # a blank a crash has left
        lose_the_index(store)
        result = rebuild.rebuild(store.config)
        assert (result.instances, list(result.unreadable)) == (2, [bad])


def test_rebuilding_needs_a_lost_index_a_key_and_nobody_writing(tmp_path: Path) -> None:
    with opened_store(tmp_path / "node") as store:
        take_in(store)
        with pytest.raises(Conflict, match="exists"):
            rebuild.rebuild(store.config)
        lose_the_index(store)
        with pytest.raises(WrongKey):
            rebuild.rebuild(store.config, os.urandom(32))
        with store.vault.writing(), pytest.raises(Busy):
            rebuild.rebuild(store.config)
        assert not store.paths.index.exists()
        assert rebuild.rebuild(store.config).instances == 1


def test_a_broken_off_rebuild_can_be_begun_again(tmp_path: Path) -> None:
    with opened_store(tmp_path / "node") as store:
        take_in(store)
        lose_the_index(store)
        (store.paths.data_dir / "index.rebuilding").write_bytes(b"half")
        (store.paths.data_dir / "index.rebuilding-wal").write_bytes(b"half")
        assert rebuild.rebuild(store.config).instances == 1
        assert not list(store.paths.data_dir.glob("index.rebuilding*"))


# -- founding


def test_founding_refuses_what_it_cannot_do_and_leaves_nothing(tmp_path: Path) -> None:
    good = {"title": "EDGEPACS", "dicom_port": 0, "http_port": 0, "password": "long enough 1"}
    for wrong in (
        {"password": "short"},
        {"password": ""},
        {"title": "SEVENTEEN_LETTERS"},
        {"dicom_port": 70000},
        {"http_port": -1},
    ):
        with pytest.raises(InvalidValue):
            founding.create_node(tmp_path / "node", **{**good, **wrong})  # type: ignore[arg-type]
        assert not (tmp_path / "node").exists()
    founded = founding.create_node(tmp_path / "node", **good)  # type: ignore[arg-type]
    assert founded.password is None
    with pytest.raises(Conflict, match="nothing was changed"):
        founding.create_node(tmp_path / "node", **good)  # type: ignore[arg-type]


def test_a_new_node_keeps_its_secrets_to_its_owner(tmp_path: Path) -> None:
    config = node_in(tmp_path / "node")
    for name in ("keys/device.key", "data/keystore", "tls/site.key", "edgepacs.toml"):
        assert (tmp_path / "node" / name).stat().st_mode & 0o077 == 0, name
    for name in ("", "data", "keys", "tls"):
        assert (tmp_path / "node" / name).stat().st_mode & 0o077 == 0, name
    assert configuration.load(config.path) == config
