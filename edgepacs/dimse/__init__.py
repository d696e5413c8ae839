"""EdgePACS's own DICOM upper layer and DIMSE engine (PS3.7, PS3.8), as acceptor and requestor."""

from edgepacs.dimse.acceptor import Admission, accept
from edgepacs.dimse.association import (
    Agreement,
    Association,
    Peer,
    Side,
)
from edgepacs.dimse.command import Command, Element, Field, Priority
from edgepacs.dimse.contexts import AcceptedContext, ContextAnswer
from edgepacs.dimse.faults import (
    AssociationAborted,
    AssociationClosed,
    AssociationRefused,
    AssociationRefusedForNow,
    AssociationRejected,
    NoContextAccepted,
    PeerTimedOut,
    ProtocolError,
)
from edgepacs.dimse.items import ContextResult, ProposedContext, Roles
from edgepacs.dimse.line import Limits
from edgepacs.dimse.message import Message, MoveOriginator, Response, StoreResponse
from edgepacs.dimse.pdu import AssociateRequest, Rejection
from edgepacs.dimse.requestor import request

__all__ = [
    "AcceptedContext",
    "Admission",
    "Agreement",
    "AssociateRequest",
    "Association",
    "AssociationAborted",
    "AssociationClosed",
    "AssociationRefused",
    "AssociationRefusedForNow",
    "AssociationRejected",
    "Command",
    "ContextAnswer",
    "ContextResult",
    "Element",
    "Field",
    "Limits",
    "Message",
    "MoveOriginator",
    "NoContextAccepted",
    "Peer",
    "PeerTimedOut",
    "Priority",
    "ProposedContext",
    "ProtocolError",
    "Rejection",
    "Response",
    "Roles",
    "Side",
    "StoreResponse",
    "accept",
    "request",
]
