"""C-MOVE and C-GET as SCP, Patient Root and Study Root (PS3.4 C.4.2, C.4.3, C.6.1, C.6.2).

Instances go out as they stand where that is accepted; else in the smallest transfer syntax
without loss that is, which a process of its own makes. One after the other, in constant memory.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType

from edgepacs.custody import text
from edgepacs.custody.converter import Order
from edgepacs.custody.prepared import IN_MEMORY, Prepared
from edgepacs.custody.standing import as_it_leaves, opened
from edgepacs.dimse import Element, Field, Message, MoveOriginator, Priority, StoreResponse
from edgepacs.dimse import identifier as identifiers
from edgepacs.dimse.command import Value
from edgepacs.dimse.identifier import Identifier
from edgepacs.dimse.retrieve import STUDY_ROOT_GET, STUDY_ROOT_MOVE
from edgepacs.dimse.status import CANCELLED, PENDING, SUCCESS, UNRECOGNISED_OPERATION, lookup
from edgepacs.errors import (
    EdgePacsError,
    Gone,
    InvalidValue,
    LimitExceeded,
    NotOffered,
    PeerError,
    StorageFault,
)
from edgepacs.model import UID, AETitle, InstanceId, InstanceState, uid
from edgepacs.scp import conversions
from edgepacs.scp.carriers import Asker, Carrier, Elsewhere, Going, at_address
from edgepacs.scp.conversation import Conversation
from edgepacs.scp.conversions import Made
from edgepacs.store import instances, peers, retrievals
from edgepacs.store.incidents import Incident
from edgepacs.store.instances import Instance
from edgepacs.store.retrievals import Keys, Wanted
from edgepacs.telemetry import log

PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"  # PS3.4 C.6.1.3
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"

# PS3.4 C.4.2.1.5, C.4.3.1.4
CANNOT_COUNT = 0xA701
CANNOT_PERFORM = 0xA702
DESTINATION_UNKNOWN = 0xA801
IDENTIFIER_MISMATCH = 0xA900
SOME_FAILED = 0xB000

MOST = 65_535  # sub-operations: their numbers are US (PS3.7 9.1.4.1)
_IDENTIFIER_BYTES = 5_242_880  # some 80,000 UIDs
_LIST_BYTES = 65_534  # of a UI element with an explicit VR (PS3.5 7.1.2)
_FAILED_LIST = 0x00080058  # Failed SOP Instance UID List
_BREATH_SECONDS = 5.0  # between pending responses while something is converted

_LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
_UID_KEYS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "STUDY": ("studies", identifiers.STUDY_INSTANCE_UID),
        "SERIES": ("series", identifiers.SERIES_INSTANCE_UID),
        "IMAGE": ("instances", identifiers.SOP_INSTANCE_UID),
    }
)


def move(conversation: Conversation, message: Message) -> None:
    """C-MOVE to an AE this node knows (PS3.4 C.4.2); raises PeerError when the asker is gone."""
    if message.command.field != Field.C_MOVE_RQ:
        conversation.association.respond(message, UNRECOGNISED_OPERATION)
        return
    association, store = conversation.association, conversation.store
    named = message.command.text(Element.MOVE_DESTINATION).strip(" ")
    known = peers.known_ae(store.db, AETitle(named))
    destination = None if known is None else at_address(known, association)
    if destination is None:
        words = "Move Destination (0000,0600): not known here, or its address is not"
        association.respond(message, DESTINATION_UNKNOWN, comment=words)
        return

    def carrier(wanted: list[Wanted]) -> Carrier:
        # PS3.7 9.1.1.1: who asked, and by which message.
        originator = MoveOriginator(association.calling_ae, message.command.message_id)
        return Elsewhere(destination, store.config.node.ae_title, wanted, originator)

    _serve(conversation, message, carrier)


def get(conversation: Conversation, message: Message) -> None:
    """C-GET (PS3.4 C.4.3); raises PeerError when the association breaks."""
    if message.command.field != Field.C_GET_RQ:
        conversation.association.respond(message, UNRECOGNISED_OPERATION)
        return
    _serve(conversation, message, lambda _: Asker(conversation.association))


def options(proposed: bytes) -> bytes:
    """Extended negotiation (PS3.4 C.5.2, C.5.3): relational retrieval as asked for, no more."""
    return bytes((proposed[0] & 1, *bytes(len(proposed) - 1))) if proposed else b""


def _serve(
    conversation: Conversation, message: Message, carrier: Callable[[list[Wanted]], Carrier]
) -> None:
    try:
        keys = asked(message)
    except InvalidValue as error:
        conversation.association.respond(message, IDENTIFIER_MISMATCH, comment=str(error))
        return
    try:
        wanted = retrievals.named(conversation.store.db, keys, MOST + 1)
        if len(wanted) > MOST:
            raise LimitExceeded(f"more than {MOST} instances")
    except EdgePacsError as error:
        conversation.association.respond(message, CANNOT_COUNT, comment=str(error))
        return
    retrieval = _Retrieval(conversation, message, wanted, carrier(wanted))
    try:
        retrieval.run()
    finally:
        retrieval.close()


# --- what is asked for -------------------------------------------------------------------------


def asked(message: Message) -> Keys:
    """The unique keys of a request (PS3.4 C.4.2.1.4.1, C.4.2.2.1); raises InvalidValue.

    Those of the levels above may be absent, as with relational retrieval: a UID is unique without.
    """
    values = identifiers.decode(_whole(message), message.context.transfer_syntax)
    level = identifiers.text(values, identifiers.QUERY_RETRIEVE_LEVEL)
    by_study = message.context.abstract_syntax in (STUDY_ROOT_MOVE, STUDY_ROOT_GET)
    levels = _LEVELS[1:] if by_study else _LEVELS
    if level not in levels:
        raise InvalidValue("Query/Retrieve Level (0008,0052)", f"none of {', '.join(levels)}")
    upto = levels[: levels.index(level) + 1]
    found = {name: _uids(values, tag) for one, (name, tag) in _UID_KEYS.items() if one in upto}
    characters = identifiers.text(values, identifiers.SPECIFIC_CHARACTER_SET)
    patient = "" if by_study else text.value(values, identifiers.PATIENT_ID, characters)
    own = [patient] if level == "PATIENT" else found[_UID_KEYS[level][0]]
    if not any(own):
        raise InvalidValue(f"unique key of level {level}", "absent or empty")
    return Keys(patients=[patient] if patient else [], **found)


def _uids(values: Identifier, tag: int) -> list[UID]:
    """A list of UIDs (PS3.4 C.2.2.2.2)."""
    several = identifiers.text(values, tag).split("\\")
    return [uid(one, f"({tag >> 16:04X},{tag & 0xFFFF:04X})") for one in several if one]


def _whole(message: Message) -> bytes:
    """The identifier, in memory."""
    if message.data is None:
        raise InvalidValue("identifier", "absent from the request")
    whole = bytearray()
    for fragment in message.data:
        whole += fragment
        if len(whole) > _IDENTIFIER_BYTES:
            raise InvalidValue("identifier", f"longer than {_IDENTIFIER_BYTES} bytes")
    return bytes(whole)


# --- its sub-operations ------------------------------------------------------------------------


class _Cancelled(Exception):
    """A C-CANCEL has come."""


class _Retrieval:
    """One C-MOVE or C-GET: its sub-operations one by one, and what is said about them."""

    def __init__(
        self, conversation: Conversation, message: Message, wanted: list[Wanted], carrier: Carrier
    ) -> None:
        self._store = conversation.store
        self._association = conversation.association
        self._message = message
        self._wanted = wanted
        self._carrier = carrier
        self._priority = _priority(message)
        self._conversions = conversions.of(conversation.store)
        self._ordered: dict[InstanceId, tuple[Order, Made]] = {}
        self._sent: list[Wanted] = []
        self._failed: list[UID] = []
        self._warnings = 0
        self._words = ""  # why something failed

    def run(self) -> None:
        """Perform all of them, unless a C-CANCEL comes; answers to the end."""
        try:
            for at in range(len(self._wanted)):
                self._heed()
                self._perform(at)
                if at + 1 < len(self._wanted):
                    self._say(PENDING)
        except _Cancelled:
            self._end(CANCELLED)
        else:
            self._end(self._outcome())

    def close(self) -> None:
        """Nothing more is brought."""
        for _, made in self._ordered.values():
            conversions.give_up(made)
        self._carrier.close()

    def _heed(self) -> None:
        """Raise _Cancelled where a C-CANCEL has come (PS3.7 9.3.2.3)."""
        if self._association.cancelled(self._message):
            raise _Cancelled

    def _perform(self, at: int) -> None:
        """One C-STORE sub-operation, and what it came to."""
        one = self._wanted[at]
        try:
            response = self._deliver(at)
        except PeerError:
            raise
        except StorageFault as fault:
            self._store.vault.condemn(fault)
            self._count_failure(one, str(fault))
            return
        except EdgePacsError as error:
            self._count_failure(one, str(error))
            return
        status = lookup(response.status)
        if not status.stored:
            self._count_failure(one, f"answered {status}")
            return
        self._sent.append(one)
        self._warnings += status.code != SUCCESS

    def _count_failure(self, one: Wanted, words: str) -> None:
        self._failed.append(one.sop_instance_uid)
        self._words = self._words or words

    def _deliver(self, at: int) -> StoreResponse:
        row = instances.instance(self._store.db, self._wanted[at].id)
        if row.state is not InstanceState.STORED:
            raise Gone(f"instance: no longer here; it is {row.state}")
        accepted = self._carrier.accepted(row.sop_class_uid)
        if not accepted:
            raise NotOffered("its SOP class is not accepted there")
        going = self._as_it_stands(row, accepted)
        if going is not None:
            return self._send(at, going)
        prepared = self._converted(row, accepted)
        if prepared is None:
            going = self._as_it_stands(instances.instance(self._store.db, row.id), accepted)
            if going is None:
                raise NotOffered("it was rewritten meanwhile")
            return self._send(at, going)
        try:
            syntax = prepared.transfer_syntax_uid
            going = Going(row.sop_class_uid, row.sop_instance_uid, syntax, prepared.pieces)
            return self._send(at, going)
        finally:
            prepared.drop()

    def _send(self, at: int, going: Going) -> StoreResponse:
        """Send one; the next is converted meanwhile, if it has to be."""
        if at + 1 < len(self._wanted):
            with suppress(EdgePacsError):  # its own turn says so
                self._order_ahead(self._wanted[at + 1])
        return self._carrier.send(going, self._priority)

    def _order_ahead(self, one: Wanted) -> None:
        accepted = self._carrier.accepted(one.sop_class_uid)
        if one.here and accepted and one.transfer_syntax_uid not in accepted:
            self._order(instances.instance(self._store.db, one.id), accepted)

    def _order(self, row: Instance, accepted: frozenset[UID]) -> Made:
        order = Order(row.id, row.object_id, accepted)
        before = self._ordered.get(row.id)
        if before is None or before[0] != order:
            if before is not None:
                conversions.give_up(before[1])
            self._ordered[row.id] = (order, self._conversions.begin(order))
        return self._ordered[row.id][1]

    def _as_it_stands(self, row: Instance, accepted: frozenset[UID]) -> Going | None:
        """An instance as it is stored; None where that is not accepted.

        All of it is authenticated first: half a data set cannot be taken back, and would end the
        association. Raises NotFound, Tampered.
        """
        now, reader = opened(self._store, row)
        with reader:
            if now.transfer_syntax_uid not in accepted:
                return None
            if now.byte_length <= IN_MEMORY:
                whole = list(as_it_leaves(reader.chunks(), now, now.transfer_syntax_uid))
                return _going(now, partial(iter, whole))
            for _ in reader.chunks():
                pass
        return _going(now, partial(self._streamed, now))

    def _streamed(self, row: Instance) -> Iterator[bytes]:
        now, reader = opened(self._store, row)
        with reader:
            if now.transfer_syntax_uid != row.transfer_syntax_uid:
                raise NotOffered("it was rewritten meanwhile")
            yield from as_it_leaves(reader.chunks(), now, now.transfer_syntax_uid)

    def _converted(self, row: Instance, accepted: frozenset[UID]) -> Prepared | None:
        """An instance in another transfer syntax; None where it is to go as it stands by now.

        Meanwhile the asker is told that it goes on. Raises what the conversion has met.
        """
        made = self._order(row, accepted)
        while True:
            try:
                prepared = made.result(_BREATH_SECONDS)
            except TimeoutError:
                self._heed()
                self._say(PENDING)
            except EdgePacsError:
                del self._ordered[row.id]
                raise
            else:
                del self._ordered[row.id]
                return prepared

    # --- what is said ----------------------------------------------------------------------

    def _outcome(self) -> int:
        """The final status (PS3.4 C.4.2.3.1, C.4.3.3.1)."""
        if self._failed and not self._sent:
            return CANNOT_PERFORM
        return SOME_FAILED if self._failed or self._warnings else SUCCESS

    def _end(self, status: int) -> None:
        association = self._association
        if self._words:
            act = f"retrieval of {len(self._failed)} instances failed"
            self._store.incidents.note(
                Incident(
                    act="retrieval incomplete",
                    host=association.peer.host,
                    actor=association.calling_ae,
                    detail=f"{act}: {self._words}",
                )
            )
        self._record()
        self._say(status)

    def _record(self) -> None:
        """Who has had what, in the audit trail; what went out is answered all the same."""
        if not self._sent:
            return
        actor, receiver = self._association.calling_ae, self._carrier.title
        try:
            with self._store.db.write() as tx:
                retrievals.record(tx, self._sent, actor=actor, receiver=receiver)
        except StorageFault as fault:
            self._store.vault.condemn(fault)
        except EdgePacsError as error:
            log.warning("a retrieval is not in the audit trail: %s", error)

    def _say(self, status: int) -> None:
        """Respond, with the numbers of sub-operations (PS3.7 9.1.3.1, 9.1.4.1)."""
        done = len(self._sent) - self._warnings
        extra: dict[int, Value] = {
            Element.COMPLETED: done,
            Element.FAILED: len(self._failed),
            Element.WARNING: self._warnings,
        }
        if status in (PENDING, CANCELLED):
            left = len(self._wanted) - len(self._sent) - len(self._failed)
            extra[Element.REMAINING] = left
        final = status not in (PENDING, SUCCESS)
        self._association.respond(
            self._message,
            status,
            data=self._failed_list() if final and self._failed else None,
            comment=self._words if final else "",
            extra=extra,
        )

    def _failed_list(self) -> bytes:
        """The identifier of a final response: Failed SOP Instance UID List (PS3.4 C.4.2.1.4.2)."""
        listed = "\\".join(self._failed)
        if len(listed) > _LIST_BYTES:  # as many as fit
            listed = listed[:_LIST_BYTES].rpartition("\\")[0]
        return identifiers.encode({_FAILED_LIST: listed}, self._message.context.transfer_syntax)


def _going(now: Instance, pieces: Callable[[], Iterator[bytes]]) -> Going:
    return Going(now.sop_class_uid, now.sop_instance_uid, now.transfer_syntax_uid, pieces)


def _priority(message: Message) -> Priority:
    try:
        return Priority(message.command.number(Element.PRIORITY))
    except ValueError:
        return Priority.MEDIUM
