"""What is left of an instance that went wrong: all that index, vault and keystore say of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from powercut.load import Key

from edgepacs import config
from edgepacs.errors import EdgePacsError
from edgepacs.model import InstanceId, ObjectId
from edgepacs.store import Store, ledger, opened
from edgepacs.store.db import Database
from edgepacs.store.drafts import Draft

_MOST_OBJECTS = 20_000  # looked into for an instance whose row is gone


def examine(path: Path, before: Path, keys: Sequence[Key]) -> list[str]:
    """Lines about `keys` in the node at `path`; `before` holds its index as the cut left it."""
    with opened(config.load(path)) as store:
        return [line for key in keys for line in _examine_one(store, before, key)]


def _examine_one(store: Store, before: Path, key: Key) -> Iterator[str]:
    yield f"{key}"
    yield from (f"  row before the start: {row}" for row in _rows_before(store, before, key))
    for number, object_id, words in _rows(store.db, key):
        yield f"  row now: {words}"
        yield f"    its object {_object(store, ObjectId(object_id))}"
        for delivery in ledger.of_instance(store.db, InstanceId(number)):
            yield f"    delivery: {delivery.state}, {delivery.attempts} attempts"
    yield from (f"  object {_object(store, one)}" for one in _objects(store, key))


def _rows_before(store: Store, before: Path, key: Key) -> Iterator[str]:
    if not (before / "index.db").exists():
        yield "not kept"
        return
    database = Database(before / "index.db", store.keystore.index_key())
    found = [words for _, _, words in _rows(database, key)]
    database.close()
    yield from found or ["none"]


def _rows(database: Database, key: Key) -> list[tuple[int, bytes, str]]:
    with database.read() as tx:
        return [
            (number, object_id, f"{number}, {state}, association {association}, at {at_ms} ms")
            for number, object_id, state, association, at_ms in tx.rows(
                "SELECT id, object_id, state, association, received_ms FROM instance "
                "WHERE sop_instance_uid = ?",
                key.uid,
            )
        ]


def _objects(store: Store, key: Key) -> list[ObjectId]:
    """Every object that says it is this instance; none where there are too many to look into."""
    every = list(store.vault.object_ids())
    if len(every) > _MOST_OBJECTS:
        return []
    return [one for one in every if _uid(store, one) == key.uid]


def _uid(store: Store, object_id: ObjectId) -> str:
    try:
        with store.vault.open(object_id) as reader:
            draft = Draft.from_trailer(reader.trailer(), object_id, 0)
    except EdgePacsError:
        return ""
    return draft.arrival.sop_instance_uid


def _object(store: Store, object_id: ObjectId) -> str:
    name, size = object_id.hex(), store.vault.size(object_id)
    try:
        with store.vault.open(object_id) as reader:
            length = sum(map(len, reader.chunks()))
    except EdgePacsError as error:
        return f"{name}: {size} bytes, {type(error).__name__}: {error}"
    return f"{name}: {size} bytes, opens, {length} bytes of data set"
