"""`make run LAN=1`: HTTPS for tablets before the web service, and nothing on a disk in between."""

import http.client
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from harness import contract, fault, made, trace
from harness.box import Box, scanned
from harness.canary import Canaries, Searcher
from harness.waiting import free_port, until

RUN = Path(__file__).resolve().parents[2] / "tools" / "run.py"
OVER_TWO_MIB = 1100  # pixels a side, 16 bits each

pytestmark = pytest.mark.peers


class Lan:
    """A node that `tools/run.py` serves, nginx before it."""

    def __init__(self, box: Box, prefix: list[str]) -> None:
        self.box = box
        self.port = free_port()
        command = [*prefix, sys.executable, str(RUN), "--node", str(box.directory)]
        command += ["--ae-title", "UNUSED", "--dicom-port", "1", "--http-port", "1"]
        with box.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--lan-port", str(self.port)],
                stdout=log,
                stderr=log,
                env=box.env(),
                start_new_session=True,
            )

    def trusting(self) -> ssl.SSLContext:
        """A client that trusts the site certificate and nothing else, and checks the name."""
        return ssl.create_default_context(cafile=str(self.box.directory / "tls" / "site.crt"))

    def request(
        self, method: str, path: str, *, body: bytes = b"", token: str = ""
    ) -> tuple[int, bytes, dict[str, str]]:
        """One exchange over HTTPS: status, body, headers."""
        line = http.client.HTTPSConnection(
            "localhost", self.port, timeout=60, context=self.trusting()
        )
        headers = {"Content-Type": "application/dicom"} if body else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        line.request(method, path, body=body or None, headers=headers)
        answer = line.getresponse()
        got = answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        line.close()
        return got

    def up(self) -> bool:
        """Whether it has said so; AssertionError once it has ended."""
        assert self.process.poll() is None, self.box.log_text()[-1500:]
        return "EdgePACS is up" in self.box.log_text()


@contextmanager
def lan(box: Box, prefix: list[str]) -> Iterator[Lan]:
    """A Lan that is up and does not outlive the block."""
    served = Lan(box, prefix)
    try:
        until(served.up, "run.py says it is up", seconds=90, every=0.1)
        yield served
    finally:
        fault.kill_group(served.process.pid)
        served.process.wait()


def test_nothing_that_passes_nginx_is_written_down(box_at_rest: Box, tmp_path: Path):
    marks = Canaries.fresh()
    searcher = Searcher([marks])
    prefix = tmp_path / "trace"
    token = contract.token(box_at_rest, "technologist")
    upload = made.marked(marks, side=OVER_TWO_MIB).file()
    with lan(box_at_rest, trace.command(prefix)) as served:
        status, answer, _ = served.request("POST", "/import", body=upload, token=token)
        assert status == 200, answer
        status, file, _ = served.request("GET", "/instances/1/file", token=token)
        assert status == 200
        assert len(file) > 2 << 20
        assert marks.pixels in file
        _, listed, _ = served.request("GET", "/studies.json", token=token)
        assert marks.family_name.encode() in listed
        for path in (f"/{marks.patient_id}", f"/studies?q={marks.family_name}"):
            served.request("GET", path, token=token)
        (runner,) = psutil.Process(served.process.pid).children()
        runner.send_signal(signal.SIGTERM)
        served.process.wait(30)
        assert fault.members(served.process.pid) == []
    finding = trace.search(prefix, searcher)
    assert finding.hits == []
    assert finding.opaque == []
    assert any(path.endswith("/nginx/access.log") for path in finding.paths)
    assert any("/objects/" in path for path in finding.paths)
    allowed = (str(box_at_rest.directory), str(box_at_rest.log))
    assert {path for path in finding.paths if not path.startswith(allowed)} == set()
    assert searcher.in_files(scanned([box_at_rest])) == []


def test_tls_is_modern_and_ctrl_c_ends_everything(box_at_rest: Box):
    with lan(box_at_rest, []) as served:
        status, page, headers = served.request("GET", "/login")
        assert status == 200
        assert b"EdgePACS" in page
        assert headers["strict-transport-security"].startswith("max-age=")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        line = http.client.HTTPSConnection("localhost", served.port, timeout=10, context=old)
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            line.request("GET", "/login")
        os.killpg(served.process.pid, signal.SIGINT)
        assert served.process.wait(30) == 0
        assert fault.members(served.process.pid) == []


@pytest.fixture
def box_at_rest(tmp_path: Path) -> Box:
    """A node that is made and does not run."""
    return Box.made(tmp_path / "node")
