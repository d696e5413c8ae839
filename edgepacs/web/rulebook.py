"""Routing rules: adding and removing them, and what one would do to the studies in store."""

from dataclasses import dataclass, field

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.clock import monotonic
from edgepacs.errors import InvalidValue
from edgepacs.model import Role, StudyId
from edgepacs.store import destinations, routing, rules, studies
from edgepacs.store.routing import Trial
from edgepacs.store.studies import Study
from edgepacs.web import gate

blueprint = Blueprint("rulebook", __name__)
_SHOWN = 50  # studies of a dry run; all are counted
_SECONDS = 5.0  # a dry run may take, for it holds a thread of this server
_LONGEST_NUMBER = 8


@dataclass(slots=True)
class Tried:
    """What a dry run found: the first studies, and the sums of all it looked at."""

    shown: list[tuple[Study, Trial]] = field(default_factory=list)
    studies: int = 0
    queued: int = 0
    held: int = 0
    there: int = 0
    byte_size: int = 0
    whole: bool = True  # whether it looked at every study


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A rule as the form says it."""

    to: str
    then: tuple[str, ...]
    match: str
    hold: bool
    priority: int
    send_as: str
    patience_s: int


def _wish() -> Wish:
    return Wish(
        to=_text("to") or "*",
        then=tuple(name for name in map(str.strip, request.form.getlist("then")) if name),
        match=_text("match"),
        hold=_text("hold") == "1",
        priority=_number("priority", 0),
        send_as=_text("send_as"),
        patience_s=60 * _number("patience", rules.PATIENCE_S // 60),
    )


def _text(name: str) -> str:
    return request.form.get(name, "").strip()


def _number(name: str, default: int) -> int:
    text = _text(name) or str(default)
    plain = text.removeprefix("-")
    if not plain.isascii() or not plain.isdecimal() or len(text) > _LONGEST_NUMBER:
        raise InvalidValue(name, "must be a whole number")
    return int(text)


@blueprint.post("/system/rules")
@gate.open_to(Role.ADMIN)
def add() -> AnyResponse:
    """Add a routing rule; it holds from the next instance on."""
    wish, store = _wish(), gate.store()
    with store.db.write() as tx:
        rules.add(
            tx,
            to=(wish.to, *wish.then),
            match=wish.match,
            hold=wish.hold,
            priority=wish.priority,
            actor=gate.caller().name,
            send_as=wish.send_as,
            patience_s=wish.patience_s,
        )
    return redirect(url_for("system.page", _anchor="rules"), 303)


@blueprint.post("/system/rules/remove")
@gate.open_to(Role.ADMIN)
def remove() -> AnyResponse:
    """Remove a routing rule."""
    with gate.store().db.write() as tx:
        rules.remove(tx, _number("rule", 0), actor=gate.caller().name)
    return redirect(url_for("system.page", _anchor="rules"), 303)


@blueprint.post("/system/rules/try")
@gate.open_to(Role.ADMIN)
def try_out() -> str:
    """What a rule would do to the studies in store; nothing is changed."""
    wish = _wish()
    return render_template(
        "rule.html",
        wish=wish,
        tried=_tried(wish),
        destinations=destinations.every(gate.store().db),
        fields=rules.FIELDS,
        patience=rules.PATIENCE_S // 60,
    )


def _tried(wish: Wish) -> Tried:
    db, found = gate.store().db, Tried()
    until = monotonic() + _SECONDS
    after: int | None = 0
    last = 0
    while after is not None:
        if monotonic() > until:
            found.whole = False
            break
        page = routing.dry_run(db, to=wish.to, match=wish.match, hold=wish.hold, after=after)
        after = page.after
        for one in page.trials:
            found.studies += one.study != last
            last = one.study
            found.queued += one.queued
            found.held += one.held
            found.there += one.there
            found.byte_size += one.byte_size
            if len(found.shown) < _SHOWN:
                found.shown.append((studies.study(db, StudyId(one.study)), one))
    return found
