"""Data sets as they come from a converter, ready to be sent in another transfer syntax.

Small ones wait in memory, large ones are sealed as renditions: nothing is sent before its
conversion has ended well, since half a data set cannot be taken back.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from edgepacs.custody.converter import Converter, Kind, Message, Order
from edgepacs.model import UID
from edgepacs.store import Store, instances, studies
from edgepacs.store.instances import Instance
from edgepacs.store.renditions import Rendition, Renditions
from edgepacs.store.vault import ObjectWriter

IN_MEMORY = 4 << 20  # bytes of one of them; beyond it is sealed


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set ready to be sent; `pieces` gives it as often as it is tried."""

    transfer_syntax_uid: UID
    sop_instance_uid: UID
    pieces: Callable[[], Iterator[bytes]]
    drop: Callable[[], None]


def prepare(
    store: Store, renditions: Renditions, converter: Converter, order: Order
) -> Prepared | None:
    """Have one instance converted; None: it goes out as it stands.

    Raises what its conversion has met, NoRoom and StorageFault.
    """
    instance = instances.instance(store.db, order.instance)
    gathered = _Gathered(store, renditions, instance)
    try:
        with closing(converter.run(order, instance)) as messages:
            for message in messages:
                if message.kind is Kind.AS_STORED:
                    return None
                gathered.take(message)
        return gathered.whole()
    except BaseException:
        gathered.discard()
        raise


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
