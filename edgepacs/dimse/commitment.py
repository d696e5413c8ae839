"""Storage Commitment Push Model (PS3.4 J.3), both sides: requests and reports, sent and read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from edgepacs.dimse import identifier, status
from edgepacs.dimse.association import Association
from edgepacs.dimse.command import Element, Field, Value
from edgepacs.dimse.contexts import IMPLICIT_VR_LE, STORAGE_COMMITMENT_PUSH
from edgepacs.dimse.identifier import Values
from edgepacs.dimse.items import ProposedContext, Roles
from edgepacs.dimse.message import Message
from edgepacs.errors import EdgePacsError, InvalidValue, PeerError
from edgepacs.model import UID, uid

INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known SOP instance (PS3.4 J.3.5)
AS_SCU = ProposedContext(
    abstract_syntax=STORAGE_COMMITMENT_PUSH, transfer_syntaxes=(IMPLICIT_VR_LE,)
)
"""The context to propose to ask for commitment; we are SCU by default (PS3.7 D.3.3.4)."""
AS_SCP = ProposedContext(
    abstract_syntax=STORAGE_COMMITMENT_PUSH,
    transfer_syntaxes=(IMPLICIT_VR_LE,),
    roles=Roles(scu=False, scp=True),
)
"""The context to propose to report on an association of our own (PS3.4 J.3.3)."""

COMMITTED = 0
DUPLICATE_TRANSACTION = 0x0131
_UNNAMED_REASON = 0x0110  # a failure whose reason is absent counts as a processing failure
REQUEST = 1  # Action Type ID (PS3.4 J.3.2)
_EVENTS = (1, 2)  # Event Type IDs: all committed, failures exist (PS3.4 J.3.3)
_MOST_BYTES = 4_194_304  # some 30,000 instances
_NO_SUCH_EVENT_TYPE = 0x0113  # PS3.7 annex C
_INVALID_ARGUMENT_VALUE = 0x0115

REASONS: Mapping[int, str] = MappingProxyType(
    {  # PS3.3 C.14-1
        0x0110: "it failed while processing",
        0x0112: "it does not have the instance",
        0x0119: "it knows the instance under another SOP class",
        0x0122: "it does not support the SOP class",
        DUPLICATE_TRANSACTION: "it says the request was made before",
        0x0213: "it has no room for it",
    }
)


def reason_words(reason: int) -> str:
    """Why an instance was not committed, in words and with the code."""
    return f"{REASONS.get(reason, 'for a reason of its own')} ({reason:04X})"


@dataclass(frozen=True, slots=True)
class Report:
    """What an N-EVENT-REPORT says: by SOP Instance UID 0 for committed, else why it was not."""

    transaction_uid: str
    outcomes: Mapping[str, int] = field(repr=False)


def ask(
    association: Association,
    context: int,
    transaction_uid: str,
    references: Iterable[tuple[str, str]],
) -> status.Status:
    """N-ACTION: ask for the commitment of instances, given as (SOP Class UID, SOP Instance UID).

    The status says whether the request was accepted, never that anything was committed
    (PS3.4 J.3.2). Raises PeerError.
    """
    elements: dict[int, Value] = {
        Element.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
        Element.COMMAND_FIELD: Field.N_ACTION_RQ,
        Element.REQUESTED_SOP_INSTANCE_UID: INSTANCE,
        Element.ACTION_TYPE_ID: REQUEST,
    }
    data = identifier.encode(
        {
            identifier.TRANSACTION_UID: transaction_uid,
            identifier.REFERENCED_SOP_SEQUENCE: [_reference(*one) for one in references],
        }
    )
    *_, final = association.ask(context, elements, (data,))
    return status.lookup(final.status)


def _reference(sop_class: str, sop_instance: str) -> dict[int, str | int]:
    return {
        identifier.SOP_CLASSES_REFERENCED: sop_class,
        identifier.SOP_INSTANCES_REFERENCED: sop_instance,
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """What an N-ACTION asks to be committed: (SOP Class UID, SOP Instance UID) of each instance."""

    transaction_uid: UID
    references: Sequence[tuple[UID, UID]] = field(repr=False)


def read_request(message: Message) -> Asked:
    """The request in an N-ACTION (PS3.4 J.3.2.1.1); raises InvalidValue."""
    values = identifier.decode(_whole(message, "request"), message.context.transfer_syntax)
    transaction = identifier.text(values, identifier.TRANSACTION_UID)
    references = [
        (
            _uid(item, identifier.SOP_CLASSES_REFERENCED),
            _uid(item, identifier.SOP_INSTANCES_REFERENCED),
        )
        for item in identifier.items(values, identifier.REFERENCED_SOP_SEQUENCE)
    ]
    if not references:
        raise InvalidValue("Referenced SOP Sequence (0008,1199)", "absent or empty")
    return Asked(uid(transaction, "Transaction UID (0008,1195)"), references)


def _uid(item: identifier.Identifier, tag: int) -> UID:
    return uid(identifier.text(item, tag), f"({tag >> 16:04X},{tag & 0xFFFF:04X})")


def tell(
    association: Association,
    context: int,
    transaction_uid: str,
    outcomes: Iterable[tuple[str, str, int]],
) -> status.Status:
    """N-EVENT-REPORT: say what was committed, as (SOP Class UID, SOP Instance UID, reason).

    The reason is COMMITTED or one of PS3.3 C.14-1. Returns what was answered. Raises PeerError.
    """
    committed: list[Values] = []
    failed: list[Values] = []
    for sop_class, sop_instance, reason in outcomes:
        item = _reference(sop_class, sop_instance)
        if reason == COMMITTED:
            committed.append(item)
        else:
            failed.append({**item, identifier.FAILURE_REASON: reason})
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
        Element.COMMAND_FIELD: Field.N_EVENT_REPORT_RQ,
        Element.AFFECTED_SOP_INSTANCE_UID: INSTANCE,
        Element.EVENT_TYPE_ID: _EVENTS[bool(failed)],
    }
    values: dict[int, str | Sequence[Values]] = {identifier.TRANSACTION_UID: transaction_uid}
    if committed:
        values[identifier.REFERENCED_SOP_SEQUENCE] = committed
    if failed:
        values[identifier.FAILED_SOP_SEQUENCE] = failed
    syntax = association.contexts[context].transfer_syntax
    *_, final = association.ask(context, elements, (identifier.encode(values, syntax),))
    return status.lookup(final.status)


def answer(association: Association, message: Message, record: Callable[[Report], bool]) -> str:
    """Answer an N-EVENT-REPORT-RQ; what was wrong with it, or "".

    `record` keeps what it says before success is answered, and returns whether it knows the
    transaction. Statuses: PS3.7 10.1.1.1.8. Raises PeerError when the association breaks.
    """
    code, words = _taken(message, record)
    association.respond(message, code, comment=words)
    return words


def _taken(message: Message, record: Callable[[Report], bool]) -> tuple[int, str]:
    event = message.command.number(Element.EVENT_TYPE_ID)
    if event not in _EVENTS:
        return _NO_SUCH_EVENT_TYPE, "storage commitment report: unknown event type"
    try:
        known = record(_read(message))
    except PeerError:
        raise
    except InvalidValue as error:
        return _INVALID_ARGUMENT_VALUE, f"storage commitment report: {error}"
    except EdgePacsError as error:  # it could not be kept: the peer may report again
        return status.PROCESSING_FAILURE, f"storage commitment report: {error}"
    if not known:
        return _INVALID_ARGUMENT_VALUE, "storage commitment report: unknown Transaction UID"
    return status.SUCCESS, ""


def _read(message: Message) -> Report:
    values = identifier.decode(_whole(message, "report"), message.context.transfer_syntax)
    transaction = identifier.text(values, identifier.TRANSACTION_UID)
    if not transaction:
        raise InvalidValue("Transaction UID (0008,1195)", "absent")
    outcomes = {
        _instance(item): COMMITTED
        for item in identifier.items(values, identifier.REFERENCED_SOP_SEQUENCE)
    }
    for item in identifier.items(values, identifier.FAILED_SOP_SEQUENCE):
        reason = identifier.number(item, identifier.FAILURE_REASON)
        outcomes[_instance(item)] = reason or _UNNAMED_REASON
    return Report(transaction, outcomes)


def _instance(item: identifier.Identifier) -> str:
    return identifier.text(item, identifier.SOP_INSTANCES_REFERENCED)


def _whole(message: Message, what: str) -> bytes:
    """The data set of a request or report, in memory."""
    if message.data is None:
        raise InvalidValue("data set", f"absent from the {what}")
    whole = bytearray()
    for fragment in message.data:
        whole += fragment
        if len(whole) > _MOST_BYTES:
            raise InvalidValue("data set", f"longer than {_MOST_BYTES} bytes")
    return bytes(whole)
