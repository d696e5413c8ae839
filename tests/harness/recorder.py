"""A storage SCP that records and never decodes pixels: the destination whose word the tests trust.

Nothing of the node's own engine judges the node here, nor does a library: it works on the raw
bytes of `upper_layer`. It accepts every storage SOP class, private and unknown ones too, in the
first transfer syntax proposed in each presentation context, keeps every data set as the bytes
that came, and counts every C-STORE request, those that broke off included. With `behaviour` it
misbehaves in every way a PACS has been seen to.
"""

import contextlib
import hashlib
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import IO, Self

from harness import upper_layer
from harness.part10 import EXPLICIT_LE, IMPLICIT_LE, Part10, decode, encode
from harness.upper_layer import Ended, Proposal, Wire, command_elements, number, text
from harness.waiting import free_port, until
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import sop_class
from pynetdicom.sop_class import _NON_PATIENT_OBJECT_CLASSES

__all__ = ["Behaviour", "Commitment", "Received", "RecordingSCP", "command_elements", "is_storage"]

VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT = "1.2.840.10008.1.20.1"  # PS3.4 J.3
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
QUERIES = ("1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.2.1")  # PS3.4 C.6.1.3, C.6.2.3
# PS3.6 annex A: services, print, worklists, queries; what is storage among them is known by name.
_NOT_STORAGE = tuple(
    f"1.2.840.10008.{one}" for one in ("1.", "3.", "4.", "5.1.1.", "5.1.4.1.2.", "5.1.4.3")
)
_NO_SUCH_INSTANCE = 0x0112
_PROCESSING_FAILURE = 0x0110
_PENDING = 0xFF00
_HEAD = 32_768  # bytes of a data set in which its UIDs are looked for


class Commitment(Enum):
    """How storage commitment is served."""

    ABSENT = auto()  # its presentation context is refused
    SAME = auto()  # the report comes on the association that asked
    NEW = auto()  # on an association of the recorder's own, to `report_to`
    NEVER = auto()  # it is promised, and never comes
    REFUSED = auto()  # the N-ACTION is answered with a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One C-STORE request whose data set arrived in full.

    `data` is empty where only digests are kept.
    """

    order: int
    at: float  # time.monotonic
    calling_ae: str
    called_ae: str
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data: bytes = field(repr=False)
    status: int  # what was answered
    size: int = 0
    sha256: str = ""
    priority: int = 0
    study: str = ""
    series: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the answer was Success or a warning."""
        return self.status == 0 or self.status >> 12 == 0xB


def _never(_order: int, _uid: str) -> bool:
    return False


@dataclass(slots=True)
class Behaviour:
    """How the SCP answers; set at any time, taken up by the next request.

    Where a function takes two arguments they are the number of the C-STORE, from 1, and the SOP
    Instance UID.
    """

    status: Callable[[int, str], int] = lambda _order, _uid: 0x0000
    comment: str = ""
    delay_seconds: float = 0.0
    cut_after_bytes: int = 0  # close the connection once so many data set bytes of a request came
    cuts_left: int = 0
    hang: Callable[[int, str], bool] = _never  # take it, and never answer
    abort: Callable[[int, str], bool] = _never  # A-ABORT in place of the answer
    reject: tuple[int, int, int] | None = None  # A-ASSOCIATE-RJ: result, source, reason
    mute: bool = False  # take the connection, and never answer the A-ASSOCIATE-RQ
    own_title_only: bool = False  # reject another called AE title (PS3.8 table 9-21)
    accepts: Callable[[str, Sequence[str]], str] = lambda _abstract, syntaxes: syntaxes[0]
    commitment: Commitment = Commitment.ABSENT
    report_seconds: float = 0.0  # until a commitment report is sent
    fails: Callable[[str], int] = lambda _uid: 0  # failure reason of an instance in a report
    queries: bool = False  # C-FIND at IMAGE level
    denies: Callable[[str], bool] = lambda _uid: False  # what a query does not find though held


class RecordingSCP:
    """An SCP on a fixed loopback port that `up()` and `down()` switch like a line.

    With `log`, every event is written to that file as it happens, one JSON object a line, so that
    it survives this process. With `digests` only the SHA-256 of a data set is kept.
    """

    def __init__(
        self,
        ae_title: str = "RECORDER",
        *,
        max_pdu: int = 131_072,
        log: Path | None = None,
        digests: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.ae_title = ae_title
        self.host = "127.0.0.1"
        self.port = free_port()
        self.behaviour = Behaviour()
        self.report_to: tuple[str, int, str] | None = None  # host, port, AE title
        self.received: list[Received] = []
        self.requests: Counter[str] = Counter()  # C-STORE commands that arrived, by SOP Instance
        self.order: list[str] = []  # the same, in the order they came
        self.associations = 0
        self.rejected = 0
        self.confirmed: dict[str, str] = {}  # SOP Instance: committed, or found
        self.confirmed_at = 0.0  # when the last was, time.monotonic
        self.repeated: list[str] = []  # requests for what was confirmed already
        self.asked: list[tuple[str, list[str]]] = []  # transactions with their SOP Instances
        self.reports: list[tuple[str, int | None]] = []  # transactions with what was answered
        self.queries = 0
        self.identities: list[tuple[bytes, bytes]] = []
        self.faults: list[str] = []  # what a peer did that no standard allows
        self.lock = threading.RLock()
        self.digests = digests
        self.max_pdu = max_pdu
        self.tls = tls
        self._held: dict[str, Received] = {}
        self._log: IO[str] | None = log.open("a", buffering=1) if log else None
        self._listener: socket.socket | None = None
        self._wires: set[Wire] = set()

    # -- the line

    def up(self) -> "RecordingSCP":
        """Listen on the port."""
        assert self._listener is None
        listener = socket.create_server((self.host, self.port), backlog=64)
        self._listener = listener
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()
        return self

    def down(self) -> None:
        """Stop listening and cut every connection, as a line does."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with self.lock:
            wires = list(self._wires)
        for wire in wires:
            _hang_up(wire)
        until(lambda: not self._wires, "the recorder's connections have ended")

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        wire = None
        try:
            if self.tls is not None:
                connection.settimeout(10)
                connection = self.tls.wrap_socket(connection, server_side=True)
                connection.settimeout(None)
            wire = Wire(connection)
            with self.lock:
                self._wires.add(wire)
            if self._listener is not None:
                _Talk(self, wire).run()
        except (Ended, OSError):
            pass  # lines break here, that is what this is for
        except Exception as error:  # noqa: BLE001 - what a test must see, whoever looks
            self.faults.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()
            if wire is not None:
                wire.close()
                with self.lock:
                    self._wires.discard(wire)

    # -- what came

    @property
    def total_requests(self) -> int:
        """C-STORE requests whose command arrived, whatever became of their data set."""
        with self.lock:
            return sum(self.requests.values())

    def by_uid(self) -> dict[str, Received]:
        """The accepted instances by SOP Instance UID; AssertionError when one came twice."""
        found: dict[str, Received] = {}
        for one in self.accepted():
            assert one.sop_instance not in found, f"accepted twice, order {one.order}"
            found[one.sop_instance] = one
        return found

    def accepted(self) -> list[Received]:
        """Every request answered Success or a warning."""
        with self.lock:
            return [one for one in self.received if one.accepted]

    def held(self) -> set[str]:
        """SOP Instance UIDs of what was accepted, once or more often."""
        with self.lock:
            return set(self._held)

    def repeats(self) -> Counter[str]:
        """How often each instance was sent again after its first request, whole or not."""
        with self.lock:
            return Counter({uid: times - 1 for uid, times in self.requests.items() if times > 1})

    def wait_for(self, number: int, *, seconds: float = 60.0) -> list[Received]:
        """The accepted instances once there are at least `number`."""
        until(
            lambda: len(self.held()) >= number,
            f"{number} instances at the recording SCP (has {len(self.held())})",
            seconds=seconds,
        )
        return self.accepted()

    def differing(self, sent: Sequence[Part10]) -> list[str]:
        """SOP Instance UIDs of what is not here exactly as it was sent, byte for byte."""
        return [one.sop_instance for one in sent if not self._same(one)]

    def _same(self, one: Part10) -> bool:
        here = self._held.get(one.sop_instance)
        return here is not None and here.sha256 == hashlib.sha256(one.data).hexdigest()

    def note(self, event: str, **facts: object) -> None:
        """Write one line of the log."""
        with self.lock:
            if self._log is not None:
                at = round(time.time(), 3)
                self._log.write(json.dumps({"at": at, "event": event, **facts}) + "\n")

    # -- called by the talks

    def began(self, uid: str) -> int:
        """A C-STORE request has arrived; its number."""
        with self.lock:
            self.requests[uid] += 1
            self.order.append(uid)
            if uid in self.confirmed:
                self.repeated.append(uid)
            self.note("store", uid=uid)
            return len(self.order)

    def took(self, one: Received) -> None:
        """It arrived in full, and is about to be answered."""
        with self.lock:
            self.received.append(one)
            if one.accepted:
                self._held[one.sop_instance] = one
            self.note("stored", uid=one.sop_instance, status=one.status, sha256=one.sha256)

    def confirm(self, uids: Sequence[str], how: str) -> None:
        """The node has been told of these."""
        with self.lock:
            for uid in uids:
                self.confirmed.setdefault(uid, how)
            self.confirmed_at = time.monotonic()
            self.note(how, uids=list(uids))

    def judged(self, uids: Sequence[str]) -> dict[str, int]:
        """The failure reason of each, 0 for what is committed (PS3.4 J.3.2)."""
        with self.lock:
            return {
                uid: self.behaviour.fails(uid) or (0 if uid in self._held else _NO_SUCH_INSTANCE)
                for uid in uids
            }

    def matches(self, uids: Sequence[str], study: str, series: str) -> list[Received]:
        """What a query at IMAGE level finds; an empty key matches all (PS3.4 C.2.2.2.3)."""
        with self.lock:
            found = [self._held[uid] for uid in uids if uid in self._held]
        return [
            one
            for one in found
            if not self.behaviour.denies(one.sop_instance)
            and study in ("", one.study)
            and series in ("", one.series)
        ]


def _hang_up(wire: Wire) -> None:
    with contextlib.suppress(OSError):
        wire.socket.shutdown(socket.SHUT_RDWR)


class _Talk:
    """One association, from its request to its end."""

    def __init__(self, scp: RecordingSCP, wire: Wire) -> None:
        self._scp = scp
        self._wire = wire
        self._contexts: dict[int, tuple[str, str]] = {}
        self._proposal: Proposal
        self._writing = threading.Lock()
        self._message_id = 0
        self._events: dict[int, tuple[str, list[str]]] = {}  # reports not answered yet

    def run(self) -> None:
        kind, body = self._wire.pdu()
        if kind != upper_layer.ASSOCIATE_RQ:
            raise Ended("no association")
        self._proposal = upper_layer.read_proposal(body)
        if not self._admitted():
            return
        try:
            self._converse()
        except Ended as end:
            self._scp.note("ended", how=end.how)

    def _admitted(self) -> bool:
        """Answer the A-ASSOCIATE-RQ."""
        behaviour, asked = self._scp.behaviour, self._proposal
        if behaviour.mute:
            self._read_until_gone()
            return False
        refusal = behaviour.reject
        if behaviour.own_title_only and asked.called != self._scp.ae_title:
            refusal = (1, 1, 7)  # called AE title not recognised
        if refusal is not None:
            self._scp.rejected += 1
            self._wire.send(upper_layer.rejection(*refusal))
            self._read_until_gone()
            return False
        answers = {number: self._answer(*pair) for number, pair in asked.contexts.items()}
        self._contexts = {
            number: (asked.contexts[number][0], syntax)
            for number, syntax in answers.items()
            if syntax
        }
        with self._scp.lock:
            self._scp.associations += 1
            self._scp.identities.append((asked.identity, asked.passcode))
        self._scp.note("association", calling=asked.calling)
        self._wire.send(
            upper_layer.acceptance(asked, answers, max_pdu=self._scp.max_pdu, reports=COMMITMENT)
        )
        return True

    def _answer(self, abstract: str, syntaxes: Sequence[str]) -> str:
        behaviour = self._scp.behaviour
        if abstract == VERIFICATION:
            return syntaxes[0]
        if abstract == COMMITMENT:
            return "" if behaviour.commitment is Commitment.ABSENT else syntaxes[0]
        if abstract in QUERIES:
            return syntaxes[0] if behaviour.queries else ""
        if abstract.startswith(_NOT_STORAGE) and abstract not in _STORAGE_ALL:
            return ""
        return behaviour.accepts(abstract, syntaxes)

    def _read_until_gone(self) -> None:
        while True:
            self._wire.pdu()

    def _converse(self) -> None:
        message = bytearray()
        while True:
            kind, body = self._wire.pdu()
            if kind == upper_layer.RELEASE_RQ:
                self._wire.send(upper_layer.RELEASE_ANSWER)
                raise Ended("released")
            if kind != upper_layer.P_DATA:
                raise Ended("aborted" if kind == upper_layer.ABORT else f"PDU {kind}")
            for context, control, fragment in upper_layer.fragments(body):
                self._fragment(context, control, fragment, message)

    # -- messages out of fragments

    _elements: dict[int, bytes]
    _data: bytearray
    _order: int

    def _fragment(
        self, context: int, control: int, fragment: memoryview, command: bytearray
    ) -> None:
        if control & 1:
            command += fragment
            if control & 2:
                self._elements = command_elements(bytes(command))
                command.clear()
                self._begin(context)
            return
        self._data += fragment
        self._cut()
        if control & 2:
            self._dispatch(context)

    def _begin(self, context: int) -> None:
        """A whole command set is there; a data set may follow."""
        self._data = bytearray()
        if self._field == upper_layer.C_STORE_RQ:
            self._order = self._scp.began(text(self._elements[0x1000]))
        if number(self._elements[0x0800]) == upper_layer.NO_DATA_SET:
            self._dispatch(context)

    @property
    def _field(self) -> int:
        return number(self._elements[0x0100])

    def _cut(self) -> None:
        behaviour = self._scp.behaviour
        with self._scp.lock:
            limit = behaviour.cut_after_bytes
            cut = bool(behaviour.cuts_left and limit and len(self._data) >= limit)
            behaviour.cuts_left -= cut
        if cut:
            _hang_up(self._wire)
            raise Ended("cut")

    def _dispatch(self, context: int) -> None:
        if self._field & upper_layer.RESPONSE:
            self._answered()
        elif self._field == upper_layer.C_STORE_RQ:
            self._store(context)
        elif self._field == upper_layer.C_ECHO_RQ:
            self._respond(context, 0)
        elif self._field == upper_layer.N_ACTION_RQ:
            self._commit(context)
        elif self._field == upper_layer.C_FIND_RQ:
            self._find(context)
        else:
            self._respond(context, 0x0211)  # PS3.7 C.5.23, unrecognised operation

    def _respond(
        self,
        context: int,
        status: int,
        comment: str = "",
        data: bytes | None = None,
        more: Mapping[int, int | str] | None = None,
    ) -> None:
        asked = self._elements
        answer: dict[int, int | str] = {
            0x0100: self._field | upper_layer.RESPONSE,
            0x0120: number(asked[0x0110]),
            0x0900: status,
            **(more or {}),
        }
        for mine, theirs in ((0x0002, (0x0002, 0x0003)), (0x1000, (0x1000, 0x1001))):
            for one in theirs:
                if one in asked:
                    answer[mine] = text(asked[one])
        if comment:
            answer[0x0902] = comment
        self._send(upper_layer.messages(context, answer, data))

    def _send(self, raw: bytes) -> None:
        with self._writing:
            self._wire.send(raw)

    # -- storage

    def _store(self, context: int) -> None:
        scp, behaviour, elements = self._scp, self._scp.behaviour, self._elements
        uid, data = text(elements[0x1000]), bytes(self._data)
        if behaviour.delay_seconds:
            time.sleep(behaviour.delay_seconds)  # the peer's slowness is what is simulated
        status = behaviour.status(self._order, uid)
        if behaviour.hang(self._order, uid):
            scp.note("hung", uid=uid)
            self._read_until_gone()
        if behaviour.abort(self._order, uid):
            scp.note("aborted", uid=uid)
            self._send(upper_layer.abort())
            self._read_until_gone()
        head = data[:_HEAD]
        scp.took(
            Received(
                order=self._order,
                at=time.monotonic(),
                calling_ae=self._proposal.calling,
                called_ae=self._proposal.called,
                sop_class=text(elements[0x0002]),
                sop_instance=uid,
                transfer_syntax=self._contexts[context][1],
                data=b"" if scp.digests else data,
                status=status,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                priority=number(elements.get(0x0700, b"\0\0")),
                study=_uid_in(head, b"\x20\x00\x0d\x00"),
                series=_uid_in(head, b"\x20\x00\x0e\x00"),
            )
        )
        self._respond(context, status, behaviour.comment if status else "")

    # -- storage commitment (PS3.4 J)

    def _commit(self, context: int) -> None:
        scp, behaviour = self._scp, self._scp.behaviour
        asked = decode(bytes(self._data), self._contexts[context][1])
        uids = [str(one.ReferencedSOPInstanceUID) for one in asked.ReferencedSOPSequence]
        transaction = str(asked.TransactionUID)
        with scp.lock:
            scp.asked.append((transaction, uids))
        scp.note("commitment", transaction=transaction, uids=uids)
        refused = behaviour.commitment is Commitment.REFUSED
        more: dict[int, int | str] = {0x1008: 1}
        self._respond(context, _PROCESSING_FAILURE if refused else 0, more=more)
        if behaviour.commitment in (Commitment.SAME, Commitment.NEW):
            report = self._report if behaviour.commitment is Commitment.SAME else self._call_back
            timer = threading.Timer(behaviour.report_seconds, report, (context, asked))
            timer.daemon = True
            timer.start()

    def _reported(self, asked: Dataset, syntax: str) -> tuple[dict[int, int | str], bytes, int]:
        """Command elements and data set of the N-EVENT-REPORT-RQ, and its Event Type ID."""
        reasons = self._scp.judged(
            [str(one.ReferencedSOPInstanceUID) for one in asked.ReferencedSOPSequence]
        )
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence, failed = [], []
        for item in asked.ReferencedSOPSequence:
            one = Dataset()
            one.ReferencedSOPClassUID = item.ReferencedSOPClassUID
            one.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
            if reason := reasons[str(item.ReferencedSOPInstanceUID)]:
                one.FailureReason = reason
                failed.append(one)
            else:
                report.ReferencedSOPSequence.append(one)
        if failed:
            report.FailedSOPSequence = failed
        if not report.ReferencedSOPSequence:
            del report.ReferencedSOPSequence
        event = 2 if failed else 1  # PS3.4 J.3.3.1.1
        elements: dict[int, int | str] = {
            0x0002: COMMITMENT,
            0x0100: upper_layer.N_EVENT_REPORT_RQ,
            0x1000: COMMITMENT_INSTANCE,
            0x1002: event,
        }
        return elements, encode(report, syntax), event

    def _report(self, context: int, asked: Dataset) -> None:
        """On the association that asked, if it is still there."""
        elements, data, _ = self._reported(asked, self._contexts[context][1])
        with self._scp.lock:
            self._message_id += 1
            self._events[self._message_id] = (str(asked.TransactionUID), self._good(asked))
            elements[0x0110] = self._message_id
        try:
            self._send(upper_layer.messages(context, elements, data))
        except Ended:
            self._scp.reports.append((str(asked.TransactionUID), None))

    def _good(self, asked: Dataset) -> list[str]:
        uids = [str(one.ReferencedSOPInstanceUID) for one in asked.ReferencedSOPSequence]
        return [uid for uid, reason in self._scp.judged(uids).items() if not reason]

    def _answered(self) -> None:
        """The answer to a report."""
        about = self._events.pop(number(self._elements[0x0120]), None)
        if about is None:
            self._scp.faults.append("a response to nothing that was asked")
            return
        status = number(self._elements[0x0900])
        self._scp.reports.append((about[0], status))
        if status == 0:
            self._scp.confirm(about[1], "committed")

    def _call_back(self, _context: int, asked: Dataset) -> None:
        """On an association of our own, as an SCP that opens it (PS3.7 D.3.3.4)."""
        status = None
        with contextlib.suppress(Ended, OSError):
            status = self._delivered(asked)
        self._scp.reports.append((str(asked.TransactionUID), status))
        if status == 0:
            self._scp.confirm(self._good(asked), "committed")

    def _delivered(self, asked: Dataset) -> int | None:
        assert self._scp.report_to is not None, "report_to says where reports go"
        host, port, called = self._scp.report_to
        wire = Wire(socket.create_connection((host, port), timeout=20))
        try:
            wire.send(
                upper_layer.request(
                    calling=self._scp.ae_title,
                    called=called,
                    abstract=COMMITMENT,
                    syntaxes=(EXPLICIT_LE, IMPLICIT_LE),
                    roles=(0, 1),
                )
            )
            kind, body = wire.pdu()
            accepted = upper_layer.read_acceptance(body) if kind == upper_layer.ASSOCIATE_AC else {}
            if not accepted:
                self._scp.note("callback refused", kind=kind)
                return None
            elements, data, _ = self._reported(asked, accepted[1])
            wire.send(upper_layer.messages(1, {**elements, 0x0110: 1}, data))
            status = _status_of(wire)
            wire.send(upper_layer.RELEASE_REQUEST)
            wire.pdu()
            return status
        finally:
            wire.close()

    # -- queries (PS3.4 C.4.1)

    def _find(self, context: int) -> None:
        scp = self._scp
        syntax = self._contexts[context][1]
        asked = decode(bytes(self._data), syntax)
        with scp.lock:
            scp.queries += 1
        if asked.get("QueryRetrieveLevel") != "IMAGE":
            self._respond(context, 0xA900, "only IMAGE level is served")
            return
        wanted = asked.get("SOPInstanceUID") or []
        uids = [str(wanted)] if isinstance(wanted, str) else [str(one) for one in wanted]
        study, series = (
            str(asked.get(key) or "") for key in ("StudyInstanceUID", "SeriesInstanceUID")
        )
        scp.note("query", uids=uids)
        for one in scp.matches(uids, study, series):
            found = Dataset()
            for element in asked:
                found[element.tag] = element
            found.SOPInstanceUID = one.sop_instance
            found.StudyInstanceUID, found.SeriesInstanceUID = one.study, one.series
            scp.confirm([one.sop_instance], "found")
            self._respond(context, _PENDING, data=encode(found, syntax))
        self._respond(context, 0)


def _status_of(wire: Wire) -> int:
    """The status of the next response, which carries no data set."""
    command = bytearray()
    while True:
        kind, body = wire.pdu()
        if kind != upper_layer.P_DATA:
            raise Ended("no answer to the report")
        for _, control, fragment in upper_layer.fragments(body):
            command += fragment
            if control & 2:
                return number(command_elements(bytes(command))[0x0900])


def _uid_in(head: bytes, tag: bytes) -> str:
    """The UID behind `tag` in the first bytes of a data set, explicit or implicit VR."""
    at = head.find(tag)
    if at < 0:
        return ""
    size = int.from_bytes(
        head[at + 6 : at + 8] if head[at + 4 : at + 6] == b"UI" else head[at + 4 : at + 8], "little"
    )
    return text(head[at + 8 : at + 8 + size]) if size <= 64 else ""


_STORAGE_ALL = frozenset(
    str(uid)
    for uid in (*sop_class._STORAGE_CLASSES.values(), *_NON_PATIENT_OBJECT_CLASSES.values())
)


def is_storage(uid: str) -> bool:
    """Whether pynetdicom knows `uid` as a storage SOP class of the standard."""
    return UID(uid) in sop_class._STORAGE_CLASSES.values()
