"""Notifications: which studies a destination is to be told of, once they are there (PS3.4 R).

A study is there when it has been still for a while, no step is at it any more, and each of its
instances is proved to be at one and the same destination. It is told of once; nothing is written
for it when an instance is received.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgepacs.clock import wall_ms
from edgepacs.model import UID, DeliveryKind
from edgepacs.store import audit, dispatches
from edgepacs.store.db import Database, Transaction

STILL_MS = 5 * 60_000  # nothing has come for so long
_STEP_MS = 24 * 60 * 60 * 1000  # a step that was never closed is waited for no longer
_KEPT_MS = 30 * 24 * 60 * 60 * 1000  # a study that nobody had by then is told of no more
_PROVED = "delivery.state IN ('committed', 'confirmed_by_query')"
_CURRENT = "instance.state IN ('stored', 'evicted')"


class Due(NamedTuple):
    """A study, and a destination that is to be told of it."""

    study: int
    destination: int


class Reference(NamedTuple):
    """One instance that is there."""

    sop_class_uid: UID
    sop_instance_uid: UID


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """What is told of a study: its instances by series, where they are, the steps that made it."""

    study_instance_uid: UID
    series: Mapping[str, Sequence[Reference]]
    places: Sequence[str]  # AE titles of the destinations that have all of it
    steps: Sequence[str]


def consider(db: Database) -> None:
    """Take note of the studies that have come since, for each destination that is told of them."""
    with db.read() as tx:
        behind = tx.rows(
            "SELECT id FROM destination WHERE notify = 1 AND transport = 'dimse' "
            "AND notify_mark < (SELECT COALESCE(MAX(id), 0) FROM study)"
        )
    if not behind:
        return
    with db.write() as tx:
        for (number,) in behind:
            tx.run(
                "INSERT OR IGNORE INTO notification_due SELECT study.id, destination.id "
                "FROM destination JOIN study ON study.id > destination.notify_mark "
                "WHERE destination.id = ?",
                number,
            )
            tx.run(
                "UPDATE destination SET notify_mark = (SELECT MAX(id) FROM study) WHERE id = ?",
                number,
            )
        tx.run(
            "DELETE FROM notification_due WHERE study IN "
            "(SELECT id FROM study WHERE received_ms < ?)",
            wall_ms() - _KEPT_MS,
        )


_CANDIDATES = f"""
SELECT notification_due.study, notification_due.destination
FROM notification_due JOIN study ON study.id = notification_due.study
JOIN destination ON destination.id = notification_due.destination AND destination.notify = 1
WHERE notification_due.study > ?1 AND study.received_ms NOT BETWEEN ?2 - {STILL_MS} AND ?2
  AND EXISTS (SELECT 1 FROM delivery WHERE delivery.study = study.id AND {_PROVED})
  AND NOT EXISTS (SELECT 1 FROM step WHERE step.state = 'in_progress'
    AND step.changed_ms BETWEEN ?2 - {_STEP_MS} AND ?2 AND step.id IN
      (SELECT step FROM step_order WHERE study_instance_uid = study.study_instance_uid))
ORDER BY notification_due.study LIMIT ?3"""  # noqa: S608  own words


def candidates(db: Database, after: int, most: int) -> list[Due]:
    """Studies after number `after` that may be there by now: some of each is proved."""
    with db.read() as tx:
        return [Due(*row) for row in tx.rows(_CANDIDATES, after, wall_ms(), most)]


def availability(db: Database, study: int) -> Availability | None:
    """What is to be told of a study; None while no destination is proved to have all of it."""
    with db.read() as tx:
        series = _series(tx, study)
        whole = sum(len(some) for some in series.values())
        rows = tx.rows(
            "SELECT destination.ae_title FROM delivery "  # noqa: S608  own words
            "JOIN instance ON instance.id = delivery.subject "
            "JOIN destination ON destination.id = delivery.destination "
            f"WHERE delivery.study = ? AND {_PROVED} AND delivery.kind = 'instance' "
            f"AND {_CURRENT} AND destination.ae_title != '' "
            "GROUP BY destination.id HAVING COUNT(*) = ? ORDER BY destination.id",
            *(study, whole),
        )
        uid = tx.first("SELECT study_instance_uid FROM study WHERE id = ?", study)
        if not rows or uid is None:
            return None
        steps = tx.rows(
            "SELECT DISTINCT step.sop_instance_uid FROM step_order "
            "JOIN step ON step.id = step_order.step WHERE study_instance_uid = ?",
            uid[0],
        )
    return Availability(
        study_instance_uid=UID(uid[0]),
        series=series,
        places=list(dict.fromkeys(row[0] for row in rows)),
        steps=[row[0] for row in steps],
    )


def _series(tx: Transaction, study: int) -> dict[str, list[Reference]]:
    found: dict[str, list[Reference]] = {}
    for uid, sop_class, sop_instance in tx.rows(
        "SELECT series_instance_uid, sop_class_uid, sop_instance_uid "  # noqa: S608  own words
        "FROM series JOIN instance ON instance.series = series.id "
        f"WHERE series.study = ? AND {_CURRENT} ORDER BY series.id, instance.id",
        study,
    ):
        found.setdefault(uid, []).append(Reference(UID(sop_class), UID(sop_instance)))
    return found


def add(db: Database, due: Due, uid: UID, transfer_syntax_uid: UID, body: bytes) -> None:
    """Queue the one notification of a study for a destination."""
    with db.write() as tx:
        if not tx.run("DELETE FROM notification_due WHERE study = ? AND destination = ?", *due):
            return  # it was removed meanwhile
        number = tx.insert(
            "notification",
            {
                "study": due.study,
                "destination": due.destination,
                "sop_instance_uid": uid,
                "transfer_syntax_uid": transfer_syntax_uid,
                "body": body,
                "made_ms": wall_ms(),
            },
        )
        dispatches.add(tx, DeliveryKind.NOTIFICATION, number, due.destination)
        audit.record(
            tx, actor="forward", act="availability notified", kind="study", subject=due.study
        )
