"""An association once negotiated: DIMSE messages in and out (PS3.7 9, 10; PS3.8 9.2).

The same engine serves both sides, since a storage commitment report may come to the side that
opened the association. An association belongs to one thread; only `abort` may be called from
another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import NoReturn, Self, TypeVar

from edgepacs.clock import monotonic
from edgepacs.dimse import pdu, status
from edgepacs.dimse.command import (
    DATA_SET,
    NO_DATA_SET,
    RESPONSE,
    Command,
    Element,
    Field,
    Priority,
    Value,
    decode,
    encode,
)
from edgepacs.dimse.contexts import VERIFICATION, AcceptedContext
from edgepacs.dimse.faults import (
    AbortSource,
    AssociationAborted,
    AssociationClosed,
    PeerTimedOut,
    ProtocolError,
)
from edgepacs.dimse.incoming import IncomingData
from edgepacs.dimse.items import DEFAULT_MAX_LENGTH
from edgepacs.dimse.line import Limits, Line
from edgepacs.dimse.message import (
    Message,
    MoveOriginator,
    Response,
    StoreResponse,
    comment_element,
    response_to,
)
from edgepacs.dimse.outbox import Outbox
from edgepacs.dimse.pdu import Abort, PduType
from edgepacs.errors import EdgePacsError, InvalidValue, LimitExceeded, PeerUnreachable
from edgepacs.model import UID

_EMPTY = memoryview(b"")
_FIELDS = frozenset(int(one) for one in Field)
_MESSAGE_IDS = 65_535
_USER_ABORT = pdu.encode_abort(Abort(AbortSource.SERVICE_USER, 0))  # PS3.8 9.3.8


class Side(StrEnum):
    """Which side of the association we are (PS3.8 3.1)."""

    ACCEPTOR = "acceptor"
    REQUESTOR = "requestor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where the other side is."""

    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What A-ASSOCIATE settled. `max_pdu_length` is what the peer takes, 0 without limit."""

    side: Side
    peer: Peer
    calling_ae: str
    called_ae: str
    contexts: Mapping[int, AcceptedContext]
    implementation_class_uid: str = ""
    implementation_version: str = ""
    max_pdu_length: int = DEFAULT_MAX_LENGTH


_Event = TypeVar("_Event", Response, Message | Response)


class _Released(Exception):
    """The peer asked to release the association between two messages."""


class Association:
    """An open association; a context manager that releases at its end, or aborts on an error."""

    def __init__(self, line: Line, agreement: Agreement, limits: Limits) -> None:
        self._line = line
        self._limits = limits
        self.agreement = agreement
        self._body = _EMPTY  # the P-DATA-TF being read, and how far
        self._at = 0
        self._data: IncomingData | None = None  # the data set being received
        self._between = True  # no message is being received
        self._released = False  # as the peer asked
        self._early: deque[Message] = deque()
        self._message_id = 0
        self._cancels = 0
        self._revoked: set[int] = set()  # requests a C-CANCEL of which came during our own
        self._outbox = Outbox(line, agreement.max_pdu_length, limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._line.hang_up(_USER_ABORT)
        elif self.is_open:
            with suppress(PeerUnreachable, ProtocolError):  # all answers are in: nothing is lost
                self.release()
        self.close()

    @property
    def calling_ae(self) -> str:
        """AE title of the association requestor."""
        return self.agreement.calling_ae

    @property
    def called_ae(self) -> str:
        """AE title the association was asked of."""
        return self.agreement.called_ae

    @property
    def peer(self) -> Peer:
        """Where the other side is."""
        return self.agreement.peer

    @property
    def contexts(self) -> Mapping[int, AcceptedContext]:
        """Accepted presentation contexts by ID."""
        return self.agreement.contexts

    @property
    def is_open(self) -> bool:
        """Whether messages can still be exchanged."""
        return self._line.is_open and not self._released

    def accepted(self, abstract_syntax: str, transfer_syntax: str | None = None) -> int | None:
        """ID of an accepted presentation context; without `transfer_syntax`, of any syntax."""
        for number, context in self.contexts.items():
            if context.abstract_syntax == abstract_syntax and (
                transfer_syntax in (None, context.transfer_syntax)
            ):
                return number
        return None

    # --- serving ---------------------------------------------------------------------------

    def messages(self) -> Iterator[Message]:
        """Requests in the order they come, until the peer releases the association.

        Answers A-RELEASE-RP itself; `close` then waits for the peer to close. Raises ProtocolError,
        LimitExceeded and PeerUnreachable, each after having aborted where the peer still listens.
        """
        while not self._released:  # as it may have been while an answer of its was awaited
            try:
                message = self._next_request()
            except _Released:
                self._confirm_release()
                return
            except EdgePacsError as error:
                self._fail(error)
                raise
            yield message

    def listen(self, seconds: float) -> Message | None:
        """The next request, None when none begins to come within `seconds` or the peer releases.

        For the side that otherwise asks: a storage commitment report may come to it (PS3.4 J.3.3).
        Raises as `messages` does.
        """
        read = bool(self._early) or self._at < len(self._body)
        if not self.is_open or not (read or self._line.waiting(seconds)):
            return None
        try:
            return self._next_request()
        except _Released:
            self._answer_release()
            return None
        except EdgePacsError as error:
            self._fail(error)
            raise

    def _next_request(self) -> Message:
        self._revoked.clear()  # what they were about has been answered
        if self._early:
            return self._early.popleft()
        while True:
            context, command = self._receive_command(self._limits.idle, "the next message")
            if command.field & RESPONSE:
                raise ProtocolError(command.name, "answers nothing that was asked")
            if command.field != Field.C_CANCEL_RQ:
                return Message(context, command, self._data)
            self._count_cancel()

    def _count_cancel(self) -> None:
        """A C-CANCEL that comes too late is legal and ignored (PS3.7 9.3.2.3); a flood is not."""
        self._cancels += 1
        if self._cancels > self._limits.cancels:
            raise LimitExceeded(f"C-CANCEL: more than {self._limits.cancels} on one association")

    def cancelled(self, message: Message) -> bool:
        """Whether a C-CANCEL of `message` has arrived (PS3.7 9.3.2.3); does not wait.

        Also one that came while we awaited the answer to a request of our own, as the C-STORE
        sub-operations of a C-GET are. A request that has arrived instead is kept for `messages`.
        What is unread of the data set of `message` itself is dropped.
        """
        if message.command.message_id in self._revoked:
            return True
        try:
            if not self._early:
                self._finish_data()
            while not self._early and (self._at < len(self._body) or self._line.waiting()):
                context, command = self._receive_command(self._limits.stall, "a C-CANCEL")
                if command.field != Field.C_CANCEL_RQ:
                    self._early.append(Message(context, command, self._data))
                elif command.responded_message_id == message.command.message_id:
                    return True
                else:
                    self._count_cancel()
        except _Released:
            self._answer_release()
            raise AssociationClosed("released by the peer before its answer was complete") from None
        except EdgePacsError as error:
            self._fail(error)
            raise
        return False

    def respond(
        self,
        message: Message,
        status: int,
        *,
        data: bytes | None = None,
        comment: str = "",
        offending: Sequence[int] = (),
        extra: Mapping[int, Value] | None = None,
    ) -> None:
        """Answer `message` with its -RSP, command and data set in one write where they fit.

        `comment` is cut to 64 characters; `offending` are 32-bit tags; `extra` holds elements of
        one service, such as the counts of sub-operations (PS3.7 9.1.3, 9.1.4).
        """
        elements = response_to(message.command, status)
        elements[Element.DATA_SET_TYPE] = NO_DATA_SET if data is None else DATA_SET
        if comment:
            elements[Element.ERROR_COMMENT] = comment_element(comment)
        if offending:
            elements[Element.OFFENDING_ELEMENT] = tuple(offending)
        if extra:
            elements.update(extra)
        self._send(message.context.id, elements, None if data is None else (data,))

    def respond_each(self, message: Message, status: int, data: Iterable[bytes]) -> None:
        """Answer `message` with one -RSP of the same status for each of `data`, in few writes."""
        elements = response_to(message.command, status)
        elements[Element.DATA_SET_TYPE] = DATA_SET
        context = message.context.id
        self._sending(context, elements, lambda raw: self._outbox.messages(context, raw, data))

    # --- asking ----------------------------------------------------------------------------

    def echo(self) -> int:
        """Send a C-ECHO and return its status (PS3.7 9.1.5).

        Raises InvalidValue when no context for verification was accepted.
        """
        context = self.accepted(VERIFICATION)
        if context is None:
            raise InvalidValue("presentation context", "none was accepted for verification")
        elements: dict[int, Value] = {
            Element.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            Element.COMMAND_FIELD: Field.C_ECHO_RQ,
        }
        return self._one_answer(self.ask(context, elements)).status

    def store(
        self,
        context_id: int,
        sop_class_uid: UID,
        sop_instance_uid: UID,
        data: Iterable[bytes | memoryview],
        *,
        priority: Priority = Priority.MEDIUM,
        originator: MoveOriginator | None = None,
    ) -> StoreResponse:
        """Send one instance by C-STORE and wait for its answer (PS3.7 9.1.1).

        `data` is the data set in the transfer syntax of the context, in pieces of any size; it
        is sent while it is read. Whatever `data` raises aborts the association and is raised.
        """
        return self.begin_store(
            context_id,
            sop_class_uid,
            sop_instance_uid,
            data,
            priority=priority,
            originator=originator,
        )()

    def begin_store(
        self,
        context_id: int,
        sop_class_uid: UID,
        sop_instance_uid: UID,
        data: Iterable[bytes | memoryview],
        *,
        priority: Priority = Priority.MEDIUM,
        originator: MoveOriginator | None = None,
    ) -> Callable[[], StoreResponse]:
        """Send one instance as `store` does; what is returned waits for the answer."""
        elements: dict[int, Value] = {
            Element.AFFECTED_SOP_CLASS_UID: sop_class_uid,
            Element.COMMAND_FIELD: Field.C_STORE_RQ,
            Element.PRIORITY: priority,
            Element.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
        if originator is not None:
            elements[Element.MOVE_ORIGINATOR] = originator.ae_title
            elements[Element.MOVE_ORIGINATOR_MESSAGE_ID] = originator.message_id
        responses = self.ask(context_id, elements, data)

        def answer() -> StoreResponse:
            final = self._one_answer(responses)
            return StoreResponse(final.status, final.command.comment)

        return answer

    def ask(
        self,
        context_id: int,
        elements: Mapping[int, Value],
        data: Iterable[bytes | memoryview] | None = None,
    ) -> Iterator[Response]:
        """Send any request and yield its responses, the pending ones and the final one.

        Message ID and data set type are filled in. Sending happens before this returns.
        """
        self._request(context_id, elements, data)
        return self._until_final(self._message_id, self._next_response)

    def converse(
        self,
        context_id: int,
        elements: Mapping[int, Value],
        data: Iterable[bytes | memoryview] | None = None,
    ) -> Iterator[Message | Response]:
        """As `ask`, yielding the peer's own requests among the responses, as they come.

        Each is to be answered before the next is asked for: the C-STORE sub-operations of a C-GET
        arrive so (PS3.7 9.1.3). What is left unread of one is dropped.
        """
        self._request(context_id, elements, data)
        return self._until_final(self._message_id, self._next_of_either)

    def _request(
        self,
        context_id: int,
        elements: Mapping[int, Value],
        data: Iterable[bytes | memoryview] | None,
    ) -> None:
        self._message_id = self._message_id % _MESSAGE_IDS + 1
        whole = {
            **elements,
            Element.MESSAGE_ID: self._message_id,
            Element.DATA_SET_TYPE: NO_DATA_SET if data is None else DATA_SET,
        }
        self._send(context_id, whole, data)

    def keep_unsent(self, size: int) -> None:
        """Let the kernel hold no more than about `size` bytes that are not sent yet."""
        self._line.keep_unsent(size)

    def await_sent(self, seconds: float) -> None:
        """Wait, no longer than that, until hardly anything is left that has not been sent."""
        self._line.await_sent(seconds)

    def cancel(self, context_id: int, message_id: int) -> None:
        """Send a C-CANCEL of our request `message_id` (PS3.7 9.3.2.3)."""
        elements: dict[int, Value] = {
            Element.COMMAND_FIELD: Field.C_CANCEL_RQ,
            Element.RESPONDED_MESSAGE_ID: message_id,
            Element.DATA_SET_TYPE: NO_DATA_SET,
        }
        self._send(context_id, elements, None)

    @property
    def last_message_id(self) -> int:
        """Message ID of the request asked last."""
        return self._message_id

    def _until_final(self, message_id: int, following: Callable[[int], _Event]) -> Iterator[_Event]:
        """What `following` reads, up to the final response."""
        while True:
            try:
                event = following(message_id)
            except _Released:
                self._answer_release()
                raise AssociationClosed("released by the peer instead of an answer") from None
            except EdgePacsError as error:
                self._fail(error)
                raise
            yield event
            if isinstance(event, Response):
                kind = status.lookup(event.status).category
                if kind is not status.Category.PENDING:
                    return

    def _next_response(self, message_id: int) -> Response:
        while True:
            context, command = self._receive_command(self._limits.response, "a response")
            if command.field & RESPONSE:
                return self._answering(command, message_id)
            self._keep_early(context, command)

    def _next_of_either(self, message_id: int) -> Message | Response:
        while not self._early:
            context, command = self._receive_command(self._limits.response, "a response")
            if command.field & RESPONSE:
                return self._answering(command, message_id)
            if command.field != Field.C_CANCEL_RQ:
                return Message(context, command, self._data)
            self._count_cancel()
        return self._early.popleft()

    def _answering(self, command: Command, message_id: int) -> Response:
        if command.responded_message_id != message_id:
            raise ProtocolError(command.name, "answers nothing that was asked")
        return Response(command=command, data=self._whole_data())

    @staticmethod
    def _one_answer(responses: Iterator[Response]) -> Response:
        """The final response."""
        *_, final = responses
        return final

    def _keep_early(self, context: AcceptedContext, command: Command) -> None:
        """Keep a request that came while we waited for something else."""
        if command.field == Field.C_CANCEL_RQ:
            self._count_cancel()
            self._revoked.add(command.responded_message_id)
            return
        if len(self._early) >= self._limits.early_messages:
            raise LimitExceeded(f"requests: {self._limits.early_messages} await their turn")
        data = iter((memoryview(self._whole_data()),)) if command.has_data_set else None
        self._early.append(Message(context, command, data))

    def _whole_data(self) -> bytes:
        """The data set being received, in memory."""
        if self._data is None:
            return b""
        whole = bytearray()
        for fragment in self._data:
            if len(whole) + len(fragment) > self._limits.reply_bytes:
                raise LimitExceeded(f"data set: more than {self._limits.reply_bytes} bytes")
            whole += fragment
        return bytes(whole)

    # --- receiving -------------------------------------------------------------------------

    def _receive_command(self, patience: float, awaiting: str) -> tuple[AcceptedContext, Command]:
        """The next command set; a data set that follows it stands in `_data`."""
        self._finish_data()
        self._require_open()
        number, raw = self._receive_command_bytes(monotonic() + patience, awaiting)
        context = self._context(number)
        command = decode(raw)
        if command.field not in _FIELDS:
            raise ProtocolError("(0000,0100) Command Field", f"{command.field:#06x} is unknown")
        if command.has_data_set:
            self._data = IncomingData(number, self._limits, self._next_pdv, self._data_ended)
            self._line.hasten = True
        return context, command

    def _receive_command_bytes(self, deadline: float, awaiting: str) -> tuple[int, bytes]:
        self._between = True
        first, control, fragment = self._next_pdv(deadline, awaiting)
        self._between = False
        whole = bytes(fragment)
        while True:
            if not control & pdu.COMMAND:
                raise ProtocolError("PDV", "data set fragment where a command set is due")
            if control & pdu.LAST:
                return first, whole
            number, control, fragment = self._next_pdv(deadline, "the rest of a command set")
            if number != first:
                raise ProtocolError("PDV", "presentation context changes inside a command set")
            whole += fragment
            if len(whole) > self._limits.command_bytes:
                raise ProtocolError("command set", f"more than {self._limits.command_bytes} bytes")
            deadline = min(deadline, monotonic() + self._limits.stall)

    def _finish_data(self) -> None:
        """Read what is left of the last data set, to drop it unless its turn is still to come."""
        if self._data is None:
            return
        if self._early and self._early[-1].data is self._data:
            self._early[-1].data = iter((memoryview(self._whole_data()),))
        else:
            self._data.drop()

    def _context(self, number: int) -> AcceptedContext:
        context = self.contexts.get(number)
        if context is None:
            raise ProtocolError("presentation context ID", f"{number} was not accepted")
        return context

    def _next_pdv(self, deadline: float, awaiting: str) -> tuple[int, int, memoryview]:
        """Context ID, message control header and fragment of the next PDV (PS3.8 9.3.5.1)."""
        while self._at >= len(self._body):
            kind, self._body = self._line.pdu(deadline, awaiting)
            self._at = 0
            if kind != PduType.P_DATA:
                self._other_pdu(kind)
        start = self._at + pdu.PDV_HEADER_SIZE
        number, control, self._at = pdu.next_pdv(self._body, self._at)
        return number, control, self._body[start : self._at]

    def _other_pdu(self, kind: int) -> NoReturn:
        """What a PDU other than P-DATA-TF means on an open association (PS3.8 9.2, Sta6)."""
        body, self._body = self._body, _EMPTY
        if kind == PduType.ABORT:
            self._line.close()
            abort = pdu.decode_abort(body)
            raise AssociationAborted(abort.source, abort.reason)
        if kind == PduType.RELEASE_RQ and self._between:
            raise _Released
        raise pdu.unexpected(kind, "here")

    # --- ending ----------------------------------------------------------------------------

    def release(self) -> None:
        """Release the association and close it (PS3.8 9.2, Sta7; collisions as of AR-8 to AR-10).

        Raises PeerUnreachable when the peer aborts or keeps silent for the limit of a release.
        """
        self._require_open()
        try:
            self._finish_data()
            self._line.send(pdu.RELEASE_RQ)
            self._await_release(monotonic() + min(self._limits.artim, self._limits.release))
        except _Released:
            self._answer_release()
        except EdgePacsError as error:
            self._fail(error)
            raise
        self._line.close()

    def _await_release(self, deadline: float) -> None:
        """Wait for A-RELEASE-RP; data that crosses our request is dropped (AR-6)."""
        collided = False
        while True:
            kind, body = self._line.pdu(deadline, "A-RELEASE-RP")
            if kind == PduType.ABORT:
                abort = pdu.decode_abort(body)
                raise AssociationAborted(abort.source, abort.reason)
            if kind == PduType.RELEASE_RP:
                break
            if kind == PduType.RELEASE_RQ and not collided:
                collided = True
                if self.agreement.side is Side.REQUESTOR:
                    self._line.send(pdu.RELEASE_RP)  # AR-9; an acceptor's waits for ours: AR-10
            elif kind != PduType.P_DATA:
                raise pdu.unexpected(kind, "while releasing")
        if collided and self.agreement.side is Side.ACCEPTOR:
            self._line.send(pdu.RELEASE_RP)  # AR-4

    def _confirm_release(self) -> None:
        """A-RELEASE-RP; closing is the requestor's then (PS3.8 9.2, AR-4, Sta13)."""
        self._released = True
        with suppress(PeerUnreachable):  # it has gone, which is what it asked for
            if self._line.is_open:
                self._line.send(pdu.RELEASE_RP)

    def _answer_release(self) -> None:
        self._confirm_release()
        self.close()

    def abort(self) -> None:
        """Abort as the service user (PS3.8 9.3.8) and end the connection; from any thread.

        The thread that uses the association then gets AssociationClosed.
        """
        if self._line.is_open:
            self._line.interrupt(_USER_ABORT)

    def close(self) -> None:
        """Close the connection without a word; again is harmless.

        After a release the peer has until the linger limit to be the first.
        """
        if self._released and self._line.is_open:
            self._line.drain(monotonic() + min(self._limits.artim, self._limits.linger))
        self._line.close()

    def _fail(self, error: EdgePacsError) -> None:
        """End the association in the way that fits `error`."""
        if isinstance(error, ProtocolError):  # PS3.8 9.2, AA-8
            self._line.hang_up(pdu.encode_abort(Abort(AbortSource.SERVICE_PROVIDER, error.reason)))
        elif isinstance(error, LimitExceeded | PeerTimedOut):
            self._line.hang_up(_USER_ABORT)
        else:
            self._line.close()

    def _data_ended(self, error: EdgePacsError | None) -> None:
        self._data = None
        self._line.hasten = False
        if error is not None:
            self._fail(error)

    def _parting_words(self, error: PeerUnreachable) -> PeerUnreachable:
        """Why sending failed: the A-ABORT the peer may have sent before it closed, or `error`."""
        if not isinstance(error, AssociationClosed):
            return error
        try:
            kind, body = self._line.pdu(monotonic() + self._limits.linger, "an A-ABORT")
        except (ProtocolError, PeerUnreachable):
            return error
        if kind != PduType.ABORT:
            return error
        abort = pdu.decode_abort(body)
        return AssociationAborted(abort.source, abort.reason)

    def _require_open(self) -> None:
        if not self.is_open:
            raise AssociationClosed("the association is no longer open")

    # --- sending ---------------------------------------------------------------------------

    def _send(
        self,
        context_id: int,
        elements: Mapping[int, Value],
        data: Iterable[bytes | memoryview] | None,
    ) -> None:
        outbox = self._outbox
        self._sending(context_id, elements, lambda raw: outbox.message(context_id, raw, data))

    def _sending(
        self, context_id: int, elements: Mapping[int, Value], send: Callable[[bytes], None]
    ) -> None:
        """Have `send` send what begins with these elements as a command set."""
        self._require_open()
        self._context(context_id)
        raw = encode(elements)
        try:
            send(raw)
        except PeerUnreachable as error:
            reason = self._parting_words(error)
            self._fail(reason)
            raise reason from error
        except BaseException:
            self._line.hang_up(_USER_ABORT)  # a message half sent cannot be taken back
            raise
