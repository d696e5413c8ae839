"""SIGKILL at every failpoint of the product: nothing acknowledged is lost, nothing is left over."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest
from forward.archive import Archive
from harness import contract, made, sender
from harness.box import Box
from harness.part10 import Part10
from harness.recorder import RecordingSCP
from harness.waiting import free_port, until
from powercut.node import Node
from store.making import states_of

from edgepacs import config
from edgepacs.custody import restore
from edgepacs.model import UID
from edgepacs.store import instances, opened

_NAMED = re.compile(r"""failpoint\(\s*"([^"]+)"\s*\)""")
Scene = Callable[[Box, str], list[Part10]]  # gets a role killed there; what it was sent


def _points() -> set[str]:
    """The name of every failpoint in the product's source."""
    sources = Path(str(resources.files("edgepacs"))).rglob("*.py")
    return {name for path in sources for name in _NAMED.findall(path.read_text("utf-8"))}


@contextmanager
def _running(box: Box, role: str, *, kill_at: str = "") -> Iterator[Node]:
    node = Node(box)
    try:
        if kill_at:
            node.launch(role, ("--kill-at", f"{kill_at}:1"))
        elif role == "scp":
            node.start(role)
        else:
            node.launch(role)
        yield node
    finally:
        node.kill()


def _dies_receiving(box: Box, point: str, one: Part10 | None = None) -> list[Part10]:
    one = one or made.ct()
    with _running(box, "scp", kill_at=point) as node:
        until(lambda: sender.echo(box.dicom_port), "it answers")
        (answer,) = sender.send([one], box.dicom_port)
        assert node.wait("scp") == -signal.SIGKILL
    assert answer.status is None
    return [one]


def _dies_replacing(box: Box, point: str) -> list[Part10]:
    """Killed over the second copy of an instance it has acknowledged."""
    one = made.ct()
    with _running(box, "scp"):
        (answer,) = sender.send([one], box.dicom_port)
        assert answer.status == 0
    return _dies_receiving(box, point, one)


def _dies_starting(box: Box, point: str) -> list[Part10]:
    with _running(box, "scp", kill_at=point) as node:
        assert node.wait("scp") == -signal.SIGKILL
    return []


def _dies_sweeping(box: Box, point: str) -> list[Part10]:
    """Killed over the sweep of a whole object without a row, and of blanks."""
    return [*_dies_receiving(box, "ingest.sealed"), *_dies_starting(box, point)]


def _dies_forwarding(box: Box, point: str) -> list[Part10]:
    with RecordingSCP() as recorder:
        box.send_to("central", ae=recorder.ae_title, port=recorder.port)
        one = made.ct()
        with _running(box, "scp"):
            (answer,) = sender.send([one], box.dicom_port)
            assert answer.status == 0
        with _running(box, "forward", kill_at=point) as node:
            assert node.wait("forward") == -signal.SIGKILL
        with _running(box, "forward"):
            recorder.wait_for(1)
            until(lambda: contract.queue_states(box)["sent"] == 1, "it is sent")
        assert recorder.total_requests <= 2
        assert {got.data for got in recorder.accepted()} == {one.data}
    return [one]


def _dies_proving(box: Box, point: str) -> list[Part10]:
    """Killed while it asks for storage commitment of what was sent."""
    one = made.ct()
    with Archive() as archive:
        box.send_to("central", ae="PACS", port=archive.port)
        with _running(box, "scp"):
            (answer,) = sender.send([one], box.dicom_port)
            assert answer.status == 0
        with _running(box, "forward", kill_at=point) as node:
            assert node.wait("forward") == -signal.SIGKILL
        with opened(config.load(box.config)) as store:
            assert states_of(store) == ["awaiting_commitment"]
            with store.db.write() as tx:
                assert tx.run("UPDATE commitment SET asked_ms = 0") == 1  # its time is over
            with _running(box, "forward"):
                until(lambda: states_of(store) == ["committed"], "it is committed")
        assert archive.stored == [one.sop_instance]
    return [one]


def _dies_evicting(box: Box, point: str) -> list[Part10]:
    """Killed over the bytes of a study that has arrived elsewhere."""
    one = made.ct()
    box.send_to("central", ae="CENTRAL", port=free_port())
    with _running(box, "scp"):
        (answer,) = sender.send([one], box.dicom_port)
        assert answer.status == 0
    with opened(config.load(box.config)) as store, store.db.write() as tx:
        assert tx.run("UPDATE delivery SET state = 'committed'") == 1
    box.configure(r"high = 80 .*\nlow = 70 .*\nkeep_days = 1", "high = 1\nlow = 0\nkeep_days = 0")
    with _running(box, "upkeep", kill_at=point) as node:
        assert node.wait("upkeep") == -signal.SIGKILL
    return [one]


_SCENES: dict[str, Scene] = {
    "ingest": _dies_receiving,
    "object": _dies_receiving,
    "keystore": _dies_receiving,
    "disposal": _dies_replacing,
    "blanks": _dies_starting,
    "sweep": _dies_sweeping,
    "forward": _dies_forwarding,
    "proof": _dies_proving,
    "evict": _dies_evicting,
}


# Whose processes are killed with what they were at in tests of their own.
_ELSEWHERE = {
    "announcement": "orders/test_orders_adt.py",
    "compress": "upkeep/test_upkeep_crew.py",
    "hl7": "orders/test_orders_oracle.py",
    "message": "forward/test_forward_messages.py",
    "pledge": "scp/test_scp_pledges.py",
}
_TESTS = Path(__file__).resolve().parent.parent


def _kind(point: str) -> str:
    return point.partition(".")[0]


def test_every_failpoint_kills_a_role_in_some_test() -> None:
    points = _points()
    assert {"ingest.sealed", "ingest.committed", "sweep.removing", "forward.sent"} <= points
    for point in points:
        kind = _kind(point)
        assert kind in _SCENES or point in (_TESTS / _ELSEWHERE[kind]).read_text("utf-8"), point


@pytest.mark.parametrize("point", sorted(one for one in _points() if _kind(one) in _SCENES))
def test_killed_at_a_failpoint_nothing_is_lost_and_nothing_left(
    new_box: Callable[[], Box], point: str
) -> None:
    box, kept = new_box(), [made.ct() for _ in range(2)]
    with _running(box, "scp"):
        assert all(answer.status == 0 for answer in sender.send(kept, box.dicom_port))
    sent = _SCENES[_kind(point)](box, point)
    with _running(box, "scp"):
        until(lambda: contract.fsck(box).clean, "fsck is clean", every=0.3)
        if sent:
            assert all(answer.status == 0 for answer in sender.send(sent, box.dicom_port))
    report = contract.fsck(box)
    assert report.clean
    assert report.rows == report.verified == len(box.objects()) == len(kept) + len(sent)
    assert _stored(box, [*kept, *sent]) == [one.data for one in (*kept, *sent)]


def _stored(box: Box, wanted: list[Part10]) -> list[bytes]:
    with opened(config.load(box.config)) as store:
        found = [instances.stored_version(store.db, UID(one.sop_instance)) for one in wanted]
        return [b"".join(restore.received_chunks(store, row)) for row in found if row]
