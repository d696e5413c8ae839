"""Matching studies with orders as they change, and carrying out the corrections people ask for."""

import threading

from edgepacs.custody import amendment
from edgepacs.errors import Busy, NoRoom
from edgepacs.store import Store, corrections, reconciliation
from edgepacs.telemetry import log

_LOOK_SECONDS = 1.0


def reconcile(store: Store, stop: threading.Event) -> None:
    """Work until `stop`; raises StorageFault."""
    while not stop.is_set():
        try:
            if reconciliation.look(store.db):
                store.ring("forward")
            amendment.carry_out_waiting(store)
            if corrections.release_after_notes(store.db):
                store.ring("forward")
        except (NoRoom, Busy) as error:  # it is all still there at the next look
            log.warning("orders: not looked at: %s", error)
        stop.wait(_LOOK_SECONDS)
