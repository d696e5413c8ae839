"""Proof of arrival from real archives, by the whole forward role."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forward.sending import forwarding, hasten
from harness.dcmtk import require
from harness.orthanc import Orthanc
from harness.waiting import free_port, until
from scp.serving import Serving, serving
from store.making import add_destination, claim_one, states_of, take_in

from edgepacs.forward import inquiry, proof
from edgepacs.forward.proof import Prover, habits
from edgepacs.model import Callback
from edgepacs.store import Store, commitments, destinations

pytestmark = pytest.mark.peers
NUMBER = 5


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)
    monkeypatch.setattr(proof, "GATHER_MS", 200)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        yield one


@contextmanager
def orthanc(folder: Path, callback_port: int) -> Iterator[Orthanc]:
    """An Orthanc that knows the node, and where it would report to."""
    one = Orthanc(folder)
    settings = json.loads(one._config.read_text())
    known = {"AET": "EDGEPACS", "Host": "127.0.0.1", "Port": callback_port}
    settings["DicomModalities"] = {"edge": known}
    settings["DicomAlwaysAllowFind"] = True
    one._config.write_text(json.dumps(settings))
    with one:
        yield one


@contextmanager
def dcmqrscp(folder: Path) -> Iterator[int]:
    """DCMTK's archive, which answers queries and knows no storage commitment."""
    port, area = free_port(), folder / "area"
    area.mkdir(parents=True)
    config = folder / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nPACS {area} RW (200, 1024mb) ANY\nAETable END\n"
    )
    command = [require("dcmqrscp"), "-c", str(config)]
    with (folder / "dcmqrscp.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def pacs(store: Store) -> destinations.Destination:
    return destinations.named(store.db, "pacs")


def all_are(store: Store, state: str) -> None:
    until(lambda: states_of(store) == [state] * NUMBER, f"all are {state}", seconds=30)


def test_orthanc_commits_on_an_association_of_its_own(node: Serving, tmp_path: Path) -> None:
    store = node.store
    with orthanc(tmp_path / "orthanc", node.port) as archive:
        add_destination(store, title=archive.ae_title, port=archive.port)
        for _ in range(NUMBER):
            take_in(store)
        with forwarding(store):
            all_are(store, "committed")
        assert len(archive.held()) == NUMBER
        assert pacs(store).callback is Callback.NEW
        words = "offers storage commitment, it calls back with its reports; answers queries"
        assert habits(store, pacs(store)) == words


def test_orthanc_that_cannot_call_back_is_queried(
    node: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitments, "PATIENCE_MS", (500, 500))
    store = node.store
    with orthanc(tmp_path / "orthanc", free_port()) as archive:  # behind NAT, nobody answers there
        add_destination(store, title=archive.ae_title, port=archive.port)
        for _ in range(NUMBER):
            take_in(store)
        with forwarding(store):
            all_are(store, "confirmed_by_query")
        assert pacs(store).callback is Callback.NEVER
        assert "it cannot call back" in habits(store, pacs(store))


def test_orthanc_says_what_it_lacks(node: Serving, tmp_path: Path) -> None:
    store = node.store
    with orthanc(tmp_path / "orthanc", node.port) as archive:
        add_destination(store, title=archive.ae_title, port=archive.port)
        for _ in range(NUMBER):
            take_in(store)
        with forwarding(store):
            all_are(store, "committed")
        one = next(iter(archive.held().values()))
        gone = urllib.request.Request(
            f"http://127.0.0.1:{archive.http_port}/instances/{one['id']}", method="DELETE"
        )
        urllib.request.urlopen(gone, timeout=10).close()
        with store.db.write() as tx:
            tx.run("UPDATE delivery SET state = 'sent', proof = 'response', changed_ms = 0")
        Prover(store, pacs(store)).round()
        until(lambda: "awaiting_commitment" in states_of(store), "asked again")
        prover = Prover(store, pacs(store))

        def settled() -> bool:
            prover.round()
            return "awaiting_commitment" not in states_of(store)

        until(settled, "reported again")
        assert sorted(states_of(store)) == ["committed"] * (NUMBER - 1) + ["queued"]


def test_dcmqrscp_is_queried(store: Store, tmp_path: Path) -> None:
    with dcmqrscp(tmp_path / "archive") as port:
        add_destination(store, port=port)
        for _ in range(NUMBER):
            take_in(store)
        with forwarding(store):
            all_are(store, "confirmed_by_query")
        assert habits(store, pacs(store)) == "offers no storage commitment; answers queries"


def test_dcmqrscp_after_a_crash(store: Store, tmp_path: Path) -> None:
    with dcmqrscp(tmp_path / "archive") as port:
        add_destination(store, port=port)
        for _ in range(NUMBER):
            take_in(store)
        with forwarding(store):
            all_are(store, "confirmed_by_query")
        with store.db.write() as tx:  # as a crash leaves it
            tx.run("UPDATE delivery SET state = 'sending', proof = ''")
        take_in(store)
        claim_one(store, 1)  # and one that never began
        doubts = commitments.doubts(store.db, 1, most=9)
        assert len(inquiry.found(store, pacs(store), doubts)) == NUMBER
        Prover(store, pacs(store)).settle_doubts()
    assert states_of(store) == ["confirmed_by_query"] * NUMBER + ["queued"]
