"""Who may call: unknown, misplaced and misdirected callers are refused and listed."""

import pytest
from harness import contract, dcmtk, made, sender
from harness.box import Box
from harness.sender import Rejected
from harness.waiting import until

# PS3.8 9.3.4: source 1 is the service user; reason 3 calling, 7 called AE title not recognised.
_USER, _CALLING, _CALLED = 1, 3, 7


def _rejection(port: int, **who: str) -> tuple[int, int]:
    with pytest.raises(Rejected) as caught, sender.association(port, **who):
        pass
    return caught.value.source, caught.value.reason


def _listed(box: Box, calling: str) -> bool:
    return any(calling in str(row) for row in contract.refused(box))


def test_an_unknown_calling_ae_title_is_refused_and_listed(shared_box: Box):
    assert _rejection(shared_box.dicom_port, calling="STRANGER") == (_USER, _CALLING)
    until(lambda: _listed(shared_box, "STRANGER"), "STRANGER among the refused")
    assert sender.echo(shared_box.dicom_port, calling="HARNESS")
    assert not _listed(shared_box, "HARNESS")


def test_one_command_lets_a_refused_caller_in(shared_box: Box):
    assert not sender.echo(shared_box.dicom_port, calling="NEWSCANNER")
    shared_box.allow("NEWSCANNER")
    assert sender.echo(shared_box.dicom_port, calling="NEWSCANNER")
    (answer,) = sender.send([made.ct()], shared_box.dicom_port, calling="NEWSCANNER")
    assert answer.acknowledged


def test_a_removed_caller_is_refused_again(shared_box: Box):
    shared_box.allow("OLDSCANNER")
    assert sender.echo(shared_box.dicom_port, calling="OLDSCANNER")
    shared_box.cli("ae", "remove", "OLDSCANNER")
    assert not sender.echo(shared_box.dicom_port, calling="OLDSCANNER")


def test_a_known_caller_from_another_host_is_refused_and_listed(shared_box: Box):
    shared_box.allow("ELSEWHERE", host="127.0.0.2")
    refusal = _rejection(shared_box.dicom_port, calling="ELSEWHERE", source="127.0.0.1")
    assert refusal == (_USER, _CALLING)
    until(lambda: _listed(shared_box, "ELSEWHERE"), "ELSEWHERE among the refused")
    with sender.association(
        shared_box.dicom_port, calling="ELSEWHERE", source="127.0.0.2"
    ) as assoc:
        assert assoc.send_c_echo().Status == 0


def test_a_wrong_called_ae_title_is_refused(shared_box: Box):
    assert _rejection(shared_box.dicom_port, called="NOTTHISONE") == (_USER, _CALLED)
    until(lambda: _listed(shared_box, "HARNESS"), "the misdirected caller among the refused")


def test_a_caller_allowed_only_echo_cannot_store(shared_box: Box):
    at = ("--host", "127.0.0.1", "--port", "11999")
    shared_box.cli("ae", "add", "ECHOONLY", *at, "--allow", "echo")
    assert sender.echo(shared_box.dicom_port, calling="ECHOONLY")
    before = contract.fsck(shared_box)
    try:
        answers = sender.send([made.ct()], shared_box.dicom_port, calling="ECHOONLY")
        assert not any(answer.acknowledged for answer in answers)
    except Rejected:
        pass  # refusing the whole association is as good
    assert contract.fsck(shared_box) == before


@pytest.mark.peers
def test_dcmtk_is_answered_alike(shared_box: Box):
    assert dcmtk.echoscu(shared_box.dicom_port) == 0
    assert dcmtk.echoscu(shared_box.dicom_port, calling="STRANGER") != 0
    assert dcmtk.echoscu(shared_box.dicom_port, called="NOTTHISONE") != 0
