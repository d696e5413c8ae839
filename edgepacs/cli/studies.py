"""Studies, and what a technologist does with them."""

from dataclasses import asdict

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.custody import amendment
from edgepacs.errors import Conflict
from edgepacs.model import (
    CorrectionState,
    EntryId,
    InstanceId,
    InstanceState,
    StudyId,
    StudyState,
)
from edgepacs.store import (
    Store,
    corrections,
    deliveries,
    destinations,
    disposal,
    instances,
    ledger,
    reconciliation,
    rejections,
    studies,
)
from edgepacs.store.db import Transaction

_study = group("study", "Studies, and what a technologist does with them.")
_quarantine = group("quarantine", "Other content under a known SOP Instance UID.")


@command(_study, "list")
@click.option("--limit", default=100, show_default=True)
def study_list(session: Session, *, limit: int) -> None:
    """List studies, the last received first."""
    with session.store() as store:
        found = studies.search(store.db, studies.Search(limit=limit))
    columns = ("id", "study_date", "modalities", "series_count", "instance_count", "state")
    session.table(found, (*columns, "flags", "received_ms"))


@command(_study, "show")
@click.argument("number", type=int)
@click.option("--after", default=0, help="Only deliveries after this number; the next page.")
def study_show(session: Session, *, number: int, after: int) -> None:
    """Show how far a study has come to each destination, and its deliveries."""
    with session.store() as store:
        study = studies.study(store.db, StudyId(number))
        ways = ledger.ways_of_study(store.db, study.id)
        found = ledger.of_study(store.db, study.id, after=after)
        rejected = rejections.of_study(store.db, study.id)
    if session.as_json:
        told = [asdict(one) for one in found]
        state = {"study": study.id, "state": study.state, "received_ms": study.received_ms}
        state |= {"rejections": [asdict(one) for one in rejected]}
        session.say({**state, "ways": [asdict(one) for one in ways], "deliveries": told}, "")
        return
    session.say(None, "\n".join(one.words for one in rejected))
    times = ("received_ms", "verified_ms", "queued_ms", "sent_ms", "proved_ms")
    session.table(ways, ("destination_name", "count", "waiting", "sent", "proved", *times))
    columns = ("id", "instance", "destination_name", "state", "attempts", "proof", "last_error")
    session.table(found, columns)


@command(_study, "send")
@click.argument("number", type=int)
@click.option("--to", required=True, help="A destination's name.")
def study_send(session: Session, *, number: int, to: str) -> None:
    """Send a study at once, before everything else."""
    with session.store() as store:
        destination = destinations.named(store.db, to)
        with store.db.write() as tx:
            count = deliveries.send_study(tx, StudyId(number), [destination.id], actor=ACTOR)
        store.ring("forward")
    session.say({"queued": count}, f"{count} instances queued")


def _add_study_act(name: str, state: StudyState, words: str) -> None:
    @command(_study, name)
    @click.argument("number", type=int)
    def run(session: Session, *, number: int) -> None:
        with session.store() as store:
            with store.db.write() as tx:
                studies.set_state(tx, StudyId(number), state, actor=ACTOR)
            store.ring("forward")
        session.say({"study": number, "state": state}, f"study {number}: {state}")

    run.help = words


_add_study_act("verify", StudyState.VERIFIED, "Say that a study was looked at and is good.")
_add_study_act("hold", StudyState.HELD, "Stop a study; nothing of it leaves.")
_add_study_act("release", StudyState.RECEIVED, "Let a held or rejected study go again.")
_add_study_act("reject", StudyState.REJECTED, "Say that a study is unfit; it stays here.")


@command(_study, "reconcile")
@click.argument("number", type=int)
@click.option("--apply", "act", flag_value="apply", help="Say what its order says.")
@click.option("--keep", "act", flag_value="keep", help="Keep it as it is, and let it go on.")
@click.option("--reopen", "act", flag_value="reopen", help="Take back that it is kept.")
@click.option("--unlink", "act", flag_value="unlink", help="Let its order be found again.")
@click.option("--revert", "act", flag_value="revert", help="Go back to what was received.")
@click.option("--link", type=int, help="The entry of the worklist it is of.")
def study_reconcile(session: Session, *, number: int, act: str | None, link: int | None) -> None:
    """Show a study beside its order, having done what is asked for."""
    study = StudyId(number)
    with session.store() as store:
        studies.study(store.db, study)
        if act == "revert":
            _go_back(store, study)
        elif act or link is not None:
            with store.db.write() as tx:
                _decide(tx, study, act or "link", link)
        if act == "apply":
            amendment.carry_out_waiting(store)
        store.ring("forward")
        found = reconciliation.of_study(store.db, study)
        made = corrections.of_study(store.db, study)
    if found is None:
        session.say({"study": number, "entry": None}, "no order was looked for")
        return
    told = {
        **asdict(found),
        "corrections": [
            {"id": one.id, "state": one.state, "by": one.actor, "words": one.words} for one in made
        ],
    }
    lines = [
        f"{name.meaning}: {mine or '-'} | {its or '-'}{'  differs' * (name in found.flags)}"
        for name, (mine, its) in found.sides.items()
    ]
    head = f"entry {found.entry or '-'}, {found.found_by.meaning}"
    session.say(told, "\n".join([head, *lines]))


def _decide(tx: Transaction, study: StudyId, act: str, entry: int | None) -> None:
    if entry is not None:
        reconciliation.link(tx, study, EntryId(entry), actor=ACTOR)
    if act == "apply":
        corrections.ask(tx, study, actor=ACTOR)
    elif act == "keep":
        reconciliation.keep(tx, study, actor=ACTOR)
    elif act == "reopen":
        reconciliation.reopen(tx, study, actor=ACTOR)
    elif act == "unlink":
        reconciliation.link(tx, study, None, actor=ACTOR)


def _go_back(store: Store, study: StudyId) -> None:
    """Undo the correction of a study that stands; raises Conflict where there is none."""
    for one in corrections.of_study(store.db, study):
        if one.state is CorrectionState.DONE:
            amendment.revert(store, one.id, actor=ACTOR)
            return
    raise Conflict("study: no correction stands that could be undone")


@command(_study, "withdraw")
@click.argument("note", type=int)
def study_withdraw(session: Session, *, note: int) -> None:
    """Say that a rejection note does not count; NOTE is its instance, as `study show` names it."""
    with session.store() as store:
        with store.db.write() as tx:
            count = rejections.withdraw(tx, InstanceId(note), actor=ACTOR)
        store.ring("forward")
    session.say({"withdrawn": note, "instances": count}, f"note {note} no longer counts")


@command(_quarantine, "list")
def quarantine_list(session: Session) -> None:
    """List versions that wait for a person."""
    with session.store() as store:
        found = instances.waiting(store.db, InstanceState.QUARANTINED)
    session.table(found, ("id", "study", "version", "source", "received_ms"))


@command(_quarantine, "accept")
@click.argument("number", type=int)
def quarantine_accept(session: Session, *, number: int) -> None:
    """Let this version stand for its UID; the former one is kept, never forwarded."""
    with session.store() as store:
        instances.accept_version(store.db, InstanceId(number), actor=ACTOR)
        store.ring("forward")
    session.say({"accepted": number}, f"instance {number} accepted")


@command(_quarantine, "discard")
@click.argument("number", type=int)
def quarantine_discard(session: Session, *, number: int) -> None:
    """Give this version up; its bytes are deleted."""
    with session.store() as store:
        disposal.discard(store, InstanceId(number), actor=ACTOR)
    session.say({"discarded": number}, f"instance {number} discarded")
