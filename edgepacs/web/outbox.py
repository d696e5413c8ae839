"""The queue: what has not arrived yet, by study and destination, and what may be done about it.

No answer grows with the queue: totals come out of an index, studies a page at a time.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.errors import InvalidValue, NotAllowed
from edgepacs.model import DeliveryState, Role, StudyId
from edgepacs.store import destinations, ledger, studies, usage
from edgepacs.store.deliveries import Selection
from edgepacs.store.destinations import Destination
from edgepacs.store.ledger import Total
from edgepacs.store.studies import Study
from edgepacs.store.usage import Forecast
from edgepacs.web import acting, gate
from edgepacs.web.progress import Way, ways

blueprint = Blueprint("outbox", __name__)
_STUDIES = 25  # on a page
_FILTERS = (*ledger.UNFINISHED, DeliveryState.SENT, DeliveryState.AWAITING_COMMITMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What the page is narrowed to: one destination, one state; it begins behind a study."""

    to: int | None = None
    state: DeliveryState | None = None
    after: int = 0

    @classmethod
    def asked(cls) -> "Filter":
        """That of the request's query; raises InvalidValue."""
        state = request.args.get("state", "")
        if state and state not in _FILTERS:
            raise InvalidValue("state", f"must be one of {', '.join(_FILTERS)}")
        return cls(
            to=_whole("to") or None,
            state=DeliveryState(state) if state else None,
            after=_whole("after"),
        )

    def query(self, after: int = 0) -> dict[str, Any]:
        """The same as a query, from study `after` on."""
        said = {"to": self.to or "", "state": self.state or "", "after": after or ""}
        return {name: value for name, value in said.items() if value}


def _whole(name: str) -> int:
    text = request.args.get(name, "") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise InvalidValue(name, "must be a row number")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One destination: what it has yet to get, and when it will have it."""

    destination: Destination
    total: Total
    forecast: Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of the queue, ready for a template."""

    filter: Filter
    lines: list[Line]
    ways: list[tuple[Study, Way]]
    more: int  # the study behind which the next page begins; 0 for none


@blueprint.get("/queue")
@gate.open_to(Role.VIEWER)
def page() -> str:
    """The queue as a page."""
    return render_template("queue.html", queue=_page(), states=_FILTERS, told=acting.told())


@blueprint.get("/queue/rows")
@gate.open_to(Role.VIEWER)
def rows() -> AnyResponse:
    """The same without its frame, for polling: 304 while nothing has changed."""
    today = datetime.now().astimezone().date()
    etag = f'"{studies.last_change(gate.store().db)}-{today:%j}"'
    if request.headers.get("If-None-Match") == etag:
        return Response(status=304)
    response = make_response(render_template("_queue.html", queue=_page()))
    response.headers["ETag"] = etag
    return response


def _page() -> Page:
    db, wanted = gate.store().db, Filter.asked()
    known = {one.id: one for one in destinations.every(db)}
    found = ledger.outbox(
        db, wanted.state, destination=wanted.to, after=wanted.after, studies=_STUDIES
    )
    here = sorted({row.study for row in found})
    subjects = {number: studies.study(db, StudyId(number)) for number in here}
    return Page(
        filter=wanted,
        lines=[
            Line(
                destination=known[total.destination],
                total=total,
                forecast=usage.forecast(db, known[total.destination]),
            )
            for total in ledger.totals(db)
            if total.destination in known
        ],
        ways=[(subjects[way.study], way) for way in ways(found)],
        more=here[-1] if len(here) == _STUDIES else 0,
    )


@blueprint.post("/queue")
@gate.open_to(Role.TECHNOLOGIST)
def act() -> AnyResponse:
    """An act on a study's deliveries, or (administrators) on all that goes to a destination."""
    selection = Selection(
        study=acting.row_number("study"), destination=acting.row_number("destination")
    )
    if selection.study is None and not gate.caller().role.covers(Role.ADMIN):
        raise NotAllowed("only an administrator acts on the whole queue of a destination")
    if selection.study is None and selection.destination is None:
        raise InvalidValue("destination", "say which study or destination")
    acting.carry_out(request.form.get("act", ""), [selection])
    return _back()


@blueprint.post("/queue/chosen")
@gate.open_to(Role.TECHNOLOGIST)
def act_on_chosen() -> AnyResponse:
    """An act on all that is ticked: ways of studies, or single deliveries."""
    acting.carry_out(request.form.get("act", ""), acting.chosen())
    return _back()


def _back() -> AnyResponse:
    """To the page the form was on, as it was narrowed."""
    study = acting.row_number("back")
    if study is not None:
        return redirect(url_for("delivery.of_study", number=study), 303)
    return redirect(url_for("outbox.page", **Filter.asked().query()), 303)
