"""Compression before the acknowledgement, for media so slow that fewer bytes beat less work.

A data set is held in memory until it is whole, then compressed, proved and sealed in its smaller
form alone. What is large, comes compressed or finds the memory in use goes the usual way.
"""

import threading
from dataclasses import replace

from edgepacs.custody.compress import Kept, compressed_early
from edgepacs.custody.ingest import Intake
from edgepacs.model import Arrival
from edgepacs.pixels.description import BIG_ENDIAN, EXPLICIT_LITTLE, IMPLICIT_LITTLE
from edgepacs.store import Store
from edgepacs.store.drafts import Draft
from edgepacs.store.fingerprint import Fingerprint

MAX_HELD = 64 << 20  # bytes of all data sets together that are held
_NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, BIG_ENDIAN)


class _Room:
    """How many bytes are held by all associations together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = 0

    def take(self, length: int) -> bool:
        """Take room for `length` bytes, if there is that much."""
        with self._lock:
            if self._held + length > MAX_HELD:
                return False
            self._held += length
            return True

    def give_back(self, length: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._held -= length


_room = _Room()


class EarlyIntake(Intake):
    """An intake that holds what it takes in, and seals it compressed where that can be proved."""

    def __init__(self, store: Store, arrival: Arrival) -> None:
        super().__init__(store, arrival)
        self._held = bytearray()
        self._holds = arrival.transfer_syntax_uid in _NATIVE

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; raises as `Intake.write`."""
        if self._holds and len(self._held) + len(data) <= self._most and _room.take(len(data)):
            self._held += data
            self._scanner.feed(data)
            return
        self._let_go()
        super().write(data)

    def discard(self) -> None:
        """Give it up; nothing of it stays on the disk."""
        self._forget()
        super().discard()

    def _draft(self) -> Draft:
        if not self._holds:
            return super()._draft()
        data = bytes(self._held)
        digest = Fingerprint().update(data).value()
        draft = replace(super()._draft(), byte_length=len(data), received_digest=digest)
        found = compressed_early(data, draft)
        if isinstance(found, Kept):
            self._let_go()
            return draft
        self._forget()
        made, draft = found
        self._writer.write(made)
        return draft

    def _let_go(self) -> None:
        """Go on as it usually goes: what has been held is sealed as it was received."""
        if self._held:
            self._writer.write(memoryview(self._held))
        self._forget()

    def _forget(self) -> None:
        _room.give_back(len(self._held))
        self._held = bytearray()
        self._holds = False
