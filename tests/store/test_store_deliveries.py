import itertools

import pytest
from store.making import (
    add_destination,
    claim_one,
    commit,
    deliveries_of,
    draft,
    states_of,
)

from edgepacs.clock import wall_ms
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    STUDY_TRANSITIONS,
    DeliveryKind,
    DeliveryState,
    HoldReason,
    StudyId,
    StudyState,
    require_transition,
)
from edgepacs.store import Store, audit, claims, deliveries, ledger, rules, studies
from edgepacs.store.deliveries import Selection

D, S = DeliveryState, StudyState
ALL = Selection()


@pytest.fixture
def pacs(store: Store) -> int:
    return add_destination(store)


def put(store: Store, state: DeliveryState, reason: str = "", number: int | None = None) -> None:
    """Force every delivery, or one, into `state`."""
    with store.db.write() as tx:
        tx.run(
            "UPDATE delivery SET state = ?, hold_reason = ? WHERE ? IS NULL OR id = ?",
            state,
            reason,
            number,
            number,
        )


def act(store: Store, what: object, *values: object, **named: object) -> int:
    with store.db.write() as tx:
        return what(tx, *values, actor="eve", **named)  # type: ignore[operator]


def say(store: Store, study: int, *states: StudyState) -> None:
    for state in states:
        with store.db.write() as tx:
            studies.set_state(tx, StudyId(study), state, actor="eve")


# -- the tables


@pytest.mark.parametrize("kind", list(DeliveryKind))
def test_every_kind_has_a_complete_table(kind: DeliveryKind) -> None:
    table = DELIVERY_TRANSITIONS[kind]
    for old, targets in table.items():
        assert old not in targets
        assert targets <= set(table), f"{old} leads out of the table"
        for new in D:
            if new in targets:
                require_transition(table, old, new)
            else:
                with pytest.raises(Conflict, match=f"{old} cannot become {new}"):
                    require_transition(table, old, new)
    reachable = {D.QUEUED}
    while more := {new for old in reachable for new in table[old]} - reachable:
        reachable |= more
    assert reachable == set(table)


def test_messages_end_when_they_are_answered() -> None:
    for kind in DeliveryKind:
        table = DELIVERY_TRANSITIONS[kind]
        if kind is not DeliveryKind.INSTANCE:
            assert table[D.SENT] == frozenset()
            assert D.COMMITTED not in table
            assert D.CONFIRMED_BY_QUERY not in table
        else:
            assert D.COMMITTED in table[D.AWAITING_COMMITMENT]
            assert table[D.COMMITTED] == frozenset()


_ACTS = {
    "hold": (deliveries.hold, {D.QUEUED}, D.HELD),
    "release": (deliveries.release, {D.HELD}, D.QUEUED),
    "retry": (deliveries.retry, {D.FAILED, D.CANCELLED}, D.QUEUED),
    "cancel": (deliveries.cancel, {D.QUEUED, D.HELD, D.FAILED}, D.CANCELLED),
}


@pytest.mark.parametrize("name", list(_ACTS))
@pytest.mark.parametrize("state", list(D))
def test_an_act_moves_what_it_may_and_nothing_else(
    store: Store, pacs: int, name: str, state: DeliveryState
) -> None:
    what, sources, target = _ACTS[name]
    commit(store, draft(store))
    put(store, state, "person" if state is D.HELD else "")
    before = studies.last_change(store.db)
    changed = act(store, what, ALL)
    expected = target if state in sources else state
    assert (changed, states_of(store)) == (int(state in sources), [expected])
    assert (studies.last_change(store.db) != before) == (state in sources)
    if state in sources:
        assert target in DELIVERY_TRANSITIONS[DeliveryKind.INSTANCE][state]
        assert deliveries_of(store)[0][1] == ("person" if target is D.HELD else "")


@pytest.mark.parametrize("state", list(D))
@pytest.mark.parametrize("new", [D.SENT, D.QUEUED, D.FAILED])
def test_only_what_is_being_sent_can_be_finished(
    store: Store, pacs: int, state: DeliveryState, new: DeliveryState
) -> None:
    commit(store, draft(store))
    put(store, state)
    if state is D.SENDING:
        claims.finish(store.db, 1, new, result="words")
        assert states_of(store) == [new]
    else:
        with pytest.raises(Conflict):
            claims.finish(store.db, 1, new, result="words")
        assert states_of(store) == [state]


@pytest.mark.parametrize("new", [D.COMMITTED, D.CANCELLED, D.SUPERSEDED])
def test_an_attempt_cannot_end_in_what_the_table_forbids(
    store: Store, pacs: int, new: DeliveryState
) -> None:
    commit(store, draft(store))
    claim_one(store, pacs)
    with pytest.raises(Conflict):
        claims.finish(store.db, 1, new, result="")
    assert states_of(store) == ["sending"]


# -- claiming


def test_claims_come_by_priority_then_age(store: Store, pacs: int) -> None:
    receipts = [commit(store, draft(store)) for _ in range(6)]
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET priority = 9 WHERE id IN (3, 5)")
        tx.run("UPDATE delivery SET next_ms = ? WHERE id = 2", wall_ms() + 60_000)
    taken = claims.claim(store.db, pacs, 4)
    order = [receipts[n - 1].instance_id for n in (3, 5, 1, 4)]
    assert [one.instance for one in taken] == order
    assert [one.instance for one in claims.claim(store.db, pacs, 9)] == [receipts[5].instance_id]
    assert claims.claim(store.db, pacs, 9) == []


def test_a_claim_carries_what_sending_needs_and_is_recorded_before(store: Store, pacs: int) -> None:
    one = draft(store)
    commit(store, one)
    taken = claim_one(store, pacs)
    assert (taken.object_id, taken.sop_instance_uid, taken.byte_length, taken.attempts) == (
        one.object_id,
        one.arrival.sop_instance_uid,
        one.byte_length,
        1,
    )
    assert deliveries_of(store) == [("sending", "", 0, 1)]
    with store.db.read() as tx:
        assert tx.rows("SELECT delivery, ended_ms, result FROM attempt") == [(taken.id, None, "")]


def test_claims_of_one_destination_leave_the_others_alone(store: Store) -> None:
    one, two = add_destination(store, "a", "A"), add_destination(store, "b", "B")
    commit(store, draft(store))
    assert len(claims.claim(store.db, one, 10)) == 1
    assert states_of(store) == ["sending", "queued"]
    assert claims.next_due_ms(store.db, one) is None
    assert claims.next_due_ms(store.db, two) == 0


def test_when_the_next_is_due(store: Store, pacs: int) -> None:
    assert claims.next_due_ms(store.db, pacs) is None
    commit(store, draft(store))
    commit(store, draft(store))
    then = wall_ms() + 60_000
    for number, later in ((1, then + 200), (2, then)):
        taken = claim_one(store, pacs)
        assert taken.id == number
        claims.finish(store.db, taken.id, D.QUEUED, result="later", next_ms=later)
    assert claims.next_due_ms(store.db, pacs) == then
    assert claims.claim(store.db, pacs, 2) == []


def test_an_attempt_ends_with_its_words(store: Store, pacs: int) -> None:
    for _ in range(3):
        commit(store, draft(store))
    for state, proof, error in (
        (D.SENT, "response", ""),
        (D.FAILED, "", "refused for good"),
        (D.QUEUED, "", "later"),
    ):
        taken = claim_one(store, pacs)
        claims.finish(store.db, taken.id, state, result=error or "fine", next_ms=wall_ms() + 9999)
        rows = ledger.of_instance(store.db, taken.instance)
        assert [(d.state, d.proof, d.last_error, d.attempts) for d in rows] == [
            (state, proof, error, 1)
        ]
    with store.db.read() as tx:
        ended = tx.rows("SELECT result FROM attempt WHERE ended_ms IS NOT NULL ORDER BY id")
    assert ended == [("fine",), ("refused for good",), ("later",)]


def test_what_never_began_costs_no_attempt(store: Store, pacs: int) -> None:
    for _ in range(2):
        commit(store, draft(store))
    taken = claims.claim(store.db, pacs, 2)
    claims.give_back(store.db, [one.id for one in taken], result="line broke")
    assert deliveries_of(store) == [("queued", "", 0, 0)] * 2
    assert claims.next_due_ms(store.db, pacs) == 0
    claims.give_back(store.db, [taken[0].id], result="again")  # not claimed any more
    assert deliveries_of(store)[0] == ("queued", "", 0, 0)
    assert [one.attempts for one in claims.claim(store.db, pacs, 2)] == [1, 1]


def test_after_a_crash_claims_are_queued_again_with_their_attempt(store: Store, pacs: int) -> None:
    other = add_destination(store, "other", "OTHER")
    for _ in range(2):
        commit(store, draft(store))
    claims.claim(store.db, pacs, 2)
    claim_one(store, other)
    assert claims.recover(store.db, pacs) == 2
    assert sorted(states_of(store)) == ["queued"] * 3 + ["sending"]
    assert claims.recover(store.db) == 1
    assert claims.recover(store.db) == 0
    assert sorted(row[3] for row in deliveries_of(store)) == [0, 1, 1, 1]
    with store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM attempt WHERE ended_ms IS NULL") == 0


# -- selections


@pytest.fixture
def grid(store: Store) -> tuple[list[int], list[int]]:
    """Two studies of two instances to two destinations: eight deliveries."""
    places = [add_destination(store, name, name.upper()) for name in ("a", "b")]
    found = {commit(store, draft(store, study=f"1.{n}")).study_id for n in (1, 1, 2, 2)}
    return sorted(found), places


@pytest.mark.parametrize("bits", list(itertools.product((0, 1), repeat=3)))
def test_an_act_reaches_what_was_selected_and_no_more(
    store: Store, grid: tuple[list[int], list[int]], bits: tuple[int, int, int]
) -> None:
    known, places = grid
    chosen = Selection(
        study=known[0] if bits[0] else None,
        destination=places[1] if bits[1] else None,
        delivery=2 if bits[2] else None,
    )
    with store.db.read() as tx:
        rows = tx.rows("SELECT id, study, destination FROM delivery ORDER BY id")
    wanted = {
        number
        for number, study, place in rows
        if (not bits[0] or study == known[0])
        and (not bits[1] or place == places[1])
        and (not bits[2] or number == 2)
    }
    for what, name in (
        (deliveries.hold, "held"),
        (deliveries.release, "queued"),
        (deliveries.cancel, "cancelled"),
        (deliveries.retry, "queued"),
    ):
        assert act(store, what, chosen) == len(wanted)
        with store.db.read() as tx:
            moved = {row[0] for row in tx.rows("SELECT id FROM delivery WHERE state = ?", name)}
        assert moved == wanted if name != "queued" else moved == {row[0] for row in rows}


def test_acts_are_audited_with_who_and_what(
    store: Store, grid: tuple[list[int], list[int]]
) -> None:
    known, places = grid
    act(store, deliveries.hold, Selection(study=known[0]))
    act(store, deliveries.cancel, Selection(destination=places[0]))
    act(store, deliveries.cancel, Selection(delivery=2))
    for kind, subject, word, detail in (
        ("study", known[0], "delivery held", "4 from queued"),
        ("destination", places[0], "delivery cancelled", "4 from queued|held|failed"),
        ("delivery", 2, "delivery cancelled", "1 from queued|held|failed"),
    ):
        last = audit.of_subject(store.db, kind, subject)[-1]
        assert (last.actor, last.act, last.detail) == ("eve", word, detail)
    assert audit.broken_at(store.db) is None


def test_retry_hurries_what_waits_for_its_time(store: Store, pacs: int) -> None:
    commit(store, draft(store))
    taken = claim_one(store, pacs)
    claims.finish(store.db, taken.id, D.QUEUED, result="", next_ms=wall_ms() + 99_999)
    assert act(store, deliveries.retry, ALL) == 1
    assert claims.next_due_ms(store.db, pacs) == 0


# -- what a person says of a study


@pytest.mark.parametrize("old", list(S))
@pytest.mark.parametrize("new", list(S))
def test_studies_move_as_the_table_says(store: Store, old: StudyState, new: StudyState) -> None:
    study = commit(store, draft(store)).study_id
    with store.db.write() as tx:
        tx.run("UPDATE study SET state = ?", old)
    if new in STUDY_TRANSITIONS[old]:
        say(store, study, new)
        found = studies.study(store.db, study)
        assert (found.state, found.state_by) == (new, "eve")
        last = audit.of_subject(store.db, "study", study)[-1]
        assert (last.act, last.detail) == (f"study {new}", old)
    else:
        with pytest.raises(Conflict):
            say(store, study, new)
        assert studies.study(store.db, study).state is old


def test_saying_something_of_no_study_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        say(store, 99, S.VERIFIED)


@pytest.mark.parametrize("stop", [S.HELD, S.REJECTED])
def test_a_stopped_study_stops_its_own_deliveries_and_lets_go_the_same(
    store: Store, pacs: int, stop: StudyState
) -> None:
    study = commit(store, draft(store, study="1.1")).study_id
    commit(store, draft(store, study="1.2"))
    say(store, study, stop)
    assert [row[:2] for row in deliveries_of(store)] == [("held", "study"), ("queued", "")]
    say(store, study, S.RECEIVED)
    assert states_of(store) == ["queued", "queued"]


def test_verifying_releases_what_waited_for_that_only(store: Store, pacs: int) -> None:
    for study in ("1.1", "1.1", "1.2"):
        commit(store, draft(store, study=study))
    put(store, D.HELD, HoldReason.UNVERIFIED)
    put(store, D.HELD, HoldReason.PERSON, number=2)
    say(store, 1, S.VERIFIED)
    assert [row[:2] for row in deliveries_of(store)] == [
        ("queued", ""),
        ("held", "person"),
        ("held", "unverified"),
    ]


def test_releasing_a_hold_does_not_release_what_waits_for_verification(
    store: Store, pacs: int
) -> None:
    with store.db.write() as tx:
        for rule in rules.within(tx):
            rules.remove(tx, rule.id, actor="test")
        rules.add(tx, to="*", match="", hold=True, priority=0, actor="test")
    study = commit(store, draft(store)).study_id
    say(store, study, S.HELD)
    commit(store, draft(store))  # arrives while the study is held
    say(store, study, S.RECEIVED)
    assert [row[:2] for row in deliveries_of(store)] == [("held", "unverified")] * 2
    say(store, study, S.HELD, S.VERIFIED)
    assert states_of(store) == ["queued"] * 2


def test_what_a_person_held_stays_held_whatever_becomes_of_the_study(
    store: Store, pacs: int
) -> None:
    study = commit(store, draft(store)).study_id
    act(store, deliveries.hold, ALL)
    say(store, study, S.HELD, S.RECEIVED, S.VERIFIED)
    assert deliveries_of(store)[0][:2] == ("held", "person")
    assert act(store, deliveries.release, ALL) == 1


@pytest.mark.parametrize("stop", [S.HELD, S.REJECTED])
@pytest.mark.parametrize(
    "way", ["release", "retry failed", "retry cancelled", "back", "later", "crash"]
)
def test_nothing_of_a_stopped_study_comes_back_into_the_queue(
    store: Store, pacs: int, stop: StudyState, way: str
) -> None:
    study = commit(store, draft(store)).study_id
    other = commit(store, draft(store, study="1.9")).study_id
    if way == "retry failed":
        put(store, D.FAILED)
    elif way == "retry cancelled":
        put(store, D.CANCELLED)
    elif way in ("back", "later", "crash"):
        taken = claims.claim(store.db, pacs, 2)
    say(store, study, stop)
    if way == "release":
        act(store, deliveries.release, ALL)
    elif way.startswith("retry"):
        assert act(store, deliveries.retry, ALL) == 1
    elif way == "back":
        assert [claims.may_leave(store.db, one) for one in taken] == [False, True]
        claims.give_back(store.db, [one.id for one in taken], result="line broke")
    elif way == "later":
        for one in taken:
            claims.finish(store.db, one.id, D.QUEUED, result="busy")
    else:
        claims.recover(store.db)
    stopped, free = deliveries_of(store)
    assert stopped[0] != "queued"
    assert free[0] == "queued"
    assert [one.id for one in claims.claim(store.db, pacs, 9)] == [2]
    say(store, study, S.RECEIVED)
    act(store, deliveries.retry, Selection(study=study))
    assert deliveries_of(store)[0][:2] == ("queued", "")
    assert other != study


# -- sending a study at once


def test_sending_a_study_queues_everything_of_it_first(store: Store) -> None:
    with store.db.write() as tx:
        rules.remove(tx, 1, actor="test")
    place = add_destination(store)
    receipts = [commit(store, draft(store, study="1.1")) for _ in range(4)]
    study = receipts[0].study_id
    assert act(store, deliveries.send_study, study, [place]) == 4
    assert deliveries_of(store) == [("queued", "", deliveries.STAT, 0)] * 4
    put(store, D.FAILED, number=1)
    put(store, D.HELD, HoldReason.UNVERIFIED, number=2)
    put(store, D.SENT, number=3)
    assert act(store, deliveries.send_study, study, [place]) == 3
    assert states_of(store) == ["queued", "queued", "sent", "queued"]
    last = audit.of_subject(store.db, "study", study)[-1]
    assert (last.actor, last.act) == ("eve", "study sent")


def test_a_study_sent_at_once_goes_before_the_others(store: Store, pacs: int) -> None:
    for study in ("1.1", "1.2"):
        commit(store, draft(store, study=study))
    act(store, deliveries.send_study, StudyId(2), [pacs])
    assert [one.id for one in claims.claim(store.db, pacs, 2)] == [2, 1]


@pytest.mark.parametrize("stop", [S.HELD, S.REJECTED])
def test_a_stopped_study_is_not_sent(store: Store, pacs: int, stop: StudyState) -> None:
    study = commit(store, draft(store)).study_id
    say(store, study, stop)
    with pytest.raises(Conflict, match="release it"):
        act(store, deliveries.send_study, study, [pacs])
    assert states_of(store) == ["held"]


def test_sending_nothing_or_nowhere_is_not_found(store: Store) -> None:
    study = commit(store, draft(store)).study_id
    with pytest.raises(NotFound, match="destination"):
        act(store, deliveries.send_study, study, [])
    with pytest.raises(NotFound, match="study 99"):
        act(store, deliveries.send_study, StudyId(99), [1])


# -- what is shown


def test_progress_is_summed_by_study_destination_and_state(store: Store, pacs: int) -> None:
    for study in ("1.1", "1.1", "1.1", "1.2"):
        commit(store, draft(store, study=study))
    taken = claim_one(store, pacs)
    claims.finish(store.db, taken.id, D.SENT, result="fine")
    found = ledger.progress_of_studies(store.db, [1, 2, 77])
    assert [(p.state, p.count) for p in found[1]] == [(D.QUEUED, 2), (D.SENT, 1)]
    assert [(p.state, p.count) for p in found[2]] == [(D.QUEUED, 1)]
    assert found[77] == []
    assert [(p.study, p.count) for p in ledger.outbox(store.db)] == [(1, 2), (2, 1)]
    assert [p.count for p in ledger.outbox(store.db, D.SENT)] == [1]
    assert ledger.progress_of_studies(store.db, []) == {}


# -- the trail


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE audit SET actor = 'mallory' WHERE id = {mid}",
        "UPDATE audit SET act = act || '.' WHERE id = {mid}",
        "UPDATE audit SET at_ms = at_ms + 1 WHERE id = {mid}",
        "UPDATE audit SET subject = 99 WHERE id = {mid}",
        "UPDATE audit SET subject = NULL WHERE id = {mid}",
        "UPDATE audit SET detail = '' WHERE id = {mid}",
        "UPDATE audit SET kind = 'study' WHERE id = {mid}",
        "UPDATE audit SET chain = zeroblob(32) WHERE id = {mid}",
        "DELETE FROM audit WHERE id = {mid}",
        "DELETE FROM audit WHERE id = 1",
        "UPDATE audit SET id = 9999 WHERE id = {mid}",
    ],
)
def test_any_edit_of_the_trail_breaks_its_chain(store: Store, pacs: int, edit: str) -> None:
    for _ in range(3):
        commit(store, draft(store))
    assert audit.broken_at(store.db) is None
    with store.db.read() as tx:
        mid = tx.number("SELECT MAX(id) FROM audit") - 1
    with store.db.write() as tx:
        assert tx.run(edit.format(mid=mid)) == 1
    assert audit.broken_at(store.db) is not None


@pytest.mark.xfail(
    strict=True, reason="BAD-INPUT 93: a tail cut off the audit trail leaves a chain that holds"
)
def test_a_tail_cut_off_the_trail_is_noticed(store: Store, pacs: int) -> None:
    commit(store, draft(store))
    with store.db.write() as tx:
        tx.run("DELETE FROM audit WHERE id = (SELECT MAX(id) FROM audit)")
    assert audit.broken_at(store.db) is not None
