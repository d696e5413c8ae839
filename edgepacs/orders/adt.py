"""ADT messages of our own: A08 and A40 of HL7 v2.5.1 (chapter 3), and what is answered to them.

They say of a patient what the order says. The words of an answer are another system's, and may
name a patient: of it only codes and places are kept.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from edgepacs.model import DeliveryState
from edgepacs.orders.content import bare, content, header
from edgepacs.orders.faults import Problem, Refusal
from edgepacs.orders.paths import text_of
from edgepacs.store.announcing import Announcement, Trigger
from edgepacs.store.worklist import Patient

_STRUCTURES = {Trigger.A08: "ADT_A01", Trigger.A40: "ADT_A39"}
_ESCAPES = str.maketrans({"|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\\": "\\E\\"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_GROUPS = ("A", "I", "P")  # HL7 table 0465: alphabetic, ideographic, phonetic
_SEXES = ("M", "F", "O")  # HL7 table 0001
_KEPT = {"AA", "CA"}  # HL7 table 0008
_REFUSED = {"AE", "AR", "CE", "CR"}
_CODES = frozenset(str(int(one)) for one in Problem)
_PLACE = re.compile(r"(MSH|EVN|PID|MRG|PV1)(\^[0-9]{0,2}){0,5}")  # of what we send


def message(one: Announcement, *, title: str, receiver: str) -> bytes:
    """The message of an announcement, in UTF-8: the same bytes each time it is said.

    `title` is this node's AE title, `receiver` the name of the destination.
    """
    at = datetime.fromtimestamp(one.made_ms / 1000, UTC).strftime("%Y%m%d%H%M%S+0000")
    kind = f"ADT^{one.trigger}^{_STRUCTURES[one.trigger]}"
    head = ["MSH", "^~\\&", _text(title), "EdgePACS", _text(receiver), "", at, "", kind]
    head += [control_id(one), "P", "2.5.1", "", "", "", "", "", "UNICODE UTF-8"]
    segments = [head, ["EVN", one.trigger, at], _pid(one.patient)]
    if one.trigger is Trigger.A40:
        segments.append(["MRG", _identifier(one.former_id, one.former_issuer)])
    segments.append(["PV1", "1", "U"])  # of unknown class (HL7 table 0004)
    return "".join("|".join(one) + "\r" for one in segments).encode()


def control_id(one: Announcement) -> str:
    """MSH-10: the same each time a message is said, and no other's (HL7 2.14.9.10)."""
    return f"{one.made_ms:X}{one.id:08X}"[-20:]


def _pid(patient: Patient) -> Sequence[str]:
    """PID of an order's patient (HL7 3.4.2)."""
    sex = patient.sex if patient.sex in _SEXES else ""
    number = _identifier(patient.patient_id, patient.issuer)
    return ["PID", "1", "", number, "", _name(patient.name), "", _text(patient.birth_date), sex]


def _identifier(number: str, issuer: str) -> str:
    """A patient ID with its assigning authority (HL7 2.A.14, CX)."""
    return f"{_text(number)}^^^{_text(issuer)}^MR"


def _name(name: str) -> str:
    """A person name (PS3.5 6.2.1) as repetitions of XPN (HL7 2.A.88), a component group each."""
    found = []
    for group, mark in zip(name.split("="), _GROUPS, strict=False):
        family, given, middle, prefix, suffix = [*group.split("^"), "", "", "", "", ""][:5]
        parts = [_text(part) for part in (family, given, middle, suffix, prefix)]
        if any(parts):
            found.append("^".join([*parts, "", "L", mark]))
    return "~".join(found)


def _text(value: str) -> str:
    """Text without what would end it, delimiters escaped (HL7 2.7.1)."""
    return _CONTROL.sub(" ", value).strip().translate(_ESCAPES)


def judged(answer: bytes, expected: str) -> tuple[DeliveryState, str]:
    """What an answer means for the message with control ID `expected`, and in words of ours.

    What is no answer to it leaves it queued.
    """
    queued = DeliveryState.QUEUED
    raw = bare(answer)
    try:
        found = content(raw, header(raw))
        segments = {one.name: one for one in reversed(list(found.segments))}
        code = text_of(segments["MSA"].field(1)).upper()
        to = text_of(segments["MSA"].field(2))
        places = [_place(one.field(2)) for one in found.named("ERR")]
        numbers = [text_of(one.field(3)) for one in found.named("ERR")]
    except (Refusal, KeyError):
        return queued, "its answer is no acknowledgement"
    if to != expected:
        return queued, "it acknowledged another message"
    if code in _KEPT:
        return DeliveryState.SENT, f"acknowledged ({code})"
    if code not in _REFUSED:
        return queued, "its answer is no acknowledgement"
    known = [one for one in numbers[:1] if one in _CODES]
    known += [one for one in places[:1] if _is_place(one)]
    return DeliveryState.FAILED, f"the destination answered {' '.join([code, *known])}"


def _place(field: Sequence[Sequence[Sequence[str]]]) -> str:
    """Where an error stands, as ERR-2 says it: PID^1^3."""
    return "^".join(next(iter(part), "") for one in field[:1] for part in one)


def _is_place(text: str) -> bool:
    return _PLACE.fullmatch(text) is not None
