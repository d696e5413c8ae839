"""The DIMSE transport: one association that carries a batch of deliveries to one destination."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgepacs.custody import readout
from edgepacs.dimse import Association, Limits, NoContextAccepted, ProposedContext, request
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.dimse.status import lookup
from edgepacs.errors import EdgePacsError, NotFound, PeerError, Tampered
from edgepacs.model import UID, DeliveryState
from edgepacs.store import Store, deliveries, instances
from edgepacs.store.deliveries import Claim
from edgepacs.store.peers import Destination

IMPLICIT_VR_LE = "1.2.840.10008.1.2"
CONNECT_SECONDS = 10.0
CONTEXTS_MAX = 128  # PS3.8 9.3.2.2: odd numbers from 1 to 255
_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one attempt, in words a technologist understands."""

    state: DeliveryState
    words: str


def open_association(
    store: Store, destination: Destination, claims: Sequence[Claim]
) -> Association:
    """An association with one presentation context per SOP class and transfer syntax of `claims`.

    Raises PeerUnreachable, PeerRefused.
    """
    wanted = dict.fromkeys((claim.sop_class_uid, claim.transfer_syntax_uid) for claim in claims)
    return _request(store, destination, wanted)


def echo(store: Store, destination: Destination) -> None:
    """C-ECHO a destination; raises PeerUnreachable, PeerRefused, PeerError."""
    verification = [(UID(VERIFICATION), UID(IMPLICIT_VR_LE))]
    try:
        with _request(store, destination, verification) as association:
            status = association.echo()
    except NoContextAccepted:
        return  # it answers, and knows us; that it offers no Verification keeps nothing from it
    if status:
        raise PeerError(f"the destination answered C-ECHO with status {status:04X}")


def _request(
    store: Store, destination: Destination, wanted: Iterable[tuple[UID, UID]]
) -> Association:
    return request(
        destination.host,
        destination.port,
        calling=store.config.node.ae_title,
        called=destination.ae_title,
        contexts=[
            ProposedContext(abstract_syntax=sop_class, transfer_syntaxes=(syntax,))
            for sop_class, syntax in wanted
        ],
        limits=_LIMITS,
        connect_timeout=CONNECT_SECONDS,
    )


def send(store: Store, association: Association, claim: Claim) -> Verdict:
    """Send one claimed instance out of its sealed object, in constant memory (PS3.4 B.2.3).

    Raises PeerError when the association broke before the destination answered.
    """
    context = association.accepted(claim.sop_class_uid, claim.transfer_syntax_uid)
    if context is None:
        return Verdict(
            DeliveryState.FAILED,
            "the destination accepts no presentation context for this SOP class and transfer "
            "syntax",
        )
    try:
        with readout.sealed(store, instances.instance(store.db, claim.instance)) as data_set:
            response = association.store(
                context, claim.sop_class_uid, claim.sop_instance_uid, data_set.chunks()
            )
    except PeerError:
        raise
    except Tampered as error:
        return Verdict(DeliveryState.FAILED, f"{deliveries.NOT_SENT}{error}")
    except NotFound as error:
        return Verdict(DeliveryState.FAILED, f"{deliveries.NOT_SENT}{error}")
    except EdgePacsError as error:
        return Verdict(DeliveryState.QUEUED, f"{deliveries.NOT_SENT}{error}")
    return _judged(response.status, response.comment)


def _judged(code: int, comment: str) -> Verdict:
    """A C-STORE status as a verdict: passing failures are tried again, permanent ones are not."""
    status = lookup(code)
    said = f" ({comment})" if comment else ""
    if status.stored:
        return Verdict(DeliveryState.SENT, f"{status.meaning} ({code:04X})")
    words = f"the destination answered {code:04X}, {status.meaning}{said}"
    return Verdict(DeliveryState.QUEUED if status.passing else DeliveryState.FAILED, words)
