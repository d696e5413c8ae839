"""What is on its way."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.errors import InvalidValue
from edgepacs.model import DeliveryState
from edgepacs.store import Store, acts, deliveries, destinations, ledger
from edgepacs.store.acts import Done
from edgepacs.store.deliveries import Selection

_queue = group("queue", "What is on its way.")
_state = click.option(
    "--state", type=click.Choice([str(state) for state in DeliveryState]), help="Only this state."
)


@command(_queue, "list")
@_state
@click.option("--to", default=None, help="Only to this destination.")
@click.option("--after", default=0, help="Only studies after this number; the next page.")
@click.option("--limit", default=1000, show_default=True, help="Studies on a page.")
def queue_list(
    session: Session, *, state: str | None, to: str | None, after: int, limit: int
) -> None:
    """List what has not arrived, by study, destination and state."""
    if limit < 1:
        raise InvalidValue("--limit", "less than 1")
    with session.store() as store:
        found = ledger.outbox(
            store.db,
            DeliveryState(state) if state else None,
            destination=_destination(store, to),
            after=after,
            studies=limit,
        )
    columns = ("study", "destination_name", "state", "hold_reason", "count", "attempts")
    session.table(found, (*columns, "last_error"))


@command(_queue, "totals")
def queue_totals(session: Session) -> None:
    """Say what each destination has yet to get: deliveries and bytes."""
    with session.store() as store:
        found = ledger.totals(store.db)
    columns = ("destination_name", "studies", "queued", "byte_size", "held", "failed")
    session.table(found, columns)


@command(_queue, "show")
@click.argument("delivery", type=int)
def queue_show(session: Session, *, delivery: int) -> None:
    """Show one delivery with the history of every attempt."""
    with session.store() as store:
        one = ledger.delivery(store.db, delivery)
        attempts = ledger.attempts(store.db, delivery)
        done = ledger.acts(store.db, delivery)
    if session.as_json:
        told = [{"at_ms": act.at_ms, "actor": act.actor, "act": act.act} for act in done]
        session.say({**asdict(one), "history": [asdict(a) for a in attempts], "acts": told}, "")
        return
    session.table([one], ("id", "instance", "destination_name", "state", "priority", "last_error"))
    session.table(attempts, ("started_ms", "ended_ms", "result"))
    session.table(done, ("at_ms", "actor", "act"))


def _destination(store: Store, name: str | None) -> int | None:
    return destinations.named(store.db, name).id if name else None


_Chosen = list[Selection]
_Act = Callable[..., Done]


def _selects(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say which deliveries an act is about."""
    for option in (
        _state,
        click.option("--delivery", type=int, multiple=True, help="Only this one; may be repeated."),
        click.option("--to", default=None, help="Only deliveries to this destination."),
        click.option("--study", type=int, multiple=True, help="Only of this; may be repeated."),
    ):
        function = option(function)
    return function


def _chosen(
    store: Store,
    *,
    study: tuple[int, ...],
    to: str | None,
    delivery: tuple[int, ...],
    state: str | None,
) -> _Chosen:
    """One selection a study and delivery; each is an act of its own in the trail."""
    destination = _destination(store, to)
    return [
        Selection(
            delivery=number,
            study=one,
            destination=destination,
            state=DeliveryState(state) if state else None,
        )
        for one in study or (None,)
        for number in delivery or (None,)
    ]


def _act(session: Session, act: Callable[[Store], Done]) -> None:
    with session.store() as store:
        done = act(store)
        store.ring("forward")
    lines = [f"{done.changed} deliveries"]
    lines += [f"{count} not: {why}" for why, count in sorted(done.unchanged.items())]
    session.say({"changed": done.changed, "unchanged": done.unchanged}, "\n".join(lines))


def _add_queue_act(name: str, act: _Act, words: str) -> None:
    @command(_queue, name)
    @_selects
    def run(session: Session, **which: Any) -> None:
        _act(session, lambda store: act(store.db, _chosen(store, **which), actor=ACTOR))

    run.help = words


_add_queue_act("hold", acts.hold, "Stop what is queued.")
_add_queue_act("release", acts.release, "Let go what is held.")
_add_queue_act(
    "retry", acts.retry, "Queue again what failed or was cancelled, and hurry what waits."
)
_add_queue_act("cancel", acts.cancel, "Say that it shall not be sent.")


@command(_queue, "reroute")
@click.argument("destination")
@_selects
def queue_reroute(session: Session, *, destination: str, **which: Any) -> None:
    """Send what has not left to DESTINATION instead."""

    def act(store: Store) -> Done:
        place = destinations.named(store.db, destination).id
        return acts.reroute(store.db, _chosen(store, **which), place, actor=ACTOR)

    _act(session, act)


@command(_queue, "priority")
@click.argument("level")
@_selects
def queue_priority(session: Session, *, level: str, **which: Any) -> None:
    """Give what has not left another priority: a number, higher goes first, or stat."""
    if level != "stat" and not level.lstrip("-").isdecimal():
        raise InvalidValue("priority", "neither a whole number nor stat")
    number = deliveries.STAT if level == "stat" else int(level)
    _act(
        session,
        lambda store: acts.prioritise(store.db, _chosen(store, **which), number, actor=ACTOR),
    )
