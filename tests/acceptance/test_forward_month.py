"""Must show 1: a month without a line, restarts and crashes in it, and nothing is lost or doubled.

The clocks of the node are moved (`harness.almanac`); its processes, crashes and sockets are real,
and so are the power cuts, where a loop device can be had (`powercut.disk`); else they are kills.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import corpus, made, outbox, sender
from harness.almanac import Almanac
from harness.box import Box
from harness.part10 import Part10
from harness.recorder import Commitment, RecordingSCP
from harness.waiting import until
from powercut import disk, node

from edgepacs.model import DeliveryState

pytestmark = pytest.mark.line

MakeBox = Callable[[], Box]

DAYS = 30
RETURN_SECONDS = 5.0  # from the line's return to the first C-STORE
_STATION = "URGENT"


def _instances(count: int) -> list[Part10]:
    """Every fifth comes from the station whose images go first."""
    some = []
    for number in range(count):
        dataset = made.ct(number=number).dataset()
        dataset.StationName = _STATION if number % 5 == 4 else "ROUTINE"
        some.append(made.instance(dataset))
    return some


class Ground:
    """Where a node stands, and the ways it is stopped there."""

    def __init__(self, folder: Path, template: Box, stack: ExitStack) -> None:
        self._power: disk.Disk | None = None
        if not disk.unavailable(folder / "probe"):
            self._power = stack.enter_context(
                disk.Disk(folder / "power", mib=corpus.count(1024, 8192))
            )
        where = self._power.at if self._power else folder
        self.box = stack.enter_context(Box.copied(template, where / "node"))
        if self._power:
            self._power.sync()
        self.cuts = 0

    def cut(self) -> None:
        """The power goes, and comes back."""
        if self._power is not None:
            node.stop([self.box.group])  # nobody is left to read what an fsync answers
            self._power.cut()
        self.box.kill()
        if self._power is not None:
            self._power.replay()
        self.cuts += 1


@pytest.fixture
def ground(template: Box, tmp_path: Path) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(tmp_path, template, stack)


def test_a_month_offline_costs_nothing(ground: Ground, tmp_path: Path):
    chance = random.Random(corpus.SEED)
    almanac = Almanac(tmp_path / "clock")
    box = ground.box
    recorder = RecordingSCP("CENTRAL", digests=True, log=tmp_path / "log")
    recorder.behaviour.commitment, recorder.behaviour.queries = Commitment.SAME, True
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    box.cli("rule", "add", "--to", "central")
    box.cli("rule", "add", "--to", "central", "--match", f"station={_STATION}", "--priority", "50")
    instances = _instances(corpus.count(60, 20_000))
    restarts = corpus.count(4, 50)
    share = len(instances) // restarts + 1
    for number in range(restarts):
        box.start(env=almanac.env())
        some = instances[number * share : (number + 1) * share]
        assert all(one.acknowledged for one in sender.send(some, box.dicom_port))
        almanac.pass_(days=DAYS / restarts)
        chance.choice((ground.cut, box.kill, box.stop))()
    box.start(env=almanac.env())
    assert outbox.states(box) == {DeliveryState.QUEUED: len(instances)}
    assert all(one.attempts == 0 for one in outbox.entries(box)), "an outage costs no attempts"

    crashes = corpus.count(3, 20)
    begun = time.monotonic()
    with recorder:
        until(lambda: recorder.total_requests, "the first C-STORE", seconds=60, every=0.005)
        assert time.monotonic() - begun <= RETURN_SECONDS
        for number in range(1, crashes + 1):
            enough = number * len(instances) // (crashes + 2)
            until(lambda enough=enough: len(recorder.held()) >= enough, "a part", seconds=600)
            chance.choice((ground.cut, box.kill))()
            box.start(env=almanac.env())
        recorder.wait_for(len(instances), seconds=1200)
        outbox.until_all(box, outbox.PROVED, seconds=300)
    assert recorder.differing(instances) == []
    assert recorder.repeated == [], "a confirmed instance was sent again"
    assert max(recorder.repeats().values(), default=0) <= crashes
    assert recorder.repeats().total() <= 4 * crashes, "more than what was under way was repeated"
    assert not recorder.faults
    _urgent_first(recorder, instances)


def _urgent_first(recorder: RecordingSCP, instances: list[Part10]) -> None:
    """Urgent ones all came before the last few of the routine ones that shared their start."""
    urgent = {one.sop_instance for one in instances[4::5]}
    first = list(dict.fromkeys(recorder.order))
    last_urgent = max(first.index(uid) for uid in urgent)
    early = [uid for uid in first[:last_urgent] if uid not in urgent]
    # Against starvation the oldest has a turn now and then: `desk.OLDEST_EVERY`.
    assert len(early) <= max(16, len(urgent) // 2), f"{len(early)} routine ones went before"


def test_a_clock_that_jumps_upsets_nothing(new_box: MakeBox, tmp_path: Path):
    """Years forwards and back while the line is down; the drain begins within 5 s all the same."""
    almanac = Almanac(tmp_path / "clock")
    box, recorder = new_box(), RecordingSCP("CENTRAL")
    recorder.behaviour.commitment = Commitment.SAME
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    box.start(env=almanac.env())
    instances = [made.ct(number=number) for number in range(3)]
    for one, seconds in zip(instances, (3e8, -6e8, 3e8), strict=True):
        sender.send([one], box.dicom_port)
        almanac.set_wrong(seconds=seconds)
    begun = time.monotonic()
    with recorder:
        until(lambda: recorder.total_requests, "the first C-STORE", seconds=30, every=0.005)
        assert time.monotonic() - begun <= RETURN_SECONDS
        almanac.set_wrong(seconds=-2e8)
        outbox.until_all(box, outbox.PROVED, seconds=60)
    assert recorder.repeats().total() == 0
