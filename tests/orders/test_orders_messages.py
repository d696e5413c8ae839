"""What messages do to the worklist, and what their senders are told."""

import contextlib
import json
import ssl
import subprocess
from pathlib import Path

import pytest
from harness.box import PROGRAM
from harness.waiting import free_port
from orders.speaking import Hearing, Sender, demographics, hearing, order, segment

from edgepacs.errors import ConfigurationError
from edgepacs.model import EntryState, MessageState
from edgepacs.orders import mapping
from edgepacs.orders.content import bare, header
from edgepacs.store import messages


def states(node: Hearing) -> dict[str, EntryState]:
    return {one.entry.placer_order: one.state for one in node.entries()}


def test_an_order_becomes_an_entry(node: Hearing, sender: Sender) -> None:
    answer = sender.say(order("1", "NW", "77", step="S1", name="Doe^Jane^Q^Jr^Dr"))
    assert (answer.code, answer.control) == ("AA", "1")
    (held,) = node.entries()
    entry, patient = held.entry, held.entry.patient
    assert (patient.patient_id, patient.issuer, patient.name) == ("P1", "H", "Doe^Jane^Q^Dr^Jr")
    assert (entry.accession_number, entry.step_id, entry.modality) == ("A77", "S1", "CT")
    assert (entry.start_date, entry.start_time) == ("20261124", "083000")
    assert entry.procedure_code == "CT1^L^Head"


@pytest.mark.parametrize("kind", ["ORM^O01", "OMG^O19", "OMI^O23"])
def test_acts_change_states(node: Hearing, sender: Sender, kind: str) -> None:
    for number, (act, status, state) in enumerate(
        [
            ("NW", "", EntryState.SCHEDULED),
            ("XO", "", EntryState.SCHEDULED),
            ("CA", "", EntryState.CANCELLED),
            ("CA", "", EntryState.CANCELLED),
            ("NW", "", EntryState.SCHEDULED),
            ("DC", "", EntryState.CANCELLED),
            ("RL", "", EntryState.SCHEDULED),
            ("SC", "IP", EntryState.SCHEDULED),
            ("SC", "CM", EntryState.COMPLETED),
            ("CM", "", EntryState.COMPLETED),
        ]
    ):
        said = order(str(number), act, "1", status=status, kind=kind, day=f"202611{11 + number}")
        assert sender.say(said).code == "AA"
        assert states(node) == {"1": state}
    answer = sender.say(order("x", "CA", "1", kind=kind))
    assert (answer.code, answer.error) == ("AE", ("ORC^1^1", "206"))


def test_a_change_says_only_what_it_holds(node: Hearing, sender: Sender) -> None:
    sender.say(order("1", "NW", "1", day="20261130"))
    bits = [
        order("2", "XO", "1").split("\r")[0],
        segment("PID", _3="P1^^^H", _8='""'),
        segment("ORC", _1="XO", _2="1", _3="F9"),
        segment("OBR", _24="MR"),
    ]
    assert sender.say("\r".join(bits)).code == "AA"
    (held,) = node.entries()
    entry = held.entry
    assert (entry.modality, entry.start_date, entry.accession_number) == ("MR", "20261130", "A1")
    assert (entry.patient.name, entry.patient.sex, entry.filler_order) == ("Doe^Jane", "", "F9")
    bits[0] = order("3", "CA", "1").split("\r")[0]
    bits[2:] = [segment("ORC", _1="CA", _3="F9")]
    assert sender.say("\r".join(bits)).code == "AA"  # by the number that came later
    assert states(node) == {"1": EntryState.CANCELLED}


def test_steps_of_one_order(node: Hearing, sender: Sender) -> None:
    second = segment("OBR", _2="1", _18="A1", _20="S2", _24="MR")
    study = segment("ZDS", _1="1.2.3.4^H^Application^DICOM")
    assert sender.say(order("1", "NW", "1", step="S1", more=(second, study))).code == "AA"
    found = {one.entry.step_id: one.entry for one in node.entries()}
    assert {step: one.modality for step, one in found.items()} == {"S1": "CT", "S2": "MR"}
    assert {one.study_instance_uid for one in found.values()} == {"1.2.3.4"}
    assert sender.say(order("2", "CA", "1", step="S2")).code == "AA"
    assert {one.entry.step_id: one.state for one in node.entries()} == {
        "S1": EntryState.SCHEDULED,
        "S2": EntryState.CANCELLED,
    }


def test_imaging_orders_say_it_in_ipc(node: Hearing, sender: Sender) -> None:
    ipc = segment("IPC", _1="ACC9", _2="RP9", _3="1.2.9", _4="SP9", _5="MR", _9="MR1")
    said = order("1", "NW", "9", kind="OMI^O23", modality="", accession="X", more=(ipc,))
    assert sender.say(said).code == "AA"
    (held,) = node.entries()
    entry = held.entry
    assert (entry.accession_number, entry.procedure_id, entry.step_id) == ("ACC9", "RP9", "SP9")
    assert (entry.modality, entry.station_ae, entry.study_instance_uid) == ("MR", "MR1", "1.2.9")


@pytest.mark.parametrize("event", ["A01", "A04", "A08", "A28", "A31"])
def test_patients_change(node: Hearing, sender: Sender, event: str) -> None:
    sender.say(order("1", "NW", "1"))
    assert sender.say(demographics(event, "2", "P1", "Roe^Jane")).code == "AA"
    assert [one.entry.patient.name for one in node.entries()] == ["Roe^Jane"]


def test_patients_merge(node: Hearing, sender: Sender) -> None:
    sender.say(order("1", "NW", "1"))
    assert sender.say(demographics("A40", "2", "P2", "Roe^Jane", gone="P1")).code == "AA"
    (held,) = node.entries()
    assert (held.entry.patient.patient_id, held.entry.patient.name) == ("P2", "Roe^Jane")
    assert held.entry.patient.other_ids == "P1^H"
    kept = messages.listed(node.store.db)[0]
    assert messages.entries_of(node.store.db, kept.id) == [held.id]
    answer = sender.say(demographics("A40", "3", "P2", "Roe^Jane"))
    assert (answer.code, answer.error) == ("AE", ("MRG^1", "100"))


@pytest.mark.parametrize(
    ("message", "code", "place", "number"),
    [
        (order("1", "NW", "1", patient=""), "AE", "PID^1^3^1", "101"),
        (order("1", "NW", "1", name=""), "AE", "PID^1^5", "101"),
        (order("1", "NW", "1", modality=""), "AE", "OBR^1^24^1", "101"),
        (order("1", "NW", "1", day="ABC"), "AE", "OBR^1^27^4", "102"),
        (order("1", "NW", "1", day="20261399"), "AE", "OBR^1^27^4", "102"),
        (order("1", "NW", ""), "AE", "ORC^1^2", "101"),
        (order("1", "", "1"), "AE", "ORC^1^1", "101"),
        (order("1", "ZZ", "1"), "AE", "ORC^1^1", "103"),
        (order("1", "CA", "1"), "AE", "ORC^1^2", "204"),
        (order("1", "NW", "1", kind="ORU^R01"), "AR", "MSH^1^9^1", "200"),
        (order("1", "NW", "1", kind="ADT^A99"), "AR", "MSH^1^9^2", "201"),
        (order("1", "NW", "1", _11="X"), "AR", "MSH^1^11", "202"),
        (order("1", "NW", "1", _12="3.0"), "AR", "MSH^1^12", "203"),
        (order("1", "NW", "1", _18="KLINGON"), "AE", "MSH^1^18", "103"),
        (order("", "NW", "1"), "AE", "MSH^1^10", "101"),
    ],
)
def test_errors_name_segment_and_field(
    node: Hearing, sender: Sender, message: str, code: str, place: str, number: str
) -> None:
    for _ in range(2):  # a repeat is answered as before
        answer = sender.say(message)
        assert (answer.code, answer.error) == (code, (place, number))
    (kept,) = messages.listed(node.store.db)
    assert (kept.state, kept.repeats) == (MessageState.REFUSED, 1)
    assert not node.entries()


def test_before_version_2_5_errors_stand_in_one_field(node: Hearing, sender: Sender) -> None:
    answer = sender.say(order("1", "CA", "1", _12="2.3"))
    assert answer.lines["ERR"] == ["ERR", "ORC^1^2^204&Unknown key identifier&HL70357"]
    assert answer.lines["MSH"][8] == "ACK^O01"


@pytest.mark.parametrize(
    ("accept", "application", "good", "bad", "foreign"),
    [
        ("AL", "AL", ["CA", "AA"], ["CA", "AE"], ["CR", "AR"]),
        ("AL", "NE", ["CA"], ["CA"], ["CR"]),
        ("NE", "AL", ["AA"], ["AE"], ["AR"]),
        ("ER", "ER", [], ["AE"], ["CR", "AR"]),
        ("SU", "SU", ["CA", "AA"], ["CA"], []),
        ("", "AL", ["AA"], ["AE"], ["AR"]),
    ],
)
def test_enhanced_mode(
    node: Hearing,
    sender: Sender,
    accept: str,
    application: str,
    good: list[str],
    bad: list[str],
    foreign: list[str],
) -> None:
    asked = {"_15": accept, "_16": application}
    for message, wanted in (
        (order("1", "NW", "1", **asked), good),
        (order("2", "CA", "9", **asked), bad),
        (order("3", "NW", "2", kind="ORU^R01", **asked), foreign),
    ):
        sender.socket.sendall(b"\x0b" + message.encode() + b"\x1c\r")
        end = sender.say(order("end", "NW", "3"))  # what was not wanted would stand before it
        heard = []
        while end.control != "end":
            heard.append(end.code)
            end = sender.hear()
        assert heard == wanted


def test_answers_are_not_answered(node: Hearing, sender: Sender) -> None:
    sender.socket.sendall(b"\x0bMSH|^~\\&|RIS|H|||||ACK^O01|9|P|2.5.1\rMSA|AA|1\r\x1c\r")
    assert sender.say(order("1", "NW", "1")).control == "1"
    assert len(messages.listed(node.store.db)) == 1


def test_repeats_are_applied_once_and_counters_may_begin_anew(
    node: Hearing, sender: Sender
) -> None:
    first = order("1", "NW", "1")
    assert sender.say(first).code == "AA"
    assert sender.say(order("2", "CA", "1")).code == "AA"
    assert (
        sender.say(first.replace("MSH|^~\\&|RIS|HOSP||", "MSH|^~\\&|RIS|HOSP|EDGE|")).code == "AA"
    )
    assert states(node) == {"1": EntryState.CANCELLED}
    assert sender.say(order("1", "NW", "2")).code == "AA"  # another message, though its number
    assert states(node) == {"1": EntryState.CANCELLED, "2": EntryState.SCHEDULED}


@pytest.mark.parametrize(
    ("said", "codec", "name"),
    [
        ("UNICODE UTF-8", "utf-8", "Ümit^Łucja"),
        ("8859/1", "latin-1", "Müller^José"),
        ("8859/5", "iso8859_5", "Люк^Анна"),
        ("8859/6", "iso8859_6", "قباني^لنزار"),
        ("GB 18030-2000", "gb18030", "王^小东"),
        ("BIG-5", "big5", "許^功蓋"),  # whose second bytes are backslash and bar
        ("KS X 1001", "euc_kr", "김^희중"),
        ("~ISO IR87", "iso2022_jp", "山田^太郎"),
        ("ISO IR6~ISO IR87", "iso2022_jp", "表^能"),
    ],
)
def test_character_sets(node: Hearing, sender: Sender, said: str, codec: str, name: str) -> None:
    message = order("1", "NW", "1", name=name, _18=said)
    answer = sender.say(message.encode(codec))
    assert answer.code == "AA"
    assert answer.lines["MSH"][17] == said
    assert [one.entry.patient.name for one in node.entries()] == [name]


def test_names_in_three_ways_of_writing(node: Hearing, sender: Sender) -> None:
    groups = "Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I~やまだ^たろう^^^^^L^P"
    sender.say(order("1", "NW", "1", name=groups))
    assert [one.entry.patient.name for one in node.entries()] == [
        "Yamada^Tarou=山田^太郎=やまだ^たろう"
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("O\\T\\Neil", "O&Neil"),
        ("A\\S\\B\\F\\C\\R\\D", "A B|C~D"),  # ^ would part a name
        ("\\E\\F\\E\\", "F"),  # undone once; a backslash would make two values
        ("M\\XC3BC\\ller", "Müller"),
        ("a\\.br\\b\\.sp9999999999\\c", "a b c"),
        ("A\\Zabc\\B", "AB"),
        ("A\\H\\b\\N\\c", "Abc"),
    ],
)
def test_escapes(node: Hearing, sender: Sender, written: str, meant: str) -> None:
    assert sender.say(order("1", "NW", "1", name=written)).code == "AA"
    (held,) = node.entries()
    assert " ".join(held.entry.patient.name.replace("/", " ").split()) == meant


@pytest.mark.parametrize("written", ["A\\XZZ\\B\\XFF\\", "A\\M2442\\B", "A\\C2842\\B"])
def test_escapes_that_cannot_be_read_are_refused(
    node: Hearing, sender: Sender, written: str
) -> None:
    answer = sender.say(order("1", "NW", "1", name=written))
    assert (answer.code, answer.error) == ("AE", ("PID^1^5", "102"))


def test_other_delimiters(node: Hearing, sender: Sender) -> None:
    other = str.maketrans("|^~\\&", "!:*?%")
    answer = sender.say(order("1", "NW", "1").translate(other))
    assert b"MSA!AA!1\r" in answer.raw
    assert [one.entry.patient.name for one in node.entries()] == ["Doe^Jane"]
    assert answer.raw.startswith(b"MSH!:*?%!")


def test_mapping_file(tmp_path: Path) -> None:
    file = tmp_path / "map.toml"
    file.write_text(
        """
[default]
ignore = ["ADT^A03"]
[sender.RIS]
character_set = "8859/1"
source = "HOUSE"
control = { ZN = "new" }
from = { modality = "ZXX[1=MOD]-2", patient_id = "PID-3[5=MR].1", location = "=Room 1" }
[sender.RIS.values]
modality = { XRAY = "DX" }
"""
    )
    with hearing(tmp_path / "node", mapping=str(file)) as node:
        sender = Sender(node.port)
        more = (segment("ZXX", _1="OTHER", _2="CT"), segment("ZXX", _1="MOD", _2="xray"))
        said = order("1", "ZN", "1", patient="X^^^H^PI~P7", name="Müller", more=more, _18="")
        said = said.replace("P7^^^H", "P7^^^H^MR")
        assert sender.say(said.encode("latin-1")).code == "AA"
        assert sender.say(demographics("A03", "2", "P7", "No^Body")).code == "AA"
        (held,) = node.entries()
        entry = held.entry
        assert (held.source, entry.modality, entry.location) == ("HOUSE", "DX", "Room 1")
        assert (entry.patient.patient_id, entry.patient.name) == ("P7", "Müller")
        sender.close()


@pytest.mark.parametrize(
    "wrong",
    [
        "x = 1",
        "[default]\nfrom = { modalty = 'OBR-24' }",
        "[default]\nfrom = { modality = 'OBR24' }",
        "[default]\ncontrol = { NW = 'old' }",
        "[default]\ncharacter_set = 'klingon'",
        "[default]\nignore = 'ADT^A03'",
        "[sender]\nRIS = 3",
        "not toml",
    ],
)
def test_wrong_mappings_are_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "map.toml"
    file.write_text(wrong)
    with pytest.raises(ConfigurationError, match=r"map\.toml: "):
        mapping.load(file)


def test_tls(tmp_path: Path) -> None:
    with hearing(tmp_path / "node", tls_port=free_port()) as node:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "node" / "tls" / "site.crt"))
        trusting.check_hostname = False
        sender = Sender(node.tls_port, trusting)
        assert sender.say(order("1", "NW", "1")).code == "AA"
        plain = Sender(node.tls_port)  # garbage instead of a handshake
        plain.socket.sendall(b"\x0bMSH|^~\\&|\x1c\r" * 10)
        with contextlib.suppress(ConnectionError):
            while plain.socket.recv(4096):
                pass
        assert sender.say(order("2", "NW", "2")).code == "AA"


def test_only_hosts_that_may_connect(tmp_path: Path) -> None:
    with hearing(tmp_path / "node", hosts=["192.0.2.1"]) as node:
        assert Sender(node.port).closed()


def test_messages_are_traced_and_replayed_by_command(tmp_path: Path) -> None:
    def run(node: Hearing, *words: str) -> object:
        command = [PROGRAM, "--config", node.path, "hl7", *words, "--json"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    file = tmp_path / "map.toml"
    file.write_text("")
    with hearing(tmp_path / "node", mapping=str(file)) as node:
        assert Sender(node.port).say(order("1", "NW", "1", modality="")).code == "AE"
        (row,) = run(node, "list", "--state", "refused")  # type: ignore[misc]
        assert (row["kind"], row["place"]) == ("ORM^O01", "OBR^1^24^1")
        file.write_text("[default.from]\nmodality = '=CT'\n")
        assert run(node, "replay", "1")["state"] == "applied"  # type: ignore[index]
        (held,) = node.entries()
        shown = run(node, "show", "1")
        assert shown["entries"] == [held.id]  # type: ignore[index]
        assert "Doe^Jane" in shown["message"]  # type: ignore[index]
        command = [PROGRAM, "--config", node.path, "hl7", "replay", "1"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 65


def test_headers_say_who_sent_it() -> None:
    found = header(bare(order("7", "NW", "1").encode()))
    assert (found.sender, found.control_id, found.enhanced) == ("RIS|HOSP", "7", False)
