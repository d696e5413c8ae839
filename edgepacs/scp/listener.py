"""The DICOM listener: accepts connections, a thread for each association, within bounds.

A TLS handshake happens in the association's own thread under a deadline, so a silent peer delays
nobody (PS3.15 B.12: TLS 1.2 or later).
"""

import contextlib
import selectors
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial

from edgepacs.dimse import Association, AssociationRejected, Limits, accept
from edgepacs.errors import ConfigurationError, EdgePacsError
from edgepacs.scp.admission import Gate
from edgepacs.scp.shares import Shares
from edgepacs.scp.storage import Attendant
from edgepacs.scp.workers import Workers
from edgepacs.store import Store
from edgepacs.store.incidents import Incident
from edgepacs.telemetry import log, place_of

_BACKLOG = 128
_REFUSING = 32  # threads beyond the bound that answer A-ASSOCIATE-RJ properly
_HANDSHAKE_SECONDS = 10.0
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.5
_BREATH_SECONDS = 0.1  # after an accept that failed, lest it fail again at once and for ever
# A modality that lost its power says no goodbye: after 90 s without a sign its place is free.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Listener:
    """Serves every association of this node until stopped."""

    def __init__(self, store: Store) -> None:
        dicom = store.config.dicom
        self._store = store
        self._connections = dicom.max_associations + _REFUSING
        self._shares = Shares(dicom.max_associations)
        self._limits = Limits()
        self._tls = self._tls_context() if dicom.tls_port else None
        self._workers = Workers()
        self._lock = threading.Lock()
        self._one_less = threading.Condition(self._lock)
        self._attended: set[int] = set()  # every connection that is being served
        self._open: dict[int, Association] = {}
        # Not yet associated, the oldest first, each with the host it comes from.
        self._silent: dict[int, tuple[socket.socket, str]] = {}
        self._next = 0

    def run(self, stop: threading.Event, ready: threading.Event) -> None:
        """Listen until `stop`; `ready` is set once peers can connect.

        Raises ConfigurationError when an address cannot be bound, and StorageFault when the
        storage device failed: what the page cache says then is not what the disk holds, so only
        a new process may acknowledge anything again.
        """
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for port, tls in self._ports():
                bound = stack.enter_context(self._bind(port))
                selector.register(bound, selectors.EVENT_READ, tls)
            ready.set()
            while not stop.is_set() and self._store.vault.fault is None:
                for key, _ in selector.select(_POLL_SECONDS):
                    if not self._take(key.fileobj, key.data):  # type: ignore[arg-type]  # our sockets
                        stop.wait(_BREATH_SECONDS)
        self._finish()
        if self._store.vault.fault is not None:
            raise self._store.vault.fault

    def _ports(self) -> Iterator[tuple[int, ssl.SSLContext | None]]:
        dicom = self._store.config.dicom
        if dicom.port:
            yield dicom.port, None
        if dicom.tls_port:
            yield dicom.tls_port, self._tls

    def _bind(self, port: int) -> socket.socket:
        host = self._store.config.dicom.host
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"[dicom] {host} port {port}: cannot listen: {error.strerror}"
            ) from error
        for option in _KEEPALIVE:
            bound.setsockopt(*option)  # what is accepted inherits it
        return bound

    def _tls_context(self) -> ssl.SSLContext:
        folder = self._store.config.path.parent / "tls"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(folder / "site.crt", folder / "site.key")
        except OSError as error:
            raise ConfigurationError(f"{folder}: site certificate: {error.strerror}") from error
        return context

    def _take(self, listening: socket.socket, tls: ssl.SSLContext | None) -> bool:
        """Accept one connection; False where none can be had, e.g. without descriptors left."""
        try:
            connection, address = listening.accept()
        except OSError as error:  # the peer is gone already, or there are no descriptors left
            log.warning("accept failed: %s", error.strerror)
            return False
        with self._lock:
            if len(self._attended) >= self._connections and not self._drop_silent():
                connection.close()
                return True
            number = self._next = self._next + 1
            self._silent[number] = (connection, address[0])
            self._attended.add(number)
        try:
            self._workers.run(partial(self._attend, number, connection, address, tls))
        except RuntimeError:  # no memory, or no more threads allowed
            self._forget(number)
            connection.close()
            log.warning("no thread can be started for a connection")
            return False
        return True

    def _drop_silent(self) -> bool:
        """Make room by ending the oldest silent connection of the host that has most of them.

        Under the lock. Whoever opens connections and keeps silent must not keep a modality out.
        """
        while self._silent:
            hosts = Counter(host for _, host in self._silent.values()).most_common(1)
            number = next(one for one, (_, host) in self._silent.items() if host == hosts[0][0])
            connection, _ = self._silent.pop(number)
            with contextlib.suppress(OSError):  # it is ending by itself: not room made now
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
                return True
        return False

    def _attend(
        self,
        number: int,
        connection: socket.socket,
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
    ) -> None:
        try:
            with contextlib.closing(connection):
                self._associate(number, connection, address, tls)
        except AssociationRejected as rejection:  # its gate has recorded it
            log.info("association %d refused: %s", number, rejection)
        except EdgePacsError as error:
            log.info("association %d ended: %s: %s", number, type(error).__name__, error)
            self._record(number, address[0], str(error))
        except OSError as error:
            words = error.strerror or type(error).__name__
            log.info("association %d ended: %s", number, words)
            self._record(number, address[0], words)
        except Exception as error:  # noqa: BLE001  one association never takes the process down
            log.error("association %d failed: %s", number, place_of(error))
        finally:
            self._forget(number)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._attended.discard(number)
            self._silent.pop(number, None)
            self._open.pop(number, None)
            self._one_less.notify_all()

    def _record(self, number: int, host: str, words: str) -> None:
        """Record an association that ended in another way than by release."""
        with self._lock:
            association = self._open.get(number)
        actor = "" if association is None else association.calling_ae
        incident = Incident(act="association broken", host=host, actor=actor, detail=words)
        self._store.incidents.note(incident)

    def _associate(
        self,
        number: int,
        connection: socket.socket,
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
    ) -> None:
        if tls is not None:
            connection = self._shake_hands(number, connection, address[0], tls)
        gate = Gate(self._store, self._shares)
        try:
            association = accept(connection, (address[0], address[1]), gate, self._limits)
            with self._lock:
                self._silent.pop(number, None)
                self._open[number] = association
            self._serve(number, association, gate)
        except AssociationRejected as rejection:
            gate.note(rejection, address[0])
            raise
        finally:
            gate.leave()

    def _serve(self, number: int, association: Association, gate: Gate) -> None:
        attendant = Attendant(gate.conversation(association), priors_only=gate.priors_only)
        try:
            with association:
                attendant.serve()
                gate.leave()  # a peer slow to close needs no place to do so
        finally:
            if attendant.stored or attendant.refused:
                log.info(
                    "association %d: %d stored, %d refused",
                    number,
                    attendant.stored,
                    attendant.refused,
                )

    def _shake_hands(
        self, number: int, connection: socket.socket, host: str, tls: ssl.SSLContext
    ) -> ssl.SSLSocket:
        """The connection secured; the deadline is that of the whole handshake."""
        secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._silent[number] = (secured, host)
        secured.settimeout(_HANDSHAKE_SECONDS)
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _finish(self) -> None:
        """Let associations end by themselves for a moment, then abort what is left."""
        with self._lock:
            self._one_less.wait_for(lambda: not self._attended, _GRACE_SECONDS)
            left = list(self._open.values())
        for association in left:
            association.abort()
