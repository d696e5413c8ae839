"""Routing: which deliveries an instance gets by the rules, inside the commit of the instance.

The rules are compiled once for each state they are in, which a stamp in the index names: another
process that changes them changes the stamp, and the next commit sees it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from edgepacs.clock import iso, wall_ms
from edgepacs.errors import NotFound
from edgepacs.model import (
    KEY_OBJECTS,
    Arrival,
    Attributes,
    HoldReason,
    InstanceId,
    LinkState,
    Origin,
    StudyId,
    StudyState,
    WorklistMatch,
)
from edgepacs.store import deliveries, rules
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import Wanted

_MOVED_AT_ONCE = 500  # deliveries in one transaction, while every other writer waits
_MOVED_A_CALL = 5_000  # deliveries; about a second, the next call goes on
_STOPPED = (StudyState.HELD, StudyState.REJECTED)


@dataclass(frozen=True, slots=True)
class _Route:
    """One rule, compiled, with what it wants of each of its destinations, by state of the study."""

    matches: rules.Matcher
    wants: Mapping[StudyState, tuple[Wanted, ...]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """All rules, compiled, with the AE titles of all destinations by number."""

    routes: tuple[_Route, ...]
    titles: Mapping[int, str]
    clock: bool  # whether a rule asks for day or time

    def wanted(self, facts: rules.Facts) -> list[Wanted]:
        """What the rules want for an instance; never back to where it came from.

        Of a study that differs from its order all is held until a person has decided. A
        rejection note made here goes only where what it names has gone.
        """
        if facts["origin"] == Origin.LOCAL and facts["sop_class"] == KEY_OBJECTS:
            return []
        found = self._wanted(facts)
        if facts["worklist"] != WorklistMatch.MISMATCHED:
            return found
        return [one if one.reason else replace(one, reason=HoldReason.ORDER) for one in found]

    def _wanted(self, facts: rules.Facts) -> list[Wanted]:
        found: dict[int, Wanted] = {}
        state, source = StudyState(facts["state"]), facts["calling_ae"]
        for route in self.routes:
            if route.matches(facts):
                for one in route.wants[state]:
                    place = one.destination
                    if self.titles[place] != source:
                        found[place] = _both(found[place], one) if place in found else one
        return list(found.values())


def _wanted(rule: rules.Rule, ways: Sequence[int], place: int, state: StudyState) -> Wanted:
    reason = HoldReason.STUDY if state in _STOPPED else None
    # Asked first: the release of a stopped study does not release what waits for verification.
    if rule.hold and state is not StudyState.VERIFIED:
        reason = HoldReason.UNVERIFIED
    return Wanted(
        destination=place,
        priority=rule.priority,
        reason=reason,
        send_as=rule.send_as,
        failover=rule.id if len(ways) > 1 else None,
    )


def _both(one: Wanted, other: Wanted) -> Wanted:
    """What two rules want of one delivery: the higher priority, either hold, else the first."""
    held = HoldReason.UNVERIFIED in (one.reason, other.reason)
    return Wanted(
        destination=one.destination,
        priority=max(one.priority, other.priority),
        reason=HoldReason.UNVERIFIED if held else one.reason,
        send_as=one.send_as or other.send_as,
        failover=one.failover or other.failover,
    )


_PLANS: dict[int, _Plan] = {}  # by stamp; a stamp names the same rules wherever it is met
_MOST_PLANS = 8


def _plan(tx: Transaction, stamp: int) -> _Plan:
    plan = _PLANS.get(stamp)
    if plan is None:
        plan = _compiled(tx)
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        _PLANS[stamp] = plan
    return plan


def _compiled(tx: Transaction) -> _Plan:
    titles = dict(tx.rows("SELECT id, ae_title FROM destination"))
    ways: dict[int, list[int]] = {}
    for rule, destination in tx.rows("SELECT rule, destination FROM rule_way ORDER BY rule, place"):
        ways.setdefault(rule, []).append(destination)
    routes = tuple(_route(rule, ways.get(rule.id, ()), titles) for rule in rules.within(tx))
    clock = any({"day", "time"} & route.matches.fields for route in routes)
    return _Plan(routes, titles, clock)


def _route(rule: rules.Rule, ways: Sequence[int], titles: Mapping[int, str]) -> _Route:
    wants = {
        state: tuple(_wanted(rule, ways, place, state) for place in ways[:1] or titles)
        for state in StudyState
    }
    return _Route(rules.compile_match(rule.match), wants)


# --- in the commit -----------------------------------------------------------------------------

_STANDING = "SELECT stamp, state, worklist FROM routing, study WHERE study.id = ?"


def due(
    tx: Transaction,
    instance: InstanceId,
    study: StudyId,
    arrival: Arrival,
    attributes: Attributes,
    received_ms: int,
) -> bool:
    """Make the deliveries the routing rules want for a new instance; whether there are any."""
    if not arrival.origin.routed:
        return False
    row = tx.first(_STANDING, study)
    if row is None:
        raise NotFound(f"study: there is no study {study}")
    plan = _plan(tx, row[0])
    if not plan.routes or not plan.titles:
        return False
    facts = {
        "calling_ae": arrival.source,
        "origin": arrival.origin,
        "modality": attributes.modality,
        "sop_class": attributes.sop_class_uid,
        "station": attributes.station_name,
        "body_part": attributes.body_part,
        "description": attributes.study_description,
        "series_description": attributes.series_description,
        "institution": attributes.institution,
        "laterality": attributes.laterality,
        "state": row[1],
        "worklist": row[2],
    }
    if plan.clock:
        facts.update(_arrived(received_ms))
    wanted = plan.wanted(facts)
    for one in wanted:
        deliveries.add(tx, instance, study, one)
    return bool(wanted)


def _arrived(received_ms: int) -> dict[str, str]:
    """Day and time of arrival by this machine's clock, as rules ask for them."""
    return _at_minute(received_ms // 60_000)


@lru_cache(maxsize=4)
def _at_minute(minute: int) -> dict[str, str]:
    local = time.localtime(minute * 60)
    return {
        "day": rules.DAYS[local.tm_wday],
        "time": f"{local.tm_hour:02}:{local.tm_min:02}",
    }


# --- afterwards --------------------------------------------------------------------------------

_FACTS = (
    "instance.source, instance.origin, series.modality, instance.sop_class_uid, "
    "series.station_name, series.body_part, study.description, series.description, "
    "study.institution, series.laterality, study.state, study.worklist"
)
_NAMES = tuple(name for name in rules.FIELDS if name not in ("day", "time"))
_STORED = (
    "FROM study CROSS JOIN series ON series.study = study.id "
    "CROSS JOIN instance ON instance.series = series.id "
)


_NOT_REJECTED = (
    "NOT EXISTS (SELECT 1 FROM rejected "
    "WHERE rejected.sop_instance_uid = instance.sop_instance_uid)"
)


def due_again(tx: Transaction, instance: InstanceId) -> None:
    """The same for an instance that is in the index already, e.g. a version just accepted."""
    study = tx.first("SELECT study FROM instance WHERE id = ?", instance)
    if study is None:
        raise NotFound(f"instance: there is no instance {instance}")
    _apply(tx, StudyId(study[0]), "AND instance.id = ?2", instance)


def study_changed(tx: Transaction, study: StudyId, field: str) -> None:
    """Apply the rules to all stored instances of a study, if any rule looks at `field` of it.

    What the rules want now is made; nothing they wanted before is undone. What a rejection note
    names goes nowhere else by itself.
    """
    row = tx.first(_STANDING, study)
    if row and any(field in route.matches.fields for route in _plan(tx, row[0]).routes):
        _apply(tx, study, f"AND instance.state = 'stored' AND {_NOT_REJECTED} ORDER BY instance.id")


def _apply(tx: Transaction, study: StudyId, where: str, *values: int) -> None:
    plan = _plan(tx, tx.number("SELECT stamp FROM routing"))
    sql = (
        f"SELECT instance.id, instance.received_ms, {_FACTS} {_STORED} WHERE study.id = ?1 {where}"
    )
    for number, received_ms, *values_of in tx.rows(sql, study, *values):
        facts = _facts(values_of, received_ms)
        if Origin(facts["origin"]).routed:
            for one in plan.wanted(facts):
                deliveries.add(tx, InstanceId(number), study, one)


def _facts(values: Sequence[Any], received_ms: int) -> dict[str, str]:
    return dict(zip(_NAMES, values, strict=True)) | _arrived(received_ms)


# --- a dry run ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a rule would do with one study at one destination, in instances.

    `there` have a delivery to it already, in whatever state; the others would be `queued`, or
    `held` until the study is verified or let go. `byte_size` is that of both together, as stored.
    """

    study: int
    destination: int
    destination_name: str
    queued: int
    held: int
    there: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class TrialPage:
    """Some studies of a dry run; `after` continues it, None where it has ended."""

    trials: list[Trial]
    after: int | None


_TRIED = f"""
SELECT {_FACTS}, {{minute}} AS minute, COUNT(*), COUNT(delivery.id),
       SUM(iif(delivery.id IS NULL, instance.byte_length, 0))
{_STORED} LEFT JOIN delivery ON delivery.kind = 'instance' AND delivery.subject = instance.id
  AND delivery.destination = ?2
WHERE study.id = ?1 AND instance.state = 'stored'
GROUP BY {", ".join(str(place) for place in range(1, len(_NAMES) + 2))}"""


def dry_run(
    db: Database, *, to: str, match: str, hold: bool, after: int = 0, studies: int = 200
) -> TrialPage:
    """What a rule would do to the next `studies` studies in store after number `after`.

    Only those it would do something with are told. `to` is the first destination of the rule,
    '*' for every one. Raises NotFound, InvalidValue naming what is wrong with the rule.
    """
    matches = rules.compile_match(match)
    found: list[Trial] = []
    with db.read() as tx:
        places = tx.rows(
            "SELECT id, name, ae_title FROM destination WHERE ?1 = '*' OR name = ?1", to
        )
        if not places and to != "*":
            raise NotFound(f"destination: none is called {to!r}")
        numbers = tx.rows("SELECT id FROM study WHERE id > ? ORDER BY id LIMIT ?", after, studies)
        for (study,) in numbers:
            for number, name, title in places:
                groups = _matching(tx, matches, study, number, title)
                if groups:
                    found.append(_trial(study, number, name, groups, hold=hold))
    return TrialPage(found, numbers[-1][0] if len(numbers) == studies else None)


@dataclass(frozen=True, slots=True)
class _Group:
    """Instances of a study that no rule can tell apart, and how many have a delivery already."""

    state: StudyState
    each: int
    there: int
    byte_size: int  # of those that have none


def _matching(
    tx: Transaction, matches: rules.Matcher, study: int, destination: int, title: str
) -> list[_Group]:
    clock = "instance.received_ms / 60000" if {"day", "time"} & matches.fields else "0"
    found = []
    for *values, minute, each, there, size in tx.rows(
        _TRIED.format(minute=clock), study, destination
    ):
        facts = _facts(values, minute * 60_000)
        routed = Origin(facts["origin"]).routed and facts["calling_ae"] != title
        if routed and matches(facts):
            found.append(_Group(StudyState(facts["state"]), each, there, size))
    return found


def _trial(
    study: int, destination: int, name: str, groups: Sequence[_Group], *, hold: bool
) -> Trial:
    state = groups[0].state
    new = sum(group.each - group.there for group in groups)
    held = state in _STOPPED or (hold and state is not StudyState.VERIFIED)
    return Trial(
        study=study,
        destination=destination,
        destination_name=name,
        queued=0 if held else new,
        held=new if held else 0,
        there=sum(group.there for group in groups),
        byte_size=sum(group.byte_size for group in groups),
    )


# --- failover ----------------------------------------------------------------------------------

_ORDERS = """
SELECT rule.id, patience_s, destination.id, name, link, link_ms
FROM rule JOIN rule_way ON rule_way.rule = rule.id
JOIN destination ON destination.id = rule_way.destination
WHERE (SELECT COUNT(*) FROM rule_way WHERE rule_way.rule = rule.id) > 1
ORDER BY rule.id, place"""


@dataclass(frozen=True, slots=True)
class _Place:
    """One destination in the order of one rule, and its line."""

    rule: int
    patience_s: int
    destination: int
    name: str
    link: LinkState
    link_ms: int

    def given_up(self, now: int) -> bool:
        """Whether its line has been down for longer than the rule waits."""
        return self.link is LinkState.DOWN and now - self.link_ms > self.patience_s * 1000


def fail_over(db: Database) -> int:
    """Move what is queued for lines that are down too long to the next in each rule's order.

    The next is the first after it, or else from the start, whose line is up or not known; one
    that is down too waits with it. What is being sent or has left never moves, and what has moved
    stays there when the first line returns: only what is queued anew goes to it again. Returns
    how many deliveries moved; there may be more to move while it is not 0.
    """
    with db.read() as tx:
        places = [_place(row) for row in tx.rows(_ORDERS)]
    now = wall_ms()
    if any(one.link is LinkState.DOWN and one.link_ms > now for one in places):
        _begin_anew(db, now)
        return 0
    moved = 0
    for order in _orders(places):
        for place, one in enumerate(order):
            if one.given_up(now):
                others = [*order[place + 1 :], *order[:place]]
                takes = (o for o in others if o.link in (LinkState.UP, LinkState.UNKNOWN))
                other = next(takes, None)
                moved += 0 if other is None else _move_all(db, one, other)
    return moved


def _place(row: tuple[Any, ...]) -> _Place:
    rule, patience_s, destination, name, link, link_ms = row
    return _Place(rule, patience_s, destination, name, LinkState(link), link_ms)


def _orders(places: Sequence[_Place]) -> list[list[_Place]]:
    found: dict[int, list[_Place]] = {}
    for one in places:
        found.setdefault(one.rule, []).append(one)
    return list(found.values())


def _begin_anew(db: Database, now: int) -> None:
    """The clock was set back: since when a line is down is not known, so it counts from now."""
    with db.write() as tx:
        tx.run("UPDATE destination SET link_ms = ?1 WHERE link = 'down' AND link_ms > ?1", now)


_WAITING = """
SELECT id FROM delivery WHERE state = 'queued' AND failover = ? AND failover IS NOT NULL
  AND destination = ? AND id > ? ORDER BY id LIMIT ?"""


def _move_all(db: Database, one: _Place, other: _Place) -> int:
    words = f"moved to {other.name}: the line to {one.name} is down since {iso(one.link_ms)}"
    moved, after = 0, 0
    while moved < _MOVED_A_CALL:
        with db.read() as tx:
            waiting = tx.rows(_WAITING, one.rule, one.destination, after, _MOVED_AT_ONCE)
        if not waiting:
            break
        numbers = [row[0] for row in waiting]
        after = numbers[-1]
        with db.write() as tx:
            moved += deliveries.move(
                tx,
                numbers,
                other.destination,
                over=deliveries.OF_ITSELF,
                words=words,
                actor="forward",
            )
    return moved
