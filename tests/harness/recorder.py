"""A storage SCP that records and never decodes: the destination whose word the tests trust.

It is pynetdicom's, so that nothing of the node's own association engine judges itself. It accepts
every storage SOP class, private and unknown ones too, in the first transfer syntax proposed in
each presentation context, and keeps every data set as the bytes that came.
"""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

from harness.waiting import free_port, until
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt, sop_class
from pynetdicom.association import Association
from pynetdicom.sop_class import _NON_PATIENT_OBJECT_CLASSES, Verification
from pynetdicom.transport import ThreadedAssociationServer

_config.UNRESTRICTED_STORAGE_SERVICE = True
_config.LOG_HANDLER_LEVEL = "none"

_C_STORE_RQ = 0x0001  # PS3.7 E.1
_EXTRA_SYNTAXES = ["1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One C-STORE request whose data set arrived in full."""

    order: int
    at: float  # time.monotonic
    calling_ae: str
    called_ae: str
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data: bytes = field(repr=False)
    status: int  # what was answered


@dataclass(slots=True)
class Behaviour:
    """How the SCP answers; set at any time, taken up by the next request."""

    status: Callable[[int, str], int] = lambda _order, _uid: 0x0000
    comment: str = ""
    delay_seconds: float = 0.0
    cut_after_bytes: int = 0  # close the connection once so many data set bytes of a request came
    cuts_left: int = 0


class RecordingSCP:
    """An SCP on a fixed loopback port that `up()` and `down()` switch like a line."""

    def __init__(self, ae_title: str = "RECORDER", *, max_pdu: int = 131_072) -> None:
        self.ae_title = ae_title
        self.host = "127.0.0.1"
        self.port = free_port()
        self.behaviour = Behaviour()
        self.received: list[Received] = []
        self.requests: Counter[str] = Counter()  # C-STORE commands that arrived, by SOP Instance
        self.associations = 0
        self._lock = threading.Lock()
        self._order = 0
        self._progress: dict[int, int] = {}
        self._broken: set[int] = set()  # associations that were cut inside a request
        self._max_pdu = max_pdu
        self._server: ThreadedAssociationServer | None = None
        self._ae: AE | None = None

    # -- the line

    def up(self) -> "RecordingSCP":
        """Listen on the port."""
        assert self._server is None
        ae = AE(ae_title=self.ae_title)
        ae.maximum_pdu_size = self._max_pdu
        ae.maximum_associations = 64
        ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
        for uid in _NON_PATIENT_OBJECT_CLASSES.values():
            ae.add_supported_context(uid, [*ALL_TRANSFER_SYNTAXES, *_EXTRA_SYNTAXES])
        handlers: list[tuple[object, ...]] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_ESTABLISHED, self._on_established),
        ]
        self._ae = ae
        self._server = ae.start_server((self.host, self.port), block=False, evt_handlers=handlers)
        return self

    def down(self) -> None:
        """Stop listening and cut every connection, as a line does."""
        server, self._server = self._server, None
        if server is None:
            return
        for association in list(server.active_associations):
            _cut(association)
        server.shutdown()
        assert self._ae is not None
        self._ae.shutdown()
        self._ae = None

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- what came

    @property
    def total_requests(self) -> int:
        """C-STORE requests whose command arrived, whatever became of their data set."""
        with self._lock:
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
        with self._lock:
            return [one for one in self.received if one.status == 0 or one.status >> 12 == 0xB]

    def wait_for(self, number: int, *, seconds: float = 60.0) -> list[Received]:
        """The accepted instances once there are at least `number`."""
        until(
            lambda: len(self.accepted()) >= number,
            f"{number} instances at the recording SCP (has {len(self.accepted())})",
            seconds=seconds,
        )
        return self.accepted()

    # -- pynetdicom's events

    def _on_established(self, event: evt.Event) -> None:
        with self._lock:
            self.associations += 1
            self._broken.discard(id(event.assoc))  # an identity may be used again

    def _on_pdu(self, event: evt.Event) -> None:
        if event.pdu.pdu_type != 0x04:  # P-DATA-TF, PS3.8 9.3.5
            return
        for item in event.pdu.presentation_data_value_items:
            header, value = item.presentation_data_value[0], item.presentation_data_value[1:]
            if header & 1:
                self._on_command(value, id(event.assoc))
            else:
                self._on_data(len(value), event)

    def _on_command(self, value: bytes, association: int) -> None:
        elements = command_elements(value)
        if elements.get(0x0100) == struct.pack("<H", _C_STORE_RQ):
            uid = elements.get(0x1000, b"").rstrip(b"\0 ").decode("ascii", "replace")
            with self._lock:
                self.requests[uid] += 1
                self._progress[association] = 0

    def _on_data(self, size: int, event: evt.Event) -> None:
        with self._lock:
            key = id(event.assoc)
            self._progress[key] = self._progress.get(key, 0) + size
            limit = self.behaviour.cut_after_bytes
            cut = bool(self.behaviour.cuts_left and limit and self._progress[key] >= limit)
            self.behaviour.cuts_left -= cut
            if cut:
                self._broken.add(key)
        if cut:
            _cut(event.assoc)

    def _on_store(self, event: evt.Event) -> Dataset:
        if self.behaviour.delay_seconds:
            time.sleep(self.behaviour.delay_seconds)  # the peer's slowness is what is simulated
        request = event.request
        with self._lock:
            if id(event.assoc) in self._broken:  # what came with the cut counts as lost
                return _answer(0x0110)
            self._order += 1
            status = self.behaviour.status(self._order, str(request.AffectedSOPInstanceUID))
            self.received.append(
                Received(
                    order=self._order,
                    at=time.monotonic(),
                    calling_ae=event.assoc.requestor.ae_title.strip(),
                    called_ae=event.assoc.requestor.primitive.called_ae_title.strip(),
                    sop_class=str(request.AffectedSOPClassUID),
                    sop_instance=str(request.AffectedSOPInstanceUID),
                    transfer_syntax=str(event.context.transfer_syntax),
                    data=request.DataSet.getvalue(),
                    status=status,
                )
            )
        return _answer(status, self.behaviour.comment)


def _answer(status: int, comment: str = "") -> Dataset:
    answer = Dataset()
    answer.Status = status
    if comment:
        answer.ErrorComment = comment
    return answer


def _cut(association: Association) -> None:
    """End the TCP connection under `association` without a word, as a broken line does."""
    with contextlib.suppress(AttributeError, OSError):  # it may have ended by itself
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)


def command_elements(raw: bytes) -> dict[int, bytes]:
    """The elements of a command set (PS3.7 6.3.1: Implicit VR Little Endian) by element number."""
    return dict(_command_elements(raw))


def _command_elements(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(raw):
        _group, element, length = struct.unpack_from("<HHI", raw, at)
        yield element, raw[at + 8 : at + 8 + length]
        at += 8 + length


def is_storage(uid: str) -> bool:
    """Whether pynetdicom knows `uid` as a storage SOP class of the standard."""
    return UID(uid) in sop_class._STORAGE_CLASSES.values()
