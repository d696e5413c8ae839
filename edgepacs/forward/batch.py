"""One round of a courier: in which transfer syntax each delivery goes, and what is ready to go.

What a destination accepts is learnt from its answers (`store.terms`). Known to be accepted means:
go, or prepare it so. Not known means: ask, by proposing it. Nothing is given up on what was
learnt another day: only where one association has just refused every way there is.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from edgepacs.clock import wall_ms
from edgepacs.custody.converter import ConverterBroke, Order
from edgepacs.custody.outgoing import writable
from edgepacs.custody.prepared import Prepared
from edgepacs.dimse.contexts import STORAGE_SOP_CLASSES
from edgepacs.dimse.requestor import CONTEXTS_MAX
from edgepacs.errors import EdgePacsError, NotFound, NotOffered, Tampered
from edgepacs.forward.workshop import Bench
from edgepacs.model import UID, DeliveryState
from edgepacs.pixels.description import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from edgepacs.pixels.lossy import JPEG_2000_LOSSY, JPEG_BASELINE
from edgepacs.pixels.syntaxes import syntax
from edgepacs.store import Store, deliveries, terms
from edgepacs.store.claims import Claim

FRESH_MS = 24 * 60 * 60 * 1000  # for so long a refusal is not asked about again
TRIES = 3  # of converting an instance on which the converter breaks
_LOSSY = (UID(JPEG_BASELINE), UID(JPEG_2000_LOSSY))
_NATIVE = (UID(EXPLICIT_LITTLE), UID(IMPLICIT_LITTLE))
_NATIVE = (UID(EXPLICIT_LITTLE), UID(IMPLICIT_LITTLE))
Pair = tuple[UID, UID]
"""A SOP class and a transfer syntax: what one presentation context is proposed with."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one attempt, in words a technologist understands.

    `delay_ms` is how long a peer asked to be left alone, 0 where it did not.
    """

    state: DeliveryState
    words: str
    proof: str = deliveries.RESPONSE
    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class Parcel:
    """A claim that can go now: as it is stored, or as it was prepared."""

    claim: Claim
    prepared: Prepared | None = None


class _Way(Enum):
    GO = auto()  # as it is stored
    ASK = auto()  # an association has to tell
    PREPARE = auto()
    NONE = auto()


class Batch:
    """The claims a lane has and what becomes of them; for the thread of the lane."""

    def __init__(
        self, store: Store, destination: int, claims: Iterable[Claim], bench: Bench
    ) -> None:
        self._store = store
        self._destination = destination
        self._workshop = bench
        self._quality = terms.lossy_quality(store.db, destination)
        known = terms.acceptances(store.db, destination)
        self._known: dict[Pair, bool] = {
            (one.sop_class_uid, one.transfer_syntax_uid): bool(one.accepted) for one in known
        }
        since = wall_ms() - FRESH_MS
        self._fresh = {
            (one.sop_class_uid, one.transfer_syntax_uid)
            for one in known
            if since < one.learnt_ms <= since + FRESH_MS
        }
        self._asked: set[Pair] = set()  # in the last association
        self._open: frozenset[Pair] = frozenset()  # accepted in the association that is open
        self._plain: set[int] = set()  # deliveries that lose nothing although others do
        self._why_not: dict[int, str] = {}  # of deliveries nothing known to be accepted suits
        self.waiting = list(claims)

    def add(self, claims: Iterable[Claim]) -> None:
        """More to do."""
        self.waiting.extend(claims)

    def close(self) -> None:
        """There is nothing more to do for this lane."""
        self._workshop.leave()

    # --- before an association -----------------------------------------------------------------

    def await_first(self) -> None:
        """Return when something can go, or has to be asked, or is not to be prepared at all."""
        while not any(self._can_leave(claim) for claim in self.waiting):
            orders = self._orders()
            known = any(self._workshop.has(one) for one in orders.values())
            if known or not orders or self._workshop.stopped:
                return
            self._workshop.wait(orders.values())

    def _can_leave(self, claim: Claim) -> bool:
        return self._way(claim) is not _Way.PREPARE

    def proposals(self, coming: Iterable[Pair] = (), most: int = CONTEXTS_MAX) -> list[Pair]:
        """What to propose: first what is stored, then what else each claim could go in.

        Then what those that are `coming` after them are stored in, unless it was refused.
        """
        pairs = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in self.waiting)
        for claim in self.waiting:
            way = self._way(claim)
            if way is _Way.GO:
                continue
            others = [(claim.sop_class_uid, one) for one in self._others(claim)]
            for pair in sorted(others, key=lambda pair: not self._known.get(pair)):
                refused = self._known.get(pair) is False and pair in self._fresh
                if way is _Way.ASK or not refused:
                    pairs.setdefault(pair)
        for pair in coming:
            if self._known.get(pair) is not False:
                pairs.setdefault(pair)
        return list(pairs)[:most]

    # --- with an association -------------------------------------------------------------------

    def learn(self, proposed: Sequence[Pair], accepted: Collection[Pair]) -> None:
        """Take the answers of a peer: which of those `proposed` it has `accepted`."""
        answers = {pair: pair in accepted for pair in proposed}
        terms.learn(self._store.db, self._destination, answers)
        self._known.update(answers)
        self._fresh.update(answers)
        self._asked = set(answers)
        self._open = frozenset(pair for pair, accepted in answers.items() if accepted)

    def presume(self, refused: Collection[Pair]) -> bool:
        """Where a peer answers only to what it is sent: take for accepted what was not `refused`.

        What it refused another day is tried once more. Whether that changes anything.
        """
        news: set[Pair] = set()
        for claim in self.waiting:
            stored = (claim.sop_class_uid, claim.transfer_syntax_uid)
            if self._known.get(stored) is False and stored not in self._fresh:
                news.add(stored)
            if self._way(claim) is _Way.ASK:
                news |= {stored, *((claim.sop_class_uid, one) for one in self._others(claim))}
        news = {pair for pair in news if pair not in refused and not self._known.get(pair)}
        self._known.update(dict.fromkeys(news, True))
        self._asked = set(refused)
        self._open = frozenset(pair for pair, accepted in self._known.items() if accepted)
        return bool(news)

    def closed(self) -> None:
        """The association has ended."""
        self._open = frozenset()

    def next(self, seconds: float) -> Parcel | None:
        """The first claim that can go in the open association; None after `seconds` without one.

        It no longer waits then. What is being prepared is waited for as long as that.
        """
        for patience in (seconds, 0.0):
            orders = self._orders()
            for claim in self.waiting:
                if parcel := self._parcel(claim, orders.get(claim.id)):
                    self.waiting.remove(claim)
                    return parcel
            pending = [one for one in orders.values() if not self._workshop.has(one)]
            if not pending or not patience:
                return None
            self._workshop.wait(pending, patience)
        return None

    def _parcel(self, claim: Claim, order: Order | None) -> Parcel | None:
        if order is None:
            stored = (claim.sop_class_uid, claim.transfer_syntax_uid)
            return Parcel(claim) if self._way(claim) is _Way.GO and stored in self._open else None
        prepared = self._made(claim, order)
        if claim.id in self._plain and not prepared:
            return self._parcel(claim, None)
        if prepared and (claim.sop_class_uid, prepared.transfer_syntax_uid) in self._open:
            return Parcel(claim, prepared)
        return None

    def _made(self, claim: Claim, order: Order) -> Prepared | None:
        if not self._workshop.has(order):
            return None
        try:
            prepared = self._workshop.take(order)
        except EdgePacsError:
            return None  # `settled` says what became of it
        if prepared is None:
            self._plain.add(claim.id)
        return prepared

    def going(self) -> list[Claim]:
        """The claims that can go as they are stored, in what is open."""
        return [
            claim
            for claim in self.waiting
            if self._way(claim) is _Way.GO
            and (claim.sop_class_uid, claim.transfer_syntax_uid) in self._open
        ]

    def done_with(self, claim: Claim) -> None:
        """Keep nothing for a claim any longer."""
        if order := self._order(claim):
            self._workshop.done_with(order)

    def settled(self) -> list[tuple[Claim, Verdict]]:
        """Claims that have no way, or whose preparation failed; they no longer wait."""
        found = []
        for claim in list(self.waiting):
            verdict = self._verdict(claim)
            if verdict is not None:
                self.done_with(claim)
                self.waiting.remove(claim)
                found.append((claim, verdict))
        return found

    # --- deciding ------------------------------------------------------------------------------

    def _verdict(self, claim: Claim) -> Verdict | None:
        way = self._way(claim)
        if way is _Way.NONE:
            return Verdict(DeliveryState.FAILED, self._refusal(claim))
        order = self._order(claim) if way is _Way.PREPARE else None
        if order is None or not self._workshop.has(order):
            return None
        try:
            self._workshop.take(order)
        except NotOffered as error:
            self._workshop.done_with(order)
            if self._wish(claim):  # what cannot go as it was wished goes as it would without
                self._plain.add(claim.id)
            else:
                self._why_not[claim.id] = str(error)
            return self._verdict(claim)
        except EdgePacsError as error:
            return _failed(claim, error)
        return None

    def _way(self, claim: Claim) -> _Way:
        if claim.id in self._why_not:
            return self._ask_or(_Way.NONE, claim)
        if wish := self._wish(claim):
            taken = [self._known.get((claim.sop_class_uid, one)) for one in wish]
            if any(taken):
                return _Way.PREPARE
            if None in taken:
                return _Way.ASK
        stored = self._known.get((claim.sop_class_uid, claim.transfer_syntax_uid))
        if stored is not False:
            return _Way.GO if stored else _Way.ASK
        return _Way.PREPARE if self._accepted(claim) else self._ask_or(_Way.NONE, claim)

    def _ask_or(self, otherwise: _Way, claim: Claim) -> _Way:
        pairs = [(claim.sop_class_uid, one) for one in self._others(claim)]
        asked = all(pair in self._asked for pair in pairs)
        stored = (claim.sop_class_uid, claim.transfer_syntax_uid)
        return otherwise if asked and stored in self._asked else _Way.ASK

    def _wish(self, claim: Claim) -> tuple[UID, ...]:
        """The transfer syntaxes it is to go in rather than as it stands; none for no such wish."""
        row = syntax(claim.transfer_syntax_uid)
        if claim.id in self._plain or row is None or row.decoder is None:
            return ()
        if self._quality_of(claim) and claim.frames:
            return _LOSSY
        wants_other = claim.send_as == "native" and claim.transfer_syntax_uid not in _NATIVE
        return _NATIVE if wants_other else ()

    def _quality_of(self, claim: Claim) -> int:
        """By what quality it loses something, 0 for not: as its rule says, or its destination."""
        return int(claim.send_as.partition(":")[2] or 0) if claim.send_as else self._quality

    def _loses(self, claim: Claim) -> bool:
        return self._wish(claim) == _LOSSY

    def _others(self, claim: Claim) -> list[UID]:
        """The transfer syntaxes besides the stored one that a claim might go in."""
        row = syntax(claim.transfer_syntax_uid)
        if row is None or row.decoder is None:
            return []
        every = [
            *(_LOSSY if self._loses(claim) else ()),
            *writable(images=claim.frames > 0),
            claim.received_syntax_uid,
        ]
        return [one for one in dict.fromkeys(every) if one != claim.transfer_syntax_uid]

    def _accepted(self, claim: Claim) -> frozenset[UID]:
        """The transfer syntaxes known to be accepted for a claim, the stored one included."""
        every = [claim.transfer_syntax_uid, *self._others(claim)]
        taken = frozenset(one for one in every if self._known.get((claim.sop_class_uid, one)))
        return (taken.intersection(_NATIVE) if self._wish(claim) == _NATIVE else None) or taken

    def _order(self, claim: Claim) -> Order | None:
        accepted = self._accepted(claim)
        if not accepted:
            return None
        quality = self._quality_of(claim) if self._loses(claim) else 0
        return Order(claim.instance, claim.object_id, accepted, quality)

    def _orders(self) -> dict[int, Order]:
        """Orders by delivery, of the claims to be prepared; the first of them are under way."""
        wanted = {
            claim.id: order
            for claim in self.waiting
            if self._way(claim) is _Way.PREPARE and (order := self._order(claim))
        }
        self._workshop.order(list(dict.fromkeys(wanted.values())))
        return wanted

    def _refusal(self, claim: Claim) -> str:
        row = syntax(claim.transfer_syntax_uid)
        name = row.name if row else "the transfer syntax of this instance"
        if why := self._why_not.get(claim.id):
            return f"the destination does not accept {name}, and {why}"
        if row is not None and row.video:
            return f"the destination does not accept video ({name}), which goes only as it is"
        if row is None or row.decoder is None:
            return f"the destination does not accept {name}, which goes only as it is"
        kind = STORAGE_SOP_CLASSES.get(claim.sop_class_uid, "this kind of object")
        return f"the destination does not accept {kind}, in whatever transfer syntax"


def _failed(claim: Claim, error: EdgePacsError) -> Verdict:
    words = f"{deliveries.NOT_SENT}{error}"
    if isinstance(error, Tampered | NotFound):
        return Verdict(DeliveryState.FAILED, words)
    if isinstance(error, ConverterBroke) and claim.attempts >= TRIES:
        return Verdict(DeliveryState.FAILED, words)
    return Verdict(DeliveryState.QUEUED, words)
