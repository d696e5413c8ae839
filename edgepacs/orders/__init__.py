"""Orders: where the worklist comes from, by HL7 v2 messages and from the central RIS.

What HL7 messages this node sends goes from here as well.
"""

import threading
from collections.abc import Callable

from edgepacs.clock import wall_ms
from edgepacs.store import Store, destinations, sources
from edgepacs.telemetry import Doorbell

_LOOK_SECONDS = 5.0  # how often the table of worklists upstream is looked at without a ring
_TELL_SECONDS = 2.0  # how soon a message of ours goes
_STEP_SECONDS = 0.2  # how soon an end is noticed
_Work = Callable[[threading.Event], None]


def run(store: Store, stop: threading.Event, ready: threading.Event | None = None) -> None:
    """Take messages, ask worklists upstream and tell destinations of patients until `stop`.

    `ready` is set once senders can connect, where any may. Raises ConfigurationError, and
    StorageFault when the storage device failed.
    """
    failures: list[BaseException] = []
    works: list[_Work] = [lambda ended: _ask(store, ended), lambda ended: _tell(store, ended)]
    hl7 = store.config.hl7
    if hl7.port or hl7.tls_port:
        works.append(_listening(store, ready or threading.Event()))
    ended = threading.Event()
    threads = [threading.Thread(target=_work, args=(one, ended, failures)) for one in works]
    for thread in threads:
        thread.start()
    while not ended.is_set():
        if stop.wait(_STEP_SECONDS):
            ended.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _work(work: _Work, ended: threading.Event, failures: list[BaseException]) -> None:
    """Do one work; when it is over, for whatever reason, so are the others."""
    try:
        work(ended)
    except BaseException as error:  # noqa: BLE001  it is raised again by `run`
        failures.append(error)
    finally:
        ended.set()


def _listening(store: Store, ready: threading.Event) -> _Work:
    """What takes messages. The parser is loaded here alone: most nodes need none."""
    from edgepacs.orders.listener import Listener  # noqa: PLC0415
    from edgepacs.orders.mapping import load  # noqa: PLC0415
    from edgepacs.orders.reception import Reception  # noqa: PLC0415

    reception = Reception(store, load(store.config.hl7_mapping))
    listener = Listener(store, reception)

    def work(stop: threading.Event) -> None:
        reception.apply_waiting()  # what a crash has left goes before anything newer
        listener.run(stop, ready)

    return work


def _ask(store: Store, stop: threading.Event) -> None:
    """Ask every worklist upstream when it is due."""
    bell = Doorbell(store.paths.doorbell("orders"))
    threading.Thread(target=_ring_at_stop, args=(bell, stop), daemon=True).start()
    while not stop.is_set() and store.vault.fault is None:
        if _any_due(store):
            from edgepacs.orders import upstream  # noqa: PLC0415  with what reads text of any set

            upstream.ask_due(store, stop)
        bell.wait(_LOOK_SECONDS)


def _tell(store: Store, stop: threading.Event) -> None:
    """Tell destinations of patients that are called otherwise now, where any wants it."""
    teller = None
    while not stop.wait(_TELL_SECONDS) and store.vault.fault is None:
        if teller is None and any(one.adt for one in destinations.every(store.db)):
            from edgepacs.orders.sending import Teller  # noqa: PLC0415  with the parser

            teller = Teller(store)
        if teller is not None:
            teller.turn()
    if teller is not None:
        teller.end()


def _any_due(store: Store) -> bool:
    now = wall_ms()
    return any(sources.is_due(one, now) for one in sources.every(store.db))


def _ring_at_stop(bell: Doorbell, stop: threading.Event) -> None:
    stop.wait()
    bell.ring()
