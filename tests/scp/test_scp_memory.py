"""What the receiver needs in memory, measured from outside on the real process."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import corpus
from harness.box import Box
from harness.made import CT, ct
from harness.part10 import EXPLICIT_LE
from store.making import element

from edgepacs.dimse import Association, Limits, ProposedContext, request
from edgepacs.model import UID, AETitle

ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"  # Ultrasound Multi-frame Image Storage
MB = 1_000_000
BLOCK = random.Random(1).randbytes(MB)


class Receiver:
    """The scp process of a running node."""

    def __init__(self, box: Box) -> None:
        processes = [psutil.Process(pid) for pid in box.pids()]
        (self._process,) = [one for one in processes if one.cmdline()[-1] == "scp"]
        self._folder = Path("/proc") / str(self._process.pid)

    def forget_peak(self) -> None:
        """Let the peak begin anew (proc(5), clear_refs)."""
        (self._folder / "clear_refs").write_text("5")

    @property
    def rss(self) -> int:
        return int(self._process.memory_info().rss)

    @property
    def peak(self) -> int:
        """The most that was resident since `forget_peak`, in bytes."""
        lines = (self._folder / "status").read_text().splitlines()
        (line,) = [one for one in lines if one.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


def like(uid: str) -> str:
    """Another UID of the same length."""
    digits = len(uid) - len("2.25.")
    return f"2.25.{random.SystemRandom().randrange(10 ** (digits - 1), 10**digits)}"


def calling(box: Box, sop_class: str) -> Association:
    """An association with context 1 for `sop_class`."""
    return request(
        "127.0.0.1",
        box.dicom_port,
        calling=AETitle("HARNESS"),
        called=AETitle(box.ae_title),
        contexts=[ProposedContext(abstract_syntax=sop_class, transfer_syntaxes=(EXPLICIT_LE,))],
        limits=Limits(),
    )


def cine(blocks: int) -> Iterator[bytes]:
    """A multi-frame ultrasound data set with `blocks` frames of 1 MB, made as it is sent."""
    yield b"".join(
        (
            element(0x00080016, "UI", ULTRASOUND),
            element(0x00080018, "UI", "1.2.3.4"),
            element(0x00080060, "CS", "US"),
            element(0x00100010, "PN", "Doe^Jane"),
            element(0x00100020, "LO", "P1"),
            element(0x0020000D, "UI", "1.2.3.1"),
            element(0x0020000E, "UI", "1.2.3.2"),
            element(0x00280008, "IS", str(blocks)),
        )
    )
    yield b"\xe0\x7f\x10\x00OB\0\0" + (blocks * MB).to_bytes(4, "little")
    for _ in range(blocks):
        yield BLOCK


def test_a_large_multi_frame_object_streams_through(box: Box) -> None:
    """2 GB under soak; the receiver holds no more of it than of a small one."""
    receiver = Receiver(box)
    with calling(box, ULTRASOUND) as association:
        assert association.store(1, UID(ULTRASOUND), UID("1.2.3.4"), cine(2)).status == 0
        receiver.forget_peak()
        before = receiver.rss
        blocks = corpus.count(200, 2100)
        assert association.store(1, UID(ULTRASOUND), UID("1.2.3.4"), cine(blocks)).status == 0
    assert receiver.peak <= 112 * MB
    assert receiver.peak - before <= 8 * MB
    (largest,) = [one for one in box.objects() if one.stat().st_size > blocks * MB]
    assert largest.stat().st_size < blocks * MB * 1.01


def test_eight_associations_of_ct(box: Box) -> None:
    receiver = Receiver(box)
    receiver.forget_peak()
    template = ct(side=512)
    statuses: list[int] = []

    def send() -> None:
        with calling(box, CT) as association:
            for _ in range(corpus.count(15, 300)):
                one = template.with_instance_uid(like(template.sop_instance))
                uid = UID(one.sop_instance)
                statuses.append(association.store(1, UID(CT), uid, [one.data]).status)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert statuses == [0] * (8 * corpus.count(15, 300))
    assert receiver.peak <= 96 * MB
