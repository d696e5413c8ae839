"""Performed procedure steps: their entries, their counts, what is missing, and who is told."""

from pathlib import Path

import pytest
from harness.box import Box
from store.making import CT, add_destination, deliveries_of, fresh_uid, take_in

from edgepacs import config
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import UID, AETitle, EntryId, EntryOrigin, EntryState, StepState
from edgepacs.store import Store, audit, destinations, opened, pledges, steps, worklist
from edgepacs.store.steps import Absence, Made, Missing, Ordered, Performed, Received, Told
from edgepacs.store.worklist import Entry

STUDY, SERIES, STEP = "1.2.3.1", "1.2.3.2", UID("1.2.3.77")
_BODY = Received(UID("1.2.840.10008.1.2"), b"as it came")


def begin(store: Store, uid: str = STEP, *, source: str = "CT1", scheduled: str = "S1") -> int:
    told = Told(state=StepState.IN_PROGRESS, orders=[Ordered(STUDY, "ACC", "RP", scheduled)])
    with store.db.write() as tx:
        return steps.create(tx, UID(uid), told, _BODY, source=source)


def end(
    store: Store, *made: str, uid: str = STEP, state: StepState | None = StepState.COMPLETED
) -> None:
    series = [Performed(SERIES, "Thorax", "Lung", [Made(one, CT) for one in made])]
    with store.db.write() as tx:
        steps.change(tx, UID(uid), Told(state=state, series=series), _BODY, source="CT1")


def entry(store: Store, step_id: str = "S1", key: str = "1") -> EntryId:
    from_order = Entry(
        patient=worklist.Patient(patient_id="P1"), study_instance_uid=STUDY, step_id=step_id
    )
    with store.db.write() as tx:
        return worklist.put(
            tx, from_order, origin=EntryOrigin.LOCAL, source="eve", key=key, actor="eve"
        )


def entry_state(store: Store, number: EntryId) -> EntryState:
    with store.db.read() as tx:
        return worklist.entry(tx, number).state


def still(store: Store) -> None:
    """A minute without anything new."""
    with store.db.write() as tx:
        tx.run("UPDATE series SET received_ms = received_ms - 61000")


# --- entries -----------------------------------------------------------------------------------


def test_a_step_moves_only_the_entry_it_names(store: Store) -> None:
    mine, other = entry(store), entry(store, "S2", "2")
    begin(store)
    assert [entry_state(store, one) for one in (mine, other)] == ["started", "scheduled"]
    end(store)
    assert [entry_state(store, one) for one in (mine, other)] == ["completed", "scheduled"]
    acts = [one.act for one in audit.of_subject(store.db, "worklist", mine)]
    assert acts[-2:] == ["entry started", "entry completed"]


def test_without_a_scheduled_id_the_only_entry_of_the_study_moves(store: Store) -> None:
    mine = entry(store)
    begin(store, scheduled="")
    assert entry_state(store, mine) is EntryState.STARTED


def test_of_several_entries_none_is_guessed(store: Store) -> None:
    both = entry(store), entry(store, "S2", "2")
    begin(store, scheduled="")
    assert {entry_state(store, one) for one in both} == {EntryState.SCHEDULED}


def test_a_cancelled_entry_stays_cancelled_and_the_step_is_kept(store: Store) -> None:
    mine = entry(store)
    with store.db.write() as tx:
        worklist.shift(tx, mine, EntryState.CANCELLED, actor="eve")
    begin(store)
    assert entry_state(store, mine) is EntryState.CANCELLED
    assert len(steps.of_study(store.db, STUDY)) == 1


def test_what_is_closed_or_unknown_is_not_changed(store: Store) -> None:
    with pytest.raises(NotFound):
        end(store)
    begin(store)
    with pytest.raises(Conflict):
        begin(store)
    end(store, state=StepState.DISCONTINUED)
    with pytest.raises(Conflict):
        end(store)
    (one,) = steps.listed(store.db)
    assert one.state is StepState.DISCONTINUED
    assert steps.listed(store.db, StepState.COMPLETED) == []


# --- what is missing ---------------------------------------------------------------------------


def test_what_a_step_lists_and_has_not_come_is_missing_until_it_comes(store: Store) -> None:
    uids = [fresh_uid() for _ in range(4)]
    study = take_in(store, sop=uids[0], study=STUDY, series=SERIES).study_id
    begin(store)
    end(store, *uids, state=None)
    assert steps.missing(store.db, [study]) == {}  # the modality is at it
    end(store, *uids)
    assert steps.missing(store.db, [study]) == {study: [Missing(Absence.LISTED, 3, 4)]}
    for uid in uids[1:]:
        take_in(store, sop=uid, study=STUDY, series=SERIES)
    assert steps.missing(store.db, [study]) == {}


def test_what_is_listed_anew_counts_in_place_of_what_was_listed(store: Store) -> None:
    begin(store)
    end(store, "1.1", "1.2", state=None)
    end(store, "1.3")
    (one,) = steps.of_study(store.db, STUDY)
    assert (one.listed, one.arrived) == (1, 0)


def test_what_was_evicted_or_waits_in_quarantine_has_arrived(store: Store) -> None:
    evicted, disputed = take_in(store, study=STUDY), take_in(store, study=STUDY)
    with store.db.write() as tx:
        for receipt, state in ((evicted, "evicted"), (disputed, "quarantined")):
            tx.run("UPDATE instance SET state = ? WHERE id = ?", state, receipt.instance_id)
        rows = tx.rows("SELECT sop_instance_uid FROM instance")
    begin(store)
    end(store, *(row[0] for row in rows))
    assert steps.missing(store.db, [evicted.study_id]) == {}


def test_a_step_of_which_nothing_came_is_told_without_a_study(store: Store) -> None:
    begin(store)
    end(store, "1.1", "1.2")
    (one,) = steps.without_study(store.db, 0)
    assert (one.listed, one.arrived) == (2, 0)
    take_in(store, sop="1.1", study=STUDY, series=SERIES)
    assert steps.without_study(store.db, 0) == []


@pytest.mark.parametrize(
    ("numbers", "absent"),
    [
        ((1, 2, 4, 5), 1),
        ((2, 3, 4, 8, 9, 10), 3),
        ((1, 2, 3), 0),
        ((10, 20, 30, 40), 0),  # numbered in tens
        ((1, 3), 0),  # too few to say
        ((1, 1, 2, 3), 0),
    ],
)
def test_gaps_in_instance_numbers_are_told_when_a_series_is_still(
    store: Store, numbers: tuple[int, ...], absent: int
) -> None:
    for number in numbers:
        study = take_in(store, study=STUDY, series=SERIES, number=str(number)).study_id
    assert steps.missing(store.db, [study]) == {}  # it may still be coming
    still(store)
    found = steps.missing(store.db, [study]).get(study, [])
    assert [one.absent for one in found] == ([absent] if absent else [])
    assert all(one.absence is Absence.GAP for one in found)
    assert steps.missing(store.db, [study], since_ms=1 << 50) == {}


def test_what_commitment_was_asked_of_and_is_not_here_is_missing(store: Store) -> None:
    here, absent = fresh_uid(), fresh_uid()
    study = take_in(store, sop=here, study=STUDY, series=SERIES).study_id
    named = [pledges.Item(sop_class_uid=CT, sop_instance_uid=UID(one)) for one in (here, absent)]
    with store.db.write() as tx:
        number = pledges.ask(
            tx,
            ae=AETitle("CT1"),
            called_ae="EDGEPACS",
            host="127.0.0.1",
            transaction_uid="1.2.3.9",
            items=named,
        )
    assert steps.missing(store.db, [study]) == {}  # not looked at yet
    assert pledges.check(store, number)
    assert steps.missing(store.db, [study]) == {study: [Missing(Absence.ASKED, 1, 2)]}
    assert steps.missing(store.db, [study], since_ms=1 << 50) == {}
    take_in(store, sop=absent, study=STUDY, series=SERIES, number="2")
    assert steps.missing(store.db, [study]) == {}


# --- who is told -------------------------------------------------------------------------------


def test_only_destinations_that_want_it_are_told(store: Store) -> None:
    add_destination(store)
    with store.db.write() as tx:
        for name, title in (("ris", "RIS"), ("web", "WEB")):
            destinations.add(tx, name=name, title=title, host="127.0.0.1", port=1, actor="t")
            destinations.change(tx, name, {"mpps": "1"}, actor="t")
        destinations.change(tx, "web", {"url": "https://x/d", "transport": "stow"}, actor="t")
    number = begin(store)
    end(store)
    assert [one[0] for one in deliveries_of(store)] == ["queued"] * 2
    told = steps.tellings(store.db, number)
    assert [(one.command, one.destination_name) for one in told] == [
        ("create", "ris"),
        ("set", "ris"),
    ]


# --- the command line --------------------------------------------------------------------------


def test_the_command_line_lists_and_shows_steps(box_of_steps: Box) -> None:
    (one,) = box_of_steps.cli("mpps", "list")
    assert (one["state"], one["listed"], one["arrived"]) == ("completed", 2, 0)
    assert "missing" in box_of_steps.run("mpps", "list", "--missing").stdout
    shown = box_of_steps.run("mpps", "show", str(one["id"])).stdout
    assert "instances: 0 of 2 here: instances it lists have not arrived" in shown
    assert "create: told to nobody" in shown
    told = box_of_steps.cli("mpps", "show", str(one["id"]))
    assert [message["command"] for message in told["messages"]] == ["create", "set"]
    assert box_of_steps.cli("mpps", "queue") == []
    assert box_of_steps.run("mpps", "show", "99", check=False).returncode == NotFound.exit_code


@pytest.fixture
def box_of_steps(template: Box, tmp_path: Path) -> Box:
    box = Box.copied(template, tmp_path / "box")
    with opened(config.load(box.config)) as store:
        begin(store)
        end(store, "1.1", "1.2")
    return box
