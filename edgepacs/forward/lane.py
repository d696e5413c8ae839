"""A lane: one association after the other to one destination, in a thread of its own."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from edgepacs.errors import EdgePacsError, PeerError, StorageFault
from edgepacs.forward.batch import Batch
from edgepacs.forward.desk import Desk
from edgepacs.forward.job import Job
from edgepacs.forward.link import Link
from edgepacs.forward.pace import Pace
from edgepacs.forward.proof import Prover
from edgepacs.forward.width import Width
from edgepacs.forward.workshop import Workshop
from edgepacs.store import Store
from edgepacs.store.destinations import Destination
from edgepacs.telemetry import log, place_of

FRUITLESS = 3  # associations in which nothing was settled, until it is tried again later


class Carry(Protocol):
    """A transport: sends what a job holds, and what it is filled up with; raises PeerError."""

    def __call__(self, job: Job, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gear:
    """What all lanes of one destination share."""

    store: Store
    destination: Destination
    desk: Desk
    pace: Pace
    link: Link
    prover: Prover
    width: Width
    workshop: Workshop
    carry: Carry


class Ending(Enum):
    """How a lane ended."""

    FINE = auto()  # there was nothing more to send
    BROKEN = auto()  # by `error`
    FRUITLESS = auto()  # nothing came of several associations
    DISTURBED = auto()  # by a fault of our own
    FAULT = auto()  # the storage device failed


class Lane:
    """Carries what its destination's desk grants until there is no more, or the line ends.

    `over` is set and `ended` called when there is nothing more to come of it.
    """

    def __init__(self, gear: Gear, ended: Callable[[], None]) -> None:
        self._gear = gear
        self._ended = ended
        self.over = False
        self.doubts = False  # of something it is not known whether it has arrived
        self.ending = Ending.FINE
        self.error: PeerError | None = None
        self.fault: StorageFault | None = None
        self.job = Job(
            gear.store,
            gear.destination,
            Batch(gear.store, gear.destination.id, (), gear.workshop.bench()),
            pace=gear.pace,
            link=gear.link,
            prover=gear.prover,
            width=gear.width,
            desk=gear.desk,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def reached(self) -> bool:
        """Whether it has come through to the destination."""
        return self.job.open or self.job.sending is not None

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` for its end; whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        words = "its association ended before its turn"
        try:
            words = self._carry() or words
        except PeerError as error:
            words = f"the line broke before its turn: {error}"
            self.ending, self.error = Ending.BROKEN, error
        except StorageFault as fault:
            self.ending, self.fault = Ending.FAULT, fault
        except EdgePacsError as error:
            log.warning("destination %d: %s", self._gear.destination.id, error)
            self.ending = Ending.DISTURBED
        except Exception as error:  # noqa: BLE001  one destination never stops the others
            log.error("destination %d: %s", self._gear.destination.id, place_of(error))
            self.ending = Ending.DISTURBED
        finally:
            self.doubts = self.job.close(words)
            self.over = True
            self._ended()

    def _carry(self) -> str:
        """One association after the other, as long as there is something to send.

        An object that cannot be read aborts its association; the rest gets a new one.
        """
        fruitless = 0
        while self.job.ready():
            before = self.job.settled
            self._gear.carry(self.job)
            fruitless = 0 if self.job.settled > before else fruitless + 1
            if fruitless == FRUITLESS:
                self.ending = Ending.FRUITLESS
                return "the destination accepts another thing each time it is asked"
        return ""
