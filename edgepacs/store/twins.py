"""Twins: entries of the worklist that may be one and the same.

While the line is down people enter who walks in; when it is back the order comes too. Which two
are one is decided by rules where they are sure, and by a person where they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.model import (
    TWIN_TRANSITIONS,
    EntryId,
    EntryOrigin,
    EntryState,
    TwinState,
    require_transition,
)
from edgepacs.store import audit, worklist
from edgepacs.store.db import Database, Transaction, Value
from edgepacs.store.worklist import Held

_ENTERED = (EntryOrigin.LOCAL, EntryOrigin.IMPORT)
_OVER = (EntryState.CANCELLED, EntryState.RETIRED)
_BEGUN = (EntryState.STARTED, EntryState.COMPLETED, EntryState.DISCONTINUED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """What was entered here and what was ordered; the comments of migration 0017 say the rest."""

    id: int
    entered: int
    ordered: int
    state: TwinState = field(metadata={"make": TwinState})
    words: str
    created_ms: int
    changed_ms: int


_TWIN = f"SELECT {', '.join(Twin.__slots__)} FROM twin "  # noqa: S608  own names only


def meet(tx: Transaction, ordered: EntryId, *, actor: str) -> None:
    """Look whether an entry new from an order is here already, by another way.

    What upstream has told of the same step gives way to HL7. What was entered here is the same
    when accession number and patient agree, or when patient, modality and day do and there is
    nothing else it could be; whatever is less sure waits for a person.
    """
    held = worklist.entry(tx, ordered)
    if held.origin is EntryOrigin.HL7:
        _take_over(tx, held, actor)
    by_number = [one for one in _entered(tx, held) if _same_accession(one, held)]
    if by_number:
        for one in by_number:
            _meet_by_number(tx, one, held, actor)
        return
    candidates = [one for one in _entered(tx, held) if _same_visit(one, held)]
    rivals = [one for one in _orders_like(tx, held) if one.id != held.id]
    for one in candidates:
        if len(candidates) > 1 or rivals:
            words = "same patient, modality and day, but there are several"
        elif one.entry.accession_number and held.entry.accession_number:
            words = "same patient, modality and day, but another accession number"
        else:
            _add(tx, one, held, TwinState.MERGED, "same patient, modality and day", actor)
            continue
        _add(tx, one, held, TwinState.OPEN, words, actor)


def _meet_by_number(tx: Transaction, entered: Held, ordered: Held, actor: str) -> None:
    if _same_patient(entered, ordered):
        _add(tx, entered, ordered, TwinState.MERGED, "same accession number and patient", actor)
    else:
        words = "same accession number, but another patient"
        _add(tx, entered, ordered, TwinState.OPEN, words, actor)


def _take_over(tx: Transaction, ordered: Held, actor: str) -> None:
    """An order is heard sooner and in full by HL7 than by asking."""
    for one in worklist.of_study(tx, ordered.entry.study_instance_uid):
        same = one.origin is EntryOrigin.UPSTREAM and one.entry.step_id == ordered.entry.step_id
        if same and one.state is EntryState.SCHEDULED:
            why = f"came by HL7 as entry {ordered.id}"
            worklist.shift(tx, one.id, EntryState.RETIRED, actor=actor, why=why)


def _entered(tx: Transaction, ordered: Held) -> list[Held]:
    """What was entered here, is not over, is nobody's twin yet, and could be this order."""
    patient, accession = ordered.entry.patient, ordered.entry.accession_number
    found = {one.id: one for one in worklist.of_order(tx, accession)}
    for issuer in {patient.issuer, ""}:
        found |= {one.id: one for one in worklist.of_patient(tx, patient.patient_id, issuer)}
    return [
        one
        for one in found.values()
        if one.origin in _ENTERED and one.state not in _OVER and partner(tx, one.id) is None
    ]


def _orders_like(tx: Transaction, ordered: Held) -> list[Held]:
    """Orders that could be the same walk-in as this one."""
    patient = ordered.entry.patient
    return [
        one
        for one in worklist.of_patient(tx, patient.patient_id, patient.issuer)
        if one.origin not in _ENTERED
        and one.state is EntryState.SCHEDULED
        and _same_visit(one, ordered)
        and partner(tx, one.id) is None
    ]


def _same_accession(one: Held, other: Held) -> bool:
    number = one.entry.accession_number
    return bool(number) and number == other.entry.accession_number


def _same_patient(one: Held, other: Held) -> bool:
    a, b = one.entry.patient, other.entry.patient
    return a.patient_id == b.patient_id and (a.issuer == b.issuer or not a.issuer or not b.issuer)


def _same_visit(one: Held, other: Held) -> bool:
    same_day = one.entry.start_date == other.entry.start_date
    return same_day and one.entry.modality == other.entry.modality and _same_patient(one, other)


def _add(
    tx: Transaction, entered: Held, ordered: Held, state: TwinState, words: str, actor: str
) -> None:
    known = tx.first("SELECT 1 FROM twin WHERE entered = ? AND ordered = ?", entered.id, ordered.id)
    if known is not None:
        return
    now = wall_ms()
    row: dict[str, Value] = {"entered": entered.id, "ordered": ordered.id, "state": state}
    number = tx.insert("twin", {**row, "words": words, "created_ms": now, "changed_ms": now})
    audit.record(tx, actor=actor, act=f"twins {state}", kind="twin", subject=number, detail=words)
    if state is TwinState.MERGED:
        _merge(tx, entered, ordered, actor)


def _merge(tx: Transaction, entered: Held, ordered: Held, actor: str) -> None:
    """The order stands for both: done is done, and what is not begun is offered once."""
    if entered.state is EntryState.SCHEDULED:
        why = f"the same as entry {ordered.id}"
        worklist.shift(tx, entered.id, EntryState.RETIRED, actor=actor, why=why)
    elif entered.state in _BEGUN and ordered.state is EntryState.SCHEDULED:
        why = f"as entry {entered.id}, which is the same"
        worklist.shift(tx, ordered.id, entered.state, actor=actor, why=why)


def partner(tx: Transaction, entry: EntryId) -> EntryId | None:
    """The other of two entries that are one; what happens to one concerns the other."""
    row = tx.first(
        "SELECT entered, ordered FROM twin "
        "WHERE state = 'merged' AND (entered = ?1 OR ordered = ?1)",
        entry,
    )
    if row is None:
        return None
    return EntryId(row[1] if row[0] == entry else row[0])


def settle(tx: Transaction, number: int, state: TwinState, *, actor: str) -> None:
    """A person says whether two entries are one; raises NotFound, Conflict."""
    missing = f"twins: there are none of number {number}"
    twin = tx.record(Twin, missing, _TWIN + "WHERE id = ?", number)
    require_transition(TWIN_TRANSITIONS, twin.state, state)
    tx.run("UPDATE twin SET state = ?, changed_ms = ? WHERE id = ?", state, wall_ms(), number)
    audit.record(tx, actor=actor, act=f"twins {state}", kind="twin", subject=number)
    if state is TwinState.MERGED:
        entered = worklist.entry(tx, EntryId(twin.entered))
        _merge(tx, entered, worklist.entry(tx, EntryId(twin.ordered)), actor)


def listed(db: Database, state: TwinState | None = TwinState.OPEN) -> Sequence[Twin]:
    """Twins in a state, or all, the newest first."""
    with db.read() as tx:
        sql = _TWIN + "WHERE ?1 IS NULL OR state = ?1 ORDER BY id DESC"
        return tx.records(Twin, sql, state)
