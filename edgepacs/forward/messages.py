"""Messages on their way to one destination: performed procedure steps, availability of instances.

They go in an association of their own, in a thread of its own, so that no instance waits for them
nor they for an instance. Nothing is claimed before the association stands: an outage of any
length costs no attempts. What a broken line leaves in doubt is told again, since its SOP Instance
UID lets the destination say that it knows it.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

from edgepacs.clock import monotonic, wall_ms
from edgepacs.custody.elements import EXPLICIT, IMPLICIT, recoded
from edgepacs.dimse import Association, NoContextAccepted, normalized
from edgepacs.dimse.contexts import (
    EXPLICIT_VR_LE,
    IMPLICIT_VR_LE,
    INSTANCE_AVAILABILITY,
    PERFORMED_PROCEDURE_STEP,
)
from edgepacs.dimse.normalized import Answer
from edgepacs.dimse.status import DUPLICATE_SOP_INSTANCE, PROCESSING_FAILURE, Category
from edgepacs.errors import EdgePacsError, NotFound, PeerError, StorageFault, Undecodable
from edgepacs.forward import dial
from edgepacs.forward.batch import Pair, Verdict
from edgepacs.forward.desk import retry_delay_ms
from edgepacs.forward.lane import Gear
from edgepacs.model import UID, DeliveryKind, DeliveryState
from edgepacs.store import dispatches
from edgepacs.store.claims import HARD
from edgepacs.store.deliveries import NOT_SENT
from edgepacs.store.dispatches import Content, Dispatch
from edgepacs.telemetry import failpoint, log, place_of

IDLE_SECONDS = 30.0
AGAIN_SECONDS = 15.0  # after a refusal that says nothing of the line, or a fault of our own
REFUSED_MS = 15 * 60_000  # how soon what a destination does not take at all is offered again
NO_LONGER = 0xA710  # Error ID: may no longer be updated (PS3.4 F.7.2.2.4)

SOP_CLASSES: Mapping[DeliveryKind, UID] = MappingProxyType(
    {
        DeliveryKind.MPPS: UID(PERFORMED_PROCEDURE_STEP),
        DeliveryKind.NOTIFICATION: UID(INSTANCE_AVAILABILITY),
    }
)
"""The kinds that are carried here, each by its SOP class."""
_NAMES = {
    DeliveryKind.MPPS: "performed procedure steps",
    DeliveryKind.NOTIFICATION: "instance availability notifications",
}
_SYNTAXES = (UID(EXPLICIT_VR_LE), UID(IMPLICIT_VR_LE))
_ENCODINGS = {EXPLICIT_VR_LE: EXPLICIT, IMPLICIT_VR_LE: IMPLICIT}


class Messenger:
    """Tells one destination what waits for it; `ring` is called when a turn has ended.

    `turn` and `end` belong to the thread of the courier.
    """

    def __init__(self, gear: Gear, ring: Callable[[], None]) -> None:
        self._gear = gear
        self._db = gear.store.db
        self._id = gear.destination.id
        self._ring = ring
        self._carries = gear.destination.transport == "dimse"
        self._recovered = False
        self._not_before = 0.0  # monotonic
        self._stop = threading.Event()
        self._association: Association | None = None
        self._thread: threading.Thread | None = None
        self._busy = False  # until it rings: the thread itself outlives that by a moment

    @property
    def at_work(self) -> bool:
        """Whether a turn is under way."""
        return self._busy

    def turn(self) -> float:
        """Begin to tell what is due, when it is time; seconds until there may be more."""
        if not self._carries or self.at_work or self._stop.is_set():
            return IDLE_SECONDS
        if not self._recovered:
            dispatches.recover(self._db, self._id, SOP_CLASSES)
            self._recovered = True
        due = dispatches.next_ms(self._db, self._id, SOP_CLASSES)
        if due is None:
            return IDLE_SECONDS
        left = max((due - wall_ms()) / 1000 if due else 0.0, self._not_before - monotonic())
        if left > 0:
            return min(left, IDLE_SECONDS)
        closed = self._gear.pace.closed_for(0)
        if closed is not None:
            return min(closed.seconds, IDLE_SECONDS)
        self._busy = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return IDLE_SECONDS

    def end(self, seconds: float) -> None:
        """Stop after the message being told; after `seconds` its association is aborted."""
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(max(0.0, seconds))
        association = self._association
        if self._thread.is_alive() and association is not None:
            association.abort()
            self._thread.join(0.5)

    # --- a turn --------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = AGAIN_SECONDS
        try:
            self._tell_all()
            wait = 0.0
        except PeerError as error:
            if self._gear.width.alone and not self._stop.is_set():
                self._gear.link.broke(error)
                wait = 0.0
        except StorageFault as fault:
            self._gear.desk.fault = fault
        except EdgePacsError as error:
            log.warning("destination %d: %s", self._id, error)
        except Exception as error:  # noqa: BLE001  instances go on
            log.error("destination %d: %s", self._id, place_of(error))
        finally:
            self._association = None
            self._not_before = monotonic() + wait
            self._busy = False
            self._ring()

    def _tell_all(self) -> None:
        """One association, and all in it that is due; raises PeerError."""
        kinds = dispatches.kinds_due(self._db, self._id, SOP_CLASSES)
        if not kinds:
            return
        proposed: list[Pair] = [
            (SOP_CLASSES[kind], syntax) for kind in kinds for syntax in _SYNTAXES
        ]
        try:
            association = dial.open_association(self._gear.store, self._gear.destination, proposed)
        except NoContextAccepted:
            self._gear.link.worked()  # it answers, and knows us
            self._put_off(kinds)
            return
        self._association = association
        with association, ExitStack() as ending:
            ending.callback(self._forget)
            self._gear.link.worked()
            taken = [kind for kind in kinds if association.accepted(SOP_CLASSES[kind])]
            self._put_off([kind for kind in kinds if kind not in taken])
            while not self._stop.is_set() and self._tell_one(association, taken):
                pass

    def _forget(self) -> None:
        self._association = None

    def _put_off(self, kinds: Sequence[DeliveryKind]) -> None:
        for kind in kinds:
            words = f"the destination does not accept {_NAMES[kind]}"
            dispatches.put_off(self._db, self._id, kind, words, wall_ms() + REFUSED_MS)

    def _tell_one(self, association: Association, kinds: Collection[DeliveryKind]) -> bool:
        """Tell the next of `kinds`; whether there was one. Raises PeerError, it being in doubt."""
        one = dispatches.claim(self._db, self._id, kinds) if kinds else None
        if one is None:
            return False
        failpoint("message.claimed")
        try:
            verdict = self._told(association, one)
        except PeerError as error:
            # One that the destination answers by hanging up is not thrown at it again and again.
            wait = retry_delay_ms(one.breaks + 1 - HARD) if one.breaks + 1 > HARD else 0
            again_ms = wall_ms() + wait if wait else 0
            words = f"the line broke: {error}"
            dispatches.broke(self._db, self._id, one, words, again_ms=again_ms)
            raise
        failpoint("message.told")
        again = verdict.state is DeliveryState.QUEUED
        dispatches.finish(
            self._db,
            self._id,
            one,
            verdict.state,
            verdict.words,
            again_ms=wall_ms() + retry_delay_ms(one.attempts) if again else 0,
        )
        return True

    def _told(self, association: Association, one: Dispatch) -> Verdict:
        try:
            content = dispatches.content(self._db, one)
            context, data = _encoded(association, SOP_CLASSES[one.kind], content)
        except (NotFound, Undecodable) as error:
            return Verdict(DeliveryState.FAILED, f"{NOT_SENT}{error}")
        self._gear.pace.count(len(data))
        tell = normalized.create if content.command == "create" else normalized.change
        answer = tell(association, context, SOP_CLASSES[one.kind], content.sop_instance_uid, data)
        self._gear.link.worked()
        return judged(content.command, answer, doubtful=one.doubtful)


def _encoded(association: Association, sop_class: UID, content: Content) -> tuple[int, bytes]:
    """The context it goes in, and its data set: as received where that was accepted."""
    syntax = content.transfer_syntax_uid
    context = association.accepted(sop_class, syntax)
    if context is not None:
        return context, content.body
    context = association.accepted(sop_class)
    assert context is not None
    there = association.contexts[context].transfer_syntax
    return context, recoded(content.body, _ENCODINGS[syntax], _ENCODINGS[there])


def judged(command: str, answer: Answer, *, doubtful: bool) -> Verdict:
    """What an answer means: what the destination has had before is there (PS3.4 F.7.2)."""
    status = answer.status
    code = f"{status.code:04X}"
    if status.category in (Category.SUCCESS, Category.WARNING):
        return Verdict(DeliveryState.SENT, f"{status.meaning} ({code})")
    if command == "create" and status.code == DUPLICATE_SOP_INSTANCE:
        return Verdict(DeliveryState.SENT, f"it was there already ({code})")
    closed = status.code == PROCESSING_FAILURE and (
        answer.error_id == NO_LONGER or "no longer be updated" in answer.comment.lower()
    )
    if closed and doubtful:  # the attempt that broke off had arrived
        return Verdict(DeliveryState.SENT, f"it was there already ({code}, {NO_LONGER:04X})")
    said = f" ({answer.comment})" if answer.comment else ""
    words = f"the destination answered {code}, {status.meaning}{said}"
    passing = status.passing and not closed
    return Verdict(DeliveryState.QUEUED if passing else DeliveryState.FAILED, words)
