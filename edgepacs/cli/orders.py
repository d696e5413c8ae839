"""Where orders come from: HL7 messages, and worklists upstream."""

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.custody import text
from edgepacs.model import MessageState, TwinState
from edgepacs.orders.mapping import load
from edgepacs.orders.reception import Reception
from edgepacs.store import messages, sources, twins

_hl7 = group("hl7", "HL7 messages that came.")
_source = group("worklist-source", "Worklists that are asked on a schedule: the central RIS.")


@command(_hl7, "list")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in MessageState]),
    help="Only this state.",
)
@click.option("--entry", type=int, help="Only those that changed this entry of the worklist.")
@click.option("--limit", default=200, show_default=True, help="Messages, the newest first.")
def hl7_list(session: Session, *, state: str | None, entry: int | None, limit: int) -> None:
    """List messages, what they were answered and why."""
    with session.store() as store:
        wanted = MessageState(state) if state else None
        found = messages.listed(store.db, state=wanted, entry=entry, most=limit)
    columns = ("id", "received_ms", "sender", "control_id", "kind", "state", "code", "repeats")
    session.table(found, (*columns, "place", "words"))


@command(_hl7, "show")
@click.argument("message", type=int)
def hl7_show(session: Session, *, message: int) -> None:
    """Show MESSAGE as it came, and the entries of the worklist it changed."""
    with session.store() as store:
        kept = messages.numbered(store.db, message)
        raw = messages.raw(store.db, message)
        entries = messages.entries_of(store.db, message)
    shown = raw.decode("utf-8", "backslashreplace")
    lines = [_printable(line) for line in shown.split("\r")]
    told = f"{kept.kind} of {kept.host}: {kept.state} {kept.code} {kept.place} {kept.words}"
    numbers = ", ".join(map(str, entries)) or "none"
    data = {
        **{name: getattr(kept, name) for name in messages.Kept.__slots__},
        "entries": entries,
        "message": shown,
    }
    session.say(data, "\n".join([_printable(told), f"entries: {numbers}", "", *lines]))


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


@command(_hl7, "replay")
@click.argument("message", type=int)
def hl7_replay(session: Session, *, message: int) -> None:
    """Apply MESSAGE again that was refused, e.g. when the mapping has been set right."""
    with session.store() as store:
        reception = Reception(store, load(store.config.hl7_mapping))
        with store.db.write() as tx:
            messages.replay(tx, message, actor=ACTOR)
        reception.apply_waiting()
        kept = messages.numbered(store.db, message)
    words = f"{message} {kept.state}: {kept.words}"
    session.say({"id": message, "state": kept.state, "words": kept.words}, words)


@command(_source, "add")
@click.argument("name")
@click.option("--ae", "title", required=True, help="Its AE title.")
@click.option("--host", required=True, help="Its address or name.")
@click.option("--port", required=True, type=int, help="Where it listens.")
@click.option("--tls", is_flag=True, help="By TLS, with a certificate this machine trusts.")
@click.option("--interval", default=sources.INTERVAL_SECONDS, show_default=True, help="Seconds.")
@click.option("--stale", default=sources.STALE_SECONDS, show_default=True, help="Seconds.")
@click.option("--days", default=sources.DAYS, show_default=True, help="So far ahead.")
@click.option("--modality", default="", help="Only these, with a comma between.")
@click.option("--character-set", default="", help="Of answers that name none, as ISO_IR 144.")
def source_add(  # noqa: PLR0913  what there is to say of one
    session: Session,
    *,
    name: str,
    title: str,
    host: str,
    port: int,
    tls: bool,
    interval: int,
    stale: int,
    days: int,
    modality: str,
    character_set: str,
) -> None:
    """Ask a worklist every --interval; its copy is called stale when it is older than --stale."""
    words = "\\".join(word.strip().upper() for word in modality.split(",") if word.strip())
    schedule = sources.Schedule(
        interval=interval,
        stale=stale,
        days=days,
        modality=words,
        character_set=text.checked(character_set),
    )
    with session.store() as store:
        with store.db.write() as tx:
            sources.add(
                tx,
                name=name,
                title=title,
                host=host,
                port=port,
                tls=int(tls),
                schedule=schedule,
                actor=ACTOR,
            )
        store.ring("orders")
    session.say({"name": name}, f"worklist of {name} is asked every {interval} s")


@command(_source, "list")
def source_list(session: Session) -> None:
    """List worklists upstream, how old their copies are and what came of the last attempt."""
    with session.store() as store:
        found = [
            {**{name: getattr(one, name) for name in sources.Source.__slots__}, "stale": one.stale}
            for one in sources.every(store.db)
        ]
    columns = ("name", "ae_title", "host", "port", "interval_s", "as_of_ms", "stale", "entries")
    session.table(found, (*columns, "words"))


@command(_source, "remove")
@click.argument("name")
def source_remove(session: Session, *, name: str) -> None:
    """Ask a worklist no more; what is still scheduled of it is retired."""
    with session.store() as store, store.db.write() as tx:
        retired = sources.remove(tx, name, actor=ACTOR)
    session.say({"removed": name, "retired": retired}, f"{name} removed, {retired} entries retired")


@command(_source, "twins")
@click.option("--all", "everything", is_flag=True, help="Also those that are settled.")
def source_twins(session: Session, *, everything: bool) -> None:
    """List entries made here and orders that may be the same, for a person to say."""
    with session.store() as store:
        found = twins.listed(store.db, None if everything else TwinState.OPEN)
    session.table(found, ("id", "entered", "ordered", "state", "words", "created_ms"))


@command(_source, "settle")
@click.argument("twins_number", metavar="TWINS", type=int)
@click.argument("answer", type=click.Choice([str(TwinState.MERGED), str(TwinState.APART)]))
def source_settle(session: Session, *, twins_number: int, answer: str) -> None:
    """Say that TWINS are one (merged) or two (apart)."""
    with session.store() as store, store.db.write() as tx:
        twins.settle(tx, twins_number, TwinState(answer), actor=ACTOR)
    session.say({"id": twins_number, "state": answer}, f"{twins_number} {answer}")
