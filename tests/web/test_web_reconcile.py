"""A study beside its order in the console: what differs, the acts, who may, the history."""

import pytest
from store.ordering import found, image, match, order
from web_support import Looked, Person, add_destination

from edgepacs.custody import amendment
from edgepacs.model import Mismatch, StudyId, WorklistMatch
from edgepacs.store import Store, ledger, studies
from edgepacs.store.worklist import Patient

W = WorklistMatch


def wrong(store: Store) -> StudyId:
    """A study that differs from its order in who it is."""
    return image(store, PatientID="P2", PatientName="Roe^Rich").study_id


def act(person: Person, study: StudyId, name: str, **more: str) -> int:
    return person.post(f"/studies/{study}/order", {"act": name, **more}).status_code


def states(store: Store, study: StudyId) -> list[str]:
    return [str(one.state) for one in ledger.of_study(store.db, study)]


def test_both_sides_stand_beside_each_other(store: Store, technologist: Person) -> None:
    order(store)
    study = wrong(store)
    page = technologist.get(f"/studies/{study}/order").text
    assert Looked(page).inline == []
    for words in ("Roe, Rich", "Doe, Jane", "differs", "Apply the order", "Keep as it is"):
        assert words in page, words
    assert "Differs from its order" in technologist.get(f"/studies/{study}").text


def test_the_order_is_applied_and_gone_back_from(store: Store, technologist: Person) -> None:
    order(store)
    add_destination(store)
    study = wrong(store)
    assert states(store, study) == ["held"]
    assert act(technologist, study, "apply") == 303
    assert "It is being corrected" in technologist.get(f"/studies/{study}/order").text
    assert act(technologist, study, "apply") == 409
    amendment.carry_out_waiting(store)
    assert studies.study(store.db, study).patient_id == "P1"
    assert states(store, study) == ["superseded", "queued"]
    page = technologist.get(f"/studies/{study}/order").text
    for words in ("Corrected by its order", "mara", "Roe, Rich", "Back to what was received"):
        assert words in page, words
    assert act(technologist, study, "revert") == 303
    assert studies.study(store.db, study).patient_id == "P2"
    assert act(technologist, study, "revert") == 409
    assert "Back to what was received" in technologist.get(f"/studies/{study}/order").text


def test_it_is_kept_and_decided_again(store: Store, technologist: Person) -> None:
    order(store)
    study = wrong(store)
    assert act(technologist, study, "keep") == 303
    assert match(store, study) is W.KEPT
    assert "Decide again" in technologist.get(f"/studies/{study}/order").text
    assert act(technologist, study, "reopen") == 303
    assert match(store, study) is W.MISMATCHED


def test_another_order_is_looked_for_and_linked(store: Store, technologist: Person) -> None:
    order(store)
    other = order(
        store,
        key="2",
        patient=Patient(patient_id="P3", name="Third^Theo"),  # type: ignore[arg-type]
        study_instance_uid="1.2.44",
        accession_number="ZZ9",
    )
    study = image(store).study_id
    page = technologist.get(f"/studies/{study}/order").text
    assert "Third, Theo" in page  # of the same day
    page = technologist.post(f"/studies/{study}/order/find", {"text": "zz9"}).text
    assert "Third, Theo" in page
    assert "No entry" in technologist.post(f"/studies/{study}/order/find", {"text": "qqq"}).text
    assert act(technologist, study, "link", entry=str(other)) == 303
    assert found(store, study).flags[:2] == (Mismatch.NAME, Mismatch.ID)
    assert act(technologist, study, "unlink") == 303
    assert match(store, study) is W.MATCHED


@pytest.mark.parametrize("entry", ["", "x", "-1", "9" * 20])
def test_what_is_no_entry_is_refused(store: Store, technologist: Person, entry: str) -> None:
    order(store)
    study = wrong(store)
    assert act(technologist, study, "link", entry=entry) == 400
    assert act(technologist, study, "whatever") == 400


def test_a_viewer_looks_and_does_nothing(store: Store, viewer: Person) -> None:
    order(store)
    study = wrong(store)
    page = viewer.get(f"/studies/{study}/order").text
    assert "Roe, Rich" in page
    assert "Apply the order" not in page
    for name in ("apply", "keep", "link", "revert"):
        assert act(viewer, study, name, entry="1") == 403
    assert viewer.post(f"/studies/{study}/order/find", {"text": "a"}).status_code == 403
    told = viewer.get(f"/studies/{study}/order.json").get_json()
    assert told["found"]["sides"]["id"] == ["P2", "P1"]
    assert told["found"]["flags"] == ["name", "id"]


def test_hostile_values_do_nothing(store: Store, technologist: Person) -> None:
    hostile = "<script>alert(1)</script>"
    order(store, patient=Patient(patient_id=hostile, name=hostile))  # type: ignore[arg-type]
    study = wrong(store)
    page = technologist.get(f"/studies/{study}/order").text
    assert hostile not in page
    assert "&lt;script&gt;" in page
