"""Errands: what one role asks of another, e.g. the console of forward/."""

from dataclasses import dataclass

from edgepacs.clock import wall_ms
from edgepacs.store.db import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What one role asks another to do."""

    id: int
    role: str
    act: str
    subject: int
    asked_by: str
    asked_ms: int
    done_ms: int | None
    succeeded: int | None
    result: str


def ask(db: Database, *, role: str, act: str, subject: int, actor: str) -> int:
    """Ask another role to do something; its number, to look the answer up with `numbered`."""
    with db.write() as tx:
        return tx.insert(
            "errand",
            {
                "role": role,
                "act": act,
                "subject": subject,
                "asked_by": actor,
                "asked_ms": wall_ms(),
            },
        )


def still_open(db: Database, role: str) -> list[Errand]:
    """What a role has been asked and has not answered, oldest first."""
    with db.read() as tx:
        return tx.records(
            Errand, "SELECT * FROM errand WHERE role = ? AND done_ms IS NULL ORDER BY id", role
        )


def numbered(db: Database, number: int) -> Errand:
    """One errand; raises NotFound."""
    with db.read() as tx:
        missing = f"errand: there is no errand {number}"
        return tx.record(Errand, missing, "SELECT * FROM errand WHERE id = ?", number)


def answer(db: Database, number: int, *, succeeded: bool, result: str) -> None:
    """Say how an errand went."""
    with db.write() as tx:
        tx.run(
            "UPDATE errand SET done_ms = ?, succeeded = ?, result = ? WHERE id = ?",
            wall_ms(),
            int(succeeded),
            result,
            number,
        )
