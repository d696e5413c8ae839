"""Callers and destinations."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.clock import iso
from edgepacs.errors import InvalidValue
from edgepacs.model import Service
from edgepacs.store import destinations, peers, terms, usage
from edgepacs.store.destinations import Destination
from edgepacs.store.peers import KnownAE
from edgepacs.store.usage import Forecast

_ae = group("ae", "AE titles that may call.")
_destination = group("destination", "Where instances are sent.")


def _with_allowance(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say what an AE title may take."""
    for name, words in (
        ("--max-object-seconds", f"Time for one object; {peers.AE_OBJECT_SECONDS} unless said."),
        ("--max-object-mib", "Size of one object; 0, unless said, for the node's own limit."),
        ("--max-associations", f"Open at once; {peers.AE_ASSOCIATIONS} unless said."),
    ):
        function = click.option(name, type=int, help=words)(function)
    return function


@command(_ae, "add")
@click.argument("title", metavar="AET")
@click.option("--host", required=True, help="Its address or name; * for any.")
@click.option("--port", required=True, type=int, help="Where it listens.")
@click.option("--allow", default="echo,store", show_default=True, help="Comma between services.")
@_with_allowance
def ae_add(
    session: Session, *, title: str, host: str, port: int, allow: str, **most: int | None
) -> None:
    """Let an AE title call."""
    services = [_service(word) for word in allow.split(",") if word.strip()]
    with session.store() as store, store.db.write() as tx:
        peers.add_ae(tx, title=title, host=host, port=port, services=services, actor=ACTOR)
        if _said(most):
            peers.allow(tx, title, peers.Allowance(**most), actor=ACTOR)
    session.say(
        {"title": title, "services": services, **_said(most)},
        f"{title} may {', '.join(services)}",
    )


@command(_ae, "set")
@click.argument("title", metavar="AET")
@click.option(
    "--sees",
    multiple=True,
    metavar="WHAT",
    help="Of the worklist: station=AET, modality=CT, each again for more; or all.",
)
@click.option(
    "--call",
    "called",
    multiple=True,
    metavar="SETTING=VALUE",
    help="How it is called: tls=1, and authority, certificate or private_key=@PATH.",
)
@_with_allowance
def ae_set(
    session: Session,
    *,
    title: str,
    sees: tuple[str, ...],
    called: tuple[str, ...],
    **most: int | None,
) -> None:
    """Say what an AE title may take, what of the worklist it sees, how it is called from here."""
    if not _said(most) and not sees and not called:
        raise InvalidValue("ae set", f"none of sees, call, {', '.join(most)} was given")
    calling = dict(_setting(one) for one in called)
    with session.store() as store, store.db.write() as tx:
        if _said(most):
            peers.allow(tx, title, peers.Allowance(**most), actor=ACTOR)
        if sees:
            peers.show(tx, title, **_seen(sees), actor=ACTOR)
        if calling:
            peers.call(tx, title, calling, actor=ACTOR)
    lists = {"sees": list(sees), "call": sorted(calling)}
    said: dict[str, Any] = {**_said(most), **{name: one for name, one in lists.items() if one}}
    words = ", ".join(f"{name} {value}" for name, value in said.items())
    session.say({"title": title, **said}, f"{title}: {words}")


def _seen(sees: tuple[str, ...]) -> dict[str, list[str]]:
    """Stations and modalities of `station=...` and `modality=...`, none of either for all."""
    found: dict[str, list[str]] = {"stations": [], "modalities": []}
    kinds = {"station": "stations", "modality": "modalities"}
    for one in sees:
        kind, equals, value = one.partition("=")
        if one == "all" and len(sees) == 1:
            continue
        if not equals or kind not in kinds:
            raise InvalidValue("--sees", f"{one!r} is not station=AET, modality=CODE or all alone")
        found[kinds[kind]].append(value)
    return found


def _said(most: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in most.items() if value is not None}


def _service(word: str) -> Service:
    try:
        return Service(word.strip())
    except ValueError:
        raise InvalidValue("--allow", f"{word!r} is none of {', '.join(Service)}") from None


@command(_ae, "list")
@click.option("--refused", is_flag=True, help="Those who called and were not let in.")
def ae_list(session: Session, *, refused: bool) -> None:
    """List AE titles that may call, or that were refused."""
    with session.store() as store:
        if refused:
            columns = ("calling_ae", "called_ae", "host", "reason", "times", "last_ms")
            session.table(peers.refused(store.db), columns)
        else:
            seen = ("sees_stations", "sees_modalities")
            known = ("title", "host", "port", "services", *peers.Allowance.__slots__, *seen, "tls")
            session.table([_without_secrets(one) for one in peers.known_aes(store.db)], known)


@command(_ae, "remove")
@click.argument("title", metavar="AET")
def ae_remove(session: Session, *, title: str) -> None:
    """No longer let an AE title call."""
    with session.store() as store, store.db.write() as tx:
        peers.remove_ae(tx, title, actor=ACTOR)
    session.say({"removed": title}, f"{title} removed")


@command(_destination, "add")
@click.argument("name")
@click.option("--ae", "title", help="Its AE title.")
@click.option("--host", help="Its address or name.")
@click.option("--port", type=int, help="Where it listens.")
@click.option("--url", help="Its DICOMweb, e.g. https://pacs.example/dicom-web: by STOW-RS then.")
def destination_add(
    session: Session,
    *,
    name: str,
    title: str | None,
    host: str | None,
    port: int | None,
    url: str | None,
) -> None:
    """Add a destination: by C-STORE with --ae, --host and --port, by STOW-RS with --url."""
    by_dimse = (title, host, port)
    if (url is None) == (by_dimse == (None, None, None)):
        raise InvalidValue("destination add", "either --url, or --ae with --host and --port")
    with session.store() as store:
        with store.db.write() as tx:
            if url is not None:
                number = destinations.add_web(tx, name=name, url=url, actor=ACTOR)
            elif title is None or host is None or port is None:
                raise InvalidValue("destination add", "--ae, --host and --port go together")
            else:
                number = destinations.add(
                    tx, name=name, title=title, host=host, port=port, actor=ACTOR
                )
        store.ring("forward")
    session.say({"id": number, "name": name}, f"destination {name} added")


@command(_destination, "list")
def destination_list(session: Session) -> None:
    """List destinations and the state of their lines."""
    with session.store() as store:
        found = [_row(one) for one in destinations.every(store.db)]
    columns = ("name", "transport", "ae_title", "host", "port", "link", "link_ms", "link_note")
    session.table(found, (*columns, "line", "lossy"))


def _row(one: Destination) -> dict[str, Any]:
    """A destination without its secrets, with `line`: what its line may carry, in words."""
    return {**_without_secrets(one), "line": _line_in_words(one)}


def _without_secrets(one: Destination | KnownAE) -> dict[str, Any]:
    """A destination or an AE title by field; of secrets, that they are."""
    shown = dict.fromkeys((*destinations.SECRETS, *destinations.LONG), "set")
    fields = {name: getattr(one, name) for name in one.__slots__}
    return {name: shown.get(name, value) if value else value for name, value in fields.items()}


def _line_in_words(one: Destination) -> str:
    said = {
        f"{one.kbits} kbit/s": one.kbits,
        f"{one.daily_mib} MiB a day": one.daily_mib,
        f"{one.monthly_mib} MiB a month": one.monthly_mib,
        one.hours: one.hours,
        f"priority {one.least_priority} and above": one.least_priority,
    }
    return ", ".join(words for words, value in said.items() if value)


@command(_destination, "show")
@click.argument("name")
@click.option("--most", default=20, show_default=True, help="Days of usage and changes of state.")
def destination_show(session: Session, *, name: str, most: int) -> None:
    """Show one destination: settings, how its line has been, usage, when its queue is empty."""
    with session.store() as store:
        one = destinations.named(store.db, name)
        coming = usage.forecast(store.db, one)
        carried = usage.days(store.db, one.id, most)
        measured = usage.measured(store.db, one.id)
        changes = usage.changes(store.db, one.id, most)
    settings = _row(one)
    if session.as_json:
        parts = {"forecast": coming, "measured": measured, "usage": carried, "changes": changes}
        session.say({**settings, **parts}, "")
        return
    trip = f"{measured.round_trip_ms} ms" if measured.round_trip_ms else ""
    settings |= {"link_ms": iso(one.link_ms), "round_trip": trip, "queue": _in_words(coming)}
    said = [{"setting": name, "value": value} for name, value in settings.items() if value]
    session.table(said, ("setting", "value"))
    session.say(None, "\nCarried")
    session.table(carried, ("day", "bytes"))
    session.say(None, "\nChanges of the line")
    session.table(changes, ("at_ms", "link", "words"))


def _in_words(one: Forecast) -> str:
    said = [f"{one.instances} instances, {one.bytes / usage.MIB:.1f} MiB"]
    if one.rate:
        said.append(f"{one.rate / 125:.0f} kbit/s")
    if one.instances and one.empty_ms is not None:
        said.append(f"empty about {iso(one.empty_ms)}")
    return "; ".join([*said, *([one.words] if one.words else [])])


@command(_destination, "echo")
@click.argument("name")
def destination_echo(session: Session, *, name: str) -> None:
    """C-ECHO a destination from here; exit code 69 when it does not answer."""
    from edgepacs.forward.sender import echo_in_words  # noqa: PLC0415  slow to load, rarely asked

    with session.store() as store:
        succeeded, words = echo_in_words(store, destinations.named(store.db, name))
    session.say({"name": name, "succeeded": succeeded, "result": words}, f"{name}: {words}")
    if not succeeded:
        sys.exit(69)  # as PeerError


@command(_destination, "set")
@click.argument("name")
@click.argument("settings", nargs=-1, required=True, metavar="SETTING=VALUE...")
def destination_set(session: Session, *, name: str, settings: tuple[str, ...]) -> None:
    """Change settings; SETTING=@PATH takes the value from a file, as secrets should be."""
    said = dict(_setting(one) for one in settings)
    with session.store() as store:
        with store.db.write() as tx:
            destinations.change(tx, name, said, actor=ACTOR)
        store.ring("forward")
    session.say({"name": name, "changed": sorted(said)}, f"destination {name} changed")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidValue("setting", f"{text!r} is not SETTING=VALUE")
    if not value.startswith("@"):
        return name, value
    try:
        return name, Path(value[1:]).read_text("utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise InvalidValue(name, "its file cannot be read as text") from error


@command(_destination, "lossy")
@click.argument("name")
@click.argument("quality", type=int)
def destination_lossy(session: Session, *, name: str, quality: int) -> None:
    """Send it lossy images of QUALITY 1 to 100, each an instance of its own; 0 for never."""
    with session.store() as store, store.db.write() as tx:
        terms.set_lossy(tx, name, quality, actor=ACTOR)
    words = f"lossy images of quality {quality}" if quality else "nothing lossy"
    session.say({"name": name, "lossy": quality}, f"{name} is sent {words}")


@command(_destination, "remove")
@click.argument("name")
def destination_remove(session: Session, *, name: str) -> None:
    """Remove a destination with its rules and its queue."""
    with session.store() as store, store.db.write() as tx:
        destinations.remove(tx, name, actor=ACTOR)
    session.say({"removed": name}, f"destination {name} removed")
