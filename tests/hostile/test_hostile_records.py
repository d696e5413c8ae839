"""Records of what peers do wrong: each kind at once, then counted, and never without bound."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.waiting import until
from store.making import opened_store

from edgepacs.errors import StorageFault
from edgepacs.store import Store, audit, incidents, peers
from edgepacs.store.incidents import HOSTS, KINDS_OF_A_HOST, Incident, Incidents

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened_store(tmp_path / "node") as one:
        yield one


class Clock:
    """The monotonic clock of a test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(incidents, "monotonic", one)
    return one


@pytest.fixture
def counting(store: Store, clock: Clock) -> Iterator[Incidents]:
    """Incidents without a pause between transactions."""
    one = Incidents(store.db, store.vault.condemn, pause=0.0)
    yield one
    one.close()


def refusal(number: int = 0, host: str = "192.0.2.1") -> Incident:
    return Incident(
        act="association refused",
        actor=f"SCAN{number}",
        host=host,
        detail="unknown calling AE title",
        called_ae="EDGEPACS",
    )


def trail(store: Store) -> list[tuple[str, str, str]]:
    with store.db.read() as tx:
        return [
            (str(row[0]), str(row[1]), str(row[2]))
            for row in tx.rows(
                "SELECT actor, act, detail FROM audit WHERE kind = 'association' ORDER BY id"
            )
        ]


def counted(store: Store) -> int:
    """How many incidents the trail accounts for."""
    ends = [detail.rpartition(", ")[2] for _, _, detail in trail(store)]
    return sum(int(end.removesuffix(" times")) if end.endswith(" times") else 1 for end in ends)


def test_what_is_new_is_recorded_at_once(store: Store, counting: Incidents) -> None:
    counting.note(refusal())
    assert trail(store) == [
        ("SCAN0", "association refused", "unknown calling AE title, from 192.0.2.1")
    ]
    (listed,) = peers.refused(store.db)
    assert (listed.calling_ae, listed.called_ae, listed.times) == ("SCAN0", "EDGEPACS", 1)
    counting.note(Incident(act="association broken", host="192.0.2.2", detail="PDU type: odd"))
    assert trail(store)[1] == ("192.0.2.2", "association broken", "PDU type: odd, from 192.0.2.2")
    assert len(peers.refused(store.db)) == 1
    assert audit.broken_at(store.db) is None


def test_what_goes_on_is_counted_and_recorded_once_a_period(
    store: Store, counting: Incidents, clock: Clock
) -> None:
    for hour in range(3):
        clock.now = 1000.0 + hour * HOUR
        for _ in range(100):
            counting.note(refusal())
    clock.now += HOUR
    counting.note(refusal())
    details = [detail.rpartition(", ")[2] for _, _, detail in trail(store)]
    # The first at once; then, at the end of each hour, what came since, the one that ended it too.
    assert details == ["from 192.0.2.1", "100 times", "100 times", "100 times"]
    assert peers.refused(store.db)[0].times == 301


def test_what_has_been_counted_is_recorded_at_the_end(store: Store, clock: Clock) -> None:
    counting = Incidents(store.db, store.vault.condemn, pause=0.0)
    for _ in range(8):
        counting.note(refusal())
    counting.close()
    counting.note(refusal())  # too late, and harmless
    assert [detail for _, _, detail in trail(store)] == [
        "unknown calling AE title, from 192.0.2.1",
        "unknown calling AE title, from 192.0.2.1, 7 times",
    ]


def test_what_has_stopped_is_new_again_after_a_period(
    store: Store, counting: Incidents, clock: Clock
) -> None:
    counting.note(refusal())
    clock.now += HOUR + 1
    counting.note(refusal(1))
    counting.note(refusal())
    assert [actor for actor, _, _ in trail(store)] == ["SCAN0", "SCAN1", "SCAN0"]


def test_a_port_scan_is_bounded(store: Store, clock: Clock) -> None:
    """4,000 titles from 200 hosts: a row for each kind that is told apart, no more."""
    counting = Incidents(store.db, store.vault.condemn, pause=0.05)
    for number in range(4000):
        clock.now += 0.001
        counting.note(refusal(number, f"192.0.2.{number % 200}"))
    most = (KINDS_OF_A_HOST + 1) * HOSTS + 1
    rows = trail(store)
    assert len(rows) <= most
    assert {act for _, act, _ in rows} == {"association refused", "other incidents"}
    assert len(peers.refused(store.db)) <= 2000
    clock.now += HOUR
    counting.note(refusal())
    rows = trail(store)
    assert len(rows) <= 2 * most
    counting.close()
    assert counted(store) == 4001


def test_one_host_hides_no_other(store: Store, counting: Incidents) -> None:
    for number in range(100):
        counting.note(refusal(number, "192.0.2.1"))
    counting.note(refusal(7, "192.0.2.2"))
    assert trail(store)[-1] == (
        "SCAN7",
        "association refused",
        "unknown calling AE title, from 192.0.2.2",
    )
    assert len(trail(store)) == KINDS_OF_A_HOST + 2


def test_all_of_a_moment_shares_one_transaction(store: Store) -> None:
    counting = Incidents(store.db, store.vault.condemn, pause=0.3)
    with store.db.read() as tx:
        changes = tx.number("PRAGMA data_version")
    for number in range(500):
        counting.note(refusal(number))
    with store.db.read() as tx:
        assert tx.number("PRAGMA data_version") - changes <= 3
    until(lambda: len(peers.refused(store.db)) == 500, "the rest is listed a moment later")
    counting.close()


def test_many_threads_lose_none(store: Store) -> None:
    counting = Incidents(store.db, store.vault.condemn, pause=0.01)

    def run() -> None:
        for _ in range(200):
            counting.note(refusal())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    counting.close()
    assert peers.refused(store.db)[0].times == 1600
    assert counted(store) == 1600


def test_what_cannot_be_written_is_counted_on(store: Store, clock: Clock) -> None:
    counting = Incidents(store.db, store.vault.condemn, pause=1.0)
    with log_of_the_index(store, "/dev/full"):
        counting.note(refusal())
    assert trail(store) == []
    store.vault.require_sound()
    clock.now += 30
    counting.note(refusal())
    assert trail(store) == []  # a full disk is not asked again at once
    clock.now += 31
    counting.note(refusal())
    assert [detail.rpartition(", ")[2] for _, _, detail in trail(store)] == ["3 times"]
    counting.close()


def test_a_storage_fault_is_told(store: Store, clock: Clock) -> None:
    counting = Incidents(store.db, store.vault.condemn, pause=1.0)
    with log_of_the_index(store, "/dev/null", os.O_RDONLY):  # EBADF for who writes
        counting.note(refusal())
    with pytest.raises(StorageFault):
        store.vault.require_sound()
    counting.close()


@contextmanager
def log_of_the_index(store: Store, path: str, mode: int = os.O_RDWR) -> Iterator[None]:
    """While the block runs, what SQLite writes to its log goes to `path` instead."""
    with store.db.write() as tx:
        tx.run("UPDATE study SET flags = flags")  # so that the log is open
    log = f"{store.paths.index}-wal"
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    mine = [int(link.name) for link in links if str(link.readlink()) == log]
    assert mine, "no log is open"
    other = os.open(path, mode)
    kept = [(fd, os.dup(fd)) for fd in mine]
    for fd in mine:
        os.dup2(other, fd)
    try:
        yield
    finally:
        for fd, before in kept:
            os.dup2(before, fd)
            os.close(before)
        os.close(other)
