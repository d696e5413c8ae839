"""Dialling: associations with one destination, for whatever is to be asked of it."""

from collections.abc import Sequence
from dataclasses import replace

from edgepacs.custody.credentials import tls_context, user_identity
from edgepacs.dimse import Association, Limits, NoContextAccepted, ProposedContext, request
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.errors import PeerError
from edgepacs.forward.batch import Pair
from edgepacs.model import UID
from edgepacs.store import Store
from edgepacs.store.destinations import Destination

IMPLICIT_VR_LE = "1.2.840.10008.1.2"
CONNECT_SECONDS = 10.0
ECHO_SECONDS = 10.0  # for each answer
RELEASE_SECONDS = 2.5  # a line that died while idle must not hold up what comes after it
LIMITS = Limits(stall=30.0, release=RELEASE_SECONDS)


def open_association(
    store: Store,
    destination: Destination,
    proposed: Sequence[Pair],
    more: Sequence[ProposedContext] = (),
    limits: Limits | None = None,
) -> Association:
    """An association with one presentation context per pair of SOP class and transfer syntax.

    Several transfer syntaxes in one context would leave the choice to the peer (PS3.8 9.3.3.2).
    `more` are proposed as they are. Raises PeerUnreachable, PeerRefused.
    """
    pairs = [
        ProposedContext(abstract_syntax=sop_class, transfer_syntaxes=(syntax,))
        for sop_class, syntax in proposed
    ]
    return request(
        destination.host,
        destination.port,
        calling=store.config.node.ae_title,
        called=destination.ae_title,
        contexts=[*pairs, *more],
        limits=limits or LIMITS,
        tls=tls_context(destination) if destination.tls else None,
        identity=user_identity(destination),
        connect_timeout=CONNECT_SECONDS,
    )


def echo(store: Store, destination: Destination) -> None:
    """C-ECHO a destination; raises PeerUnreachable, PeerRefused, PeerError."""
    verification = [(UID(VERIFICATION), UID(IMPLICIT_VR_LE))]
    try:
        quick = replace(
            LIMITS,
            artim=min(ECHO_SECONDS, LIMITS.artim),
            response=min(ECHO_SECONDS, LIMITS.response),
        )
        with open_association(store, destination, verification, limits=quick) as association:
            status = association.echo()
    except NoContextAccepted:
        return  # it answers, and knows us; that it offers no Verification keeps nothing from it
    if status:
        raise PeerError(f"the destination answered C-ECHO with status {status:04X}")
