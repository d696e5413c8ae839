"""`edgepacs worklist`, and what an AE title sees of it."""

from pathlib import Path

import pytest
from test_cli import Node, node, say  # noqa: F401  fixtures

from edgepacs.model import AETitle
from edgepacs.store import Store, peers

JANE = ("name=Doe, Jane", "birth_date=1960-01-01", "modality=CT")


def test_a_walk_in_comes_and_goes(node: Node) -> None:  # noqa: F811
    assert node.data("worklist", "list") == []
    said = node.done("worklist", "add", *JANE, "admission_id=V1")
    assert "entry 1 added: patient ID TEMP-" in said
    (one,) = node.data("worklist", "list", "--day", "today", "--modality", "ct")
    assert (one["name"], one["state"], one["admission_id"]) == ("Doe^Jane", "scheduled", "V1")
    assert "Doe^Jane" in node.done("worklist", "list", "--text", "jane doe")
    node.done("worklist", "change", "1", "modality=MR", "admission_id=")
    node.done("worklist", "cancel", "1", "--why", "left")
    assert node.data("worklist", "list", "--state", "scheduled") == []
    shown = node("worklist", "show", "1", "--json").json
    assert isinstance(shown, dict)
    assert (shown["modality"], shown["admission_id"]) == ("MR", "")
    acts = [one["act"] for one in shown["history"]]
    assert acts == ["entry added", "entry changed by a person", "entry cancelled"]
    assert "left" in node.done("worklist", "show", "1")
    node.done("worklist", "reopen", "1")
    node.done("worklist", "complete", "1")
    assert node("worklist", "cancel", "1").code == 65
    assert node("worklist", "show", "2").code == 66


def test_nothing_of_a_patient_need_stand_on_the_command_line(node: Node) -> None:  # noqa: F811
    said = node("worklist", "add", "-", stdin="\n".join(JANE) + "\n")
    assert said.code == 0, said
    assert node.data("worklist", "list")[0]["name"] == "Doe^Jane"


def test_who_may_be_known_is_asked_about(node: Node) -> None:  # noqa: F811
    node.done("worklist", "add", *JANE)
    refused = node("worklist", "add", *JANE)
    assert refused.code == 65
    assert "the same name and birth date" in refused.out
    assert "Doe" not in refused.err
    assert len(node.data("worklist", "list")) == 1
    node.done("worklist", "add", *JANE, "--anyway")
    assert len(node.data("worklist", "list")) == 2


@pytest.mark.parametrize(
    "words",
    [("name=Doe",), ("modality=CT",), ("name",), ("colour=red",), (*JANE, "sex=green")],
    ids=" ".join,
)
def test_what_no_modality_could_work_by_is_refused(
    node: Node,  # noqa: F811
    words: tuple[str, ...],
) -> None:
    refused = node("worklist", "add", *words)
    assert (refused.code, refused.err.count("\n")) == (65, 1)
    assert node.data("worklist", "list") == []


def test_files_are_imported(node: Node, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "list.csv"
    path.write_text("patient_id,name,modality,start_date\nP1,Doe^J,CT,2026-01-01\n")
    node.done("worklist", "import", str(path))
    assert node.data("worklist", "import", str(path)) == [{"file": 1, "added": 0, "updated": 1}]
    path.write_text("patient_id,name,modality\nP1,Doe^J,C/T\n")
    refused = node("worklist", "import", str(path))
    assert refused.code == 65
    assert "row 2: modality" in refused.err
    assert node("worklist", "import", str(tmp_path / "none")).code != 0
    assert "1 entries retired" in node.done("worklist", "retire", "--before", "2026-01-02")


def test_fields_are_listed(node: Node) -> None:  # noqa: F811
    fields = {one["field"]: one["vr"] for one in node.data("worklist", "fields")}
    assert (fields["name"], fields["step_id"]) == ("PN", "SH")


def test_what_an_ae_title_sees(node: Node) -> None:  # noqa: F811
    node.done("ae", "add", "CT1", "--host", "*", "--port", "104", "--allow", "echo,worklist")
    node.done("ae", "set", "CT1", "--sees", "station=CT 1", "--sees", "modality=CT")
    (known,) = node.data("ae", "list")
    assert (known["sees_stations"], known["sees_modalities"]) == ("CT 1", "CT")
    for wrong in ("station", "station=", "modality=ct", "floor=2", ""):
        assert node("ae", "set", "CT1", "--sees", wrong).code == 65, wrong
    assert node("ae", "set", "CT1", "--sees", "all", "--sees", "modality=CT").code == 65
    assert node("ae", "set", "MR1", "--sees", "all").code == 66
    assert node("ae", "set", "CT1").code == 65
    node.done("ae", "set", "CT1", "--sees", "all", "--max-associations", "3")
    store = Store.open(node.config)
    one = peers.known_ae(store.db, AETitle("CT1"))
    store.close()
    assert one is not None
    assert (one.sees_stations, one.sees_modalities, one.max_associations) == ("", "", 3)
