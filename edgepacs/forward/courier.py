"""A courier: sees to everything that goes to one destination, in a thread of its own.

It opens lanes while there is something to send and the line may be used, has what a crash left
settled before anything is claimed, and proof asked for. A line that is down is probed, never
hammered: nothing is claimed for it, so an outage of any length costs no attempts.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

from edgepacs.clock import monotonic, wall_ms
from edgepacs.dimse import AssociationRefusedForNow
from edgepacs.errors import EdgePacsError, PeerError, StorageFault
from edgepacs.forward import transport
from edgepacs.forward.desk import Desk
from edgepacs.forward.lane import Carry, Ending, Gear, Lane
from edgepacs.forward.link import Link
from edgepacs.forward.messages import Messenger
from edgepacs.forward.pace import Pace
from edgepacs.forward.proof import Prover
from edgepacs.forward.width import Width
from edgepacs.forward.workshop import Workshop
from edgepacs.model import LinkState
from edgepacs.store import Store, claims, usage
from edgepacs.store.destinations import Destination
from edgepacs.telemetry import log, place_of

IDLE_SECONDS = 30.0  # how often the table is looked at without a ring
AGAIN_SECONDS = 4.0  # how soon what failed for reasons of our own is tried again
REFUSED_SECONDS = 60.0  # the same where nothing came of several associations
URGENT_SECONDS = 0.3  # how long something urgent waits for a lane before it gets one of its own
LOOK_SECONDS = 1.0  # how often lanes at work are looked at
GRACE_SECONDS = 3.5  # for the instances being sent when the role ends
EXTRA_LANES = 2  # beyond the width, for what must not wait
Echo = Callable[[Store, Destination], None]


def carrying(destination: Destination) -> Carry:
    """How instances are carried to a destination."""
    if destination.transport == "stow":
        from edgepacs.forward import stow  # noqa: PLC0415  only who sends by HTTPS loads it

        return stow.carry
    return transport.carry


def echoing(destination: Destination) -> Echo:
    """How a destination is asked whether it is there and knows us; raises PeerError."""
    if destination.transport == "stow":
        from edgepacs.forward import stow  # noqa: PLC0415

        return stow.echo
    return transport.echo


class Courier:
    """Carries the deliveries of one destination, in threads of its own."""

    def __init__(self, store: Store, destination: Destination) -> None:
        self._store = store
        self.destination = destination
        self.fault: StorageFault | None = None
        self._stop = threading.Event()
        self._bell = threading.Event()
        pace = Pace(store, destination)
        self._gear = Gear(
            store=store,
            destination=destination,
            desk=Desk(store.db, destination.id, pace, self._bell.set),
            pace=pace,
            link=Link(store, destination, echoing(destination)),
            prover=Prover(store, destination),
            width=Width(
                destination.associations,
                usage.measured(store.db, destination.id).lanes,
                self._bell.set,
            ),
            workshop=Workshop(store),
            carry=carrying(destination),
        )
        self._lanes: list[Lane] = []
        self._kept_width = self._gear.width.lanes
        self._doubts = True  # a crash or a fault may have left something in `sending`
        self._not_before = 0.0  # monotonic seconds
        self._urgent_since = 0.0  # monotonic; 0 with nothing urgent waiting
        self._proof = _Proof(self._gear, self._bell.set)
        self._messages = Messenger(self._gear, self._bell.set)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def gear(self) -> Gear:
        """What belongs to the line, for whoever else uses it."""
        return self._gear

    @property
    def resting(self) -> bool:
        """Whether nothing is being sent, and the line may be used."""
        usable = self._gear.link.state in (LinkState.UP, LinkState.UNKNOWN)
        return usable and not self._lanes and not self._stop.is_set() and not self._doubts

    def carries_to(self, destination: Destination) -> bool:
        """Whether `destination` is still where this courier sends, and how."""
        mine = self.destination
        known = replace(
            destination,
            name=mine.name,
            link=mine.link,
            link_ms=mine.link_ms,
            link_note=mine.link_note,
            callback=mine.callback,
        )
        return known == mine

    def ring(self) -> None:
        """There may be something to send."""
        self._gear.desk.ring()
        self._bell.set()

    def end(self) -> None:
        """Stop after the instances being sent."""
        self._stop.set()
        self._gear.desk.close()
        self._gear.workshop.stop()
        self._bell.set()

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end; whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set() and self.fault is None:
            self._bell.clear()
            try:
                wait = self._round()
            except StorageFault as fault:
                self.fault = fault
                break
            except EdgePacsError as error:
                log.warning("destination %d: %s", self.destination.id, error)
                wait = AGAIN_SECONDS
            except Exception as error:  # noqa: BLE001  one destination never stops the others
                log.error("destination %d: %s", self.destination.id, place_of(error))
                wait = IDLE_SECONDS
            self._bell.wait(max(0.0, wait))
        self._close()

    def _close(self) -> None:
        gear, deadline = self._gear, monotonic() + GRACE_SECONDS
        gear.desk.close()
        gear.workshop.stop()
        ended = [lane.join(max(0.0, deadline - monotonic())) for lane in self._lanes]
        if not all(ended):
            for lane in self._lanes:
                lane.job.abort()
            for lane in self._lanes:
                lane.join(0.5)
        self._messages.end(deadline - monotonic())
        gear.desk.end(1.0)
        gear.workshop.close()
        gear.pace.flush()

    def _round(self) -> float:
        """Do what can be done now; how many seconds to wait then."""
        self._reap()
        if self._gear.desk.fault is not None:
            raise self._gear.desk.fault
        pause = max(self._not_before - monotonic(), self._gear.link.wait())
        if pause > 0:
            return min(pause, IDLE_SECONDS)
        if self._doubts:
            return self._settle_doubts()
        wait = self._send()
        if self._gear.link.state in (LinkState.UP, LinkState.UNKNOWN):
            wait = min(wait, self._proof.turn(), self._messages.turn())
        return wait

    def _reap(self) -> None:
        """Draw the conclusions of how lanes have ended."""
        for lane in [one for one in self._lanes if one.over]:
            self._lanes.remove(lane)
            self._gear.prover.sent()
            self._doubts = self._doubts or lane.doubts
            if lane.ending is Ending.FAULT:
                self._gear.desk.fault = lane.fault
            elif lane.ending is Ending.DISTURBED:
                self._not_before = monotonic() + AGAIN_SECONDS
            elif lane.ending is Ending.FRUITLESS:
                self._not_before = monotonic() + REFUSED_SECONDS
            elif lane.error is not None:
                self._broken(lane, lane.error)

    def _broken(self, lane: Lane, error: PeerError) -> None:
        """A lane that never opened while others stand was one too many, whatever was answered."""
        standing = sum(other.reached for other in self._lanes)
        refused = isinstance(error, AssociationRefusedForNow) or not lane.job.was_open
        if standing and refused:
            self._gear.width.refused(standing)
        else:
            self._gear.link.broke(error)

    def _settle_doubts(self) -> float:
        """Have what was left in `sending` asked for, once no lane is at work."""
        gear = self._gear
        if self._lanes:
            gear.desk.close()
            return LOOK_SECONDS
        self._proof.join()
        if claims.in_doubt(self._store.db, self.destination.id):
            if not self._up():
                return gear.link.wait()
            try:
                gear.prover.settle_doubts()
            except PeerError as error:
                gear.link.broke(error)
                return gear.link.wait()
        self._doubts = False
        if not self._stop.is_set():
            gear.desk.reopen()
        return 0.0

    def _up(self) -> bool:
        link = self._gear.link
        return link.state is LinkState.UP or link.probe()

    def _usable(self) -> bool:
        """Whether to send: the first association on a line that has come back is its own probe.

        Not where the last one was answered and came to nothing, nor over HTTP, where only the
        answer to a whole request would tell.
        """
        link = self._gear.link
        if link.state in (LinkState.UP, LinkState.DEGRADED) or self.destination.transport == "stow":
            return self._up()
        return bool(self._lanes) or link.reach()

    def _send(self) -> float:
        """Open the lanes that what is due needs; how many seconds to wait then."""
        gear, number = self._gear, self.destination.id
        next_ms = claims.next_due_ms(self._store.db, number)
        now = wall_ms()
        if next_ms is None or now < next_ms <= now + claims.FARTHEST_MS:
            return min(self._rest(), IDLE_SECONDS if next_ms is None else (next_ms - now) / 1000)
        due = claims.due(self._store.db, number)
        if due is None:
            return LOOK_SECONDS
        closed = gear.pace.closed_for(due.most)
        if closed is not None:
            return min(self._rest(), closed.seconds)
        if not self._usable():
            return gear.link.wait()
        return self._keep_lanes()

    def _rest(self) -> float:
        """There is nothing to send now; how many seconds to wait at most."""
        gear = self._gear
        if self._lanes:
            return LOOK_SECONDS
        if gear.link.state in (LinkState.DOWN, LinkState.DEGRADED) and not gear.link.probe():
            return gear.link.wait()
        if claims.in_doubt(self._store.db, self.destination.id):
            return LOOK_SECONDS
        gear.workshop.rest()
        gear.pace.flush()
        self._keep_width()
        return IDLE_SECONDS

    def _keep_width(self) -> None:
        """Remember how many lanes were best, for the next start."""
        lanes = self._gear.width.lanes
        if lanes != self._kept_width and not self.destination.associations:
            usage.set_lanes(self._store.db, self.destination.id, lanes)
            self._kept_width = lanes

    def _keep_lanes(self) -> float:
        gear = self._gear
        at_work = [lane for lane in self._lanes if not lane.job.leaving]
        gear.desk.lanes = gear.width.lanes
        more = gear.desk.backlog or gear.desk.kept
        several = more and gear.link.state is LinkState.UP
        missing = (gear.width.lanes if several else 1) - len(at_work)
        for _ in range(missing):
            self._lanes.append(Lane(gear, self._bell.set))
        if missing <= 0 and self._must_not_wait(at_work) and self._may_add(at_work):
            self._lanes.append(Lane(gear, self._bell.set))
        return URGENT_SECONDS if gear.desk.urgent is not None else LOOK_SECONDS

    def _may_add(self, at_work: list[Lane]) -> bool:
        """One at a time, and not where the peer has shown that it takes no more."""
        opening = [lane for lane in at_work if not lane.reached]
        most = self._gear.width.lanes + EXTRA_LANES
        return not opening and len(at_work) < most and not self._gear.width.full(len(at_work))

    def _must_not_wait(self, at_work: list[Lane]) -> bool:
        """Whether all lanes are busy with what may not keep the rest waiting.

        That is so when something urgent is due, or when each is at an instance that has often
        broken off.
        """
        urgent = self._gear.desk.urgent
        self._urgent_since = (self._urgent_since or monotonic()) if urgent is not None else 0.0
        if urgent is not None:
            waited = monotonic() - self._urgent_since >= URGENT_SECONDS
            return waited and all(_busy_below(lane, urgent) for lane in at_work)
        return all((claim := lane.job.sending) is not None and claim.hard for lane in at_work)


def _busy_below(lane: Lane, urgent: int) -> bool:
    """Whether a lane is within an instance that is less urgent."""
    claim = lane.job.sending
    return claim is not None and claim.priority < urgent


class _Proof:
    """The turns of a prover, in a thread of their own: a query may take longer than STAT can."""

    def __init__(self, gear: Gear, ring: Callable[[], None]) -> None:
        self._gear = gear
        self._ring = ring
        self._next = 0.0  # monotonic
        self._thread: threading.Thread | None = None
        self._busy = False  # until it rings: the thread itself outlives that by a moment

    def turn(self) -> float:
        """Begin one when it is time; seconds until the next."""
        if self._busy:
            return IDLE_SECONDS
        left = min(self._next - monotonic(), self._gear.prover.due_in())
        if left <= 0:
            self._busy = True
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            return IDLE_SECONDS
        return left

    def join(self) -> None:
        """Wait for the one under way."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        wait = AGAIN_SECONDS
        try:
            wait = self._gear.prover.round()
        except PeerError as error:
            if self._gear.width.alone:
                self._gear.link.broke(error)
        except StorageFault as fault:
            self._gear.desk.fault = fault
        except EdgePacsError as error:
            log.warning("destination %d: %s", self._gear.destination.id, error)
        except Exception as error:  # noqa: BLE001  sending goes on
            if not self._gear.desk.closing:
                log.error("destination %d: %s", self._gear.destination.id, place_of(error))
            wait = IDLE_SECONDS
        finally:
            self._next = monotonic() + wait
            self._busy = False
            self._ring()
