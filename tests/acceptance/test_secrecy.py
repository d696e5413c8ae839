"""Must show 4: no plaintext in any file, argument or log; nothing damaged is shown or sent."""

import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness import compare, contract, corpus, fault, made, part10, sender, trace
from harness.box import Box, scanned
from harness.browser import Browser, Page
from harness.canary import Canaries, Searcher
from harness.fault import Failpoint
from harness.recorder import RecordingSCP
from harness.sender import Rejected
from harness.waiting import until

MakeBox = Callable[[], Box]
_OVER_TWO_MIB = 1100  # pixels a side, 16 bits each: 2.3 MiB


@contextmanager
def _watched(box: Box, searcher: Searcher) -> Iterator[list[str]]:
    """Meanwhile the arguments and environments of all processes of the node are searched."""
    hits: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            hits.extend(searcher.in_processes(box.pids()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield hits
    finally:
        over.set()
        thread.join()


def _upload(box: Box, token: str, body: bytes) -> Page:
    return box.browser(token=token).request(
        "POST", "/import", body=body, headers={"Content-Type": "application/dicom"}
    )


def _refused_things(box: Box, marks: Canaries, token: str) -> None:
    """What the node has to turn away, and so to speak about, without saying whose it is."""
    one = made.marked(marks)
    nameless = one.dataset()
    del nameless.StudyInstanceUID
    broken = [
        replace(one, data=part10.encode(nameless, one.transfer_syntax)),
        replace(one, sop_instance=made.new_uid()),
        replace(one, data=one.data[:700]),
    ]
    assert not any(answer.acknowledged for answer in sender.send(broken, box.dicom_port))
    with pytest.raises(Rejected), sender.association(box.dicom_port, calling="STRANGER"):
        pass
    assert _upload(box, token, one.file()[:700]).status >= 400
    assert _upload(box, token, marks.patient_id.encode() * 100).status >= 400
    browser = box.login()
    for path in (f"/{marks.patient_id}", f"/?q={marks.family_name}", f"/studies/{marks.study_uid}"):
        browser.get(path)


@pytest.mark.peers
def test_no_mark_is_ever_written_to_a_file(
    new_box: MakeBox, recorder: RecordingSCP, tmp_path: Path
):
    stored, large, uploaded, turned_away = marks = [Canaries.fresh() for _ in range(4)]
    searcher = Searcher(marks)
    box = new_box()
    box.compress(1)
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    token = contract.token(box, "technologist")
    prefix = tmp_path / "trace"
    box.start(traced=prefix)
    instances = [made.marked(stored), made.marked(large, side=_OVER_TWO_MIB)]
    upload = made.marked(uploaded, side=_OVER_TWO_MIB)
    with _watched(box, searcher) as in_processes:
        assert all(answer.acknowledged for answer in sender.send(instances, box.dicom_port))
        assert _upload(box, token, upload.file()).status in (200, 201, 202)
        recorder.wait_for(3, seconds=90)
        pages = box.login().walk()
        _refused_things(box, turned_away, token)
    assert in_processes == []
    _shown(pages, marks[:3])
    got = recorder.by_uid()
    assert not [
        found
        for one in (*instances, upload)
        if (found := compare.arrived(one, got[one.sop_instance]))
    ]
    stand = "every instance is compressed"
    until(lambda: _compressed(box) == 3, stand, seconds=60)  # what the workers write is traced too
    assert searcher.in_files(scanned([box])) == []  # the WAL index among them, while it is there
    box.stop()

    finding = trace.search(prefix, searcher)
    assert finding.hits == []
    assert finding.opaque == []
    assert finding.bytes_written > sum(len(one.data) for one in (*instances, upload))
    assert any("/objects/" in path for path in finding.paths)
    allowed = (f"{box.directory}/", str(box.log))
    others = {path for path in finding.paths if not path.startswith(allowed)}
    others = {path for path in others if not re.fullmatch(r"/proc/\d+/oom_score_adj", path)}
    assert others == set()  # the kernel is told whom to end first: that is no file on a disk
    assert searcher.in_files(scanned([box])) == []


def _compressed(box: Box) -> int:
    stand = box.cli("compression", "status")["stand"]
    return sum(one["instances"] for one in stand if one["state"] == "compressed")


def _shown(pages: list[Page], marks: list[Canaries]) -> None:
    """The control: the marks did reach the person who may see them, and so did the pixels."""
    text = "".join(page.text() for page in pages if page.kind == "text/html")
    for one in marks:
        assert one.family_name in text
        assert one.study_description in text
    assert len(_frames(pages)) >= len(marks)


def _frames(pages: list[Page]) -> list[str]:
    """The paths that answered with a rendered frame."""
    return [
        page.path
        for page in pages
        if page.status == 200 and page.kind in ("image/jpeg", "image/png") and _served(page.path)
    ]


def _served(path: str) -> bool:
    return not path.startswith(("/static", "/assets")) and "icon" not in path


@pytest.mark.peers
@pytest.mark.parametrize("command", [("fsck",), ("queue", "list"), ("rebuild",)])
def test_commands_write_no_mark_either(new_box: MakeBox, tmp_path: Path, command: tuple[str, ...]):
    marks = Canaries.fresh()
    searcher = Searcher([marks])
    box = new_box()
    box.start()
    sender.send([made.marked(marks)], box.dicom_port)
    box.stop()
    if command == ("rebuild",):
        contract.delete_index(box)
    prefix = tmp_path / "trace"
    contract.run_traced(box, trace.command(prefix), *command)
    finding = trace.search(prefix, searcher)
    assert (finding.hits, finding.opaque) == ([], [])
    assert searcher.in_files(scanned([box])) == []


@pytest.mark.parametrize("name", ["ingest.sealed", "ingest.committed"])
def test_a_killed_node_leaves_no_mark_on_the_disk(new_box: MakeBox, tmp_path: Path, name: str):
    marks = Canaries.fresh()
    searcher = Searcher([marks])
    box = new_box()
    point = Failpoint(name, tmp_path / "point")
    box.start(env=point.env())
    one = made.marked(marks, side=700)
    thread = threading.Thread(target=sender.send, args=([one], box.dicom_port), daemon=True)
    thread.start()
    point.reached()
    assert searcher.in_files(scanned([box])) == []
    box.kill()
    thread.join(60)
    assert searcher.in_files(scanned([box])) == []


def _flip(pair: list[Path]) -> None:
    for number, path in enumerate(pair):
        chance = random.Random(corpus.SEED + number)
        fault.flip_bit(path, chance.randrange(path.stat().st_size))


def _shorten(pair: list[Path]) -> None:
    for path in pair:
        fault.truncate(path, -100)


def _halve(pair: list[Path]) -> None:
    for path in pair:
        fault.truncate(path, path.stat().st_size // 2)


def _remove(pair: list[Path]) -> None:
    for path in pair:
        path.unlink()


_DAMAGE: dict[str, Callable[[list[Path]], None]] = {
    "flipped": _flip,
    "swapped": lambda pair: fault.swap(*pair),
    "truncated": _shorten,
    "cut in half": _halve,
    "removed": _remove,
}


def _stored(box: Box, sides: tuple[int, ...]) -> list[Path]:
    """The objects of new instances of these sizes."""
    before = set(box.objects())
    answers = sender.send([made.ct(side=side) for side in sides], box.dicom_port)
    assert all(answer.acknowledged for answer in answers)
    return [path for path in box.objects() if path not in before]


def test_nothing_damaged_is_shown_or_sent(new_box: MakeBox):
    box, recorder = new_box(), RecordingSCP()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    box.start()
    pairs = {name: _stored(box, (512, 600)) for name in _DAMAGE}
    victims = 2 * len(pairs)
    frames = _frames(box.login().walk())
    assert len(frames) >= victims, "not every instance was shown before the damage"
    box.stop()  # so that nothing comes out of a memory that was read before
    for name, pair in pairs.items():
        assert len(pair) == 2
        _DAMAGE[name](pair)
    box.start()
    good = made.ct()
    sender.send([good], box.dicom_port)

    browser: Browser = box.login()
    answers = [browser.get(path) for path in frames]
    assert not [page.path for page in answers if page.status == 200]
    with recorder:
        recorder.wait_for(1)
        failed = lambda: contract.queue_states(box)["failed"]  # noqa: E731
        until(lambda: failed() == victims, "a failed delivery for each")
    assert [got.sop_instance for got in recorder.received] == [good.sop_instance]
    report = contract.fsck(box)
    assert report.kinds() == {"broken": victims - 2, "missing": 2}
    assert report.verified == 1


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_what_was_damaged_and_is_sent_again_is_whole_again(box: Box, damage: str):
    """Success says that this instance is durable now; the modality may delete its own copy."""
    recorder = RecordingSCP()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    one = made.ct()
    sender.send([one], box.dicom_port)
    _DAMAGE[damage](box.objects())
    (answer,) = sender.send([one], box.dicom_port)
    if answer.acknowledged:
        assert contract.fsck(box).verified == 1
        with recorder:
            recorder.wait_for(1)
            assert recorder.by_uid()[one.sop_instance].data == one.data
