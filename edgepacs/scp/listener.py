"""The DICOM listener: accepts connections, one thread an association, within bounds.

A TLS handshake happens in the association's own thread under a deadline, so a silent peer delays
nobody (PS3.15 B.12: TLS 1.2 or later).
"""

import contextlib
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator

from edgepacs.dimse import Association, AssociationRejected, Limits, accept
from edgepacs.errors import ConfigurationError, EdgePacsError, StorageFault
from edgepacs.scp.admission import Gate
from edgepacs.scp.storage import Attendant
from edgepacs.store import Store
from edgepacs.telemetry import log, place_of

_BACKLOG = 128
_REFUSING = 32  # threads beyond the bound that answer A-ASSOCIATE-RJ properly
_HANDSHAKE_SECONDS = 10.0
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.5
_BREATH_SECONDS = 0.1  # after an accept that failed, lest it fail again at once and for ever


class Listener:
    """Serves every association of this node until stopped."""

    def __init__(self, store: Store) -> None:
        dicom = store.config.dicom
        self._store = store
        self._bound = dicom.max_associations
        self._limits = Limits(object_bytes=(dicom.max_object_mib + 1) << 20)
        self._tls = self._tls_context() if dicom.tls_port else None
        self._lock = threading.Lock()
        self._open: dict[int, Association | None] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._silent: dict[int, socket.socket] = {}  # not yet associated, the oldest first
        self._next = 0
        self._fault: StorageFault | None = None

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
            while not stop.is_set() and self._fault is None:
                for key, _ in selector.select(_POLL_SECONDS):
                    if not self._take(key.fileobj, key.data):  # type: ignore[arg-type]  # our sockets
                        stop.wait(_BREATH_SECONDS)
        self._finish()
        if self._fault is not None:
            raise self._fault

    def _note_fault(self, fault: StorageFault) -> None:
        self._fault = fault

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
            return socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"[dicom] {host} port {port}: cannot listen: {error.strerror}"
            ) from error

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
            if len(self._threads) >= self._bound + _REFUSING and not self._drop_oldest_silent():
                connection.close()
                return True
            number = self._next = self._next + 1
            self._silent[number] = connection
            thread = threading.Thread(
                target=self._attend, args=(number, connection, address, tls), daemon=True
            )
            self._threads[number] = thread
        thread.start()
        return True

    def _drop_oldest_silent(self) -> bool:
        """Make room by ending the connection that has said nothing for longest; under the lock.

        Whoever opens connections and keeps silent must not keep a modality out.
        """
        for number, connection in list(self._silent.items()):
            del self._silent[number]
            with contextlib.suppress(OSError):  # it is ending by itself: not room made now
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
                return True
        return False

    def _crowded(self) -> bool:
        with self._lock:
            return len(self._open) >= self._bound

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
        except EdgePacsError as error:
            log.info("association %d ended: %s: %s", number, type(error).__name__, error)
        except OSError as error:
            log.info("association %d ended: %s", number, error.strerror or type(error).__name__)
        except Exception as error:  # noqa: BLE001  one association never takes the process down
            log.error("association %d failed: %s", number, place_of(error))
        finally:
            with self._lock:
                self._threads.pop(number, None)
                self._silent.pop(number, None)
                self._open.pop(number, None)

    def _associate(
        self,
        number: int,
        connection: socket.socket,
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
    ) -> None:
        if tls is not None:
            connection = self._shake_hands(number, connection, tls)
        gate = Gate(self._store, self._crowded)
        try:
            association = accept(connection, (address[0], address[1]), gate, self._limits)
        except AssociationRejected as rejection:
            gate.note(rejection, address[0])
            raise
        with self._lock:
            self._silent.pop(number, None)
            self._open[number] = association
        attendant = Attendant(self._store, association, self._note_fault)
        try:
            with association:
                attendant.serve()
        finally:
            log.info(
                "association %d: %d stored, %d refused",
                number,
                attendant.stored,
                attendant.refused,
            )

    def _shake_hands(
        self, number: int, connection: socket.socket, tls: ssl.SSLContext
    ) -> ssl.SSLSocket:
        secured = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._silent[number] = secured
        secured.settimeout(_HANDSHAKE_SECONDS)
        secured.do_handshake()
        return secured

    def _finish(self) -> None:
        """Let associations end by themselves for a moment, then abort what is left."""
        deadline = threading.Event()
        timer = threading.Timer(_GRACE_SECONDS, deadline.set)
        timer.start()
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            while thread.is_alive() and not deadline.is_set():
                thread.join(_POLL_SECONDS / 5)
        timer.cancel()
        with self._lock:
            left = [one for one in self._open.values() if one is not None]
        for association in left:
            association.abort()
