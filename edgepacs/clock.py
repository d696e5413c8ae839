"""Time, in the two kinds EdgePACS uses.

`wall_ms` is what records say: milliseconds since 1970-01-01 UTC. It may jump.
`monotonic` is what timers use: seconds from an arbitrary start, never backwards.

Tests let months pass: where the environment names a file in EDGEPACS_CLOCK, it holds the seconds
both clocks are ahead, the wall's first. Waits in the kernel still last as long as they do.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

_AHEAD = os.environ.get("EDGEPACS_CLOCK", "")


def _ahead(which: int) -> float:
    return float(Path(_AHEAD).read_text("ascii").split()[which])


_JUMP_MS = 2000


def wall_ms() -> int:
    """Milliseconds since the epoch, UTC, from the system clock."""
    now = time.time_ns() // 1_000_000
    return now + int(1000 * _ahead(0)) if _AHEAD else now


def monotonic() -> float:
    """Seconds from an arbitrary start; never runs backwards."""
    now = time.monotonic()
    return now + _ahead(1) if _AHEAD else now


def processor_ms() -> int:
    """Milliseconds this process has had of the processor, whoever else wanted it."""
    return time.process_time_ns() // 1_000_000


class Jumps:
    """Tells when the wall clock was set, by comparing its advance with the monotonic clock's.

    A machine that slept counts as one whose clock was set ahead.
    """

    def __init__(self) -> None:
        self._offset = wall_ms() - round(monotonic() * 1000)

    def since_last(self) -> int:
        """Milliseconds it was set ahead since the last call, below zero for back.

        0 where that is less than two seconds: a clock that is steered is no clock that was set.
        """
        offset = wall_ms() - round(monotonic() * 1000)
        jumped = offset - self._offset
        if abs(jumped) < _JUMP_MS:
            return 0
        self._offset = offset
        return jumped


def iso(ms: int) -> str:
    """`ms` since the epoch as ISO 8601 in UTC with seconds, e.g. 2026-11-23T11:40:00Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
