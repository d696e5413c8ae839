"""Terms: what a destination takes, as it has answered, and what it shall be sent.

Learnt from the answers to our own proposals, so that the next association proposes what will be
accepted and nothing has to be converted while a peer waits. A destination can always be asked
again: these rows only save time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import UID
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction

_SAME_MS = 60 * 60 * 1000  # for so long the same answer is not written again


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What a destination answered when it was last offered a SOP class in a transfer syntax."""

    sop_class_uid: UID
    transfer_syntax_uid: UID
    accepted: int
    learnt_ms: int


def acceptances(db: Database, destination: int) -> list[Acceptance]:
    """Everything a destination has answered."""
    with db.read() as tx:
        return tx.records(
            Acceptance,
            "SELECT sop_class_uid, transfer_syntax_uid, accepted, learnt_ms FROM acceptance "
            "WHERE destination = ?",
            destination,
        )


def learn(db: Database, destination: int, answers: Mapping[tuple[UID, UID], bool]) -> None:
    """Remember what it answered now, by SOP class and transfer syntax."""
    now = wall_ms()
    known = {
        (one.sop_class_uid, one.transfer_syntax_uid): one for one in acceptances(db, destination)
    }
    news = {
        pair: accepted
        for pair, accepted in answers.items()
        if pair not in known
        or bool(known[pair].accepted) != accepted
        or not 0 <= now - known[pair].learnt_ms < _SAME_MS
    }
    if not news:
        return
    with db.write() as tx:
        for (sop_class, syntax), accepted in news.items():
            tx.run(
                "INSERT OR REPLACE INTO acceptance SELECT id, ?, ?, ?, ? FROM destination "
                "WHERE id = ?",  # it may have been removed meanwhile
                *(sop_class, syntax, int(accepted), now, destination),
            )


def lossy_quality(db: Database, destination: int) -> int:
    """The quality by which a destination is sent lossy images, 1 to 100; 0 for never."""
    with db.read() as tx:
        return tx.number("SELECT lossy FROM destination WHERE id = ?", destination)


def set_lossy(tx: Transaction, name: str, quality: int, *, actor: str) -> None:
    """Say whether a destination is sent lossy images; raises NotFound, InvalidValue."""
    if not 0 <= quality <= 100:
        raise InvalidValue("quality", f"{quality} is not between 0 (never) and 100")
    found = tx.first("SELECT id FROM destination WHERE name = ?", name)
    if found is None:
        raise NotFound(f"destination: none is called {name!r}")
    tx.run("UPDATE destination SET lossy = ? WHERE id = ?", quality, found[0])
    audit.record(
        tx,
        actor=actor,
        act="destination lossy",
        kind="destination",
        subject=found[0],
        detail=str(quality),
    )
