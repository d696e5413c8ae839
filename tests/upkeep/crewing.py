"""A crew at work on a real store, with real worker processes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from custody.pressing import received
from harness.made import ct, instance
from harness.part10 import Part10
from harness.waiting import until
from store.making import objects

from edgepacs.config import Compression
from edgepacs.model import CompressionState, InstanceId
from edgepacs.store import Store, compressions, fsck
from edgepacs.store.compressions import Selection
from edgepacs.upkeep.crew import Crew, Limits

OPEN = (CompressionState.WAITING, CompressionState.COMPRESSING)


def with_workers(store: Store, workers: int = 1, **settings: int) -> Store:
    """The same store, configured to be compressed."""
    settings_made = Compression(workers=workers, **settings)  # type: ignore[arg-type]
    return replace(store, config=replace(store.config, compression=settings_made))


@contextmanager
def at_work(store: Store, limits: Limits | None = None) -> Iterator[Crew]:
    """A crew that works until the block ends; what it failed with is raised."""
    crew, stop = Crew(store, limits), threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            crew.run(stop)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield crew
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
        assert not failures, failures


def settled(store: Store) -> bool:
    """Whether nothing waits and nothing is begun."""
    return not compressions.pending(store.db) and not any(
        one.state in OPEN for one in compressions.totals(store.db)
    )


def until_settled(store: Store, *, seconds: float = 60) -> None:
    until(lambda: settled(store), "nothing left to compress", seconds=seconds)


def states(store: Store) -> dict[InstanceId, str]:
    return {one.instance: one.state for one in compressions.results(store.db, Selection())}


def reason(store: Store, number: InstanceId) -> str:
    (found,) = compressions.results(store.db, Selection(instance=number))
    return found.reason


def large(frames: int = 8, side: int = 512) -> Part10:
    """A multi-frame instance that takes a worker a while; 16 bits, noisy."""
    chance = np.random.default_rng(frames)
    dataset = ct().dataset()
    y, x = np.mgrid[0:side, 0:side]
    one = (x + y + chance.integers(0, 200, (side, side))).astype("<u2")
    dataset.Rows = dataset.Columns = side
    dataset.NumberOfFrames = frames
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 0
    dataset.PixelData = b"".join(np.roll(one, n).tobytes() for n in range(frames))
    return instance(dataset)


def intact(store: Store, parts: dict[InstanceId, Part10]) -> None:
    """0 altered, 0 lost, 0 leftovers."""
    for number, part in parts.items():
        assert received(store, number) == part.data, number
    assert len(objects(store)) == len(parts)
    assert fsck.check(store).sound
