"""The forward role in this process, and peers that misbehave on purpose."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

import pytest
from harness.recorder import RecordingSCP
from store.making import add_destination

from edgepacs.dimse import (
    AssociateRequest,
    Association,
    ContextAnswer,
    ContextResult,
    Limits,
    Message,
    Peer,
    ProposedContext,
    Rejection,
    accept,
)
from edgepacs.dimse.contexts import VERIFICATION, storage_answer
from edgepacs.forward import courier, link, sender, transport
from edgepacs.forward.sender import Sender
from edgepacs.store import Store


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of minutes and seconds as fractions; no association is kept open long."""
    for module, name, seconds in (
        (link, "QUICK_SECONDS", 0.1),
        (link, "PROBE_SECONDS", 0.1),
        (link, "REFUSED_FIRST_SECONDS", 0.1),
        (link, "REFUSED_MOST_SECONDS", 0.2),
        (courier, "REFUSED_SECONDS", 0.2),
        (courier, "AGAIN_SECONDS", 0.1),
        (courier, "IDLE_SECONDS", 1.0),
        (sender, "ERRAND_SECONDS", 0.05),
        (transport, "LINGER_SECONDS", 0.01),
    ):
        monkeypatch.setattr(module, name, seconds)


@contextmanager
def forwarding(store: Store) -> Iterator[Sender]:
    """The forward role while the block runs."""
    stop = threading.Event()
    sender = Sender(store)
    thread = threading.Thread(target=sender.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield sender
    finally:
        stop.set()
        store.ring("forward")
        thread.join(20)
        assert not thread.is_alive(), "the sender hangs"


def to(store: Store, scp: "RecordingSCP | Odd", name: str = "pacs") -> int:
    return add_destination(store, name, name.upper(), scp.port)


def accepting(*syntaxes: str) -> Callable[[ProposedContext], ContextAnswer]:
    """An SCP that takes every storage SOP class, in these transfer syntaxes alone."""

    def answer(proposed: ProposedContext) -> ContextAnswer:
        assert proposed.abstract_syntax == VERIFICATION or len(proposed.transfer_syntaxes) == 1
        if proposed.abstract_syntax == VERIFICATION or proposed.transfer_syntaxes[0] in syntaxes:
            return storage_answer(proposed)
        return ContextAnswer(result=ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED)

    return answer


Answer = Callable[[Association, Message, bytes], None]


class Odd:
    """An SCP of our own engine that does with each C-STORE what `answer` says."""

    def __init__(
        self,
        answer: Answer,
        context: Callable[[ProposedContext], ContextAnswer] = storage_answer,
        rejection: Rejection | None = None,
    ) -> None:
        self._answer = answer
        self._context = context
        self._rejection = rejection
        self.requests: list[str] = []
        self.associations = 0
        self.serving = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def admit(self, _request: AssociateRequest, _peer: Peer) -> Rejection | None:
        return self._rejection

    def context(self, proposed: ProposedContext) -> ContextAnswer:
        return self._context(proposed)

    def limits(self, node: Limits) -> Limits:
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, address = self._server.accept()
                thread = threading.Thread(
                    target=self._serve, args=(connection, address), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        with suppress(Exception), accept(connection, address, self, Limits(linger=0.2)) as one:
            self.associations += 1
            self.serving += 1
            try:
                self._attend(one)
            finally:
                self.serving -= 1

    def _attend(self, association: Association) -> None:
        for message in association.messages():
            if message.data is None:
                association.respond(message, 0)
                continue
            self.requests.append(message.command.sop_instance_uid)
            self._answer(association, message, b"".join(map(bytes, message.data)))
