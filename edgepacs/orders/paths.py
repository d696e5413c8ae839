"""Paths: where in a message a value stands, as mapping files write it.

`PID-5` is a field, `PID-3.4` a component, `PID-3.4.2` a subcomponent. `PID-3[2].1` is of the second
repetition, `PID-3[5=MR].1` of the one whose fifth component is MR, `OBX[3.1=3141-9]-5` of the
segment whose field 3.1 is that. `=CT` is the text CT, whatever the message says.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgepacs.errors import InvalidValue
from edgepacs.orders.content import Field, Segment
from edgepacs.orders.faults import Place

NOTHING = '""'  # a field that says that there is no value any more (HL7 2.5.3)
_PATH = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})"
    r"(?:\[(?P<where>\d{1,3}(?:\.\d{1,3})?)=(?P<is>[^\]]*)\])?"
    r"-(?P<field>\d{1,3})"
    r"(?:\[(?P<repetition>\d{1,3})(?:=(?P<kind>[^\]]*))?\])?"
    r"(?:\.(?P<component>\d{1,3}))?(?:\.(?P<subcomponent>\d{1,3}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One place in messages; numbers count from 1, 0 standing for all."""

    segment: str = ""
    where: tuple[int, int] = (0, 0)  # field and component that must be `value`
    value: str = ""
    field: int = 0
    repetition: int = 0  # or, with `kind`, the component that must be `kind`
    kind: str | None = None
    component: int = 0
    subcomponent: int = 0
    constant: str | None = None

    def place(self, segment: Segment | None) -> Place:
        """Where it stands in a message, or should."""
        if segment is None:
            return Place(self.segment, self.field, self.component)
        return segment.place(self.field, self.component)

    def found(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, Field]]:
        """The repetitions it speaks of, of every segment that holds any; raises Refusal."""
        for segment in segments:
            if segment.name == self.segment and self._is_meant(segment):
                repetitions = self._repetitions(segment.field(self.field))
                if any(text for one in repetitions for part in one for text in part):
                    yield segment, repetitions

    def _is_meant(self, segment: Segment) -> bool:
        field, component = self.where
        return not field or text_of(segment.field(field), max(1, component)) == self.value

    def _repetitions(self, field: Field) -> Field:
        if not self.repetition:
            return field
        if self.kind is None:
            return field[self.repetition - 1 : self.repetition]
        return [one for one in field if text_of([one], self.repetition) == self.kind]


def text_of(field: Field, component: int = 1, subcomponent: int = 1) -> str:
    """One piece of text of the first repetition, '' where it is absent."""
    for one in field[:1]:
        for part in one[component - 1 : component]:
            return next(iter(part[subcomponent - 1 : subcomponent]), "")
    return ""


def parsed(text: str) -> Path:
    """The path that `text` writes; raises InvalidValue."""
    if text.startswith("="):
        return Path(constant=text[1:])
    match = _PATH.fullmatch(text)
    if match is None:
        raise InvalidValue("path", f"{text!r} is not like PID-3.1, PID-3[5=MR].1 or =CT")
    parts = match.groupdict()
    field, _, component = (parts["where"] or "0").partition(".")
    return Path(
        segment=parts["segment"],
        where=(int(field), int(component or 0)),
        value=parts["is"] or "",
        field=int(parts["field"]),
        repetition=int(parts["repetition"] or 0),
        kind=parts["kind"],
        component=int(parts["component"] or 0),
        subcomponent=int(parts["subcomponent"] or 0),
    )
