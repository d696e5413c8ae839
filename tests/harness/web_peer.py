"""A scripted DICOMweb server: takes STOW-RS, answers QIDO-RS, and misbehaves as told.

It shares nothing with our own client: a socket server that reads requests by hand, so that it
can break off anywhere.
"""

import datetime as dt
import ipaddress
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from harness.part10 import _meta_elements, decode


@dataclass(frozen=True, slots=True)
class Got:
    """One instance of a request."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str  # of its meta information
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    method: str
    target: str
    fields: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def instances(self) -> list[Got]:
        """The parts of a multipart body."""
        kind = self.fields["content-type"]
        assert kind.startswith('multipart/related; type="application/dicom"; boundary=')
        boundary = b"--" + kind.rpartition("=")[2].encode()
        assert self.body.endswith(b"\r\n" + boundary + b"--\r\n")
        parts = (b"\r\n" + self.body).split(b"\r\n" + boundary)[1:-1]
        return [_got(part) for part in parts]


def _got(part: bytes) -> Got:
    head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    assert head == b"Content-Type: application/dicom"
    assert content[128:132] == b"DICM"
    meta, end = {}, 132
    for element, value, after in _meta_elements(content, 132):
        meta[element] = value.rstrip(b"\0").decode() if element else ""
        end = after
    return Got(meta[2], meta[3], meta[0x10], content[end:])


@dataclass(slots=True)
class Reply:
    """What is answered; `reset` after `cut` bytes of it, where that is said."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/dicom+json"
    fields: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    close: bool = False

    def encoded(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} Said", f"Content-Length: {len(self.body)}"]
        if self.body:
            head.append(f"Content-Type: {self.kind}")
        head += [f"{name}: {value}" for name, value in self.fields.items()]
        return "\r\n".join([*head, "", ""]).encode() + self.body


Script = Callable[[Request], Reply | None]
"""What becomes of a STOW request: None to hang until the client goes."""


class WebPeer:
    """A DICOMweb server under `/dicom-web`; plain, or with `tls` over HTTPS.

    `early` is asked with the head of each STOW request and may answer before the body is read;
    `take` is how many bytes of the bodies are read before the connection is reset, if not all.
    """

    def __init__(self, script: Script | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.script: Script = script or (lambda request: self.accepted(request.instances))
        self.early: Callable[[dict[str, str]], Reply | None] = lambda _fields: None
        self.take: int | None = None
        self.lists = True  # whether lists of UIDs are heeded
        self.queries = True  # whether QIDO-RS is offered
        self.gate: Callable[[Request], Reply | None] = lambda _request: None
        self.held: dict[str, tuple[str, str, Got]] = {}  # by SOP Instance UID: study, series, it
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._listen, daemon=True)]

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/dicom-web"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    # --- what was asked

    @property
    def stored(self) -> list[list[Got]]:
        """The instances of each STOW request that came whole."""
        return [one.instances for one in self.requests if one.method == "POST"]

    @property
    def times_sent(self) -> dict[str, int]:
        """How often each SOP Instance UID came."""
        uids = [one.sop_instance for some in self.stored for one in some]
        return {uid: uids.count(uid) for uid in uids}

    # --- answers to give

    def keep(self, got: Sequence[Got]) -> None:
        for one in got:
            found = decode(one.data, one.transfer_syntax)
            place = (str(found.StudyInstanceUID), str(found.SeriesInstanceUID))
            self.held[one.sop_instance] = (*place, one)

    def accepted(self, got: Sequence[Got]) -> Reply:
        """200, naming all."""
        self.keep(got)
        return Reply(200, said(stored=dict.fromkeys((one.sop_instance for one in got), 0)))

    # --- the server

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, raw: socket.socket) -> None:
        self._open.add(raw)
        connection = raw
        with suppress(OSError, _Gone):
            if self._tls:
                raw.settimeout(5)
                connection = self._tls.wrap_socket(raw, server_side=True)
            connection.settimeout(30)
            self._open.add(connection)
            while self._answer(connection):
                pass
        with suppress(OSError):
            connection.close()

    def _answer(self, connection: socket.socket) -> bool:
        head = _until(connection, b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        assert version == "HTTP/1.1"
        pairs = [line.partition(": ") for line in lines if line]
        fields = {name.lower(): value for name, _, value in pairs}
        assert "transfer-encoding" not in fields
        length = int(fields.get("content-length", "0"))
        reply = self.early(fields) if method == "POST" else None
        if reply is None:
            if self.take is not None and length > self.take:
                _exactly(connection, self.take)
                _reset(connection)
            request = Request(method, target, fields, _exactly(connection, length))
            self.requests.append(request)
            reply = self.gate(request) or self._reply(request)
            if reply is None:
                connection.recv(1)
                return False
        encoded = reply.encoded()
        connection.sendall(encoded[: reply.cut])
        if reply.cut is not None:
            _reset(connection)
        return not reply.close

    def _reply(self, request: Request) -> Reply | None:
        path, _, query = request.target.partition("?")
        assert path.startswith("/dicom-web/")
        if request.method == "POST":
            assert path == "/dicom-web/studies"
            return self.script(request)
        assert request.fields["accept"] == "application/dicom+json"
        keys = dict(one.split("=") for one in query.split("&") if one)
        if not self.queries:
            return Reply(404)
        series = re.fullmatch(r"/dicom-web/studies/([0-9.]+)/series/([0-9.]+)/instances", path)
        if not series:
            assert path == "/dicom-web/studies"
            return Reply(200, b"[]")
        return self._instances(series[1], series[2], keys)

    def _instances(self, study: str, series: str, keys: dict[str, str]) -> Reply:
        uids = sorted(uid for uid, one in self.held.items() if one[:2] == (study, series))
        if wanted := keys.get("SOPInstanceUID"):
            names = wanted.split(",") if self.lists else [wanted]
            uids = [uid for uid in uids if uid in names]
        start = int(keys.get("offset", "0"))
        found = [
            {"00080018": _value("UI", uid)} for uid in uids[start:][: int(keys.get("limit", 100))]
        ]
        return Reply(200, json.dumps(found).encode())


class _Gone(Exception):
    pass


def _until(connection: socket.socket, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        piece = connection.recv(1)
        if not piece:
            raise _Gone
        got += piece
    return got[: -len(end)]


def _exactly(connection: socket.socket, length: int) -> bytes:
    pieces = []
    while length:
        piece = connection.recv(min(length, 1 << 16))
        if not piece:
            raise _Gone
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    raise _Gone


def _value(vr: str, *values: object) -> dict[str, object]:
    return {"vr": vr, "Value": list(values)}


def said(*, stored: dict[str, int] | None = None, failed: dict[str, int] | None = None) -> bytes:
    """A Store Instances Response Module in JSON (PS3.18 I.2); reasons by SOP Instance UID."""

    def items(reasons: dict[str, int], tag: str) -> dict[str, object]:
        return _value(
            "SQ",
            *(
                {"00081155": _value("UI", uid)} | ({tag: _value("US", code)} if code else {})
                for uid, code in reasons.items()
            ),
        )

    found: dict[str, object] = {"00081190": _value("UR", "https://pacs.example/studies")}
    if stored:
        found["00081199"] = items(stored, "00081196")
    if failed:
        found["00081198"] = items(failed, "00081197")
    return json.dumps(found).encode()


# --- certificates


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, both PEM."""

    certificate: str
    key: str

    def server(self, folder: Path, *, clients: "Identity | None" = None) -> ssl.SSLContext:
        """TLS as a server; with `clients`, for those that have their certificate alone."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "server.pem"
        path.write_text(self.certificate + self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=clients.certificate)
        return context


def identity(name: str = "127.0.0.1") -> Identity:
    """A self-signed certificate for an address or a host name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode())
