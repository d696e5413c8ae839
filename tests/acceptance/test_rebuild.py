"""Must show 6: the index is gone, objects and keystore are there; `rebuild` brings it back."""

from dataclasses import replace

import pytest
from harness import contract, corpus, fault, made, sender
from harness.box import Box, CommandFailed
from harness.recorder import RecordingSCP
from harness.waiting import until


def _filled(box: Box) -> list[str]:
    """Studies of several patients, real instances, a patient without ID, a duplicate, a rival."""
    each = corpus.count(2, 20)
    instances = made.studies(patients=3, studies_each=2, series_each=2, each=each)
    instances += [one for one in corpus.sample() if len(one.data) < corpus.count(10**5, 10**8)]
    instances += [made.ct(patient_id="", patient_name="Nobody^Knows") for _ in range(2)]
    instances.append(instances[0])
    instances.append(made.ct(sop=instances[1].sop_instance, patient_id="RIVAL"))
    answers = sender.send(instances, box.dicom_port)
    return [answer.sop_instance for answer in answers if answer.acknowledged]


def _settled(box: Box) -> None:
    """The rival has been compared and put into quarantine."""
    until(lambda: len(box.cli("quarantine", "list")) == 1, "one version in quarantine")


def test_rebuild_brings_back_every_row(box: Box):
    acknowledged = _filled(box)
    assert len(acknowledged) > 40
    _settled(box)
    box.stop()
    before, objects = contract.listing(box), box.objects()
    counted = contract.fsck(box)
    assert counted.clean
    contract.delete_index(box)
    box.run("rebuild")
    assert box.objects() == objects
    box.allow("HARNESS")
    box.start()
    _settled(box)
    box.stop()
    assert contract.changes(before, contract.listing(box)) == []
    after = contract.fsck(box)
    assert after == counted


def test_a_rebuilt_node_takes_and_sends(box: Box, recorder: RecordingSCP):
    old, new = made.ct(), made.ct()
    sender.send([old], box.dicom_port)
    box.stop()
    contract.delete_index(box)
    box.run("rebuild")
    box.allow("HARNESS")
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    box.start()
    answers = sender.send([old, new], box.dicom_port)
    assert [answer.status for answer in answers] == [0, 0]
    recorder.wait_for(1)
    assert new.sop_instance in recorder.by_uid()
    assert len(box.objects()) == 2
    rival = made.ct(sop=old.sop_instance, patient_id="RIVAL")
    (answer,) = sender.send([replace(rival, path=None)], box.dicom_port)
    assert answer.status == 0
    assert contract.fsck(box).clean


def test_rebuild_names_what_it_cannot_read_and_brings_back_the_rest(box: Box):
    sender.send([made.ct() for _ in range(3)], box.dicom_port)
    box.stop()
    victim = box.objects()[0]
    fault.truncate(victim, -50)
    bytes_ = victim.read_bytes()
    contract.delete_index(box)
    box.run("rebuild", check=False)
    report = contract.fsck(box)
    assert not report.clean
    assert report.verified == 2
    box.allow("HARNESS")
    box.start()
    kept = [path for path in box.data.rglob("*") if path.is_file() and path.read_bytes() == bytes_]
    assert kept, "what was acknowledged and can perhaps be saved must not be swept away"


def test_rebuild_never_replaces_an_index_that_is_there(box: Box):
    sender.send([made.ct()], box.dicom_port)
    box.stop()
    before = contract.listing(box)
    with pytest.raises(CommandFailed):
        box.run("rebuild")
    assert contract.changes(before, contract.listing(box)) == []
