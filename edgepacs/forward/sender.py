"""The sender: one thread a destination, fed by the table of deliveries.

A destination that is down is probed, never hammered: nothing is claimed for it, so an outage of
any length costs no attempts. A ring of the doorbell or the return of the line wakes it at once.
"""

import random
import threading
from collections.abc import Sequence

from edgepacs.clock import monotonic, wall_ms
from edgepacs.dimse import Association, AssociationAborted, NoContextAccepted
from edgepacs.errors import EdgePacsError, PeerError, PeerUnreachable
from edgepacs.forward import transport
from edgepacs.forward.batch import Batch, Parcel, Verdict
from edgepacs.forward.workshop import Workshop
from edgepacs.model import DeliveryState, LinkState
from edgepacs.store import Store, claims, destinations, errands
from edgepacs.store.claims import Claim
from edgepacs.store.destinations import Destination
from edgepacs.store.errands import Errand
from edgepacs.store.renditions import Renditions
from edgepacs.telemetry import Doorbell, failpoint, log, place_of

BATCH = 100  # deliveries claimed at a time; fewer than presentation contexts (PS3.8 9.3.2.2)
BREAK_SECONDS = 1.0  # how soon a line that broke under way is probed: it may be back at once
PROBE_SECONDS = 4.0  # how soon the return of a line is noticed
REFUSED_SECONDS = 60.0  # how often one that rejects the association is tried again
ERRAND_SECONDS = 1.0  # how soon a new destination or errand is seen without a ring
GRACE_SECONDS = 5.0
LINGER_SECONDS = 2.0  # how long an association is kept open for what is being converted
FRUITLESS = 3  # associations in which nothing was settled, until it is tried again later
IDLE_SECONDS = 30.0  # how often the table is looked at without a ring
FREE_BREAKS = 3  # broken lines an instance is not made to wait for
RETRY_FIRST_MS = 15_000
RETRY_MOST_MS = 15 * 60_000


def retry_delay_ms(attempts: int) -> int:
    """How long a delivery waits after its `attempts`-th passing failure, with jitter."""
    most = min(RETRY_FIRST_MS * 2 ** min(attempts - 1, 10), RETRY_MOST_MS)
    return random.randint(most // 2, most)  # noqa: S311  jitter, not a secret


class Courier:
    """Carries the deliveries of one destination, in a thread of its own."""

    def __init__(self, store: Store, destination: Destination) -> None:
        self._store = store
        self.destination = destination
        self._stop = threading.Event()
        self._bell = threading.Event()
        self._link = destination.link
        self._not_before = 0.0  # monotonic seconds; while the link is down or refuses
        self._disturbed = False  # a fault may have left claims behind
        self._workshop = Workshop(store)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def carries_to(self, destination: Destination) -> bool:
        """Whether `destination` is still where this courier sends."""
        mine = self.destination
        return (mine.ae_title, mine.host, mine.port) == (
            destination.ae_title,
            destination.host,
            destination.port,
        )

    def ring(self) -> None:
        """There may be something to send."""
        self._bell.set()

    def end(self) -> None:
        """Stop after the instance being sent."""
        self._stop.set()
        self._workshop.stop()
        self._bell.set()

    def join(self, seconds: float) -> None:
        """Wait up to `seconds` for the last instance; what takes longer is broken off."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                wait = self._round()
            except EdgePacsError as error:
                log.warning("destination %d: %s", self.destination.id, error)
                wait, self._disturbed = PROBE_SECONDS, True
            except Exception as error:  # noqa: BLE001  one destination never stops the others
                log.error("destination %d: %s", self.destination.id, place_of(error))
                wait, self._disturbed = IDLE_SECONDS, True
            self._bell.wait(wait)
            self._bell.clear()
        self._workshop.close()

    def _round(self) -> float:
        """Do what can be done now; how many seconds to wait then."""
        if self._disturbed:
            claims.recover(self._store.db, self.destination.id)
            self._disturbed = False
        pause = self._not_before - monotonic()
        if pause > 0:
            return pause
        due = claims.next_due_ms(self._store.db, self.destination.id)
        if due is None:
            self._workshop.rest()
            return IDLE_SECONDS
        if due > wall_ms():
            return min((due - wall_ms()) / 1000, IDLE_SECONDS)
        if self._link is not LinkState.UP and not self._probe():
            return self._not_before - monotonic()
        taken = claims.claim(self._store.db, self.destination.id, BATCH)
        failpoint("forward.claimed")
        self._send(taken)
        return max(0.0, self._not_before - monotonic())

    def _probe(self) -> bool:
        """Whether the destination answers a C-ECHO; a cheap way to ask before claiming."""
        try:
            transport.echo(self._store, self.destination)
        except PeerError as error:
            self._note_broken(error)
            return False
        self._note(LinkState.UP, "")
        return True

    def _note_broken(self, error: PeerError) -> None:
        unreachable = isinstance(error, PeerUnreachable)
        self._not_before = monotonic() + (PROBE_SECONDS if unreachable else REFUSED_SECONDS)
        self._note(LinkState.DOWN if unreachable else LinkState.DEGRADED, str(error))

    def _note(self, link: LinkState, words: str) -> None:
        self._link = link
        destinations.set_link(self._store.db, self.destination.id, link, words)

    def _send(self, taken: Sequence[Claim]) -> None:
        batch = Batch(self._store, self.destination.id, taken, self._workshop)
        words, fruitless = "its association ended before its turn", 0
        try:
            # An object that cannot be read aborts its association; the rest gets a new one.
            while batch.waiting and not self._stop.is_set() and fruitless < FRUITLESS:
                waiting = len(batch.waiting)
                self._carry(batch)
                fruitless = fruitless + 1 if len(batch.waiting) == waiting else 0
            if fruitless == FRUITLESS:
                self._not_before = monotonic() + REFUSED_SECONDS
                words = "the destination accepts another thing each time it is asked"
        except PeerError as error:
            self._note_broken(error)
            if isinstance(error, PeerUnreachable):
                self._not_before = monotonic() + BREAK_SECONDS
            words = f"the line broke before its turn: {error}"
        finally:
            waiting_ids = [claim.id for claim in batch.waiting]
            claims.give_back(self._store.db, waiting_ids, result=words)

    def _carry(self, batch: Batch) -> None:
        """Send in one association what can go; what has to be converted is, before anybody dials.

        Raises PeerError.
        """
        batch.await_first()
        self._settle(batch)
        if not batch.waiting or self._stop.is_set():
            return
        proposed = batch.proposals()
        try:
            association = transport.open_association(self._store, self.destination, proposed)
        except NoContextAccepted:
            batch.learn(proposed, None)
            self._settle(batch)
            return
        try:
            with association:
                batch.learn(proposed, association)
                self._settle(batch)
                while association.is_open and not self._stop.is_set():
                    parcel = batch.next(LINGER_SECONDS)
                    self._settle(batch)
                    if parcel is None:
                        break
                    self._send_one(association, parcel)
                    batch.done_with(parcel.claim)
        finally:
            batch.closed()

    def _settle(self, batch: Batch) -> None:
        for claim, verdict in batch.settled():
            self._finish(claim, verdict)

    def _send_one(self, association: Association, parcel: Parcel) -> None:
        claim = parcel.claim
        if not claims.may_leave(self._store.db, claim):
            claims.give_back(self._store.db, [claim.id], result="stopped before its turn")
            return
        try:
            verdict = transport.send(self._store, association, parcel)
        except PeerError as error:
            verdict = Verdict(DeliveryState.QUEUED, f"the line broke: {error}")
            # The line is not the instance's fault, unless it happens again and again.
            hurry = claim.attempts <= FREE_BREAKS and not isinstance(error, AssociationAborted)
            self._finish(claim, verdict, at_once=hurry)
            raise
        if verdict is None:
            claims.give_back(self._store.db, [claim.id], result="rewritten before its turn")
            return
        failpoint("forward.sent")
        self._finish(claim, verdict)

    def _finish(self, claim: Claim, verdict: Verdict, *, at_once: bool = False) -> None:
        again = verdict.state is DeliveryState.QUEUED and not at_once
        next_ms = wall_ms() + retry_delay_ms(claim.attempts) if again else 0
        claims.finish(
            self._store.db,
            claim.id,
            verdict.state,
            result=verdict.words,
            next_ms=next_ms,
            proof=verdict.proof,
        )


class Sender:
    """The forward role: a courier for every destination, and the errands of the console."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._couriers: dict[int, Courier] = {}
        self._errands: set[int] = set()  # being run

    def run(self, stop: threading.Event) -> None:
        """Forward until `stop`."""
        Renditions(self._store).clear()
        broken_off = claims.recover(self._store.db)
        if broken_off:
            log.info("%d deliveries were broken off and are queued again", broken_off)
        bell = Doorbell(self._store.paths.doorbell("forward"))
        while not stop.is_set():
            self._keep_couriers()
            self._run_errands()
            if bell.wait(ERRAND_SECONDS):
                for courier in self._couriers.values():
                    courier.ring()
        for courier in self._couriers.values():
            courier.end()
        for courier in self._couriers.values():
            courier.join(GRACE_SECONDS)

    def _keep_couriers(self) -> None:
        """One courier per destination there is now."""
        present = {one.id: one for one in destinations.every(self._store.db)}
        for number, courier in list(self._couriers.items()):
            # A number is given again: what was removed may have become another destination.
            if number not in present or not courier.carries_to(present[number]):
                self._couriers.pop(number).end()
        for number in present.keys() - self._couriers.keys():
            self._couriers[number] = Courier(self._store, present[number])

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
        errands.answer(self._store.db, errand.id, succeeded=succeeded, result=words)
        self._errands.discard(errand.id)


def echo_in_words(store: Store, destination: Destination) -> tuple[bool, str]:
    """Whether a destination answers C-ECHO, and what to tell a person."""
    start = monotonic()
    try:
        transport.echo(store, destination)
    except PeerError as error:
        return False, str(error)
    return True, f"answered C-ECHO in {(monotonic() - start) * 1000:.0f} ms"
