"""Rejection notes that came from elsewhere: read as they come, and what they say done."""

import threading

from edgepacs.custody import rejection
from edgepacs.errors import Busy, EdgePacsError, NoRoom, StorageFault
from edgepacs.store import Store, rejections
from edgepacs.store.instances import Instance
from edgepacs.telemetry import log

_LOOK_SECONDS = 1.0


def heed(store: Store, stop: threading.Event) -> None:
    """Work until `stop`; raises StorageFault."""
    while not stop.is_set():
        try:
            read_waiting(store)
        except (NoRoom, Busy) as error:  # it is all still there at the next look
            log.warning("rejection notes: not looked at: %s", error)
        stop.wait(_LOOK_SECONDS)


def read_waiting(store: Store) -> int:
    """Read the notes that wait, and do what they say; how many there were.

    One that cannot be read is passed over, and says so in its row: people still see it.
    """
    rejections.settle(store.db)
    waiting = rejections.unread(store.db)
    for one in waiting:
        _read(store, one)
    return len(waiting)


def _read(store: Store, one: Instance) -> None:
    try:
        note = rejection.read(store, one)
    except (StorageFault, NoRoom, Busy):
        raise
    except EdgePacsError as error:
        log.warning("instance %d: not read as a rejection note: %s", one.id, error)
        rejections.passed_over(store.db, one.id, str(error))
        return
    if note is None:
        rejections.passed_over(store.db, one.id)
    else:
        rejections.reject(store.db, one, note.title, note.instances)
