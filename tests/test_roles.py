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
from harness.fault import Failpoint
from harness.part10 import EXPLICIT_LE, Part10
from harness.waiting import free_port, stays, until
from store.making import draft, node_in, objects, small

from edgepacs import config, roles
from edgepacs.store import Store, fsck, instances, opened, peers
from edgepacs.store.drafts import Draft


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


def test_orders_that_cannot_be_taken_cost_no_modality_anything(node: config.Config) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        before, hl7, after = node.path.read_text().partition("[hl7]")
        port = f"\nport = {taken.getsockname()[1]}"
        node.path.write_text(before + hl7 + after.replace("\nport = 0", port, 1))
        with running(node, "scp") as process:
            until(lambda: listens(node.dicom.port), "the receiver listens")
            assert process.stderr is not None
            until(lambda: b"orders have ended" in process.stderr.readline(), "the log says so")
            assert sender.echo(node.dicom.port)
            process.send_signal(signal.SIGTERM)
            assert ends(process) == 0


def test_many_signals_at_once_end_it_as_one_does(node: config.Config) -> None:
    """Ctrl-C reaches the whole group, and a supervisor asks once more."""
    for _ in range(3):
        with running(node, "serve") as process:
            until(lambda: set(children(process)) == set(roles.ROLES), "four roles run")
            for number in [signal.SIGINT, signal.SIGTERM] * 2000:
                process.send_signal(number)
            assert ends(process) == 0


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


@pytest.fixture
def orphan(node: config.Config) -> Iterator[Draft]:
    """A whole object without a row in the stopped node, of a caller the harness may pose as."""
    store = Store.open(node)
    yield draft(store, source="HARNESS")
    store.close()


def sent_again(node: config.Config, one: Draft) -> sender.Answer:
    """The answer to the same instance, other bytes under its UID, sent anew."""
    uid = str(one.arrival.sop_instance_uid)
    part = Part10(
        path=None,
        sop_class=str(one.arrival.sop_class_uid),
        sop_instance=uid,
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=small(sop=uid),
    )
    (answer,) = sender.send([part], node.dicom.port)
    return answer


def test_a_receiver_answers_while_it_sweeps_and_ends_up_with_one_copy(
    node: config.Config, tmp_path: Path, orphan: Draft
) -> None:
    point = Failpoint("sweep.synced", tmp_path / "point")
    with running(node, "scp", **point.env()) as process:
        point.reached()
        until(lambda: listens(node.dicom.port), "it listens")
        assert sender.echo(node.dicom.port)
        assert sent_again(node, orphan).status == 0
        point.release()
        until(lambda: len(filled(node)) == 1, "one of the two objects is left")
        process.send_signal(signal.SIGTERM)
        assert ends(process) == 0
    with opened(node) as store:
        report = fsck.check(store)
        assert (report.sound, report.rows, report.verified) == (True, 1, 1)
        assert objects(store) == filled(node)


def filled(node: config.Config) -> list[Path]:
    """The objects with bytes in them, of a node that may be at work: some go while it looks."""
    return sorted(p for p in node.data_dir.glob("objects/??/*") if size_of(p))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("role", ["scp", "serve"])
def test_orphans_are_made_known_at_start_once_nobody_else_writes(
    node: config.Config, orphan: Draft, role: str
) -> None:
    with opened(node) as store:
        uid = orphan.arrival.sop_instance_uid
        with store.vault.writing(), running(node, role):
            until(lambda: listens(node.dicom.port), "it listens", seconds=60)
            stays(
                lambda: instances.stored_version(store.db, uid) is None, "left alone", seconds=0.3
            )
        with running(node, role):
            until(lambda: instances.stored_version(store.db, uid), "it is known", seconds=60)
        assert len(filled(node)) == 1


def test_two_receivers_do_not_share_a_port(node: config.Config) -> None:
    with running(node, "scp"):
        until(lambda: listens(node.dicom.port), "the first listens")
        with running(node, "scp") as second:
            assert ends(second) == 78
        stays(lambda: listens(node.dicom.port), "the first listens still", seconds=0.2)
