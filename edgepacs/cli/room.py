"""Room: the space there is, what may go, and when it will be full."""

from edgepacs.cli.session import Session, cli, command
from edgepacs.store import room as space
from edgepacs.store.room import Room


@command(cli, "room")
def room(session: Session) -> None:
    """Say how much room there is, what may be deleted here and why the rest may not."""
    with session.store() as store:
        found = space.room(store, space.survey(store))
    session.say(_data(found), "\n".join(_lines(found)))


def _data(found: Room) -> dict[str, object]:
    days = found.days_to_full
    return {
        "total_bytes": found.disk.total,
        "free_bytes": found.disk.free,
        "used_percent": round(found.disk.used_percent, 1),
        "reserve_bytes": found.reserve,
        "evict_below_bytes": found.watermarks.begin,
        "evict_until_bytes": found.watermarks.until,
        "evictable_bytes": found.survey.evictable,
        "blocked_bytes": {str(why): size for why, size in found.survey.blocked.items()},
        "daily_bytes": found.survey.daily,
        "days_to_full": None if days is None else round(days, 1),
        "alarm": found.alarm,
    }


def _lines(found: Room) -> list[str]:
    days, marks = found.days_to_full, found.watermarks
    free = f"{_mib(found.disk.free)} free of {_mib(found.disk.total)}"
    begin = f"below {_mib(marks.begin)} until {_mib(marks.until)} are free"
    return [
        f"{free}; below {_mib(found.reserve)} nothing is taken in",
        f"what may go is deleted {begin}" if marks.begin else "nothing is ever deleted here",
        f"{_mib(found.survey.evictable)} may go",
        *(
            f"{_mib(size)} stay: {why.meaning}"
            for why, size in sorted(found.survey.blocked.items())
        ),
        f"{_mib(found.survey.daily)} arrive in a day",
        "full: nothing arrives" if days is None else f"full in {days:.1f} days",
        *filter(None, [found.alarm]),
    ]


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
