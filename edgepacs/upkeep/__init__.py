"""The work behind the acknowledgement: comparing versions, and compression; scrub later."""

import threading

from edgepacs.store import Store
from edgepacs.telemetry import Doorbell
from edgepacs.upkeep.comparison import compare_waiting
from edgepacs.upkeep.crew import Crew

_LOOK_SECONDS = 60.0  # how often the table is looked at without a ring


def run(store: Store, stop: threading.Event) -> None:
    """Work until `stop`; raises what the crew of workers cannot go on after."""
    bell = Doorbell(store.paths.doorbell("upkeep"))
    threading.Thread(target=_ring_at_stop, args=(bell, stop), daemon=True).start()
    failures: list[BaseException] = []
    crew = threading.Thread(target=_compress, args=(store, stop, failures))
    if store.config.compression.workers:
        crew.start()
    try:
        while not stop.is_set():
            compare_waiting(store)
            bell.wait(_LOOK_SECONDS)
    finally:
        stop.set()
        if crew.ident is not None:
            crew.join()
    if failures:
        raise failures[0]


def _compress(store: Store, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        Crew(store).run(stop)
    except BaseException as error:  # noqa: BLE001  it is raised again by the role
        failures.append(error)
        stop.set()


def _ring_at_stop(bell: Doorbell, stop: threading.Event) -> None:
    stop.wait()
    bell.ring()
