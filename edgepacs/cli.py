"""The command line: everything the console can do, without the web (docs/operations.md).

Every command has --json. Exit codes come from the error hierarchy; usage errors are 2.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from edgepacs import __version__, config, roles
from edgepacs.clock import iso
from edgepacs.errors import EdgePacsError, InvalidValue, StorageFault
from edgepacs.forward.sender import echo_in_words
from edgepacs.model import (
    DeliveryState,
    InstanceId,
    InstanceState,
    Role,
    Service,
    StudyId,
    StudyState,
)
from edgepacs.store import (
    Store,
    deliveries,
    disposal,
    founding,
    fsck,
    instances,
    opened,
    peers,
    rules,
    studies,
    users,
)
from edgepacs.store import rebuild as rebuilding
from edgepacs.store.keystore import recovery_key

ACTOR = "cli"
_DEFAULT_CONFIG = "/etc/edgepacs/edgepacs.toml"
_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One invocation: where the configuration is, and how to answer."""

    config_path: Path
    as_json: bool = False

    def config(self) -> config.Config:
        """The configuration; raises ConfigurationError."""
        return config.load(self.config_path)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store of this node."""
        with opened(self.config()) as store:
            yield store

    def say(self, data: Any, text: str) -> None:
        """Print `data` as JSON where asked for, else `text`."""
        if self.as_json:
            click.echo(json.dumps(data, default=_plain, indent=2))
        elif text:
            click.echo(text)

    def table(self, rows: Sequence[Any], columns: Sequence[str]) -> None:
        """Print dataclasses as a table of `columns`, or all their fields as JSON."""
        found = [_row(row) for row in rows]
        cells = [[_cell(name, row[name]) for name in columns] for row in found]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in [list(columns), *cells]
        ]
        self.say(found, "\n".join(lines) if found else "none")


def _row(row: Any) -> dict[str, Any]:
    made = asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)
    return {name: value for name, value in made.items() if not isinstance(value, bytes)}


def _cell(name: str, value: Any) -> str:
    text = iso(value) if name.endswith("_ms") and value else str("" if value is None else value)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _json_flag(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        context.ensure_object(Session)
        context.obj.as_json = True


def command(group: click.Group, name: str) -> Callable[[_Command], click.Command]:
    """A command of `group` that knows --json and gets the Session first."""

    def decorate(function: _Command) -> click.Command:
        flag = click.option(
            "--json", is_flag=True, expose_value=False, callback=_json_flag, help="Answer as JSON."
        )
        return group.command(name)(flag(click.pass_obj(function)))

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgepacs")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=_DEFAULT_CONFIG,
    envvar="EDGEPACS_CONFIG",
    show_default=True,
    help="The node's edgepacs.toml.",
)
@click.pass_context
def cli(context: click.Context, config_path: Path) -> None:
    """EdgePACS: the storage and worklist node beside the scanner."""
    context.obj = Session(config_path)


def _group(name: str, words: str) -> click.Group:
    group = click.Group(name, help=words)
    cli.add_command(group)
    return group


_ae = _group("ae", "AE titles that may call.")
_destination = _group("destination", "Where instances are sent.")
_rule = _group("rule", "Which instances go where.")
_queue = _group("queue", "What is on its way.")
_user = _group("user", "Who may log in.")
_token = _group("token", "Bearer tokens for scripts.")
_study = _group("study", "Studies, and what a technologist does with them.")
_quarantine = _group("quarantine", "Other content under a known SOP Instance UID.")


# --- the node ------------------------------------------------------------------------------


@command(cli, "init")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--ae-title", default="EDGEPACS", show_default=True)
@click.option("--dicom-port", default=11112, show_default=True)
@click.option("--http-port", default=8080, show_default=True)
@click.option("--admin-password-stdin", is_flag=True, help="Read the password from standard input.")
def init(
    session: Session,
    *,
    folder: Path,
    ae_title: str,
    dicom_port: int,
    http_port: int,
    admin_password_stdin: bool,
) -> None:
    """Make a node in DIR: configuration, keys, encrypted index, first administrator."""
    founded = founding.create_node(
        folder.absolute(),
        title=ae_title,
        dicom_port=dicom_port,
        http_port=http_port,
        password=_password_from_stdin() if admin_password_stdin else None,
    )
    login = f"{founded.user} / {founded.password} (once; then choose your own)"
    session.say(
        founded,
        f"Configuration   {founded.config_path}\n"
        f"First login     {login if founded.password else founded.user}\n"
        f"Recovery key    {founded.recovery_key}\n\n"
        "Print the recovery key and keep it away from this box: with it and a backup, the\n"
        "studies can be read even when the box's own key is lost. It is not shown again.",
    )


def _password_from_stdin() -> str:
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise InvalidValue("password", "standard input held none")
    return password


@command(cli, "serve")
def serve(session: Session) -> None:
    """Run all services in the foreground."""
    sys.exit(roles.serve(session.config()))


def _add_role(role: str) -> None:
    @command(cli, role)
    def run(session: Session) -> None:
        roles.run_role(session.config(), role)

    run.help = f"Run the {role} service alone."


for _role in roles.ROLES:
    _add_role(_role)


@command(cli, "check")
def check(session: Session) -> None:
    """Check configuration, keys and schema, and say what a thief could read."""
    loaded = session.config()
    with opened(loaded) as store:
        counts = studies.counts(store.db)
        free = store.vault.free_bytes()
    warnings = []
    if loaded.keys.source is config.KeySource.FILE:
        warnings.append(
            "the device key lies in a file on this machine: a thief of the disk can read "
            "everything (docs/operations.md, Keys)"
        )
    text = [f"{loaded.path}: good", f"{counts['study']} studies, {free >> 20} MiB free"]
    session.say(
        {"config": str(loaded.path), "warnings": warnings, "free_bytes": free, **counts},
        "\n".join([*text, *(f"warning: {words}" for words in warnings)]),
    )


@command(cli, "migrate")
def migrate(session: Session) -> None:
    """Bring the index to this version's schema; stop the services first."""
    store = Store.unlock(session.config())
    applied = store.db.migrate()
    store.close()
    session.say({"applied": applied}, "\n".join(applied) or "nothing to do")


@command(cli, "fsck")
@click.option(
    "--sweep", is_flag=True, help="Settle objects without a row first (no service may run)."
)
def check_store(session: Session, *, sweep: bool) -> None:
    """Prove rows, objects and authentication tags against each other."""
    with session.store() as store:
        settled = fsck.sweep(store) if sweep else fsck.Settled()
        report = fsck.check(store)
        report.removed, report.adopted = settled.removed, settled.adopted
    lines = [
        (
            f"{report.rows} rows, {report.objects} objects, {report.verified} verified, "
            f"{settled.removed} removed, {settled.adopted} adopted"
        ),
        *(f"instance {number}: its object is missing" for number in report.missing),
        *(f"instance {number}: {words}" for number, words in report.broken.items()),
        *(f"instance {number}: {words}" for number, words in report.mismatched.items()),
        *(f"object {name}: no row refers to it" for name in report.orphans),
        *(f"object {name}: no row yet; services are running" for name in report.unsettled),
        *(f"index: {words}" for words in report.index),
        "sound" if report.sound else "NOT sound",
    ]
    session.say({**asdict(report), "sound": report.sound}, "\n".join(lines))
    if not report.sound:
        sys.exit(76)  # as Tampered


@command(cli, "rebuild")
@click.option("--recovery-key-stdin", is_flag=True, help="Read the recovery key from stdin.")
def rebuild(session: Session, *, recovery_key_stdin: bool) -> None:
    """Make a lost index again from objects and keystore; stop the services first."""
    key = recovery_key(sys.stdin.readline()) if recovery_key_stdin else None
    result = rebuilding.rebuild(session.config(), key)
    lines = [
        f"{result.instances} instances are back",
        f"First login     {result.user} / {result.password} (once; then choose your own)",
        "AE titles, destinations, rules and users have to be entered again.",
        *(f"object {name}: {words}" for name, words in result.unreadable.items()),
    ]
    session.say(result, "\n".join(lines))


# --- peers ---------------------------------------------------------------------------------


@command(_ae, "add")
@click.argument("title", metavar="AET")
@click.option("--host", required=True, help="Its address or name; * for any.")
@click.option("--port", required=True, type=int, help="Where it listens.")
@click.option("--allow", default="echo,store", show_default=True, help="Comma between services.")
def ae_add(session: Session, *, title: str, host: str, port: int, allow: str) -> None:
    """Let an AE title call."""
    services = [_service(word) for word in allow.split(",") if word.strip()]
    with session.store() as store, store.db.write() as tx:
        peers.add_ae(tx, title=title, host=host, port=port, services=services, actor=ACTOR)
    session.say({"title": title, "services": services}, f"{title} may {', '.join(services)}")


def _service(word: str) -> Service:
    try:
        return Service(word.strip())
    except ValueError:
        raise InvalidValue("--allow", f"{word!r} is none of {', '.join(Service)}") from None


@command(_ae, "list")
@click.option("--refused", is_flag=True, help="Those who called and were not let in.")
def ae_list(session: Session, *, refused: bool) -> None:
    """List AE titles that may call, or that were refused."""
    with session.store() as store:
        if refused:
            columns = ("calling_ae", "called_ae", "host", "reason", "times", "last_ms")
            session.table(peers.refused(store.db), columns)
        else:
            session.table(peers.known_aes(store.db), ("title", "host", "port", "services"))


@command(_ae, "remove")
@click.argument("title", metavar="AET")
def ae_remove(session: Session, *, title: str) -> None:
    """No longer let an AE title call."""
    with session.store() as store, store.db.write() as tx:
        peers.remove_ae(tx, title, actor=ACTOR)
    session.say({"removed": title}, f"{title} removed")


@command(_destination, "add")
@click.argument("name")
@click.option("--ae", "title", required=True, help="Its AE title.")
@click.option("--host", required=True)
@click.option("--port", required=True, type=int)
def destination_add(session: Session, *, name: str, title: str, host: str, port: int) -> None:
    """Add a destination reached by C-STORE."""
    with session.store() as store:
        with store.db.write() as tx:
            number = peers.add_destination(
                tx, name=name, title=title, host=host, port=port, actor=ACTOR
            )
        store.ring("forward")
    session.say({"id": number, "name": name}, f"destination {name} added")


@command(_destination, "list")
def destination_list(session: Session) -> None:
    """List destinations and the state of their lines."""
    with session.store() as store:
        columns = ("name", "ae_title", "host", "port", "link", "link_ms", "link_note")
        session.table(peers.destinations(store.db), columns)


@command(_destination, "echo")
@click.argument("name")
def destination_echo(session: Session, *, name: str) -> None:
    """C-ECHO a destination from here; exit code 69 when it does not answer."""
    with session.store() as store:
        succeeded, words = echo_in_words(store, peers.destination(store.db, name))
    session.say({"name": name, "succeeded": succeeded, "result": words}, f"{name}: {words}")
    if not succeeded:
        sys.exit(69)  # as PeerError


@command(_destination, "remove")
@click.argument("name")
def destination_remove(session: Session, *, name: str) -> None:
    """Remove a destination with its rules and its queue."""
    with session.store() as store, store.db.write() as tx:
        peers.remove_destination(tx, name, actor=ACTOR)
    session.say({"removed": name}, f"destination {name} removed")


@command(_rule, "add")
@click.option("--to", required=True, help="A destination's name; * for every one.")
@click.option("--match", default="", help="e.g. 'modality=US,CT and not station=TEST*'.")
@click.option("--hold-until-verified", "hold", is_flag=True)
@click.option("--priority", default=0, show_default=True, help="Higher goes first.")
def rule_add(session: Session, *, to: str, match: str, hold: bool, priority: int) -> None:
    """Send what matches to a destination."""
    with session.store() as store, store.db.write() as tx:
        number = rules.add(tx, to=to, match=match, hold=hold, priority=priority, actor=ACTOR)
    session.say({"id": number}, f"rule {number} added")


@command(_rule, "list")
def rule_list(session: Session) -> None:
    """List the rules; an empty destination is every one, an empty match everything."""
    with session.store() as store:
        columns = ("id", "destination_name", "match", "hold", "priority")
        session.table(rules.all_rules(store.db), columns)


@command(_rule, "remove")
@click.argument("number", type=int)
def rule_remove(session: Session, *, number: int) -> None:
    """Remove a rule; what it queued stays queued."""
    with session.store() as store, store.db.write() as tx:
        rules.remove(tx, number, actor=ACTOR)
    session.say({"removed": number}, f"rule {number} removed")


# --- the queue -----------------------------------------------------------------------------


@command(_queue, "list")
@click.option(
    "--state", type=click.Choice([str(state) for state in DeliveryState]), help="Only this state."
)
def queue_list(session: Session, *, state: str | None) -> None:
    """List what has not arrived, by study, destination and state."""
    with session.store() as store:
        found = deliveries.outbox(store.db, DeliveryState(state) if state else None)
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
            destination = peers.destination(store.db, to).id if to else None
            chosen = deliveries.Selection(delivery=delivery, study=study, destination=destination)
            with store.db.write() as tx:
                count = act(tx, chosen, actor=ACTOR)
            store.ring("forward")
        session.say({"changed": count}, f"{count} deliveries")

    run.help = words


_add_queue_act("hold", deliveries.hold, "Stop what is queued.")
_add_queue_act("release", deliveries.release, "Let go what is held.")
_add_queue_act("retry", deliveries.retry, "Queue again what failed, and hurry what waits.")
_add_queue_act("cancel", deliveries.cancel, "Say that it shall not be sent.")


# --- studies -------------------------------------------------------------------------------


@command(_study, "list")
@click.option("--limit", default=100, show_default=True)
def study_list(session: Session, *, limit: int) -> None:
    """List studies, the last received first."""
    with session.store() as store:
        found = studies.search(store.db, studies.Search(limit=limit))
    columns = ("id", "study_date", "modalities", "series_count", "instance_count", "state")
    session.table(found, (*columns, "flags", "received_ms"))


@command(_study, "send")
@click.argument("number", type=int)
@click.option("--to", required=True, help="A destination's name.")
def study_send(session: Session, *, number: int, to: str) -> None:
    """Send a study at once, before everything else."""
    with session.store() as store:
        destination = peers.destination(store.db, to)
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


@command(_quarantine, "list")
def quarantine_list(session: Session) -> None:
    """List versions that wait for a person."""
    with session.store() as store:
        found = instances.in_state(store.db, InstanceState.QUARANTINED)
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


# --- users ---------------------------------------------------------------------------------


@command(_user, "add")
@click.argument("name")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def user_add(session: Session, *, name: str, role: str, password_stdin: bool) -> None:
    """Add a user; without --password-stdin a one-time password is printed."""
    chosen = _password_from_stdin() if password_stdin else None
    one_time = users.one_time_password()
    with session.store() as store, store.db.write() as tx:
        users.add(
            tx,
            name=name,
            role=Role(role),
            password=chosen or one_time,
            one_time=chosen is None,
            actor=ACTOR,
        )
    _say_password(session, name, None if chosen else one_time)


@command(_user, "passwd")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def user_passwd(session: Session, *, name: str, password_stdin: bool) -> None:
    """Give a user another password and end their sessions."""
    chosen = _password_from_stdin() if password_stdin else None
    one_time = users.one_time_password()
    with session.store() as store, store.db.write() as tx:
        users.set_password(
            tx, name=name, password=chosen or one_time, one_time=chosen is None, actor=ACTOR
        )
    _say_password(session, name, None if chosen else one_time)


def _say_password(session: Session, name: str, one_time: str | None) -> None:
    text = f"{name} / {one_time} (once; then choose your own)" if one_time else f"{name}: done"
    session.say({"name": name, "password": one_time}, text)


@command(_user, "list")
def user_list(session: Session) -> None:
    """List users."""
    with session.store() as store:
        session.table(users.all_users(store.db), ("name", "role", "one_time", "created_ms"))


@command(_user, "remove")
@click.argument("name")
def user_remove(session: Session, *, name: str) -> None:
    """Remove a user."""
    with session.store() as store, store.db.write() as tx:
        users.remove(tx, name, actor=ACTOR)
    session.say({"removed": name}, f"{name} removed")


@command(_token, "create")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True)
def token_create(session: Session, *, role: str) -> None:
    """Make a bearer token; it is shown once."""
    with session.store() as store, store.db.write() as tx:
        secret = users.create_token(tx, role=Role(role), actor=ACTOR)
    session.say({"token": secret, "role": role}, secret)


def main() -> NoReturn:
    """Run the command line; every EdgePacsError ends in one line and its own exit code."""
    try:
        cli(standalone_mode=False)
    except EdgePacsError as error:
        click.echo(f"edgepacs: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"edgepacs: {place}{error.strerror or type(error).__name__}", err=True)
        sys.exit(StorageFault.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(0)
