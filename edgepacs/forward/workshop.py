"""The workshop of one courier: instances prepared in another transfer syntax ahead of the line.

One thread drives the converter while the courier sends. Small ones wait in memory; large ones are
sealed as renditions, since a line that breaks would cost their conversion each time. Only a few
are ever ahead, which bounds both.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass

from edgepacs.forward.converter import Converter, Kind, Message, Order
from edgepacs.model import UID
from edgepacs.store import Store, instances, studies
from edgepacs.store.instances import Instance
from edgepacs.store.renditions import Rendition, Renditions
from edgepacs.store.vault import ObjectWriter

AHEAD = 4  # instances prepared and not yet sent
IN_MEMORY = 8 << 20  # bytes of one of them; beyond it is sealed
_Made = Future["Prepared | None"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready to be sent; `pieces` gives it as often as it is tried."""

    transfer_syntax_uid: UID
    sop_instance_uid: UID
    pieces: Callable[[], Iterator[bytes]]
    drop: Callable[[], None]


class Workshop:
    """What is prepared, being prepared, or could not be; for one courier and its thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._renditions = Renditions(store)
        self._converter = Converter(store.config.path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="convert")
        self._orders: dict[Order, _Made] = {}
        self.stopped = False

    def order(self, wanted: Sequence[Order]) -> None:
        """Begin with what of `wanted`, in that order, is not at hand, as far ahead as allowed.

        What was prepared for something else makes room.
        """
        for one in wanted[:AHEAD]:
            if one in self._orders or self.stopped:
                continue
            if len(self._orders) >= AHEAD:
                self._forget(next((old for old in self._orders if old not in wanted), None))
            if len(self._orders) >= AHEAD:
                return
            with suppress(RuntimeError):  # stopped this very moment
                self._orders[one] = self._thread.submit(self._make, one)

    def has(self, order: Order) -> bool:
        """Whether it is known what has come of an order."""
        made = self._orders.get(order)
        return made is not None and made.done() and not made.cancelled()

    def take(self, order: Order) -> Prepared | None:
        """What has come of an order, None where it goes out as it stands.

        Raises what its conversion has met.
        """
        return self._orders[order].result(0)

    def wait(self, orders: Iterable[Order], seconds: float | None = None) -> None:
        """Wait until something has come of one of `orders`."""
        wait(
            [self._orders[one] for one in orders if one in self._orders],
            timeout=seconds,
            return_when=FIRST_COMPLETED,
        )

    def done_with(self, order: Order) -> None:
        """It has been sent, or never will be."""
        self._forget(order)

    def rest(self) -> None:
        """Keep nothing while there is nothing to send."""
        for order in list(self._orders):
            self._forget(order)
        self._converter.rest()

    def stop(self) -> None:
        """End what is being converted and begin nothing more; from any thread."""
        self.stopped = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._converter.stop()

    def close(self) -> None:
        """Give everything up."""
        self.stop()
        self._thread.shutdown()
        for order in list(self._orders):
            self._forget(order)

    def _forget(self, order: Order | None) -> None:
        made = self._orders.pop(order, None) if order else None
        if made is not None and not made.cancel():
            made.add_done_callback(_drop)

    # --- in the thread -------------------------------------------------------------------------

    def _make(self, order: Order) -> Prepared | None:
        instance = instances.instance(self._store.db, order.instance)
        gathered = _Gathered(self._store, self._renditions, instance)
        try:
            with closing(self._converter.run(order, instance)) as messages:
                for message in messages:
                    if message.kind is Kind.AS_STORED:
                        return None
                    gathered.take(message)
            return gathered.whole()
        except BaseException:
            gathered.discard()
            raise


def _drop(made: _Made) -> None:
    if not made.cancelled() and made.exception() is None:
        prepared = made.result()
        if prepared is not None:
            prepared.drop()


class _Gathered:
    """A data set as it comes from the converter, in memory or, when it outgrows that, sealed."""

    def __init__(self, store: Store, renditions: Renditions, instance: Instance) -> None:
        self._store = store
        self._renditions = renditions
        self._instance = instance
        self._begin(instance.transfer_syntax_uid, instance.sop_instance_uid)

    def _begin(self, syntax: UID, sop: UID) -> None:
        self._syntax, self._sop = syntax, sop
        self._pieces: list[bytes] = []
        self._size = 0
        self._writer: ObjectWriter | None = None

    def take(self, message: Message) -> None:
        if message.kind is Kind.BEGIN:
            self.discard()
            said = json.loads(message.content)
            self._begin(UID(said["syntax"]), UID(said["sop_instance"]))
        elif self._writer is not None:
            self._writer.write(message.content)
        else:
            self._pieces.append(message.content)
            self._size += len(message.content)
            if self._size > IN_MEMORY:
                self._spill()

    def _spill(self) -> None:
        self._writer = self._renditions.new(self._sop)
        for one in self._pieces:
            self._writer.write(one)
        self._pieces = []

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def whole(self) -> Prepared:
        if self._writer is None:
            pieces = tuple(self._pieces)
            return Prepared(self._syntax, self._sop, lambda: iter(pieces), lambda: None)
        study = studies.study(self._store.db, self._instance.study)
        renditions = self._renditions
        sealed = renditions.finish(self._writer, study.study_instance_uid, self._sop)
        return Prepared(
            self._syntax,
            self._sop,
            lambda: _unsealed(renditions, sealed),
            lambda: renditions.remove(sealed),
        )


def _unsealed(renditions: Renditions, sealed: Rendition) -> Iterator[bytes]:
    with renditions.open(sealed) as reader:
        yield from reader.chunks()
