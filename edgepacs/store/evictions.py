"""Evictions: deleting here what has provably arrived everywhere it was to go.

A study goes whole or not at all, and only when every instance of it has at least one delivery and
each delivery the proof its destination owes; an answer to a transfer is none. Priors go first:
all of such a study was fetched, so it is where it came from (docs/decisions/0022-prefetch.md).
All that is looked at in the very transaction that turns its rows into tombstones
(docs/decisions/0021-eviction.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.model import (
    INSTANCE_TRANSITIONS,
    InstanceState,
    Kept,
    ObjectId,
    StudyId,
    StudyState,
    require_transition,
)
from edgepacs.store import Store, audit, disposal
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import LOSSY_RESPONSE, UNPROVABLE
from edgepacs.telemetry import failpoint

DAY_MS = 86_400_000
PRIOR_KEEP_MS = DAY_MS  # longer than the examination it was fetched for
_STUDIES_AT_ONCE = 100  # read in one snapshot, so that none holds up the log for long
_WEIGHTS = {kept: weight for weight, kept in enumerate(Kept, start=1)}
_BY_WEIGHT = dict(enumerate(Kept, start=1))

# A proof is one of this very instance, at a destination that owes one.
_PROVED = """(delivery.state IN ('committed', 'confirmed_by_query')
  AND destination.proof IN ('committed', 'found') AND destination.lossy = 0
  AND INSTR(delivery.proof, 'lossy') = 0)"""
_ANSWER_ALONE = f"""(destination.proof = 'response' OR destination.lossy
  OR delivery.proof IN ('{UNPROVABLE}', '{LOSSY_RESPONSE}'))"""

# Nothing of it ever came but by prefetch, tombstones and other versions included, and nobody sends
# it anywhere.
_PRIOR = """(NOT EXISTS (SELECT 1 FROM series JOIN instance ON instance.series = series.id
    WHERE series.study = study.id AND instance.origin != 'prefetch')
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.study = study.id))"""

_STANDINGS = f"""
WITH one AS (
  SELECT series.study, instance.state, instance.sealed_length,
    TOTAL({_PROVED}) AS proofs,
    MAX(CASE
      WHEN delivery.id IS NULL OR delivery.state = 'superseded' OR {_PROVED} THEN 0
      WHEN delivery.state = 'failed' THEN {_WEIGHTS[Kept.FAILED]}
      WHEN delivery.state = 'held' THEN {_WEIGHTS[Kept.HELD]}
      WHEN delivery.state = 'cancelled' THEN {_WEIGHTS[Kept.CANCELLED]}
      WHEN delivery.state NOT IN ('queued', 'sending') AND {_ANSWER_ALONE}
        THEN {_WEIGHTS[Kept.RESPONSE]}
      ELSE {_WEIGHTS[Kept.UNPROVED]} END) AS weight
  FROM series JOIN instance ON instance.series = series.id
  LEFT JOIN delivery ON delivery.kind = 'instance' AND delivery.subject = instance.id
  LEFT JOIN destination ON destination.id = delivery.destination
  WHERE series.study BETWEEN ?1 AND ?2 AND instance.state NOT IN ('evicted', 'discarded')
  GROUP BY instance.id)
SELECT study.id AS study, study.state, study.received_ms, COUNT(*) AS instances,
  SUM(one.sealed_length) AS sealed, MAX(CASE
    WHEN one.state != 'stored' THEN {_WEIGHTS[Kept.DISPUTED]}
    WHEN one.weight = 0 AND one.proofs = 0 AND NOT {_PRIOR} THEN {_WEIGHTS[Kept.UNWANTED]}
    ELSE one.weight END) AS weight, {_PRIOR} AS prior
FROM one JOIN study ON study.id = one.study GROUP BY study.id ORDER BY study.id"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What stands of one study: its instances here, and the bytes they take on the disk."""

    study: StudyId
    state: StudyState = field(metadata={"make": StudyState})
    received_ms: int
    instances: int
    sealed: int
    weight: int  # of the reason to keep it that its deliveries and versions give; 0 for none
    prior: int  # 1: all of it was fetched and is sent nowhere

    def kept(self, keep_ms: int) -> Kept | None:
        """Why it may not go, with `keep_ms` as the least age; None where it may.

        What was received in the future was received before the clock was set back: of an
        unknown age, and no younger for it. A prior need only be a day old.
        """
        if self.state in (StudyState.HELD, StudyState.REJECTED):
            return Kept.STOPPED
        if self.weight:
            return _BY_WEIGHT[self.weight]
        least = PRIOR_KEEP_MS if self.prior else keep_ms
        return Kept.RECENT if 0 <= wall_ms() - self.received_ms < least else None


def standings(db: Database) -> Iterator[Standing]:
    """Every study of which anything stands here; read a few at a time."""
    last = 0
    while True:
        with db.read() as tx:
            upto = tx.number(
                "SELECT MAX(id) FROM (SELECT id FROM study WHERE id > ? ORDER BY id LIMIT ?)",
                last,
                _STUDIES_AT_ONCE,
            )
            if not upto:
                return
            found = tx.records(Standing, _STANDINGS, last + 1, upto)
        yield from found
        last = upto


def standing(tx: Transaction, study: StudyId) -> Standing | None:
    """What stands of one study; None for nothing."""
    return next(iter(tx.records(Standing, _STANDINGS, study, study)), None)


def oldest(db: Database, keep_ms: int) -> Iterator[StudyId]:
    """The studies that may go: priors first, then those whose last instance came longest ago."""
    priors = (
        "SELECT received_ms, id FROM study WHERE id IN (SELECT series.study FROM instance "
        "JOIN series ON series.id = instance.series WHERE instance.origin = 'prefetch')"
    )
    yield from _in_order(db, priors, keep_ms)
    yield from _in_order(db, "SELECT received_ms, id FROM study WHERE 1", keep_ms)


def _in_order(db: Database, some: str, keep_ms: int) -> Iterator[StudyId]:
    """Those of `some` studies that may go, oldest first; read a few at a time."""
    last = (-1, 0)
    while True:
        with db.read() as tx:
            found = tx.rows(
                f"{some} AND (received_ms, id) > (?, ?) "
                "AND instance_count > 0 ORDER BY received_ms, id LIMIT ?",
                *last,
                _STUDIES_AT_ONCE,
            )
            may_go = [StudyId(row[1]) for row in found if _may_go(tx, StudyId(row[1]), keep_ms)]
        if not found:
            return
        yield from may_go
        last = found[-1]


def _may_go(tx: Transaction, study: StudyId, keep_ms: int) -> bool:
    found = standing(tx, study)
    return found is not None and found.kept(keep_ms) is None


def evict(store: Store, study: StudyId, *, keep_ms: int, actor: str) -> int:
    """Delete a study's bytes here if they may go; how many bytes it was.

    Durable tombstones first, then the objects. A crash in between leaves objects that only
    tombstones name, which the sweep removes.
    """
    with store.db.write() as tx:
        found = standing(tx, study)
        if found is None or found.kept(keep_ms) is not None:
            return 0
        objects = _entomb(tx, study)
        audit.record(
            tx,
            actor=actor,
            act="study evicted",
            kind="study",
            subject=study,
            detail=f"{len(objects)} instances, {found.sealed} bytes; proved at {_where(tx, study)}",
        )
    failpoint("evict.decided")
    disposal.clear_evicted(store, objects)
    return found.sealed


def _entomb(tx: Transaction, study: StudyId) -> list[ObjectId]:
    """Turn every stored instance of a study into a tombstone; the objects that may go."""
    of_study = "state = 'stored' AND series IN (SELECT id FROM series WHERE study = ?)"
    rows = tx.rows(f"SELECT object_id FROM instance WHERE {of_study}", study)  # noqa: S608
    require_transition(INSTANCE_TRANSITIONS, InstanceState.STORED, InstanceState.EVICTED)
    tx.run(f"UPDATE instance SET state = 'evicted' WHERE {of_study}", study)  # noqa: S608
    for table, key in (("series", "study"), ("study", "id")):
        tx.run(
            f"UPDATE {table} SET evicted_count = evicted_count + instance_count, "  # noqa: S608
            f"instance_count = 0, byte_size = 0 WHERE {key} = ?",
            study,
        )
    return [ObjectId(row[0]) for row in rows]


def _where(tx: Transaction, study: StudyId) -> str:
    """The destinations that have a study, with the kinds of proof."""
    found = tx.rows(
        "SELECT DISTINCT destination.name, delivery.state FROM delivery "
        "JOIN destination ON destination.id = delivery.destination WHERE study = ? "
        "AND delivery.state IN ('committed', 'confirmed_by_query') ORDER BY 1, 2",
        study,
    )
    return ", ".join(f"{name} ({state})" for name, state in found) or "where it was fetched from"
