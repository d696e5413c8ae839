"""Disposal: the only place where the bytes of a known instance are deleted.

The row becomes a tombstone in one transaction; only then are the bytes removed. A crash in
between leaves an object only a tombstone names, which the sweep removes.
"""

from collections.abc import Iterable

from edgepacs.model import InstanceId, InstanceState, ObjectId, Receipt
from edgepacs.store import Store, instances
from edgepacs.telemetry import failpoint, log


def discard(store: Store, number: InstanceId, *, actor: str) -> None:
    """Give up a version that waits for a decision or was replaced; raises Conflict, NotFound."""
    with store.db.write() as tx:
        old = instances.move(tx, number, InstanceState.DISCARDED, actor=actor)
    _remove(store, old.object_id)


def clear_replaced(store: Store, receipt: Receipt) -> None:
    """Remove the earlier copy of a duplicate, now that the row refers to the new one."""
    if receipt.replaced is not None:
        _remove(store, receipt.replaced)


def clear_swapped(store: Store, former: ObjectId) -> None:
    """Remove what an instance stood in before, now that its row refers to another object."""
    _remove(store, former)


def clear_evicted(store: Store, objects: Iterable[ObjectId]) -> None:
    """Remove what was evicted, now that only tombstones name it (`evictions`)."""
    for object_id in objects:
        _remove(store, object_id)
        failpoint("evict.removed")


def _remove(store: Store, object_id: ObjectId) -> None:
    """Delete the bytes; where that fails they stay for the sweep.

    What was decided is durable by now: nobody must be told that it was not.
    """
    failpoint("disposal.decided")
    try:
        store.vault.remove(object_id)
    except OSError as error:
        log.warning("an object that was given up stays until the next start: %s", error.strerror)
