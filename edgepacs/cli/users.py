"""Who may log in, and tokens for scripts."""

import click

from edgepacs.cli.session import ACTOR, Session, command, group, password_from_stdin
from edgepacs.model import (
    Role,
)
from edgepacs.store import (
    users,
)

_user = group("user", "Who may log in.")
_token = group("token", "Bearer tokens for scripts.")


@command(_user, "add")
@click.argument("name")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def user_add(session: Session, *, name: str, role: str, password_stdin: bool) -> None:
    """Add a user; without --password-stdin a one-time password is printed."""
    chosen = password_from_stdin() if password_stdin else None
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
    chosen = password_from_stdin() if password_stdin else None
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
