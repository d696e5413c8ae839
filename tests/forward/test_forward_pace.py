import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.making import add_destination

from edgepacs.errors import StorageFault
from edgepacs.forward import pace as module
from edgepacs.forward.pace import Bucket, Closed, Meter, Pace
from edgepacs.store import Store, destinations, usage
from edgepacs.store.deliveries import STAT
from edgepacs.store.destinations import Destination

MIB = usage.MIB


@pytest.fixture
def paced(store: Store) -> Callable[..., Pace]:
    """A Pace for a new destination with these settings."""
    serial = itertools.count()

    def make(**settings: object) -> Pace:
        return Pace(store, _destination(store, f"pacs{next(serial)}", **settings))

    return make


def _destination(store: Store, name: str, **settings: object) -> Destination:
    add_destination(store, name)
    with store.db.write() as tx:
        said = {setting: str(value) for setting, value in settings.items()}
        destinations.change(tx, name, said, actor="test")
    return destinations.named(store.db, name)


class Clock:
    """The wall clock of the modules under test, in local time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at("2026-11-23 12:00")
        monkeypatch.setattr(module, "wall_ms", lambda: self.ms)

    def at(self, text: str) -> None:
        self.ms = int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _carry(pace: Pace, size: int, priority: int = 0) -> bytes:
    return b"".join(pace.carry([bytes(size)], priority))


# -- the bucket


_STEPS = st.lists(
    st.tuples(st.floats(0, 3, allow_nan=False), st.floats(0, 1)), min_size=1, max_size=60
)


@given(rate=st.floats(1, 1e6), burst_seconds=st.floats(0.01, 2), steps=_STEPS)
def test_a_bucket_lets_no_more_through_than_its_rate_and_burst(
    rate: float, burst_seconds: float, steps: list[tuple[float, float]]
) -> None:
    burst = rate * burst_seconds
    bucket = Bucket(rate, burst, 0.0)
    now, left = 0.0, []
    for pause, share in steps:
        now += pause
        left.append((now + bucket.take(share * burst, now), share * burst))  # type: ignore[arg-type]
    assert all(second[0] - first[0] > -1e-6 for first, second in itertools.pairwise(left))
    for first in range(len(left)):
        total = 0.0
        for at, count in left[first:]:
            total += count
            assert total <= (burst + rate * (at - left[first][0])) * (1 + 1e-6) + 1e-6


@given(rate=st.floats(1, 1e6), shares=st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_a_bucket_that_is_always_asked_gives_all_of_its_rate(
    rate: float, shares: list[float]
) -> None:
    bucket = Bucket(rate, rate, 5.0)
    total = sum(share * rate for share in shares)
    waits = [bucket.take(share * rate, 5.0) for share in shares]  # type: ignore[arg-type]
    assert waits[-1] == pytest.approx(total / rate, abs=1e-6)


def test_a_bucket_bears_a_clock_that_stands_still_or_goes_back() -> None:
    bucket = Bucket(100, 10, 50.0)
    assert bucket.take(10, 49.0) == pytest.approx(0.1)
    assert bucket.take(0, 40.0) == pytest.approx(0.1)
    assert bucket.take(0, 50.1) == pytest.approx(0)


# -- the rate


def test_the_rate_is_that_of_sending_alone() -> None:
    meter = Meter(0, 0.0)
    assert meter.rate == 0
    for start in range(0, 1000, 100):  # a second of sending, then 99 of nothing
        meter.note(0, float(start))
        meter.sending += 1
        for tenth in range(1, 11):
            meter.note(1000, start + tenth / 10)
        meter.sending -= 1
        assert not start or meter.rate == pytest.approx(10_000)


def test_the_rate_follows_the_line_within_minutes() -> None:
    meter = Meter(1_000_000, 0.0)
    assert meter.rate == pytest.approx(1_000_000)
    meter.sending += 1
    for second in range(1, 121):
        meter.note(5000, float(second))
    assert 5000 <= meter.rate < 10_000


# -- carrying


def test_what_is_carried_is_the_same_bytes_and_is_counted(
    store: Store, paced: Callable[..., Pace]
) -> None:
    pace = paced()
    pieces = [bytes([n]) * size for n, size in enumerate((0, 1, 7, 300_000, 1_000_000))]
    carried = list(pace.carry([*pieces, memoryview(b"end")], 0))
    assert b"".join(carried) == b"".join(pieces) + b"end"
    assert max(map(len, carried)) <= 262_144
    assert usage.days(store.db, pace.destination.id) == []
    pace.flush()
    pace.flush()
    (day,) = usage.days(store.db, pace.destination.id)
    assert day.bytes == 1_300_011
    assert day.day == datetime.now().astimezone().date().isoformat()


def test_usage_that_cannot_be_written_is_counted_on(
    store: Store, paced: Callable[..., Pace]
) -> None:
    pace = paced(daily_mib=1)
    _carry(pace, MIB)
    assert pace.closed_for(0) is not None
    store.db._fault = StorageFault("the device failed")
    pace.flush()
    assert pace.closed_for(0) is not None
    store.db._fault = None
    _carry(pace, 5)
    pace.flush()
    assert [one.bytes for one in usage.days(store.db, pace.destination.id)] == [MIB + 5]


@pytest.mark.parametrize("size", [1, 100_000])
def test_an_abandoned_instance_leaves_no_trace(paced: Callable[..., Pace], size: int) -> None:
    pace = paced()
    pieces = pace.carry([bytes(size)], STAT)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert (pace._meter.sending, pace._urgent_lanes) == (0, 0)


def _through_a_socket(pieces: Iterator[memoryview]) -> float:
    """Seconds until everything has arrived at the other end of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        arrived = []

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(65_536):
                    pass
            arrived.append(time.monotonic())

        thread = threading.Thread(target=receive)
        thread.start()
        begun = time.monotonic()
        with socket.create_connection(server.getsockname()) as sock:
            for piece in pieces:
                sock.sendall(piece)
        thread.join(30)
    return arrived[0] - begun


def test_a_capped_transfer_takes_the_time_of_its_cap(paced: Callable[..., Pace]) -> None:
    pace = paced(kbits=2000)
    taken = _through_a_socket(pace.carry([bytes(500_000)], 0))
    assert taken == pytest.approx(2.0, rel=0.1)
    assert pace.rate == pytest.approx(250_000, rel=0.1)


def test_all_lanes_share_one_cap(paced: Callable[..., Pace]) -> None:
    pace = paced(kbits=2000)
    begun = time.monotonic()
    lanes = [threading.Thread(target=_carry, args=(pace, 100_000)) for _ in range(4)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join(30)
    assert time.monotonic() - begun == pytest.approx(1.6, rel=0.1)


def test_urgent_traffic_goes_first_and_the_others_get_a_trickle(
    paced: Callable[..., Pace],
) -> None:
    pace = paced(kbits=800)  # 100,000 bytes a second
    moved = 0
    go_on = threading.Event()
    go_on.set()

    def patient() -> None:
        nonlocal moved
        for piece in pace.carry(itertools.repeat(bytes(1000)), 0):
            moved += len(piece)
            if not go_on.is_set():
                return

    lane = threading.Thread(target=patient)
    lane.start()
    time.sleep(0.3)
    before, begun = moved, time.monotonic()
    assert before > 10_000
    assert len(_carry(pace, 150_000, STAT)) == 150_000
    taken, gone_by = time.monotonic() - begun, moved - before
    go_on.clear()
    lane.join(10)
    assert taken == pytest.approx(1.6, rel=0.15)
    assert 2500 <= gone_by <= 0.15 * 150_000


def test_on_a_slow_line_little_is_gathered_before_it_is_written(
    paced: Callable[..., Pace],
) -> None:
    assert paced(kbits=384).write_bytes == 12_000
    assert paced(kbits=8).write_bytes == 4096
    assert paced(kbits=1_000_000).write_bytes == 131_072
    assert paced().write_bytes == 65_536


def test_the_rate_is_remembered(store: Store, paced: Callable[..., Pace]) -> None:
    pace = paced(kbits=1000)
    with pace.sending():
        _carry(pace, 150_000)
    pace.flush()
    again = Pace(store, pace.destination)
    assert again.rate == pytest.approx(125_000, rel=0.15)


# -- closed


def test_hours_keep_back_all_but_stat(paced: Callable[..., Pace], clock: Clock) -> None:
    pace = paced(hours="22:00-06:00,12:00-13:00")
    clock.at("2026-11-23 12:59:59")
    assert pace.closed_for(0) is None
    clock.at("2026-11-23 13:00")
    closed = pace.closed_for(0)
    assert closed == Closed(
        60.0,
        "outside its hours (22:00-06:00,12:00-13:00): waits until 22:00",
        int(datetime(2026, 11, 23, 22).timestamp() * 1000),  # noqa: DTZ001
    )
    assert pace.closed_for(STAT) is None
    clock.at("2026-11-23 21:59:50")
    assert pace.closed_for(STAT - 1) == replace(closed, seconds=10.0)
    clock.at("2026-11-24 05:59")
    assert pace.closed_for(0) is None


def test_hours_follow_a_clock_that_is_set(paced: Callable[..., Pace], clock: Clock) -> None:
    pace = paced(hours="22:00-06:00")
    for date in ("2026-11-23", "1970-01-02", "2037-12-31", "2026-11-23"):
        clock.at(f"{date} 12:00")
        closed = pace.closed_for(0)
        assert closed is not None
        assert closed.until_ms == clock.ms + 10 * 3_600_000
        clock.at(f"{date} 23:00")
        assert pace.closed_for(0) is None


def test_a_metered_line_takes_what_is_urgent_enough(paced: Callable[..., Pace]) -> None:
    pace = paced(least_priority=50)
    closed = pace.closed_for(49)
    assert closed is not None
    assert closed.until_ms is None
    assert "priority 50 and above" in closed.words
    assert pace.closed_for(50) is None
    assert paced(least_priority=500).closed_for(STAT) is None


def test_a_daily_quota_ends_at_midnight(paced: Callable[..., Pace], clock: Clock) -> None:
    clock.at("2026-11-30 23:59:30")
    pace = paced(daily_mib=2)
    _carry(pace, 2 * MIB - 1)
    assert pace.closed_for(0) is None
    _carry(pace, 1)
    closed = pace.closed_for(0)
    assert closed is not None
    assert closed.seconds == 30
    assert closed.words == "the daily quota of 2 MiB is used up: waits until 2026-12-01 00:00"
    assert pace.closed_for(STAT) == closed
    pace.flush()
    assert pace.closed_for(0) == closed
    clock.at("2026-12-01 00:00:00")
    assert pace.closed_for(0) is None


def test_a_monthly_quota_ends_with_the_month(
    store: Store, paced: Callable[..., Pace], clock: Clock
) -> None:
    pace = paced(monthly_mib=3, daily_mib=2)
    for day in ("2027-02-01", "2027-02-28"):
        clock.at(f"{day} 10:00")
        pace._dated = 0  # it looks at the date once a second
        assert pace.closed_for(0) is None
        _carry(pace, 3 * MIB // 2)
        pace.flush()
    closed = pace.closed_for(0)
    assert closed is not None
    assert closed.words == "the monthly quota of 3 MiB is used up: waits until 2027-03-01 00:00"
    assert Pace(store, pace.destination).closed_for(0) == closed  # also after a restart
    clock.at("2027-03-01 00:00")
    assert pace.closed_for(0) is None
    clock.at("2027-02-28 23:00")  # set back
    assert pace.closed_for(0) is not None


def test_stat_passes_a_quota_only_as_far_as_a_setting_says(
    paced: Callable[..., Pace],
) -> None:
    pace = paced(daily_mib=1, monthly_mib=1, stat_mib=1)
    _carry(pace, MIB)
    assert pace.closed_for(STAT - 1) is not None
    assert pace.closed_for(STAT) is None
    _carry(pace, MIB, STAT)
    assert pace.closed_for(STAT) is not None


def test_settings_take_effect_at_once(paced: Callable[..., Pace], clock: Clock) -> None:
    pace = paced(hours="22:00-06:00")
    assert pace.closed_for(0) is not None
    pace.adopt(replace(pace.destination, hours="11:00-13:00", kbits=80))
    assert pace.closed_for(0) is None
    begun = time.monotonic()
    _carry(pace, 5000)
    assert time.monotonic() - begun == pytest.approx(0.5, rel=0.2)
