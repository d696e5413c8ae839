"""C-FIND of what is in store, asked by pynetdicom and DCMTK, against an oracle (PS3.4 C.4.1)."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from dimse.dimse_node import Script, command_pdu, data_pdu
from harness.dcmtk import require
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom import association as pynetdicom_association
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from scp.serving import Serving, serving
from store.oracle import day, microsecond
from store.population import KEPT, LEVELS, Population, populate, take

from edgepacs.dimse import ProposedContext, identifier, pdu
from edgepacs.dimse.command import Element, Field, decode
from edgepacs.dimse.contexts import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from edgepacs.dimse.items import ExtendedNegotiation, UserInformation
from edgepacs.dimse.pdu import PduType
from edgepacs.dimse.query import STUDY_ROOT_FIND
from edgepacs.model import Service
from edgepacs.scp import query
from edgepacs.scp.query import PATIENT_ROOT_FIND

ROOTS = (PATIENT_ROOT_FIND, STUDY_ROOT_FIND)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
Asker = pynetdicom_association.Association
Answer = tuple[int, Dataset]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Population]]:
    """A receiver with a population, which HARNESS may query."""
    with serving(tmp_path_factory.mktemp("query") / "node") as node:
        node.allow(services=(Service.ECHO, Service.FIND))
        node.allow(title="STORER", services=(Service.STORE,))
        yield node, populate(node.store)


@contextmanager
def asking(
    node: Serving,
    options: bytes = b"",
    syntax: str = ExplicitVRLittleEndian,
    title: str = "HARNESS",
) -> Iterator[Asker]:
    """pynetdicom, with extended negotiation of `options` for both models."""
    entity = AE(ae_title=title)
    items = []
    for root in ROOTS:
        entity.add_requested_context(root, syntax)
        if options:
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid = root
            item.service_class_application_information = options
            items.append(item)
    association = entity.associate("127.0.0.1", node.port, ae_title="EDGEPACS", ext_neg=items)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


@pytest.fixture(scope="module", params=SYNTAXES)
def relational(
    filled: tuple[Serving, Population], request: pytest.FixtureRequest
) -> Iterator[Asker]:
    """An association with relational queries and combined dates and times negotiated."""
    with asking(filled[0], b"\1\1", request.param) as association:
        yield association


def data_set(level: str, keys: Mapping[int, str], character_set: str = "ISO_IR 192") -> Dataset:
    one = Dataset()
    if character_set:
        one.SpecificCharacterSet = character_set.split("\\")
    one.QueryRetrieveLevel = level
    for tag, key in keys.items():
        vr = KEPT[tag][0]
        one.add_new(tag, vr, (int(key) if key else None) if vr == "US" else key)
    return one


def asked(association: Asker, what: Dataset, root: str = PATIENT_ROOT_FIND) -> list[Answer]:
    """Every answer, the last one last."""
    return [(status.Status, one) for status, one in association.send_c_find(what, root)]


def plain(one: Dataset, tag: int) -> str:
    """A value as the text it was written as."""
    value = one[tag].value
    if value is None:
        return ""
    return (
        "\\".join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )


def matched(answers: list[Answer], tags: list[int]) -> list[tuple[str, ...]]:
    """The values of the pending answers, which are all there is."""
    assert answers[-1][0] == 0x0000
    assert {status for status, _ in answers[:-1]} <= {0xFF00}
    return sorted(tuple(plain(one, tag) for tag in tags) for _, one in answers[:-1])


def tags_of(level: str) -> list[int]:
    """What can be asked at a level, of it and of those above."""
    upto = LEVELS[: LEVELS.index(level) + 1]
    return [tag for tag, (_, at) in KEPT.items() if at in upto]


def key_near(data: st.DataObject, vr: str, values: list[str]) -> str:
    """A key of one of the kinds of matching, near what is there."""
    value = data.draw(st.sampled_from(values))
    bare = value.replace("\\", "")
    kinds = ["", value]
    if vr in ("LO", "SH", "CS") and bare:
        kinds += [bare[:1] + "*", "*" + bare[-1:], "?" + bare[1:]]
    if vr == "PN" and bare:
        kinds += [bare[:3] + "*", bare.upper(), bare.split("=")[-1], "=" + bare[-2:] + "*"]
    if vr == "UI":
        kinds += ["\\".join(values[:3]), "1.2.3"]
    if vr == "DA":
        kinds = ["", "20200101", "20200102-20210304", "-20200115", "20210304-"]
    if vr == "TM":
        kinds = ["", "1011", "10-1012", "2230-", "-093000"]
    return data.draw(st.sampled_from(kinds))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pynetdicom_gets_what_the_oracle_says(
    filled: tuple[Serving, Population], relational: Asker, data: st.DataObject
) -> None:
    _, population = filled
    root = data.draw(st.sampled_from(ROOTS))
    level = data.draw(st.sampled_from(LEVELS[root == STUDY_ROOT_FIND :]))
    tags = data.draw(st.lists(st.sampled_from(tags_of(level)), unique=True, min_size=1, max_size=4))
    every = population.entities(level)
    keys = {tag: key_near(data, KEPT[tag][0], sorted({row[tag] for row in every})) for tag in tags}
    answers = asked(relational, data_set(level, keys), root)
    assert matched(answers, sorted(keys)) == population.expected_of_moments(level, keys)
    for _, one in answers[:-1]:
        assert one.QueryRetrieveLevel == level
        assert one.RetrieveAETitle == "EDGEPACS"
        assert one.InstanceAvailability == "ONLINE"


@pytest.mark.parametrize("root", ROOTS)
def test_everything_kept_is_answered(
    filled: tuple[Serving, Population], relational: Asker, root: str
) -> None:
    for level in LEVELS[root == STUDY_ROOT_FIND :]:
        keys = dict.fromkeys(tags_of(level), "")
        answers = asked(relational, data_set(level, keys), root)
        assert matched(answers, sorted(keys)) == filled[1].expected(level, keys)


def test_date_and_time_as_one_where_negotiated(
    filled: tuple[Serving, Population], relational: Asker
) -> None:
    """PS3.4 C.2.2.2.5, C.5.1.1."""
    node, population = filled
    keys = {0x00080020: "20200101-20200115", 0x00080030: "0935-1012"}
    apart = population.expected("STUDY", keys)
    low, high = (day("20200101"), microsecond("0935")), (day("20200115"), microsecond("1012"))
    together = [
        (row[0x00080020], row[0x00080030])
        for row in population.entities("STUDY")
        for moment in [(day(row[0x00080020]), microsecond(row[0x00080030]))]
        if None not in moment and low <= moment <= high
    ]
    assert sorted(together) != apart
    assert matched(
        asked(relational, data_set("STUDY", keys), STUDY_ROOT_FIND), sorted(keys)
    ) == sorted(together)
    with asking(node) as association:
        answers = asked(association, data_set("STUDY", keys), STUDY_ROOT_FIND)
        assert matched(answers, sorted(keys)) == apart


# --- the hierarchy, and what is refused --------------------------------------------------------


def test_levels_below_need_the_unique_keys_above(filled: tuple[Serving, Population]) -> None:
    """PS3.4 C.4.1.3.1.1; C.4.1.1.4 for the status."""
    node, population = filled
    row = next(row for row in population.rows if row[0x00100020])
    unique = {0x00100020: row[0x00100020], 0x0020000D: row[0x0020000D]}
    keys = {**unique, 0x0020000E: ""}
    with asking(node) as association:
        whole = asked(association, data_set("SERIES", keys))
        assert matched(whole, sorted(keys)) == population.expected("SERIES", keys)
        for tag in unique:
            for value in ("", row[tag][:-1] + "*" if tag == 0x00100020 else f"{row[tag]}\\1.2"):
                ((status, _),) = asked(association, data_set("SERIES", {**keys, tag: value}))
                assert status == 0xA900
        del keys[0x00100020]  # not of the Study Root model's levels
        answers = asked(association, data_set("SERIES", keys), STUDY_ROOT_FIND)
        assert matched(answers, sorted(keys)) == population.expected("SERIES", keys)


@pytest.mark.parametrize(
    ("level", "keys", "offending"),
    [
        ("FILM", {}, 0x00080052),
        ("", {}, 0x00080052),
        ("STUDY", {0x00080020: "2020"}, 0x00080020),
        ("STUDY", {0x00080020: "20200102-20200101"}, 0x00080020),
        ("STUDY", {0x00080030: "noon"}, 0x00080030),
        ("STUDY", {0x0020000D: "1.2*"}, 0x0020000D),
        ("STUDY", {0x00100020: "\\".join(f"P{number}*" for number in range(2000))}, 0x00100020),
        ("STUDY", {0x00100010: "\\".join(f"N{number}" for number in range(600))}, 0x00100010),
        ("STUDY", {0x00100020: "P*" * 30_000}, 0x00100020),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_element(
    filled: tuple[Serving, Population], level: str, keys: dict[int, str], offending: int
) -> None:
    node, _ = filled
    with asking(node) as association:
        what = data_set(level, {})
        for tag, key in keys.items():
            what[tag] = pydicom.DataElement(
                tag, KEPT[tag][0], key, validation_mode=pydicom.config.IGNORE
            )
        ((status, answer),) = list(association.send_c_find(what, STUDY_ROOT_FIND))
        assert status.Status == 0xA900
        assert status.OffendingElement == offending
        assert not answer
        assert all(key not in status.ErrorComment for key in keys.values())
        assert association.is_established


def test_the_patient_level_is_not_of_the_study_root(filled: tuple[Serving, Population]) -> None:
    with asking(filled[0]) as association:
        ((status, _),) = asked(association, data_set("PATIENT", {}), STUDY_ROOT_FIND)
        assert status == 0xA900


def test_keys_not_supported_are_left_out_and_said_so(filled: tuple[Serving, Population]) -> None:
    """PS3.4 C.4.1.1.4, FF01."""
    node, population = filled
    what = data_set("STUDY", {0x0020000D: "", 0x00081030: "CT*"})
    what.Occupation = "pilot"
    what.Modality = "CT"  # of a level below
    what.ProcedureCodeSequence = [Dataset()]
    with asking(node) as association:
        answers = asked(association, what, STUDY_ROOT_FIND)
    assert {status for status, _ in answers} == {0xFF01, 0x0000}
    wanted = population.expected("STUDY", {0x0020000D: "", 0x00081030: "CT*"})
    assert sorted(
        (plain(one, 0x0020000D), one.StudyDescription) for _, one in answers[:-1]
    ) == sorted((uid, words) for words, uid in wanted)
    for _, one in answers[:-1]:
        assert "Occupation" not in one
        assert "Modality" not in one
        assert "ProcedureCodeSequence" not in one


def test_only_who_may_is_answered(filled: tuple[Serving, Population]) -> None:
    entity = AE(ae_title="STORER")
    entity.add_requested_context(STUDY_ROOT_FIND)
    association = entity.associate("127.0.0.1", filled[0].port, ae_title="EDGEPACS")
    assert not association.accepted_contexts
    association.abort()


# --- options, limits, cancelling ---------------------------------------------------------------


def answered_options(node: Serving, proposed: bytes) -> bytes:
    """The application information of the A-ASSOCIATE-AC; empty where there is none."""
    peer = Script(node.port)
    information = UserInformation(
        implementation_class_uid="1.2.3",
        extended=(ExtendedNegotiation(STUDY_ROOT_FIND, proposed),),
    )
    contexts = (
        ProposedContext(id=1, abstract_syntax=STUDY_ROOT_FIND, transfer_syntaxes=(IMPLICIT_VR_LE,)),
    )
    kind, body = peer.associate(
        calling_ae="HARNESS", contexts=contexts, user_information=information
    )
    peer.close()
    assert kind == PduType.ASSOCIATE_AC
    extended = pdu.decode_associate_accept(memoryview(body)).user_information.extended
    return extended[0].application_information if extended else b""


@pytest.mark.parametrize(
    ("proposed", "answer"),
    [
        (b"\1", b"\1"),
        (b"\0", b"\0"),
        (b"\1\1\1\1\1\1\1", b"\1\1\0\0\0\1\1"),
        (b"\0\1\1", b"\0\1\0"),
        (b"\1" * 9, b"\1\1\0\0\0\1\1"),
        (b"\xff", b"\1"),
    ],
)
def test_options_are_answered_one_by_one(
    filled: tuple[Serving, Population], proposed: bytes, answer: bytes
) -> None:
    """PS3.4 C.5.1.1."""
    assert answered_options(filled[0], proposed) == answer


def test_a_bound_on_matches_is_said(
    filled: tuple[Serving, Population], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "MOST", 5)
    with asking(filled[0]) as association:
        answers = asked(association, data_set("STUDY", {0x0020000D: ""}), STUDY_ROOT_FIND)
        assert [status for status, _ in answers] == [0xFF00] * 5 + [0xA700]
        one = {0x0020000D: answers[0][1].StudyInstanceUID}
        assert len(asked(association, data_set("STUDY", one), STUDY_ROOT_FIND)) == 2


def test_c_cancel_ends_the_answers(
    filled: tuple[Serving, Population], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PS3.4 C.4.1.3. It comes in one write with what it cancels, so it is there in time."""
    monkeypatch.setattr(query, "_AT_ONCE", 1)
    node, _ = filled
    peer = Script(node.port)
    contexts = (
        ProposedContext(id=1, abstract_syntax=STUDY_ROOT_FIND, transfer_syntaxes=(EXPLICIT_VR_LE,)),
    )
    assert peer.associate(calling_ae="HARNESS", contexts=contexts)[0] == PduType.ASSOCIATE_AC
    request = {
        Element.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
        Element.COMMAND_FIELD: Field.C_FIND_RQ,
        Element.MESSAGE_ID: 7,
        Element.PRIORITY: 0,
        Element.DATA_SET_TYPE: 1,
    }
    cancel = {
        Element.COMMAND_FIELD: Field.C_CANCEL_RQ,
        Element.RESPONDED_MESSAGE_ID: 7,
        Element.DATA_SET_TYPE: 0x0101,
    }
    keys = identifier.encode({identifier.QUERY_RETRIEVE_LEVEL: "STUDY"}, EXPLICIT_VR_LE)
    peer.send(command_pdu(1, request) + data_pdu(keys, context=1) + command_pdu(1, cancel))
    kind, body = peer.pdu()
    peer.close()
    assert kind == PduType.P_DATA
    assert decode(body[6:]).status == 0xFE00


def test_a_request_without_identifier_is_refused(filled: tuple[Serving, Population]) -> None:
    node, _ = filled
    peer = Script(node.port)
    contexts = (
        ProposedContext(id=1, abstract_syntax=STUDY_ROOT_FIND, transfer_syntaxes=(EXPLICIT_VR_LE,)),
    )
    peer.associate(calling_ae="HARNESS", contexts=contexts)
    request = {
        Element.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
        Element.COMMAND_FIELD: Field.C_FIND_RQ,
        Element.MESSAGE_ID: 1,
        Element.DATA_SET_TYPE: 0x0101,
    }
    for field, status in ((Field.C_FIND_RQ, 0xA900), (Field.C_MOVE_RQ, 0x0211)):
        peer.send(command_pdu(1, {**request, Element.COMMAND_FIELD: field}))
        assert decode(peer.pdu()[1][6:]).status == status
    peer.close()


# --- character sets ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("character_set", "key", "answered_in"),
    [
        ("ISO_IR 100", "M\xfcller^*", "ISO_IR 100"),
        ("", "Muller^*", "ISO_IR 192"),
        ("ISO_IR 144", "\u041b\u044e\u043a\u0441*", "ISO_IR 144"),
        ("ISO_IR 100", "*\xdcLLER*", "ISO_IR 100"),
        ("\\ISO 2022 IR 87", "=\u5c71\u7530*", "\\ISO 2022 IR 87"),
        ("ISO 2022 IR 6\\ISO 2022 IR 149", "\ud64d*", "ISO 2022 IR 6\\ISO 2022 IR 149"),
        ("GB18030", "\u5c71\u7530*", "GB18030"),
        ("ISO_IR 192", "\u3084\u307e\u3060*", "ISO_IR 192"),
    ],
)
def test_answers_come_in_a_character_set_the_asker_reads(
    filled: tuple[Serving, Population], character_set: str, key: str, answered_in: str
) -> None:
    node, population = filled
    keys = {0x00100010: key, 0x0020000D: ""}
    with asking(node) as association:
        answers = asked(association, data_set("STUDY", keys, character_set), STUDY_ROOT_FIND)
    expected = population.expected("STUDY", keys)
    assert expected
    for _, one in answers[:-1]:
        said = one.get("SpecificCharacterSet", "")
        assert (said if isinstance(said, str) else "\\".join(said)) == answered_in or str(
            one.PatientName
        ).isascii()
        one.decode()
    assert matched(answers, sorted(keys)) == expected


def test_what_the_set_of_the_query_cannot_carry_comes_in_utf_8(
    filled: tuple[Serving, Population],
) -> None:
    node, population = filled
    keys = {0x00100010: "Yamada*", 0x0020000D: ""}
    with asking(node) as association:
        answers = asked(association, data_set("STUDY", keys, "ISO_IR 100"), STUDY_ROOT_FIND)
    assert {one.SpecificCharacterSet for _, one in answers[:-1]} == {"ISO_IR 192"}
    assert matched(answers, sorted(keys)) == population.expected("STUDY", keys)


# --- DCMTK -------------------------------------------------------------------------------------


def findscu(node: Serving, folder: Path, *arguments: str) -> list[Dataset]:
    """What findscu writes of the answers."""
    folder.mkdir()
    command = [require("findscu"), "-X", "-od", str(folder), "-aet", "HARNESS", "-aec", "EDGEPACS"]
    command += [*arguments, "127.0.0.1", str(node.port)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return [pydicom.dcmread(path, force=True) for path in sorted(folder.glob("rsp*"))]


@pytest.mark.peers
@pytest.mark.parametrize(
    ("level", "keys"),
    [
        ("STUDY", {0x00100010: "smith*", 0x0020000D: ""}),
        ("STUDY", {0x00100020: "P8", 0x0020000D: "", 0x00080061: "", 0x00201208: ""}),
        ("STUDY", {0x00080020: "20200110-20211231", 0x00080050: "?1*"}),
        ("STUDY", {0x00080061: "MR", 0x0020000D: "", 0x00201206: ""}),
        ("PATIENT", {0x00100020: "", 0x00100010: "Smith*^J*", 0x00201200: ""}),
    ],
)
def test_findscu(
    filled: tuple[Serving, Population], tmp_path: Path, level: str, keys: dict[int, str]
) -> None:
    node, population = filled
    arguments = ["-P" if level == "PATIENT" else "-S", "-k", f"0008,0052={level}"]
    for tag, key in keys.items():
        arguments += ["-k", f"{tag >> 16:04x},{tag & 0xFFFF:04x}={key}"]
    found = findscu(node, tmp_path / "answers", *arguments)
    expected = population.expected(level, keys)
    assert expected
    assert sorted(tuple(plain(one, tag) for tag in sorted(keys)) for one in found) == expected


@pytest.mark.peers
def test_findscu_descends_and_cancels(filled: tuple[Serving, Population], tmp_path: Path) -> None:
    """Down to one instance; then a C-CANCEL after the first answer, which is harmless at worst."""
    node, population = filled
    row = population.rows[-1]
    unique = (0x0020000D, 0x0020000E, 0x00080018)
    arguments = ["-S", "-k", "0008,0052=IMAGE", "-k", "0028,0010"]
    for tag in unique:
        arguments += ["-k", f"{tag >> 16:04x},{tag & 0xFFFF:04x}={row[tag]}"]
    (one,) = findscu(node, tmp_path / "one", *arguments)
    assert one.Rows == int(row[0x00280010])
    some = findscu(
        node, tmp_path / "some", "-S", "--cancel", "1", "-k", "0008,0052=STUDY", "-k", "0020,000d"
    )
    assert some


def test_what_is_stored_meanwhile_is_found_next(filled: tuple[Serving, Population]) -> None:
    node, population = filled
    again = {**population.rows[-1], 0x00080018: "1.2.3.4.5.6"}
    keys = {tag: again[tag] for tag in (0x0020000D, 0x0020000E, 0x00080018)}
    with asking(node) as association:
        assert len(asked(association, data_set("IMAGE", keys), STUDY_ROOT_FIND)) == 1
        take(node.store, again)
        assert len(asked(association, data_set("IMAGE", keys), STUDY_ROOT_FIND)) == 2
