"""A DICOMweb server that records and never decodes: the destination of STOW-RS and QIDO-RS.

Plain HTTP on loopback. It counts every instance a request carried, also of requests it broke off,
keeps the data set of each as the bytes that came, and misbehaves as `behaviour` says.
"""

import hashlib
import json
import re
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from harness.part10 import Part10
from harness.waiting import free_port, until

_ROOT = "/dicom-web"
# (0002,0002) and (0002,0003) of a file's meta information: PS3.10 7.1, explicit VR little endian.
_SOP_CLASS, _SOP_INSTANCE = b"\x02\x00\x02\x00UI", b"\x02\x00\x03\x00UI"
_STUDY, _SERIES = b"\x20\x00\x0d\x00UI", b"\x20\x00\x0e\x00UI"
_PIECE = 16_384


@dataclass(slots=True)
class WebBehaviour:
    """How the server answers; set at any time, taken up by the next request."""

    statuses: list[int] = field(default_factory=list)  # of the next requests that store
    retry_after: int = 1  # seconds, said with 429 and 503
    token: str = ""  # the bearer token asked for
    cut_after_bytes: int = 0  # of the next body: then the connection is cut, `cuts_left` times
    cuts_left: int = 0
    hang: int = 0  # so many requests are read and never answered
    fails: Callable[[str], int] = lambda _uid: 0  # failure reason of an instance (PS3.18 I.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One instance, as it came."""

    sop_class: str
    sop_instance: str
    study: str
    series: str
    sha256: str


class RecordingWeb:
    """The server, on a fixed loopback port that `up()` and `down()` switch."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{_ROOT}"
        self.behaviour = WebBehaviour()
        self.requests: Counter[str] = Counter()  # by SOP Instance, as far as its part was seen
        self.posts = self.queries = self.denied = 0
        self.accepted: Counter[str] = Counter()
        self.confirmed: set[str] = set()  # found by a query
        self.repeated: list[str] = []  # carried again though found
        self.held: dict[str, Kept] = {}
        self.lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None

    def up(self) -> "RecordingWeb":
        """Listen on the port."""
        recorder = self

        class Handler(_Handler):
            web = recorder

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def down(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def wait_for(self, number: int, *, seconds: float = 60.0) -> None:
        """Until it holds at least `number` instances."""
        until(
            lambda: len(self.held) >= number,
            f"{number} at the web server (has {len(self.held)})",
            seconds=seconds,
        )

    def differing(self, sent: list[Part10]) -> list[str]:
        """SOP Instance UIDs of what is not here exactly as it was sent, byte for byte."""
        return [
            one.sop_instance
            for one in sent
            if one.sop_instance not in self.held
            or self.held[one.sop_instance].sha256 != hashlib.sha256(one.data).hexdigest()
        ]


class _Cut(Exception):
    """The connection has been cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    web: RecordingWeb
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def _admitted(self) -> bool:
        token = self.web.behaviour.token
        if not token or self.headers.get("Authorization") == f"Bearer {token}":
            return True
        self.web.denied += 1
        self._answer(401)
        return False

    def _answer(self, status: int, content: Any = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        if status in (429, 503):
            self.send_header("Retry-After", str(self.web.behaviour.retry_after))
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # --- STOW-RS (PS3.18 10.5)

    def do_POST(self) -> None:
        try:
            body = self._body()
        except _Cut:
            self.close_connection = True
            return
        if not self._admitted():
            return
        web, behaviour = self.web, self.web.behaviour
        with web.lock:
            web.posts += 1
            status = behaviour.statuses.pop(0) if behaviour.statuses else 0
            hangs = behaviour.hang > 0
            behaviour.hang -= hangs
        if hangs:
            self.rfile.read(1)  # until the client gives up
            self.close_connection = True
        elif status:
            self._answer(status)
        else:
            self._store(body)

    def _body(self) -> bytes:
        """The body; counts the instances in it even where it breaks off."""
        behaviour, seen = self.web.behaviour, bytearray()
        left = int(self.headers["Content-Length"])
        with self.web.lock:
            limit = behaviour.cut_after_bytes if behaviour.cuts_left else 0
            behaviour.cuts_left -= bool(limit)
        try:
            while left and (piece := self.rfile.read(min(_PIECE, left))):
                seen += piece
                left -= len(piece)
                if limit and len(seen) >= limit:
                    raise _Cut
        finally:
            with self.web.lock:
                for uid in _uids(bytes(seen), _SOP_INSTANCE):
                    self.web.requests[uid] += 1
                    if uid in self.web.confirmed:
                        self.web.repeated.append(uid)
        if left:
            raise _Cut
        return bytes(seen)

    def _store(self, body: bytes) -> None:
        stored, failed = [], []
        with self.web.lock:
            for file in self._files(body):
                kept = _kept(file)
                item: dict[str, Any] = {
                    "00081150": _value("UI", kept.sop_class),
                    "00081155": _value("UI", kept.sop_instance),
                }
                if reason := self.web.behaviour.fails(kept.sop_instance):
                    failed.append({**item, "00081197": _value("US", reason)})
                    continue
                self.web.held[kept.sop_instance] = kept
                self.web.accepted[kept.sop_instance] += 1
                stored.append(item)
        said: dict[str, Any] = {}
        if stored:
            said["00081199"] = {"vr": "SQ", "Value": stored}
        if failed:
            said["00081198"] = {"vr": "SQ", "Value": failed}
        self._answer(200 if not failed else 202 if stored else 409, said)

    def _files(self, body: bytes) -> list[bytes]:
        kind = Message()
        kind["Content-Type"] = self.headers["Content-Type"]
        boundary = str(kind.get_param("boundary")).encode()
        parts = body.split(b"--" + boundary)[1:-1]
        return [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in parts]

    # --- QIDO-RS (PS3.18 10.6)

    def do_GET(self) -> None:
        if not self._admitted():
            return
        where = urlsplit(self.path)
        keys = parse_qs(where.query)
        with self.web.lock:
            self.web.queries += 1
            found = [one for one in self.web.held.values() if _matches(one, where.path, keys)]
            if "instances" in where.path:
                self.web.confirmed |= {one.sop_instance for one in found}
        self._answer(
            200,
            [
                {
                    "00080018": _value("UI", one.sop_instance),
                    "0020000D": _value("UI", one.study),
                    "0020000E": _value("UI", one.series),
                }
                for one in found
            ],
        )

    def do_OPTIONS(self) -> None:
        self._answer(200)


def _value(vr: str, value: object) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _matches(one: Kept, path: str, keys: dict[str, list[str]]) -> bool:
    wanted = {uid for text in keys.get("SOPInstanceUID", []) for uid in text.split(",")}
    place = re.fullmatch(rf"{_ROOT}/studies/([^/]+)(?:/series/([^/]+))?/instances", path)
    if place and (place[1] != one.study or (place[2] and place[2] != one.series)):
        return False
    return not wanted or one.sop_instance in wanted


def _uids(raw: bytes, tag: bytes) -> list[str]:
    found = []
    for match in re.finditer(re.escape(tag), raw):
        size = int.from_bytes(raw[match.end() : match.end() + 2], "little")
        text = raw[match.end() + 2 : match.end() + 2 + size]
        if len(text) == size <= 64:
            found.append(text.rstrip(b"\0 ").decode("ascii", "replace"))
    return found


def _kept(file: bytes) -> Kept:
    """A DICOM file taken apart (PS3.10 7.1): its names, and the digest of its data set."""
    (length,) = struct.unpack_from("<I", file, 140)  # (0002,0000)
    head, data = file[: 144 + length], file[144 + length :]
    first = data[:32_768]

    def one(raw: bytes, tag: bytes) -> str:
        return next(iter(_uids(raw, tag)), "")

    return Kept(
        sop_class=one(head, _SOP_CLASS),
        sop_instance=one(head, _SOP_INSTANCE),
        study=one(first, _STUDY),
        series=one(first, _SERIES),
        sha256=hashlib.sha256(data).hexdigest(),
    )
