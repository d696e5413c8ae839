"""The HL7 listener: MLLP connections, plain and TLS, a thread for each, within bounds.

Bounds are those of the DICOM listener's kind: so many connections, so much time for a handshake
and a message, so many bytes. Who keeps silent gives way to who comes.
"""

import contextlib
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from edgepacs.errors import ConfigurationError, EdgePacsError
from edgepacs.orders.mllp import Bounds, BrokenOff, Framed
from edgepacs.orders.reception import Reception
from edgepacs.store import Store
from edgepacs.store.incidents import Incident
from edgepacs.store.peers import is_at
from edgepacs.telemetry import log, place_of

_BACKLOG = 64
_HANDSHAKE_SECONDS = 10.0
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0
_BREATH_SECONDS = 0.1  # after an accept that failed, lest it fail again at once and for ever
# A sender that lost its power says no goodbye.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


@dataclass(slots=True)
class _Open:
    """One connection; `spoken` once it has brought a message."""

    connection: socket.socket
    host: str
    spoken: bool = False


class Listener:
    """Takes messages of every connection until stopped."""

    def __init__(self, store: Store, reception: Reception) -> None:
        hl7 = store.config.hl7
        self._store = store
        self._reception = reception
        self._bounds = Bounds(message_bytes=hl7.max_message_kib << 10, idle=hl7.idle_seconds)
        self._tls = self._tls_context() if hl7.tls_port else None
        self._one_less = threading.Condition()
        self._open: dict[int, _Open] = {}  # the oldest first
        self._next = 0

    def run(self, stop: threading.Event, ready: threading.Event) -> None:
        """Listen until `stop`; `ready` is set once senders can connect.

        Raises ConfigurationError when an address cannot be bound.
        """
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for port, tls in self._ports():
                bound = stack.enter_context(self._bind(port))
                selector.register(bound, selectors.EVENT_READ, tls)
            ready.set()
            while not stop.is_set() and self._store.vault.fault is None:
                for key, _ in selector.select(_POLL_SECONDS):
                    if not self._accept(key.fileobj, key.data):  # type: ignore[arg-type]  # ours
                        stop.wait(_BREATH_SECONDS)
        self._finish()

    def _ports(self) -> Iterator[tuple[int, ssl.SSLContext | None]]:
        hl7 = self._store.config.hl7
        if hl7.port:
            yield hl7.port, None
        if hl7.tls_port:
            yield hl7.tls_port, self._tls

    def _bind(self, port: int) -> socket.socket:
        host = self._store.config.hl7.host
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"[hl7] {host} port {port}: cannot listen: {error.strerror}"
            ) from error
        for option in _KEEPALIVE:
            bound.setsockopt(*option)  # what is accepted inherits it
        return bound

    def _tls_context(self) -> ssl.SSLContext:
        """TLS 1.2 or later, as for DICOM (PS3.15 B.12); clients too where it is asked (ITI-19)."""
        folder = self._store.config.path.parent / "tls"
        authority = self._store.config.hl7_authority
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(folder / "site.crt", folder / "site.key")
            if authority is not None:
                context.load_verify_locations(authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            words = error.strerror or type(error).__name__
            raise ConfigurationError(f"[hl7] certificates: {words}") from error
        return context

    def _accept(self, listening: socket.socket, tls: ssl.SSLContext | None) -> bool:
        """Accept one connection; False where none can be had, e.g. without descriptors left."""
        try:
            connection, address = listening.accept()
        except OSError as error:  # the peer is gone already, or there are no descriptors left
            log.warning("accept failed: %s", error.strerror)
            return False
        host = address[0]
        hosts = self._store.config.hl7.hosts
        if hosts and not any(is_at(one, host) for one in hosts):
            connection.close()
            self._note(host, "not among the hosts that may connect")
            return True
        number = self._admit(connection, host)
        if number is None:
            connection.close()
            self._note(host, "as many connections as there may be")
            return True
        thread = threading.Thread(target=self._attend, args=(number, tls), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no memory, or no more threads allowed
            self._forget(number)
            connection.close()
            log.warning("no thread can be started for a connection")
            return False
        return True

    def _admit(self, connection: socket.socket, host: str) -> int | None:
        """A place for a connection: where there is none, the oldest that is silent gives way."""
        with self._one_less:
            if len(self._open) >= self._store.config.hl7.max_connections:
                silent = next((n for n, one in self._open.items() if not one.spoken), None)
                if silent is None:
                    return None
                _hang_up(self._open.pop(silent).connection)
            self._next += 1
            self._open[self._next] = _Open(connection, host)
            return self._next

    def _attend(self, number: int, tls: ssl.SSLContext | None) -> None:
        with self._one_less:
            one = self._open.get(number)
        if one is None:  # given up before it began
            return
        try:
            with contextlib.closing(one.connection):
                self._serve(one, tls)
        except EdgePacsError as error:
            log.info("HL7 connection %d ended: %s: %s", number, type(error).__name__, error)
            self._note(one.host, str(error))
        except TimeoutError:
            log.info("HL7 connection %d ended: silent for too long", number)
        except OSError as error:
            words = error.strerror or type(error).__name__
            log.info("HL7 connection %d ended: %s", number, words)
            self._note(one.host, words)
        except Exception as error:  # noqa: BLE001  one connection never takes the process down
            log.error("HL7 connection %d failed: %s", number, place_of(error))
        finally:
            self._forget(number)

    def _serve(self, one: _Open, tls: ssl.SSLContext | None) -> None:
        with contextlib.ExitStack() as stack:
            connection = one.connection
            if tls is not None:
                connection = stack.enter_context(self._secured(one, tls))
            framed = Framed(connection, self._bounds)
            while self._store.vault.fault is None:
                try:
                    message = framed.message()
                except BrokenOff as broken:
                    for answer in self._reception.refuse(broken.begun, one.host, str(broken)):
                        framed.answer(answer)
                    return
                if message is None:
                    return
                one.spoken = True
                for answer in self._reception.take(message, one.host):
                    framed.answer(answer)

    def _secured(self, one: _Open, tls: ssl.SSLContext) -> ssl.SSLSocket:
        """The connection after its handshake, which has one deadline in all."""
        one.connection.settimeout(_HANDSHAKE_SECONDS)
        secured = tls.wrap_socket(one.connection, server_side=True, do_handshake_on_connect=False)
        with self._one_less:
            one.connection = secured
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _note(self, host: str, words: str) -> None:
        self._store.incidents.note(Incident(act="HL7 connection broken", host=host, detail=words))

    def _forget(self, number: int) -> None:
        with self._one_less:
            self._open.pop(number, None)
            self._one_less.notify_all()

    def _finish(self) -> None:
        """Let what is being answered be answered, then end what is left."""
        with self._one_less:
            for one in self._open.values():
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(one.connection, socket.SHUT_RD)  # of TLS too
            self._one_less.wait_for(lambda: not self._open, _GRACE_SECONDS)
            for one in self._open.values():
                _hang_up(one.connection)


def _hang_up(connection: socket.socket) -> None:
    """End a connection another thread reads or writes: that one closes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
