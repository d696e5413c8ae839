"""The DIMSE transport: associations that carry a job's instances to one destination by C-STORE."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from edgepacs.clock import monotonic
from edgepacs.custody.outgoing import outgoing
from edgepacs.dimse import Association, Limits, NoContextAccepted
from edgepacs.dimse.message import StoreResponse
from edgepacs.dimse.status import lookup
from edgepacs.errors import EdgePacsError, NotFound, PeerError, Tampered
from edgepacs.forward.batch import Parcel, Verdict
from edgepacs.forward.dial import ECHO_SECONDS, LIMITS, open_association
from edgepacs.forward.dial import echo as echo  # noqa: PLC0414  one of the two ways of a transport
from edgepacs.forward.job import Job
from edgepacs.model import UID, DeliveryState, LinkState
from edgepacs.pixels.syntaxes import syntax
from edgepacs.store import claims, deliveries, instances
from edgepacs.store.claims import Claim
from edgepacs.store.deliveries import LOSSY_RESPONSE, RESPONSE
from edgepacs.telemetry import failpoint

LINGER_SECONDS = 2.0  # how long an association is kept open for what is new
_LEAST_LINGER = 0.001  # when proof has taken longer than that
PROVE_SECONDS = 5.0  # from one request for proof on an association to the next
COMING = 200  # queued instances whose presentation contexts are proposed ahead
_UNSENT_LEAST, _UNSENT_MOST = 16_384, 262_144  # bytes the kernel may hold unsent
_UNSENT_SECONDS = 0.5  # of the measured rate, likewise
_TAIL_SECONDS = 5.0  # for what the kernel holds of an instance to leave, before the next begins


# --- carrying a job ----------------------------------------------------------------------------


def carry(job: Job) -> None:
    """Send in one association what a job holds, and what it is filled up with meanwhile.

    Raises PeerError where the line or the peer ends it.
    """
    coming = claims.coming(job.store.db, job.destination.id, COMING)
    own = job.prover.contexts
    proposed = job.batch.proposals(coming, job.width.contexts - len(own))
    begun = monotonic()
    try:
        association = open_association(job.store, job.destination, proposed, own, _limits(job))
    except NoContextAccepted:
        job.link.worked()  # it answers, and knows us
        job.batch.learn(proposed, ())
        job.settle()
        return
    job.opened(association, monotonic() - begun)
    with ExitStack() as ending:
        ending.callback(job.ended)
        ending.enter_context(association)
        accepted = {pair for pair in proposed if association.accepted(*pair) is not None}
        job.batch.learn(proposed, accepted)
        job.settle()
        _Sending(job, association).run()
        job.leaving = True


def _limits(job: Job) -> Limits:
    longest = min(LIMITS.send_pdu_length, max(job.pace.write_bytes, _UNSENT_LEAST))
    if job.link.state is not LinkState.UP:  # this is the probe
        artim = min(ECHO_SECONDS, LIMITS.artim)
        return replace(LIMITS, send_pdu_length=longest, artim=artim)
    if job.width.alone:
        return replace(LIMITS, send_pdu_length=longest)
    # Who does not answer soon while others are served takes no more of them.
    return replace(LIMITS, send_pdu_length=longest, artim=job.width.patience)


class _Ready(NamedTuple):
    """A parcel with all that is needed to send it at once."""

    claim: Claim
    context: int
    syntax: UID
    sop_instance: UID
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class _Sending:
    """Sends one instance after the other; the next is made ready while an answer is awaited."""

    job: Job
    association: Association

    def run(self) -> None:
        """Send, and ask for proof of it, until there is nothing more for this association.

        Proof is asked for as soon as nothing is left to send, and not too often where instances
        come one by one; only then is it waited for what is new.
        """
        unproved, not_before = 0, 0.0
        ready = self._next(LINGER_SECONDS)
        while ready is not None:
            following = None
            if self.job.may_leave(ready.claim):
                following = self._send(ready)
                unproved += 1
            ready = following or self._first(self.job.next_kept)
            leave_at = monotonic() + LINGER_SECONDS
            if ready is None and unproved and monotonic() >= not_before:
                self._prove()
                unproved, not_before = 0, monotonic() + PROVE_SECONDS
            ready = ready or self._next(max(_LEAST_LINGER, leave_at - monotonic()))
        if unproved:
            self._prove()

    def _prove(self) -> None:
        if self.association.is_open:
            self.job.prove(self.association)

    def _next(self, seconds: float) -> _Ready | None:
        return self._first(lambda: self.job.next(seconds))

    def _first(self, parcels: Callable[[], Parcel | None]) -> _Ready | None:
        """The first of them that can be read."""
        while self.association.is_open and (parcel := parcels()):
            if ready := self._ready(parcel):
                return ready
        return None

    def _ready(self, parcel: Parcel) -> _Ready | None:
        """Open it and read its first piece; what cannot be read is settled here."""
        claim = parcel.claim
        try:
            found = self._data_set(parcel)
            if found is None:
                self.job.give_back(claim, "rewritten before its turn")
                return None
            uid, sop, pieces = found
            first = next(pieces, b"")
        except EdgePacsError as error:
            self._unreadable(claim, error)
            return None
        context = self.association.accepted(claim.sop_class_uid, uid)
        assert context is not None
        return _Ready(claim, context, uid, sop, chain((first,), pieces))

    def _data_set(self, parcel: Parcel) -> tuple[UID, UID, Iterator[bytes]] | None:
        """Transfer syntax, SOP Instance UID and bytes of what is to be sent.

        What was compressed at rest since it was claimed still goes as it was received; None
        where it was rewritten into a transfer syntax that was not proposed.
        """
        if prepared := parcel.prepared:
            return prepared.transfer_syntax_uid, prepared.sop_instance_uid, prepared.pieces()
        row = instances.instance(self.job.store.db, parcel.claim.instance)
        possible = {
            one
            for one in (row.transfer_syntax_uid, row.received_syntax_uid)
            if self.association.accepted(row.sop_class_uid, one) is not None
        }
        if not possible:
            return None
        going = outgoing(self.job.store, row, possible)
        return going.transfer_syntax_uid, going.sop_instance_uid, going.chunks

    def _unreadable(self, claim: Claim, error: EdgePacsError) -> None:
        """Our own copy is the problem, which the next association cannot help.

        Also where the device fails: only what cannot be written ends this role (the desk's).
        """
        lost = isinstance(error, Tampered | NotFound)
        state = DeliveryState.FAILED if lost else DeliveryState.QUEUED
        self.job.finish(claim, Verdict(state, f"{deliveries.NOT_SENT}{error}"))

    def _send(self, ready: _Ready) -> _Ready | None:
        """Send one instance, in constant memory (PS3.4 B.2.3); the next one, where there is one.

        Raises PeerError when the association broke before the destination answered.
        """
        claim, job = ready.claim, self.job
        self.association.keep_unsent(_unsent(job))
        following = None
        with job.under_way(claim) as clock, job.pace.sending():
            try:
                answer = self._begin(ready)
                if answer is None:
                    return None
                clock.handed()
                following = self._next(0.0)
                response = answer()
            except PeerError as error:
                if following is not None:
                    job.give_back(following.claim, f"the line broke before its turn: {error}")
                end = job.doubt if clock.handing else job.broke
                end(claim, error, clock.seconds)
                raise
            clock.answered(claim.byte_length)
        failpoint("forward.sent")
        job.link.worked()
        proof = RESPONSE if ready.sop_instance == claim.sop_instance_uid else LOSSY_RESPONSE
        manner = _sent_as(claim, ready.syntax)
        job.finish(claim, judged(response.status, response.comment, manner, proof))
        return following

    def _begin(self, ready: _Ready) -> Callable[[], StoreResponse] | None:
        """Send it; what then waits for the answer. None where it turns out to be unreadable."""
        claim, pace = ready.claim, self.job.pace
        paced = pace.carry(ready.pieces, claim.priority)
        try:
            with pace.turn(claim.byte_length, claim.priority) as in_turns:
                answer = self.association.begin_store(
                    ready.context, claim.sop_class_uid, ready.sop_instance, paced
                )
                if in_turns:
                    self.association.await_sent(_TAIL_SECONDS)
        except PeerError:
            raise
        except EdgePacsError as error:  # which has aborted the association
            self._unreadable(claim, error)
            return None
        return answer


def _unsent(job: Job) -> int:
    """Bytes the kernel may hold for one association: enough for the line, and little more.

    What it holds can no longer give way to something urgent, and hides whether the line lives.
    """
    rate = job.pace.rate
    if not rate:
        return _UNSENT_MOST // 4
    wanted = rate * max(_UNSENT_SECONDS, 1.5 * job.width.round_trip) / job.width.lanes
    return int(min(max(wanted, _UNSENT_LEAST), _UNSENT_MOST))


def _sent_as(claim: Claim, uid: UID) -> str:
    """How it was sent, where it was not as it is stored."""
    row = syntax(uid)
    return f", sent as {row.name}" if row and uid != claim.transfer_syntax_uid else ""


def judged(code: int, comment: str, manner: str = "", proof: str = RESPONSE) -> Verdict:
    """A C-STORE status as a verdict: passing failures are tried again, permanent ones are not."""
    status = lookup(code)
    said = f" ({comment})" if comment else ""
    if status.stored:
        return Verdict(DeliveryState.SENT, f"{status.meaning} ({code:04X}){manner}", proof)
    words = f"the destination answered {code:04X}, {status.meaning}{said}{manner}"
    return Verdict(DeliveryState.QUEUED if status.passing else DeliveryState.FAILED, words)
