"""Performed procedure steps, as modalities tell of them."""

from dataclasses import asdict

import click

from edgepacs.cli.session import Session, command, group
from edgepacs.model import StepState
from edgepacs.store import dispatches, steps
from edgepacs.store.steps import Completeness

_mpps = group("mpps", "Performed procedure steps.")


@command(_mpps, "list")
@click.option(
    "--state", type=click.Choice([str(state) for state in StepState]), help="Only this state."
)
@click.option("--missing", is_flag=True, help="Only those of which instances are missing.")
@click.option("--limit", default=200, show_default=True, help="Steps, the newest first.")
def mpps_list(session: Session, *, state: str | None, missing: bool, limit: int) -> None:
    """List what modalities have told, and how much of what they made is here."""
    with session.store() as store:
        found = steps.listed(store.db, StepState(state) if state else None, most=limit)
    if missing:
        found = [one for one in found if one.completeness is Completeness.MISSING]
    rows = [{**asdict(one), "instances": one.completeness} for one in found]
    columns = ("id", "source", "modality", "state", "patient_id", "description", "listed")
    session.table(rows, (*columns, "arrived", "instances", "changed_ms"))


@command(_mpps, "queue")
@click.option("--limit", default=200, show_default=True, help="Messages, the oldest first.")
def mpps_queue(session: Session, *, limit: int) -> None:
    """List messages that have not arrived: procedure steps and availability notifications."""
    with session.store() as store:
        found = dispatches.unfinished(store.db, limit)
    columns = ("id", "kind", "destination_name", "state", "attempts", "next_ms", "last_error")
    session.table(found, columns)


@command(_mpps, "show")
@click.argument("step", type=int)
def mpps_show(session: Session, *, step: int) -> None:
    """Show one step: its series, and how far each of its messages has come to each destination."""
    with session.store() as store:
        row = steps.counted(store.db, step)
        orders = steps.orders_of(store.db, step)
        series = steps.series_of(store.db, step)
        told = steps.tellings(store.db, step)
    data = {**asdict(row), "orders": orders, "series": series, "messages": told}
    lines = [f"{name}: {value}" for name, value in asdict(row).items() if value]
    lines.append(f"instances: {row.arrived} of {row.listed} here: {row.completeness.meaning}")
    lines += [f"scheduled: {one.scheduled_id or '-'} of {one.accession_number}" for one in orders]
    lines += [f"series: {one.arrived} of {one.listed} here  {one.description}" for one in series]
    for one in told:
        way = f"{one.destination_name}: {one.state}" if one.delivery else "told to nobody"
        lines.append(f"{one.command}: {way}  {one.last_error}".rstrip())
    session.say(data, "\n".join(lines))
