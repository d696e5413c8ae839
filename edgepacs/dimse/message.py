"""Requests and responses as the services see them (PS3.7 9, 10)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepacs.dimse.command import COMMENT_MAX_LENGTH, RESPONSE, Command, Element, Field, Value
from edgepacs.dimse.contexts import AcceptedContext


@dataclass(slots=True)
class Message:
    """One request. `data` yields its data set as it arrives, or is None where none follows.

    Each view is good until the next is asked for. What a service leaves unread is read and
    dropped before the next message. Iterating raises LimitExceeded, ProtocolError and
    PeerUnreachable, and the association is then over.
    """

    context: AcceptedContext
    command: Command
    data: Iterator[memoryview] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response: its command set and its data set, empty where there is none."""

    command: Command
    data: bytes = field(default=b"", repr=False)

    @property
    def status(self) -> int:
        """Status (0000,0900)."""
        return self.command.status


@dataclass(frozen=True, slots=True)
class StoreResponse:
    """The answer to a C-STORE."""

    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class MoveOriginator:
    """The C-MOVE a C-STORE is a sub-operation of (PS3.7 9.1.1.1)."""

    ae_title: str
    message_id: int


# Elements a response repeats from its request (PS3.7 9.3, 10.3, 9.1 and 10.1 for their names).
_REPEATED = {
    Field.N_EVENT_REPORT_RQ: (Element.EVENT_TYPE_ID,),
    Field.N_ACTION_RQ: (Element.ACTION_TYPE_ID,),
}


def response_to(command: Command, code: int) -> dict[int, Value]:
    """What every response holds: a requested SOP class becomes the affected one (PS3.7 10.3)."""
    elements: dict[int, Value] = {
        Element.COMMAND_FIELD: command.field | RESPONSE,
        Element.RESPONDED_MESSAGE_ID: command.message_id,
        Element.STATUS: code,
    }
    if command.sop_class_uid:
        elements[Element.AFFECTED_SOP_CLASS_UID] = _printable(command.sop_class_uid)
    if command.sop_instance_uid:
        elements[Element.AFFECTED_SOP_INSTANCE_UID] = _printable(command.sop_instance_uid)
    for element in _REPEATED.get(Field(command.field), ()):
        if element in command:
            elements[element] = command[element]
    return elements


def _printable(value: str) -> str:
    """`value` as it came, as far as it is ASCII: a response repeats what it refuses."""
    return value.encode("ascii", "replace").decode("ascii")


def comment_element(words: str) -> str:
    """`words` as an Error Comment (0000,0902): one line of at most 64 ASCII characters."""
    line = " ".join(words.split()).replace("\\", "/")
    return _printable(line)[:COMMENT_MAX_LENGTH]
