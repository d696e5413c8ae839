"""Must show 2: every readable instance is stored and sent on exactly as it came."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from harness import compare, contract, corpus, dcmtk, made, part10, sender
from harness.box import Box
from harness.part10 import Part10
from harness.recorder import RecordingSCP
from harness.sender import Answer
from harness.tap import Tap
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset


@dataclass(slots=True)
class Delivered:
    """What went over the wire into the node, and how it was answered, by SOP Instance UID."""

    sent: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def add(self, uid: str, transfer_syntax: str, data: bytes, answer: Answer) -> None:
        self.sent[uid] = (transfer_syntax, data)
        self.answers[uid] = answer


def _by_storescu(
    box: Box, instances: Iterable[Part10], folder: Path, delivered: Delivered
) -> list[Part10]:
    """Send what storescu can; what it did not put on the wire comes back."""
    batches: dict[str, list[tuple[Path, Part10]]] = {}
    rest = []
    for number, one in enumerate(instances):
        proposal = dcmtk.PROPOSALS.get(one.transfer_syntax)
        if proposal is None:
            rest.append(one)
            continue
        path = one.path or one.write(folder / f"{number}.dcm")
        batches.setdefault(proposal, []).append((path, one))
    for proposal, batch in batches.items():
        with Tap(box.dicom_port) as tap:
            dcmtk.storescu([path for path, _ in batch], tap.port, proposal=proposal)
            passed = {exchange.sop_instance: exchange for exchange in tap.exchanges}
        for _, one in batch:
            seen = passed.get(one.sop_instance)
            if seen is None:
                rest.append(one)
                continue
            answer = Answer(sop_instance=one.sop_instance, status=seen.status, comment=seen.comment)
            delivered.add(one.sop_instance, seen.transfer_syntax, seen.data, answer)
    return rest


def _by_pynetdicom(box: Box, instances: Iterable[Part10], delivered: Delivered) -> None:
    todo = {one.sop_instance: one for one in instances}
    for answer in sender.send(todo.values(), box.dicom_port):
        one = todo[answer.sop_instance]
        delivered.add(one.sop_instance, one.transfer_syntax, one.data, answer)


def _readable(transfer_syntax: str, data: bytes, uid: str) -> bool:
    """Whether pydicom finds the identity that a store needs, and no value cut short.

    PS3.4 B.2.3 and PS3.3 C.12.1; UIDs as in PS3.5 9.1.
    """
    try:
        dataset = part10.decode(data, transfer_syntax)
        identity = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        valid = all(re.fullmatch(r"[0-9.]{1,64}", str(one)) for one in identity)
        return valid and str(dataset.SOPInstanceUID) == uid and not _cut_short(dataset)
    except Exception:  # noqa: BLE001 - whatever pydicom raises, it could not read it
        return False


def _cut_short(dataset: Dataset) -> bool:
    undefined = 0xFFFFFFFF
    raw = [one for one in map(dataset.get_item, dataset.keys()) if isinstance(one, RawDataElement)]
    return any(one.length not in (undefined, len(one.value or b"")) for one in raw)


@pytest.mark.peers
def test_everything_readable_is_stored_and_arrives_as_it_was_sent(
    box: Box, recorder: RecordingSCP, tmp_path: Path
):
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    delivered = Delivered()
    rest = _by_storescu(box, corpus.chosen(), tmp_path, delivered)
    _by_pynetdicom(box, rest, delivered)
    assert len(delivered.sent) == len(corpus.chosen())

    refused = {uid: one for uid, one in delivered.answers.items() if not one.acknowledged}
    unanswered = [uid for uid, one in refused.items() if one.status is None]
    assert not unanswered
    without_reason = [
        (hex(one.status or 0), uid) for uid, one in refused.items() if not one.comment
    ]
    assert not without_reason
    wrongly = {
        uid: (hex(one.status or 0), one.comment)
        for uid, one in refused.items()
        if _readable(*delivered.sent[uid], uid)
    }
    assert not wrongly

    stored = set(delivered.sent) - set(refused)
    assert len(stored) >= 0.85 * len(delivered.sent)
    recorder.wait_for(len(stored), seconds=300)
    got = recorder.by_uid()
    assert set(got) == stored
    changed = {}
    for uid in stored:
        syntax, data = delivered.sent[uid]
        assert got[uid].transfer_syntax == syntax
        if found := compare.differences(data, got[uid].data, syntax):
            changed[uid] = found
    assert not changed
    assert recorder.total_requests == len(stored)
    assert contract.fsck(box).clean


def test_private_and_unknown_sop_classes_are_kept_byte_for_byte(box: Box, recorder: RecordingSCP):
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    odd = []
    for sop_class in ("1.2.3.4.5.6.7", "1.2.840.10008.5.1.4.1.1.999", "1.3.46.670589.11.0.0.12.1"):
        dataset = made.ct().dataset()
        dataset.SOPClassUID = sop_class
        odd.append(made.instance(dataset))
    assert all(answer.acknowledged for answer in sender.send(odd, box.dicom_port))
    recorder.wait_for(len(odd))
    assert {uid: one.data for uid, one in recorder.by_uid().items()} == {
        one.sop_instance: one.data for one in odd
    }


def _without(keyword: str) -> Part10:
    one = made.ct()
    dataset = one.dataset()
    delattr(dataset, keyword)
    return replace(one, data=part10.encode(dataset, one.transfer_syntax))


_REFUSED = {
    "command and data set name different instances": lambda: replace(
        made.ct(), sop_instance=made.new_uid()
    ),
    "command and data set name different SOP classes": lambda: replace(
        made.ct(), sop_class="1.2.840.10008.5.1.4.1.1.4"
    ),
    "no Study Instance UID": lambda: _without("StudyInstanceUID"),
    "no Series Instance UID": lambda: _without("SeriesInstanceUID"),
    "no SOP Instance UID": lambda: _without("SOPInstanceUID"),
    "not a data set": lambda: replace(made.ct(), data=b"\xff" * 4096),
    "cut short": lambda: (one := made.ct()) and replace(one, data=one.data[:200]),
}


def test_each_refusal_has_a_status_and_a_reason_and_stores_nothing(box: Box):
    """PS3.4 B.2.3 for the statuses, PS3.7 C for the Error Comment."""
    before = contract.fsck(box)
    for name, make in _REFUSED.items():
        (answer,) = sender.send([make()], box.dicom_port)
        assert answer.status is not None, name
        assert answer.status >> 12 in (0xA, 0xC) or answer.status >> 8 == 0x01, name
        assert answer.comment, name
        assert len(answer.comment) <= 64, name
    assert contract.fsck(box) == before
    assert before.clean
    (good,) = sender.send([made.ct()], box.dicom_port)
    assert good.acknowledged


def test_the_same_again_is_success_and_kept_once(box: Box, recorder: RecordingSCP):
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    one, last = made.ct(), made.ct()
    for _ in range(3):
        assert all(answer.status == 0 for answer in sender.send([one], box.dicom_port))
    sender.send([last], box.dicom_port)
    recorder.wait_for(2)
    assert len(box.objects()) == 2
    assert recorder.requests == {one.sop_instance: 1, last.sop_instance: 1}


def test_other_content_under_a_known_uid_is_kept_aside_and_never_sent(
    box: Box, recorder: RecordingSCP
):
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    first = made.ct()
    other = made.ct(sop=first.sop_instance, patient_id="SOMEBODY-ELSE")
    last = made.ct()
    for one in (first, other, last):
        assert all(answer.status == 0 for answer in sender.send([one], box.dicom_port))
    recorder.wait_for(2)
    assert recorder.by_uid()[first.sop_instance].data == first.data
    assert recorder.requests == {first.sop_instance: 1, last.sop_instance: 1}
    assert len(box.objects()) == 3
    assert contract.fsck(box).clean
