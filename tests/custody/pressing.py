"""Compression at rest without worker processes: plan, claim, compress and settle, in turn."""

from edgepacs.custody import restore, standing
from edgepacs.custody.compress import Kept, compress
from edgepacs.model import InstanceId
from edgepacs.store import Store, compressions, disposal, instances
from edgepacs.store.compressions import Claim, Made
from edgepacs.store.instances import Instance
from edgepacs.store.vault import new_object_id


def claim(store: Store, most: int = 1) -> list[Claim]:
    """The next instances, planned where they are new."""
    with store.db.write() as tx:
        compressions.plan(tx)
        return compressions.claim(tx, most)


def press(store: Store, extra: tuple[str, ...] = ()) -> dict[InstanceId, Made | Kept]:
    """Compress whatever waits, as the crew does; what came of each."""
    done: dict[InstanceId, Made | Kept] = {}
    while claims := claim(store, 8):
        for one in claims:
            done[one.instance] = found = compress(store, one, new_object_id(), extra)
            settle(store, one, found)
    return done


def settle(store: Store, claimed: Claim, found: Made | Kept) -> None:
    """Write down what came of one claim."""
    with store.db.write() as tx:
        if isinstance(found, Kept):
            compressions.keep(tx, claimed, found.reason)
            return
        compressions.swap(tx, claimed, found)
    disposal.clear_swapped(store, claimed.object_id)


def row(store: Store, number: InstanceId) -> Instance:
    return instances.instance(store.db, number)


def received(store: Store, number: InstanceId) -> bytes:
    """The data set of an instance as it was received."""
    return b"".join(restore.received_chunks(store, row(store, number)))


def sealed(store: Store, number: InstanceId) -> bytes:
    """The data set of an instance as it stands."""
    with standing.opened(store, row(store, number)).reader as reader:
        return b"".join(reader.chunks())
