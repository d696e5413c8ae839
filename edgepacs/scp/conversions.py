"""Conversions for whoever retrieves: one instance at a time, in a process of its own.

The receiver loads no codecs, and what one does to that process costs one sub-operation. The
process is started when it is needed, and ends when it has been idle for a while.
"""

import threading
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue

from edgepacs.custody.converter import Converter, ConverterBroke, Order
from edgepacs.custody.prepared import Prepared, prepare
from edgepacs.errors import EdgePacsError
from edgepacs.store import Store
from edgepacs.store.renditions import Renditions
from edgepacs.telemetry import log, place_of

_IDLE_SECONDS = 30.0
Made = Future[Prepared | None]


class Conversions:
    """The conversions of one node, in the order they were asked for; for all threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._renditions = Renditions(store, store.paths.retrievals)
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[tuple[Order, Made]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, order: Order) -> Made:
        """What will come of an order: see `prepare`. Whoever takes it drops it."""
        made: Made = Future()
        with self._lock:
            self._waiting.put((order, made))
            if self._thread is None:  # the process ends with the thread that starts it
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        return made

    def _work(self) -> None:
        converter = Converter(self._store.config.path, "scp")
        while (following := self._next()) is not None:
            order, made = following
            if made.set_running_or_notify_cancel():
                self._make(converter, order, made)
        converter.stop()

    def _make(self, converter: Converter, order: Order, made: Made) -> None:
        """Whatever comes of it is for whoever asked; this thread goes on."""
        try:
            made.set_result(prepare(self._store, self._renditions, converter, order))
        except EdgePacsError as error:
            made.set_exception(error)
        except BaseException as error:  # noqa: BLE001  its text might hold PHI
            log.error("a conversion failed: %s", place_of(error))
            made.set_exception(ConverterBroke("the conversion failed"))

    def _next(self) -> tuple[Order, Made] | None:
        """The next order; None when this thread is to end, which is noted."""
        try:
            return self._waiting.get(timeout=_IDLE_SECONDS)
        except Empty:
            with self._lock:
                if self._waiting.empty():
                    self._thread = None
                    return None
            return self._waiting.get()


_lock = threading.Lock()
_every: dict[Path, Conversions] = {}


def of(store: Store) -> Conversions:
    """The conversions of the node in `store`."""
    with _lock:
        found = _every.get(store.config.path)
        if found is None or found._store is not store:  # noqa: SLF001  opened anew
            found = _every[store.config.path] = Conversions(store)
        return found


def clear(store: Store) -> None:
    """Remove what an earlier process has left; before anything is converted."""
    Renditions(store, store.paths.retrievals).clear()


def give_up(made: Made) -> None:
    """Nobody wants it any more."""
    if not made.cancel():
        made.add_done_callback(_drop)


def _drop(made: Made) -> None:
    if not made.cancelled() and made.exception() is None:
        prepared = made.result()
        if prepared is not None:
            prepared.drop()
