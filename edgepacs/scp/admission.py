"""Who may associate, and for which services: the allow-list asked before A-ASSOCIATE is answered.

Unknown callers are refused and remembered, so that one command can let them in.
"""

from collections.abc import Callable

from edgepacs.dimse import (
    AssociateRequest,
    AssociationRejected,
    ContextAnswer,
    ContextResult,
    Peer,
    ProposedContext,
    Rejection,
)
from edgepacs.dimse.contexts import VERIFICATION, storage_answer
from edgepacs.model import AETitle, Service
from edgepacs.store import Store, peers

# PS3.8 9.3.4: result, source, reason
CALLING_AE_UNKNOWN = Rejection(1, 1, 3)
CALLED_AE_UNKNOWN = Rejection(1, 1, 7)
LIMIT_REACHED = Rejection(2, 3, 2)

UNKNOWN_CALLER = "unknown calling AE title"
WRONG_HOST = "known calling AE title from another host"
WRONG_CALLED = "unknown called AE title"


class Gate:
    """Decides on one association; one object per association."""

    def __init__(self, store: Store, crowded: Callable[[], bool]) -> None:
        self._store = store
        self._crowded = crowded
        self._services: frozenset[Service] = frozenset()
        self.reason = ""  # why it was refused, for the list of refused callers

    def admit(self, request: AssociateRequest, peer: Peer) -> Rejection | None:
        """None for a known caller at its host who calls one of our AE titles."""
        node = self._store.config.node
        if self._crowded():
            return LIMIT_REACHED
        if request.called_ae not in (node.ae_title, *node.aliases):
            self.reason = WRONG_CALLED
            return CALLED_AE_UNKNOWN
        known = peers.known_ae(self._store.db, AETitle(request.calling_ae))
        if known is None:
            self.reason = UNKNOWN_CALLER
            return CALLING_AE_UNKNOWN
        if not peers.is_at(known.host, peer.host):
            self.reason = WRONG_HOST
            return CALLING_AE_UNKNOWN
        self._services = frozenset(service for service in Service if known.may(service))
        return None

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        """Storage and verification, as far as this caller may use them."""
        verification = proposed.abstract_syntax == VERIFICATION
        if (Service.ECHO if verification else Service.STORE) not in self._services:
            return ContextAnswer(result=ContextResult.USER_REJECTION)
        return storage_answer(proposed)

    def note(self, rejection: AssociationRejected, host: str) -> None:
        """Remember a caller that was refused for who it is."""
        if self.reason:
            peers.note_refused(
                self._store.db,
                calling_ae=rejection.calling_ae,
                called_ae=rejection.called_ae,
                host=host,
                reason=self.reason,
            )
