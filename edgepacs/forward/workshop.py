"""The workshop of one courier: instances prepared in another transfer syntax ahead of the line.

One thread drives the converter while the lanes send; each lane orders at a bench of its own.
Small ones wait in memory; large ones are sealed as renditions, since a line that breaks would
cost their conversion each time. Only a few are ever ahead, which bounds both.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from edgepacs.custody.converter import Converter, Order
from edgepacs.custody.prepared import Prepared, prepare
from edgepacs.store import Store
from edgepacs.store.renditions import Renditions

AHEAD = 4  # instances prepared and not yet sent
_SHARE = 2  # of them for each lane, where there are many
_Made = Future[Prepared | None]


class Workshop:
    """What is prepared, being prepared, or could not be; for all lanes of one courier.

    One thread drives one converting process. What a lane that broke has ordered is kept for the
    next one, until there is nothing more to send.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._renditions = Renditions(store, store.paths.renditions)
        self._converter = Converter(store.config.path, "forward")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="convert")
        self._lock = threading.Condition()  # notified when there may be room
        self._benches: list[Bench] = []
        self._orders: dict[Order, _Made] = {}
        self.stopped = False

    def bench(self) -> "Bench":
        """A place for another lane."""
        bench = Bench(self)
        with self._lock:
            self._benches.append(bench)
        return bench

    def leave(self, bench: "Bench") -> None:
        """A lane has ended; what it ordered stays for others."""
        with self._lock:
            self._benches.remove(bench)
            self._lock.notify_all()

    def order(self, bench: "Bench", wanted: Sequence[Order]) -> None:
        """Begin with what of `wanted`, in that order, is not at hand, as far ahead as allowed.

        What nobody wants any more makes room.
        """
        with self._lock:
            share = max(_SHARE, AHEAD // len(self._benches))
            bench.wanted = wanted[:share]
            self._lock.notify_all()
            for one in bench.wanted:
                if one not in self._orders and not self.stopped and self._has_room():
                    with suppress(RuntimeError):  # stopped this very moment
                        self._orders[one] = self._thread.submit(self._make, one)

    def _has_room(self) -> bool:
        most = max(AHEAD, _SHARE * len(self._benches))
        if len(self._orders) >= most:
            wanted = {order for bench in self._benches for order in bench.wanted}
            self._forget(next((old for old in self._orders if old not in wanted), None))
        return len(self._orders) < most

    def await_room(self, seconds: float | None) -> None:
        """Wait until something more can be ordered."""
        with self._lock:
            self._lock.wait_for(lambda: self.stopped or self._has_room(), seconds)

    def made(self, order: Order) -> _Made | None:
        """What has come of an order, or will."""
        with self._lock:
            return self._orders.get(order)

    def done_with(self, order: Order) -> None:
        """It has been sent, or never will be."""
        with self._lock:
            self._forget(order)

    def rest(self) -> None:
        """Keep nothing while there is nothing to send."""
        with self._lock:
            for order in list(self._orders):
                self._forget(order)
        self._converter.rest()

    def stop(self) -> None:
        """End what is being converted and begin nothing more; from any thread."""
        with self._lock:
            self.stopped = True
            self._lock.notify_all()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._converter.stop()

    def close(self) -> None:
        """Give everything up."""
        self.stop()
        self._thread.shutdown()
        self.rest()

    def _forget(self, order: Order | None) -> None:
        made = self._orders.pop(order, None) if order else None
        self._lock.notify_all()
        if made is not None and not made.cancel():
            made.add_done_callback(_drop)

    # --- in the thread -------------------------------------------------------------------------

    def _make(self, order: Order) -> Prepared | None:
        return prepare(self._store, self._renditions, self._converter, order)


class Bench:
    """The workshop as one lane sees it; for its thread."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self.wanted: Sequence[Order] = ()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is prepared."""
        return self._workshop.stopped

    def order(self, wanted: Sequence[Order]) -> None:
        """Begin with what of `wanted`, in that order, is not at hand, as far ahead as allowed."""
        self._workshop.order(self, wanted)

    def has(self, order: Order) -> bool:
        """Whether it is known what has come of an order."""
        made = self._workshop.made(order)
        return made is not None and made.done() and not made.cancelled()

    def take(self, order: Order) -> Prepared | None:
        """What has come of an order that `has` says yes to; None: it goes out as it stands.

        Raises what its conversion has met.
        """
        made = self._workshop.made(order)
        assert made is not None
        return made.result(0)

    def wait(self, orders: Iterable[Order], seconds: float | None = None) -> None:
        """Wait until something has come of one of `orders`."""
        pending = [made for one in orders if (made := self._workshop.made(one)) is not None]
        if pending:
            wait(pending, timeout=seconds, return_when=FIRST_COMPLETED)
        else:
            self._workshop.await_room(seconds)

    def done_with(self, order: Order) -> None:
        """It has been sent, or never will be."""
        self._workshop.done_with(order)

    def leave(self) -> None:
        """The lane has ended."""
        self._workshop.leave(self)


def _drop(made: _Made) -> None:
    if not made.cancelled() and made.exception() is None:
        prepared = made.result()
        if prepared is not None:
            prepared.drop()
