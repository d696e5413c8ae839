"""Modality Performed Procedure Step as SCP (PS3.4 F.7.2): N-CREATE and N-SET.

What can be worked with is taken: only what a step is nothing without is demanded. The data set is
kept as it came, to be told again to the centre.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from edgepacs.dimse import Element, Field, Message, identifier
from edgepacs.dimse.command import Value
from edgepacs.dimse.identifier import Identifier
from edgepacs.dimse.status import (
    DUPLICATE_SOP_INSTANCE,
    INVALID_ATTRIBUTE_VALUE,
    MISSING_ATTRIBUTE,
    MISSING_ATTRIBUTE_VALUE,
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
    NotFound,
    PeerError,
    StorageFault,
)
from edgepacs.model import UID, StepState, new_uid, uid
from edgepacs.scp.conversation import Conversation
from edgepacs.store import steps
from edgepacs.store.db import Transaction
from edgepacs.store.incidents import Incident
from edgepacs.store.steps import Made, Ordered, Performed, Received, Told

NO_LONGER = 0xA710  # Error ID: may no longer be updated (PS3.4 F.7.2.2.4)
_MOST_BYTES = 8 << 20  # some 40,000 instances listed
_CHARACTER_SET = 0x00080005
_STATUS = 0x00400252
_SCHEDULED = 0x00400270  # Scheduled Step Attributes Sequence
_SERIES = 0x00400340  # Performed Series Sequence
_REASON = 0x00400281  # Performed Procedure Step Discontinuation Reason Code Sequence
_IMAGES, _OTHERS = 0x00081140, 0x00400220  # referenced images, non-image composite instances
_START_DATE, _START_TIME, _END_DATE, _END_TIME = 0x00400244, 0x00400245, 0x00400250, 0x00400251
_PERSON_NAME = 0x00100010
_LONGEST = 1024  # characters of a value that is kept; of the message all is

_STATES: Mapping[str, StepState] = MappingProxyType(
    {  # PS3.3 C.4.14
        "IN PROGRESS": StepState.IN_PROGRESS,
        "COMPLETED": StepState.COMPLETED,
        "DISCONTINUED": StepState.DISCONTINUED,
    }
)
_TEXTS: Mapping[str, int] = MappingProxyType(
    {  # fields of Told
        "patient_id": 0x00100020,
        "issuer": 0x00100021,
        "patient_name": _PERSON_NAME,
        "performed_id": 0x00400253,
        "modality": 0x00080060,
        "station_ae": 0x00400241,
        "station_name": 0x00400242,
        "description": 0x00400254,
        "start_date": _START_DATE,
        "start_time": _START_TIME,
        "end_date": _END_DATE,
        "end_time": _END_TIME,
    }
)
# Type 1 of the SCU at N-CREATE, and at the end (PS3.4 table F.7.2-1).
_NEEDED = (
    _SCHEDULED,
    _TEXTS["modality"],
    _TEXTS["station_ae"],
    _START_DATE,
    _START_TIME,
    _STATUS,
    _TEXTS["performed_id"],
)
_NEEDED_AT_END = (_END_DATE, _END_TIME)
_REASONS: Mapping[str, str] = MappingProxyType(
    {  # CID 9300 of PS3.16
        "110500": "a doctor cancelled the procedure",
        "110501": "equipment failure",
        "110502": "an incorrect procedure was ordered",
        "110503": "the patient is allergic to media or contrast",
        "110504": "the patient died",
        "110505": "the patient refused to continue",
        "110506": "the patient was taken for treatment or surgery",
        "110507": "the patient did not arrive",
        "110508": "the patient is pregnant",
        "110509": "the procedure was changed for correct charging",
        "110510": "duplicate order",
        "110511": "the nursing unit cancelled",
        "110512": "an incorrect side was ordered",
        "110513": "for an unspecified reason",
        "110514": "an incorrect worklist entry was selected",
        "110515": "the patient's condition prevented continuing",
        "110516": "the equipment was changed",
        "110521": "objects incorrectly formatted",
        "110522": "object types not supported",
        "110523": "the set of objects is incomplete",
        "110524": "media failure",
        "110526": "the resource was pre-empted",
        "110527": "the resource is inadequate",
        "110528": "the step was rescheduled",
        "110529": "rescheduling is recommended",
    }
)


class _Refused(EdgePacsError):
    """A message that is answered with a status of its own; its words name attributes alone.

    `error_id` is the Error ID (0000,0903) of the answer, 0 for none.
    """

    def __init__(self, status: int, words: str, error_id: int = 0) -> None:
        super().__init__(words)
        self.status = status
        self.error_id = error_id


def serve(conversation: Conversation, message: Message) -> None:
    """Answer one message about a performed procedure step.

    Raises PeerError when the association breaks.
    """
    association = conversation.association
    act = _ACTS.get(message.command.field)
    if act is None:
        association.respond(message, UNRECOGNISED_OPERATION)
        return
    try:
        extra = act(conversation, message)
    except PeerError:
        raise
    except StorageFault as fault:
        conversation.store.vault.condemn(fault)
        _refuse(conversation, message, _Refused(PROCESSING_FAILURE, "the storage device failed"))
    except _Refused as refused:
        _refuse(conversation, message, refused)
    except InvalidValue as error:
        _refuse(conversation, message, _Refused(INVALID_ATTRIBUTE_VALUE, str(error)))
    except LimitExceeded as error:
        _refuse(conversation, message, _Refused(RESOURCE_LIMITATION, str(error)))
    except EdgePacsError as error:  # no room, or busy: the modality may tell it again
        _refuse(conversation, message, _Refused(PROCESSING_FAILURE, str(error)))
    else:
        conversation.store.ring("forward")
        association.respond(message, SUCCESS, extra=extra)


def _refuse(conversation: Conversation, message: Message, refused: _Refused) -> None:
    """Answer with a failure, and let people see that a modality was refused."""
    association = conversation.association
    conversation.store.incidents.note(
        Incident(
            act="procedure step refused",
            host=association.peer.host,
            actor=association.calling_ae,
            detail=str(refused),
        )
    )
    extra: dict[int, Value] = {Element.ERROR_ID: refused.error_id} if refused.error_id else {}
    association.respond(message, refused.status, comment=str(refused), extra=extra)


def _create(conversation: Conversation, message: Message) -> Mapping[int, Value]:
    """N-CREATE (PS3.4 F.7.2.1); what the response says beside the status."""
    values, received = _read(message)
    _require(values, _NEEDED)
    if _told_state(values) is not StepState.IN_PROGRESS:
        raise _invalid(_STATUS, "is not IN PROGRESS")
    told = _told(values)
    if not told.orders or not all(one.study_instance_uid for one in told.orders):
        raise _Refused(MISSING_ATTRIBUTE_VALUE, "Study Instance UID of a scheduled step: no value")
    asked = message.command.sop_instance_uid
    number = uid(asked, "Affected SOP Instance UID") if asked else new_uid()

    def add(tx: Transaction) -> None:
        steps.create(tx, number, told, received, source=conversation.known.title)

    try:
        _write(conversation, add)
    except Conflict:
        raise _Refused(DUPLICATE_SOP_INSTANCE, "it is known already") from None
    # PS3.7 10.1.5.1.4: the SCP names an instance whose SCU did not.
    return {} if asked else {Element.AFFECTED_SOP_INSTANCE_UID: number}


def _set(conversation: Conversation, message: Message) -> Mapping[int, Value]:
    """N-SET (PS3.4 F.7.2.2)."""
    number = uid(message.command.sop_instance_uid, "Requested SOP Instance UID")
    values, received = _read(message)
    told = _told(values)

    def change(tx: Transaction) -> None:
        before = steps.by_uid(tx, number)
        ends = told.state in (StepState.COMPLETED, StepState.DISCONTINUED)
        if before is not None and before.state is StepState.IN_PROGRESS and ends:
            said = {_END_DATE: before.end_date, _END_TIME: before.end_time}
            _require(values, [tag for tag in _NEEDED_AT_END if tag in values or not said[tag]])
        steps.change(tx, number, told, received, source=conversation.known.title)

    try:
        _write(conversation, change)
    except NotFound:
        raise _Refused(NO_SUCH_INSTANCE, "no such performed procedure step") from None
    except Conflict:
        raise _Refused(PROCESSING_FAILURE, "may no longer be updated", NO_LONGER) from None
    return {}


_ACTS: Mapping[int, Callable[[Conversation, Message], Mapping[int, Value]]] = {
    Field.N_CREATE_RQ: _create,
    Field.N_SET_RQ: _set,
}


def _write(conversation: Conversation, act: Callable[[Transaction], None]) -> None:
    """What a message says is durable before it is answered."""
    with conversation.store.db.write() as tx:
        act(tx)


# --- what a message says -----------------------------------------------------------------------


def _read(message: Message) -> tuple[Identifier, Received]:
    whole = bytearray()
    for fragment in message.data or ():
        whole += fragment
        if len(whole) > _MOST_BYTES:
            raise LimitExceeded(f"data set: more than {_MOST_BYTES} bytes")
    syntax = message.context.transfer_syntax
    body = bytes(whole)
    return identifier.decode(body, syntax), Received(UID(syntax), body)


def _invalid(tag: int, words: str) -> _Refused:
    return _Refused(INVALID_ATTRIBUTE_VALUE, f"{identifier.tag_text(tag)} {words}")


def _require(values: Identifier, tags: Sequence[int]) -> None:
    """Raise where one of `tags` is absent (0120), or has no value (0121)."""
    for tag in tags:
        if tag not in values:
            raise _Refused(MISSING_ATTRIBUTE, f"{identifier.tag_text(tag)} is absent")
        value = values[tag]
        if not (value.strip(b" \0") if isinstance(value, bytes) else value):
            raise _Refused(MISSING_ATTRIBUTE_VALUE, f"{identifier.tag_text(tag)} has no value")


def _told_state(values: Identifier) -> StepState | None:
    if _STATUS not in values:
        return None
    state = _STATES.get(identifier.text(values, _STATUS))
    if state is None:
        raise _invalid(_STATUS, "is not IN PROGRESS, COMPLETED or DISCONTINUED")
    return state


def _told(values: Identifier) -> Told:
    words = _Words(identifier.text(values, _CHARACTER_SET))
    texts = {name: words.of(values, tag) for name, tag in _TEXTS.items() if tag in values}
    return Told(
        state=_told_state(values),
        reason=_reason(values, words) if _REASON in values else None,
        orders=[_ordered(item, words) for item in identifier.items(values, _SCHEDULED)],
        series=(
            [_performed(item, words) for item in identifier.items(values, _SERIES)]
            if _SERIES in values
            else None
        ),
        **texts,
    )


class _Words:
    """Text of a data set in its character set (PS3.3 C.12.1.1.2)."""

    def __init__(self, character_set: str) -> None:
        self._character_set = character_set

    def of(self, values: Identifier, tag: int) -> str:
        """The text of an element, '' where it is absent or longer than anything that is kept."""
        raw = values.get(tag, b"")
        if not isinstance(raw, bytes):
            return ""
        raw = raw.strip(b" \0")
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")[:_LONGEST]
        from edgepacs.custody import text  # noqa: PLC0415  it loads what ASCII does without

        name = tag == _PERSON_NAME
        return text.decoded(raw, self._character_set, person_name=name).strip()[:_LONGEST]


def _ordered(item: Identifier, words: _Words) -> Ordered:
    return Ordered(
        study_instance_uid=_uid_in(item, identifier.STUDY_INSTANCE_UID),
        accession_number=words.of(item, 0x00080050),
        procedure_id=words.of(item, 0x00401001),
        scheduled_id=words.of(item, 0x00400009),
    )


def _performed(item: Identifier, words: _Words) -> Performed:
    return Performed(
        series_instance_uid=_uid_in(item, identifier.SERIES_INSTANCE_UID),
        description=words.of(item, 0x0008103E),
        protocol=words.of(item, 0x00181030),
        made=[
            Made(number, identifier.text(one, identifier.SOP_CLASSES_REFERENCED))
            for tag in (_IMAGES, _OTHERS)
            for one in identifier.items(item, tag)
            if (number := _uid_in(one, identifier.SOP_INSTANCES_REFERENCED))
        ],
    )


def _uid_in(values: Identifier, tag: int) -> str:
    """A UID, '' where it is absent; raises InvalidValue naming its tag."""
    found = identifier.text(values, tag)
    return uid(found, identifier.tag_text(tag)) if found else ""


def _reason(values: Identifier, words: _Words) -> str:
    """Why it was discontinued: in our words where the code is one of CID 9300, else in its own."""
    said = []
    for item in identifier.items(values, _REASON):
        code, scheme = words.of(item, 0x00080100), words.of(item, 0x00080102)
        known = _REASONS.get(code) if scheme in ("DCM", "") else None
        said.append(known or words.of(item, 0x00080104) or code)
    return "; ".join(one for one in said if one)[:_LONGEST]
