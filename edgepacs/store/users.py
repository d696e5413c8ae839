"""Users, sessions and tokens. Passwords are kept as Argon2id, secrets only as their digest."""

import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, InvalidValue, NotAllowed, NotFound
from edgepacs.model import Role
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction

PASSWORD_MIN = 10
PASSWORD_MAX = 256
SESSION_IDLE_MS = 12 * 3_600_000
SESSION_MAX_MS = 7 * 24 * 3_600_000
_SEEN_STEP_MS = 60_000  # a session's last use is written no finer than this
_FREE_FAILURES = 5
_LOCK_MS = 30_000
_LOCK_MAX_MS = 15 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may log in; `one_time` says the password must be changed first."""

    name: str
    role: Role = field(metadata={"make": Role})
    one_time: int
    locked_ms: int
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One login. `csrf` must come back with every form."""

    user: str
    role: Role = field(metadata={"make": Role})
    one_time: int
    csrf: str
    created_ms: int
    seen_ms: int


_USER = ", ".join(User.__slots__)


def one_time_password() -> str:
    """A password to be typed once: four groups of letters and digits without look-alikes."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(4))


def _hashed(password: str) -> str:
    salt = secrets.token_bytes(16)
    # The cost is OWASP's floor for Argon2id: a small box must bear it.
    kdf = Argon2id(salt=salt, length=32, iterations=2, lanes=1, memory_cost=19 * 1024)
    return kdf.derive_phc_encoded(password.encode())


def acceptable(password: str) -> str:
    """`password` if it may be chosen; raises InvalidValue."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise InvalidValue("password", f"must have {PASSWORD_MIN} to {PASSWORD_MAX} characters")
    return password


def add(
    tx: Transaction, *, name: str, role: Role, password: str, one_time: bool, actor: str
) -> None:
    """Add a user; raises Conflict when the name is taken, InvalidValue for name and password."""
    plain = name.strip()
    if not plain or len(plain) > 64 or not plain.isprintable():
        raise InvalidValue("user", "the name must be 1 to 64 printable characters")
    if tx.first("SELECT 1 FROM user WHERE name = ?", plain):
        raise Conflict(f"user: {plain!r} exists already")
    tx.insert(
        "user",
        {
            "name": plain,
            "role": role,
            "password": _hashed(acceptable(password)),
            "one_time": int(one_time),
            "created_ms": wall_ms(),
        },
    )
    audit.record(tx, actor=actor, act="user added", kind="user", subject=None, detail=plain)


def set_password(tx: Transaction, *, name: str, password: str, one_time: bool, actor: str) -> None:
    """Give a user another password and end their sessions; raises NotFound, InvalidValue."""
    if not tx.run(
        "UPDATE user SET password = ?, one_time = ?, failures = 0, locked_ms = 0 WHERE name = ?",
        _hashed(acceptable(password)),
        int(one_time),
        name,
    ):
        raise NotFound(f"user: there is no user {name!r}")
    tx.run("DELETE FROM session WHERE user = ?", name)
    audit.record(tx, actor=actor, act="password set", kind="user", subject=None, detail=name)


def remove(tx: Transaction, name: str, *, actor: str) -> None:
    """Remove a user; raises NotFound, and Conflict for the last administrator."""
    found = tx.first("SELECT role FROM user WHERE name = ?", name)
    if found is None:
        raise NotFound(f"user: there is no user {name!r}")
    if found[0] == Role.ADMIN and tx.number("SELECT COUNT(*) FROM user WHERE role = 'admin'") == 1:
        raise Conflict("user: the last administrator cannot be removed")
    tx.run("DELETE FROM user WHERE name = ?", name)
    audit.record(tx, actor=actor, act="user removed", kind="user", subject=None, detail=name)


def all_users(db: Database) -> list[User]:
    """Every user, by name."""
    with db.read() as tx:
        return tx.records(User, f"SELECT {_USER} FROM user ORDER BY name")  # noqa: S608


def log_in(db: Database, name: str, password: str) -> str:
    """The secret of a new session; raises NotAllowed, slower and slower for wrong passwords."""
    now = wall_ms()
    with db.read() as tx:
        row = tx.first("SELECT password, locked_ms FROM user WHERE name = ?", name)
    stored, locked_ms = row or (_nobody(), 0)
    if locked_ms > now:
        raise NotAllowed(f"too many wrong passwords; wait {(locked_ms - now) // 1000 + 1} s")
    right = _matches(password, stored)  # also for unknown names: same time, same answer
    if row is None or not right:
        if row is not None:
            _note_failure(db, name, now)
        raise NotAllowed("wrong user name or password")
    return _new_session(db, name, now)


_nobody_hash: list[str] = []


def _nobody() -> str:
    """A hash nobody's password has."""
    if not _nobody_hash:
        _nobody_hash.append(_hashed(secrets.token_hex(16)))
    return _nobody_hash[0]


def _matches(password: str, stored: str) -> bool:
    if len(password) > PASSWORD_MAX:
        return False
    try:
        Argon2id.verify_phc_encoded(password.encode(), stored)
    except InvalidKey:
        return False
    return True


def _note_failure(db: Database, name: str, now: int) -> None:
    with db.write() as tx:
        # Counted in here: guesses made at the same time must not count as one.
        failures = tx.number("SELECT failures FROM user WHERE name = ?", name) + 1
        excess = failures - _FREE_FAILURES
        locked = now + min(_LOCK_MS * 2 ** min(excess, 8), _LOCK_MAX_MS) if excess >= 0 else 0
        tx.run("UPDATE user SET failures = ?, locked_ms = ? WHERE name = ?", failures, locked, name)
        audit.record(tx, actor=name, act="login failed", kind="user", subject=None)


def _new_session(db: Database, name: str, now: int) -> str:
    secret = secrets.token_urlsafe(32)
    with db.write() as tx:
        tx.run("UPDATE user SET failures = 0, locked_ms = 0 WHERE name = ?", name)
        tx.run("DELETE FROM session WHERE seen_ms < ?", now - SESSION_IDLE_MS)
        tx.insert(
            "session",
            {
                "token_sha256": _digest(secret),
                "user": name,
                "csrf": secrets.token_urlsafe(24),
                "created_ms": now,
                "seen_ms": now,
            },
        )
        audit.record(tx, actor=name, act="login", kind="user", subject=None)
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def session(db: Database, secret: str) -> Session | None:
    """The session a cookie's secret belongs to, unless it has ended; using it keeps it alive."""
    now = wall_ms()
    with db.read() as tx:
        found = tx.records(
            Session,
            "SELECT user.name AS user, role, one_time, csrf, session.created_ms, seen_ms "
            "FROM session JOIN user ON user.name = session.user WHERE token_sha256 = ?",
            _digest(secret),
        )
    if not found:
        return None
    one = found[0]
    if now - one.seen_ms > SESSION_IDLE_MS or now - one.created_ms > SESSION_MAX_MS:
        return None
    if now - one.seen_ms > _SEEN_STEP_MS:
        with db.write() as tx:
            tx.run("UPDATE session SET seen_ms = ? WHERE token_sha256 = ?", now, _digest(secret))
    return one


def log_out(db: Database, secret: str) -> None:
    """End a session."""
    with db.write() as tx:
        tx.run("DELETE FROM session WHERE token_sha256 = ?", _digest(secret))


def create_token(tx: Transaction, *, role: Role, actor: str) -> str:
    """A new bearer token; only its digest is kept."""
    secret = "edge_" + secrets.token_urlsafe(32)
    number = tx.insert(
        "token", {"token_sha256": _digest(secret), "role": role, "created_ms": wall_ms()}
    )
    audit.record(tx, actor=actor, act="token created", kind="token", subject=number, detail=role)
    return secret


def role_of_token(db: Database, secret: str) -> Role | None:
    """What a bearer token may do; None when it is not one of ours."""
    with db.read() as tx:
        row = tx.first("SELECT role FROM token WHERE token_sha256 = ?", _digest(secret))
    return Role(row[0]) if row else None
