"""Missing images are shown while the patient is still there: in the list and on the page."""

from store.making import CT, take_in
from web_support import Person

from edgepacs.model import UID, StepState
from edgepacs.store import Store, steps
from edgepacs.store.steps import Made, Ordered, Performed, Received, Told

_BODY = Received(UID("1.2.840.10008.1.2"), b"as it came")


def performed(store: Store, *made: str, reason: str = "") -> None:
    uid = UID("1.2.3.77")
    with store.db.write() as tx:
        told = Told(
            state=StepState.IN_PROGRESS,
            orders=[Ordered("1.2.3.1")],
            patient_name="Doe^Jane",
            description="CT of the <chest>",
        )
        steps.create(tx, uid, told, _BODY, source="CT1")
        series = [Performed("1.2.3.2", made=[Made(one, CT) for one in made])]
        state = StepState.DISCONTINUED if reason else StepState.COMPLETED
        steps.change(tx, uid, Told(state=state, series=series, reason=reason), _BODY, source="CT1")


def test_a_study_that_lacks_images_is_flagged_until_they_come(store: Store, viewer: Person):
    study = take_in(store, sop="1.1").study_id
    performed(store, "1.1", "1.2", "1.3")
    assert "2 missing" in viewer.get("/studies").text
    page = viewer.get(f"/studies/{study}").text
    assert "2 of 3 instances the modality made have not arrived." in page
    assert "1 of 3 instances here" in page
    assert "CT of the &lt;chest&gt;" in page
    data = viewer.client.get(f"/studies/{study}.json").get_json()
    assert [(one["absence"], one["absent"]) for one in data["missing"]] == [("listed", 2)]
    take_in(store, sop="1.2")
    take_in(store, sop="1.3")
    assert "missing" not in viewer.get("/studies/rows").text
    assert "have not arrived" not in viewer.get(f"/studies/{study}").text


def test_a_step_of_which_nothing_came_stands_above_the_list(store: Store, viewer: Person):
    performed(store, "1.1", "1.2", reason="equipment failure")
    page = viewer.get("/studies").text
    assert "Nothing has arrived of 2 instances" in page
    assert "Doe, Jane" in page
    study = take_in(store, sop="1.1").study_id
    assert "Nothing has arrived of" not in viewer.get("/studies").text
    assert "equipment failure" in viewer.get(f"/studies/{study}").text
