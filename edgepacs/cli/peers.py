"""Callers, destinations and rules."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.errors import InvalidValue
from edgepacs.model import Service
from edgepacs.store import destinations, peers, rules, terms

_ae = group("ae", "AE titles that may call.")
_destination = group("destination", "Where instances are sent.")
_rule = group("rule", "Which instances go where.")


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
@_with_allowance
def ae_set(session: Session, *, title: str, **most: int | None) -> None:
    """Say how much an AE title may take; what is not said stays."""
    with session.store() as store, store.db.write() as tx:
        if not _said(most):
            raise InvalidValue("ae set", f"none of {', '.join(most)} was given")
        peers.allow(tx, title, peers.Allowance(**most), actor=ACTOR)
    words = ", ".join(f"{name} {value}" for name, value in _said(most).items())
    session.say({"title": title, **_said(most)}, f"{title}: {words}")


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
            known = ("title", "host", "port", "services", *peers.Allowance.__slots__)
            session.table(peers.known_aes(store.db), known)


@command(_ae, "remove")
@click.argument("title", metavar="AET")
def ae_remove(session: Session, *, title: str) -> None:
    """No longer let an AE title call."""
    with session.store() as store, store.db.write() as tx:
        peers.remove_ae(tx, title, actor=ACTOR)
    session.say({"removed": title}, f"{title} removed")


@command(_destination, "add")
@click.argument("name")
@click.option("--ae", "title", required=True, help="Its AE title.")
@click.option("--host", required=True)
@click.option("--port", required=True, type=int)
def destination_add(session: Session, *, name: str, title: str, host: str, port: int) -> None:
    """Add a destination reached by C-STORE."""
    with session.store() as store:
        with store.db.write() as tx:
            number = destinations.add(tx, name=name, title=title, host=host, port=port, actor=ACTOR)
        store.ring("forward")
    session.say({"id": number, "name": name}, f"destination {name} added")


@command(_destination, "list")
def destination_list(session: Session) -> None:
    """List destinations and the state of their lines."""
    with session.store() as store:
        columns = ("name", "ae_title", "host", "port", "link", "link_ms", "link_note", "lossy")
        session.table(destinations.every(store.db), columns)


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


@command(_rule, "add")
@click.option("--to", required=True, help="A destination's name; * for every one.")
@click.option("--match", default="", help="e.g. 'modality=US,CT and not station=TEST*'.")
@click.option("--hold-until-verified", "hold", is_flag=True)
@click.option("--priority", default=0, show_default=True, help="Higher goes first.")
def rule_add(session: Session, *, to: str, match: str, hold: bool, priority: int) -> None:
    """Send what matches to a destination."""
    with session.store() as store, store.db.write() as tx:
        number = rules.add(tx, to=to, match=match, hold=hold, priority=priority, actor=ACTOR)
    session.say({"id": number}, f"rule {number} added")


@command(_rule, "list")
def rule_list(session: Session) -> None:
    """List the rules; an empty destination is every one, an empty match everything."""
    with session.store() as store:
        columns = ("id", "destination_name", "match", "hold", "priority")
        session.table(rules.all_rules(store.db), columns)


@command(_rule, "remove")
@click.argument("number", type=int)
def rule_remove(session: Session, *, number: int) -> None:
    """Remove a rule; what it queued stays queued."""
    with session.store() as store, store.db.write() as tx:
        rules.remove(tx, number, actor=ACTOR)
    session.say({"removed": number}, f"rule {number} removed")
