"""The encrypted index: the only user of apsw and the only place that opens the database.

Reads run on snapshots from a small pool of connections. Every write goes through `write`: one
lock across threads and processes, then BEGIN IMMEDIATE, so that writers queue instead of
failing; what it commits is synced (WAL with synchronous=FULL) before it returns.
"""

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import apsw

from edgepacs.errors import (
    Busy,
    ConfigurationError,
    EdgePacsError,
    NoRoom,
    NotFound,
    SchemaTooNew,
    StorageFault,
    Tampered,
    WrongKey,
)
from edgepacs.store.files import read_anew

OLDEST_SQLITE = (3, 51, 3)  # earlier ones can corrupt a WAL database when it is reset
_BUSY_MS = 30_000
_LOG_PAGES = 1000  # of the write-ahead log, from which on `keep_log_short` empties it
_LOG_PAGES_MOST = 8000  # from which on a writer does
_LOG_SECONDS = 0.2
_Record = TypeVar("_Record")
Value = str | int | float | bytes | None


class Transaction:
    """Statements within one transaction, or on one snapshot."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def run(self, sql: str, *values: Value) -> int:
        """Execute one statement; the number of rows it changed."""
        self._connection.execute(sql, values)
        return self._connection.changes()

    def insert(self, table: str, row: dict[str, Value]) -> int:
        """Insert `row` into `table`; its row number."""
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" * len(row))
        sql = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608  own names only
        self._connection.execute(sql, tuple(row.values()))
        return self._connection.last_insert_rowid()

    def rows(self, sql: str, *values: Value) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return list(self._connection.execute(sql, values))

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """A part of the transaction that is undone by itself when it raises."""
        with self._connection:  # a savepoint: apsw begins no transaction inside another
            yield

    def each(self, sql: str, *values: Value) -> Generator[tuple[Any, ...]]:
        """The rows of a query one by one, for what is not to be held in memory all at once.

        To be closed within the transaction: a query that is not over would hold its snapshot.
        """
        cursor = self._connection.execute(sql, values)
        try:
            yield from cursor
        finally:
            cursor.close()

    def first(self, sql: str, *values: Value) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        return next(iter(self._connection.execute(sql, values)), None)

    def number(self, sql: str, *values: Value) -> int:
        """The single whole number a query answers; 0 for none."""
        row = self.first(sql, *values)
        return int(row[0] or 0) if row else 0

    def records(self, kind: type[_Record], sql: str, *values: Value) -> list[_Record]:
        """All rows of a query as dataclasses of `kind`, columns matched to fields by name.

        A field of a str-enum type gets its member, so that rows never carry bare state words.
        """
        cursor = self._connection.execute(sql, values)
        makers = _makers(kind)
        made = []
        names: list[str] = []
        for row in cursor:
            if not names:
                names = [column[0] for column in cursor.get_description()]
            pairs = zip(names, row, strict=True)
            made.append(kind(**{n: makers[n](v) if n in makers else v for n, v in pairs}))
        return made

    def record(self, kind: type[_Record], missing: str, sql: str, *values: Value) -> _Record:
        """The one row of a query; raises NotFound with `missing` when there is none."""
        found = self.records(kind, sql, *values)
        if not found:
            raise NotFound(missing)
        return found[0]


def _makers(kind: type) -> dict[str, Any]:
    made = _MAKERS.get(kind)
    if made is None:
        made = {f.name: f.metadata["make"] for f in fields(kind) if "make" in f.metadata}
        _MAKERS[kind] = made
    return made


_MAKERS: dict[type, dict[str, Any]] = {}


class Database:
    """The index at `path`, open under `key`; shared by the threads of one process."""

    def __init__(self, path: Path, key: bytes) -> None:
        if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_SQLITE:
            raise ConfigurationError("SQLite is older than 3.51.3; install the locked packages")
        self.path = path
        self._key = key
        self._idle: queue.LifoQueue[apsw.Connection] = queue.LifoQueue()
        self._write_lock = threading.Lock()
        self._log_pages = 0
        self._fault: StorageFault | None = None
        self._lock_file = path.with_name(path.name + ".lock").open("ab")
        read_anew(path.with_name(path.name + "-wal"))  # what a failed sync left is not on the disk
        try:
            with _translated(path):
                self._writer = self._connect()
                self._require_key()
        except StorageFault as fault:
            if os.statvfs(path.parent).f_bavail:
                raise
            raise NoRoom(f"{path.name}: the disk is full") from fault  # for SQLite's own files
        self._writer.set_wal_hook(self._note_log)

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(_BUSY_MS)
        # Plans that do not depend on bound values: or a statement is compiled at every use.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        connection.pragma("cipher", "chacha20")
        connection.pragma("key", "raw:" + self._key.hex())
        return connection

    def _require_key(self) -> None:
        """Fail early and clearly when the key does not fit; then choose how to write."""
        try:
            self._configure(self._writer)
        except apsw.NotADBError:
            raise WrongKey(f"{self.path}: the index does not open with this node's key") from None

    @staticmethod
    def _configure(connection: apsw.Connection) -> None:
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("temp_store", 2)  # memory: no temporary file may hold plaintext
        connection.pragma("foreign_keys", 1)
        connection.pragma("cache_size", -4096)
        connection.pragma("trusted_schema", 0)
        connection.pragma("wal_autocheckpoint", 0)  # `_checkpoint` says when it fails

    def _note_log(self, _: apsw.Connection, __: str, pages: int) -> int:
        """Called after every commit. In place of SQLite's own checkpoint, which hides errors."""
        self._log_pages = pages
        return apsw.SQLITE_OK

    def keep_log_short(self, stop: threading.Event) -> None:
        """Until `stop`, carry what was committed from the log into the index, off every path."""
        while not stop.wait(_LOG_SECONDS):
            if self._log_pages >= _LOG_PAGES and self._fault is None:
                with contextlib.suppress(StorageFault):  # `write` raises it
                    self._checkpoint()

    def _checkpoint(self) -> None:
        """Shorten the log; a failure is kept: another sync would answer yes for what is lost."""
        try:
            with _translated(self.path), self._connection() as connection:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._log_pages = 0
        except (NoRoom, Busy):
            return  # the log stays as it is until there is room
        except EdgePacsError as error:  # the commit before it stands: only a fault may follow it
            self._fault = StorageFault(str(error))
            raise self._fault from error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[apsw.Connection]:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
            self._configure(connection)
        try:
            yield connection
        finally:
            self._idle.put(connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """A snapshot for reading."""
        with _translated(self.path), self._connection() as connection:
            try:
                connection.execute("BEGIN")
                yield Transaction(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """The one way to write: durable when the block has ended, undone when it raised."""
        with (
            self._write_lock,
            self._across_processes(),
            self._while_sound(),
            _translated(self.path),
        ):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._writer)
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
        if self._log_pages >= _LOG_PAGES_MOST:
            self._checkpoint()

    @contextlib.contextmanager
    def _while_sound(self) -> Iterator[None]:
        """Write nothing more once the device has failed: the page cache may lie."""
        if self._fault is not None:
            raise StorageFault(str(self._fault))
        try:
            yield
        except StorageFault as fault:
            self._fault = fault
            raise

    @contextlib.contextmanager
    def _across_processes(self) -> Iterator[None]:
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def schema_version(self) -> int:
        """The number of the last migration this index has had."""
        return int(self._writer.pragma("user_version"))

    def require_current(self) -> None:
        """Raise unless this code and this index agree on the schema."""
        have, want = self.schema_version(), migrations()[-1][0]
        if have > want:
            raise SchemaTooNew(
                f"{self.path}: schema {have} is newer than this EdgePACS knows ({want})"
            )
        if have < want:
            raise ConfigurationError(
                f"{self.path}: schema {have} is older than {want}; run `edgepacs migrate`"
            )

    def migrate(self) -> list[str]:
        """Apply what is missing, one transaction each; the names of what was applied."""
        if self.schema_version() > migrations()[-1][0]:
            self.require_current()
        applied = []
        for version, name, sql in migrations():
            with self.write() as tx:
                if self.schema_version() >= version:
                    continue
                tx.run(sql)
                tx.run(f"PRAGMA user_version = {version}")
            applied.append(name)
        return applied

    def problems(self) -> Sequence[str]:
        """What SQLite's own integrity check says is wrong; empty when nothing is."""
        with self.read() as tx:
            found = [str(row[0]) for row in tx.rows("PRAGMA integrity_check")]
            keys = tx.rows("PRAGMA foreign_key_check")
        return [text for text in found if text != "ok"] + [
            f"row {row[1]} of {row[0]} refers to a missing {row[2]}" for row in keys
        ]

    def close(self) -> None:
        """Close every connection."""
        while not self._idle.empty():
            self._idle.get().close()
        self._writer.close()
        self._lock_file.close()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's own errors as ours."""
    try:
        yield
    except apsw.FullError as error:
        raise NoRoom(f"{path.name}: the disk is full") from error
    except (apsw.IOError, apsw.CantOpenError) as error:
        raise StorageFault(f"{path.name}: the storage device failed") from error
    except apsw.BusyError as error:
        raise Busy(f"{path}: in use by another program") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise Tampered(f"{path}: the index does not authenticate") from error


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, SQL) of every migration, in order."""
    folder = resources.files("edgepacs.store") / "schema"
    found = [item for item in folder.iterdir() if item.name.endswith(".sql")]
    return sorted((int(f.name[:4]), f.name, f.read_text("utf-8")) for f in found)
