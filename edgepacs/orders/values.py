"""Values of messages as data sets want them: names, dates, times, codes, text (PS3.5 6.2).

Each function gets the repetitions of a field and the path that led there. It answers text, ''
where there is nothing, and raises ValueError, in words without the value, for what cannot be one.
"""

import re
from collections.abc import Callable, Mapping

from edgepacs.orders.content import Field
from edgepacs.orders.paths import Path, text_of

Convert = Callable[[Field, Path], str]
_STAMP = re.compile(
    r"(\d{4}(?:\d{2}(?:\d{2}(?:\d{2}(?:\d{2}(?:\d{2})?)?)?)?)?)(\.\d{1,6})?([+-]\d{4})?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# Delimiters of person names and of several values (PS3.5 6.2, PN; 6.4).
_IN_NAMES = re.compile(r"[\\^=\x00-\x1f\x7f-\x9f]+")
_IN_CODES = re.compile(r"[\\^\x00-\x1f\x7f-\x9f]+")
_GROUP = {"": 0, "A": 0, "I": 1, "P": 2}  # alphabetic, ideographic, phonetic (HL7 table 0465)


def _line(text: str) -> str:
    return _CONTROL.sub(" ", text).replace("\\", "/").strip()


def text(field: Field, path: Path) -> str:
    """Plain text, of one value."""
    return _line(text_of(field, path.component or 1, path.subcomponent or 1))


def word(field: Field, path: Path) -> str:
    """A word of a table: without blanks around it, in capitals (PS3.5 6.2, CS)."""
    return text(field, path).upper()


def lines(field: Field, path: Path) -> str:
    """Text of several lines: each repetition is one."""
    pieces = [text_of([one], path.component or 1, path.subcomponent or 1) for one in field]
    whole = "\n".join(re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]+", " ", one) for one in pieces)
    return whole.strip()


def joined(field: Field, path: Path) -> str:
    """All components that say something, e.g. of a location: ward, room and bed."""
    del path
    parts = [_line(part[0]) for one in field[:1] for part in one[:4] if part]
    return " ".join(filter(None, parts))


def either(field: Field, path: Path) -> str:
    """The words of a coded value, else its code."""
    first = path.component or 1
    return _line(text_of(field, first + 1)) or _line(text_of(field, first))


def code(field: Field, path: Path) -> str:
    """A coded value (CE, CWE: code, meaning, scheme) as value^scheme^meaning.

    Where no scheme is said, it is L, local (HL7 table 0396); PS3.3 8.2 wants one.
    """
    first = path.component or 1
    value, meaning, scheme = (
        _IN_CODES.sub(" ", text_of(field, first + further)).strip() for further in range(3)
    )
    return f"{value}^{scheme or 'L'}^{meaning or value}" if value else ""


def _name(family: str, given: str, middle: str, suffix: str, prefix: str) -> str:
    """A component group in DICOM's order (PS3.5 6.2, PN): the prefix goes before the suffix."""
    parts = (family, given, middle, prefix, suffix)
    return "^".join(_IN_NAMES.sub(" ", part).strip() for part in parts).rstrip("^")


def name(field: Field, path: Path) -> str:
    """A name (XPN) with its alphabetic, ideographic and phonetic component groups.

    The first repetition of each representation counts (XPN.8); one that names none is alphabetic.
    """
    del path
    groups = ["", "", ""]
    for one in field:
        group = _GROUP.get(text_of([one], 8).upper())
        if group is not None and not groups[group]:
            groups[group] = _name(*(text_of([one], part) for part in range(1, 6)))
    return "=".join(groups).rstrip("=")


def person(field: Field, path: Path) -> str:
    """A person with a number before the name (XCN, CN); with a path to a component, a CNN."""
    if path.component:
        parts = [text_of(field, path.component, part) for part in range(1, 7)]
    else:
        parts = [text_of(field, part) for part in range(1, 7)]
    found = _name(*parts[1:])
    return found or _IN_NAMES.sub(" ", parts[0]).strip()


def _stamp(field: Field, path: Path) -> str:
    written = text_of(field, path.component or 1, path.subcomponent or 1).strip()
    if not written:
        return ""
    found = _STAMP.fullmatch(written)
    if found is None:
        raise ValueError("not a date and time as YYYYMMDDHHMMSS")
    return found.group(1)


def date(field: Field, path: Path) -> str:
    """The day of a date and time, YYYYMMDD; as written, whatever its time zone."""
    stamp = _stamp(field, path)
    if stamp and len(stamp) < 8:
        raise ValueError("a date without a day")
    return stamp[:8]


def time(field: Field, path: Path) -> str:
    """The time of day, HHMMSS, '' where only the day is known."""
    return _stamp(field, path)[8:].ljust(6, "0") if len(_stamp(field, path)) > 8 else ""


SEXES: Mapping[str, str] = {"M": "M", "F": "F", "O": "O", "A": "O", "N": "O", "U": "", "": ""}
PRIORITIES: Mapping[str, str] = {  # HL7 table 0485; PS3.3 C.4.11
    "S": "STAT",
    "A": "HIGH",
    "T": "HIGH",
    "P": "HIGH",
    "C": "HIGH",
    "R": "ROUTINE",
    "STAT": "STAT",
    "HIGH": "HIGH",
    "ROUTINE": "ROUTINE",
    "MEDIUM": "MEDIUM",
    "LOW": "LOW",
    "*": "",
}
LATERALITIES: Mapping[str, str] = {  # HL7 table 0163
    "L": "L",
    "R": "R",
    "B": "B",
    "LT": "L",
    "RT": "R",
    "BI": "B",
    "*": "",
}
PREGNANT: Mapping[str, str] = {
    "B6": "3",
    "*": "",
}  # HL7 table 0009; PS3.3 C.2.4: definitely pregnant
