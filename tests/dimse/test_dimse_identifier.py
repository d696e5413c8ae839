"""The small data sets of reports and queries, written and read against pydicom."""

import pytest
from forward.archive import decode as pydicom_decode
from forward.archive import encode as pydicom_encode
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from edgepacs.dimse import identifier
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.errors import InvalidValue


def report(*, undefined: bool = False) -> Dataset:
    one = Dataset()
    one.TransactionUID = "1.2.3"
    one.ReferencedSOPSequence = []
    for number in range(3):
        item = Dataset()
        item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        item.ReferencedSOPInstanceUID = f"1.2.{number}"
        item.is_undefined_length_sequence_item = undefined
        one.ReferencedSOPSequence.append(item)
    failed = Dataset()
    failed.ReferencedSOPInstanceUID = "1.2.9"
    failed.FailureReason = 0x0112
    one.FailedSOPSequence = [failed]
    one["ReferencedSOPSequence"].is_undefined_length = undefined
    return one


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [EXPLICIT_VR_LE, IMPLICIT_VR_LE])
def test_what_pydicom_writes_is_read(
    syntax: str,
    undefined: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    values = identifier.decode(pydicom_encode(report(undefined=undefined), syntax), syntax)
    assert identifier.text(values, identifier.TRANSACTION_UID) == "1.2.3"
    instances = [
        identifier.text(item, identifier.SOP_INSTANCES_REFERENCED)
        for item in identifier.items(values, identifier.REFERENCED_SOP_SEQUENCE)
    ]
    assert instances == ["1.2.0", "1.2.1", "1.2.2"]
    (failed,) = identifier.items(values, identifier.FAILED_SOP_SEQUENCE)
    assert identifier.number(failed, identifier.FAILURE_REASON) == 0x0112
    assert identifier.number(values, identifier.FAILURE_REASON) == 0
    assert identifier.text(values, identifier.REFERENCED_SOP_SEQUENCE) == ""


def test_what_is_written_pydicom_reads() -> None:
    raw = identifier.encode(
        {
            identifier.SOP_INSTANCE_UID: "1.2.3\\1.2.34",
            identifier.QUERY_RETRIEVE_LEVEL: "IMAGE",
            identifier.FAILED_SOP_SEQUENCE: [
                {identifier.SOP_CLASSES_REFERENCED: "1.2", identifier.FAILURE_REASON: 0x0131}
            ],
            identifier.STUDY_INSTANCE_UID: "",
        }
    )
    one = pydicom_decode(raw)
    assert list(one.SOPInstanceUID) == ["1.2.3", "1.2.34"]
    assert one.QueryRetrieveLevel == "IMAGE"
    assert one.FailedSOPSequence[0].FailureReason == 0x0131
    assert one.StudyInstanceUID == ""
    assert len(raw) % 2 == 0
    assert pydicom_encode(one) == raw


def test_an_unknown_vr_of_undefined_length_is_a_sequence_in_implicit_vr() -> None:
    inner = identifier.encode({identifier.SOP_INSTANCES_REFERENCED: "1.2"})
    raw = (
        b"\x08\x00\x99\x11UN\0\0\xff\xff\xff\xff"
        b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    (item,) = identifier.items(
        identifier.decode(raw, EXPLICIT_VR_LE), identifier.REFERENCED_SOP_SEQUENCE
    )
    assert identifier.text(item, identifier.SOP_INSTANCES_REFERENCED) == "1.2"


def test_what_is_nested_too_deep_is_refused() -> None:
    nested = b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(InvalidValue, match="deep"):
        identifier.decode(nested * 1000, IMPLICIT_VR_LE)


def test_text_that_is_not_ascii_is_not_sent() -> None:
    with pytest.raises(InvalidValue, match=r"\(0008,0052\)"):
        identifier.encode({identifier.QUERY_RETRIEVE_LEVEL: "BÄH"})


def test_another_encoding_is_refused() -> None:
    with pytest.raises(InvalidValue, match="native"):
        identifier.decode(b"", "1.2.840.10008.1.2.2")


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([EXPLICIT_VR_LE, IMPLICIT_VR_LE]))
def test_whatever_comes_is_read_or_refused(data: st.DataObject, syntax: str) -> None:
    raw = bytearray(pydicom_encode(report(undefined=data.draw(st.booleans())), syntax))
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)
    ):
        raw[at] = value
    cut = data.draw(st.integers(0, len(raw)))
    try:
        values = identifier.decode(bytes(raw[:cut]), syntax)
    except InvalidValue:
        return
    for item in identifier.items(values, identifier.REFERENCED_SOP_SEQUENCE):
        identifier.text(item, identifier.SOP_INSTANCES_REFERENCED)


@pytest.mark.parametrize("syntax", [EXPLICIT_VR_LE, IMPLICIT_VR_LE])
def test_every_kind_of_key_is_written_and_read(syntax: str) -> None:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = "IMAGE"
    wanted.StudyDate = "20200101-20200131"
    wanted.PatientName = "Doe^J*"
    wanted.Rows = 512
    wanted.InstanceNumber = "7"
    wanted.SpecimenDescriptionSequence = []
    item = Dataset()
    item.ScheduledProcedureStepStartTime = "10-12"
    item.ScheduledProtocolCodeSequence = [Dataset()]
    item.ScheduledProtocolCodeSequence[0].CodeValue = "A"
    item.CommentsOnTheScheduledProcedureStep = "odd"
    wanted.ScheduledProcedureStepSequence = [item]
    wanted.add_new(0x00091001, "LO", "ours")
    values = identifier.decode(pydicom_encode(wanted, syntax), syntax)
    assert identifier.text(values, identifier.STUDY_DATE) == "20200101-20200131"
    assert identifier.numbers(values, 0x00280010) == "512"
    assert identifier.items(values, 0x00400560) == ()
    (step,) = identifier.items(values, 0x00400100)
    (code,) = identifier.items(step, 0x00400008)
    assert identifier.text(code, 0x00080100) == "A"
    raw = identifier.encode(
        {
            identifier.QUERY_RETRIEVE_LEVEL: "IMAGE",
            identifier.STUDY_DATE: "20200101-20200131",
            0x00100010: b"Doe^J*",
            0x00280010: 512,
            0x00200013: 7,
            0x00400560: [],
            0x00400100: [{0x00400003: "10-12", 0x00400008: [{0x00080100: "A"}], 0x00400400: "odd"}],
        },
        syntax,
    )
    del wanted[0x00091001]
    assert raw == pydicom_encode(wanted, syntax)


@pytest.mark.parametrize(
    ("tag", "value"), [(0x00280010, 70_000), (0x00280010, "many"), (0x00080050, "é")]
)
def test_what_does_not_fit_its_vr_is_not_written(tag: int, value: int | str) -> None:
    with pytest.raises(InvalidValue, match=r"\(00"):
        identifier.encode({tag: value})


def test_an_explicit_length_has_a_limit() -> None:
    """PS3.5 7.1.2: two bytes."""
    with pytest.raises(InvalidValue, match="65535"):
        identifier.encode({identifier.STUDY_INSTANCE_UID: "1\\" * 40_000}, EXPLICIT_VR_LE)
