"""What stands in a node after the power came back, read by a fresh process through the store."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from powercut.load import Key, instance

from edgepacs import config
from edgepacs.errors import EdgePacsError
from edgepacs.model import InstanceId
from edgepacs.store import Store, audit, deliveries, instances, opened
from edgepacs.store.instances import Instance


@dataclass(slots=True)
class Findings:
    """What is wrong; empty when nothing is. `last` is the number of the newest instance row.

    `remade` are instances whose row the start has made again from their object: right for what
    was never answered, wrong for what was, since its row was durable before the answer.
    """

    lost: dict[Key, str] = field(default_factory=dict)
    remade: set[Key] = field(default_factory=set)
    altered: dict[Key, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    last: int = 0


def compare(path: Path, keys: Sequence[Key], after: int) -> Findings:
    """`keys` were acknowledged: each is there, byte for byte, with its delivery and audit record.

    Every row above `after` has its bytes too, acknowledged or not.
    """
    found = Findings()
    with opened(config.load(path)) as store:
        for key in keys:
            _compare_one(store, key, found)
        found.last = _compare_rows(store, after, found)
    return found


def _compare_one(store: Store, key: Key, found: Findings) -> None:
    row = instances.stored_version(store.db, key.uid)
    if row is None:
        found.lost[key] = "no row"
        return
    try:
        data = _data(store, row)
    except EdgePacsError as error:
        found.lost[key] = f"row {row.id}, {type(error).__name__}: {error}"
        return
    if data != instance(key).data:
        found.altered[key] = f"row {row.id}: the data set differs"
    if _is_remade(store, row):
        found.remade.add(key)
    if not deliveries.of_instance(store.db, row.id):
        found.others.append(f"{key}, row {row.id}: no delivery")
    if not audit.of_subject(store.db, "instance", row.id):
        found.others.append(f"{key}, row {row.id}: no audit record")


def _is_remade(store: Store, row: Instance) -> bool:
    """Whether the row knows no association: an object does not remember the one it came over."""
    with store.db.read() as tx:
        return tx.first("SELECT association FROM instance WHERE id = ?", row.id) == (None,)


def _data(store: Store, row: Instance) -> bytes:
    assert row.object_id is not None
    with store.vault.open(row.object_id, row.sop_instance_uid) as reader:
        return b"".join(reader.chunks())


def _compare_rows(store: Store, after: int, found: Findings) -> int:
    """No row without bytes, and none of them other than what was sent; the last row's number."""
    last = after
    for last, uid in _rows(store, after):
        row = instances.instance(store.db, InstanceId(last))
        try:
            if _data(store, row) != instance(Key.of(uid)).data:
                found.others.append(f"row {last}: the data set differs")
        except EdgePacsError as error:
            found.others.append(f"row {last} without bytes: {type(error).__name__}: {error}")
    return last


def _rows(store: Store, after: int) -> Iterable[tuple[int, str]]:
    with store.db.read() as tx:
        return [
            (int(number), str(uid))
            for number, uid in tx.rows(
                "SELECT id, sop_instance_uid FROM instance WHERE id > ? ORDER BY id", after
            )
        ]


def survey(path: Path, keys: Sequence[Key]) -> Findings:
    """Rows and objects of the whole node against each other and against all `keys`, unread.

    The node may run, but nothing may be on its way in: an object with bytes and no row is an
    orphan that the sweep at start has left.
    """
    found = Findings()
    with opened(config.load(path)) as store:
        present = set(store.vault.object_ids())
        known = instances.known_objects(store.db)
        found.others += _strays(store, present - known.keys())
        found.others += [
            f"row {number}: its object is missing"
            for object_id, number in known.items()
            if object_id not in present
        ]
        stored = {uid for _, uid in _rows(store, 0)}
        found.lost.update((key, "no row") for key in keys if key.uid not in stored)
        found.others += [f"index: {words}" for words in store.db.problems()]
        if broken := audit.broken_at(store.db):
            found.others.append(f"audit record {broken} does not follow")
    return found


def _strays(store: Store, strays: Iterable[bytes]) -> Iterator[str]:
    for stray in strays:
        size = store.vault.size(stray)  # type: ignore[arg-type]
        if size:
            yield f"object {stray.hex()} of {size} bytes: no row refers to it"


def sent(path: Path) -> list[str]:
    """The SOP Instance UIDs whose delivery is recorded as sent."""
    with opened(config.load(path)) as store, store.db.read() as tx:
        return [
            str(uid)
            for (uid,) in tx.rows(
                "SELECT i.sop_instance_uid FROM delivery d JOIN instance i ON i.id = d.subject "
                "WHERE d.kind = 'instance' AND d.state = 'sent'"
            )
        ]
