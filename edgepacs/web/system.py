"""The node itself, for administrators: room, destinations, callers, rules, users, its health."""

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs import __version__
from edgepacs.errors import EdgePacsError, InvalidValue
from edgepacs.model import Role, Service
from edgepacs.store import destinations, errands, peers, rules, studies, users
from edgepacs.store import room as space
from edgepacs.store.room import Room, Survey
from edgepacs.web import compression, gate

blueprint = Blueprint("system", __name__)
_STANDARD_PORT = 104  # where a caller that was refused is taken to listen (PS3.8 9.1)


@blueprint.get("/healthz")
@gate.public
def healthz() -> tuple[Response, int]:
    """Whether the index can be read."""
    try:
        studies.last_change(gate.store().db)
    except EdgePacsError:
        return jsonify(status="unavailable"), 503
    return jsonify(status="ok"), 200


@blueprint.get("/system")
@gate.open_to(Role.ADMIN)
def page() -> str:
    """Everything at a glance."""
    return _page()


def _page(*, user: str = "", secret: str = "") -> str:
    store = gate.store()
    return render_template(
        "system.html",
        version=__version__,
        config=store.config,
        counts=studies.counts(store.db),
        room=_room(),
        standing=compression.of_all(store.db),
        destinations=destinations.every(store.db),
        aes=peers.known_aes(store.db),
        refused=peers.refused(store.db)[:50],
        rules=rules.all_rules(store.db),
        fields=rules.FIELDS,
        patience=rules.PATIENCE_S // 60,
        users=users.all_users(store.db),
        roles=list(Role),
        services=list(Service),
        new_user=user,
        secret=secret,
    )


def _room() -> Room:
    """The space there is; until upkeep has made its first survey nothing is said of what may go."""
    store = gate.store()
    empty = Survey(measured_ms=0, evictable=0, blocked={}, daily=0)
    return space.room(store, space.noted(store.db) or empty)


def _field(name: str) -> str:
    return request.form.get(name, "").strip()


def _number(name: str) -> int:
    text = _field(name)
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidValue(name, "must be a whole number")
    return int(text)


def _done(section: str) -> AnyResponse:
    return redirect(url_for("system.page", _anchor=section), 303)


@blueprint.post("/system/destinations")
@gate.open_to(Role.ADMIN)
def add_destination() -> AnyResponse:
    """Add a destination reached by DIMSE."""
    store = gate.store()
    with store.db.write() as tx:
        destinations.add(
            tx,
            name=_field("name"),
            title=_field("title"),
            host=_field("host"),
            port=_number("port"),
            actor=gate.caller().name,
        )
    store.ring("forward")
    return _done("destinations")


@blueprint.post("/system/destinations/remove")
@gate.open_to(Role.ADMIN)
def remove_destination() -> AnyResponse:
    """Remove a destination with its rules and its deliveries."""
    store = gate.store()
    with store.db.write() as tx:
        destinations.remove(tx, _field("name"), actor=gate.caller().name)
    store.ring("forward")
    return _done("destinations")


@blueprint.post("/system/destinations/<row:number>/echo")
@gate.open_to(Role.ADMIN)
def echo(number: int) -> tuple[Response, int]:
    """Ask the forwarder to echo a destination; the answer is fetched with `errand`."""
    store = gate.store()
    asked = errands.ask(
        store.db, role="forward", act="echo", subject=number, actor=gate.caller().name
    )
    store.ring("forward")
    return jsonify(errand=asked), 202


@blueprint.get("/system/errands/<row:number>.json")
@gate.open_to(Role.ADMIN)
def errand(number: int) -> Response:
    """How an errand went, or that it has not been done yet."""
    found = errands.numbered(gate.store().db, number)
    return jsonify(
        done=found.done_ms is not None, succeeded=bool(found.succeeded), result=found.result
    )


@blueprint.post("/system/aes")
@gate.open_to(Role.ADMIN)
def add_ae() -> AnyResponse:
    """Let an AE title call; for one that was refused, what it may is echo and store."""
    chosen = request.form.getlist("service") or [Service.ECHO, Service.STORE]
    if any(one not in list(Service) for one in chosen):
        raise InvalidValue("service", f"must be of {', '.join(Service)}")
    with gate.store().db.write() as tx:
        peers.add_ae(
            tx,
            title=_field("title"),
            host=_field("host"),
            port=_number("port") if _field("port") else _STANDARD_PORT,
            services=[Service(one) for one in chosen],
            actor=gate.caller().name,
        )
    return _done("callers")


@blueprint.post("/system/aes/remove")
@gate.open_to(Role.ADMIN)
def remove_ae() -> AnyResponse:
    """No longer let an AE title call."""
    with gate.store().db.write() as tx:
        peers.remove_ae(tx, _field("title"), actor=gate.caller().name)
    return _done("callers")


@blueprint.post("/system/users")
@gate.open_to(Role.ADMIN)
def add_user() -> str:
    """Add a user; the answer shows their one-time password, this once."""
    name, role = _field("name"), _field("role")
    if role not in list(Role):
        raise InvalidValue("role", f"must be one of {', '.join(Role)}")
    secret = users.one_time_password()
    with gate.store().db.write() as tx:
        users.add(
            tx,
            name=name,
            role=Role(role),
            password=secret,
            one_time=True,
            actor=gate.caller().name,
        )
    return _page(user=name, secret=secret)


@blueprint.post("/system/users/reset")
@gate.open_to(Role.ADMIN)
def reset_user() -> str:
    """Give a user a new one-time password; the answer shows it, this once."""
    name, secret = _field("name"), users.one_time_password()
    with gate.store().db.write() as tx:
        users.set_password(tx, name=name, password=secret, one_time=True, actor=gate.caller().name)
    return _page(user=name, secret=secret)


@blueprint.post("/system/users/remove")
@gate.open_to(Role.ADMIN)
def remove_user() -> AnyResponse:
    """Remove a user."""
    with gate.store().db.write() as tx:
        users.remove(tx, _field("name"), actor=gate.caller().name)
    return _done("users")
