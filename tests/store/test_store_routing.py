"""What rules make of an instance, what they would make, and where it goes when a line is down."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store.making import add_destination, claim_one, commit, draft, opened_store, states_of

from edgepacs.errors import NotFound
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    DeliveryKind,
    DeliveryState,
    LinkState,
    Origin,
    StudyId,
    StudyState,
)
from edgepacs.store import (
    Store,
    acts,
    claims,
    deliveries,
    destinations,
    ledger,
    routing,
    rules,
    studies,
)
from edgepacs.store.db import Database
from edgepacs.store.deliveries import Selection

D = DeliveryState
MINUTE = 60_000


def only_rule(store: Store, **values: object) -> int:
    wanted = {"to": "*", "match": "", "hold": False, "priority": 0, "actor": "test", **values}
    with store.db.write() as tx:
        for one in rules.within(tx):
            rules.remove(tx, one.id, actor="test")
        return rules.add(tx, **wanted)  # type: ignore[arg-type]


def where(store: Store) -> list[tuple[str, str]]:
    """(destination, state) of every delivery, oldest first."""
    with store.db.read() as tx:
        return [
            (row[0], row[1])
            for row in tx.rows(
                "SELECT name, state FROM delivery "
                "JOIN destination ON destination.id = destination ORDER BY delivery.id"
            )
        ]


def link(store: Store, name: str, state: LinkState, age_ms: int = 0) -> None:
    """Say how the line to a destination is, and for how long."""
    number = destinations.named(store.db, name).id
    destinations.set_link(store.db, number, state, "")
    with store.db.write() as tx:
        tx.run("UPDATE destination SET link_ms = link_ms - ? WHERE id = ?", age_ms, number)


def say(store: Store, study: int, state: StudyState) -> None:
    with store.db.write() as tx:
        studies.set_state(tx, StudyId(study), state, actor="eve")


@contextmanager
def another_process(store: Store) -> Iterator[Database]:
    """The index as another role has it open."""
    db = Database(store.paths.index, store.keystore.index_key())
    try:
        yield db
    finally:
        db.close()


# -- what rules make


def test_rules_of_several_matching_are_joined(store: Store) -> None:
    add_destination(store, "a", "A")
    only_rule(store, to="a", priority=5)
    with store.db.write() as tx:
        rules.add(tx, to="*", match="", hold=True, priority=3, actor="x", send_as="native")
        rules.add(tx, to="a", match="modality=US", hold=False, priority=9, actor="x")
    receipt = commit(store, draft(store, modality="CT"))
    (one,) = ledger.of_instance(store.db, receipt.instance_id)
    assert (one.state, one.hold_reason, one.priority, one.send_as) == (
        "held",
        "unverified",
        5,
        "native",
    )


def test_rules_change_without_a_restart_whoever_changes_them(store: Store) -> None:
    add_destination(store, "a", "A")
    only_rule(store, to="a", match="modality=US")
    commit(store, draft(store, modality="CT"))
    assert where(store) == []
    with another_process(store) as db, db.write() as tx:
        rules.add(tx, to="a", match="modality=CT", hold=False, priority=0, actor="other")
    commit(store, draft(store, modality="CT"))
    assert where(store) == [("a", "queued")]
    with another_process(store) as db, db.write() as tx:
        destinations.change(tx, "a", {"ae_title": "CT1"}, actor="other")
    commit(store, draft(store, modality="CT"))  # it came from there
    assert len(where(store)) == 1
    with another_process(store) as db, db.write() as tx:
        destinations.add(tx, name="b", title="B", host="127.0.0.1", port=1, actor="other")
        rules.add(tx, to="*", match="", hold=False, priority=0, actor="other")
    commit(store, draft(store, modality="CT"))
    assert where(store)[1:] == [("b", "queued")]


def test_a_change_that_is_undone_changes_nothing(store: Store) -> None:
    add_destination(store, "a", "A")
    only_rule(store, to="a", match="modality=US")
    with pytest.raises(ZeroDivisionError), store.db.write() as tx:  # noqa: PT012
        rules.add(tx, to="a", match="", hold=False, priority=0, actor="x")
        routing.study_changed(tx, StudyId(1), "state")
        raise ZeroDivisionError
    commit(store, draft(store, modality="CT"))
    assert where(store) == []


def test_day_and_time_are_those_of_arrival(store: Store) -> None:
    add_destination(store, "night", "A")
    add_destination(store, "weekend", "B")
    only_rule(store, to="night", match="time=22:00-06:00,12:00-12:30")
    with store.db.write() as tx:
        rules.add(tx, to="weekend", match="day=sat,sun", hold=False, priority=0, actor="x")
    for when, expected in (
        (datetime(2026, 11, 23, 21, 59), set()),  # a Monday  # noqa: DTZ001
        (datetime(2026, 11, 23, 22, 0), {"night"}),  # noqa: DTZ001
        (datetime(2026, 11, 24, 5, 59), {"night"}),  # noqa: DTZ001
        (datetime(2026, 11, 24, 6, 0), set()),  # noqa: DTZ001
        (datetime(2026, 11, 24, 12, 29), {"night"}),  # noqa: DTZ001
        (datetime(2026, 11, 28, 12, 30), {"weekend"}),  # noqa: DTZ001
        (datetime(2026, 11, 29, 23, 59), {"weekend", "night"}),  # noqa: DTZ001
    ):
        before = len(where(store))
        commit(store, draft(store, received_ms=int(when.timestamp() * 1000)))
        assert {name for name, _ in where(store)[before:]} == expected, when


def test_a_study_without_a_worklist_can_be_told(store: Store) -> None:
    add_destination(store, "a", "A")
    only_rule(store, to="a", match="worklist=none")
    commit(store, draft(store, study="1.1"))
    with store.db.write() as tx:
        tx.run("UPDATE study SET worklist = 'matched'")
    commit(store, draft(store, study="1.1"))
    assert len(where(store)) == 1


def test_rules_that_ask_for_the_state_apply_when_a_study_is_verified(store: Store) -> None:
    add_destination(store, "a", "A")
    add_destination(store, "b", "B")
    only_rule(store, to="a")
    with store.db.write() as tx:
        match = "state=verified and modality=CT"
        rules.add(tx, to="b", match=match, hold=False, priority=7, actor="x")
    commit(store, draft(store, study="1.1", modality="CT"))
    commit(store, draft(store, study="1.1", modality="SR", series="1.9"))
    commit(store, draft(store, study="1.1", modality="CT", origin=Origin.PREFETCH))
    commit(store, draft(store, study="1.2", modality="CT"))
    assert Counter(where(store)) == {("a", "queued"): 3}
    say(store, 1, StudyState.VERIFIED)
    assert Counter(where(store)) == {("a", "queued"): 3, ("b", "queued"): 1}
    commit(store, draft(store, study="1.1", modality="CT"))
    assert Counter(where(store)) == {("a", "queued"): 4, ("b", "queued"): 2}


# -- a dry run


def test_a_dry_run_tells_what_a_rule_would_do(store: Store) -> None:
    add_destination(store, "a", "A")
    add_destination(store, "b", "CT1")
    only_rule(store, to="a", match="modality=US")
    for study, modality in (("1.1", "CT"), ("1.1", "CT"), ("1.2", "US"), ("1.3", "CT")):
        commit(store, draft(store, study=study, series=f"{study}.9", modality=modality))
    commit(store, draft(store, study="1.3", modality="CT", series="1.3.9", origin=Origin.PREFETCH))
    say(store, 1, StudyState.VERIFIED)
    before = where(store)

    def told(**rule: object) -> list[tuple[int, str, int, int, int]]:
        page = routing.dry_run(store.db, **rule)  # type: ignore[arg-type]
        assert page.after is None
        return [(t.study, t.destination_name, t.queued, t.held, t.there) for t in page.trials]

    assert told(to="a", match="", hold=False) == [
        (1, "a", 2, 0, 0),
        (2, "a", 0, 0, 1),
        (3, "a", 1, 0, 0),
    ]
    assert told(to="*", match="modality=CT", hold=True) == [(1, "a", 2, 0, 0), (3, "a", 0, 1, 0)]
    assert told(to="b", match="", hold=False) == []  # it all came from there
    assert told(to="a", match="time=00:00-00:00 state=verified", hold=False) == [(1, "a", 2, 0, 0)]
    assert where(store) == before
    with pytest.raises(NotFound, match="destination"):
        told(to="nowhere", match="", hold=False)


def test_a_dry_run_comes_in_pages(store: Store) -> None:
    add_destination(store, "a", "A")
    only_rule(store, to="a", match="modality=XX")
    for number in range(5):
        commit(store, draft(store, study=f"1.{number}"))
    seen, after = [], 0
    for _ in range(3):
        page = routing.dry_run(store.db, to="a", match="", hold=False, after=after, studies=2)
        seen += [trial.study for trial in page.trials]
        if page.after is None:
            break
        after = page.after
    assert seen == [1, 2, 3, 4, 5]
    with store.db.read() as tx:
        assert page.trials[-1].byte_size == tx.number("SELECT byte_size FROM study WHERE id = 5")


def test_a_dry_run_says_what_then_happens(store: Store) -> None:
    """What it foretells of each study is what the rule makes of the same instances anew."""
    add_destination(store, "a", "A")
    only_rule(store, to="a", match="modality=XX")
    for number in range(12):
        modality = ("CT", "MR")[number % 2]
        one = draft(store, study=f"1.{number % 3}", series=f"1.{number}.1", modality=modality)
        commit(store, one)
    text = "modality=CT"
    foretold = {
        t.study: t.queued for t in routing.dry_run(store.db, to="a", match=text, hold=False).trials
    }
    only_rule(store, to="a", match=text)
    with store.db.write() as tx:
        for (number,) in tx.rows("SELECT id FROM instance"):
            routing.due_again(tx, number)
        made = dict(tx.rows("SELECT study, COUNT(*) FROM delivery GROUP BY study"))
    assert made == foretold == {1: 2, 2: 2, 3: 2}


# -- failover


@pytest.fixture
def order(store: Store) -> int:
    """A rule that sends to a, then b, then c, after ten minutes each."""
    for name in "abc":
        add_destination(store, name, name.upper())
    return only_rule(store, to=("a", "b", "c"), patience_s=600, priority=4, send_as="lossless")


def test_what_waits_for_a_line_too_long_goes_to_the_next(store: Store, order: int) -> None:
    for _ in range(3):
        commit(store, draft(store))
    sending = claim_one(store, 1)
    claims.finish(store.db, claim_one(store, 1).id, D.SENT, result="fine")
    link(store, "a", LinkState.DOWN, 9 * MINUTE)
    assert routing.fail_over(store.db) == 0
    link(store, "a", LinkState.DOWN, 2 * MINUTE)
    assert routing.fail_over(store.db) == 1
    assert where(store) == [("a", "sending"), ("a", "sent"), ("a", "superseded"), ("b", "queued")]
    moved = ledger.delivery(store.db, 4)
    assert (moved.priority, moved.send_as, moved.attempts) == (4, "lossless", 0)
    assert "moved to b: the line to a is down since" in ledger.delivery(store.db, 3).last_error
    claims.give_back(store.db, [sending.id], result="line broke")
    assert routing.fail_over(store.db) == 1
    assert routing.fail_over(store.db) == 0
    assert where(store)[-1] == ("b", "queued")


def test_one_that_is_down_too_is_passed_over(store: Store, order: int) -> None:
    commit(store, draft(store))
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    link(store, "b", LinkState.DOWN)
    assert routing.fail_over(store.db) == 1
    assert where(store) == [("a", "superseded"), ("c", "queued")]
    link(store, "c", LinkState.DOWN, 11 * MINUTE)
    assert routing.fail_over(store.db) == 0, "nobody is there"
    link(store, "a", LinkState.UP)
    assert routing.fail_over(store.db) == 1
    assert where(store) == [("a", "queued"), ("c", "superseded")]


def test_the_first_gets_only_what_is_queued_anew_when_it_returns(store: Store, order: int) -> None:
    commit(store, draft(store))
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    routing.fail_over(store.db)
    link(store, "a", LinkState.UP)
    commit(store, draft(store))
    assert routing.fail_over(store.db) == 0
    assert where(store) == [("a", "superseded"), ("b", "queued"), ("a", "queued")]


@pytest.mark.parametrize("state", list(D))
def test_only_what_is_queued_moves_of_itself(
    store: Store, order: int, state: DeliveryState
) -> None:
    commit(store, draft(store))
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = ?", state)
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    assert routing.fail_over(store.db) == (state is D.QUEUED)
    assert where(store)[0] == ("a", "superseded" if state is D.QUEUED else state)


@pytest.mark.parametrize("state", list(D))
def test_what_is_there_already_serves_or_keeps_it_waiting(
    store: Store, order: int, state: DeliveryState
) -> None:
    receipt = commit(store, draft(store))
    with store.db.write() as tx:
        wanted = deliveries.Wanted(destination=2)
        deliveries.add(tx, receipt.instance_id, receipt.study_id, wanted)
        tx.run("UPDATE delivery SET state = ? WHERE id = 2", state)
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    stays = state in (D.HELD, D.CANCELLED, D.FAILED)
    assert routing.fail_over(store.db) == (not stays)
    expected = D.QUEUED if state is D.SUPERSEDED else state
    assert where(store) == [("a", "queued" if stays else "superseded"), ("b", expected)]


def test_it_never_goes_back_to_where_it_came_from(store: Store, order: int) -> None:
    commit(store, draft(store, source="B"))
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    assert routing.fail_over(store.db) == 0
    assert where(store) == [("a", "queued")]


def test_a_rule_with_one_destination_moves_nothing(store: Store) -> None:
    add_destination(store, "a", "A")
    add_destination(store, "b", "B")
    only_rule(store, to="a")
    commit(store, draft(store))
    link(store, "a", LinkState.DOWN, 99 * MINUTE)
    assert routing.fail_over(store.db) == 0
    assert where(store) == [("a", "queued")]


def test_what_a_removed_rule_queued_stays(store: Store, order: int) -> None:
    commit(store, draft(store))
    only_rule(store, to=("a", "c"), patience_s=0)
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    assert routing.fail_over(store.db) == 0
    assert where(store) == [("a", "queued")]


def test_a_clock_that_was_set_back_neither_hurries_nor_stops_it(
    store: Store, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, draft(store))
    link(store, "a", LinkState.DOWN, -1000 * MINUTE)  # noted before the clock went back
    assert routing.fail_over(store.db) == 0
    assert abs(destinations.named(store.db, "a").link_ms - time.time() * 1000) < MINUTE
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    assert routing.fail_over(store.db) == 1


def test_more_than_one_transaction_moves(
    store: Store, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_MOVED_AT_ONCE", 2)
    monkeypatch.setattr(routing, "_MOVED_A_CALL", 4)
    for _ in range(7):
        commit(store, draft(store))
    link(store, "a", LinkState.DOWN, 11 * MINUTE)
    assert [routing.fail_over(store.db) for _ in range(3)] == [4, 3, 0]
    assert Counter(where(store)) == {("a", "superseded"): 7, ("b", "queued"): 7}


# -- whatever is done, in whatever order

_NUMBERS = st.integers(1, 4)
_PLACES = st.sampled_from("abc")


class Outbox(RuleBasedStateMachine):
    """Random acts of persons, senders and lines, on instances that go to a, then b, then c.

    A watcher in the index itself notes every change of state, so that a change which goes round
    `shift` is caught as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self._opened = opened_store(Path(self._folder.name) / "node")
        self.store = self._opened.__enter__()
        for name in "abc":
            add_destination(self.store, name, name.upper())
        only_rule(self.store, to=("a", "b", "c"), patience_s=600)
        for study in ("1.1", "1.2"):
            for _ in range(2):
                commit(self.store, draft(self.store, study=study))
        with self.store.db.write() as tx:
            tx.run("CREATE TABLE watched (old TEXT, new TEXT)")
            tx.run(
                "CREATE TRIGGER watch AFTER UPDATE OF state ON delivery "
                "WHEN OLD.state != NEW.state "
                "BEGIN INSERT INTO watched VALUES (OLD.state, NEW.state); END"
            )

    def teardown(self) -> None:
        self._opened.__exit__(None, None, None)
        self._folder.cleanup()

    def _place(self, name: str) -> int:
        return destinations.named(self.store.db, name).id

    @rule(name=_PLACES, state=st.sampled_from(list(LinkState)))
    def line(self, name: str, state: LinkState) -> None:
        link(self.store, name, state, 11 * MINUTE)

    @rule()
    def fail_over(self) -> None:
        routing.fail_over(self.store.db)

    @rule(act=st.sampled_from(["hold", "release", "retry", "cancel"]), number=_NUMBERS)
    def act_on_a_delivery(self, act: str, number: int) -> None:
        getattr(acts, act)(self.store.db, [Selection(delivery=number)], actor="eve")

    @rule(act=st.sampled_from(["hold", "release", "retry", "cancel"]), study=st.integers(1, 2))
    def act_on_a_study(self, act: str, study: int) -> None:
        getattr(acts, act)(self.store.db, [Selection(study=study)], actor="eve")

    @rule(name=_PLACES, study=st.integers(1, 2))
    def reroute(self, name: str, study: int) -> None:
        acts.reroute(self.store.db, [Selection(study=study)], self._place(name), actor="eve")

    @rule(name=_PLACES)
    def claim(self, name: str) -> None:
        claims.claim(self.store.db, self._place(name), 1)

    @rule(state=st.sampled_from([D.SENT, D.QUEUED, D.FAILED]))
    def finish(self, state: DeliveryState) -> None:
        with self.store.db.read() as tx:
            row = tx.first("SELECT id FROM delivery WHERE state = 'sending'")
        if row:
            claims.finish(self.store.db, row[0], state, result="words")

    @rule(study=st.integers(1, 2), verb=st.sampled_from(list(StudyState)))
    def say(self, study: int, verb: StudyState) -> None:
        state = studies.study(self.store.db, StudyId(study)).state
        if verb in studies.STUDY_TRANSITIONS[state]:
            say(self.store, study, verb)

    @precondition(lambda self: states_of(self.store))
    @invariant()
    def the_table_holds(self) -> None:
        with self.store.db.read() as tx:
            for old, new in tx.rows("SELECT old, new FROM watched"):
                assert D(new) in DELIVERY_TRANSITIONS[DeliveryKind.INSTANCE][D(old)], (old, new)

    @invariant()
    def an_instance_is_on_one_way_only(self) -> None:
        with self.store.db.read() as tx:
            rows = tx.rows(
                "SELECT subject, COUNT(*) FROM delivery WHERE failover IS NOT NULL "
                "AND state != 'superseded' GROUP BY subject"
            )
        assert len(rows) == 4, "an instance is on no way at all"
        assert all(count == 1 for _, count in rows)

    @invariant()
    def what_is_stopped_is_not_queued(self) -> None:
        with self.store.db.read() as tx:
            assert not tx.number(
                "SELECT COUNT(*) FROM delivery JOIN study ON study.id = study "
                "WHERE delivery.state = 'queued' AND study.state IN ('held', 'rejected')"
            )


TestOutbox = Outbox.TestCase
TestOutbox.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
