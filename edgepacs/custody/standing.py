"""Instances as they stand at rest: the row as it is now, its object, and its bytes as they leave.

Apart from what decodes, so that the receiver gives out what it holds without loading codecs.
"""

from collections.abc import Iterable
from typing import NamedTuple

from edgepacs.errors import Gone, NotFound
from edgepacs.model import UID, InstanceState, ObjectId
from edgepacs.store import Store, instances
from edgepacs.store.instances import Instance
from edgepacs.store.vault import ObjectReader

GROUP_2 = "group-2-in-data-set"  # the flag of an instance that holds elements of group 0002


class Opened(NamedTuple):
    """The row of an instance as it is now, and the object that stands for it."""

    instance: Instance
    reader: ObjectReader


def opened(store: Store, instance: Instance) -> Opened:
    """Open the object of an instance; whoever reads it goes by the row that comes back with it.

    A rewrite is always a new object, perhaps in another transfer syntax: where the object is gone
    the row is read once more. Raises NotFound, Gone once it is evicted, Tampered.
    """
    try:
        return Opened(instance, store.vault.open(object_of(instance), instance.sop_instance_uid))
    except NotFound:
        again = instances.instance(store.db, instance.id)
        if again.object_id == instance.object_id and not again.state.gone:
            raise
        return Opened(again, store.vault.open(object_of(again), again.sop_instance_uid))


def object_of(instance: Instance) -> ObjectId:
    """The object an instance stands in; raises Gone for a tombstone."""
    if instance.state is InstanceState.EVICTED:
        raise Gone("instance: evicted; it has arrived at its destinations and was deleted here")
    if instance.state.gone:
        raise Gone(f"instance: its bytes are deleted; it is {instance.state}")
    return instance.object_id


def as_it_leaves(pieces: Iterable[bytes], now: Instance, uid: UID) -> Iterable[bytes]:
    """A data set as it stands in the transfer syntax `uid`, but for elements of group 0002."""
    if GROUP_2 not in now.flags.split():
        return pieces
    # Few instances hold such elements, and codecs come along.
    from edgepacs.custody.export import without_group_2  # noqa: PLC0415

    return without_group_2(pieces, uid)
