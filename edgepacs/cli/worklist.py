"""The worklist: what is to be done, entries by hand, and files of them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.clock import iso
from edgepacs.custody import entered, scheduled
from edgepacs.errors import Conflict, InvalidValue
from edgepacs.model import EntryId, EntryOrigin, EntryState
from edgepacs.store import audit, worklist
from edgepacs.store.doubles import Double, doubles
from edgepacs.store.worklist import Criteria, Held

_worklist = group("worklist", "What is to be done: the list modalities pick their patient from.")
_STATES = [str(state) for state in EntryState]
_COLUMNS = ("id", "state", "start", "modality", "station_ae", "patient_id", "name")
_DAY = "A day as YYYY-MM-DD, or today."


@command(_worklist, "list")
@click.option("--day", default="", help=_DAY)
@click.option("--modality", default="", help="e.g. CT.")
@click.option("--state", type=click.Choice(_STATES), help="Only this state.")
@click.option("--origin", type=click.Choice([str(one) for one in EntryOrigin]))
@click.option("--text", default="", help="Words of name, ID, accession number or description.")
@click.option("--limit", default=200, show_default=True)
def worklist_list(
    session: Session,
    *,
    day: str,
    modality: str,
    state: str | None,
    origin: str | None,
    text: str,
    limit: int,
) -> None:
    """List entries by their start; `as_of_ms` is when their source last said so."""
    day = _day(day)
    criteria = Criteria(
        states=(EntryState(state),) if state else (),
        origin=EntryOrigin(origin) if origin else None,
        modality=modality.upper(),
        from_date=day,
        to_date=day,
        text=text,
        limit=limit,
    )
    with session.store() as store, store.db.read() as tx:
        found = worklist.entries(tx, criteria)
    columns = (*_COLUMNS, "accession_number", "step_description", "origin", "as_of_ms")
    session.table([_row(one) for one in found], columns)


def _day(text: str) -> str:
    return entered.entered({"start_date": text}).start_date


def _row(held: Held) -> dict[str, Any]:
    fields = asdict(held)
    entry = fields.pop("entry")
    patient = entry.pop("patient")
    start = f"{entry['start_date']} {entry['start_time'][:4]}".strip()
    return {**fields, "start": start, **patient, **entry}


@command(_worklist, "show")
@click.argument("number", type=int)
def worklist_show(session: Session, *, number: int) -> None:
    """Show one entry and what became of it."""
    with session.store() as store:
        with store.db.read() as tx:
            held = worklist.entry(tx, EntryId(number))
        history = audit.of_subject(store.db, "worklist", number)
    row = _row(held)
    if session.as_json:
        session.say({**row, "history": history}, "")
        return
    row |= {name: iso(row[name]) for name in row if name.endswith("_ms")}
    said = [{"field": name, "value": value} for name, value in row.items() if value != ""]
    session.table(said, ("field", "value"))
    session.say(None, "\nHistory")
    session.table(history, ("at_ms", "actor", "act", "detail"))


@command(_worklist, "fields")
def worklist_fields(session: Session) -> None:
    """List the fields of an entry, as `add`, `change` and the first row of a CSV file name them."""
    session.config()  # as every command
    rows = [{"field": name, "vr": scheduled.VRS[name]} for name in entered.FIELDS]
    session.table(rows, ("field", "vr"))


@command(_worklist, "add")
@click.argument("said", nargs=-1, required=True, metavar="FIELD=VALUE...")
@click.option("--anyway", is_flag=True, help="Although somebody like that is known already.")
def worklist_add(session: Session, *, said: tuple[str, ...], anyway: bool) -> None:
    """Add a walk-in, an emergency or an encounter; `-` reads lines of FIELD=VALUE.

    Needs name and modality; start_date may be today. Without a patient_id a temporary one is made,
    without accession number and admission_id a visit number. Exit code 65 where the patient may be
    known already.
    """
    entry = entered.entered(_said(said))
    with session.store() as store:
        with store.db.read() as tx:
            found = doubles(tx, entry.patient)
        if found and not anyway:
            session.table(_in_words(found), ("patient_id", "name", "birth_date", "sex", "why"))
            raise Conflict("this may be a patient who is known: add with --anyway, or by their ID")
        number = entered.add(store.db, entry, actor=ACTOR)
        with store.db.read() as tx:
            held = worklist.entry(tx, number)
    words = f"entry {number} added: patient ID {held.entry.patient.patient_id}"
    session.say(_row(held), words)


def _in_words(found: Sequence[Double]) -> list[dict[str, Any]]:
    return [{**asdict(one), "why": one.likeness.meaning} for one in found]


def _said(words: Sequence[str]) -> Mapping[str, str]:
    """FIELD=VALUE of the arguments, or of standard input: there no other user sees them."""
    lines = sys.stdin.read().splitlines() if list(words) == ["-"] else words
    found = {}
    for number, line in enumerate(filter(str.strip, lines), 1):
        name, equals, value = line.partition("=")
        if not equals:
            raise InvalidValue("field", f"number {number} is not FIELD=VALUE")
        found[name.strip()] = value
    return found


@command(_worklist, "change")
@click.argument("number", type=int)
@click.argument("said", nargs=-1, required=True, metavar="FIELD=VALUE...")
def worklist_change(session: Session, *, number: int, said: tuple[str, ...]) -> None:
    """Correct an entry; `-` reads lines of FIELD=VALUE. An empty value clears a field."""
    with session.store() as store, store.db.write() as tx:
        before = worklist.entry(tx, EntryId(number)).entry
        entry = entered.entered(_said(said), before)
        entered.require_enough(entry)
        worklist.change(tx, EntryId(number), entry, actor=ACTOR)
    session.say({"entry": number}, f"entry {number} changed")


def _add_act(name: str, state: EntryState, words: str) -> None:
    @command(_worklist, name)
    @click.argument("number", type=int)
    @click.option("--why", default="", help="Kept in its history.")
    def run(session: Session, *, number: int, why: str) -> None:
        with session.store() as store, store.db.write() as tx:
            worklist.shift(tx, EntryId(number), state, actor=ACTOR, why=why)
        session.say({"entry": number, "state": state}, f"entry {number}: {state}")

    run.help = words


_add_act("cancel", EntryState.CANCELLED, "Say that it will not be done; it is offered no more.")
_add_act("complete", EntryState.COMPLETED, "Say that it is done; it is offered no more.")
_add_act("reopen", EntryState.SCHEDULED, "Offer it again.")


@command(_worklist, "retire")
@click.option("--before", required=True, help=_DAY)
def worklist_retire(session: Session, *, before: str) -> None:
    """Retire what was to be done before a day and never was."""
    with session.store() as store, store.db.write() as tx:
        count = worklist.retire_past(tx, _day(before), actor=ACTOR)
    session.say({"retired": count}, f"{count} entries retired")


@command(_worklist, "import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def worklist_import(session: Session, *, paths: tuple[Path, ...]) -> None:
    """Take in CSV files, their first row naming the fields, and DICOM worklist files.

    Each file whole or not at all; taken in again it brings its entries up to date.
    """
    with session.store() as store:
        done = [
            {"file": number, **asdict(entered.take_in(store.db, _bytes(path), actor=ACTOR))}
            for number, path in enumerate(paths, 1)
        ]
    session.table(done, ("file", "added", "updated"))


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(entered.FILE_MOST + 1)
