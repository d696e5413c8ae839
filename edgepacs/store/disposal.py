"""Disposal: the only place where the bytes of a known instance are deleted.

The row lets go of its object in one transaction and stays as a tombstone; only then are the
bytes removed. A crash in between leaves an orphan, which the sweep removes.
"""

from edgepacs.model import InstanceId, InstanceState
from edgepacs.store import Store, instances


def discard(store: Store, number: InstanceId, *, actor: str) -> None:
    """Give up a version that waits for a decision or was replaced; raises Conflict, NotFound."""
    with store.db.write() as tx:
        old = instances.move(tx, number, InstanceState.DISCARDED, actor=actor)
        tx.run("UPDATE instance SET object_id = NULL WHERE id = ?", number)
    if old.object_id is not None:
        store.vault.remove(old.object_id)
