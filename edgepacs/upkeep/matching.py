"""Matching studies with orders as they change, and carrying out the corrections people ask for."""

import threading
from datetime import timedelta

from edgepacs.clock import monotonic, wall_ms
from edgepacs.custody import amendment
from edgepacs.errors import Busy, NoRoom
from edgepacs.store import Store, corrections, hours, reconciliation, worklist
from edgepacs.telemetry import log

_LOOK_SECONDS = 1.0
_RETIRE_SECONDS = 3600.0
PAST_DAYS = 14  # a step that was to be done so long ago, and was not, is offered no more


def reconcile(store: Store, stop: threading.Event) -> None:
    """Work until `stop`; raises StorageFault."""
    retire_at = 0.0  # monotonic
    while not stop.is_set():
        try:
            if monotonic() >= retire_at:
                retire_past(store)
                retire_at = monotonic() + _RETIRE_SECONDS
            if reconciliation.look(store.db):
                store.ring("forward")
            amendment.carry_out_waiting(store)
            if corrections.release_after_notes(store.db):
                store.ring("forward")
        except (NoRoom, Busy) as error:  # it is all still there at the next look
            log.warning("orders: not looked at: %s", error)
        stop.wait(_LOOK_SECONDS)


def retire_past(store: Store) -> int:
    """Retire the entries that are long past; how many. They are kept, and can be reopened."""
    before = hours.day_of(wall_ms() / 1000) - timedelta(days=PAST_DAYS)
    with store.db.write() as tx:
        return worklist.retire_past(tx, f"{before:%Y%m%d}", actor="upkeep")
