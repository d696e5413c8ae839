"""Announcements on their way: ADT messages to destinations over MLLP, plain or TLS.

Each destination has a connection of its own in a thread of its own, opened only when something is
due. What is not answered is said again, under the same control ID, until it is.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from edgepacs.clock import monotonic, wall_ms
from edgepacs.custody.credentials import tls_context
from edgepacs.dimse.requestor import connected
from edgepacs.errors import (
    EdgePacsError,
    LimitExceeded,
    NotAdmitted,
    NotFound,
    PeerError,
    StorageFault,
)
from edgepacs.model import DeliveryKind, DeliveryState
from edgepacs.orders import adt
from edgepacs.orders.mllp import Bounds, Framed
from edgepacs.store import Store, announcing, destinations, dispatches
from edgepacs.store.destinations import Destination
from edgepacs.store.dispatches import Dispatch
from edgepacs.telemetry import failpoint, log, place_of

KINDS = frozenset({DeliveryKind.HL7})
CONNECT_SECONDS = 10.0
RETRY_FIRST_MS = 15_000
RETRY_MOST_MS = 15 * 60_000
_GRACE_SECONDS = 4.0
_BOUNDS = Bounds(message_bytes=64 << 10, idle=30.0, message=10.0)


class Teller:
    """Tells every destination what waits for it; `turn` is called every now and then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recovered: set[int] = set()
        self._not_before: dict[int, float] = {}  # monotonic
        self._threads: dict[int, threading.Thread] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._stop = threading.Event()

    def turn(self) -> None:
        """Begin to tell what is due, a destination at most once at a time."""
        for one in destinations.every(self._store.db):
            known = self._threads.get(one.id)
            if not one.adt or (known is not None and known.is_alive()):
                continue
            if monotonic() < self._not_before.get(one.id, 0.0):
                continue
            if one.id not in self._recovered:
                dispatches.recover(self._store.db, one.id, KINDS)
                self._recovered.add(one.id)
            if dispatches.kinds_due(self._store.db, one.id, KINDS):
                thread = threading.Thread(target=self._run, args=(one,), daemon=True)
                self._threads[one.id] = thread
                thread.start()

    def end(self) -> None:
        """Stop; what is under way is broken off, and said again another time."""
        self._stop.set()
        for one in list(self._sockets.values()):
            with contextlib.suppress(OSError):  # it has ended by itself
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads.values():
            thread.join(_GRACE_SECONDS)

    def _run(self, destination: Destination) -> None:
        """Nothing is claimed before there is a connection: an outage costs no attempts."""
        try:
            with self._connection(destination) as connection:
                framed = Framed(connection, _BOUNDS)
                while not self._stop.is_set() and self._tell_one(destination, framed):
                    pass
        except (PeerError, NotAdmitted) as error:
            until_ms = wall_ms() + RETRY_FIRST_MS
            words = str(error)
            dispatches.put_off(self._store.db, destination.id, DeliveryKind.HL7, words, until_ms)
        except StorageFault as fault:
            self._store.vault.condemn(fault)
        except EdgePacsError as error:  # no room, or the index is in use
            log.warning("destination %d: %s", destination.id, error)
            self._begin_anew(destination)
        except Exception as error:  # noqa: BLE001  one destination never stops the others
            log.error("destination %d: %s", destination.id, place_of(error))
            self._begin_anew(destination)

    def _begin_anew(self, destination: Destination) -> None:
        """After a fault of our own: what it has left in `sending` is said again, a while later."""
        self._recovered.discard(destination.id)
        self._not_before[destination.id] = monotonic() + RETRY_FIRST_MS / 1000

    def _tell_one(self, destination: Destination, framed: Framed) -> bool:
        """Say the next message and write down what came of it; whether another may go at once."""
        one = dispatches.claim(self._store.db, destination.id, KINDS)
        if one is None:
            return False
        failpoint("announcement.claimed")
        try:
            state, words = self._said(destination, framed, one)
        except NotFound as error:
            state, words = DeliveryState.FAILED, str(error)
        except (LimitExceeded, OSError) as error:
            words = f"the line broke: {_words(error)}"
            again = wall_ms() + _delay_ms(one.breaks)
            dispatches.broke(self._store.db, destination.id, one, words, again_ms=again)
            return False
        failpoint("announcement.told")
        waits = state is DeliveryState.QUEUED
        again = wall_ms() + _delay_ms(one.attempts) if waits else 0
        dispatches.finish(self._store.db, destination.id, one, state, words, again_ms=again)
        return not waits

    def _said(
        self, destination: Destination, framed: Framed, one: Dispatch
    ) -> tuple[DeliveryState, str]:
        found = announcing.announcement(self._store.db, one.subject)
        title = self._store.config.node.ae_title
        framed.answer(adt.message(found, title=title, receiver=destination.name))
        answer = framed.message()
        if answer is None:
            raise ConnectionError
        return adt.judged(answer, adt.control_id(found))

    @contextlib.contextmanager
    def _connection(self, destination: Destination) -> Iterator[socket.socket]:
        parts = urlsplit(destination.adt)
        tls: ssl.SSLContext | None = None
        if parts.scheme == "mllps":
            tls = tls_context(destination)
        sock = connected(parts.hostname or "", parts.port or 0, tls, CONNECT_SECONDS)
        self._sockets[destination.id] = sock
        try:
            with sock:
                yield sock
        finally:
            self._sockets.pop(destination.id, None)


def _words(error: LimitExceeded | OSError) -> str:
    if isinstance(error, LimitExceeded):
        return str(error)
    return "no answer in time" if isinstance(error, TimeoutError) else "the connection ended"


def _delay_ms(tries: int) -> int:
    return min(RETRY_FIRST_MS << min(max(tries - 1, 0), 10), RETRY_MOST_MS)
