"""The audit trail: who did what to which row, chained so that no row can quietly change."""

import hashlib
import json
from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.store.db import Database, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One row of the trail."""

    id: int
    at_ms: int
    actor: str
    act: str
    kind: str
    subject: int | None
    detail: str


def record(
    tx: Transaction, *, actor: str, act: str, kind: str, subject: int | None, detail: str = ""
) -> None:
    """Add one record inside the transaction of what it records."""
    at_ms = wall_ms()
    last = tx.first("SELECT chain FROM audit ORDER BY id DESC LIMIT 1")
    chain = _link(last[0] if last else bytes(32), at_ms, actor, act, kind, subject, detail)
    tx.insert(
        "audit",
        {
            "at_ms": at_ms,
            "actor": actor,
            "act": act,
            "kind": kind,
            "subject": subject,
            "detail": detail,
            "chain": chain,
        },
    )


def _link(before: bytes, *values: str | int | None) -> bytes:
    return hashlib.sha256(before + json.dumps(values).encode()).digest()


def of_subject(db: Database, kind: str, subject: int) -> list[AuditRecord]:
    """Everything recorded about one row, oldest first."""
    with db.read() as tx:
        return tx.records(
            AuditRecord,
            "SELECT id, at_ms, actor, act, kind, subject, detail FROM audit "
            "WHERE kind = ? AND subject = ? ORDER BY id",
            kind,
            subject,
        )


def broken_at(db: Database) -> int | None:
    """The id of the first record that does not follow from the one before it; None if all do."""
    before = bytes(32)
    with db.read() as tx:
        for row in tx.rows("SELECT * FROM audit ORDER BY id"):
            number, *values, chain = row
            if _link(before, *values) != chain:
                return int(number)
            before = chain
    return None
