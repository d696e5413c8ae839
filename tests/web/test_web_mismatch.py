"""Mismatched studies walked through in a real browser, to what a second receiver then holds."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness.part10 import decode
from harness.recorder import RecordingSCP
from harness.waiting import free_port
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright
from pydicom.dataset import Dataset
from store.ordering import CT_OF_DOE, image, order
from web_support import PASSWORD, add_destination, add_user, found_store

from edgepacs import upkeep
from edgepacs.forward.sender import Sender
from edgepacs.model import Receipt, Role
from edgepacs.store import Store, instances
from edgepacs.store.worklist import Patient
from edgepacs.web import serve

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed"),
]


THEO = Patient(patient_id="P3", name="Third^Theo", birth_date="19700101", sex="F")


@pytest.fixture
def central() -> Iterator[RecordingSCP]:
    with RecordingSCP("CENTRAL") as scp:
        yield scp


def _forward(store: Store, stop: threading.Event) -> None:
    Sender(store).run(stop)


@pytest.fixture
def node(tmp_path: Path, central: RecordingSCP) -> Iterator[Store]:
    store = found_store(tmp_path / "node", free_port())
    add_destination(store, port=central.port)
    add_user(store, "mara", Role.TECHNOLOGIST)
    stop = threading.Event()
    threads = [
        threading.Thread(target=role, args=(store, stop)) for role in (serve, _forward, upkeep.run)
    ]
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
    expect(page.get_by_text("Study corrected").first).to_be_visible()
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
