"""A full disk: A700 to the modality, what was acknowledged is intact, service returns by itself.

PS3.4 B.2.3: A7xx, refused, out of resources.
"""

import errno
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.disks import Ext4, SmallDisk, Tmpfs
from faults.node import (
    SOAK,
    Answer,
    MakeNode,
    associate,
    intact,
    modalities,
    seconds_until,
    store,
    stores,
    tidy,
    upload,
)
from faults.syscalls import Call, Deed, Part, Record, Trap
from harness import contract, corpus, made
from harness.box import Box
from harness.browser import Browser
from harness.waiting import until

from edgepacs.errors import NoRoom

_MIB = 1 << 20


def test_below_the_reserve_it_is_refused_and_the_association_lives_on(
    ext4: Ext4, template: Box, running: MakeNode
) -> None:
    box = ext4.node(template, reserve_mib=8)
    node, one = running(box).start(), made.ct()
    pid = node.receiver().pid
    with associate(box) as association:
        assert store(association, made.ct()).status == 0
        ext4.fill(but=7 * _MIB)
        for _ in range(3):
            answer = store(association, one)
            assert answer.status == 0xA700
            assert "reserve" in answer.comment
        assert association.is_open
        ext4.free()
        assert store(association, one).status == 0
    assert node.receiver().pid == pid
    intact(box, {one.sop_instance: one.data})
    tidy(box)


def test_one_large_instance_does_not_eat_the_reserve(
    tmpfs: Tmpfs, template: Box, running: MakeNode
) -> None:
    """The reserve is the index's and the console's; 4 MiB is what may pass between two looks."""
    box, free = tmpfs.node(template, reserve_mib=8), list[int]()
    node = running(box).start()

    def look(call: Call) -> int:
        if (call.deed, call.part) == (Deed.WRITE, Part.OBJECT):
            stat = os.statvfs(tmpfs.at)
            free.append(stat.f_bavail * stat.f_frsize)
        return 0

    with node.storage.ruled(look):
        assert stores(box, made.ct(side=3600)).out_of_resources  # 26 MB
    assert min(free) >= 4 * _MIB
    assert stores(box, made.ct()).status == 0
    tidy(box)


@pytest.mark.parametrize(
    ("deed", "part", "number"),
    [
        pytest.param(Deed.WRITE, Part.OBJECT, 1, id="the first chunk", marks=SOAK),
        pytest.param(Deed.WRITE, Part.OBJECT, 3, id="a later chunk"),
        pytest.param(Deed.WRITE, Part.KEYSTORE, 1, id="the keystore"),
        pytest.param(Deed.WRITE, Part.LOG, 1, id="the index"),
        pytest.param(Deed.WRITE, Part.LOG, 8, id="the middle of the index", marks=SOAK),
    ],
)
def test_full_in_the_middle_of_an_object(
    ext4: Ext4, template: Box, running: MakeNode, deed: Deed, part: Part, number: int
) -> None:
    """Another program takes the last block while an instance arrives; the reserve is of no use."""
    box = ext4.node(template, reserve_mib=0)
    node = running(box).start()
    pid, before, one = node.receiver().pid, made.ct(), made.ct(side=512)

    def fill(_call: Call) -> int:
        ext4.fill()
        return 0

    trap = Trap(deed, part, first=number, last=number, then=fill)
    with associate(box) as association:
        assert store(association, before).status == 0
        with node.storage.ruled(trap):
            answer = store(association, one)
        assert trap.sprung == 1
        assert answer.out_of_resources, answer
        assert "disk is full" in answer.comment
        for _ in range(3):
            assert store(association, one).out_of_resources
        ext4.free()
        assert store(association, one).status == 0
    assert node.receiver().pid == pid
    intact(box, {both.sop_instance: both.data for both in (before, one)})
    tidy(box)


def test_what_was_refused_for_want_of_room_never_becomes_known(
    new_box: Callable[[], Box], running: MakeNode
) -> None:
    """Killed right after the refusal, so that the index is read from its log: no row is there.

    That is what lets an object be removed at once when SQLite had no room for its row.
    """
    box, acknowledged = new_box(), list[str]()
    writes = _writes_to_the_log(box, running, acknowledged)
    for number in range(1, writes + 1) if corpus.soak() else (writes,):
        node, before = running(box).start(), made.ct()
        trap = Trap(Deed.WRITE, Part.LOG, errno.ENOSPC, first=number, last=number)
        with associate(box) as association:
            assert store(association, before).status == 0
            acknowledged.append(before.sop_instance)
            with node.storage.ruled(trap):
                assert store(association, made.ct()).out_of_resources
            node.kill()
        assert trap.sprung == 1
        rows = contract.listing(box)["instance"]
        assert {row["sop_instance_uid"] for row in rows} == set(acknowledged)
        known = {bytes(row["object_id"]).hex() for row in rows}
        for path in box.objects():
            if path.name not in known:  # else the start would make it known
                path.unlink()


def _writes_to_the_log(box: Box, running: MakeNode, acknowledged: list[str]) -> int:
    """How many writes to the index's log make one instance known."""
    node, record = running(box).start(), Record()
    with associate(box) as association:
        for one, rule in ((made.ct(), Record()), (made.ct(), record)):
            with node.storage.ruled(rule):
                assert store(association, one).status == 0
            acknowledged.append(one.sop_instance)
    node.stop()
    return sum((call.deed, call.part) == (Deed.WRITE, Part.LOG) for call in record.calls)


def test_service_returns_by_itself_to_several_associations(
    ext4: Ext4, template: Box, running: MakeNode
) -> None:
    """The disk fills and is freed again under four modalities that never let go."""
    box = ext4.node(template, reserve_mib=0)
    node = running(box).start()
    pid, returns = node.receiver().pid, []
    with modalities(box, 4, lambda: made.ct(side=200)) as tally:
        for _ in range(corpus.count(3, 30)):
            _count_grows(tally.acknowledged, 8, "instances are stored")
            ext4.fill()
            _count_grows(tally.refused, 12, "modalities are told")
            ext4.free()
            returns.append(_count_grows(tally.acknowledged, 1, "service is back"))
    print(f"{len(tally.refused)} refused, back after {max(returns):.2f} s at most")
    assert tally.unanswered == 0
    assert all(answer.out_of_resources and answer.comment for answer in tally.refused)
    assert tally.associations == 4
    assert node.receiver().pid == pid
    assert max(returns) < 2
    intact(box, tally.acknowledged)


def _count_grows(counted: dict[str, bytes] | list[Answer], more: int, what: str) -> float:
    wanted = len(counted) + more
    return seconds_until(lambda: len(counted) >= wanted, what)


def test_an_instance_larger_than_the_disk_is_refused_and_gone(
    ext4: Ext4, template: Box, running: MakeNode
) -> None:
    box = ext4.node(template, reserve_mib=2)
    node, one, huge = running(box).start(), made.ct(), made.ct(side=5200)  # 54 MB
    pid = node.receiver().pid
    with associate(box) as association:
        assert store(association, huge).out_of_resources
        assert store(association, one).status == 0
    assert node.receiver().pid == pid
    intact(box, {one.sop_instance: one.data})
    tidy(box)


def test_out_of_inodes(mountable: None, tmp_path: Path, template: Box, running: MakeNode) -> None:
    """There is room, and yet no file can be made."""
    with Tmpfs(tmp_path / "small", mib=24, inodes=400) as small:
        box = small.node(template, reserve_mib=0)
        node, acknowledged = running(box).start(), dict[str, bytes]()
        pid = node.receiver().pid
        with associate(box) as association:
            assert store(association, made.ct()).status == 0
            spare = list(_take_inodes(small))
            refused = 0
            for _ in range(200):  # more than there are blanks, which have theirs
                one = made.ct()
                answer = store(association, one)
                if not answer.status:  # also when blanks that could not all be made gave way
                    acknowledged[one.sop_instance] = one.data
                    refused = 0
                    continue
                assert answer.out_of_resources
                refused += 1
                if refused == 3:
                    break
            assert refused == 3
            for path in spare:
                path.unlink()
            assert store(association, one).status == 0
        assert node.receiver().pid == pid
        intact(box, acknowledged | {one.sop_instance: one.data})
        tidy(box)
        node.kill()


def _take_inodes(disk: SmallDisk) -> Iterator[Path]:
    for number in itertools.count():
        path = disk.at / f"spare{number}"
        try:
            path.touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return
        yield path


def test_refused_at_every_call_of_a_store(
    template: Box, new_box: Callable[[], Box], running: MakeNode
) -> None:
    """No room at any one call that touches the disk: an answer, and the next is stored."""
    box = new_box()
    node, acknowledged, found = running(box).start(), dict[str, bytes](), Counter[str]()
    pid = node.receiver().pid
    with associate(box) as association:
        assert store(association, made.ct()).status == 0
        record = Record()
        with node.storage.ruled(record):
            assert store(association, made.ct(side=300)).status == 0
        for deed, part, number in _places(record.calls):
            one = made.ct(side=300)
            # A quota is for users who share a disk; SQLite does not tell it from a broken one.
            error = errno.EDQUOT if number == 1 and part is not Part.LOG else errno.ENOSPC
            trap = Trap(deed, part, error, first=number, last=number)
            with node.storage.ruled(trap):
                answer = store(association, one)
            if not trap.sprung:
                continue
            found[f"{deed} of {part}: {answer.status:04X}"] += 1
            assert answer.out_of_resources, (deed, part, number, answer)
            assert store(association, one).status == 0
            acknowledged[one.sop_instance] = one.data
    print(dict(found))
    assert node.receiver().pid == pid
    assert {f"{deed} of {part}: A700" for deed, part in _FOR_SURE} <= found.keys()
    intact(box, acknowledged)


_FOR_SURE = [
    (Deed.WRITE, Part.OBJECT),
    (Deed.SYNC, Part.OBJECT),
    (Deed.WRITE, Part.KEYSTORE),
    (Deed.WRITE, Part.LOG),
]


def _places(calls: list[Call]) -> Iterator[tuple[Deed, Part, int]]:
    """Each kind of call but the index's sync: the first, a middle and the last, or all in soak."""
    changes = (Deed.WRITE, Deed.SYNC)
    kinds = Counter((call.deed, call.part) for call in calls if call.deed in changes)
    kinds.pop((Deed.SYNC, Part.LOG))  # see test_faults_sync.py
    for (deed, part), times in kinds.items():
        some = {1, times // 2 + 1, times}
        for number in range(1, times + 1) if corpus.soak() else sorted(some):
            yield deed, part, number


def _quarantined(box: Box, running: MakeNode) -> int:
    """Make a second content under a known UID, which waits for a person; its row."""
    one = made.ct(side=256)
    other = made.ct(sop=one.sop_instance, side=512)
    assert [stores(box, again).status for again in (one, other)] == [0, 0]
    running(box).launch("upkeep")
    (waiting,) = until(lambda: box.cli("quarantine", "list"), "it is quarantined", every=0.2)
    return int(waiting["id"])


def test_console_and_commands_work_while_modalities_are_refused(
    tmpfs: Tmpfs, template: Box, running: MakeNode
) -> None:
    """Below the reserve everything else goes on; with no byte left, all that only reads."""
    box = tmpfs.node(template, reserve_mib=8)
    running(box).start()
    number = _quarantined(box, running)
    running(box).launch("web")
    until(lambda: box.browser().healthy(), "the web is up")
    tmpfs.fill(but=6 * _MIB)
    assert stores(box, made.ct()).out_of_resources
    browser, uploader = box.login(), box.browser(token=contract.token(box, "technologist"))
    _reading_works(browser)
    assert upload(uploader, made.ct()) == 507
    box.cli("quarantine", "discard", str(number))
    tmpfs.fill()
    assert stores(box, made.ct()).out_of_resources
    _reading_works(browser)
    for command in (("study", "list"), ("fsck",)):
        box.run(*command)
    assert upload(uploader, made.ct()) == 507
    tmpfs.free()
    assert upload(uploader, made.ct()) == 200
    intact(box, {})
    tidy(box)


def _reading_works(browser: Browser) -> None:
    for path in ("/studies", "/studies/1", "/studies/1.json", "/queue", "/system", "/healthz"):
        assert browser.get(path).status == 200, path
    assert browser.get("/instances/1/file").status == 200


@pytest.mark.xfail(reason="nothing is kept back for acts that make room", strict=True)
def test_room_can_be_made_when_there_is_none_at_all(
    tmpfs: Tmpfs, template: Box, running: MakeNode
) -> None:
    """Another program has taken the last byte: a person logs in and gives something up."""
    box = tmpfs.node(template, reserve_mib=0)
    node = running(box).start()
    number = _quarantined(box, running)
    node.stop()
    running(box).launch("web")
    until(lambda: box.browser().healthy(), "the web is up")
    tmpfs.fill()
    box.login()
    box.cli("quarantine", "discard", str(number))


def test_a_start_on_a_full_disk_is_tried_again_until_there_is_room(
    tmpfs: Tmpfs, template: Box, running: MakeNode
) -> None:
    """A supervisor starts it again after any code but 77 and 78 (systemd/)."""
    box = tmpfs.node(template, reserve_mib=0)
    tmpfs.fill()
    node, one = running(box), made.ct()
    node.launch()
    assert node.ended() == NoRoom.exit_code
    tmpfs.free()
    running(box).start()
    assert stores(box, one).status == 0
    intact(box, {one.sop_instance: one.data})


def test_a_start_on_a_full_disk_says_why_it_fails(
    tmpfs: Tmpfs, template: Box, running: MakeNode
) -> None:
    box = tmpfs.node(template, reserve_mib=0)
    tmpfs.fill()
    node = running(box)
    node.launch()
    node.ended()
    assert "disk is full" in box.log_text()
