"""Must show 2, 3 and 8: thin lines are used in full, and broken ones cost as little as may be."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from harness import corpus, made, outbox, sender
from harness.box import Box
from harness.part10 import Part10
from harness.recorder import Commitment, RecordingSCP
from harness.shaper import Shaper
from harness.waiting import stays, until

from edgepacs.model import DeliveryState

pytestmark = pytest.mark.line

MakeBox = Callable[[], Box]

RETURN_SECONDS = 5.0


@contextmanager
def _far(rate: float = 0.0, round_trip: float = 0.0) -> Iterator[tuple[RecordingSCP, Shaper]]:
    """A central PACS with all it may offer, behind a line."""
    scp = RecordingSCP("CENTRAL")
    scp.behaviour.commitment, scp.behaviour.queries = Commitment.SAME, True
    with scp, Shaper(scp.port, rate=rate, round_trip=round_trip) as line:
        yield scp, line


def _loaded(new_box: MakeBox, line: Shaper, instances: list[Part10]) -> Box:
    """A running node that has them all, for a line that is down."""
    line.refuse()
    box = new_box()
    box.compress(0)  # what is counted are the bytes as they are
    box.send_to("central", ae="CENTRAL", port=line.port)
    box.start()
    assert all(one.acknowledged for one in sender.send(instances, box.dicom_port))
    return box


def _noise(count: int, side: int) -> list[Part10]:
    study, series = made.new_uid(), made.new_uid()
    return [made.ct(study=study, series=series, number=n, side=side) for n in range(count)]


_LINES = [(2e6, 0.12), (384e3, 0.715), (20e6, 0.04)]


@pytest.mark.parametrize(("rate", "round_trip"), _LINES[: corpus.count(1, 3)])
def test_a_thin_line_is_used_in_full(new_box: MakeBox, rate: float, round_trip: float):
    """TCP payload from first to last byte, commitment included; a short run has a start to pay."""
    seconds = corpus.count(15, 60)
    side = 500 if rate > 1e7 else 300 if rate > 1e6 else 128
    count = int(seconds * rate / 8 / (2 * side * side)) + 1
    with _far(rate, round_trip) as (scp, line):
        box = _loaded(new_box, line, _noise(count, side))
        line.up()
        until(lambda: len(scp.confirmed) == count, "all committed", seconds=4 * seconds)
        share = line.share()
        assert share >= (0.95 if corpus.soak() else 0.85), f"{share:.3f} of the line"
        assert scp.repeats().total() == 0
        outbox.until_all(box, outbox.PROVED, seconds=30)


def test_what_never_fits_between_two_cuts_holds_up_nobody(new_box: MakeBox):
    """Scaled in time alone: an object takes five times as long as the line ever holds."""
    scale = corpus.count(10, 1)
    rate, every = 384e3 * scale, 20.0 / scale
    big, rest = made.ct(side=1600), _noise(corpus.count(12, 60), 128)  # 5.1 MB: 107 s at 384 kbit/s
    with _far(rate, 0.715 / scale) as (scp, line):
        box = _loaded(new_box, line, [big, *rest])
        line.up()
        line.cut_every(every, 200)
        for_rest = sum(len(one.data) for one in rest) * 8 / rate
        until(
            lambda: len(scp.held()) == len(rest),
            "everything but the large one",
            seconds=6 * for_rest + 10 * every + 20,
        )
        waits = outbox.until_entry(
            box,
            lambda one: one.sop_instance == big.sop_instance and "unbroken line" in one.words,
            "the console says why it waits",
            seconds=20 * every + 60,
        )
        assert waits.state in (DeliveryState.QUEUED, DeliveryState.SENDING)
        for timer in line._timers:
            timer.cancel()
        until(lambda: big.sop_instance in scp.held(), "the large one, at last", seconds=400)
        assert scp.differing([big, *rest]) == []
        assert scp.repeated == []


def test_an_outage_in_the_middle_costs_what_it_lasts(new_box: MakeBox):
    """Must show 8: 20 instances at 2 Mbit/s, the line gone for 10 s, nobody needed."""
    lasts = corpus.count(4, 10)
    instances = _noise(20, 256)
    with _far(2e6, 0.12) as (scp, line):
        _loaded(new_box, line, instances)
        before = len(line.opened)
        line.up()
        until(lambda: len(scp.order) == 11, "the eleventh", seconds=60, every=0.005)
        middle = line.forth.arrived + len(instances[10].data) // 2
        until(lambda: line.forth.arrived >= middle, "its middle", seconds=60, every=0.005)
        line.refuse()
        line.after(lasts, line.up)
        until(lambda: len(scp.held()) == 20, "all of them", seconds=90, every=0.005)
        size = sum(len(one.data) for one in instances)
        late = max(one.at for one in scp.accepted()) - line.optimum(line.opened[before], size)
        assert late <= 2.0, f"{late:.1f} s over the optimum"
        assert scp.differing(instances) == []
        # Where a busy machine lets the outage come late, it meets the tail of one and the next.
        assert scp.repeats().total() <= corpus.count(2, 1), scp.repeats()


@pytest.mark.parametrize("kind", ["refuse", "silence", "lose"])
def test_a_line_that_returns_is_used_within_five_seconds(new_box: MakeBox, kind: str):
    with _far(2e6, 0.04) as (scp, line):
        box = _loaded(new_box, line, _noise(2, 128))
        line.up()
        until(lambda: len(scp.confirmed) == 2, "both committed", seconds=30)
        getattr(line, kind)()
        # An association that idles is given up meanwhile; one that dies at work is another test's.
        stays(lambda: scp.total_requests == 2, "nothing arrives", seconds=4)
        sender.send([made.ct()], box.dicom_port)
        stays(lambda: scp.total_requests == 2, "nothing arrives", seconds=corpus.count(6, 100))
        begun = time.monotonic()
        line.up()
        until(lambda: scp.total_requests == 3, "the next", seconds=60, every=0.005)
        assert time.monotonic() - begun <= RETURN_SECONDS
        outbox.until_all(box, outbox.PROVED, seconds=60)
        assert scp.repeats().total() == 0


def test_a_line_lost_inside_an_instance_is_noticed(new_box: MakeBox):
    """Half open: neither end is told. It is sent again on a new association, and once."""
    with _far(1e6, 0.04) as (scp, line):
        box = _loaded(new_box, line, [made.ct(side=700)])
        line.up()
        until(lambda: scp.total_requests == 1 and line.forth.arrived > 200_000, "its middle")
        line.lose()
        line.up()
        until(lambda: len(scp.held()) == 1, "it, all the same", seconds=150)
        assert scp.repeats().total() == 1
        outbox.until_all(box, outbox.PROVED, seconds=60)
