"""The node itself: making, running, checking, repairing it."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from edgepacs import config, roles
from edgepacs.cli.session import Session, cli, command, password_from_stdin
from edgepacs.store import (
    Store,
    founding,
    fsck,
    opened,
    studies,
)
from edgepacs.store import rebuild as rebuilding
from edgepacs.store.keystore import recovery_key


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
        password=password_from_stdin() if admin_password_stdin else None,
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
        report.set_aside = settled.set_aside
    lines = [
        (
            f"{report.rows} rows, {report.objects} objects, {report.verified} verified, "
            f"{settled.removed} removed, {settled.adopted} adopted, {settled.set_aside} set aside"
        ),
        *(f"instance {number}: its object is missing" for number in report.missing),
        *(f"instance {number}: {words}" for number, words in report.broken.items()),
        *(f"instance {number}: {words}" for number, words in report.mismatched.items()),
        *(f"object {name}: no row refers to it" for name in report.orphans),
        *(f"file {name}: is no object" for name in report.foreign),
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
        f"{result.instances} instances are back, {result.corrected} of them corrected by an order",
        f"First login     {result.user} / {result.password} (once; then choose your own)",
        "Lost with the old index:",
        *(f"- {words}" for words in rebuilding.LOST),
        *(f"object {name}: {words}" for name, words in result.unreadable.items()),
    ]
    session.say(result, "\n".join(lines))
