"""Must show 5: processes killed at any moment while two destinations are served."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from harness import corpus, made, outbox, sender
from harness.box import Box
from harness.part10 import Part10
from harness.recorder import Commitment, RecordingSCP
from harness.waiting import until

pytestmark = pytest.mark.line

MakeBox = Callable[[], Box]

_EACH = 12  # instances between two kills
_LANES = 4  # associations that may break off at once


def _kill_one(box: Box, chance: random.Random) -> None:
    """One process at once, and all that are left a moment later, or all at once."""
    if chance.random() < 0.7:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(box.pids()), signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 0.5))
    box.kill()


def test_killed_at_any_moment_both_far_ends_hold_everything_once(new_box: MakeBox, tmp_path: Path):
    chance = random.Random(corpus.SEED)
    box, kills = new_box(), corpus.count(10, 200)
    far = [RecordingSCP(title, log=tmp_path / title) for title in ("NORTH", "SOUTH")]
    for scp in far:
        scp.behaviour.commitment, scp.behaviour.queries = Commitment.SAME, True
        scp.behaviour.delay_seconds = 0.02
        box.send_to(scp.ae_title.lower(), ae=scp.ae_title, port=scp.port)
    sent: list[Part10] = []
    with far[0], far[1]:
        for _ in range(kills):
            box.start()
            some = [made.ct(number=n, side=chance.choice((128, 256))) for n in range(_EACH)]
            assert all(one.acknowledged for one in sender.send(some, box.dicom_port))
            sent += some
            time.sleep(chance.uniform(0.0, 0.6))  # the random moment itself
            _kill_one(box, chance)
        box.start()
        for scp in far:
            scp.wait_for(len(sent), seconds=300)
        outbox.until_all(box, outbox.PROVED, seconds=300)
    for scp in far:
        assert scp.held() == {one.sop_instance for one in sent}
        assert scp.differing(sent) == []
        assert scp.repeated == [], f"{scp.ae_title}: a confirmed instance was sent again"
        assert max(scp.repeats().values(), default=0) <= kills
        assert scp.repeats().total() <= _LANES * kills, f"{scp.repeats().total()} repeats"
        assert not scp.faults


def test_one_process_killed_is_back_by_itself(new_box: MakeBox, recorder: RecordingSCP):
    """The sender alone dies; nobody starts anything, and what was queued arrives."""
    recorder.behaviour.commitment, recorder.behaviour.queries = Commitment.SAME, True
    recorder.behaviour.delay_seconds = 0.2
    box = new_box()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    box.start()
    instances = [made.ct(number=n) for n in range(10)]
    sender.send(instances, box.dicom_port)
    until(lambda: recorder.total_requests >= 3, "some")
    (forward,) = [pid for pid in box.pids() if _role(pid) == "forward"]
    os.kill(forward, signal.SIGKILL)
    recorder.wait_for(10, seconds=60)
    outbox.until_all(box, outbox.PROVED, seconds=60)
    assert recorder.repeated == []
    assert recorder.repeats().total() <= _LANES


def _role(pid: int) -> str:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2].decode()
    return ""
