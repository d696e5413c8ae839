"""What stands in a node's outbox, read from its store: quicker than a command, and in full."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from harness.box import Box
from harness.waiting import until

from edgepacs import config
from edgepacs.model import DeliveryState
from edgepacs.store import opened

PROVED = frozenset({DeliveryState.COMMITTED, DeliveryState.CONFIRMED_BY_QUERY})
PASSING = frozenset({DeliveryState.SENDING, DeliveryState.AWAITING_COMMITMENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One delivery."""

    sop_instance: str
    destination: str
    state: DeliveryState
    attempts: int
    words: str  # the last error
    proof: str
    link: str
    link_words: str


def entries(box: Box) -> list[Entry]:
    """Every delivery of the node, running or not."""
    with opened(config.load(box.config)) as store, store.db.read() as tx:
        rows = tx.rows(
            "SELECT sop_instance_uid, name, delivery.state, attempts, last_error, "
            "delivery.proof, link, link_note FROM delivery "
            "JOIN destination ON destination.id = destination "
            "JOIN instance ON instance.id = subject ORDER BY delivery.id"
        )
        return [
            Entry(
                sop_instance=str(row[0]),
                destination=str(row[1]),
                state=DeliveryState(row[2]),
                attempts=int(row[3]),
                words=str(row[4]),
                proof=str(row[5]),
                link=str(row[6]),
                link_words=str(row[7]),
            )
            for row in rows
        ]


def states(box: Box) -> Counter[DeliveryState]:
    """How many deliveries stand in each state."""
    return Counter(one.state for one in entries(box))


def until_all(box: Box, wanted: frozenset[DeliveryState], *, seconds: float) -> None:
    """Wait until every delivery is in one of the states `wanted`."""

    def there() -> bool:
        return all(state in wanted for state in states(box))

    try:
        until(there, f"all in {', '.join(wanted)}", seconds=seconds, every=0.25)
    except AssertionError as error:
        raise AssertionError(f"{error}: {described(box)}") from None


def until_entry(
    box: Box, fits: Callable[[Entry], bool], what: str, *, seconds: float = 20.0
) -> Entry:
    """The first delivery that `fits`, once there is one."""

    def found() -> Entry | None:
        return next((one for one in entries(box) if fits(one)), None)

    try:
        got = until(found, what, seconds=seconds, every=0.1)
    except AssertionError as error:
        raise AssertionError(f"{error}: {described(box)}") from None
    assert got is not None
    return got


def described(box: Box) -> str:
    """The outbox in a few lines, for whoever reads a failure."""
    kinds = Counter(
        f"{one.destination} {one.state} ({one.words!r}, line {one.link}: {one.link_words!r})"
        for one in entries(box)
    )
    return "; ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
