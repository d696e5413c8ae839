"""A listener in this process, on a loopback port of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dimse.dimse_node import Script
from harness.waiting import free_port, until
from store.making import node_in

from edgepacs import config
from edgepacs.dimse.pdu import PduType
from edgepacs.model import Service
from edgepacs.scp.listener import Listener
from edgepacs.store import Store, peers
from edgepacs.telemetry import doorbell


class Serving:
    """A node's receiver while it runs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.port = store.config.dicom.port
        self.stop = threading.Event()
        self.ready = threading.Event()
        self.ended: list[BaseException | None] = []
        self.listener = Listener(store)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        until(lambda: self.ready.is_set() or self.ended, "the listener listens or has ended")

    def _run(self) -> None:
        try:
            with self.store.vault.writing():
                self.listener.run(self.stop, self.ready)
        except BaseException as error:  # noqa: BLE001  the tests judge it
            self.ended.append(error)
        else:
            self.ended.append(None)

    def allow(
        self,
        title: str = "HARNESS",
        host: str = "127.0.0.1",
        services: tuple[Service, ...] = (Service.ECHO, Service.STORE),
    ) -> None:
        with self.store.db.write() as tx:
            peers.add_ae(tx, title=title, host=host, port=104, services=services, actor="test")

    def rejection(self, calling: str = "HARNESS", called: str = "EDGEPACS") -> tuple[int, int, int]:
        """Result, source and reason of an A-ASSOCIATE-RJ as they stand on the wire."""
        peer = Script(self.port)
        kind, body = peer.associate(calling_ae=calling, called_ae=called)
        peer.close()
        assert kind == PduType.ASSOCIATE_RJ
        return body[1], body[2], body[3]

    def idle(self) -> None:
        """Wait until every association has ended."""
        until(lambda: not self.listener._attended, "no association is left")

    def end(self) -> BaseException | None:
        self.stop.set()
        self.thread.join(15)
        assert not self.thread.is_alive(), "the listener hangs"
        return self.ended[0]


@contextmanager
def serving(folder: Path, **dicom: object) -> Iterator[Serving]:
    """A receiver over a fresh node; `dicom` are settings of its section."""
    path = node_in(folder).path
    settings = {"port": free_port(), **dicom}
    text = path.read_text()
    for name, value in settings.items():
        written = f'"{value}"' if isinstance(value, str) else value
        if f"\n{name} = " in text.partition("[dicom]")[2].partition("[web]")[0]:
            before, head, rest = text.partition("[dicom]")
            inside, next_head, after = rest.partition("[web]")
            lines = [
                f"{name} = {written}" if line.startswith(f"{name} = ") else line
                for line in inside.split("\n")
            ]
            text = before + head + "\n".join(lines) + next_head + after
        else:
            text = text.replace("[dicom]", f"[dicom]\n{name} = {written}")
    path.write_text(text.replace("[node]", '[node]\naliases = ["OLDNAME"]'))
    store = Store.open(config.load(path))
    one = Serving(store)
    try:
        yield one
    finally:
        one.end()
        store.close()
        doorbell.cache_clear()
