"""Compression at rest: how instances stand, and doing it again."""

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.errors import InvalidValue
from edgepacs.model import CompressionState, InstanceId, StudyId
from edgepacs.store import compressions
from edgepacs.store.compressions import Result, Selection, Sum

_group = group("compression", "How instances stand at rest, and compressing them again.")
_STATES = click.Choice([str(one) for one in CompressionState])


def _name(transfer_syntax_uid: str) -> str:
    # Every service starts by this command line, and not each of them needs the codecs.
    from edgepacs.pixels.syntaxes import syntax  # noqa: PLC0415

    row = syntax(transfer_syntax_uid)
    return row.name if row else transfer_syntax_uid


def _shared(one: Result | Sum) -> dict[str, object]:
    return {
        "state": one.state or "as received",
        "transfer_syntax": _name(one.transfer_syntax_uid),
        "received_length": one.received_length,
        "byte_length": one.byte_length,
        "ratio": round(one.received_length / max(1, one.byte_length), 2),
        "encode_ms": one.encode_ms,
        "verify_ms": one.verify_ms,
        "verified": one.state == CompressionState.COMPRESSED,
        "reason": one.reason,
    }


@command(_group, "list")
@click.option("--study", type=int, help="Of this study alone.")
@click.option("--state", type=_STATES, help="In this state alone.")
@click.option("--limit", default=1000, show_default=True)
def compression_list(session: Session, *, study: int | None, state: str | None, limit: int) -> None:
    """List instances with codec, ratio, time, and whether they were verified, or why not."""
    selection = _selection(study, None, state)
    with session.store() as store:
        found = compressions.results(store.db, selection, most=limit)
    lines = [
        {
            "instance": one.instance,
            "series": one.series,
            **_shared(one),
            "attempts": one.attempts,
            "changed_ms": one.changed_ms,
        }
        for one in found
    ]
    columns = ("instance", "series", "state", "transfer_syntax", "received_length", "byte_length")
    session.table(lines, (*columns, "ratio", "encode_ms", "verify_ms", "verified", "reason"))


@command(_group, "show")
@click.argument("study", type=int)
def compression_show(session: Session, *, study: int) -> None:
    """Show how the series of a study stand: codec, ratio, time, verified, or why not."""
    with session.store() as store:
        found = compressions.of_study(store.db, StudyId(study))
    lines = [{"series": one.series, "instances": one.instances, **_shared(one)} for one in found]
    columns = ("series", "instances", "state", "transfer_syntax", "received_length", "byte_length")
    session.table(lines, (*columns, "ratio", "encode_ms", "verify_ms", "verified", "reason"))


@command(_group, "status")
def compression_status(session: Session) -> None:
    """How all instances stand, how much room that saves, and what works on it."""
    with session.store() as store:
        found = compressions.totals(store.db)
    settings = session.config().compression
    received = sum(one.received_length for one in found)
    at_rest = sum(one.byte_length for one in found)
    lines = [{"instances": one.instances, **_shared(one)} for one in found]
    answer = {
        "workers": settings.workers,
        "cpu_percent": settings.cpu_percent,
        "before_ack": settings.before_ack,
        "received_length": received,
        "byte_length": at_rest,
        "ratio": round(received / max(1, at_rest), 2),
        "waiting": sum(one.instances for one in found if one.state == CompressionState.WAITING),
        "stand": lines,
    }
    if session.as_json:
        session.say(answer, "")
        return
    session.table(
        lines, ("instances", "state", "transfer_syntax", "received_length", "byte_length", "ratio")
    )
    session.say(
        answer,
        f"{received} bytes received, {at_rest} at rest, ratio {answer['ratio']}; "
        f"{settings.workers} workers",
    )


@command(_group, "again")
@click.option("--study", type=int, help="This study.")
@click.option("--instance", type=int, help="This instance.")
@click.option("--state", type=_STATES, help="What is in this state.")
@click.option("--all", "everything", is_flag=True, help="Whatever is stored.")
def compression_again(
    session: Session,
    *,
    study: int | None,
    instance: int | None,
    state: str | None,
    everything: bool,
) -> None:
    """Compress again: what an earlier version stored, what failed, or stands in another choice."""
    with session.store() as store:
        if everything == any((study, instance, state)):
            raise InvalidValue("selection", "say --study, --instance or --state, or --all")
        with store.db.write() as tx:
            count = compressions.again(tx, _selection(study, instance, state), actor=ACTOR)
        store.ring("upkeep")
    session.say({"waiting": count}, f"{count} instances wait for a worker")


def _selection(study: int | None, instance: int | None, state: str | None) -> Selection:
    return Selection(
        study=None if study is None else StudyId(study),
        instance=None if instance is None else InstanceId(instance),
        state=CompressionState(state) if state else None,
    )
