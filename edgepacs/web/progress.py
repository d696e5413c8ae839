"""How far studies have come on their way: rows per delivery state made into one line."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.model import DeliveryState, HoldReason, Role
from edgepacs.store.ledger import Progress
from edgepacs.web.gate import Caller
from edgepacs.web.wording import label

_D = DeliveryState
_GROUPS = {
    _D.SENT: "done",
    _D.AWAITING_COMMITMENT: "done",
    _D.COMMITTED: "done",
    _D.CONFIRMED_BY_QUERY: "done",
    _D.SENDING: "moving",
    _D.QUEUED: "moving",
    _D.HELD: "held",
    _D.FAILED: "failed",
    _D.CANCELLED: "stopped",
}
_SHOWN = ("done", "moving", "held", "failed", "stopped")


@dataclass(slots=True)
class Way:
    """One study's way to one destination. `counts` is by group: done, moving, held, ..."""

    study: int
    destination: int
    name: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SHOWN, 0))
    states: dict[DeliveryState, int] = field(default_factory=dict)
    reasons: set[HoldReason] = field(default_factory=set)
    error: str = ""
    attempts: int = 0
    next_ms: int = 0  # when something is tried again, if that is still to come
    changed_ms: int = 0

    def add(self, row: Progress) -> None:
        """Take in one row of the summary."""
        group = _GROUPS.get(row.state)
        if group is None:  # superseded: its replacement counts
            return
        self.counts[group] += row.count
        self.states[row.state] = self.states.get(row.state, 0) + row.count
        if row.state is _D.HELD and row.hold_reason:
            self.reasons.add(HoldReason(row.hold_reason))
        if group in ("moving", "failed"):
            self.error = row.last_error or self.error
            self.attempts = max(self.attempts, row.attempts)
        if row.state is _D.QUEUED and row.next_ms > wall_ms():
            self.next_ms = row.next_ms
        self.changed_ms = max(self.changed_ms, row.changed_ms)

    @property
    def total(self) -> int:
        """Deliveries in all."""
        return sum(self.counts.values())

    @property
    def parts(self) -> Iterator[tuple[str, float, float]]:
        """Group, start and width in per cent, of what a bar shows."""
        start = 0.0
        for group in _SHOWN:
            width = 100 * self.counts[group] / (self.total or 1)
            if width:
                yield group, round(start, 2), round(width, 2)
            start += width

    @property
    def mood(self) -> str:
        """The group that matters most: what needs a person before what goes by itself."""
        order = ("failed", "held", "moving", "stopped", "done")
        return next((group for group in order if self.counts[group]), "done")

    @property
    def words(self) -> str:
        """The same in words."""
        counts = self.counts
        if counts["done"] == self.total:
            return "Sent" if self.total == 1 else f"All {self.total} sent"
        said = [f"{counts['done']} of {self.total} sent"] if counts["done"] else []
        for group, word in (("moving", "waiting"), ("held", "held"), ("failed", "failed")):
            if counts[group]:
                said.append(f"{counts[group]} {word}")
        if counts["stopped"]:
            said.append(f"{counts['stopped']} cancelled")
        return ", ".join(said)

    @property
    def brief(self) -> str:
        """What matters most, short enough for a list."""
        number = self.counts[self.mood]
        if self.mood == "moving" and self.counts["done"]:
            return f"{self.counts['done']} of {self.total}"
        words = {"failed": "failed", "held": "held", "moving": "waiting", "stopped": "cancelled"}
        return f"{number} {words[self.mood]}" if self.mood in words else self.words

    def releasable(self, caller: Caller) -> bool:
        """Whether this person may let something of it go from the queue."""
        mine = {HoldReason.PERSON}
        if caller.role.covers(Role.ADMIN):
            mine.add(HoldReason.UNVERIFIED)
        return bool(self.reasons & mine)

    @property
    def held_because(self) -> str:
        """Why something is held."""
        return ", ".join(sorted(label(reason) for reason in self.reasons))


def ways(rows: Iterable[Progress]) -> list[Way]:
    """The rows of `ledger.progress_of_studies` or `outbox`, one Way a study and destination."""
    found: dict[tuple[int, int], Way] = {}
    for row in rows:
        key = (row.study, row.destination)
        if key not in found:
            found[key] = Way(row.study, row.destination, row.destination_name)
        found[key].add(row)
    return [way for way in found.values() if way.total]
