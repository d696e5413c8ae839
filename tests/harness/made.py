"""Instances made for a test: a small real CT with identities of its own."""

import secrets
from functools import lru_cache

from harness.canary import Canaries
from harness.corpus import pydicom_file
from harness.part10 import EXPLICIT_LE, Part10, encode
from pydicom import dcmread
from pydicom.dataset import Dataset

CT = "1.2.840.10008.5.1.4.1.1.2"


def new_uid() -> str:
    """A UID nobody else has (PS3.5 B.2)."""
    return f"2.25.{secrets.randbits(120)}"


@lru_cache(maxsize=1)
def _template_bytes() -> bytes:
    dataset = dcmread(pydicom_file("CT_small.dcm"))
    dataset.pop("DataSetTrailingPadding", None)
    return encode(dataset, EXPLICIT_LE)


def _template() -> Dataset:
    return Part10(
        path=None,
        sop_class=CT,
        sop_instance="",
        transfer_syntax=EXPLICIT_LE,
        modality="CT",
        data=_template_bytes(),
    ).dataset()


def instance(dataset: Dataset, transfer_syntax: str = EXPLICIT_LE) -> Part10:
    """`dataset` as an instance to send."""
    return Part10(
        path=None,
        sop_class=str(dataset.SOPClassUID),
        sop_instance=str(dataset.SOPInstanceUID),
        transfer_syntax=transfer_syntax,
        modality=str(dataset.get("Modality", "")),
        data=encode(dataset, transfer_syntax),
    )


def ct(
    *,
    study: str = "",
    series: str = "",
    sop: str = "",
    patient_id: str = "TEST-PATIENT",
    patient_name: str = "Test^Patient",
    accession: str = "",
    number: int = 1,
    side: int = 128,
) -> Part10:
    """One CT of `side` x `side` 16-bit pixels with the identities given, fresh where not."""
    dataset = _template()
    dataset.StudyInstanceUID = study or new_uid()
    dataset.SeriesInstanceUID = series or new_uid()
    dataset.SOPInstanceUID = sop or new_uid()
    dataset.PatientID, dataset.PatientName = patient_id, patient_name
    dataset.AccessionNumber = accession
    dataset.InstanceNumber = number
    if side != dataset.Rows:
        dataset.Rows = dataset.Columns = side
        dataset.PixelData = secrets.token_bytes(2 * side) * side
    return instance(dataset)


def studies(*, patients: int, studies_each: int, series_each: int, each: int) -> list[Part10]:
    """Instances of several patients, studies and series."""
    made = []
    for patient in range(patients):
        for study in range(studies_each):
            study_uid = new_uid()
            for _ in range(series_each):
                series_uid = new_uid()
                made += [
                    ct(
                        study=study_uid,
                        series=series_uid,
                        patient_id=f"P{patient:04}",
                        patient_name=f"Family{patient}^Given",
                        accession=f"A{patient:04}{study:02}",
                        number=number,
                    )
                    for number in range(1, each + 1)
                ]
    return made


def marked(marks: Canaries, *, side: int = 128, number: int = 1) -> Part10:
    """A CT that carries every mark: names, identifiers, descriptions, private data, pixels."""
    dataset = _template()
    dataset.PatientName = f"{marks.family_name}^{marks.given_name}"
    dataset.PatientID = marks.patient_id
    dataset.AccessionNumber = marks.accession_number
    dataset.StudyDescription = marks.study_description
    dataset.SeriesDescription = marks.series_description
    dataset.ReferringPhysicianName = marks.referring_physician
    dataset.PatientComments = marks.comments
    dataset.StudyInstanceUID = marks.study_uid
    dataset.SeriesInstanceUID = marks.series_uid
    dataset.SOPInstanceUID = marks.sop_uid
    dataset.InstanceNumber = number
    block = dataset.private_block(0x0099, "EDGEPACS TEST", create=True)
    block.add_new(1, "LO", marks.private)
    dataset.Rows = dataset.Columns = side
    row = (marks.pixels * (2 * side // len(marks.pixels) + 1))[: 2 * side]
    dataset.PixelData = row * side
    return instance(dataset)
