"""Routing rules: a small language over the attributes of an instance, and the rows that use it.

    modality=US,SR and not station=TEST*      calling_ae=ECHO1 or description=*cardiac*
    sop_class=CTImageStorage time=22:00-06:00 state=verified      day=sat,sun worklist=none

A term is FIELD=GLOB[,GLOB...], compared without regard to case; values with spaces stand in
double quotes. `and` binds tighter than `or`; parentheses group. Nothing at all matches all.
Day and time are those of arrival, on this machine's clock; `state` and `worklist` are the study's.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from importlib import resources

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import StudyState, WorklistMatch
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction, Value
from edgepacs.store.deliveries import PRIORITIES
from edgepacs.store.hours import Hours

FIELDS = (
    "calling_ae",
    "origin",
    "modality",
    "sop_class",
    "station",
    "body_part",
    "description",
    "series_description",
    "institution",
    "laterality",
    "day",
    "time",
    "state",
    "worklist",
)
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Facts = Mapping[str, str]
MAX_LENGTH = 1000  # characters of one rule
MAX_PARENTHESES = 50
MOST_DESTINATIONS = 8  # of one rule
PATIENCE_S = 15 * 60  # how long a line is down before the next destination is used
LONGEST_PATIENCE_S = 30 * 24 * 3600
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # outside quotes
_TOKEN = re.compile(r'\s*(?:(\()|(\))|((?:"[^"]*"|[^\s()"])+))')
_SPAN = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_SEND_AS = re.compile(r"|lossless|native|lossy:([1-9]\d?|100)")
_Test = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One routing rule. `destination` is None for every destination there is.

    `then` names those that follow it when its line has been down for `patience_s` seconds.
    `send_as` is '' (as the destination's settings say), 'lossless', 'native' or 'lossy:QUALITY'.
    """

    id: int
    destination: int | None
    destination_name: str | None
    then: tuple[str, ...] = field(metadata={"make": lambda text: tuple(json.loads(text))})
    match: str
    hold: int
    priority: int
    send_as: str
    patience_s: int


# --- the language ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matcher:
    """A rule's text, compiled: a test of facts, and the fields it looks at."""

    test: _Test
    fields: frozenset[str]

    def __call__(self, facts: Facts) -> bool:
        """Whether `facts` match; what is absent counts as ''."""
        return self.test(facts)


@lru_cache(maxsize=256)
def compile_match(text: str) -> Matcher:
    """`text` as a test of an instance's facts; raises InvalidValue naming what is wrong."""
    if len(text) > MAX_LENGTH:
        raise InvalidValue("rule", f"longer than {MAX_LENGTH} characters")
    tokens = _tokens(text)
    if tokens.count("(") > MAX_PARENTHESES:
        raise InvalidValue("rule", f"more than {MAX_PARENTHESES} parentheses")
    if not tokens:
        return Matcher(lambda _facts: True, frozenset())
    test, rest = _alternatives(tokens)
    if rest:
        raise InvalidValue("rule", f"unexpected {rest[0]!r}")
    return Matcher(test, frozenset(token.partition("=")[0] for token in tokens if "=" in token))


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidValue("rule", f"a quote is not closed after character {position}")
        found.append(match.group().strip())
        position = match.end()
    return found


def _alternatives(tokens: list[str]) -> tuple[_Test, list[str]]:
    first, rest = _conjunction(tokens)
    while rest and rest[0].lower() == "or":
        second, rest = _conjunction(rest[1:])
        first = _either(first, second)
    return first, rest


def _conjunction(tokens: list[str]) -> tuple[_Test, list[str]]:
    first, rest = _factor(tokens)
    while rest and rest[0] != ")" and rest[0].lower() != "or":
        if rest[0].lower() == "and":
            rest = rest[1:]
        second, rest = _factor(rest)
        first = _both(first, second)
    return first, rest


def _factor(tokens: list[str]) -> tuple[_Test, list[str]]:
    if not tokens:
        raise InvalidValue("rule", "ends where a term FIELD=GLOB was expected")
    head, rest = tokens[0], tokens[1:]
    if head.lower() == "not":
        inner, rest = _factor(rest)
        return (lambda facts: not inner(facts)), rest
    if head == "(":
        inner, rest = _alternatives(rest)
        if not rest or rest[0] != ")":
            raise InvalidValue("rule", "a parenthesis is not closed")
        return inner, rest[1:]
    return _term(head), rest


def _both(a: _Test, b: _Test) -> _Test:
    return lambda facts: a(facts) and b(facts)


def _either(a: _Test, b: _Test) -> _Test:
    return lambda facts: a(facts) or b(facts)


# --- terms -------------------------------------------------------------------------------------


def _term(token: str) -> _Test:
    name, equals, value = token.partition("=")
    if not equals or name not in FIELDS:
        raise InvalidValue("rule", f"{token!r} is not FIELD=GLOB with FIELD of {', '.join(FIELDS)}")
    globs = [part.replace('"', "").casefold() for part in _COMMA.split(value)]
    if name == "time":
        return _time_term(globs)
    if name == "sop_class":
        return _sop_class_term(globs)
    if name in _WORDS:
        _require_words(name, globs)
    return _glob_term(name, globs)


def _glob_term(name: str, globs: Sequence[str]) -> _Test:
    plain = frozenset(glob for glob in globs if not _is_glob(glob))
    patterns = [re.compile(translate(glob)).match for glob in globs if _is_glob(glob)]

    def test(facts: Facts) -> bool:
        value = facts.get(name, "").casefold()
        return value in plain or any(pattern(value) for pattern in patterns)

    return test


def _is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")


_WORDS: Mapping[str, Sequence[str]] = {
    "day": DAYS,
    "state": [str(state) for state in StudyState],
    "worklist": [str(match) for match in WorklistMatch],
}


def _require_words(name: str, globs: Iterable[str]) -> None:
    for glob in globs:
        if not _is_glob(glob) and glob not in _WORDS[name]:
            raise InvalidValue("rule", f"{name}={glob} is none of {', '.join(_WORDS[name])}")


def _time_term(spans: Sequence[str]) -> _Test:
    if not all(_SPAN.fullmatch(span) for span in spans):
        raise InvalidValue("rule", "time is not hours like 22:00-06:00, commas between several")
    minutes = Hours.read(",".join(spans)).spans

    def test(facts: Facts) -> bool:
        hour, _, minute = facts.get("time", "").partition(":")
        if not minute:
            return False
        now = int(hour) * 60 + int(minute)
        return any(first <= now < last for first, last in minutes)

    return test


def _sop_class_term(globs: Sequence[str]) -> _Test:
    """By UID, or by the keyword of PS3.6 table A-1, in which spaces and hyphens do not count."""
    named = [glob for glob in globs if re.search("[a-z]", glob)]
    found: set[str] = set()
    for glob in named:
        pattern = re.compile(translate(re.sub(r"[\s-]", "", glob) if "[" not in glob else glob))
        uids = [uid for uid, keyword in sop_classes().items() if pattern.match(keyword.casefold())]
        if not uids:
            raise InvalidValue("rule", f"sop_class={glob} names no storage SOP class")
        found.update(uids)
    by_uid = _glob_term("sop_class", [glob for glob in globs if glob not in named])
    by_name = frozenset(found)
    return lambda facts: facts.get("sop_class", "") in by_name or by_uid(facts)


@lru_cache(maxsize=1)
def sop_classes() -> Mapping[str, str]:
    """The keywords of the storage SOP classes, by UID (PS3.6 table A-1)."""
    text = (resources.files("edgepacs.store") / "sop_classes.csv").read_text("ascii")
    return dict(csv.reader(text.splitlines()))


# --- the rows ----------------------------------------------------------------------------------

_ALL = """
SELECT rule.id, first.destination, destination.name AS destination_name,
       (SELECT json_group_array(name ORDER BY place) FROM rule_way AS later
        JOIN destination ON destination.id = later.destination
        WHERE later.rule = rule.id AND later.place > first.place) AS "then",
       match, hold, priority, send_as, patience_s
FROM rule LEFT JOIN rule_way AS first ON first.rule = rule.id
  AND place = (SELECT MIN(place) FROM rule_way WHERE rule_way.rule = rule.id)
LEFT JOIN destination ON destination.id = first.destination"""


def all_rules(db: Database) -> list[Rule]:
    """Every rule, oldest first."""
    with db.read() as tx:
        return within(tx)


def within(tx: Transaction) -> list[Rule]:
    """Every rule, as this transaction sees them."""
    return tx.records(Rule, f"{_ALL} ORDER BY rule.id")


def numbered(db: Database, number: int) -> Rule:
    """One rule; raises NotFound."""
    with db.read() as tx:
        missing = f"rule: there is no rule {number}"
        return tx.record(Rule, missing, f"{_ALL} WHERE rule.id = ?", number)


def add(
    tx: Transaction,
    *,
    to: str | Sequence[str],
    match: str,
    hold: bool,
    priority: int,
    actor: str,
    send_as: str = "",
    patience_s: int = PATIENCE_S,
) -> int:
    """Add a rule to destination `to`, to several in failover order, or to every one for '*'.

    Its number. Raises NotFound for a destination, InvalidValue naming what is wrong.
    """
    compile_match(match)
    _require(
        (not _SEND_AS.fullmatch(send_as), "send_as", "not lossless, native or lossy:1 to 100"),
        (priority not in PRIORITIES, "priority", "not between -1000 and 1000"),
        (not 0 <= patience_s <= LONGEST_PATIENCE_S, "patience", "not between 0 and 2592000 s"),
    )
    places = _places(tx, [to] if isinstance(to, str) else to)
    row: dict[str, Value] = {
        "everywhere": int(not places),
        "match": match,
        "hold": int(hold),
        "priority": priority,
        "send_as": send_as,
        "patience_s": patience_s,
        "created_ms": wall_ms(),
    }
    number = tx.insert("rule", row)
    for place, destination in enumerate(places):
        tx.insert("rule_way", {"rule": number, "place": place, "destination": destination})
    audit.record(tx, actor=actor, act="rule added", kind="rule", subject=number, detail=match)
    return number


def _require(*checks: tuple[bool, str, str]) -> None:
    for wrong, name, problem in checks:
        if wrong:
            raise InvalidValue(name, problem)


def _places(tx: Transaction, names: Sequence[str]) -> list[int]:
    """The numbers of destinations, in their order; none for every one."""
    found = [tx.first("SELECT id FROM destination WHERE name = ?", name) for name in names]
    if list(names) == ["*"] and found == [None]:
        return []
    _require(
        (not names, "destination", "none is named"),
        ("*" in names and len(names) > 1, "destination", "* stands for every one; none can follow"),
        (len(names) > MOST_DESTINATIONS, "destination", f"more than {MOST_DESTINATIONS} in order"),
        (len(set(names)) < len(names), "destination", "named twice in one rule"),
    )
    for name, row in zip(names, found, strict=True):
        if row is None:
            raise NotFound(f"destination: none is called {name!r}")
    return [row[0] for row in found if row is not None]


def remove(tx: Transaction, number: int, *, actor: str) -> None:
    """Remove a rule; deliveries it made stay."""
    if not tx.run("DELETE FROM rule WHERE id = ?", number):
        raise NotFound(f"rule: there is no rule {number}")
    audit.record(tx, actor=actor, act="rule removed", kind="rule", subject=number)
