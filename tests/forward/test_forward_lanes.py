"""Lanes: how many, in which order, and what must not wait for what."""

import threading
import time
from collections.abc import Callable

import pytest
from forward.sending import forwarding, hasten
from harness import made
from harness.recorder import RecordingSCP
from harness.shaper import Shaper
from harness.waiting import until
from store.making import add_destination, states_of, take_in, take_in_part

from edgepacs.clock import wall_ms
from edgepacs.errors import StorageFault
from edgepacs.forward import desk as desks
from edgepacs.forward import width as widths
from edgepacs.forward.courier import Courier
from edgepacs.forward.sender import Sender
from edgepacs.forward.width import Width
from edgepacs.store import Store, claims, deliveries, destinations
from edgepacs.store.claims import Wish


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes as fractions of a second."""
    hasten(monkeypatch)


def all_sent(store: Store, seconds: float = 60) -> None:
    until(lambda: set(states_of(store)) == {"sent"}, "all are sent", seconds=seconds)


def set_up(store: Store, scp: RecordingSCP, port: int | None = None, **settings: str) -> int:
    number = add_destination(store, title=scp.ae_title, port=port or scp.port)
    with store.db.write() as tx:
        destinations.change(tx, "pacs", {"proof": "response", **settings}, actor="eve")
    return number


def urge(store: Store, delivery: int) -> None:
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET priority = ? WHERE id = ?", deliveries.STAT, delivery)
    store.ring("forward")


# --- order -------------------------------------------------------------------------------------


def test_stat_goes_next_even_inside_a_study(store: Store, recorder: RecordingSCP) -> None:
    number = set_up(store, recorder)
    recorder.behaviour.delay_seconds = 0.1
    study = made.new_uid()
    for _ in range(30):
        take_in_part(store, made.ct(study=study))
    with forwarding(store):
        recorder.wait_for(3)
        urgent = made.ct()
        take_in_part(store, urgent)
        urge(store, 31)
        before = recorder.total_requests
        until(lambda: urgent.sop_instance in recorder.order, "it is there", seconds=1)
        assert recorder.order.index(urgent.sop_instance) - before <= widths.MOST
        all_sent(store)
    assert recorder.total_requests == 31
    assert number == 1


def test_stat_passes_a_long_instance_on_a_lane_of_its_own(
    store: Store, recorder: RecordingSCP
) -> None:
    with Shaper(recorder.port, rate=2_000_000, round_trip=0.05) as line:
        set_up(store, recorder, line.port)
        long, urgent = made.ct(side=1000), made.ct()
        take_in_part(store, long)  # 2 MB: 8 s of this line
        with forwarding(store):
            until(lambda: recorder.total_requests == 1, "it is on its way")
            take_in_part(store, urgent)
            begun = time.monotonic()
            urge(store, 2)
            until(lambda: urgent.sop_instance in recorder.order, "it goes first", seconds=5)
            assert time.monotonic() - begun < 2.0
            until(lambda: urgent.sop_instance in recorder.by_uid(), "it is there", seconds=4)
            assert long.sop_instance not in recorder.by_uid()
            all_sent(store)
    assert recorder.total_requests == 2


def test_key_objects_of_a_study_go_before_its_images(store: Store) -> None:
    number = add_destination(store)
    study = made.new_uid()
    for kind in (made.CT, made.CT, "1.2.840.10008.5.1.4.1.1.88.59", made.CT):
        dataset = made.ct(study=study).dataset()
        dataset.SOPClassUID = kind
        take_in_part(store, made.instance(dataset))
    assert [one.id for one in claims.claim(store.db, number, 3)] == [3, 1, 2]


def test_what_is_less_urgent_is_never_starved(store: Store) -> None:
    number = add_destination(store)
    for _ in range(6):
        take_in(store)
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET priority = 5 WHERE id > 2")
        tx.run("UPDATE delivery SET priority = -5 WHERE id = 2")

    def granted(**wish: int) -> list[int]:
        found = claims.exchange(store.db, number, wishes=[Wish(most=1, **wish)])
        return [one.id for one in found[0]]

    assert granted() == [3]
    assert granted(oldest=True) == [1]
    assert granted(oldest=True, least=0) == [4]
    assert granted(oldest=True) == [2]
    assert claims.levels(store.db, number) == [5]


def test_a_clock_set_back_keeps_nothing_waiting(store: Store) -> None:
    number = add_destination(store)
    take_in(store)
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET next_ms = ?", wall_ms() + claims.FARTHEST_MS - 60_000)
    assert claims.claim(store.db, number, 1) == []
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET next_ms = ?", wall_ms() + 400 * 24 * 3600 * 1000)
    assert len(claims.claim(store.db, number, 1)) == 1


# --- what never gets through -------------------------------------------------------------------


def test_what_is_too_long_for_the_line_blocks_nothing_and_says_why(
    store: Store, recorder: RecordingSCP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "RETRY_FIRST_MS", 1000)
    monkeypatch.setattr(desks, "RETRY_MOST_MS", 1000)
    with Shaper(recorder.port, rate=2_000_000, round_trip=0.02) as line:
        set_up(store, recorder, line.port)
        long = made.ct(side=1000)  # 8 s of this line
        take_in_part(store, long)
        for _ in range(12):
            take_in_part(store, made.ct(side=100))
        line.cut_every(1.0, 20)
        with forwarding(store):
            until(lambda: states_of(store).count("sent") == 12, "the others", seconds=60)
            until(lambda: "unbroken line" in _error(store, 1), "it is said", seconds=30)
            tries = recorder.requests[long.sop_instance]
            take_in_part(store, made.ct(side=100))
            store.ring("forward")
            until(lambda: states_of(store).count("sent") == 13, "what comes later", seconds=10)
            until(lambda: recorder.requests[long.sop_instance] > tries, "another try", seconds=20)
            assert "needs about" in _error(store, 1)
            until(lambda: states_of(store)[0] == "sent", "in the end it is there", seconds=60)


def _error(store: Store, delivery: int) -> str:
    with store.db.read() as tx:
        row = tx.first("SELECT last_error FROM delivery WHERE id = ?", delivery)
    assert row is not None
    return str(row[0])


def test_only_one_of_them_is_tried_at_a_time_and_only_alone(store: Store) -> None:
    number = add_destination(store)
    for _ in range(3):
        take_in(store)
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET breaks = ? WHERE id != 2", claims.HARD)
    assert [one.id for one in claims.claim(store.db, number, 9)] == [2]
    assert [one.id for one in claims.claim(store.db, number, 9)] == [1]
    assert claims.claim(store.db, number, 9) == []


# --- how many ----------------------------------------------------------------------------------


def worked(width: Width, rate: Callable[[int], float], clock: list[float]) -> None:
    """One window of a line that carries `rate(lanes)` instances a second."""
    for _ in range(200):
        width.begin()
        seconds = 1 / rate(width.lanes)
        clock[0] += seconds
        width.end(1000, 0.7 * seconds, 0.3 * seconds)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda lanes: 10.0 * lanes, 4),
        (lambda lanes: 10.0 * min(lanes, 2), 2),
        (lambda _lanes: 10.0, 1),
    ],
)
def test_lanes_grow_as_long_as_that_makes_it_faster(
    monkeypatch: pytest.MonkeyPatch, rate: Callable[[int], float], expected: int
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(widths, "monotonic", lambda: clock[0])
    width = Width(0)
    assert width.lanes == 1
    worked(width, rate, clock)
    assert width.lanes == expected
    width.refused(1)
    worked(width, rate, clock)
    assert width.lanes == 1
    clock[0] += widths.REMEMBER_SECONDS
    worked(width, rate, clock)
    assert width.lanes == expected


def test_as_many_associations_as_a_person_has_set(store: Store, recorder: RecordingSCP) -> None:
    set_up(store, recorder, associations="3")
    recorder.behaviour.delay_seconds = 0.05
    for _ in range(60):
        take_in(store)
    with forwarding(store) as role:
        until(lambda: role._couriers, "a courier")
        courier = role._couriers[1]
        until(lambda: sum(lane.job.open for lane in courier._lanes) == 3, "three", seconds=5)
        all_sent(store)
    assert recorder.total_requests == 60


def test_a_peer_that_takes_one_association_at_a_time_gets_one(
    store: Store, recorder: RecordingSCP
) -> None:
    """The others are left unanswered, as by a storescp that does not fork."""
    set_up(store, recorder, associations="2")
    recorder.behaviour.delay_seconds = 0.05
    for _ in range(100):
        take_in(store)
    with forwarding(store) as role:
        recorder.wait_for(2)
        recorder.behaviour.reject = (2, 3, 2)
        courier = role._couriers[1]
        until(lambda: sum(lane.job.open for lane in courier._lanes) in (1, 2), "some", seconds=5)
        all_sent(store)
    assert recorder.total_requests == 100


# --- the whole role ----------------------------------------------------------------------------


def test_a_fault_of_the_disk_ends_the_role(
    store: Store, recorder: RecordingSCP, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(store, recorder)
    take_in(store)

    def failing(*_values: object, **_named: object) -> None:
        raise StorageFault("the device failed")

    monkeypatch.setattr(claims, "exchange", failing)
    with pytest.raises(StorageFault):
        Sender(store).run(threading.Event())


def test_a_courier_ends_with_its_destination_and_begins_anew_with_its_settings(
    store: Store, recorder: RecordingSCP
) -> None:
    set_up(store, recorder)
    with forwarding(store) as role:
        until(lambda: role._couriers, "a courier")
        first: Courier = role._couriers[1]
        with store.db.write() as tx:
            destinations.change(tx, "pacs", {"associations": "2"}, actor="eve")
        until(lambda: role._couriers.get(1) not in (None, first), "another one")
        assert first.join(0)
        with store.db.write() as tx:
            destinations.remove(tx, "pacs", actor="eve")
        until(lambda: not role._couriers and not role._leaving, "none")
