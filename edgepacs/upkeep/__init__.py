"""The work behind the acknowledgement: versions, compression, retention, orders; scrub later."""

import threading
from collections.abc import Callable
from functools import partial

from edgepacs.store import Store
from edgepacs.telemetry import Doorbell
from edgepacs.upkeep.comparison import compare_waiting
from edgepacs.upkeep.crew import Crew
from edgepacs.upkeep.matching import reconcile
from edgepacs.upkeep.rejections import heed
from edgepacs.upkeep.retention import Retention

_LOOK_SECONDS = 60.0  # how often the table is looked at without a ring
_Work = Callable[[threading.Event], None]


def run(store: Store, stop: threading.Event) -> None:
    """Work until `stop`; raises what crew or retention cannot go on after."""
    bell = Doorbell(store.paths.doorbell("upkeep"))
    threading.Thread(target=_ring_at_stop, args=(bell, stop), daemon=True).start()
    failures: list[BaseException] = []
    works: list[_Work] = [Retention(store).run, partial(reconcile, store), partial(heed, store)]
    if store.config.compression.workers:
        works.append(Crew(store).run)
    threads = [threading.Thread(target=_work, args=(one, stop, failures)) for one in works]
    for thread in threads:
        thread.start()
    try:
        while not stop.is_set():
            compare_waiting(store)
            bell.wait(_LOOK_SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _work(work: _Work, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        work(stop)
    except BaseException as error:  # noqa: BLE001  it is raised again by the role
        failures.append(error)
        stop.set()


def _ring_at_stop(bell: Doorbell, stop: threading.Event) -> None:
    stop.wait()
    bell.ring()
