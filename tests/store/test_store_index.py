import base64
import multiprocessing
import threading
from pathlib import Path

import pytest
from store.making import commit, draft, node_in

from edgepacs.errors import (
    ConfigurationError,
    Conflict,
    NotFound,
    SchemaTooNew,
    Tampered,
    WrongKey,
)
from edgepacs.model import InstanceId, InstanceState
from edgepacs.store import Store, instances
from edgepacs.store.db import Database, migrations
from edgepacs.store.keystore import new_key

KEY = bytes(range(32))


@pytest.fixture
def db(tmp_path: Path) -> Database:
    made = Database(tmp_path / "index.db", KEY)
    made.migrate()
    with made.write() as tx:
        tx.run("CREATE TABLE counter (n INTEGER)")
        tx.run("INSERT INTO counter VALUES (0)")
    return made


def _count(db: Database, times: int) -> None:
    for _ in range(times):
        with db.write() as tx:
            n = tx.number("SELECT n FROM counter")
            tx.run("UPDATE counter SET n = ?", n + 1)


def _count_in_process(path: Path, times: int) -> None:
    db = Database(path, KEY)
    threads = [threading.Thread(target=_count, args=(db, times)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.close()


def test_writers_in_processes_and_threads_lose_nothing(db: Database) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_in_process, args=(db.path, 25)) for _ in range(3)]
    for worker in workers:
        worker.start()
    _count(db, 25)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with db.read() as tx:
        assert tx.number("SELECT n FROM counter") == 3 * 2 * 25 + 25


def test_a_failed_write_changes_nothing(db: Database) -> None:
    def fail() -> None:
        with db.write() as tx:
            tx.run("UPDATE counter SET n = 5")
            raise Conflict("no")

    with pytest.raises(Conflict):
        fail()
    with db.read() as tx:
        assert tx.number("SELECT n FROM counter") == 0
    _count(db, 1)  # and the lock is free again
    with db.read() as tx:
        assert tx.number("SELECT n FROM counter") == 1


def test_a_reader_keeps_its_snapshot(db: Database) -> None:
    with db.read() as tx:
        assert tx.number("SELECT n FROM counter") == 0
        _count(db, 3)
        assert tx.number("SELECT n FROM counter") == 0
        with db.read() as other:
            assert other.number("SELECT n FROM counter") == 3


def test_readers_cannot_write(db: Database) -> None:
    with db.read() as tx:
        tx.run("UPDATE counter SET n = 9")
    with db.read() as tx:
        assert tx.number("SELECT n FROM counter") == 0


def test_a_newer_schema_is_refused_and_an_older_says_what_to_do(db: Database) -> None:
    db.require_current()
    last = migrations()[-1][0]
    with db.write() as tx:
        tx.run(f"PRAGMA user_version = {last + 1}")
    for act in (db.require_current, db.migrate):
        with pytest.raises(SchemaTooNew, match=f"{last + 1}.*{last}"):
            act()
    with db.write() as tx:
        tx.run(f"PRAGMA user_version = {last - 1}")
    with pytest.raises(ConfigurationError, match="edgepacs migrate"):
        db.require_current()


def _migrate(path: Path) -> None:
    db = Database(path, KEY)
    db.migrate()
    db.require_current()
    db.close()


def test_migrations_are_applied_once_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_migrate, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    db = Database(path, KEY)
    db.migrate()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert db.migrate() == []
    assert db.problems() == []
    numbers = [number for number, _, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_settings_that_durability_stands_on(db: Database) -> None:
    with db.write() as tx:
        for pragma, wanted in (
            ("journal_mode", "wal"),
            ("synchronous", 2),  # FULL: the WAL is synced at every commit
            ("temp_store", 2),
            ("foreign_keys", 1),
            ("trusted_schema", 0),
        ):
            assert tx.rows(f"PRAGMA {pragma}")[0][0] == wanted, pragma
    with db.read() as tx:
        assert tx.rows("PRAGMA foreign_keys")[0][0] == 1
        assert tx.rows("PRAGMA temp_store")[0][0] == 2


def test_another_key_is_refused(db: Database) -> None:
    db.close()
    for key in (new_key(), bytes(32)):
        with pytest.raises(WrongKey, match="index"):
            Database(db.path, key)


def test_nothing_of_a_patient_stands_in_any_file(store: Store) -> None:
    canaries = ["Zebulon^Quartermaine", "PID-7731-4419-0042", "2.25.77314419004277314419"]
    commit(
        store,
        draft(
            store,
            name=canaries[0],
            patient_id=canaries[1],
            sop=canaries[2],
            study="2.25.9914419004277314418",
            description="Cardiac follow-up Quartermaine",
            station="ROOM-NINE-ECHO",
        ),
    )
    wanted = [*canaries, "Quartermaine", "2.25.9914419004277314418", "ROOM-NINE-ECHO"]
    files = [p for p in store.config.path.parent.rglob("*") if p.is_file()]
    assert any(p.name == "index.db-wal" and p.stat().st_size for p in files)
    for path in files:
        raw = path.read_bytes()
        assert b"SQLite format 3" not in raw
        for text in wanted:
            for form in (
                text.encode(),
                text.encode("utf-16-le"),
                text.encode("utf-16-be"),
                base64.b64encode(text.encode())[:-4],
                text.encode().hex().encode(),
            ):
                assert form not in raw, f"{path.name} holds {text}"
                assert form not in str(path).encode()


def test_damage_to_any_page_is_never_an_answer(store: Store) -> None:
    """Whatever byte of the index is flipped: the same answer as before, or none."""
    for number in range(40):
        commit(store, draft(store, name=f"Patient{number}^X", study=f"1.2.{number}"))
    key = store.keystore.index_key()
    path = store.paths.index
    with store.db.write() as tx:
        tx.rows("SELECT 1")
    store.close()  # the WAL goes into the database
    assert not path.with_name("index.db-wal").exists()
    whole = path.read_bytes()

    def answer() -> list[tuple[str]]:
        db = Database(path, key)
        try:
            with db.read() as tx:
                names = tx.rows("SELECT patient_name FROM study ORDER BY id")
            return names if not db.problems() else []
        finally:
            db.close()

    before = answer()
    assert len(before) == 40
    noticed = 0
    for place in range(11, len(whole), 4099):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert answer() == before
        except (Tampered, WrongKey):
            noticed += 1
    assert noticed > len(whole) // 4099 // 2


def test_records_carry_states_and_single_ones_are_found_or_not(store: Store) -> None:
    receipt = commit(store, draft(store))
    assert instances.instance(store.db, receipt.instance_id).state is InstanceState.STORED
    with pytest.raises(NotFound, match="instance 99"):
        instances.instance(store.db, InstanceId(99))


def test_an_index_that_is_gone_or_no_file_is_named(tmp_path: Path) -> None:
    config = node_in(tmp_path / "node")
    index = config.data_dir / "index.db"
    index.rename(tmp_path / "moved")
    with pytest.raises(ConfigurationError, match=r"index\.db.*rebuild"):
        Store.open(config)
    index.mkdir()
    with pytest.raises(Exception, match=r"index\.db") as caught:
        Store.open(config)
    assert type(caught.value).__module__ == "edgepacs.errors"


def test_rows_that_refer_to_nothing_are_reported(store: Store) -> None:
    assert store.db.problems() == []
    commit(store, draft(store))
    assert store.db.problems() == []
    store.db._writer.pragma("foreign_keys", 0)
    with store.db.write() as tx:
        tx.run("DELETE FROM series")
    assert [text for text in store.db.problems() if "instance" in text and "series" in text]
