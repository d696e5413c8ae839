"""Storage commitment that modalities have asked us for."""

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.model import PledgeState
from edgepacs.store import pledges

_commitment = group("commitment", "Storage commitment that modalities have asked us for.")


@command(_commitment, "list")
@click.option(
    "--state", type=click.Choice([str(state) for state in PledgeState]), help="Only this state."
)
@click.option("--limit", default=200, show_default=True, help="Requests, the newest first.")
def commitment_list(session: Session, *, state: str | None, limit: int) -> None:
    """List who has asked for the commitment of how many instances, and what came of it."""
    with session.store() as store:
        found = pledges.listed(store.db, PledgeState(state) if state else None, limit)
    columns = ("id", "ae", "state", "asked_ms", "instances", "committed", "failed", "attempts")
    session.table(found, (*columns, "next_ms", "words"))


@command(_commitment, "report")
@click.argument("request", type=int)
def commitment_report(session: Session, *, request: int) -> None:
    """Look at the instances of REQUEST anew, and report them once more."""
    with session.store() as store:
        pledges.again(store.db, request, actor=ACTOR)
        store.ring("reporter")
    session.say({"request": request}, f"request {request} is reported once more")
