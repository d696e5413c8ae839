"""The worklist: what is to be done by day, one entry with its history, and entries by hand.

Who is looked for never stands in a URL: filters are days, modalities and states, entries are row
numbers, and names come and go in the bodies of forms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.clock import wall_ms
from edgepacs.custody import entered
from edgepacs.errors import InvalidValue
from edgepacs.model import ENTRY_TRANSITIONS, EntryId, EntryOrigin, EntryState, Role
from edgepacs.store import audit, sources, studies, worklist
from edgepacs.store.doubles import Double, doubles
from edgepacs.store.worklist import ENTRY_FIELDS, PATIENT_FIELDS, Criteria, Entry, Held
from edgepacs.web import gate

blueprint = Blueprint("worklist", __name__)
_PAGE = 50
_MOST_PAGES = 10_000
_OPEN, _ANY = "open", "any"
# What a person may say; that one has begun is the modality's to say.
_BY_HAND = (EntryState.SCHEDULED, EntryState.COMPLETED, EntryState.CANCELLED)
_MODALITIES = ("CR", "CT", "DX", "ES", "IO", "MG", "MR", "NM", "OP", "PT", "PX", "RF", "US", "XA")
_FORM = (  # words, name, and what stands in the empty field
    ("Name", "name", "Family, Given"),
    ("Patient ID", "patient_id", "empty: temporary"),
    ("Issuer of the ID", "issuer", ""),
    ("Born", "birth_date", "YYYY-MM-DD"),
    ("Sex", "sex", "F, M or O"),
    ("Visit number", "admission_id", "empty: made here"),
    ("Accession number", "accession_number", ""),
    ("Modality", "modality", "CT"),
    ("What is to be done", "step_description", ""),
    ("Side", "laterality", "L, R or B"),
    ("Station AE title", "station_ae", "any"),
    ("Day", "start_date", "today"),
    ("Time", "start_time", "now"),
    ("Priority", "procedure_priority", "STAT, HIGH, ROUTINE"),
    ("Referring physician", "referring_physician", "Family, Given"),
    ("Where the patient is", "patient_location", ""),
    ("Allergies", "allergies", ""),
    ("Medical alerts", "alerts", ""),
    ("Comments", "comments", ""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What the page is narrowed to."""

    day: str = ""  # YYYYMMDD, '' for any
    modality: str = ""
    state: str = _OPEN
    number: int = 1

    @classmethod
    def asked(cls) -> "Filter":
        """That of the request's query; raises InvalidValue."""
        day = request.args.get("day", "today")
        state = request.args.get("state", _OPEN)
        modality = request.args.get("modality", "")
        if state not in (_OPEN, _ANY, *EntryState):
            raise InvalidValue("state", f"must be one of {', '.join((_OPEN, _ANY, *EntryState))}")
        return cls(
            day=_day(day),
            modality=entered.entered({"modality": modality}).modality,
            state=state,
            number=_page_number(request.args.get("page", "1")),
        )

    def criteria(self) -> Criteria:
        """The same for the store; one entry more than a page holds."""
        states: Sequence[EntryState] = ()
        if self.state == _OPEN:
            states = worklist.OPEN
        elif self.state != _ANY:
            states = (EntryState(self.state),)
        return Criteria(
            states=states,
            modality=self.modality,
            from_date=self.day,
            to_date=self.day,
            limit=_PAGE + 1,
            offset=(self.number - 1) * _PAGE,
        )

    def query(self, **other: Any) -> dict[str, Any]:
        """The same as a query, with what is to be other."""
        said = {"day": self.day or _ANY, "modality": self.modality, "state": self.state}
        return {name: value for name, value in {**said, **other}.items() if value}


def _day(text: str) -> str:
    if text in ("", _ANY):
        return ""
    if text == "today":
        return _today()
    return entered.entered({"start_date": text}).start_date


def _today(days: int = 0) -> str:
    return f"{date.today() + timedelta(days):%Y%m%d}"  # noqa: DTZ011  of this machine


def _page_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MOST_PAGES:
        raise InvalidValue("page", f"must be a number up to {_MOST_PAGES}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry as it is shown: how old the copy is, and whether it is too old to be trusted."""

    held: Held
    age: str
    stale: bool
    temporary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of the list, ready for a template."""

    filter: Filter
    lines: Sequence[Line]
    more: bool
    stale: Sequence[str]  # sources whose copies are too old


@blueprint.get("/worklist")
@gate.open_to(Role.VIEWER)
def page() -> str:
    """The worklist as a page."""
    return render_template(
        "worklist.html",
        listing=_page(),
        states=list(EntryState),
        modalities=_MODALITIES,
        today=_today(),
        tomorrow=_today(1),
    )


@blueprint.get("/worklist/rows")
@gate.open_to(Role.VIEWER)
def rows() -> AnyResponse:
    """The same without its frame, for polling: 304 while nothing has changed, nor any age."""
    now = datetime.now().astimezone()
    etag = f'"{studies.last_change(gate.store().db)}-{now:%j-%H%M}"'
    if request.headers.get("If-None-Match") == etag:
        return Response(status=304)
    response = make_response(render_template("_worklist.html", listing=_page()))
    response.headers["ETag"] = etag
    return response


def _page() -> Page:
    db, wanted = gate.store().db, Filter.asked()
    with db.read() as tx:
        found = worklist.entries(tx, wanted.criteria())
    known = sources.every(db)
    limits = {one.name: one.stale_s for one in known}
    return Page(
        filter=wanted,
        lines=[_line(held, limits) for held in found[:_PAGE]],
        more=len(found) > _PAGE,
        stale=[one.name for one in known if one.stale],
    )


def _line(held: Held, limits: Mapping[str, int]) -> Line:
    """An entry with its age; only a copy of what others keep has one."""
    seconds = max(0, wall_ms() - held.as_of_ms) // 1000
    copied = held.origin is EntryOrigin.UPSTREAM
    return Line(
        held=held,
        age=_ago(seconds) if copied else "",
        stale=copied and seconds > limits.get(held.source, sources.STALE_SECONDS),
        temporary=worklist.is_temporary(held.entry.patient.patient_id),
    )


def _ago(seconds: int) -> str:
    for length, words in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {words} old"
    return "current"


# --- one entry ---------------------------------------------------------------------------------


@blueprint.get("/worklist/<row:number>")
@gate.open_to(Role.VIEWER)
def entry(number: int) -> str:
    """One entry, and what became of it."""
    db = gate.store().db
    held = _held(number)
    limits = {one.name: one.stale_s for one in sources.every(db)}
    return render_template(
        "entry.html",
        line=_line(held, limits),
        history=audit.of_subject(db, "worklist", number),
        facts=_facts(held.entry),
        may=[state for state in _BY_HAND if state in ENTRY_TRANSITIONS[held.state]],
    )


def _held(number: int) -> Held:
    with gate.store().db.read() as tx:
        return worklist.entry(tx, EntryId(number))


def _facts(one: Entry) -> list[tuple[str, str]]:
    """All that is known of an entry by the words for its fields, in the order of the store."""
    words = {name: said for said, name, _ in _FORM}
    values = [(name, getattr(one.patient, name)) for name in PATIENT_FIELDS]
    values += [(name, getattr(one, name)) for name in ENTRY_FIELDS]
    return [(words.get(name, _in_words(name)), value) for name, value in values if value]


def _in_words(name: str) -> str:
    return name.replace("_", " ").capitalize().replace(" id", " ID").replace(" uid", " UID")


@blueprint.post("/worklist/<row:number>/state")
@gate.open_to(Role.TECHNOLOGIST)
def shift(number: int) -> AnyResponse:
    """Cancel, complete or reopen an entry."""
    state = request.form.get("state", "")
    if state not in _BY_HAND:
        raise InvalidValue("state", f"must be one of {', '.join(_BY_HAND)}")
    why = request.form.get("why", "").strip()[:200]
    with gate.store().db.write() as tx:
        worklist.shift(tx, EntryId(number), EntryState(state), actor=gate.caller().name, why=why)
    return redirect(url_for("worklist.entry", number=number), 303)


# --- by hand -----------------------------------------------------------------------------------


@blueprint.get("/worklist/new")
@gate.open_to(Role.TECHNOLOGIST)
def new() -> str:
    """The form for a walk-in, an emergency or an encounter."""
    return _form({})


@blueprint.post("/worklist/new")
@gate.open_to(Role.TECHNOLOGIST)
def add() -> AnyResponse:
    """Add an entry; who may be known already is shown first, and asked about."""
    said, db = _said(), gate.store().db
    try:
        made = entered.entered(said)
        entered.require_enough(made)
    except InvalidValue as error:
        return make_response(_form(said, problem=str(error)), error.http_status)
    with db.read() as tx:
        found = doubles(tx, made.patient)
    if found and request.form.get("anyway") != "1":
        return make_response(_form(said, found=found), 409)
    number = entered.add(db, made, actor=gate.caller().name)
    return redirect(url_for("worklist.entry", number=number), 303)


@blueprint.get("/worklist/<row:number>/change")
@gate.open_to(Role.TECHNOLOGIST)
def correct(number: int) -> str:
    """The form of an entry that is there."""
    one = _held(number).entry
    values = {name: getattr(one.patient, name, "") or getattr(one, name, "") for name in _NAMES}
    return _form(values, number=number)


@blueprint.post("/worklist/<row:number>/change")
@gate.open_to(Role.TECHNOLOGIST)
def change(number: int) -> AnyResponse:
    """Correct an entry; what the form does not show stays."""
    said = _said()
    try:
        with gate.store().db.write() as tx:
            before = worklist.entry(tx, EntryId(number)).entry
            made = entered.entered(said, before)
            entered.require_enough(made)
            worklist.change(tx, EntryId(number), made, actor=gate.caller().name)
    except InvalidValue as error:
        return make_response(_form(said, number=number, problem=str(error)), error.http_status)
    return redirect(url_for("worklist.entry", number=number), 303)


_NAMES = tuple(name for _, name, _ in _FORM)


def _said() -> dict[str, str]:
    return {name: request.form[name].strip() for name in _NAMES if name in request.form}


def _form(
    values: Mapping[str, str],
    *,
    number: int | None = None,
    problem: str = "",
    found: Sequence[Double] = (),
) -> str:
    return render_template(
        "entry_form.html",
        fields=_FORM,
        values=values,
        number=number,
        problem=problem,
        doubles=found,
    )


@blueprint.post("/worklist/import")
@gate.open_to(Role.TECHNOLOGIST)
def take_in() -> AnyResponse:
    """Take in pasted rows of CSV, all of them or none."""
    text = request.form.get("csv", "")
    entered.take_in(gate.store().db, text.encode(), actor=gate.caller().name)
    return redirect(url_for("worklist.page", day=_ANY), 303)
