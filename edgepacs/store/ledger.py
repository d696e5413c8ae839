"""The ledger: how far each study and instance has come on its way to each destination.

Read in pages: no answer grows with the queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepacs.model import DeliveryState, InstanceId, StudyId
from edgepacs.store import audit
from edgepacs.store.audit import AuditRecord
from edgepacs.store.db import Database, Transaction

UNFINISHED = (
    DeliveryState.QUEUED,
    DeliveryState.SENDING,
    DeliveryState.HELD,
    DeliveryState.FAILED,
    DeliveryState.CANCELLED,
)
"""The states of what has not left, and will not or may yet."""


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


# --- the queue ---------------------------------------------------------------------------------


def outbox(
    db: Database,
    state: DeliveryState | None = None,
    *,
    destination: int | None = None,
    after: int = 0,
    studies: int = 50,
) -> list[Progress]:
    """A page of the queue, summed by study, destination and state, the oldest study first.

    Without a state all that is unfinished; without a destination to all of them. The page holds
    the next `studies` studies after number `after`: the last row's study continues it.
    """
    states = UNFINISHED if state is None else (state,)
    found: list[Progress] = []
    with db.read() as tx:
        places = _places(tx, destination)
        page = _studies(tx, states, list(places), after, studies)
        for one in states if page else ():
            # Only what is held is told apart by more than the index can.
            sql = _PAGE.format(more=", hold_reason" if one is DeliveryState.HELD else "")
            for place, name in places.items():
                found += tx.records(Progress, sql, one, place, after, page[-1], name)
    return sorted(found, key=lambda row: (row.study, row.destination_name, row.state))


_PAGE = """
SELECT study, destination, ?5 AS destination_name, state, hold_reason, COUNT(*) AS count,
       MAX(changed_ms) AS changed_ms, MIN(next_ms) AS next_ms, MAX(attempts) AS attempts,
       MAX(last_error) AS last_error
FROM delivery
WHERE state = ?1 AND destination = ?2 AND study > ?3 AND study <= ?4 AND kind = 'instance'
GROUP BY study{more}"""


def _places(tx: Transaction, destination: int | None) -> dict[int, str]:
    """The names of the destinations asked for, by number."""
    sql = "SELECT id, name FROM destination WHERE ?1 IS NULL OR id = ?1"
    return dict(tx.rows(sql, destination))


_NEXT = """
WITH RECURSIVE page (study) AS (
  SELECT MIN(study) FROM delivery WHERE state = ?1 AND destination = ?2 AND study > ?3
  UNION ALL
  SELECT (SELECT MIN(study) FROM delivery
          WHERE state = ?1 AND destination = ?2 AND study > page.study)
  FROM page WHERE page.study IS NOT NULL LIMIT ?4)
SELECT study FROM page WHERE study IS NOT NULL"""


def _studies(
    tx: Transaction, states: Sequence[DeliveryState], places: Sequence[int], after: int, most: int
) -> list[int]:
    """The next studies with something in one of `states`: from one to the next in the index."""
    found: set[int] = set()
    for state in states:
        for place in places:
            found.update(row[0] for row in tx.rows(_NEXT, state, place, after, most))
    return sorted(found)[:most]


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What one destination has yet to get, e.g. to tell when it will have it.

    `queued` and `byte_size` are of what is queued or being sent, the bytes by the mean of each
    study as it stands; `held` and `failed` wait for a person. `studies` have any of these, or
    something `cancelled`.
    """

    destination: int
    destination_name: str
    queued: int
    byte_size: int
    held: int
    failed: int
    cancelled: int
    studies: int


_TOTALS = """
SELECT destination.id, destination.name, waiting.state, waiting.study, waiting.count,
       study.byte_size / MAX(study.instance_count, 1)
FROM destination
LEFT JOIN (SELECT destination, state, study, COUNT(*) AS count FROM delivery
           WHERE state IN ('queued', 'sending', 'held', 'failed', 'cancelled')
             AND study IS NOT NULL
           GROUP BY state, destination, study) AS waiting ON waiting.destination = destination.id
LEFT JOIN study ON study.id = waiting.study
ORDER BY destination.name"""


def totals(db: Database) -> list[Total]:
    """What each destination has yet to get, by name."""
    counts: dict[tuple[int, str], dict[str, int]] = {}
    studies: dict[int, set[int]] = {}
    with db.read() as tx:
        for number, name, state, study, count, mean in tx.rows(_TOTALS):
            mine = counts.setdefault((number, name), dict.fromkeys(_COUNTED, 0))
            if state is None:
                continue
            group = "queued" if state in ("queued", "sending") else state
            mine[group] += count
            mine["byte_size"] += count * (mean or 0) if group == "queued" else 0
            studies.setdefault(number, set()).add(study)
    return [
        Total(
            destination=number, destination_name=name, studies=len(studies.get(number, ())), **mine
        )
        for (number, name), mine in counts.items()
    ]


_COUNTED = ("queued", "byte_size", "held", "failed", "cancelled")


def tally(db: Database, destination: int) -> dict[DeliveryState, int]:
    """How many deliveries to one destination are in each state, those with none left out."""
    sql = "SELECT COUNT(*) FROM delivery WHERE state = ? AND destination = ?"
    with db.read() as tx:
        found = {state: tx.number(sql, state, destination) for state in DeliveryState}
    return {state: count for state, count in found.items() if count}


# --- one study, one instance, one delivery -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyWay:
    """One study's way to one destination: counts of instances, and times, 0 for not yet.

    `waiting` are queued, being sent, held, failed or cancelled; `sent` have been answered, and
    `proved` of them are committed or found there. `queued_ms` is when the first was queued; the
    others are of the last: received, verified (the study), sent and proved.
    """

    destination: int
    destination_name: str
    count: int
    waiting: int
    held: int
    failed: int
    cancelled: int
    sent: int
    proved: int
    received_ms: int
    verified_ms: int
    queued_ms: int
    sent_ms: int
    proved_ms: int


_WAYS = """
SELECT destination, destination.name AS destination_name, COUNT(*) AS count,
  SUM(delivery.state IN ('queued', 'sending', 'held', 'failed', 'cancelled')) AS waiting,
  SUM(delivery.state = 'held') AS held, SUM(delivery.state = 'failed') AS failed,
  SUM(delivery.state = 'cancelled') AS cancelled,
  SUM(delivery.state IN ('sent', 'awaiting_commitment', 'committed', 'confirmed_by_query')) AS sent,
  SUM(delivery.state IN ('committed', 'confirmed_by_query')) AS proved,
  study.received_ms, iif(study.state = 'verified', study.state_ms, 0) AS verified_ms,
  MIN(delivery.created_ms) AS queued_ms,
  MAX(iif(delivery.state IN ('sent', 'awaiting_commitment', 'committed', 'confirmed_by_query'),
          sent_ms, 0)) AS sent_ms,
  MAX(iif(delivery.state IN ('committed', 'confirmed_by_query'), proved_ms, 0)) AS proved_ms
FROM delivery JOIN destination ON destination.id = delivery.destination
JOIN study ON study.id = delivery.study
WHERE delivery.study = ? AND kind = 'instance' AND delivery.state != 'superseded'
GROUP BY destination ORDER BY destination.name"""


def ways_of_study(db: Database, study: StudyId) -> list[StudyWay]:
    """How far a study has come to each destination, and when; without what was superseded."""
    with db.read() as tx:
        return tx.records(StudyWay, _WAYS, study)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of the ledger of an instance."""

    id: int
    instance: InstanceId
    study: int | None
    destination_name: str
    state: DeliveryState = field(metadata={"make": DeliveryState})
    hold_reason: str
    priority: int
    attempts: int
    next_ms: int
    last_error: str
    proof: str
    send_as: str
    created_ms: int
    changed_ms: int
    sent_ms: int
    proved_ms: int


_DELIVERY = (
    "SELECT delivery.id, subject AS instance, study, destination.name AS destination_name, "
    "delivery.state, hold_reason, priority, attempts, next_ms, last_error, delivery.proof, "
    "send_as, delivery.created_ms, changed_ms, sent_ms, proved_ms "
    "FROM delivery JOIN destination ON destination.id = delivery.destination "
    "WHERE kind = 'instance' AND "
)


def of_instance(db: Database, instance: InstanceId) -> list[Delivery]:
    """Where one instance goes and how far it has come."""
    with db.read() as tx:
        return tx.records(Delivery, f"{_DELIVERY} subject = ? ORDER BY destination.name", instance)


def of_study(db: Database, study: StudyId, *, after: int = 0, most: int = 200) -> list[Delivery]:
    """A page of the deliveries of a study, after number `after`."""
    sql = f"{_DELIVERY} study = ? AND delivery.id > ? ORDER BY delivery.id LIMIT ?"
    with db.read() as tx:
        return tx.records(Delivery, sql, study, after, most)


def delivery(db: Database, number: int) -> Delivery:
    """One delivery; raises NotFound."""
    with db.read() as tx:
        missing = f"delivery: there is no delivery {number}"
        return tx.record(Delivery, missing, f"{_DELIVERY} delivery.id = ?", number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to send a delivery; `ended_ms` is None while it is under way or broke off."""

    started_ms: int
    ended_ms: int | None
    result: str


def attempts(db: Database, number: int) -> list[Attempt]:
    """Every attempt of a delivery, oldest first."""
    with db.read() as tx:
        return tx.records(
            Attempt,
            "SELECT started_ms, ended_ms, result FROM attempt WHERE delivery = ? ORDER BY id",
            number,
        )


def acts(db: Database, number: int) -> list[AuditRecord]:
    """What was done to this one delivery by name, oldest first; acts on more are with those."""
    return audit.of_subject(db, "delivery", number)
