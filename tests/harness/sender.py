"""A pynetdicom sender whose C-STORE carries the data set bytes of a file exactly as they are."""

import contextlib
import queue
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from harness.part10 import Part10
from pydicom.uid import UID
from pynetdicom import AE, _config, build_context
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification

_config.LOG_HANDLER_LEVEL = "none"

CONTEXT_REFUSED = 0x0122  # PS3.7 C.5.6, here for a context that was not accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back for one instance; `status` is None when the association broke first."""

    sop_instance: str
    status: int | None
    comment: str = ""

    @property
    def acknowledged(self) -> bool:
        """Whether the sender may now delete its own copy."""
        return self.status is not None and (self.status == 0 or self.status >> 12 == 0xB)


class Rejected(Exception):
    """The association was rejected, aborted or could not be made."""

    def __init__(self, result: str, source: int = 0, reason: int = 0) -> None:
        super().__init__(f"{result} (source {source}, reason {reason})")
        self.result, self.source, self.reason = result, source, reason


def _kinds(instances: Iterable[Part10]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.sop_class, one.transfer_syntax) for one in instances))


@contextmanager
def association(
    port: int,
    kinds: Iterable[tuple[str, str]] = (),
    *,
    calling: str = "HARNESS",
    called: str = "EDGEPACS",
    host: str = "127.0.0.1",
    source: str = "127.0.0.1",
    timeout: float = 30.0,
) -> Iterator[Association]:
    """An association with one presentation context for each (SOP class, transfer syntax).

    Raises Rejected where the peer says no.
    """
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout
    contexts = [build_context(UID(cls), [UID(syntax)]) for cls, syntax in kinds]
    contexts = contexts or [build_context(Verification)]
    assoc = ae.associate(
        host, port, contexts=contexts, ae_title=called, max_pdu=131_072, bind_address=(source, 0)
    )
    if not assoc.is_established:
        answer = assoc.acceptor.primitive
        if assoc.is_rejected and answer is not None:
            raise Rejected("rejected", answer.result_source, answer.diagnostic)
        raise Rejected("no association")
    try:
        yield assoc
    finally:
        if assoc.is_established and not _broken(assoc):
            assoc.release()


def _accepted(assoc: Association, instance: Part10) -> int | None:
    for context in assoc.accepted_contexts:
        if (
            context.abstract_syntax == instance.sop_class
            and context.transfer_syntax[0] == instance.transfer_syntax
        ):
            assert context.context_id is not None
            return context.context_id
    return None


def _request(instance: Part10, message_id: int) -> C_STORE:
    request = C_STORE()
    request.MessageID = message_id
    request.Priority = 2
    request.AffectedSOPClassUID = instance.sop_class
    request.AffectedSOPInstanceUID = instance.sop_instance
    request.DataSet = BytesIO(instance.data)
    return request


def begin(assoc: Association, instance: Part10, share: float) -> None:
    """Send the C-STORE command and only the first `share` of the data set's fragments."""
    context = _accepted(assoc, instance)
    assert context is not None
    message = C_STORE_RQ()
    message.primitive_to_message(_request(instance, 1))
    message.context_id = context
    fragments = list(message.encode_msg(context, 16_384))
    for fragment in fragments[: max(2, int(share * len(fragments)))]:
        assoc.dul.send_pdu(fragment)


def store(assoc: Association, instance: Part10, message_id: int = 1) -> Answer:
    """Send `instance` as it is and wait for the answer."""
    context = _accepted(assoc, instance)
    uid = instance.sop_instance
    if context is None:
        return Answer(
            sop_instance=uid, status=CONTEXT_REFUSED, comment="presentation context refused"
        )
    request = _request(instance, message_id)
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused and assoc.is_alive():
        time.sleep(0.0001)  # pynetdicom's own hand-over between its reactor and the caller
    try:
        assoc.dimse.send_msg(request, context)
        response = _response(assoc)
    finally:
        assoc._reactor_checkpoint.set()
    status = getattr(response, "Status", None)
    comment = getattr(response, "ErrorComment", None) or ""
    return Answer(sop_instance=uid, status=status, comment=str(comment))


def _broken(assoc: Association) -> bool:
    """Whether the connection is gone (PS3.8 9.2: back in state 1 or about to be)."""
    return assoc.dul.state_machine.current_state in ("Sta1", "Sta13")


def _response(assoc: Association) -> object | None:
    """The next DIMSE message; None when the association ends or the time is up first.

    pynetdicom itself sits out its whole timeout when the connection breaks meanwhile.
    """
    deadline = time.monotonic() + (assoc.dimse_timeout or 30.0)
    while time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):
            return assoc.dimse.msg_queue.get(timeout=0.02)[1]
        if _broken(assoc) and assoc.dimse.msg_queue.empty():
            return None
    return None


def send(
    instances: Iterable[Part10], port: int, *, calling: str = "HARNESS", called: str = "EDGEPACS"
) -> list[Answer]:
    """Each of `instances` over as few associations as its presentation contexts allow."""
    todo = list(instances)
    answers: list[Answer] = []
    while todo:
        kinds = _kinds(todo)[:120]  # PS3.8 9.3.2.2: 128 context identifiers
        now = [one for one in todo if (one.sop_class, one.transfer_syntax) in set(kinds)]
        todo = [one for one in todo if (one.sop_class, one.transfer_syntax) not in set(kinds)]
        with association(port, kinds, calling=calling, called=called) as assoc:
            for number, one in enumerate(now, 1):
                if not assoc.is_established or _broken(assoc):
                    answers.append(Answer(sop_instance=one.sop_instance, status=None))
                    continue
                answers.append(store(assoc, one, number))
    return answers


def echo(port: int, *, calling: str = "HARNESS", called: str = "EDGEPACS") -> bool:
    """Whether a C-ECHO as `calling` succeeds."""
    try:
        with association(port, calling=calling, called=called, timeout=5.0) as assoc:
            status = assoc.send_c_echo()
            return "Status" in status and status.Status == 0
    except Rejected:
        return False
