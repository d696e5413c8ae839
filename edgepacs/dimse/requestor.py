"""The requesting side of A-ASSOCIATE: connect, propose, read the answer (PS3.8 9.2, Sta4, Sta5)."""

import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgepacs.clock import monotonic
from edgepacs.dimse import pdu
from edgepacs.dimse.association import Agreement, Association, Peer, Side
from edgepacs.dimse.contexts import AcceptedContext
from edgepacs.dimse.faults import (
    AbortSource,
    AssociationAborted,
    AssociationRefused,
    AssociationRefusedForNow,
    NoContextAccepted,
    PeerTimedOut,
    ProtocolError,
)
from edgepacs.dimse.guard import guard
from edgepacs.dimse.implementation import CLASS_UID, VERSION
from edgepacs.dimse.items import (
    DEFAULT_ROLES,
    CommonExtendedNegotiation,
    ContextResult,
    ExtendedNegotiation,
    ProposedContext,
    Roles,
    RoleSelection,
    UserIdentity,
    UserInformation,
)
from edgepacs.dimse.line import Limits, Line
from edgepacs.dimse.pdu import Abort, AssociateAccept, AssociateRequest, PduType
from edgepacs.errors import InvalidValue, PeerUnreachable
from edgepacs.model import AETitle

CONTEXTS_MAX = 128  # odd IDs from 1 to 255 (PS3.8 9.3.2.2)
_TRANSIENT = 2  # result rejected-transient (PS3.8 9.3.4)
_SMALLEST_PDU = 128


def request(  # noqa: PLR0913  who asks whom, for what, and how
    host: str,
    port: int,
    *,
    calling: AETitle,
    called: AETitle,
    contexts: Sequence[ProposedContext],
    limits: Limits,
    tls: ssl.SSLContext | None = None,
    identity: UserIdentity | None = None,
    connect_timeout: float = 10.0,
) -> Association:
    """Open an association; contexts without an ID get one, in their order: 1, 3, 5 ...

    `identity` is who our user is (PS3.7 D.3.3.7); a peer that does not ask for it ignores it.
    `connect_timeout` (seconds) bounds the connection and again the TLS handshake. Raises
    PeerUnreachable, PeerRefused (also when no context was accepted), ProtocolError, and
    InvalidValue for more than 128 contexts.
    """
    proposal = _propose(calling, called, contexts, limits, identity)
    encoded = pdu.encode_associate_request(proposal)
    sock = connected(host, port, tls, connect_timeout)
    line = Line(sock, limits)
    try:
        line.send(encoded)
        accept = _read_answer(line, limits)
        peer = Peer(host=host, port=port, tls=tls is not None)
        association = Association(line, _agreement(proposal, accept, peer), limits)
    except (ProtocolError, PeerTimedOut) as error:
        line.hang_up(pdu.encode_abort(_abort(error)))
        raise
    except BaseException:
        line.close()
        raise
    line.widen()
    _require_a_context(association)
    return association


def _propose(
    calling: AETitle,
    called: AETitle,
    contexts: Sequence[ProposedContext],
    limits: Limits,
    identity: UserIdentity | None,
) -> AssociateRequest:
    numbered = _numbered(contexts)
    information = UserInformation(
        max_length=limits.max_pdu_length,
        implementation_class_uid=CLASS_UID,
        implementation_version=VERSION,
        roles=_roles(numbered),
        extended=_extended(numbered),
        common=_common(numbered),
        identity=identity,
    )
    return AssociateRequest(
        called_ae=called, calling_ae=calling, contexts=numbered, user_information=information
    )


def _numbered(contexts: Sequence[ProposedContext]) -> tuple[ProposedContext, ...]:
    if not 0 < len(contexts) <= CONTEXTS_MAX:
        raise InvalidValue("presentation contexts", f"{len(contexts)}, must be 1 to {CONTEXTS_MAX}")
    numbered = tuple(
        context if context.id else replace(context, id=2 * position + 1)
        for position, context in enumerate(contexts)
    )
    if len({context.id for context in numbered}) != len(numbered):
        raise InvalidValue("presentation context ID", "used more than once")
    return numbered


def _roles(contexts: Sequence[ProposedContext]) -> tuple[RoleSelection, ...]:
    proposed = {one.abstract_syntax: one.roles for one in contexts if one.roles is not None}
    return tuple(RoleSelection(sop_class, roles) for sop_class, roles in proposed.items())


def _extended(contexts: Sequence[ProposedContext]) -> tuple[ExtendedNegotiation, ...]:
    proposed = {
        one.abstract_syntax: one.application_information
        for one in contexts
        if one.application_information
    }
    return tuple(ExtendedNegotiation(sop_class, value) for sop_class, value in proposed.items())


def _common(contexts: Sequence[ProposedContext]) -> tuple[CommonExtendedNegotiation, ...]:
    proposed = {one.abstract_syntax: one.service_class for one in contexts if one.service_class}
    return tuple(CommonExtendedNegotiation(*entry) for entry in proposed.items())


def connected(
    host: str, port: int, tls: ssl.SSLContext | None, connect_timeout: float
) -> socket.socket:
    """A connection to a peer, within TLS where a context is given; raises PeerUnreachable."""
    try:
        sock = socket.create_connection((host, port), connect_timeout)
    except OSError as error:
        raise PeerUnreachable(f"cannot connect: {_connect_words(error)}") from error
    guard(sock)
    if tls is None:
        return sock
    try:
        return tls.wrap_socket(sock, server_hostname=host)
    except OSError as error:
        sock.close()
        raise PeerUnreachable(f"no TLS: {_connect_words(error)}") from error


def _connect_words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens on that port"
    if isinstance(error, socket.gaierror):
        return "the host name is not known"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "the handshake failed"
    return error.strerror or "connection failed"


def _read_answer(line: Line, limits: Limits) -> AssociateAccept:
    kind, body = line.pdu(monotonic() + limits.artim, "the answer to A-ASSOCIATE-RQ")
    if kind == PduType.ASSOCIATE_AC:
        return pdu.decode_associate_accept(body)
    if kind == PduType.ASSOCIATE_RJ:
        raise _refused(pdu.decode_rejection(body))
    if kind == PduType.ABORT:
        abort = pdu.decode_abort(body)
        raise AssociationAborted(abort.source, abort.reason)
    raise pdu.unexpected(kind, "as the answer to A-ASSOCIATE-RQ")


def _refused(rejection: pdu.Rejection) -> AssociationRefused:
    kind = AssociationRefusedForNow if rejection.result == _TRANSIENT else AssociationRefused
    return kind(rejection.words, (rejection.result, rejection.source, rejection.reason))


def _agreement(proposal: AssociateRequest, accept: AssociateAccept, peer: Peer) -> Agreement:
    information = accept.user_information
    if 0 < information.max_length < _SMALLEST_PDU:
        problem = f"{information.max_length} bytes, needs {_SMALLEST_PDU}"
        raise ProtocolError("maximum length item", problem)
    return Agreement(
        side=Side.REQUESTOR,
        peer=peer,
        calling_ae=proposal.calling_ae,
        called_ae=proposal.called_ae,
        contexts=_accepted(proposal, accept),
        implementation_class_uid=information.implementation_class_uid,
        implementation_version=information.implementation_version,
        max_pdu_length=information.max_length,
    )


def _accepted(proposal: AssociateRequest, accept: AssociateAccept) -> Mapping[int, AcceptedContext]:
    """The accepted contexts; one never proposed, or in another syntax, breaks PS3.8 9.3.3.2."""
    proposed = {context.id: context for context in proposal.contexts}
    answered = {one.sop_class_uid: one.roles for one in accept.user_information.roles}
    accepted: dict[int, AcceptedContext] = {}
    for answer in accept.contexts:
        context = proposed.get(answer.id)
        if context is None:
            raise ProtocolError("presentation context ID", f"{answer.id} was not proposed")
        if answer.result != ContextResult.ACCEPTED:
            continue
        if answer.transfer_syntax not in context.transfer_syntaxes:
            raise ProtocolError("presentation context item", "transfer syntax was not proposed")
        accepted[answer.id] = AcceptedContext(
            id=answer.id,
            abstract_syntax=context.abstract_syntax,
            transfer_syntax=answer.transfer_syntax,
            roles=_agreed(context, answered),
        )
    return accepted


def _agreed(context: ProposedContext, answered: Mapping[str, Roles]) -> Roles:
    """Our roles: no answer means the default ones (PS3.7 D.3.3.4)."""
    answer = answered.get(context.abstract_syntax)
    if context.roles is None or answer is None:
        return DEFAULT_ROLES
    return Roles(scu=context.roles.scu and answer.scu, scp=context.roles.scp and answer.scp)


def _require_a_context(association: Association) -> None:
    if not association.contexts:
        association.release()
        raise NoContextAccepted("the peer accepts none of the presentation contexts proposed")


def _abort(error: ProtocolError | PeerTimedOut) -> Abort:
    """PS3.8 9.2, Sta5: what is invalid is answered by AA-8, a time-out ends as the user's."""
    if isinstance(error, ProtocolError):
        return Abort(AbortSource.SERVICE_PROVIDER, error.reason)
    return Abort(AbortSource.SERVICE_USER, 0)
