"""The recording SCP does what it says, asked by an SCU that shares nothing with it."""

import json
import threading
from pathlib import Path

from harness import made, sender
from harness.recorder import COMMITMENT, COMMITMENT_INSTANCE, Commitment, RecordingSCP
from harness.waiting import free_port, until
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)


class _Reports:
    """What came as N-EVENT-REPORT: event types and data sets."""

    def __init__(self) -> None:
        self.got: list[tuple[int, Dataset]] = []
        self.handlers = [(evt.EVT_N_EVENT_REPORT, self.take)]

    def take(self, event: evt.Event) -> tuple[int, None]:
        self.got.append((event.request.EventTypeID, event.event_information))
        return 0, None


def _asking(scp: RecordingSCP, reports: _Reports) -> Association:
    ae = AE(ae_title="HARNESS")
    ae.add_requested_context(StorageCommitmentPushModel)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    assoc = ae.associate("127.0.0.1", scp.port, evt_handlers=reports.handlers)
    assert assoc.is_established
    return assoc


def _request(*uids: str) -> Dataset:
    asked = Dataset()
    asked.TransactionUID = made.new_uid()
    asked.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = made.CT, uid
        asked.ReferencedSOPSequence.append(item)
    return asked


def _ask(assoc: Association, *uids: str) -> int:
    status, _ = assoc.send_n_action(_request(*uids), 1, COMMITMENT, COMMITMENT_INSTANCE)
    return int(status.Status)


def test_it_commits_what_it_holds_on_the_same_association(recorder: RecordingSCP):
    recorder.behaviour.commitment = Commitment.SAME
    one, other = made.ct(), made.ct()
    sender.send([one], recorder.port)
    reports = _Reports()
    assoc = _asking(recorder, reports)
    assert _ask(assoc, one.sop_instance) == 0
    assert _ask(assoc, one.sop_instance, other.sop_instance) == 0
    until(lambda: len(reports.got) == 2, "two reports")
    (first, whole), (second, partial) = reports.got
    assert (first, second) == (1, 2)
    assert "FailedSOPSequence" not in whole
    assert partial.FailedSOPSequence[0].FailureReason == 0x0112
    assert partial.FailedSOPSequence[0].ReferencedSOPInstanceUID == other.sop_instance
    until(lambda: len(recorder.reports) == 2, "both are answered")
    assert recorder.confirmed == {one.sop_instance: "committed"}
    assoc.release()
    sender.send([one], recorder.port)
    assert recorder.repeated == [one.sop_instance]
    assert recorder.repeats() == {one.sop_instance: 1}
    assert not recorder.faults


def test_it_reports_on_an_association_of_its_own(recorder: RecordingSCP):
    reports = _Reports()
    ae = AE(ae_title="NODE")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=reports.handlers)
    recorder.behaviour.commitment = Commitment.NEW
    recorder.report_to = ("127.0.0.1", port, "NODE")
    one = made.ct()
    sender.send([one], recorder.port)
    assoc = _asking(recorder, _Reports())
    assert _ask(assoc, one.sop_instance) == 0
    assoc.release()
    until(lambda: recorder.confirmed, "the report is answered")
    assert [event for event, _ in reports.got] == [1]
    server.shutdown()
    assert build_role(COMMITMENT, scp_role=True).scp_role  # as it proposes, PS3.7 D.3.3.4


def test_it_finds_what_it_holds(recorder: RecordingSCP):
    recorder.behaviour.commitment, recorder.behaviour.queries = Commitment.SAME, True
    study, series = made.new_uid(), made.new_uid()
    one = made.ct(study=study, series=series)
    sender.send([one], recorder.port)
    assoc = _asking(recorder, _Reports())
    for uid, in_study, expected in (
        (one.sop_instance, study, [one.sop_instance]),
        (made.new_uid(), study, []),
        (one.sop_instance, made.new_uid(), []),
    ):
        key = Dataset()
        key.QueryRetrieveLevel = "IMAGE"
        key.StudyInstanceUID, key.SeriesInstanceUID, key.SOPInstanceUID = in_study, series, uid
        answers = list(assoc.send_c_find(key, StudyRootQueryRetrieveInformationModelFind))
        assert [str(found.SOPInstanceUID) for _, found in answers if found] == expected
    assoc.release()
    assert recorder.confirmed == {one.sop_instance: "found"}


def test_it_keeps_a_log_that_outlives_it(tmp_path: Path):
    one = made.ct()
    with RecordingSCP(log=tmp_path / "log", digests=True) as scp:
        sender.send([one], scp.port)
        assert scp.differing([one, made.ct()]) != []
        assert scp.differing([one]) == []
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in lines][:3] == ["association", "store", "stored"]
    assert lines[1]["uid"] == one.sop_instance


def test_it_counts_what_broke_off_hung_or_was_aborted(recorder: RecordingSCP):
    one = made.ct()
    recorder.behaviour.abort = lambda order, _uid: order == 1
    assert sender.send([one], recorder.port)[0].status is None
    recorder.behaviour.hang = lambda order, _uid: order == 2
    hanging = threading.Thread(target=sender.send, args=([one], recorder.port), daemon=True)
    hanging.start()
    until(lambda: recorder.total_requests == 2, "it hangs")
    assert sender.send([one], recorder.port)[0].status == 0
    assert recorder.requests == {one.sop_instance: 3}
    assert len(recorder.accepted()) == 1
    recorder.down()
    hanging.join(40)
