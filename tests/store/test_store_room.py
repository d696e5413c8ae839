"""Room: watermarks, what may go and what stays, how much arrives, when it is full."""

import dataclasses
import time

import pytest
from store.making import add_destination, take_in

from edgepacs import config
from edgepacs.clock import wall_ms
from edgepacs.model import Kept, StudyState
from edgepacs.store import Store, audit, room, studies
from edgepacs.store.evictions import DAY_MS
from edgepacs.store.room import Disk, Room, Survey, Watermarks

MIB = 1 << 20
GIB = 1 << 30


def settings(store: Store, *, reserve_mib: int = 0, **retention: int) -> config.Config:
    return dataclasses.replace(
        store.config,
        node=dataclasses.replace(store.config.node, reserve_mib=reserve_mib),
        retention=config.Retention(**retention),
    )


def commit_all(store: Store) -> None:
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'committed'")


def aged(store: Store, days: float) -> None:
    """Everything was received that long ago."""
    with store.db.write() as tx:
        at = wall_ms() - int(days * DAY_MS)
        tx.run("UPDATE study SET received_ms = ?1, created_ms = ?1", at)
        tx.run("UPDATE instance SET received_ms = ?", at)


def size(store: Store) -> int:
    with store.db.read() as tx:
        return tx.number("SELECT SUM(sealed_length) FROM instance")


def test_watermarks_are_shares_of_the_disk(store: Store) -> None:
    marks = Watermarks.of(settings(store, high=80, low=70), 100 * GIB)
    assert marks == Watermarks(begin=20 * GIB, until=30 * GIB)


def test_a_small_disk_makes_room_before_anything_is_refused(store: Store) -> None:
    made = settings(store, reserve_mib=256, high=80, low=70)
    marks = Watermarks.of(made, GIB)
    assert marks == Watermarks(begin=512 * MIB, until=768 * MIB)
    assert marks.begin > made.node.reserve_mib * MIB
    tiny = Watermarks.of(made, 300 * MIB)
    assert tiny.begin == tiny.until == 300 * MIB


def test_at_a_hundred_percent_nothing_ever_goes(store: Store) -> None:
    assert Watermarks.of(settings(store, high=100), GIB) == Watermarks(begin=0, until=0)


def test_the_disk_is_the_one_the_objects_lie_on(store: Store) -> None:
    found = room.disk(store)
    assert found.free == pytest.approx(store.vault.free_bytes(), abs=256 * MIB)
    assert 0 <= found.used_percent <= 100
    assert Disk(0, 0).used_percent == 100
    assert Disk(200, 50).used_percent == 75


def test_a_survey_tells_what_may_go_from_what_stays_and_why(store: Store) -> None:
    pacs = add_destination(store)
    first = take_in(store, study="1.1", series="1.1.1")
    gone = size(store)
    commit_all(store)
    aged(store, 2)
    held = take_in(store, study="1.2", series="1.2.1")
    with store.db.write() as tx:
        studies.set_state(tx, held.study_id, StudyState.HELD, actor="eve")
    waiting = take_in(store, study="1.3", series="1.3.1")
    with store.db.write() as tx:
        tx.run("DELETE FROM rule")
    take_in(store, study="1.4", series="1.4.1")
    found = room.survey(store)
    assert found.evictable == gone
    assert set(found.blocked) == {Kept.STOPPED, Kept.UNPROVED, Kept.UNWANTED}
    assert found.evictable + sum(found.blocked.values()) == size(store)
    assert pacs
    assert first.study_id != waiting.study_id


def test_what_is_young_is_told_apart(store: Store) -> None:
    add_destination(store)
    take_in(store)
    commit_all(store)
    found = room.survey(store)
    assert (found.evictable, found.blocked) == (0, {Kept.RECENT: size(store)})


def test_what_arrives_in_a_day_is_taken_over_the_days_there_were(store: Store) -> None:
    assert room.survey(store).daily == 0
    take_in(store)
    whole = size(store)
    assert room.survey(store).daily == whole
    aged(store, 4)
    assert room.survey(store).daily == pytest.approx(whole / 4, abs=1)
    aged(store, 8)
    assert room.survey(store).daily == 0


def test_what_was_evicted_has_arrived_all_the_same(store: Store) -> None:
    take_in(store)
    before = room.survey(store).daily
    with store.db.write() as tx:
        tx.run("UPDATE instance SET state = 'evicted'")
    assert room.survey(store).daily == before > 0


def test_a_clock_that_was_ahead_does_not_count_as_arrivals(store: Store) -> None:
    take_in(store)
    aged(store, -400)
    assert room.survey(store).daily == 0


def space(*, free: int, evictable: int = 0, daily: int = 0) -> Room:
    return Room(
        disk=Disk(100 * GIB, free),
        reserve=GIB,
        watermarks=Watermarks(begin=20 * GIB, until=30 * GIB),
        survey=Survey(measured_ms=0, evictable=evictable, blocked={}, daily=daily),
    )


def test_days_to_full_count_what_may_go_and_leave_the_reserve(store: Store) -> None:
    assert space(free=41 * GIB, daily=4 * GIB).days_to_full == 10
    assert space(free=41 * GIB, evictable=40 * GIB, daily=4 * GIB).days_to_full == 20
    assert space(free=0, daily=GIB).days_to_full == 0
    assert space(free=41 * GIB).days_to_full is None


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (space(free=50 * GIB), ""),
        (space(free=50 * GIB, daily=GIB), ""),
        (space(free=50 * GIB, daily=10 * GIB), "full in less than 7 days"),
        (space(free=10 * GIB, evictable=5 * GIB), "too little of what it holds may be deleted"),
        (space(free=10 * GIB, evictable=50 * GIB), ""),
        (space(free=GIB // 2, evictable=50 * GIB), "instances are refused"),
    ],
)
def test_an_alarm_says_what_is_wrong(there: Room, words: str) -> None:
    assert words in there.alarm
    assert bool(there.alarm) == bool(words)


def test_a_survey_is_kept_and_alarms_are_in_the_trail_when_they_change(store: Store) -> None:
    assert room.noted(store.db) is None
    first = Survey(measured_ms=5, evictable=7, blocked={Kept.HELD: 3}, daily=2)
    for alarm in ("", "Full.", "Full.", ""):
        with store.db.write() as tx:
            room.note(tx, first, alarm)
    assert room.noted(store.db) == first
    with store.db.read() as tx:
        rows = tx.rows("SELECT act, detail FROM audit WHERE kind = 'room' ORDER BY id")
    assert rows == [("room alarm", "Full."), ("room again", "")]
    assert audit.broken_at(store.db) is None


def test_a_survey_of_many_instances_is_quick(store: Store) -> None:
    """A hundred studies of two hundred: the time a page never waits for, bounded generously."""
    add_destination(store)
    take_in(store)
    with store.db.write() as tx:
        tx.run(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            "INSERT INTO instance SELECT i, series, study, '9.' || i, sop_class_uid, "
            "transfer_syntax_uid, received_syntax_uid, state, version, CAST(i AS BLOB), "
            "byte_length, sealed_length, received_digest, native_digest, pixel_offset, "
            "instance_number, rows, columns, frames, flags, origin, source, association, "
            "received_ms, corrects, hidden FROM instance, n WHERE id = 1"
        )
        tx.run(
            "INSERT INTO delivery (kind, subject, study, destination, state, created_ms, "
            "changed_ms) SELECT 'instance', id, study, 1, 'queued', 0, 0 FROM instance "
            "WHERE id > 1"
        )
    began = time.process_time()
    found = room.survey(store)
    assert sum(found.blocked.values()) == size(store)
    assert time.process_time() - began < 3
