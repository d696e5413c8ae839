"""A receiver that is killed, or runs out of descriptors, file size or memory."""

import itertools
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from faults.node import (
    SOAK,
    MakeNode,
    Tally,
    associate,
    intact,
    modalities,
    seconds_until,
    store,
    stores,
)
from faults.syscalls import Call, Deed, Part
from harness import corpus, made
from harness.box import Box
from harness.part10 import Part10
from harness.waiting import until

from edgepacs.errors import PeerError

MakeBox = Callable[[], Box]

_MOMENTS = [
    (Deed.WRITE, Part.OBJECT),
    (Deed.SYNC, Part.OBJECT),
    (Deed.WRITE, Part.KEYSTORE),
    (Deed.SYNC, Part.KEYSTORE),
    (Deed.WRITE, Part.LOG),
    (Deed.SYNC, Part.LOG),
    (Deed.CREATE, Part.OBJECT),
    (Deed.SYNC, Part.FOLDER),
]


def _kill_at(deed: Deed, part: Part, number: int) -> Callable[[Call], int]:
    """Kill the process that makes the call of that number before it happens."""
    seen = itertools.count(1)

    def rule(call: Call) -> int:
        if (call.deed, call.part) == (deed, part) and next(seen) == number:
            os.kill(call.process, signal.SIGKILL)
        return 0

    return rule


def test_killed_at_any_call_while_four_send(new_box: MakeBox, running: MakeNode) -> None:
    """What the kernel does when memory is short, at the worst moments."""
    chance = random.Random(corpus.SEED)
    box = new_box()
    moments = _MOMENTS * 25 if corpus.soak() else chance.sample(_MOMENTS, 2)
    sizes = itertools.cycle((128, 128, 300))
    with modalities(box, 4, lambda: made.ct(side=next(sizes))) as tally:
        for deed, part in moments:
            node = running(box).start()
            _count_grows(tally, 1)
            with node.storage.ruled(_kill_at(deed, part, chance.randint(1, 12))):
                assert node.ended() == -signal.SIGKILL
        node = running(box).start()
        _count_grows(tally, 4)
    assert not tally.refused
    assert node.stop() == 0
    intact(box, tally.acknowledged)


@SOAK
def test_killed_under_serve_the_receiver_comes_back_by_itself(
    new_box: MakeBox, running: MakeNode
) -> None:
    box = new_box()
    node = running(box).start("serve")
    with modalities(box, 4) as tally:
        until(lambda: len(tally.acknowledged) > 8, "instances are stored")
        receiver = node.receiver()
        receiver.kill()
        receiver.wait(10)
        known = len(tally.acknowledged)
        back = seconds_until(lambda: len(tally.acknowledged) > known + 4, "service is back")
    print(f"back after {back:.1f} s")
    assert back < 8
    assert not tally.refused
    intact(box, tally.acknowledged)


@contextmanager
def _limited(pid: int, kind: int, most: int) -> Iterator[None]:
    """A soft limit on a running process."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (most, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


def test_without_descriptors_it_answers_or_refuses_and_recovers(
    new_box: MakeBox, running: MakeNode
) -> None:
    box = new_box()
    node, first = running(box).start(), made.ct()
    pid, acknowledged, study = node.receiver().pid, dict[str, bytes](), _study(first)
    with associate(box) as association:
        assert store(association, first).status == 0
        with _limited(pid, resource.RLIMIT_NOFILE, 4):  # below the lowest that is free
            for number in range(150):  # blanks are open already; then there are none
                one = made.ct(study=study if number % 2 else "")
                answer = store(association, one)
                if answer.status == 0:
                    acknowledged[one.sop_instance] = one.data
                else:
                    assert answer.out_of_resources, answer
                    assert answer.comment
            assert answer.status
            with suppress(PeerError):
                stores(box, made.ct())
        assert store(association, one).status == 0
        acknowledged[one.sop_instance] = one.data
    assert stores(box, one).status == 0
    assert node.receiver().pid == pid
    intact(box, acknowledged)


def _study(one: Part10) -> str:
    return str(one.dataset().StudyInstanceUID)


def test_an_object_larger_than_a_file_may_be_is_refused(
    new_box: MakeBox, running: MakeNode
) -> None:
    box = new_box()
    node, small = running(box).start(), made.ct()
    pid, huge = node.receiver().pid, made.ct(side=2600)  # 13.5 MB
    with associate(box) as association:
        with _limited(pid, resource.RLIMIT_FSIZE, 8 << 20):
            assert store(association, huge).out_of_resources
            assert store(association, small).status == 0
        assert store(association, huge).status == 0
    assert node.receiver().pid == pid
    intact(box, {one.sop_instance: one.data for one in (huge, small)})


def _mapped(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


@pytest.mark.xfail(reason="Python may wait for ever for a thread that died at birth", strict=False)
def test_without_memory_for_a_thread_the_others_go_on(new_box: MakeBox, running: MakeNode) -> None:
    """Python's Thread.start raises, or waits for ever where the new thread finds no memory."""
    box = new_box()
    node, acknowledged = running(box).start(), dict[str, bytes]()
    pid = node.receiver().pid
    with associate(box) as association:
        with (
            _limited(pid, resource.RLIMIT_AS, _mapped(pid)),
            modalities(box, 6, lambda: made.ct(side=900)) as more,
        ):
            until(lambda: more.failed > 6, "associations cannot be had", seconds=4)
            for _ in range(10):
                one = made.ct()
                if store(association, one).status == 0:
                    acknowledged[one.sop_instance] = one.data
        assert store(association, one).status == 0
    assert node.receiver().pid == pid
    assert stores(box, one).status == 0
    assert node.stop() == 0
    intact(box, acknowledged | more.acknowledged)


@SOAK
def test_without_memory_nothing_acknowledged_is_lost(new_box: MakeBox, running: MakeNode) -> None:
    """An association may fail for it; the receiver lives on or is started again."""
    box = new_box()
    node = running(box).start("serve")
    with modalities(box, 3, lambda: made.ct(side=900)) as tally:
        for spare in range(16, 16 + 12):
            _count_grows(tally, 8)
            pid = node.receiver().pid
            with (
                _limited(pid, resource.RLIMIT_AS, _mapped(pid) + (spare << 20)),
                modalities(box, 8, lambda: made.ct(side=1800)) as more,
            ):
                _count_fails(more, 8)
            _count_grows(tally, 8)
            assert all(answer.out_of_resources for answer in more.refused)
            tally.acknowledged |= more.acknowledged
    assert all(answer.out_of_resources for answer in tally.refused)
    intact(box, tally.acknowledged)


def _count_fails(tally: Tally, most: int) -> None:
    until(lambda: tally.failed > most, "associations fail for want of memory")


def _count_grows(tally: Tally, more: int) -> None:
    wanted = len(tally.acknowledged) + more
    until(lambda: len(tally.acknowledged) >= wanted, f"{more} more are stored")
