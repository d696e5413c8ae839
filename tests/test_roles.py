import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from harness import sender
from harness.waiting import free_port, stays, until
from store.making import draft, node_in, objects, opened_store

from edgepacs import config, roles
from edgepacs.store import Store, fsck, peers


@pytest.fixture
def node(tmp_path: Path) -> config.Config:
    """A node with ports of its own that knows the harness's caller."""
    path = node_in(tmp_path / "node").path
    before, dicom, rest = path.read_text().partition("[dicom]")
    inside, web, after = rest.partition("[web]")
    path.write_text(
        before
        + dicom
        + inside.replace("\nport = 0", f"\nport = {free_port()}", 1)
        + web
        + after.replace("\nport = 0", f"\nport = {free_port()}", 1)
    )
    loaded = config.load(path)
    store = Store.open(loaded)
    with store.db.write() as tx:
        peers.add_ae(tx, title="HARNESS", host="*", port=104, services=[*peers.Service], actor="t")
    store.close()
    return loaded


@contextmanager
def running(node: config.Config, role: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """`edgepacs ROLE` in a process of its own; whatever is left of it is killed."""
    command = [sys.executable, "-m", "edgepacs", "--config", str(node.path), role]
    environment = {**os.environ, **env}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ends(process: subprocess.Popen[bytes], seconds: float = 15) -> int:
    return process.wait(seconds)


def children(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    found = {}
    for one in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if words := one.cmdline():  # none between its end and its being waited for
                found[words[-1]] = one
    return found


@pytest.mark.parametrize("role", roles.ROLES)
def test_each_role_runs_alone_says_so_and_ends_when_told(
    node: config.Config, tmp_path: Path, role: str
) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address)
        notified.settimeout(20)
        with running(node, role, NOTIFY_SOCKET=address) as process:
            assert notified.recv(100) == b"READY=1"
            if role == "scp":
                assert sender.echo(node.dicom.port)
            process.send_signal(signal.SIGTERM)
            assert ends(process) == 0
            assert notified.recv(100) == b"STOPPING=1"


def test_serve_runs_all_roles_and_ends_them(node: config.Config) -> None:
    with running(node, "serve") as process:
        until(lambda: listens(node.dicom.port) and listens(node.web.port), "both ports listen")
        until(lambda: set(children(process)) == set(roles.ROLES), "four roles run")
        assert sender.echo(node.dicom.port)
        with urllib.request.urlopen(f"http://127.0.0.1:{node.web.port}/healthz") as answer:
            assert answer.status == 200
        mine = list(children(process).values())
        process.send_signal(signal.SIGINT)
        assert ends(process) == 0
        assert not any(one.is_running() for one in mine)
        assert not listens(node.dicom.port)


def test_a_role_that_dies_is_started_again_and_the_others_stay(node: config.Config) -> None:
    with running(node, "serve") as process:
        until(lambda: listens(node.dicom.port), "the receiver listens")
        before = until(
            lambda: (c := children(process)).keys() == set(roles.ROLES) and c, "four roles run"
        )
        before["forward"].kill()
        until(
            lambda: "forward" in (now := children(process)) and now["forward"] != before["forward"],
            "another forward",
        )
        assert children(process)["scp"] == before["scp"]
        assert sender.echo(node.dicom.port)


def test_the_roles_end_with_serve_however_it_ends(node: config.Config) -> None:
    with running(node, "serve") as process:
        until(lambda: listens(node.dicom.port), "the receiver listens")
        mine = list(children(process).values())
        process.kill()
        until(lambda: not any(one.is_running() for one in mine), "no role is left")


def test_a_port_that_is_taken_ends_serve_with_its_code(node: config.Config) -> None:
    with socket.create_server(("127.0.0.1", node.dicom.port)), running(node, "serve") as process:
        assert ends(process, 30) == 78
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert f"port {node.dicom.port}" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("role", ["serve", "scp"])
def test_a_wrong_key_ends_it_at_once(node: config.Config, role: str) -> None:
    node.device_key_file.write_bytes(b"x" * 32)
    with running(node, role) as process:
        assert ends(process) == 77


def test_orphans_are_settled_at_start_unless_somebody_writes(tmp_path: Path) -> None:
    with opened_store(tmp_path / "node") as store:
        broken = draft(store)
        name = broken.object_id.hex()
        (store.paths.objects / name[:2] / name).write_bytes(b"never finished")
        with store.vault.writing():
            roles.sweep_if_alone(store)
            assert len(objects(store)) == 1
        roles.sweep_if_alone(store)
        assert objects(store) == []
        assert fsck.check(store).sound


def test_two_receivers_do_not_share_a_port(node: config.Config) -> None:
    with running(node, "scp"):
        until(lambda: listens(node.dicom.port), "the first listens")
        with running(node, "scp") as second:
            assert ends(second) == 78
        stays(lambda: listens(node.dicom.port), "the first listens still", seconds=0.2)
