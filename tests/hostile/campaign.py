"""Mutants sent to a receiver one after the other, while a good modality stores beside them.

Nothing is remembered of a mutant but its number and, where it was acknowledged, what was sent: any
of them can be made again from the seed.
"""

import hashlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from harness.made import ct
from harness.part10 import Part10
from hostile.attacker import ACCEPTED, P_DATA, Attacker
from hostile.mutation import chance_of, data_set, stream
from hostile.receiver import Receiver, store

from edgepacs.dimse import pdu
from edgepacs.dimse.command import Command, Field, decode
from edgepacs.dimse.items import ProposedContext
from edgepacs.errors import EdgePacsError

PATIENCE = 10.0  # seconds for an answer, with both cores busy
BATCH = 20  # damaged data sets on one association
_PIECES = (700, 16_384, 1 << 18)  # bytes of a data set sent in one PDU


class Acknowledged:
    """What was acknowledged, by SOP Instance UID: digests of what may have been stored."""

    def __init__(self) -> None:
        self.sure: dict[str, set[bytes]] = {}  # each of them must be there
        self.possible: dict[str, set[bytes]] = {}  # one of them must be there

    def __len__(self) -> int:
        return len(self.sure) + len(self.possible)

    def require_intact(self, receiver: Receiver) -> int:
        """AssertionError for what is lost or altered; how many instances were read."""
        read = 0
        for uid in {*self.sure, *self.possible}:
            kept = {
                hashlib.sha256(receiver.sealed(version)).digest()
                for version in receiver.versions(uid)
            }
            read += len(kept)
            sure, possible = self.sure.get(uid, set()), self.possible.get(uid, set())
            assert sure <= kept, f"{uid}: acknowledged, and lost or altered"
            assert not possible or possible & kept, f"{uid}: acknowledged, and lost or altered"
            assert kept <= sure | possible, f"{uid}: stored what was never sent"
        return read


@dataclass(slots=True)
class Tally:
    """What came of the mutants."""

    answers: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    slowest: float = 0.0


class Modality:
    """Stores good instances, over and over, and asks of each that it is acknowledged."""

    def __init__(self, receiver: Receiver, acknowledged: Acknowledged) -> None:
        self._receiver = receiver
        self._acknowledged = acknowledged
        self._stop = threading.Event()
        self.stored = 0
        self.slowest = 0.0
        self.failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._receiver.associate() as association:
                    for _ in range(40):
                        one = ct()
                        began = time.monotonic()
                        status, comment = store(association, one)
                        self.slowest = max(self.slowest, time.monotonic() - began)
                        assert status == 0, f"{status:04X} {comment}"
                        self._acknowledged.sure[one.sop_instance] = {
                            hashlib.sha256(one.data).digest()
                        }
                        self.stored += 1
                        if self._stop.wait(0.02):
                            return
        except (EdgePacsError, AssertionError) as error:
            self.failure = f"{type(error).__name__}: {error}"

    def end(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the modality hangs"


class Campaign:
    """One run of mutants with one seed against one receiver."""

    def __init__(self, receiver: Receiver, seed: int) -> None:
        self.receiver = receiver
        self.seed = seed
        self.tally = Tally()

    def said(self, numbers: range | int) -> str:
        """How to make these mutants again."""
        first = numbers if isinstance(numbers, int) else numbers.start
        last = numbers if isinstance(numbers, int) else numbers.stop - 1
        return f"EDGEPACS_SEED={self.seed} EDGEPACS_MUTANTS={first}-{last}"

    def sessions(self, numbers: range) -> None:
        """Damaged sessions, each on a connection of its own."""
        for number in numbers:
            sent, done = stream(chance_of(self.seed, number))
            began = time.monotonic()
            peer = Attacker(self.receiver.port, "127.0.0.9")
            peer.sock.settimeout(PATIENCE)
            try:
                with suppress(ConnectionError):
                    peer.send(sent)
                    peer.sock.shutdown(1)
                answers = b"".join(_rest(peer))
            except TimeoutError:
                raise AssertionError(f"no end: {self.said(number)}: {done}") from None
            finally:
                peer.close()
            self.tally.slowest = max(self.tally.slowest, time.monotonic() - began)
            self._judge(sent, answers)

    def _judge(self, sent: bytes, answers: bytes) -> None:
        offered = dict[str, set[bytes]]()
        for command, data in messages(sent):
            if command.field == Field.C_STORE_RQ:
                digest = hashlib.sha256(data).digest()
                offered.setdefault(command.sop_instance_uid, set()).add(digest)
        kinds = [kind for kind, _ in pdus(answers)]
        self.tally.answers[" ".join(map(str, dict.fromkeys(kinds))) or "closed"] += 1
        for command, _ in messages(answers):
            self.tally.statuses[f"{command.name} {command.status:04X}"] += 1
            if command.field == Field.C_STORE_RSP and command.status == 0:
                uid = command.sop_instance_uid
                assert uid in offered, "acknowledged what was never sent"
                self.tally.acknowledged.possible.setdefault(uid, set()).update(offered[uid])

    def data_sets(self, numbers: range) -> None:
        """Damaged data sets in sound C-STOREs, some on each association."""
        for start in range(numbers.start, numbers.stop, BATCH):
            batch = range(start, min(start + BATCH, numbers.stop))
            made = {number: data_set(chance_of(self.seed, number)) for number in batch}
            contexts = contexts_of([part for part, _ in made.values()])
            peer = Attacker(self.receiver.port, "127.0.0.9")
            peer.sock.settimeout(PATIENCE)
            kind, _ = peer.associate(contexts=tuple(contexts.values()))
            assert kind == ACCEPTED, f"PDU {kind}: {self.said(batch)}"
            for number, (part, done) in made.items():
                self._store(peer, contexts, part, f"{self.said(number)}: {done}")
            peer.send(pdu.RELEASE_RQ)
            assert peer.pdu()[0] == 6, f"no release: {self.said(batch)}"
            peer.close()

    def _store(
        self,
        peer: Attacker,
        contexts: dict[tuple[str, str], ProposedContext],
        part: Part10,
        who: str,
    ) -> None:
        context = contexts[part.sop_class, part.transfer_syntax].id
        began = time.monotonic()
        try:
            status, _ = peer.store(part, context=context, piece=_PIECES[len(part.data) % 3])
        except (OSError, AssertionError) as error:
            raise AssertionError(f"{error}: {who}") from None
        self.tally.slowest = max(self.tally.slowest, time.monotonic() - began)
        self.tally.statuses[f"C-STORE-RSP {status:04X}"] += 1
        if status == 0:
            digest = hashlib.sha256(part.data).digest()
            self.tally.acknowledged.sure.setdefault(part.sop_instance, set()).add(digest)


def contexts_of(parts: list[Part10]) -> dict[tuple[str, str], ProposedContext]:
    """A presentation context for each SOP class and transfer syntax."""
    kinds = dict.fromkeys((one.sop_class, one.transfer_syntax) for one in parts)
    return {
        kind: ProposedContext(
            id=2 * number + 1, abstract_syntax=kind[0], transfer_syntaxes=(kind[1],)
        )
        for number, kind in enumerate(kinds)
    }


def _rest(peer: Attacker) -> Iterator[bytes]:
    with suppress(ConnectionError):
        while data := peer.sock.recv(1 << 16):
            yield data


# -- a plain reading of what went over the wire, by none of the receiver's code but the command's


def pdus(wire: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each whole PDU."""
    at = 0
    while at + 6 <= len(wire):
        kind, length = struct.unpack_from(">BxI", wire, at)
        if at + 6 + length > len(wire):
            return
        yield kind, wire[at + 6 : at + 6 + length]
        at += 6 + length


def messages(wire: bytes) -> Iterator[tuple[Command, bytes]]:
    """Command and data set of each whole message, up to where the stream breaks."""
    raw, data = b"", b""
    command: Command | None = None
    for kind, body in pdus(wire):
        if kind != P_DATA:
            continue
        at = 0
        while at + 6 <= len(body):
            length, _, control = struct.unpack_from(">IBB", body, at)
            fragment = body[at + 6 : at + 4 + length]
            if length < 2 or at + 4 + length > len(body):
                return
            at += 4 + length
            if command is None:
                raw += fragment
                if control & pdu.LAST:
                    try:
                        command = decode(raw)
                    except EdgePacsError:
                        return
                    raw = b""
            else:
                data += fragment
            ended = control & pdu.LAST and not control & pdu.COMMAND
            if command is not None and (ended or not command.has_data_set):
                yield command, data
                command, data = None, b""
