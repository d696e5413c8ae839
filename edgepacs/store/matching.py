"""Attribute matching of queries, in memory and in SQL alike (PS3.4 C.2.2.2).

Text is compared decoded, as it is stored: without padding, '' where absent. What is stored of
several values has backslashes between them, and matches where any of them does.

Names (PN) are compared without regard to case and accents, which PS3.4 C.2.2.2.1 leaves to us. A
key without "=" matches in any component group of a name; otherwise each group it has must match
the group in the same place (PS3.5 6.2.1). Dates and times are compared by what they mean (PS3.4
C.2.2.2.1): 2230 is 223000. What is stored and is none matches no date or time. All other text is
compared literally.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from edgepacs.errors import InvalidValue

_EMPTY = '""'  # PS3.4 C.2.2.2, Empty Value Matching
_WILD = re.compile(r"[*?]")
_ONE_VALUE = frozenset({"LT", "ST", "UR", "UT"})  # PS3.5 6.4: a backslash is text there
_WILD_CARD_VRS = frozenset({"AE", "CS", "LO", "SH", "UC"}) | _ONE_VALUE  # and PN: C.2.2.2.4
_LITERAL_VRS = frozenset({"AS", "DS", "IS", "SL", "SS", "UI", "UL", "US"})
_UIDS = re.compile(r"[0-9.]{1,64}")
_KANA_MARKS = frozenset("\u3099\u309a")  # they make another syllable, not another accent
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:\.[0-9]{1,6})?)?)?")
_BEHIND_ALL = "~"  # sorts behind every date and time
_DIGIT = "[0-9]"
_VALUES_MOST = 10_000  # of one key
_SEARCHED_MOST = 100  # of those that are not looked up as they are, each a condition of its own
_LONGEST = 1024  # characters of such a one

Clause = tuple[str, tuple[str, ...]]


class Criterion:
    """What one key asks of an attribute; `admits` and both clauses always agree."""

    def admits(self, value: str) -> bool:
        """Whether `value` matches; any of its values, where it has several."""
        raise NotImplementedError

    def clause(self, column: str) -> Clause:
        """SQL with its values: whether `column`, which holds a single value or '', matches.

        Of names the column must hold what `folded_name` makes of them.
        """
        raise NotImplementedError

    def clause_of_any(self, column: str) -> Clause:
        """The same of a column that may hold several values."""
        sql, values = self.clause("TRIM(one.value, ' ')")
        return _exists(_split(column, "\\\\"), "one", sql), values  # JSON doubles a backslash


def _split(column: str, separator: str) -> str:
    """SQL of a JSON array of what stands in `column` between separators."""
    return f"""'[' || REPLACE(JSON_QUOTE({column}), '{separator}', '","') || ']'"""


def _exists(array: str, name: str, condition: str) -> str:
    return f"EXISTS (SELECT 1 FROM JSON_EACH({array}) AS {name} WHERE {condition})"  # noqa: S608


def _joined(clauses: Sequence[Clause], word: str) -> Clause:
    sql = f" {word} ".join(one for one, _ in clauses)
    return f"({sql})", tuple(value for _, values in clauses for value in values)


def of_parts(column: str, wanted: Mapping[int, Criterion]) -> Clause:
    """SQL with its values: whether one of the values of `column`, parts with ^ between, meets all.

    Criteria are by the place of a part; one that is not there is ''.
    """
    parts = _split("one.value", "^")
    sql, values = _joined(
        [
            part.clause(f"IFNULL(JSON_EXTRACT({parts}, '$[{place}]'), '')")
            for place, part in wanted.items()
        ],
        "AND",
    )
    values_of = _split(column, "\\\\")  # JSON doubles a backslash
    return _exists(values_of, "one", f"one.value <> '' AND {sql}"), values


def criterion(vr: str, text: str) -> Criterion | None:
    """What a key of that VR asks, `text` being its decoded value; None for anything at all.

    A key of nothing but "*" asks nothing either (PS3.4 C.2.2.2.4), of any VR. Of several values,
    separated by backslashes, any may match: of UIDs by C.2.2.2.2, of others as in Multiple Value
    Matching. Binary numbers come as decimal text. Raises InvalidValue for what cannot be matched;
    its `problem` says why, but which key it was is the caller's to say.
    """
    plain = text.strip("\0 ")
    if plain == _EMPTY:
        return _Empty()
    values = [plain] if vr in _ONE_VALUE else [one.strip("\0 ") for one in plain.split("\\")]
    values = [one for one in values if one]
    if len(values) > _VALUES_MOST:
        raise _unfit(f"has more than {_VALUES_MOST} values")
    if not values or any(not one.strip("*") for one in values):
        return None
    if vr in _WILD_CARD_VRS or vr in _LITERAL_VRS:
        return _text(vr, values)
    _require_few(values)
    return _any_of([_single(vr, one) for one in values])


def _require_few(values: Sequence[str]) -> None:
    if len(values) > _SEARCHED_MOST:
        raise _unfit(f"has more than {_SEARCHED_MOST} values that are not looked up as they are")
    if any(len(one) > _LONGEST for one in values):
        raise _unfit(f"has a value of more than {_LONGEST} characters")


def _unfit(problem: str) -> InvalidValue:
    return InvalidValue("key", problem)


def _single(vr: str, text: str) -> Criterion | None:
    if vr == "PN":
        return _name(text)
    if vr in SCALES:
        return Span(vr, *ends(vr, text))
    raise _unfit(f"VR {vr} is not matched")


def _any_of(criteria: Sequence[Criterion | None]) -> Criterion | None:
    """Any of them; None where one is met by anything."""
    found = [one for one in criteria if one is not None]
    if len(found) < len(criteria):
        return None
    return found[0] if len(found) == 1 else _AnyOf(tuple(found))


@dataclass(frozen=True, slots=True)
class _Empty(Criterion):
    """Two quotation marks: what has no value (Empty Value Matching)."""

    def admits(self, value: str) -> bool:
        return not value

    def clause(self, column: str) -> Clause:
        return f"{column} = ''", ()

    def clause_of_any(self, column: str) -> Clause:
        return self.clause(column)


@dataclass(frozen=True, slots=True)
class _AnyOf(Criterion):
    """Any of several."""

    criteria: tuple[Criterion, ...]

    def admits(self, value: str) -> bool:
        return any(one.admits(value) for one in self.criteria)

    def clause(self, column: str) -> Clause:
        return _joined([one.clause(column) for one in self.criteria], "OR")


def each_of(one: Criterion) -> Sequence[Criterion]:
    """The criteria of which `one` asks for any."""
    return one.criteria if isinstance(one, _AnyOf) else [one]


# --- text ------------------------------------------------------------------------------------


class Pattern:
    """Text with wild cards: "*" for any characters, "?" for one (PS3.4 C.2.2.2.4)."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"\*+", "*", text)
        self.prefix = _WILD.split(text, maxsplit=1)[0]  # before the first wild card

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        # What stands between two "*" is taken where it occurs first, and no other place is tried:
        # else a key of many takes time without end, with all threads of this process waiting.
        first, *rest = ("".join(map(_shape, part)) for part in self.text.split("*"))
        inner = "".join(f"(?>.*?{part})" for part in rest[:-1])
        return re.compile(first + inner + "".join(f".*{part}" for part in rest[-1:]), re.DOTALL)

    @property
    def pieces(self) -> list[str]:
        """What stands between the wild cards."""
        return _WILD.split(self.text)

    @property
    def is_wild(self) -> bool:
        """Whether there is a wild card in it."""
        return self.prefix != self.text

    def admits(self, value: str) -> bool:
        """Whether all of `value` fits."""
        return bool(self._expression.fullmatch(value)) if self.is_wild else value == self.text

    def clause(self, column: str) -> Clause:
        """SQL that an index on `column` serves as far as the first wild card."""
        if not self.is_wild:
            return f"{column} = ?", (self.text,)
        fits = f"{column} GLOB ?", (self.text.replace("[", "[[]"),)
        return _joined([*begins(column, self.prefix), fits], "AND")


def _shape(character: str) -> str:
    return "." if character == "?" else re.escape(character)


def begins(column: str, prefix: str) -> list[Clause]:
    """SQL, to be joined by AND: whether `column` begins with `prefix`, as an index finds it.

    SQLite itself does so only for a pattern it knows when it plans (no bound value).
    """
    kept = prefix.rstrip("\U0010ffff")
    if not prefix:
        return []
    clauses: list[Clause] = [(f"{column} >= ?", (prefix,))]
    if kept:
        code = ord(kept[-1]) + 1
        behind = kept[:-1] + chr(0xE000 if code == 0xD800 else code)  # surrogates are no text
        clauses.append((f"{column} < ?", (behind,)))
    return clauses


@dataclass(frozen=True, slots=True)
class _Text(Criterion):
    """Literal text and UIDs, one or several, and wild cards (PS3.4 C.2.2.2.1, .2, .4)."""

    exact: frozenset[str]
    patterns: tuple[Pattern, ...]
    splits: bool  # a backslash in what is stored stands between two values

    def admits(self, value: str) -> bool:
        values = value.split("\\") if self.splits else [value]
        return any(self._admits_one(one.strip(" ")) for one in values)

    def _admits_one(self, value: str) -> bool:
        return value in self.exact or any(pattern.admits(value) for pattern in self.patterns)

    def clause(self, column: str) -> Clause:
        clauses = [pattern.clause(column) for pattern in self.patterns]
        if self.exact:
            clauses.append(one_of(column, self.exact))
        return _joined(clauses, "OR")

    def clause_of_any(self, column: str) -> Clause:
        if self.splits:
            return Criterion.clause_of_any(self, column)
        return self.clause(column)


def one_of(column: str, values: frozenset[str]) -> Clause:
    """SQL: whether `column` is one of `values`; the same statement for any number above one."""
    if len(values) == 1:
        return f"{column} = ?", tuple(values)
    listed = json.dumps(sorted(values), ensure_ascii=False)
    return f"{column} IN (SELECT value FROM JSON_EACH(?))", (listed,)  # noqa: S608


def _text(vr: str, values: Sequence[str]) -> Criterion:
    if vr == "UI" and not all(_UIDS.fullmatch(one) for one in values):
        raise _unfit("not a UID of 1 to 64 digits and dots, nor a list of such")
    wild = [one for one in values if vr in _WILD_CARD_VRS and _WILD.search(one)]
    _require_few(wild)
    exact = frozenset(values).difference(wild)
    return _Text(exact, tuple(map(Pattern, wild)), splits=vr not in _ONE_VALUE)


# --- names -----------------------------------------------------------------------------------


def folded_name(name: str) -> str:
    """A name as it is compared: without case, accents and empty components at the ends."""
    return "=".join(_folded(group).rstrip("^ ").lstrip(" ") for group in name.split("=")).rstrip(
        "="
    )


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    split = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(c for c in split if not unicodedata.combining(c) or c in _KANA_MARKS)
    return unicodedata.normalize("NFC", bare.casefold())


@dataclass(frozen=True, slots=True)
class Name(Criterion):
    """A name, by its component groups, folded; None of them for one that may be anything."""

    groups: tuple[Pattern | None, ...]

    def admits(self, value: str) -> bool:
        return any(self._admits_one(folded_name(one)) for one in value.split("\\"))

    def _admits_one(self, folded: str) -> bool:
        groups = folded.split("=")
        alone = self.alone
        if alone is not None:
            return any(alone.admits(group) for group in groups)
        groups += [""] * (len(self.groups) - len(groups))
        return all(
            wanted is None or wanted.admits(group)
            for wanted, group in zip(self.groups, groups, strict=False)
        )

    @property
    def alone(self) -> Pattern | None:
        """What is looked for in every group of a name, of a key that has only one."""
        return self.groups[0] if len(self.groups) == 1 else None

    def clause(self, column: str) -> Clause:
        array = _split(column, "=")
        if self.alone is not None:
            sql, values = self.alone.clause("part.value")
            return _exists(array, "part", sql), values
        clauses = [
            wanted.clause(f"IFNULL(JSON_EXTRACT({array}, '$[{place}]'), '')")
            for place, wanted in enumerate(self.groups)
            if wanted is not None
        ]
        return _joined(clauses, "AND")


def _name(text: str) -> Name | None:
    groups = tuple(
        Pattern(group) if group.strip("*") else None for group in folded_name(text).split("=")
    )
    return Name(groups) if any(groups) else None


# --- dates and times -------------------------------------------------------------------------


class Scale(NamedTuple):
    """How dates, or times, are read from stored text: in Python, and in SQL of a column."""

    meant: Callable[[str], str]  # text that sorts as the moments do; '' where it is none
    column: Callable[[str], str]  # the same in SQL, whatever it is where it is none
    is_one: Callable[[str], str]  # SQL: whether it is one


def _date(text: str) -> str:
    """YYYYMMDD of a DA value, also of the form YYYY.MM.DD of ACR-NEMA (PS3.5 6.2)."""
    digits = text.strip(" ").replace(".", "")
    return digits if _DATE.fullmatch(digits) else ""


def _date_column(column: str) -> str:
    return f"REPLACE({column}, '.', '')"


def _is_date(column: str) -> str:
    return f"{_date_column(column)} GLOB '{_DIGIT * 8}'"


def _time(text: str) -> str:
    """HHMMSS.FFFFFF of a TM value, also of the form HH:MM:SS of ACR-NEMA (PS3.5 6.2)."""
    digits = text.strip(" ").replace(":", "")
    if not _TIME.fullmatch(digits):
        return ""
    whole, _, fraction = digits.partition(".")
    return f"{whole:0<6}.{fraction:0<6}"


def _time_column(column: str) -> str:
    digits = f"REPLACE({column}, ':', '')"
    fraction = f"SUBSTR(SUBSTR({digits}, 8) || '000000', 1, 6)"
    return f"(SUBSTR({digits} || '000000', 1, 6) || '.' || {fraction})"


def _is_time(column: str) -> str:
    digits = f"REPLACE({column}, ':', '')"
    whole = " OR ".join(f"{digits} GLOB '{_DIGIT * count}'" for count in (2, 4, 6))
    fraction = f"SUBSTR({digits}, 8)"
    precise = (
        f"{digits} GLOB '{_DIGIT * 6}.{_DIGIT}*' AND LENGTH({fraction}) <= 6 "
        f"AND NOT {fraction} GLOB '*[^0-9]*'"
    )
    return f"({whole} OR {precise})"


SCALES: Mapping[str, Scale] = {
    "DA": Scale(_date, _date_column, _is_date),
    "TM": Scale(_time, _time_column, _is_time),
}


@dataclass(frozen=True, slots=True)
class Span(Criterion):
    """All dates, or times, from `first` to `last`, both included (PS3.4 C.2.2.2.5)."""

    vr: str  # DA or TM
    first: str
    last: str

    def admits(self, value: str) -> bool:
        meant = SCALES[self.vr].meant
        return any(self._holds(meant(one)) for one in value.split("\\"))

    def _holds(self, moment: str) -> bool:
        return bool(moment) and self.first <= moment <= self.last

    def clause(self, column: str) -> Clause:
        scale = SCALES[self.vr]
        sql = f"({scale.column(column)} BETWEEN ? AND ? AND {scale.is_one(column)})"
        return sql, (self.first, self.last)


def ends(vr: str, text: str) -> tuple[str, str]:
    """First and last of a single DA or TM value, or of a range (PS3.4 C.2.2.2.5).

    Raises InvalidValue for what is neither, and for a range that ends before it begins: one
    across midnight is two.
    """
    first, hyphen, last = text.partition("-")
    if not hyphen:
        moment = _moment(vr, text)
        return moment, moment
    if not first.strip(" ") and not last.strip(" "):
        raise _unfit("a range without ends")
    begin = _moment(vr, first) if first.strip(" ") else ""
    end = _moment(vr, last) if last.strip(" ") else _BEHIND_ALL
    if begin > end:
        raise _unfit("a range that ends before it begins")
    return begin, end


def _moment(vr: str, text: str) -> str:
    moment = SCALES[vr].meant(text)
    if not moment:
        raise _unfit("not a date" if vr == "DA" else "not a time")
    return moment


@dataclass(frozen=True, slots=True)
class Period:
    """A date and a time asked for as one moment: combined datetime matching (C.2.2.2.5)."""

    first: str  # YYYYMMDDHHMMSS.FFFFFF
    last: str

    def admits(self, date: str, time: str) -> bool:
        """Whether the moment of a DA and a TM value lies within."""
        day, hour = _date(date), _time(time)
        return bool(day and hour) and self.first <= day + hour <= self.last

    def clause(self, date: str, time: str) -> Clause:
        """The same of two columns that each hold a single value or ''."""
        days = f"{_date_column(date)} BETWEEN ? AND ?"  # an index knows days only
        moments = f"({_date_column(date)} || {_time_column(time)}) BETWEEN ? AND ?"
        sql = f"({days} AND {moments} AND {_is_date(date)} AND {_is_time(time)})"
        return sql, (self.first[:8], self.last[:8], self.first, self.last)


def combined(date: str, time: str) -> Period | None:
    """The keys of a date and its time as one, where that was negotiated (PS3.4 C.5.1.1).

    None unless both are ranges of the same form, each end of one having one of the other; then
    each is matched by itself. Raises InvalidValue as `criterion` does.
    """
    halves = [text.strip("\0 ").partition("-") for text in (date, time)]
    if not all(hyphen for _, hyphen, _ in halves) or "\\" in date + time:
        return None
    (day, _, last_day), (hour, _, last_hour) = halves
    if bool(day.strip(" ")) != bool(hour.strip(" ")) or bool(last_day.strip(" ")) != bool(
        last_hour.strip(" ")
    ):
        return None
    first = _moment("DA", day) + _moment("TM", hour) if day.strip(" ") else ""
    last = _BEHIND_ALL
    if last_day.strip(" "):
        last = _moment("DA", last_day) + _moment("TM", last_hour)
    if first > last or not (first or last_day.strip(" ")):
        raise _unfit("a range that ends before it begins, or has no ends")
    return Period(first, last)
