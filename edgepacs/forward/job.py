"""A job: what one lane has to do, as its transport sees it.

A transport is a function `carry(job)` that takes parcel after parcel, sends each and says what
came of it; it raises PeerError where the line or the peer ends it. `transport.carry` is C-STORE,
`stow.carry` STOW-RS. Nothing here waits for the disk: claims are fetched and results written by
the desk, in a thread of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from edgepacs.clock import monotonic
from edgepacs.dimse import Association, AssociationAborted
from edgepacs.dimse.requestor import CONTEXTS_MAX
from edgepacs.errors import PeerError, PeerUnreachable
from edgepacs.forward.batch import Batch, Parcel, Verdict
from edgepacs.forward.desk import Desk
from edgepacs.forward.link import Link
from edgepacs.forward.pace import Pace
from edgepacs.forward.proof import Prover
from edgepacs.forward.quirks import quirk_of
from edgepacs.forward.width import Width
from edgepacs.model import DeliveryState
from edgepacs.store import Store
from edgepacs.store.claims import Claim
from edgepacs.store.destinations import Destination

CONVERT_SECONDS = 2.0  # how long an association is kept open for what is being converted
_NOT_MEASURED = 16_000  # bytes a second a line is taken for until it has been measured
_FLUSH_SECONDS = 2.0  # for what was sent to be written down before its proof is asked for
_SHARED_SECONDS = 0.1  # until it is looked whether others still keep what they may share
_ASKED_SECONDS = 0.001  # beyond the desk's own answer
_LOW = 2  # claims not begun, at which more are asked for


class Clock:
    """How long the sending of one instance takes, in seconds."""

    def __init__(self) -> None:
        self.begun = monotonic()
        self.handing = self.waiting = 0.0
        self.length = 0

    def handed(self) -> None:
        """Its last byte was handed to the kernel."""
        self.handing = self.seconds

    def answered(self, length: int) -> None:
        """The answer to `length` bytes has come."""
        self.waiting = self.seconds - self.handing
        self.length = length

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return monotonic() - self.begun


class Job:
    """A batch of claims that is filled up while it is carried, and where results go.

    Belongs to the thread of its lane.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        batch: Batch,
        *,
        pace: Pace,
        link: Link,
        prover: Prover,
        width: Width,
        desk: Desk,
    ) -> None:
        self.store = store
        self.destination = destination
        self.batch = batch
        self.pace = pace
        self.link = link
        self.prover = prover
        self.width = width
        self._desk = desk
        self._taken: dict[int, Claim] = {}  # neither in the batch nor done with
        self._abort: Callable[[], None] | None = None
        self.settled = 0  # claims whose attempt has ended
        self.sending: Claim | None = None
        self.sending_since = 0.0  # monotonic
        self.was_open = False
        self.open = False  # an association was accepted and is not closed
        self.leaving = False  # its association only waits for proof, or for its end

    # --- what there is to do -------------------------------------------------------------------

    def stopped(self) -> bool:
        """Whether to send nothing more: the role ends, or something more urgent waits."""
        return self._desk.closing or self._overtaken(self.batch.waiting)

    def ready(self) -> bool:
        """Before dialling: whether something is to be sent or asked.

        What has to be converted first is waited for here, before anybody dials.
        """
        if not self.batch.waiting:
            self.batch.add(self._desk.more(self, 0.0))
        while not self.batch.waiting and self._desk.others_keep(self) and not self._desk.closing:
            self.batch.add(self._desk.more(self, _SHARED_SECONDS))
        self.batch.await_first()
        self.settle()
        return bool(self.batch.waiting) and not self._desk.closing

    def next(self, seconds: float) -> Parcel | None:
        """The next parcel that can go in what is open; None without one for `seconds`.

        Unless `seconds` is 0, what is being converted is waited for a while as well. It has left
        the batch then: whoever takes it finishes it or gives it back. `may_leave` is asked right
        before it is sent.
        """
        deadline = monotonic() + seconds
        while not self._desk.closing:
            self._make_way()
            self._fill(max(0.0, deadline - monotonic()) if seconds else None)
            left = max(0.0, deadline - monotonic())
            patience = max(left, CONVERT_SECONDS) if left else 0.0
            self._share(begun=not seconds)
            parcel = self.batch.next(patience) if self.batch.waiting else None
            self.settle()
            if parcel is not None:
                self._taken[parcel.claim.id] = parcel.claim
            if parcel is not None or self.batch.waiting or not left:
                return parcel
        return None

    def next_kept(self) -> Parcel | None:
        """As `next`; waits only as long as other lanes may share what they have not begun."""
        while self._desk.others_keep(self) and not self._desk.closing:
            if (parcel := self.next(_SHARED_SECONDS)) or self.batch.waiting:
                return parcel
        return self.next(_ASKED_SECONDS)

    def _make_way(self) -> None:
        """Give back what was not begun where something more urgent has arrived."""
        if self.batch.waiting and self._overtaken(self.batch.waiting):
            self._give_back_all("something more urgent went first")

    def _overtaken(self, waiting: Sequence[Claim]) -> bool:
        urgent = self._desk.urgent
        return urgent is not None and all(claim.priority < urgent for claim in waiting)

    def _share(self, *, begun: bool) -> None:
        """Let lanes that have nothing to do send what is not to be begun here at once.

        While the answer to one is awaited (`begun`), that is all of it.
        """
        going = self.batch.going()
        given = self._desk.share(self, going if begun else going[1:], int(begun))
        for claim in given:
            self.batch.waiting.remove(claim)

    def _fill(self, patience: float | None) -> None:
        if len(self.batch.waiting) <= _LOW:
            self.batch.add(self._desk.more(self, None if self.batch.waiting else patience))

    # --- what came of it -----------------------------------------------------------------------

    def may_leave(self, claim: Claim) -> bool:
        """Whether it is still wanted, by people and in its turn, since it was claimed.

        What is not is given back here.
        """
        words = self._desk.objection(claim)
        if words:
            self.give_back(claim, words)
        return not words

    def finish(self, claim: Claim, verdict: Verdict, *, at_once: bool = False) -> None:
        """Record what came of a claim; a passing failure waits its time, or not (`at_once`)."""
        self._done_with(claim)
        self.settled += 1
        self._desk.finish(claim, verdict, at_once=at_once)

    def give_back(self, claim: Claim, words: str) -> None:
        """Return a claim whose sending never began."""
        self._done_with(claim)
        self._desk.give_back([claim], words)

    def put_back(self, given: Sequence[Claim]) -> None:
        """Return claims to the front of the batch: they go another time, or in another way."""
        for claim in given:
            self._taken.pop(claim.id, None)
        self.batch.waiting[:0] = given

    def broke(self, claim: Claim, error: PeerError, seconds: float) -> None:
        """The line ended after `seconds` of sending a claim, before it was answered.

        That is not the instance's fault, unless it happens again and again: what never gets
        through in one piece is tried when nothing else waits.
        """
        if self._desk.closing:
            words = "broken off: the service stopped"
            self.finish(claim, Verdict(DeliveryState.QUEUED, words), at_once=True)
        elif isinstance(error, PeerUnreachable) and not isinstance(error, AssociationAborted):
            # What was converted for it is kept for the next try.
            self._taken.pop(claim.id, None)
            self._broke(claim, error, seconds)
        else:
            self.finish(claim, Verdict(DeliveryState.QUEUED, f"the line broke: {error}"))

    def doubt(self, claim: Claim, error: PeerError, seconds: float) -> None:
        """As `broke`, when all of it had been handed on: only its answer may have been lost.

        It stays in `sending` until the destination was asked; what is not there broke off. When
        the service ends, the next one asks.
        """
        if isinstance(error, AssociationAborted) or not isinstance(error, PeerUnreachable):
            self.broke(claim, error, seconds)
        elif not self._desk.closing:
            self._taken.pop(claim.id, None)
            self.prover.doubt(claim.id, partial(self._broke, claim, error, seconds))

    def _broke(self, claim: Claim, error: PeerError, seconds: float) -> None:
        needs = claim.byte_length / (self.pace.rate or _NOT_MEASURED)
        self._desk.broke(claim, error, seconds, needs)

    def settle(self) -> None:
        """Record what became of claims that have no way, or whose preparation failed."""
        for claim, verdict in self.batch.settled():
            self.settled += 1
            self._desk.finish(claim, verdict)

    def _done_with(self, claim: Claim) -> None:
        self._taken.pop(claim.id, None)
        self.batch.done_with(claim)

    # --- the association -----------------------------------------------------------------------

    def opened(self, association: Association, seconds: float) -> None:
        """An association was accepted, in so many seconds; what `abort` then ends."""
        agreed = association.agreement
        quirk = quirk_of(agreed.implementation_class_uid, agreed.implementation_version)
        self.connected(association.abort, seconds, quirk.contexts)

    def connected(
        self, abort: Callable[[], None], seconds: float, contexts: int = CONTEXTS_MAX
    ) -> None:
        """There is a connection that `abort` ends; made in so many seconds."""
        self.width.opened(seconds, contexts, self._needs())
        self.link.worked()
        self.abort_with(abort)
        self.open = self.was_open = True

    def _needs(self) -> float:
        """Seconds of the line that one of the next instances takes; 0 where nobody knows."""
        waiting, rate = self.batch.waiting, self.pace.rate
        if not waiting or not rate:
            return 0.0
        return sum(one.byte_length for one in waiting) / len(waiting) / rate

    def ended(self) -> None:
        """It is closed."""
        self.batch.closed()
        self.abort_with(None)
        self.leaving = False
        if self.open:
            self.width.closed()
        self.open = False

    def prove(self, association: Association) -> None:
        """Ask for proof of what was sent, on the association that sent it."""
        self.leaving = True
        self._desk.flush(_FLUSH_SECONDS)
        if not self._desk.closing:
            self.prover.after(association)
        self.leaving = False

    @contextmanager
    def under_way(self, claim: Claim) -> Iterator["Clock"]:
        """While an instance is being sent, with a clock for how long each part takes."""
        clock = Clock()
        self.sending, self.sending_since = claim, clock.begun
        self.width.begin()
        try:
            yield clock
        finally:
            self.sending = None
            self.width.end(clock.length, clock.handing, clock.waiting)

    # --- how it ends ---------------------------------------------------------------------------

    def abort_with(self, abort: Callable[[], None] | None) -> None:
        """How what is under way is broken off, from another thread; None for nothing."""
        self._abort = abort

    def abort(self) -> None:
        """Break off what is being sent; from any thread."""
        if self._abort is not None:
            self._abort()

    def close(self, words: str) -> bool:
        """Give everything back that was not begun; `words` say why.

        Whether something is left of which it is not known how far it came.
        """
        self._give_back_all(words)
        self._desk.leave(self, words)
        self.batch.close()
        return bool(self._taken)

    def _give_back_all(self, words: str) -> None:
        given = list(self.batch.waiting)
        self.batch.waiting.clear()
        self._desk.give_back(given, words)
