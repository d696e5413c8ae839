"""Sequence matching in C-FIND (PS3.4 C.2.2.2.6): what series say of their order, by an oracle."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.dcmtk import require
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom import association as pynetdicom_association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from scp.serving import Serving, serving
from store import ordering
from store.oracle import matches

from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.model import Service, StudyId
from edgepacs.store import reconciliation

CODES = {
    "code": ("", "T1^99ACME^Thorax", "T1^99ACME^Thorax\\H2^99ACME^Head", "T1^99OTHER^Thoráx"),
    "id": ("RP1", "RP2", "RP22", "rp1"),
    "words": ("Thorax nativ", "Kopf", "Грудная клетка", ""),
}
LEAVES: Mapping[str, tuple[str, str]] = {  # field of an entry, VR
    "AccessionNumber": ("accession_number", "SH"),
    "StudyInstanceUID": ("study_instance_uid", "UI"),
    "RequestedProcedureDescription": ("procedure_description", "LO"),
    "ScheduledProcedureStepID": ("step_id", "SH"),
    "RequestedProcedureID": ("procedure_id", "SH"),
}
OF_CODE: Mapping[str, tuple[int, str]] = {
    "CodeValue": (0, "SH"),
    "CodingSchemeDesignator": (1, "SH"),
    "CodeMeaning": (2, "LO"),
}


@dataclass(frozen=True, slots=True)
class Ordered:
    """A series with its order; none where `order` is empty."""

    series: str
    order: Mapping[str, str]
    study: StudyId

    def codes(self, keys: Mapping[str, str]) -> list[str]:
        """The codes of its order that meet all of the keys."""
        return [
            code
            for code in self.order.get("procedure_code", "").split("\\")
            if code
            and all(
                matches(OF_CODE[key][1], value, code.split("^")[OF_CODE[key][0]])
                for key, value in keys.items()
            )
        ]

    def meets(self, keys: Mapping[str, str], of_code: Mapping[str, str]) -> bool:
        if not any((*keys.values(), *of_code.values())):
            return True
        return (
            bool(self.order)
            and all(
                matches(LEAVES[key][1], one, self.order[LEAVES[key][0]])
                for key, one in keys.items()
            )
            and (not any(of_code.values()) or bool(self.codes(of_code)))
        )


def made(node: Serving, number: int) -> Ordered:
    """A study that was matched with its order; of some there is none, or they differ from it."""
    series = f"1.2.3.{number}.2"
    says = {
        "accession_number": f"A{number}",
        "study_instance_uid": f"1.2.3.{number}",
        "procedure_id": CODES["id"][number % 4],
        "procedure_description": CODES["words"][number // 2 % 4],
        "step_id": f"S{number % 3}",
        "procedure_code": CODES["code"][number // 3 % 4],
    }
    if number % 7 != 3:  # of another patient, else any order of his day would be its order
        ordering.order(node.store, key=str(number), **says)
    receipt = ordering.image(
        node.store,
        StudyInstanceUID=f"1.2.3.{number}",
        SeriesInstanceUID=series,
        AccessionNumber=f"A{number}",
        PatientID="P2" if number % 7 == 3 else "P1",
        PatientName="Other^Body" if number % 7 == 5 else "DOE^Jane",
    )
    return Ordered(series, {} if number % 7 in (3, 5) else says, receipt.study_id)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, list[Ordered]]]:
    with serving(tmp_path_factory.mktemp("ordered") / "node") as node:
        node.allow(services=(Service.FIND,))
        there = [made(node, number) for number in range(1, 25)]
        reconciliation.look(node.store.db)
        yield node, there


@pytest.fixture(scope="module", params=(ExplicitVRLittleEndian, ImplicitVRLittleEndian))
def asker(
    filled: tuple[Serving, list[Ordered]], request: pytest.FixtureRequest
) -> Iterator[pynetdicom_association.Association]:
    """An association with relational queries negotiated."""
    entity, item = AE(ae_title="HARNESS"), SOPClassExtendedNegotiation()
    entity.add_requested_context(STUDY_ROOT_FIND, request.param)
    item.sop_class_uid, item.service_class_application_information = STUDY_ROOT_FIND, b"\1"
    association = entity.associate("127.0.0.1", filled[0].port, ae_title="EDGEPACS", ext_neg=[item])
    assert association.is_established
    yield association
    association.release()


def asked(
    asker: pynetdicom_association.Association, items: Sequence[Dataset], level: str = "SERIES"
) -> tuple[list[Dataset], set[int]]:
    """The identifiers of the answers, and the statuses of all."""
    what = Dataset()
    what.SpecificCharacterSet = "ISO_IR 192"
    what.QueryRetrieveLevel = level
    what.SeriesInstanceUID = ""
    what.RequestAttributesSequence = list(items)
    answers = [(status.Status, one) for status, one in asker.send_c_find(what, STUDY_ROOT_FIND)]
    return [one for _, one in answers if one is not None], {status for status, _ in answers}


def item(keys: Mapping[str, str], of_code: Mapping[str, str] | None = None) -> Dataset:
    one = Dataset()
    for keyword, value in keys.items():
        setattr(one, keyword, value)
    if of_code is not None:
        one.RequestedProcedureCodeSequence = [item(of_code)]
    return one


def near(values: Sequence[str]) -> st.SearchStrategy[str]:
    """Keys of the kinds of matching that text has, near what is there."""
    known = [one for one in values if one]
    wild = [f"{one[:2]}*" for one in known] + [f"?{one[1:]}" for one in known]
    return st.sampled_from(["", *known, *wild, "none"])


LEAF_KEYS = {
    "AccessionNumber": near(["A1", "A12", "A20"]),
    "StudyInstanceUID": st.sampled_from(["", "1.2.3.1", "1.2.3.2\\1.2.3.9", "1.2.4"]),
    "RequestedProcedureDescription": near(CODES["words"]),
    "ScheduledProcedureStepID": near(["S0", "S1", "S2"]),
    "RequestedProcedureID": near(CODES["id"]),
}
CODE_KEYS = {
    "CodeValue": near(["T1", "H2"]),
    "CodingSchemeDesignator": near(["99ACME", "99OTHER"]),
    "CodeMeaning": near(["Thorax", "Head", "Thoráx"]),
}


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=LEAF_KEYS),
    st.none() | st.fixed_dictionaries({}, optional=CODE_KEYS),
)
def test_all_keys_of_an_item_are_met_by_the_same_order(
    filled: tuple[Serving, list[Ordered]],
    asker: pynetdicom_association.Association,
    keys: dict[str, str],
    of_code: dict[str, str] | None,
) -> None:
    answers, statuses = asked(asker, [item(keys, of_code)])
    expected = {one.series: one for one in filled[1] if one.meets(keys, of_code or {})}
    assert sorted(one.SeriesInstanceUID for one in answers) == sorted(expected)
    assert statuses <= {0xFF00, 0x0000}
    for one in answers:
        there = expected[one.SeriesInstanceUID]
        said = one.RequestAttributesSequence
        assert len(said) == bool(there.order)
        for keyword in keys if said else ():
            assert str(said[0][keyword].value or "") == there.order[LEAVES[keyword][0]]
        if said and of_code is not None and any(of_code.values()):
            listed = said[0].RequestedProcedureCodeSequence
            values = [code.split("^") for code in there.codes(of_code)]
            assert [[one[keyword].value for keyword in of_code] for one in listed] == [
                [parts[OF_CODE[keyword][0]] for keyword in of_code] for parts in values
            ]


@pytest.mark.parametrize("items", [[], [Dataset()]])
def test_an_empty_sequence_is_returned_whole(
    filled: tuple[Serving, list[Ordered]],
    asker: pynetdicom_association.Association,
    items: list[Dataset],
) -> None:
    answers, statuses = asked(asker, items)
    assert statuses == {0xFF00, 0x0000}
    assert len(answers) == len(filled[1])
    by_series = {one.SeriesInstanceUID: one.RequestAttributesSequence for one in answers}
    for there in filled[1]:
        said = by_series[there.series]
        assert [one.AccessionNumber for one in said] == (
            [there.order["accession_number"]] if there.order else []
        )
        for one in said:
            codes = one.RequestedProcedureCodeSequence
            assert [code.CodeMeaning for code in codes] == [
                code.split("^")[2] for code in there.codes({})
            ]
            assert "ScheduledProcedureStepID" in one


def test_more_than_one_item_is_refused(asker: pynetdicom_association.Association) -> None:
    for items in ([Dataset(), Dataset()], [item({}, {}), item({"AccessionNumber": "A1"})]):
        assert asked(asker, items)[1] == {0xA900}
    nested = item({})
    nested.RequestedProcedureCodeSequence = [Dataset(), Dataset()]
    assert asked(asker, [nested])[1] == {0xA900}


def test_what_cannot_be_asked_within_an_item_is_refused(
    asker: pynetdicom_association.Association,
) -> None:
    assert asked(asker, [item({"StudyInstanceUID": "1.2*"})])[1] == {0xA900}


def test_keys_not_supported_within_an_item_are_said_so(
    filled: tuple[Serving, list[Ordered]], asker: pynetdicom_association.Association
) -> None:
    """PS3.4 C.4.1.1.4, FF01: also at the level of studies, where there is no such sequence."""
    answers, statuses = asked(asker, [item({"ReasonForTheRequestedProcedure": "x"})])
    assert statuses == {0xFF01, 0x0000}
    assert len(answers) == len(filled[1])
    answers, statuses = asked(asker, [item({"AccessionNumber": "A1"})], "STUDY")
    assert statuses == {0xFF01, 0x0000}
    assert all("RequestAttributesSequence" not in one for one in answers)


def test_an_order_somebody_let_differ_is_the_order(
    filled: tuple[Serving, list[Ordered]], asker: pynetdicom_association.Association
) -> None:
    """Patient's Name differs, so it may be the order of somebody else until a person has said."""
    node, there = filled
    differs = there[4]
    wanted = item({"AccessionNumber": "A5"})
    assert not asked(asker, [wanted])[0]
    with node.store.db.write() as tx:
        reconciliation.keep(tx, differs.study, actor="tech")
    assert [one.SeriesInstanceUID for one in asked(asker, [wanted])[0]] == [differs.series]
    with node.store.db.write() as tx:
        reconciliation.reopen(tx, differs.study, actor="tech")
    assert not asked(asker, [wanted])[0]


@pytest.mark.peers
def test_findscu_asks_by_requested_procedure(
    filled: tuple[Serving, list[Ordered]], tmp_path: Path
) -> None:
    node, there = filled
    program = require("findscu")
    wanted = next(one for one in there if one.order and one.order["procedure_id"] == "RP2")
    keys = (
        "QueryRetrieveLevel=SERIES",
        f"StudyInstanceUID={wanted.order['study_instance_uid']}",
        "SeriesInstanceUID",
        "(0040,0275)[0].(0040,1001)=RP*",
    )
    listed = [part for key in keys for part in ("-k", key)]
    command = [program, "-S", "-aet", "HARNESS", "-aec", "EDGEPACS", "-X", *listed]
    subprocess.run(
        [*command, "127.0.0.1", str(node.port)], cwd=tmp_path, check=True, capture_output=True
    )
    assert len(list(tmp_path.glob("rsp*.dcm"))) == 1
