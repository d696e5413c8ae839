"""Priors that are fetched from destinations."""

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.model import PrefetchState, StudyId
from edgepacs.store import prefetches

_prefetch = group("prefetch", "Priors that are fetched from destinations.")


@command(_prefetch, "list")
@click.option(
    "--state",
    type=click.Choice([str(state) for state in PrefetchState]),
    help="Only this state.",
)
@click.option("--limit", default=200, show_default=True, help="Tasks, the newest first.")
def prefetch_list(session: Session, *, state: str | None, limit: int) -> None:
    """List whose priors are fetched from where, and what came of it."""
    with session.store() as store:
        found = prefetches.listed(store.db, PrefetchState(state) if state else None, limit)
    columns = ("id", "destination_name", "reason", "subject", "state", "studies", "instances")
    session.table(found, (*columns, "attempts", "changed_ms", "words"))


@command(_prefetch, "ask")
@click.argument("study", type=int)
def prefetch_ask(session: Session, *, study: int) -> None:
    """Fetch the priors of the patient of STUDY, as soon as the line has nothing else to do."""
    with session.store() as store:
        made = prefetches.ask(store.db, StudyId(study), actor=ACTOR)
        store.ring("forward")
    session.say({"study": study, "destinations": made}, f"asked of {made} destinations")


@command(_prefetch, "cancel")
@click.argument("task", type=int)
def prefetch_cancel(session: Session, *, task: int) -> None:
    """Fetch no more for TASK; what is here stays."""
    with session.store() as store:
        prefetches.cancel(store.db, task, actor=ACTOR)
        store.ring("forward")
    session.say({"cancelled": task}, f"{task} cancelled")
