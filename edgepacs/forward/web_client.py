"""A DICOMweb server as EdgePACS sees it as user agent (PS3.18 8): requests out, answers in.

http.client does the protocol; the socket under it is ours, so that every wait has an end, an
answer that comes before the request is through is heard, and little is ever in the kernel that
was not sent. What is sent is pulled piece by piece: memory does not grow with it.

Patient data goes over TLS 1.2 or better, to a server whose certificate is trusted. Plain HTTP is
spoken on the loopback interface alone.
"""

import contextlib
import email.utils
import http.client
import io
import ipaddress
import json
import select
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit
from xml.parsers import expat

from edgepacs.clock import monotonic, wall_ms
from edgepacs.custody.credentials import tls_context
from edgepacs.dimse.guard import guard
from edgepacs.errors import NotAdmitted, PeerBusy, PeerError, PeerRefused, PeerUnreachable
from edgepacs.store.destinations import Destination

DICOM_JSON: Final = "application/dicom+json"  # PS3.18 8.7.3
Piece = bytes | memoryview

_BUSY: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_CLOSED: Final = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
)
_NOT_OFFERED: Final = (
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.GONE,
    HTTPStatus.NOT_IMPLEMENTED,
)

_CONNECT_SECONDS = 10.0  # for an address, and again for TLS
_STALL_SECONDS = 60.0  # while the server takes nothing of what is sent
_ANSWER_SECONDS = 120.0  # from the end of a request to the end of its answer
_REST_SECONDS = 10.0  # for the rest of an answer that came before the request was through
_PATIENCE_SECONDS = 30.0  # where the server asks for patience and does not say how long
_PATIENCE_MOST = 3600.0
_AT_ONCE = 65_536  # bytes given to the kernel in one step
_UNSENT = 131_072  # bytes the kernel may hold unsent
_BODY_MOST = 4 << 20  # bytes of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server has answered; `cut` where the end of `body` did not come.

    `endless` says that there was more than is ever read, and `early` that the answer came before
    the request was through.
    """

    status: int
    media_type: str
    body: bytes
    cut: bool
    endless: bool
    early: bool

    @property
    def good(self) -> bool:
        """Whether the status says success (2xx)."""
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """Number and name of the status."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)

    def data_sets(self) -> list["WebDataSet"] | None:
        """The data sets in the body, DICOM JSON or XML; None where it is neither."""
        try:
            if self.media_type.endswith("xml"):
                return [WebDataSet(_of_xml(self.body))]
            found = json.loads(self.body)
        except (ValueError, RecursionError, expat.ExpatError):
            return None
        several = found if isinstance(found, list) else [found]
        return [WebDataSet(one) for one in several if isinstance(one, dict)]

    def refusal(self) -> PeerError:
        """What an answer that is no success means for whatever is asked of this server."""
        if self.status in _CLOSED:
            words = "its token, user or certificate in the settings has to be changed"
            return NotAdmitted(f"the destination does not let us in ({self.words}): {words}")
        if 300 <= self.status < 400:  # following it would take patient data to an unknown place
            return NotAdmitted(f"the destination has moved ({self.words}): set its address anew")
        if self.status in _NOT_OFFERED:
            return PeerRefused(f"the destination does not offer this ({self.words})")
        return PeerError(f"the destination answered {self.words}")


@dataclass(frozen=True, slots=True)
class WebDataSet:
    """A data set by the DICOM JSON Model (PS3.18 F.2); what is malformed counts as absent."""

    elements: Mapping[str, Any]

    def items(self, tag: str) -> list["WebDataSet"]:
        """The items of a sequence."""
        return [WebDataSet(one) for one in self._values(tag) if isinstance(one, dict)]

    def text(self, tag: str) -> str:
        """The first value, where it is text."""
        first = next(iter(self._values(tag)), "")
        return first.strip("\0 \t\r\n") if isinstance(first, str) else ""

    def number(self, tag: str) -> int | None:
        """The first value, where it is a whole number."""
        first = next(iter(self._values(tag)), None)
        try:
            return int(first) if isinstance(first, int | str) else None
        except ValueError:
            return None

    def _values(self, tag: str) -> list[Any]:
        element = self.elements.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        return values if isinstance(values, list) else []


def _of_xml(body: bytes) -> dict[str, Any]:
    """A data set of the Native DICOM Model (PS3.19 A.1) as of the DICOM JSON Model.

    Raises ExpatError, and ValueError where it is no such document.
    """
    root: dict[str, Any] = {}
    path: list[dict[str, Any]] = [root]  # data sets and elements, the innermost last
    text: list[str] = []

    def begin(name: str, fields: dict[str, str]) -> None:
        text.clear()
        if name == "DicomAttribute":
            path.append(path[-1].setdefault(fields.get("tag", ""), {"Value": []}))
        elif name == "Item":
            path.append({})
            path[-2].setdefault("Value", []).append(path[-1])
        elif len(path) == 1 and name != "NativeDicomModel":
            raise ValueError(name)

    def end(name: str) -> None:
        if name == "Value":
            path[-1].setdefault("Value", []).append("".join(text))
        elif name in ("DicomAttribute", "Item"):
            path.pop()

    def declare(*_: object) -> None:
        raise ValueError("a document type")  # entities could make it grow without end

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = declare
    parser.Parse(body, True)
    return root


class WebClient:
    """The DICOMweb server of one destination, over one connection at a time.

    A context manager; it dials with the first request. For one thread.
    """

    def __init__(self, destination: Destination) -> None:
        parts = urlsplit(destination.url)
        if not parts.hostname:
            raise NotAdmitted("the destination has no address (setting url)")
        self._base = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self._headers = {"User-Agent": "EdgePACS", **_authorization(destination)}
        port = parts.port or (443 if parts.scheme == "https" else 80)
        context = tls_context(destination) if parts.scheme == "https" else None
        self._connection = _Connection(parts.hostname, port, context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def dial(self) -> None:
        """Connect now; raises PeerUnreachable, NotAdmitted."""
        self._connection.be_ready()

    def interrupt(self) -> None:
        """Break off what is under way; from any thread."""
        self._connection.interrupt()

    def keep_unsent(self, size: int) -> None:
        """Let the kernel hold no more than about `size` bytes that are not sent yet."""
        self._connection.unsent = size

    def get(self, path: str, query: Mapping[str, str] = {}) -> Answer:
        """The answer to GET, of DICOM JSON where it is a data set.

        Raises PeerUnreachable, NotAdmitted, and PeerBusy where the server asks for patience.
        """
        target = path + ("?" + urlencode(query, safe=",") if query else "")
        again = self._connection.reusable
        try:
            return self._ask("GET", target, {"Accept": DICOM_JSON})
        except PeerUnreachable:
            if not again:
                raise
        return self._ask("GET", target, {"Accept": DICOM_JSON})  # it was closed meanwhile

    @contextlib.contextmanager
    def stream(self, path: str, accept: str) -> Iterator["Streamed"]:
        """The answer to GET, its body as it arrives; what is not read ends the connection.

        Raises as `get`.
        """
        connection = self._connection
        connection.be_ready()
        try:
            fields = {**self._headers, "Accept": accept}
            connection.request_in_pieces("GET", self._base + path, fields, ())
            with contextlib.closing(_response(connection)) as response:
                yield Streamed(response, connection)
                whole = response.isclosed() and not response.will_close
        except BaseException:
            connection.close()
            raise
        if not whole:
            connection.close()

    def post(self, path: str, media_type: str, length: int, pieces: Iterable[Piece]) -> Answer:
        """The answer to POST of `length` bytes, which `pieces` must add up to.

        Raises as `get`, and what iterating `pieces` raises; the connection is closed then.
        """
        fields = {"Accept": DICOM_JSON, "Content-Type": media_type, "Content-Length": str(length)}
        return self._ask("POST", path, fields, pieces)

    def _ask(
        self, method: str, target: str, fields: Mapping[str, str], pieces: Iterable[Piece] = ()
    ) -> Answer:
        connection = self._connection
        try:
            connection.be_ready()
            early = connection.request_in_pieces(
                method, self._base + target, {**self._headers, **fields}, pieces
            )
            answer = _read(connection, early=early)
        except BaseException:
            connection.close()
            raise
        if early:
            connection.close()  # in the middle of a request nothing else can follow
        return answer


def _authorization(destination: Destination) -> dict[str, str]:
    """A bearer token (RFC 6750 2.1) or user name and passcode (RFC 7617)."""
    if destination.token:
        if not (destination.token.isascii() and destination.token.isprintable()):
            raise NotAdmitted("the token of the destination holds characters HTTP cannot carry")
        return {"Authorization": f"Bearer {destination.token}"}
    if destination.user_name:
        pair = f"{destination.user_name}:{destination.passcode}".encode()
        return {"Authorization": f"Basic {b64encode(pair).decode()}"}
    return {}


# --- the connection ----------------------------------------------------------------------------


class _AnsweredEarly(Exception):
    """The server has answered, or closed, before the request was through."""


class _Connection(http.client.HTTPConnection):
    """One connection whose socket is a `_Wire`."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        self.default_port = 443 if context else 80  # what the Host field may leave out
        self._context = context
        self._wire: _Wire | None = None
        self.unsent = _UNSENT

    @property
    def reusable(self) -> bool:
        """Whether the connection of the last request is still there."""
        return self.sock is not None

    def be_ready(self) -> None:
        """Dial, unless the last connection still stands; raises PeerUnreachable, NotAdmitted."""
        if self._wire is not None and self.reusable and not self._wire.spoken():
            return
        self.close()
        self.connect()

    def interrupt(self) -> None:
        """End both directions at once; from any thread."""
        if self._wire is not None:
            self._wire.interrupt()

    def connect(self) -> None:
        """Dial; raises PeerUnreachable, NotAdmitted."""
        sock = _dialled(self.host, self.port)
        try:
            if self._context is not None:
                sock = _secured(sock, self._context, self.host)
            else:
                _require_loopback(sock)
        except BaseException:
            sock.close()
            raise
        self.sock = self._wire = _Wire(sock)

    def patience(self, seconds: float) -> None:
        """Bound the reading of what comes next."""
        if self._wire is not None:
            self._wire.answer_within(seconds)

    def request_in_pieces(
        self, method: str, target: str, fields: Mapping[str, str], pieces: Iterable[Piece]
    ) -> bool:
        """Send a request; whether the server answered before it was through.

        Raises PeerUnreachable.
        """
        assert self._wire is not None
        self._wire.keep_unsent(self.unsent)
        self.putrequest(method, target)
        for name, value in fields.items():
            self.putheader(name, value)
        try:
            self.endheaders()
            for piece in pieces:
                self.send(piece)
        except _AnsweredEarly:
            self._wire.answer_within(_REST_SECONDS)
            return True
        except OSError as error:
            self._wire.answer_within(_REST_SECONDS)
            if self._wire.spoken():  # it may have said why before it closed
                return True
            if isinstance(error, TimeoutError):
                raise PeerUnreachable("the destination takes nothing of what is sent") from error
            raise PeerUnreachable(f"the connection was lost: {_words(error)}") from error
        self._wire.answer_within(_ANSWER_SECONDS)
        return False


class _Wire:
    """A connected socket, plain or TLS, as http.client uses it, whose waits all end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._heard = b""  # of an answer that came early
        self._fault: OSError | None = None  # met while listening for one
        self._deadline = 0.0
        self._readers = 0  # answers being read, which outlive the connection that is to close
        self._given_up = False

    def sendall(self, data: Piece) -> None:
        """Send all; raises _AnsweredEarly, and TimeoutError when nothing is taken for long."""
        rest = memoryview(data)
        while rest:
            if self.spoken():
                raise _AnsweredEarly
            self._socket.settimeout(_STALL_SECONDS)
            rest = rest[self._socket.send(rest[:_AT_ONCE]) :]

    def spoken(self) -> bool:
        """Whether the server has answered or closed though nothing was asked of it yet."""
        if self._heard or self._fault:
            return True
        if not (self._poll.poll(0) or isinstance(self._socket, ssl.SSLSocket)):
            return False
        self._socket.settimeout(0)
        try:
            self._heard = self._socket.recv(_AT_ONCE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False  # of TLS alone, e.g. a session ticket
        except OSError as error:
            self._fault = error
        return True

    def keep_unsent(self, size: int) -> None:
        """Let the kernel hold no more than about `size` bytes that are not sent yet."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

    def answer_within(self, seconds: float) -> None:
        """Bound the reading of an answer."""
        self._deadline = monotonic() + seconds

    def receive_into(self, view: memoryview) -> int:
        """Read once; 0 at the end. Raises TimeoutError when the time for an answer is over."""
        if heard := self._heard[: len(view)]:
            view[: len(heard)] = heard
            self._heard = self._heard[len(heard) :]
            return len(heard)
        if self._fault:
            raise self._fault
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket.recv_into(view)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What one answer is read from; closing it leaves the connection open."""
        self._readers += 1
        return io.BufferedReader(_Reader(self))

    def reader_closed(self) -> None:
        """One answer is read, or given up."""
        self._readers -= 1
        if self._given_up and not self._readers:
            self._socket.close()

    def interrupt(self) -> None:
        """End both directions at once; from any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, once the answer that ends with it is read."""
        self._given_up = True
        if not self._readers:
            self._socket.close()


class _Reader(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._wire.reader_closed()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.receive_into(memoryview(buffer))


def _dialled(host: str, port: int) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    except ConnectionRefusedError as error:
        raise PeerUnreachable(f"nothing listens at {host}:{port}") from error
    except TimeoutError as error:
        words = f"{host}:{port} does not answer within {_CONNECT_SECONDS:g} s"
        raise PeerUnreachable(words) from error
    except (OSError, UnicodeError) as error:
        raise PeerUnreachable(f"{host}:{port} cannot be reached: {_words(error)}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    guard(sock)
    return sock


def _require_loopback(sock: socket.socket) -> None:
    if not ipaddress.ip_address(sock.getpeername()[0].partition("%")[0]).is_loopback:
        raise NotAdmitted("plain HTTP would show patient data on the line: use https")


def _words(error: BaseException) -> str:
    return str(getattr(error, "strerror", "") or type(error).__name__)


# --- TLS ---------------------------------------------------------------------------------------


def _secured(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    sock.settimeout(_CONNECT_SECONDS)
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        words = f"the certificate of the destination is not trusted: {error.verify_message}"
        raise NotAdmitted(words) from error
    except TimeoutError as error:
        raise PeerUnreachable("the destination does not answer as TLS does") from error
    except ssl.SSLError as error:
        raise NotAdmitted(f"no agreement on TLS with the destination: {error.reason}") from error
    except OSError as error:
        words = f"the connection was lost in the TLS handshake: {_words(error)}"
        raise PeerUnreachable(words) from error


# --- answers -----------------------------------------------------------------------------------


class Streamed:
    """An answer whose body is read piece by piece, without ever being held."""

    def __init__(self, response: http.client.HTTPResponse, connection: _Connection) -> None:
        self._response = response
        self._connection = connection
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")
        self.media_type = response.headers.get_content_type() if self.content_type else ""
        self.boundary = str(response.headers.get_param("boundary") or "")

    def pieces(self) -> Iterator[bytes]:
        """The body; raises PeerUnreachable where the connection ends within it."""
        try:
            while True:
                self._connection.patience(_STALL_SECONDS)
                piece = self._response.read1(_AT_ONCE)
                if not piece:
                    break
                yield piece
        except TimeoutError as error:
            raise PeerUnreachable("the destination stopped in the middle of an answer") from error
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnreachable("the connection was lost in the middle of an answer") from error
        if self._response.length:
            raise PeerUnreachable("the connection was lost in the middle of an answer")

    def refusal(self) -> PeerError:
        """What an answer that is no success means."""
        return Answer(
            status=self.status,
            media_type=self.media_type,
            body=b"",
            cut=False,
            endless=False,
            early=False,
        ).refusal()


def _response(connection: _Connection) -> http.client.HTTPResponse:
    """The head of the answer.

    Raises PeerUnreachable where none came, PeerError where it is not HTTP, and PeerBusy.
    """
    try:
        response = connection.getresponse()
    except TimeoutError as error:
        raise PeerUnreachable("the destination does not answer what it was sent") from error
    except (ConnectionError, http.client.RemoteDisconnected) as error:
        raise PeerUnreachable("the connection was lost before the answer came") from error
    except ssl.SSLError as error:
        words = f"the destination ended TLS, as it does without a certificate: {error.reason}"
        raise NotAdmitted(words) from error
    except OSError as error:
        raise PeerUnreachable(f"the connection was lost: {_words(error)}") from error
    except http.client.HTTPException as error:
        raise PeerError("the destination does not answer as HTTP does") from error
    if response.status in _BUSY:
        words = f"the destination asks for patience ({response.status})"
        raise PeerBusy(words, seconds=_patience(response.headers))
    return response


def _read(connection: _Connection, *, early: bool) -> Answer:
    """The answer; raises as `_response`."""
    response = _response(connection)
    body, end = _body(response)
    if end is not _End.WHOLE or response.will_close:
        connection.close()
    return Answer(
        status=response.status,
        media_type=response.headers.get_content_type() if response.headers["Content-Type"] else "",
        body=body,
        cut=end is _End.CUT,
        endless=end is _End.ENDLESS,
        early=early,
    )


class _End(Enum):
    """How the reading of a body ended."""

    WHOLE = auto()
    CUT = auto()
    ENDLESS = auto()


def _body(response: http.client.HTTPResponse) -> tuple[bytes, _End]:
    """The body, empty where it is longer than is ever read."""
    pieces: list[bytes] = []
    with contextlib.closing(response):
        try:
            for piece in _pieces(response):
                pieces.append(piece)
                if sum(map(len, pieces)) > _BODY_MOST:
                    return b"", _End.ENDLESS
        except (OSError, http.client.HTTPException):
            return b"".join(pieces), _End.CUT
        return b"".join(pieces), _End.CUT if response.length else _End.WHOLE


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(65_536):
        yield piece


def _patience(headers: http.client.HTTPMessage) -> float:
    """Retry-After (RFC 9110 10.2.3) in seconds, within bounds: a number, or a date.

    A date is taken against the server's own clock, since ours may be wrong.
    """
    said = headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdigit():
        return min(max(float(said[:9]), 1.0), _PATIENCE_MOST)
    try:
        then = email.utils.parsedate_to_datetime(said).timestamp()
    except (TypeError, ValueError, OverflowError):
        return _PATIENCE_SECONDS
    try:
        now = email.utils.parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        now = wall_ms() / 1000
    return min(max(then - now, 1.0), _PATIENCE_MOST)
