import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from forward.sending import Odd, to
from forward.swallowing import let_through, swallow
from harness.recorder import RecordingSCP
from harness.waiting import free_port, until
from store.making import add_destination

from edgepacs import clock
from edgepacs.dimse import AssociationAborted, AssociationClosed, Rejection
from edgepacs.dimse.guard import guard
from edgepacs.errors import PeerBusy, PeerError, PeerRefused, PeerUnreachable, StorageFault
from edgepacs.forward import link as module
from edgepacs.forward import transport
from edgepacs.forward.link import Link
from edgepacs.model import LinkState
from edgepacs.store import Store, destinations, usage
from edgepacs.store.destinations import Destination


class Echo:
    """How a destination answers when it is asked; counts."""

    def __init__(self) -> None:
        self.error: PeerError | None = None
        self.asked = 0

    def __call__(self, _store: Store, _destination: Destination) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _to(store: Store, port: int, host: str = "127.0.0.1") -> Destination:
    add_destination(store, "pacs", "PACS", port)
    with store.db.write() as tx:
        destinations.change(tx, "pacs", {"host": host}, actor="test")
    return destinations.named(store.db, "pacs")


@pytest.fixture
def link(store: Store, listener: socket.socket, echo: Echo) -> Link:
    """A line to somebody who listens and answers."""
    return Link(store, _to(store, listener.getsockname()[1]), echo)


def _history(store: Store) -> list[tuple[LinkState, str]]:
    return [(one.link, one.words) for one in reversed(usage.changes(store.db, 1))]


@contextmanager
def _seconds(least: float, most: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert least <= time.monotonic() - begun <= most


def _wait_for(link: Link) -> None:
    until(lambda: not link.wait() and link.probe(), "the line is up", seconds=10, every=0.01)


# -- nobody is there


def test_nobody_listens(store: Store, echo: Echo) -> None:
    link = Link(store, _to(store, free_port()), echo)
    assert (link.state, link.wait()) == (LinkState.UNKNOWN, 0)
    assert not link.probe()
    assert link.state is LinkState.DOWN
    assert 0 < link.wait() <= module.QUICK_SECONDS
    assert echo.asked == 0
    found = destinations.named(store.db, "pacs")
    words = "cannot connect: nothing listens on that port"
    assert (found.link, found.link_note) == (LinkState.DOWN, words)
    for _ in range(3):
        link.probe()
    assert _history(store) == [(LinkState.DOWN, words)]


def test_a_line_that_is_down_for_long_is_asked_less_often(
    store: Store, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK_FOR_SECONDS", 0.0)
    link = Link(store, _to(store, free_port()), echo)
    link.probe()
    assert 3 < link.wait() <= module.PROBE_SECONDS
    link.wake()
    assert link.wait() == 0


@pytest.mark.parametrize("host", ["black-hole", "no-name"])
def test_a_black_hole_costs_a_thread_little_and_is_noticed(
    store: Store,
    listener: socket.socket,
    echo: Echo,
    host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the destination nor, where it has a name, the name server answers."""
    answered = threading.Event()
    real = socket.getaddrinfo

    def looked_up(name: str, *args: int, **more: int) -> list[object]:
        if name != "no-name" or more.get("flags"):
            return real(name, *args, **more)  # type: ignore[return-value,arg-type]
        answered.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    swallow(listener)
    name = "no-name" if host == "no-name" else "127.0.0.1"
    link = Link(store, _to(store, listener.getsockname()[1], name), echo)
    with _seconds(1.5, 3.0):
        assert not link.probe()
    assert link.state is LinkState.DOWN
    assert "in time" in destinations.named(store.db, "pacs").link_note
    assert link.wait() <= module.LEAST_SECONDS
    answered.set()


def test_the_return_of_a_line_that_swallowed_everything_is_noticed_soon(
    store: Store, listener: socket.socket, link: Link, echo: Echo
) -> None:
    link.probe()
    link.worked()
    swallow(listener)
    link.broke(AssociationClosed("connection lost"))
    assert not link.probe()
    returned = []

    def give_back() -> None:
        returned.append(time.monotonic())
        let_through(listener)

    timer = threading.Timer(2.6, give_back)
    timer.start()
    _wait_for(link)
    timer.join()
    assert 0 <= time.monotonic() - returned[0] < 2.5
    assert echo.asked == 1  # it had worked before it was gone
    words = [LinkState.UP, LinkState.DEGRADED, LinkState.DOWN, LinkState.UP]
    assert [state for state, _ in _history(store)] == words


def test_a_round_trip_longer_than_one_wait_is_no_obstacle(listener: socket.socket) -> None:
    """The first connect is answered while the second one, which never will be, is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        swallow(listener)
        swallow(other)
        knocker = module._Knocker()
        with pytest.raises(TimeoutError):
            knocker.knock(listener.getsockname(), 0.3)
        let_through(listener)  # and the kernel tries again after 1 s
        with _seconds(0.2, 2.0):
            assert (
                0 < knocker.knock(other.getsockname(), 3.0) < 0.5
            )  # tries that were lost left out
        assert not knocker._begun


def test_a_name_nobody_knows_is_a_line_that_is_down(
    store: Store, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    destination = _to(store, 104)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    link = Link(store, destination, echo)
    assert not link.probe()
    assert link.state is LinkState.DOWN
    assert "the host name is not known" in destinations.named(store.db, "pacs").link_note
    assert link.wait() <= module.PROBE_SECONDS


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://pacs.example/dicom-web", ("pacs.example", 443)),
        ("http://pacs.example", ("pacs.example", 80)),
        ("https://192.0.2.1:8443/x", ("192.0.2.1", 8443)),
    ],
)
def test_where_dicomweb_listens(store: Store, url: str, endpoint: tuple[str, int]) -> None:
    one = replace(_to(store, 104), transport="stow", url=url)
    assert module._endpoint(one) == endpoint


# -- somebody is there


def test_a_line_that_works_is_asked_once(store: Store, link: Link, echo: Echo) -> None:
    assert link.probe()
    assert (link.state, link.wait(), echo.asked) == (LinkState.UP, 0, 1)
    link.worked()
    link.worked()
    assert _history(store) == [(LinkState.UP, "")]
    assert 0 < link.round_trip < 0.5
    assert usage.measured(store.db, 1).round_trip_ms >= 1


def test_what_broke_and_had_worked_is_tried_at_once_without_an_echo(
    store: Store, link: Link, echo: Echo
) -> None:
    link.probe()
    link.worked()
    for _ in range(4):  # lanes of one association each, broken by the same event
        link.broke(AssociationClosed("connection lost: reset by the peer"))
    assert (link.state, link.wait()) == (LinkState.DEGRADED, 0)
    assert link.probe()
    assert echo.asked == 1
    link.broke(AssociationClosed("connection lost: reset by the peer"))
    assert 0 < link.wait() <= module.QUICK_SECONDS
    assert link.probe()
    assert echo.asked == 2
    assert [state for state, _ in _history(store)] == [
        LinkState.UP,
        LinkState.DEGRADED,
        LinkState.UP,
        LinkState.DEGRADED,
        LinkState.UP,
    ]


@pytest.mark.parametrize("error", [PeerRefused("rejected: who?"), AssociationAborted(0, 0)])
def test_who_refuses_is_asked_less_and_less_often(link: Link, echo: Echo, error: PeerError) -> None:
    echo.error = error
    waits = []
    for _ in range(7):
        assert not link.probe()
        waits.append(link.wait())
    assert link.state is LinkState.DEGRADED
    for wait, most in zip(waits, (5, 10, 20, 40, 60, 60, 60), strict=True):
        assert 0.75 * most < wait <= most
    echo.error = None
    assert link.probe()
    link.worked()
    link.broke(error)
    assert link.wait() <= module.REFUSED_FIRST_SECONDS


def test_who_listens_without_answering_is_asked_steadily(
    link: Link, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a proxy before a line that is down: its return must be noticed all the same."""
    monkeypatch.setattr(module, "QUICK_FOR_SECONDS", 0.0)
    echo.error = PeerUnreachable("silent")
    for _ in range(20):
        assert not link.probe()
        assert 0 < link.wait() <= module.PROBE_SECONDS


@pytest.mark.parametrize(("asked", "given"), [(30, 30), (86_400, module.BUSY_MOST_SECONDS)])
def test_who_is_busy_is_left_alone_as_long_as_it_asks(
    link: Link, echo: Echo, asked: float, given: float
) -> None:
    link.probe()
    link.worked()
    link.broke(PeerBusy("answered 503", seconds=asked))
    assert link.wait() == pytest.approx(given, abs=1)
    assert link.probe()
    assert echo.asked == 1


def test_what_works_beside_a_failing_probe_counts(
    store: Store, link: Link, listener: socket.socket
) -> None:
    link.probe()
    swallow(listener)
    timer = threading.Timer(0.5, link.worked)
    timer.start()
    assert link.probe()
    assert link.state is LinkState.UP


def test_other_settings_are_tried_at_once(link: Link, echo: Echo) -> None:
    echo.error = PeerRefused("rejected: who?")
    link.probe()
    assert link.wait() > 3
    link.adopt(replace(link.destination, tls=1))
    assert link.wait() == 0


def test_a_real_peer_is_asked(store: Store) -> None:
    with RecordingSCP() as scp:
        to(store, scp)
        link = Link(store, destinations.named(store.db, "pacs"), transport.echo)
        assert link.probe()
    assert not link.probe()
    assert link.state is LinkState.DOWN


def test_a_real_peer_that_rejects(store: Store) -> None:
    with Odd(lambda *_: None, rejection=Rejection(1, 1, 3)) as scp:
        to(store, scp)
        link = Link(store, destinations.named(store.db, "pacs"), transport.echo)
        assert not link.probe()
    assert link.state is LinkState.DEGRADED
    assert "rejected" in destinations.named(store.db, "pacs").link_note


# -- what is written down


def test_other_words_for_the_same_state_are_recorded_now_and_then(
    store: Store, link: Link, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo.error = PeerUnreachable("first")
    link.probe()
    echo.error = PeerUnreachable("second")
    link.probe()
    assert _history(store) == [(LinkState.DEGRADED, "first")]
    monkeypatch.setattr(module, "_WORDS_SECONDS", 0.0)
    link.probe()
    assert [words for _, words in _history(store)] == ["first", "second"]


def test_a_line_goes_on_though_nothing_can_be_recorded(store: Store, link: Link) -> None:
    store.db._fault = StorageFault("the device failed")
    assert link.probe()
    assert link.state is LinkState.UP
    store.db._fault = None
    link.worked()
    assert destinations.named(store.db, "pacs").link is LinkState.UP


def test_the_history_of_a_line_is_bounded(store: Store, link: Link) -> None:
    for turn in range(110):
        destinations.set_link(store.db, 1, LinkState.DOWN, str(turn))
        destinations.set_link(store.db, 1, LinkState.UP, "")
    assert len(usage.changes(store.db, 1, 1000)) == 200
    assert usage.changes(store.db, 1, 2)[1].words == "109"


def test_a_clock_that_is_set_moves_since_when_the_line_is_down(
    store: Store, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(store, _to(store, free_port()), echo)
    link.probe()
    since = destinations.named(store.db, "pacs").link_ms
    year = 365 * 86_400_000
    real: Callable[[], int] = clock.wall_ms
    monkeypatch.setattr(clock, "wall_ms", lambda: real() - 3 * year)
    link.probe()
    assert destinations.named(store.db, "pacs").link_ms == pytest.approx(since - 3 * year, abs=200)
    monkeypatch.setattr(clock, "wall_ms", lambda: real() + 1000)
    link.probe()
    assert destinations.named(store.db, "pacs").link_ms == pytest.approx(since, abs=2000)


def test_what_another_process_wrote_keeps_its_time(
    store: Store, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a clock of its own starts in 1970, and learns the time later."""
    destination = _to(store, free_port())
    Link(store, destination, echo).probe()
    before = destinations.named(store.db, "pacs")
    real: Callable[[], int] = clock.wall_ms
    monkeypatch.setattr(clock, "wall_ms", lambda: real() - 10**12)
    link = Link(store, before, echo)
    link.probe()
    monkeypatch.setattr(clock, "wall_ms", real)
    link.probe()
    assert destinations.named(store.db, "pacs").link_ms == before.link_ms


# -- connections that are half open


@pytest.fixture
def connected(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            yield ours, theirs


def test_what_a_line_swallows_breaks_the_connection(
    connected: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connected
    guard(ours, 1.5)
    swallow(theirs)
    ours.send(b"x")
    ours.settimeout(20)
    with _seconds(1, 6), pytest.raises(OSError, match="timed out") as caught:
        ours.recv(1)
    assert caught.value.errno is not None  # the kernel's, not that of the socket's own timeout


def test_a_connection_outlives_a_short_outage(
    connected: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connected
    guard(ours, 10)
    swallow(theirs)
    ours.send(b"x")
    threading.Timer(1.0, let_through, (theirs,)).start()
    theirs.settimeout(10)
    with _seconds(0.9, 3.5):
        assert theirs.recv(1) == b"x"


def test_guarding_is_for_lines_only() -> None:
    one, other = socket.socketpair()
    with one, other:
        guard(one)
