"""AE titles that are called by TLS: where instances are moved to, and where reports go."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import made
from harness.dcmtk import require
from harness.part10 import read
from harness.waiting import free_port, until
from harness.web_peer import Identity, identity
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from scp.serving import Serving, serving
from scp.test_scp_pledges import ask, reporting, states, wanted
from scp.test_scp_pledges import call as call_for_commitment
from scp.test_scp_retrieve import call, counts, know, move, of_study
from store.making import take_in, take_in_part

from edgepacs.model import AETitle, PledgeState, Service
from edgepacs.scp import listener
from edgepacs.store import peers, pledges


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(listener, "_POLL_SECONDS", 0.02)  # until it sees that it is to end
    with serving(tmp_path / "node") as one:
        one.allow("WS", services=(Service.MOVE,))
        yield one


def call_by_tls(node: Serving, title: str, **settings: str) -> None:
    with node.store.db.write() as tx:
        peers.call(tx, title, {"tls": "1", **settings}, actor="eve")


def listens(port: int) -> bool:
    """Whether somebody does, without calling: some peers serve one caller at a time."""
    state_listen, wanted_port = "0A", f"{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{wanted_port}") and row[3] == state_listen for row in rows)


@contextmanager
def storescp(folder: Path, server: Identity, clients: Identity) -> Iterator[int]:
    """DCMTK's, by TLS alone, for those that show the certificate of `clients`."""
    folder.mkdir()
    for name, text in (
        ("server.key", server.key),
        ("server.crt", server.certificate),
        ("clients.crt", clients.certificate),
    ):
        (folder / name).write_text(text)
    got = folder / "got"
    got.mkdir()
    port = free_port()
    keys = ["+tls", str(folder / "server.key"), str(folder / "server.crt")]
    trusted = ["+cf", str(folder / "clients.crt"), "--require-peer-cert"]
    command = [require("storescp"), *keys, *trusted, "+B", "--fork", "-od", str(got), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: listens(port) or process.poll() is not None, "storescp listens")
            yield port
        finally:
            process.terminate()


@pytest.mark.peers
def test_instances_are_moved_by_tls_with_certificates_on_both_sides(
    node: Serving, tmp_path: Path
) -> None:
    server, ours = identity(), identity("edgepacs")
    part = made.ct()
    take_in_part(node.store, part)
    study = of_study(str(part.dataset().StudyInstanceUID))
    with storescp(tmp_path / "peer", server, ours) as port:
        know(node, "DEST", port)
        call_by_tls(node, "DEST", certificate=ours.certificate, private_key=ours.key)
        with call(node) as one:
            *_, final = move(one, study)
            assert final.status == 0xA702
            assert "certificate not accepted" in final.command.comment
        call_by_tls(node, "DEST", authority=server.certificate)
        with call(node) as one:
            *_, final = move(one, study)
            assert (final.status, counts(final)) == (0, (None, 1, 0, 0))
        (file,) = (tmp_path / "peer" / "got").iterdir()
        assert read(file).data == part.data


def test_nothing_is_moved_in_the_clear_where_tls_is_set(node: Serving) -> None:
    """And what of the settings cannot be used is said to whoever asked."""
    take_in(node.store, sop="1.2.3.4.1")
    know(node, "DEST", free_port())
    with node.store.db.write() as tx:
        pem = "-----BEGIN CERTIFICATE-----\nx"
        peers.call(tx, "DEST", {"tls": "1", "authority": pem}, actor="eve")
    with call(node) as one:
        *_, final = move(one)
    assert final.status == 0xA702
    assert "the authority set" in final.command.comment


def test_a_report_goes_by_tls(node: Serving, tmp_path: Path) -> None:
    server = identity()
    heard = threading.Event()

    def reported(_: evt.Event) -> tuple[int, None]:
        heard.set()
        return 0x0000, None

    there = AE(ae_title="CT1")
    there.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    listening = there.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, reported)],
        ssl_context=server.server(tmp_path / "peer"),
    )
    assert listening is not None
    port = listening.socket.getsockname()[1]
    try:
        with node.store.db.write() as tx:
            services = (Service.STORE, Service.COMMITMENT)
            peers.add_ae(
                tx, title="CT1", host="127.0.0.1", port=port, services=services, actor="test"
            )
        call_by_tls(node, "CT1")
        with call_for_commitment(node.port) as one:
            assert ask(one, wanted("1.2.3.4")) == 0
        with reporting(node.store):
            until(lambda: "certificate not accepted" in words(node), "it is not believed")
            assert not heard.is_set()
            call_by_tls(node, "CT1", authority=server.certificate)
            (one_pledge,) = pledges.listed(node.store.db, None, 99)
            pledges.again(node.store.db, one_pledge.id, actor="eve")
            until(lambda: states(node.store) == [PledgeState.REPORTED], "it is reported")
        assert heard.is_set()
    finally:
        listening.shutdown()


def words(node: Serving) -> str:
    return " ".join(one.words for one in pledges.listed(node.store.db, None, 99))


def test_keys_are_kept_to_themselves(node: Serving) -> None:
    ours = identity("edgepacs")
    call_by_tls(node, "WS", certificate=ours.certificate, private_key=ours.key)
    known = peers.known_ae(node.store.db, AETitle("WS"))
    assert known is not None
    assert known.private_key == ours.key
    assert "PRIVATE KEY" not in repr(known)
    node.allow("WS")  # how it is called stays
    still = peers.known_ae(node.store.db, AETitle("WS"))
    assert still is not None
    assert still.tls == 1
    with node.store.db.read() as tx:
        said = tx.rows("SELECT actor, detail FROM audit WHERE act = 'ae called'")
    assert said == [("eve", "WS tls=1 certificate private_key")]
