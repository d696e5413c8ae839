"""Destinations: where instances are sent, how each is reached, what is known of the line to it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import AETitle, Callback, LinkState, ProofWanted, ae_title
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction
from edgepacs.store.peers import host_name, port_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where instances are sent, and what is known of the line to it.

    `lossy` is the quality of the images it is sent, 1 to 100; 0 for without loss (`terms`). The
    fields after it are the columns of migration 0006, whose comments say what they mean.
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


_DESTINATION = ", ".join(Destination.__slots__)


_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_TEXT_MOST = 64 * 1024  # bytes of one setting; a chain of certificates is shorter


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


def _text(name: str, text: str) -> str:
    if len(text) > _TEXT_MOST or "\0" in text:
        raise InvalidValue(name, f"longer than {_TEXT_MOST} characters, or not text")
    return text


def _pem(name: str, text: str) -> str:
    if text and "-----BEGIN " not in text:
        raise InvalidValue(name, "not PEM")
    return _text(name, text)


def _url(name: str, text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in ("https", "http") or not parts.hostname or parts.query):
        raise InvalidValue(name, "not an address like https://pacs.example/dicom-web")
    return _text(name, text).rstrip("/")


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
    "token": _text,
    "tls": _between(0, 1),
    "authority": _pem,
    "certificate": _pem,
    "private_key": _pem,
    "user_name": _text,
    "passcode": _text,
    "proof": _one_of(*ProofWanted),
    "associations": _between(0, 16),
    "kbits": _between(0, 10_000_000),
    "daily_mib": _between(0, 100_000_000),
    "monthly_mib": _between(0, 100_000_000),
    "hours": _hours,
    "least_priority": _between(-1000, 1000),
}
"""What a person may say of a destination: each setting with the function that checks it."""

SECRETS = ("token", "private_key", "passcode")  # never shown, never in the audit trail


def change(tx: Transaction, name: str, settings: Mapping[str, str], *, actor: str) -> None:
    """Change settings of a destination; raises NotFound, and InvalidValue naming the setting."""
    if unknown := settings.keys() - SETTINGS.keys():
        raise InvalidValue("setting", f"{min(unknown)!r} is none of {', '.join(SETTINGS)}")
    row = tx.first("SELECT id FROM destination WHERE name = ?", name)
    if row is None:
        raise NotFound(f"destination: none is called {name!r}")
    if not settings:
        return
    checked = {setting: SETTINGS[setting](setting, text) for setting, text in settings.items()}
    columns = ", ".join(f"{setting} = ?" for setting in checked)
    tx.run(f"UPDATE destination SET {columns} WHERE id = ?", *checked.values(), row[0])  # noqa: S608
    quiet = (*SECRETS, *_LONG)
    said = ", ".join(one if one in quiet else f"{one}={checked[one]}" for one in checked)
    audit.record(
        tx,
        actor=actor,
        act="destination changed",
        kind="destination",
        subject=row[0],
        detail=said,
    )


_LONG = ("authority", "certificate")  # said to have changed, not how


def add(tx: Transaction, *, name: str, title: str, host: str, port: int, actor: str) -> int:
    """Add a destination reached by DIMSE; its number. Raises Conflict when the name is taken."""
    plain = name.strip()
    if not plain or len(plain) > 64 or not plain.isprintable():
        raise InvalidValue("destination", "its name must be 1 to 64 printable characters")
    if tx.first("SELECT 1 FROM destination WHERE name = ?", plain):
        raise Conflict(f"destination: {plain!r} exists already")
    number = tx.insert(
        "destination",
        {
            "name": plain,
            "transport": "dimse",
            "ae_title": ae_title(title),
            "host": host_name(host),
            "port": port_number(port),
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


def set_link(db: Database, number: int, link: LinkState, note: str) -> None:
    """Record what became known of the line; `link_ms` keeps since when it is so."""
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
            audit.record(
                tx,
                actor="forward",
                act=f"link {link}",
                kind="destination",
                subject=number,
                detail=note,
            )
