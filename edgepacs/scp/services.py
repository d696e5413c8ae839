"""The services this node provides beside Storage, each by its abstract syntax.

A service is a function that answers one message; Storage, whose SOP classes are without number,
is what is not in this table (`scp.storage`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from edgepacs.dimse import Field, Message
from edgepacs.dimse.contexts import (
    MODALITY_WORKLIST_FIND,
    PERFORMED_PROCEDURE_STEP,
    STORAGE_COMMITMENT_PUSH,
    VERIFICATION,
)
from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.dimse.retrieve import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from edgepacs.dimse.status import SUCCESS, UNRECOGNISED_OPERATION
from edgepacs.model import Service
from edgepacs.scp import commitment, mpps, query, retrieve, worklist
from edgepacs.scp.conversation import Conversation
from edgepacs.scp.query import PATIENT_ROOT_FIND
from edgepacs.scp.retrieve import PATIENT_ROOT_GET, PATIENT_ROOT_MOVE


class Provided(NamedTuple):
    """One service: what a caller needs leave for, and what answers a message of it.

    `serve` raises PeerError when the association breaks, and answers everything else. `options`
    answers the application information of an extended negotiation (PS3.7 D.3.3.5).
    """

    service: Service
    serve: Callable[[Conversation, Message], None]
    options: Callable[[bytes], bytes] = lambda _: b""


def _echo(conversation: Conversation, message: Message) -> None:
    """C-ECHO (PS3.4 A.4)."""
    known = message.command.field == Field.C_ECHO_RQ
    conversation.association.respond(message, SUCCESS if known else UNRECOGNISED_OPERATION)


PROVIDED: Mapping[str, Provided] = {
    VERIFICATION: Provided(Service.ECHO, _echo),
    MODALITY_WORKLIST_FIND: Provided(Service.WORKLIST, worklist.serve),
    PERFORMED_PROCEDURE_STEP: Provided(Service.MPPS, mpps.serve),
    PATIENT_ROOT_FIND: Provided(Service.FIND, query.find, query.options),
    STUDY_ROOT_FIND: Provided(Service.FIND, query.find, query.options),
    PATIENT_ROOT_MOVE: Provided(Service.MOVE, retrieve.move, retrieve.options),
    STUDY_ROOT_MOVE: Provided(Service.MOVE, retrieve.move, retrieve.options),
    PATIENT_ROOT_GET: Provided(Service.GET, retrieve.get, retrieve.options),
    STUDY_ROOT_GET: Provided(Service.GET, retrieve.get, retrieve.options),
    STORAGE_COMMITMENT_PUSH: Provided(Service.COMMITMENT, commitment.serve),
}
