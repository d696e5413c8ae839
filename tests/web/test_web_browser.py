"""The pages in a real browser: Chromium, driven as a technologist would.

EDGEPACS_SCREENSHOTS names a folder that then gets a picture of every page.
"""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness import made
from harness.waiting import free_port, until
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)
from web_support import PASSWORD, add_destination, add_user, changed, found_store, put, put_changed

from edgepacs.clock import wall_ms
from edgepacs.model import DeliveryState, Role, StudyId, StudyState
from edgepacs.store import Store, claims, errands, instances, peers, studies
from edgepacs.web import serve

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed"),
]
_CHROMIUM = {
    "executable_path": shutil.which("chromium"),
    "args": [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ],
}
_DESK = {"width": 1440, "height": 900}
CINE, CT, DOPPLER = 1, 2, 3  # studies, in the order `_fill` stores them


@dataclass(frozen=True, slots=True)
class Node:
    store: Store
    url: str


def _fill(store: Store) -> None:
    """A morning's work: a cine with a report beside it, a CT stack, a doppler with a conflict."""
    add_destination(store, "Central PACS")
    add_destination(store, "Cardiology")
    uid, mother = made.new_uid(), {"PatientName": "ACHIENG^ROSE", "PatientID": "6604-31"}
    about = {"PatientBirthDate": "19970430", "PatientSex": "F", "StudyDate": "20261123",
             "StudyTime": "101500", "StudyInstanceUID": uid, "AccessionNumber": "A20261123-05",
             "StudyDescription": "Obstetric ultrasound, second trimester"}  # fmt: skip
    for number, (file, name) in enumerate(
        [("color3d_jpeg_baseline.dcm", "Cine 4-chamber"), ("examples_rgb_color.dcm", "Doppler"),
         ("OBXXXX1A.dcm", "Placenta"), ("test-SR.dcm", "Measurements")], start=1,
    ):  # fmt: skip
        put_changed(store, file, SeriesNumber=number, SeriesDescription=name, **mother, **about)
    stack = {"StudyInstanceUID": made.new_uid(), "SeriesInstanceUID": made.new_uid(),
             "PatientName": "O'BRIEN^SEAN", "PatientID": "1180-55", "PatientSex": "M",
             "PatientBirthDate": "19671108", "StudyDescription": "CT spine",
             "SeriesDescription": "Axial 1.0 mm", "StudyDate": "20261123"}  # fmt: skip
    for number in range(1, 13):
        put_changed(store, "CT_small.dcm", InstanceNumber=number, **stack)
    one = changed("examples_rgb_color.dcm", PatientName="Mwangi^Joseph", PatientID="8841-70",
                  StudyDescription="US doppler carotid", StudyDate="20261122")  # fmt: skip
    put(store, one)
    other = one.dataset()
    other.PixelData = bytes(255 - value for value in other.PixelData)
    instances.quarantine(store.db, put(store, made.instance(other)).instance_id)
    for claim in claims.claim(store.db, 1, 9):
        claims.finish(store.db, claim.id, DeliveryState.SENT, result="")
    for claim in claims.claim(store.db, 2, 1):
        claims.finish(store.db, claim.id, DeliveryState.FAILED, result="refused (0122)")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    store = found_store(tmp_path_factory.mktemp("web") / "node", free_port())
    _fill(store)
    add_user(store, "mara", Role.TECHNOLOGIST)
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(store, stop))
    thread.start()
    yield Node(store, f"http://127.0.0.1:{store.config.web.port}")
    stop.set()
    thread.join(10)
    store.close()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    running = playwright.chromium.launch(**_CHROMIUM)
    yield running
    running.close()


def _watched(context: BrowserContext, node: Node) -> list[str]:
    """What goes wrong in any page of `context`: errors, the policy's refusals, foreign requests."""
    wrong: list[str] = []
    ours = (node.url, "blob:")
    # Tests read the canvas back often, and provoke refusals on purpose.
    expected = ("Canvas2D:", "Failed to load resource")

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(expected):
            wrong.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith(ours):
            wrong.append(request.url)

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", heard)
        page.on("request", asked)

    context.on("page", watch)
    return wrong


def _log_in(page: Page, node: Node, name: str = "mara") -> None:
    page.goto(f"{node.url}/login")
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/studies")


@pytest.fixture
def page(browser: Browser, node: Node) -> Iterator[Page]:
    """A page of somebody logged in; nothing may have gone wrong in it by the end."""
    context = browser.new_context(viewport=_DESK, color_scheme="light")
    wrong = _watched(context, node)
    opened = context.new_page()
    _log_in(opened, node)
    yield opened
    context.close()
    assert wrong == []


def _open(page: Page, node: Node, study: int) -> None:
    page.goto(f"{node.url}/studies/{study}")
    _shown(page)


def _shown(page: Page) -> None:
    """Wait until the canvas shows something that is not black."""
    page.wait_for_function(
        """() => {
            const c = document.getElementById("canvas");
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            for (let i = 0; i < d.length; i += 4) if (d[i] + d[i + 1] + d[i + 2] > 90) return true;
            return false;
        }"""
    )


def _mean(page: Page) -> float:
    """The mean brightness of the middle of the canvas."""
    return float(
        page.evaluate(
            """() => {
                const c = document.getElementById("canvas");
                const w = c.width >> 2, h = c.height >> 2;
                const d = c.getContext("2d").getImageData(w + (w >> 1), h + (h >> 1), w, h).data;
                let sum = 0;
                for (let i = 0; i < d.length; i += 4) sum += d[i];
                return sum / (d.length / 4);
            }"""
        )
    )


def test_screenshots(browser: Browser, node: Node):
    folder = os.environ.get("EDGEPACS_SCREENSHOTS")
    if not folder:
        pytest.skip("EDGEPACS_SCREENSHOTS is not set")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    refused = peers.RefusedAE(
        calling_ae="CT-SOMATOM", called_ae="EDGEPACS", host="192.0.2.31",
        reason="unknown calling AE title", times=1, first_ms=wall_ms(), last_ms=wall_ms(),
    )  # fmt: skip
    with node.store.db.write() as tx:
        peers.note_refused(tx, [refused])
    for theme in ("light", "dark"):
        context = browser.new_context(viewport=_DESK, color_scheme=theme)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(f"{node.url}/login")
        page.screenshot(path=out / f"login-{theme}.png")
        _log_in(page, node, "admin")
        for path, shot in (
            ("/studies", "list"), ("/queue", "queue"), ("/system", "system"),
            ("/system/destinations/1", "destination"), (f"/studies/{CINE}/deliveries", "ledger"),
        ):  # fmt: skip
            page.goto(node.url + path)
            page.screenshot(path=out / f"{shot}-{theme}.png", full_page=shot != "list")
        for study, shot in ((CINE, "study"), (CT, "study-ct"), (DOPPLER, "study-conflict")):
            _open(page, node, study)
            page.screenshot(path=out / f"{shot}-{theme}.png")
        context.close()
    for width, height in ((1024, 768), (768, 1024)):
        context = browser.new_context(viewport={"width": width, "height": height})
        page = context.new_page()
        _log_in(page, node, "admin")
        page.screenshot(path=out / f"list-{width}x{height}.png")
        _open(page, node, CINE)
        page.screenshot(path=out / f"study-{width}x{height}.png")
        context.close()


def test_login_by_keyboard(browser: Browser, node: Node):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{node.url}/studies/{CINE}")
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.type("mara")
    page.keyboard.press("Tab")
    page.keyboard.type("wrong password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("wrong user name or password")
    expect(page.get_by_label("Password")).to_be_focused()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/studies/{CINE}")
    context.close()


def test_search_and_keys_in_the_list(page: Page, node: Node):
    expect(page.locator("tr[data-study]")).to_have_count(3)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("achieng ROSE")
    expect(page.locator("tr[data-study]")).to_have_count(1)
    assert "achieng" not in page.url.lower()
    page.reload()
    expect(page.locator("tr[data-study]")).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("tr[data-study]")).to_have_count(3)
    page.get_by_label("Modality").select_option("CT")
    expect(page.locator("tr[data-study]")).to_have_count(1)
    page.get_by_label("Modality").select_option("")
    expect(page.locator("tr[data-study]")).to_have_count(3)
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    expect(page.locator(f'tr[data-study="{CT}"] a')).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/studies/{CT}")
    page.locator("#back").click()
    page.wait_for_url("**/studies")


def test_rows_keep_themselves_up_to_date(page: Page, node: Node):
    expect(page.locator("tr[data-study]")).to_have_count(3)
    page.locator(f'tr[data-study="{CT}"] a').focus()
    with node.store.db.write() as tx:
        studies.set_state(tx, studies.StudyId(CT), StudyState.HELD, actor="test")
    expect(page.locator(f'tr[data-study="{CT}"] .badge')).to_have_text("On hold", timeout=8000)
    expect(page.locator(f'tr[data-study="{CT}"] a')).to_be_focused()
    with node.store.db.write() as tx:
        studies.set_state(tx, studies.StudyId(CT), StudyState.RECEIVED, actor="test")


def test_scrolling_a_stack(page: Page, node: Node):
    _open(page, node, CT)
    where, canvas = page.locator("#where"), page.locator("#canvas")
    expect(where).to_have_text("1 of 12")
    for key, text in [("ArrowDown", "2 of 12"), ("End", "12 of 12"), ("PageUp", "2 of 12"),
                      ("ArrowUp", "1 of 12"), ("ArrowUp", "1 of 12")]:  # fmt: skip
        page.keyboard.press(key)
        expect(where).to_have_text(text)
    canvas.hover()
    page.mouse.wheel(0, 120)
    expect(where).to_have_text("2 of 12")
    page.keyboard.press("s")
    _drag(page, 0, 70)
    expect(where).to_have_text("7 of 12")
    page.locator("#scrub").fill("9")
    expect(where).to_have_text("10 of 12")
    expect(page.locator("#corner-tl")).to_contain_text("Instance 10")


def _drag(page: Page, dx: int, dy: int, *, button: Any = "left") -> None:
    box = page.locator("#canvas").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up(button=button)


def test_what_arrives_meanwhile_joins_the_stack(page: Page, node: Node):
    _open(page, node, CT)
    page.keyboard.press("ArrowDown")
    study = studies.study(node.store.db, studies.StudyId(CT))
    (series,) = studies.series_of(node.store.db, study.id)
    put_changed(
        node.store,
        "CT_small.dcm",
        StudyInstanceUID=study.study_instance_uid,
        SeriesInstanceUID=series.series_instance_uid,
        PatientID=study.patient_id,
        InstanceNumber=99,
    )
    expect(page.locator("#where")).to_have_text("2 of 13", timeout=8000)
    expect(page.locator(".thumb-count")).to_have_text("13")


def test_window_by_dragging_keys_and_presets(page: Page, node: Node):
    _open(page, node, CT)
    recorded, corner = _mean(page), page.locator("#corner-bl")
    as_recorded = corner.inner_text()
    _drag(page, 0, 160)  # a higher centre is darker
    until(lambda: _mean(page) < recorded - 15, "the picture is darker")
    assert corner.inner_text() != as_recorded
    expect(page.locator("#presets")).to_have_value("hand")
    page.keyboard.press("1")
    expect(corner).to_have_text(as_recorded)
    until(lambda: abs(_mean(page) - recorded) < 2, "the recorded window is back")
    page.get_by_label("Window preset").select_option("Lung")
    expect(corner).to_have_text("C -600 W 1500")
    page.keyboard.press("1")
    page.keyboard.press("Shift+ArrowDown")
    assert corner.inner_text() != as_recorded
    page.keyboard.press("r")
    expect(corner).to_have_text(as_recorded)


def test_invert_zoom_and_fit(page: Page, node: Node):
    _open(page, node, CT)
    before, percent = _mean(page), page.locator("#corner-br")
    fitted = percent.inner_text()
    page.keyboard.press("i")
    assert abs(_mean(page) - (255 - before)) < 2
    page.keyboard.press("i")
    page.keyboard.press("+")
    expect(percent).not_to_have_text(fitted)
    page.keyboard.press("f")
    expect(percent).to_have_text(fitted)
    page.keyboard.press("o")
    expect(percent).to_have_text("100 %")
    _drag(page, 0, -80, button="right")
    expect(percent).not_to_have_text("100 %")
    page.locator("#canvas").dblclick()
    expect(percent).to_have_text(fitted)


def test_cine_plays_at_the_recorded_rate(page: Page, node: Node):
    """Two seconds after the first loop: the clock may be off by no more than a frame or two."""
    _open(page, node, CINE)
    expect(page.locator("#rate")).to_have_text("30.0 fps")
    page.evaluate(
        """() => {
            window.seen = [];
            document.getElementById("canvas").addEventListener("frame",
                (event) => window.seen.push([performance.now(), event.detail.index]));
        }"""
    )
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.wait_for_function("() => document.getElementById('loaded').value === 1", timeout=30_000)
    page.evaluate("() => { window.seen.length = 0; }")
    page.wait_for_function("() => seen.length > 2 && seen.at(-1)[0] - seen[0][0] > 4000")
    seen = page.evaluate("() => window.seen")
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    (first, start), (last, end) = seen[0], seen[-1]
    seconds = (last - first) / 1000
    loops = sum(1 for (_, a), (_, b) in pairwise(seen) if b < a)
    advanced = end - start + 120 * loops
    assert advanced / seconds == pytest.approx(30.0, rel=0.02)
    assert len(seen) / seconds > 20, "too many frames were skipped"
    print(f"cine: {advanced / seconds:.2f} fps by the clock, {len(seen) / seconds:.2f} fps shown")


def test_series_and_what_has_no_picture(page: Page, node: Node):
    _open(page, node, CINE)
    strip = page.locator(".series")
    expect(strip).to_have_count(4)
    expect(strip.first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    expect(strip.nth(1)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Measurements").click()
    expect(page.locator("#no-picture-note")).to_contain_text("no pictures")
    page.get_by_role("button", name="Show its attributes").click()
    expect(page.locator("#attributes")).to_contain_text("Content Sequence")
    page.keyboard.type("patient id")
    expect(page.locator("#attributes tbody tr:visible")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#drawer")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_verify_hold_send_reject(page: Page, node: Node):
    _open(page, node, CT)
    badge = page.locator(".panel .badge")
    page.get_by_role("button", name="Verify").click()
    expect(badge).to_have_text("Verified")
    page.get_by_role("button", name="Hold").click()
    expect(badge).to_have_text("On hold")
    page.get_by_role("button", name="Release").click()
    expect(badge).to_have_text("Received")
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("checkbox", name="Cardiology").check()
    page.get_by_role("dialog").get_by_role("button", name="Send").click()
    expect(page.locator("ol.history")).to_contain_text("Study sent")
    page.get_by_role("button", name="Reject").click()
    page.get_by_role("button", name="Keep it").click()
    expect(badge).to_have_text("Received")
    page.get_by_role("button", name="Reject").click()
    page.get_by_role("dialog").get_by_role("button", name="Reject").click()
    expect(badge).to_have_text("Rejected")
    page.get_by_role("button", name="Take back").click()
    expect(badge).to_have_text("Received")


def test_the_panel_follows_the_queue(page: Page, node: Node):
    _open(page, node, CT)
    before = page.locator(".journey").first.inner_text()
    for claim in claims.claim(node.store.db, 2, 1000):
        claims.finish(
            node.store.db,
            claim.id,
            DeliveryState.QUEUED,
            result="The line is down",
            next_ms=wall_ms() + 600_000,
        )
    expect(page.locator(".journey").first).to_contain_text("The line is down", timeout=8000)
    expect(page.locator(".journey").first).to_contain_text("next try")
    assert page.locator(".journey").first.inner_text() != before


def test_import_by_dialog(page: Page, node: Node, tmp_path: Path):
    good = made.ct(patient_name="IMPORTED^ONE").write(tmp_path / "good.dcm")
    bad = tmp_path / "notes.txt"
    bad.write_text("not DICOM")
    page.get_by_role("button", name="Import").click()
    page.locator("#files").set_input_files([good, bad, good])
    results = page.locator("#import-results li")
    expect(results).to_have_count(3)
    texts = " ".join(results.all_inner_texts())
    for said in ("Stored", "not a DICOM file", "Already here"):
        assert said in texts
    expect(page.locator("#import-words")).to_have_text("3 of 3 files, 1 not taken")
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Imported, One")).to_be_visible(timeout=8000)


def test_dark_room_is_remembered(browser: Browser, node: Node, page: Page):
    ground = "() => getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.keyboard.press("t")
    dark = page.evaluate(ground)
    assert dark != light
    _open(page, node, CT)
    assert page.evaluate(ground) == dark
    page.keyboard.press("t")
    assert page.evaluate(ground) == light
    asks = browser.new_context(color_scheme="dark")
    night = asks.new_page()
    night.goto(f"{node.url}/login")
    assert night.evaluate(ground) == dark
    asks.close()


@pytest.mark.parametrize("size", [(1024, 768), (768, 1024)])
def test_fingers_hit_everything(page: Page, node: Node, size: tuple[int, int]):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    pages = ("/studies", f"/studies/{CINE}", f"/studies/{DOPPLER}", "/queue")
    for path in (*pages, f"/studies/{CINE}/deliveries", "/deliveries/1"):
        page.goto(node.url + path)
        small = page.evaluate(
            """() => ["button", "summary", "select", ".nav a", "a.button", "input"]
                .flatMap((kind) => [...document.querySelectorAll(kind)])
                .filter((e) => e.checkVisibility({visibilityProperty: true})
                    && !["hidden", "checkbox", "file"].includes(e.type))
                .map((e) => [e.outerHTML.slice(0, 90), e.getBoundingClientRect()])
                .filter(([, box]) => box.width < 44 || box.height < 44)
                .map(([html, box]) => `${html} ${box.width} x ${box.height}`)"""
        )
        assert small == [], path
        wide = page.evaluate(
            "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{path} scrolls sideways"
        inner = page.evaluate(
            """() => [...document.querySelectorAll(".panel, .table-frame, .dialog")]
                .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.className)"""
        )
        assert inner == [], path


def test_two_fingers_zoom(browser: Browser, node: Node):
    context = browser.new_context(viewport={"width": 1024, "height": 768}, has_touch=True)
    page = context.new_page()
    _log_in(page, node)
    _open(page, node, CT)
    percent = page.locator("#corner-br")
    before = percent.inner_text()
    session = context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[int, int]) -> None:
        down = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": down})

    touch("touchStart", (400, 420), (440, 420))
    touch("touchMove", (360, 420), (480, 420))
    touch("touchMove", (340, 420), (500, 420))
    touch("touchEnd")
    expect(percent).not_to_have_text(before)
    context.close()


def test_the_browser_keeps_nothing_of_a_patient(playwright: Playwright, node: Node, tmp_path: Path):
    """What Chromium leaves in its profile after a search, a view and a download of attributes."""
    name, description = "QXJZPROFILENAME", "QXJZPROFILETEXT"
    put_changed(node.store, "CT_small.dcm", PatientName=f"{name}^X", StudyDescription=description)
    (study,) = studies.search(node.store.db, studies.Search(text=name.lower()))
    profile = tmp_path / "profile"
    context = playwright.chromium.launch_persistent_context(str(profile), **_CHROMIUM)
    page = context.new_page()
    _log_in(page, node)
    page.locator("#search").fill(name)
    expect(page.locator("tr[data-study]")).to_have_count(1)
    page.locator("tr[data-study] a").click()
    _shown(page)
    page.keyboard.press("a")
    expect(page.locator("#attributes")).to_contain_text(name)
    page.goto(f"{node.url}/studies")
    context.close()
    assert study.patient_name.startswith(name)
    marks = [word.encode(code) for word in (name, name.capitalize(), name.lower(), description)
             for code in ("utf-8", "utf-16-le")]  # fmt: skip
    hits = [
        str(file.relative_to(profile))
        for file in profile.rglob("*")
        if file.is_file() and any(mark in file.read_bytes() for mark in marks)
    ]
    assert hits == []
    history = (profile / "Default" / "History").read_bytes()
    assert node.url.encode() in history, "the control: this profile was never written"


def test_ticks_stay_until_they_are_acted_on(page: Page, node: Node):
    page.goto(f"{node.url}/queue")
    row = page.locator("#rows tr", has_text="O'Brien").filter(has_text="Cardiology")
    row.get_by_role("checkbox").check()
    with node.store.db.write() as tx:  # something changes, and the page is polled meanwhile
        tx.run("UPDATE delivery SET priority = 0")
        studies.set_state(tx, StudyId(DOPPLER), StudyState.HELD, actor="test")
        studies.set_state(tx, StudyId(DOPPLER), StudyState.RECEIVED, actor="test")
    with page.expect_response("**/queue/rows*"):
        pass
    expect(row.get_by_role("checkbox")).to_be_checked()
    page.get_by_role("button", name="Send first").click()
    expect(page.locator(".told")).to_have_text(re.compile("^1[23] go before all else"))
    expect(row.get_by_role("checkbox")).not_to_be_checked()
    row.get_by_role("link", name="Deliveries").click()
    expect(page.locator("input[name=delivery]")).not_to_have_count(0)
    page.locator("tbody tr", has_text="Cardiology").first.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Attempts")).to_be_visible()


def test_a_destination_is_set_up_and_a_rule_tried(page: Page, node: Node):
    page.context.clear_cookies()
    _log_in(page, node, "admin")
    page.goto(f"{node.url}/system")
    page.get_by_role("link", name="Cardiology").click()
    page.get_by_label("Speed at most, kbit/s").fill("384")
    page.get_by_label("Bearer token").fill("of-mine")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Speed at most, kbit/s")).to_have_value("384")
    expect(page.get_by_label("Bearer token")).to_have_value("")
    expect(page.get_by_label("Forget it")).to_be_visible()
    page.goto(f"{node.url}/system")
    page.get_by_text("Add or try a rule").click()
    page.get_by_label("Match").fill("modality=US")
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_role("heading", name="What a rule would do")).to_be_visible()
    expect(page.get_by_label("Match")).to_have_value("modality=US")


def test_administration(page: Page, node: Node):
    page.context.clear_cookies()
    _log_in(page, node, "admin")
    page.goto(f"{node.url}/system")
    page.locator("[data-echo]").first.click()
    errand = until(lambda: errands.still_open(node.store.db, "forward"), "the echo is asked for")[0]
    errands.answer(node.store.db, errand.id, succeeded=True, result="Answered in 4 ms")
    expect(page.locator(".echo-result").first).to_have_text("Answered in 4 ms")
    page.get_by_text("Add a user").click()
    form = page.locator('form[action="/system/users"]')
    form.get_by_label("Name").fill("otto")
    form.get_by_role("button", name="Add").click()
    expect(page.locator("#secret")).to_have_text(re.compile("^[a-z2-9]{5}(-[a-z2-9]{5}){3}$"))
    row = page.locator("#users tr", has_text="otto")
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Cancel").click()
    expect(row).to_be_visible()
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Yes").click()
    expect(row).to_have_count(0)
