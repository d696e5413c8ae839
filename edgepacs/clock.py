"""Time, in the two kinds EdgePACS uses.

`wall_ms` is what records say: milliseconds since 1970-01-01 UTC. It may jump.
`monotonic` is what timers use: seconds from an arbitrary start, never backwards.
"""

import time
from datetime import UTC, datetime


def wall_ms() -> int:
    """Milliseconds since the epoch, UTC, from the system clock."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds from an arbitrary start; never runs backwards."""
    return time.monotonic()


def processor_ms() -> int:
    """Milliseconds this process has had of the processor, whoever else wanted it."""
    return time.process_time_ns() // 1_000_000


def iso(ms: int) -> str:
    """`ms` since the epoch as ISO 8601 in UTC with seconds, e.g. 2026-11-23T11:40:00Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
