"""A sender of HL7 messages, and a node that hears it."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.waiting import free_port, until
from store.making import node_in

from edgepacs import config, orders
from edgepacs.store import Store, worklist
from edgepacs.store.worklist import Held
from edgepacs.telemetry import doorbell


def segment(name: str, **fields: str) -> str:
    """One segment; `_5="x"` is its field 5."""
    numbered = {int(key[1:]): value for key, value in fields.items()}
    return "|".join([name, *(numbered.get(n, "") for n in range(1, max(numbered) + 1))])


def head(kind: str, control: str, **fields: str) -> str:
    known = {"_3": "RIS", "_4": "HOSP", "_9": kind, "_10": control, "_11": "P", "_12": "2.5.1"}
    numbered = {"_2": "^~\\&", **known, "_18": "UNICODE UTF-8", **fields}
    return segment("MSH", **numbered).replace("MSH||", "MSH|", 1)


def order(
    control: str,
    act: str,
    placer: str,
    *,
    patient: str = "P1",
    name: str = "Doe^Jane",
    modality: str = "CT",
    step: str = "",
    day: str = "20261124",
    accession: str = "",
    status: str = "",
    kind: str = "ORM^O01",
    more: tuple[str, ...] = (),
    **msh: str,
) -> str:
    lines = [
        head(kind, control, **msh),
        segment("PID", _3=f"{patient}^^^H", _5=name, _7="19700101", _8="F"),
        segment("ORC", _1=act, _2=placer, _5=status),
        segment(
            "OBR",
            _2=placer,
            _4="CT1^Head^L",
            _18=accession or f"A{placer}",
            _20=step,
            _24=modality,
            _27=f"^^^{day}0830",
        ),
        *more,
    ]
    return "\r".join(lines) + "\r"


def demographics(event: str, control: str, patient: str, name: str, gone: str = "") -> str:
    lines = [head(f"ADT^{event}", control), segment("PID", _3=f"{patient}^^^H", _5=name)]
    if gone:
        lines.append(segment("MRG", _1=f"{gone}^^^H"))
    return "\r".join(lines) + "\r"


def framed(message: str | bytes) -> bytes:
    raw = message.encode() if isinstance(message, str) else message
    return b"\x0b" + raw + b"\x1c\r"


class Answer:
    """One acknowledgement taken apart, by a few lines that share nothing with the node's."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.lines = {
            line.split("|")[0]: line.split("|") for line in raw.decode("latin-1").split("\r")
        }

    @property
    def code(self) -> str:
        return self.lines["MSA"][1]

    @property
    def control(self) -> str:
        return self.lines["MSA"][2]

    @property
    def error(self) -> tuple[str, str]:
        """Place and number, of version 2.5 and later."""
        return self.lines["ERR"][2], self.lines["ERR"][3].split("^")[0]


class Sender:
    """One connection to a node."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), 10)
        self.socket = tls.wrap_socket(plain) if tls else plain
        self.socket.settimeout(20)
        self._rest = b""

    def say(self, message: str | bytes) -> Answer:
        self.socket.sendall(framed(message))
        return self.hear()

    def hear(self) -> Answer:
        while b"\x1c\r" not in self._rest:
            piece = self.socket.recv(65536)
            if not piece:
                raise ConnectionError
            self._rest += piece
        answer, _, self._rest = self._rest.partition(b"\x1c\r")
        assert answer[:1] == b"\x0b"
        return Answer(answer[1:])

    def closed(self) -> bool:
        """Whether the node ends the connection, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()


class Hearing:
    """A node that hears orders, while it runs; `again` is a start after an orderly end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        self.store = Store.open(config.load(self.path))
        self.port = self.store.config.hl7.port
        self.tls_port = self.store.config.hl7.tls_port
        self.stop, ready = threading.Event(), threading.Event()
        self.failures: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        until(lambda: ready.is_set() or self.failures, "the node hears, or has failed")
        assert not self.failures, self.failures

    def _run(self, ready: threading.Event) -> None:
        try:
            orders.run(self.store, self.stop, ready)
        except BaseException as error:  # noqa: BLE001  the tests judge it
            self.failures.append(error)

    def end(self) -> None:
        self.stop.set()
        with contextlib.suppress(OSError):  # so that it looks at once
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self.thread.join(15)
        assert not self.thread.is_alive(), "it hangs"
        self.store.close()
        doorbell.cache_clear()

    def again(self) -> None:
        self.end()
        self.open()

    def entries(self) -> list[Held]:
        with self.store.db.read() as tx:
            return list(worklist.entries(tx, worklist.Criteria(limit=100_000)))


def configured(folder: Path, settings: Mapping[str, object]) -> Path:
    """The configuration of a fresh node whose [hl7] says `settings`."""
    path = node_in(folder).path
    lines = [
        f"{name} = {f'{value!r}'.replace(chr(39), chr(34)) if isinstance(value, str) else value}"
        for name, value in settings.items()
    ]
    before, _, rest = path.read_text().partition("[hl7]\n")
    _, _, after = rest.partition("[keys]")
    path.write_text(
        "\n".join([before + "[hl7]", 'host = "127.0.0.1"', *lines, "", "[keys]"]) + after
    )
    return path


@contextmanager
def hearing(folder: Path, **settings: object) -> Iterator[Hearing]:
    path = configured(folder, {"port": free_port(), **settings})
    one = Hearing(path)
    try:
        yield one
    finally:
        one.end()
