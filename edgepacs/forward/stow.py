"""The STOW-RS transport: requests that carry a job's instances to one destination (PS3.18 10.5).

A request is a multipart body of a few instances, its length known ahead, each made into a DICOM
file while it streams out of its sealed object. How many depends on how fast the line was. What a
server accepts shows only when it is sent: the first of each kind goes alone of its kind.
"""

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import Final

from edgepacs.clock import monotonic
from edgepacs.custody.outgoing import file_head, outgoing
from edgepacs.dimse.status import lookup
from edgepacs.errors import (
    EdgePacsError,
    NotAdmitted,
    NotFound,
    PeerBusy,
    PeerError,
    PeerRefused,
    PeerUnreachable,
    Tampered,
    Undecodable,
)
from edgepacs.forward import qido
from edgepacs.forward.batch import Pair, Parcel, Verdict
from edgepacs.forward.job import Job
from edgepacs.forward.web_client import Answer, WebClient, WebDataSet
from edgepacs.model import UID, DeliveryState, StudyId
from edgepacs.pixels.syntaxes import syntax
from edgepacs.store import Store, deliveries, instances, studies, terms
from edgepacs.store.claims import Claim
from edgepacs.store.commitments import Sought
from edgepacs.store.deliveries import LOSSY_RESPONSE, RESPONSE
from edgepacs.store.destinations import Destination
from edgepacs.telemetry import failpoint

LINGER_SECONDS = 2.0  # how long a connection is kept open for what is being converted, or new
GATHER_SECONDS = 0.02  # how long a request that could go waits for more to share it
REQUEST_SECONDS = 8.0  # of the line, that one request may take: more would keep urgent ones waiting
FIRST_BYTES = 512 << 10  # of a request, until the rate of the line is known
FIRST_INSTANCES = 4  # likewise
LEAST_BYTES = 64 << 10
MOST_BYTES = 32 << 20  # of a request of more than one instance
MOST_INSTANCES = 50
TRIES = 3  # of an instance that a server says nothing about
FAULTS = 3  # requests of one instance that a server failed on, one after the other
_BUSY_TRIES = 3  # for so often its word on how long to wait is taken
_UNSENT_LEAST = 16_384  # bytes the kernel may hold unsent

TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122  # PS3.18 I.2.2
_FAILED_SEQUENCE = "00081198"  # PS3.18 I.2
_FAILURE_REASON = "00081197"
_REFERENCED_SEQUENCE = "00081199"
_WARNING_REASON = "00081196"
_REFERENCED_SOP_INSTANCE = "00081155"
_NOBODYS_STUDY = "2.25.0"
_SENT = DeliveryState.SENT


def echo(_store: Store, destination: Destination) -> None:
    """Ask a destination whether it is there and lets us in; raises PeerError.

    Whoever answers is alive, and whether queries are offered does not matter here.
    """
    query = {"StudyInstanceUID": _NOBODYS_STUDY, "limit": "1"}
    with WebClient(destination) as client:
        answer = client.get("/studies", query)
    if answer.good or answer.status == HTTPStatus.NOT_IMPLEMENTED:
        return
    error = answer.refusal()
    broken = answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if broken or isinstance(error, NotAdmitted):
        raise error


def carry(job: Job) -> None:
    """Send what a job holds and is filled up with, request after request over one connection.

    Raises PeerError where the line or the peer ends it. What may have arrived although no answer
    came is left as it is, to be asked for.
    """
    begun = monotonic()
    with WebClient(job.destination) as client:
        client.dial()
        job.connected(client.interrupt, monotonic() - begun)
        try:
            sending = _Sending(job, client)
            while parts := sending.pack():
                sending.send(parts)
        finally:
            job.ended()


@dataclass(slots=True)
class _Part:
    """One instance in a request: `head` and `pieces` are a DICOM file of `length` bytes.

    `begun` is when it began to be sent (monotonic, 0 before), `whole` that all of it was.
    """

    claim: Claim
    pair: Pair
    sop_instance: UID
    head: bytes
    pieces: Iterator[bytes]
    length: int
    begun: float = 0.0
    whole: bool = False

    def sent(self, words: str) -> Verdict:
        """It has arrived."""
        row = syntax(self.pair[1])
        other = row is not None and self.pair[1] != self.claim.transfer_syntax_uid
        manner = f", sent as {row.name}" if row is not None and other else ""
        lossy = self.sop_instance != self.claim.sop_instance_uid
        return Verdict(_SENT, words + manner, LOSSY_RESPONSE if lossy else RESPONSE)


@dataclass(slots=True)
class _Size:
    """How much goes into one request."""

    most_bytes: int = field(default_factory=lambda: FIRST_BYTES)
    most_instances: int = FIRST_INSTANCES
    cap: int = field(default_factory=lambda: MOST_BYTES)
    alone: int = 0  # so many instances go one by one: one of them, at least, is trouble

    @property
    def instances(self) -> int:
        return 1 if self.alone else self.most_instances

    def begin(self, rate: float) -> None:
        """The line is known to carry `rate` bytes a second."""
        wanted = int(rate * REQUEST_SECONDS)
        self.most_bytes = min(max(LEAST_BYTES, wanted), self.cap)

    def grow(self, length: int, seconds: float) -> None:
        """A request of `length` bytes went well in `seconds`."""
        wanted = int(length / max(seconds, 0.001) * REQUEST_SECONDS)
        self.most_bytes = min(max(LEAST_BYTES, min(wanted, 4 * self.most_bytes)), self.cap)
        self.most_instances = min(2 * self.most_instances, MOST_INSTANCES)

    def bound(self, length: int) -> None:
        """More than `length` bytes are too much for the server."""
        self.cap = self.most_bytes = length


@dataclass(slots=True)
class _Sending:
    """Requests over one connection, one after the other."""

    job: Job
    client: WebClient
    size: _Size = field(default_factory=_Size)
    accepted: set[Pair] = field(default_factory=set)
    refused: set[Pair] = field(default_factory=set)
    faults: int = 0

    def __post_init__(self) -> None:
        known = terms.acceptances(self.job.store.db, self.job.destination.id)
        self.accepted = {
            (one.sop_class_uid, one.transfer_syntax_uid) for one in known if one.accepted
        }
        if rate := self.job.pace.rate:  # of all lanes together
            self.size.begin(rate / self.job.width.lanes)

    # --- packing -------------------------------------------------------------------------------

    def pack(self) -> list[_Part]:
        """What goes into the next request; nothing when there is nothing more for now."""
        parts: list[_Part] = []
        length = 0
        while len(parts) < self.size.instances and (parcel := self._next(bool(parts))):
            claim = parcel.claim
            if parts and not self._fits(parts, length, parcel):
                self.job.put_back([claim])
                break
            if not self.job.may_leave(claim):
                continue
            if part := self._opened(parcel):
                parts.append(part)
                length += part.length
        return parts

    def _next(self, more: bool) -> Parcel | None:  # noqa: FBT001  a fact about the request
        """The next parcel; waited for a while where the request holds nothing yet."""
        self.job.batch.presume(self.refused)
        self.job.settle()
        while True:
            parcel = self.job.next(GATHER_SECONDS if more else LINGER_SECONDS)
            if parcel is not None or not self.job.batch.presume(self.refused):
                return parcel

    def _fits(self, parts: Sequence[_Part], length: int, parcel: Parcel) -> bool:
        """Whether there is room for it, and the server known to take its kind, or asked first."""
        pair = _pair(parcel)
        tried = pair not in self.accepted and any(one.pair == pair for one in parts)
        return not tried and length + parcel.claim.byte_length <= self.size.most_bytes

    def _opened(self, parcel: Parcel) -> _Part | None:
        try:
            return _opened(self.job.store, parcel)
        except EdgePacsError as error:
            self._unreadable(parcel.claim, error)
            return None

    def _unreadable(self, claim: Claim, error: EdgePacsError) -> None:
        """Our own copy is the problem."""
        lost = isinstance(error, Tampered | NotFound)
        state = DeliveryState.FAILED if lost else DeliveryState.QUEUED
        self.job.finish(claim, Verdict(state, f"{deliveries.NOT_SENT}{error}"))

    # --- sending -------------------------------------------------------------------------------

    def send(self, parts: Sequence[_Part]) -> None:
        """Send one request and settle what is in it; raises PeerError."""
        job, boundary = self.job, secrets.token_hex(16)
        header = _part_header(boundary)
        length = sum(len(header) + one.length + 2 for one in parts)
        media_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self.client.keep_unsent(max(_UNSENT_LEAST, job.pace.write_bytes))
        with job.under_way(parts[0].claim) as clock, job.pace.sending():
            body = self._body(parts, header, _closing(boundary), clock.handed)
            try:
                with closing(body):
                    whole = length + len(_closing(boundary))
                    answer = self.client.post("/studies", media_type, whole, body)
            except PeerError as error:
                self._unanswered(parts, error)
                raise
            except EdgePacsError as error:
                self._broken_off(parts, error)
                return
            clock.answered(length)
        failpoint("forward.sent")
        job.link.worked()
        self.size.alone = max(0, self.size.alone - len(parts))
        self._judge(parts, answer)
        if answer.good:
            self.faults = 0
            self.size.grow(length, clock.seconds)

    def _body(
        self,
        parts: Sequence[_Part],
        header: bytes,
        end: bytes,
        handed: Callable[[], None],
    ) -> Generator[bytes | memoryview, None, None]:
        """A multipart body (PS3.18 8.6.1.2, RFC 2387)."""
        for part in parts:
            part.begun = monotonic()
            yield header
            count = 0
            pieces = chain((part.head,), part.pieces)
            for piece in self.job.pace.carry(pieces, part.claim.priority):
                count += len(piece)
                yield piece
            if count != part.length:
                raise Undecodable("its length is not what it was")
            yield b"\r\n"
            part.whole = True
        yield end
        handed()

    def _unanswered(self, parts: Sequence[_Part], error: PeerError) -> None:
        """No answer that says anything of instances; what is whole may have arrived all the same.

        That is left as it is, in `sending`, and asked for before it is sent again.
        """
        if isinstance(error, PeerBusy):
            self._asked_for_patience(parts, error)
            return
        surely_not = isinstance(error, PeerRefused)
        self.job.put_back([one.claim for one in parts if surely_not or not one.begun])
        for part in parts:
            if part.begun and not surely_not:
                end = self.job.doubt if part.whole else self.job.broke
                end(part.claim, error, monotonic() - part.begun)

    def _asked_for_patience(self, parts: Sequence[_Part], busy: PeerBusy) -> None:
        """429 or 503: the line is up, and nothing of the request was taken."""
        for part in parts:
            # Where only this one is ever met with it, others shall go first in the end.
            heeded = part.claim.attempts <= _BUSY_TRIES
            delay = int(busy.seconds * 1000) if heeded else 0
            self.job.finish(part.claim, Verdict(DeliveryState.QUEUED, str(busy), delay_ms=delay))

    def _broken_off(self, parts: Sequence[_Part], error: EdgePacsError) -> None:
        """Our own copy of an instance could not be read to its end: the request was cut short."""
        there = self._there([one for one in parts if one.whole])
        for part in parts:
            if part.whole:
                self._settle_asked(part, there)
            elif part.begun:
                self._unreadable(part.claim, error)
        self.job.put_back([one.claim for one in parts if not one.begun])

    def _settle_asked(self, part: _Part, there: set[str]) -> None:
        if part.sop_instance in there:
            self.job.finish(part.claim, part.sent("found there by query"))
        else:
            self.job.put_back([part.claim])

    # --- what the answer says ------------------------------------------------------------------

    def _judge(self, parts: Sequence[_Part], answer: Answer) -> None:
        """Settle each instance by PS3.18 10.5.3; raises PeerError where nothing more is to go."""
        status = answer.status
        if answer.good or status == HTTPStatus.CONFLICT:
            self._by_instance(parts, answer)
        elif isinstance(error := answer.refusal(), PeerRefused):
            self.job.put_back([one.claim for one in parts])
            raise error
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._failed(parts, answer)
        elif len(parts) > 1 and status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            self.job.put_back([one.claim for one in parts])
            self.size.bound(sum(one.length for one in parts) // 2)
        elif len(parts) == 1 and status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            self._learn(refused=[parts[0].pair])
            self.job.put_back([parts[0].claim])
        else:
            self._objected(parts, answer)

    def _one_by_one(self, parts: Sequence[_Part]) -> None:
        """One of them is the trouble; which one shows when each goes alone."""
        self.job.put_back([one.claim for one in parts])
        self.size.alone = len(parts)
        self.size.most_instances = 1

    def _objected(self, parts: Sequence[_Part], answer: Answer) -> None:
        """To one of them, at least; Orthanc answers 400 then, and has stored the others."""
        said = _Said.of(answer)
        stored = said.stored.keys() if said else ()
        for part in parts:
            if part.sop_instance in stored:
                self.job.finish(part.claim, part.sent("success (0000)"))
        absent = [one for one in parts if one.sop_instance not in stored]
        if len(parts) > 1:
            self._one_by_one(absent)
            return
        words = f"the destination answered {answer.words}"
        for part in absent:
            self.job.finish(part.claim, Verdict(DeliveryState.FAILED, words))

    def _failed(self, parts: Sequence[_Part], answer: Answer) -> None:
        """The server broke; how far it came is asked for."""
        there = self._there(parts)
        absent = [one for one in parts if one.sop_instance not in there]
        for part in parts:
            if part.sop_instance in there:
                self.job.finish(part.claim, part.sent(f"found there by query after {answer.words}"))
        if len(parts) > 1:
            self._one_by_one(absent)
            return
        words = f"the destination answered {answer.words}"
        for part in absent:
            self.job.finish(part.claim, Verdict(DeliveryState.QUEUED, words))
            self.faults += 1
        if self.faults >= FAULTS:
            raise PeerError(f"the destination answers {answer.words} again and again")

    def _by_instance(self, parts: Sequence[_Part], answer: Answer) -> None:
        """200, 202 and 409: what the Store Instances Response Module says (PS3.18 I.2)."""
        if answer.early and answer.good:
            self._unanswered(parts, lost := PeerUnreachable("it answered before it had all"))
            raise lost
        said = _Said.of(answer)
        if said is None:
            self._not_understood(parts, answer)
            return
        verdicts = [(one, said.verdict(one, answer)) for one in parts]
        stored = [one.pair for one, verdict in verdicts if verdict and verdict.state is _SENT]
        self._learn(accepted=stored, refused=[one.pair for one in parts if said.refuses(one)])
        for part, verdict in verdicts:
            if verdict and not said.refuses(part):
                self.job.finish(part.claim, verdict)
        self.job.put_back([one.claim for one in parts if said.refuses(one)])
        if unnamed := [part for part, verdict in verdicts if verdict is None]:
            self._unnamed(unnamed, answer)

    def _not_understood(self, parts: Sequence[_Part], answer: Answer) -> None:
        """A body that is no answer of DICOMweb, or only the beginning of one."""
        if answer.cut:
            lost = PeerUnreachable("the connection was lost in the middle of the answer")
            self._unanswered(parts, lost)
            raise lost
        if not answer.good:
            self._unnamed(parts, answer)
            return
        there = self._there(parts)
        for part in parts:
            self._settle_asked(part, there)
        raise PeerRefused(f"the destination answers {answer.words}, but not as DICOMweb does")

    def _unnamed(self, parts: Sequence[_Part], answer: Answer) -> None:
        """Instances that an answer does not name, although it does not say that all is well."""
        if answer.status == HTTPStatus.CONFLICT and len(parts) > 1:
            self._one_by_one(parts)
            return
        there = self._there(parts)
        words = f"the destination answered {answer.words} and nothing about this instance"
        for part in parts:
            if part.sop_instance in there:
                self.job.finish(part.claim, part.sent("found there by query"))
                continue
            passing = answer.good and part.claim.attempts < TRIES
            state = DeliveryState.QUEUED if passing else DeliveryState.FAILED
            self.job.finish(part.claim, Verdict(state, words))

    def _learn(self, *, accepted: Sequence[Pair] = (), refused: Sequence[Pair] = ()) -> None:
        news = dict.fromkeys((*accepted, *refused))
        self.accepted = (self.accepted | set(accepted)) - set(refused)
        self.refused |= set(refused)
        if news:
            self.job.batch.learn(list(news), set(accepted))

    def _there(self, parts: Sequence[_Part]) -> set[str]:
        """Which of `parts` the destination has; none where it answers no queries.

        Raises PeerUnreachable, PeerBusy: they are left in doubt then.
        """
        if not parts:
            return set()
        try:
            return qido.found_by(self.client, _sought(self.job.store, parts))
        except (PeerUnreachable, PeerBusy):
            raise
        except PeerError:
            return set()


@dataclass(frozen=True, slots=True)
class _Said:
    """What a Store Instances Response Module says, by SOP Instance UID (PS3.18 I.2).

    `stored` holds the Warning Reason, 0 for none, `failed` the Failure Reason; `names` says
    whether it lists instances at all.
    """

    stored: dict[str, int]
    failed: dict[str, int]
    names: bool

    @classmethod
    def of(cls, answer: Answer) -> "_Said | None":
        """What an answer says; None where it cannot be understood or is not all there."""
        if answer.cut or answer.endless:
            return None
        if answer.good and not answer.body:
            return cls({}, {}, names=False)
        found = answer.data_sets()
        if found is None:
            return None
        return cls(
            _reasons(found, _REFERENCED_SEQUENCE, _WARNING_REASON),
            _reasons(found, _FAILED_SEQUENCE, _FAILURE_REASON),
            names=any(
                {_REFERENCED_SEQUENCE, _FAILED_SEQUENCE} & one.elements.keys() for one in found
            ),
        )

    def refuses(self, part: _Part) -> bool:
        """Whether an instance was refused for its transfer syntax alone."""
        return self.failed.get(part.sop_instance) == TRANSFER_SYNTAX_NOT_SUPPORTED

    def verdict(self, part: _Part, answer: Answer) -> Verdict | None:
        """What is said of an instance; None where nothing is."""
        if (reason := self.failed.get(part.sop_instance)) is not None:
            status = lookup(reason)
            if status.stored and reason:  # it was there before (PS3.7 annex C)
                return part.sent(f"{status.meaning} ({reason:04X})")
            words = f"the destination answered {reason:04X}, {status.meaning}"
            return Verdict(DeliveryState.QUEUED if status.passing else DeliveryState.FAILED, words)
        if (warning := self.stored.get(part.sop_instance)) is not None:
            words = f"{lookup(warning).meaning} ({warning:04X})" if warning else "success (0000)"
            return part.sent(words)
        # 200 says that all are stored, unless there is a list of them, without this one.
        if answer.good and answer.status != HTTPStatus.ACCEPTED and not self.names:
            return part.sent(f"success ({answer.words})")
        return None


def _reasons(found: Sequence[WebDataSet], sequence: str, reason: str) -> dict[str, int]:
    return {
        item.text(_REFERENCED_SOP_INSTANCE): item.number(reason) or 0
        for one in found
        for item in one.items(sequence)
    }


# --- parts -------------------------------------------------------------------------------------


def _pair(parcel: Parcel) -> Pair:
    claim, prepared = parcel.claim, parcel.prepared
    uid = prepared.transfer_syntax_uid if prepared else claim.transfer_syntax_uid
    return claim.sop_class_uid, uid


def _opened(store: Store, parcel: Parcel) -> _Part:
    """A parcel as a part of a request; raises what reading it raises."""
    claim, pair = parcel.claim, _pair(parcel)
    if prepared := parcel.prepared:
        sop, pieces = prepared.sop_instance_uid, prepared.pieces()
        length = sum(map(len, prepared.pieces()))
    else:
        sop, pieces, length = _stored(store, claim)
    head = file_head(claim.sop_class_uid, sop, pair[1])
    return _Part(claim, pair, sop, head, pieces, len(head) + length)


def _stored(store: Store, claim: Claim) -> tuple[UID, Iterator[bytes], int]:
    """SOP Instance UID, bytes and length of an instance as it stood when it was claimed.

    What was compressed at rest since then still goes as it was received.
    """
    row = instances.instance(store.db, claim.instance)
    going = outgoing(store, row, {claim.transfer_syntax_uid})
    length = going.length
    if length is None:
        length = sum(map(len, going.chunks))
        going = outgoing(store, row, {claim.transfer_syntax_uid})
    return going.sop_instance_uid, going.chunks, length


def _part_header(boundary: str) -> bytes:
    """What stands before an instance (PS3.18 8.7.3).

    Its transfer syntax stands in its meta information alone: Orthanc (its DICOMweb 1.7) answers
    200 to parts whose media type has that parameter, and stores none of them.
    """
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _closing(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode()


def _sought(store: Store, parts: Sequence[_Part]) -> list[Sought]:
    """How `parts` are named at the destination."""
    return [_sought_one(store, one) for one in parts]


def _sought_one(store: Store, part: _Part) -> Sought:
    row = instances.instance(store.db, part.claim.instance)
    study = studies.study(store.db, StudyId(row.study))
    every = studies.series_of(store.db, StudyId(row.study))
    (series,) = [one.series_instance_uid for one in every if one.id == row.series]
    return Sought(
        delivery=part.claim.id,
        sop_class_uid=part.claim.sop_class_uid,
        sop_instance_uid=part.sop_instance,
        series_instance_uid=series,
        study_instance_uid=study.study_instance_uid,
        asked=0,
    )
