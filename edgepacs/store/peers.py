"""Peers: AE titles that may call, those refused, destinations to send to, associations made."""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgepacs.clock import monotonic, wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import AETitle, Service, ae_title
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction

ANY_HOST = "*"
_REFUSED_KEPT = 1000
_RESOLVED_SECONDS = 300.0  # for so long the addresses of a host name are not asked for again
_RESOLVED_KEPT = 1024
AE_ASSOCIATIONS = 16  # what an AE may take unless said: no ordinary modality ever asks for so much
AE_OBJECT_SECONDS = 3600
_TEXT_MOST = 64 * 1024  # characters of one setting; a chain of certificates is shorter
_CODE = re.compile(r"[A-Z0-9 _]{1,16}")  # PS3.5 6.2, VR CS
_LEAST_AND_MOST: Mapping[str, tuple[int, int]] = {
    "max_associations": (1, 1024),
    "max_object_mib": (0, 1 << 20),
    "max_object_seconds": (1, 86_400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAE:
    """An AE title that may call from `host`, for `services`; `port` is where it listens.

    It may have `max_associations` open at once; one object may take `max_object_seconds` and hold
    `max_object_mib`, 0 standing for the node's own limit, which none may pass. Of the worklist it
    sees what is for one of `sees_stations`, or for none in particular, and of `sees_modalities`:
    backslash between them, '' for all. With `tls` it is called by TLS: `authority`, `certificate`
    and `private_key` are PEM, as those of a destination.
    """

    title: AETitle
    host: str
    port: int
    services: str
    created_ms: int
    max_associations: int
    max_object_mib: int
    max_object_seconds: int
    sees_stations: str = ""
    sees_modalities: str = ""
    tls: int = 0
    authority: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)

    def may(self, service: Service) -> bool:
        """Whether it may use `service`."""
        return service in self.services.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one AE title may take; None leaves that as it is."""

    max_associations: int | None = None
    max_object_mib: int | None = None
    max_object_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedAE:
    """Somebody who called and was not let in."""

    calling_ae: str
    called_ae: str
    host: str
    reason: str
    times: int
    first_ms: int
    last_ms: int


def port_number(port: int) -> int:
    """`port` if it is one a peer can listen on; raises InvalidValue."""
    if not 1 <= port <= 65535:
        raise InvalidValue("port", f"{port} is not between 1 and 65535")
    return port


def host_name(host: str) -> str:
    """`host` if it is an address or could be a name; raises InvalidValue."""
    text = host.strip()
    if not text or len(text) > 253 or any(c.isspace() or not c.isprintable() for c in text):
        raise InvalidValue("host", "not an address or host name")
    try:
        text.encode("idna")  # what the resolver will do to it
    except UnicodeError:
        raise InvalidValue("host", "not an address or host name") from None
    return text


def plain_text(name: str, text: str) -> str:
    """`text` if it may be the setting `name`; raises InvalidValue."""
    if len(text) > _TEXT_MOST or "\0" in text:
        raise InvalidValue(name, f"longer than {_TEXT_MOST} characters, or not text")
    return text


def pem(name: str, text: str) -> str:
    """`text` if it is empty or looks like PEM; raises InvalidValue."""
    if text and "-----BEGIN " not in text:
        raise InvalidValue(name, "not PEM")
    return plain_text(name, text)


def _yes_or_no(name: str, text: str) -> int:
    if text not in ("0", "1"):
        raise InvalidValue(name, "not 0 or 1")
    return int(text)


def add_ae(
    tx: Transaction, *, title: str, host: str, port: int, services: Sequence[Service], actor: str
) -> None:
    """Let an AE title call; replaces what was said of it before, but what it may take."""
    known = ae_title(title)
    tx.run(
        "INSERT INTO ae (title, host, port, services, created_ms, max_associations, "
        "max_object_seconds) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
        "SET host = excluded.host, port = excluded.port, services = excluded.services, "
        "created_ms = excluded.created_ms",
        known,
        host_name(host),
        port_number(port),
        " ".join(services),
        wall_ms(),
        AE_ASSOCIATIONS,
        AE_OBJECT_SECONDS,
    )
    tx.run("DELETE FROM refused WHERE calling_ae = ? AND host = ?", known, host)
    audit.record(tx, actor=actor, act="ae added", kind="ae", subject=None, detail=known)


def allow(tx: Transaction, title: str, allowance: Allowance, *, actor: str) -> None:
    """Say what an AE title may take, from its next association on; raises NotFound."""
    known = ae_title(title)
    values = {name: getattr(allowance, name) for name in Allowance.__slots__}
    said = {name: value for name, value in values.items() if value is not None}
    for name, value in said.items():
        least, most = _LEAST_AND_MOST[name]
        if not least <= value <= most:
            raise InvalidValue(name, f"{value} is not between {least} and {most}")
    if not tx.run(
        "UPDATE ae SET max_associations = COALESCE(?, max_associations), "
        "max_object_mib = COALESCE(?, max_object_mib), "
        "max_object_seconds = COALESCE(?, max_object_seconds) WHERE title = ?",
        *values.values(),
        known,
    ):
        raise NotFound(f"AE title: {known!r} is not known")
    detail = " ".join([known, *(f"{name}={value}" for name, value in said.items())])
    audit.record(tx, actor=actor, act="ae allowance", kind="ae", subject=None, detail=detail)


def show(
    tx: Transaction,
    title: str,
    *,
    stations: Sequence[str],
    modalities: Sequence[str],
    actor: str,
) -> None:
    """Say what of the worklist an AE title sees, none for all; raises NotFound, InvalidValue."""
    known = ae_title(title)
    for name in modalities:
        if not _CODE.fullmatch(name):
            raise InvalidValue("modality", "not 1 to 16 capitals, digits, spaces or underscores")
    named = "\\".join(ae_title(name, "station") for name in stations)
    if not tx.run(
        "UPDATE ae SET sees_stations = ?, sees_modalities = ? WHERE title = ?",
        *(named, "\\".join(modalities), known),
    ):
        raise NotFound(f"AE title: {known!r} is not known")
    seen = [*(f"station={name}" for name in stations), *(f"modality={m}" for m in modalities)]
    detail = " ".join([known, *(seen or ["all"])])
    audit.record(tx, actor=actor, act="ae sees", kind="ae", subject=None, detail=detail)


CALLED: Mapping[str, Callable[[str, str], str | int]] = {
    "tls": _yes_or_no,
    "authority": pem,
    "certificate": pem,
    "private_key": pem,
}
"""What can be said of how an AE title is called, each with the function that checks it."""


def call(tx: Transaction, title: str, settings: Mapping[str, str], *, actor: str) -> None:
    """Say how an AE title is called from here on; raises NotFound, InvalidValue."""
    known = ae_title(title)
    if unknown := settings.keys() - CALLED.keys():
        raise InvalidValue("setting", f"{min(unknown)!r} is none of {', '.join(CALLED)}")
    values = {name: CALLED[name](name, settings[name]) for name in CALLED if name in settings}
    columns = ", ".join(f"{name} = ?" for name in values)
    if not values or not tx.run(
        f"UPDATE ae SET {columns} WHERE title = ?",  # noqa: S608  own names
        *values.values(),
        known,
    ):
        raise NotFound(f"AE title: {known!r} is not known")
    said = [f"{name}={value}" if name == "tls" else name for name, value in values.items()]
    detail = " ".join([known, *said])  # certificates are said to have changed, but not how
    audit.record(tx, actor=actor, act="ae called", kind="ae", subject=None, detail=detail)


def remove_ae(tx: Transaction, title: str, *, actor: str) -> None:
    """No longer let an AE title call; raises NotFound."""
    if not tx.run("DELETE FROM ae WHERE title = ?", title):
        raise NotFound(f"AE title: {title!r} is not known")
    audit.record(tx, actor=actor, act="ae removed", kind="ae", subject=None, detail=title)


def known_aes(db: Database) -> list[KnownAE]:
    """Every AE title that may call."""
    with db.read() as tx:
        return tx.records(KnownAE, "SELECT * FROM ae ORDER BY title")


def known_ae(db: Database, title: AETitle) -> KnownAE | None:
    """What is known of one AE title."""
    with db.read() as tx:
        found = tx.records(KnownAE, "SELECT * FROM ae WHERE title = ?", title)
    return found[0] if found else None


def is_at(host: str, address: str) -> bool:
    """Whether `address` (numeric, of a connection) is `host` (an address, a name or '*')."""
    if host in (ANY_HOST, address):
        return True
    there = _plain(address)
    try:
        return _plain(host) == there
    except ValueError:
        return there in _addresses(host)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_resolved: dict[str, tuple[float, frozenset[_Address]]] = {}


def _addresses(host: str) -> frozenset[_Address]:
    """The addresses of a host name; what they were while the resolver does not answer.

    A caller must not wait, nor be turned away, because the line behind the resolver is down.
    """
    until, known = _resolved.get(host, (0.0, frozenset()))
    if monotonic() < until:
        return known
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        known = frozenset(_plain(str(entry[4][0])) for entry in found)
    except OSError:
        if not known:
            return known
    if len(_resolved) >= _RESOLVED_KEPT:
        _resolved.clear()
    _resolved[host] = (monotonic() + _RESOLVED_SECONDS, known)
    return known


def _plain(address: str) -> _Address:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return mapped or parsed


def note_refused(tx: Transaction, callers: Iterable[RefusedAE]) -> None:
    """Remember who was refused, so that one command can let them in; adds to what is known."""
    for one in callers:
        tx.run(
            "INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET times = times + excluded.times, last_ms = excluded.last_ms",
            one.calling_ae,
            one.called_ae,
            one.host,
            one.reason,
            one.times,
            one.first_ms,
            one.last_ms,
        )
    # A port scan must not grow the index without bound.
    tx.run(
        "DELETE FROM refused WHERE last_ms < (SELECT last_ms FROM refused "
        "ORDER BY last_ms DESC LIMIT 1 OFFSET ?)",
        _REFUSED_KEPT,
    )


def refused(db: Database) -> list[RefusedAE]:
    """Who was refused, the latest first."""
    with db.read() as tx:
        return tx.records(RefusedAE, "SELECT * FROM refused ORDER BY last_ms DESC")
