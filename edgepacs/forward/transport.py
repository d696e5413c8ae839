"""The DIMSE transport: one association that carries a batch of deliveries to one destination."""

from collections.abc import Iterable, Iterator, Sequence

from edgepacs.custody.outgoing import outgoing
from edgepacs.dimse import Association, Limits, NoContextAccepted, ProposedContext, request
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.dimse.status import lookup
from edgepacs.errors import EdgePacsError, NotFound, PeerError, Tampered
from edgepacs.forward.batch import Pair, Parcel, Verdict
from edgepacs.model import UID, DeliveryState
from edgepacs.pixels.syntaxes import syntax
from edgepacs.store import Store, deliveries, instances
from edgepacs.store.claims import Claim
from edgepacs.store.deliveries import LOSSY_RESPONSE, RESPONSE
from edgepacs.store.destinations import Destination

IMPLICIT_VR_LE = "1.2.840.10008.1.2"
CONNECT_SECONDS = 10.0
_LIMITS = Limits()


def open_association(
    store: Store, destination: Destination, proposed: Sequence[Pair]
) -> Association:
    """An association with one presentation context per pair of SOP class and transfer syntax.

    Several transfer syntaxes in one context would leave the choice to the peer (PS3.8 9.3.3.2).
    Raises PeerUnreachable, PeerRefused.
    """
    return _request(store, destination, proposed)


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


def send(store: Store, association: Association, parcel: Parcel) -> Verdict | None:
    """Send one claimed instance, in constant memory (PS3.4 B.2.3); None where it cannot go now.

    That is so when it was rewritten at rest since it was claimed, into a transfer syntax that
    was not proposed. Raises PeerError when the association broke before the destination answered.
    """
    claim = parcel.claim
    try:
        found = _data_set(store, association, parcel)
        if found is None:
            return None
        uid, sop, pieces = found
        context = association.accepted(claim.sop_class_uid, uid)
        assert context is not None
        response = association.store(context, claim.sop_class_uid, sop, pieces)
    except PeerError:
        raise
    except (Tampered, NotFound) as error:
        return Verdict(DeliveryState.FAILED, f"{deliveries.NOT_SENT}{error}")
    except EdgePacsError as error:
        return Verdict(DeliveryState.QUEUED, f"{deliveries.NOT_SENT}{error}")
    proof = RESPONSE if sop == claim.sop_instance_uid else LOSSY_RESPONSE
    return _judged(response.status, response.comment, _sent_as(claim, uid), proof)


def _data_set(
    store: Store, association: Association, parcel: Parcel
) -> tuple[UID, UID, Iterator[bytes]] | None:
    """Transfer syntax, SOP Instance UID and bytes of what is to be sent.

    What was compressed at rest since it was claimed still goes as it was received.
    """
    if prepared := parcel.prepared:
        return prepared.transfer_syntax_uid, prepared.sop_instance_uid, prepared.pieces()
    row = instances.instance(store.db, parcel.claim.instance)
    possible = {
        one
        for one in (row.transfer_syntax_uid, row.received_syntax_uid)
        if association.accepted(row.sop_class_uid, one) is not None
    }
    if not possible:
        return None
    going = outgoing(store, row, possible)
    return going.transfer_syntax_uid, going.sop_instance_uid, going.chunks


def _sent_as(claim: Claim, uid: UID) -> str:
    """How it was sent, where it was not as it is stored."""
    row = syntax(uid)
    return f", sent as {row.name}" if row and uid != claim.transfer_syntax_uid else ""


def _judged(code: int, comment: str, manner: str = "", proof: str = RESPONSE) -> Verdict:
    """A C-STORE status as a verdict: passing failures are tried again, permanent ones are not."""
    status = lookup(code)
    said = f" ({comment})" if comment else ""
    if status.stored:
        return Verdict(DeliveryState.SENT, f"{status.meaning} ({code:04X}){manner}", proof)
    words = f"the destination answered {code:04X}, {status.meaning}{said}{manner}"
    return Verdict(DeliveryState.QUEUED if status.passing else DeliveryState.FAILED, words)
