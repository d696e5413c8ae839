"""One study: its page, what technologists do with it, and the same for scripts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, redirect, render_template, request
from flask import url_for as url
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.errors import Gone, InvalidValue
from edgepacs.model import InstanceId, InstanceState, Role, SeriesId, StudyId, StudyState
from edgepacs.store import (
    audit,
    deliveries,
    destinations,
    disposal,
    fingerprint,
    instances,
    ledger,
    rejections,
    steps,
    studies,
)
from edgepacs.store.audit import AuditRecord
from edgepacs.store.destinations import Destination
from edgepacs.store.instances import Instance
from edgepacs.store.ledger import StudyWay
from edgepacs.store.rejections import Rejection
from edgepacs.store.steps import Counted, Missing
from edgepacs.store.studies import Series, Study
from edgepacs.web import compression, gate
from edgepacs.web.compression import Standing
from edgepacs.web.progress import Way, ways

blueprint = Blueprint("study", __name__)
_HISTORY = 60  # the latest acts that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Content that arrived under a known UID, and what stands for that UID now."""

    new: Instance
    stored: Instance | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One series in the strip: the instance its thumbnail shows, if one has pictures."""

    series: Series
    instances: list[Instance]

    @property
    def poster(self) -> Instance | None:
        """The one in the middle of those with pictures."""
        pictured = [one for one in self.instances if one.frames]
        return pictured[len(pictured) // 2] if pictured else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What stands beside the viewer and changes by itself."""

    study: Study
    ways: list[Way]
    times: dict[int, StudyWay]  # by destination
    destinations: list[Destination]
    versions: list[Version]
    comparing: int
    rejections: list[Rejection]
    missing: list[Missing]
    steps: list[Counted]
    history: Sequence[AuditRecord]
    series: dict[SeriesId, Series]
    standing: list[Standing]
    whole: Standing


def _panel(number: StudyId) -> Panel:
    db = gate.store().db
    study = studies.study(db, number)
    progress = ledger.progress_of_studies(db, [number])[number]
    waiting = instances.waiting(db, InstanceState.QUARANTINED, number)
    standing = compression.of_study(db, number)
    return Panel(
        study=study,
        ways=ways(progress),
        times={one.destination: one for one in ledger.ways_of_study(db, number)},
        destinations=destinations.every(db),
        versions=[
            Version(new=one, stored=instances.stored_version(db, one.sop_instance_uid))
            for one in waiting
        ],
        comparing=len(instances.waiting(db, InstanceState.COMPARING, number)),
        rejections=rejections.of_study(db, number) if rejections.FLAG in study.flags else [],
        missing=steps.missing(db, [number]).get(number, []),
        steps=steps.of_study(db, study.study_instance_uid),
        history=audit.of_subject(db, "study", number)[: -_HISTORY - 1 : -1],
        series={one.id: one for one in studies.series_of(db, number)},
        standing=standing,
        whole=compression.whole(standing),
    )


def _cards(number: StudyId) -> list[Card]:
    db = gate.store().db
    return [
        Card(series=series, instances=instances.of_series(db, series.id))
        for series in studies.series_of(db, number)
    ]


@blueprint.get("/studies/<row:number>")
@gate.open_to(Role.VIEWER)
def page(number: StudyId) -> str:
    """The study with its viewer."""
    panel = _panel(number)
    return render_template("study.html", panel=panel, study=panel.study, cards=_cards(number))


@blueprint.get("/studies/<row:number>/panel")
@gate.open_to(Role.VIEWER)
def panel(number: StudyId) -> AnyResponse:
    """What stands beside the viewer, for polling: 304 while nothing has changed."""
    today = datetime.now().astimezone().date()
    etag = f'"{studies.last_change(gate.store().db)}-{today:%j}"'
    if request.headers.get("If-None-Match") == etag:
        return Response(status=304)
    response = make_response(render_template("_panel.html", panel=_panel(number)))
    response.headers["ETag"] = etag
    return response


@blueprint.get("/studies/<row:number>/strip")
@gate.open_to(Role.VIEWER)
def strip(number: StudyId) -> str:
    """The series with their thumbnails, for when something has arrived."""
    return render_template("_strip.html", cards=_cards(number))


@blueprint.get("/studies/<row:number>.json")
@gate.open_to(Role.VIEWER)
def as_json(number: StudyId) -> Response:
    """The study with its series, instances, deliveries and history, for scripts and the viewer."""
    panel = _panel(number)
    standing = compression.for_scripts(gate.store().db, number)
    return jsonify(
        **asdict(panel.study),
        series=[
            {
                **asdict(card.series),
                "instances": [
                    {**_instance_json(one), "compression": standing.get(one.id)}
                    for one in card.instances
                ],
            }
            for card in _cards(number)
        ],
        quarantined=[_instance_json(version.new) for version in panel.versions],
        deliveries=[
            asdict(row) for row in ledger.progress_of_studies(gate.store().db, [number])[number]
        ],
        rejections=[{**asdict(one), "words": one.words} for one in panel.rejections],
        missing=[{**asdict(one), "words": one.words} for one in panel.missing],
        steps=[asdict(one) for one in panel.steps],
        history=[asdict(one) for one in panel.history],
    )


def _instance_json(one: Instance) -> dict[str, Any]:
    row = asdict(one)
    del row["object_id"]  # names a file of ours and nothing else
    row["received_digest"] = fingerprint.words(one.received_digest)
    row["native_digest"] = one.native_digest and fingerprint.words(one.native_digest)
    return row


def _back(number: StudyId) -> AnyResponse:
    """To the study after an act; scripts get the study as it now is."""
    if gate.wants_page():
        return redirect(url("study.page", number=number), 303)
    return as_json(number)


@blueprint.post("/studies/<row:number>/state")
@gate.open_to(Role.TECHNOLOGIST)
def set_state(number: StudyId) -> AnyResponse:
    """Verify, hold, release or reject."""
    wanted = request.form.get("state", "")
    if wanted not in list(StudyState):
        raise InvalidValue("state", f"must be one of {', '.join(StudyState)}")
    store = gate.store()
    with store.db.write() as tx:
        if studies.within(tx, number).state != wanted:  # a second press of the same button
            studies.set_state(tx, number, StudyState(wanted), actor=gate.caller().name)
    store.ring("forward")
    return _back(number)


@blueprint.post("/studies/<row:number>/send")
@gate.open_to(Role.TECHNOLOGIST)
def send(number: StudyId) -> AnyResponse:
    """Send the whole study at once to the destinations chosen."""
    store = gate.store()
    known = {str(one.id): one.id for one in destinations.every(store.db)}
    chosen = request.form.getlist("destination")
    if not chosen or any(one not in known for one in chosen):
        raise InvalidValue("destination", "choose at least one of those there are")
    with store.db.write() as tx:
        here = studies.within(tx, number)
        if here.evicted_count and not here.instance_count:
            raise Gone("study: evicted; nothing of it is left here to be sent")
        deliveries.send_study(tx, number, [known[one] for one in chosen], actor=gate.caller().name)
    store.ring("forward")
    return _back(number)


@blueprint.post("/instances/<row:number>/accept")
@gate.open_to(Role.TECHNOLOGIST)
def accept(number: InstanceId) -> AnyResponse:
    """Let content that arrived under a known UID stand for it from now on."""
    store = gate.store()
    study = instances.instance(store.db, number).study
    instances.accept_version(store.db, number, actor=gate.caller().name)
    store.ring("forward")
    return _back(study)


@blueprint.post("/instances/<row:number>/discard")
@gate.open_to(Role.TECHNOLOGIST)
def discard(number: InstanceId) -> AnyResponse:
    """Give such content up; its bytes are deleted."""
    store = gate.store()
    study = instances.instance(store.db, number).study
    disposal.discard(store, number, actor=gate.caller().name)
    return _back(study)


@blueprint.post("/instances/<row:number>/withdraw")
@gate.open_to(Role.TECHNOLOGIST)
def withdraw(number: InstanceId) -> AnyResponse:
    """Say that a rejection note does not count."""
    store = gate.store()
    study = instances.instance(store.db, number).study
    with store.db.write() as tx:
        rejections.withdraw(tx, number, actor=gate.caller().name)
    return _back(study)
