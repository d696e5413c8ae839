"""Rejection notes as another maker writes them: Key Object Selection Documents by pydicom."""

from collections.abc import Sequence

from harness import made
from harness.part10 import EXPLICIT_LE, Part10
from pydicom.dataset import Dataset

KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
QUALITY, SAFETY, WORKLIST, RETENTION = "113001", "113037", "113038", "113039"


def rejection(
    named: Sequence[str],
    *,
    title: str = WORKLIST,
    scheme: str = "DCM",
    sop: str = "",
    study: str = "1.2.3.1",
    syntax: str = EXPLICIT_LE,
) -> Part10:
    """A note that names instances, all of one series."""
    dataset = document(named, title=title, scheme=scheme, sop=sop, study=study)
    return made.instance(dataset, syntax)


def document(
    named: Sequence[str], *, title: str, scheme: str = "DCM", sop: str = "", study: str = "1.2.3.1"
) -> Dataset:
    """The same as a data set."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = KEY_OBJECTS, sop or made.new_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, made.new_uid()
    dataset.PatientID, dataset.PatientName = "P1", "Doe^Jane"
    dataset.Modality = "KO"
    dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
    dataset.ConceptNameCodeSequence = [_item(CodeValue=title, CodingSchemeDesignator=scheme)]
    those = [_item(ReferencedSOPClassUID=made.CT, ReferencedSOPInstanceUID=uid) for uid in named]
    series = _item(ReferencedSOPSequence=those, SeriesInstanceUID="1.2.3.2")
    evidence = _item(ReferencedSeriesSequence=[series], StudyInstanceUID=study)
    dataset.CurrentRequestedProcedureEvidenceSequence = [evidence]
    dataset.ContentSequence = [
        _item(RelationshipType="CONTAINS", ValueType="IMAGE", ReferencedSOPSequence=[one])
        for one in those
    ]
    return dataset


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
