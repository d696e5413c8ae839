"""What a person does with deliveries, and what is said of those that stay as they are."""

import pytest
from store.making import add_destination, claim_one, commit, deliveries_of, draft, states_of

from edgepacs.clock import wall_ms
from edgepacs.errors import InvalidValue, NotFound
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    DeliveryKind,
    DeliveryState,
    HoldReason,
    StudyId,
    StudyState,
)
from edgepacs.store import Store, acts, audit, claims, deliveries, ledger, studies
from edgepacs.store.deliveries import Selection

D = DeliveryState
ALL = [Selection()]


@pytest.fixture
def pacs(store: Store) -> int:
    return add_destination(store)


def put(store: Store, number: int, state: DeliveryState, reason: str = "") -> None:
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = ?, hold_reason = ? WHERE id = ?", state, reason, number)


def one_of_each(store: Store) -> None:
    """A delivery in every state, in the order of the states."""
    for number, state in enumerate(D, start=1):
        commit(store, draft(store))
        put(store, number, state, "person" if state is D.HELD else "")


def stays(*states: DeliveryState) -> dict[str, int]:
    return {f"it is {state.replace('_', ' ')}": 1 for state in D if state not in states}


def test_each_act_says_what_it_changed_and_why_not_the_rest(store: Store, pacs: int) -> None:
    for act, sources, others in (
        (acts.hold, {D.QUEUED}, {}),
        (acts.release, {D.HELD}, {}),
        (acts.retry, {D.FAILED, D.CANCELLED, D.QUEUED}, {"it is queued, and its turn comes": 1}),
        (acts.cancel, {D.QUEUED, D.HELD, D.FAILED}, {}),
    ):
        with store.db.write() as tx:
            tx.run("DELETE FROM delivery")
            tx.run("DELETE FROM sqlite_sequence WHERE name = 'delivery'")
        one_of_each(store)
        done = act(store.db, ALL, actor="eve")  # type: ignore[operator]
        assert done.unchanged == stays(*sources) | others
        assert done.changed == len(D) - len(done.unchanged)


@pytest.mark.parametrize("state", [StudyState.HELD, StudyState.REJECTED])
def test_what_a_stopped_study_keeps_back_is_told(
    store: Store, pacs: int, state: StudyState
) -> None:
    for _ in range(3):
        commit(store, draft(store))
    put(store, 2, D.FAILED)
    put(store, 3, D.CANCELLED)
    with store.db.write() as tx:
        studies.set_state(tx, StudyId(1), state, actor="eve")
    stopped = "the study is held or rejected"
    assert acts.release(store.db, ALL, actor="eve").unchanged[stopped] == 1
    assert acts.retry(store.db, ALL, actor="eve").unchanged[stopped] == 2
    assert states_of(store) == ["held", "failed", "cancelled"]


def test_only_what_one_may_release_is_released(store: Store, pacs: int) -> None:
    for number, reason in enumerate(HoldReason, start=1):
        commit(store, draft(store))
        put(store, number, D.HELD, reason)
    done = acts.release(store.db, ALL, actor="eve", reasons=[HoldReason.PERSON])
    assert done.changed == 1
    others = set(HoldReason) - {HoldReason.PERSON}
    assert done.unchanged == {f"held: {reason.meaning}": 1 for reason in others}


def test_an_act_takes_lists_and_states(store: Store, pacs: int) -> None:
    for study in ("1.1", "1.2", "1.3"):
        commit(store, draft(store, study=study))
        commit(store, draft(store, study=study))
    put(store, 1, D.FAILED)
    some = [Selection(study=1), Selection(study=3)]
    done = acts.hold(store.db, some, actor="eve")
    assert (done.changed, done.unchanged) == (3, {"it is failed": 1})
    assert acts.retry(store.db, [Selection(state=D.HELD)], actor="eve").changed == 0
    assert acts.cancel(store.db, [Selection(state=D.HELD, study=3)], actor="eve").changed == 2
    assert states_of(store) == ["failed", "held", "queued", "queued", "cancelled", "cancelled"]
    among = [Selection(among=(3, 4))]
    assert acts.hold(store.db, among, actor="eve").changed == 2
    trail = [(r.kind, r.subject) for n in (1, 3) for r in audit.of_subject(store.db, "study", n)]
    assert ("study", 1) in trail
    assert ("study", 3) in trail
    assert audit.broken_at(store.db) is None


def test_priority_is_given_to_what_has_not_left(store: Store, pacs: int) -> None:
    one_of_each(store)
    done = acts.prioritise(store.db, ALL, deliveries.STAT, actor="eve")
    assert done.changed == len(deliveries.NOT_LEFT)
    assert done.unchanged == stays(*deliveries.NOT_LEFT)
    raised = {state for state, _, priority, _ in deliveries_of(store) if priority}
    assert raised == set(deliveries.NOT_LEFT)
    again = acts.prioritise(store.db, [Selection(state=D.QUEUED)], deliveries.STAT, actor="eve")
    assert (again.changed, again.unchanged) == (0, {"it has that priority": 1})
    for wrong in (1001, -1001):
        with pytest.raises(InvalidValue, match="priority: not between"):
            acts.prioritise(store.db, ALL, wrong, actor="eve")


def test_stat_goes_before_what_waited_longer(store: Store, pacs: int) -> None:
    for study in ("1.1", "1.1", "1.2"):
        commit(store, draft(store, study=study))
    acts.prioritise(store.db, [Selection(study=2)], deliveries.STAT, actor="eve")
    assert claim_one(store, pacs).id == 3


@pytest.mark.parametrize("state", list(D))
def test_what_has_not_left_is_sent_elsewhere_instead(
    store: Store, pacs: int, state: DeliveryState
) -> None:
    commit(store, draft(store))
    other = add_destination(store, "other", "OTHER")
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET priority = 7, send_as = 'native'")
    put(store, 1, state, "person" if state is D.HELD else "")
    done = acts.reroute(store.db, ALL, other, actor="eve")
    if state not in deliveries.MOVABLE:
        assert (done.changed, done.unchanged) == (0, stays(*(set(D) - {state})))
        assert states_of(store) == [state]
        return
    assert D.SUPERSEDED in DELIVERY_TRANSITIONS[DeliveryKind.INSTANCE][state]
    assert done.changed == 1
    moved = D.HELD if state is D.HELD else D.QUEUED
    assert states_of(store) == ["superseded", moved]
    there = ledger.delivery(store.db, 2)
    assert (there.destination_name, there.priority, there.send_as) == ("other", 7, "native")
    assert ledger.delivery(store.db, 1).last_error == "sent to other instead"
    assert acts.reroute(store.db, ALL, pacs, actor="eve").changed == 1
    assert states_of(store) == [moved, "superseded"]
    assert deliveries_of(store)[0][1] == ("person" if state is D.HELD else "")


@pytest.mark.parametrize("state", list(D))
def test_what_is_there_already_serves(store: Store, state: DeliveryState) -> None:
    add_destination(store, "a", "A")
    b = add_destination(store, "b", "B")
    commit(store, draft(store))
    put(store, 2, state, "person" if state is D.HELD else "")
    assert acts.reroute(store.db, [Selection(delivery=1)], b, actor="eve").changed == 1
    again = state in (D.CANCELLED, D.FAILED, D.SUPERSEDED)
    assert states_of(store) == ["superseded", "queued" if again else state]


def test_what_cannot_go_elsewhere_says_why(store: Store, pacs: int) -> None:
    commit(store, draft(store))
    commit(store, draft(store, source="OTHER"))
    gone = commit(store, draft(store)).instance_id
    with store.db.write() as tx:
        tx.run("UPDATE instance SET state = 'superseded' WHERE id = ?", gone)
    other = add_destination(store, "other", "OTHER")
    assert acts.reroute(store.db, ALL, pacs, actor="eve").unchanged == {"it goes there": 3}
    done = acts.reroute(store.db, ALL, other, actor="eve")
    assert done.changed == 1
    assert done.unchanged == {
        "it came from there": 1,
        "the instance was replaced or deleted": 1,
    }
    with pytest.raises(NotFound, match="destination 99"):
        acts.reroute(store.db, ALL, 99, actor="eve")


def test_a_stopped_study_stays_stopped_wherever_it_goes(store: Store, pacs: int) -> None:
    for _ in range(2):
        commit(store, draft(store))
    put(store, 2, D.FAILED)
    with store.db.write() as tx:
        studies.set_state(tx, StudyId(1), StudyState.HELD, actor="eve")
    other = add_destination(store, "other", "OTHER")
    assert acts.reroute(store.db, ALL, other, actor="eve").changed == 2
    assert [row[:2] for row in deliveries_of(store)[2:]] == [("held", "study")] * 2
    with store.db.write() as tx:
        studies.set_state(tx, StudyId(1), StudyState.RECEIVED, actor="eve")
    assert states_of(store) == ["superseded", "superseded", "queued", "queued"]


def test_a_large_selection_moves_in_parts(
    store: Store, pacs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "_AT_ONCE", 2)
    for _ in range(5):
        commit(store, draft(store))
    other = add_destination(store, "other", "OTHER")
    done = acts.reroute(store.db, [Selection(destination=pacs)], other, actor="eve")
    assert (done.changed, done.unchanged) == (5, {})
    assert states_of(store) == ["superseded"] * 5 + ["queued"] * 5


def test_a_study_sent_at_once_goes_also_to_where_it_was_moved_from(store: Store, pacs: int) -> None:
    study = commit(store, draft(store)).study_id
    other = add_destination(store, "other", "OTHER")
    acts.reroute(store.db, ALL, other, actor="eve")
    with store.db.write() as tx:
        assert deliveries.send_study(tx, study, [pacs], actor="eve") == 1
    assert states_of(store) == ["queued", "queued"]


def test_retry_counts_what_it_hurries(store: Store, pacs: int) -> None:
    commit(store, draft(store))
    taken = claim_one(store, pacs)
    claims.finish(store.db, taken.id, D.QUEUED, result="busy", next_ms=wall_ms() + 99_999)
    done = acts.retry(store.db, ALL, actor="eve")
    assert (done.changed, done.unchanged) == (1, {})
