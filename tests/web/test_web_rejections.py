"""Rejection notes on the page of a study."""

from harness import made, notes
from web_support import Person, put

from edgepacs.store import Store
from edgepacs.upkeep.rejections import read_waiting


def rejected(store: Store, title: str = notes.SAFETY) -> int:
    for sop in ("1.1", "1.2"):
        put(store, made.ct(study="1.2.3.1", sop=sop, patient_id="P1"))
    number = put(store, notes.rejection(["1.1"], title=title)).instance_id
    assert read_waiting(store) == 1
    return number


def test_a_page_says_what_is_rejected_and_takes_it_back(store: Store, technologist: Person) -> None:
    number = rejected(store)
    page = technologist.get("/studies/1").text
    assert f"1 instance is rejected by note {number} (Rejected for Patient Safety Reasons)" in page
    assert "nor found or retrieved by others" in page
    assert "rejection note" in technologist.get("/studies").text.lower()
    (told,) = technologist.get("/studies/1.json").json["rejections"]
    assert (told["note"], told["instances"], told["title"]) == (number, 1, notes.SAFETY)
    assert technologist.post(f"/instances/{number}/withdraw").status_code == 303
    page = technologist.get("/studies/1").text
    assert "is rejected by note" not in page
    assert "Rejection withdrawn" in page
    assert technologist.post(f"/instances/{number}/withdraw").status_code == 409
    assert technologist.post("/instances/1/withdraw").status_code == 404


def test_what_is_of_poor_quality_is_marked_and_viewers_only_look(
    store: Store, viewer: Person
) -> None:
    number = rejected(store, notes.QUALITY)
    page = viewer.get("/studies/1").text
    assert "Rejected for Quality Reasons" in page
    assert "retrieved by others" not in page
    assert f"/instances/{number}/withdraw" not in page
