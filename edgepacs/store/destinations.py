"""Destinations: where instances are sent, how each is reached, what is known of the line to it."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import (
    AETitle,
    Callback,
    CorrectionPolicy,
    LinkState,
    PriorsBy,
    ProofWanted,
    Service,
    ae_title,
)
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction
from edgepacs.store.peers import (
    AE_ASSOCIATIONS,
    KnownAE,
    host_name,
    is_at,
    pem,
    plain_text,
    port_number,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where instances are sent, and what is known of the line to it.

    `lossy` is the quality of the images it is sent, 1 to 100; 0 for without loss (`terms`). The
    fields after it are the columns of migrations 0006, 0009, 0013, 0018, 0020, whose comments say
    what they mean.
    """

    id: int
    name: str
    transport: str
    ae_title: AETitle
    host: str
    port: int
    link: LinkState = field(metadata={"make": LinkState})
    link_ms: int
    link_note: str
    lossy: int
    url: str
    token: str = field(repr=False)
    tls: int
    authority: str = field(repr=False)
    certificate: str = field(repr=False)
    private_key: str = field(repr=False)
    user_name: str
    passcode: str = field(repr=False)
    proof: ProofWanted = field(metadata={"make": ProofWanted})
    callback: Callback = field(metadata={"make": Callback})
    associations: int
    kbits: int
    daily_mib: int
    monthly_mib: int
    hours: str
    least_priority: int
    stat_mib: int
    priors: PriorsBy = field(metadata={"make": PriorsBy})
    priors_most: int
    priors_mib: int
    priors_years: int
    mpps: int
    notify: int
    correction: CorrectionPolicy = field(metadata={"make": CorrectionPolicy})
    adt: str


_DESTINATION = ", ".join(Destination.__slots__)


_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_REPORT_SECONDS = 600  # what one report of a destination may take


def _between(least: int, most: int) -> Callable[[str, str], int]:
    def check(name: str, text: str) -> int:
        if not re.fullmatch(r"-?\d{1,9}", text) or not least <= int(text) <= most:
            raise InvalidValue(name, f"not a whole number between {least} and {most}")
        return int(text)

    return check


def _one_of(*words: str) -> Callable[[str, str], str]:
    def check(name: str, text: str) -> str:
        if text not in words:
            raise InvalidValue(name, f"not one of {', '.join(words)}")
        return text

    return check


def _url(name: str, text: str) -> str:
    """An address of DICOMweb; plain HTTP stays within this machine, since it hides nothing."""
    if not text:
        return ""
    like = "not an address like https://pacs.example/dicom-web"
    try:
        parts = urlsplit(text)
        host, port = host_name(parts.hostname or ""), parts.port
    except (ValueError, InvalidValue):
        raise InvalidValue(name, like) from None
    if parts.scheme not in ("https", "http") or parts.query or parts.fragment or port == 0:
        raise InvalidValue(name, like)
    if parts.username is not None:
        raise InvalidValue(name, "credentials belong in token, or user_name and passcode")
    if parts.scheme == "http" and not _within_this_machine(host):
        raise InvalidValue(name, "plain HTTP would show patient data on the line: use https")
    return plain_text(name, text).rstrip("/")


def _adt(name: str, text: str) -> str:
    """Where HL7 ADT messages go; plain MLLP stays within this machine, since it hides nothing."""
    if not text:
        return ""
    like = "not an address like mllps://pacs.example:2575"
    try:
        parts = urlsplit(text)
        host, port = host_name(parts.hostname or ""), parts.port
    except (ValueError, InvalidValue):
        raise InvalidValue(name, like) from None
    if parts.scheme not in ("mllps", "mllp") or not port or text.count("/") > 2 or parts.username:
        raise InvalidValue(name, like)
    if parts.scheme == "mllp" and not _within_this_machine(host):
        raise InvalidValue(name, "plain MLLP would show patient data on the line: use mllps")
    return plain_text(name, text)


def _within_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _place(url: str) -> dict[str, str | int]:
    """Host and port of an address, as columns."""
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return {"host": parts.hostname or "", "port": port}


def _hours(name: str, text: str) -> str:
    spans = [span.strip() for span in text.split(",") if span.strip()]
    if not all(_HOURS.fullmatch(span) for span in spans):
        raise InvalidValue(name, "not hours like 22:00-06:00, several of them with commas between")
    return ",".join(spans)


SETTINGS: Mapping[str, Callable[[str, str], str | int]] = {
    "transport": _one_of("dimse", "stow"),
    "ae_title": lambda name, text: ae_title(text, name),
    "host": lambda _name, text: host_name(text),
    "port": lambda name, text: port_number(int(_between(1, 65535)(name, text))),
    "url": _url,
    "token": plain_text,
    "tls": _between(0, 1),
    "authority": pem,
    "certificate": pem,
    "private_key": pem,
    "user_name": plain_text,
    "passcode": plain_text,
    "proof": _one_of(*ProofWanted),
    "associations": _between(0, 16),
    "kbits": _between(0, 10_000_000),
    "daily_mib": _between(0, 100_000_000),
    "monthly_mib": _between(0, 100_000_000),
    "hours": _hours,
    "least_priority": _between(-1000, 1000),
    "stat_mib": _between(0, 100_000_000),
    "priors": _one_of(*PriorsBy),
    "priors_most": _between(1, 100),
    "priors_mib": _between(1, 1_000_000),
    "priors_years": _between(1, 150),
    "mpps": _between(0, 1),
    "notify": _between(0, 1),
    "correction": _one_of(*CorrectionPolicy),
    "adt": _adt,
}
"""What a person may say of a destination: each setting with the function that checks it."""

SECRETS = ("token", "private_key", "passcode")  # never shown, never in the audit trail


def change(tx: Transaction, name: str, settings: Mapping[str, str], *, actor: str) -> None:
    """Change settings of a destination; raises NotFound, and InvalidValue naming the setting."""
    if unknown := settings.keys() - SETTINGS.keys():
        raise InvalidValue("setting", f"{min(unknown)!r} is none of {', '.join(SETTINGS)}")
    row = tx.first("SELECT id, transport FROM destination WHERE name = ?", name)
    if row is None:
        raise NotFound(f"destination: none is called {name!r}")
    if not settings:
        return
    checked = {setting: SETTINGS[setting](setting, text) for setting, text in settings.items()}
    _check_policy(tx, row[0], checked)
    if checked.get("priors", "none") != "none":
        _begin_with_priors(tx)
    if checked.get("notify"):
        _begin_with_notifications(tx, row[0])
    values = dict(checked)
    if checked.get("url") and checked.get("transport", row[1]) == "stow":
        values |= _place(str(checked["url"]))
    columns = ", ".join(f"{setting} = ?" for setting in values)
    tx.run(f"UPDATE destination SET {columns} WHERE id = ?", *values.values(), row[0])  # noqa: S608
    quiet = (*SECRETS, *LONG)
    said = ", ".join(one if one in quiet else f"{one}={checked[one]}" for one in checked)
    audit.record(
        tx,
        actor=actor,
        act="destination changed",
        kind="destination",
        subject=row[0],
        detail=said,
    )


def _check_policy(tx: Transaction, number: int, checked: Mapping[str, str | int]) -> None:
    sql = "SELECT correction, adt FROM destination WHERE id = ?"
    policy, adt = tx.first(sql, number) or ("", "")
    if checked.get("correction", policy) == CorrectionPolicy.ADT and not checked.get("adt", adt):
        raise InvalidValue("adt", "correction=adt needs the address that takes HL7 ADT messages")


def _begin_with_priors(tx: Transaction) -> None:
    """The first destination to give priors gives them to the patients that come from now on."""
    tx.run(
        "UPDATE prefetch_mark SET considered = (SELECT COALESCE(MAX(id), 0) FROM study) "
        "WHERE NOT EXISTS (SELECT 1 FROM destination WHERE priors != 'none')"
    )


def _begin_with_notifications(tx: Transaction, number: int) -> None:
    """It is told of the studies that come from now on."""
    tx.run(
        "UPDATE destination SET notify_mark = (SELECT COALESCE(MAX(id), 0) FROM study) "
        "WHERE id = ? AND notify = 0",
        number,
    )


_CHANGES_KEPT = 200  # of the state of one line
LONG = ("authority", "certificate")  # said to be there, or to have changed, but not how


def add(tx: Transaction, *, name: str, title: str, host: str, port: int, actor: str) -> int:
    """Add a destination reached by DIMSE; its number. Raises Conflict when the name is taken."""
    reached: dict[str, str | int] = {
        "transport": "dimse",
        "ae_title": ae_title(title),
        "host": host_name(host),
        "port": port_number(port),
    }
    return _add(tx, name, reached, actor)


def add_web(tx: Transaction, *, name: str, url: str, actor: str) -> int:
    """Add a destination reached by DICOMweb at `url`; its number.

    Raises Conflict when the name is taken, and InvalidValue.
    """
    address = _url("url", url)
    if not address:
        raise InvalidValue("url", "not an address like https://pacs.example/dicom-web")
    reached = {"transport": "stow", "ae_title": "", "url": address, **_place(address)}
    return _add(tx, name, reached, actor)


def _add(tx: Transaction, name: str, reached: Mapping[str, str | int], actor: str) -> int:
    plain = name.strip()
    if not plain or len(plain) > 64 or not plain.isprintable():
        raise InvalidValue("destination", "its name must be 1 to 64 printable characters")
    if tx.first("SELECT 1 FROM destination WHERE name = ?", plain):
        raise Conflict(f"destination: {plain!r} exists already")
    number = tx.insert(
        "destination",
        {
            "name": plain,
            **reached,
            "link": LinkState.UNKNOWN,
            "link_ms": wall_ms(),
            "created_ms": wall_ms(),
        },
    )
    audit.record(
        tx, actor=actor, act="destination added", kind="destination", subject=number, detail=plain
    )
    return number


def remove(tx: Transaction, name: str, *, actor: str) -> None:
    """Remove a destination with its rules and deliveries; raises NotFound."""
    found = tx.first("SELECT id FROM destination WHERE name = ?", name)
    if found is None:
        raise NotFound(f"destination: none is called {name!r}")
    tx.run("DELETE FROM destination WHERE id = ?", found[0])
    audit.record(
        tx,
        actor=actor,
        act="destination removed",
        kind="destination",
        subject=found[0],
        detail=name,
    )


def every(db: Database) -> list[Destination]:
    """Every destination, by name."""
    with db.read() as tx:
        return tx.records(Destination, f"SELECT {_DESTINATION} FROM destination ORDER BY name")  # noqa: S608


def named(db: Database, name: str) -> Destination:
    """The destination of that name; raises NotFound."""
    sql = f"SELECT {_DESTINATION} FROM destination WHERE name = ?"  # noqa: S608
    with db.read() as tx:
        return tx.record(Destination, f"destination: none is called {name!r}", sql, name)


def move_link_time(db: Database, number: int, by_ms: int) -> None:
    """Move since when the line is as it is: the clock was set, `by_ms` ahead."""
    with db.write() as tx:
        tx.run("UPDATE destination SET link_ms = link_ms + ? WHERE id = ?", by_ms, number)


def caller(db: Database, title: AETitle, host: str) -> KnownAE | None:
    """A destination that calls from its own host, as one that may bring reports; None for others.

    PS3.4 J.3.3: storage commitment reports may come on an association of the destination's own.
    """
    with db.read() as tx:
        rows = tx.rows(
            "SELECT host, port FROM destination WHERE ae_title = ? AND transport = 'dimse'", title
        )
    for its_host, port in rows:
        if is_at(its_host, host):
            return KnownAE(
                title=title,
                host=its_host,
                port=port,
                services=f"{Service.ECHO} {Service.COMMITMENT}",
                created_ms=0,
                max_associations=AE_ASSOCIATIONS,
                max_object_mib=0,
                max_object_seconds=_REPORT_SECONDS,
            )
    return None


def set_link(db: Database, number: int, link: LinkState, note: str) -> None:
    """Record what became known of the line; `link_ms` keeps since when it is so.

    Lines come and go without anybody acting, so that is history of the line, within bounds, and
    nothing for the audit trail.
    """
    with db.write() as tx:
        changed = tx.run(
            "UPDATE destination SET link_ms = CASE link WHEN ?1 THEN link_ms ELSE ?2 END, "
            "link = ?1, link_note = ?3 WHERE id = ?4 AND (link != ?1 OR link_note != ?3)",
            link,
            wall_ms(),
            note,
            number,
        )
        if changed:
            tx.run(
                "INSERT INTO line_change (destination, at_ms, link, words) VALUES (?, ?, ?, ?)",
                *(number, wall_ms(), link, note),
            )
            tx.run(
                "DELETE FROM line_change WHERE destination = ?1 AND id <= (SELECT id FROM "
                "line_change WHERE destination = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                *(number, _CHANGES_KEPT),
            )
