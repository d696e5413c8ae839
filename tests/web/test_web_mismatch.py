"""Mismatched studies walked through in a real browser, to what a second receiver then holds."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.centre import Centre, centre
from harness.part10 import decode
from harness.recorder import RecordingSCP
from harness.waiting import free_port, until
from orders.speaking import Sender as Ris
from orders.speaking import demographics
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright
from pydicom.dataset import Dataset
from store.ordering import CT_OF_DOE, image, order
from web_support import PASSWORD, add_destination, add_user, found_store

from edgepacs import config, orders, upkeep
from edgepacs.forward.sender import Sender
from edgepacs.model import CorrectionPolicy, Receipt, Role
from edgepacs.store import Store, destinations, founding, instances
from edgepacs.store.worklist import Patient
from edgepacs.web import serve

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed"),
]


THEO = Patient(patient_id="P3", name="Third^Theo", birth_date="19700101", sex="F")


@pytest.fixture
def archive() -> Iterator[Centre]:
    with centre() as one:
        yield one


@pytest.fixture
def central(archive: Centre) -> RecordingSCP:
    return archive.scp


def _forward(store: Store, stop: threading.Event) -> None:
    Sender(store).run(stop)


@pytest.fixture
def node(tmp_path: Path, central: RecordingSCP) -> Iterator[Store]:
    found_store(tmp_path / "node", free_port()).close()
    configuration = tmp_path / "node" / founding.CONFIG_NAME
    head, _, rest = configuration.read_text().partition("[hl7]\n")
    said = f'host = "127.0.0.1"\nport = {free_port()}\n'
    configuration.write_text(f"{head}[hl7]\n{said}\n[keys]{rest.partition('[keys]')[2]}")
    store = Store.open(config.load(configuration))
    add_destination(store, port=central.port)
    add_user(store, "mara", Role.TECHNOLOGIST)
    stop = threading.Event()
    roles = (serve, _forward, upkeep.run, orders.run)
    threads = [threading.Thread(target=role, args=(store, stop)) for role in roles]
    for thread in threads:
        thread.start()
    yield store
    stop.set()
    for thread in threads:
        thread.join(20)
    store.close()


@pytest.fixture
def page(node: Store) -> Iterator[Page]:
    """A technologist's page; nothing may have gone wrong in it, and no patient stood in a URL."""
    wrong: list[str] = []
    asked: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        refused = message.text.startswith("Failed to load resource")  # provoked on purpose
        if message.type in ("error", "warning") and not refused:
            wrong.append(message.text)

    with sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        url = f"http://127.0.0.1:{node.config.web.port}"
        opened = browser.new_context(base_url=url).new_page()
        opened.on("console", heard)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("request", lambda one: asked.append(one.url))
        opened.goto("/login")
        opened.get_by_label("User name").fill("mara")
        opened.get_by_label("Password").fill(PASSWORD)
        opened.keyboard.press("Enter")
        opened.wait_for_url("**/studies")
        yield opened
        browser.close()
    assert wrong == []
    assert [one for one in asked if "doe" in one.lower() or "roe" in one.lower()] == []


def _compare(page: Page, receipt: Receipt) -> None:
    """From the list to the study, and on to its order."""
    page.goto("/studies")
    page.locator(f'tr[data-study="{receipt.study_id}"] a').click()
    page.get_by_role("link", name="Compare with its order").click()
    expect(page.get_by_role("heading", name="Study and order")).to_be_visible()


def _press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).first.click()


def _arrived(central: RecordingSCP, receipts: int) -> Dataset:
    """The last of what came, decoded by pydicom."""
    last = central.wait_for(receipts, seconds=15)[-1]
    return decode(last.data, last.transfer_syntax)


def test_mismatches_are_walked_to_what_arrives(
    node: Store, page: Page, central: RecordingSCP
) -> None:
    order(node)
    other = {"key": "2", "study_instance_uid": "1.2.44", "accession_number": "ZZ9"}
    order(node, replace(CT_OF_DOE, patient=THEO), **other)
    picked = image(node, PatientID="P2", PatientName="Roe^Rich")

    # The wrong patient was picked: the order is applied, and gone back from before anything left.
    _compare(page, picked)
    expect(page.get_by_role("status").first).to_contain_text("Nothing more of it is sent")
    assert central.total_requests == 0
    _press(page, "Keep as it is")
    expect(page.get_by_role("button", name="Decide again")).to_be_visible()
    kept = _arrived(central, 1)
    assert (kept.PatientID, "OriginalAttributesSequence" in kept) == ("P2", False)

    # A swapped ID: applied before it has left.
    said = {"StudyInstanceUID": "1.2.44", "SeriesInstanceUID": "1.2.45", "AccessionNumber": "ZZ9"}
    swapped = image(node, **said, PatientName="Third^Theo", PatientID="P9")
    _compare(page, swapped)
    _press(page, "Apply the order")
    expect(page.get_by_text("It is being corrected")).to_be_visible()
    came = _arrived(central, 2)
    assert (came.PatientID, came.StudyInstanceUID) == ("P3", "1.2.44")
    received = instances.instance(node.db, swapped.instance_id)
    assert came.SOPInstanceUID == received.sop_instance_uid
    original = came.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert original.PatientID == "P9"
    page.reload()
    expect(page.get_by_text("Corrected by its order").first).to_be_visible()
    _press(page, "Back to what was received")
    expect(page.get_by_text("has been sent")).to_be_visible()  # too late, and said so

    # A temporary ID under a wrong accession number: linked by hand, then applied.
    temporary = image(
        node, StudyInstanceUID="1.2.66", SeriesInstanceUID="1.2.67", PatientID="TEMP-1"
    )
    _compare(page, temporary)
    page.get_by_role("row", name="Third, Theo").get_by_role("button", name="Link").click()
    expect(page.get_by_text("a person said so").first).to_be_visible()
    _press(page, "Apply the order")
    linked = _arrived(central, 3)
    assert (linked.PatientID, linked.AccessionNumber) == ("P3", "ZZ9")
    assert "OriginalAttributesSequence" in linked


# --- the five cases, before and after they were sent ---------------------------------------------
# The centre never overwrites: what it shows in the end is the corrected study, once.


class Case(NamedTuple):
    """A mismatch: the image, what is known before, what comes about, and what is to be shown."""

    image: dict[str, str]
    before: Callable[[Store], object]
    after: Callable[[Store], object]
    shown: tuple[str, str, str]  # Patient ID, name, side
    flag: str
    in_place: bool = False  # ADT can say it


def _nothing(_: Store) -> None:
    pass


def _ordered(store: Store) -> None:
    order(store, replace(CT_OF_DOE, patient=replace(CT_OF_DOE.patient, issuer="H")))


def _unknown(store: Store) -> None:
    """Somebody came whom nobody knew."""
    order(store, replace(CT_OF_DOE, patient=Patient(patient_id=TEMPORARY, name="Unknown^")))


def _merged(gone: str, into: str) -> Callable[[Store], None]:
    """The RIS says that one ID was given up for another."""

    def say(store: Store) -> None:
        sender = Ris(store.config.hl7.port)
        assert sender.say(demographics("A40", "M1", into, "Doe^Jane", gone=gone)).code == "AA"
        sender.close()

    return say


TEMPORARY = "TEMP-0A1B2C3D4E"
DOE = ("P1", "Doe^Jane", "")
CASES = {
    "wrong patient": Case(
        {"PatientID": "P2", "PatientName": "Roe^Rich"}, _nothing, order, DOE, "Patient ID"
    ),
    "swapped ID": Case(
        {"PatientID": "P9", "PatientName": "Doe^Jane"}, _nothing, order, DOE, "Patient ID"
    ),
    "temporary ID": Case(
        {"PatientID": TEMPORARY, "PatientName": "Unknown^"},
        _unknown,
        _merged(TEMPORARY, "P1"),
        DOE,
        "Patient ID",
        in_place=True,
    ),
    "late merge": Case(
        {"PatientName": "Doe^Jane"},
        _ordered,
        _merged("P1", "REAL"),
        ("REAL", "Doe^Jane", ""),
        "Patient ID",
        in_place=True,
    ),
    "side": Case(
        {"PatientName": "Doe^Jane", "Laterality": "L"},
        _nothing,
        lambda store: order(store, laterality="R"),
        ("P1", "Doe^Jane", "R"),
        "Laterality",
    ),
}
ROUNDS = [(name, way) for name in CASES for way in ("before", "adt", "reject")]
_FEW = [("wrong patient", "reject"), ("late merge", "adt"), ("side", "before")]
SAMPLED = ROUNDS if os.environ.get("EDGEPACS_SOAK") else _FEW


@pytest.mark.parametrize(("name", "way"), SAMPLED)
def test_a_mismatch_ends_as_a_corrected_study_at_the_centre(
    node: Store, page: Page, archive: Centre, name: str, way: str
) -> None:
    case = CASES[name]
    _set(node, archive, way)
    case.before(node)
    if way == "before":
        archive.scp.down()
    receipt = image(node, **case.image)
    node.ring("forward")
    if way != "before":
        archive.scp.wait_for(1, seconds=20)
        until(lambda: _proved(node, receipt), "it is there", seconds=20)
    case.after(node)
    _compare_when_differing(page, receipt)
    expect(page.get_by_role("status").first).to_contain_text(case.flag)
    already = page.get_by_text("Where it is already")
    expect(already).to_have_count(int(way != "before"))
    _press(page, "Apply the order")
    expect(page.get_by_text("Corrected by its order").first).to_be_visible(timeout=15_000)
    if way == "before":
        archive.scp.up()
    until(lambda: _patients(archive) == [case.shown], f"the centre: {archive.shown()}", seconds=30)
    in_place = way == "adt" and case.in_place
    assert len(archive.adt.heard) == int(in_place)
    assert len(archive.rejected()) == int(way != "before" and not in_place)
    assert not archive.scp.repeats()
    _history_shows_it(page, receipt)


def _set(node: Store, archive: Centre, way: str) -> None:
    policy = CorrectionPolicy.REJECT if way == "reject" else CorrectionPolicy.ADT
    said = {"correction": str(policy), "adt": f"mllp://127.0.0.1:{archive.adt.port}"}
    with node.db.write() as tx:
        destinations.change(tx, "Central PACS", said, actor="test")


def _proved(node: Store, receipt: Receipt) -> bool:
    with node.db.read() as tx:
        sql = "SELECT state FROM delivery WHERE kind = 'instance' AND subject = ?"
        return [row[0] for row in tx.rows(sql, receipt.instance_id)] not in ([], ["sending"])


def _patients(archive: Centre) -> list[tuple[str, str, str]]:
    return [(one.patient_id, one.name, one.side) for one in archive.shown()]


def _compare_when_differing(page: Page, receipt: Receipt) -> None:
    """To its order, once it was found to differ."""
    page.goto("/studies")
    row = page.locator(f'tr[data-study="{receipt.study_id}"]')
    expect(row).to_contain_text("Differs from its order", timeout=15_000)
    row.get_by_role("link").first.click()
    page.get_by_role("link", name="Compare with its order").click()


def _history_shows_it(page: Page, receipt: Receipt) -> None:
    page.goto(f"/studies/{receipt.study_id}/order")
    shown = page.get_by_role("main")
    for words in ("Differs from its order", "The order was applied", "Corrected by its order"):
        expect(shown).to_contain_text(words)
    expect(shown).to_contain_text("→")
