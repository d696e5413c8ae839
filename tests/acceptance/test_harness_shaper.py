"""The shaped line is what it says: rate, round trip, byte for byte, bounded, and gone when told."""

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness.shaper import Shaper
from harness.waiting import stays, until

_NOISE = random.Random(1).randbytes(1 << 20)


class _Sink:
    """A server that takes everything of each connection and, in `echo`, says it again."""

    def __init__(self, *, echo: bool = False) -> None:
        self.got: list[int] = []
        self.digests: list[str] = []
        self.broken = 0
        self._echo = echo
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        except OSError:
            return

    def _serve(self, connection: socket.socket) -> None:
        number, digest = len(self.got), hashlib.sha256()
        self.got.append(0)
        with connection:
            try:
                while data := connection.recv(65_536):
                    self.got[number] += len(data)
                    digest.update(data)
                    if self._echo:
                        connection.sendall(data)
            except OSError:
                self.broken += 1
                return
        self.digests.append(digest.hexdigest())

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@contextmanager
def _sink(*, echo: bool = False) -> Iterator[_Sink]:
    sink = _Sink(echo=echo)
    yield sink
    sink.close()


def _dial(line: Shaper, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=timeout)


@pytest.mark.parametrize(
    ("rate", "round_trip", "size"),
    [(384_000.0, 0.715, 96_000), (2e6, 0.12, 500_000), (2e7, 0.04, 5_000_000)],
)
@pytest.mark.parametrize("connections", [1, 4])
def test_it_carries_at_its_rate(rate, round_trip, size, connections):
    with _sink() as sink, Shaper(sink.port, rate=rate, round_trip=round_trip) as line:
        clients = [_dial(line) for _ in range(connections)]
        data = (_NOISE * 5)[: size // connections]
        threads = [threading.Thread(target=one.sendall, args=(data,)) for one in clients]
        for one in threads:
            one.start()
        until(lambda: sum(sink.got) == len(data) * connections, "all of it", seconds=30)
        assert line.forth.first_at is not None
        assert line.forth.last_at is not None
        seconds = line.forth.last_at - line.forth.first_at
        assert line.forth.arrived * 8 / seconds == pytest.approx(rate, rel=0.02)
        assert line.most_held < line.queue_bytes + rate / 8 * (round_trip + 0.2)
        for client in clients:
            client.close()


@pytest.mark.parametrize("round_trip", [0.04, 0.12, 0.715])
def test_an_answer_takes_a_round_trip(round_trip):
    with _sink(echo=True) as sink, Shaper(sink.port, rate=2e7, round_trip=round_trip) as line:
        with _dial(line) as client:
            times = []
            for _ in range(3):
                begun = time.monotonic()
                client.sendall(b"?")
                assert client.recv(1) == b"?"
                times.append(time.monotonic() - begun)
        assert times[0] == pytest.approx(2 * round_trip, rel=0.1, abs=0.004)  # with its handshake
        assert times[1:] == pytest.approx([round_trip] * 2, rel=0.1, abs=0.004)


def test_it_changes_nothing_on_the_way():
    with _sink(echo=True) as sink, Shaper(sink.port, rate=1e8, round_trip=0.01) as line:
        with _dial(line) as client:
            threading.Thread(target=client.sendall, args=(_NOISE,), daemon=True).start()
            back = bytearray()
            while len(back) < len(_NOISE):
                back += client.recv(65_536)
            assert back == _NOISE
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        until(lambda: sink.digests, "the end of the stream arrives")
        assert sink.digests == [hashlib.sha256(_NOISE).hexdigest()]
        until(lambda: not line.open_connections, "the connection is forgotten")
        assert line.forth.arrived == line.back.arrived == len(_NOISE)


def test_a_sender_feels_a_full_queue():
    """What a slow line has not sent is with the sender, not somewhere in between."""
    with _sink() as sink, Shaper(sink.port, rate=384_000, round_trip=0.7) as line:
        with _dial(line) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            client.setblocking(False)
            taken, deadline = 0, time.monotonic() + 0.5
            while time.monotonic() < deadline:
                try:
                    taken += client.send(_NOISE)
                except BlockingIOError:
                    time.sleep(0.01)
            assert taken < 400_000
        assert line.most_held < line.queue_bytes + 384_000 / 8 * 0.6


def test_a_refusing_line_resets_and_refuses_and_comes_back():
    with _sink() as sink, Shaper(sink.port, rate=2e6, round_trip=0.02) as line:
        with _dial(line) as client:
            client.sendall(b"x" * 1000)
            until(lambda: sum(sink.got) == 1000, "it works")
            line.refuse()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            _dial(line)
        until(lambda: sink.broken == 1, "the far end learns of it")
        line.up()
        with _dial(line) as client:
            client.sendall(b"y")
            until(lambda: sink.got[1:] == [1], "it works again")


def test_a_black_hole_answers_nothing_and_goes_on_afterwards():
    with (
        _sink() as sink,
        Shaper(sink.port, rate=2e6, round_trip=0.02) as line,
        _dial(line) as client,
    ):
        client.sendall(b"x" * 1000)
        until(lambda: sum(sink.got) == 1000, "it works")
        line.silence()
        client.sendall(b"y" * 1000)
        with pytest.raises(TimeoutError):
            _dial(line, timeout=0.5)
        stays(lambda: sum(sink.got) == 1000, "nothing moves", seconds=0.3)
        line.up()
        until(lambda: sum(sink.got) == 2000, "what was stalled goes on")


def test_a_connection_that_was_lost_stays_lost():
    with (
        _sink() as sink,
        Shaper(sink.port) as line,
        _dial(line) as client,
    ):
        client.sendall(b"x")
        until(lambda: sum(sink.got) == 1, "it works")
        line.lose()
        line.up()
        client.sendall(b"y")
        with _dial(line) as other:
            other.sendall(b"z")
            until(lambda: sink.got == [1, 1], "a new connection works")
        stays(lambda: sink.got == [1, 1], "the old one does not", seconds=0.3)


def test_it_says_when_it_was_there():
    with _sink() as sink, Shaper(sink.port, rate=8000) as line:
        begun = time.monotonic()
        line.outage(0.2, 0.3)
        until(lambda: len(line.intervals) == 2, "the outage is over")
        ended = time.monotonic()
        assert line.available(begun, ended) == pytest.approx(ended - begun - 0.3, abs=0.05)
        assert line.optimum(begun, 1000) == pytest.approx(begun + 1.3, abs=0.05)


def test_it_costs_little():
    with _sink() as sink, Shaper(sink.port, rate=2e6, round_trip=0.12) as line:
        with _dial(line) as client:
            before = time.thread_time(), time.process_time()
            client.sendall(_NOISE[:250_000])
            until(lambda: sum(sink.got) == 250_000, "all of it", every=0.1)
        assert time.process_time() - before[1] < 0.3
