"""Retrievals: which instances a C-MOVE or C-GET names, and which of them are to be had."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgepacs.model import UID, InstanceId, StudyId
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An instance that is asked for; `here` is 0 where its bytes were evicted."""

    id: InstanceId
    study: StudyId
    sop_instance_uid: UID
    sop_class_uid: UID
    transfer_syntax_uid: UID
    received_syntax_uid: UID
    frames: int
    here: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Unique keys, each a list of which one must fit; an empty list lets all pass."""

    patients: Sequence[str] = ()  # Patient IDs
    studies: Sequence[UID] = ()
    series: Sequence[UID] = ()
    instances: Sequence[UID] = ()


_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "patients": "study.patient_id",
        "studies": "study.study_instance_uid",
        "series": "series.series_instance_uid",
        "instances": "instance.sop_instance_uid",
    }
)
# Nothing of a study that is held or rejected leaves, nor what a rejection note hides. Of a UID that
# has been evicted and came back, what came back is meant.
_NAMED = """
FROM instance JOIN series ON series.id = instance.series JOIN study ON study.id = series.study
WHERE study.state NOT IN ('held', 'rejected') AND NOT hidden AND (instance.state = 'stored'
  OR instance.state = 'evicted' AND NOT EXISTS (SELECT 1 FROM instance AS other
    WHERE other.sop_instance_uid = instance.sop_instance_uid AND other.state = 'stored'))"""
_WANTED = (
    "SELECT instance.id, series.study, sop_instance_uid, sop_class_uid, transfer_syntax_uid, "
    "received_syntax_uid, frames, instance.state = 'stored' AS here"
)


def named(db: Database, keys: Keys, most: int) -> list[Wanted]:
    """What has these keys, study by study and series by series as it arrived; `most` and no more.

    Neither what is quarantined, was superseded or is hidden by a rejection note, nor studies that
    are held or rejected; what was evicted is named, since whoever asks must not take its absence
    for completeness.
    """
    with db.read() as tx:
        found = _select(tx, keys, most)
    return list({one.sop_instance_uid: one for one in found}.values())


def _select(tx: Transaction, keys: Keys, most: int) -> list[Wanted]:
    given: dict[str, Any] = {name: getattr(keys, name) for name in _COLUMNS}
    given = {name: values for name, values in given.items() if values}
    clauses = [f" AND {_COLUMNS[name]} IN (SELECT value FROM json_each(?))" for name in given]  # noqa: S608  own names
    sql = f"{_WANTED}{_NAMED}{''.join(clauses)} ORDER BY study.id, series.id, instance.id LIMIT ?"
    return tx.records(Wanted, sql, *(json.dumps(list(one)) for one in given.values()), most)


def record(tx: Transaction, sent: Iterable[Wanted], *, actor: str, receiver: str) -> None:
    """Say in the audit trail of each study who has had how many of its instances sent where."""
    for study, count in Counter(one.study for one in sent).items():
        detail = f"{count} instances, to {receiver}"
        audit.record(
            tx, actor=actor, act="instances retrieved", kind="study", subject=study, detail=detail
        )
