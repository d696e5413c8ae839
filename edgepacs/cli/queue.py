"""What is on its way."""

from collections.abc import Callable

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.model import (
    DeliveryState,
)
from edgepacs.store import deliveries, destinations, ledger

_queue = group("queue", "What is on its way.")


@command(_queue, "list")
@click.option(
    "--state", type=click.Choice([str(state) for state in DeliveryState]), help="Only this state."
)
def queue_list(session: Session, *, state: str | None) -> None:
    """List what has not arrived, by study, destination and state."""
    with session.store() as store:
        found = ledger.outbox(store.db, DeliveryState(state) if state else None)
    columns = ("study", "destination_name", "state", "hold_reason", "count", "attempts")
    session.table(found, (*columns, "last_error"))


_Act = Callable[..., int]


def _add_queue_act(name: str, act: _Act, words: str) -> None:
    @command(_queue, name)
    @click.option("--study", type=int, help="Only deliveries of this study.")
    @click.option("--to", default=None, help="Only deliveries to this destination.")
    @click.option("--delivery", type=int, help="Only this one.")
    def run(session: Session, *, study: int | None, to: str | None, delivery: int | None) -> None:
        with session.store() as store:
            destination = destinations.named(store.db, to).id if to else None
            chosen = deliveries.Selection(delivery=delivery, study=study, destination=destination)
            with store.db.write() as tx:
                count = act(tx, chosen, actor=ACTOR)
            store.ring("forward")
        session.say({"changed": count}, f"{count} deliveries")

    run.help = words


_add_queue_act("hold", deliveries.hold, "Stop what is queued.")
_add_queue_act("release", deliveries.release, "Let go what is held.")
_add_queue_act(
    "retry", deliveries.retry, "Queue again what failed or was cancelled, and hurry what waits."
)
_add_queue_act("cancel", deliveries.cancel, "Say that it shall not be sent.")
