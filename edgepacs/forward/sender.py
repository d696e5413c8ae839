"""The sender: a courier for every destination, and what the console asks of this role."""

import threading

from edgepacs.clock import monotonic
from edgepacs.errors import EdgePacsError, PeerError, StorageFault
from edgepacs.forward import proof
from edgepacs.forward.courier import Courier, echoing
from edgepacs.forward.notices import Notifier
from edgepacs.forward.prefetch import Prefetcher
from edgepacs.store import Store, destinations, errands, routing
from edgepacs.store.destinations import Destination
from edgepacs.store.errands import Errand
from edgepacs.store.renditions import Renditions
from edgepacs.telemetry import Doorbell, log

ERRAND_SECONDS = 1.0  # how soon a new destination or errand is seen without a ring
FAIL_OVER_SECONDS = 5.0  # how often what waits for a line that is down too long is moved
GRACE_SECONDS = 4.5


class Sender:
    """The forward role."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._couriers: dict[int, Courier] = {}
        self._leaving: dict[int, Courier] = {}  # of destinations that are no more, or changed
        self._prefetcher = Prefetcher(store)
        self._notifier = Notifier(store)
        self._errands: set[int] = set()  # being run
        self._fail_over_at = 0.0  # monotonic

    def run(self, stop: threading.Event) -> None:
        """Forward until `stop`.

        Raises StorageFault when the storage device failed: what the page cache says then is not
        what the disk holds, so only a new process may go on.
        """
        Renditions(self._store, self._store.paths.renditions).clear()
        self._prefetcher.recover()
        bell = Doorbell(self._store.paths.doorbell("forward"))
        try:
            while not stop.is_set():
                self._round()
                if bell.wait(ERRAND_SECONDS):
                    for courier in self._couriers.values():
                        courier.ring()
        finally:
            self._end()

    def _round(self) -> None:
        try:
            self._keep_couriers()
            self._run_errands()
            self._fail_over()
            self._prefetcher.round(self._couriers)
            self._notify()
        except StorageFault:
            raise
        except EdgePacsError as error:  # no room, or busy: tried again at the next round
            log.warning("%s", error)
        if self._store.vault.fault is not None:
            raise self._store.vault.fault

    def _end(self) -> None:
        every = [*self._couriers.values(), *self._leaving.values()]
        deadline = monotonic() + GRACE_SECONDS
        self._prefetcher.end()
        for courier in every:
            courier.end()
        self._prefetcher.join(max(0.0, deadline - monotonic()))
        for courier in every:
            courier.join(max(0.0, deadline - monotonic()))

    def _keep_couriers(self) -> None:
        """One courier per destination there is now, started when its predecessor has ended."""
        present = {one.id: one for one in destinations.every(self._store.db)}
        for number, courier in list(self._couriers.items()):
            if courier.fault is not None:
                raise courier.fault
            # A number is given again: what was removed may have become another destination.
            if number not in present or not courier.carries_to(present[number]):
                courier.end()
                self._leaving[number] = self._couriers.pop(number)
        for number, courier in list(self._leaving.items()):
            if courier.join(0.0):
                del self._leaving[number]
        for number in present.keys() - self._couriers.keys() - self._leaving.keys():
            self._couriers[number] = Courier(self._store, present[number])

    def _fail_over(self) -> None:
        """Move what waits for a line that has been down too long, where a rule says whereto."""
        if monotonic() < self._fail_over_at:
            return
        self._fail_over_at = monotonic() + FAIL_OVER_SECONDS
        if routing.fail_over(self._store.db):
            for courier in self._couriers.values():
                courier.ring()

    def _notify(self) -> None:
        if self._notifier.round():
            for courier in self._couriers.values():
                courier.ring()

    # --- errands -------------------------------------------------------------------------------

    def _run_errands(self) -> None:
        """Each in a thread of its own: a host that swallows all must not hold up the rest."""
        for errand in errands.still_open(self._store.db, "forward"):
            if errand.id not in self._errands:
                self._errands.add(errand.id)
                threading.Thread(target=self._run_errand, args=(errand,), daemon=True).start()

    def _run_errand(self, errand: Errand) -> None:
        destination = next(
            (d for d in destinations.every(self._store.db) if d.id == errand.subject), None
        )
        words, succeeded = "the destination is gone", False
        if destination is not None:
            succeeded, words = echo_in_words(self._store, destination)
            if succeeded and (courier := self._couriers.get(destination.id)):
                courier.gear.link.wake()
                courier.ring()
        errands.answer(self._store.db, errand.id, succeeded=succeeded, result=words)
        self._errands.discard(errand.id)


def echo_in_words(store: Store, destination: Destination) -> tuple[bool, str]:
    """Whether a destination answers, and what to tell a person: how soon, and what it proves."""
    start = monotonic()
    try:
        echoing(destination)(store, destination)
    except PeerError as error:
        return False, str(error)
    asked = "its web server" if destination.transport == "stow" else "C-ECHO"
    words = f"answered {asked} in {(monotonic() - start) * 1000:.0f} ms"
    try:
        return True, f"{words}; {proof.habits(store, destination)}"
    except PeerError:
        return True, words
