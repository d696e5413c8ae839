"""Evictions: only what is proved, whole studies, tombstones before bytes, and what comes back."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store.making import (
    add_destination,
    claim_one,
    commit,
    draft,
    objects,
    opened_store,
    states_of,
    take_in,
)

from edgepacs import telemetry
from edgepacs.clock import wall_ms
from edgepacs.custody import readout, restore
from edgepacs.errors import Gone, StorageFault
from edgepacs.model import (
    DELIVERY_TRANSITIONS,
    DeliveryKind,
    DeliveryState,
    InstanceState,
    Kept,
    Origin,
    Outcome,
    ProofWanted,
    Receipt,
    StudyId,
    StudyState,
)
from edgepacs.store import (
    Store,
    audit,
    claims,
    deliveries,
    destinations,
    disposal,
    evictions,
    fsck,
    instances,
    opened,
    rebuild,
    studies,
)
from edgepacs.upkeep.comparison import compare_waiting

D = DeliveryState
DAY = evictions.DAY_MS
PROVED = (D.COMMITTED, D.CONFIRMED_BY_QUERY)


@pytest.fixture
def pacs(store: Store) -> int:
    return add_destination(store)


def put(store: Store, state: str, *, to: int | None = None, study: int | None = None) -> None:
    """Force deliveries into a state."""
    with store.db.write() as tx:
        tx.run(
            "UPDATE delivery SET state = ?1, proof = ?1 "
            "WHERE (?2 IS NULL OR destination = ?2) AND (?3 IS NULL OR study = ?3)",
            *(state, to, study),
        )


def owe(store: Store, proof: ProofWanted) -> None:
    with store.db.write() as tx:
        destinations.change(tx, "pacs", {"proof": proof}, actor="test")


def kept(store: Store, study: int, keep_ms: int = 0) -> Kept | None:
    with store.db.read() as tx:
        found = evictions.standing(tx, StudyId(study))
    assert found is not None
    return found.kept(keep_ms)


def evict(store: Store, study: int, keep_ms: int = 0) -> int:
    return evictions.evict(store, StudyId(study), keep_ms=keep_ms, actor="test")


def state_of(store: Store, receipt: Receipt) -> InstanceState:
    return instances.instance(store.db, receipt.instance_id).state


def fail_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    monkeypatch.setattr(telemetry, "_FAILPOINT", f"{point}:error" if point else "")


# -- what may go


@pytest.mark.parametrize("wanted", list(ProofWanted))
@pytest.mark.parametrize("state", list(D))
def test_only_the_proof_a_destination_owes_lets_a_study_go(
    store: Store, pacs: int, state: D, wanted: ProofWanted
) -> None:
    receipt = take_in(store)
    owe(store, wanted)
    put(store, state)
    may_go = state in PROVED and wanted is not ProofWanted.RESPONSE
    assert (kept(store, receipt.study_id) is None) == may_go
    assert bool(evict(store, receipt.study_id)) == may_go
    assert len(objects(store)) == (0 if may_go else 1)
    assert state_of(store, receipt).gone == may_go


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (D.QUEUED, Kept.UNPROVED),
        (D.SENDING, Kept.UNPROVED),
        (D.SENT, Kept.UNPROVED),
        (D.AWAITING_COMMITMENT, Kept.UNPROVED),
        (D.HELD, Kept.HELD),
        (D.CANCELLED, Kept.CANCELLED),
        (D.FAILED, Kept.FAILED),
        (D.SUPERSEDED, Kept.UNWANTED),
    ],
)
def test_what_stays_says_why(store: Store, pacs: int, state: D, why: Kept) -> None:
    receipt = take_in(store)
    put(store, state)
    assert kept(store, receipt.study_id) is why


def test_an_answer_alone_is_no_proof_whatever_a_destination_is_asked_for(
    store: Store, pacs: int
) -> None:
    receipt = take_in(store)
    owe(store, ProofWanted.RESPONSE)
    put(store, D.QUEUED)
    assert kept(store, receipt.study_id) is Kept.UNPROVED
    put(store, D.SENT)
    assert kept(store, receipt.study_id) is Kept.RESPONSE
    owe(store, ProofWanted.COMMITTED)
    assert kept(store, receipt.study_id) is Kept.UNPROVED
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET proof = ?", deliveries.UNPROVABLE)
    assert kept(store, receipt.study_id) is Kept.RESPONSE


def test_the_proof_of_a_lossy_copy_lets_nothing_go(store: Store, pacs: int) -> None:
    receipt = take_in(store)
    put(store, D.COMMITTED)
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET proof = ?", deliveries.LOSSY_RESPONSE)
    assert kept(store, receipt.study_id) is Kept.RESPONSE
    put(store, D.COMMITTED)
    with store.db.write() as tx:
        tx.run("UPDATE destination SET lossy = 80")
    assert kept(store, receipt.study_id) is Kept.RESPONSE


def test_without_a_delivery_nothing_goes(store: Store) -> None:
    receipt = take_in(store)
    assert kept(store, receipt.study_id) is Kept.UNWANTED
    assert evict(store, receipt.study_id) == 0


def test_a_prior_fetched_from_outside_stays_for_a_day(store: Store, pacs: int) -> None:
    receipt = take_in(store, origin=Origin.PREFETCH)
    assert kept(store, receipt.study_id) is Kept.RECENT


def test_every_destination_must_have_it(store: Store, pacs: int) -> None:
    second = add_destination(store, "second", "SECOND")
    receipt = take_in(store)
    put(store, D.COMMITTED, to=pacs)
    assert kept(store, receipt.study_id) is Kept.UNPROVED
    put(store, D.CONFIRMED_BY_QUERY, to=second)
    assert kept(store, receipt.study_id) is None


def test_a_study_goes_whole_or_not_at_all(store: Store, pacs: int) -> None:
    first = take_in(store)
    put(store, D.COMMITTED)
    second = take_in(store)
    assert first.study_id == second.study_id
    assert kept(store, first.study_id) is Kept.UNPROVED
    assert evict(store, first.study_id) == 0
    assert len(objects(store)) == 2
    put(store, D.COMMITTED)
    assert evict(store, first.study_id) > 0
    assert objects(store) == []


@pytest.mark.parametrize("said", [StudyState.HELD, StudyState.REJECTED])
def test_a_study_somebody_stopped_stays(store: Store, pacs: int, said: StudyState) -> None:
    receipt = take_in(store)
    put(store, D.COMMITTED)
    with store.db.write() as tx:
        studies.set_state(tx, receipt.study_id, said, actor="eve")
    assert kept(store, receipt.study_id) is Kept.STOPPED
    assert evict(store, receipt.study_id) == 0


def test_a_version_nobody_has_decided_on_keeps_the_study(store: Store, pacs: int) -> None:
    receipt = commit(store, draft(store, sop="1.2.3"))
    put(store, D.COMMITTED)
    other = commit(store, draft(store, sop="1.2.3", name="Other"))
    assert kept(store, receipt.study_id) is Kept.DISPUTED
    compare_waiting(store)
    assert kept(store, receipt.study_id) is Kept.DISPUTED
    assert evict(store, receipt.study_id) == 0
    disposal.discard(store, other.instance_id, actor="eve")
    assert kept(store, receipt.study_id) is None


def test_a_young_study_stays_for_its_days(store: Store, pacs: int) -> None:
    receipt = take_in(store)
    put(store, D.COMMITTED)
    assert kept(store, receipt.study_id, DAY) is Kept.RECENT
    assert evict(store, receipt.study_id, DAY) == 0
    with store.db.write() as tx:
        tx.run("UPDATE study SET received_ms = ?", wall_ms() - DAY - 1000)
    assert kept(store, receipt.study_id, DAY) is None


def test_what_was_received_before_the_clock_was_set_back_does_not_stay_for_ever(
    store: Store, pacs: int
) -> None:
    receipt = take_in(store)
    put(store, D.COMMITTED)
    with store.db.write() as tx:
        tx.run("UPDATE study SET received_ms = ?", wall_ms() + 3650 * DAY)
    assert kept(store, receipt.study_id, DAY) is None


def test_the_oldest_goes_first(store: Store, pacs: int) -> None:
    taken = [take_in(store, study=f"1.2.{n}", series=f"1.2.{n}.1").study_id for n in range(5)]
    put(store, D.COMMITTED)
    with store.db.write() as tx:
        for study, days in zip(taken, (3, 5, 1, 4, 2), strict=True):
            tx.run("UPDATE study SET received_ms = ? WHERE id = ?", wall_ms() - days * DAY, study)
    put(store, D.SENT, study=taken[3])
    assert list(evictions.oldest(store.db, 0)) == [taken[n] for n in (1, 0, 4, 2)]


def test_more_studies_than_are_read_at_once(
    store: Store, pacs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evictions, "_STUDIES_AT_ONCE", 2)
    taken = [take_in(store, study=f"1.2.{n}", series=f"1.2.{n}.1").study_id for n in range(5)]
    put(store, D.COMMITTED)
    assert [one.study for one in evictions.standings(store.db)] == taken
    gone = [study for study in evictions.oldest(store.db, 0) if evict(store, study)]
    assert sorted(gone) == sorted(taken)
    assert list(evictions.standings(store.db)) == []


# -- what goes


def test_an_evicted_study_is_tombstones_with_counts_and_an_audit_row(
    store: Store, pacs: int
) -> None:
    receipts = [take_in(store) for _ in range(3)]
    put(store, D.COMMITTED)
    size = evict(store, receipts[0].study_id)
    assert size > 0
    assert objects(store) == []
    assert {state_of(store, one) for one in receipts} == {InstanceState.EVICTED}
    study = studies.study(store.db, receipts[0].study_id)
    assert (study.instance_count, study.evicted_count, study.byte_size) == (0, 3, 0)
    (series,) = studies.series_of(store.db, study.id)
    assert (series.instance_count, series.evicted_count, series.byte_size) == (0, 3, 0)
    last = audit.of_subject(store.db, "study", study.id)[-1]
    assert (last.act, last.actor) == ("study evicted", "test")
    assert last.detail == f"3 instances, {size} bytes; proved at pacs (committed)"
    assert states_of(store) == ["committed"] * 3
    assert fsck.check(store).sound
    assert evict(store, study.id) == 0


def test_reading_an_evicted_instance_says_where_it_is(store: Store, pacs: int) -> None:
    receipt = take_in(store)
    before = instances.instance(store.db, receipt.instance_id)
    put(store, D.COMMITTED)
    evict(store, receipt.study_id)
    now = instances.instance(store.db, receipt.instance_id)
    for stale in (before, now):
        with pytest.raises(Gone, match="has arrived at its destinations"):
            list(restore.received_chunks(store, stale))
        with pytest.raises(Gone):
            readout.content(store, stale)
    assert Gone.http_status == 410


def test_somebody_who_reads_it_goes_on_reading(store: Store, pacs: int) -> None:
    receipt = take_in(store)
    row = instances.instance(store.db, receipt.instance_id)
    put(store, D.COMMITTED)
    with store.vault.open(row.object_id) as reader:
        evict(store, receipt.study_id)
        assert sum(map(len, reader.chunks())) == row.byte_length


@pytest.mark.parametrize("point", ["evict.decided", "disposal.decided", "evict.removed"])
def test_cut_off_between_tombstones_and_bytes_the_sweep_finishes(
    store: Store, pacs: int, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    receipts = [take_in(store) for _ in range(3)]
    put(store, D.COMMITTED)
    fail_at(monkeypatch, point)
    with pytest.raises(StorageFault):
        evict(store, receipts[0].study_id)
    fail_at(monkeypatch, "")
    assert {state_of(store, one) for one in receipts} == {InstanceState.EVICTED}
    left = len(objects(store))
    assert left == (2 if point == "evict.removed" else 3)
    settled = fsck.sweep(store)
    assert (settled.removed, settled.adopted) == (left, 0)
    assert objects(store) == []
    assert fsck.check(store).sound


def test_an_index_made_again_holds_what_has_bytes_and_no_tombstones(
    store: Store, pacs: int
) -> None:
    gone = take_in(store, study="1.1", series="1.1.1")
    put(store, D.COMMITTED)
    take_in(store, study="1.2", series="1.2.1")
    evict(store, gone.study_id)
    store.paths.index.rename(store.paths.index.with_name("index.lost"))
    assert rebuild.rebuild(store.config).instances == 1
    with opened(store.config) as again:
        assert fsck.check(again).sound
        assert studies.counts(again.db)["study"] == 1


# -- what comes back


def test_the_same_bytes_again_are_kept_and_not_sent_again(store: Store, pacs: int) -> None:
    first = take_in(store, sop="1.2.3")
    put(store, D.COMMITTED)
    evict(store, first.study_id)
    again = take_in(store, sop="1.2.3")
    assert (again.outcome, again.instance_id) == (Outcome.STORED, first.instance_id)
    assert state_of(store, again) is InstanceState.STORED
    assert states_of(store) == ["committed"]
    study = studies.study(store.db, first.study_id)
    assert (study.instance_count, study.evicted_count) == (1, 0)
    assert study.byte_size == instances.instance(store.db, first.instance_id).byte_length
    assert len(objects(store)) == 1
    assert fsck.check(store).sound


def test_the_same_bytes_again_go_where_they_have_not_been(store: Store, pacs: int) -> None:
    first = take_in(store, sop="1.2.3")
    put(store, D.COMMITTED)
    evict(store, first.study_id)
    second = add_destination(store, "second", "SECOND")
    again = take_in(store, sop="1.2.3")
    assert again.due
    assert states_of(store) == ["committed", "queued"]
    assert claim_one(store, second).instance == first.instance_id
    assert kept(store, first.study_id) is Kept.UNPROVED


def test_it_comes_and_goes_as_often_as_wanted(store: Store, pacs: int) -> None:
    for _ in range(3):
        receipt = take_in(store, sop="1.2.3")
        put(store, D.COMMITTED)
        assert evict(store, receipt.study_id) > 0
    with store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM instance") == 1


def test_other_bytes_under_an_evicted_uid_wait_for_a_person(store: Store, pacs: int) -> None:
    first = take_in(store, sop="1.2.3")
    put(store, D.COMMITTED)
    evict(store, first.study_id)
    other = take_in(store, sop="1.2.3", name="Other")
    assert other.outcome is Outcome.COMPARING
    compare_waiting(store)
    assert state_of(store, other) is InstanceState.QUARANTINED
    assert states_of(store) == ["committed"]
    instances.accept_version(store.db, other.instance_id, actor="eve")
    assert states_of(store) == ["committed", "queued"]


def test_a_fetched_copy_in_another_form_stands_and_leaves_no_more(store: Store, pacs: int) -> None:
    first = take_in(store, sop="1.2.3")
    put(store, D.COMMITTED)
    evict(store, first.study_id)
    fetched = take_in(store, sop="1.2.3", name="Coerced", origin=Origin.FETCH_BACK)
    assert state_of(store, fetched) is InstanceState.STORED
    assert states_of(store) == ["committed"]


def test_an_orphan_of_an_evicted_instance_is_taken_back_not_sent(
    store: Store, pacs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off over the eviction, then received again before any sweep."""
    first = take_in(store, sop="1.2.3")
    put(store, D.COMMITTED)
    fail_at(monkeypatch, "evict.decided")
    with pytest.raises(StorageFault):
        evict(store, first.study_id)
    fail_at(monkeypatch, "")
    take_in(store, sop="1.2.3")
    fsck.sweep(store)
    assert len(objects(store)) == 1
    assert states_of(store) == ["committed"]
    assert fsck.check(store).sound


# -- whatever happens in whatever order


class Acts(RuleBasedStateMachine):
    """Any order of acts: what is evicted was proved, by a reckoning of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.opened = opened_store(Path(self.folder.name) / "node")
        self.store = self.opened.__enter__()
        self.names = [add_destination(self.store, name, name.upper()) for name in ("a", "b")]
        self.taken: list[tuple[str, str]] = []
        self.gone = 0

    def teardown(self) -> None:
        report = fsck.check(self.store)
        assert report.sound, report
        self.opened.__exit__(None, None, None)
        self.folder.cleanup()

    @rule(study=st.sampled_from("12"), origin=st.sampled_from([Origin.MODALITY, Origin.PREFETCH]))
    def receive(self, study: str, origin: Origin) -> None:
        sop = f"1.2.{len(self.taken) + 1}"
        self.taken.append((sop, study))
        take_in(self.store, sop=sop, study=study, series=f"{study}.1", origin=origin)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), name=st.sampled_from(["Doe^Jane", "Other"]))
    def receive_again(self, data: st.DataObject, name: str) -> None:
        sop, study = data.draw(st.sampled_from(self.taken))
        take_in(self.store, sop=sop, study=study, series=f"{study}.1", name=name)
        compare_waiting(self.store)

    @rule(data=st.data())
    def shift(self, data: st.DataObject) -> None:
        """Any lawful step of one delivery."""
        with self.store.db.write() as tx:
            rows = tx.rows("SELECT id, state FROM delivery")
            if not rows:
                return
            number, state = data.draw(st.sampled_from(rows))
            targets = sorted(DELIVERY_TRANSITIONS[DeliveryKind.INSTANCE][D(state)])
            if targets:
                new = data.draw(st.sampled_from(targets))
                chosen = deliveries.Selection(delivery=number)
                deliveries.shift(tx, chosen, [D(state)], new, actor="test")

    @rule(everything=st.sampled_from([D.COMMITTED, D.CONFIRMED_BY_QUERY, D.SENT]))
    def arrive(self, everything: D) -> None:
        with self.store.db.write() as tx:
            tx.run(
                "UPDATE delivery SET state = ?1, proof = ?1 WHERE state IN "
                "('queued', 'sending', 'sent', 'awaiting_commitment')",
                everything,
            )

    @rule(destination=st.sampled_from([0, 1]))
    def send(self, destination: int) -> None:
        for one in claims.claim(self.store.db, self.names[destination], 2):
            claims.finish(self.store.db, one.id, D.SENT, result="stored")

    @rule(
        act=st.sampled_from(
            [deliveries.hold, deliveries.release, deliveries.cancel, deliveries.retry]
        )
    )
    def say(self, act: object) -> None:
        with self.store.db.write() as tx:
            act(tx, deliveries.Selection(), actor="eve")  # type: ignore[operator]

    @rule(name=st.sampled_from("ab"), proof=st.sampled_from(list(ProofWanted)))
    def demand(self, name: str, proof: ProofWanted) -> None:
        with self.store.db.write() as tx:
            destinations.change(tx, name, {"proof": proof}, actor="eve")

    @rule(number=st.integers(0, 1), lossy=st.sampled_from([0, 80]))
    def lose(self, number: int, lossy: int) -> None:
        with self.store.db.write() as tx:
            tx.run("UPDATE destination SET lossy = ? WHERE id = ?", lossy, self.names[number])

    @rule(state=st.sampled_from(list(StudyState)))
    def judge(self, state: StudyState) -> None:
        with self.store.db.write() as tx:
            tx.run("UPDATE study SET state = ? WHERE id = (SELECT MIN(id) FROM study)", state)

    @rule()
    def evict(self) -> None:
        before = {study: self._may_go(study) for study in self._studies()}
        for study, may_go in before.items():
            stored = self._stored(study)
            freed = evict(self.store, study)
            assert bool(freed) == may_go, (study, may_go)
            assert self._stored(study) == (0 if may_go else stored)
            self.gone += may_go

    @invariant()
    def every_stored_instance_has_its_bytes(self) -> None:
        with self.store.db.read() as tx:
            rows = tx.rows("SELECT object_id FROM instance WHERE state NOT IN ('evicted')")
            sums = tx.rows(
                "SELECT instance_count, evicted_count, "
                "(SELECT COUNT(*) FROM instance WHERE study = study.id AND state = 'stored'), "
                "(SELECT COUNT(*) FROM instance WHERE study = study.id AND state = 'evicted') "
                "FROM study"
            )
        names = {path.name for path in objects(self.store)}
        assert {row[0].hex() for row in rows} >= names
        assert all(row[:2] == row[2:] for row in sums)

    def _studies(self) -> Iterator[int]:
        with self.store.db.read() as tx:
            yield from (row[0] for row in tx.rows("SELECT id FROM study"))

    def _stored(self, study: int) -> int:
        with self.store.db.read() as tx:
            return tx.number(
                "SELECT COUNT(*) FROM instance WHERE state = 'stored' AND study = ?", study
            )

    def _may_go(self, study: int) -> bool:
        """By the words of the design alone, row by row."""
        with self.store.db.read() as tx:
            said = tx.rows("SELECT state FROM study WHERE id = ?", study)[0][0]
            here = tx.rows(
                "SELECT id, state FROM instance WHERE study = ? "
                "AND state NOT IN ('evicted', 'discarded')",
                study,
            )
            routes = tx.rows(
                "SELECT subject, delivery.state, destination.proof, lossy, delivery.proof "
                "FROM delivery JOIN destination ON destination.id = destination"
            )
        if said in ("held", "rejected") or not here or any(s != "stored" for _, s in here):
            return False
        for number, _ in here:
            mine = [row[1:] for row in routes if row[0] == number and row[1] != "superseded"]
            good = [
                state in ("committed", "confirmed_by_query")
                and wanted != "response"
                and not lossy
                and "lossy" not in proof
                for state, wanted, lossy, proof in mine
            ]
            if not good or not all(good):
                return False
        return True


Acts.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestActs = Acts.TestCase


def test_a_large_study_holds_the_writers_up_for_a_moment_only(store: Store, pacs: int) -> None:
    """Rows alone, ten thousand: a C-STORE at that moment waits for the one transaction."""
    receipt = take_in(store)
    with store.db.write() as tx:
        row = dict(zip(*_columns(tx), strict=True))
        for number in itertools.islice(itertools.count(1), 2000):
            row |= {"id": None, "sop_instance_uid": f"9.{number}", "object_id": number.to_bytes(16)}
            tx.insert("instance", row)
        tx.run("UPDATE series SET instance_count = 2001")
        tx.run("UPDATE study SET instance_count = 2001")
        tx.run(
            "INSERT INTO delivery (kind, subject, study, destination, state, created_ms, "
            "changed_ms) SELECT 'instance', id, study, ?, 'committed', 0, 0 FROM instance "
            "WHERE true ON CONFLICT DO UPDATE SET state = 'committed'",
            pacs,
        )
    assert evict(store, receipt.study_id) > 0
    assert studies.study(store.db, receipt.study_id).evicted_count == 2001


def _columns(tx: object) -> tuple[list[str], tuple[object, ...]]:
    names = [row[1] for row in tx.rows("PRAGMA table_info(instance)")]  # type: ignore[attr-defined]
    return names, tx.rows("SELECT * FROM instance")[0]  # type: ignore[attr-defined]
