"""A central archive that never overwrites: what it shows is what a clinician there would see.

It keeps the first version of each SOP Instance UID, hides what a rejection note names, and corrects
patients in its index when told by HL7 ADT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.adt_server import AdtServer, adt_server
from harness.part10 import decode
from harness.recorder import RecordingSCP
from pydicom.dataset import Dataset

KOS = "1.2.840.10008.5.1.4.1.1.88.59"


@dataclass(frozen=True)
class Shown:
    """One image as the archive shows it."""

    patient_id: str
    name: str
    accession: str
    side: str
    study: str
    instance: str


class Centre:
    """The archive, its storage on `scp`, its HL7 interface on `adt`."""

    def __init__(self, scp: RecordingSCP, adt: AdtServer) -> None:
        self.scp, self.adt = scp, adt

    def kept(self) -> dict[str, Dataset]:
        """The first version of each instance, in the order of arrival."""
        found: dict[str, Dataset] = {}
        for one in self.scp.accepted():
            found.setdefault(one.sop_instance, decode(one.data, one.transfer_syntax))
        return found

    def rejected(self) -> set[str]:
        """What rejection notes name (113038, DCM)."""
        return {
            item.ReferencedSOPInstanceUID
            for note in self.kept().values()
            if note.SOPClassUID == KOS and note.ConceptNameCodeSequence[0].CodeValue == "113038"
            for study in note.CurrentRequestedProcedureEvidenceSequence
            for series in study.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        }

    def shown(self) -> list[Shown]:
        """Every image that is to be used."""
        hidden = self.rejected()
        return [
            self._indexed(one)
            for uid, one in self.kept().items()
            if uid not in hidden and one.SOPClassUID != KOS
        ]

    def _indexed(self, one: Dataset) -> Shown:
        number, name = str(one.PatientID), str(one.PatientName)
        for message in self.adt.heard:
            segments = {line[:3]: line.split("|") for line in message.split("\r") if line}
            now = segments["PID"][3].split("^")[0]
            if "MRG" in segments and segments["MRG"][1].split("^")[0] == number:
                number = now
            if now == number:
                name = "^".join(segments["PID"][5].split("~")[0].split("^")[:5]).rstrip("^")
        return Shown(
            patient_id=number,
            name=name,
            accession=str(one.get("AccessionNumber", "")),
            side=str(one.get("Laterality", "")),
            study=str(one.StudyInstanceUID),
            instance=str(one.SOPInstanceUID),
        )


@contextmanager
def centre() -> Iterator[Centre]:
    with RecordingSCP("CENTRAL") as scp, adt_server() as adt:
        yield Centre(scp, adt)
