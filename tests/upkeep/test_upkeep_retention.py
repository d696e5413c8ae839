"""Retention: begins above the high watermark, ends at the low one, and takes only what may go."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import disks
from harness.waiting import until
from store.making import add_destination, element, node_in, objects, take_in

from edgepacs import config, telemetry, upkeep
from edgepacs.errors import NoRoom, StorageFault
from edgepacs.model import InstanceState
from edgepacs.store import Store, fsck, instances, room
from edgepacs.store.room import Disk
from edgepacs.telemetry import doorbell
from edgepacs.upkeep.retention import Retention


class Gauge:
    """A disk on which nothing but the objects takes space: as large as `total` of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.object_size = 0

    def __call__(self, store: Store) -> Disk:
        sizes = [path.stat().st_size for path in objects(store)]
        self.object_size = self.object_size or max(sizes)
        return Disk(self.total * self.object_size, (self.total - len(sizes)) * self.object_size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = node_in(tmp_path / "node")
    wanted = config.Retention(high=80, low=50, keep_days=0)
    opened = Store.open(dataclasses.replace(made, retention=wanted))
    add_destination(opened)
    yield opened
    opened.close()
    doorbell.cache_clear()


def fill(store: Store, studies: int) -> list[int]:
    return [int(take_in(store, study=f"1.{n}", series=f"1.{n}.1").study_id) for n in range(studies)]


def commit(store: Store, studies: list[int]) -> None:
    with store.db.write() as tx:
        for study in studies:
            tx.run("UPDATE delivery SET state = 'committed' WHERE study = ?", study)


def here(store: Store) -> list[int]:
    """The studies that have their bytes here."""
    with store.db.read() as tx:
        return [row[0] for row in tx.rows("SELECT id FROM study WHERE instance_count ORDER BY id")]


def turn(store: Store, gauge: Gauge) -> int:
    return Retention(store, gauge).turn(threading.Event())


def test_below_the_high_watermark_nothing_goes(store: Store) -> None:
    taken = fill(store, 8)
    commit(store, taken)
    assert turn(store, Gauge(10)) == 0
    assert here(store) == taken


def test_above_it_the_oldest_go_until_the_low_one(store: Store) -> None:
    taken = fill(store, 9)
    commit(store, taken)
    assert turn(store, Gauge(10)) > 0
    assert here(store) == taken[4:]
    assert len(objects(store)) == 5
    assert fsck.check(store).sound


def test_what_is_not_proved_stays_however_full_it_is(store: Store) -> None:
    taken = fill(store, 10)
    assert turn(store, Gauge(10)) == 0
    commit(store, taken[3:5])
    assert turn(store, Gauge(10)) > 0
    assert here(store) == [*taken[:3], *taken[5:]]
    found = room.noted(store.db)
    assert found is not None
    assert found.evictable == 0
    assert sum(found.blocked.values()) > 0


def test_a_nearly_full_disk_of_unproved_studies_is_an_alarm_in_the_trail(store: Store) -> None:
    taken = fill(store, 10)
    gauge = Gauge(11)
    retention = Retention(store, gauge)
    retention.turn(threading.Event())
    with store.db.read() as tx:
        (row,) = tx.rows("SELECT act, detail FROM audit WHERE kind = 'room'")
    assert row[0] == "room alarm"
    assert "too little of what it holds" in row[1] or "full in less than" in row[1]
    assert here(store) == taken


def test_a_full_disk_refuses_until_what_has_arrived_elsewhere_has_gone(tmp_path: Path) -> None:
    """A700 (PS3.4 B.2.3) and eviction together, on a disk of 32 MiB with a reserve of 4."""
    if reason := disks.unavailable(tmp_path / "probe"):
        pytest.skip(reason)
    with disks.Tmpfs(tmp_path / "small", mib=32) as small:
        made = node_in(small.at / "node")
        node = dataclasses.replace(made.node, reserve_mib=4)
        wanted = config.Retention(high=95, low=95, keep_days=0)
        opened = Store.open(dataclasses.replace(made, node=node, retention=wanted))
        add_destination(opened)
        taken = until_refused(opened)
        assert Retention(opened).turn(threading.Event()) == 0
        with pytest.raises(NoRoom):
            large(opened, 99)
        commit(opened, taken[:4])
        assert Retention(opened).turn(threading.Event()) > 0
        assert set(here(opened)) == set(taken[4:])
        assert room.disk(opened).free > 8 << 20
        large(opened, 99)
        assert fsck.check(opened).sound
        opened.close()
        doorbell.cache_clear()


def until_refused(store: Store) -> list[int]:
    taken: list[int] = []
    for number in range(40):
        try:
            taken.append(large(store, number))
        except NoRoom as refused:
            assert refused.dimse_status == 0xA700  # noqa: PT017  it is told how many went before
            return taken
    raise AssertionError("it never filled up")


def large(store: Store, number: int) -> int:
    """A study of two megabytes."""
    more = element(0x7FE00010, "OB", bytes(2 << 20))
    return int(take_in(store, study=f"1.{number}", series=f"1.{number}.1", more=more).study_id)


def test_it_stops_when_the_role_does(store: Store) -> None:
    commit(store, fill(store, 10))
    stop = threading.Event()
    stop.set()
    assert Retention(store, Gauge(10)).turn(stop) == 0
    assert len(objects(store)) == 10


def test_a_fault_of_the_device_ends_it_and_a_full_index_does_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, fill(store, 10))
    stop = threading.Event()

    def full(_: Store) -> Disk:
        stop.set()
        raise NoRoom("the disk is full")

    Retention(store, full).run(stop)
    monkeypatch.setattr(telemetry, "_FAILPOINT", "evict.decided:error")
    with pytest.raises(StorageFault):
        Retention(store, Gauge(10)).run(threading.Event())


def test_the_role_makes_room_by_itself(tmp_path: Path) -> None:
    """The whole role with a real disk, of which more than one percent is surely in use."""
    made = node_in(tmp_path / "node")
    wanted = config.Retention(high=1, low=0, keep_days=0)
    opened = Store.open(dataclasses.replace(made, retention=wanted))
    add_destination(opened)
    receipt = take_in(opened)
    commit(opened, [int(receipt.study_id)])
    stop = threading.Event()
    role = threading.Thread(target=upkeep.run, args=(opened, stop))
    role.start()
    until(lambda: not objects(opened), "the object is gone")
    stop.set()
    role.join()
    assert instances.instance(opened.db, receipt.instance_id).state is InstanceState.EVICTED
    opened.close()
    doorbell.cache_clear()
