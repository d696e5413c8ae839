"""One instance: its pictures, its attributes and its file."""

import math
from dataclasses import asdict
from itertools import chain, islice

from flask import Blueprint, Response, jsonify, render_template, request
from werkzeug.datastructures import MultiDict

from edgepacs.custody import outgoing, readout
from edgepacs.errors import InvalidValue
from edgepacs.model import InstanceId, Role, uid
from edgepacs.store import instances, ledger
from edgepacs.store.instances import Instance
from edgepacs.web import compression, gate
from edgepacs.web.wording import visible

blueprint = Blueprint("instance", __name__)
_EDGES = (16, 16384)  # pixels
_MOST_LEVEL = 1e12


def _instance(number: InstanceId) -> Instance:
    return instances.instance(gate.store().db, number)


@blueprint.get("/instances/<row:number>/frames/<int(max=2147483647):frame>")
@gate.open_to(Role.VIEWER)
def frame(number: InstanceId, frame: int) -> Response:
    """One frame, counted from 0, as JPEG: `wc` and `ww` are the window, `edge` the longest edge.

    It is never kept by the browser's disk cache; the viewer holds what it needs in memory.
    """
    picture = readout.picture(
        gate.store(),
        _instance(number),
        frame,
        window=_window(request.args),
        max_edge=_edge(request.args.get("edge")),
    )
    return Response(picture, mimetype="image/jpeg")


def _window(values: MultiDict[str, str]) -> tuple[float, float] | None:
    if "wc" not in values and "ww" not in values:
        return None
    try:
        centre, width = float(values["wc"]), float(values["ww"])
    except (KeyError, ValueError):
        raise InvalidValue("window", "wc and ww must both be numbers") from None
    if not (math.isfinite(centre) and abs(centre) <= _MOST_LEVEL and 0 < width <= _MOST_LEVEL):
        raise InvalidValue("window", "centre finite and width above 0, neither beyond 1e12")
    return centre, width


def _edge(text: str | None) -> int | None:
    if text is None:
        return None
    least, most = _EDGES
    if not text.isascii() or not text.isdigit() or not least <= int(text[:6]) <= most:
        raise InvalidValue("edge", f"must be a whole number from {least} to {most}")
    return int(text)


@blueprint.get("/instances/<row:number>/display.json")
@gate.open_to(Role.VIEWER)
def display(number: InstanceId) -> Response:
    """What a viewer must know of an instance before it asks for frames."""
    found = asdict(readout.display(gate.store(), _instance(number)))
    found["windows"] = [[visible(name), centre, width] for name, centre, width in found["windows"]]
    return jsonify(found)


@blueprint.get("/instances/<row:number>/attributes")
@gate.open_to(Role.VIEWER)
def attributes(number: InstanceId) -> str:
    """Its attributes as a table, and where it went."""
    store, one = gate.store(), _instance(number)
    return render_template(
        "_attributes.html",
        instance=one,
        lines=readout.attribute_lines(store, one),
        deliveries=ledger.of_instance(store.db, number),
        standing=compression.of_instance(store.db, number),
    )


@blueprint.get("/instances/<row:number>/file")
@gate.open_to(Role.TECHNOLOGIST)
def file(number: InstanceId) -> Response:
    """The instance as a DICOM file (PS3.10). Bytes that fail their check end it early, unfinished.

    It comes as it was received, or in the best of the transfer syntaxes `transfer-syntax` names.
    The head and the first bytes are read before the answer begins, so that an object that does
    not open is answered as an error.
    """
    accepted = [uid(one, "transfer-syntax") for one in request.args.getlist("transfer-syntax")]
    content = outgoing.part10(gate.store(), _instance(number), accepted)
    begun = list(islice(content, 2))
    response = Response(chain(begun, content), mimetype="application/dicom")
    response.headers["Content-Disposition"] = f'attachment; filename="instance-{number}.dcm"'
    return response
