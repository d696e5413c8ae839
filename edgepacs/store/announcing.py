"""Announcements: HL7 ADT messages to destinations that correct their own copy of a study (PIR).

What is told is written down with the correction that makes it necessary; `orders/` says it in HL7
when its delivery is due.
"""

import json
from dataclasses import asdict, dataclass, field

from edgepacs.clock import wall_ms
from edgepacs.model import DeliveryKind, State, StudyId
from edgepacs.store import audit, deliveries, dispatches
from edgepacs.store.db import Database, Transaction
from edgepacs.store.deliveries import Selection
from edgepacs.store.worklist import Patient


class Trigger(State):
    """What a message says, by its trigger event (HL7 v2.5.1 3.3)."""

    A08 = "A08", "what is known of a patient has changed"
    A40 = "A40", "one patient ID was given up for another"


def _patient(text: str) -> Patient:
    return Patient(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One message; the comments of migration 0021 say what the fields mean."""

    id: int
    destination: int
    study: StudyId
    correction: int
    trigger: Trigger = field(metadata={"make": Trigger})
    patient: Patient = field(metadata={"make": _patient}, repr=False)
    former_id: str = field(repr=False)
    former_issuer: str = field(repr=False)
    made_ms: int


_COLUMNS = ", ".join(Announcement.__slots__)


def announce(
    tx: Transaction,
    *,
    destination: int,
    study: StudyId,
    correction: int,
    trigger: Trigger,
    patient: Patient,
    former_id: tuple[str, str] | None,
    actor: str,
) -> int:
    """Queue one message for a destination; its number. `former_id` is (ID, issuer), with A40."""
    number, issuer = former_id or ("", "")
    made = tx.insert(
        "announcement",
        {
            "destination": destination,
            "study": study,
            "correction": correction,
            "trigger": trigger,
            "patient": json.dumps(asdict(patient)),
            "former_id": number,
            "former_issuer": issuer,
            "made_ms": wall_ms(),
        },
    )
    # What is told of one study keeps its order.
    dispatches.add(tx, DeliveryKind.HL7, made, destination, key=f"adt {study}")
    words = f"{trigger} to destination {destination}"
    audit.record(
        tx, actor=actor, act="announcement queued", kind="study", subject=study, detail=words
    )
    return made


def revoke(tx: Transaction, correction: int, *, actor: str) -> bool:
    """Take back what a correction would have told; False where something of it has left."""
    rows = tx.rows(
        "SELECT delivery.id, state FROM announcement JOIN delivery ON kind = 'hl7' "
        "AND subject = announcement.id WHERE correction = ?",
        correction,
    )
    if any(state in ("sending", "sent") for _, state in rows):
        return False
    for number, _ in rows:
        deliveries.cancel(tx, Selection(delivery=number), actor=actor)
    return True


def of_correction(db: Database, correction: int) -> list[Announcement]:
    """What a correction tells destinations, in its order."""
    sql = f"SELECT {_COLUMNS} FROM announcement WHERE correction = ? ORDER BY id"  # noqa: S608
    with db.read() as tx:
        return tx.records(Announcement, sql, correction)


def announcement(db: Database, number: int) -> Announcement:
    """One message; raises NotFound."""
    sql = f"SELECT {_COLUMNS} FROM announcement WHERE id = ?"  # noqa: S608  own names only
    with db.read() as tx:
        return tx.record(Announcement, "announcement: it is no longer here", sql, number)
