"""The services this node provides beside Storage, each by its abstract syntax.

A service is a function that answers one message; Storage, whose SOP classes are without number,
is what is not in this table (`scp.storage`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgepacs.dimse import Field, Message
from edgepacs.dimse.contexts import STORAGE_COMMITMENT_PUSH, VERIFICATION
from edgepacs.dimse.status import SUCCESS, UNRECOGNISED_OPERATION
from edgepacs.model import Service
from edgepacs.scp import commitment
from edgepacs.scp.conversation import Conversation


class Provided(NamedTuple):
    """One service: what a caller needs leave for, and what answers a message of it.

    `serve` raises PeerError when the association breaks, and answers everything else.
    """

    service: Service
    serve: Callable[[Conversation, Message], None]


def _echo(conversation: Conversation, message: Message) -> None:
    """C-ECHO (PS3.4 A.4)."""
    known = message.command.field == Field.C_ECHO_RQ
    conversation.association.respond(message, SUCCESS if known else UNRECOGNISED_OPERATION)


PROVIDED: Mapping[str, Provided] = {
    VERIFICATION: Provided(Service.ECHO, _echo),
    STORAGE_COMMITMENT_PUSH: Provided(Service.COMMITMENT, commitment.serve),
}
