"""The harness judged before it judges: each peer and each detector against a known case."""

import base64
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness import compare, corpus, dcmtk, fault, made, part10, sender, trace
from harness.canary import Canaries, Searcher
from harness.orthanc import Orthanc
from harness.recorder import RecordingSCP
from harness.tap import Tap
from harness.waiting import until


def test_sender_and_recorder_keep_every_byte_of_every_transfer_syntax(recorder: RecordingSCP):
    instances = corpus.sample()
    answers = sender.send(instances, recorder.port)
    assert all(answer.acknowledged for answer in answers)
    got = recorder.by_uid()
    for one in instances:
        assert got[one.sop_instance].data == one.data
        assert got[one.sop_instance].transfer_syntax == one.transfer_syntax
    assert recorder.total_requests == len(instances)


def test_recorder_goes_down_and_up_on_the_same_port(recorder: RecordingSCP):
    assert sender.echo(recorder.port)
    recorder.down()
    assert not sender.echo(recorder.port)
    recorder.up()
    assert sender.echo(recorder.port)


def test_recorder_answers_what_it_is_told_and_counts_what_it_cuts(recorder: RecordingSCP):
    one, two, three = (made.ct() for _ in range(3))
    recorder.behaviour.status = lambda order, _uid: 0xA700 if order == 1 else 0
    recorder.behaviour.comment = "no room"
    first, second = sender.send([one, two], recorder.port)
    assert (first.status, first.comment) == (0xA700, "no room")
    assert second.status == 0
    recorder.behaviour.cut_after_bytes, recorder.behaviour.cuts_left = 1000, 1
    (third,) = sender.send([three], recorder.port)
    assert third.status is None
    assert [got.sop_instance for got in recorder.accepted()] == [two.sop_instance]
    assert recorder.total_requests == 3


def test_private_and_unknown_sop_classes_reach_the_recorder(recorder: RecordingSCP):
    odd = []
    for sop_class in ("1.2.3.4.5.6.7", "1.2.840.10008.5.1.4.1.1.999", "1.2.840.10008.5.1.4.39.1"):
        dataset = made.ct().dataset()
        dataset.SOPClassUID = sop_class
        odd.append(made.instance(dataset))
    assert all(answer.acknowledged for answer in sender.send(odd, recorder.port))


@pytest.mark.peers
def test_tap_sees_what_storescu_sends(recorder: RecordingSCP, tmp_path: Path):
    files = [made.ct().write(tmp_path / f"{number}.dcm") for number in range(3)]
    recorder.behaviour.status = lambda order, _uid: 0xA700 if order == 2 else 0
    recorder.behaviour.comment = "no room"
    with Tap(recorder.port) as tap:
        sent = dcmtk.storescu(files, tap.port)
    assert sent.acknowledged == [files[0], files[2]]
    assert [one.status for one in tap.exchanges] == [0, 0xA700, 0]
    assert tap.exchanges[1].comment == "no room"
    for seen, got in zip(tap.exchanges, recorder.received, strict=True):
        assert (seen.data, seen.transfer_syntax) == (got.data, got.transfer_syntax)
        assert seen.calling_ae == "STORESCU"


@pytest.mark.peers
def test_orthanc_tells_what_it_holds_and_keeps_it(tmp_path: Path):
    one = made.ct()
    file = one.write(tmp_path / "one.dcm")
    with Orthanc(tmp_path / "orthanc") as orthanc:
        assert dcmtk.echoscu(orthanc.port) == 0
        assert orthanc.held() == {}
        assert dcmtk.storescu([file], orthanc.port).acknowledged == [file]
        orthanc.stop()
        assert dcmtk.echoscu(orthanc.port) != 0
        orthanc.start()
        assert orthanc.held()[one.sop_instance]["transfer_syntax"] == part10.EXPLICIT_LE


@pytest.mark.parametrize(
    "shape",
    [
        lambda mark: mark,
        lambda mark: mark.lower(),
        lambda mark: mark.hex().encode(),
        lambda mark: mark.decode().encode("utf-16-le"),
        lambda mark: mark.decode().encode("utf-16-be"),
        *(lambda mark, n=n: base64.b64encode(b"x" * n + mark + b"y" * 5) for n in range(4)),
    ],
)
def test_a_planted_mark_is_found_in_every_shape(shape, tmp_path: Path):
    marks = Canaries.fresh()
    searcher = Searcher([marks])
    for name, mark in marks.marks().items():
        if name == "pixels":
            continue
        assert any(hit.startswith(name) for hit in searcher.hits(b"ab" + shape(mark) + b"cd")), name
    (tmp_path / "file").write_bytes(shape(marks.patient_id.encode()))
    assert searcher.in_files([tmp_path])
    assert not Searcher([Canaries.fresh()]).in_files([tmp_path])


def test_marks_stand_in_the_instance_that_carries_them():
    marks = Canaries.fresh()
    found = Searcher([marks]).hits(made.marked(marks).data)
    for name in marks.marks():
        assert any(hit.startswith(f"{name}#0 (plain)") for hit in found), name


def test_marks_in_arguments_and_environment_are_found():
    marks = Canaries.fresh()
    with subprocess.Popen(
        [sys.executable, "-c", "input()", marks.patient_id],
        stdin=subprocess.PIPE,
        env={"MARK": marks.study_uid},
    ) as process:
        searcher = Searcher([marks])
        # The kernel shows the new arguments a moment after exec has closed its descriptors.
        until(
            lambda: {"cmdline", "environ"} <= _places(searcher.in_processes([process.pid])),
            "the marks in arguments and environment",
        )
        process.communicate(b"\n")


def _places(hits: list[str]) -> set[str]:
    return {hit.split()[0] for hit in hits}


_WAYS_OF_WRITING = {
    "write": "os.write(fd, mark)",
    "pwrite": "os.pwrite(fd, mark, 100)",
    "writev": "os.writev(fd, [b'ab', mark])",
    "pwritev": "os.pwritev(fd, [mark], 5)",
    "in two pieces": "os.write(fd, b'x' + mark[:5]); os.write(fd, mark[5:] + b'y')",
    "unlinked name": "os.write(os.open('/tmp', os.O_TMPFILE | os.O_RDWR), mark)",
    "child": "subprocess.run([sys.executable, '-c', 'import os; os.write(%d, %r)' % (fd, mark)],"
    " pass_fds=[fd])",
    "name": "os.mkdir(os.path.join(tempfile.mkdtemp(), mark.decode()))",
    "argument": "subprocess.run(['/bin/true', mark.decode()])",
}
_OPAQUE_WAYS = {
    "mmap": "os.ftruncate(fd, 4096); m = mmap.mmap(fd, 4096); m[:len(mark)] = mark",
    "sendfile": "s = os.memfd_create('s'); os.write(s, b'12345'); os.sendfile(fd, s, 0, 5)",
}


def _traced(code: str, marks: Canaries, tmp_path: Path) -> trace.Finding:
    program = f"""
        import mmap, os, socket, subprocess, sys, tempfile
        mark = sys.stdin.read().encode()
        fd = tempfile.TemporaryFile(dir={str(tmp_path)!r}).fileno()
        {code}
    """
    prefix = tmp_path / "trace"
    subprocess.run(
        [*trace.command(prefix), sys.executable, "-c", textwrap.dedent(program)],
        input=marks.patient_id,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    return trace.search(prefix, Searcher([marks]))


@pytest.mark.peers
@pytest.mark.parametrize("way", _WAYS_OF_WRITING)
def test_trace_catches_a_mark_written(way: str, tmp_path: Path):
    keep = "f = tempfile.TemporaryFile(); fd = f.fileno(); "
    finding = _traced(keep + _WAYS_OF_WRITING[way], Canaries.fresh(), tmp_path)
    assert any("patient_id" in hit for hit in finding.hits)


@pytest.mark.peers
@pytest.mark.parametrize("way", _OPAQUE_WAYS)
def test_trace_reports_what_it_cannot_look_into(way: str, tmp_path: Path):
    keep = "f = tempfile.TemporaryFile(); fd = f.fileno(); "
    finding = _traced(keep + _OPAQUE_WAYS[way], Canaries.fresh(), tmp_path)
    assert finding.opaque


@pytest.mark.peers
def test_trace_leaves_out_sockets_and_pipes(tmp_path: Path):
    code = "a, b = socket.socketpair(); os.write(a.fileno(), mark); os.write(os.pipe()[1], mark)"
    finding = _traced(code, Canaries.fresh(), tmp_path)
    assert not finding.hits
    assert not finding.opaque


def test_every_process_of_a_group_is_killed():
    child = f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-c', 'input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        until(lambda: len(fault.members(process.pid)) == 2, "two processes")
        fault.kill_group(process.pid)
    assert not fault.members(process.pid)


def test_differences_name_attributes_and_never_values():
    one = made.ct(patient_name="Secret^Name")
    assert compare.differences(one.data, one.data, one.transfer_syntax) == []
    dataset = one.dataset()
    dataset.PatientName = "Other^Secret"
    dataset.AccessionNumber = "1"
    del dataset.PatientSex
    changed = made.instance(dataset)
    text = "\n".join(compare.differences(one.data, changed.data, one.transfer_syntax))
    assert "(0010,0010) differs" in text
    assert "(0010,0040) is missing" in text
    assert "Secret" not in text


def test_corpus_is_real_distinct_and_covers_the_syntaxes():
    everything = corpus.everything()
    assert len({one.sop_instance for one in everything}) == len(everything) > 200
    assert len({one.transfer_syntax for one in everything}) >= 12
    assert {one.transfer_syntax for one in corpus.sample()} == {
        one.transfer_syntax for one in everything
    }


def test_a_renamed_copy_differs_in_its_instance_uid_only():
    for one in corpus.sample():
        new = one.with_instance_uid("9" * len(one.sop_instance))
        assert new.data != one.data or one.sop_instance.encode() not in one.data
        if one.transfer_syntax != part10.DEFLATED_LE:
            assert len(new.data) == len(one.data)
            changed = [a != b for a, b in zip(one.data, new.data, strict=True)]
            assert sum(changed) <= len(one.sop_instance)
