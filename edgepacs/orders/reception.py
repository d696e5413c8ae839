"""Reception: a message kept, applied and answered, each once, whatever breaks in between.

It is durable before anything is answered. What was kept when a crash came is applied at the next
start, before anything newer.
"""

import hashlib
import threading
from dataclasses import replace

from edgepacs.errors import EdgePacsError, StorageFault
from edgepacs.model import EntryId, MessageState
from edgepacs.orders import applying, content, reading
from edgepacs.orders.answers import answers
from edgepacs.orders.content import NOBODY, Header
from edgepacs.orders.faults import Place, Problem, Refusal
from edgepacs.orders.mapping import Sender, Senders
from edgepacs.store import Store, messages
from edgepacs.store.incidents import Incident
from edgepacs.store.messages import Arrived, Verdict
from edgepacs.telemetry import failpoint, log, place_of

_NAME_MOST = 64  # characters of a sender's name in the audit trail
_TAKEN = Verdict(code="AA")
_LATER = Verdict(code="AR", error=int(Problem.INTERNAL), words="kept; it could not be applied yet")


class Reception:
    """Takes messages of every connection, one at a time: their order is what they mean."""

    def __init__(self, store: Store, senders: Senders) -> None:
        self._store = store
        self._senders = senders
        self._lock = threading.Lock()

    def take(self, raw: bytes, host: str) -> list[bytes]:
        """Keep and apply one message; what to answer. Raises StorageFault."""
        plain = content.bare(raw)
        try:
            header = content.header(plain)
        except Refusal as refusal:
            self._note(host, str(refusal))
            return self._answers(NOBODY, replace(refusal.verdict, code="AR"), None)
        if header.kind.startswith("ACK"):  # an answer is not answered, or it would never end
            return []
        with self._lock:
            return self._take(plain, header, host)

    def refuse(self, raw: bytes, host: str, words: str) -> list[bytes]:
        """What to answer to a message that cannot be read to its end."""
        self._note(host, words)
        try:
            header = content.header(content.bare(raw))
        except Refusal:
            header = NOBODY
        verdict = Refusal(Place("MSH"), Problem.INTERNAL, words).verdict
        return self._answers(header, verdict, None)

    def _take(self, plain: bytes, header: Header, host: str) -> list[bytes]:
        try:
            number = self._keep(plain, header, host)
        except StorageFault as fault:
            self._store.vault.condemn(fault)
            raise
        except EdgePacsError as error:  # no room, or the index is in use
            words = f"not kept: {error}"
            log.warning("an HL7 message was %s", words)
            verdict = Verdict(code="AR", error=int(Problem.INTERNAL), words=words)
            return self._answers(header, verdict, None)
        failpoint("hl7.kept")
        self.apply_waiting()
        failpoint("hl7.applied")
        kept = messages.numbered(self._store.db, number)
        verdict = _LATER if kept.state is MessageState.RECEIVED else kept.verdict
        return self._answers(header, self._commit(header), verdict)

    def _keep(self, plain: bytes, header: Header, host: str) -> int:
        arrived = Arrived(
            host=host,
            sender=header.sender,
            control_id=header.control_id,
            kind=header.kind,
            digest=_digest(plain, header),
            raw=plain,
        )
        with self._store.db.write() as tx:
            return messages.keep(tx, arrived)

    def _commit(self, header: Header) -> Verdict:
        """Whether a message is of those that are taken at all (HL7 2.9.3, step 1)."""
        try:
            _require_taken(header, self._senders.of(header))
        except Refusal as refusal:
            return refusal.verdict
        return _TAKEN

    def apply_waiting(self) -> None:
        """Apply what is kept and not applied, the oldest first. Raises StorageFault.

        Stops where something cannot be written for now: what is newer must not go before it.
        """
        changed = False
        try:
            while (waiting := messages.next_received(self._store.db)) is not None:
                changed = bool(self._apply(*waiting)) or changed
        except StorageFault as fault:
            self._store.vault.condemn(fault)
            raise
        except EdgePacsError as error:
            if not error.transient:
                raise
            log.warning("HL7 messages wait: %s: %s", type(error).__name__, error)
        if changed:
            self._store.ring("forward")  # priors may be wanted

    def _apply(self, number: int, raw: bytes) -> set[EntryId]:
        """Apply one message, or refuse it; the entries it changed."""
        try:
            return self._applied(number, raw)
        except Refusal as refusal:
            verdict = refusal.verdict
        except EdgePacsError as error:
            if error.transient or isinstance(error, StorageFault):
                raise
            verdict = _internal(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  one message never stops the others
            log.error("HL7 message %d failed: %s", number, place_of(error))
            verdict = _internal("an error in this program")
        with self._store.db.write() as tx:
            if messages.is_next(tx, number):
                messages.refused(tx, number, verdict, actor=_actor(raw))
        return set()

    def _applied(self, number: int, raw: bytes) -> set[EntryId]:
        header = content.header(raw)
        sender = self._senders.of(header)
        _require_taken(header, sender)
        whole = content.content(raw, header, sender.character_set)
        statements = reading.statements(header, whole, sender)
        source, actor = sender.source or header.application, _actor(raw)
        entries: set[EntryId] = set()
        with self._store.db.write() as tx:
            if not messages.is_next(tx, number):
                return entries
            for statement in statements:
                entries |= applying.apply(tx, statement, source=source, actor=actor)
            words = f"{len(entries)} entries" if statements else "ignored, as the mapping says"
            messages.applied(tx, number, entries, words=words, actor=actor)
        return entries

    def _answers(self, header: Header, commit: Verdict, verdict: Verdict | None) -> list[bytes]:
        return answers(header, commit, verdict, self._store.config.node.ae_title)

    def _note(self, host: str, words: str) -> None:
        self._store.incidents.note(Incident(act="HL7 message refused", host=host, detail=words))


def _require_taken(header: Header, sender: Sender) -> None:
    content.require_sound(header)
    reading.require_known(header, sender)


def _internal(words: str) -> Verdict:
    return Verdict(code="AR", place="MSH", error=int(Problem.INTERNAL), words=words)


def _digest(plain: bytes, header: Header) -> bytes:
    """What a message says, without its header: what is sent again gets the time of that."""
    rest = plain.partition(b"\r")[2]
    return hashlib.blake2b(header.kind.encode("latin-1") + b"\r" + rest, digest_size=16).digest()


def _actor(raw: bytes) -> str:
    """Who said so, for the audit trail: the sending application, as far as it can be shown."""
    name = content.header(raw).application[:_NAME_MOST]
    return "hl7 " + "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
