"""Performed procedure steps: what modalities tell of their work, by N-CREATE and N-SET.

A step moves its entries of the worklist along, says what it has made, and is told again to every
destination that is told of steps. What was told is kept as received (PS3.4 F.7.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, LimitExceeded, NotFound
from edgepacs.model import (
    ENTRY_TRANSITIONS,
    STEP_TRANSITIONS,
    UID,
    EntryState,
    State,
    StepState,
    require_transition,
)
from edgepacs.store import audit, worklist
from edgepacs.store.db import Database, Transaction

CREATE, SET = "create", "set"


@dataclass(frozen=True, slots=True)
class Ordered:
    """One scheduled step it performs; '' where absent, and a study alone where unscheduled."""

    study_instance_uid: str
    accession_number: str = ""
    procedure_id: str = ""
    scheduled_id: str = ""


class Made(NamedTuple):
    """One instance a step says it has made."""

    sop_instance_uid: str
    sop_class_uid: str


@dataclass(frozen=True, slots=True)
class Performed:
    """One series a step says it has made."""

    series_instance_uid: str
    description: str = ""
    protocol: str = ""
    made: Sequence[Made] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one message says of a step; None of what it does not speak of. Text is decoded."""

    state: StepState | None = None
    patient_id: str | None = None
    issuer: str | None = None
    patient_name: str | None = None
    performed_id: str | None = None
    modality: str | None = None
    station_ae: str | None = None
    station_name: str | None = None
    description: str | None = None
    start_date: str | None = None
    start_time: str | None = None
    end_date: str | None = None
    end_time: str | None = None
    reason: str | None = None
    orders: Sequence[Ordered] | None = None
    series: Sequence[Performed] | None = None


_TEXTS = tuple(one.name for one in fields(Told) if one.name not in ("state", "orders", "series"))


@dataclass(frozen=True, slots=True)
class Received:
    """The data set of a message as it came."""

    transfer_syntax_uid: UID
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row of `step`."""

    id: int
    sop_instance_uid: UID
    state: StepState = field(metadata={"make": StepState})
    source: str
    patient_id: str
    issuer: str
    patient_name: str
    performed_id: str
    modality: str
    station_ae: str
    station_name: str
    description: str
    start_date: str
    start_time: str
    end_date: str
    end_time: str
    reason: str
    created_ms: int
    changed_ms: int


_STEP = ", ".join(f"step.{name}" for name in Step.__slots__)


MESSAGES_MOST = 1000  # of one step; a modality says something of each series
BYTES_MOST = 64 << 20  # of all messages of one step
_SAID = "SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM step_message WHERE step = ?"

# --- what is told ------------------------------------------------------------------------------


def create(tx: Transaction, number: UID, told: Told, received: Received, *, source: str) -> int:
    """Take in the N-CREATE of a step; its row. Raises Conflict where it is known already."""
    if by_uid(tx, number) is not None:
        raise Conflict("performed procedure step: it is known already")
    now = wall_ms()
    texts = {name: getattr(told, name) or "" for name in _TEXTS}
    row = tx.insert(
        "step",
        {
            "sop_instance_uid": number,
            "state": StepState.IN_PROGRESS,
            "source": source,
            "created_ms": now,
            "changed_ms": now,
            **texts,
        },
    )
    for place, one in enumerate(told.orders or ()):
        values = (one.study_instance_uid, one.accession_number, one.procedure_id, one.scheduled_id)
        tx.run("INSERT INTO step_order VALUES (?, ?, ?, ?, ?, ?)", row, place, *values)
    _take(tx, row, told, received, CREATE)
    audit.record(tx, actor=source, act="step in_progress", kind="step", subject=row)
    _move_entries(tx, row, EntryState.STARTED, source)
    replay(tx, row)
    return row


def change(tx: Transaction, number: UID, told: Told, received: Received, *, source: str) -> int:
    """Take in an N-SET of a step; its row.

    Raises NotFound; Conflict where the step is completed or discontinued: nothing more may be said
    of it (PS3.4 F.7.2.2.3); LimitExceeded where too much has been said of it.
    """
    step = by_uid(tx, number)
    if step is None:
        raise NotFound("performed procedure step: it is not known")
    said, octets = tx.first(_SAID, step.id) or (0, 0)
    if said >= MESSAGES_MOST or octets + len(received.body) > BYTES_MOST:
        words = f"more than {MESSAGES_MOST} messages or {BYTES_MOST >> 20} MiB of one step"
        raise LimitExceeded(f"performed procedure step: {words}")
    if not STEP_TRANSITIONS[step.state]:
        raise Conflict("performed procedure step: it may no longer be updated")
    new = told.state or step.state
    if new is not step.state:
        require_transition(STEP_TRANSITIONS, step.state, new)
    texts = {name: value for name in _TEXTS if (value := getattr(told, name)) is not None}
    columns = "".join(f", {name} = ?" for name in texts)
    tx.run(
        f"UPDATE step SET state = ?, changed_ms = ?{columns} WHERE id = ?",  # noqa: S608  own names
        *(new, wall_ms(), *texts.values(), step.id),
    )
    _take(tx, step.id, told, received, SET)
    detail = told.reason or ""
    act = f"step {new}" if new is not step.state else "step changed"
    audit.record(tx, actor=source, act=act, kind="step", subject=step.id, detail=detail)
    if new in _FINAL_ENTRY:
        _move_entries(tx, step.id, _FINAL_ENTRY[new], source)
    replay(tx, step.id)
    return step.id


_FINAL_ENTRY = {
    StepState.COMPLETED: EntryState.COMPLETED,
    StepState.DISCONTINUED: EntryState.DISCONTINUED,
}


def _take(tx: Transaction, row: int, told: Told, received: Received, command: str) -> None:
    """Keep a message, and what it lists in place of what was listed before."""
    tx.run(
        "INSERT INTO step_message (step, command, transfer_syntax_uid, body, received_ms) "
        "VALUES (?, ?, ?, ?, ?)",
        *(row, command, received.transfer_syntax_uid, received.body, wall_ms()),
    )
    if told.series is None:
        return
    tx.run("DELETE FROM step_series WHERE step = ?", row)
    tx.run("DELETE FROM step_instance WHERE step = ?", row)
    for place, one in enumerate(told.series):
        values = (one.series_instance_uid, one.description, one.protocol)
        tx.run("INSERT INTO step_series VALUES (?, ?, ?, ?, ?)", row, place, *values)
        for made in one.made:
            tx.run("INSERT OR IGNORE INTO step_instance VALUES (?, ?, ?, ?)", row, *made, place)


def _move_entries(tx: Transaction, row: int, state: EntryState, source: str) -> None:
    """Move the entries of the worklist it performs along, as far as they may still move."""
    for one in _orders(tx, row):
        for held in _entries(tx, one):
            if state in ENTRY_TRANSITIONS[held.state]:
                worklist.shift(tx, held.id, state, actor=source, why="performed procedure step")


def _entries(tx: Transaction, one: Ordered) -> Sequence[worklist.Held]:
    """The entries one scheduled step names; where it names a study alone, the one of that study."""
    if one.scheduled_id:
        held = worklist.of_step(tx, one.study_instance_uid, one.scheduled_id)
        return [held] if held else []
    found = worklist.of_study(tx, one.study_instance_uid)
    return found if len(found) == 1 else []


def _orders(tx: Transaction, row: int) -> list[Ordered]:
    sql = (
        "SELECT study_instance_uid, accession_number, procedure_id, scheduled_id "
        "FROM step_order WHERE step = ? ORDER BY place"
    )
    return tx.records(Ordered, sql, row)


# --- told again --------------------------------------------------------------------------------

_REPLAY = """
INSERT INTO delivery (kind, subject, destination, ordering_key, state, created_ms, changed_ms)
SELECT 'mpps', step_message.id, destination.id, 'mpps ' || step.id, 'queued', ?2, ?2
FROM step JOIN step_message ON step_message.step = step.id
JOIN destination ON destination.mpps = 1 AND destination.transport = 'dimse'
  AND destination.ae_title != step.source
WHERE step.id = ?1 ORDER BY step_message.id
ON CONFLICT DO NOTHING"""


def replay(tx: Transaction, row: int) -> int:
    """Queue what was told of a step for every destination that is told of steps; how many.

    All of it: a destination that was not told of its beginning could make nothing of its end.
    """
    return tx.run(_REPLAY, row, wall_ms())


# --- what is asked for -------------------------------------------------------------------------


def by_uid(tx: Transaction, number: UID) -> Step | None:
    """The step of that SOP Instance UID."""
    found = tx.records(Step, f"SELECT {_STEP} FROM step WHERE sop_instance_uid = ?", number)  # noqa: S608
    return found[0] if found else None


def orders_of(db: Database, number: int) -> list[Ordered]:
    """The scheduled steps a step performs."""
    with db.read() as tx:
        return _orders(tx, number)


class Completeness(State):
    """Whether what a step says it has made is here."""

    OPEN = "open", "the modality is at it: more may come"
    COMPLETE = "complete", "every instance it lists has arrived"
    MISSING = "missing", "instances it lists have not arrived"
    UNLISTED = "unlisted", "it is closed and lists no instances, so nobody can count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Step):
    """A step with how many instances it lists, and how many of those have arrived."""

    listed: int
    arrived: int

    @property
    def completeness(self) -> Completeness:
        """Whether all of it is here."""
        if self.state is StepState.IN_PROGRESS:
            return Completeness.OPEN
        if not self.listed:
            return Completeness.UNLISTED
        return Completeness.COMPLETE if self.arrived == self.listed else Completeness.MISSING


# What is compared, quarantined or deleted after it had arrived elsewhere has arrived.
_ARRIVED = (
    "EXISTS (SELECT 1 FROM instance WHERE instance.sop_instance_uid = "
    "step_instance.sop_instance_uid AND instance.state != 'discarded')"
)
_COUNTED = f"""
SELECT {_STEP}, COUNT(step_instance.step) AS listed,
       COALESCE(SUM(step_instance.step IS NOT NULL AND {_ARRIVED}), 0) AS arrived
FROM step LEFT JOIN step_instance ON step_instance.step = step.id
WHERE {{where}} GROUP BY step.id ORDER BY step.id DESC"""  # noqa: S608  own words


def listed(db: Database, state: StepState | None = None, *, most: int = 200) -> list[Counted]:
    """Steps with their counts, the last begun first."""
    where = (
        "step.id IN (SELECT id FROM step WHERE ?1 IS NULL OR state = ?1 ORDER BY id DESC LIMIT ?2)"
    )
    with db.read() as tx:
        return tx.records(Counted, _COUNTED.format(where=where), state, most)


def counted(db: Database, number: int) -> Counted:
    """One step with its counts; raises NotFound."""
    missing_words = f"step: there is no step {number}"
    with db.read() as tx:
        return tx.record(Counted, missing_words, _COUNTED.format(where="step.id = ?"), number)


def of_study(db: Database, study_instance_uid: str) -> list[Counted]:
    """The steps that were to make a study, with their counts."""
    where = "step.id IN (SELECT step FROM step_order WHERE study_instance_uid = ?)"
    with db.read() as tx:
        return tx.records(Counted, _COUNTED.format(where=where), study_instance_uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesCount:
    """A series a step lists, and how many of its instances have arrived."""

    series_instance_uid: str
    description: str
    protocol: str
    listed: int
    arrived: int


def series_of(db: Database, number: int) -> list[SeriesCount]:
    """The series a step lists, in its order."""
    sql = f"""
SELECT series_instance_uid, description, protocol, COUNT(step_instance.step) AS listed,
       COALESCE(SUM(step_instance.step IS NOT NULL AND {_ARRIVED}), 0) AS arrived
FROM step_series LEFT JOIN step_instance
  ON step_instance.step = step_series.step AND step_instance.series = step_series.place
WHERE step_series.step = ? GROUP BY step_series.place ORDER BY step_series.place"""  # noqa: S608
    with db.read() as tx:
        return tx.records(SeriesCount, sql, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """One message of a step, and how far it has come to one destination ('' for to none)."""

    message: int
    command: str
    received_ms: int
    delivery: int | None
    destination_name: str
    state: str
    attempts: int
    next_ms: int
    last_error: str
    sent_ms: int


def tellings(db: Database, number: int) -> list[Telling]:
    """What was told of a step, and how far each message has come to each destination, in order."""
    sql = """
SELECT step_message.id AS message, command, received_ms, delivery.id AS delivery,
       COALESCE(destination.name, '') AS destination_name, COALESCE(delivery.state, '') AS state,
       COALESCE(attempts, 0) AS attempts, COALESCE(next_ms, 0) AS next_ms,
       COALESCE(last_error, '') AS last_error, COALESCE(sent_ms, 0) AS sent_ms
FROM step_message
LEFT JOIN delivery ON delivery.kind = 'mpps' AND delivery.subject = step_message.id
LEFT JOIN destination ON destination.id = delivery.destination
WHERE step_message.step = ? ORDER BY destination.name, step_message.id"""
    with db.read() as tx:
        return tx.records(Telling, sql, number)


# --- what is missing ---------------------------------------------------------------------------


class Absence(State):
    """By what it is known that an instance is missing."""

    LISTED = "listed", "a procedure step lists instances that have not arrived"
    ASKED = "asked", "storage commitment was asked of instances that have not arrived"
    GAP = "gap", "the instance numbers of a series have gaps"


@dataclass(frozen=True, slots=True)
class Missing:
    """What a study seems to lack: `absent` of `whole` instances; `series` is that of a gap."""

    absence: Absence
    absent: int
    whole: int
    series: str = ""

    @property
    def words(self) -> str:
        """The same for a technologist."""
        if self.absence is Absence.LISTED:
            return f"{self.absent} of {self.whole} instances the modality made have not arrived"
        if self.absence is Absence.ASKED:
            words = "instances the modality wants assured have not arrived"
            return f"{self.absent} of {self.whole} {words}"
        of = f"series {self.series}" if self.series else "a series"
        return f"{self.absent} of {self.whole} instance numbers of {of} are missing"


GAP_MS = 60_000  # a series is still when nothing has come for so long
_FEW = 3  # instances from which on numbers are looked at
# A modality that numbers in tens, or by slice position, has no gaps: most of a row must be there.
_GAPS = f"""
SELECT series.study, series.number, found.span - found.here, found.span
FROM series
JOIN (SELECT series, COUNT(DISTINCT number) AS here, MAX(number) - MIN(number) + 1 AS span
      FROM (SELECT series, CAST(instance_number AS INTEGER) AS number FROM instance
            WHERE series IN (SELECT series.id FROM series JOIN study ON study.id = series.study
                             WHERE study.id IN ({{studies}}) AND study.received_ms >= ?2)
              AND state != 'discarded' AND LENGTH(instance_number) BETWEEN 1 AND 9
              AND instance_number NOT GLOB '*[^0-9]*')
      GROUP BY series) AS found ON found.series = series.id
WHERE found.here >= {_FEW} AND found.span > found.here AND found.span <= found.here * 3 / 2
  AND series.received_ms NOT BETWEEN ?1 - {GAP_MS} AND ?1
ORDER BY CAST(series.number AS INTEGER), series.id"""  # noqa: S608  own words
_LISTED = f"""
SELECT study.id, SUM(NOT {_ARRIVED}), COUNT(*)
FROM study JOIN step ON step.state != 'in_progress' AND step.id IN
  (SELECT step FROM step_order WHERE step_order.study_instance_uid = study.study_instance_uid)
JOIN step_instance ON step_instance.step = step.id
WHERE study.id IN ({{studies}}) GROUP BY study.id"""  # noqa: S608


# A request names no study: it is about those of which it names instances that are here.
_ASKED = """
WITH lacking AS (
  SELECT pledge.id AS number, COUNT(*) AS whole, SUM(NOT EXISTS (
    SELECT 1 FROM instance WHERE instance.sop_instance_uid = pledge_item.sop_instance_uid
      AND instance.state != 'discarded')) AS absent
  FROM pledge JOIN pledge_item ON pledge_item.pledge = pledge.id
  WHERE pledge.id IN (SELECT pledge FROM pledge_item WHERE reason = 274)
    AND pledge.asked_ms >= ?1
  GROUP BY pledge.id)
SELECT DISTINCT series.study, lacking.absent, lacking.whole, lacking.number
FROM lacking JOIN pledge_item ON pledge_item.pledge = lacking.number
JOIN instance ON instance.sop_instance_uid = pledge_item.sop_instance_uid
JOIN series ON series.id = instance.series
WHERE lacking.absent > 0 AND series.study IN ({studies})
ORDER BY lacking.number"""


def missing(db: Database, studies: Sequence[int], *, since_ms: int = 0) -> dict[int, list[Missing]]:
    """What each of these studies seems to lack; none for those that seem whole.

    Of what is listed by closed steps, at once: the patient is still there. Of what storage
    commitment was asked, when it was found not to be here. Gaps in instance numbers, the weakest
    sign, when a series has been still for a minute. The latter two only of requests made, and in
    studies that received something, after `since_ms`.
    """
    among = ", ".join(str(int(number)) for number in studies)
    found: dict[int, list[Missing]] = {}
    with db.read() as tx:
        for study, absent, whole in tx.rows(_LISTED.format(studies=among)):
            if absent:
                found.setdefault(study, []).append(Missing(Absence.LISTED, absent, whole))
        asked = {
            study: Missing(Absence.ASKED, absent, whole)  # the last request alone
            for study, absent, whole, _ in tx.rows(_ASKED.format(studies=among), since_ms)
        }
        for study, one in asked.items():
            found.setdefault(study, []).append(one)
        for study, series, absent, whole in tx.rows(
            _GAPS.format(studies=among), wall_ms(), since_ms
        ):
            found.setdefault(study, []).append(Missing(Absence.GAP, absent, whole, series))
    return found


_NOTHING_HERE = (
    "step.state != 'in_progress' AND step.changed_ms > ? AND NOT EXISTS (SELECT 1 FROM study "
    "WHERE study.study_instance_uid IN "
    "(SELECT study_instance_uid FROM step_order WHERE step_order.step = step.id))"
)


def without_study(db: Database, since_ms: int) -> list[Counted]:
    """Closed steps of which no instance has come at all, changed after `since_ms`."""
    with db.read() as tx:
        found = tx.records(Counted, _COUNTED.format(where=_NOTHING_HERE), since_ms)
    return [one for one in found if one.completeness is Completeness.MISSING]
