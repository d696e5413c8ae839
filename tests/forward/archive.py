"""An archive of our own engine that commits, reports and answers queries as it is told to.

What it says and reads is written and parsed by pydicom, not by what is tested.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Self

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence as Items

from edgepacs.dimse import (
    AssociateRequest,
    Association,
    ContextAnswer,
    ContextResult,
    Limits,
    Message,
    Peer,
    ProposedContext,
    Rejection,
    Roles,
    accept,
    request,
)
from edgepacs.dimse.command import Element, Field
from edgepacs.dimse.contexts import (
    IMPLICIT_VR_LE,
    STORAGE_COMMITMENT_PUSH,
    native_answer,
    storage_answer,
)
from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.model import AETitle

QUICK = Limits(linger=0.2, idle=20.0, response=10.0)
INSTANCE = "1.2.840.10008.1.20.1.1"


def encode(data: Dataset, syntax: str = IMPLICIT_VR_LE) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax == IMPLICIT_VR_LE
    write_dataset(out, data)
    return out.getvalue()


def decode(raw: bytes) -> Dataset:
    return read_dataset(BytesIO(raw), is_implicit_VR=True, is_little_endian=True)


@dataclass
class Behaviour:
    """How it answers; changed at any time."""

    commits: bool = True  # whether it accepts a context for storage commitment
    queries: bool = True
    action_status: int = 0
    report: str = "same"  # "same", "new" or "never"
    reasons: dict[str, int] = field(default_factory=dict)  # by SOP Instance UID, of what it fails
    transaction: str = ""  # reported in place of the one asked for
    hang_up_on: int = 0  # command field on which it closes the connection
    lists: bool = True  # whether it matches lists of UIDs
    find_status: int = 0
    flood: int = 0  # so many instances that nobody asked for are answered


class Archive:
    """Serves associations on a loopback port until its block ends."""

    def __init__(self, held: Sequence[str] = (), callback_port: int = 0) -> None:
        self.held = set(held)
        self.behaviour = Behaviour()
        self.callback_port = callback_port
        self.stored: list[str] = []  # SOP Instance UIDs of C-STORE requests, as they came
        self.asked: list[Dataset] = []  # N-ACTION data sets
        self.queried: list[Dataset] = []
        self.report_statuses: list[int] = []  # what was answered to its reports
        self.associations = 0
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._start(self._listen)

    def _start(self, run: Callable[..., None], *values: object) -> None:
        thread = threading.Thread(target=run, args=values, daemon=True)
        self._threads.append(thread)
        thread.start()

    def admit(self, _request: AssociateRequest, _peer: Peer) -> Rejection | None:
        return None

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        offered = {
            STORAGE_COMMITMENT_PUSH: self.behaviour.commits,
            STUDY_ROOT_FIND: self.behaviour.queries,
        }.get(proposed.abstract_syntax)
        if offered is None:
            return storage_answer(proposed)
        refused = ContextAnswer(result=ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED)
        return native_answer(proposed) if offered else refused

    def limits(self, node: Limits) -> Limits:
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                self._start(self._serve, *self._server.accept())

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        with suppress(Exception), accept(connection, address, self, QUICK) as one:
            self.associations += 1
            for message in one.messages():
                raw = b"".join(map(bytes, message.data)) if message.data else b""
                if message.command.field == self.behaviour.hang_up_on:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                if message.command.field == Field.N_ACTION_RQ:
                    self._act(one, message, decode(raw))
                elif message.command.field == Field.C_FIND_RQ:
                    self._find(one, message, decode(raw))
                else:
                    if message.command.field == Field.C_STORE_RQ:
                        self.stored.append(message.command.sop_instance_uid)
                        self.held.add(message.command.sop_instance_uid)
                    one.respond(message, 0)

    # --- storage commitment --------------------------------------------------------------------

    def _act(self, one: Association, message: Message, asked: Dataset) -> None:
        self.asked.append(asked)
        one.respond(message, self.behaviour.action_status)
        if self.behaviour.action_status:
            return
        if self.behaviour.report == "same":
            self.tell(one, message.context.id, asked)
        elif self.behaviour.report == "new":
            self._start(self.call_back, asked)

    def call_back(self, asked: Dataset) -> None:
        """Report on an association of its own, in the role of SCP (PS3.7 D.3.3.4)."""
        with request(
            "127.0.0.1",
            self.callback_port,
            calling=AETitle("PACS"),
            called=AETitle("EDGEPACS"),
            contexts=[
                ProposedContext(
                    abstract_syntax=STORAGE_COMMITMENT_PUSH,
                    transfer_syntaxes=(IMPLICIT_VR_LE,),
                    roles=Roles(scu=False, scp=True),
                )
            ],
            limits=QUICK,
        ) as one:
            assert one.contexts[1].roles == Roles(scu=False, scp=True)
            self.tell(one, 1, asked)

    def tell(self, one: Association, context: int, asked: Dataset) -> None:
        """Send the report on what was asked."""
        report = Dataset()
        report.TransactionUID = self.behaviour.transaction or asked.TransactionUID
        good, bad = [], []
        for item in asked.ReferencedSOPSequence:
            uid = item.ReferencedSOPInstanceUID
            reason = self.behaviour.reasons.get(uid, 0 if uid in self.held else 0x0112)
            if reason:
                item.FailureReason = reason
            (bad if reason else good).append(item)
        if good:
            report.ReferencedSOPSequence = Items(good)
        if bad:
            report.FailedSOPSequence = Items(bad)
        elements = {
            Element.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT_PUSH,
            Element.COMMAND_FIELD: Field.N_EVENT_REPORT_RQ,
            Element.AFFECTED_SOP_INSTANCE_UID: INSTANCE,
            Element.EVENT_TYPE_ID: 2 if bad else 1,
        }
        (answer,) = one.ask(context, elements, (encode(report),))
        self.report_statuses.append(answer.status)

    # --- queries -------------------------------------------------------------------------------

    def _find(self, one: Association, message: Message, keys: Dataset) -> None:
        self.queried.append(keys)
        asked = keys.SOPInstanceUID
        uids = [asked] if isinstance(asked, str) else list(asked)
        if not self.behaviour.lists and len(uids) > 1:
            uids = []
        uids = [uid for uid in uids if uid in self.held]
        uids += [f"2.25.{900 + number}" for number in range(self.behaviour.flood)]
        for uid in uids:
            match = Dataset()
            match.QueryRetrieveLevel = "IMAGE"
            match.SOPInstanceUID = uid
            match.StudyInstanceUID = keys.StudyInstanceUID
            match.PatientID = "P1"
            one.respond(message, 0xFF00, data=encode(match))
        one.respond(message, self.behaviour.find_status)
