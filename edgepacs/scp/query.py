"""C-FIND as SCP: what is in store, Patient Root and Study Root (PS3.4 C.4.1, C.6.1, C.6.2).

What is found is what could be retrieved: `store.catalogue` says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgepacs.custody import scheduled, text
from edgepacs.custody.scheduled import Branch, Leaf, Part
from edgepacs.dimse import Field, Message, identifier
from edgepacs.dimse.identifier import (
    QUERY_RETRIEVE_LEVEL,
    SPECIFIC_CHARACTER_SET,
    Identifier,
    Values,
)
from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.dimse.status import (
    CANCELLED,
    OUT_OF_RESOURCES,
    PENDING,
    SUCCESS,
    UNRECOGNISED_OPERATION,
)
from edgepacs.errors import DatasetMismatch, EdgePacsError, InvalidValue, PeerError
from edgepacs.model import EntryId
from edgepacs.scp.conversation import Conversation
from edgepacs.store import catalogue, worklist
from edgepacs.store.catalogue import (
    ATTRIBUTES,
    REQUEST,
    STUDY_DATE,
    STUDY_TIME,
    UNIQUE_KEYS,
    Level,
)
from edgepacs.store.incidents import Incident
from edgepacs.store.matching import Criterion, Period, combined, criterion

PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"  # PS3.4 C.6.1.3

MOST = 20_000  # matches of one query
PENDING_WITHOUT_SOME = 0xFF01  # PS3.4 C.4.1.1.4: not all optional keys are supported
_IDENTIFIER_BYTES = 1 << 20
_AT_ONCE = 50  # answers read, and sent, before a C-CANCEL is looked for
_RETRIEVE_AE_TITLE = 0x00080054
_AVAILABILITY = 0x00080056
_ONLINE = "ONLINE"  # PS3.4 C.4.1.1.3.2
_WITHOUT_MEANING = frozenset(  # no keys, or answered in every case
    {SPECIFIC_CHARACTER_SET, QUERY_RETRIEVE_LEVEL, _RETRIEVE_AE_TITLE, _AVAILABILITY}
)
# PS3.4 C.5.1.1, by byte: relational queries, combined datetime matching, fuzzy names, timezones,
# conversion of enhanced multi-frame images, empty values, multiple values. The last two need no
# negotiation here.
_OFFERED = bytes((1, 1, 0, 0, 0, 1, 1))
_RELATIONAL, _DATETIME = 0, 1


def options(proposed: bytes) -> bytes:
    """Which of the options of C-FIND that are proposed we support (PS3.4 C.5.1.1)."""
    return bytes(ours & theirs for ours, theirs in zip(_OFFERED, proposed, strict=False))


def find(conversation: Conversation, message: Message) -> None:
    """Answer one C-FIND (PS3.4 C.4.1); raises PeerError when the association breaks."""
    association = conversation.association
    if message.command.field != Field.C_FIND_RQ:
        association.respond(message, UNRECOGNISED_OPERATION)
        return
    try:
        question = _Question(message)
        found = catalogue.find(conversation.store.db, question.query(), MOST + 1)
        _answer(conversation, message, question, found)
    except PeerError:
        raise
    except EdgePacsError as error:
        _refuse(conversation, message, error)


def _answer(
    conversation: Conversation, message: Message, question: "_Question", found: Sequence[int]
) -> None:
    """All that was found, in few writes; then whether that was all (PS3.4 C.4.1.1.4)."""
    association, kept = conversation.association, found[:MOST]
    for at in range(0, len(kept), _AT_ONCE):
        if association.cancelled(message):  # PS3.4 C.4.1.3
            association.respond(message, CANCELLED)
            return
        answers = question.answers(conversation, kept[at : at + _AT_ONCE])
        association.respond_each(message, question.pending, answers)
    if len(found) > MOST:
        words = f"more than {MOST} matches; only these are told"
        association.respond(message, OUT_OF_RESOURCES, comment=words)
    else:
        association.respond(message, SUCCESS)


def _refuse(conversation: Conversation, message: Message, error: EdgePacsError) -> None:
    tag = error.tag if isinstance(error, DatasetMismatch) else None
    association = conversation.association
    offending = () if tag is None else (tag,)
    association.respond(message, error.dimse_status, comment=str(error), offending=offending)
    conversation.store.incidents.note(
        Incident(
            act="query refused",
            host=association.peer.host,
            actor=association.calling_ae,
            detail=str(error),
        )
    )


@dataclass(frozen=True, slots=True)
class _Negotiated:
    """What extended negotiation allows."""

    relational: bool
    combined: bool

    @classmethod
    def of(cls, message: Message) -> "_Negotiated":
        agreed = message.context.application_information.ljust(len(_OFFERED), b"\0")
        return cls(relational=bool(agreed[_RELATIONAL]), combined=bool(agreed[_DATETIME]))


class _Question:
    """The identifier of one C-FIND request (PS3.4 C.4.1.1.3.1); raises DatasetMismatch."""

    def __init__(self, message: Message) -> None:
        self._values = _identifier(message)
        self._negotiated = _Negotiated.of(message)
        self._syntax = message.context.transfer_syntax
        self._character_set = identifier.text(self._values, SPECIFIC_CHARACTER_SET)
        by_study = message.context.abstract_syntax == STUDY_ROOT_FIND
        self._level = _level(self._values, by_study=by_study)
        self._above = [
            level for level in Level if (Level.STUDY if by_study else 0) <= level < self._level
        ]
        asked = [tag for tag in self._values if tag not in _WITHOUT_MEANING and tag & 0xFFFF]
        self._keys = [tag for tag in asked if self._supports(tag)]
        self._order = _OrderKeys(self._values, self._character_set)
        complete = len(self._keys) == len(asked) and self._order.supported
        self.pending = PENDING if complete else PENDING_WITHOUT_SOME

    def _supports(self, tag: int) -> bool:
        """Whether a key is one of this level or of those above; what is not is left unmatched."""
        return tag in ATTRIBUTES and ATTRIBUTES[tag].level <= self._level

    def query(self) -> catalogue.Query:
        """What is to be found; raises DatasetMismatch for what cannot be asked."""
        asked = {
            tag: _text(self._values, tag, self._character_set)
            for tag in self._keys
            if tag != REQUEST
        }
        if not self._negotiated.relational:
            self._require_hierarchy(asked)
        period = self._period(asked)
        if period is not None:
            del asked[STUDY_DATE], asked[STUDY_TIME]
        criteria = {tag: _criterion(ATTRIBUTES[tag].vr, tag, value) for tag, value in asked.items()}
        met = {tag: one for tag, one in criteria.items() if one is not None}
        order = self._order.criteria if REQUEST in self._keys else {}
        return catalogue.Query(level=self._level, criteria=met, period=period, order=order)

    def _require_hierarchy(self, asked: Mapping[int, str]) -> None:
        """One value for the unique key of each level above (PS3.4 C.4.1.3.1.1)."""
        for level in self._above:
            tag = UNIQUE_KEYS[level]
            value = asked.get(tag, "")
            if not value or any(sign in value for sign in "\\*?"):
                words = (
                    f"{identifier.tag_text(tag)}: one value is needed without relational queries"
                )
                raise DatasetMismatch(words, tag=tag)

    def _period(self, asked: Mapping[int, str]) -> Period | None:
        if not self._negotiated.combined or not {STUDY_DATE, STUDY_TIME} <= asked.keys():
            return None
        try:
            return combined(asked[STUDY_DATE], asked[STUDY_TIME])
        except InvalidValue as error:
            raise _unfit(STUDY_DATE, error) from None

    def answers(self, conversation: Conversation, rows: Sequence[int]) -> Iterator[bytes]:
        """The identifiers of the responses (PS3.4 C.4.1.1.3.2)."""
        always: dict[int, str] = {
            QUERY_RETRIEVE_LEVEL: self._level.name,
            _RETRIEVE_AE_TITLE: conversation.store.config.node.ae_title,
            _AVAILABILITY: _ONLINE,
        }
        known: dict[str, list[Values]] = {"": []}  # what is said of orders, by their numbers
        for row in catalogue.answers(conversation.store.db, self._level, rows, self._keys):
            found = dict(zip(self._keys, row, strict=True))
            values: Values = {**always, **found}
            if REQUEST in found:
                items = self._items(conversation, found[REQUEST], known)
                values = {**values, REQUEST: items}
            yield identifier.encode(text.encoded(values, self._character_set), self._syntax)

    def _items(
        self, conversation: Conversation, order: str, known: dict[str, list[Values]]
    ) -> list[Values]:
        if order not in known:
            with conversation.store.db.read() as tx:
                held = worklist.entry(tx, EntryId(int(order)))
            known[order] = _said(self._order.wanted, held)
        return known[order]


class _OrderKeys:
    """Keys on the order, in a Request Attributes Sequence (PS3.4 C.2.2.2.6).

    `wanted` is what to return of it, `criteria` what it must meet, `supported` whether every key
    is. Raises DatasetMismatch for what cannot be asked.
    """

    def __init__(self, values: Identifier, character_set: str) -> None:
        self.criteria: dict[str, Criterion | Mapping[int, Criterion]] = {}
        self.supported = True
        self.wanted = self._asked(scheduled.REQUEST, values, character_set)

    def _asked(self, branch: Branch, values: Identifier, outer: str) -> Branch:
        """What is to be returned of a sequence: all of it where its key has no item, or says none.

        All keys of the one item are to be met by the same item.
        """
        items = identifier.items(values, branch.tag)
        if len(items) > 1:
            words = f"{identifier.tag_text(branch.tag)}: more than one item in a key"
            raise DatasetMismatch(words, tag=branch.tag)
        if not items or not items[0]:
            return branch
        item, written_in = items[0], scheduled.character_set(items[0], outer)
        parts: dict[int, Part] = {}
        met: dict[int, Criterion] = {}
        for tag in item:
            part = branch.parts.get(tag)
            if isinstance(part, Branch):
                parts[tag] = self._asked(part, item, written_in)
            elif part is not None:
                parts[tag] = part
                one = _criterion(part.vr, tag, _text(item, tag, written_in))
                met |= {} if one is None else {tag: one}
            elif tag not in _WITHOUT_MEANING and tag & 0xFFFF:
                self.supported = False
        return self._meeting(replace(branch, parts=parts), met)

    def _meeting(self, branch: Branch, met: Mapping[int, Criterion]) -> Branch:
        """Note what is to be met; of codes only those that do are returned."""
        leaves = {tag: part for tag, part in branch.parts.items() if isinstance(part, Leaf)}
        if branch.tag == REQUEST:
            self.criteria |= {leaves[tag].field: one for tag, one in met.items()}
            return branch
        if not met:
            return branch
        places = scheduled.CODE_PLACES
        self.criteria[branch.field] = {
            places.index(tag) if tag in places else len(places): one for tag, one in met.items()
        }
        every = branch.items
        return replace(
            branch,
            items=lambda held: [
                code
                for code in every(held)
                if all(one.admits(leaves[tag].read(code)) for tag, one in met.items())
            ],
        )


def _said(branch: Branch, subject: object) -> list[Values]:
    """What is wanted of a sequence, item by item."""
    return [
        {
            tag: part.read(item) if isinstance(part, Leaf) else _said(part, item)
            for tag, part in branch.parts.items()
        }
        for item in branch.items(subject)
    ]


def _identifier(message: Message) -> Identifier:
    if message.data is None:
        raise DatasetMismatch("identifier: absent from the C-FIND request")
    whole = bytearray()
    for fragment in message.data:
        whole += fragment
        if len(whole) > _IDENTIFIER_BYTES:
            raise DatasetMismatch(f"identifier: more than {_IDENTIFIER_BYTES} bytes")
    try:
        return identifier.decode(bytes(whole), message.context.transfer_syntax)
    except InvalidValue as error:
        raise DatasetMismatch(f"identifier: {error}") from None


def _level(values: Identifier, *, by_study: bool) -> Level:
    said = identifier.text(values, QUERY_RETRIEVE_LEVEL)
    levels = {level.name: level for level in Level if level or not by_study}
    if said not in levels:
        words = f"Query/Retrieve Level (0008,0052): none of {', '.join(levels)}"
        raise DatasetMismatch(words, tag=QUERY_RETRIEVE_LEVEL)
    return levels[said]


def _text(values: Identifier, tag: int, character_set: str) -> str:
    try:
        return text.value(values, tag, character_set)
    except InvalidValue as error:
        raise DatasetMismatch(str(error), tag=tag) from None


def _criterion(vr: str, tag: int, value: str) -> Criterion | None:
    try:
        return criterion(vr, value)
    except InvalidValue as error:
        raise _unfit(tag, error) from None


def _unfit(tag: int, error: InvalidValue) -> DatasetMismatch:
    return DatasetMismatch(f"{identifier.tag_text(tag)}: {error.problem}", tag=tag)
