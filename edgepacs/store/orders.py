"""Orders of senders: which entries of the worklist an order number speaks of.

Messages name an order by the placer's number, by the filler's, or by both, and the second often
comes to be known later: whichever it is, it is the same order.
"""

from collections.abc import Mapping
from typing import NewType

from edgepacs.model import EntryId
from edgepacs.store.db import Transaction

OrderId = NewType("OrderId", int)


def order(tx: Transaction, source: str, *, placer: str, filler: str) -> OrderId | None:
    """The order of a sender by either number, the filler's weighing more; None if not known."""
    for kind, number in (("filler", filler), ("placer", placer)):
        row = tx.first(
            "SELECT hl7_order FROM hl7_order_number WHERE source = ? AND kind = ? AND number = ?",
            *(source, kind, number),
        )
        if number and row is not None:
            return OrderId(row[0])
    return None


def named(tx: Transaction, source: str, *, placer: str, filler: str) -> OrderId:
    """The order of these numbers, made where it is new; from now on both name it."""
    known = order(tx, source, placer=placer, filler=filler)
    found = OrderId(tx.insert("hl7_order", {"source": source})) if known is None else known
    for kind, number in (("placer", placer), ("filler", filler)):
        if number:
            tx.run(
                "INSERT INTO hl7_order_number (source, kind, number, hl7_order) "
                "VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET hl7_order = excluded.hl7_order",
                *(source, kind, number, found),
            )
    return found


def steps(tx: Transaction, order_id: OrderId) -> Mapping[str, EntryId]:
    """The steps of an order as its sender calls them, the first one first, and their entries."""
    rows = tx.rows(
        "SELECT step, entry FROM hl7_order_step WHERE hl7_order = ? ORDER BY entry", order_id
    )
    return {str(step): EntryId(entry) for step, entry in rows}


def add_step(tx: Transaction, order_id: OrderId, step: str, entry: EntryId) -> None:
    """Say which entry a step of an order is."""
    tx.run(
        "INSERT INTO hl7_order_step (hl7_order, step, entry) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET entry = excluded.entry",
        *(order_id, step, entry),
    )
