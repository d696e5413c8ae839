"""Incidents: what peers do wrong, recorded within bounds.

Whoever reaches a port can make incidents at will, so neither the audit trail nor the disk's time
may grow with their number. What is new is recorded at once; what goes on is counted and recorded
once a period; what is too varied to be told apart is counted by host. All that comes within a
second shares one transaction.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgepacs.clock import monotonic, wall_ms
from edgepacs.errors import EdgePacsError, StorageFault
from edgepacs.store import audit, peers
from edgepacs.store.db import Database, Transaction
from edgepacs.store.peers import RefusedAE
from edgepacs.telemetry import log

PERIOD_SECONDS = 3600.0
KINDS_OF_A_HOST = 8  # told apart within a period
HOSTS = 16  # told apart within a period
_PAUSE_SECONDS = 1.0
_AFTER_FAILURE = 60  # pauses, lest a full disk is asked again and again
_WAITING_MAX = 1000  # as many as the list of refused callers keeps
_DETAIL_MAX = 200  # characters
_SEVERAL = "several hosts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One kind of thing that went wrong with a peer; equal ones are counted together.

    `actor` is an AE title as received, of any characters, or "". Where `called_ae` is set, the
    actor was refused for who it is, and is listed so that one command can let it in.
    """

    act: str
    host: str
    actor: str = ""
    detail: str = ""
    called_ae: str = ""


@dataclass(slots=True)
class _Tally:
    """How often an incident has been since it was recorded last, at `since` (monotonic)."""

    since: float
    count: int = 0


_Counts = dict[Incident, int]


class Incidents:
    """Counts the incidents one process sees; `on_fault` is told when the storage device fails."""

    def __init__(
        self,
        db: Database,
        on_fault: Callable[[StorageFault], None],
        *,
        period: float = PERIOD_SECONDS,
        pause: float = _PAUSE_SECONDS,
    ) -> None:
        self._db = db
        self._on_fault = on_fault
        self._period = period
        self._pause = pause
        self._changed = threading.Condition()
        self._waiting: _Counts = {}
        self._tallies: dict[Incident, _Tally] = {}
        self._next = 0.0  # no transaction before that (monotonic)
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def note(self, incident: Incident) -> None:
        """Count one incident. It is in the trail on return where none came the second before.

        Raises nothing: what went wrong with a peer has been answered already.
        """
        with self._changed:
            if self._closed:
                return
            if len(self._waiting) >= _WAITING_MAX and incident not in self._waiting:
                incident = _others(_SEVERAL)
            self._waiting[incident] = self._waiting.get(incident, 0) + 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            if monotonic() < self._next:
                self._changed.notify()
                return
            self._next = monotonic() + self._pause
        self._write(monotonic())

    def close(self) -> None:
        """Record whatever has been counted."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._write(float("inf"))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (delay := self._delay()) != 0:
                    self._changed.wait(delay)
                if self._closed:
                    return
                self._next = monotonic() + self._pause
            self._write(monotonic())

    def _delay(self) -> float | None:
        """Seconds until something is to be written; None where nothing is."""
        due = [one.since + self._period for one in self._tallies.values() if one.count]
        if self._waiting:
            due.append(self._next)
        return max(0.0, max(self._next, min(due)) - monotonic()) if due else None

    def _write(self, now: float) -> None:
        """Record what is due at `now`; what cannot be written is counted on."""
        with self._writing:
            with self._changed:
                waiting, self._waiting = self._waiting, {}
                due = self._due(waiting, now)
            if not waiting and not due:
                return
            try:
                with self._db.write() as tx:
                    if refused := _refused(waiting):
                        peers.note_refused(tx, refused)
                    for incident, count in due.items():
                        _record(tx, incident, count)
            except EdgePacsError as error:
                log.warning("incidents not recorded: %s: %s", type(error).__name__, error)
                self._give_back(due)
                if isinstance(error, StorageFault):
                    self._on_fault(error)

    def _due(self, waiting: _Counts, now: float) -> _Counts:
        """What is to be recorded: what is new, and what went on for a period."""
        due: _Counts = {}
        for incident, count in waiting.items():
            told = self._told_apart(incident)
            if told in self._tallies:
                self._tallies[told].count += count
            else:
                self._tallies[told] = _Tally(now)
                due[told] = count
        for incident, tally in list(self._tallies.items()):
            if now - tally.since >= self._period:
                if tally.count:
                    due[incident] = tally.count
                    self._tallies[incident] = _Tally(now)
                else:
                    del self._tallies[incident]
        return due

    def _told_apart(self, incident: Incident) -> Incident:
        """`incident` itself, or the one that stands for all others of its host, or of all."""
        if incident in self._tallies:
            return incident
        hosts = [one.host for one in self._tallies]
        if incident.host not in hosts and len(set(hosts)) >= HOSTS:
            return _others(_SEVERAL)
        return incident if hosts.count(incident.host) < KINDS_OF_A_HOST else _others(incident.host)

    def _give_back(self, due: _Counts) -> None:
        with self._changed:
            for incident, count in due.items():
                self._tallies[incident].count += count
                self._tallies[incident].since -= self._period
            self._next = monotonic() + _AFTER_FAILURE * self._pause


def _others(host: str) -> Incident:
    return Incident(act="other incidents", host=host)


def _refused(counts: _Counts) -> list[RefusedAE]:
    now = wall_ms()
    return [
        RefusedAE(
            calling_ae=incident.actor,
            called_ae=incident.called_ae,
            host=incident.host,
            reason=incident.detail,
            times=count,
            first_ms=now,
            last_ms=now,
        )
        for incident, count in counts.items()
        if incident.called_ae
    ]


def _record(tx: Transaction, incident: Incident, count: int) -> None:
    detail = f"{incident.detail[:_DETAIL_MAX]}, from {incident.host}".removeprefix(", ")
    audit.record(
        tx,
        actor=incident.actor or incident.host,
        act=incident.act,
        kind="association",
        subject=None,
        detail=detail if count == 1 else f"{detail}, {count} times",
    )
