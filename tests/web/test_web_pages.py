"""The pages and what people do on them, against a real store."""

import io
import re

import pytest
from harness import made, part10
from pydicom import dcmread
from web_support import PAGE, Person, add_destination, changed, log_in, put, put_changed
from werkzeug.test import TestResponse

from edgepacs.model import DeliveryState, InstanceState, Outcome, Role, Service, StudyState
from edgepacs.store import Store, destinations, errands, instances, ledger, peers, studies, users
from edgepacs.store.peers import RefusedAE
from edgepacs.web import create_app
from edgepacs.web.study_list import PAGE as ROWS


def _names(text: str) -> list[str]:
    return re.findall(r'href="/studies/\d+"><span title="[^"]*"><bdi>([^<]*)</bdi>', text)


def test_the_list_shows_what_is_there(store: Store, viewer: Person):
    add_destination(store)
    put_changed(
        store,
        "CT_small.dcm",
        PatientName="DOE^JANE",
        PatientID="P-77",
        PatientBirthDate="19670423",
        PatientSex="F",
        StudyDate="20261123",
        StudyTime="101500",
        StudyDescription="CT chest",
        AccessionNumber="A-1",
    )
    page = viewer.get("/studies").text
    for shown in ("Doe, Jane", "P-77", "1967-04-23", "59 y", "2026-11-23 10:15", "CT chest", "A-1",
                  "1 instance", "1 series", "Received", "Central PACS", "1 waiting"):  # fmt: skip
        assert shown in page, shown
    assert 'data-opens="import"' not in page  # a viewer may not


def test_an_empty_node_says_what_to_do(admin: Person):
    page = admin.get("/studies").text
    assert "Nothing has arrived yet" in page
    assert "EDGEPACS" in page


def _three(store: Store) -> None:
    for name, date, file in (
        ("MÜLLER^EVA", "20261101", "CT_small.dcm"),
        ("Otieno^Grace", "20261110", "MR_small.dcm"),
        ("Yamada^Tarou", "20261120", "CT_small.dcm"),
    ):
        put_changed(store, file, PatientName=name, StudyDate=date, PatientID=f"ID{date}")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ({}, ["Yamada, Tarou", "Otieno, Grace", "Müller, Eva"]),
        ({"text": "muller"}, ["Müller, Eva"]),
        ({"text": "eva müller"}, ["Müller, Eva"]),
        ({"text": "ID20261110"}, ["Otieno, Grace"]),
        ({"modality": "CT"}, ["Yamada, Tarou", "Müller, Eva"]),
        ({"from": "2026-11-10"}, ["Yamada, Tarou", "Otieno, Grace"]),
        ({"to": "2026-11-10", "from": "2026-11-02"}, ["Otieno, Grace"]),
        ({"state": "held"}, []),
    ],
)
def test_search(store: Store, viewer: Person, search: dict[str, str], found: list[str]):
    _three(store)
    answer = viewer.post("/studies", search)
    assert answer.status_code == 303
    target = answer.headers["Location"]
    for word in search.values():
        assert word not in target
    assert _names(viewer.get(target).text) == found
    rows = viewer.client.post("/studies", data={"csrf": viewer.csrf, **search})
    assert _names(rows.text) == found


@pytest.mark.parametrize(
    "wrong",
    [{"from": "yesterday"}, {"state": "lost"}, {"text": "x" * 201}, {"to": "2026-13-01"}],
)
def test_senseless_searches_are_refused(viewer: Person, wrong: dict[str, str]):
    assert viewer.post("/studies", wrong).status_code == 400


def test_a_search_belongs_to_the_one_who_made_it(
    store: Store, viewer: Person, technologist: Person
):
    _three(store)
    target = viewer.post("/studies", {"text": "otieno"}).headers["Location"]
    assert len(_names(viewer.get(target).text)) == 1
    client = viewer.client.application.test_client()  # the same node, another person
    log_in(client, "mara")
    assert len(_names(client.get(target, headers=PAGE).text)) == 3


def test_pages_of_a_long_list(store: Store, viewer: Person):
    for number in range(ROWS + 2):
        put(store, made.ct(patient_name=f"P{number:03}^X", patient_id=f"{number}"))
    first, second = viewer.get("/studies").text, viewer.get("/studies?page=2").text
    assert len(_names(first)) == ROWS
    assert 'rel="next"' in first
    assert _names(second) == ["P001, X", "P000, X"]
    assert 'rel="prev"' in second
    assert 'rel="next"' not in second
    for wrong in ("0", "-1", "x", "9999999999999999999"):
        assert viewer.get(f"/studies?page={wrong}").status_code == 400


def test_polling_costs_nothing_until_something_changes(store: Store, technologist: Person):
    study = put(store, made.ct()).study_id
    paths = ("/studies/rows", f"/studies/{study}/panel", "/queue/rows")
    tags = {path: technologist.get(path).headers["ETag"] for path in paths}
    for path, tag in tags.items():
        same = technologist.get(path, **{"If-None-Match": tag})
        assert same.status_code == 304, path
        assert same.data == b""
    technologist.post(f"/studies/{study}/state", {"state": "verified"})
    for path, tag in tags.items():
        new = technologist.get(path, **{"If-None-Match": tag})
        assert new.status_code == 200, path
        assert new.headers["ETag"] != tag
    assert "badge-verified" in technologist.get("/studies/rows").text


def test_study_page(store: Store, technologist: Person):
    add_destination(store)
    uid = made.new_uid()
    for number, file in enumerate(("CT_small.dcm", "test-SR.dcm"), start=1):
        put_changed(
            store,
            file,
            StudyInstanceUID=uid,
            SeriesNumber=number,
            SeriesDescription=f"Series {number}",
            PatientName="DOE^JANE",
            PatientID="P-77",
        )
    page = technologist.get("/studies/1").text
    assert page.count('class="series"') == 2
    assert "/instances/1/frames/0?edge=160" in page
    assert "/instances/2/frames" not in page  # a report has no pictures
    for shown in ("Doe, Jane", "P-77", "Series 1", "Series 2", "Central PACS", "2 waiting"):
        assert shown in page, shown
    assert "DOE" not in re.search(r"<title>(.*?)</title>", page)[1]


def test_the_same_as_json(store: Store, viewer: Person):
    add_destination(store)
    one = changed("CT_small.dcm", PatientName="DOE^JANE")
    put(store, one)
    listed = viewer.client.get("/studies.json").json["studies"]
    assert [row["patient_name"] for row in listed] == ["DOE^JANE"]
    assert listed[0]["deliveries"][0]["state"] == "queued"
    study = viewer.client.get("/studies/1.json").json
    (instance,) = study["series"][0]["instances"]
    assert instance["sop_instance_uid"] == one.sop_instance
    assert instance["byte_length"] == len(one.data)
    assert "object_id" not in instance
    found = viewer.client.post(
        "/studies.json", json={"text": "jane", "limit": 1}, headers={"X-CSRF-Token": viewer.csrf}
    )
    assert len(found.json["studies"]) == 1
    for wrong in ([], {"text": 1}, {"limit": 10**9}, {"from": "x"}):
        answer = viewer.client.post(
            "/studies.json", json=wrong, headers={"X-CSRF-Token": viewer.csrf}
        )
        assert answer.status_code == 400, wrong


def test_verify_hold_release_reject(store: Store, technologist: Person):
    add_destination(store)
    study = put(store, made.ct()).study_id

    def state_after(wanted: str) -> tuple[StudyState, set[DeliveryState]]:
        assert technologist.post(f"/studies/{study}/state", {"state": wanted}).status_code == 303
        rows = ledger.progress_of_studies(store.db, [study])[study]
        return studies.study(store.db, study).state, {row.state for row in rows}

    assert state_after("held") == (StudyState.HELD, {DeliveryState.HELD})
    assert technologist.post(f"/studies/{study}/send", {"destination": "1"}).status_code == 409
    assert state_after("received") == (StudyState.RECEIVED, {DeliveryState.QUEUED})
    assert state_after("verified") == (StudyState.VERIFIED, {DeliveryState.QUEUED})
    assert state_after("rejected") == (StudyState.REJECTED, {DeliveryState.HELD})
    assert technologist.post(f"/studies/{study}/state", {"state": "verified"}).status_code == 409
    assert technologist.post(f"/studies/{study}/state", {"state": "lost"}).status_code == 400
    assert "Study rejected" in technologist.get(f"/studies/{study}").text
    assert "mara" in technologist.get(f"/studies/{study}").text


def test_send(store: Store, technologist: Person):
    study = put(store, made.ct()).study_id  # before there is a destination: nothing is queued
    first, second = add_destination(store), add_destination(store, "Second")
    for wrong in ({}, {"destination": "99"}, {"destination": "x"}):
        assert technologist.post(f"/studies/{study}/send", wrong).status_code == 400
    answer = technologist.post(f"/studies/{study}/send", {"destination": [str(first), str(second)]})
    assert answer.status_code == 303
    rows = ledger.progress_of_studies(store.db, [study])[study]
    assert {(row.destination, row.state) for row in rows} == {
        (first, DeliveryState.QUEUED),
        (second, DeliveryState.QUEUED),
    }


def _conflict(store: Store) -> tuple[int, int]:
    """Two contents under one SOP Instance UID; the numbers of the stored and the new one."""
    one = made.ct()
    first = put(store, one).instance_id
    dataset = one.dataset()
    dataset.SeriesDescription = "Other content"
    second = put(store, made.instance(dataset))
    assert second.outcome is Outcome.COMPARING
    instances.quarantine(store.db, second.instance_id)
    return first, second.instance_id


def test_conflicting_version_is_accepted(store: Store, technologist: Person):
    add_destination(store)
    first, second = _conflict(store)
    page = technologist.get("/studies/1").text
    assert "Conflicting versions" in page
    assert f"/instances/{second}/frames/0?edge=160" in page
    assert technologist.post(f"/instances/{second}/accept").status_code == 303
    assert instances.instance(store.db, second).state is InstanceState.STORED
    assert instances.instance(store.db, first).state is InstanceState.SUPERSEDED
    assert technologist.post(f"/instances/{second}/accept").status_code == 409


def test_conflicting_version_is_discarded(store: Store, technologist: Person):
    first, second = _conflict(store)
    assert technologist.post(f"/instances/{second}/discard").status_code == 303
    assert instances.instance(store.db, second).state is InstanceState.DISCARDED
    assert set(store.vault.object_ids()) == {instances.instance(store.db, first).object_id}
    assert technologist.get(f"/instances/{second}/frames/0").status_code == 410
    assert technologist.post(f"/instances/{first}/discard").status_code == 409


def test_frames(store: Store, viewer: Person):
    number = put_changed(store, "CT_small.dcm").instance_id
    plain = viewer.get(f"/instances/{number}/frames/0")
    assert plain.mimetype == "image/jpeg"
    assert plain.data.startswith(b"\xff\xd8")
    narrow = viewer.get(f"/instances/{number}/frames/0?wc=40&ww=10")
    assert narrow.data != plain.data
    small = viewer.get(f"/instances/{number}/frames/0?edge=64")
    assert len(small.data) < len(plain.data)
    windows = ("wc=40", "ww=10", "wc=nan&ww=10", "wc=1&ww=0", "wc=1&ww=-5", "wc=inf&ww=1")
    edges = ("edge=8", "edge=99999", "edge=x", "edge=²")
    for wrong in (*windows, "wc=x&ww=1", "wc=1&ww=1e300", *edges):
        assert viewer.get(f"/instances/{number}/frames/0?{wrong}").status_code == 400, wrong
    assert viewer.get(f"/instances/{number}/frames/1").status_code == 404
    assert viewer.get(f"/instances/{number}/frames/4294967296").status_code == 404


def test_what_has_no_picture_says_so(store: Store, viewer: Person):
    number = put_changed(store, "test-SR.dcm").instance_id
    display = viewer.client.get(f"/instances/{number}/display.json").json
    assert display["note"]
    assert display["frames"] == 0
    assert viewer.get(f"/instances/{number}/frames/0").status_code in (404, 422)
    assert "Content Sequence" in viewer.get(f"/instances/{number}/attributes").text


def test_display_of_a_cine(store: Store, viewer: Person):
    number = put_changed(store, "examples_ybr_color.dcm").instance_id
    display = viewer.client.get(f"/instances/{number}/display.json").json
    assert display["frames"] == 30
    assert display["frame_ms"] == pytest.approx(33.333)
    assert not display["windowable"]


def test_import_and_download(store: Store, technologist: Person):
    one = changed("CT_small.dcm")
    headers = {"X-CSRF-Token": technologist.csrf, "Content-Type": "application/dicom"}

    def send(body: bytes) -> TestResponse:
        return technologist.client.post("/import", data=body, headers=headers)

    first = send(one.file())
    assert first.status_code == 200
    assert first.json == {"outcome": "stored", "study": 1, "instance": 1}
    assert send(one.file()).json["outcome"] == "duplicate"
    assert instances.instance(store.db, 1).source == "mara"
    for broken in (b"", b"not DICOM at all", one.file()[:400], b"\0" * 128 + b"DICM"):
        answer = send(broken)
        assert 400 <= answer.status_code < 500
        assert answer.json["error"]
    wrong = technologist.client.post(
        "/import", data=one.file(), headers=headers | {"Content-Type": "text/plain"}
    )
    assert wrong.status_code == 400

    file = technologist.client.get("/instances/1/file")
    assert file.mimetype == "application/dicom"
    assert file.headers["Content-Disposition"] == 'attachment; filename="instance-1.dcm"'
    assert file.data[:128] == bytes(128)
    got = dcmread(io.BytesIO(file.data))
    assert got.SOPInstanceUID == one.sop_instance
    assert file.data.endswith(one.data)
    assert part10.decode(one.data, one.transfer_syntax).PatientID == got.PatientID

    implicit = technologist.client.get(f"/instances/1/file?transfer-syntax={part10.IMPLICIT_LE}")
    got = dcmread(io.BytesIO(implicit.data))
    assert got.file_meta.TransferSyntaxUID == part10.IMPLICIT_LE
    assert got.PixelData == part10.decode(one.data, one.transfer_syntax).PixelData
    for wrong, status in (("1.2.840.10008.1.2.4.102", 406), ("x", 400)):
        answer = technologist.client.get(f"/instances/1/file?transfer-syntax={wrong}")
        assert answer.status_code == status


def test_queue(store: Store, technologist: Person, admin: Person):
    destination = add_destination(store)
    study = put(store, made.ct(patient_name="DOE^JANE")).study_id
    page = technologist.get("/queue").text
    assert "Doe, Jane" in page
    assert "1 waiting" in page

    def states() -> set[DeliveryState]:
        return {row.state for row in ledger.progress_of_studies(store.db, [study])[study]}

    mine = {"study": str(study), "destination": str(destination)}
    for act, state in (
        ("hold", DeliveryState.HELD),
        ("release", DeliveryState.QUEUED),
        ("cancel", DeliveryState.CANCELLED),
        ("retry", DeliveryState.QUEUED),
    ):
        assert technologist.post("/queue", {"act": act, **mine}).status_code == 303
        assert states() == {state}, act
    assert admin.post("/queue", {"act": "hold", "destination": "1"}).status_code == 303
    assert states() == {DeliveryState.HELD}
    for wrong in ({"act": "burn", **mine}, {"act": "hold", "study": "x"}, {"act": "hold"}):
        assert admin.post("/queue", wrong).status_code == 400, wrong


def test_the_queue_never_lets_a_rejected_study_go(store: Store, admin: Person):
    add_destination(store)
    study = put(store, made.ct()).study_id
    admin.post(f"/studies/{study}/state", {"state": "rejected"})
    admin.post("/queue", {"act": "release", "study": str(study)})
    admin.post("/queue", {"act": "release", "destination": "1"})
    rows = ledger.progress_of_studies(store.db, [study])[study]
    assert {row.state for row in rows} == {DeliveryState.HELD}


def test_system_page(store: Store, admin: Person):
    add_destination(store)
    caller = RefusedAE(
        calling_ae="CT<9>",
        called_ae="EDGEPACS",
        host="192.0.2.9",
        reason="unknown",
        times=1,
        first_ms=1,
        last_ms=1,
    )
    with store.db.write() as tx:
        peers.note_refused(tx, [caller])
    page = admin.get("/system").text
    for shown in ("Central PACS", "127.0.0.1:11199", "CT&lt;9&gt;", "192.0.2.9", "Free", "admin"):
        assert shown in page, shown
    assert admin.post("/system/aes", {"title": "CT<9>", "host": "192.0.2.9"}).status_code == 303
    (known,) = peers.known_aes(store.db)
    assert known.may(Service.STORE)
    assert not known.may(Service.FIND)
    assert peers.refused(store.db) == []
    assert admin.post("/system/aes/remove", {"title": "CT<9>"}).status_code == 303
    assert peers.known_aes(store.db) == []


def test_destinations_and_rules(store: Store, admin: Person):
    good = {"name": "North", "title": "NORTH", "host": "pacs.example", "port": "104"}
    assert admin.post("/system/destinations", good).status_code == 303
    assert admin.post("/system/destinations", good).status_code == 409
    for wrong in ({"port": "x"}, {"port": "0"}, {"title": ""}, {"title": "é"}, {"host": " "}):
        assert admin.post("/system/destinations", good | {"name": "B"} | wrong).status_code == 400
    rule = {"to": "North", "match": "modality=US", "hold": "1"}
    assert admin.post("/system/rules", rule).status_code == 303
    assert admin.post("/system/rules", rule | {"match": "modality"}).status_code == 400
    assert admin.post("/system/rules", rule | {"to": "South"}).status_code == 404
    page = admin.get("/system").text
    assert "modality=US" in page
    assert "the study is verified" in page
    assert admin.post("/system/rules/remove", {"rule": "2"}).status_code == 303
    assert admin.post("/system/destinations/remove", {"name": "North"}).status_code == 303
    assert destinations.every(store.db) == []


def test_echo_is_an_errand_for_the_forwarder(store: Store, admin: Person):
    number = add_destination(store)
    headers = {"X-CSRF-Token": admin.csrf}
    asked = admin.client.post(f"/system/destinations/{number}/echo", headers=headers)
    assert asked.status_code == 202
    (errand,) = errands.still_open(store.db, "forward")
    assert (errand.act, errand.subject, errand.id) == ("echo", number, asked.json["errand"])
    url = f"/system/errands/{errand.id}.json"
    assert admin.client.get(url).json["done"] is False
    errands.answer(store.db, errand.id, succeeded=True, result="answered in 3 ms")
    assert admin.client.get(url).json == {
        "done": True,
        "succeeded": True,
        "result": "answered in 3 ms",
    }


def test_users(store: Store, admin: Person):
    made_page = admin.post("/system/users", {"name": "Zoë", "role": "viewer"})
    secret = re.search(r'id="secret"[^>]*>([^<]+)<', made_page.text)[1]
    client = create_app(store).test_client()
    assert log_in(client, "Zoë", secret).status_code == 303
    assert client.get("/studies", headers=PAGE).headers["Location"] == "/password"
    again = admin.post("/system/users/reset", {"name": "Zoë"})
    other = re.search(r'id="secret"[^>]*>([^<]+)<', again.text)[1]
    assert other != secret
    assert client.get("/studies", headers=PAGE).headers["Location"].startswith("/login")
    assert secret not in admin.get("/system").text
    assert admin.post("/system/users", {"name": "Zoë", "role": "viewer"}).status_code == 409
    assert admin.post("/system/users", {"name": "Max", "role": "king"}).status_code == 400
    assert admin.post("/system/users/remove", {"name": "Zoë"}).status_code == 303
    assert admin.post("/system/users/remove", {"name": "admin"}).status_code == 409
    assert "Zoë" not in [user.name for user in users.all_users(store.db)]


def test_health(store: Store, tmp_path):
    client = create_app(store).test_client()
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    with store.paths.index.open("r+b") as file:  # the index no longer authenticates
        file.truncate(0)
    store.paths.index.with_name("index.db-wal").unlink(missing_ok=True)
    assert client.get("/healthz").status_code == 503


def test_dark_room_is_remembered(admin: Person):
    assert "data-theme" not in admin.get("/studies").text
    admin.client.set_cookie("theme", "dark")
    assert 'data-theme="dark"' in admin.get("/studies").text
    admin.client.set_cookie("theme", '"><script>')
    assert "data-theme" not in admin.get("/studies").text


def test_static_files_may_be_kept_for_good(admin: Person):
    page = admin.get("/studies").text
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        answer = admin.get(path)
        assert answer.status_code == 200, path
        assert "max-age=31536000" in answer.headers["Cache-Control"]


def test_roles_are_ordered():
    assert Role.ADMIN.covers(Role.TECHNOLOGIST)
    assert not Role.VIEWER.covers(Role.TECHNOLOGIST)
