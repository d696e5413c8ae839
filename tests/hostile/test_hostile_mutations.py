"""Thousands of mutants: the receiver lives, others are served, what was acknowledged is intact.

The counts are small unless EDGEPACS_SOAK=1. EDGEPACS_SEED chooses other mutants; what fails
prints a seed and numbers, and EDGEPACS_MUTANTS=FIRST-LAST plays these alone.
"""

import hashlib
import os
import time
import warnings
from pathlib import Path

import pytest
from harness.corpus import SEED, count
from harness.part10 import DEFLATED_LE, Part10
from hostile.campaign import Campaign, Modality
from hostile.mutation import chance_of, data_set, stream
from hostile.receiver import Receiver
from store.making import arrival

from edgepacs.custody.scan import Scanner
from edgepacs.dimse import pdu
from edgepacs.dimse.command import decode
from edgepacs.errors import EdgePacsError
from edgepacs.model import UID
from edgepacs.store import fsck

GROWTH = 64 << 20  # bytes of resident memory over the run
WIRE_SESSIONS = count(1200, 25_000)
WIRE_DATA_SETS = count(1200, 25_000)
IN_PROCESS = count(2000, 50_000)
_STEP = 100  # mutants between two looks at the receiver
_KIND = 10_000_000  # numbers of one kind: sessions, data sets, both without a wire


def numbers(first: int, how_many: int) -> range:
    """The mutants from `first` on: `how_many`, or those asked for."""
    asked = os.environ.get("EDGEPACS_MUTANTS", "")
    if not asked:
        return range(first, first + how_many)
    low, _, high = asked.partition("-")
    return range(max(first, int(low)), min(first + _KIND, int(high or low) + 1))


def steps(whole: range) -> list[range]:
    return [range(at, min(at + _STEP, whole.stop)) for at in range(whole.start, whole.stop, _STEP)]


def test_mutants_over_the_wire(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with Receiver(tmp_path / "node") as receiver:
        campaign = Campaign(receiver, SEED)
        modality = Modality(receiver, campaign.tally.acknowledged)
        sessions = steps(numbers(0, WIRE_SESSIONS))
        data_sets = steps(numbers(_KIND, WIRE_DATA_SETS))
        total = sum(map(len, sessions)) + sum(map(len, data_sets))
        played, warm = 0, 0
        try:
            for step in interleaved(sessions, data_sets):
                play = campaign.sessions if step in sessions else campaign.data_sets
                play(step)
                played += len(step)
                if not warm and played >= total // 10:
                    warm = receiver.forget_peak()
                assert not modality.failure, f"{modality.failure}: {campaign.said(step)}"
                try:
                    receiver.require_sound()
                except AssertionError as error:
                    raise AssertionError(f"{error}: {campaign.said(step)}") from None
        finally:
            modality.end()
        grown = receiver.peak() - warm
        wire = time.monotonic() - began
        acknowledged = campaign.tally.acknowledged
        read = acknowledged.require_intact(receiver)
        report = fsck.check(receiver.store)
        left = (report.missing, report.broken, report.mismatched, report.foreign, report.index)
        assert not any(left), left
        with capsys.disabled():
            print(
                f"\nseed {SEED}: {total} mutants over the wire in {wire:.0f} s, "
                f"resident {warm >> 20} MiB when warm, {grown / (1 << 20):+.1f} MiB at the peak; "
                f"slowest answer {campaign.tally.slowest * 1000:.0f} ms\n"
                f"  the modality beside them: {modality.stored} stored, "
                f"slowest {modality.slowest * 1000:.0f} ms\n"
                f"  {len(acknowledged)} acknowledged, {read} read and compared, "
                f"{report.verified} verified by fsck\n"
                f"  answers {dict(campaign.tally.answers.most_common(8))}\n"
                f"  statuses {dict(campaign.tally.statuses.most_common())}"
            )
        assert grown <= GROWTH
        assert modality.stored > 0
        assert len(acknowledged) > total // 20


def test_the_campaign_sees_what_is_wrong(tmp_path: Path) -> None:
    """A loss, an altered object and a failed association are found, not passed over."""
    with Receiver(tmp_path / "node") as receiver:
        campaign = Campaign(receiver, SEED)
        campaign.data_sets(range(_KIND, _KIND + 60))
        acknowledged = campaign.tally.acknowledged
        assert acknowledged.require_intact(receiver) == len(acknowledged) > 5
        with receiver.log.open("a") as log:
            log.write("scp ERROR association 7 failed: ValueError at nowhere:1\n")
        with pytest.raises(AssertionError, match="association 7 failed"):
            receiver.require_sound()
        uid, digests = acknowledged.sure.popitem()
        acknowledged.sure[uid] = {hashlib.sha256(b"other").digest()}
        with pytest.raises(AssertionError, match="lost or altered"):
            acknowledged.require_intact(receiver)
        acknowledged.sure[uid] = digests
        acknowledged.sure["1.2.3.4"] = digests
        with pytest.raises(AssertionError, match="lost or altered"):
            acknowledged.require_intact(receiver)


def interleaved(one: list[range], other: list[range]) -> list[range]:
    mixed = []
    for number in range(max(len(one), len(other))):
        mixed += one[number : number + 1] + other[number : number + 1]
    return mixed


# -- without a wire


def test_mutants_without_a_wire(capsys: pytest.CaptureFixture[str]) -> None:
    """Codec and scanner alone: only errors of ours, and the same whatever the fragments."""
    whole = numbers(2 * _KIND, IN_PROCESS)
    began, refused, slowest = time.monotonic(), 0, 0.0
    for number in whole:
        start = time.process_time()
        try:
            refused += read_wire(number) if number % 2 else scan_twice(number)
        except Exception as error:
            who = f"EDGEPACS_SEED={SEED} EDGEPACS_MUTANTS={number}"
            raise AssertionError(f"{who}: {error!r}") from error
        slowest = max(slowest, time.process_time() - start)
    with capsys.disabled():
        print(
            f"\nseed {SEED}: {len(whole)} mutants in process in {time.monotonic() - began:.0f} s, "
            f"{refused} refused, slowest {slowest * 1000:.0f} ms"
        )
    assert 0 < refused < len(whole) or len(whole) < 100
    assert slowest < 2


def read_wire(number: int) -> bool:
    """Read a damaged session as the receiver does; whether it was refused."""
    sent, _ = stream(chance_of(SEED, number))
    buffer, at, command = bytearray(sent), 0, b""
    try:
        while len(buffer) - at >= pdu.HEADER_SIZE:
            whole = pdu.whole_length(buffer, at, 1 << 20)
            if at + whole > len(buffer):
                return True
            body = memoryview(buffer)[at + pdu.HEADER_SIZE : at + whole]
            if buffer[at] == pdu.PduType.P_DATA:
                command = read_pdvs(body, command)
            elif reader := READERS.get(buffer[at]):
                reader(body)
            at += whole
    except EdgePacsError:
        return True
    return False


READERS = {
    1: pdu.decode_associate_request,
    2: pdu.decode_associate_accept,
    3: pdu.decode_rejection,
    7: pdu.decode_abort,
}


def read_pdvs(body: memoryview, command: bytes) -> bytes:
    """Read every PDV and every command that is whole; what there is of the next."""
    at = 0
    while at < len(body):
        start = at + pdu.PDV_HEADER_SIZE
        _, control, at = pdu.next_pdv(body, at)
        if control & pdu.COMMAND:
            command += bytes(body[start:at])
            if control & pdu.LAST:
                decode(command)
                command = b""
    return command


def scan_twice(number: int) -> bool:
    """Scan a damaged data set whole and in pieces; whether it was refused."""
    chance = chance_of(SEED, number)
    part, _ = data_set(chance)
    most = chance.choice((1, 7, 100, 5000))
    whole, pieces = outcome(part, len(part.data) or 1), outcome(part, most)
    refused = isinstance(whole, str)
    if part.transfer_syntax == DEFLATED_LE and refused:
        # In pieces the broken data set may show before the broken stream that holds it.
        assert isinstance(pieces, str)
    else:
        assert pieces == whole
    return refused


def outcome(part: Part10, most: int) -> object:
    """What the scanner finds in `part` fed `most` bytes at a time, or its error as text."""
    scanner = Scanner(UID(part.transfer_syntax))
    view = memoryview(part.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for at in range(0, len(view), most):
                scanner.feed(view[at : at + most])
            return scanner.finish(arrival(part))
        except EdgePacsError as error:
            return f"{type(error).__name__}: {error}"
