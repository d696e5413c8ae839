"""A peer that takes HL7 messages over MLLP, keeps them, and answers as it is told to."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE, HANG_UP = "silence", "hang up"


class AdtServer:
    """Listens on loopback; `answer` says what each message gets.

    A code of MSA-1, SILENCE, HANG_UP, or the whole of another answer.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.heard: list[str] = []
        self.answer: Callable[[str], str] = lambda _: "AA"
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                self._talk(connection)
        except OSError:
            return

    def _talk(self, connection: socket.socket) -> None:
        pending = b""
        while piece := connection.recv(65536):
            pending += piece
            while b"\x1c\r" in pending:
                raw, _, pending = pending.partition(b"\x1c\r")
                message = raw.removeprefix(b"\x0b").decode("utf-8")
                self.heard.append(message)
                said = self.answer(message)
                if said == HANG_UP:
                    return
                if said != SILENCE:
                    connection.sendall(b"\x0b" + _answer(said, message).encode() + b"\x1c\r")


def _answer(said: str, message: str) -> str:
    if "\r" in said:
        return said
    control = message.split("\r", maxsplit=1)[0].split("|")[9]
    head = "MSH|^~\\&|CENTRE||EDGEPACS||20261124||ACK|1|P|2.5.1"
    return f"{head}\rMSA|{said}|{control}\r"


@contextmanager
def adt_server(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[AdtServer]:
    server = AdtServer(port, tls)
    try:
        yield server
    finally:
        server.close()
