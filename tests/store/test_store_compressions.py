"""The tables of compression: who is to be compressed, by whom, and what came of it."""

from itertools import pairwise

import pytest
from custody.pressing import claim, press, received, row
from harness.made import ct, instance, new_uid
from harness.part10 import Part10
from store.making import objects, take_in, take_in_part

from edgepacs.custody.compress import compress
from edgepacs.errors import Conflict
from edgepacs.model import CompressionState, InstanceId, InstanceState, StudyId
from edgepacs.pixels.syntaxes import DEFLATED_DATA_SET, JPEG_LS
from edgepacs.store import Store, audit, compressions, fsck, instances, studies
from edgepacs.store.compressions import MAX_ATTEMPTS, Claim, Made, Selection
from edgepacs.store.db import migrations
from edgepacs.store.vault import new_object_id

PAGE = 4096 + 24  # of the write-ahead log, with its header


def take(store: Store, part: Part10 | None = None) -> InstanceId:
    return take_in_part(store, part or ct()).instance_id


def state_of(store: Store, number: InstanceId) -> tuple[str, int, str]:
    (found,) = compressions.results(store.db, Selection(instance=number))
    return found.state, found.attempts, found.reason


def made_of(store: Store, claimed: Claim) -> Made:
    found = compress(store, claimed, new_object_id())
    assert isinstance(found, Made)
    return found


def last_act(store: Store, number: InstanceId) -> tuple[str, str]:
    """The newest audit record of an instance, and its detail."""
    found = audit.of_subject(store.db, "instance", number)[-1]
    return found.act, found.detail


def count(store: Store, table: str) -> int:
    with store.db.read() as tx:
        return tx.number(f"SELECT COUNT(*) FROM {table}")


def test_receiving_writes_nothing_for_compression(store: Store):
    """Eight pages a commit, as before there was compression."""
    log = store.paths.index.with_name("index.db-wal")
    study, series = new_uid(), new_uid()
    take(store, ct(study=study, series=series))
    sizes = []
    for number in range(12):
        take(store, ct(study=study, series=series, number=number))
        sizes.append(log.stat().st_size)
    grown = [(b - a) // PAGE for a, b in pairwise(sizes)]
    assert sorted(grown)[len(grown) // 2] <= 8, grown
    assert count(store, "compression") == count(store, "compression_choice") == 0
    with store.db.read() as tx:
        assert tx.number("SELECT considered FROM compression_mark") == 0


def test_what_may_be_compressed_is_planned_once(store: Store):
    first = take(store)
    take_in(store)  # without pixels
    second = take(store)
    assert compressions.pending(store.db)
    claims = claim(store, 10)
    assert [one.instance for one in claims] == [first, second]
    assert claim(store, 10) == []
    assert not compressions.pending(store.db)
    with store.db.write() as tx:
        assert compressions.plan(tx) == 0
    assert count(store, "compression") == 2


def test_a_long_backlog_is_planned_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compressions, "_PLANNED_AT_ONCE", 2)
    for _ in range(3):
        take(store)
    with store.db.write() as tx:
        assert [compressions.plan(tx) for _ in range(3)] == [2, 1, 0]


def test_an_index_of_an_earlier_version_waits_to_be_asked(store: Store):
    """The migration marks what is there already as considered."""
    number = take(store)
    with store.db.write() as tx:
        for table in ("compression", "compression_choice", "compression_mark"):
            tx.run(f"DROP TABLE {table}")
        tx.run(next(sql for version, _, sql in migrations() if version == 4))
    assert not compressions.pending(store.db)
    later = take(store)
    assert set(press(store)) == {later}
    with store.db.write() as tx:
        assert compressions.again(tx, Selection(), actor="test") == 2
    assert set(press(store)) == {number, later}
    assert row(store, number).transfer_syntax_uid == JPEG_LS


def test_an_attempt_is_recorded_before_the_work(store: Store):
    number = take(store)
    (claimed,) = claim(store)
    assert claimed.attempts == 1
    assert state_of(store, number) == ("compressing", 1, "")
    assert compressions.recover(store.db) == 1
    assert state_of(store, number) == ("waiting", 1, "broken off by a crash")


def test_what_has_been_tried_before_comes_alone(store: Store):
    first, second, third = take(store), take(store), take(store)
    with store.db.write() as tx:
        compressions.plan(tx)
        (one,) = compressions.claim(tx, 1)
        compressions.broke(tx, one, "a worker crashed over it")
    assert state_of(store, first) == ("waiting", 1, "a worker crashed over it")
    assert [one.instance for one in claim(store, 8)] == [first]
    assert [one.instance for one in claim(store, 8)] == [second, third]


def test_nothing_is_tried_for_ever(store: Store):
    number = take(store)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (claimed,) = claim(store)
        assert claimed.attempts == attempt
        with store.db.write() as tx:
            compressions.broke(tx, claimed, "a worker hung over it")
    assert state_of(store, number) == ("failed", MAX_ATTEMPTS, "a worker hung over it")
    assert last_act(store, number) == ("instance kept as received", "a worker hung over it")
    assert claim(store) == []
    with store.db.write() as tx:
        compressions.again(tx, Selection(state=CompressionState.FAILED), actor="test")
    assert isinstance(press(store)[number], Made)


def test_what_is_kept_as_received_leaves_a_record(store: Store):
    number = take(store)
    (claimed,) = claim(store)
    with store.db.write() as tx:
        compressions.keep(tx, claimed, "nothing makes it smaller")
    assert state_of(store, number) == ("native", 1, "nothing makes it smaller")
    assert last_act(store, number) == ("instance kept as received", "nothing makes it smaller")
    assert audit.broken_at(store.db) is None


def test_crashes_of_everything_end_too(store: Store):
    number = take(store)
    for _ in range(MAX_ATTEMPTS):
        claim(store)
        compressions.recover(store.db)
    assert state_of(store, number)[:2] == ("failed", MAX_ATTEMPTS)
    assert compressions.recover(store.db) == 0


def test_a_claim_given_back_counts_for_nothing(store: Store):
    number = take(store)
    (claimed,) = claim(store)
    with store.db.write() as tx:
        compressions.give_back(tx, claimed)
    assert state_of(store, number) == ("waiting", 0, "")


def test_a_swap_is_all_or_nothing(store: Store):
    part = ct()
    number = take(store, part)
    study = studies.study(store.db, StudyId(1))
    (claimed,) = claim(store)
    made = made_of(store, claimed)
    with store.db.write() as tx:
        compressions.swap(tx, claimed, made)
    store.vault.remove(claimed.object_id)
    now = row(store, number)
    assert (now.object_id, now.transfer_syntax_uid) == (made.object_id, JPEG_LS)
    assert (now.byte_length, now.sealed_length) == (made.byte_length, made.sealed_length)
    assert now.sealed_length == store.vault.size(now.object_id)
    assert (now.native_digest, now.pixel_offset) == (made.native_digest, made.pixel_offset)
    after = studies.study(store.db, StudyId(1))
    assert study.byte_size - after.byte_size == len(part.data) - made.byte_length
    (series,) = studies.series_of(store.db, StudyId(1))
    assert series.byte_size == made.byte_length
    assert audit.of_subject(store.db, "instance", number)[-1].act == "instance compressed"
    assert audit.broken_at(store.db) is None
    assert fsck.check(store).sound
    with store.db.write() as tx, pytest.raises(Conflict):
        compressions.swap(tx, claimed, made)


@pytest.mark.parametrize("former", [InstanceState.SUPERSEDED, InstanceState.EVICTED])
def test_an_instance_that_is_gone_is_not_brought_back(store: Store, former: InstanceState):
    part = ct()
    number = take(store, part)
    (claimed,) = claim(store)
    made = made_of(store, claimed)
    with store.db.write() as tx:
        instances.move(tx, number, former, actor="test")
    before = row(store, number)
    with store.db.write() as tx:
        with pytest.raises(Conflict):
            compressions.swap(tx, claimed, made)
        compressions.give_back(tx, claimed)
    assert row(store, number) == before
    assert claim(store) == []
    with store.db.read() as tx:
        assert tx.rows("SELECT state, reason FROM compression") == [
            ("native", f"it is {former} by now")
        ]


def test_the_choice_of_a_series_is_kept(store: Store):
    study, series = new_uid(), new_uid()
    parts = [ct(study=study, series=series, number=number) for number in range(2)]
    take(store, parts[0])
    press(store)
    take(store, parts[1])
    (claimed,) = claim(store)
    assert claimed.choice == JPEG_LS
    with store.db.write() as tx:
        compressions.give_back(tx, claimed)
        compressions.again(tx, Selection(study=StudyId(1)), actor="test")
    assert all(one.choice == "" for one in claim(store, 8))


def test_an_empty_slice_chooses_for_nobody_else(store: Store):
    """Deflated it is smallest; the pictures behind it are not."""
    study, series = new_uid(), new_uid()
    empty = ct(study=study, series=series).dataset()
    empty.PixelData = bytes(len(empty.PixelData))
    first = take(store, instance(empty))
    second = take(store, ct(study=study, series=series))
    press(store)
    stand = [row(store, number).transfer_syntax_uid for number in (first, second)]
    assert stand == [DEFLATED_DATA_SET, JPEG_LS]
    take(store, ct(study=study, series=series))
    (claimed,) = claim(store)
    assert claimed.choice == JPEG_LS


def test_what_was_compressed_stays_so_when_doing_it_again_fails(store: Store):
    part = ct()
    number = take(store, part)
    press(store)
    stood = row(store, number)
    with store.db.write() as tx:
        assert compressions.again(tx, Selection(instance=number), actor="test") == 1
    assert state_of(store, number)[0] == "waiting"
    for _ in range(MAX_ATTEMPTS):
        (claimed,) = claim(store)
        with store.db.write() as tx:
            compressions.broke(tx, claimed, "a worker crashed over it")
    assert state_of(store, number)[0] == "compressed"
    assert row(store, number) == stood
    with store.db.write() as tx:
        compressions.again(tx, Selection(instance=number), actor="test")
    press(store)  # nothing smaller is to be had
    assert row(store, number) == stood
    assert state_of(store, number)[::2] == ("compressed", "")
    assert received(store, number) == part.data


def test_the_same_bytes_again_while_it_waits_to_be_done_again(store: Store):
    part = ct()
    number = take(store, part)
    press(store)
    with store.db.write() as tx:
        compressions.again(tx, Selection(instance=number), actor="test")
    take(store, part)
    (found,) = compressions.results(store.db, Selection(instance=number))
    assert (found.state, found.byte_length) == ("waiting", len(part.data))
    press(store)
    assert row(store, number).transfer_syntax_uid == JPEG_LS


def test_a_version_that_is_accepted_is_compressed(store: Store):
    sop = new_uid()
    take(store, ct(sop=sop))
    other = take(store, ct(sop=sop, patient_name="Other^One"))
    press(store)
    instances.quarantine(store.db, other)
    instances.accept_version(store.db, other, actor="test")
    assert isinstance(press(store)[other], Made)
    assert fsck.check(store).sound


def test_sums(store: Store):
    study = new_uid()
    first = take(store, ct(study=study))
    press(store)
    take(store, ct(study=study))
    take_in(store)
    (result,) = compressions.results(store.db, Selection(instance=first))
    (compressed,) = compressions.results(store.db, Selection(state=CompressionState.COMPRESSED))
    assert compressed == result
    assert result.received_length > result.byte_length
    sums = {(one.state, one.instances) for one in compressions.totals(store.db)}
    assert sums == {("compressed", 1), ("", 2)}
    by_series = compressions.of_study(store.db, StudyId(1))
    assert sorted((one.state, one.instances) for one in by_series) == [("", 1), ("compressed", 1)]
    assert len(objects(store)) == 3
