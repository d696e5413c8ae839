"""Serving the application with waitress. No request or response body ever reaches a disk.

waitress spools bodies above `inbuf_overflow` and `outbuf_overflow` to temporary files, so both
stand above anything it will be handed: requests are capped before they are read, and a response
waits at `outbuf_high_watermark` until the browser has taken some of it.
"""

import logging
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer

from edgepacs.clock import monotonic
from edgepacs.store import Store
from edgepacs.telemetry import log
from edgepacs.web import gate
from edgepacs.web.app import create_app

THREADS = 8
CONNECTIONS = 128
IDLE_SECONDS = 60
GRACE_SECONDS = 30  # for a request to arrive in, beside what its size allows
SLOWEST = 1024  # bytes a second
_LOOP_SECONDS = 0.25
_NEVER = sys.maxsize
_WATERMARK = 4 << 20


def serve(store: Store, stop: threading.Event) -> None:
    """Serve the web on the configured loopback address until `stop` is set."""
    web = store.config.web
    sockets: dict[int, Any] = {}
    server = create_server(
        create_app(store),
        map=sockets,
        host=web.host,
        port=web.port,
        threads=THREADS,
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_SECONDS,
        inbuf_overflow=_NEVER,
        outbuf_overflow=_NEVER,
        outbuf_high_watermark=_WATERMARK,
        max_request_header_size=32 << 10,
        max_request_body_size=(web.max_upload_mib << 20) + 1,
        trusted_proxy="*",  # only this machine can connect
        trusted_proxy_headers={"x-forwarded-proto"},
        clear_untrusted_proxy_headers=True,
        expose_tracebacks=False,
        ident=None,
    )
    for listener in sockets.values():
        if isinstance(listener, TcpWSGIServer):
            listener.channel_class = _channel_class(store)
    _quieten()
    log.info("web on %s port %d", web.host, web.port)
    try:
        while not stop.is_set():
            wasyncore.loop(timeout=_LOOP_SECONDS, map=sockets, count=1)
    finally:
        server.task_dispatcher.shutdown()
        wasyncore.close_all(sockets)


class _Quiet(logging.Handler):
    """waitress quotes request paths and tracebacks; only that something happened is passed on."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        log.warning("web server: %s", kind.__name__ if kind else record.levelname.lower())


def _quieten() -> None:
    theirs = logging.getLogger("waitress")
    theirs.handlers[:] = [_Quiet(logging.WARNING)]
    theirs.propagate = False


class _Refusal:
    """An answer of the parser itself, before any body has been read."""

    def __init__(self, status: HTTPStatus) -> None:
        self._status = status

    def to_response(self, _ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Status line, headers and body, as waitress asks for them."""
        body = f'{{"error":"{self._status.phrase}"}}\n'.encode()
        headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
        return f"{self._status.value} {self._status.phrase}", headers, body


def _channel_class(store: Store) -> type[HTTPChannel]:
    most = store.config.web.max_upload_mib << 20

    def judge(path: str, headers: dict[str, str], length: int | None) -> HTTPStatus | None:
        if length is not None and length <= gate.SMALL_BODY:
            return None
        if length is not None and length > most:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        if gate.may_upload(store, path, headers):
            return None
        upload = path == gate.IMPORT_PATH
        return HTTPStatus.UNAUTHORIZED if upload else HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    parser_class = type("Parser", (_Parser,), {"judge": staticmethod(judge)})
    return type("Channel", (HTTPChannel,), {"parser_class": parser_class})


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Refuses a body nobody may send before it is read, and a request that trickles in."""

    judge: Callable[[str, dict[str, str], int | None], HTTPStatus | None]

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self._began = monotonic()
        self._taken = 0

    def received(self, data: bytes) -> int:
        consumed = int(super().received(data))
        self._taken += consumed
        allowed = GRACE_SECONDS + self._taken / SLOWEST
        if not self.completed and monotonic() - self._began > allowed:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        refused = self.judge(self.path, self.headers, None if self.chunked else self.content_length)
        if refused:
            self._refuse(refused)

    def _refuse(self, status: HTTPStatus) -> None:
        self.error = _Refusal(status)
        self.body_rcv = None
        self.content_length = 0
        self.expect_continue = False
        self.completed = True
