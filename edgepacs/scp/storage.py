"""What answers the messages of one association: Storage (PS3.4 B) as SCP.

Messages of other services go to `services`, by their abstract syntax.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgepacs.custody import ingest
from edgepacs.dimse import Element, Field, Message
from edgepacs.dimse.status import SOP_CLASS_NOT_SUPPORTED, SUCCESS, UNRECOGNISED_OPERATION
from edgepacs.errors import (
    DatasetMismatch,
    EdgePacsError,
    InvalidValue,
    NotAllowed,
    PeerError,
)
from edgepacs.model import UID, AETitle, Arrival, Caller, Origin, uid
from edgepacs.scp.conversation import Conversation
from edgepacs.scp.services import PROVIDED
from edgepacs.store import prefetches
from edgepacs.store.incidents import Incident


class Attendant:
    """Serves the messages of one association, in order; what it takes in, in turns of its place."""

    def __init__(self, conversation: Conversation, *, priors_only: bool = False) -> None:
        """`priors_only`: it may bring what we asked for by C-MOVE, and store nothing else."""
        self._conversation = conversation
        self._store = conversation.store
        self._priors_only = priors_only
        self._association = conversation.association
        self._place = conversation.place
        agreement = self._association.agreement
        self._caller = Caller(
            calling_ae=AETitle(agreement.calling_ae),
            called_ae=AETitle(agreement.called_ae),
            host=agreement.peer.host,
            implementation=f"{agreement.implementation_class_uid} "
            f"{agreement.implementation_version}".strip(),
        )
        self.stored = 0
        self.refused = 0

    def serve(self) -> None:
        """Answer until the peer releases; raises PeerError when the association breaks."""
        for message in self._association.messages():
            if message.command.sop_class_uid != message.context.abstract_syntax:
                # What was negotiated is what was allowed: a context for C-ECHO stores nothing.
                self._association.respond(message, SOP_CLASS_NOT_SUPPORTED)
            elif provided := PROVIDED.get(message.context.abstract_syntax):
                provided.serve(self._conversation, message)
            elif message.command.field == Field.C_STORE_RQ and message.context.roles.scu:
                self._store_instance(message)
            else:
                self._association.respond(message, UNRECOGNISED_OPERATION)

    def _store_instance(self, message: Message) -> None:
        """C-STORE (PS3.4 B.2.3): Success only when the instance is durable and known."""
        try:
            fragments = self._place.turns(_data(message))
            receipt = ingest.receive(self._store, self._arrival(message), fragments)
        except PeerError:
            raise  # the association itself is over: there is nobody to answer
        except EdgePacsError as error:
            self._place.rest()
            self.refused += 1
            self._refuse(message, error)
        else:
            self._place.rest()
            self.stored += 1
            self._caller = replace(self._caller, number=receipt.association)
            self._association.respond(message, SUCCESS)

    def _refuse(self, message: Message, error: EdgePacsError) -> None:
        tag = error.tag if isinstance(error, DatasetMismatch) else None
        self._association.respond(
            message,
            error.dimse_status,
            comment=str(error),
            offending=() if tag is None else (tag,),
        )
        association = self._association
        self._store.incidents.note(
            Incident(
                act="instance refused",
                host=association.peer.host,
                actor=association.calling_ae,
                detail=str(error),
            )
        )

    def _arrival(self, message: Message) -> Arrival:
        command = message.command
        arrival = Arrival(
            sop_class_uid=uid(command.sop_class_uid, "Affected SOP Class UID (0000,0002)"),
            sop_instance_uid=uid(command.sop_instance_uid, "Affected SOP Instance UID (0000,1000)"),
            transfer_syntax_uid=UID(message.context.transfer_syntax),
            origin=Origin.MODALITY,
            source=self._association.calling_ae,
            caller=self._caller,
        )
        if command.text(Element.MOVE_ORIGINATOR).strip(" ") == self._store.config.node.ae_title:
            return self._moved(arrival, command.number(Element.MOVE_ORIGINATOR_MESSAGE_ID))
        if self._priors_only:
            raise NotAllowed("C-STORE: only sub-operations of a C-MOVE of ours are taken from here")
        return arrival

    def _moved(self, arrival: Arrival, message_id: int) -> Arrival:
        """A sub-operation of a C-MOVE of ours brings a prior, never something to be routed.

        PS3.7 9.1.1.1: it names who asked, and by which message. What comes when nothing is asked
        for any more is refused: as a modality's own it would be sent back to where it is from.
        """
        moving = prefetches.moving(self._store.db, self._caller.calling_ae, message_id)
        if moving is None:
            raise NotAllowed("C-STORE: belongs to no C-MOVE of ours that is under way")
        return replace(
            arrival, origin=Origin.PREFETCH, study_instance_uid=moving.study_instance_uid
        )


def _data(message: Message) -> Iterator[memoryview]:
    if message.data is None:
        raise InvalidValue("data set", "absent from the C-STORE request")
    return message.data
