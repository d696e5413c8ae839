"""ADT messages of our own: what they say, and how they get there."""

import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hl7
import pytest
from harness.adt_server import HANG_UP, SILENCE, AdtServer, adt_server
from harness.box import Box
from harness.waiting import free_port, stays, until
from powercut.node import Node
from store.making import add_destination
from store.ordering import image, order

from edgepacs import config, orders
from edgepacs.model import DeliveryState
from edgepacs.orders import adt, sending
from edgepacs.store import Store, announcing, corrections, destinations, dispatches, opened
from edgepacs.store.announcing import Announcement, Trigger
from edgepacs.store.certificate import create
from edgepacs.store.worklist import Patient

DOE = Patient(patient_id="P1", issuer="HOSP", name="Doe^Jane^Q^Dr.^MD", birth_date="19700101")


@pytest.fixture
def centre() -> Iterator[AdtServer]:
    with adt_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "_TELL_SECONDS", 0.05)
    monkeypatch.setattr(sending, "RETRY_FIRST_MS", 50)
    monkeypatch.setattr(sending, "RETRY_MOST_MS", 50)


def pacs(store: Store, port: int, scheme: str = "mllp", **settings: str) -> int:
    number = add_destination(store)
    said = {"correction": "adt", "adt": f"{scheme}://127.0.0.1:{port}", **settings}
    with store.db.write() as tx:
        destinations.change(tx, "pacs", said, actor="test")
    return number


def announced(
    store: Store,
    destination: int,
    patient: Patient = DOE,
    former: tuple[str, str] | None = None,
    study: str = "1.2.3.1",
) -> int:
    """A message of a correction that was made."""
    entry = order(store, key=study)
    receipt = image(store, StudyInstanceUID=study)
    with store.db.write() as tx:
        correction = tx.insert(
            "correction",
            {"study": receipt.study_id, "entry": entry, "state": "done", "sides": "{}"}
            | {"actor": "mara", "asked_ms": 1, "changed_ms": 1},
        )
        return announcing.announce(
            tx,
            destination=destination,
            study=receipt.study_id,
            correction=correction,
            trigger=Trigger.A40 if former else Trigger.A08,
            patient=patient,
            former_id=former,
            actor="mara",
        )


@contextmanager
def telling(store: Store) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=orders.run, args=(store, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def ledger(store: Store) -> list[tuple[str, str]]:
    with store.db.read() as tx:
        sql = "SELECT state, last_error FROM delivery WHERE kind = 'hl7' ORDER BY id"
        return [(row[0], row[1]) for row in tx.rows(sql)]


def all_are(store: Store, state: str) -> Callable[[], bool]:
    return lambda: {one for one, _ in ledger(store)} == {state}


def read(raw: bytes | str) -> dict[str, list[str]]:
    """The fields of each segment by its name; MSH-1 is a field as well."""
    text = raw.decode() if isinstance(raw, bytes) else raw
    found = {line[:3]: line.split("|") for line in text.rstrip("\r").split("\r")}
    return found | {"MSH": ["MSH", "|", *found["MSH"][1:]]}


def of(trigger: Trigger, patient: Patient, former: tuple[str, str] = ("", "")) -> Announcement:
    return Announcement(
        id=7,
        destination=1,
        study=1,  # type: ignore[arg-type]
        correction=1,
        trigger=trigger,
        patient=patient,
        former_id=former[0],
        former_issuer=former[1],
        made_ms=1_795_000_000_000,
    )


# --- what they say -----------------------------------------------------------------------------


def test_an_update_says_the_patient_as_the_order_does() -> None:
    found = read(adt.message(of(Trigger.A08, DOE), title="EDGE", receiver="pacs"))
    assert list(found) == ["MSH", "EVN", "PID", "PV1"]
    assert found["MSH"][9] == "ADT^A08^ADT_A01"
    assert found["MSH"][18] == "UNICODE UTF-8"
    assert found["PID"][3] == "P1^^^HOSP^MR"
    assert found["PID"][5] == "Doe^Jane^Q^MD^Dr.^^L^A"
    assert (found["PID"][7], found["PID"][8]) == ("19700101", "")


def test_a_merge_names_the_id_that_was_given_up() -> None:
    one = of(Trigger.A40, DOE, ("TEMP-1", "EDGE"))
    found = read(adt.message(one, title="EDGE", receiver="pacs"))
    assert list(found) == ["MSH", "EVN", "PID", "MRG", "PV1"]
    assert found["MSH"][9] == "ADT^A40^ADT_A39"
    assert found["MRG"][1] == "TEMP-1^^^EDGE^MR"


def test_delimiters_and_ends_of_line_in_values_change_nothing_else() -> None:
    name = "D|o~e&^J\\ane\rPID|9\n=山田^太郎=やまだ^たろう"
    raw = adt.message(of(Trigger.A08, Patient(patient_id="P^1", name=name)), title="E", receiver="")
    assert raw.count(b"\r") == 4
    found = read(raw)
    plain = hl7.parse(raw.decode())
    assert plain.unescape(found["PID"][3].split("^")[0]) == "P^1"
    names = found["PID"][5].split("~")
    assert plain.unescape(names[0].split("^")[0]) == "D|o~e&"
    assert plain.unescape(names[0].split("^")[1]) == "J\\ane PID|9"
    assert names[1].split("^")[:2] == ["山田", "太郎"]
    assert [one.split("^")[7] for one in names] == ["A", "I", "P"]


def test_the_same_is_said_each_time() -> None:
    one = of(Trigger.A08, DOE)
    assert adt.message(one, title="E", receiver="p") == adt.message(one, title="E", receiver="p")
    assert len(adt.control_id(one)) <= 20


ACK = "MSH|^~\\&|C||E||20261124||ACK|1|P|2.5.1\rMSA|{}|7|{}\r"


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        (ACK.format("AA", ""), "sent", "acknowledged (AA)"),
        (ACK.format("CA", ""), "sent", "acknowledged (CA)"),
        (ACK.format("AE", "Doe^Jane is unknown"), "failed", "the destination answered AE"),
        (
            ACK.format("AR", "") + "ERR||PID^1^3^1|204^Unknown key identifier|E||||Doe\r",
            "failed",
            "the destination answered AR 204 PID^1^3^1",
        ),
        (
            ACK.format("AE", "") + "ERR||DOE^JANE|Smith\r",
            "failed",
            "the destination answered AE",
        ),
        (ACK.format("AE", "") + "ERR||DOE|4711\r", "failed", "the destination answered AE"),
        (ACK.format("AA", "").replace("|7|", "|8|"), "queued", "it acknowledged another message"),
        (ACK.format("XX", ""), "queued", "its answer is no acknowledgement"),
        ("MSH|^~\\&|C\r", "queued", "its answer is no acknowledgement"),
        ("HTTP/1.1 400\r", "queued", "its answer is no acknowledgement"),
        ("", "queued", "its answer is no acknowledgement"),
    ],
)
def test_answers_are_judged_and_say_nothing_of_a_patient(
    answer: str, state: str, words: str
) -> None:
    assert adt.judged(answer.encode(), "7") == (DeliveryState(state), words)


# --- how they get there ------------------------------------------------------------------------


def test_what_waits_is_told_in_its_order(store: Store, centre: AdtServer) -> None:
    destination = pacs(store, centre.port)
    announced(store, destination, DOE, ("TEMP-1", ""))
    announced(store, destination)
    with telling(store):
        until(all_are(store, "sent"), "both are told")
    kinds = [read(one)["MSH"][9] for one in centre.heard]
    assert kinds == ["ADT^A40^ADT_A39", "ADT^A08^ADT_A01"]


def test_an_outage_costs_nothing_but_time(store: Store) -> None:
    port = free_port()
    announced(store, pacs(store, port))
    with telling(store):
        until(lambda: "nothing listens" in ledger(store)[0][1], "it was tried")
        with adt_server(port) as centre:
            until(all_are(store, "sent"), "it is told")
            assert len(centre.heard) == 1
    with store.db.read() as tx:
        assert tx.number("SELECT attempts FROM delivery WHERE kind = 'hl7'") == 1


@pytest.mark.parametrize("said", [HANG_UP, SILENCE, "nonsense\r"])
def test_what_is_not_answered_is_said_again_as_it_was(
    store: Store, centre: AdtServer, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_BOUNDS", sending.Bounds(message_bytes=1 << 16, idle=0.2))
    answers = iter([said])
    centre.answer = lambda _: next(answers, "AA")
    announced(store, pacs(store, centre.port))
    with telling(store):
        until(all_are(store, "sent"), "it is told")
    first, second = centre.heard
    assert first == second


def test_what_is_refused_waits_for_a_person_and_holds_up_its_own_study_alone(
    store: Store, centre: AdtServer
) -> None:
    destination = pacs(store, centre.port)
    announced(store, destination, DOE, ("TEMP-1", ""))
    announced(store, destination)
    announced(store, destination, study="1.2.3.99")
    centre.answer = lambda message: "AE" if "|ADT^A40^" in message else "AA"
    with telling(store):
        until(lambda: [one for one, _ in ledger(store)] == ["failed", "queued", "sent"], "all")
        stays(lambda: len(centre.heard) == 2, "the other waits", seconds=0.3)
    assert ledger(store)[0][1] == "the destination answered AE"


def test_what_a_crash_left_is_said_again(store: Store, centre: AdtServer) -> None:
    destination = pacs(store, centre.port)
    announced(store, destination)
    assert dispatches.claim(store.db, destination, sending.KINDS)
    with telling(store):
        until(all_are(store, "sent"), "it is told")


def test_what_is_revoked_is_not_told(store: Store, centre: AdtServer) -> None:
    destination = pacs(store, centre.port)
    number = announced(store, destination)
    correction = announcing.announcement(store.db, number).correction
    with store.db.write() as tx:
        assert announcing.revoke(tx, correction, actor="mara")
    with telling(store):
        stays(lambda: not centre.heard, "nothing is told", seconds=0.3)
    assert all_are(store, "cancelled")()
    assert corrections.of_study(store.db, announcing.announcement(store.db, number).study)


def test_over_tls_only_to_whom_is_trusted(store: Store, tmp_path: Path) -> None:
    create(tmp_path / "tls")
    certificate = tmp_path / "tls" / "site.crt"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "tls" / "site.key")
    with adt_server(tls=context) as centre:
        destination = pacs(store, centre.port, "mllps")
        announced(store, destination)
        with telling(store):
            until(lambda: "certificate not accepted" in ledger(store)[0][1], "it is refused")
            assert centre.heard == []
            with store.db.write() as tx:
                said = {"authority": certificate.read_text()}
                destinations.change(tx, "pacs", said, actor="test")
            until(all_are(store, "sent"), "it is told")


@pytest.mark.parametrize("point", ["announcement.claimed", "announcement.told"])
def test_killed_between_it_is_said_again_as_it_was(
    new_box: Callable[[], Box], centre: AdtServer, point: str
) -> None:
    box = new_box()
    with opened(config.load(box.config)) as store:
        announced(store, pacs(store, centre.port))
    node = Node(box)
    node.launch("scp", ("--kill-at", f"{point}:1"))
    assert node.wait("scp") == -signal.SIGKILL
    with opened(config.load(box.config)) as store, telling(store):
        until(all_are(store, "sent"), "it is told")
    assert len(centre.heard) == (2 if point == "announcement.told" else 1)
    assert len(set(centre.heard)) == 1
