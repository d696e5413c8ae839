"""Proof: that what was sent has arrived, by storage commitment or by query.

Commitment is asked for on the association that sent, or on one of its own, and its report awaited
there for a moment; most come later, on an association of the destination's own, to scp/. Where no
report ever comes, and where commitment is not offered, the destination is asked for each instance
by its own UID. Everything that is under way stands in the store: this process may end at any time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from types import MappingProxyType

from edgepacs.clock import monotonic, wall_ms
from edgepacs.dimse import (
    Association,
    AssociationRefused,
    Field,
    NoContextAccepted,
    ProposedContext,
    commitment,
)
from edgepacs.dimse.commitment import Report
from edgepacs.dimse.contexts import IMPLICIT_VR_LE, STORAGE_COMMITMENT_PUSH
from edgepacs.dimse.status import UNRECOGNISED_OPERATION, Category
from edgepacs.errors import NotAdmitted, PeerBusy, PeerError, PeerRefused, PeerUnreachable
from edgepacs.forward import dial, inquiry
from edgepacs.forward.quirks import quirk_of
from edgepacs.model import UID, Callback, DeliveryState, ProofWanted, new_uid
from edgepacs.store import Store, commitments, terms
from edgepacs.store.commitments import Fate, Judgement, Request, Sought
from edgepacs.store.destinations import Destination
from edgepacs.store.incidents import Incident
from edgepacs.telemetry import failpoint

BATCH = 500  # instances in one commitment request: some 60 KB
REQUESTS = 4  # on one association, which keeps as many reports that come early
QUERIES = 200  # instances asked for in one turn
GATHER_MS = 5_000  # so long lanes may ask themselves, and others are gathered for one association
DOUBTS_SECONDS = 4.0  # until it is asked again for what a broken line has left in doubt
IDLE_SECONDS = 30.0
DAY_SECONDS = 24 * 60 * 60.0  # what a destination does not offer is asked for again after a day
LISTEN_SECONDS: Mapping[Callback, float] = MappingProxyType(
    {Callback.UNKNOWN: 3.0, Callback.SAME: 15.0, Callback.NEW: 0.0, Callback.NEVER: 0.0}
)
_RETRY_FIRST, _RETRY_MOST = 30.0, 3600.0  # seconds, after a query that failed

_NOT_NOW = (PeerUnreachable, AssociationRefused, NotAdmitted)  # nobody could be asked anything

COMMITMENT = (UID(STORAGE_COMMITMENT_PUSH), UID(IMPLICIT_VR_LE))
NO_REPORT = "the destination has not reported on its commitment in time"
NOT_THERE = "the destination does not have it, although it answered success"
_REFUSED_FOR_GOOD = (0x0119, 0x0122)  # sending the same again cannot help (PS3.3 C.14-1)


def judge(reason: int) -> Judgement:
    """What is to become of an instance that was not committed for `reason` (PS3.3 C.14-1)."""
    words = f"the destination did not commit it: {commitment.reason_words(reason)}"
    if reason == commitment.DUPLICATE_TRANSACTION:
        return Judgement(Fate.ASK_AGAIN, words)
    return Judgement(Fate.REFUSED if reason in _REFUSED_FOR_GOOD else Fate.SEND_AGAIN, words)


class Prover:
    """Proves what was sent to one destination.

    `after` may be called from several lanes at once, everything else belongs to the courier, whose
    thread for it calls `round`.
    """

    def __init__(self, store: Store, destination: Destination) -> None:
        self._store = store
        self._db = store.db
        self._destination = destination
        self._id = destination.id
        self._commits = (
            destination.proof is ProofWanted.COMMITTED and destination.transport == "dimse"
        )
        self._reconsider = 0.0  # monotonic: when what had no proof to be had is asked for again
        self._no_queries = 0.0  # monotonic: until when the destination is not queried
        self._sent_since = inf  # monotonic: when what a lane has sent meanwhile is gathered
        self._failures = 0  # queries that failed, one after the other
        self._broken_off: dict[int, Callable[[], None]] = {}  # deliveries in doubt
        self._ask_doubts_at = 0.0  # monotonic

    @property
    def contexts(self) -> tuple[ProposedContext, ...]:
        """What an association that sends proposes beside: storage commitment as SCU."""
        return (commitment.AS_SCU,) if self._commits and self._reports() else ()

    def _reports(self) -> bool:
        """Whether reports may come."""
        return commitments.callback(self._db, self._id) is not Callback.NEVER

    def doubt(self, delivery: int, absent: Callable[[], None]) -> None:
        """A line broke when all of a delivery had been sent: `round` asks whether it has arrived.

        `absent` is called, in the thread of `round`, where it has not. From any thread.
        """
        self._broken_off[delivery] = absent

    def sent(self) -> None:
        """A lane has ended: what it sent is to be proved, soon."""
        self._sent_since = monotonic() + GATHER_MS / 1000

    # --- storage commitment --------------------------------------------------------------------

    def after(self, association: Association) -> None:
        """Ask for the commitment of what was sent, on the association that sent it.

        Waits a little for the report. What the store does not yet know to be sent is left to
        `round`. Raises PeerError when the association breaks.
        """
        self.sent()
        if self._commits and self._reports():
            offered = association.accepted(*COMMITMENT) is not None
            self._learn(offered=offered)
            if offered:
                self._ask_on(association, age_ms=0)

    def _ask_on(self, association: Association, *, age_ms: int) -> bool:
        """Ask for what is due; whether there may be more."""
        for _ in range(REQUESTS):
            items = commitments.askable(self._db, self._id, age_ms=age_ms, most=BATCH)
            request = commitments.begin(self._db, self._id, items) if items else None
            if request is None:
                return False
            failpoint("proof.begun")
            if self._ask(association, request):
                self._listen(association, request)
            if not association.is_open:
                return False
        return True

    def _ask(self, association: Association, request: Request) -> bool:
        """Send one request; whether a report on it will come."""
        context = association.accepted(*COMMITMENT)
        assert context is not None
        references = [(one.sop_class_uid, one.sop_instance_uid) for one in request.items]
        try:
            status = commitment.ask(association, context, request.transaction_uid, references)
        except PeerError as error:
            words = f"the line broke while commitment was asked for: {error}"
            commitments.withdraw(self._db, request, words=words, counted=False)
            raise
        if status.category in (Category.SUCCESS, Category.WARNING):
            return True
        words = f"the destination refused to be asked for commitment: {status}"
        commitments.withdraw(self._db, request, words=words, counted=True)
        return False

    def _listen(self, association: Association, request: Request) -> None:
        """Take reports that come on the association that asked, until that on `request` has."""
        patience = LISTEN_SECONDS[commitments.callback(self._db, self._id)]
        deadline = monotonic() + (0.0 if _reports_apart(association) else patience)
        waiting = True
        while waiting:
            message = association.listen(max(0.0, deadline - monotonic()))
            if message is None:
                return
            if message.command.field != Field.N_EVENT_REPORT_RQ:
                association.respond(message, UNRECOGNISED_OPERATION)
                continue
            came: list[str] = []

            def record(report: Report, came: list[str] = came) -> bool:
                came.append(report.transaction_uid)
                return commitments.record(
                    self._db, report.transaction_uid, report.outcomes, Callback.SAME
                )

            self._note(commitment.answer(association, message, record))
            waiting = request.transaction_uid not in came
        commitments.settle(self._db, self._id, judge)

    def _note(self, wrong: str) -> None:
        """Record what was wrong with a report."""
        if wrong:
            where = self._destination
            self._store.incidents.note(
                Incident(act="report refused", host=where.host, actor=where.ae_title, detail=wrong)
            )

    # --- turns of the courier ------------------------------------------------------------------

    def due_in(self) -> float:
        """Seconds until `round` is due, if sooner than it said: a report came, or more was sent."""
        if commitments.reported(self._db, self._id):
            return 0.0
        doubts = self._ask_doubts_at if self._broken_off else inf
        return max(0.0, min(self._sent_since, doubts) - monotonic())

    def round(self) -> float:
        """Act on reports, and ask and query for what is due; seconds until the next turn.

        Raises PeerError where the line or the peer ends it: nothing is lost by that.
        """
        self._settle_broken_off()
        self._sent_since = inf
        commitments.settle(self._db, self._id, judge)
        self._expire()
        if self._destination.proof is ProofWanted.RESPONSE:
            return IDLE_SECONDS
        self._look_again()
        more = self._ask_due()
        more = self._query_due() or more
        return 0.0 if more else self._next_turn()

    def _expire(self) -> None:
        """Where no report has ever come in all the time there is, none is believed to come."""
        asked = commitments.expire(self._db, self._id, words=NO_REPORT)
        often = asked >= len(commitments.PATIENCE_MS)
        if often and commitments.callback(self._db, self._id) is Callback.UNKNOWN:
            commitments.set_callback(self._db, self._id, Callback.NEVER)

    def _next_turn(self) -> float:
        due = commitments.due_in_ms(self._db, self._id)
        if not due:  # what lanes have only just sent they ask for, or it is gathered
            return IDLE_SECONDS
        return min(max(due / 1000, self._no_queries - monotonic()), IDLE_SECONDS)

    def _offers_commitment(self) -> bool:
        """Whether to ask for it: unless it was refused within a day."""
        if not self._commits or not self._reports():
            return False
        for one in terms.acceptances(self._db, self._id):
            if (one.sop_class_uid, one.transfer_syntax_uid) == COMMITMENT:
                fresh = 0 <= wall_ms() - one.learnt_ms < DAY_SECONDS * 1000
                return bool(one.accepted) or not fresh
        return True

    def _learn(self, *, offered: bool) -> None:
        terms.learn(self._db, self._id, {COMMITMENT: offered})

    def _ask_due(self) -> bool:
        """Ask on an association of its own for what no lane has asked for; whether more is left."""
        if not self._offers_commitment() or not commitments.askable(
            self._db, self._id, age_ms=GATHER_MS, most=1
        ):
            return False
        try:
            association = dial.open_association(self._store, self._destination, [COMMITMENT])
        except NoContextAccepted:
            self._learn(offered=False)
            return False
        with association:
            self._learn(offered=True)
            return self._ask_on(association, age_ms=GATHER_MS)

    # --- query ---------------------------------------------------------------------------------

    def _found(self, items: Sequence[Sought]) -> Collection[str]:
        """Which of `items` the destination has, by SOP Instance UID."""
        if self._destination.transport == "dimse":
            return inquiry.found(self._store, self._destination, items)
        from edgepacs.forward import qido  # noqa: PLC0415  only who sends by HTTPS loads it

        return qido.found(self._store, self._destination, items)

    def _query_due(self) -> bool:
        """Query for what commitment is not to be had for; whether there may be more."""
        asked = len(commitments.PATIENCE_MS) if self._offers_commitment() else 0
        items = commitments.findable(
            self._db, self._id, age_ms=GATHER_MS, most=QUERIES, asked=asked
        )
        if not items or (self._failures and monotonic() < self._no_queries):
            return False
        if monotonic() < self._no_queries:
            commitments.mark_unprovable(self._db, items)
            return len(items) == QUERIES
        return self._query(items)

    def _query(self, items: Sequence[Sought]) -> bool:
        try:
            there = self._found(items)
        except _NOT_NOW:
            raise
        except PeerRefused:  # it offers no queries
            self._no_queries, self._failures = monotonic() + DAY_SECONDS, 0
            commitments.mark_unprovable(self._db, items)
            return True
        except PeerError as error:
            wait = min(_RETRY_FIRST * 2.0 ** min(self._failures, 10), _RETRY_MOST)
            self._no_queries, self._failures = monotonic() + wait, self._failures + 1
            commitments.postpone(self._db, items, seconds=wait, words=str(error))
            return False
        self._no_queries, self._failures = 0.0, 0
        self._confirm(items, there)
        return len(items) == QUERIES

    def _confirm(self, items: Sequence[Sought], there: Collection[str]) -> None:
        found = [one for one in items if one.sop_instance_uid in there]
        absent = [one for one in items if one.sop_instance_uid not in there]
        commitments.confirm(self._db, self._id, found)
        commitments.not_found(self._db, self._id, absent, words=NOT_THERE)

    def _look_again(self) -> None:
        """Once a day, and at the start: whether a destination without any proof offers some now."""
        if monotonic() < self._reconsider:
            return
        sample = commitments.unprovable(self._db, self._id, most=1)
        if sample and (self._commitment_is_new() or self.answers_queries()):
            commitments.reconsider(self._db, self._id)
            self._no_queries = 0.0
        self._reconsider = monotonic() + DAY_SECONDS

    def _commitment_is_new(self) -> bool:
        return self._offers_commitment() and _accepts(self._store, self._destination, COMMITMENT)

    def answers_queries(self) -> bool:
        """Whether the destination answers a query, about an instance that nobody has."""
        uid = new_uid()
        nobodys = Sought(
            delivery=0,
            sop_class_uid=uid,
            sop_instance_uid=uid,
            series_instance_uid=uid,
            study_instance_uid=uid,
            asked=0,
        )
        try:
            self._found([nobodys])
        except _NOT_NOW:
            raise
        except PeerRefused:
            return False
        except PeerError:
            return True  # not now, but it does
        return True

    # --- doubts --------------------------------------------------------------------------------

    def settle_doubts(self) -> None:
        """Ask for what a crash has left in `sending`, before anything is claimed.

        What is there is confirmed, or goes on to commitment where that is demanded; the rest, and
        all where the destination answers no queries, is queued. Raises PeerUnreachable, and
        PeerRefused when nobody is let in: the doubts then stay as they are.
        """
        while items := commitments.doubts(self._db, self._id, most=QUERIES):
            commitments.resolve(self._db, self._id, items, self._arrived(items), self._once_there)

    @property
    def _once_there(self) -> DeliveryState:
        offered = self._offers_commitment()
        return DeliveryState.SENT if offered else DeliveryState.CONFIRMED_BY_QUERY

    def _arrived(self, items: Sequence[Sought]) -> Collection[str]:
        """Which of them are there; none, where the destination answers no queries."""
        try:
            return self._found(items)
        except (*_NOT_NOW, PeerBusy):  # it may be asked later
            raise
        except PeerError:
            return set()

    def _settle_broken_off(self) -> None:
        """The same for what a broken line has left, while lanes send on."""
        pending = dict(self._broken_off)
        if not pending:
            return
        self._ask_doubts_at = monotonic() + DOUBTS_SECONDS
        items = commitments.doubted(self._db, self._id, pending)
        there = self._arrived(items) if items else ()
        arrived = [one for one in items if one.sop_instance_uid in there]
        if arrived:
            commitments.resolve(self._db, self._id, arrived, there, self._once_there)
        for number in pending:
            del self._broken_off[number]
        for one in items:
            if one.sop_instance_uid not in there:
                pending[one.delivery]()
        self._ask_doubts_at = 0.0


# --- in words ------------------------------------------------------------------------------------

_CALLS: Mapping[Callback, str] = MappingProxyType(
    {
        Callback.UNKNOWN: "no report has come yet",
        Callback.SAME: "its reports come on the association that asks",
        Callback.NEW: "it calls back with its reports",
        Callback.NEVER: "its reports do not come: it cannot call back",
    }
)


def habits(store: Store, destination: Destination) -> str:
    """What proof a destination offers, asked now, for a person; raises PeerError.

    Whether it can call back is known only from reports that came, or never did.
    """
    answers = Prover(store, destination).answers_queries()
    found = "answers queries" if answers else "answers no queries"
    if destination.transport != "dimse":
        return f"no storage commitment by HTTPS; {found}"
    if not _accepts(store, destination, COMMITMENT):
        return f"offers no storage commitment; {found}"
    way = commitments.callback(store.db, destination.id)
    return f"offers storage commitment, {_CALLS[way]}; {found}"


def _reports_apart(association: Association) -> bool:
    """Whether the peer is known never to report on the association that asked."""
    agreed = association.agreement
    return quirk_of(agreed.implementation_class_uid, agreed.implementation_version).commitment_apart


def _accepts(store: Store, destination: Destination, pair: tuple[UID, UID]) -> bool:
    """Whether a destination accepts a presentation context."""
    try:
        with dial.open_association(store, destination, [pair]):
            return True
    except NoContextAccepted:
        return False
