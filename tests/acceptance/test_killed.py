"""Must show 3: SIGKILL loses nothing acknowledged and leaves no orphan; fsck proves it."""

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import compare, contract, corpus, fault, made, sender
from harness.box import Box
from harness.fault import Failpoint
from harness.part10 import Part10
from harness.recorder import RecordingSCP
from harness.waiting import stays, until

from edgepacs.pixels.syntaxes import JPEG_LS

MakeBox = Callable[[], Box]


class Feeder:
    """A modality that stores CTs of mixed sizes one after another until its line breaks.

    With `strike`, every process of `box` is killed the moment that acknowledgement has come.
    """

    def __init__(self, box: Box, chance: random.Random, *, strike: int = 0) -> None:
        self.sent: list[Part10] = []
        self.acknowledged: list[Part10] = []
        self._chance = chance
        self._box = box
        self._strike = strike
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        kinds = [(made.CT, made.EXPLICIT_LE)]
        with sender.association(self._box.dicom_port, kinds) as assoc:
            while True:
                one = made.ct(side=self._chance.choice((128, 128, 512)))
                self.sent.append(one)
                answer = sender.store(assoc, one)
                if answer.status is None:
                    return
                assert answer.status == 0, hex(answer.status)
                self.acknowledged.append(one)
                if len(self.acknowledged) == self._strike:
                    os.killpg(self._box.group, signal.SIGKILL)

    def finish(self) -> None:
        """Wait until the broken line has been noticed."""
        self._thread.join(60)
        assert not self._thread.is_alive()


def _swept(box: Box) -> None:
    """Objects and rows agree, once the sweep at start has run."""
    until(lambda: contract.fsck(box).clean, "fsck is clean after restart", seconds=30, every=0.5)


def test_sigkill_at_random_moments_loses_nothing_acknowledged(new_box: MakeBox):
    chance = random.Random(corpus.SEED)
    box, recorder = new_box(), RecordingSCP()
    box.compress(2)
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    sent: dict[str, Part10] = {}
    acknowledged: set[str] = set()
    for number in range(corpus.count(5, 60)):
        box.start()
        feeder = Feeder(box, chance, strike=chance.randint(1, 9) if number % 2 else 0)
        until(lambda feeder=feeder: feeder.acknowledged, "a first acknowledgement")
        if number % 2 == 0:
            time.sleep(chance.uniform(0.0, 0.7))  # the random moment itself
            if number % 4 == 0:  # one process first, then all that are left
                os.kill(chance.choice(box.pids()), signal.SIGKILL)
                time.sleep(chance.uniform(0.0, 0.2))
            box.kill()
        feeder.finish()
        box.kill()
        sent |= {one.sop_instance: one for one in feeder.sent}
        acknowledged |= {one.sop_instance for one in feeder.acknowledged}
    box.start()
    until(lambda: not _compressing(box), "all that can be is compressed", seconds=60)
    _swept(box)
    with recorder:
        until(lambda: acknowledged <= set(recorder.by_uid()), "all acknowledged", seconds=120)
        until(lambda: not contract.queue_states(box)["queued"], "an empty queue", seconds=60)
        got = recorder.by_uid()
    assert not [found for uid, one in got.items() if (found := compare.arrived(sent[uid], one))]
    assert JPEG_LS in {one.transfer_syntax for one in got.values()}
    assert len(box.objects()) == len(got)


def _compressing(box: Box) -> bool:
    """Whether anything is being compressed, or has not even been considered yet."""
    stand = box.cli("compression", "status")["stand"]
    return any(one["state"] in ("as received", "waiting", "compressing") for one in stand)


@contextmanager
def _stopped_at(box: Box, point: Failpoint, one: Part10) -> Iterator[list[sender.Answer]]:
    """`one` on its way into the node, which stands at `point`; the answers, once there are any."""
    answers: list[sender.Answer] = []
    thread = threading.Thread(
        target=lambda: answers.extend(sender.send([one], box.dicom_port)), daemon=True
    )
    thread.start()
    point.reached()
    yield answers
    thread.join(60)
    assert not thread.is_alive()


def test_killed_while_the_data_set_arrives_nothing_is_left(new_box: MakeBox):
    box, one = new_box(), made.ct(side=1500)
    box.start()
    with sender.association(box.dicom_port, [(one.sop_class, one.transfer_syntax)]) as assoc:
        sender.begin(assoc, one, 0.6)
        until(box.objects, "a half-written object")
        assert contract.fsck(box).kinds() == {"unsettled": 1}
        box.kill()
    box.start()
    _swept(box)
    assert box.objects() == []
    (answer,) = sender.send([one], box.dicom_port)
    assert answer.status == 0
    assert len(box.objects()) == 1


def test_a_line_that_breaks_inside_a_data_set_leaves_nothing(box: Box):
    one = made.ct(side=1500)
    with sender.association(box.dicom_port, [(one.sop_class, one.transfer_syntax)]) as assoc:
        sender.begin(assoc, one, 0.6)
        until(box.objects, "a half-written object")
        assoc.abort()
    until(lambda: not box.objects(), "the half-written object is gone")
    assert contract.fsck(box).clean


def test_killed_before_the_commit_no_orphan_is_left(
    new_box: MakeBox, tmp_path: Path, recorder: RecordingSCP
):
    """The whole object without a row may be made known or removed; it may not stay as it is."""
    box, one = new_box(), made.ct()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    point = Failpoint("ingest.sealed", tmp_path / "point")
    box.start(env=point.env())
    with _stopped_at(box, point, one) as answers:
        assert box.objects(), "the object should be durable by now"
        box.kill()
    assert not any(answer.acknowledged for answer in answers)
    box.start()
    _swept(box)
    report = contract.fsck(box)
    assert report.rows == len(box.objects()) <= 1
    (answer,) = sender.send([one], box.dicom_port)
    assert answer.status == 0
    recorder.wait_for(1)
    assert recorder.by_uid()[one.sop_instance].data == one.data
    assert len(box.objects()) == 1
    stays(lambda: recorder.total_requests == 1, "one C-STORE request", seconds=1)


def test_killed_before_the_answer_the_instance_is_there_once(
    new_box: MakeBox, tmp_path: Path, recorder: RecordingSCP
):
    box, one = new_box(), made.ct()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    point = Failpoint("ingest.committed", tmp_path / "point")
    box.start(env=point.env())
    with _stopped_at(box, point, one) as answers:
        box.kill()
    assert not any(answer.acknowledged for answer in answers)
    box.start()
    _swept(box)
    (answer,) = sender.send([one], box.dicom_port)
    assert answer.status == 0
    recorder.wait_for(1)
    assert recorder.by_uid()[one.sop_instance].data == one.data
    stays(lambda: recorder.total_requests == 1, "one C-STORE request", seconds=1)
    assert len(box.objects()) == 1


def test_killed_while_dropping_a_second_copy_one_is_left(new_box: MakeBox, tmp_path: Path):
    box, one = new_box(), made.ct()
    box.start()
    sender.send([one], box.dicom_port)
    box.stop()
    (kept,) = box.objects()
    point = Failpoint("ingest.committed", tmp_path / "point")
    box.start(env=point.env())
    with _stopped_at(box, point, one):
        assert len(box.objects()) == 2
        box.kill()
    box.start()
    _swept(box)
    assert box.objects() == [kept]


@pytest.mark.parametrize(("name", "most"), [("forward.claimed", 1), ("forward.sent", 2)])
def test_killed_while_forwarding_the_instance_arrives(
    new_box: MakeBox, tmp_path: Path, recorder: RecordingSCP, name: str, most: int
):
    box, one = new_box(), made.ct()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    point = Failpoint(name, tmp_path / "point")
    box.start(env=point.env())
    (answer,) = sender.send([one], box.dicom_port)
    assert answer.status == 0
    point.reached()
    box.kill()
    box.start()
    until(lambda: contract.queue_states(box)["sent"] == 1, "the delivery is sent", seconds=60)
    assert {got.sop_instance: got.data for got in recorder.accepted()} == {
        one.sop_instance: one.data
    }
    assert recorder.total_requests <= most


def test_a_sweep_spares_the_object_another_process_is_about_to_commit(
    new_box: MakeBox, tmp_path: Path, recorder: RecordingSCP
):
    box, one = new_box(), made.ct()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    point = Failpoint("ingest.sealed", tmp_path / "point")
    box.start(env=point.env())
    with _stopped_at(box, point, one) as answers:
        sealed = box.objects()
        assert len(sealed) == 1
        for options in contract.SWEEPS:
            box.run("fsck", *options, check=False)
            assert box.objects() == sealed
        point.release()
    assert answers[0].status == 0
    recorder.wait_for(1)
    assert recorder.by_uid()[one.sop_instance].data == one.data
    assert contract.fsck(box).clean


def _stray_copy(objects: list[Path]) -> None:
    name = objects[0].name
    other = "0" if name[-1] != "0" else "1"
    shutil.copy(objects[0], objects[0].with_name(name[:-1] + other))


def _flip(where: float) -> Callable[[list[Path]], None]:
    return lambda objects: fault.flip_bit(
        objects[0], min(int(where * objects[0].stat().st_size), objects[0].stat().st_size - 1)
    )


_DAMAGES: dict[str, tuple[str, Callable[[list[Path]], None]]] = {
    "removed": ("missing", lambda objects: objects[0].unlink()),
    "first bit flipped": ("broken", _flip(0.0)),
    "bit in the header flipped": ("broken", lambda objects: fault.flip_bit(objects[0], 9)),
    "bit in a wrapped key flipped": ("broken", lambda objects: fault.flip_bit(objects[0], 60)),
    "bit in the middle flipped": ("broken", _flip(0.5)),
    "last bit flipped": ("broken", _flip(1.0)),
    "one byte short": ("broken", lambda objects: fault.truncate(objects[0], -1)),
    "cut in half": (
        "broken",
        lambda objects: fault.truncate(objects[0], objects[0].stat().st_size // 2),
    ),
    "emptied": ("broken", lambda objects: fault.truncate(objects[0], 0)),
    "bytes appended": (
        "broken",
        lambda objects: objects[0].write_bytes(objects[0].read_bytes() + b"\0" * 16),
    ),
    "two swapped": ("broken", lambda objects: fault.swap(objects[0], objects[1])),
    "stray object": ("orphans", _stray_copy),
}


def test_fsck_finds_every_kind_of_damage(box: Box, tmp_path: Path):
    sender.send([made.ct(side=side) for side in (128, 300, 700)], box.dicom_port)
    box.stop()
    assert contract.fsck(box).clean
    kept = tmp_path / "kept"
    shutil.copytree(box.data / "objects", kept)
    for name, (expected, damage) in _DAMAGES.items():
        damage(box.objects())
        report = contract.fsck(box)
        assert not report.clean, name
        assert set(report.kinds()) == {expected}, (name, report.problems)
        assert report.kinds().total() == (2 if name == "two swapped" else 1), name
        shutil.rmtree(box.data / "objects")
        shutil.copytree(kept, box.data / "objects")
    assert contract.fsck(box).clean


def test_fsck_finds_a_file_that_is_no_object(box: Box):
    """Whatever lies in the vault is a row's object or a finding."""
    sender.send([made.ct()], box.dicom_port)
    box.stop()
    (box.objects()[0].parent / "forgotten.tmp").write_bytes(b"x" * 100)
    assert not contract.fsck(box).clean


def test_fsck_finds_any_flipped_bit(box: Box):
    """Every byte of a small object in the soak, a seeded choice of them else."""
    sender.send([made.ct()], box.dicom_port)
    box.stop()
    (path,) = box.objects()
    chance = random.Random(corpus.SEED)
    size = path.stat().st_size
    for offset in chance.sample(range(size), corpus.count(6, 400)):
        fault.flip_bit(path, offset)
        assert not contract.fsck(box).clean, f"a flipped bit at {offset} of {size} passed"
        fault.flip_bit(path, offset)
    assert contract.fsck(box).clean
