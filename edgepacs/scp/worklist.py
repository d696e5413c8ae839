"""The modality worklist as SCP: C-FIND in its information model (PS3.4 K.4, K.6.1).

What is scheduled is offered; what has been started only to who asks for that step status. Nobody
is shown what is not for their stations and modalities (`ae set --sees`).
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, cast

from edgepacs.custody import scheduled, text
from edgepacs.custody.scheduled import (
    MODEL,
    STATUSES,
    STEP,
    STEP_SEQUENCE,
    STEP_STATUS,
    Branch,
    Leaf,
    Part,
)
from edgepacs.dimse import Field, Message, identifier
from edgepacs.dimse.contexts import EXPLICIT_VR_LE
from edgepacs.dimse.identifier import Identifier, Values
from edgepacs.dimse.status import (
    CANCELLED,
    OUT_OF_RESOURCES,
    PENDING,
    SUCCESS,
    UNRECOGNISED_OPERATION,
)
from edgepacs.errors import (
    DatasetMismatch,
    EdgePacsError,
    InvalidValue,
    LimitExceeded,
    PeerError,
)
from edgepacs.model import EntryState
from edgepacs.scp.conversation import Conversation
from edgepacs.store import worklist
from edgepacs.store.matching import Criterion, Period, combined, criterion
from edgepacs.store.worklist import Held, Query

ANSWERS_MOST = 1000  # to one query
_PENDING_WARNING = 0xFF01  # PS3.4 table K.4-1: optional keys that are not supported
_IDENTIFIER_MOST = 1 << 20  # bytes
_AT_ONCE = 50  # answers sent before a C-CANCEL is looked for
# Not keys: Specific Character Set, Query/Retrieve Level, which some send here, Timezone Offset.
_NO_KEYS = frozenset({0x00080005, 0x00080052, 0x00080201})
# Names beside the patient's, the only one the index keeps ready for matching.
_IN_MEMORY = frozenset({"performing_physician", "referring_physician", "requesting_physician"})
_START = {
    part.field: part
    for part in STEP.values()
    if isinstance(part, Leaf) and part.field in ("start_date", "start_time")
}
_TAG, _LENGTH, _ITEM = struct.Struct("<HH"), struct.Struct("<I"), struct.Struct("<HHI")
_Test = Callable[[Held], bool]
_Key = Callable[[Leaf, str], None]


def serve(conversation: Conversation, message: Message) -> None:
    """Answer one C-FIND (PS3.4 K.4.1); raises PeerError when the association breaks."""
    association = conversation.association
    if message.command.field != Field.C_FIND_RQ:
        association.respond(message, UNRECOGNISED_OPERATION)
        return
    try:
        asked = _Asked(_identifier(message))
        found = _found(conversation, asked)
    except PeerError:
        raise  # the association itself is over: there is nobody to answer
    except EdgePacsError as error:
        association.respond(message, error.dimse_status, comment=str(error))
        return
    pending = PENDING if asked.supported else _PENDING_WARNING
    writer = _Writer(asked.character_set, message.context.transfer_syntax)
    told = found[:ANSWERS_MOST]
    for at in range(0, len(told), _AT_ONCE):
        if association.cancelled(message):  # PS3.7 9.3.2.3
            association.respond(message, CANCELLED)
            return
        some = told[at : at + _AT_ONCE]
        answers = [writer.data(_values(asked.parts, held)) for held in some]
        association.respond_each(message, pending, answers)
    if len(found) > ANSWERS_MOST:
        words = f"more than {ANSWERS_MOST} entries match: narrow the query"
        association.respond(message, OUT_OF_RESOURCES, comment=words)
    else:
        association.respond(message, SUCCESS)


def _identifier(message: Message) -> Identifier:
    raw = bytearray()
    for fragment in message.data or ():
        raw += fragment
        if len(raw) > _IDENTIFIER_MOST:
            raise LimitExceeded(f"identifier: longer than {_IDENTIFIER_MOST >> 10} KiB")
    if not raw:
        raise DatasetMismatch("identifier: absent from the C-FIND request")
    return identifier.decode(bytes(raw), message.context.transfer_syntax)


def _found(conversation: Conversation, asked: "_Asked") -> list[Held]:
    """What matches, one more than may be answered at most."""
    known = conversation.known
    query = Query(
        criteria=asked.criteria,
        states=asked.states,
        period=asked.period,
        stations=known.sees_stations,
        modalities=known.sees_modalities,
    )
    with conversation.store.db.read() as tx:
        matching = worklist.matching(tx, query, None if asked.tests else ANSWERS_MOST + 1)
        kept = (held for held in matching if all(test(held) for test in asked.tests))
        return list(islice(kept, ANSWERS_MOST + 1))


def _values(parts: Mapping[int, Part], subject: object) -> Values:
    """What an answer says of an entry, or an item of what it is about."""
    return {
        tag: part.read(subject)
        if isinstance(part, Leaf)
        else [_values(part.parts, item) for item in part.items(subject)]
        for tag, part in parts.items()
    }


class _Writer:
    """Answers as data sets. What many of them say alike is encoded once."""

    def __init__(self, character_set: str, transfer_syntax: str) -> None:
        self._character_set = character_set
        self._syntax = transfer_syntax
        self._known: dict[tuple[int, str], bytes] = {}
        # The head of a sequence but for its length (PS3.5 7.1.2, 7.1.3).
        self._sequence = b"SQ\0\0" if transfer_syntax == EXPLICIT_VR_LE else b""

    def data(self, values: Values) -> bytes:
        """One answer: what is ASCII is the same in every character set, the rest is not."""
        pieces: dict[int, bytes] = {}
        other: dict[int, Any] = {}
        for tag, value in values.items():
            plain = self._plain(tag, value)
            if plain is None:
                other[tag] = value
            else:
                pieces[tag] = plain
        if other:
            written = text.encoded(other, self._character_set)
            for tag in written:
                pieces[tag] = identifier.encode({tag: written[tag]}, self._syntax)
        return b"".join([pieces[tag] for tag in sorted(pieces)])

    def _plain(self, tag: int, value: Any) -> bytes | None:
        """An element that is all ASCII; None for another."""
        if not isinstance(value, str):
            return self._plain_sequence(tag, value)
        found = self._known.get((tag, value))
        if found is None and value.isascii():
            found = self._known[tag, value] = identifier.encode({tag: value}, self._syntax)
        return found

    def _plain_sequence(self, tag: int, items: Sequence[Values]) -> bytes | None:
        raw = b""
        for item in items:
            parts = [self._plain(inner, item[inner]) for inner in sorted(item)]
            if None in parts:
                return None
            whole = b"".join(cast("list[bytes]", parts))
            raw += _ITEM.pack(0xFFFE, 0xE000, len(whole)) + whole  # PS3.5 7.5
        return _TAG.pack(tag >> 16, tag & 0xFFFF) + self._sequence + _LENGTH.pack(len(raw)) + raw


# --- what is asked -----------------------------------------------------------------------------


class _Asked:
    """One query as it is understood; raises InvalidValue, DatasetMismatch.

    `parts` is what to return, `supported` whether every key is. What the index cannot match is
    left to `tests`.
    """

    def __init__(self, values: Identifier) -> None:
        self.criteria: dict[str, Criterion] = {}
        self.tests: list[_Test] = []
        self.states: Sequence[EntryState] = (EntryState.SCHEDULED,)
        self.period: Period | None = None
        self.supported = True
        self.character_set = scheduled.character_set(values)
        self._start = dict.fromkeys(_START, "")
        self.parts = self._level(MODEL, values, self.character_set, self._match)
        self._match_start()

    def _level(
        self, known: Mapping[int, Part], values: Identifier, outer: str, match: _Key
    ) -> Mapping[int, Part]:
        """What of a data set or an item is to be returned; each key is handed to `match`."""
        written_in = scheduled.character_set(values, outer)
        wanted: dict[int, Part] = {}
        for tag in values:
            part = known.get(tag)
            if isinstance(part, Branch):
                wanted[tag] = self._branch(part, values, written_in)
            elif part is not None:
                wanted[tag] = part
                match(part, text.value(values, tag, written_in))
            elif tag not in _NO_KEYS and tag & 0xFFFF:  # a group length is no key either
                self.supported = False
        return wanted

    def _branch(self, branch: Branch, values: Identifier, outer: str) -> Branch:
        """Sequence matching (PS3.4 C.2.2.2.6): all keys of its one item in the same item.

        An empty sequence, or item, asks nothing and has all of it returned.
        """
        items = identifier.items(values, branch.tag)
        if len(items) > 1:
            words = f"{identifier.tag_text(branch.tag)}: more than one item in a key"
            raise DatasetMismatch(words, tag=branch.tag)
        if not items or not items[0]:
            return branch
        if branch.tag == STEP_SEQUENCE:  # whose one item is about the entry itself
            return replace(branch, parts=self._level(branch.parts, items[0], outer, self._match))
        keys: list[tuple[Leaf, Criterion]] = []

        def match(leaf: Leaf, asked: str) -> None:
            found = _criterion(leaf, asked)
            if found is not None:
                keys.append((leaf, found))

        parts = self._level(branch.parts, items[0], outer, match)
        if keys:
            self.tests.append(
                lambda held: any(
                    all(one.admits(leaf.read(item)) for leaf, one in keys)
                    for item in branch.items(held)
                )
            )
        return replace(branch, parts=parts)

    def _match(self, leaf: Leaf, asked: str) -> None:
        """Note a key on an attribute of the entry itself."""
        if leaf.field in self._start:
            self._start[leaf.field] = asked
            return
        found = _criterion(leaf, asked)
        if found is None:
            return
        if leaf.tag == STEP_STATUS:
            self.states = [state for state, word in STATUSES.items() if found.admits(word)]
        elif leaf.field and leaf.field not in _IN_MEMORY:
            self.criteria[leaf.field] = found
        else:
            self.tests.append(lambda held: found.admits(leaf.read(held)))

    def _match_start(self) -> None:
        """Ranges of date and time are one range of moments (PS3.4 table K.6-1); else each counts.

        Where the time leaves open what the date does not, the whole day is meant.
        """
        date, time = (self._start[name].strip() for name in _START)
        if "-" in date and "-" in time:
            (day, _, last_day), (hour, _, last_hour) = date.partition("-"), time.partition("-")
            first = (hour or "00") if day else ""
            last = (last_hour or "235959.999999") if last_day else ""
            with _naming(_START["start_date"].tag):
                self.period = combined(date, f"{first}-{last}")
        if self.period is None:
            for name, asked in self._start.items():
                found = _criterion(_START[name], asked)
                if found is not None:
                    self.criteria[name] = found


def _criterion(leaf: Leaf, asked: str) -> Criterion | None:
    with _naming(leaf.tag):
        return criterion(leaf.vr, asked)


@contextmanager
def _naming(tag: int) -> Iterator[None]:
    """Say which key it was that cannot be matched."""
    try:
        yield
    except InvalidValue as error:
        raise InvalidValue(identifier.tag_text(tag), error.problem) from None
