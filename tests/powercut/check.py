"""What stands in a node after the power came back, read by a fresh process through the store."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from harness.waiting import until
from powercut.load import Key, instance

from edgepacs import config
from edgepacs.custody import restore
from edgepacs.errors import EdgePacsError
from edgepacs.model import InstanceId, ObjectId
from edgepacs.store import Store, audit, compressions, instances, ledger, opened
from edgepacs.store.compressions import Selection
from edgepacs.store.instances import Instance

_SWEEP_SECONDS = 20.0


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

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.lost) + len(self.remade) + len(self.altered) + len(self.others)


class Row(NamedTuple):
    """What is asked of a row of `instance`."""

    id: int
    uid: str
    object_id: bytes
    association: int | None


def compare(path: Path, keys: Sequence[Key], after: int) -> Findings:
    """`keys` were acknowledged: each is there, byte for byte, with its delivery and audit record.

    Every row above `after` has its bytes too, acknowledged or not.
    """
    found = Findings()
    with opened(config.load(path)) as store:
        seen = {_compare_one(store, key, found) for key in keys}
        found.last = after
        for row in _rows(store, after):
            found.last = row.id
            if row.id not in seen:
                _compare_row(store, row, found)
    return found


def _compare_one(store: Store, key: Key, found: Findings) -> int:
    """Compare one acknowledged instance; the number of its row, 0 where there is none."""
    row = instances.stored_version(store.db, key.uid)
    if row is None:
        found.lost[key] = "no row"
        return 0
    try:
        data = _data(store, row)
    except EdgePacsError as error:
        found.lost[key] = f"row {row.id}, {type(error).__name__}: {error}"
        return row.id
    if data != instance(key).data:
        found.altered[key] = f"row {row.id}: the data set differs"
    if _rows(store, row.id - 1, row.id)[0].association is None:
        found.remade.add(key)  # an object does not remember the association it came over
    if not ledger.of_instance(store.db, row.id):
        found.others.append(f"{key}, row {row.id}: no delivery")
    if not audit.of_subject(store.db, "instance", row.id):
        found.others.append(f"{key}, row {row.id}: no audit record")
    return row.id


def _data(store: Store, row: Instance) -> bytes:
    """The data set as it was received, however it stands at rest."""
    return b"".join(restore.received_chunks(store, row))


def _compare_row(store: Store, row: Row, found: Findings) -> None:
    """No row without bytes, and none of them other than what was sent."""
    try:
        data = _data(store, instances.instance(store.db, InstanceId(row.id)))
    except EdgePacsError as error:
        found.others.append(f"row {row.id} without bytes: {type(error).__name__}: {error}")
        return
    if data != instance(Key.of(row.uid)).data:
        found.others.append(f"row {row.id}: the data set differs")


def _rows(store: Store, after: int, last: int = sys.maxsize) -> list[Row]:
    with store.db.read() as tx:
        return [
            Row(*row)
            for row in tx.rows(
                "SELECT id, sop_instance_uid, object_id, association FROM instance "
                "WHERE id > ? AND id <= ? ORDER BY id",
                after,
                last,
            )
        ]


def survey(path: Path, keys: Sequence[Key], patience: float = _SWEEP_SECONDS) -> Findings:
    """Rows and objects of the whole node against each other and against all `keys`, unread.

    The node may run, but nothing may be on its way in: an object with bytes and no row is then
    an orphan that the sweep, which may go on for `patience` seconds, has left.
    """
    found = Findings()
    with opened(config.load(path)) as store:
        with suppress(AssertionError):
            until(lambda: not _strays(store), "the sweep has ended", seconds=patience)
        found.others += [
            f"object {stray.hex()} of {store.vault.size(stray)} bytes: no row names it"
            for stray in _strays(store)
        ]
        rows, present = _rows(store, 0), set(store.vault.object_ids())
        found.others += [
            f"row {row.id}: its object is missing" for row in rows if row.object_id not in present
        ]
        stored = {row.uid for row in rows}
        found.lost.update((key, "no row") for key in keys if key.uid not in stored)
        found.others += [f"index: {words}" for words in store.db.problems()]
        if broken := audit.broken_at(store.db):
            found.others.append(f"audit record {broken} does not follow")
    return found


def _strays(store: Store) -> list[ObjectId]:
    """Objects with bytes that no row names; the others are blanks kept at hand."""
    present = set(store.vault.object_ids())  # listed first: what is committed now has a row then
    unknown = present.difference(row.object_id for row in _rows(store, 0))
    return [stray for stray in unknown if store.vault.size(stray)]


def compressing(path: Path, seconds: float) -> None:
    """Wait until a worker has been given something."""
    with opened(config.load(path)) as store:
        until(lambda: _count(store, "'compressing'"), "something is compressed", seconds=seconds)


def settled(path: Path, seconds: float) -> None:
    """Wait until nothing is left to be compressed, nor begun."""
    with opened(config.load(path)) as store:
        until(
            lambda: (
                not compressions.pending(store.db) and not _count(store, "'waiting', 'compressing'")
            ),
            "nothing is left to be compressed",
            seconds=seconds,
            every=0.2,
        )


def _count(store: Store, states: str) -> int:
    with store.db.read() as tx:
        return tx.number(f"SELECT COUNT(*) FROM compression WHERE state IN ({states})")


def compressed(path: Path) -> dict[str, list[int]]:
    """How often each instance has been tried, by how it stands."""
    found: dict[str, list[int]] = {}
    with opened(config.load(path)) as store:
        for one in compressions.results(store.db, Selection()):
            found.setdefault(one.state, []).append(one.attempts)
    return found


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
