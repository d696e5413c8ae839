"""Storage commitment and queries, asked of archives that keep to the standard and that do not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forward.archive import Archive
from harness.waiting import until
from scp.serving import Serving, serving
from store.making import CT, add_destination, claim_one, states_of, take_in

from edgepacs.dimse.command import Field
from edgepacs.errors import PeerUnreachable
from edgepacs.forward import dial, proof
from edgepacs.forward.proof import Prover, habits
from edgepacs.model import UID, Callback, DeliveryState, InstanceId
from edgepacs.store import Store, audit, claims, commitments, deliveries, destinations, ledger

EXPLICIT_VR_LE = UID("1.2.840.10008.1.2.1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is gathered, and reports are awaited for fractions of a second."""
    monkeypatch.setattr(proof, "GATHER_MS", 0)
    patience = {Callback.UNKNOWN: 0.3, Callback.SAME: 5.0, Callback.NEW: 0.0, Callback.NEVER: 0.0}
    monkeypatch.setattr(proof, "LISTEN_SECONDS", patience)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as one:
        yield one


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Serving]:
    """A node whose receiver listens."""
    with serving(tmp_path / "serving") as one:
        yield one


def prover(store: Store, **settings: str) -> Prover:
    with store.db.write() as tx:
        destinations.change(tx, "pacs", settings, actor="test")
    return Prover(store, destinations.named(store.db, "pacs"))


def sent(store: Store, archive: Archive, number: int) -> list[str]:
    """`number` instances that the archive has answered and holds; their SOP Instance UIDs."""
    if not destinations.every(store.db):
        add_destination(store, port=archive.port)
    uids = []
    for _ in range(number):
        take_in(store)
        claimed = claim_one(store, 1)
        claims.finish(store.db, claimed.id, DeliveryState.SENT, result="success")
        uids.append(str(claimed.sop_instance_uid))
    archive.held.update(uids)
    return uids


def carry(store: Store, one: Prover) -> None:
    """What a lane does at its end."""
    destination = destinations.named(store.db, "pacs")
    pair = (CT, EXPLICIT_VR_LE)
    with dial.open_association(store, destination, [pair], one.contexts) as association:
        one.after(association)


def proof_of(store: Store, instance: int = 1) -> tuple[str, str, str]:
    (one,) = ledger.of_instance(store.db, InstanceId(instance))
    return one.state, one.proof, one.last_error


def wait_over(store: Store) -> None:
    """Let the time of every request be over."""
    with store.db.write() as tx:
        tx.run("UPDATE commitment SET asked_ms = asked_ms - patience_ms")
        tx.run("UPDATE delivery SET next_ms = 0")


def way(store: Store) -> Callback:
    return destinations.named(store.db, "pacs").callback


def incidents(store: Store) -> list[str]:
    with store.db.read() as tx:
        sql = "SELECT detail FROM audit WHERE act = 'report refused'"
        return [str(row[0]) for row in tx.rows(sql)]


# --- storage commitment ------------------------------------------------------------------------


def test_commitment_on_the_association_that_sent(store: Store, archive: Archive) -> None:
    uids = sent(store, archive, 3)
    carry(store, prover(store))
    assert states_of(store) == ["committed"] * 3
    assert proof_of(store) == ("committed", "committed", "")
    assert way(store) is Callback.SAME
    (asked,) = archive.asked
    assert [one.ReferencedSOPInstanceUID for one in asked.ReferencedSOPSequence] == uids
    assert {one.ReferencedSOPClassUID for one in asked.ReferencedSOPSequence} == {CT}
    assert archive.report_statuses == [0]
    assert archive.associations == 1
    assert audit.broken_at(store.db) is None


def test_more_than_one_request_holds_is_asked_in_several(
    store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "BATCH", 2)
    sent(store, archive, 5)
    carry(store, prover(store))
    assert states_of(store) == ["committed"] * 5
    assert [len(one.ReferencedSOPSequence) for one in archive.asked] == [2, 2, 1]
    assert len({one.TransactionUID for one in archive.asked}) == 3


def test_what_no_lane_asked_for_is_asked_on_an_association_of_its_own(
    store: Store, archive: Archive
) -> None:
    sent(store, archive, 2)
    prover(store).round()
    assert states_of(store) == ["committed"] * 2


def test_a_report_on_a_new_association_reaches_forward_through_the_receiver(
    node: Serving,
) -> None:
    store = node.store
    with Archive(callback_port=node.port) as archive:
        archive.behaviour.report = "new"
        sent(store, archive, 2)
        one = prover(store)
        carry(store, one)
        assert states_of(store) == ["awaiting_commitment"] * 2
        until(lambda: archive.report_statuses, "the report was answered")
        assert archive.report_statuses == [0]
        one.round()
        assert states_of(store) == ["committed"] * 2
        assert way(store) is Callback.NEW
        assert "it calls back" in habits(store, destinations.named(store.db, "pacs"))


def test_a_report_never_comes_and_the_query_is_asked_instead(
    store: Store, archive: Archive
) -> None:
    archive.behaviour.report = "never"
    (uid,) = sent(store, archive, 1)
    one = prover(store)
    for time in range(len(commitments.PATIENCE_MS)):
        one.round()
        assert states_of(store) == ["awaiting_commitment"]
        assert len(archive.asked) == time + 1
        wait_over(store)
    one.round()
    assert proof_of(store) == ("confirmed_by_query", "found", "")
    assert way(store) is Callback.NEVER
    assert one.contexts == ()
    sent(store, archive, 1)
    one.round()  # known now: it is queried at once
    assert states_of(store) == ["confirmed_by_query"] * 2
    assert len(archive.asked) == len(commitments.PATIENCE_MS)
    # The first report comes after all.
    assert commitments.record(store.db, archive.asked[0].TransactionUID, {uid: 0}, Callback.NEW)
    one.round()
    assert states_of(store) == ["committed", "confirmed_by_query"]
    assert way(store) is Callback.NEW


def test_a_partial_failure_queues_what_failed_and_commits_the_rest(
    store: Store, archive: Archive
) -> None:
    uids = sent(store, archive, 3)
    archive.behaviour.reasons = {uids[0]: 0x0213, uids[1]: 0x0122}
    carry(store, prover(store))
    assert states_of(store) == ["queued", "failed", "committed"]
    assert proof_of(store)[2] == "the destination did not commit it: it has no room for it (0213)"
    assert "does not support the SOP class (0122)" in proof_of(store, 2)[2]


@pytest.mark.parametrize("reason", [0x0110, 0x0112, 0x0119, 0x0122, 0x0131, 0x0213, 0xC123])
def test_every_reason_has_words(reason: int) -> None:
    words = proof.judge(reason).words
    assert words.endswith(f"({reason:04X})")
    assert ("a reason of its own" in words) == (reason == 0xC123)


def test_a_report_on_another_transaction_is_refused_and_noted(
    store: Store, archive: Archive
) -> None:
    sent(store, archive, 1)
    archive.behaviour.transaction = "2.25.4711"
    carry(store, prover(store))
    assert archive.report_statuses == [0x0115]
    assert states_of(store) == ["awaiting_commitment"]
    (words,) = incidents(store)
    assert "unknown Transaction UID" in words
    assert "4711" not in words
    assert way(store) is Callback.UNKNOWN


def test_a_refused_request_is_made_again_later_and_then_queried(
    store: Store, archive: Archive
) -> None:
    sent(store, archive, 1)
    archive.behaviour.action_status = 0x0213
    one = prover(store)
    for time in range(1, len(commitments.PATIENCE_MS) + 1):
        carry(store, one)
        carry(store, one)
        assert len(archive.asked) == time
        state, known, words = proof_of(store)
        assert (state, known) == ("sent", "response")
        assert "refused to be asked for commitment: 0x0213" in words
        wait_over(store)
    one.round()
    assert states_of(store) == ["confirmed_by_query"]


def test_a_line_that_breaks_while_asking_costs_nothing(store: Store, archive: Archive) -> None:
    sent(store, archive, 1)
    archive.behaviour.hang_up_on = Field.N_ACTION_RQ
    one = prover(store)
    with pytest.raises(PeerUnreachable):
        one.round()
    assert proof_of(store)[:2] == ("sent", "response")
    archive.behaviour.hang_up_on = 0
    one.round()
    assert states_of(store) == ["committed"]


def test_nothing_is_asked_where_the_answer_is_proof_enough(store: Store, archive: Archive) -> None:
    sent(store, archive, 1)
    one = prover(store, proof="response")
    assert one.contexts == ()
    carry(store, one)
    assert one.round() == proof.IDLE_SECONDS
    assert proof_of(store) == ("sent", "response", "")
    assert (archive.asked, archive.queried) == ([], [])


# --- query -------------------------------------------------------------------------------------


def test_where_found_is_wanted_only_queries_are_asked(store: Store, archive: Archive) -> None:
    sent(store, archive, 3)
    one = prover(store, proof="found")
    assert one.contexts == ()
    one.round()
    assert states_of(store) == ["confirmed_by_query"] * 3
    assert archive.asked == []


def test_a_destination_without_commitment_is_queried(store: Store, archive: Archive) -> None:
    sent(store, archive, 2)
    archive.behaviour.commits = False
    one = prover(store)
    carry(store, one)
    assert states_of(store) == ["sent"] * 2
    one.round()
    assert states_of(store) == ["confirmed_by_query"] * 2
    assert proof_of(store) == ("confirmed_by_query", "found", "")


def test_what_is_not_found_is_sent_again_in_the_end(store: Store, archive: Archive) -> None:
    uids = sent(store, archive, 2)
    archive.held.remove(uids[1])
    one = prover(store, proof="found")
    for _ in commitments.LOOK_AGAIN_MS:
        one.round()
        assert states_of(store) == ["confirmed_by_query", "sent"]
        queries = len(archive.queried)
        one.round()
        assert len(archive.queried) == queries  # not before its time
        wait_over(store)
    one.round()
    assert states_of(store) == ["confirmed_by_query", "queued"]
    assert proof_of(store, 2)[2] == proof.NOT_THERE


def test_no_proof_to_be_had_is_said_and_asked_again_another_day(
    store: Store, archive: Archive
) -> None:
    sent(store, archive, 2)
    archive.behaviour.commits = archive.behaviour.queries = False
    one = prover(store)
    one.round()
    assert proof_of(store) == ("sent", deliveries.UNPROVABLE, "")
    associations = archive.associations
    sent(store, archive, 1)
    one.round()
    assert proof_of(store, 3) == ("sent", deliveries.UNPROVABLE, "")
    assert archive.associations == associations  # it has said so already
    words = habits(store, destinations.named(store.db, "pacs"))
    assert words == "offers no storage commitment; answers no queries"
    archive.behaviour.queries = True
    later = prover(store)
    later.round()
    assert states_of(store) == ["confirmed_by_query"] * 3


def test_a_query_that_fails_in_passing_is_put_off(store: Store, archive: Archive) -> None:
    sent(store, archive, 1)
    archive.behaviour.find_status = 0xA700
    one = prover(store, proof="found")
    assert one.round() > 10
    state, known, words = proof_of(store)
    assert (state, known) == ("sent", "response")
    assert "could not answer a query: 0xA700" in words
    archive.behaviour.find_status = 0
    wait_over(store)
    one.round()
    assert len(archive.queried) == 1  # not before its time
    one._no_queries = 0.0
    one.round()
    assert states_of(store) == ["confirmed_by_query"]


def test_a_destination_that_is_gone_leaves_everything_as_it_is(store: Store) -> None:
    with Archive() as archive:
        sent(store, archive, 1)
    one = prover(store, proof="found")
    with pytest.raises(PeerUnreachable):
        one.round()
    assert proof_of(store) == ("sent", "response", "")


# --- doubts ------------------------------------------------------------------------------------


def doubtful(store: Store, archive: Archive, number: int) -> list[str]:
    """What a crash left in `sending`; the archive has the first of it."""
    add_destination(store, port=archive.port)
    for _ in range(number):
        take_in(store)
    uids = [str(one.sop_instance_uid) for one in claims.claim(store.db, 1, number)]
    archive.held.add(uids[0])
    return uids


def test_after_a_crash_what_arrived_is_not_sent_again(store: Store, archive: Archive) -> None:
    doubtful(store, archive, 3)
    prover(store, proof="found").settle_doubts()
    assert states_of(store) == ["confirmed_by_query", "queued", "queued"]
    assert proof_of(store)[:2] == ("confirmed_by_query", "found")


def test_after_a_crash_what_arrived_goes_on_to_commitment(store: Store, archive: Archive) -> None:
    doubtful(store, archive, 2)
    one = prover(store)
    one.settle_doubts()
    assert states_of(store) == ["sent", "queued"]
    one.round()
    assert states_of(store) == ["committed", "queued"]


def test_who_cannot_be_asked_gets_it_again(store: Store, archive: Archive) -> None:
    doubtful(store, archive, 2)
    archive.behaviour.queries = False
    prover(store).settle_doubts()
    assert states_of(store) == ["queued"] * 2


def test_doubts_wait_for_the_line(store: Store) -> None:
    with Archive() as archive:
        doubtful(store, archive, 2)
    with pytest.raises(PeerUnreachable):
        prover(store).settle_doubts()
    assert states_of(store) == ["sending"] * 2


# --- in words ----------------------------------------------------------------------------------


def test_habits_are_told_in_words(store: Store, archive: Archive) -> None:
    add_destination(store, port=archive.port)
    pacs = destinations.named(store.db, "pacs")
    assert (
        habits(store, pacs) == "offers storage commitment, no report has come yet; answers queries"
    )
    archive.behaviour.commits = False
    assert habits(store, pacs) == "offers no storage commitment; answers queries"


# --- turns -------------------------------------------------------------------------------------


def test_a_turn_is_due_at_once_where_a_report_came_and_soon_after_a_lane(
    store: Store, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.behaviour.report = "never"
    (uid,) = sent(store, archive, 1)
    one = prover(store)
    assert one.due_in() > 1e6
    one.round()
    assert 0 < one.round() <= proof.IDLE_SECONDS
    monkeypatch.setattr(proof, "GATHER_MS", 2_000)
    one.sent()
    assert 1 < one.due_in() <= 2
    commitments.record(store.db, archive.asked[0].TransactionUID, {uid: 0}, Callback.NEW)
    assert one.due_in() == 0
    one.round()
    assert states_of(store) == ["committed"]
    assert one.due_in() > 1e6
