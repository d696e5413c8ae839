"""A study and its order, side by side: what differs, what a technologist decides, its history."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from flask import Blueprint, jsonify, make_response, redirect, render_template, request
from flask import url_for as url
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.custody import amendment
from edgepacs.errors import Conflict, InvalidValue
from edgepacs.model import CorrectionState, EntryId, EntryState, Role, StudyId
from edgepacs.store import audit, corrections, policies, reconciliation, studies, worklist
from edgepacs.store.db import Transaction
from edgepacs.store.worklist import Criteria, Held
from edgepacs.web import gate

blueprint = Blueprint("reconcile", __name__)
_HISTORY = 60  # the latest acts that are shown
_OFFERED = 20  # entries that may be linked
_TEXT_MOST = 200


@blueprint.get("/studies/<row:number>/order")
@gate.open_to(Role.VIEWER)
def page(number: StudyId) -> str:
    """Both sides, with what may be done about them."""
    return _page(number)


@blueprint.post("/studies/<row:number>/order/find")
@gate.open_to(Role.TECHNOLOGIST)
def find(number: StudyId) -> str:
    """The same with the entries that hold the words asked for, to be linked.

    A form that is sent, not an address: the words may be a patient's name.
    """
    return _page(number, text=request.form.get("text", "")[:_TEXT_MOST])


def _page(number: StudyId, *, text: str = "", refusal: str = "") -> str:
    db = gate.store().db
    study = studies.study(db, number)
    made = corrections.of_study(db, number)
    found = reconciliation.of_study(db, number)
    with db.read() as tx:
        held = worklist.entry(tx, found.entry) if found and found.entry else None
        offered = _offered(tx, study, text)
        gone = not corrections.is_any_due(tx, number)
    return render_template(
        "reconcile.html",
        study=study,
        found=found,
        held=held,
        offered=[one for one in offered if not held or one.id != held.id],
        sought=bool(text),
        refusal=refusal,
        gone=gone,
        plans=policies.planned(db, number) if found and found.flags else [],
        corrections=made,
        applied=next((one for one in made if one.state is CorrectionState.DONE), None),
        moved=next(
            (one.result for one in made if one.study == number != one.result and one.result), 0
        ),
        waiting=any(one.state is CorrectionState.WAITING for one in made),
        history=audit.of_subject(db, "study", number)[: -_HISTORY - 1 : -1],
    )


def _offered(tx: Transaction, study: studies.Study, text: str) -> Sequence[Held]:
    """The entries that hold `text`; without it those of the study's day and modality."""
    current = [one for one in EntryState if one not in (EntryState.CANCELLED, EntryState.RETIRED)]
    if text:
        return worklist.entries(tx, Criteria(states=current, text=text, limit=_OFFERED))
    modality = study.modalities if "\\" not in study.modalities else ""
    return worklist.entries(
        tx,
        Criteria(
            states=current,
            modality=modality,
            from_date=study.study_date,
            to_date=study.study_date,
            limit=_OFFERED,
        ),
    )


def _apply(tx: Transaction, study: StudyId, actor: str) -> None:
    corrections.ask(tx, study, actor=actor)


def _link(tx: Transaction, study: StudyId, actor: str) -> None:
    text = request.form.get("entry", "")
    if not text.isascii() or not text.isdecimal() or len(text) > 16:
        raise InvalidValue("entry", "must be the number of an entry of the worklist")
    reconciliation.link(tx, study, EntryId(int(text)), actor=actor)


def _unlink(tx: Transaction, study: StudyId, actor: str) -> None:
    reconciliation.link(tx, study, None, actor=actor)


def _keep(tx: Transaction, study: StudyId, actor: str) -> None:
    reconciliation.keep(tx, study, actor=actor)


def _reopen(tx: Transaction, study: StudyId, actor: str) -> None:
    reconciliation.reopen(tx, study, actor=actor)


_Act = Callable[[Transaction, StudyId, str], None]
_ACTS: Mapping[str, _Act] = {
    "apply": _apply,
    "link": _link,
    "unlink": _unlink,
    "keep": _keep,
    "reopen": _reopen,
}


@blueprint.post("/studies/<row:number>/order")
@gate.open_to(Role.TECHNOLOGIST)
def act(number: StudyId) -> AnyResponse:
    """Apply the order, link another, keep the study as it is, or take one of these back."""
    try:
        _act(number, request.form.get("act", ""))
    except Conflict as error:
        if not gate.wants_page():
            raise
        return make_response(_page(number, refusal=str(error)), error.http_status)
    gate.store().ring("forward")
    if gate.wants_page():
        return redirect(url("reconcile.page", number=number), 303)
    return as_json(number)


def _act(number: StudyId, wanted: str) -> None:
    if wanted == "revert":
        _revert(number)
    elif wanted in _ACTS:
        with gate.store().db.write() as tx:
            _ACTS[wanted](tx, number, gate.caller().name)
    else:
        raise InvalidValue("act", f"must be one of {', '.join((*_ACTS, 'revert'))}")


def _revert(number: StudyId) -> None:
    """Undo the correction that stands; raises Conflict where there is none."""
    store = gate.store()
    for one in corrections.of_study(store.db, number):
        if one.state is CorrectionState.DONE:
            amendment.revert(store, one.id, actor=gate.caller().name)
            return
    raise Conflict("study: no correction stands that could be undone")


@blueprint.get("/studies/<row:number>/order.json")
@gate.open_to(Role.VIEWER)
def as_json(number: StudyId) -> AnyResponse:
    """Both sides, and the corrections there were, for scripts."""
    db = gate.store().db
    studies.study(db, number)
    found = reconciliation.of_study(db, number)
    return jsonify(
        found=asdict(found) if found else None,
        corrections=[asdict(one) for one in corrections.of_study(db, number)],
    )
