"""N-CREATE and N-SET as SCU (PS3.7 10.1.5, 10.1.3): what is told of one SOP instance."""

from dataclasses import dataclass

from edgepacs.dimse.association import Association
from edgepacs.dimse.command import Element, Field, Value
from edgepacs.dimse.status import Status, lookup


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered; `error_id` is the Error ID (0000,0903), 0 where there is none."""

    status: Status
    comment: str = ""
    error_id: int = 0


def create(
    association: Association, context: int, sop_class: str, sop_instance: str, data: bytes
) -> Answer:
    """N-CREATE a SOP instance of `data` in the transfer syntax of the context; raises PeerError."""
    elements: dict[int, Value] = {
        Element.AFFECTED_SOP_CLASS_UID: sop_class,
        Element.COMMAND_FIELD: Field.N_CREATE_RQ,
        Element.AFFECTED_SOP_INSTANCE_UID: sop_instance,
    }
    return _asked(association, context, elements, data)


def change(
    association: Association, context: int, sop_class: str, sop_instance: str, data: bytes
) -> Answer:
    """N-SET `data` in a SOP instance; raises PeerError."""
    elements: dict[int, Value] = {
        Element.REQUESTED_SOP_CLASS_UID: sop_class,
        Element.COMMAND_FIELD: Field.N_SET_RQ,
        Element.REQUESTED_SOP_INSTANCE_UID: sop_instance,
    }
    return _asked(association, context, elements, data)


def _asked(
    association: Association, context: int, elements: dict[int, Value], data: bytes
) -> Answer:
    *_, final = association.ask(context, elements, (data,))
    command = final.command
    return Answer(lookup(final.status), command.comment, command.number(Element.ERROR_ID))
