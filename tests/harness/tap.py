"""A recording TCP relay between a modality and a node: what was really sent and answered.

DCMTK encodes anew what it reads from a file, so the file does not say what went over the wire.
The relay reassembles every C-STORE request and response from the P-DATA-TF PDUs (PS3.8 9.3.5)
that pass, without changing a byte.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from harness.recorder import command_elements


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One C-STORE as it passed; `status` stays None until a response has passed."""

    calling_ae: str
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data: bytes = field(default=b"", repr=False)
    status: int | None = None
    comment: str = ""
    answered_at: float = 0.0


class _Stream:
    """One direction of a connection, cut into PDUs."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def pdus(self, piece: bytes) -> list[tuple[int, bytes]]:
        self._buffer += piece
        found = []
        while len(self._buffer) >= 6:
            kind, length = struct.unpack_from(">BxI", self._buffer)
            if len(self._buffer) < 6 + length:
                break
            found.append((kind, bytes(self._buffer[6 : 6 + length])))
            del self._buffer[: 6 + length]
        return found


class _Conversation:
    """What is known of one association while it passes."""

    def __init__(self, tap: "Tap") -> None:
        self.tap = tap
        self.calling = ""
        self.syntaxes: dict[int, str] = {}
        self.command = bytearray()
        self.data = bytearray()
        self.current: Exchange | None = None
        self.answer = bytearray()
        self.open: dict[int, Exchange] = {}

    def from_client(self, kind: int, body: bytes) -> None:
        if kind == 1:  # A-ASSOCIATE-RQ, PS3.8 9.3.2
            self.calling = body[20:36].decode("ascii", "replace").strip()
        elif kind == 4:
            for context, header, value in _pdvs(body):
                self._client_pdv(context, header, value)

    def _client_pdv(self, context: int, header: int, value: bytes) -> None:
        if header & 1:
            self.command += value
            if header & 2:
                self._requested(context, command_elements(bytes(self.command)))
                self.command.clear()
                self.data.clear()
            return
        self.data += value
        if header & 2 and self.current is not None:
            self.current.data = bytes(self.data)

    def _requested(self, context: int, request: dict[int, bytes]) -> None:
        self.current = None
        if _number(request, 0x0100) != 0x0001:
            return
        self.current = Exchange(
            calling_ae=self.calling,
            sop_class=_text(request, 0x0002),
            sop_instance=_text(request, 0x1000),
            transfer_syntax=self.syntaxes.get(context, ""),
        )
        # A refusal may come before the last of the data set has passed.
        self.open[_number(request, 0x0110)] = self.current
        self.tap.exchanges.append(self.current)

    def from_server(self, kind: int, body: bytes) -> None:
        if kind == 2:  # A-ASSOCIATE-AC, PS3.8 9.3.3
            self.syntaxes = dict(_accepted(body[68:]))
        elif kind == 4:
            for _context, header, value in _pdvs(body):
                self.answer += value
                if header & 2:
                    self._answered(command_elements(bytes(self.answer)))
                    self.answer.clear()

    def _answered(self, response: dict[int, bytes]) -> None:
        exchange = self.open.pop(_number(response, 0x0120), None)
        if exchange is not None and _number(response, 0x0100) == 0x8001:
            exchange.status = _number(response, 0x0900)
            exchange.comment = _text(response, 0x0902)
            exchange.answered_at = time.monotonic()


def _pdvs(body: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at + 6 <= len(body):
        length, context, header = struct.unpack_from(">IBB", body, at)
        found.append((context, header, body[at + 6 : at + 4 + length]))
        at += 4 + length
    return found


def _accepted(items: bytes) -> list[tuple[int, str]]:
    found, at = [], 0
    while at + 4 <= len(items):
        kind, length = struct.unpack_from(">BxH", items, at)
        value = items[at + 4 : at + 4 + length]
        if kind == 0x21 and value[2] == 0:  # presentation context, PS3.8 9.3.3.2
            found.append((value[0], value[8:].rstrip(b"\0").decode("ascii", "replace")))
        at += 4 + length
    return found


def _number(elements: dict[int, bytes], element: int) -> int:
    return int.from_bytes(elements.get(element, b"")[:2], "little")


def _text(elements: dict[int, bytes], element: int) -> str:
    return elements.get(element, b"").rstrip(b"\0 ").decode("ascii", "replace")


class Tap:
    """A relay on its own loopback port to `port`; every C-STORE that passes is in `exchanges`."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.exchanges: list[Exchange] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(one)
            talk = _Conversation(self)
            self._spawn(partial(self._relay, client, server, talk.from_client))
            self._spawn(partial(self._relay, server, client, talk.from_server))

    def _relay(
        self, source: socket.socket, sink: socket.socket, notice: Callable[[int, bytes], None]
    ) -> None:
        stream = _Stream()
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                for kind, body in stream.pdus(piece):
                    notice(kind, body)
                sink.sendall(piece)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
