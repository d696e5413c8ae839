"""Compression: which instances are to be compressed at rest, who has them, what came of it.

Ingest writes nothing here: new instances are found by their number. An attempt is recorded before
the work begins, so that a crash counts; the object is swapped in one transaction, or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict
from edgepacs.model import (
    COMPRESSION_TRANSITIONS,
    UID,
    CompressionState,
    InstanceId,
    InstanceState,
    ObjectId,
    SeriesId,
    StudyId,
    require_transition,
)
from edgepacs.store import audit
from edgepacs.store.db import Database, Transaction, Value

MAX_ATTEMPTS = 3  # that may crash or hang before an instance is left as it is
ON_REQUEST = -1  # priority of what a person asks to be done again: behind what is new
_PLANNED_AT_ONCE = 1000
_ACTOR = "upkeep"
_DEFLATED = "1.2.840.10008.1.2.1.99"  # Deflated Explicit VR Little Endian
# What has native pixel data (PS3.5 A.1, A.2, A.3); all else stays as it was received.
_ELIGIBLE = (
    "state = 'stored' AND frames > 0 AND pixel_offset >= 0 AND transfer_syntax_uid IN "
    "('1.2.840.10008.1.2', '1.2.840.10008.1.2.1', '1.2.840.10008.1.2.2')"
)
_PLAN = (
    "INSERT INTO compression (instance, state, priority, received_length, byte_length, changed_ms) "  # noqa: S608
    f"SELECT id, 'waiting', ?1, byte_length, byte_length, ?2 FROM instance WHERE {_ELIGIBLE} AND "
)
_ENDED = ", ".join(
    f"'{old}'"
    for old, new in COMPRESSION_TRANSITIONS.items()
    if CompressionState.WAITING in new and old is not CompressionState.COMPRESSING
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One instance a worker is to compress, as it stood when it was claimed.

    `choice` is the transfer syntax its series stands in, "" where none has been found yet.
    """

    instance: InstanceId
    series: SeriesId
    object_id: ObjectId
    byte_length: int
    attempts: int
    choice: UID
    instance_state: InstanceState = field(metadata={"make": InstanceState})


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A durable object that was proved to restore to what was received, and what it cost."""

    object_id: ObjectId
    transfer_syntax_uid: UID
    byte_length: int
    sealed_length: int
    pixel_offset: int
    native_digest: bytes
    encode_ms: int
    verify_ms: int


def choice_of(made: Made) -> UID:
    """What the others of its series are to be compressed in; "" where they are to find out.

    One that came out smallest deflated was flat, such as the empty slice a series begins with.
    """
    return UID("") if made.transfer_syntax_uid == _DEFLATED else made.transfer_syntax_uid


def pending(db: Database) -> bool:
    """Whether an instance waits, or has not even been considered yet."""
    with db.read() as tx:
        return bool(
            tx.number(
                "SELECT (SELECT MAX(id) FROM instance) > considered "
                "OR EXISTS (SELECT 1 FROM compression WHERE state = 'waiting') "
                "FROM compression_mark"
            )
        )


def plan(tx: Transaction) -> int:
    """Consider the next instances in the order of their arrival; how many are to be compressed."""
    considered = tx.number("SELECT considered FROM compression_mark")
    newest = tx.number("SELECT MAX(id) FROM instance")
    if newest == considered:
        return 0
    upto = min(newest, considered + _PLANNED_AT_ONCE)
    sql = _PLAN + "id > ?3 AND id <= ?4 ON CONFLICT DO NOTHING"
    planned = tx.run(sql, 0, wall_ms(), considered, upto)
    tx.run("UPDATE compression_mark SET considered = ?", upto)
    return planned


def consider(tx: Transaction, number: InstanceId) -> None:
    """Plan one instance that was passed over before: another version stood for its UID."""
    tx.run(_PLAN + "id = ?3 ON CONFLICT DO NOTHING", 0, wall_ms(), number)


def stands_native(tx: Transaction, number: InstanceId) -> None:
    """Another copy as received has replaced a compressed one: it waits for a worker anew."""
    tx.run(
        "UPDATE compression SET state = iif(state = 'compressed', 'waiting', state), attempts = 0, "
        "transfer_syntax_uid = '', byte_length = received_length, changed_ms = ? "
        "WHERE instance = ? AND transfer_syntax_uid != ''",
        wall_ms(),
        number,
    )


def stands_compressed(
    tx: Transaction,
    number: InstanceId,
    transfer_syntax_uid: UID,
    *,
    received_length: int,
    byte_length: int,
) -> None:
    """An instance became known compressed: by a rebuild, or before it was acknowledged."""
    tx.run(
        "INSERT OR REPLACE INTO compression (instance, state, transfer_syntax_uid, "
        "received_length, byte_length, changed_ms) VALUES (?, 'compressed', ?, ?, ?, ?)",
        number,
        transfer_syntax_uid,
        received_length,
        byte_length,
        wall_ms(),
    )


def claim(tx: Transaction, most: int) -> list[Claim]:
    """Take up to `most` instances, what is new before what is done again, the oldest first.

    They are in `compressing`, with their attempt recorded, once the transaction is durable. What
    has been tried before comes alone, so that a crash is blamed on the right one.
    """
    found = tx.records(
        Claim,
        "SELECT compression.instance, instance.series, object_id, instance.byte_length, "
        "attempts + 1 AS attempts, COALESCE(compression_choice.transfer_syntax_uid, '') AS choice, "
        "instance.state AS instance_state FROM compression "
        "JOIN instance ON instance.id = compression.instance "
        "LEFT JOIN compression_choice ON compression_choice.series = instance.series "
        "WHERE compression.state = 'waiting' ORDER BY priority DESC, compression.instance LIMIT ?",
        most,
    )
    claims = []
    for one in found[:1] if found and found[0].attempts > 1 else _untried(found):
        if one.instance_state is InstanceState.STORED:
            sql = "UPDATE compression SET attempts = ? WHERE instance = ?"
            _shift(tx, one.instance, CompressionState.COMPRESSING)
            tx.run(sql, one.attempts, one.instance)
            claims.append(one)
        else:
            _end(tx, one.instance, CompressionState.NATIVE, f"it is {one.instance_state} by now")
    return claims


def _untried(found: Sequence[Claim]) -> list[Claim]:
    return list(takewhile(lambda one: one.attempts == 1, found))


def swap(tx: Transaction, claimed: Claim, made: Made) -> None:
    """Let an instance stand in its compressed object; the former may go once this is durable.

    Raises Conflict, having changed nothing, where the instance is gone or stands in another
    object than the one that was compressed.
    """
    row = tx.first(
        "SELECT series, study, byte_length FROM instance "
        "WHERE id = ? AND object_id = ? AND state = 'stored'",
        claimed.instance,
        claimed.object_id,
    )
    if row is None:
        raise Conflict("instance: it is no longer what was compressed")
    _shift(tx, claimed.instance, CompressionState.COMPRESSED)
    tx.run(
        "UPDATE instance SET object_id = ?, transfer_syntax_uid = ?, byte_length = ?, "
        "sealed_length = ?, pixel_offset = ?, native_digest = ? WHERE id = ?",
        made.object_id,
        made.transfer_syntax_uid,
        made.byte_length,
        made.sealed_length,
        made.pixel_offset,
        made.native_digest,
        claimed.instance,
    )
    series, study, before = row
    for table, number in (("series", series), ("study", study)):
        sql = f"UPDATE {table} SET byte_size = byte_size + ? WHERE id = ?"  # noqa: S608
        tx.run(sql, made.byte_length - before, number)
    tx.run(
        "UPDATE compression SET transfer_syntax_uid = ?, byte_length = ?, encode_ms = ?, "
        "verify_ms = ?, reason = '' WHERE instance = ?",
        made.transfer_syntax_uid,
        made.byte_length,
        made.encode_ms,
        made.verify_ms,
        claimed.instance,
    )
    if choice := choice_of(made):
        tx.run("INSERT OR IGNORE INTO compression_choice VALUES (?, ?)", series, choice)
    audit.record(
        tx,
        actor=_ACTOR,
        act="instance compressed",
        kind="instance",
        subject=claimed.instance,
        detail=made.transfer_syntax_uid,
    )


def keep(tx: Transaction, claimed: Claim, reason: str) -> None:
    """Leave an instance as it stands: compressed before, or as received for `reason`."""
    _leave(tx, claimed.instance, CompressionState.NATIVE, reason)


def give_back(tx: Transaction, claimed: Claim) -> None:
    """Return a claim nobody could finish through no fault of the instance."""
    _shift(tx, claimed.instance, CompressionState.WAITING)
    sql = "UPDATE compression SET attempts = attempts - 1 WHERE instance = ?"
    tx.run(sql, claimed.instance)


def broke(tx: Transaction, claimed: Claim, words: str) -> None:
    """A worker crashed or hung over an instance: tried again, but not for ever."""
    if claimed.attempts < MAX_ATTEMPTS:
        _end(tx, claimed.instance, CompressionState.WAITING, words)
    else:
        _leave(tx, claimed.instance, CompressionState.FAILED, words)


def recover(db: Database) -> int:
    """After a crash of everything: what was begun waits again, or has failed; how many."""
    with db.write() as tx:
        found = tx.rows("SELECT instance, attempts FROM compression WHERE state = 'compressing'")
        for number, attempts in found:
            words = "broken off by a crash"
            if attempts < MAX_ATTEMPTS:
                _end(tx, number, CompressionState.WAITING, words)
            else:
                _leave(tx, number, CompressionState.FAILED, words)
    return len(found)


def _leave(tx: Transaction, number: InstanceId, new: CompressionState, reason: str) -> None:
    """As it stands: what was compressed before remains so, whatever came of doing it again."""
    stands_in = "SELECT transfer_syntax_uid != '' FROM compression WHERE instance = ?"
    if tx.number(stands_in, number):
        _end(tx, number, CompressionState.COMPRESSED, "")
    else:
        _end(tx, number, new, reason)


def _end(tx: Transaction, number: InstanceId, new: CompressionState, reason: str) -> None:
    _shift(tx, number, new)
    tx.run("UPDATE compression SET reason = ? WHERE instance = ?", reason, number)
    if new in (CompressionState.NATIVE, CompressionState.FAILED):
        audit.record(
            tx,
            actor=_ACTOR,
            act="instance kept as received",
            kind="instance",
            subject=number,
            detail=reason,
        )


def _shift(tx: Transaction, number: InstanceId, new: CompressionState) -> None:
    row = tx.first("SELECT state FROM compression WHERE instance = ?", number)
    if row is None:
        raise Conflict(f"instance: {number} is not to be compressed")
    require_transition(COMPRESSION_TRANSITIONS, CompressionState(row[0]), new)
    sql = "UPDATE compression SET state = ?, changed_ms = ? WHERE instance = ?"
    tx.run(sql, new, wall_ms(), number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Instances that are meant; what is None does not narrow."""

    study: StudyId | None = None
    instance: InstanceId | None = None
    state: CompressionState | None = None

    @property
    def values(self) -> tuple[Value, ...]:
        """What ?1 to ?3 of the conditions below stand for."""
        return (self.study, self.instance, self.state)


_SELECTED = (
    "instance.state = 'stored' "
    "AND (?1 IS NULL OR instance.series IN (SELECT id FROM series WHERE study = ?1)) "
    "AND (?2 IS NULL OR instance.id = ?2) AND (?3 IS NULL OR compression.state = ?3)"
)
_FROM = "FROM instance LEFT JOIN compression ON compression.instance = instance.id WHERE "


def again(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Compress anew what is selected: what an earlier version stored, or stood another choice of.

    What stands compressed stays so until something smaller has been proved. How many wait now.
    """
    chosen = f"IN (SELECT instance.id {_FROM}{_SELECTED})"
    now, values = wall_ms(), selection.values
    tx.run(
        "DELETE FROM compression_choice WHERE series IN "  # noqa: S608
        f"(SELECT series FROM instance WHERE id {chosen})",
        *values,
    )
    count = tx.run(
        f"UPDATE compression SET state = 'waiting', attempts = 0, priority = ?4, changed_ms = ?5 "  # noqa: S608
        f"WHERE state IN ({_ENDED}) AND instance {chosen}",
        *values,
        ON_REQUEST,
        now,
    )
    if selection.state is None:
        count += tx.run(
            "INSERT INTO compression (instance, state, priority, received_length, byte_length, "  # noqa: S608
            "changed_ms) SELECT id, 'waiting', ?4, byte_length, byte_length, ?5 FROM instance "
            f"WHERE {_ELIGIBLE} AND id {chosen} ON CONFLICT DO NOTHING",
            *values,
            ON_REQUEST,
            now,
        )
    audit.record(
        tx,
        actor=actor,
        act="compression asked for",
        kind="study" if selection.study else "instance",
        subject=selection.study or selection.instance,
        detail=f"{count} instances",
    )
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one stored instance stands; `state` is "" where it was never to be compressed."""

    instance: InstanceId
    series: SeriesId
    state: str
    received_syntax_uid: UID
    transfer_syntax_uid: UID
    received_length: int
    byte_length: int
    encode_ms: int
    verify_ms: int
    attempts: int
    reason: str
    changed_ms: int


def results(db: Database, selection: Selection, *, most: int = 1 << 30) -> list[Result]:
    """How the instances stand that are selected, in the order of their arrival."""
    sql = (
        "SELECT instance.id AS instance, series, COALESCE(compression.state, '') AS state, "
        "received_syntax_uid, instance.transfer_syntax_uid, "
        "COALESCE(received_length, instance.byte_length) AS received_length, "
        "instance.byte_length, COALESCE(encode_ms, 0) AS encode_ms, "
        "COALESCE(verify_ms, 0) AS verify_ms, COALESCE(attempts, 0) AS attempts, "
        "COALESCE(reason, '') AS reason, COALESCE(changed_ms, 0) AS changed_ms "
        f"{_FROM}{_SELECTED} ORDER BY instance.id LIMIT ?4"
    )
    with db.read() as tx:
        return tx.records(Result, sql, *selection.values, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Instances of one series, or of all, that stand alike; `state` as in Result.

    `reason` is one of those there are. Lengths are in bytes, times of the processor.
    """

    series: SeriesId | None
    state: str
    transfer_syntax_uid: UID
    instances: int
    received_length: int
    byte_length: int
    encode_ms: int
    verify_ms: int
    reason: str


_SUMS = (
    "COALESCE(compression.state, '') AS state, instance.transfer_syntax_uid, "
    "COUNT(*) AS instances, SUM(COALESCE(received_length, instance.byte_length)) "
    "AS received_length, SUM(instance.byte_length) AS byte_length, "
    "COALESCE(SUM(encode_ms), 0) AS encode_ms, COALESCE(SUM(verify_ms), 0) AS verify_ms, "
    f"COALESCE(MAX(reason), '') AS reason {_FROM}{_SELECTED} GROUP BY "
)


def of_study(db: Database, number: StudyId) -> list[Sum]:
    """How the stored instances of a study stand, summed by series, state and transfer syntax."""
    sql = f"SELECT instance.series, {_SUMS} 1, 2, 3"
    with db.read() as tx:
        return tx.records(Sum, sql, *Selection(study=number).values)


def totals(db: Database) -> list[Sum]:
    """How all stored instances stand, summed by state and transfer syntax."""
    sql = f"SELECT NULL AS series, {_SUMS} 2, 3"
    with db.read() as tx:
        return tx.records(Sum, sql, *Selection().values)
