"""Routing rules: a small language over the attributes of an instance, and the rows that use it.

    modality=US,SR and not station=TEST*      calling_ae=ECHO1 or description=*cardiac*

A term is FIELD=GLOB[,GLOB...], compared without regard to case; values with spaces stand in
double quotes. `and` binds tighter than `or`; parentheses group. Nothing at all matches all.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction

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
)
Facts = Mapping[str, str]
Matcher = Callable[[Facts], bool]
MAX_LENGTH = 1000  # characters of one rule; it is compiled for every instance
MAX_PARENTHESES = 50
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # outside quotes
_TOKEN = re.compile(r'\s*(?:(\()|(\))|((?:"[^"]*"|[^\s()"])+))')


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One routing rule. `destination` is None for every destination there is."""

    id: int
    destination: int | None
    destination_name: str | None
    match: str
    hold: int
    priority: int


def compile_match(text: str) -> Matcher:
    """`text` as a function of an instance's facts; raises InvalidValue naming what is wrong."""
    if len(text) > MAX_LENGTH:
        raise InvalidValue("rule", f"longer than {MAX_LENGTH} characters")
    tokens = _tokens(text)
    if tokens.count("(") > MAX_PARENTHESES:
        raise InvalidValue("rule", f"more than {MAX_PARENTHESES} parentheses")
    if not tokens:
        return lambda _facts: True
    matcher, rest = _alternatives(tokens)
    if rest:
        raise InvalidValue("rule", f"unexpected {rest[0]!r}")
    return matcher


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidValue("rule", f"a quote is not closed after character {position}")
        found.append(match.group().strip())
        position = match.end()
    return found


def _alternatives(tokens: list[str]) -> tuple[Matcher, list[str]]:
    first, rest = _conjunction(tokens)
    while rest and rest[0].lower() == "or":
        second, rest = _conjunction(rest[1:])
        first = _either(first, second)
    return first, rest


def _conjunction(tokens: list[str]) -> tuple[Matcher, list[str]]:
    first, rest = _factor(tokens)
    while rest and rest[0] != ")" and rest[0].lower() != "or":
        if rest[0].lower() == "and":
            rest = rest[1:]
        second, rest = _factor(rest)
        first = _both(first, second)
    return first, rest


def _factor(tokens: list[str]) -> tuple[Matcher, list[str]]:
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


def _term(token: str) -> Matcher:
    name, equals, value = token.partition("=")
    if not equals or name not in FIELDS:
        raise InvalidValue("rule", f"{token!r} is not FIELD=GLOB with FIELD of {', '.join(FIELDS)}")
    globs = [part.replace('"', "").casefold() for part in _COMMA.split(value)]
    return lambda facts: any(fnmatchcase(facts.get(name, "").casefold(), glob) for glob in globs)


def _both(a: Matcher, b: Matcher) -> Matcher:
    return lambda facts: a(facts) and b(facts)


def _either(a: Matcher, b: Matcher) -> Matcher:
    return lambda facts: a(facts) or b(facts)


_ALL = """SELECT rule.id, destination, destination.name AS destination_name, match, hold, priority
          FROM rule LEFT JOIN destination ON destination.id = rule.destination ORDER BY rule.id"""


def all_rules(db: Database) -> list[Rule]:
    """Every rule, oldest first."""
    with db.read() as tx:
        return within(tx)


def within(tx: Transaction) -> list[Rule]:
    """Every rule, as this transaction sees them."""
    return tx.records(Rule, _ALL)


def add(tx: Transaction, *, to: str, match: str, hold: bool, priority: int, actor: str) -> int:
    """Add a rule to destination `to`, or to every destination for '*'; its number."""
    compile_match(match)
    found = tx.first("SELECT id FROM destination WHERE name = ?", to)
    if found is None and to != "*":
        raise NotFound(f"destination: none is called {to!r}")
    row = {
        "destination": found[0] if found else None,
        "match": match,
        "hold": int(hold),
        "priority": priority,
        "created_ms": wall_ms(),
    }
    number = tx.insert("rule", row)
    audit.record(tx, actor=actor, act="rule added", kind="rule", subject=number, detail=match)
    return number


def remove(tx: Transaction, number: int, *, actor: str) -> None:
    """Remove a rule; deliveries it made stay."""
    if not tx.run("DELETE FROM rule WHERE id = ?", number):
        raise NotFound(f"rule: there is no rule {number}")
    audit.record(tx, actor=actor, act="rule removed", kind="rule", subject=number)
