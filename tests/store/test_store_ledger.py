"""How far everything has come: in pages, in sums, and one delivery with its whole history."""

import pytest
from store.making import add_destination, claim_one, commit, draft

from edgepacs.clock import wall_ms
from edgepacs.errors import NotFound
from edgepacs.model import DeliveryState, StudyId, StudyState
from edgepacs.store import Store, claims, deliveries, ledger, routing, studies
from edgepacs.store.deliveries import Selection

D = DeliveryState


@pytest.fixture
def filled(store: Store) -> Store:
    """Ten studies of two instances to two destinations; of every third all has arrived."""
    add_destination(store, "a", "A")
    add_destination(store, "b", "B")
    for number in range(10):
        for _ in range(2):
            commit(store, draft(store, study=f"1.{number}"))
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'committed' WHERE study % 3 = 0")
        tx.run("UPDATE delivery SET state = 'failed', last_error = 'no' WHERE id IN (1, 2)")
        tx.run("UPDATE delivery SET state = 'held', hold_reason = 'person' WHERE id = 5")
        tx.run("UPDATE delivery SET state = 'held', hold_reason = 'unverified' WHERE id = 7")
    return store


def test_pages_of_the_queue_together_are_all_of_it(filled: Store) -> None:
    seen: list[ledger.Progress] = []
    while page := ledger.outbox(filled.db, after=seen[-1].study if seen else 0, studies=2):
        assert len({row.study for row in page}) <= 2
        seen += page
    assert seen == ledger.outbox(filled.db)
    assert {row.study for row in seen} == {1, 2, 4, 5, 7, 8, 10}
    by_study = ledger.progress_of_studies(filled.db, sorted({row.study for row in seen}))
    assert sorted(map(repr, seen)) == sorted(repr(r) for rows in by_study.values() for r in rows)
    first = [(row.destination_name, row.state, row.count) for row in seen if row.study == 1]
    assert first == [("a", "failed", 1), ("a", "queued", 1), ("b", "failed", 1), ("b", "queued", 1)]
    held = [row.hold_reason for row in seen if row.study == 2 and row.state is D.HELD]
    assert held == ["person", "unverified"]


def test_the_queue_is_narrowed_by_state_and_destination(filled: Store) -> None:
    found = ledger.outbox(filled.db, D.FAILED)
    assert [(row.study, row.destination_name, row.last_error) for row in found] == [
        (1, "a", "no"),
        (1, "b", "no"),
    ]
    (one,) = ledger.outbox(filled.db, D.FAILED, destination=2)
    assert one.destination_name == "b"
    arrived = ledger.outbox(filled.db, D.COMMITTED, destination=1, after=3, studies=1)
    assert [(row.study, row.count) for row in arrived] == [(6, 2)]
    assert ledger.outbox(filled.db, destination=99) == []


def test_what_each_destination_has_yet_to_get(filled: Store) -> None:
    claims.claim(filled.db, 1, 1)
    a, b = ledger.totals(filled.db)
    assert (a.destination_name, a.queued, a.held, a.failed, a.studies) == ("a", 11, 2, 1, 7)
    assert (b.destination_name, b.queued, b.held, b.failed, b.studies) == ("b", 13, 0, 1, 7)
    with filled.db.read() as tx:
        each = tx.number("SELECT byte_size / instance_count FROM study WHERE id = 1")
    assert abs(b.byte_size - 13 * each) <= 13
    with filled.db.write() as tx:
        deliveries.cancel(tx, Selection(destination=2), actor="eve")
    assert ledger.totals(filled.db)[1].cancelled == 14


def test_a_destination_without_a_queue_has_sums_of_nothing(store: Store) -> None:
    add_destination(store)
    (one,) = ledger.totals(store.db)
    assert (one.queued, one.byte_size, one.held, one.failed, one.studies) == (0, 0, 0, 0, 0)


def test_a_study_with_its_times(store: Store) -> None:
    place = add_destination(store)
    began = wall_ms()
    (study,) = {commit(store, draft(store)).study_id for _ in range(3)}
    (way,) = ledger.ways_of_study(store.db, study)
    assert (way.count, way.waiting, way.sent, way.proved) == (3, 3, 0, 0)
    assert way.queued_ms >= began
    assert (way.sent_ms, way.proved_ms, way.verified_ms) == (0, 0, 0)
    for _ in range(2):
        claims.finish(store.db, claim_one(store, place).id, D.SENT, result="fine")
    with store.db.write() as tx:
        studies.set_state(tx, StudyId(study), StudyState.VERIFIED, actor="eve")
        for old, new in ((D.SENT, D.AWAITING_COMMITMENT), (D.AWAITING_COMMITMENT, D.COMMITTED)):
            deliveries.shift(tx, Selection(delivery=1), [old], new, actor="forward")
    (way,) = ledger.ways_of_study(store.db, study)
    assert (way.waiting, way.sent, way.proved) == (1, 2, 1)
    assert began <= way.queued_ms <= way.sent_ms <= way.proved_ms <= wall_ms()
    assert began <= way.verified_ms
    one, two, three = ledger.of_study(store.db, study)
    assert one.sent_ms
    assert one.proved_ms >= one.sent_ms
    assert (bool(two.sent_ms), two.proved_ms, three.sent_ms) == (True, 0, 0)
    assert [row.id for row in ledger.of_study(store.db, study, after=1, most=1)] == [2]


def test_what_is_found_there_after_a_crash_was_sent_and_is_proved(store: Store) -> None:
    place = add_destination(store)
    commit(store, draft(store))
    claim_one(store, place)
    with store.db.write() as tx:
        deliveries.shift(
            tx, Selection(delivery=1), [D.SENDING], D.CONFIRMED_BY_QUERY, actor="forward"
        )
    one = ledger.delivery(store.db, 1)
    assert one.sent_ms == one.proved_ms > 0


def test_the_history_of_every_attempt(store: Store) -> None:
    place = add_destination(store)
    commit(store, draft(store))
    for words, state in (("refused", D.QUEUED), ("line broke", D.QUEUED), ("0000", D.SENT)):
        claims.finish(store.db, claim_one(store, place).id, state, result=words)
    told = ledger.attempts(store.db, 1)
    assert [one.result for one in told] == ["refused", "line broke", "0000"]
    assert all(one.ended_ms and one.ended_ms >= one.started_ms for one in told)
    assert ledger.delivery(store.db, 1).attempts == 3
    assert "delivery sent" in [act.act for act in ledger.acts(store.db, 1)]
    with pytest.raises(NotFound, match="delivery 99"):
        ledger.delivery(store.db, 99)


@pytest.mark.parametrize(
    ("sql", "values", "index"),
    [
        (ledger._NEXT, ("queued", 1, 0, 50), "COVERING INDEX delivery_state"),
        (ledger._PAGE.format(more=""), ("queued", 1, 0, 9, "a"), "INDEX delivery_state"),
        (ledger._TOTALS, (), "COVERING INDEX delivery_state"),
        (routing._WAITING, (1, 1, 0, 9), "INDEX delivery_failover"),
    ],
    ids=["next", "page", "totals", "failover"],
)
def test_no_reading_of_the_queue_goes_through_all_deliveries(
    store: Store, sql: str, values: tuple[object, ...], index: str
) -> None:
    with store.db.read() as tx:
        plan = [row[3] for row in tx.rows(f"EXPLAIN QUERY PLAN {sql}", *values)]  # type: ignore[arg-type]
    assert any(index in step for step in plan), plan
    assert "SCAN delivery" not in plan, plan
