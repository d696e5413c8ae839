"""The desk of one destination: claims fetched and results written, in few transactions.

One thread does both, so that no lane ever waits for the disk while its line is free. Results
that come within a few milliseconds share a transaction; only so many are ever unwritten, since
a crash leaves them in `sending` and each has to be asked for before it may be sent again.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgepacs.clock import monotonic, wall_ms
from edgepacs.errors import EdgePacsError, PeerError, StorageFault
from edgepacs.forward.batch import Verdict
from edgepacs.forward.pace import Pace
from edgepacs.model import DeliveryState
from edgepacs.store import claims
from edgepacs.store.claims import HARD, Claim, Ended, Returned, Wish
from edgepacs.store.db import Database
from edgepacs.store.deliveries import STAT
from edgepacs.telemetry import failpoint, log, place_of

RETRY_FIRST_MS = 15_000
RETRY_MOST_MS = 15 * 60_000
AT_ONCE = 8  # claims a lane is granted at a time
GATHER_SECONDS = 0.01  # how long results wait for others to share their transaction
UNWRITTEN = 20  # results that may wait
AGAIN_SECONDS = 1.0  # how soon the index is tried again when it took nothing
_SHARES = 2  # a lane is granted so little that each could be granted as much again as often
OLDEST_EVERY = 8  # of so many grants one goes to what has waited longest


def retry_delay_ms(attempts: int) -> int:
    """How long a delivery waits after its `attempts`-th passing failure, with jitter."""
    most = min(RETRY_FIRST_MS * 2 ** min(max(attempts - 1, 0), 10), RETRY_MOST_MS)
    return random.randint(most // 2, most)  # noqa: S311  jitter, not a secret


@dataclass(slots=True)
class _Inbox:
    """What one lane has asked for and been granted.

    `open`: it has not been answered yet. `waiting`: its lane does nothing else meanwhile. `kept`
    are claims its lane has fetched and not begun.
    """

    open: bool = False
    waiting: bool = False
    kept: int = 0
    granted: list[Claim] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Whether its lane has nothing to do."""
        return self.waiting and not self.open and not self.granted


class Desk:
    """Fetches claims for the lanes of one destination and writes down their results.

    Up to `at_once` claims are granted at a time to each of `lanes`. `closing` is set when the
    lanes shall end, `fault` when the storage device has failed.
    """

    def __init__(
        self, db: Database, destination: int, pace: Pace, news: Callable[[], None]
    ) -> None:
        self._db = db
        self._destination = destination
        self._pace = pace
        self._news = news
        self._changed = threading.Condition()
        self._ended: list[Ended] = []
        self._returned: list[Returned] = []
        self._inboxes: dict[int, _Inbox] = {}
        self._grants = 0
        self._last = 0.0  # monotonic, when results were last written
        self._rung = True
        self._told: tuple[int | None, bool] = (None, False)
        self._done = False
        self.at_once = AT_ONCE
        self.lanes = 1
        self.urgent: int | None = None  # highest priority due, where it is STAT or above
        self.backlog = False  # the last lane that asked was not given all there is
        self.closing = False
        self.fault: StorageFault | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- for lanes -----------------------------------------------------------------------------

    def more(self, lane: object, patience: float | None) -> list[Claim]:
        """Claims for a lane. With None nothing is waited for, and what is fetched comes later.

        Else the answer is waited for, and when it is "nothing", `patience` seconds for another.
        """
        deadline = monotonic() + (patience or 0.0)
        with self._changed:
            inbox = self._inboxes.setdefault(id(lane), _Inbox())
            if not inbox.granted and not inbox.open:
                inbox.open = True
                self._changed.notify_all()
            if patience is not None:
                inbox.waiting = True
                self._changed.wait_for(lambda: not inbox.open or self.closing)
                self._changed.wait_for(
                    lambda: inbox.granted or self.closing, max(0.0, deadline - monotonic())
                )
                inbox.waiting = False
            found, inbox.granted = inbox.granted, []
            return found

    def share(self, lane: object, waiting: Sequence[Claim], taken: int) -> list[Claim]:
        """Hand to lanes that have nothing to do some of what a lane has waiting; what was given.

        Nothing changes in the index: it is being sent, if by another. Of what is kept the lane
        takes `taken` now.
        """
        given: list[Claim] = []
        with self._changed:
            left = list(waiting)
            for inbox in self._inboxes.values():
                if left and inbox.idle:
                    half = -(-len(left) // 2)
                    inbox.granted = left[-half:]
                    given += inbox.granted
                    del left[-half:]
            self._inboxes.setdefault(id(lane), _Inbox()).kept = max(0, len(left) - taken)
            if given:
                self._changed.notify_all()
        return given

    def others_keep(self, lane: object) -> bool:
        """Whether other lanes have claims that they have not begun, and may share."""
        with self._changed:
            return any(one.kept for key, one in self._inboxes.items() if key != id(lane))

    @property
    def kept(self) -> bool:
        """Whether any lane has claims that it has not begun, and may share."""
        return self.others_keep(None)

    def leave(self, lane: object, words: str) -> None:
        """A lane ends: what it was granted and has not fetched is returned."""
        with self._changed:
            inbox = self._inboxes.pop(id(lane), None)
        if inbox is not None:
            self.give_back(inbox.granted, words)

    def objection(self, claim: Claim) -> str:
        """Why a claim must not be sent now, in words; empty where nothing is against it."""
        if self.closing:
            return "its lane was ended before its turn"
        if self.urgent is not None and claim.priority < self.urgent:
            return "something more urgent went first"
        return "" if claims.may_leave(self._db, claim) else "stopped before its turn"

    def finish(self, claim: Claim, verdict: Verdict, *, at_once: bool = False) -> None:
        """What came of an attempt; a passing failure waits its time, unless `at_once`."""
        again = verdict.state is DeliveryState.QUEUED and not at_once
        delay = verdict.delay_ms or retry_delay_ms(claim.attempts)
        self._write(
            Ended(
                delivery=claim.id,
                state=verdict.state,
                result=verdict.words,
                next_ms=wall_ms() + delay if again else 0,
                proof=verdict.proof,
                breaks=claim.breaks,
            )
        )

    def broke(self, claim: Claim, error: PeerError, seconds: float, needs: float) -> None:
        """The line broke `seconds` into sending a claim that `needs` so many in one piece.

        The first times it is tried again at once; then when nothing else waits, ever later.
        """
        breaks = claim.breaks + 1
        words, next_ms = f"the line broke: {error}", 0
        if breaks >= HARD:
            words = (
                f"needs about {needs:.0f} s of unbroken line; the last break came after "
                f"{seconds:.0f} s; tried when nothing else waits ({error})"
            )
            next_ms = wall_ms() + retry_delay_ms(breaks - HARD + 1)
        self._write(
            Ended(
                delivery=claim.id,
                state=DeliveryState.QUEUED,
                result=words,
                next_ms=next_ms,
                breaks=breaks,
            )
        )

    def _write(self, one: Ended) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._ended) < UNWRITTEN or self._done)
            self._ended.append(one)
            self._changed.notify_all()

    def give_back(self, given: Sequence[Claim], words: str) -> None:
        """Return claims whose sending never began."""
        if not given:
            return
        with self._changed:
            numbers = [claim.id for claim in given]
            self._returned.append(Returned(deliveries=numbers, result=words))
            self._changed.notify_all()

    # --- for the courier -----------------------------------------------------------------------

    def ring(self) -> None:
        """There may be something new to claim."""
        with self._changed:
            self._rung = True
            for inbox in self._inboxes.values():  # a lane that is busy would keep it waiting
                inbox.open = inbox.open or (inbox.waiting and not inbox.granted)
            self._changed.notify_all()

    def close(self) -> None:
        """Grant nothing more; lanes end after the instance they are sending."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()

    def reopen(self) -> None:
        """Grant again, after `close`."""
        with self._changed:
            self.closing = False
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait up to `seconds` until everything is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unwritten or self._done, seconds)

    def end(self, seconds: float) -> None:
        """After `close`, when all lanes have ended: write what is left."""
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self._thread.join(seconds)

    # --- the thread ----------------------------------------------------------------------------

    @property
    def _unwritten(self) -> bool:
        return bool(self._ended or self._returned)

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except StorageFault as fault:
            self._give_up(fault)
        except Exception as error:  # noqa: BLE001  nothing of this destination can be recorded
            log.error("desk %d: %s", self._destination, place_of(error))
            self._give_up(StorageFault("results cannot be written"))

    def _give_up(self, fault: StorageFault) -> None:
        with self._changed:
            self.fault = fault
            self.closing = self._done = True
            self._changed.notify_all()
        self._news()

    def _wait(self) -> bool:
        """Until there is something to do; False when there never will be."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._unwritten or self._done or self._rung or self._asking()
            )
            late = self._last + GATHER_SECONDS - monotonic()
            if late > 0:
                self._changed.wait_for(self._cannot_wait, late)
            return self._unwritten or not self._done

    def _cannot_wait(self) -> bool:
        return self._done or bool(self._asking()) or len(self._ended) >= UNWRITTEN

    def _asking(self) -> list[_Inbox]:
        if self.closing:
            return []
        return [one for one in self._inboxes.values() if one.open and not one.granted]

    def _turn(self) -> None:
        with self._changed:
            ended, self._ended = self._ended, []
            returned, self._returned = self._returned, []
            asking, self._rung = self._asking(), False
            self._last = monotonic()
            self._changed.notify_all()
        try:
            self._exchange(ended, returned, asking)
        except StorageFault:
            raise
        except EdgePacsError as error:  # no room, or busy: what was sent is not to be sent again
            log.warning("destination %d: results wait to be written: %s", self._destination, error)
            with self._changed:
                self._ended[:0], self._returned[:0] = ended, returned
                self._changed.wait_for(lambda: self._done, AGAIN_SECONDS)
                if self._done:
                    raise StorageFault("the index took no results until the end") from error

    def _exchange(
        self, ended: Sequence[Ended], returned: Sequence[Returned], asking: Sequence[_Inbox]
    ) -> None:
        wish = self._wish()
        left = 0
        if wish and asking:
            wish, left = self._portion(wish)
        wishes = [wish] * len(asking) if wish else []
        self._grants += len(wishes)
        if ended or returned or wishes:
            granted = claims.exchange(
                self._db, self._destination, ended=ended, returned=returned, wishes=wishes
            )
        else:
            granted = []
        if any(granted):
            failpoint("forward.claimed")
        with self._changed:
            self._answer(asking, granted or [[]] * len(asking), left)
            self._changed.notify_all()
        if self.urgent is not None:
            self._wish()
        state = (self.urgent, self.backlog)
        if state != self._told:
            self._told = state
            self._news()

    def _answer(self, asking: Sequence[_Inbox], granted: Sequence[list[Claim]], left: int) -> None:
        standing = {id(one) for one in self._inboxes.values()}
        for inbox, found in zip(asking, granted, strict=True):
            inbox.open = False
            left -= len(found)
            self.backlog = bool(found) and left > 0
            if id(inbox) in standing:
                inbox.granted.extend(found)
            elif found:  # its lane has ended meanwhile
                numbers = [claim.id for claim in found]
                self._returned.append(Returned(deliveries=numbers, result="its lane ended"))

    def _portion(self, wish: Wish) -> tuple[Wish, int]:
        """A wish for no more than leaves something for other lanes; how much there is, up to a few.

        At the end of a queue a lane with much of it would need a round trip for each of them.
        """
        shares = _SHARES * self.lanes
        left = claims.waiting(self._db, self._destination, wish.least, shares * self.at_once)
        if self.lanes == 1:
            return wish, left
        return replace(wish, most=min(self.at_once, max(1, -(-left // shares)))), left

    def _wish(self) -> Wish | None:
        """What may be claimed now; None for nothing. Notes whether something urgent waits."""
        due = claims.due(self._db, self._destination)
        if due is None or self._pace.closed_for(due.most) is not None:
            self.urgent = None
            return None
        self.urgent = due.most if due.most >= STAT else None
        least = due.least
        if least < due.most and self._pace.closed_for(least) is not None:
            levels = claims.levels(self._db, self._destination)
            # The line may close for all of them in between.
            open_for = [one for one in levels if self._pace.closed_for(one) is None]
            least = min(open_for, default=due.most)
        oldest = self.urgent is None and self._grants % OLDEST_EVERY == OLDEST_EVERY - 1
        return Wish(most=self.at_once, least=least, oldest=oldest)
