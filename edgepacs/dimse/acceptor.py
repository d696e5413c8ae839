"""The accepting side of A-ASSOCIATE: read the request, ask whether it is welcome, answer it.

State machine: PS3.8 9.2, Sta2 and Sta3. Negotiated user information: PS3.7 D.3.3.
"""

import socket
import ssl
from dataclasses import dataclass, replace
from typing import Protocol

from edgepacs.clock import monotonic
from edgepacs.dimse import pdu
from edgepacs.dimse.association import Agreement, Association, Peer, Side
from edgepacs.dimse.contexts import AcceptedContext, ContextAnswer
from edgepacs.dimse.faults import (
    AbortSource,
    AssociationAborted,
    AssociationRejected,
    ProtocolError,
)
from edgepacs.dimse.implementation import CLASS_UID, VERSION
from edgepacs.dimse.items import (
    APPLICATION_CONTEXT,
    DEFAULT_ROLES,
    AnsweredContext,
    ContextResult,
    ExtendedNegotiation,
    OperationsWindow,
    ProposedContext,
    Roles,
    RoleSelection,
    UserIdentity,
    UserInformation,
)
from edgepacs.dimse.line import Limits, Line
from edgepacs.dimse.pdu import Abort, AssociateAccept, AssociateRequest, PduType, Rejection
from edgepacs.errors import InvalidValue, PeerUnreachable
from edgepacs.model import ae_title, uid

_SMALLEST_PDU = 128  # bytes; a peer that takes less would be served byte by byte
# User name, user name and passcode: an empty response accepts them (PS3.7 D.3.3.7.2). That to the
# other kinds would hold a ticket, an assertion or a token; without one the requestor decides.
_IDENTITIES_ANSWERED = (1, 2)
_NO_ROLE = Roles(scu=False, scp=False)


class Admission(Protocol):
    """What the acceptor asks before it answers an A-ASSOCIATE-RQ."""

    def admit(self, request: AssociateRequest, peer: Peer) -> Rejection | None:
        """Why this requestor is refused, or None. Both AE titles are valid when it is asked."""

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        """What to answer to one context; its UIDs are valid, its transfer syntaxes not empty."""

    def limits(self, node: Limits) -> Limits:
        """What the association may cost from here on; `node` is what any of them may."""


@dataclass(frozen=True, slots=True)
class _Decision:
    """One proposed presentation context and the answer to it."""

    proposed: ProposedContext
    answer: ContextAnswer


def accept(
    sock: socket.socket, peer_address: tuple[str, int], admission: Admission, limits: Limits
) -> Association:
    """Negotiate on a connection just accepted, plain or with its TLS handshake done.

    Raises AssociationRejected after A-ASSOCIATE-RJ, ProtocolError after A-ABORT, PeerUnreachable
    when the peer went away or kept silent (ARTIM, PS3.8 9.1.5). The socket is then closed.
    """
    peer = Peer(host=peer_address[0], port=peer_address[1], tls=isinstance(sock, ssl.SSLSocket))
    line = Line(sock, limits)
    try:
        return _negotiate(line, peer, admission, limits)
    except AssociationRejected as rejection:
        codes = Rejection(rejection.result, rejection.source, rejection.reason)
        line.hang_up(pdu.encode_rejection(codes))
        raise
    except ProtocolError:  # PS3.8 9.2, Sta2: AA-1, whose source is the service user
        line.hang_up(pdu.encode_abort(Abort(AbortSource.SERVICE_USER, 0)))
        raise
    except PeerUnreachable:  # gone, or ARTIM expired: AA-2
        line.close()
        raise
    except BaseException:  # the admission could not decide: the peer may try again
        line.hang_up(pdu.encode_rejection(pdu.TEMPORARY_CONGESTION))
        raise


def _negotiate(line: Line, peer: Peer, admission: Admission, limits: Limits) -> Association:
    request = _read_request(line, limits)
    _refuse_unfit(request, limits)
    rejection = admission.admit(request, peer)
    if rejection is not None:
        raise _rejected(request, rejection)
    decisions = [_decide(context, admission) for context in _joined(request)]
    line.send(pdu.encode_associate_accept(_accept(request, decisions, limits)))
    line.widen()
    information = request.user_information
    agreement = Agreement(
        side=Side.ACCEPTOR,
        peer=peer,
        calling_ae=request.calling_ae,
        called_ae=request.called_ae,
        contexts=_accepted(decisions),
        implementation_class_uid=information.implementation_class_uid,
        implementation_version=information.implementation_version,
        max_pdu_length=information.max_length,
    )
    return Association(line, agreement, admission.limits(limits))


def _read_request(line: Line, limits: Limits) -> AssociateRequest:
    kind, body = line.pdu(monotonic() + limits.artim, "A-ASSOCIATE-RQ")
    if kind == PduType.ABORT:
        abort = pdu.decode_abort(body)
        raise AssociationAborted(abort.source, abort.reason)
    if kind != PduType.ASSOCIATE_RQ:
        raise pdu.unexpected(kind, "before an association")
    return pdu.decode_associate_request(body)


def _refuse_unfit(request: AssociateRequest, limits: Limits) -> None:
    """Raise AssociationRejected for what no admission could let in."""
    if not request.protocol_version & pdu.PROTOCOL_VERSION:  # PS3.8 9.3.2: only bit 0 is tested
        words = f"protocol version: {request.protocol_version:#06x} lacks bit 0"
        raise _rejected(request, pdu.PROTOCOL_VERSION_NOT_SUPPORTED, words)
    if request.application_context != APPLICATION_CONTEXT:
        words = f"application context: is not {APPLICATION_CONTEXT}"
        raise _rejected(request, pdu.APPLICATION_CONTEXT_NOT_SUPPORTED, words)
    _require_ae_title(request, request.calling_ae, pdu.CALLING_AE_NOT_RECOGNISED)
    _require_ae_title(request, request.called_ae, pdu.CALLED_AE_NOT_RECOGNISED)
    information = request.user_information
    if 0 < information.max_length < _SMALLEST_PDU:
        problem = f"{information.max_length} bytes, needs {_SMALLEST_PDU}"
        raise ProtocolError("maximum length item", problem)
    size = _identity_size(information.identity)
    if size > limits.identity_bytes:
        words = f"user identity: {size} bytes, the limit is {limits.identity_bytes}"
        raise _rejected(request, pdu.PROVIDER_REFUSED, words)


def _identity_size(identity: UserIdentity | None) -> int:
    return 0 if identity is None else len(identity.primary) + len(identity.secondary)


def _require_ae_title(request: AssociateRequest, title: str, rejection: Rejection) -> None:
    name = "called" if rejection == pdu.CALLED_AE_NOT_RECOGNISED else "calling"
    try:
        ae_title(title, f"{name} AE title")
    except InvalidValue as error:
        raise _rejected(request, rejection, str(error)) from None


def _rejected(
    request: AssociateRequest, rejection: Rejection, words: str = ""
) -> AssociationRejected:
    return AssociationRejected(
        words or rejection.words,
        codes=(rejection.result, rejection.source, rejection.reason),
        calling_ae=request.calling_ae,
        called_ae=request.called_ae,
    )


def _joined(request: AssociateRequest) -> list[ProposedContext]:
    """The proposed contexts with what the user information says about their SOP classes."""
    information = request.user_information
    # Neither role is no proposal (PS3.7 D.3.3.4): the default ones count.
    roles = {one.sop_class_uid: one.roles for one in information.roles if one.roles != _NO_ROLE}
    extended = {one.sop_class_uid: one.application_information for one in information.extended}
    services = {one.sop_class_uid: one.service_class_uid for one in information.common}
    return [
        replace(
            context,
            roles=roles.get(context.abstract_syntax),
            application_information=extended.get(context.abstract_syntax, b""),
            service_class=services.get(context.abstract_syntax, ""),
        )
        for context in request.contexts
    ]


def _decide(proposed: ProposedContext, admission: Admission) -> _Decision:
    """Ask `admission`, unless what is proposed is no UID at all.

    A context that leaves its requestor neither role would be of no use (PS3.7 D.3.3.4).
    """
    if not _is_uid(proposed.abstract_syntax):
        result = ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
        return _Decision(proposed, ContextAnswer(result=result))
    syntaxes = tuple(one for one in proposed.transfer_syntaxes if _is_uid(one))
    if not syntaxes:
        result = ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
        return _Decision(proposed, ContextAnswer(result=result))
    answer = admission.context(replace(proposed, transfer_syntaxes=syntaxes))
    accepted = answer.result == ContextResult.ACCEPTED
    if accepted and _agreed(proposed.roles, answer.roles) == _NO_ROLE:
        answer = ContextAnswer(result=ContextResult.USER_REJECTION)
    return _Decision(proposed, answer)


def _is_uid(text: str) -> bool:
    try:
        uid(text)
    except InvalidValue:
        return False
    return True


def _accept(
    request: AssociateRequest, decisions: list[_Decision], limits: Limits
) -> AssociateAccept:
    information = UserInformation(
        max_length=limits.max_pdu_length,
        implementation_class_uid=CLASS_UID,
        implementation_version=VERSION,
        window=_window(request.user_information.window, limits),
        roles=_role_answers(decisions),
        extended=_extended_answers(decisions),
        identity_answer=_identity_answer(request.user_information.identity),
    )
    return AssociateAccept(
        called_ae=request.called_ae,
        calling_ae=request.calling_ae,
        contexts=tuple(_answered(decision) for decision in decisions),
        user_information=information,
    )


def _identity_answer(identity: UserIdentity | None) -> bytes | None:
    """An answer where one was asked for and we can give it (PS3.7 D.3.3.7); nobody is verified."""
    if identity is None or not identity.response_requested:
        return None
    return b"" if identity.kind in _IDENTITIES_ANSWERED else None


def _answered(decision: _Decision) -> AnsweredContext:
    proposed, answer = decision.proposed, decision.answer
    # PS3.8 9.3.3.2: not significant where refused; some peers insist on one of their own.
    syntax = answer.transfer_syntax or next(filter(_is_uid, proposed.transfer_syntaxes), "")
    return AnsweredContext(id=proposed.id, result=answer.result, transfer_syntax=syntax)


def _window(proposed: OperationsWindow | None, limits: Limits) -> OperationsWindow | None:
    """The smaller of both, 0 being unlimited (PS3.7 D.3.3.3); we never invoke two at once."""
    if proposed is None:
        return None
    return OperationsWindow(min(proposed.invoked or limits.operations, limits.operations), 1)


def _role_answers(decisions: list[_Decision]) -> tuple[RoleSelection, ...]:
    """An answer to each SOP class that roles were proposed for (PS3.7 D.3.3.4)."""
    answers: dict[str, RoleSelection] = {}
    for decision in decisions:
        proposed = decision.proposed
        if proposed.roles is not None and decision.answer.result == ContextResult.ACCEPTED:
            answers[proposed.abstract_syntax] = RoleSelection(
                proposed.abstract_syntax, _agreed(proposed.roles, decision.answer.roles)
            )
    return tuple(answers.values())


def _agreed(proposed: Roles | None, answer: Roles | None) -> Roles:
    """The requestor's roles: the default ones unless others were proposed and accepted."""
    if proposed is None:
        return DEFAULT_ROLES
    wanted = answer or DEFAULT_ROLES
    return Roles(scu=proposed.scu and wanted.scu, scp=proposed.scp and wanted.scp)


def _extended_answers(decisions: list[_Decision]) -> tuple[ExtendedNegotiation, ...]:
    """One answer a SOP class, where extended negotiation was proposed and understood."""
    answers = {
        decision.proposed.abstract_syntax: decision.answer.application_information
        for decision in decisions
        if decision.answer.application_information
    }
    return tuple(ExtendedNegotiation(sop_class, value) for sop_class, value in answers.items())


def _accepted(decisions: list[_Decision]) -> dict[int, AcceptedContext]:
    return {
        decision.proposed.id: AcceptedContext(
            id=decision.proposed.id,
            abstract_syntax=decision.proposed.abstract_syntax,
            transfer_syntax=decision.answer.transfer_syntax,
            roles=_agreed(decision.proposed.roles, decision.answer.roles),
            application_information=decision.answer.application_information,
        )
        for decision in decisions
        if decision.answer.result == ContextResult.ACCEPTED
    }
