"""Who may associate, and for which services: the allow-list asked before A-ASSOCIATE is answered.

Unknown callers are refused and remembered, so that one command can let them in.
"""

from dataclasses import replace

from edgepacs.dimse import (
    AssociateRequest,
    Association,
    AssociationRejected,
    ContextAnswer,
    ContextResult,
    Limits,
    Peer,
    ProposedContext,
    Rejection,
)
from edgepacs.dimse.contexts import (
    STORAGE_COMMITMENT_PUSH,
    native_answer,
    storage_answer,
)
from edgepacs.dimse.items import Roles
from edgepacs.model import AETitle, Service
from edgepacs.scp.carriers import SMALLER
from edgepacs.scp.conversation import Conversation
from edgepacs.scp.services import PROVIDED
from edgepacs.scp.shares import Place, Shares
from edgepacs.store import Store, destinations, peers, prefetches
from edgepacs.store.incidents import Incident
from edgepacs.store.peers import KnownAE

# PS3.8 9.3.4: result, source, reason
CALLING_AE_UNKNOWN = Rejection(1, 1, 3)
CALLED_AE_UNKNOWN = Rejection(1, 1, 7)
LIMIT_REACHED = Rejection(2, 3, 2)

UNKNOWN_CALLER = "unknown calling AE title"
WRONG_HOST = "known calling AE title from another host"
WRONG_CALLED = "unknown called AE title"
_SLACK = 1 << 20  # bytes of a data set read for nothing after it was refused for its length


class Gate:
    """Decides on one association; one object per association, whose place it holds."""

    def __init__(self, store: Store, shares: Shares) -> None:
        self._store = store
        self._shares = shares
        self._services: frozenset[Service] = frozenset()
        self._known: KnownAE | None = None
        self._place: Place | None = None
        self.reason = ""  # why it was refused, for the list of refused callers
        self._reports = False  # it is one of our destinations, whose reports are awaited
        self._brings_priors = False  # it is one from which a C-MOVE of ours is under way
        self._full = ""  # which limits left no place

    def admit(self, request: AssociateRequest, peer: Peer) -> Rejection | None:
        """None for a known caller at its host who calls one of our AE titles and finds a place."""
        node = self._store.config.node
        if request.called_ae not in (node.ae_title, *node.aliases):
            self.reason = WRONG_CALLED
            return CALLED_AE_UNKNOWN
        known = self._recognised(AETitle(request.calling_ae), peer.host)
        if known is None:
            return CALLING_AE_UNKNOWN
        size = self._object_bytes(known)
        self._place = self._shares.take(known.title, known.max_associations, size)
        if self._place is None:
            every = self._store.config.dicom.max_associations
            mine = known.max_associations
            self._full = f"associations: the limit is {mine} of one AE title, {every} of all"
            return LIMIT_REACHED
        self._known = known
        self._services = frozenset(service for service in Service if known.may(service))
        return None

    def _recognised(self, title: AETitle, host: str) -> KnownAE | None:
        """Who calls; None, with the reason noted, for a stranger.

        A destination may bring its storage commitment reports (PS3.4 J.3.3) and what we ask it to
        send us by C-MOVE, whoever else it is.
        """
        known = peers.known_ae(self._store.db, title)
        destination = destinations.caller(self._store.db, title, host)
        self._reports = destination is not None
        self._brings_priors = self._reports and prefetches.moving(self._store.db, title) is not None
        if known is not None and peers.is_at(known.host, host):
            return known
        if destination is None:
            self.reason = UNKNOWN_CALLER if known is None else WRONG_HOST
        return destination

    @property
    def priors_only(self) -> bool:
        """Whether what it stores must be what we have asked for by C-MOVE."""
        return self._brings_priors and Service.STORE not in self._services

    def conversation(self, association: Association) -> Conversation:
        """The association that was admitted, as its services see it."""
        assert self._place is not None
        assert self._known is not None
        return Conversation(self._store, association, self._place, self._known)

    def limits(self, node: Limits) -> Limits:
        """The node's limits with those of the AE that was admitted."""
        assert self._known is not None
        return replace(
            node,
            object_bytes=self._object_bytes(self._known) + _SLACK,
            object_deadline=float(self._known.max_object_seconds),
        )

    def _object_bytes(self, known: KnownAE) -> int:
        """What one data set may hold: what the AE may send, and no more than the node takes."""
        most = self._store.config.dicom.max_object_mib
        return min(most, known.max_object_mib or most) << 20

    def leave(self) -> None:
        """Give the place back, if there is one; again is harmless."""
        if self._place is not None:
            self._place.leave()

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        """Storage and the other services, as far as this caller may use them, and its reports."""
        if proposed.abstract_syntax == STORAGE_COMMITMENT_PUSH:
            return self._reports_answer(proposed)
        provided = PROVIDED.get(proposed.abstract_syntax)
        if provided is None:
            return self._storage_answer(proposed)
        if provided.service not in self._services:
            return ContextAnswer(result=ContextResult.USER_REJECTION)
        options = provided.options(proposed.application_information)
        return replace(native_answer(proposed), application_information=options)

    def _storage_answer(self, proposed: ProposedContext) -> ContextAnswer:
        """Storage, by us and, for who retrieves by C-GET, by the caller (PS3.7 D.3.3.4).

        Who only retrieves and names first what is smaller is given that, if it is written here.
        """
        may_store = Service.STORE in self._services or self._brings_priors
        takes = proposed.roles is not None and proposed.roles.scp
        roles = Roles(scu=may_store, scp=takes and Service.GET in self._services)
        if not roles.scu and not roles.scp:
            return ContextAnswer(result=ContextResult.USER_REJECTION)
        first = proposed.transfer_syntaxes[0]
        if first in SMALLER and not roles.scu:
            proposed = replace(proposed, transfer_syntaxes=(first,))
        return replace(storage_answer(proposed), roles=roles)

    def _reports_answer(self, proposed: ProposedContext) -> ContextAnswer:
        """Storage commitment: for who asks us, and with roles reversed for reports to us.

        PS3.4 J.3.3, PS3.7 D.3.3.4. A destination that may not ask and says nothing of roles can
        only mean its reports: some leave the role selection out.
        """
        may_ask = Service.COMMITMENT in self._services
        may_report = self._reports or may_ask
        if proposed.roles is None:
            roles = Roles(scu=may_report, scp=False)
        else:
            wanted = proposed.roles
            roles = Roles(scu=wanted.scu and may_ask, scp=wanted.scp and may_report)
        if not roles.scu and not roles.scp:
            return ContextAnswer(result=ContextResult.USER_REJECTION)
        return native_answer(proposed, roles)

    def note(self, rejection: AssociationRejected, host: str) -> None:
        """Record that a caller was refused; one refused for who it is is listed as well."""
        self._store.incidents.note(
            Incident(
                act="association refused",
                host=host,
                actor=rejection.calling_ae,
                detail=self.reason or self._full or str(rejection),
                called_ae=rejection.called_ae if self.reason else "",
            )
        )
