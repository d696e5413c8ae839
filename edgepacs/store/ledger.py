"""The ledger: how far each study and instance has come on its way to each destination."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgepacs.model import DeliveryState, InstanceId
from edgepacs.store.db import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one study has come on its way to one destination: a row per state."""

    study: int
    destination: int
    destination_name: str
    state: DeliveryState = field(metadata={"make": DeliveryState})
    hold_reason: str
    count: int
    changed_ms: int
    next_ms: int
    attempts: int
    last_error: str


_PROGRESS = """
SELECT delivery.study, destination, destination.name AS destination_name, delivery.state,
       hold_reason, COUNT(*) AS count, MAX(changed_ms) AS changed_ms, MIN(next_ms) AS next_ms,
       MAX(attempts) AS attempts, MAX(last_error) AS last_error
FROM delivery JOIN destination ON destination.id = delivery.destination
WHERE kind = 'instance' AND {where}
GROUP BY delivery.study, destination, delivery.state, hold_reason
ORDER BY delivery.study, destination.name, delivery.state"""


def progress_of_studies(db: Database, studies: Sequence[int]) -> dict[int, list[Progress]]:
    """Progress by study, for the studies given."""
    where = f"delivery.study IN ({', '.join('?' * len(studies))})"
    found: dict[int, list[Progress]] = {study: [] for study in studies}
    with db.read() as tx:
        for row in tx.records(Progress, _PROGRESS.format(where=where), *studies):
            found[row.study].append(row)
    return found


def outbox(db: Database, state: DeliveryState | None = None) -> list[Progress]:
    """The whole queue, summed by study, destination and state; without a state, all unfinished."""
    finished = "delivery.state NOT IN ('sent', 'committed', 'confirmed_by_query', 'superseded')"
    where = "delivery.state = ?" if state else finished
    values: list[Any] = [state] if state else []
    with db.read() as tx:
        return tx.records(Progress, _PROGRESS.format(where=where), *values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of the ledger of an instance."""

    id: int
    destination_name: str
    state: DeliveryState = field(metadata={"make": DeliveryState})
    hold_reason: str
    attempts: int
    last_error: str
    proof: str
    created_ms: int
    changed_ms: int


def of_instance(db: Database, instance: InstanceId) -> list[Delivery]:
    """Where one instance goes and how far it has come."""
    with db.read() as tx:
        return tx.records(
            Delivery,
            "SELECT delivery.id, destination.name AS destination_name, delivery.state, "
            "hold_reason, attempts, last_error, delivery.proof, delivery.created_ms, changed_ms "
            "FROM delivery JOIN destination ON destination.id = delivery.destination "
            "WHERE kind = 'instance' AND subject = ? ORDER BY destination.name",
            instance,
        )
