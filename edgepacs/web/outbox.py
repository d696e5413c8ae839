"""The queue: what has not arrived yet, by study and destination, and what may be done about it."""

from itertools import groupby

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.errors import InvalidValue, NotAllowed
from edgepacs.model import HoldReason, Role, StudyId
from edgepacs.store import deliveries, destinations, ledger, studies
from edgepacs.store.db import Transaction
from edgepacs.store.deliveries import Selection
from edgepacs.store.studies import Study
from edgepacs.web import gate
from edgepacs.web.progress import Way, ways

blueprint = Blueprint("outbox", __name__)
_MOST_STUDIES = 200  # shown a destination; the oldest first
_ACTS = ("hold", "release", "retry", "cancel")


@blueprint.get("/queue")
@gate.open_to(Role.VIEWER)
def page() -> str:
    """The queue as a page."""
    return render_template("queue.html", **_content())


@blueprint.get("/queue/rows")
@gate.open_to(Role.VIEWER)
def rows() -> AnyResponse:
    """The same without its frame, for polling: 304 while nothing has changed."""
    etag = f'"{studies.last_change(gate.store().db)}"'
    if request.headers.get("If-None-Match") == etag:
        return Response(status=304)
    response = make_response(render_template("_queue.html", **_content()))
    response.headers["ETag"] = etag
    return response


def _content() -> dict[str, object]:
    db = gate.store().db
    unfinished = sorted(ways(ledger.outbox(db)), key=lambda way: (way.destination, way.study))
    queues: list[tuple[object, int, list[tuple[Study, Way]]]] = []
    by_number = {one.id: one for one in destinations.every(db)}
    for number, group in groupby(unfinished, key=lambda way: way.destination):
        mine = list(group)
        shown = [(studies.study(db, StudyId(way.study)), way) for way in mine[:_MOST_STUDIES]]
        queues.append((by_number.get(number), len(mine), shown))
    return {"queues": queues, "destinations": list(by_number.values())}


@blueprint.post("/queue")
@gate.open_to(Role.TECHNOLOGIST)
def act() -> AnyResponse:
    """Hold, release, retry or cancel: a study's deliveries, or (administrators) a destination's."""
    wanted = request.form.get("act", "")
    if wanted not in _ACTS:
        raise InvalidValue("act", f"must be one of {', '.join(_ACTS)}")
    selection = Selection(study=_row("study"), destination=_row("destination"))
    me = gate.caller()
    if selection.study is None and not me.role.covers(Role.ADMIN):
        raise NotAllowed("only an administrator acts on the whole queue of a destination")
    if selection.study is None and selection.destination is None:
        raise InvalidValue("destination", "say which study or destination")
    store = gate.store()
    with store.db.write() as tx:
        _do(tx, wanted, selection, me)
    store.ring("forward")
    return redirect(url_for("outbox.page"), 303)


def _do(tx: Transaction, wanted: str, selection: Selection, me: gate.Caller) -> None:
    if wanted == "hold":
        deliveries.hold(tx, selection, actor=me.name)
    elif wanted == "release":
        # What a held or rejected study stops is let go with the study, and only there.
        reasons = [HoldReason.PERSON]
        if me.role.covers(Role.ADMIN):
            reasons.append(HoldReason.UNVERIFIED)
        deliveries.release(tx, selection, actor=me.name, reasons=reasons)
    elif wanted == "retry":
        deliveries.retry(tx, selection, actor=me.name)
    else:
        deliveries.cancel(tx, selection, actor=me.name)


def _row(name: str) -> int | None:
    text = request.form.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise InvalidValue(name, "must be a row number")
    return int(text)
