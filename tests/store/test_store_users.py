import threading

import pytest
from store.making import PASSWORD

from edgepacs.errors import Conflict, InvalidValue, NotAllowed, NotFound
from edgepacs.model import Role
from edgepacs.store import Store, users

WRONG = "not the password at all"


class Clock:
    """Wall time the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000_000
        monkeypatch.setattr(users, "wall_ms", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def add(store: Store, name: str = "tess", role: Role = Role.TECHNOLOGIST, **more: object) -> None:
    values = {"password": PASSWORD, "one_time": False, **more}
    with store.db.write() as tx:
        users.add(tx, name=name, role=role, actor="test", **values)  # type: ignore[arg-type]


def test_the_right_password_opens_a_session(store: Store) -> None:
    add(store)
    secret = users.log_in(store.db, "tess", PASSWORD)
    found = users.session(store.db, secret)
    assert found is not None
    assert (found.user, found.role, found.one_time) == ("tess", Role.TECHNOLOGIST, 0)
    assert found.csrf
    assert users.session(store.db, secret + "x") is None
    users.log_out(store.db, secret)
    assert users.session(store.db, secret) is None


def test_every_login_has_secrets_of_its_own(store: Store) -> None:
    add(store)
    one, two = (users.log_in(store.db, "tess", PASSWORD) for _ in range(2))
    first, second = users.session(store.db, one), users.session(store.db, two)
    assert one != two
    assert first is not None
    assert second is not None
    assert first.csrf != second.csrf


@pytest.mark.parametrize(
    ("name", "password"),
    [("tess", WRONG), ("tess", ""), ("nobody", PASSWORD), ("", ""), ("tess", "x" * 5000)],
)
def test_anything_else_does_not_and_says_the_same(store: Store, name: str, password: str) -> None:
    add(store)
    with pytest.raises(NotAllowed) as caught:
        users.log_in(store.db, name, password)
    assert str(caught.value) == "wrong user name or password"


def test_neither_password_nor_secrets_stand_in_the_index(store: Store) -> None:
    add(store)
    secret = users.log_in(store.db, "tess", PASSWORD)
    with store.db.write() as tx:
        token = users.create_token(tx, role=Role.VIEWER, actor="test")
    with store.db.read() as tx:
        rows = repr([tx.rows(f"SELECT * FROM {name}") for name in ("user", "session", "token")])
        stored = tx.rows("SELECT password FROM user WHERE name = 'tess'")[0][0]
    for text in (PASSWORD, secret, token):
        assert text not in rows
    assert stored.startswith("$argon2id$")


def test_wrong_passwords_lock_longer_and_longer(store: Store, clock: Clock) -> None:
    add(store)
    waits = []
    for _ in range(14):
        with pytest.raises(NotAllowed, match="wrong user name"):
            users.log_in(store.db, "tess", WRONG)
        locked = next(u for u in users.all_users(store.db) if u.name == "tess").locked_ms
        waits.append(max(0, locked - clock.now))
        if locked > clock.now:
            with pytest.raises(NotAllowed, match="wait"):
                users.log_in(store.db, "tess", PASSWORD)
            clock.now = locked
    assert waits[:4] == [0] * 4
    assert waits[4] == 30_000
    assert waits[5] == 60_000
    assert waits == sorted(waits)
    assert waits[-1] == 15 * 60_000
    users.log_in(store.db, "tess", PASSWORD)
    with pytest.raises(NotAllowed, match="wrong user name"):
        users.log_in(store.db, "tess", WRONG)
    users.log_in(store.db, "tess", PASSWORD)  # counting starts anew


def test_guesses_made_at_the_same_time_each_count(store: Store) -> None:
    add(store)
    ready = threading.Barrier(12)

    def guess() -> None:
        ready.wait()
        with pytest.raises(NotAllowed):
            users.log_in(store.db, "tess", WRONG)

    threads = [threading.Thread(target=guess) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with pytest.raises(NotAllowed, match="wait"):
        users.log_in(store.db, "tess", PASSWORD)


def test_a_session_ends_idle_or_old(store: Store, clock: Clock) -> None:
    add(store)
    secret = users.log_in(store.db, "tess", PASSWORD)
    begun = clock.now
    while clock.now - begun < users.SESSION_MAX_MS - users.SESSION_IDLE_MS:
        clock.now += users.SESSION_IDLE_MS - 1
        assert users.session(store.db, secret) is not None  # using it keeps it alive
    clock.now = begun + users.SESSION_MAX_MS + 1
    assert users.session(store.db, secret) is None
    other = users.log_in(store.db, "tess", PASSWORD)
    clock.now += users.SESSION_IDLE_MS + 1
    assert users.session(store.db, other) is None


def test_another_password_ends_the_sessions(store: Store) -> None:
    add(store, one_time=True)
    secret = users.log_in(store.db, "tess", PASSWORD)
    session = users.session(store.db, secret)
    assert session is not None
    assert session.one_time == 1
    with store.db.write() as tx:
        users.set_password(
            tx, name="tess", password="another long one", one_time=False, actor="test"
        )
    assert users.session(store.db, secret) is None
    with pytest.raises(NotAllowed):
        users.log_in(store.db, "tess", PASSWORD)
    again = users.session(store.db, users.log_in(store.db, "tess", "another long one"))
    assert again is not None
    assert again.one_time == 0


def test_users_come_and_go(store: Store) -> None:
    add(store)
    secret = users.log_in(store.db, "tess", PASSWORD)
    assert [(u.name, u.role) for u in users.all_users(store.db)] == [
        ("admin", Role.ADMIN),
        ("tess", Role.TECHNOLOGIST),
    ]
    with pytest.raises(Conflict, match="exists"):
        add(store)
    with store.db.write() as tx:
        users.remove(tx, "tess", actor="test")
        with pytest.raises(NotFound):
            users.remove(tx, "tess", actor="test")
        with pytest.raises(NotFound):
            users.set_password(tx, name="tess", password=PASSWORD, one_time=True, actor="test")
        with pytest.raises(Conflict, match="last administrator"):
            users.remove(tx, "admin", actor="test")
    assert users.session(store.db, secret) is None
    add(store, "boss", Role.ADMIN)
    with store.db.write() as tx:
        users.remove(tx, "admin", actor="test")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 65, "bell\a"])
def test_names_that_cannot_be_shown_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidValue, match="user"):
        add(store, name)


@pytest.mark.parametrize("password", ["", "short", "x" * 9, "x" * 257])
def test_passwords_have_bounds(store: Store, password: str) -> None:
    with pytest.raises(InvalidValue, match="password"):
        add(store, password=password)


def test_one_time_passwords_are_fit_and_differ() -> None:
    made = {users.one_time_password() for _ in range(50)}
    assert len(made) == 50
    for one in made:
        assert users.acceptable(one) == one
        assert not set(one) & set("ilo01")


def test_a_token_has_its_role_and_no_other(store: Store) -> None:
    with store.db.write() as tx:
        secrets = {role: users.create_token(tx, role=role, actor="test") for role in Role}
    for role, secret in secrets.items():
        assert users.role_of_token(store.db, secret) is role
        assert users.role_of_token(store.db, secret[:-1]) is None
    assert users.role_of_token(store.db, "") is None
    assert len(set(secrets.values())) == len(Role)
