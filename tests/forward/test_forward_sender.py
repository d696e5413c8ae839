import socket
import threading
from dataclasses import replace

import pytest
from forward.sending import Odd, accepting, forwarding, hasten, to
from harness.corpus import sample
from harness.fault import flip_bit
from harness.made import ct
from harness.recorder import RecordingSCP
from harness.waiting import free_port, stays, until
from store.making import (
    add_destination,
    deliveries_of,
    objects,
    states_of,
    take_in,
    take_in_part,
)

from edgepacs.clock import wall_ms
from edgepacs.dimse import Association, ContextAnswer, ContextResult, Message, ProposedContext
from edgepacs.dimse import Rejection as Reject
from edgepacs.dimse.contexts import VERIFICATION, storage_answer
from edgepacs.errors import EdgePacsError
from edgepacs.forward import desk, transport
from edgepacs.forward.courier import Courier
from edgepacs.forward.desk import retry_delay_ms
from edgepacs.forward.sender import echo_in_words
from edgepacs.model import DeliveryState, InstanceId, LinkState, StudyState
from edgepacs.store import (
    Store,
    claims,
    deliveries,
    destinations,
    errands,
    instances,
    ledger,
    studies,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of hours and minutes as fractions of a second."""
    hasten(monkeypatch)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed in passing is tried again soon."""
    monkeypatch.setattr(desk, "RETRY_FIRST_MS", 100)


def done(store: Store, *states: str, seconds: float = 20) -> None:
    until(
        lambda: states_of(store) == list(states),
        f"{states} (has {states_of(store)})",
        seconds=seconds,
    )


def link(store: Store, name: str = "pacs") -> tuple[LinkState, str]:
    found = destinations.named(store.db, name)
    return found.link, found.link_note


def test_everything_arrives_as_it_was_received(store: Store, recorder: RecordingSCP) -> None:
    to(store, recorder)
    parts = []
    for part in sample(300_000):
        try:
            take_in_part(store, part)
        except EdgePacsError:
            continue
        parts.append(part)
    with forwarding(store):
        until(lambda: set(states_of(store)) == {"sent"}, "all are sent")
    found = recorder.by_uid()
    assert recorder.total_requests == len(parts)
    for part in parts:
        got = found[part.sop_instance]
        assert (got.data, got.sop_class, got.transfer_syntax) == (
            part.data,
            part.sop_class,
            part.transfer_syntax,
        )
        assert (got.calling_ae, got.called_ae) == ("EDGEPACS", "PACS")
    assert link(store) == (LinkState.UP, "")
    assert {row[3] for row in deliveries_of(store)} == {1}


def test_what_arrives_later_is_sent_at_the_ring(store: Store, recorder: RecordingSCP) -> None:
    to(store, recorder)
    with forwarding(store):
        until(lambda: True, "started")
        for number in range(1, 4):
            take_in(store)
            recorder.wait_for(number, seconds=5)
        done(store, "sent", "sent", "sent")


def test_a_destination_that_is_down_costs_nothing_and_returns_by_itself(store: Store) -> None:
    scp = RecordingSCP()
    to(store, scp)
    for _ in range(5):
        take_in(store)
    with forwarding(store):
        until(lambda: link(store)[0] is LinkState.DOWN, "the line is known to be down")
        stays(lambda: {r[3] for r in deliveries_of(store)} == {0}, "no attempts", seconds=0.5)
        assert "nothing listens" in link(store)[1]
        with scp:
            scp.wait_for(5, seconds=10)
            done(store, *["sent"] * 5)
            assert scp.total_requests == 5
    assert {row[3] for row in deliveries_of(store)} == {1}
    assert link(store)[0] is LinkState.UP


def test_one_destination_down_does_not_hold_up_another(
    store: Store, recorder: RecordingSCP
) -> None:
    add_destination(store, "down", "DOWN", free_port())
    to(store, recorder, "up")
    for _ in range(3):
        take_in(store)
    with forwarding(store):
        recorder.wait_for(3)


def test_out_of_resources_is_tried_again_later(
    store: Store, recorder: RecordingSCP, patient: None
) -> None:
    to(store, recorder)
    recorder.behaviour.status = lambda order, _uid: 0xA700 if order <= 2 else 0
    recorder.behaviour.comment = "disk full"
    take_in(store)
    with forwarding(store):
        done(store, "sent")
    assert recorder.total_requests == 3
    assert deliveries_of(store)[0][3] == 3


def test_out_of_resources_waits_its_time(store: Store, recorder: RecordingSCP) -> None:
    to(store, recorder)
    recorder.behaviour.status = lambda _order, _uid: 0xA700
    recorder.behaviour.comment = "disk full"
    before = wall_ms()
    receipt = take_in(store)
    with forwarding(store):
        recorder.wait_for(0)
        until(lambda: recorder.total_requests == 1, "one request")
        stays(lambda: recorder.total_requests == 1, "one request", seconds=0.5)
    (one,) = ledger.of_instance(store.db, receipt.instance_id)
    assert (one.state, one.attempts) == (DeliveryState.QUEUED, 1)
    assert "A700" in one.last_error
    assert "disk full" in one.last_error
    due = claims.next_due_ms(store.db, 1)
    assert due is not None
    assert due > before + 5000


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0122])
def test_what_is_refused_for_good_waits_for_a_person(
    store: Store, recorder: RecordingSCP, status: int
) -> None:
    to(store, recorder)
    recorder.behaviour.status = lambda order, _uid: status if order == 1 else 0
    first = take_in(store)
    take_in(store)
    with forwarding(store):
        done(store, "failed", "sent")
        assert f"{status:04X}" in ledger.of_instance(store.db, first.instance_id)[0].last_error
        with store.db.write() as tx:
            deliveries.retry(tx, deliveries.Selection(delivery=1), actor="eve")
        store.ring("forward")
        done(store, "sent", "sent")


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_taken_for_received(store: Store, recorder: RecordingSCP, status: int) -> None:
    """PS3.4 B.2.3: the SCP has stored it."""
    to(store, recorder)
    recorder.behaviour.status = lambda _order, _uid: status
    take_in(store)
    with forwarding(store):
        done(store, "sent")


def _take(association: Association, message: Message, _data: bytes) -> None:
    association.respond(message, 0)


def test_where_no_context_at_all_is_accepted_each_fails(store: Store) -> None:
    with Odd(_take, context=accepting("1.2.3")) as scp:
        to(store, scp)
        for _ in range(3):
            take_in(store)
        with forwarding(store):
            done(store, "failed", "failed", "failed")
    assert scp.requests == []
    error = ledger.of_instance(store.db, InstanceId(1))[0].last_error
    assert error == (
        "the destination does not accept CT Image Storage, in whatever transfer syntax"
    )


@pytest.mark.parametrize("way", ["abort", "reset"])
def test_an_instance_that_breaks_its_association_holds_up_no_other(
    store: Store, patient: None, way: str
) -> None:
    poison = take_in(store, sop="1.2.666").instance_id

    def answer(association: Association, message: Message, _data: bytes) -> None:
        if message.command.sop_instance_uid != "1.2.666":
            association.respond(message, 0)
        elif way == "abort":
            association.abort()
        else:
            association._line._socket.shutdown(socket.SHUT_RDWR)

    with Odd(answer) as scp:
        to(store, scp)
        for number in (1, 2, 3):
            take_in(store, sop=f"1.2.{number}")
        with store.db.write() as tx:
            deliveries.send_study(
                tx, studies.search(store.db, studies.Search())[0].id, [1], actor="e"
            )
        with forwarding(store):
            until(
                lambda: sorted(states_of(store)).count("sent") == 3,
                "the others are sent",
                seconds=30,
            )
    assert {"1.2.1", "1.2.2", "1.2.3"} <= set(scp.requests)
    one = ledger.of_instance(store.db, poison)[0]
    assert one.state in (DeliveryState.QUEUED, DeliveryState.SENDING)
    assert one.attempts >= 1
    others = [d for d in deliveries_of(store) if d[0] == "sent"]
    assert {d[3] for d in others} == {1}, "what never began costs no attempt"


def test_a_line_that_breaks_is_not_the_instances_fault(store: Store) -> None:
    scp = RecordingSCP()
    to(store, scp)
    scp.behaviour.cut_after_bytes = 20_000
    scp.behaviour.cuts_left = 2
    for _ in range(4):
        take_in_part(store, ct())
    with scp, forwarding(store):
        done(store, *["sent"] * 4, seconds=30)
    assert len(scp.by_uid()) == 4
    assert sum(row[3] for row in deliveries_of(store)) == 6


def test_a_caller_that_is_rejected_is_asked_again_and_costs_nothing(store: Store) -> None:
    with Odd(_take, rejection=Reject(1, 1, 3)) as scp:
        to(store, scp)
        take_in(store)
        with forwarding(store):
            until(lambda: link(store)[0] is LinkState.DEGRADED, "the line is degraded")
            assert "calling AE title" in link(store)[1]
            scp._rejection = None
            done(store, "sent")
    assert deliveries_of(store)[0][3] == 1


def test_a_tampered_object_is_never_sent_and_blocks_nothing(
    store: Store, recorder: RecordingSCP
) -> None:
    to(store, recorder)
    parts = [ct(side=400) for _ in range(3)]
    rows = [take_in_part(store, part).instance_id for part in parts]
    for number, place in ((0, 200_000), (1, -3)):
        name = instances.instance(store.db, rows[number]).object_id.hex()
        flip_bit(store.paths.objects / name[:2] / name, place)
    with forwarding(store):
        done(store, "failed", "failed", "sent")
    assert set(recorder.by_uid()) == {parts[2].sop_instance}
    error = ledger.of_instance(store.db, rows[0])[0].last_error
    assert "does not authenticate" in error
    assert parts[0].sop_instance not in error


def test_an_object_that_is_gone_fails_and_blocks_nothing(
    store: Store, recorder: RecordingSCP
) -> None:
    to(store, recorder)
    take_in(store)
    objects(store)[0].unlink()
    take_in(store)
    with forwarding(store):
        done(store, "failed", "sent")


def test_a_peer_without_verification_is_sent_to_all_the_same(store: Store) -> None:
    def no_echo(proposed: ProposedContext) -> ContextAnswer:
        if proposed.abstract_syntax == VERIFICATION:
            return ContextAnswer(result=ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED)
        return storage_answer(proposed)

    with Odd(_take, context=no_echo) as scp:
        to(store, scp)
        take_in(store)
        with forwarding(store):
            done(store, "sent")


# -- people


def test_a_study_stopped_while_it_is_being_sent_stops(store: Store) -> None:
    """What was claimed and has not left does not leave."""
    first, go = threading.Event(), threading.Event()

    def answer(association: Association, message: Message, _data: bytes) -> None:
        first.set()
        go.wait(10)
        association.respond(message, 0)

    with Odd(answer) as scp:
        to(store, scp)
        study = {take_in(store).study_id for _ in range(5)}.pop()
        with forwarding(store):
            assert first.wait(10)
            with store.db.write() as tx:
                studies.set_state(tx, study, StudyState.REJECTED, actor="eve")
            go.set()
            done(store, "sent", *["held"] * 4)
            stays(lambda: len(scp.requests) == 1, "one request", seconds=0.3)
            assert {row[:2] for row in deliveries_of(store)[1:]} == {("held", "study")}
            assert {row[3] for row in deliveries_of(store)[1:]} == {0}
            with store.db.write() as tx:
                studies.set_state(tx, study, StudyState.RECEIVED, actor="eve")
            store.ring("forward")
            done(store, *["sent"] * 5)


def test_a_removed_destination_is_sent_nothing_and_its_number_misleads_nobody(
    store: Store, recorder: RecordingSCP
) -> None:
    with RecordingSCP("OTHER") as other:
        to(store, recorder)
        with forwarding(store) as role:
            until(lambda: role._couriers, "a courier")
            with store.db.write() as tx:
                destinations.remove(tx, "pacs", actor="eve")
            to(store, other, "other")
            take_in(store)
            other.wait_for(1)
            done(store, "sent")
        assert recorder.total_requests == 0


def test_errands_are_run_and_answered(store: Store, recorder: RecordingSCP) -> None:
    good = to(store, recorder)
    bad = add_destination(store, "bad", "BAD", free_port())
    with forwarding(store):
        for subject, succeeded, words in (
            (good, 1, "answered C-ECHO"),
            (bad, 0, "nothing listens"),
            (99, 0, "gone"),
        ):
            number = errands.ask(store.db, role="forward", act="echo", subject=subject, actor="eve")
            store.ring("forward")
            until(lambda n=number: errands.numbered(store.db, n).done_ms, "an answer")  # type: ignore[misc]
            found = errands.numbered(store.db, number)
            assert (found.succeeded, words in found.result) == (succeeded, True), found


def test_an_echo_in_words(store: Store, recorder: RecordingSCP) -> None:
    to(store, recorder)
    succeeded, words = echo_in_words(store, destinations.named(store.db, "pacs"))
    assert succeeded
    assert words.startswith("answered C-ECHO in ")
    recorder.down()
    assert echo_in_words(store, destinations.named(store.db, "pacs"))[0] is False


# -- crashes and faults


def test_what_a_crash_left_is_sent_again(store: Store, recorder: RecordingSCP) -> None:
    number = to(store, recorder)
    take_in(store)
    claims.claim(store.db, number, 1)
    with forwarding(store):
        done(store, "sent")
    assert deliveries_of(store)[0][3] == 2


def test_claims_of_a_round_that_failed_are_taken_up_again(
    store: Store, recorder: RecordingSCP, monkeypatch: pytest.MonkeyPatch
) -> None:
    to(store, recorder)
    for _ in range(3):
        take_in(store)
    real = transport.open_association
    failures = iter((RuntimeError("unforeseen"), EdgePacsError("unforeseen")))

    def failing(*values: object) -> Association:
        for error in failures:
            raise error
        return real(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(transport, "open_association", failing)
    with forwarding(store):
        done(store, *["sent"] * 3)


def test_an_index_that_fails_at_the_end_of_an_attempt_leaves_nothing_stuck(
    store: Store, recorder: RecordingSCP, monkeypatch: pytest.MonkeyPatch
) -> None:
    to(store, recorder)
    for _ in range(3):
        take_in(store)
    real = claims.finish
    failures = iter((EdgePacsError("disk full"),))

    def failing(*values: object, **named: object) -> None:
        for error in failures:
            raise error
        real(*values, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(claims, "finish", failing)
    with forwarding(store):
        done(store, *["sent"] * 3)


def test_the_role_ends_soon_and_leaves_no_claim(store: Store) -> None:
    def slow(association: Association, message: Message, _data: bytes) -> None:
        threading.Event().wait(0.05)
        association.respond(message, 0)

    with Odd(slow) as scp:
        to(store, scp)
        for _ in range(40):
            take_in(store)
        with forwarding(store):
            until(lambda: len(scp.requests) > 2, "some requests")
        found = states_of(store)
        assert "sending" not in found
        assert "queued" in found
        assert found.count("sent") == len(scp.requests)


def test_backoff_grows_within_bounds() -> None:
    for attempts in range(1, 40):
        most = min(desk.RETRY_FIRST_MS * 2 ** (attempts - 1), desk.RETRY_MOST_MS)
        found = {retry_delay_ms(attempts) for _ in range(50)}
        assert min(found) >= most // 2
        assert max(found) <= most
        assert len(found) > 10


def test_a_courier_knows_where_it_carries_to(store: Store, recorder: RecordingSCP) -> None:
    to(store, recorder)
    one = destinations.named(store.db, "pacs")
    courier = Courier(store, one)
    try:
        assert courier.carries_to(replace(one, link=LinkState.DOWN, name="renamed"))
        for change in ({"host": "127.0.0.2"}, {"port": 1}, {"ae_title": "X"}):
            assert not courier.carries_to(replace(one, **change))  # type: ignore[arg-type]
    finally:
        courier.end()
        courier.join(5)
