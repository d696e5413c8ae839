"""The list of studies.

What was searched for never stands in a URL: it is kept here, under a key that means nothing
elsewhere, so that going back and polling find it again.
"""

import secrets
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from flask import (
    Blueprint,
    Response,
    current_app,
    jsonify,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue
from edgepacs.model import Role, StudyState
from edgepacs.store import ledger, steps, studies
from edgepacs.store.steps import Counted, Missing
from edgepacs.store.studies import Search, Study
from edgepacs.web import gate
from edgepacs.web.progress import Way, ways

blueprint = Blueprint("study_list", __name__)
PAGE = 50
_MOST_SCRIPT = 500
_MOST_PAGES = 100_000
_MOST_TEXT = 200
_RECENT_MS = 12 * 60 * 60 * 1000  # for so long a patient may be asked back; gaps are looked for


class Searches:
    """The searches people are looking at, by key; the longest unused are forgotten."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], Search] = OrderedDict()

    def keep(self, who: str, search: Search) -> str:
        """Keep a search for a person; its key."""
        key = secrets.token_urlsafe(9)
        with self._lock:
            self._kept[who, key] = search
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return key

    def find(self, who: str, key: str) -> Search:
        """The search of that key; everything when it is forgotten or somebody else's."""
        with self._lock:
            found = self._kept.get((who, key))
            if found is not None:
                self._kept.move_to_end((who, key))
        return found or Search()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page of the list, ready for a template."""

    search: Search
    key: str
    number: int
    studies: list[Study]
    ways: dict[int, list[Way]]
    missing: dict[int, list[Missing]]
    absent: list[Counted]  # closed procedure steps of which nothing has arrived
    more: bool

    @property
    def narrowed(self) -> bool:
        """Whether anything was searched for."""
        return self.search != Search()


@blueprint.get("/")
@gate.open_to(Role.VIEWER)
def root() -> AnyResponse:
    """The first page is the list of studies."""
    return redirect(url_for("study_list.page"), 303)


@blueprint.get("/studies")
@gate.open_to(Role.VIEWER)
def page() -> str:
    """The list with its search form."""
    return _page(_remembered())


def _page(listing: Listing) -> str:
    store = gate.store()
    return render_template(
        "studies.html",
        listing=listing,
        etag=_etag(listing),
        modalities=studies.modalities_present(store.db),
        states=list(StudyState),
        max_upload=store.config.web.max_upload_mib << 20,
    )


@blueprint.post("/studies")
@gate.open_to(Role.VIEWER)
def search() -> AnyResponse:
    """Search: a script in the page gets the rows, a plain form is sent to the page of them."""
    wanted = _search_from(request.form)
    key = ""
    if wanted != Search():
        key = current_app.extensions["edgepacs-searches"].keep(gate.caller().name, wanted)
    if gate.wants_page():
        return redirect(url_for("study_list.page", s=key or None), 303)
    return _rows(_listing(wanted, key, 1))


@blueprint.get("/studies/rows")
@gate.open_to(Role.VIEWER)
def rows() -> AnyResponse:
    """The rows alone, for polling: 304 while nothing has changed."""
    listing_etag = request.headers.get("If-None-Match", "")
    key, number = _key_and_number()
    if listing_etag and listing_etag == _etag_of(key, number):
        return Response(status=304)
    return _rows(_remembered())


def _rows(listing: Listing) -> Response:
    response = make_response(render_template("_rows.html", listing=listing))
    response.headers["ETag"] = _etag(listing)
    response.headers["X-Search"] = listing.key
    return response


def _etag(listing: Listing) -> str:
    return _etag_of(listing.key, listing.number)


def _etag_of(key: str, number: int) -> str:
    """Changes with the index, and with the day, since today's times are shown without a date."""
    today = datetime.now().astimezone().date()
    return f'"{studies.last_change(gate.store().db)}-{key}-{number}-{today:%j}"'


def _key_and_number() -> tuple[str, int]:
    number = _whole(request.args.get("page", "1"), "page", 1, _MOST_PAGES)
    return request.args.get("s", "")[:32], number


def _remembered() -> Listing:
    key, number = _key_and_number()
    wanted = current_app.extensions["edgepacs-searches"].find(gate.caller().name, key)
    return _listing(wanted, key if wanted != Search() else "", number)


def _listing(wanted: Search, key: str, number: int) -> Listing:
    db = gate.store().db
    asked = replace(wanted, limit=PAGE + 1, offset=(number - 1) * PAGE)
    found = studies.search(db, asked)
    here = found[:PAGE]
    progress = ledger.progress_of_studies(db, [study.id for study in here])
    since_ms = wall_ms() - _RECENT_MS
    return Listing(
        search=wanted,
        key=key,
        number=number,
        studies=here,
        ways={study: ways(rows) for study, rows in progress.items()},
        missing=steps.missing(db, [one.id for one in here], since_ms=since_ms),
        absent=steps.without_study(db, since_ms) if number == 1 else [],
        more=len(found) > PAGE,
    )


def _search_from(values: Any) -> Search:
    """A Search from a form or a JSON object; raises InvalidValue."""
    return Search(
        text=_text(values, "text"),
        modality=_text(values, "modality").upper(),
        state=_state(_text(values, "state")),
        from_date=_date(_text(values, "from"), "from"),
        to_date=_date(_text(values, "to"), "to"),
    )


def _text(values: Any, name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        raise InvalidValue(name, f"must be text of at most {_MOST_TEXT} characters")
    return value.strip()


def _state(text: str) -> StudyState | None:
    if text and text not in list(StudyState):
        raise InvalidValue("state", f"must be one of {', '.join(StudyState)}")
    return StudyState(text) if text else None


def _date(text: str, name: str) -> str:
    """YYYY-MM-DD (a form) or YYYYMMDD (DICOM) as the latter."""
    if not text:
        return ""
    try:
        return f"{datetime.strptime(text.replace('-', ''), '%Y%m%d').date():%Y%m%d}"  # noqa: DTZ007
    except ValueError:
        raise InvalidValue(name, "must be a date, YYYY-MM-DD") from None


def _whole(text: str, name: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text[:12]) <= most:
        raise InvalidValue(name, f"must be a whole number from {least} to {most}")
    return int(text)


@blueprint.get("/studies.json")
@gate.open_to(Role.VIEWER)
def newest_as_json() -> Response:
    """The list for scripts; `limit` and `offset` page through it."""
    return _as_json(Search(), request.args)


@blueprint.post("/studies.json")
@gate.open_to(Role.VIEWER)
def found_as_json() -> Response:
    """The same, narrowed by a JSON object {text, modality, state, from, to, limit, offset}."""
    wanted = request.get_json()
    if not isinstance(wanted, dict):
        raise InvalidValue("search", "must be a JSON object")
    return _as_json(_search_from(wanted), wanted)


def _as_json(wanted: Search, paging: Any) -> Response:
    limit = _whole(str(paging.get("limit", 100)), "limit", 1, _MOST_SCRIPT)
    offset = _whole(str(paging.get("offset", 0)), "offset", 0, _MOST_PAGES * PAGE)
    db = gate.store().db
    found = studies.search(db, replace(wanted, limit=limit, offset=offset))
    progress = ledger.progress_of_studies(db, [study.id for study in found])
    return jsonify(
        studies=[
            {**asdict(study), "deliveries": [asdict(row) for row in progress[study.id]]}
            for study in found
        ]
    )
