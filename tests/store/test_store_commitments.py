"""What is still to be proved, and what reports, silence and queries make of it."""

from collections.abc import Sequence

import pytest
from store.making import add_destination, claim_one, deliveries_of, states_of, take_in

from edgepacs.clock import wall_ms
from edgepacs.model import Callback, DeliveryState, InstanceId
from edgepacs.store import Store, audit, claims, commitments, deliveries, ledger
from edgepacs.store.commitments import Fate, Judgement, Request, Sought
from edgepacs.store.deliveries import LOSSY_RESPONSE, RESPONSE, Selection

PROCESSING_FAILURE, DUPLICATE, NOT_SUPPORTED = 0x0110, 0x0131, 0x0122
_FATES = {DUPLICATE: Fate.ASK_AGAIN, NOT_SUPPORTED: Fate.REFUSED}


def judge(reason: int) -> Judgement:
    return Judgement(_FATES.get(reason, Fate.SEND_AGAIN), f"reason {reason:04X}")


def sent(store: Store, number: int, *, proof: str = RESPONSE) -> int:
    """`number` instances of one series that a destination has answered; the destination."""
    destination = add_destination(store)
    for _ in range(number):
        take_in(store)
        send(store, destination, proof=proof)
    return destination


def send(store: Store, destination: int, *, proof: str = RESPONSE) -> None:
    claimed = claim_one(store, destination)
    claims.finish(store.db, claimed.id, DeliveryState.SENT, result="success", proof=proof)


def begin(store: Store, destination: int) -> Request:
    items = commitments.askable(store.db, destination, age_ms=0, most=500)
    request = commitments.begin(store.db, destination, items)
    assert request is not None
    return request


def report(store: Store, request: Request, *reasons: int, way: Callback = Callback.NEW) -> bool:
    uids = [one.sop_instance_uid for one in request.items]
    outcomes = dict(zip(uids, reasons, strict=False))
    return commitments.record(store.db, request.transaction_uid, outcomes, way)


def shift_clock(store: Store, sql: str) -> None:
    with store.db.write() as tx:
        tx.run(sql)


def column(store: Store, name: str) -> list[object]:
    with store.db.read() as tx:
        return [row[0] for row in tx.rows(f"SELECT {name} FROM delivery ORDER BY id")]


def proof_of(store: Store, instance: int = 1) -> tuple[str, str, str]:
    (one,) = ledger.of_instance(store.db, InstanceId(instance))
    return one.state, one.proof, one.last_error


def test_what_is_asked_for_is_named_by_all_its_uids(store: Store) -> None:
    destination = sent(store, 3)
    request = begin(store, destination)
    assert states_of(store) == ["awaiting_commitment"] * 3
    assert request.transaction_uid.startswith("2.25.")
    one = request.items[0]
    assert (one.study_instance_uid, one.series_instance_uid) == ("1.2.3.1", "1.2.3.2")
    assert one.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert commitments.askable(store.db, destination, age_ms=0, most=9) == []


def test_what_was_sent_just_now_is_left_to_its_lane(store: Store) -> None:
    destination = sent(store, 1)
    assert commitments.askable(store.db, destination, age_ms=60_000, most=9) == []
    shift_clock(store, "UPDATE delivery SET changed_ms = changed_ms + 7200000")  # set back since
    assert len(commitments.askable(store.db, destination, age_ms=60_000, most=9)) == 1


def test_two_who_ask_at_once_ask_for_each_instance_once(store: Store) -> None:
    destination = sent(store, 2)
    items = commitments.askable(store.db, destination, age_ms=0, most=9)
    assert commitments.begin(store.db, destination, items) is not None
    assert commitments.begin(store.db, destination, items) is None


def test_a_report_commits_and_says_how_it_came(store: Store) -> None:
    destination = sent(store, 2)
    request = begin(store, destination)
    assert report(store, request, 0, 0)
    assert states_of(store) == ["awaiting_commitment"] * 2  # it is only written down
    assert commitments.settle(store.db, destination, judge) == 1
    assert states_of(store) == ["committed"] * 2
    assert proof_of(store) == ("committed", "committed", "")
    assert all(column(store, "proved_ms"))
    assert commitments.callback(store.db, destination) is Callback.NEW
    assert audit.broken_at(store.db) is None


def test_the_same_report_again_changes_nothing(store: Store) -> None:
    destination = sent(store, 2)
    request = begin(store, destination)
    for _ in range(2):
        assert report(store, request, 0, PROCESSING_FAILURE)
        commitments.settle(store.db, destination, judge)
        assert states_of(store) == ["committed", "queued"]
    send_due(store, destination)
    assert report(store, request, 0, PROCESSING_FAILURE)  # of the former copy
    assert commitments.settle(store.db, destination, judge) == 0
    assert states_of(store) == ["committed", "sent"]


def send_due(store: Store, destination: int) -> None:
    shift_clock(store, "UPDATE delivery SET next_ms = 0")
    send(store, destination)


def test_an_unknown_transaction_is_said_to_be_unknown(store: Store) -> None:
    destination = sent(store, 1)
    assert not commitments.record(store.db, "2.25.1", {"1.2": 0}, Callback.NEW)
    assert commitments.callback(store.db, destination) is Callback.UNKNOWN


def test_what_was_not_committed_is_sent_again_and_fails_in_the_end(store: Store) -> None:
    destination = sent(store, 1)
    for _ in range(commitments.MISSES - 1):
        report(store, begin(store, destination), PROCESSING_FAILURE)
        commitments.settle(store.db, destination, judge)
        assert proof_of(store) == ("queued", "", "reason 0110")
        assert column(store, "next_ms")[0] > wall_ms()  # type: ignore[operator]
        send_due(store, destination)
    report(store, begin(store, destination), PROCESSING_FAILURE)
    commitments.settle(store.db, destination, judge)
    assert proof_of(store) == ("failed", "", "reason 0110")
    with store.db.write() as tx:  # a person has done something about it
        assert deliveries.retry(tx, Selection(delivery=1), actor="test") == 1
    send_due(store, destination)
    report(store, begin(store, destination), PROCESSING_FAILURE)
    commitments.settle(store.db, destination, judge)
    assert states_of(store) == ["queued"]


@pytest.mark.parametrize(
    ("reason", "state"), [(DUPLICATE, "sent"), (NOT_SUPPORTED, "failed"), (0x0119, "queued")]
)
def test_each_reason_has_its_own_fate(store: Store, reason: int, state: str) -> None:
    destination = sent(store, 2)
    report(store, begin(store, destination), reason, 0)
    commitments.settle(store.db, destination, judge)
    assert states_of(store) == [state, "committed"]
    assert proof_of(store)[2] == f"reason {reason:04X}"


def test_what_a_report_does_not_name_is_asked_for_again(store: Store) -> None:
    destination = sent(store, 3)
    report(store, begin(store, destination), 0)
    commitments.settle(store.db, destination, judge)
    assert states_of(store) == ["committed", "sent", "sent"]
    assert len(begin(store, destination).items) == 2


def test_without_a_report_it_is_asked_again_and_then_no_more(store: Store) -> None:
    destination = sent(store, 1)
    for time in range(1, len(commitments.PATIENCE_MS) + 1):
        request = begin(store, destination)
        assert commitments.expire(store.db, destination, words="silence") == 0
        patience = commitments.PATIENCE_MS[time - 1]
        due = commitments.due_in_ms(store.db, destination)
        assert due is not None
        assert patience - 10_000 < due <= patience
        shift_clock(store, f"UPDATE commitment SET asked_ms = asked_ms - {patience}")
        assert commitments.expire(store.db, destination, words="silence") == time
        assert proof_of(store) == ("sent", "response", "silence")
    assert commitments.askable(store.db, destination, age_ms=0, most=9) == []
    (sought,) = commitments.findable(
        store.db, destination, age_ms=0, most=9, asked=len(commitments.PATIENCE_MS)
    )
    assert sought.asked == len(commitments.PATIENCE_MS)
    assert report(store, request, 0)  # late, and good all the same
    commitments.settle(store.db, destination, judge)
    assert proof_of(store) == ("committed", "committed", "")


def test_a_clock_set_back_keeps_no_request_waiting(store: Store) -> None:
    destination = sent(store, 1)
    begin(store, destination)
    shift_clock(store, "UPDATE commitment SET asked_ms = asked_ms + 31536000000")
    assert commitments.expire(store.db, destination, words="silence") == 1
    assert states_of(store) == ["sent"]
    shift_clock(store, "UPDATE delivery SET next_ms = next_ms + 31536000000000")
    assert len(commitments.askable(store.db, destination, age_ms=0, most=9)) == 1


@pytest.mark.parametrize("former", ["confirmed_by_query", "queued", "failed", "sent"])
def test_a_late_report_in_its_favour_always_counts(store: Store, former: str) -> None:
    destination = sent(store, 1)
    request = begin(store, destination)
    shift_clock(store, f"UPDATE delivery SET state = '{former}'")
    report(store, request, 0)
    commitments.settle(store.db, destination, judge)
    assert proof_of(store)[:2] == ("committed", "committed")


def test_a_late_report_against_what_was_asked_for_anew_does_not_count(store: Store) -> None:
    destination = sent(store, 1)
    first = begin(store, destination)
    commitments.withdraw(store.db, first, words="the line broke", counted=False)
    begin(store, destination)
    report(store, first, PROCESSING_FAILURE)
    commitments.settle(store.db, destination, judge)
    assert states_of(store) == ["awaiting_commitment"]


def test_a_request_that_broke_off_is_made_again_at_once_a_refused_one_later(store: Store) -> None:
    destination = sent(store, 1)
    commitments.withdraw(store.db, begin(store, destination), words="broke", counted=False)
    assert column(store, "asked") == [0]
    commitments.withdraw(store.db, begin(store, destination), words="refused", counted=True)
    assert proof_of(store) == ("sent", "response", "refused")
    assert column(store, "asked") == [1]
    assert commitments.askable(store.db, destination, age_ms=0, most=9) == []
    due = commitments.due_in_ms(store.db, destination)
    assert due is not None
    assert 0 < due <= commitments.PATIENCE_MS[0]


def sought(store: Store, destination: int, asked: int = 0) -> list[Sought]:
    return commitments.findable(store.db, destination, age_ms=0, most=500, asked=asked)


def test_what_is_found_is_confirmed(store: Store) -> None:
    destination = sent(store, 2)
    commitments.confirm(store.db, destination, sought(store, destination))
    assert states_of(store) == ["confirmed_by_query"] * 2
    assert proof_of(store) == ("confirmed_by_query", "found", "")
    commitments.confirm(store.db, destination, [])


def test_what_is_not_found_is_looked_for_again_before_it_is_sent_again(store: Store) -> None:
    destination = sent(store, 1)
    for delay in commitments.LOOK_AGAIN_MS:
        items = sought(store, destination)
        commitments.not_found(store.db, destination, items, words="not there")
        assert proof_of(store) == ("sent", "response", "not there")
        assert sought(store, destination) == []
        due = commitments.due_in_ms(store.db, destination)
        assert due is not None
        assert delay - 5_000 < due <= delay
        shift_clock(store, "UPDATE delivery SET next_ms = 0")
    items = sought(store, destination)
    commitments.not_found(store.db, destination, items, words="not there")
    assert proof_of(store) == ("queued", "", "not there")
    assert column(store, "looked") == [0]
    with store.db.read() as tx:
        history = [row[0] for row in tx.rows("SELECT result FROM attempt ORDER BY id")]
    assert history == ["success", "not there"]


def test_what_comes_back_into_the_queue_of_a_stopped_study_is_held(store: Store) -> None:
    destination = sent(store, 1)
    shift_clock(store, "UPDATE study SET state = 'held'")
    report(store, begin(store, destination), PROCESSING_FAILURE)
    commitments.settle(store.db, destination, judge)
    assert deliveries_of(store)[0][:2] == ("held", "study")


def test_a_lossy_copy_proves_nothing_and_is_not_asked_for(store: Store) -> None:
    destination = sent(store, 1, proof=LOSSY_RESPONSE)
    assert commitments.askable(store.db, destination, age_ms=0, most=9) == []
    assert sought(store, destination) == []


def test_no_proof_to_be_had_stands_in_the_ledger_until_there_is_one(store: Store) -> None:
    destination = sent(store, 2)
    commitments.mark_unprovable(store.db, sought(store, destination))
    assert proof_of(store) == ("sent", deliveries.UNPROVABLE, "")
    assert sought(store, destination) == []
    assert len(commitments.unprovable(store.db, destination, most=1)) == 1
    commitments.reconsider(store.db, destination)
    assert len(sought(store, destination)) == 2


def test_a_destination_that_never_reports_is_tried_again_after_a_day(store: Store) -> None:
    destination = sent(store, 1)
    commitments.set_callback(store.db, destination, Callback.NEVER)
    assert commitments.callback(store.db, destination) is Callback.NEVER
    for by in (-90_000_000, 180_000_000):  # a day ago, then in the future
        shift_clock(store, f"UPDATE destination SET callback_ms = callback_ms + {by}")
        assert commitments.callback(store.db, destination) is Callback.UNKNOWN
    assert commitments.callback(store.db, 99) is Callback.UNKNOWN


def doubtful(store: Store, number: int) -> tuple[int, Sequence[Sought]]:
    destination = add_destination(store)
    for _ in range(number):
        take_in(store)
    claims.claim(store.db, destination, number)
    items = commitments.doubts(store.db, destination, most=500)
    assert len(items) == number
    return destination, items


@pytest.mark.parametrize(
    ("new", "proof"),
    [(DeliveryState.CONFIRMED_BY_QUERY, "found"), (DeliveryState.SENT, "response")],
)
def test_doubts_are_confirmed_or_queued(store: Store, new: DeliveryState, proof: str) -> None:
    destination, items = doubtful(store, 2)
    commitments.resolve(store.db, destination, items, {items[0].sop_instance_uid}, new)
    assert states_of(store) == [new, "queued"]
    assert proof_of(store)[1] == proof
    with store.db.read() as tx:
        assert [row[0] for row in tx.rows("SELECT result FROM attempt WHERE ended_ms > 0")] == [
            "broken off; the destination has it",
            "broken off",
        ]
    assert commitments.doubts(store.db, destination, most=9) == []


def test_a_sample_of_two_of_one_series_is_found_among_what_arrived(store: Store) -> None:
    destination = sent(store, 1)
    assert commitments.delivered_together(store.db, destination) == []
    take_in(store, series="1.2.3.9")
    send(store, destination)
    assert commitments.delivered_together(store.db, destination) == []
    take_in(store, series="1.2.3.9")
    send(store, destination)
    two = commitments.delivered_together(store.db, destination)
    assert [one.series_instance_uid for one in two] == ["1.2.3.9"] * 2


def test_old_requests_are_forgotten(store: Store) -> None:
    destination = sent(store, 1)
    first = begin(store, destination)
    commitments.withdraw(store.db, first, words="broke", counted=False)
    shift_clock(store, "UPDATE commitment SET asked_ms = 0")
    begin(store, destination)
    assert not report(store, first, 0)


def test_each_question_is_answered_by_an_index(store: Store) -> None:
    destination = sent(store, 1)
    steps = plan(store, commitments._UNPROVED, destination, 0, 0, 0, 9, 500)
    assert any("delivery_unproved" in step for step in steps)
    selection = Selection(destination=destination, among=(1, 2, 3))
    sql = f"UPDATE delivery SET state = 'sent' WHERE +state = 'sent' AND {selection.where}"
    (step, *_) = plan(store, sql, *selection.values)  # as in `shift`
    assert "delivery USING INTEGER PRIMARY KEY" in step


def plan(store: Store, sql: str, *values: int | None) -> list[str]:
    with store.db.read() as tx:
        return [str(row[3]) for row in tx.rows(f"EXPLAIN QUERY PLAN {sql}", *values)]
