"""Pace: when there is room for work nobody waits for."""

import os

import pytest
from harness.made import ct
from harness.waiting import until
from store.making import take_in_part

from edgepacs.store import Store
from edgepacs.upkeep import pace
from edgepacs.upkeep.pace import Allowance, Pace, Usage


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_LOOK_SECONDS", 0.0)


def test_without_arrivals_nothing_is_crowded(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "_FREE_CORE", float("inf"))
    take_in_part(store, ct())
    assert not Pace(store.db).crowded()


def test_arrivals_crowd_a_box_without_a_free_core_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pace, "_FREE_CORE", float("inf"))
    monkeypatch.setattr(pace, "ARRIVING_SECONDS", 0.5)
    watched = Pace(store.db)
    take_in_part(store, ct())
    assert watched.crowded()
    until(lambda: not watched.crowded(), "it is quiet again", seconds=5)


def test_arrivals_do_not_crowd_a_box_with_a_free_core(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pace, "_FREE_CORE", -1.0)
    watched = Pace(store.db)
    take_in_part(store, ct())
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
