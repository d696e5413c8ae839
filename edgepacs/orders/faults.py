"""What can be wrong with a message, and what its sender is told: segment, field and number."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from edgepacs.errors import InvalidValue
from edgepacs.store.messages import Verdict


class Problem(IntEnum):
    """Message error condition codes (HL7 table 0357), with their words."""

    words: str

    def __new__(cls, value: int, words: str) -> Self:
        """Members are written as `NAME = value, words`."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.words = words
        return member

    SEQUENCE = 100, "Segment sequence error"
    REQUIRED = 101, "Required field missing"
    DATA_TYPE = 102, "Data type error"
    TABLE = 103, "Table value not found"
    MESSAGE_TYPE = 200, "Unsupported message type"
    EVENT = 201, "Unsupported event code"
    PROCESSING_ID = 202, "Unsupported processing id"
    VERSION = 203, "Unsupported version id"
    UNKNOWN_KEY = 204, "Unknown key identifier"
    LOCKED = 206, "Application record locked"
    INTERNAL = 207, "Application internal error"


# HL7 2.9.2.2: what the receiver does not take at all is rejected, all else is an error.
_REJECTED = frozenset(
    {Problem.MESSAGE_TYPE, Problem.EVENT, Problem.PROCESSING_ID, Problem.VERSION, Problem.INTERNAL}
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a message: segment, field, component, and which segment of that name; 0 for all."""

    segment: str
    field: int = 0
    component: int = 0
    sequence: int = 1

    def __str__(self) -> str:
        """As in an ERL, the parts that are known: PID^1^3^1."""
        parts = (self.segment, self.sequence, self.field, self.component)
        known = [str(part) for part in parts if part]
        return "^".join(known)


class Refusal(InvalidValue):
    """A message, or something in it, that cannot be taken; never holds values of the message."""

    def __init__(self, place: Place, problem: Problem, words: str) -> None:
        super().__init__(f"{place.segment}-{place.field}" if place.field else place.segment, words)
        self.place = place
        self.number = problem

    @property
    def verdict(self) -> Verdict:
        """What the sender is answered."""
        return Verdict(
            code="AR" if self.number in _REJECTED else "AE",
            place=str(self.place),
            error=int(self.number),
            words=str(self),
        )
