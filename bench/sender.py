"""A modality that costs as little as possible: one process an association.

An instance is encoded once, as the PDUs the peer takes; its copies get their names written into
those bytes in place and leave in one write. Every answer is counted and timed. The process also
opens one association an instance, or one a C-ECHO.
"""

import gc
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Self

from bench.instances import Names, Template, placeholder_uid, places
from bench.machine import ROOT
from edgepacs.dimse import pdu
from edgepacs.dimse.command import DATA_SET, NO_DATA_SET, Element, Field, encode
from edgepacs.dimse.contexts import VERIFICATION
from edgepacs.dimse.implementation import CLASS_UID, VERSION
from edgepacs.dimse.items import ContextResult, ProposedContext, UserInformation
from edgepacs.dimse.pdu import COMMAND, HEADER_SIZE, LAST, PDV_HEADER_SIZE, PduType

_IMPLICIT_LE = "1.2.840.10008.1.2"
_CALLING, _CALLED = "HARNESS", "EDGEPACS"
_CONTEXT = 1
_LONGEST_PDU = 1 << 20  # sent, whatever more the peer would take
_KEPT = 64 << 20  # bytes of a data set that are encoded beforehand; longer ones while they are sent
_PATIENCE = struct.pack("@ll", 120, 0)  # seconds and microseconds without an answer
_ELEMENT = struct.Struct("<HHI")
_MESSAGE_ID = _ELEMENT.pack(0, Element.MESSAGE_ID, 2)
_READY = "ready"


class Manner(StrEnum):
    """How a sender uses associations."""

    ONE = "one association"
    EACH = "one association an instance"
    ECHO = "one association a C-ECHO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one sender has to do; the templates take turns, a sender starting at its own."""

    port: int
    names: Names
    count: int
    manner: Manner = Manner.ONE
    templates: tuple[Template, ...] = ()

    def turn(self, number: int) -> int:
        """Which of the templates its instance `number` is made from."""
        return (self.names.sender + number) % len(self.templates)

    def lengths(self) -> list[int]:
        """Bytes of each data set, in order; nothing where none is sent."""
        numbers = range(self.count if self.templates else 0)
        return [self.templates[self.turn(number)].length for number in numbers]


@dataclass(slots=True)
class Report:
    """What became of it: answers by status, seconds of each, the monotonic time of the last.

    The seconds run from the first byte of a C-STORE to its answer; with one association each,
    from the connection to the A-RELEASE-RP.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    finished: float = 0.0


class _Line:
    """A connection on which one PDU is awaited at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _PATIENCE)
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)

    def send(self, data: bytes | bytearray) -> None:
        self._socket.sendall(data)

    def pdu(self, kind: PduType) -> memoryview:
        """The next PDU, which must be of that type, with its header; good until the next call."""
        have, whole = 0, HEADER_SIZE
        while have < whole:
            # A peer that leaves Nagle's algorithm on waits for this acknowledgement.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            count = self._socket.recv_into(self._view[have:])
            if not count:
                raise ConnectionError(f"closed by the peer, awaited {kind.name}")
            have += count
            if have >= HEADER_SIZE:
                whole = HEADER_SIZE + int.from_bytes(self._view[2:HEADER_SIZE])
        assert self._buffer[0] == kind, f"PDU type {self._buffer[0]}, awaited {kind.name}"
        assert have == whole, "more than one PDU came"
        return self._view[:whole]

    def response(self) -> tuple[int, int]:
        """Message ID responded to and status of the next response (PS3.7 6.3.1)."""
        view = self.pdu(PduType.P_DATA)
        at = HEADER_SIZE + PDV_HEADER_SIZE
        assert view[at - 1] == COMMAND | LAST, "the response is cut into several PDVs"
        responded = status = -1
        while at < len(view):
            _, element, length = _ELEMENT.unpack_from(view, at)
            at += _ELEMENT.size
            if element == Element.RESPONDED_MESSAGE_ID:
                responded = int.from_bytes(view[at : at + length], "little")
            elif element == Element.STATUS:
                status = int.from_bytes(view[at : at + length], "little")
            at += length
        return responded, status

    def close(self) -> None:
        self._socket.close()


class _Caller:
    """Opens associations with one presentation context, each answered like the first."""

    def __init__(self, port: int, abstract_syntax: str, transfer_syntax: str) -> None:
        self._port = port
        self._request = pdu.encode_associate_request(
            pdu.AssociateRequest(
                called_ae=_CALLED,
                calling_ae=_CALLING,
                contexts=(
                    ProposedContext(
                        id=_CONTEXT,
                        abstract_syntax=abstract_syntax,
                        transfer_syntaxes=(transfer_syntax,),
                    ),
                ),
                user_information=UserInformation(
                    max_length=16_384,
                    implementation_class_uid=CLASS_UID,
                    implementation_version=VERSION,
                ),
            )
        )
        self._accepted = b""
        with self.association():
            pass

    def open(self) -> _Line:
        line = _Line(self._port)
        line.send(self._request)
        accepted = line.pdu(PduType.ASSOCIATE_AC)
        if accepted != self._accepted:
            self._accepted = bytes(accepted)
            (context,) = self._answer().contexts
            assert context.result == ContextResult.ACCEPTED, "the presentation context is refused"
        return line

    def _answer(self) -> pdu.AssociateAccept:
        return pdu.decode_associate_accept(memoryview(self._accepted)[HEADER_SIZE:])

    def fragment(self) -> int:
        """Bytes of a data set in one PDU: what the peer takes, without the PDV's header."""
        maximum = self._answer().user_information.max_length or _LONGEST_PDU
        return (min(maximum, _LONGEST_PDU) - PDV_HEADER_SIZE) & ~1  # PS3.8 D.1

    @contextmanager
    def association(self) -> Iterator[_Line]:
        """An association that is released, and closed once the peer has agreed."""
        line = self.open()
        try:
            yield line
            line.send(pdu.RELEASE_RQ)
            line.pdu(PduType.RELEASE_RP)
        finally:
            line.close()


class _Message:
    """A C-STORE-RQ with its data set, as PDUs; `name` makes it the next instance."""

    def __init__(self, template: Template, names: Names, fragment: int) -> None:
        self._names = names
        self._template = template
        self._fragment = fragment
        command = encode(
            {
                Element.AFFECTED_SOP_CLASS_UID: template.sop_class,
                Element.COMMAND_FIELD: Field.C_STORE_RQ,
                Element.MESSAGE_ID: 0,
                Element.PRIORITY: 0,
                Element.DATA_SET_TYPE: DATA_SET,
                Element.AFFECTED_SOP_INSTANCE_UID: placeholder_uid(),
            }
        )
        begin = pdu.encode_p_data(_CONTEXT, COMMAND | LAST, command)
        data = self._pdus()
        encoded = b"".join(data) if template.length <= _KEPT else next(data)
        self._kept = bytearray(begin + encoded)
        head = encoded[: len(template.head) + 1024]  # with the PDV headers inside it
        self._places = [len(begin) + at for at in places(head)]
        self._places.append(begin.index(placeholder_uid().encode()))
        self._message_id = begin.index(_MESSAGE_ID) + len(_MESSAGE_ID)

    def _pdus(self) -> Iterator[bytes]:
        """The data set as P-DATA-TFs of one PDV each, all but the last full."""
        size, left, pending = self._fragment, self._template.length, bytearray()
        for piece in self._template.pieces():
            pending += piece
            at = 0
            while len(pending) - at >= min(size, left) > 0:
                fragment = bytes(pending[at : at + min(size, left)])
                at, left = at + len(fragment), left - len(fragment)
                yield pdu.encode_p_data(_CONTEXT, 0 if left else LAST, fragment)
            del pending[:at]

    def name(self, number: int) -> int:
        """Make it instance `number`; its message ID."""
        message_id = number & 0xFFFF
        identity = self._names.identity(number, self._template.grouping)
        for at, value in zip(self._places, (*identity, identity.sop), strict=True):
            self._kept[at : at + len(value)] = value
        self._kept[self._message_id : self._message_id + 2] = message_id.to_bytes(2, "little")
        return message_id

    def send(self, line: _Line) -> None:
        line.send(self._kept)
        if self._template.length > _KEPT:
            rest = self._pdus()
            next(rest)
            for one in rest:
                line.send(one)


class _Task:
    """One order, prepared."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._stack = ExitStack()
        self._report = Report()
        if order.manner is Manner.ECHO:
            self._caller = _Caller(order.port, VERIFICATION, _IMPLICIT_LE)
        else:
            (kind,) = {(one.sop_class, one.transfer_syntax) for one in order.templates}
            self._caller = _Caller(order.port, *kind)
        fragment = self._caller.fragment()
        self._messages = [_Message(one, order.names, fragment) for one in order.templates]
        self._act = self._prepared()

    def _prepared(self) -> Callable[[int], int]:
        """What is done for each number; its status is the answer."""
        if self._order.manner is Manner.ECHO:
            return self._echo
        if self._order.manner is Manner.EACH:
            return self._associate
        line = self._stack.enter_context(self._caller.association())
        return lambda number: self._store(line, number)

    def run(self) -> Report:
        """Carry it out and release what is open."""
        report, clock = self._report, time.monotonic
        gc.disable()
        for number in range(self._order.count):
            begun = clock()
            status = self._act(number)
            report.finished = clock()
            report.seconds.append(report.finished - begun)
            report.statuses[status] += 1
        gc.enable()
        self._stack.close()  # at once: an open association costs some servers a worker
        return report

    def _store(self, line: _Line, number: int) -> int:
        message = self._messages[self._order.turn(number)]
        message_id = message.name(number)
        message.send(line)
        responded, status = line.response()
        assert responded == message_id, "the answer is to another message"
        return status

    def _associate(self, number: int) -> int:
        with self._caller.association() as line:
            return self._store(line, number)

    def _echo(self, _number: int) -> int:
        with self._caller.association() as line:
            line.send(_ECHO)
            return line.response()[1]


_ECHO = pdu.encode_p_data(
    _CONTEXT,
    COMMAND | LAST,
    encode(
        {
            Element.AFFECTED_SOP_CLASS_UID: VERIFICATION,
            Element.COMMAND_FIELD: Field.C_ECHO_RQ,
            Element.MESSAGE_ID: 1,
            Element.DATA_SET_TYPE: NO_DATA_SET,
        }
    ),
)


def echo(port: int) -> bool:
    """Whether a C-ECHO succeeds now; False where nobody listens yet."""
    order = Order(port=port, names=Names(0, 0), count=1, manner=Manner.ECHO)
    try:
        return _Task(order).run().statuses == {0: 1}
    except ConnectionError:
        return False


class Crew:
    """Senders in processes of their own, started once. They begin together."""

    def __init__(self, size: int) -> None:
        self._ours: list[Connection] = []
        self._working: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for _ in range(size):
            ours, theirs = Pipe()
            with theirs:
                # Not by -m: what is sent back would be of a module __main__.
                program = f"from bench import sender; sender.serve({theirs.fileno()})"
                process = subprocess.Popen(
                    [sys.executable, "-c", program], pass_fds=(theirs.fileno(),), cwd=ROOT
                )
            self._ours.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._ours:
            connection.close()
        for process in self._processes:
            process.wait(60)

    def prepare(self, orders: Sequence[Order]) -> None:
        """Let each sender take an order, encode what it sends and open its association."""
        self._working = self._ours[: len(orders)]
        for connection, order in zip(self._working, orders, strict=True):
            connection.send(order)
        for connection in self._working:
            answer = connection.recv()
            assert answer == _READY, answer

    def start(self) -> tuple[float, list[Report]]:
        """Let all begin; the seconds from the start to the last answer, and the reports."""
        begun = time.monotonic()
        for connection in self._working:
            connection.send(None)
        reports = [_sound(connection.recv()) for connection in self._working]
        return max(report.finished for report in reports) - begun, reports


def _sound(report: object) -> Report:
    assert isinstance(report, Report), report
    return report


def serve(descriptor: int) -> None:
    """Carry out orders from the pipe of that number until its other end is closed."""
    connection = Connection(descriptor)
    while True:
        try:
            task = _Task(connection.recv())
            connection.send(_READY)
            connection.recv()
            connection.send(task.run())
        except EOFError:
            return
        except Exception:  # noqa: BLE001  it is raised again where the order came from
            connection.send(traceback.format_exc())
            return
