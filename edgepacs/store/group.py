"""Group commit: instances that are ready at the same time share one transaction and its sync."""

import threading
from dataclasses import dataclass

from edgepacs.errors import StorageFault
from edgepacs.model import Receipt
from edgepacs.store import instances, reconciliation, rejections
from edgepacs.store.db import Database
from edgepacs.store.drafts import Draft


@dataclass(slots=True)
class _Waiting:
    """One draft, and what became of it."""

    draft: Draft
    receipt: Receipt | None = None
    error: BaseException | None = None


class GroupCommit:
    """Commits drafts for many threads; whoever has the turn commits for all who wait."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def commit(self, draft: Draft) -> Receipt:
        """Make one instance known; durable on return. Raises what `instances.commit` raises."""
        mine = _Waiting(draft)
        with self._lock:
            self._waiting.append(mine)
        with self._turn:
            if mine.receipt is None and mine.error is None:
                self._lead()
        if mine.error is not None:
            raise mine.error
        assert mine.receipt is not None
        return mine.receipt

    def _lead(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        self._commit_all(group)

    def _commit_all(self, group: list[_Waiting]) -> None:
        try:
            with self._db.write() as tx:
                receipts = instances.committed(tx, [one.draft for one in group])
                reconciliation.arrived(tx, receipts)
                rejections.arrived(tx, receipts)
        except BaseException as error:  # noqa: BLE001  it is raised again in its own thread
            # After a storage fault nobody knows what has become durable: nobody tries again.
            if len(group) == 1 or isinstance(error, StorageFault):
                for one in group:
                    one.error = error
                return
            # One association must not fail for another's draft: each gets its own transaction.
            for one in group:
                self._commit_all([one])
            return
        for one, receipt in zip(group, receipts, strict=True):
            one.receipt = receipt
