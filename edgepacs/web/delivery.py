"""The ledger of a study, delivery by delivery, and every attempt of one of them."""

from flask import Blueprint, render_template, request

from edgepacs.errors import InvalidValue
from edgepacs.model import Role, StudyId
from edgepacs.store import destinations, instances, ledger, studies
from edgepacs.web import acting, gate

blueprint = Blueprint("delivery", __name__)
_ROWS = 100


@blueprint.get("/studies/<row:number>/deliveries")
@gate.open_to(Role.VIEWER)
def of_study(number: StudyId) -> str:
    """Every delivery of a study, a page at a time."""
    db, after = gate.store().db, request.args.get("after", "0")
    if not after.isascii() or not after.isdigit() or len(after) > 16:
        raise InvalidValue("after", "must be a row number")
    found = ledger.of_study(db, number, after=int(after), most=_ROWS)
    return render_template(
        "deliveries.html",
        study=studies.study(db, number),
        ways=ledger.ways_of_study(db, number),
        deliveries=found,
        numbers={one.instance: instances.instance(db, one.instance) for one in found},
        destinations=destinations.every(db),
        more=found[-1].id if len(found) == _ROWS else 0,
        told=acting.told(),
    )


@blueprint.get("/deliveries/<row:number>")
@gate.open_to(Role.VIEWER)
def page(number: int) -> str:
    """One delivery with the history of its attempts, and what was done to it."""
    db = gate.store().db
    found = ledger.delivery(db, number)
    return render_template(
        "delivery.html",
        delivery=found,
        instance=instances.instance(db, found.instance),
        study=studies.study(db, StudyId(found.study)) if found.study else None,
        attempts=ledger.attempts(db, number)[::-1],
        acts=ledger.acts(db, number)[::-1],
    )
