"""How fast queries are answered, beside Orthanc and DCMTK's wlmscpfs: `make bench-query`.

Studies of one instance each, made below the wire here and sent to Orthanc, which has no other way
in; the same worklist here, as files for Orthanc's plugin and for wlmscpfs. Every query has an
association of its own, and is timed from the connection to the answer to its release. From the
environment: STUDIES, here; ORTHANC, there, 0 to leave the others out; QUERIES of each kind; OUT, a
Markdown file.
"""

import contextlib
import os
import secrets
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from harness.box import Box
from harness.dcmtk import require
from harness.orthanc import Orthanc
from harness.part10 import EXPLICIT_LE
from harness.waiting import free_port, until
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from store.making import element

from bench import machine, report
from edgepacs import config
from edgepacs.clock import wall_ms
from edgepacs.dimse import Association, Limits, ProposedContext, identifier, request
from edgepacs.dimse.command import Element, Field, Value
from edgepacs.dimse.identifier import Values
from edgepacs.dimse.query import AS_SCU, WORKLIST_AS_SCU
from edgepacs.model import UID, AETitle, Arrival, Attributes, EntryOrigin, ObjectId, Origin
from edgepacs.store import instances, opened, worklist
from edgepacs.store.drafts import Draft
from edgepacs.store.worklist import Entry, Patient

CT = UID("1.2.840.10008.5.1.4.1.1.2")
_AT_ONCE = 1000
_HUNDRED = 100  # studies of one family name, and in two days
_DAYS_EACH = 50  # studies of one day
_FIRST_DAY = date(2020, 1, 1)
_ENTRIES = 1000  # of the worklist
_ROOM = 4 << 30
_COLUMNS = (
    "query",
    "server",
    "studies or entries",
    "matches",
    "median ms",
    "p95 ms",
    "times EdgePACS",
)
# What is asked to be returned, as a work station does.
_RETURNED = (0x00080020, 0x00080030, 0x00080050, 0x00080061, 0x00081030, 0x00100010, 0x00100020)
_STEPS = 0x00400100  # Scheduled Procedure Step Sequence
_RETURNED_OF_ENTRY = (0x00080050, 0x00100010, 0x00100020, 0x00100030, 0x00100040, 0x0020000D)
_RETURNED_OF_STEP = (0x00080060, 0x00400001, 0x00400002, 0x00400003, 0x00400007, 0x00400009)
_RETURNED_TOO = (0x00100030, 0x00100040, 0x0020000D, 0x00200010, 0x00201206, 0x00201208)


@dataclass(frozen=True, slots=True)
class Study:
    """One study of many, all different and all alike."""

    number: int

    @property
    def uid(self) -> str:
        return f"1.2.826.0.1.3680043.10.{self.number}"

    @property
    def attributes(self) -> Attributes:
        return Attributes(
            sop_class_uid=CT,
            sop_instance_uid=UID(f"{self.uid}.1.1"),
            study_instance_uid=UID(self.uid),
            series_instance_uid=UID(f"{self.uid}.1"),
            patient_id=f"P{self.number:06}",
            patient_name=f"Family{self.number // _HUNDRED:04}^Given{self.number % _HUNDRED}",
            patient_birth_date="19700101",
            patient_sex="O",
            study_date=day(self.number // _DAYS_EACH),
            study_time="101112",
            study_id=str(self.number),
            accession_number=f"A{self.number:06}",
            study_description="Thorax",
            modality="CT",
            series_number="1",
            instance_number="1",
        )

    def draft(self) -> Draft:
        """What is committed here; nothing stands in the vault, since no query reads it."""
        attributes = self.attributes
        return Draft(
            arrival=Arrival(
                sop_class_uid=CT,
                sop_instance_uid=attributes.sop_instance_uid,
                transfer_syntax_uid=UID(EXPLICIT_LE),
                origin=Origin.PREFETCH,
                source="BENCH",
            ),
            attributes=attributes,
            object_id=ObjectId(secrets.token_bytes(16)),
            byte_length=1,
            sealed_length=1,
            received_digest=secrets.token_bytes(33),
            pixel_offset=-1,
            received_ms=wall_ms(),
        )

    def data(self) -> bytes:
        """The same as an instance to send."""
        said = self.attributes
        texts = (
            (0x00080016, "UI", said.sop_class_uid),
            (0x00080018, "UI", said.sop_instance_uid),
            (0x00080020, "DA", said.study_date),
            (0x00080030, "TM", said.study_time),
            (0x00080050, "SH", said.accession_number),
            (0x00080060, "CS", said.modality),
            (0x00081030, "LO", said.study_description),
            (0x00100010, "PN", said.patient_name),
            (0x00100020, "LO", said.patient_id),
            (0x00100030, "DA", said.patient_birth_date),
            (0x00100040, "CS", said.patient_sex),
            (0x0020000D, "UI", said.study_instance_uid),
            (0x0020000E, "UI", said.series_instance_uid),
            (0x00200010, "SH", said.study_id),
            (0x00200011, "IS", said.series_number),
            (0x00200013, "IS", said.instance_number),
        )
        return b"".join(element(tag, vr, value) for tag, vr, value in texts)


def day(number: int) -> str:
    """A day as a DA value."""
    return (_FIRST_DAY + timedelta(days=number)).strftime("%Y%m%d")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of query: its keys from any number, and how many match."""

    title: str
    keys: Callable[[int], Mapping[int, str]]
    matches: int
    model: ProposedContext = AS_SCU

    @property
    def base(self) -> Values:
        """What is asked to be returned besides."""
        if self.model is WORKLIST_AS_SCU:
            step = dict.fromkeys(_RETURNED_OF_STEP, "")
            return {**dict.fromkeys(_RETURNED_OF_ENTRY, ""), _STEPS: [step]}
        returned = dict.fromkeys((*_RETURNED, *_RETURNED_TOO), "")
        return {**returned, identifier.QUERY_RETRIEVE_LEVEL: "STUDY"}


WORKLIST = Kind(
    "worklist, prefix of a name",
    lambda n: {0x00100010: f"Family{n % _ENTRIES // _HUNDRED:04}*"},
    _HUNDRED,
    WORKLIST_AS_SCU,
)
KINDS = (
    Kind("exact patient ID", lambda n: {0x00100020: f"P{n:06}"}, 1),
    Kind("prefix of a name", lambda n: {0x00100010: f"FAMILY{n // _HUNDRED:04}*"}, _HUNDRED),
    Kind("range of dates", lambda n: {0x00080020: two_days(n)}, 2 * _DAYS_EACH),
)


def two_days(number: int) -> str:
    """Two days in which studies were made, as a range."""
    first = number // _HUNDRED * 2
    return f"{day(first)}-{day(first + 1)}"


_PLUGIN = "/usr/share/orthanc/plugins/libModalityWorklists.so"


class _Asked(Orthanc):
    """An Orthanc that answers whoever asks, with the worklist files in a folder."""

    def _configuration(self) -> dict[str, Any]:
        return {
            **super()._configuration(),
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowFindWorklist": True,
            "Worklists": {"Enable": True, "Database": str(self.directory.parent / "lists" / "WL")},
        }


@contextlib.contextmanager
def wlmscpfs(folder: Path) -> Iterator["Server"]:
    """DCMTK's worklist server over the files in a folder."""
    port = free_port()
    with (folder / "wlmscpfs.log").open("wb") as log:
        process = subprocess.Popen(
            [require("wlmscpfs"), "-dfp", str(folder / "lists"), str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        try:
            until(lambda: listens(port), "wlmscpfs listens")
            yield Server("wlmscpfs", port, "WL", 0)
        finally:
            process.terminate()
            process.wait(10)


def listens(port: int) -> bool:
    """Whether anything takes connections on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def worklist_files(folder: Path) -> None:
    """The entries as DICOM worklist files."""
    folder.mkdir(parents=True)
    (folder / "lockfile").touch()
    for number in range(_ENTRIES):
        one, said = Dataset(), entry(number)
        one.SOPClassUID = "1.2.840.10008.5.1.4.31"
        one.SOPInstanceUID = one.StudyInstanceUID = f"{Study(number).uid}.9"
        one.AccessionNumber, one.PatientID = said.accession_number, said.patient.patient_id
        one.PatientName, one.PatientSex = said.patient.name, said.patient.sex
        one.PatientBirthDate = said.patient.birth_date
        one.RequestedProcedureDescription = said.procedure_description
        one.RequestedProcedureID = f"RP{number}"
        step = Dataset()
        step.Modality, step.ScheduledStationAETitle = said.modality, said.station_ae
        step.ScheduledProcedureStepStartDate = said.start_date
        step.ScheduledProcedureStepStartTime = said.start_time
        step.ScheduledProcedureStepDescription = said.procedure_description
        step.ScheduledProcedureStepID = f"S{number}"
        one.ScheduledProcedureStepSequence = [step]
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.save_as(folder / f"{number:04}.wl", enforce_file_format=True)


@dataclass(frozen=True, slots=True)
class Server:
    """What is asked."""

    name: str
    port: int
    title: str
    studies: int

    def associate(self, *contexts: ProposedContext) -> Association:
        return request(
            "127.0.0.1",
            self.port,
            calling=AETitle("BENCH"),
            called=AETitle(self.title),
            contexts=contexts,
            limits=Limits(),
        )

    def ask(self, kind: Kind, number: int) -> float:
        """Seconds of one query with an association of its own."""
        data = identifier.encode({**kind.base, **kind.keys(number)})
        elements: dict[int, Value] = {
            Element.AFFECTED_SOP_CLASS_UID: kind.model.abstract_syntax,
            Element.COMMAND_FIELD: Field.C_FIND_RQ,
            Element.PRIORITY: 0,
        }
        begun = time.perf_counter()
        with self.associate(kind.model) as association:
            answers = list(association.ask(1, elements, (data,)))
        seconds = time.perf_counter() - begun
        assert answers[-1].status == 0, f"{self.name}: {answers[-1].status:04X}"
        assert len(answers) - 1 == kind.matches, f"{self.name}: {len(answers) - 1} matches"
        return seconds

    def times(self, kind: Kind, queries: int) -> list[float]:
        """Milliseconds of so many queries, each for something else; some before, to warm up."""
        among = _ENTRIES if kind is WORKLIST else self.studies
        numbers = [at * 7919 % among for at in range(-10, queries)]
        return [1000 * self.ask(kind, number) for number in numbers][10:]


def entry(number: int) -> Entry:
    """A scheduled procedure step of the patient of a study."""
    said = Study(number).attributes
    return Entry(
        patient=Patient(
            patient_id=said.patient_id,
            name=said.patient_name,
            birth_date=said.patient_birth_date,
            sex=said.patient_sex,
        ),
        accession_number=said.accession_number,
        procedure_description="Thorax",
        modality="CT",
        station_ae="BENCH",
        start_date=said.study_date,
        start_time=said.study_time,
    )


def fill_here(box: Box, studies: int) -> None:
    """Make so many studies, and a worklist, known to a node that is not running."""
    with opened(config.load(box.config)) as store:
        with store.db.write() as tx:
            for number in range(_ENTRIES):
                key = str(number)
                worklist.put(
                    tx,
                    entry(number),
                    origin=EntryOrigin.HL7,
                    source="bench",
                    key=key,
                    actor="bench",
                )
        for first in range(0, studies, _AT_ONCE):
            some = range(first, min(first + _AT_ONCE, studies))
            instances.commit(store.db, [Study(number).draft() for number in some])


def fill_orthanc(server: Server) -> None:
    """Send it its studies, all on one association."""
    context = ProposedContext(abstract_syntax=CT, transfer_syntaxes=(EXPLICIT_LE,))
    with server.associate(context) as association:
        for number in range(server.studies):
            study = Study(number)
            answer = association.store(1, CT, study.attributes.sop_instance_uid, (study.data(),))
            assert answer.status == 0


def edgepacs(folder: Path, studies: int) -> tuple[Box, Server]:
    """A node that holds them, running."""
    box = Box.made(folder / "node")
    box.compress(0)
    box.cli(
        "ae", "add", "BENCH", "--host", "127.0.0.1", "--port", "104", "--allow", "find,worklist"
    )
    fill_here(box, studies)
    box.start()
    return box, Server("EdgePACS", box.dicom_port, box.ae_title, studies)


def rows(servers: Sequence[Server], queries: int) -> Iterator[list[str]]:
    """What each server took for each kind, in turns; one without studies has a worklist alone."""
    for kind in (*KINDS, WORKLIST):
        asked = [one for one in servers if one.studies or kind is WORKLIST]
        taken = {server.name: server.times(kind, queries) for server in asked}
        ours = statistics.median(next(iter(taken.values())))
        for server in asked:
            milliseconds = taken[server.name]
            median = statistics.median(milliseconds)
            yield [
                kind.title,
                server.name,
                f"{_ENTRIES if kind is WORKLIST else server.studies:,}",
                str(kind.matches),
                f"{median:.1f}",
                f"{statistics.quantiles(milliseconds, n=20)[-1]:.1f}",
                "" if server is servers[0] else f"{median / ours:.1f}",
            ]
            print(
                "  ".join(filter(None, [kind.title, server.name, f"{median:.2f} ms"])), flush=True
            )


def main() -> None:
    studies = int(os.environ.get("STUDIES") or 50_000)
    theirs = int(os.environ.get("ORTHANC") or 20_000)
    queries = int(os.environ.get("QUERIES") or 200)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as ending:
        folder = Path(directory)
        machine.require_disk(folder, _ROOM)
        box, ours = edgepacs(folder, studies)
        worklist_files(folder / "lists" / "WL")
        orthanc = _Asked(folder / "orthanc", plugins=[_PLUGIN])
        try:
            servers = [ours]
            if theirs:
                orthanc.start()
                servers.append(Server("Orthanc", orthanc.port, orthanc.ae_title, theirs))
                fill_orthanc(servers[1])
                servers.append(ending.enter_context(wlmscpfs(folder)))
            table = report.table(_COLUMNS, rows(servers, queries))
        finally:
            orthanc.stop()
            box.kill()
        facts = {**machine.description(folder), "Queries of each kind": str(queries)}
    report.publish("query", f"{report.about(facts)}\n\n{table}")


if __name__ == "__main__":
    main()
