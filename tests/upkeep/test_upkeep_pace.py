"""Pace: when there is room for work nobody waits for."""

import os

import pytest
from harness.made import ct
from harness.waiting import until
from store.making import take_in_part

from edgepacs.clock import monotonic
from edgepacs.store import Store
from edgepacs.upkeep import pace
from edgepacs.upkeep.pace import Allowance, Pace, Usage


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_LOOK_SECONDS", 0.0)


def test_without_arrivals_nothing_is_crowded(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "_spare", lambda _cores: float("inf"))
    take_in_part(store, ct())
    assert not Pace(store.db).crowded()


def test_arrivals_crowd_a_box_without_a_free_core_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pace, "_spare", lambda _cores: float("inf"))
    monkeypatch.setattr(pace, "ARRIVING_SECONDS", 0.5)
    watched = Pace(store.db)
    take_in_part(store, ct())
    assert watched.crowded()
    until(lambda: not watched.crowded(), "it is quiet again", seconds=5)


def test_arrivals_do_not_crowd_a_box_with_a_free_core(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pace, "_spare", lambda _cores: -1.0)
    watched = Pace(store.db)
    take_in_part(store, ct())
    assert not watched.crowded()


@pytest.mark.parametrize(
    ("cores", "free", "crowded"),
    [
        (1, 0.8, True),
        (1, 0.9, False),
        (2, 1.6, True),
        (2, 1.8, False),
        (8, 1.7, True),
        (8, 2, False),
    ],
)
def test_a_small_box_has_to_be_all_but_idle(
    store: Store, monkeypatch: pytest.MonkeyPatch, cores: int, free: float, *, crowded: bool
):
    watched = Pace(store.db, cores=cores)
    monkeypatch.setattr(watched, "_free_cores", lambda: free)
    take_in_part(store, ct())
    assert watched.crowded() == crowded


def test_a_mean_over_a_long_time_says_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    """After a while without a look the first one is only where the next begins."""
    monkeypatch.setattr(pace, "_STALE_SECONDS", 0.2)
    watched = Pace(store.db, cores=8)
    monkeypatch.setattr(watched, "_free_cores", lambda: 8.0)
    until(lambda: monotonic() - watched._looked > 0.2, "it has not looked for a while")
    take_in_part(store, ct())
    assert watched.crowded()
    assert not watched.crowded()


def test_free_cores_are_counted(store: Store):
    watched = Pace(store.db, cores=4)
    until(lambda: watched._times != pace._processor_times(), "a tick has passed")
    assert 0 <= watched._free_cores() <= 4


def test_an_allowance_is_a_share_of_the_time_that_passes():
    allowance = Allowance(0.25)
    used = now = 0.0
    ran = 0.0
    for _ in range(4000):
        now += 0.01
        if allowance.holds(used, now):
            used += 0.01
            ran += 0.01
    assert 0.24 < ran / now < 0.26


def test_a_whole_core_is_no_limit():
    allowance = Allowance(1.0)
    assert all(allowance.holds(2.0 * second, second) for second in range(100))


def test_usage_of_a_process():
    before = Usage.of(os.getpid())
    sum(range(3_000_000))
    after = Usage.of(os.getpid())
    assert after.state in "RS"
    assert after.seconds >= before.seconds
