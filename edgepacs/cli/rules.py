"""Routing rules, and what one would do."""

import click

from edgepacs.cli.session import ACTOR, Session, command, group
from edgepacs.errors import InvalidValue
from edgepacs.store import Store, routing, rules
from edgepacs.store.routing import Trial

_rule = group("rule", "Which instances go where.")
_SHOWN = 50  # studies of a dry run; all are counted


@command(_rule, "add")
@click.option("--to", required=True, help="A destination's name; * for every one.")
@click.option("--then", multiple=True, help="The next one, when the line before is down too long.")
@click.option("--match", default="", help="e.g. 'modality=US,CT and not station=TEST*'.")
@click.option("--hold-until-verified", "hold", is_flag=True)
@click.option("--priority", default=0, show_default=True, help="Higher goes first.")
@click.option("--as", "send_as", default="", help="lossless, native or lossy:QUALITY.")
@click.option(
    "--patience",
    default=rules.PATIENCE_S,
    show_default=True,
    help="Seconds a line may be down before the next destination is used.",
)
def rule_add(
    session: Session,
    *,
    to: str,
    then: tuple[str, ...],
    match: str,
    hold: bool,
    priority: int,
    send_as: str,
    patience: int,
) -> None:
    """Send what matches to a destination."""
    with session.store() as store, store.db.write() as tx:
        number = rules.add(
            tx,
            to=(to, *then),
            match=match,
            hold=hold,
            priority=priority,
            actor=ACTOR,
            send_as=send_as,
            patience_s=patience,
        )
    session.say({"id": number}, f"rule {number} added")


@command(_rule, "list")
def rule_list(session: Session) -> None:
    """List the rules; an empty destination is every one, an empty match everything."""
    with session.store() as store:
        found = rules.all_rules(store.db)
    columns = ("id", "destination_name", "then", "match", "hold", "priority", "send_as")
    session.table(found, columns)


@command(_rule, "remove")
@click.argument("number", type=int)
def rule_remove(session: Session, *, number: int) -> None:
    """Remove a rule; what it queued stays queued."""
    with session.store() as store, store.db.write() as tx:
        rules.remove(tx, number, actor=ACTOR)
    session.say({"removed": number}, f"rule {number} removed")


@command(_rule, "test")
@click.argument("number", type=int, required=False)
@click.option("--to", default="*", show_default=True, help="A destination's name.")
@click.option("--match", default="", help="As of `rule add`.")
@click.option("--hold-until-verified", "hold", is_flag=True)
def rule_test(session: Session, *, number: int | None, to: str, match: str, hold: bool) -> None:
    """Say what a rule, there already or not yet, would do to the studies in store."""
    with session.store() as store:
        if number is not None:
            if match or hold or to != "*":
                raise InvalidValue("rule test", "takes a number or the options of a rule, not both")
            rule = rules.numbered(store.db, number)
            to, match, hold = rule.destination_name or "*", rule.match, bool(rule.hold)
        first, total = _tried(store, to, match, hold=hold)
    if session.as_json:
        session.say({"total": total, "studies": first}, "")
        return
    session.table(first, Trial.__slots__)
    session.say(None, _sum(total, len(first)))


def _tried(store: Store, to: str, match: str, *, hold: bool) -> tuple[list[Trial], dict[str, int]]:
    """The first studies of a dry run, and the sums over all."""
    first: list[Trial] = []
    total = dict.fromkeys(("studies", "queued", "held", "there", "byte_size"), 0)
    after: int | None = 0
    while after is not None:
        page = routing.dry_run(store.db, to=to, match=match, hold=hold, after=after)
        after = page.after
        first += page.trials[: _SHOWN - len(first)]
        total["studies"] += len(page.trials)
        for name in ("queued", "held", "there", "byte_size"):
            total[name] += sum(getattr(one, name) for one in page.trials)
    return first, total


def _sum(total: dict[str, int], shown: int) -> str:
    more = total["studies"] - shown
    words = (
        f"{total['queued']} instances would be queued, {total['held']} held, "
        f"{total['there']} are there already; {total['byte_size']} bytes to send"
    )
    return f"and {more} more\n{words}" if more else words
