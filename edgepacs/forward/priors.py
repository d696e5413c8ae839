"""Priors: which of a patient's studies are worth fetching, and the bounds of taking them in.

The same whatever way they come: what a destination answers is filtered here once more, and every
instance goes through `custody.ingest`, sealed while it arrives.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from edgepacs.clock import monotonic, wall_ms
from edgepacs.custody import ingest
from edgepacs.errors import (
    Busy,
    EdgePacsError,
    InvalidValue,
    LimitExceeded,
    PeerError,
    StorageFault,
)
from edgepacs.forward.pace import Pace
from edgepacs.model import Arrival, Outcome, uid
from edgepacs.store import Store, hours, prefetches
from edgepacs.store.destinations import Destination
from edgepacs.store.incidents import Incident
from edgepacs.store.prefetches import Brought, Prefetch

MATCHES_MOST = 1000  # studies of one patient
TASK_SECONDS = 4 * 3600.0
_ODD_MOST = 20  # instances of one task that were not asked for, or cannot be taken
_LOOK_SECONDS = 0.25  # how often it is asked whether something urgent waits
_YEAR_DAYS = 365.25
_Piece = TypeVar("_Piece", bytes, memoryview)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One study a destination has, as it answered."""

    study_instance_uid: str
    patient_id: str
    issuer: str
    study_date: str  # YYYYMMDD, or '' where the destination does not know
    modalities: frozenset[str] = frozenset()
    sop_classes: tuple[str, ...] = ()


def chosen(
    store: Store, destination: Destination, task: Prefetch, matches: Iterable[Match]
) -> list[Match]:
    """The studies to fetch, the newest first, as many as the settings let.

    Only those of exactly this patient: where issuers are known and differ it is another one, and
    where ours is not known and theirs are several, nobody can tell. None that is here already, and
    none that is older than the settings say, or has no date.
    """
    own = [one for one in matches if one.study_instance_uid and one.patient_id == task.patient_id]
    issuers = {one.issuer for one in own} - {""}
    if task.issuer:
        own = [one for one in own if one.issuer in ("", task.issuer)]
    elif len(issuers) > 1:
        return []
    oldest = _oldest(destination.priors_years)
    young = {one.study_instance_uid: one for one in own if one.study_date >= oldest}
    here = prefetches.here(store.db, task, list(young))
    missing = [one for uid, one in young.items() if uid not in here]
    missing.sort(key=lambda one: one.study_date, reverse=True)
    return missing[: destination.priors_most]


def _oldest(years: int) -> str:
    """The first day of the last `years` years, as a DICOM date (PS3.5 6.2, DA)."""
    today = hours.day_of(wall_ms() / 1000)
    return (today - timedelta(days=years * _YEAR_DAYS)).strftime("%Y%m%d")


class Haul:
    """What one attempt brings, and whether it may go on.

    `yields` says why it must end between two instances, `urgent` why at once; "" for go on.
    `opened` is set once the destination has answered.
    """

    def __init__(
        self,
        store: Store,
        destination: Destination,
        task: Prefetch,
        pace: Pace,
        yields: Callable[[], str],
        urgent: Callable[[], str],
    ) -> None:
        self.store = store
        self.destination = destination
        self.task = task
        self.pace = pace
        self.opened = False
        self.studies = self.instances = self.byte_size = 0
        self.notes: list[str] = []
        self._yields = yields
        self._urgent = urgent
        self._odd = 0
        self._most = destination.priors_mib << 20
        self._deadline = monotonic() + TASK_SECONDS
        self._looked = 0.0

    @property
    def brought(self) -> Brought:
        """What it has brought so far."""
        return Brought(studies=self.studies, instances=self.instances, byte_size=self.byte_size)

    def require_leave(self) -> None:
        """Between instances: raises Busy, or LimitExceeded where a bound is reached."""
        self._require_bounds()
        if words := self._yields():
            raise Busy(words)

    def may_go_on(self) -> bool:
        """The same as a question, for those who end a retrieval in good order."""
        try:
            self.require_leave()
        except (Busy, LimitExceeded):
            return False
        return True

    def take(self, arrival: Arrival, pieces: Iterable[bytes | memoryview]) -> int:
        """Take in one instance; the DIMSE status that answers it.

        The same bytes as are here already are no new instance; other content under a known UID
        waits to be compared, as from anybody. Raises as `judged`.
        """
        try:
            receipt = ingest.receive(self.store, arrival, pieces)
        except EdgePacsError as error:
            return self.judged(error)
        if receipt.outcome is not Outcome.DUPLICATE:
            self.instances += 1
        return 0

    def judged(self, error: EdgePacsError) -> int:
        """What one instance is refused for is noted, and answered by this DIMSE status.

        What ends the task is raised: PeerError, Busy, LimitExceeded, NoRoom, StorageFault.
        """
        if isinstance(error, PeerError | StorageFault) or error.transient:
            raise error
        self._require_bounds()
        self.note_odd(error)
        return error.dimse_status

    def note_odd(self, error: EdgePacsError) -> None:
        """An instance was refused; raises LimitExceeded where there are too many of them."""
        self._odd += 1
        words = f"{self._odd} instances refused: {error}"
        self.notes = [*(one for one in self.notes if " instances refused: " not in one), words]
        self.store.incidents.note(
            Incident(
                act="prior refused",
                host=self.destination.host,
                actor=self.destination.ae_title or self.destination.name,
                detail=str(error),
            )
        )
        if self._odd >= _ODD_MOST:
            raise LimitExceeded(words)

    def count(self, size: int) -> None:
        """Bytes that came by another process; raises LimitExceeded."""
        self.byte_size += size
        self.pace.count(size)
        self._require_bounds()

    def watched(self, pieces: Iterable[_Piece]) -> Iterator[_Piece]:
        """The same pieces as they come from the line: paced, counted, and ended where they must.

        Raises LimitExceeded of the whole task, and Busy.
        """
        for piece in self.pace.bring(pieces):
            self.byte_size += len(piece)
            self._require_bounds()
            self._require_calm()
            yield piece

    def _require_calm(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if words := self._urgent():
            raise Busy(words)

    def _require_bounds(self) -> None:
        if self.byte_size > self._most:
            mib = self.destination.priors_mib
            raise LimitExceeded(
                f"more than {mib} MiB (setting priors_mib): the rest is not fetched"
            )
        if monotonic() > self._deadline:
            raise LimitExceeded(f"more than {TASK_SECONDS / 3600:g} hours: the rest is not fetched")


def words_of(haul: Haul, wanted: Sequence[Match]) -> str:
    """What came of it, for a person."""
    if not wanted:
        return "nothing to fetch: no study of this patient that is not here, within the years set"
    done = f"{haul.studies} of {len(wanted)} studies, {haul.instances} instances fetched"
    return "; ".join([done, *haul.notes])


def uid_or_empty(text: str) -> str:
    """`text` where it is a UID, else '': what a destination says must not choose paths or keys."""
    try:
        return uid(text)
    except InvalidValue:
        return ""
