"""The server itself: nothing spooled, nothing read that nobody may send, nobody slow for long."""

import contextlib
import http.client
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import made
from harness.waiting import free_port, until
from web_support import found_store

from edgepacs.model import Role
from edgepacs.store import Store, users
from edgepacs.web import serve, server


@dataclass(frozen=True, slots=True)
class Served:
    store: Store
    port: int

    def token(self, role: Role) -> str:
        with self.store.db.write() as tx:
            return users.create_token(tx, role=role, actor="test")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def raw(self, *parts: bytes) -> bytes:
        """Send `parts` and read until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            for part in parts:
                line.sendall(part)
            return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    store = found_store(tmp_path / "node", free_port())
    port = store.config.web.port
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(store, stop))
    thread.start()
    node = Served(store, port)
    try:
        until(lambda: _answers(node), "the web answers")
        yield node
    finally:
        stop.set()
        thread.join(10)
        store.close()
        assert not thread.is_alive(), "the web did not stop"


def _answers(node: Served) -> bool:
    try:
        return node.ask("GET", "/healthz")[0] == 200
    except OSError:
        return False


def test_large_bodies_never_reach_a_temporary_file(served: Served, monkeypatch: pytest.MonkeyPatch):
    """3 MiB in and out, both beyond waitress' own limits for spooling, with nowhere to spool to."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    one = made.ct(side=1280)
    assert len(one.data) > 3 << 20
    credentials = {"Authorization": f"Bearer {served.token(Role.TECHNOLOGIST)}"}
    status, body, _ = served.ask(
        "POST", "/import", one.file(), Content_Type="application/dicom", **credentials
    )
    assert status == 200, body
    status, body, headers = served.ask("GET", "/instances/1/file", **credentials)
    assert status == 200
    assert body.endswith(one.data)
    assert "Server" not in headers


def _head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/import", ("Content-Length: 4294967296",), b"413"),
        ("/import", ("Content-Length: 4294967296", "Expect: 100-continue"), b"413"),
        ("/import", ("Content-Length: 3000000",), b"401"),
        ("/import", ("Transfer-Encoding: chunked",), b"401"),
        ("/import", ("Content-Length: 3000000", "Authorization: Bearer edge_no"), b"401"),
        ("/login", ("Content-Length: 3000000",), b"413"),
        ("/login", ("Transfer-Encoding: chunked",), b"413"),
        ("/studies", ("Content-Length: 70000", "Expect: 100-continue"), b"413"),
        ("/login", ("Content-Length: 1e9",), b"400"),
    ],
)
def test_what_nobody_may_send_is_refused_before_it_is_read(
    served: Served, path: str, lines: tuple[str, ...], status: bytes
):
    answer = served.raw(_head("POST", path, *lines))
    assert answer.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status))
    assert b"100 Continue" not in answer


def test_chunked_upload_is_taken(served: Served):
    one = made.ct()
    body = one.file()
    head = _head(
        "POST",
        "/import",
        "Transfer-Encoding: chunked",
        "Content-Type: application/dicom",
        f"Authorization: Bearer {served.token(Role.TECHNOLOGIST)}",
        "Connection: close",
    )
    half = len(body) // 2
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:])]
    answer = served.raw(head, *chunks, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b'"outcome":"stored"' in answer


def test_a_request_that_trickles_in_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
        slow.sendall(_head("POST", "/login", "Content-Length: 60000"))
        slow.settimeout(0.05)
        answer = b""

        def trickle() -> bool:
            nonlocal answer
            with contextlib.suppress(TimeoutError):
                answer += slow.recv(4096)
            with contextlib.suppress(OSError):
                slow.send(b"x")
            return b"408" in answer

        until(trickle, "the slow request is refused", seconds=8)
    assert served.ask("GET", "/healthz")[0] == 200


def test_silent_connections_hold_nobody_up(served: Served):
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=5))
        assert served.ask("GET", "/healthz")[0] == 200


def test_proxy_headers_decide_nothing_but_the_scheme(served: Served):
    status, _, headers = served.ask(
        "GET", "/login", Accept="text/html", X_Forwarded_Host="evil.example"
    )
    assert status == 200
    assert "evil" not in str(headers)
    _, _, headers = served.ask("GET", "/login", Accept="text/html", X_Forwarded_Proto="https")
    assert "Secure" in headers["Set-Cookie"]
    _, _, headers = served.ask("GET", "/login", Accept="text/html")
    assert "Secure" not in headers["Set-Cookie"]


def test_a_redirect_names_no_host(served: Served):
    status, _, headers = served.ask("GET", "/studies", Accept="text/html", Host="127.0.0.1:1")
    assert status == 303
    assert headers["Location"].startswith("/login")
