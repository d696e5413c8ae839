"""Whose priors are to be fetched, how far that has come, and which of them may go first."""

import pytest
from store.making import (
    add_destination,
    commit,
    deliveries_of,
    draft,
    fresh_uid,
    objects,
    take_in,
)

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import (
    PREFETCH_TRANSITIONS,
    AETitle,
    Kept,
    Origin,
    Outcome,
    PrefetchReason,
    PrefetchState,
    StudyId,
)
from edgepacs.store import Store, destinations, evictions, instances, prefetches, studies
from edgepacs.store.prefetches import Brought

P = PrefetchState
DAY = evictions.DAY_MS


def giving(store: Store, name: str = "pacs", **settings: str) -> int:
    number = add_destination(store, name, name.upper())
    with store.db.write() as tx:
        destinations.change(tx, name, {"priors": "get", **settings}, actor="test")
    return number


def want(store: Store, subject: int, patient_id: str = "P1") -> int:
    with store.db.write() as tx:
        return prefetches.wanted(
            tx, patient_id, "", reason=PrefetchReason.WORKLIST, subject=subject
        )


def states(store: Store) -> list[PrefetchState]:
    """Of all tasks, the oldest first."""
    return [task.state for task in reversed(prefetches.listed(store.db))]


def test_every_state_has_its_transitions() -> None:
    assert set(PREFETCH_TRANSITIONS) == set(P)
    reached = set[PrefetchState]().union(*PREFETCH_TRANSITIONS.values())
    assert reached == set(P)


def test_a_new_study_makes_one_task_a_destination(store: Store) -> None:
    giving(store)
    giving(store, "second")
    add_destination(store, "without", "WITHOUT")
    take_in(store, study=fresh_uid(), issuer="HERE")
    assert prefetches.look(store.db) == 1
    assert prefetches.look(store.db) == 0
    found = prefetches.listed(store.db)
    assert {task.destination_name for task in found} == {"pacs", "second"}
    assert {(task.patient_id, task.issuer, task.reason) for task in found} == {
        ("P1", "HERE", PrefetchReason.STUDY)
    }


def test_more_of_the_same_study_is_nothing_new(store: Store) -> None:
    giving(store)
    for _ in range(3):
        take_in(store)
    prefetches.look(store.db)
    take_in(store)
    prefetches.look(store.db)
    assert len(prefetches.listed(store.db)) == 1


@pytest.mark.parametrize("patient_id", ["", "P*", "P?", "A\\B", "Zoë"])
def test_who_cannot_be_asked_for_exactly_is_not(store: Store, patient_id: str) -> None:
    giving(store)
    assert want(store, 1, patient_id) == 0
    receipt = take_in(store, patient_id=patient_id.replace("\\", ""), study=fresh_uid())
    if patient_id != "A\\B":
        with pytest.raises(InvalidValue):
            prefetches.ask(store.db, receipt.study_id, actor="test")


def test_what_was_fetched_fetches_nothing(store: Store) -> None:
    giving(store)
    take_in(store, study=fresh_uid(), origin=Origin.PREFETCH)
    assert prefetches.look(store.db) == 1
    assert prefetches.listed(store.db) == []


def test_patients_of_before_are_nobodys_next(store: Store) -> None:
    take_in(store, study=fresh_uid())
    assert prefetches.look(store.db) == 0
    giving(store)
    assert prefetches.look(store.db) == 0
    take_in(store, study=fresh_uid())
    giving(store, "second")  # a second one does not make what waits be passed over
    assert prefetches.look(store.db) == 1
    assert len(prefetches.listed(store.db)) == 2


def test_the_oldest_that_wait_are_dropped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetches, "OPEN_MOST", 2)
    monkeypatch.setattr(prefetches, "OVER_KEPT", 2)
    giving(store)
    for subject in range(1, 6):
        want(store, subject)
    found = prefetches.listed(store.db)
    assert [task.subject for task in found] == [5, 4, 3, 2]
    assert states(store) == [P.FAILED, P.FAILED, P.WAITING, P.WAITING]
    assert found[-1].words == prefetches.CROWDED


def test_one_at_a_time_a_persons_first_then_the_newest(store: Store) -> None:
    number = giving(store)
    receipt = take_in(store, study=fresh_uid())
    assert prefetches.ask(store.db, receipt.study_id, actor="test") == 1
    want(store, 1)
    want(store, 2)
    order = []
    while (due := prefetches.due(store.db, number)) is not None:
        order.append(prefetches.begin(store.db, due).subject)
        assert prefetches.due(store.db, number) is None
        prefetches.end(store.db, due, P.DONE, "all here", Brought(studies=1))
    assert order == [receipt.study_id, 2, 1]


def test_what_fails_is_tried_later_and_not_for_ever(store: Store) -> None:
    number = giving(store)
    want(store, 1)
    for attempt in range(1, prefetches.TRIES_MOST + 1):
        (task,) = prefetches.listed(store.db)
        assert prefetches.begin(store.db, task.id).attempts == attempt
        prefetches.end(store.db, task.id, P.WAITING, "no answer", Brought())
        assert prefetches.due(store.db, number) is None
    (task,) = prefetches.listed(store.db)
    assert (task.state, task.words) == (P.FAILED, "no answer")


def test_an_interruption_counts_for_nothing(store: Store) -> None:
    number = giving(store)
    want(store, 1)
    for _ in range(prefetches.TRIES_MOST + 1):
        due = prefetches.due(store.db, number)
        assert due is not None
        prefetches.begin(store.db, due)
        prefetches.end(store.db, due, P.WAITING, "", Brought(instances=2), at_once=True)
    (task,) = prefetches.listed(store.db)
    assert (task.attempts, task.instances) == (0, 2 * (prefetches.TRIES_MOST + 1))


def test_after_a_crash_it_waits_again(store: Store) -> None:
    giving(store)
    want(store, 1)
    (task,) = prefetches.listed(store.db)
    prefetches.begin(store.db, task.id)
    prefetches.fetching(store.db, task.id, uid="2.25.1", message_id=3)
    assert prefetches.moving(store.db, AETitle("PACS"), 3) is not None
    assert prefetches.recover(store.db) == 1
    assert states(store) == [P.WAITING]
    assert prefetches.moving(store.db, AETitle("PACS"), 3) is None


def test_who_cancels_has_the_last_word(store: Store) -> None:
    giving(store)
    want(store, 1)
    (task,) = prefetches.listed(store.db)
    prefetches.begin(store.db, task.id)
    assert not prefetches.stopped(store.db, task.id)
    prefetches.cancel(store.db, task.id, actor="test")
    assert prefetches.stopped(store.db, task.id)
    with pytest.raises(Conflict):
        prefetches.fetching(store.db, task.id)
    prefetches.end(store.db, task.id, P.DONE, "all here", Brought(instances=1))
    (task,) = prefetches.listed(store.db)
    assert (task.state, task.instances) == (P.CANCELLED, 1)
    with pytest.raises(Conflict):
        prefetches.cancel(store.db, task.id, actor="test")
    with pytest.raises(NotFound):
        prefetches.cancel(store.db, 99, actor="test")


def test_asking_again_begins_anew(store: Store) -> None:
    receipt = take_in(store, study=fresh_uid())
    with pytest.raises(Conflict):
        prefetches.ask(store.db, receipt.study_id, actor="test")
    giving(store)
    prefetches.ask(store.db, receipt.study_id, actor="test")
    (task,) = prefetches.listed(store.db)
    prefetches.cancel(store.db, task.id, actor="test")
    assert prefetches.ask(store.db, receipt.study_id, actor="test") == 1
    assert states(store) == [P.WAITING]
    with pytest.raises(NotFound):
        prefetches.ask(store.db, StudyId(99), actor="test")


def test_tasks_go_with_their_destination(store: Store) -> None:
    giving(store)
    want(store, 1)
    (task,) = prefetches.listed(store.db)
    prefetches.begin(store.db, task.id)
    with store.db.write() as tx:
        destinations.remove(tx, "pacs", actor="test")
    assert prefetches.stopped(store.db, task.id)
    prefetches.end(store.db, task.id, P.DONE, "", Brought())
    assert prefetches.listed(store.db) == []


# --- a prior and a modality's own --------------------------------------------------------------


def fetched(store: Store, study: str, *, days: float = 2, **attributes: object) -> StudyId:
    """One instance of a prior that came so many days ago."""
    received = wall_ms() - int(days * DAY)
    one = draft(
        store,
        study=study,
        origin=Origin.PREFETCH,
        source="PACS",
        received_ms=received,
        **attributes,
    )
    return commit(store, one).study_id


def may_go(store: Store) -> list[StudyId]:
    return list(evictions.oldest(store.db, 30 * DAY))


def test_a_prior_goes_after_a_day_and_before_the_others(store: Store) -> None:
    add_destination(store)
    received = commit(store, draft(store, study="2.25.8", received_ms=wall_ms() - 90 * DAY))
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'committed', proof = 'committed'")
    young = fetched(store, "2.25.9", days=0.5)
    prior = fetched(store, "2.25.7")
    assert next(iter(may_go(store))) == prior
    assert set(may_go(store)) == {prior, received.study_id}
    before = len(objects(store))
    for study in (prior, young):
        evictions.evict(store, study, keep_ms=30 * DAY, actor="upkeep")
    assert len(objects(store)) == before - 1
    assert studies.study(store.db, prior).instance_count == 0
    assert studies.study(store.db, young).instance_count == 1


def test_a_study_a_modality_had_a_part_in_is_no_prior(store: Store) -> None:
    study = fetched(store, "2.25.7")
    commit(store, draft(store, study="2.25.7", received_ms=wall_ms() - 2 * DAY))
    assert may_go(store) == []
    with store.db.read() as tx:
        found = evictions.standing(tx, study)
    assert found is not None
    assert found.kept(0) is Kept.UNWANTED


def test_a_prior_that_somebody_sends_on_is_kept_until_that_is_proved(store: Store) -> None:
    study = fetched(store, "2.25.7")
    add_destination(store)
    with store.db.write() as tx:
        row = {"kind": "instance", "subject": 1, "study": study, "destination": 1}
        tx.insert("delivery", {**row, "state": "queued", "created_ms": 1, "changed_ms": 1})
    assert may_go(store) == []


def test_what_a_modality_sends_again_is_its_own_from_then_on(store: Store) -> None:
    add_destination(store)
    first = draft(store, sop="2.25.70", study="2.25.7", origin=Origin.PREFETCH, source="PACS")
    number = commit(store, first).instance_id
    assert deliveries_of(store) == []
    again = draft(store, sop="2.25.70", study="2.25.7", source="CT1")
    assert commit(store, again).outcome is Outcome.DUPLICATE
    found = instances.instance(store.db, number)
    assert (found.origin, found.source) == (Origin.MODALITY, "CT1")
    assert len(deliveries_of(store)) == 1


def test_a_fetched_copy_takes_no_ones_place(store: Store) -> None:
    receipt = commit(store, draft(store, sop="2.25.70", study="2.25.7"))
    before = instances.instance(store.db, receipt.instance_id)
    copy = draft(store, sop="2.25.70", study="2.25.7", origin=Origin.PREFETCH, source="PACS")
    again = commit(store, copy)
    assert again.replaced == copy.object_id
    assert instances.instance(store.db, receipt.instance_id) == before
