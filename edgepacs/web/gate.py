"""The gate every request passes: whom it came to, how big it is, who sent it, what they may.

A view says who may call it with `open_to` or `public`; one that says nothing is closed to all.
"""

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TypeVar, cast

from flask import Response, current_app, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from edgepacs.config import Config
from edgepacs.errors import InvalidValue, LimitExceeded, NotAllowed
from edgepacs.model import Role
from edgepacs.store import Store, certificate, users

SMALL_BODY = 64 << 10  # bytes; every form fits
IMPORT_PATH = "/import"
_COOKIE, _COOKIE_TLS = "edgepacs", "__Host-edgepacs"
_FORM_COOKIE = "edgepacs-form"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NEXT = re.compile(r"/((studies|worklist)(/[1-9][0-9]{0,15})?|queue|system)?", re.ASCII)
_View = TypeVar("_View", bound=Callable[..., object])

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent the request. `csrf` is empty for a bearer token, which needs none."""

    name: str
    role: Role
    csrf: str = ""
    one_time: bool = False

    def may(self, role: str) -> bool:
        """Whether they may do what that role may."""
        return self.role.covers(Role(role))


def public(view: _View) -> _View:
    """Let everybody call `view`, logged in or not."""
    view.__dict__["needs"] = None
    return view


def open_to(role: Role) -> Callable[[_View], _View]:
    """Let whoever has at least `role` call the view."""

    def mark(view: _View) -> _View:
        view.__dict__["needs"] = role
        return view

    return mark


def store() -> Store:
    """The store this application serves."""
    return cast("Store", current_app.extensions["edgepacs"])


def caller() -> Caller:
    """Who sent the request; only for views that are not public."""
    found = whoever()
    assert found is not None
    return found


def whoever() -> Caller | None:
    """Who sent the request, if they are known."""
    return cast("Caller | None", g.get("caller"))


def wants_page() -> bool:
    """Whether a person's browser asks, not a script."""
    return "text/html" in request.headers.get("Accept", "")


def admit() -> AnyResponse | None:
    """Let the request in, or answer it here; raises what the error pages answer."""
    _require_our_name(request.headers.get("Host", ""))
    _require_plain_body()
    if request.endpoint == "static":
        return None
    g.caller = known_caller(
        store(), request.headers.get("Authorization", ""), _session_secret(request.cookies)
    )
    if request.endpoint is None:
        return None
    needs = _needs(request.endpoint)
    if needs is None:
        return None
    found = whoever()
    if found is None:
        return _log_in_first()
    if found.one_time and not request.endpoint.startswith("account."):
        return _change_password_first()
    if not found.role.covers(needs):
        raise NotAllowed(f"this needs the role {needs}")
    if request.method not in _SAFE and found.csrf:
        _require_token(found.csrf)
    return None


def _needs(endpoint: str) -> Role | None:
    try:
        return cast("Role | None", current_app.view_functions[endpoint].__dict__["needs"])
    except KeyError:
        raise NotAllowed("this page is open to nobody") from None


def known_caller(from_store: Store, authorization: str, secret: str) -> Caller | None:
    """Who holds a bearer token or a session; a wrong token is not made up for by a session."""
    if authorization:
        scheme, _, token = authorization.partition(" ")
        role = users.role_of_token(from_store.db, token.strip())
        if scheme.lower() != "bearer" or role is None:
            return None
        return Caller(name=f"token ({role})", role=role)
    session = users.session(from_store.db, secret) if secret else None
    if session is None:
        return None
    return Caller(
        name=session.user, role=session.role, csrf=session.csrf, one_time=bool(session.one_time)
    )


def may_upload(from_store: Store, path: str, headers: Mapping[str, str]) -> bool:
    """Whether a body larger than SMALL_BODY is worth receiving (headers in CGI spelling)."""
    if path != IMPORT_PATH:
        return False
    try:
        cookies = {k: v.value for k, v in SimpleCookie(headers.get("COOKIE", "")).items()}
    except CookieError:
        cookies = {}
    secret = cookies.get(_COOKIE_TLS) or cookies.get(_COOKIE, "")
    found = known_caller(from_store, headers.get("AUTHORIZATION", ""), secret)
    return found is not None and found.role.covers(Role.TECHNOLOGIST)


def _session_secret(cookies: Mapping[str, str]) -> str:
    return cookies.get(_COOKIE_TLS if request.is_secure else _COOKIE, "")


def our_names(config: Config) -> frozenset[str]:
    """The names under which this node may be reached, beside every address.

    The machine's own, and those the site certificate was issued for, `*.` for any first label.
    """
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    own = {"localhost", config.web.host.lower(), name, short, f"{short}.local"}
    return certificate.site_names(config.path.parent / "tls") | own


def _require_our_name(host: str) -> None:
    """Refuse names that are not ours: a page elsewhere may have rebound its name to us."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.rstrip(".").lower()
    if {name, "*." + name.partition(".")[2]} & current_app.extensions["edgepacs-names"]:
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise InvalidValue("Host", "not a name of this node") from None


def _require_plain_body() -> None:
    """No body we would have to unpack or spool, and none beyond what the route can take."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise LimitExceeded("request body: a compressed one has no known size; send it as it is")
    if (request.mimetype or "").startswith("multipart/"):
        raise LimitExceeded("request body: multipart is not taken")
    upload = request.path == IMPORT_PATH
    limit = store().config.web.max_upload_mib << 20 if upload else SMALL_BODY
    request.max_content_length = limit
    if (request.content_length or 0) > limit:
        raise LimitExceeded(f"request body: larger than {limit >> 10} KiB")


def _log_in_first() -> AnyResponse:
    if wants_page():
        target = request.path if _NEXT.fullmatch(request.path) else None
        return redirect(url_for("account.login", next=target), 303)
    answer = Response('{"error":"log in first"}\n', 401, mimetype="application/json")
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _change_password_first() -> AnyResponse:
    if wants_page() and request.method in _SAFE:
        return redirect(url_for("account.password"), 303)
    raise NotAllowed("the one-time password must be changed first")


def _require_token(expected: str) -> None:
    given = request.headers.get("X-CSRF-Token") or request.form.get("csrf", "")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise NotAllowed("the form is out of date; load the page again")


def local_target(text: str) -> str:
    """Where to go after the login: one of our pages, never anywhere else."""
    return text if text and _NEXT.fullmatch(text) else "/studies"


def begin_form() -> str:
    """A token for a form somebody not yet logged in will send back; see `end_form`."""
    return request.cookies.get(_FORM_COOKIE) or secrets.token_urlsafe(18)


def keep_form_token(response: AnyResponse, token: str) -> None:
    """Bind the form's token to this browser."""
    _set_cookie(response, _FORM_COOKIE, token)


def end_form() -> None:
    """Raise NotAllowed unless the form came from a page this browser got from us."""
    kept = request.cookies.get(_FORM_COOKIE, "")
    if not kept:
        raise NotAllowed("the form is out of date; load the page again")
    _require_token(kept)


def begin_session(response: AnyResponse, secret: str) -> None:
    """Give the browser its new session; whatever it held before has ended."""
    _end_known_session()
    _set_cookie(response, _COOKIE_TLS if request.is_secure else _COOKIE, secret)


def end_session(response: AnyResponse) -> None:
    """End the session the request came with."""
    _end_known_session()
    response.delete_cookie(_COOKIE_TLS if request.is_secure else _COOKIE, secure=request.is_secure)


def _end_known_session() -> None:
    secret = _session_secret(request.cookies)
    if secret:
        users.log_out(store().db, secret)


def _set_cookie(response: AnyResponse, name: str, value: str) -> None:
    response.set_cookie(name, value, httponly=True, samesite="Strict", secure=request.is_secure)


def protect(response: Response) -> Response:
    """Add the headers every answer carries; nothing but our static files may be kept."""
    response.headers.update(_HEADERS)
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"
    return response
