"""What one AE may take, over the wire: associations at once, an object's size and its time."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dimse.dimse_node import Script
from harness import sender
from harness.made import CT, ct
from harness.part10 import EXPLICIT_LE, Part10
from harness.waiting import free_port, until
from scp.serving import Serving, serving
from store.making import objects

from edgepacs.dimse import Association, Limits, ProposedContext, pdu, request
from edgepacs.errors import PeerError
from edgepacs.model import UID, AETitle
from edgepacs.scp import listener
from edgepacs.store import peers
from edgepacs.store.peers import Allowance

LIMIT_EXCEEDED = (2, 3, 2)  # PS3.8 9.3.4: transient, by the provider (presentation)


def let(node: Serving, title: str, **allowance: int) -> None:
    with node.store.db.write() as tx:
        peers.allow(tx, title, Allowance(**allowance), actor="test")


def calling(node: Serving, title: str = "HARNESS", port: int = 0) -> Association:
    """An association of our own requestor, with context 1 for CT storage."""
    return request(
        "127.0.0.1",
        port or node.port,
        calling=AETitle(title),
        called=AETitle("EDGEPACS"),
        contexts=[ProposedContext(abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_LE,))],
        limits=Limits(response=20.0),
    )


# -- associations


def test_an_ae_at_its_cap_is_refused_for_now_and_others_are_not(node: Serving) -> None:
    """PS3.8 9.3.4: rejected transient, local limit exceeded."""
    node.allow("OTHER")
    let(node, "HARNESS", max_associations=2)
    with ExitStack() as open_ones:
        for _ in range(2):
            open_ones.enter_context(calling(node))
        assert node.rejection() == LIMIT_EXCEEDED
        assert sender.echo(node.port, calling="OTHER")
    node.idle()
    assert sender.echo(node.port)
    assert peers.refused(node.store.db) == []  # not for who it was


def test_a_cap_that_is_raised_counts_from_the_next_association_on(node: Serving) -> None:
    let(node, "HARNESS", max_associations=1)
    with calling(node):
        assert node.rejection() == LIMIT_EXCEEDED
        let(node, "HARNESS", max_associations=2)
        with calling(node):
            assert node.rejection() == LIMIT_EXCEEDED


def test_no_ae_can_take_every_place_of_the_node(tmp_path: Path) -> None:
    with serving(tmp_path / "node", max_associations=8) as node, ExitStack() as open_ones:
        for title in ("HARNESS", "OTHER", "THIRD"):
            node.allow(title)
        let(node, "HARNESS", max_associations=1000)
        for _ in range(6):
            open_ones.enter_context(calling(node))
        assert node.rejection() == LIMIT_EXCEEDED
        with calling(node, "OTHER"):
            assert node.rejection("OTHER") == LIMIT_EXCEEDED  # it has one
            assert sender.echo(node.port, calling="THIRD")


def test_a_peer_that_is_slow_to_close_keeps_no_place(node: Serving) -> None:
    """One association for each instance, as many modalities send: the next finds its place."""
    let(node, "HARNESS", max_associations=1)
    with ExitStack() as slow_to_close:
        for _ in range(5):
            peer = Script(node.port)
            slow_to_close.callback(peer.close)
            assert peer.associate(calling_ae="HARNESS")[0] == pdu.PduType.ASSOCIATE_AC
            peer.send(pdu.RELEASE_RQ)
            assert peer.pdu()[0] == pdu.PduType.RELEASE_RP
            until(lambda: node.listener._shares._taken == 0, "the place is free")
        assert len(node.listener._attended) > 1  # they are still waited for


def test_every_end_of_an_association_gives_its_place_back(node: Serving) -> None:
    let(node, "HARNESS", max_associations=1)
    for end in ("release", "abort", "reset", "broken"):
        peer = Script(node.port)
        peer.associate(calling_ae="HARNESS")
        if end == "release":
            peer.send(pdu.RELEASE_RQ)
        elif end == "abort":
            peer.send(pdu.encode_abort(pdu.Abort(0, 0)))
        elif end == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            peer.send(b"\4\0\0\0\0\4abcd")
        peer.close()
        node.idle()
        assert sender.echo(node.port), end
        node.idle()


def test_connections_that_are_dead_are_found_out(node: Serving) -> None:
    """A modality that lost its power keeps no place until the idle limit."""
    with calling(node):
        until(lambda: node.listener._open, "the association is open")
        (association,) = node.listener._open.values()
        accepted = association._line._socket
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        every = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        times = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle + every * times <= 120


# -- objects


def stored(node: Serving, part: Part10, title: str = "HARNESS") -> bool:
    """Whether `part` was stored; else it was answered C000 or the association was aborted.

    What is left of an object that was refused is not waited for.
    """
    try:
        with calling(node, title) as association:
            uid = UID(part.sop_instance)
            status = association.store(1, UID(CT), uid, [part.data]).status
    except PeerError:
        return False
    assert status in (0, 0xC000)
    return status == 0


def test_an_object_larger_than_its_ae_may_send_is_not_kept(node: Serving) -> None:
    node.allow("OTHER")
    let(node, "HARNESS", max_object_mib=1)
    large = ct(side=1500)
    assert not stored(node, large)
    node.idle()
    assert objects(node.store) == []
    assert stored(node, ct(side=600))
    assert stored(node, large, "OTHER")


def test_no_ae_may_send_more_than_the_node_takes(tmp_path: Path) -> None:
    with serving(tmp_path / "node", max_object_mib=1) as node:
        node.allow()
        let(node, "HARNESS", max_object_mib=100)
        assert not stored(node, ct(side=1500))
        node.idle()
        assert objects(node.store) == []


def test_an_object_has_the_time_its_ae_may_take(node: Serving) -> None:
    let(node, "HARNESS", max_object_seconds=1)
    part = ct(side=600)
    ended = threading.Event()

    def slow() -> Iterator[bytes]:
        yield part.data[: len(part.data) // 2]
        until(lambda: objects(node.store), "the object has begun")
        node.idle()  # the receiver has given it up
        ended.set()
        yield part.data[len(part.data) // 2 :]

    with pytest.raises(PeerError), calling(node) as association:
        association.store(1, UID(CT), UID(part.sop_instance), slow())
    assert ended.is_set()
    assert objects(node.store) == []


# -- connections that have not asked for anything yet


def test_silent_connections_of_one_host_cost_no_other_its_own(
    node: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens most loses the oldest of its own."""
    monkeypatch.setattr(node.listener, "_connections", 8)
    with ExitStack() as stack:
        patient = stack.enter_context(
            socket.create_connection(("127.0.0.1", node.port), source_address=("127.0.0.2", 0))
        )
        until(lambda: len(node.listener._silent) == 1, "the first is there")
        flood = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            for _ in range(30)
        ]
        assert flood[0].recv(1) == b""
        assert sender.echo(node.port)
        hosts = [host for _, host in node.listener._silent.values()]
        assert hosts.count("127.0.0.2") == 1
        patient.setblocking(False)
        with pytest.raises(BlockingIOError):
            patient.recv(1)


def trickled(slow: socket.socket, data: bytes) -> int:
    """How many bytes of `data`, one in 50 ms, go out before the peer ends the connection."""
    slow.settimeout(0.05)
    for sent, byte in enumerate(data):
        try:
            slow.sendall(bytes((byte,)))
            if not slow.recv(1):
                return sent
        except TimeoutError:
            continue
        except OSError:
            return sent
    return len(data)


def test_a_handshake_that_is_never_finished_ends_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte as well: the deadline is that of the whole handshake."""
    monkeypatch.setattr(listener, "_HANDSHAKE_SECONDS", 0.5)
    with serving(tmp_path / "node", tls_port=free_port()) as node:
        node.allow()
        port = node.store.config.dicom.tls_port
        hello = ssl.MemoryBIO()
        client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        with socket.create_connection(("127.0.0.1", port)) as slow:
            sent = trickled(slow, hello.read())
        node.idle()
        assert 0 < sent < 30
