"""Disposal: the only place where the bytes of a known instance are deleted.

The row becomes a tombstone in one transaction; only then are the bytes removed. A crash in
between leaves an object only a tombstone names, which the sweep removes.
"""

from edgepacs.model import InstanceId, InstanceState, Receipt
from edgepacs.store import Store, instances


def discard(store: Store, number: InstanceId, *, actor: str) -> None:
    """Give up a version that waits for a decision or was replaced; raises Conflict, NotFound."""
    with store.db.write() as tx:
        old = instances.move(tx, number, InstanceState.DISCARDED, actor=actor)
    store.vault.remove(old.object_id)


def clear_replaced(store: Store, receipt: Receipt) -> None:
    """Remove the earlier copy of a duplicate, now that the row refers to the new one."""
    if receipt.replaced is not None:
        store.vault.remove(receipt.replaced)
