"""A rejection note on the wire: sent by DCMTK, and what DCMTK then finds and retrieves."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import made, notes
from harness.dcmtk import require, storescu
from pydicom import dcmread
from scp.serving import Serving, serving

from edgepacs.model import Service
from edgepacs.upkeep.rejections import read_waiting

STUDY = "1.2.3.1"
FIRST, SECOND = "1.2.3.4.1", "1.2.3.4.2"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "node") as one:
        one.allow("HARNESS", services=(Service.STORE, Service.FIND, Service.GET))
        yield one


def asked(node: Serving, program: str, folder: Path, *arguments: str) -> list[Path]:
    folder.mkdir()
    command = [require(program), "-S", "-od", str(folder), "-aet", "HARNESS", "-aec", "EDGEPACS"]
    command += [*arguments, "127.0.0.1", str(node.port)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return sorted(folder.iterdir())


@pytest.mark.peers
def test_what_a_note_hides_is_neither_found_nor_got(node: Serving, tmp_path: Path) -> None:
    parts = [made.ct(study=STUDY, sop=sop, patient_id="P1") for sop in (FIRST, SECOND)]
    parts.append(notes.rejection([FIRST], sop="1.2.3.4.3", study=STUDY))
    files = [one.write(tmp_path / f"{place}.dcm") for place, one in enumerate(parts)]
    assert storescu(files, node.port, calling="HARNESS").acknowledged == files
    assert read_waiting(node.store) == 1
    keys = [f"0020,000d={STUDY}", "0008,0052=STUDY", "0020,1208", "0008,0061"]
    given = [word for key in keys for word in ("-k", key)]
    (answer,) = map(dcmread, asked(node, "findscu", tmp_path / "found", "-X", *given))
    assert (answer.NumberOfStudyRelatedInstances, answer.ModalitiesInStudy) == (2, ["CT", "KO"])
    got = asked(node, "getscu", tmp_path / "got", *given[:4])
    assert sorted(str(dcmread(path).SOPInstanceUID) for path in got) == [SECOND, "1.2.3.4.3"]
