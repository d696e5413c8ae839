import tracemalloc
import warnings
from dataclasses import replace

import pytest
from custody.outcome import compress_all, frames_of
from harness import corpus, made
from harness.part10 import EXPLICIT_BE, EXPLICIT_LE, Part10, decode, read
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from store.making import element, small, take_in, take_in_part

from edgepacs.custody.correction import Correction, corrected
from edgepacs.errors import Undecodable
from edgepacs.store import Store, instances
from edgepacs.store.instances import Instance
from edgepacs.store.worklist import Entry, Patient

AT_MS = 1_700_000_000_123
RIGHT = Patient(
    patient_id="P-77", issuer="CLINIC", name="Right^Rita", birth_date="19610402", sex="F"
)
ORDER = Entry(
    patient=RIGHT,
    study_instance_uid="1.2.3.77",
    accession_number="ACC77",
    admission_id="V9",
    procedure_id="RP1",
    procedure_description="CT of the head",
    procedure_code="CTH^L^CT head\\CTX^99X^Other",
    referring_physician="Ref^Erring",
    step_id="S1",
    step_description="Head",
    modality="CT",
)
WORDS = Correction(entry=ORDER, system="EdgePACS BOX", at_ms=AT_MS)
ATTRIBUTES = 0x7FE00000


def stored(store: Store, part: Part10) -> Instance:
    return instances.instance(store.db, take_in_part(store, part).instance_id)


def anew(store: Store, one: Instance, wanted: Correction = WORDS) -> tuple[str, bytes]:
    made_anew = corrected(store, one, wanted)
    assert made_anew is not None
    return made_anew.transfer_syntax_uid, b"".join(made_anew.chunks)


def read_back(made_anew: tuple[str, bytes]) -> Dataset:
    return decode(made_anew[1], made_anew[0])


def bare(dataset: Dataset, *, but: set[int]) -> dict[int, str]:
    """Every attribute before the pixel data in words, group lengths left out."""
    return {
        int(tag): str(dataset[tag])
        for tag in sorted(dataset.keys())
        if int(tag) < ATTRIBUTES and tag.element and int(tag) not in but
    }


CHANGED = {
    *(0x00080050, 0x00080090, 0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040),
    *(0x00101010, 0x00101020, 0x00101030, 0x001021B0, 0x00104000, 0x00101002, 0x00101000),
    *(0x00380010, 0x00400275, 0x04000561, 0x00080005, 0x00101060, 0x00101001, 0x00102160),
    *(0x00101040, 0x00102154, 0x00100022, 0x00102110, 0x00102000, 0x001021C0),
}


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "image_dfl.dcm",
        "JPEG2000.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "rtplan.dcm",
        "reportsi.dcm",
    ],
)
def test_the_order_is_applied_and_all_else_stays(store: Store, name: str) -> None:
    part = read(corpus.pydicom_file(name))
    one = stored(store, part)
    syntax, data = anew(store, one)
    assert syntax == (EXPLICIT_LE if part.transfer_syntax == EXPLICIT_BE else part.transfer_syntax)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old, new = part.dataset(), decode(data, syntax)
        assert new.PatientName == "Right^Rita"
        assert (new.PatientID, new.IssuerOfPatientID) == ("P-77", "CLINIC")
        assert (new.PatientBirthDate, new.PatientSex) == ("19610402", "F")
        assert (new.AccessionNumber, new.AdmissionID) == ("ACC77", "V9")
        assert new.ReferringPhysicianName == "Ref^Erring"
        assert new.SOPInstanceUID == old.SOPInstanceUID
        assert bare(new, but=CHANGED) == bare(old, but=CHANGED)
        assert frames_of(data, syntax) == frames_of(part.data, part.transfer_syntax)
        (what_was,) = new.OriginalAttributesSequence[-1].ModifiedAttributesSequence
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            differed = str(old.get(keyword, "")) != str(new.get(keyword, ""))
            assert (keyword in what_was) == (differed and keyword in old)
            assert not differed or str(what_was.get(keyword, "")) == str(old.get(keyword, ""))


def test_what_was_there_is_told_with_when_who_and_why(store: Store) -> None:
    one = instances.instance(store.db, take_in(store, name="Wrong^Will", source="CT1").instance_id)
    new = read_back(anew(store, one))
    (item,) = new.OriginalAttributesSequence
    assert item.AttributeModificationDateTime == "20231114221320.123000+0000"
    assert item.ModifyingSystem == "EdgePACS BOX"
    assert item.SourceOfPreviousValues == "CT1"
    assert item.ReasonForTheAttributeModification == "CORRECT"
    (what_was,) = item.ModifiedAttributesSequence
    assert (what_was.PatientName, what_was.PatientID) == ("Wrong^Will", "P1")
    (request,) = new.RequestAttributesSequence
    assert (request.RequestedProcedureID, request.ScheduledProcedureStepID) == ("RP1", "S1")
    assert request.StudyInstanceUID == "1.2.3.77"
    codes = [
        (c.CodeValue, c.CodingSchemeDesignator) for c in request.RequestedProcedureCodeSequence
    ]
    assert codes == [("CTH", "L"), ("CTX", "99X")]


def test_an_earlier_history_is_kept_and_signatures_go(store: Store) -> None:
    part = made.ct()
    dataset = part.dataset()
    earlier = Dataset()
    earlier.AttributeModificationDateTime = "20200101"
    earlier.ModifyingSystem = "Other"
    dataset.OriginalAttributesSequence = [earlier]
    dataset.MACParametersSequence = [Dataset()]
    dataset.DigitalSignaturesSequence = [Dataset()]
    new = read_back(anew(store, stored(store, made.instance(dataset))))
    assert [one.ModifyingSystem for one in new.OriginalAttributesSequence] == [
        "Other",
        "EdgePACS BOX",
    ]
    assert "MACParametersSequence" not in new
    assert "DigitalSignaturesSequence" not in new


def test_another_patient_loses_what_came_with_the_wrong_one(store: Store) -> None:
    dataset = made.ct(patient_id="WRONG").dataset()
    dataset.OtherPatientIDs = "X"
    dataset.PatientAge = "033Y"
    dataset.PatientWeight = "80"
    dataset.IssuerOfPatientID = "ELSEWHERE"
    other = Dataset()
    other.PatientID = "X"
    dataset.OtherPatientIDsSequence = [other]
    one = stored(store, made.instance(dataset))
    entry = replace(ORDER, patient=replace(RIGHT, issuer="", birth_date="", weight="61.5"))
    new = read_back(anew(store, one, replace(WORDS, entry=entry)))
    assert not {"OtherPatientIDs", "OtherPatientIDsSequence", "PatientAge"} & set(new.dir())
    assert "IssuerOfPatientID" not in new
    assert new.PatientWeight == 61.5
    assert new.PatientBirthDate == ""
    (what_was,) = new.OriginalAttributesSequence[0].ModifiedAttributesSequence
    assert what_was.IssuerOfPatientID == "ELSEWHERE"
    assert what_was.OtherPatientIDsSequence[0].PatientID == "X"


def test_what_the_order_does_not_know_stays(store: Store) -> None:
    dataset = made.ct(patient_id="P-77").dataset()
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19500101", "M", "050Y"
    dataset.IssuerOfPatientID = "CLINIC"
    one = stored(store, made.instance(dataset))
    entry = Entry(patient=Patient(patient_id="P-77", name="Right^Rita"))
    new = read_back(anew(store, one, replace(WORDS, entry=entry)))
    assert (new.PatientBirthDate, new.PatientSex, new.PatientAge) == ("19500101", "M", "050Y")
    assert new.IssuerOfPatientID == "CLINIC"


def test_laterality_changes_where_one_is_said(store: Store) -> None:
    for said, wanted, becomes in (("L", "R", "R"), ("", "R", ""), ("L", "B", "L")):
        dataset = made.ct().dataset()
        dataset.Laterality = dataset.ImageLaterality = said
        one = stored(store, made.instance(dataset))
        new = read_back(anew(store, one, replace(WORDS, entry=replace(ORDER, laterality=wanted))))
        assert (new.Laterality, new.ImageLaterality) == (becomes, becomes)


def test_nothing_is_written_where_nothing_differs(store: Store) -> None:
    one = stored(store, made.ct())
    syntax, data = anew(store, one)
    other = decode(data, syntax)
    other.SOPInstanceUID = made.new_uid()
    same = stored(store, made.instance(other))
    assert corrected(store, same, WORDS) is None


@pytest.mark.parametrize(
    ("character_set", "name", "institution", "becomes"),
    [
        ("", "Müller^Jörg", b"Clinic", "ISO_IR 192"),
        ("ISO_IR 100", "Müller^Jörg", "Köln".encode("latin-1"), "ISO_IR 100"),
        ("ISO_IR 100", "Иванов^Иван", "Köln".encode("latin-1"), "ISO_IR 192"),
        ("ISO_IR 144", "Иванов^Иван", "Москва".encode("iso8859_5"), "ISO_IR 144"),
        ("ISO_IR 192", "山田^太郎", "Köln".encode(), "ISO_IR 192"),
        ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎", b"\x1b$B;3ED\x1b(B", "ISO_IR 192"),
        ("ISO_IR 100", "Plain^Name", "Köln".encode("latin-1"), "ISO_IR 100"),
    ],
)
def test_text_is_written_in_a_character_set_that_holds_it(
    store: Store, character_set: str, name: str, institution: bytes, becomes: str
) -> None:
    data = small(sop="1.2.3.9")
    start = element(0x00080005, "CS", "ISO_IR 192")
    place = data.index(element(0x00081010, "SH", ""))
    nested = element(0x00080080, "LO", institution)
    item = b"\xfe\xff\x00\xe0" + len(nested).to_bytes(4, "little") + nested
    data = data[len(start) : place] + nested + data[place:] + element(0x00400555, "SQ", item)
    data = element(0x00080005, "CS", character_set) + data
    part = Part10(
        path=None,
        sop_class=made.CT,
        sop_instance="1.2.3.9",
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=data,
    )
    before = part.dataset()
    one = stored(store, part)
    entry = replace(ORDER, patient=replace(RIGHT, name=name))
    new = read_back(anew(store, one, replace(WORDS, entry=entry)))
    assert new.SpecificCharacterSet == becomes
    assert new.PatientName == name
    assert new.InstitutionName == before.InstitutionName
    assert new[0x00400555].value[0].InstitutionName == before.InstitutionName


def test_new_uids_are_the_same_wherever_they_are_named(store: Store) -> None:
    dataset = made.ct(study="1.2.3", series="1.2.3.4", sop="1.2.3.4.5").dataset()
    named = Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = made.CT, "1.2.3.4.6"
    other = Dataset()
    other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = made.CT, "1.2.3.4.99"
    dataset.ReferencedImageSequence = Sequence([named, other])
    one = stored(store, made.instance(dataset))
    uids = {"1.2.3": "2.25.1", "1.2.3.4": "2.25.22", "1.2.3.4.5": "2.25.3", "1.2.3.4.6": "2.25.444"}
    result = corrected(store, one, replace(WORDS, uids=uids))
    assert result is not None
    assert result.sop_instance_uid == "2.25.3"
    new = decode(b"".join(result.chunks), result.transfer_syntax_uid)
    assert (new.StudyInstanceUID, new.SeriesInstanceUID) == ("2.25.1", "2.25.22")
    assert new.SOPInstanceUID == "2.25.3"
    assert [r.ReferencedSOPInstanceUID for r in new.ReferencedImageSequence] == [
        "2.25.444",
        "1.2.3.4.99",
    ]
    (what_was,) = new.OriginalAttributesSequence[0].ModifiedAttributesSequence
    assert (what_was.SOPInstanceUID, what_was.StudyInstanceUID) == ("1.2.3.4.5", "1.2.3")


def test_it_is_made_of_what_was_received_though_it_stands_compressed(store: Store) -> None:
    part = made.ct()
    one = stored(store, part)
    compress_all(store)
    syntax, data = anew(store, one)
    assert syntax == part.transfer_syntax
    assert decode(data, syntax).PixelData == part.dataset().PixelData


def test_what_cannot_be_followed_is_refused(store: Store) -> None:
    twice = element(0x00200013, "IS", "1") + element(0x00200011, "IS", "1")
    number = take_in(store, more=twice).instance_id
    with pytest.raises(Undecodable, match="order"):
        corrected(store, instances.instance(store.db, number), WORDS)


def test_memory_does_not_grow_with_the_instance(store: Store) -> None:
    part = made.ct(side=2048)  # 8 MiB
    one = stored(store, part)
    tracemalloc.start()
    try:
        result = corrected(store, one, WORDS)
        assert result is not None
        length = sum(map(len, result.chunks))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length > 8 << 20
    assert peak < 5 << 20
