"""Pace: how much of the processor workers may take, and when they have to stand still.

Everything is read from Linux's /proc. Time that the kernel books as nice is the workers' own and
counts as free: they give way to everybody anyway.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from edgepacs.clock import monotonic
from edgepacs.store import instances
from edgepacs.store.db import Database

ARRIVING_SECONDS = 3.0  # after the last instance modalities count as sending
_LOOK_SECONDS = 0.1
_STALE_SECONDS = 1.0  # over so long the mean says nothing of what has just begun
_SPARE_CORES = 1.75  # that nobody else wants: one to work on, and most of another for who sends
_SPARE_SHARE = 0.85  # of a box that has fewer
_BURST_SECONDS = 0.2  # of processor time that may be saved up
_TICKS = os.sysconf("SC_CLK_TCK")
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process does: its state as of proc(5), and seconds of processor time so far."""

    state: str
    seconds: float

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """The usage of a child that has not been waited for."""
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return cls(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS)


class Pace:
    """Whether there is room for work nobody waits for, while modalities are sending."""

    def __init__(self, db: Database, cores: int | None = None) -> None:
        self._db = db
        self._cores = cores or os.cpu_count() or 1
        self._newest = instances.newest(db)
        self._arrived = -ARRIVING_SECONDS
        self._looked = monotonic()
        self._times = _processor_times()
        self._crowded = False

    def crowded(self) -> bool:
        """Whether instances are arriving and there is no core to spare for anybody else.

        Who sends is held up by little more than the processor: by the disk, which workers write to
        as well, and by what they take of the caches. So a small box has to be all but idle.
        """
        now = monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            is_stale, self._looked = now - self._looked >= _STALE_SECONDS, now
            free = self._free_cores()
            self._crowded = self._is_arriving(now) and (is_stale or free < _spare(self._cores))
        return self._crowded

    def _is_arriving(self, now: float) -> bool:
        newest = instances.newest(self._db)
        if newest != self._newest:
            self._newest, self._arrived = newest, now
        return now - self._arrived < ARRIVING_SECONDS

    def _free_cores(self) -> float:
        """Cores that were idle or had nothing but nice work since the last look."""
        before, self._times = self._times, _processor_times()
        free, whole = (now - then for now, then in zip(self._times, before, strict=True))
        return self._cores * free / whole if whole else float(self._cores)


def _spare(cores: int) -> float:
    """How many cores have to be free for workers to run while modalities are sending."""
    return min(_SPARE_CORES, _SPARE_SHARE * cores)


def _processor_times() -> tuple[int, int]:
    """Ticks of all cores that were free (nice, idle, waiting for a disk), and all ticks."""
    _, _user, nice, _system, idle, waiting, *_ = (
        first := _STAT.read_text("ascii").split("\n")[0].split()
    )
    return int(nice) + int(idle) + int(waiting), sum(map(int, first[1:9]))


class Allowance:
    """The processor time one worker may take: a share of a core, with a little saved up."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._credit = _BURST_SECONDS
        self._seen: tuple[float, float] | None = None

    def holds(self, used: float, now: float) -> bool:
        """Whether a worker that has used `used` seconds altogether at `now` may go on."""
        if self._share >= 1:
            return True
        if self._seen is not None:
            spent, passed = used - self._seen[0], now - self._seen[1]
            self._credit = min(_BURST_SECONDS, self._credit + self._share * passed) - spent
        self._seen = (used, now)
        return self._credit > 0
