"""Storage Commitment Push Model (PS3.4 J.3): asking for it, and reading the reports about it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from edgepacs.dimse import identifier, status
from edgepacs.dimse.association import Association
from edgepacs.dimse.command import Element, Field, Value
from edgepacs.dimse.contexts import IMPLICIT_VR_LE, STORAGE_COMMITMENT_PUSH
from edgepacs.dimse.items import ProposedContext
from edgepacs.dimse.message import Message
from edgepacs.errors import EdgePacsError, InvalidValue, PeerError

INSTANCE = "1.2.840.10008.1.20.1.1"  # the well-known SOP instance (PS3.4 J.3.5)
AS_SCU = ProposedContext(
    abstract_syntax=STORAGE_COMMITMENT_PUSH, transfer_syntaxes=(IMPLICIT_VR_LE,)
)
"""The context to propose to ask for commitment; we are SCU by default (PS3.7 D.3.3.4)."""

COMMITTED = 0
DUPLICATE_TRANSACTION = 0x0131
_UNNAMED_REASON = 0x0110  # a failure whose reason is absent counts as a processing failure
_REQUEST = 1  # Action Type ID (PS3.4 J.3.2)
_EVENTS = (1, 2)  # Event Type IDs: all committed, failures exist (PS3.4 J.3.3)
_REPORT_BYTES = 4_194_304  # some 30,000 instances
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
        Element.ACTION_TYPE_ID: _REQUEST,
    }
    data = identifier.encode(
        {
            identifier.TRANSACTION_UID: transaction_uid,
            identifier.REFERENCED_SOP_SEQUENCE: [
                {
                    identifier.SOP_CLASSES_REFERENCED: sop_class,
                    identifier.SOP_INSTANCES_REFERENCED: sop_instance,
                }
                for sop_class, sop_instance in references
            ],
        }
    )
    *_, final = association.ask(context, elements, (data,))
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
    values = identifier.decode(_whole(message), message.context.transfer_syntax)
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


def _whole(message: Message) -> bytes:
    """The report's data set, in memory."""
    if message.data is None:
        raise InvalidValue("data set", "absent from the report")
    whole = bytearray()
    for fragment in message.data:
        whole += fragment
        if len(whole) > _REPORT_BYTES:
            raise InvalidValue("data set", f"longer than {_REPORT_BYTES} bytes")
    return bytes(whole)
