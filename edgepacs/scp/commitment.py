"""Storage commitment (PS3.4 J.3): asked of us by modalities, and reports of destinations to us.

A modality's request is written down before it is answered. What can be read soon is looked at and
reported at once, on the association that asked; else, and where that is over, `reporter` does it.
Reports to us are only written down here, before they are answered; forward/ acts on them.
"""

from edgepacs.dimse import Association, Element, Field, Message, commitment
from edgepacs.dimse.commitment import Asked, Report
from edgepacs.dimse.status import (
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    SUCCESS,
    UNRECOGNISED_OPERATION,
)
from edgepacs.errors import (
    Conflict,
    EdgePacsError,
    InvalidValue,
    LimitExceeded,
    PeerError,
    StorageFault,
)
from edgepacs.model import AETitle, Callback, Service
from edgepacs.scp import reporter
from edgepacs.scp.conversation import Conversation
from edgepacs.store import Store, commitments, pledges
from edgepacs.store.incidents import Incident
from edgepacs.store.pledges import Item
from edgepacs.telemetry import failpoint, log

AT_ONCE_BYTES = 128 << 20  # on the disk, that are read while the association waits
_GRACE_MS = 300_000  # for looking at them and telling so, before others see to it
_NO_SUCH_ACTION = 0x0123  # PS3.7 annex C
_INVALID_ARGUMENT_VALUE = 0x0115


def serve(conversation: Conversation, message: Message) -> None:
    """Answer one message of storage commitment, in whichever role its association allows us.

    Raises PeerError when the association breaks.
    """
    may_ask = message.context.roles.scu and conversation.known.may(Service.COMMITMENT)
    if message.command.field == Field.N_EVENT_REPORT_RQ:
        _take_report(conversation.store, conversation.association, message)
    elif message.command.field == Field.N_ACTION_RQ and may_ask:
        _pledge(conversation, message)
    else:
        conversation.association.respond(message, UNRECOGNISED_OPERATION)


# --- asked of us -------------------------------------------------------------------------------


def _pledge(conversation: Conversation, message: Message) -> None:
    """N-ACTION (PS3.4 J.3.2): Success says that the request is written down, and no more."""
    association = conversation.association
    try:
        number = _written_down(conversation, message)
    except _Refused as refused:
        association.respond(message, refused.status, comment=refused.words)
        conversation.store.incidents.note(
            Incident(
                act="commitment refused",
                host=association.peer.host,
                actor=association.calling_ae,
                detail=refused.words,
            )
        )
        return
    failpoint("pledge.written")
    association.respond(message, SUCCESS)
    try:
        reported = _report_at_once(conversation.store, association, message.context.id, number)
    except EdgePacsError as error:
        if isinstance(error, StorageFault):
            conversation.store.vault.condemn(error)
        log.warning("a commitment is reported later: %s", error)
        reported = False
    if not reported:
        reporter.wake(conversation.store)


class _Refused(Exception):
    """A request is not taken on."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = f"storage commitment: {words}"


def _written_down(conversation: Conversation, message: Message) -> int:
    command = message.command
    if command.sop_instance_uid != commitment.INSTANCE:  # PS3.4 J.3.5
        raise _Refused(NO_SUCH_INSTANCE, "not asked of its well-known SOP Instance")
    if command.number(Element.ACTION_TYPE_ID) != commitment.REQUEST:
        raise _Refused(_NO_SUCH_ACTION, "unknown action type")
    try:
        asked = commitment.read_request(message)
        if len(asked.references) > pledges.INSTANCES_MOST:
            most = pledges.INSTANCES_MOST
            raise _Refused(RESOURCE_LIMITATION, f"more than {most} instances")
        return _record(conversation, asked)
    except (InvalidValue, Conflict) as error:
        raise _Refused(_INVALID_ARGUMENT_VALUE, str(error)) from error
    except LimitExceeded as error:
        raise _Refused(RESOURCE_LIMITATION, str(error)) from error
    except PeerError:
        raise
    except EdgePacsError as error:  # it could not be kept: the peer may ask again
        if isinstance(error, StorageFault):
            conversation.store.vault.condemn(error)
        raise _Refused(PROCESSING_FAILURE, str(error)) from error


def _record(conversation: Conversation, asked: Asked) -> int:
    association = conversation.association
    with conversation.store.db.write() as tx:
        return pledges.ask(
            tx,
            ae=conversation.known.title,
            called_ae=AETitle(association.called_ae),
            host=association.peer.host,
            transaction_uid=asked.transaction_uid,
            items=[
                Item(sop_class_uid=sop_class, sop_instance_uid=sop_instance)
                for sop_class, sop_instance in asked.references
            ],
            grace_ms=_GRACE_MS,
        )


def _report_at_once(store: Store, association: Association, context: int, number: int) -> bool:
    """Report on the association that asked; False where that is left to others.

    PS3.4 J.3.3: it may be on the same association, whose requestor may as well have ended it.
    """
    soon = pledges.byte_size(store.db, number) <= AT_ONCE_BYTES
    if not soon or not pledges.check(store, number):
        pledges.leave(store.db, number)
        return False
    try:
        words = reporter.tell(store, association, context, number)
    except PeerError as error:
        words = str(error)
    if words:
        pledges.undelivered(store.db, number, words, at_once=True)
    return not words


# --- reports to us -----------------------------------------------------------------------------


def _take_report(store: Store, association: Association, message: Message) -> None:
    """The report of a destination, we being the SCU of what it reports on."""

    def record(report: Report) -> bool:
        try:
            return commitments.record(
                store.db, report.transaction_uid, report.outcomes, Callback.NEW
            )
        except StorageFault as fault:
            store.vault.condemn(fault)
            raise

    wrong = commitment.answer(association, message, record)
    if wrong:
        store.incidents.note(
            Incident(
                act="report refused",
                host=association.peer.host,
                actor=association.calling_ae,
                detail=wrong,
            )
        )
    else:
        store.ring("forward")
