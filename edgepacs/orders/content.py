"""A message taken apart: its header, and its segments as fields, components and text.

Taking apart is python-hl7's; bounds, character sets and escapes are ours
(docs/decisions/0028-hl7-parsing.md).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import hl7

from edgepacs.orders import charsets
from edgepacs.orders.charsets import Escapes
from edgepacs.orders.faults import Place, Problem, Refusal

PARTS_MOST = 20_000  # fields, components and repetitions of one message
SEGMENTS_MOST = 2_000
_CONTROL_ID_MOST = 199  # HL7 2.14.9.10, from version 2.7 on; 20 before
_BOM = b"\xef\xbb\xbf"
_HEAD = re.compile(rb"MSH([!-/:-@[-`{-~])([!-/:-@[-`{-~]{4,5})(?=\1)")
_FIELDS = 25  # of MSH, as far as it is read

# One field: its repetitions, of components, of subcomponents.
Field = list[list[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What MSH says; every value byte by byte as it came, as Latin-1, so that it can be echoed.

    `delimiters` are those of fields, components, repetitions, escapes and subcomponents.
    """

    delimiters: str
    application: str
    facility: str
    receiving_application: str
    receiving_facility: str
    kind: str  # e.g. ORM^O01
    control_id: str
    processing_id: str
    version: str
    accept: str  # MSH-15: when a commit acknowledgement is wanted
    answer: str  # MSH-16: when an application acknowledgement is wanted
    character_set: str

    @property
    def sender(self) -> str:
        """Sending application and facility."""
        return f"{self.application}|{self.facility}"

    @property
    def enhanced(self) -> bool:
        """Whether acknowledgements are of the enhanced mode (HL7 2.9.3)."""
        return bool(self.accept or self.answer)


# What is answered where there is no header.
NOBODY = Header(
    delimiters="|^~\\&",
    application="",
    facility="",
    receiving_application="",
    receiving_facility="",
    kind="",
    control_id="",
    processing_id="P",
    version="2.5.1",
    accept="",
    answer="",
    character_set="",
)


def bare(raw: bytes) -> bytes:
    """A message without what editors and senders put around it, its segments ended by CR.

    HL7 2.5.4 wants CR; some senders write LF, or both.
    """
    plain = raw.removeprefix(_BOM).strip(b"\r\n \t\0")
    if b"\r" not in plain:
        return plain.replace(b"\n", b"\r")
    return plain.replace(b"\r\n", b"\r")


def header(raw: bytes) -> Header:
    """The header of `bare` bytes, also of a message that was cut off; raises Refusal."""
    head = _HEAD.match(raw)
    if head is None:
        raise Refusal(Place("MSH"), Problem.SEQUENCE, "a message begins with MSH and delimiters")
    separator, others = head.group(1).decode(), head.group(2).decode()
    delimiters = separator + others[:4]
    if len(set(separator + others)) != len(separator + others):
        raise Refusal(Place("MSH", 2), Problem.DATA_TYPE, "two delimiters are the same")
    line = raw[: raw.find(b"\r")] if b"\r" in raw else raw
    values = line.decode("latin-1").split(separator, _FIELDS)
    values = ["", separator, *values[1:], *[""] * _FIELDS]
    event = values[9].split(others[0])
    return Header(
        delimiters=delimiters,
        application=values[3],
        facility=values[4],
        receiving_application=values[5],
        receiving_facility=values[6],
        kind="^".join(event[:2]),
        control_id=values[10],
        processing_id=values[11].split(others[0])[0],
        version=values[12].split(others[0])[0],
        accept=_condition(values[15]),
        answer=_condition(values[16]),
        character_set=values[18],
    )


def _condition(value: str) -> str:
    """When an acknowledgement is wanted (HL7 table 0155); what says nothing else is not said."""
    return value.upper() if value.upper() in ("AL", "NE", "ER", "SU") else ""


def require_sound(found: Header) -> None:
    """What must be right before anything is looked at; raises Refusal."""
    if not found.kind:
        raise Refusal(Place("MSH", 9), Problem.REQUIRED, "absent")
    if not found.control_id:
        raise Refusal(Place("MSH", 10), Problem.REQUIRED, "absent: it could not be answered")
    if len(found.control_id) > _CONTROL_ID_MOST:
        words = f"longer than {_CONTROL_ID_MOST} characters"
        raise Refusal(Place("MSH", 10), Problem.DATA_TYPE, words)
    if found.processing_id not in ("P", "T", "D"):  # HL7 table 0103
        raise Refusal(Place("MSH", 11), Problem.PROCESSING_ID, "not P, T or D")
    if not re.fullmatch(r"2(\.\d){1,3}", found.version):  # HL7 table 0104
        raise Refusal(Place("MSH", 12), Problem.VERSION, "not a version 2 of HL7")


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment, and the how manyeth of its name it is, from 1."""

    name: str
    sequence: int
    node: Any  # hl7.Segment
    escapes: Escapes

    def field(self, number: int) -> Field:
        """A field without its escapes, empty where it is absent; raises Refusal."""
        node = self.node[number] if number < len(self.node) else ""
        try:
            return [
                [[self.escapes.undone(text) for text in _parts(part)] for part in _parts(one)]
                for one in _parts(node)
                if str(one)
            ]
        except ValueError:  # also of bytes the character set does not have
            place = Place(self.name, number, sequence=self.sequence)
            raise Refusal(place, Problem.DATA_TYPE, "an escape sequence cannot be read") from None

    def place(self, field: int, component: int = 0) -> Place:
        """Where a field of it stands."""
        return Place(self.name, field, component, self.sequence)


def _parts(node: Any) -> Sequence[Any]:
    """What the next delimiter parts; the library leaves out levels where there is none."""
    return (node,) if isinstance(node, str) else node


@dataclass(frozen=True, slots=True)
class Content:
    """All segments of a message, in their order."""

    segments: Sequence[Segment]

    def named(self, name: str) -> Iterator[Segment]:
        """The segments of a name."""
        return (one for one in self.segments if one.name == name)


def content(raw: bytes, found: Header, character_set: str = "") -> Content:
    """The message in `bare` bytes; raises Refusal.

    `character_set` is what its sender writes where MSH-18 says nothing.
    """
    repetition = found.delimiters[2]
    codec = charsets.codec_of(found.character_set or character_set, repetition)
    if codec is None:
        raise Refusal(Place("MSH", 18), Problem.TABLE, "a character set that is not known here")
    _require_bounds(raw, found.delimiters)
    try:
        text = charsets.decoded(raw, codec)
    except UnicodeError:
        words = f"bytes the character set does not have ({codec} was read)"
        raise Refusal(Place("MSH", 18), Problem.DATA_TYPE, words) from None
    return Content(_segments(text, Escapes(found.delimiters, codec)))


def _require_bounds(raw: bytes, delimiters: str) -> None:
    """A megabyte of delimiters would become a gigabyte of objects."""
    field, component, repetition, _, subcomponent = (one.encode() for one in delimiters)
    if raw.count(b"\r") > SEGMENTS_MOST:
        words = f"a message of more than {SEGMENTS_MOST} segments"
        raise Refusal(Place("MSH"), Problem.DATA_TYPE, words)
    parts = sum(map(raw.count, (field, component, repetition, subcomponent)))
    if parts > PARTS_MOST:
        words = f"a message of more than {PARTS_MOST} fields and components"
        raise Refusal(Place("MSH"), Problem.DATA_TYPE, words)


def _segments(text: str, escapes: Escapes) -> list[Segment]:
    try:
        message = hl7.parse(text)
    except (hl7.HL7Exception, AssertionError, LookupError, ValueError):
        raise Refusal(Place("MSH"), Problem.SEQUENCE, "the message cannot be read") from None
    counts: dict[str, int] = {}
    found = []
    for node in message:
        name = str(node[0]) if len(node) else ""
        if name:
            counts[name] = counts.get(name, 0) + 1
            found.append(Segment(name, counts[name], node, escapes))
    return found
