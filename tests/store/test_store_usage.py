import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store.making import add_destination, take_in

from edgepacs.model import LinkState, Origin
from edgepacs.store import Store, destinations, hours, usage
from edgepacs.store.deliveries import STAT
from edgepacs.store.destinations import Destination
from edgepacs.store.hours import Hours

MIB = usage.MIB
DAY = 86_400
NOON = datetime(2026, 11, 23, 12)  # noqa: DTZ001  local, as all times here

# Weeks with nothing special, and those in which summer time begins or ends.
_WEEKS = [
    ("UTC", "2026-11-23"),
    ("Europe/Berlin", "2026-03-26"),
    ("Europe/Berlin", "2026-10-22"),
    ("America/New_York", "2026-03-05"),
    ("Australia/Lord_Howe", "2026-04-02"),  # by half an hour
    ("Asia/Kathmandu", "2026-12-28"),
]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts this machine into a time zone."""

    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


_CLOCK = st.integers(0, 23 * 60 + 59)
_HOURS = st.lists(st.tuples(_CLOCK, _CLOCK), min_size=1, max_size=4)


def _text(spans: list[tuple[int, int]]) -> str:
    return ",".join(
        f"{first // 60:02}:{first % 60:02}-{last // 60:02}:{last % 60:02}" for first, last in spans
    )


def _open(spans: list[tuple[int, int]], instant: float) -> bool:
    """By the hands of a clock on the wall: from the first time on, until the second comes."""
    local = datetime.fromtimestamp(instant)  # noqa: DTZ006
    minute = local.hour * 60 + local.minute
    return any((minute - first) % 1440 < ((last - first) % 1440 or 1440) for first, last in spans)


@pytest.mark.parametrize(("name", "start"), _WEEKS)
def test_hours_hold_for_every_minute_of_a_week(
    zone: Callable[[str], None], name: str, start: str
) -> None:
    zone(name)
    first = int(datetime.fromisoformat(start).timestamp())

    @settings(max_examples=8, deadline=None)
    @given(spans=_HOURS)
    def every_minute(spans: list[tuple[int, int]]) -> None:
        found = Hours.read(_text(spans))
        minutes = range(first, first + 7 * DAY, 60)
        wanted = [_open(spans, minute) for minute in minutes]
        assert [found.holds(minute) for minute in minutes] == wanted
        following = None
        openings = {}
        for minute, is_open in zip(reversed(minutes), reversed(wanted), strict=True):
            following = minute if is_open else following
            openings[minute] = following
        for minute in minutes[: 5 * 1440 : 97]:
            assert found.opening(minute) == openings[minute]
            assert found.opening(minute + 59.5) in (openings[minute + 60], minute + 59.5)

    every_minute()


def test_no_hours_are_all_hours() -> None:
    assert Hours.read("").holds(0)
    assert Hours.read("00:00-00:00").spans == ((0, 1440),)
    assert Hours.read("22:00-06:00,05:00-07:00,07:00-08:00").spans == ((0, 480), (1320, 1440))


@given(spans=_HOURS, since=st.integers(0, DAY - 1), share=st.floats(0, 1))
def test_open_time_is_found_where_it_was_counted(
    spans: list[tuple[int, int]], since: int, share: float
) -> None:
    found = Hours.read(_text(spans))
    whole = found.open_seconds(since)
    wanted = share * whole
    until = found.after(since, wanted)
    assert since <= until <= DAY or not whole
    assert whole - found.open_seconds(until) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("name", "start"), _WEEKS)
def test_days_and_months_end_at_local_midnight(
    zone: Callable[[str], None], name: str, start: str
) -> None:
    zone(name)
    day = date.fromisoformat(start)
    for _ in range(70):
        begin = hours.midnight(day)
        for instant in (begin, begin + 11 * 3600 + 17, hours.midnight(day + timedelta(1)) - 1):
            assert hours.day_of(instant) == day
            assert hours.day_end(instant) == hours.midnight(day + timedelta(1))
            month = hours.day_of(hours.month_end(instant))
            assert (month.day, month.month) == (1, day.month % 12 + 1)
            assert hours.day_of(hours.month_end(instant) - 1).month == day.month
        assert hours.second_of_day(begin) == 0
        day += timedelta(days=1)


# -- usage


def _destination(store: Store, **settings_: object) -> Destination:
    add_destination(store)
    return _changed(store, **settings_)


def _changed(store: Store, **settings_: object) -> Destination:
    with store.db.write() as tx:
        said = {name: str(value) for name, value in settings_.items()}
        destinations.change(tx, "pacs", said, actor="test")
    return destinations.named(store.db, "pacs")


def test_usage_is_summed_by_day_and_month(store: Store) -> None:
    one = _destination(store).id
    for day, count in (("2027-01-31", 5), ("2027-02-01", 7), ("2027-02-28", 11)):
        usage.add(store.db, one, {date.fromisoformat(day): count})
    usage.add(store.db, one, {date(2027, 2, 28): 2, date(2027, 3, 1): 13})
    for day, wanted in (
        ("2027-01-31", usage.Used(day=5, month=5)),
        ("2027-02-01", usage.Used(day=7, month=20)),
        ("2027-02-14", usage.Used(day=0, month=20)),
        ("2027-02-28", usage.Used(day=13, month=20)),
        ("2027-03-01", usage.Used(day=13, month=13)),
        ("2028-02-28", usage.Used(day=0, month=0)),
    ):
        assert usage.used(store.db, one, date.fromisoformat(day)) == wanted
    assert [one.day for one in usage.days(store.db, one, 2)] == ["2027-03-01", "2027-02-28"]


def test_usage_is_kept_for_a_year(store: Store) -> None:
    one = _destination(store).id
    for number in range(410):
        usage.add(store.db, one, {date(2026, 1, 1) + timedelta(number): 1})
    kept = usage.days(store.db, one, 1000)
    assert (len(kept), kept[-1].day) == (400, "2026-01-11")


def test_a_destination_that_was_removed_is_forgotten(store: Store) -> None:
    one = _destination(store).id
    usage.add(store.db, one, {date(2026, 1, 1): 1}, 1000)
    usage.set_round_trip(store.db, one, 50)
    destinations.set_link(store.db, one, LinkState.DOWN, "gone")
    assert usage.measured(store.db, one) == usage.Measured(rate=1000, round_trip_ms=50)
    with store.db.write() as tx:
        destinations.remove(tx, "pacs", actor="test")
    usage.add(store.db, one, {date(2026, 1, 1): 1}, 1000)
    usage.set_round_trip(store.db, one, 50)
    destinations.set_link(store.db, one, LinkState.UP, "")
    assert usage.measured(store.db, one) == usage.Measured()
    assert usage.days(store.db, one) == []
    assert usage.changes(store.db, one) == []
    assert store.db.problems() == []


# -- forecasts


def _fill(store: Store, count: int, *, priority: int = 0, length: str = "1000") -> None:
    """Deliveries queued to `pacs`, of copies of one instance; `length` in SQL, of row n."""
    receipt = take_in(store, origin=Origin.PREFETCH)  # not routed
    with store.db.write() as tx:
        columns = [str(row[1]) for row in tx.rows("PRAGMA table_info(instance)") if row[1] != "id"]
        shown = [
            {"sop_instance_uid": "'2.25.' || random()", "byte_length": length}.get(name, name)
            for name in columns
        ]
        tx.run(
            f"WITH RECURSIVE row(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM row WHERE n < ?) "
            f"INSERT INTO instance ({', '.join(columns)}) "
            f"SELECT {', '.join(shown)} FROM instance, row WHERE instance.id = ?",
            count,
            receipt.instance_id,
        )
        tx.run(
            "INSERT INTO delivery (kind, subject, study, destination, state, priority, "
            "created_ms, changed_ms) SELECT 'instance', id, study, (SELECT id FROM destination "
            "WHERE name = 'pacs'), 'queued', ?, 0, 0 FROM instance WHERE id > ?",
            priority,
            receipt.instance_id,
        )


def _forecast(store: Store, one: Destination, at: datetime = NOON) -> tuple[usage.Forecast, float]:
    """The forecast, and in how many hours the queue will be empty; -1 for None."""
    found = usage.forecast(store.db, one, int(at.timestamp() * 1000))
    if found.empty_ms is None:
        return found, -1
    return found, (found.empty_ms / 1000 - at.timestamp()) / 3600


def test_nothing_waits(store: Store) -> None:
    found, _ = _forecast(store, _destination(store))
    assert (found.instances, found.words, found.empty_ms) == (0, "nothing waits", None)


def test_a_queue_empties_at_the_rate_of_the_line(store: Store) -> None:
    one = _destination(store)
    _fill(store, 36, length="1000000")
    found, _ = _forecast(store, one)
    assert (found.instances, found.bytes, found.empty_ms) == (36, 36_000_000, None)
    assert "its rate is not known" in found.words
    usage.add(store.db, one.id, {}, 10_000)
    assert _forecast(store, one)[1] == pytest.approx(1)
    assert _forecast(store, _changed(store, kbits=40))[1] == pytest.approx(2)
    assert _forecast(store, _changed(store, kbits=4000))[1] == pytest.approx(1)
    destinations.set_link(store.db, one.id, LinkState.DOWN, "")
    found, taken = _forecast(store, destinations.named(store.db, "pacs"))
    assert "counted from when it returns" in found.words
    assert taken == pytest.approx(1)


def test_a_cap_is_a_rate_until_one_is_measured(store: Store) -> None:
    one = _destination(store, kbits=80)
    _fill(store, 36, length="1000000")
    assert _forecast(store, one)[1] == pytest.approx(1)


def test_a_forecast_keeps_to_hours(store: Store) -> None:
    _destination(store, kbits=80)
    _fill(store, 36, length="1000000")  # an hour
    for said, taken in (
        ("12:30-13:30", 1.5),
        ("22:00-06:00", 11),
        ("23:30-00:30", 12.5),
        ("12:45-13:15", 25.25),
        ("11:30-12:15,20:00-20:15", 24),
    ):
        at = _forecast(store, _changed(store, hours=said))[1]
        assert at == pytest.approx(taken, abs=0.01), said


def test_a_forecast_keeps_to_quotas(store: Store) -> None:
    _destination(store, kbits=8000)
    _fill(store, 50, length=str(MIB))  # 52.4 s
    usage.add(store.db, 1, {NOON.date(): 10 * MIB})
    for settings_, begin in (
        ({"daily_mib": 60}, NOON),
        ({"daily_mib": 59}, datetime(2026, 11, 24)),  # noqa: DTZ001
        ({"daily_mib": 21}, datetime(2026, 11, 25)),  # noqa: DTZ001  11, 21, 18
        ({"daily_mib": 0, "monthly_mib": 59}, datetime(2026, 12, 1)),  # noqa: DTZ001
        ({"daily_mib": 0, "monthly_mib": 20}, datetime(2027, 1, 1)),  # noqa: DTZ001  10, 20, 20
        ({"daily_mib": 1}, datetime(2027, 2, 3)),  # noqa: DTZ001  7, 20, 20, 3
    ):
        taken = _forecast(store, _changed(store, **settings_))[1]
        days = (datetime.fromtimestamp(NOON.timestamp() + taken * 3600) - begin).total_seconds()  # noqa: DTZ006
        assert 0 <= days <= 60, settings_


def test_what_takes_more_than_a_year_is_said_to(store: Store) -> None:
    one = _destination(store, kbits=8, monthly_mib=1)
    _fill(store, 20, length=str(MIB))
    found, taken = _forecast(store, one)
    assert taken == -1
    assert found.words == "not within a year at this rate, with these hours and quotas"


def test_a_metered_line_never_takes_what_is_not_urgent_enough(store: Store) -> None:
    one = _destination(store, kbits=8000, least_priority=50)
    _fill(store, 3, priority=10)
    found, taken = _forecast(store, one)
    assert (found.instances, found.shut_out, found.bytes, taken) == (3, 3, 0, -1)
    assert found.words == "3 wait for another line: this one takes priority 50 and above"
    _fill(store, 2, priority=STAT, length="500000")
    found, taken = _forecast(store, _changed(store, least_priority=900))
    assert found.instances > 3
    assert taken > 0


def test_the_bytes_of_a_long_queue_are_estimated_well(store: Store) -> None:
    """Every tenth is large; instances of one destination may be every second one."""
    one = _destination(store, kbits=8000)
    _fill(store, 20_000, length="CASE n % 10 WHEN 0 THEN 5000000 ELSE 100000 END")
    with store.db.write() as tx:
        tx.run("DELETE FROM delivery WHERE id % 2 = 1")
    with store.db.read() as tx:
        wanted = tx.number(
            "SELECT SUM(byte_length) FROM delivery JOIN instance ON instance.id = subject"
        )
    found = usage.forecast(store.db, one)
    assert found.instances == pytest.approx(10_000, abs=2)
    assert found.bytes == pytest.approx(wanted, rel=0.2)
