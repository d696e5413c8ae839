"""Retention: keeping room, by deleting what has provably arrived everywhere it was to go.

It looks at the disk every few seconds and at the rows every few minutes, and works only above
the high watermark: a study at a time, with a pause after each, and not while modalities are
sending and the processor is short.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

from edgepacs.clock import monotonic
from edgepacs.errors import EdgePacsError, StorageFault
from edgepacs.store import Store, evictions, room
from edgepacs.store.room import Disk, Survey, Watermarks
from edgepacs.telemetry import log
from edgepacs.upkeep.pace import Pace

_LOOK_SECONDS = 5.0
_SURVEY_SECONDS = 60.0
_SURVEY_SHARE = 50  # a survey takes at most this part of the time
_NOTE_SECONDS = 3600.0  # an unchanged survey is noted once in that time: flash wears out
_PAUSE_SECONDS = 0.05
_CROWDED_SECONDS = 10.0  # most a study waits for the processor


class Retention:
    """Keeps room on one node; `measure` says how full its disk is."""

    def __init__(self, store: Store, measure: Callable[[Store], Disk] = room.disk) -> None:
        self._store = store
        self._measure = measure
        self._pace = Pace(store.db)
        self._survey_at = 0.0
        self._note_at = 0.0
        self._last: tuple[Survey, str] | None = None  # with the alarm it gave

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; raises StorageFault."""
        while True:
            try:
                self.turn(stop)
            except StorageFault:
                raise
            except EdgePacsError as error:
                log.warning("no room made: %s: %s", type(error).__name__, error)
            if stop.wait(_LOOK_SECONDS):
                return

    def turn(self, stop: threading.Event) -> int:
        """One look, and what it leads to; how many bytes were deleted."""
        if monotonic() >= self._survey_at:
            self._survey()
        there = self._measure(self._store)
        marks = Watermarks.of(self._store.config, there.total)
        if there.free >= marks.begin:
            return 0
        freed = self._make_room(marks, stop)
        if freed:
            log.info("%d bytes deleted that have arrived elsewhere", freed)
            self._survey()
        return freed

    def _make_room(self, marks: Watermarks, stop: threading.Event) -> int:
        freed, keep_ms = 0, room.keep_ms(self._store.config)
        for study in evictions.oldest(self._store.db, keep_ms):
            if stop.is_set() or self._measure(self._store).free >= marks.until:
                break
            self._give_way(stop)
            freed += evictions.evict(self._store, study, keep_ms=keep_ms, actor="upkeep")
        return freed

    def _give_way(self, stop: threading.Event) -> None:
        """Nobody waits for this; but it does not wait for ever either."""
        until = monotonic() + _CROWDED_SECONDS
        stop.wait(_PAUSE_SECONDS)
        while self._pace.crowded() and monotonic() < until and not stop.is_set():
            stop.wait(_PAUSE_SECONDS)

    def _survey(self) -> None:
        began = monotonic()
        found = room.survey(self._store)
        alarm = room.room(self._store, found, self._measure(self._store)).alarm
        now = monotonic()
        self._survey_at = now + max(_SURVEY_SECONDS, _SURVEY_SHARE * (now - began))
        before, self._last = self._last, (found, alarm)
        if now < self._note_at and before is not None and _alike(before, self._last):
            return
        self._note_at = now + _NOTE_SECONDS
        with self._store.db.write() as tx:
            room.note(tx, found, alarm)


def _alike(a: tuple[Survey, str], b: tuple[Survey, str]) -> bool:
    return a[1] == b[1] and replace(a[0], measured_ms=0) == replace(b[0], measured_ms=0)
