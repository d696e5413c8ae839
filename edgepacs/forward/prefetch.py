"""Prefetch: priors of the patients that are being examined, before anybody asks for them.

The least urgent use of a line there is. A task runs only while its line is up, open and has
nothing to send, and while there is room; whatever is to be sent interrupts it between two
instances, STAT and a person at once. One destination, one task at a time.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgepacs.clock import monotonic
from edgepacs.errors import (
    Busy,
    Conflict,
    EdgePacsError,
    LimitExceeded,
    PeerError,
    PeerRefused,
    PeerUnreachable,
    StorageFault,
)
from edgepacs.forward import priors, retrieval
from edgepacs.forward.courier import Courier
from edgepacs.forward.priors import Haul, Match
from edgepacs.model import PrefetchState, PriorsBy
from edgepacs.store import Store, claims, prefetches, room
from edgepacs.store.deliveries import PRIORITIES, STAT
from edgepacs.store.room import Watermarks
from edgepacs.telemetry import log, place_of

PRIORITY = PRIORITIES.start  # as hours, quotas and metering see it
LOOK_SECONDS = 2.0  # how often it is looked for new patients and for a quiet line
_SENDING = "there is something to send"
Fetch = Callable[[Haul], Sequence[Match]]


@dataclass(frozen=True, slots=True)
class _Ending:
    """How an attempt ended; `at_once`: it was interrupted, and counts for nothing."""

    state: PrefetchState
    words: str
    at_once: bool = False


def fetching(way: PriorsBy) -> Fetch:
    """How priors are fetched that way."""
    if way is PriorsBy.WEB:
        from edgepacs.forward import wado  # noqa: PLC0415  only who fetches by HTTPS loads it

        return wado.fetch
    return retrieval.fetch


class Prefetcher:
    """Makes tasks of new studies and has them done when the lines are quiet; for one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[int, Run] = {}
        self._look_at = 0.0  # monotonic

    def recover(self) -> None:
        """After a start: what a crash has left under way waits again."""
        try:
            prefetches.recover(self._store.db)
        except EdgePacsError as error:
            log.warning("prefetch: %s", error)

    def round(self, couriers: Mapping[int, Courier]) -> None:
        """Look for new patients, and begin what can be done now; raises EdgePacsError."""
        if monotonic() < self._look_at:
            return
        self._look_at = monotonic() + LOOK_SECONDS
        prefetches.look(self._store.db)
        for number in [number for number, run in self._runs.items() if run.over]:
            del self._runs[number]
        for number, courier in couriers.items():
            if number not in self._runs and courier.destination.priors is not PriorsBy.NONE:
                self._begin(number, courier)

    def _begin(self, number: int, courier: Courier) -> None:
        due = prefetches.due(self._store.db, number)
        if due is None or not courier.resting or courier.gear.link.wait() > 0:
            return
        if not obstacle(self._store, courier):
            self._runs[number] = Run(self._store, courier, due)

    def end(self) -> None:
        """Interrupt what is under way."""
        for run in self._runs.values():
            run.stop()

    def join(self, seconds: float) -> None:
        """Wait up to `seconds` for its end."""
        deadline = monotonic() + seconds
        for run in self._runs.values():
            run.join(max(0.0, deadline - monotonic()))


def obstacle(store: Store, courier: Courier) -> str:
    """Why nothing may be fetched over a line now; '' where it may."""
    pace = courier.gear.pace
    due = claims.due(store.db, courier.destination.id)
    if not courier.resting or (due is not None and pace.closed_for(due.most) is None):
        return _SENDING
    closed = pace.closed_for(PRIORITY)
    if closed is not None:
        return closed.words
    return "" if _roomy(store) else "there is no room for what is not needed"


def _roomy(store: Store) -> bool:
    """Whether the disk is below the high watermark, and well above the reserve."""
    there = room.disk(store)
    reserve = store.config.node.reserve_mib << 20
    return there.free >= max(Watermarks.of(store.config, there.total).begin, 2 * reserve)


class Run:
    """One attempt at one task, in a thread of its own; `over` when it has ended."""

    def __init__(self, store: Store, courier: Courier, number: int) -> None:
        self._store = store
        self._courier = courier
        self._number = number
        self._stop = threading.Event()
        self.over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Interrupt it."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait up to `seconds` for its end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._attempt()
        except Conflict:  # cancelled by a person before it began
            pass
        except StorageFault as fault:
            self._store.vault.condemn(fault)
        except EdgePacsError as error:
            log.warning("prefetch %d: %s", self._number, error)
        finally:
            self.over = True

    def _attempt(self) -> None:
        task = prefetches.begin(self._store.db, self._number)
        gear = self._courier.gear
        haul = Haul(
            self._store,
            self._courier.destination,
            task,
            gear.pace,
            self._yields,
            self._urgent,
        )
        try:
            with self._store.vault.writing():
                ending = self._ending(haul)
        finally:
            gear.pace.flush()
        prefetches.end(
            self._store.db,
            task.id,
            ending.state,
            ending.words,
            haul.brought,
            at_once=ending.at_once,
        )

    def _ending(self, haul: Haul) -> _Ending:
        """See the task through, or as far as it comes; raises StorageFault."""
        try:
            wanted = fetching(haul.destination.priors)(haul)
        except StorageFault:
            raise
        except Busy as interruption:
            return _Ending(PrefetchState.WAITING, str(interruption), at_once=True)
        except LimitExceeded as bound:
            return _Ending(PrefetchState.DONE, "; ".join([*haul.notes, str(bound)]))
        except PeerError as error:
            return self._refused(haul, error)
        except EdgePacsError as error:
            state = PrefetchState.WAITING if error.transient else PrefetchState.FAILED
            return _Ending(state, str(error))
        except Exception as error:  # noqa: BLE001  one task never stops the others
            log.error("prefetch %d: %s", self._number, place_of(error))
            return _Ending(PrefetchState.FAILED, "a fault of our own; the log says where")
        self._courier.gear.link.worked()
        return _Ending(PrefetchState.DONE, priors.words_of(haul, wanted))

    def _refused(self, haul: Haul, error: PeerError) -> _Ending:
        """A line that was never reached is down; who says no for good is not asked again."""
        if isinstance(error, PeerUnreachable) and not haul.opened:
            self._courier.gear.link.broke(error)
            self._courier.ring()
        for_good = isinstance(error, PeerRefused) and not error.transient
        state = PrefetchState.FAILED if for_good else PrefetchState.WAITING
        return _Ending(state, "; ".join([*haul.notes, str(error)]))

    def _yields(self) -> str:
        """Why it must end between two instances; '' to go on."""
        return self._ended() or obstacle(self._store, self._courier)

    def _urgent(self) -> str:
        """Why it must end at once; '' to go on."""
        due = claims.due(self._store.db, self._courier.destination.id)
        if due is None or due.most < STAT:
            return self._ended()
        return "" if self._courier.gear.pace.closed_for(due.most) else _SENDING

    def _ended(self) -> str:
        if self._stop.is_set():
            return "the service ended"
        return "cancelled" if prefetches.stopped(self._store.db, self._number) else ""
