"""Deliveries: the outbox. One row per subject and destination, from `queued` to its proof.

`routing` makes them inside the commit of their instance; `claims` records the attempt before
anybody dials, so that a crash cannot hammer a peer. Every change of state runs through `shift`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    DeliveryKind,
    DeliveryState,
    HoldReason,
    InstanceId,
    StudyId,
    StudyState,
    WorklistMatch,
    require_transition,
)
from edgepacs.store import audit
from edgepacs.store.db import Transaction

NOT_SENT = "not sent: "  # how the last error begins where our own copy could not be read
RESPONSE = "response"  # the proof that a destination answered success
COMMITTED_PROOF = "committed"  # an N-EVENT-REPORT said so
FOUND = "found"  # by its own SOP Instance UID
UNPROVABLE = "response; the destination offers no other proof"  # so nothing may be evicted
LOSSY_RESPONSE = "response for a lossy copy"  # never a proof that the instance itself has arrived
STAT = 100  # the priority of what a person sends at once
PRIORITIES = range(-1000, 1001)
NOT_LEFT = (
    DeliveryState.QUEUED,
    DeliveryState.HELD,
    DeliveryState.FAILED,
    DeliveryState.CANCELLED,
)

# Nothing leaves of a study somebody stopped or that differs from its order, by whatever way it
# would come back into the queue.
MAY_LEAVE = (
    "NOT EXISTS (SELECT 1 FROM study WHERE study.id = delivery.study "
    "AND (study.state IN ('held', 'rejected') OR study.worklist = 'mismatched'))"
)
STILL_STANDS = (
    "(kind != 'instance' OR EXISTS (SELECT 1 FROM instance WHERE instance.id = delivery.subject "
    "AND instance.state = 'stored'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A delivery to be made: where to, how urgent, and whether it is held for a `reason`.

    `send_as` is what a rule says of the transfer syntax, '' where it says nothing; `failover` the
    rule in whose order of destinations it may move, None where it may not.
    """

    destination: int
    priority: int = 0
    reason: HoldReason | None = None
    send_as: str = ""
    failover: int | None = None


def add(tx: Transaction, instance: InstanceId, study: StudyId, wanted: Wanted) -> None:
    """Make one delivery, unless there is one."""
    now = wall_ms()
    tx.run(
        "INSERT INTO delivery (kind, subject, study, destination, state, hold_reason, priority, "
        "send_as, failover, created_ms, changed_ms) VALUES ('instance', ?, ?, ?, ?, ?, ?, ?, ?, "
        "?, ?) ON CONFLICT DO NOTHING",
        instance,
        study,
        wanted.destination,
        DeliveryState.HELD if wanted.reason else DeliveryState.QUEUED,
        wanted.reason or "",
        wanted.priority,
        wanted.send_as,
        wanted.failover,
        now,
        now,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which deliveries an act is about; what is None, or an empty `among`, does not narrow it."""

    delivery: int | None = None
    study: int | None = None
    destination: int | None = None
    state: DeliveryState | None = None
    among: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The SQL condition for `values`; names only what narrows it, so that an index serves."""
        columns = ("id", "study", "destination")
        terms = [
            f"?{i} IS NULL" if value is None else f"{column} = ?{i}"
            for i, (column, value) in enumerate(zip(columns, self.values, strict=True), start=1)
        ]
        if self.state is not None:
            terms.append(f"state = '{self.state}'")
        if self.among:
            terms.append(f"id IN ({', '.join(str(int(number)) for number in self.among)})")
        return " AND ".join(terms)

    @property
    def values(self) -> tuple[int | None, int | None, int | None]:
        """The values `where` stands on: ?1 to ?3."""
        return (self.delivery, self.study, self.destination)


def shift(
    tx: Transaction,
    selection: Selection,
    old: Sequence[DeliveryState],
    new: DeliveryState,
    *,
    actor: str,
    extra: Mapping[str, str | int | None] = {},
    only: str = "1",
) -> int:
    """Move all selected deliveries that are in `old` to `new`, with one audit row; how many."""
    for state in old:
        require_transition(DELIVERY_TRANSITIONS[DeliveryKind.INSTANCE], state, new)
    now = wall_ms()
    values = {**_times(old, new, now), **extra, "state": new, "changed_ms": now}
    columns = ", ".join(f"{name} = ?{i}" for i, name in enumerate(values, start=4))
    few = "+" if selection.among else ""  # these are looked up, not all that are in `old`
    changed = tx.run(
        f"UPDATE delivery SET {columns} "  # noqa: S608  own names only
        f"WHERE {few}{_in(old)} AND {only} AND {selection.where}",
        *selection.values,
        *values.values(),
    )
    if changed:
        _record(tx, selection, f"delivery {new}", f"{changed} from {'|'.join(old)}", actor)
    return changed


def _in(states: Sequence[DeliveryState]) -> str:
    """The condition that the state is one of `states`; of one alone a partial index may serve."""
    if len(states) == 1:
        return f"state = '{states[0]}'"
    return f"state IN ({', '.join(repr(str(state)) for state in states)})"


def _times(old: Sequence[DeliveryState], new: DeliveryState, now: int) -> dict[str, int]:
    """When it left, and when that was proved."""
    proved = new in (DeliveryState.COMMITTED, DeliveryState.CONFIRMED_BY_QUERY)
    times = {"proved_ms": now} if proved else {}
    if DeliveryState.SENDING in old and (proved or new is DeliveryState.SENT):
        times["sent_ms"] = now
    return times


def _record(tx: Transaction, selection: Selection, act: str, detail: str, actor: str) -> None:
    kind, subject = "delivery", None
    for name in ("delivery", "study", "destination"):
        number = getattr(selection, name)
        if number is not None:
            kind, subject = name, number
            break
    if selection.among:
        detail = f"{detail}: {' '.join(map(str, selection.among))}"
    audit.record(tx, actor=actor, act=act, kind=kind, subject=subject, detail=detail)


def settle(tx: Transaction, selection: Selection) -> None:
    """What comes back into the queue after its study was stopped, or its instance replaced."""
    queued = [DeliveryState.QUEUED]
    shift(
        tx,
        selection,
        queued,
        DeliveryState.SUPERSEDED,
        actor="forward",
        only=f"NOT {STILL_STANDS}",
    )
    shift(
        tx,
        selection,
        queued,
        DeliveryState.HELD,
        actor="forward",
        extra={"hold_reason": HoldReason.STUDY},
        only=f"NOT {MAY_LEAVE}",
    )


def hold(
    tx: Transaction, selection: Selection, *, actor: str, reason: HoldReason = HoldReason.PERSON
) -> int:
    """Stop what is queued; how many deliveries."""
    extra = {"hold_reason": str(reason)}
    return shift(
        tx, selection, [DeliveryState.QUEUED], DeliveryState.HELD, actor=actor, extra=extra
    )


def release(
    tx: Transaction,
    selection: Selection,
    *,
    actor: str,
    reasons: Sequence[HoldReason] = tuple(HoldReason),
) -> int:
    """Let go what is held for one of `reasons`, unless its study is stopped; how many."""
    names = ", ".join(f"'{reason}'" for reason in reasons)
    return shift(
        tx,
        selection,
        [DeliveryState.HELD],
        DeliveryState.QUEUED,
        actor=actor,
        extra={"hold_reason": "", "next_ms": 0},
        only=f"hold_reason IN ({names}) AND {MAY_LEAVE}",
    )


def retry(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Queue again what failed or was cancelled, and try what waits for its time now."""
    hurried = tx.run(
        f"UPDATE delivery SET next_ms = 0 WHERE state = 'queued' AND next_ms > 0 "  # noqa: S608
        f"AND {selection.where}",
        *selection.values,
    )
    old = [DeliveryState.FAILED, DeliveryState.CANCELLED]
    return hurried + shift(
        tx,
        selection,
        old,
        DeliveryState.QUEUED,
        actor=actor,
        extra={"next_ms": 0},
        only=f"{MAY_LEAVE} AND {STILL_STANDS}",
    )


def cancel(tx: Transaction, selection: Selection, *, actor: str) -> int:
    """Say that what is queued, held or failed shall not be sent; how many deliveries."""
    old = [DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED]
    extra = {"hold_reason": ""}
    return shift(tx, selection, old, DeliveryState.CANCELLED, actor=actor, extra=extra)


def prioritise(tx: Transaction, selection: Selection, priority: int, *, actor: str) -> int:
    """Give what has not left another priority; of how many deliveries it changed."""
    if priority not in PRIORITIES:
        raise InvalidValue("priority", "not between -1000 and 1000")
    changed = tx.run(
        f"UPDATE delivery SET priority = ?4 WHERE {_in(NOT_LEFT)} "  # noqa: S608
        f"AND priority != ?4 AND {selection.where}",
        *selection.values,
        priority,
    )
    if changed:
        _record(tx, selection, "delivery priority", f"{changed} to {priority}", actor)
    return changed


def supersede(tx: Transaction, instance: InstanceId, *, actor: str) -> None:
    """Close the open deliveries of an instance another version has replaced."""
    open_states = [DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED]
    for (number,) in tx.rows(
        "SELECT id FROM delivery WHERE kind = 'instance' AND subject = ?", instance
    ):
        selection = Selection(delivery=number)
        extra = {"hold_reason": ""}
        shift(tx, selection, open_states, DeliveryState.SUPERSEDED, actor=actor, extra=extra)


_OF_FORMER = """
SELECT old.id, old.hold_reason, there.id FROM delivery AS old JOIN delivery AS there
  ON there.kind = 'instance' AND there.subject = ?2 AND there.destination = old.destination
WHERE old.kind = 'instance' AND old.subject = ?1 AND old.state IN ('queued', 'held', 'failed')
  AND there.state = 'superseded'"""

_HAND_OVER = """
INSERT INTO delivery (kind, subject, study, destination, state, hold_reason, priority, send_as,
                      failover, created_ms, changed_ms)
SELECT kind, ?2, ?3, destination, iif(state = 'failed', 'queued', state), hold_reason, priority,
       send_as, failover, ?4, ?4
FROM delivery WHERE kind = 'instance' AND subject = ?1
  AND state IN ('queued', 'held', 'failed', 'cancelled') ORDER BY id
ON CONFLICT DO NOTHING"""


def pass_on(
    tx: Transaction, former: InstanceId, latter: InstanceId, study: StudyId, *, actor: str
) -> None:
    """What was due of one version and has not left is due of another, in its place.

    What was cancelled stays so; what failed gets a new chance, being other bytes.
    """
    again = [(old, there, why) for old, why, there in tx.rows(_OF_FORMER, former, latter)]
    tx.run(_HAND_OVER, former, latter, study, wall_ms())
    _revive(tx, again, actor=actor)
    supersede(tx, former, actor=actor)


def readable_again(tx: Transaction, instance: InstanceId) -> None:
    """Queue what failed because our own copy of an instance could not be read."""
    for (number,) in tx.rows(
        "SELECT id FROM delivery WHERE kind = 'instance' AND subject = ? AND state = 'failed' "
        "AND last_error LIKE ?",
        instance,
        NOT_SENT + "%",
    ):
        retry(tx, Selection(delivery=number), actor="ingest")


def send_study(tx: Transaction, study: StudyId, destinations: Sequence[int], *, actor: str) -> int:
    """Queue what is not on its way yet, before everything else; how many are queued now."""
    row = tx.first("SELECT state, worklist FROM study WHERE id = ?", study)
    if row is None:
        raise NotFound(f"study: there is no study {study}")
    if row[1] == WorklistMatch.MISMATCHED:
        raise Conflict("study: it differs from its order; decide about that before sending")
    if StudyState(row[0]) in (StudyState.HELD, StudyState.REJECTED):
        raise Conflict(f"study: it is {row[0]}; release it before sending")
    if not destinations:
        raise NotFound("destination: none is configured; a field engineer adds one")
    queued = 0
    for destination in destinations:
        for (instance,) in tx.rows(
            "SELECT id FROM instance WHERE state = 'stored' "
            "AND series IN (SELECT id FROM series WHERE study = ?) ORDER BY id",
            study,
        ):
            add(tx, InstanceId(instance), study, Wanted(destination=destination, priority=STAT))
        selection = Selection(study=study, destination=destination)
        _call_back(tx, selection, actor=actor)
        release(tx, selection, actor=actor)
        retry(tx, selection, actor=actor)
        tx.run(
            "UPDATE delivery SET priority = MAX(priority, ?) "
            "WHERE study = ? AND destination = ? AND state = 'queued'",
            STAT,
            study,
            destination,
        )
        queued += tx.number(
            "SELECT COUNT(*) FROM delivery WHERE study = ? AND destination = ? "
            "AND state = 'queued'",
            study,
            destination,
        )
    audit.record(tx, actor=actor, act="study sent", kind="study", subject=study)
    return queued


def _call_back(tx: Transaction, selection: Selection, *, actor: str) -> None:
    """What went elsewhere instead is wanted here as well; it moves no more of itself."""
    old = [DeliveryState.SUPERSEDED]
    extra: dict[str, str | int | None] = {"next_ms": 0, "last_error": "", "failover": None}
    queued = DeliveryState.QUEUED
    shift(tx, selection, old, queued, actor=actor, extra=extra, only=STILL_STANDS)


# --- to another destination instead ------------------------------------------------------------

MOVABLE = (DeliveryState.QUEUED, DeliveryState.HELD, DeliveryState.FAILED)
_OUT = (DeliveryState.SUPERSEDED, DeliveryState.CANCELLED, DeliveryState.FAILED)
OF_ITSELF = frozenset(
    {
        DeliveryState.QUEUED,
        DeliveryState.SENDING,
        DeliveryState.SENT,
        DeliveryState.AWAITING_COMMITMENT,
        DeliveryState.COMMITTED,
        DeliveryState.CONFIRMED_BY_QUERY,
        DeliveryState.SUPERSEDED,
    }
)
"""In which states a delivery that is there already may take another's place without a person."""
BY_PERSON = OF_ITSELF | {DeliveryState.HELD, DeliveryState.CANCELLED, DeliveryState.FAILED}

_MAY_MOVE = f"""
SELECT old.id, old.hold_reason, there.id, there.state
FROM delivery AS old JOIN instance ON instance.id = old.subject
LEFT JOIN delivery AS there
  ON there.kind = old.kind AND there.subject = old.subject AND there.destination = ?1
WHERE old.id IN (SELECT value FROM json_each(?2)) AND old.kind = 'instance'
  AND old.{_in(MOVABLE)} AND old.destination != ?1 AND instance.state = 'stored'
  AND instance.source != (SELECT ae_title FROM destination WHERE id = ?1)"""  # noqa: S608


def move(
    tx: Transaction,
    numbers: Sequence[int],
    destination: int,
    *,
    over: frozenset[DeliveryState],
    words: str,
    actor: str,
) -> int:
    """Let another destination have what has not left: each gets a delivery there in its place.

    The old one is superseded, saying `words`. Where there is a delivery already it serves, if
    its state is one of `over`; else nothing is done. Never back to where an instance came from.
    How many moved.
    """
    found = tx.rows(_MAY_MOVE, destination, json.dumps(list(numbers)))
    found = [row for row in found if row[3] is None or row[3] in over]
    if not found:
        return 0
    tx.run(_MAKE_THERE, destination, json.dumps([row[0] for row in found if not row[2]]), wall_ms())
    _revive(tx, [(row[0], row[2], row[1]) for row in found if row[3] in _OUT], actor=actor)
    leaving = Selection(among=tuple(row[0] for row in found))
    extra = {"last_error": words, "hold_reason": ""}
    return shift(tx, leaving, MOVABLE, DeliveryState.SUPERSEDED, actor=actor, extra=extra)


_MAKE_THERE = """
INSERT INTO delivery (kind, subject, study, destination, state, hold_reason, priority, send_as,
                      failover, created_ms, changed_ms)
SELECT kind, subject, study, ?1, CASE WHEN reason = '' THEN 'queued' ELSE 'held' END, reason,
       priority, send_as, failover, ?3, ?3
FROM (SELECT *, CASE
        WHEN state = 'held' THEN hold_reason
        WHEN study IN (SELECT id FROM study WHERE state IN ('held', 'rejected')) THEN 'study'
        ELSE '' END AS reason
      FROM delivery WHERE id IN (SELECT value FROM json_each(?2)) ORDER BY id)"""

_AS_BEFORE = """
UPDATE delivery SET priority = MAX(delivery.priority, old.priority), send_as = old.send_as,
                    failover = old.failover
FROM delivery AS old WHERE old.id = ?1 AND delivery.id = ?2"""


def _revive(tx: Transaction, pairs: Sequence[tuple[int, int, str]], *, actor: str) -> None:
    """Queue again what is there; of `pairs` of old and new delivery, held as the old one was."""
    if not pairs:
        return
    again = Selection(among=tuple(new for _, new, _ in pairs))
    extra: dict[str, str | int] = {"next_ms": 0, "last_error": "", "hold_reason": ""}
    shift(tx, again, _OUT, DeliveryState.QUEUED, actor=actor, extra=extra)
    for old, new, _ in pairs:
        tx.run(_AS_BEFORE, old, new)
    for reason in HoldReason:
        held = tuple(new for _, new, was in pairs if was == reason)
        if held:
            hold(tx, Selection(among=held), actor=actor, reason=reason)
    settle(tx, again)
