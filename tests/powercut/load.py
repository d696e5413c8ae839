"""What the senders send: instances that are made anew from their numbers, byte for byte.

Sender and check make the same bytes from the same key, so nothing has to be kept to compare.
Senders run in processes of their own and keep what was acknowledged in memory.
"""

import itertools
import os
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import dcmtk
from harness.made import CT
from harness.part10 import EXPLICIT_LE, Part10
from powercut import disk
from powercut.node import stop

from edgepacs import config
from edgepacs.custody import ingest
from edgepacs.dimse import Association, Limits, ProposedContext, request
from edgepacs.errors import PeerError
from edgepacs.model import UID, AETitle, Arrival, Origin
from edgepacs.store import Store, opened

_ROOT = "1.2.826.0.1.3680043.8.498.1"
SMOOTH = 1000  # the number of a sender whose pictures can be compressed; those of others cannot
FILLED = 0  # the number of the cut that what stood there before belongs to
_COLUMNS = 64
_LIMITS = Limits(response=30.0)
_STORESCU_FILES = 60


class Key(NamedTuple):
    """The numbers one instance is made from."""

    seed: int
    cut: int
    sender: int
    number: int

    @property
    def uid(self) -> UID:
        """Its SOP Instance UID."""
        return UID(f"{_ROOT}." + ".".join(map(str, self)))

    @classmethod
    def of(cls, uid: str) -> "Key":
        """The key whose UID this is."""
        return cls(*map(int, uid.removeprefix(f"{_ROOT}.").split(".")))


def instance(key: Key) -> Part10:
    """The instance of that key; studies of a cut are shared, short, or new for every instance."""
    layout = random.Random(f"{key.seed} {key.cut}").choice(("shared", "short", "single"))
    if key.cut == FILLED:
        layout = "short"
    study = {
        "shared": f"{key.cut}.0.0",
        "short": f"{key.cut}.{key.sender + 1}.{key.number // 20}",
        "single": f"{key.cut}.{key.sender + 1}.{key.number}",
    }[layout]
    return Part10(
        path=None,
        sop_class=CT,
        sop_instance=key.uid,
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=_data_set(key, study=f"{_ROOT}.{key.seed}.9.{study}", pixels=_pixels(key)),
    )


def _pixels(key: Key) -> bytes:
    """Mostly a few KiB, now and then more than the several chunks of a sealed object."""
    chance = random.Random(str(key))
    if key.sender == SMOOTH:
        return _smooth(chance)
    most = 1 if key.cut == FILLED else chance.choices((16, 100, 600), (80, 17, 3))[0]
    return chance.randbytes(2 * _COLUMNS * chance.randint(8, 8 * most))


def _smooth(chance: random.Random) -> bytes:
    """A slope with a little noise; with many rows its object has several chunks."""
    rows = chance.choice((64, 256, 2048))
    noise = np.frombuffer(chance.randbytes(rows * _COLUMNS), "u1") & 7
    slope = np.add.outer(np.arange(rows), np.arange(_COLUMNS))
    return (slope + noise.reshape(slope.shape)).astype("<u2").tobytes()


def _data_set(key: Key, *, study: str, pixels: bytes) -> bytes:
    """A CT in Explicit VR Little Endian (PS3.5 7.1.2), in the order of its tags."""
    return b"".join(
        (
            _text(0x0008, 0x0016, b"UI", CT),
            _text(0x0008, 0x0018, b"UI", key.uid),
            _text(0x0008, 0x0020, b"DA", "20260101"),
            _text(0x0008, 0x0060, b"CS", "CT"),
            _text(0x0010, 0x0010, b"PN", f"Cut^{key.cut}"),
            _text(0x0010, 0x0020, b"LO", f"P{key.cut}"),
            _text(0x0020, 0x000D, b"UI", study),
            _text(0x0020, 0x000E, b"UI", f"{study}.{key.sender}"),
            _text(0x0020, 0x0013, b"IS", str(key.number)),
            _number(0x0028, 0x0002, 1),
            _text(0x0028, 0x0004, b"CS", "MONOCHROME2"),
            _number(0x0028, 0x0010, len(pixels) // (2 * _COLUMNS)),
            _number(0x0028, 0x0011, _COLUMNS),
            _number(0x0028, 0x0100, 16),
            _number(0x0028, 0x0101, 16),
            _number(0x0028, 0x0102, 15),
            _number(0x0028, 0x0103, 0),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixels)),
            pixels,
        )
    )


def _text(group: int, element: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    raw += (b"\0" if vr == b"UI" else b" ") * (len(raw) % 2)  # PS3.5 6.2
    return struct.pack("<HH2sH", group, element, vr, len(raw)) + raw


def _number(group: int, element: int, value: int) -> bytes:
    return struct.pack("<HH2sHH", group, element, b"US", 2, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one sender has to do: send `again` what was never answered, then new ones for ever.

    After its `cut_after`-th Success it cuts the power of `mounted` itself, under the process
    `groups` of the node; 0 for never.
    """

    first: Key
    port: int
    again: tuple[Key, ...] = ()
    cut_after: int = 0
    mounted: Path
    groups: tuple[int, ...] = ()
    temporary: Path

    def wanted(self) -> Iterator[Key]:
        """Every key to send, in order."""
        yield from self.again
        for number in itertools.count(self.first.number):
            yield self.first._replace(number=number)


@dataclass(slots=True)
class Report:
    """What became of it. Times are of the monotonic clock, the same in every process."""

    acknowledged: dict[Key, float] = field(default_factory=dict)
    refused: list[tuple[int, float]] = field(default_factory=list)  # status, when
    unanswered: list[Key] = field(default_factory=list)  # sent, but for those that never left
    cut_at: float = 0.0  # when this sender cut the power, if it did


def send(order: Order) -> Report:
    """Send by our own engine, as fast as it goes, until the line breaks or a refusal comes."""
    report = Report()
    try:
        with _association(order.port) as association:
            _send_all(order, association, report)
    except PeerError:
        pass  # the line broke: that is the power cut
    return report


def _association(port: int) -> Association:
    return request(
        "127.0.0.1",
        port,
        calling=AETitle("HARNESS"),
        called=AETitle("EDGEPACS"),
        contexts=[ProposedContext(abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_LE,))],
        limits=_LIMITS,
    )


def _send_all(order: Order, association: Association, report: Report) -> None:
    context = association.accepted(CT, EXPLICIT_LE)
    assert context is not None
    for key in order.wanted():
        report.unanswered = [key]
        data = instance(key).data
        answer = association.store(context, UID(CT), key.uid, [data])
        if answer.status:
            report.refused.append((answer.status, time.monotonic()))
            break
        report.unanswered = []
        report.acknowledged[key] = time.monotonic()
        if len(report.acknowledged) == order.cut_after:
            report.cut_at = time.monotonic()
            stop(order.groups)
            disk.cut(order.mounted)
            break
    association.abort()


def send_some(order: Order, count: int) -> Report:
    """Send the first `count` by our own engine; every one of them has to be answered Success."""
    report = Report()
    with _association(order.port) as association:
        context = association.accepted(CT, EXPLICIT_LE)
        assert context is not None
        for key in itertools.islice(order.wanted(), count):
            answer = association.store(context, UID(CT), key.uid, [instance(key).data])
            assert not answer.status, hex(answer.status)
            report.acknowledged[key] = time.monotonic()
    return report


def send_by_storescu(order: Order) -> Report:
    """Send a fixed number by DCMTK's storescu."""
    keys = list(itertools.islice(order.wanted(), _STORESCU_FILES))
    paths = {instance(key).write(order.temporary / f"{key.uid}.dcm"): key for key in keys}
    sent = dcmtk.storescu(paths, order.port)
    for path in paths:
        path.unlink()
    now = time.monotonic()
    report = Report({paths[path]: now for path in sent.acknowledged})
    last = max((keys.index(key) for key in report.acknowledged), default=-1)
    for number, (path, answer) in enumerate(sent.answers.items()):
        if answer and paths[path] not in report.acknowledged:
            # It does not say when; but what was followed by a Success came before the power went.
            report.refused.append((0xC000, 0.0 if number < last else now))
            report.unanswered.append(paths[path])
    report.unanswered += [keys[n] for n, text in enumerate(sent.answers.values()) if not text][:1]
    return report


def fill(path: Path, keys: list[Key]) -> None:
    """Put instances into the stopped node at `path` without syncing: the caller does it after."""
    os.fdatasync = os.fsync = lambda _fd: None  # type: ignore[assignment]
    with opened(config.load(path)) as store:
        store.db._writer.pragma("synchronous", "off")
        for key in keys:
            _put(store, key)


def _put(store: Store, key: Key) -> None:
    arrival = Arrival(
        sop_class_uid=UID(CT),
        sop_instance_uid=key.uid,
        transfer_syntax_uid=UID(EXPLICIT_LE),
        origin=Origin.MODALITY,
        source="HARNESS",
    )
    ingest.receive(store, arrival, [instance(key).data])
