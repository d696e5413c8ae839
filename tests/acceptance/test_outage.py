"""Must show 5: a destination that is down costs nothing and loses nothing."""

from pathlib import Path

import pytest
from harness import contract, corpus, dcmtk, made, sender
from harness.box import Box
from harness.orthanc import Orthanc
from harness.recorder import RecordingSCP
from harness.waiting import stays, until


@pytest.mark.peers
def test_three_hundred_instances_outlast_an_outage(box: Box, tmp_path: Path):
    recorder = RecordingSCP()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    study, series = made.new_uid(), made.new_uid()
    instances = [made.ct(study=study, series=series, number=n) for n in range(300)]
    files = [one.write(tmp_path / f"{n}.dcm") for n, one in enumerate(instances)]
    sent = dcmtk.storescu(files, box.dicom_port)
    assert len(sent.acknowledged) == 300
    assert contract.queue_states(box)["queued"] == 300
    with recorder:
        recorder.wait_for(300, seconds=90)
        assert set(recorder.by_uid()) == {one.sop_instance for one in instances}
        until(lambda: contract.queue_states(box)["sent"] == 300, "every delivery marked sent")
        stays(lambda: recorder.total_requests == 300, "300 requests", seconds=2)


@pytest.mark.peers
def test_orthanc_gets_the_day_once_it_is_up(box: Box, tmp_path: Path):
    """DCMTK as the modality, Orthanc as the central PACS; the transfer syntaxes are kept."""
    orthanc = Orthanc(tmp_path / "orthanc")
    box.send_to("central", ae=orthanc.ae_title, port=orthanc.port)
    wanted = {"1.2.840.10008.1.2.1": "-xe", "1.2.840.10008.1.2.4.70": "-xs"}
    expected = {}
    for syntax, proposal in wanted.items():
        some = [one for one in corpus.sample() if one.transfer_syntax == syntax and one.modality]
        files = [one.write(tmp_path / f"{one.sop_instance}.dcm") for one in some[:3]]
        sent = dcmtk.storescu(files, box.dicom_port, proposal=proposal)
        expected |= {path.stem: syntax for path in sent.acknowledged}
    assert set(expected.values()) == set(wanted)
    with orthanc:
        until(lambda: orthanc.held().keys() >= expected.keys(), "all at Orthanc", seconds=60)
        got = {uid: one["transfer_syntax"] for uid, one in orthanc.held().items()}
    assert got == expected


def test_the_line_breaking_again_and_again_loses_nothing(box: Box, recorder: RecordingSCP):
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    count = corpus.count(40, 300)
    recorder.behaviour.cut_after_bytes = 20_000
    recorder.behaviour.cuts_left = corpus.count(2, 20)
    instances = [made.ct(number=n) for n in range(count)]
    assert all(answer.acknowledged for answer in sender.send(instances, box.dicom_port))
    recorder.wait_for(count, seconds=120)
    got = recorder.by_uid()
    assert {uid: one.data for uid, one in got.items()} == {
        one.sop_instance: one.data for one in instances
    }
    assert recorder.behaviour.cuts_left == 0


def test_a_peer_that_refuses_for_want_of_room_is_asked_again(box: Box, recorder: RecordingSCP):
    """A700 is a state of the peer, not a verdict on the instance (PS3.4 B.2.3)."""
    recorder.behaviour.status = lambda order, _uid: 0xA700 if order == 1 else 0
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    one = made.ct()
    sender.send([one], box.dicom_port)
    until(lambda: recorder.total_requests == 1, "the first, refused request")
    if not corpus.soak():  # it is asked again by itself, too, but only after some seconds
        until(lambda: contract.queue_states(box)["queued"] == 1, "the delivery queued again")
        box.cli("queue", "retry")
    recorder.wait_for(1, seconds=90)
    assert recorder.by_uid()[one.sop_instance].data == one.data


def test_a_peer_that_refuses_for_good_is_reported_and_stops_nobody(
    box: Box, recorder: RecordingSCP
):
    bad, good = made.ct(), made.ct()
    recorder.behaviour.status = lambda _order, uid: 0xA900 if uid == bad.sop_instance else 0
    recorder.behaviour.comment = "data set does not match SOP class"
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    sender.send([bad, good], box.dicom_port)
    recorder.wait_for(1)
    until(lambda: contract.queue_states(box)["failed"] == 1, "the refused delivery is failed")
    assert [one.sop_instance for one in recorder.accepted()] == [good.sop_instance]


def test_an_outage_outlasts_a_restart(box: Box):
    recorder = RecordingSCP()
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    instances = [made.ct(number=n) for n in range(5)]
    sender.send(instances, box.dicom_port)
    box.kill()
    box.start()
    with recorder:
        recorder.wait_for(5)
        assert set(recorder.by_uid()) == {one.sop_instance for one in instances}
        stays(lambda: recorder.total_requests == 5, "5 requests", seconds=1)
