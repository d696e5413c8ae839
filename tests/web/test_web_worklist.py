"""The worklist in the console: filters, ages, walk-ins, doubles, history; no name in any URL."""

import pytest
from web_support import Person, csrf_in

from edgepacs.clock import wall_ms
from edgepacs.model import EntryId, EntryOrigin, EntryState
from edgepacs.store import Store, audit, worklist
from edgepacs.store.worklist import Entry, Held, Patient

JANE = Patient(patient_id="P1", name="Doe^Jane", birth_date="19600101", sex="F")


def put(
    store: Store, patient: Patient = JANE, *, age_s: int = 0, key: str = "1", **fields: str
) -> EntryId:
    with store.db.write() as tx:
        number = worklist.put(
            tx,
            Entry(patient=patient, **fields),
            origin=EntryOrigin.UPSTREAM,
            source="RIS",
            key=key,
            actor="sync",
        )
        then = wall_ms() - 1000 * age_s
        tx.run("UPDATE worklist SET as_of_ms = ? WHERE id = ?", then, number)
    return number


def held(store: Store) -> list[Held]:
    with store.db.read() as tx:
        return list(worklist.entries(tx))


def test_the_list_shows_who_is_to_be_examined(store: Store, viewer: Person) -> None:
    put(store, modality="CT", step_description="Abdomen", start_date="20311123", start_time="0930")
    page = viewer.get("/worklist?day=any").text
    for words in ("Doe, Jane", "P1", "Abdomen", "CT", "2031-11-23", "09:30", "Scheduled"):
        assert words in page
    assert "Add a patient" not in page


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("day=any", {"Alpha", "Beta"}),
        ("day=2031-11-23", {"Alpha"}),
        ("day=20311124", {"Beta"}),
        ("day=any&modality=MR", {"Beta"}),
        ("day=any&state=any", {"Alpha", "Beta", "Gamma"}),
        ("day=any&state=cancelled", {"Gamma"}),
        ("day=any&page=2", set()),
        ("", set()),
    ],
)
def test_the_list_is_narrowed(store: Store, viewer: Person, query: str, wanted: set[str]) -> None:
    put(store, Patient(name="Alpha"), key="1", modality="CT", start_date="20311123")
    put(store, Patient(name="Beta"), key="2", modality="MR", start_date="20311124")
    gone = put(store, Patient(name="Gamma"), key="3", modality="MR", start_date="20311124")
    with store.db.write() as tx:
        worklist.shift(tx, gone, EntryState.CANCELLED, actor="test")
    for path in ("/worklist", "/worklist/rows"):
        text = viewer.get(f"{path}?{query}").text
        assert {name for name in ("Alpha", "Beta", "Gamma") if name in text} == wanted


@pytest.mark.parametrize("query", ["state=odd", "day=soon", "page=0", "modality=%3Cb%3E"])
def test_a_filter_there_is_not_is_refused(viewer: Person, query: str) -> None:
    assert viewer.get(f"/worklist?{query}").status_code == 400


def test_the_age_of_a_copy_is_shown_and_marked_when_it_is_stale(
    store: Store, viewer: Person
) -> None:
    fresh = put(store, key="1", age_s=300)
    stale = put(store, key="2", age_s=72 * 3600)
    text = viewer.get("/worklist?day=any").text
    assert "5 min old" in text
    assert "3 d old" in text
    assert "out of date" not in viewer.get(f"/worklist/{fresh}").text
    assert "3 d old" in viewer.get(f"/worklist/{stale}").text
    assert "its source may know better" in viewer.get(f"/worklist/{stale}").text
    assert "its source may know better" not in viewer.get(f"/worklist/{fresh}").text


def test_polling_is_answered_only_when_something_changed(store: Store, viewer: Person) -> None:
    put(store)
    first = viewer.get("/worklist/rows?day=any")
    etag = {"If-None-Match": first.headers["ETag"]}
    put(store, key="2")
    assert viewer.get("/worklist/rows?day=any", **etag).status_code == 200


def test_a_walk_in_gets_a_temporary_id_a_visit_and_a_start(
    store: Store, technologist: Person
) -> None:
    answer = technologist.post("/worklist/new", {"name": "Roe, Richard", "modality": "us"})
    (one,) = held(store)
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"/worklist/{one.id}"
    entry = one.entry
    assert (entry.patient.name, entry.modality) == ("Roe^Richard", "US")
    assert worklist.is_temporary(entry.patient.patient_id)
    assert entry.admission_id.startswith("V")
    assert len(entry.start_date + entry.start_time) == 14
    assert (one.origin, one.source, one.state) == ("local", "mara", "scheduled")
    page = technologist.get(f"/worklist/{one.id}").text
    assert "temporary" in page
    assert "Entry added" in page


def test_who_may_be_known_is_shown_before_they_are_added(
    store: Store, technologist: Person
) -> None:
    put(store)
    form: dict[str, object] = {"name": "Doe, Jane", "birth_date": "1960-01-01", "modality": "CT"}
    warned = technologist.post("/worklist/new", form)
    assert warned.status_code == 409
    assert "the same name and birth date, under another ID" in warned.text
    assert "Doe, Jane" in warned.text
    assert len(held(store)) == 1
    assert technologist.post("/worklist/new", {**form, "anyway": "1"}).status_code == 303
    assert len(held(store)) == 2


def test_what_is_wrong_in_a_form_is_said_and_nothing_is_lost(
    store: Store, technologist: Person
) -> None:
    form: dict[str, object] = {"name": "Doe, Jane", "modality": "CT", "birth_date": "yesterday"}
    answer = technologist.post("/worklist/new", form)
    assert answer.status_code == 400
    assert "birth_date: not a date" in answer.text
    assert 'value="Doe, Jane"' in answer.text
    assert held(store) == []


def test_an_entry_is_corrected_and_its_history_says_so(store: Store, technologist: Person) -> None:
    number = put(store, modality="CT", pre_medication="none")
    form = technologist.get(f"/worklist/{number}/change").text
    assert 'value="Doe^Jane"' in form
    changed = technologist.post(f"/worklist/{number}/change", {"name": "Roe^Jane", "sex": ""})
    assert changed.status_code == 303
    (one,) = held(store)
    assert (one.entry.patient.name, one.entry.patient.sex) == ("Roe^Jane", "")
    assert (one.entry.modality, one.entry.pre_medication) == ("CT", "none")
    page = technologist.get(f"/worklist/{number}").text
    assert "Entry changed by a person" in page
    assert "(name sex)" in page


@pytest.mark.parametrize(
    ("acts", "states"),
    [
        (["cancelled"], [EntryState.CANCELLED]),
        (["completed", "scheduled"], [EntryState.COMPLETED, EntryState.SCHEDULED]),
    ],
)
def test_states_are_changed_by_hand(
    store: Store, technologist: Person, acts: list[str], states: list[EntryState]
) -> None:
    number = put(store)
    for act, state in zip(acts, states, strict=True):
        form: dict[str, object] = {"state": act, "why": "patient left"}
        assert technologist.post(f"/worklist/{number}/state", form).status_code == 303
        assert held(store)[0].state is state
    last = audit.of_subject(store.db, "worklist", number)[-1]
    assert (last.actor, "patient left" in last.detail) == ("mara", True)
    wrong = technologist.post(f"/worklist/{number}/state", {"state": "started"})
    assert wrong.status_code == 400


def test_a_viewer_changes_nothing(store: Store, viewer: Person) -> None:
    number = put(store)
    assert viewer.get("/worklist/new").status_code == 403
    for path in ("new", f"{number}/change", f"{number}/state", "import"):
        assert viewer.post(f"/worklist/{path}", {"name": "X", "modality": "CT"}).status_code == 403
    assert [one.entry.patient for one in held(store)] == [JANE]


def test_csv_is_pasted(store: Store, technologist: Person) -> None:
    rows = "patient_id,name,modality\nP9,Roe^Jo,CT\n"
    assert technologist.post("/worklist/import", {"csv": rows}).status_code == 303
    assert [one.entry.patient.patient_id for one in held(store)] == ["P9"]
    wrong = technologist.post("/worklist/import", {"csv": rows.replace("CT", "<b>")})
    assert wrong.status_code == 400
    assert "row 2: modality" in wrong.text


def test_what_comes_from_outside_is_never_markup(store: Store, technologist: Person) -> None:
    evil = "<script>alert(1)</script>"
    number = put(store, Patient(name=evil), step_description=evil, station_ae=evil[:16])
    for path in ("/worklist?day=any", f"/worklist/{number}", f"/worklist/{number}/change"):
        assert "<script>alert" not in technologist.get(path).text


def test_no_link_names_anybody(store: Store, technologist: Person) -> None:
    put(store, Patient(patient_id="PID777", name="Secretname"), accession_number="ACC777")
    page = technologist.get("/worklist?day=any").text
    links = [part.split('"')[0] for part in page.split('href="')[1:] + page.split('action="')[1:]]
    assert not [link for link in links if any(w in link for w in ("777", "Secret"))]
    assert csrf_in(technologist.get("/worklist?day=any"))
