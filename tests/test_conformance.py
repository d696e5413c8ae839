"""The conformance statement is whole, and says what the code does: docs/conformance.toml."""

import dataclasses
import sys
from pathlib import Path

import pytest

from edgepacs.dimse.contexts import PIXELS_ELSEWHERE, STORAGE_SOP_CLASSES
from edgepacs.model import Service
from edgepacs.pixels.syntaxes import TABLE
from edgepacs.scp.services import PROVIDED

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import conformance
from conformance import Part, Row, Statement

STATEMENT = conformance.load(conformance.SOURCE.read_text("utf-8"))
PAGE = conformance.PAGE.read_text("utf-8")
ROW = Row(
    cells=["ARTIM", "as the standard says"],
    clause=["PS3.8 9.1.5"],
    code=["dimse.line.Limits.artim"],
    test=["test_conformance::test_the_page_is_what_the_generator_writes"],
)
NOWHERE = "1.2.840.10008.5.1.4.32.1"  # General Purpose Worklist, retired


def with_row(row: Row) -> Statement:
    """The statement with one more row in its first section."""
    first, *others = STATEMENT.sections
    parts = [*first.parts, Part(rows=[row])]
    return dataclasses.replace(
        STATEMENT, sections=[dataclasses.replace(first, parts=parts), *others]
    )


def untold(statement: Statement, *more: str) -> set[str]:
    """What of the services is not told, were `more` abstract syntaxes provided."""
    return set(conformance.untold_services(statement, [*PROVIDED, *more]))


def test_the_page_is_what_the_generator_writes():
    assert conformance.Page(STATEMENT).written() == PAGE, f"run: {conformance.HOW}"


def test_the_statement_is_whole():
    assert conformance.faults(STATEMENT, PAGE) == []


# --- services, SOP classes, transfer syntaxes -----------------------------------------------


def test_every_service_has_a_section():
    assert list(conformance.untold_services(STATEMENT, PROVIDED)) == []


@pytest.mark.parametrize("word", Service)
def test_a_service_without_a_section_is_missed(word):
    others = {one: place for one, place in STATEMENT.services.items() if one != word}
    statement = dataclasses.replace(STATEMENT, services=others)
    assert untold(statement) - untold(STATEMENT) == {f"the service {word} has no section"}


@pytest.mark.parametrize("uid", PROVIDED)
def test_a_provided_sop_class_that_is_not_told_is_missed(uid):
    others = [one for one in STATEMENT.sop_classes if one.uid != uid]
    statement = dataclasses.replace(STATEMENT, sop_classes=others)
    (fault,) = untold(statement) - untold(STATEMENT)
    assert uid in fault


def test_what_is_provided_later_is_missed():
    (fault,) = untold(STATEMENT, NOWHERE) - untold(STATEMENT)
    assert NOWHERE in fault


def test_every_sop_class_and_transfer_syntax_in_code_is_told():
    known = conformance.uids_in_code()
    assert {*TABLE, *STORAGE_SOP_CLASSES, *PROVIDED, *PIXELS_ELSEWHERE} <= set(known)
    assert list(conformance.untold_uids(PAGE, known)) == []


@pytest.mark.parametrize("uid", [*TABLE, *PROVIDED, next(iter(STORAGE_SOP_CLASSES))])
def test_a_uid_that_is_not_told_is_missed(uid):
    page = PAGE.replace(f"`{uid}`", "")
    assert [one for one in conformance.untold_uids(page, {uid: "somewhere"}) if uid in one]


def test_uids_are_found_wherever_they_stand_in_code():
    found = conformance.uids_in_code()
    assert found["1.2.840.10008.1.20.1.1"] == "dimse/commitment.py"
    assert "1.2.840.10008.5.1.4.1.2.2.3" in found


def test_a_context_of_another_sop_class_is_found():
    wrong = [
        dataclasses.replace(one, scu="dimse.query.AS_SCU") if "GET" in one.scu else one
        for one in STATEMENT.sop_classes
    ]
    statement = dataclasses.replace(STATEMENT, sop_classes=wrong)
    (fault,) = untold(statement) - untold(STATEMENT)
    assert fault == "dimse.query.AS_SCU is no context of 1.2.840.10008.5.1.4.1.2.2.3"


# --- clauses --------------------------------------------------------------------------------


def test_every_clause_cited_beside_wire_code_has_a_row():
    assert list(conformance.untold_clauses(STATEMENT, conformance.citations())) == []


def test_a_clause_without_a_row_is_missed():
    faults = list(conformance.untold_clauses(STATEMENT, {"PS3.4 ZZ.9": "scp/new.py"}))
    assert faults == ["no row names PS3.4 ZZ.9, which scp/new.py cites"]


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("(PS3.8 9.3.2, 9.3.3; PS3.8 D.1;", ["PS3.8 9.3.2", "PS3.8 9.3.3", "PS3.8 D.1"]),
        ("PS3.4 C.4.2, C.4.3, C.6.2).", ["PS3.4 C.4.2", "PS3.4 C.4.3", "PS3.4 C.6.2"]),
        ("PS3.8 9.2, AA-1", ["PS3.8 9.2"]),
        ("PS3.7 annex C for the general ones", ["PS3.7 C"]),
        ("PS3.3 C.14-1", ["PS3.3 C.14"]),
        ("PS3.15 B.9 and B.10 say", ["PS3.15 B.9", "PS3.15 B.10"]),
        ("PS3.4 GG, Non-Patient Object Storage", ["PS3.4 GG"]),
        ("PS3.7 9.1.5. A C-ECHO", ["PS3.7 9.1.5"]),
        ("PS3.18 8", ["PS3.18 8"]),
        ("nothing, e.g. 9.3.2", []),
    ],
)
def test_clauses_are_read_as_people_write_them(text, clauses):
    assert conformance.cited(text) == clauses


def test_citations_are_found_across_lines():
    assert {"PS3.4 J.3.5", "PS3.4 C.4.3.1.3", "PS3.7 9.3.2.3"} <= set(conformance.citations())


# --- rows -----------------------------------------------------------------------------------


def test_a_row_that_is_whole_is_no_fault():
    tests = conformance.tests_in_code()
    found = {*conformance.unshown(with_row(ROW), tests)}
    assert found == {*conformance.unshown(STATEMENT, tests)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": []}, "names no code or no test"),
        ({"code": []}, "names no code or no test"),
        ({"test": ["test_conformance::test_nobody_wrote"]}, "there is no test"),
        ({"test": ["test_nowhere::test_the_statement_is_whole"]}, "there is no test"),
        ({"code": ["dimse.line.Limits.nothing"]}, "there is no dimse.line.Limits.nothing"),
        ({"code": ["scp.nothing"]}, "there is no scp.nothing"),
        ({"clause": ["somewhere"]}, "is no clause"),
    ],
)
def test_a_row_that_names_what_is_not_there_is_found(change, words):
    broken = with_row(dataclasses.replace(ROW, **change))
    tests = conformance.tests_in_code()
    (fault,) = {*conformance.unshown(broken, tests)} - {*conformance.unshown(STATEMENT, tests)}
    assert words in fault
    assert "ARTIM" in fault


def test_a_row_of_another_width_is_found():
    broken = with_row(dataclasses.replace(ROW, cells=["ARTIM", "30 s", "more"]))
    (fault,) = {*conformance.misshapen(broken)} - {*conformance.misshapen(STATEMENT)}
    assert "3 cells" in fault


def test_sections_stand_in_order():
    assert list(conformance.misshapen(STATEMENT)) == []
    first = STATEMENT.sections[0]
    deep = dataclasses.replace(first, level=5, id="deep")
    broken = dataclasses.replace(STATEMENT, sections=[first, deep, first])
    faults = list(conformance.misshapen(broken))
    assert any("deep: level 5" in one for one in faults)
    assert any("twice" in one for one in faults)


def test_what_cannot_be_read_names_its_section():
    text = conformance.SOURCE.read_text("utf-8").replace(
        'id = "introduction"', 'id = "introduction"\nodd = 1'
    )
    with pytest.raises(ValueError, match=r"section introduction: .*odd"):
        conformance.load(text)


# --- values ---------------------------------------------------------------------------------


def test_numbers_are_taken_from_the_code():
    (section,) = (one for one in STATEMENT.sections if one.id == "numbers")
    rows = [row for part in section.parts for row in part.rows]
    assert len(rows) > 20
    for row in rows:
        assert f"${{{row.code[0]}" in row.cells[1], row.cells
    assert "| ARTIM | 30 s |" in PAGE


def test_values_are_written_as_asked():
    section = dataclasses.replace(
        STATEMENT.sections[0],
        parts=[
            Part(
                text="${errors.NoRoom.dimse_status:04X} ${forward.stow.MOST_BYTES:MiB} "
                "${forward.dial.RELEASE_SECONDS} ${forward.desk.RETRY_MOST_MS:ms_min}"
            )
        ],
    )
    statement = dataclasses.replace(STATEMENT, sections=[section])
    assert "A700 32 2.5 15" in conformance.Page(statement).written()


def test_a_value_the_code_does_not_have_ends_it():
    section = dataclasses.replace(
        STATEMENT.sections[0], parts=[Part(text="${forward.stow.NOTHING}")]
    )
    with pytest.raises(AttributeError):
        conformance.Page(dataclasses.replace(STATEMENT, sections=[section])).written()


def test_headings_are_numbered():
    sections = [dataclasses.replace(STATEMENT.sections[0], id=str(n), level=n) for n in (2, 3, 4)]
    more = {"a": 3, "b": 2}
    sections += [dataclasses.replace(sections[0], id=one, level=n) for one, n in more.items()]
    found = conformance.headings(sections)
    assert [one.partition(" ")[0] for one in found.values()] == ["1", "1.1", "1.1.1", "1.2", "2"]
