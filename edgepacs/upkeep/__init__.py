"""The work behind the acknowledgement: comparing versions now; compression and scrub later."""

import threading

from edgepacs.store import Store
from edgepacs.telemetry import Doorbell
from edgepacs.upkeep.comparison import compare_waiting

_LOOK_SECONDS = 60.0  # how often the table is looked at without a ring


def run(store: Store, stop: threading.Event) -> None:
    """Work until `stop`."""
    bell = Doorbell(store.paths.doorbell("upkeep"))
    threading.Thread(target=_ring_at_stop, args=(bell, stop), daemon=True).start()
    while not stop.is_set():
        compare_waiting(store)
        bell.wait(_LOOK_SECONDS)


def _ring_at_stop(bell: Doorbell, stop: threading.Event) -> None:
    stop.wait()
    bell.ring()
