"""The application: its parts put together, every error answered, every request logged by route."""

import hashlib
import traceback
from http import HTTPStatus
from importlib import resources

from flask import Flask, Response, g, jsonify, render_template, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import IntegerConverter

from edgepacs.clock import monotonic
from edgepacs.errors import Busy, EdgePacsError, NoRoom, Tampered
from edgepacs.store import Store, room
from edgepacs.telemetry import log
from edgepacs.web import (
    account,
    delivery,
    gate,
    history,
    imports,
    instance,
    lines,
    outbox,
    reconcile,
    rulebook,
    study,
    study_list,
    system,
    wording,
    worklist,
)

_PARTS = (
    account,
    delivery,
    imports,
    instance,
    lines,
    outbox,
    reconcile,
    rulebook,
    study,
    study_list,
    system,
    worklist,
)
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_YEAR = 31_536_000  # seconds


class _RowNumber(IntegerConverter):
    """A row number in a URL: small enough for the index, without leading zeros."""

    regex = r"[1-9][0-9]{0,15}"


def create_app(store: Store) -> Flask:
    """The web application over an open store."""
    app = Flask("edgepacs.web", static_url_path=f"/static/{_static_version()}")
    app.config.update(SEND_FILE_MAX_AGE_DEFAULT=_YEAR, MAX_FORM_PARTS=64)
    app.jinja_options["trim_blocks"] = True
    app.jinja_options["lstrip_blocks"] = True
    app.extensions["edgepacs"] = store
    app.extensions["edgepacs-names"] = gate.our_names(store.config)
    app.extensions["edgepacs-searches"] = study_list.Searches()
    app.extensions["edgepacs-told"] = {}  # what came of somebody's last act, said once
    app.url_map.converters["row"] = _RowNumber
    wording.install(app)
    history.install(app)
    app.before_request(_begin)
    app.before_request(gate.admit)
    app.after_request(gate.protect)
    app.after_request(_log)
    app.context_processor(_for_every_page)
    app.register_error_handler(Exception, _answer)
    for part in _PARTS:
        app.register_blueprint(part.blueprint)
    return app


def _static_version() -> str:
    """A name that changes with the static files, so that browsers may keep them for good."""
    digest = hashlib.sha256()
    folder = resources.files("edgepacs.web") / "static"
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        digest.update(item.name.encode() + item.read_bytes())
    return digest.hexdigest()[:12]


def _begin() -> None:
    g.began = monotonic()


def _log(response: Response) -> Response:
    """One line a request: never a path, a query or a name."""
    method = request.method if request.method in _KNOWN_METHODS else "?"
    rule = request.url_rule.rule if request.url_rule else "-"
    took = (monotonic() - g.get("began", monotonic())) * 1000
    log.info("%s %s %d %.0f ms", method, rule, response.status_code, took)
    return response


def _for_every_page() -> dict[str, object]:
    theme = request.cookies.get("theme", "")
    return {
        "me": gate.whoever(),  # Jinja keeps the name caller to itself
        "theme": theme if theme in ("light", "dark") else "",
        "node": gate.store().config.node.ae_title,
        "alarm": _alarm(),
    }


def _alarm() -> str:
    """What everybody who is logged in should know about the disk, by the last survey."""
    if not gate.whoever():
        return ""
    store = gate.store()
    try:
        found = room.noted(store.db)
        return room.room(store, found).alarm if found else ""
    except (EdgePacsError, OSError):  # the page says what is wrong, or the page before it did
        return ""


def _answer(error: Exception) -> Response:
    """An error as a page or as JSON; no traceback and nothing of a patient in either."""
    if isinstance(error, EdgePacsError):
        return _problem(error.http_status, _words(error), transient=error.transient)
    if isinstance(error, HTTPException) and error.code:
        if error.code < 400:
            return Response(status=error.code, headers=list(error.get_headers()))
        return _problem(error.code, HTTPStatus(error.code).phrase)
    log.error("%s at %s", type(error).__name__, _where(error))
    return _problem(500, "Something went wrong here. It has been logged.")


def _words(error: EdgePacsError) -> str:
    """What a person is told. Faults of the node itself are not explained to the outside."""
    if isinstance(error, Tampered):
        return "These bytes failed their integrity check and are not shown. Tell an administrator."
    if isinstance(error, Busy):
        return "The node is busy. Try again in a moment."
    if isinstance(error, NoRoom):
        return "The disk is full: nothing more can be taken in."
    if error.http_status >= 500:
        return "The node cannot do this at the moment. Tell an administrator."
    return str(error)


def _where(error: Exception) -> str:
    """File and line of the innermost frame, instead of a message that might quote a data set."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"


def _problem(status: int, words: str, *, transient: bool = False) -> Response:
    if gate.wants_page():
        page = render_template("error.html", status=status, words=words)
        response = Response(page, status)
    else:
        response = jsonify(error=words)
        response.status_code = status
    if transient:
        response.headers["Retry-After"] = "5"
    return response
