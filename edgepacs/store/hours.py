"""Hours: when a line may be used, and when days and months end, in the local time of this machine.

Instants are seconds since 1970 UTC, as a wall clock says them: all answers follow the clock as it
is now, so that a clock that was set, or a change to summer time, needs no care elsewhere.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

DAY_MINUTES = 24 * 60
_MINUTE = 60
_LONGEST_SHUT = 3 * DAY_MINUTES  # minutes; hours repeat daily, and summer time may eat one turn
_SPAN = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")

Span = tuple[int, int]  # minutes of the local day, the second one excluded


@dataclass(frozen=True, slots=True)
class Hours:
    """The spans of the day in which a line may be used; none for always.

    They are in order, do not touch, and lie within one day: a span across midnight is two.
    """

    spans: tuple[Span, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Hours":
        """Out of a setting like '22:00-06:00,12:00-13:00'; '00:00-00:00' is the whole day."""
        found: list[Span] = []
        for match in _SPAN.finditer(text):
            first, last = _minute(*match.groups()[:2]), _minute(*match.groups()[2:])
            if first < last:
                found.append((first, last))
            else:
                found += [(0, last), (first, DAY_MINUTES)]
        return cls(_joined(found))

    def holds(self, instant: float) -> bool:
        """Whether the line may be used at `instant`."""
        if not self.spans:
            return True
        local = datetime.fromtimestamp(instant)  # noqa: DTZ006  local time is what hours are in
        minute = local.hour * 60 + local.minute
        return any(first <= minute < last for first, last in self.spans)

    def opening(self, instant: float) -> float:
        """The next instant at which the line may be used: `instant` itself where it may now.

        Found minute by minute, since only the calendar knows what summer time does to a day.
        """
        if self.holds(instant):
            return instant
        minute = instant // _MINUTE * _MINUTE
        later = (minute + _MINUTE * count for count in range(1, _LONGEST_SHUT))
        return next(filter(self.holds, later))

    def open_seconds(self, since: float) -> float:
        """Seconds from `since` (seconds of the local day) to midnight that are open."""
        return sum(max(0.0, last * 60 - max(since, first * 60)) for first, last in self._day)

    def after(self, since: float, seconds: float) -> float:
        """The second of the local day by which `seconds` of open time have passed since `since`."""
        for first, last in self._day:
            begin = max(since, first * 60)
            here = max(0.0, last * 60 - begin)
            if seconds <= here and last * 60 > since:
                return begin + seconds
            seconds -= here
        return DAY_MINUTES * 60.0

    @property
    def _day(self) -> tuple[Span, ...]:
        return self.spans or ((0, DAY_MINUTES),)


def _minute(hour: str, minute: str) -> int:
    return int(hour) * 60 + int(minute)


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    made: list[Span] = []
    for first, last in sorted(span for span in spans if span[0] < span[1]):
        if made and first <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], last))
        else:
            made.append((first, last))
    return tuple(made)


def day_of(instant: float) -> date:
    """The local date at `instant`."""
    return date.fromtimestamp(instant)  # noqa: DTZ012  local on purpose


def second_of_day(instant: float) -> float:
    """How late it is at `instant`, by the local clock: seconds since its midnight."""
    local = datetime.fromtimestamp(instant)  # noqa: DTZ006
    return local.hour * 3600 + local.minute * 60 + local.second + local.microsecond / 1e6


def midnight(day: date) -> float:
    """The instant at which the local `day` begins."""
    return datetime.combine(day, time()).timestamp()


def day_end(instant: float) -> float:
    """The next local midnight."""
    return midnight(day_of(instant) + timedelta(days=1))


def month_end(instant: float) -> float:
    """The next local midnight at which a month begins."""
    return midnight(next_month(day_of(instant)))


def next_month(day: date) -> date:
    """The first day of the month after the one `day` is in."""
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
