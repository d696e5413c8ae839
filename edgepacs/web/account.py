"""Logging in and out, and changing one's own password."""

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.errors import EdgePacsError, InvalidValue
from edgepacs.model import Role
from edgepacs.store import users
from edgepacs.web import gate

blueprint = Blueprint("account", __name__)


@blueprint.get("/login")
@gate.public
def login() -> AnyResponse:
    """The login form."""
    found = gate.whoever()
    if found and found.csrf:
        return redirect(gate.local_target(request.args.get("next", "")), 303)
    return _login_form(200, "")


def _login_form(status: int, problem: str) -> Response:
    token = gate.begin_form()
    page = render_template(
        "login.html",
        token=token,
        problem=problem,
        name=request.form.get("name", ""),
        next=gate.local_target(request.values.get("next", "")),
    )
    response = make_response(page, status)
    gate.keep_form_token(response, token)
    return response


@blueprint.post("/login")
@gate.public
def log_in() -> AnyResponse:
    """Begin a session; it always has a new secret."""
    gate.end_form()
    try:
        secret = users.log_in(
            gate.store().db, request.form.get("name", "").strip(), request.form.get("password", "")
        )
    except EdgePacsError as error:
        return _login_form(error.http_status, str(error))
    response = redirect(gate.local_target(request.form.get("next", "")), 303)
    gate.begin_session(response, secret)
    return response


@blueprint.post("/logout")
@gate.open_to(Role.VIEWER)
def logout() -> AnyResponse:
    """End the session."""
    response = redirect(url_for("account.login"), 303)
    gate.end_session(response)
    return response


@blueprint.get("/password")
@gate.open_to(Role.VIEWER)
def password() -> str:
    """The form to change one's own password."""
    return _password_form("")


def _password_form(problem: str) -> str:
    return render_template("password.html", problem=problem, least=users.PASSWORD_MIN)


@blueprint.post("/password")
@gate.open_to(Role.VIEWER)
def change_password() -> AnyResponse:
    """Change one's own password, knowing the present one; every other session ends."""
    me, db = gate.caller(), gate.store().db
    if not me.csrf:
        raise InvalidValue("password", "a token has none")
    old, new = request.form.get("old", ""), request.form.get("new", "")
    try:
        if new != request.form.get("again", ""):
            raise InvalidValue("password", "the two new ones differ")
        if new == old:
            raise InvalidValue("password", "the new one is the old one")
        users.log_in(db, me.name, old)
        with db.write() as tx:
            users.set_password(tx, name=me.name, password=new, one_time=False, actor=me.name)
    except EdgePacsError as error:
        return make_response(_password_form(str(error)), error.http_status)
    response = redirect(url_for("study_list.page"), 303)
    gate.begin_session(response, users.log_in(db, me.name, new))
    return response
