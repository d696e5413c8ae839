import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.making import (
    add_destination,
    claim_one,
    commit,
    deliveries_of,
    draft,
    objects,
    states_of,
)

from edgepacs.errors import Conflict, NoRoom, NotFound, StorageFault
from edgepacs.model import (
    INSTANCE_TRANSITIONS,
    UID,
    Arrival,
    Attributes,
    InstanceId,
    InstanceState,
    ObjectId,
    Origin,
    Outcome,
    StudyId,
    StudyState,
)
from edgepacs.store import Store, audit, claims, disposal, instances, ledger, rules, studies
from edgepacs.store.drafts import Draft


def study_rows(store: Store) -> list[studies.Study]:
    return sorted(studies.search(store.db, studies.Search()), key=lambda one: one.id)


def add_rule(store: Store, **values: object) -> int:
    wanted = {"to": "*", "match": "", "hold": False, "priority": 0, **values}
    with store.db.write() as tx:
        return rules.add(tx, actor="test", **wanted)  # type: ignore[arg-type]


def only_rule(store: Store, **values: object) -> int:
    with store.db.write() as tx:
        for rule in rules.within(tx):
            rules.remove(tx, rule.id, actor="test")
    return add_rule(store, **values)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
uids = st.from_regex(r"[0-9.]{1,64}", fullmatch=True).map(UID)


@given(
    attributes=st.builds(
        Attributes,
        sop_class_uid=uids,
        sop_instance_uid=uids,
        study_instance_uid=uids,
        series_instance_uid=uids,
        **{
            name: texts
            for name in Attributes.__slots__
            if not name.endswith("_uid") and name not in ("rows", "columns", "frames", "flags")
        },
        rows=st.integers(0, 65535),
        columns=st.integers(0, 65535),
        frames=st.integers(0, 2**31 - 1),
        flags=st.lists(st.sampled_from(["odd-length", "stray-delimiter"])).map(tuple),
    ),
    origin=st.sampled_from(list(Origin)),
    source=texts,
    numbers=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(-1, 2**40)),
)
def test_a_draft_comes_back_from_its_trailer(
    attributes: Attributes, origin: Origin, source: str, numbers: tuple[int, int, int]
) -> None:
    one = Draft(
        arrival=Arrival(
            sop_class_uid=attributes.sop_class_uid,
            sop_instance_uid=attributes.sop_instance_uid,
            transfer_syntax_uid=UID("1.2.840.10008.1.2.1"),
            origin=origin,
            source=source,
        ),
        attributes=attributes,
        object_id=ObjectId(b"o" * 16),
        byte_length=numbers[0],
        sealed_length=77,
        received_digest=b"h" * 32,
        pixel_offset=numbers[2],
        received_ms=numbers[1],
    )
    sealed = json.loads(json.dumps(one.trailer()))
    assert Draft.from_trailer(sealed, one.object_id, 77) == one


def test_one_instance_makes_one_row_of_each(store: Store) -> None:
    one = draft(store, name="Doe^Jane", modality="MR", number="7", received_ms=123456)
    receipt = commit(store, one)
    assert receipt.outcome is Outcome.STORED
    row = instances.instance(store.db, receipt.instance_id)
    assert (row.state, row.version) == (InstanceState.STORED, 1)
    assert row.object_id == one.object_id
    assert row.received_digest == one.received_digest
    assert row.byte_length == one.byte_length
    assert row.transfer_syntax_uid == row.received_syntax_uid
    (study,) = study_rows(store)
    assert study.id == receipt.study_id
    assert (study.patient_name, study.modalities) == ("Doe^Jane", "MR")
    assert (study.series_count, study.instance_count) == (1, 1)
    assert study.byte_size == one.byte_length
    assert study.received_ms == 123000  # to the second
    (series,) = studies.series_of(store.db, study.id)
    assert (series.instance_count, series.byte_size) == (1, one.byte_length)
    assert studies.counts(store.db) == {
        "patient": 1,
        "study": 1,
        "series": 1,
        "instance": 1,
        "bytes": one.byte_length,
    }
    (record,) = audit.of_subject(store.db, "instance", receipt.instance_id)
    assert (record.actor, record.act) == ("CT1", "instance stored")


def test_the_same_bytes_again_change_only_the_copy(store: Store) -> None:
    add_destination(store)
    earlier = draft(store, sop="1.2.3")
    first = commit(store, earlier)
    before = studies.counts(store.db), deliveries_of(store)
    newer = draft(store, sop="1.2.3")
    again = commit(store, newer)
    assert again.outcome is Outcome.DUPLICATE
    assert (again.instance_id, again.study_id) == (first.instance_id, first.study_id)
    assert again.replaced == earlier.object_id
    assert instances.instance(store.db, first.instance_id).object_id == newer.object_id
    assert (studies.counts(store.db), deliveries_of(store)) == before


def test_the_same_bytes_in_another_syntax_are_compared(store: Store) -> None:
    one = draft(store, sop="1.2.3")
    commit(store, one)
    other = draft(store, sop="1.2.3")
    arrival = replace(other.arrival, transfer_syntax_uid=UID("1.2.840.10008.1.2"))
    assert commit(store, replace(other, arrival=arrival)).outcome is Outcome.COMPARING


def test_one_draft_committed_twice_is_no_duplicate_of_itself(store: Store) -> None:
    """A COMMIT that only seemed to fail: its object must not be taken for a second copy."""
    one = draft(store)
    first, again = commit(store, one), commit(store, one)
    assert (again.outcome, again.replaced) == (Outcome.STORED, None)
    assert again.instance_id == first.instance_id
    assert studies.counts(store.db)["instance"] == 1


def test_other_content_under_a_known_uid_waits_aside(store: Store) -> None:
    add_destination(store)
    first = commit(store, draft(store, sop="1.2.3"))
    other = draft(store, sop="1.2.3", name="Other^Name")
    second = commit(store, other)
    assert second.outcome is Outcome.COMPARING
    row = instances.instance(store.db, second.instance_id)
    assert (row.state, row.version) == (InstanceState.COMPARING, 2)
    assert instances.instance(store.db, first.instance_id).state is InstanceState.STORED
    assert studies.counts(store.db)["instance"] == 1
    assert study_rows(store)[0].instance_count == 1
    assert len(deliveries_of(store)) == 1
    # The waiting one, sent again, is a duplicate too; a third content is a third version.
    assert commit(store, draft(store, sop="1.2.3", name="Other^Name")).outcome is Outcome.DUPLICATE
    third = commit(store, draft(store, sop="1.2.3", name="Third"))
    assert instances.instance(store.db, third.instance_id).version == 3


def test_one_commit_of_many_counts_each(store: Store) -> None:
    drafts = [draft(store, sop=f"1.2.{n}", series=f"1.9.{n % 3}") for n in range(9)]
    drafts.append(draft(store, sop="1.2.0", series="1.9.0"))
    receipts = instances.commit(store.db, drafts)
    assert [one.outcome for one in receipts] == [Outcome.STORED] * 9 + [Outcome.DUPLICATE]
    (study,) = study_rows(store)
    assert (study.series_count, study.instance_count) == (3, 9)
    assert study.byte_size == sum(one.byte_length for one in drafts[:9])
    assert [one.instance_count for one in studies.series_of(store.db, study.id)] == [3, 3, 3]
    assert len({one.instance_id for one in receipts[:9]}) == 9


def test_a_commit_that_fails_leaves_no_row_of_any(store: Store) -> None:
    good, bad = draft(store, sop="1.2.1"), draft(store, sop="1.2.2")
    before = studies.counts(store.db)
    with pytest.raises(Exception, match="NOT NULL"):
        instances.commit(store.db, [good, replace(bad, pixel_offset=None)])  # type: ignore[arg-type]
    assert studies.counts(store.db) == before
    assert commit(store, good).outcome is Outcome.STORED


def test_two_patients_under_one_study_uid_are_flagged_never_merged(store: Store) -> None:
    for name, patient in (("Doe^Jane", "P1"), ("Roe^Rita", "P2"), ("Doe^Jane", "P1")):
        commit(store, draft(store, study="1.2.9", patient_id=patient, name=name))
    rows = study_rows(store)
    assert [(one.patient_name, one.instance_count) for one in rows] == [
        ("Doe^Jane", 2),
        ("Roe^Rita", 1),
    ]
    assert all(one.flags.split() == ["two-patients"] for one in rows)
    assert studies.counts(store.db)["patient"] == 2
    commit(store, draft(store, study="1.2.8", patient_id="P1"))
    assert study_rows(store)[-1].flags == ""


def test_the_issuer_tells_patients_of_one_id_apart(store: Store) -> None:
    for issuer in ("A", "B", "A"):
        commit(store, draft(store, study=f"1.2.{ord(issuer)}", patient_id="P1", issuer=issuer))
    assert studies.counts(store.db)["patient"] == 2


def test_an_empty_patient_id_is_one_patient_a_study(store: Store) -> None:
    for study in ("1.2.1", "1.2.2", "1.2.1"):
        commit(store, draft(store, study=study, patient_id="", name="Unknown"))
    counts = studies.counts(store.db)
    assert (counts["patient"], counts["study"]) == (2, 2)
    assert [one.instance_count for one in study_rows(store)] == [2, 1]


def test_each_study_keeps_its_demographics_as_received(store: Store) -> None:
    commit(store, draft(store, study="1.2.1", name="Maiden^Name"))
    commit(store, draft(store, study="1.2.2", name="Married^Name"))
    commit(store, draft(store, study="1.2.1", name="Later^Name"))
    assert [one.patient_name for one in study_rows(store)] == ["Maiden^Name", "Married^Name"]
    assert studies.counts(store.db)["patient"] == 1


def test_modalities_gather(store: Store) -> None:
    for modality in ("US", "SR", "", "US"):
        series = f"1.9.{len(modality)}{modality == 'SR':d}"
        commit(store, draft(store, study="1.2.1", modality=modality, series=series))
    assert study_rows(store)[0].modalities == "SR\\US"
    assert list(studies.modalities_present(store.db)) == ["SR", "US"]


def test_threads_share_a_transaction_and_get_their_own_receipt(store: Store) -> None:
    drafts = [draft(store, sop=f"1.2.{n}") for n in range(24)]
    found: dict[str, InstanceId] = {}

    def run(mine: Draft) -> None:
        found[mine.arrival.sop_instance_uid] = store.group.commit(mine).instance_id

    threads = [threading.Thread(target=run, args=(one,)) for one in drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for one in drafts:
        uid = one.arrival.sop_instance_uid
        assert instances.instance(store.db, found[uid]).sop_instance_uid == uid


def _fails_for(store: Store, monkeypatch: pytest.MonkeyPatch, bad: Draft, error: Exception) -> None:
    real = instances.committed

    def failing(tx: object, drafts: list[Draft]) -> object:
        if bad in drafts:
            raise error
        return real(tx, drafts)  # type: ignore[arg-type]

    monkeypatch.setattr(instances, "committed", failing)


def _group(store: Store, drafts: list[Draft]) -> list[object]:
    """What became of each draft, all in one group."""
    answers: list[object] = [None] * len(drafts)

    def run(i: int) -> None:
        try:
            answers[i] = store.group.commit(drafts[i]).outcome
        except Exception as error:  # noqa: BLE001  judged by the test
            answers[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(drafts))]
    with store.group._turn:  # so that all wait for the same turn
        for thread in threads:
            thread.start()
        while len(store.group._waiting) < len(drafts):
            pass
    for thread in threads:
        thread.join(30)
    return answers


def test_one_draft_that_fails_does_not_fail_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = [draft(store) for _ in range(5)]
    _fails_for(store, monkeypatch, drafts[2], NoRoom("full"))
    answers = _group(store, drafts)
    assert isinstance(answers.pop(2), NoRoom)
    assert answers == [Outcome.STORED] * 4


def test_after_a_storage_fault_nobody_of_the_group_is_told_success(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = [draft(store) for _ in range(5)]
    _fails_for(store, monkeypatch, drafts[2], StorageFault("fsync failed"))
    assert all(isinstance(answer, StorageFault) for answer in _group(store, drafts))


# -- what rules make of it


def test_a_first_rule_sends_everything_everywhere(store: Store) -> None:
    one, two = add_destination(store, "a", "A"), add_destination(store, "b", "B")
    receipt = commit(store, draft(store))
    with store.db.read() as tx:
        rows = tx.rows("SELECT destination, subject, state FROM delivery ORDER BY id")
    assert rows == [(one, receipt.instance_id, "queued"), (two, receipt.instance_id, "queued")]


def test_a_rule_decides_destination_priority_and_hold(store: Store) -> None:
    add_destination(store, "a", "A")
    add_destination(store, "b", "B")
    only_rule(store, to="b", match="modality=US", priority=5)
    add_rule(store, to="b", match="station=ROOM*", hold=True, priority=3)
    commit(store, draft(store, modality="CT"))
    assert deliveries_of(store) == []
    commit(store, draft(store, modality="US"))
    assert deliveries_of(store) == [("queued", "", 5, 0)]
    commit(store, draft(store, modality="US", station="ROOM 9", series="1.9.2"))
    assert deliveries_of(store)[1] == ("held", "unverified", 5, 0)


def test_never_back_to_where_it_came_from(store: Store) -> None:
    add_destination(store, "a", "CT1")
    add_destination(store, "b", "PACS")
    commit(store, draft(store, source="CT1"))
    assert [one.destination_name for one in ledger.outbox(store.db)] == ["b"]


@pytest.mark.parametrize("origin", list(Origin))
def test_only_what_was_made_or_brought_here_is_routed(store: Store, origin: Origin) -> None:
    add_destination(store)
    commit(store, draft(store, origin=origin))
    routed = origin in (Origin.MODALITY, Origin.IMPORT, Origin.LOCAL)
    assert len(deliveries_of(store)) == int(routed)


@pytest.mark.parametrize(
    ("state", "hold", "expected"),
    [
        (StudyState.RECEIVED, False, ("queued", "")),
        (StudyState.RECEIVED, True, ("held", "unverified")),
        (StudyState.VERIFIED, True, ("queued", "")),
        (StudyState.HELD, False, ("held", "study")),
        (StudyState.HELD, True, ("held", "unverified")),
        (StudyState.REJECTED, False, ("held", "study")),
        (StudyState.REJECTED, True, ("held", "unverified")),
    ],
)
def test_what_arrives_late_obeys_what_was_said_of_its_study(
    store: Store, state: StudyState, *, hold: bool, expected: tuple[str, str]
) -> None:
    receipt = commit(store, draft(store))
    if state is not StudyState.RECEIVED:
        with store.db.write() as tx:
            studies.set_state(tx, receipt.study_id, state, actor="test")
    add_destination(store)
    only_rule(store, hold=hold)
    commit(store, draft(store))
    assert deliveries_of(store)[0][:2] == expected


# -- versions


def quarantined(store: Store, **second: object) -> tuple[InstanceId, InstanceId]:
    first = commit(store, draft(store, sop="1.2.3"))
    other = commit(store, draft(store, sop="1.2.3", name="Other", **second))
    instances.quarantine(store.db, other.instance_id)
    return first.instance_id, other.instance_id


def test_a_quarantined_version_flags_its_study(store: Store) -> None:
    _, other = quarantined(store)
    assert instances.instance(store.db, other).state is InstanceState.QUARANTINED
    assert study_rows(store)[0].flags == "conflict"
    with pytest.raises(Conflict):
        instances.quarantine(store.db, other)


def test_an_accepted_version_takes_the_place_of_the_former(store: Store) -> None:
    add_destination(store)
    first, other = quarantined(store)
    before = study_rows(store)[0]
    instances.accept_version(store.db, other, actor="eve")
    assert instances.instance(store.db, first).state is InstanceState.SUPERSEDED
    assert instances.instance(store.db, other).state is InstanceState.STORED
    found = instances.stored_version(store.db, UID("1.2.3"))
    assert found is not None
    assert found.id == other
    assert states_of(store) == ["superseded", "queued"]
    after = study_rows(store)[0]
    assert after.instance_count == 1
    sizes = [instances.instance(store.db, one).byte_length for one in (first, other)]
    assert after.byte_size == before.byte_size - sizes[0] + sizes[1]
    acts = [(one.actor, one.act) for one in audit.of_subject(store.db, "instance", other)]
    assert acts[-1] == ("eve", "instance stored")
    with pytest.raises(Conflict):
        instances.accept_version(store.db, other, actor="eve")
    with pytest.raises(Conflict):
        instances.accept_version(store.db, first, actor="eve")
    with pytest.raises(NotFound):
        instances.accept_version(store.db, InstanceId(99), actor="eve")
    assert instances.instance(store.db, other).state is InstanceState.STORED


def test_what_is_waiting_to_be_compared_cannot_be_accepted(store: Store) -> None:
    first = commit(store, draft(store, sop="1.2.3"))
    other = commit(store, draft(store, sop="1.2.3", name="Other"))
    with pytest.raises(Conflict):
        instances.accept_version(store.db, other.instance_id, actor="eve")
    assert instances.instance(store.db, first.instance_id).state is InstanceState.STORED


def test_an_evicted_instance_is_never_brought_back_without_bytes(store: Store) -> None:
    receipt = commit(store, draft(store))
    with store.db.write() as tx:
        instances.move(tx, receipt.instance_id, InstanceState.EVICTED, actor="test")
    with pytest.raises(Conflict):
        instances.accept_version(store.db, receipt.instance_id, actor="eve")


def test_an_accepted_version_that_was_fetched_is_not_routed(store: Store) -> None:
    add_destination(store)
    _, other = quarantined(store, origin=Origin.PREFETCH)
    instances.accept_version(store.db, other, actor="eve")
    assert states_of(store) == ["superseded"]


def test_a_claim_of_the_former_version_that_comes_back_is_not_queued(store: Store) -> None:
    destination = add_destination(store)
    _, other = quarantined(store)
    taken = claim_one(store, destination)
    instances.accept_version(store.db, other, actor="eve")
    assert not claims.may_leave(store.db, taken)
    claims.give_back(store.db, [taken.id], result="line broke")
    assert states_of(store) == ["superseded", "queued"]


def test_a_discarded_version_is_a_tombstone_without_bytes(store: Store) -> None:
    _, other = quarantined(store)
    assert len(objects(store)) == 2
    disposal.discard(store, other, actor="eve")
    row = instances.instance(store.db, other)
    assert row.state is InstanceState.DISCARDED
    assert row.state.gone
    assert not store.vault.exists(row.object_id)
    assert len(objects(store)) == 1
    with pytest.raises(Conflict):
        disposal.discard(store, other, actor="eve")


def test_the_stored_version_cannot_be_discarded(store: Store) -> None:
    receipt = commit(store, draft(store))
    with pytest.raises(Conflict):
        disposal.discard(store, receipt.instance_id, actor="eve")
    assert len(objects(store)) == 1


@pytest.mark.parametrize("old", list(InstanceState))
@pytest.mark.parametrize("new", list(InstanceState))
def test_instances_move_as_the_table_says(
    store: Store, old: InstanceState, new: InstanceState
) -> None:
    receipt = commit(store, draft(store))
    with store.db.write() as tx:
        tx.run("UPDATE instance SET state = ? WHERE id = ?", old, receipt.instance_id)
    legal = new in INSTANCE_TRANSITIONS[old]
    try:
        with store.db.write() as tx:
            instances.move(tx, receipt.instance_id, new, actor="test")
    except Conflict:
        assert not legal
        assert instances.instance(store.db, receipt.instance_id).state is old
    else:
        assert legal
        assert instances.instance(store.db, receipt.instance_id).state is new


# -- lists


def test_studies_are_found_by_words_without_case_and_accents(store: Store) -> None:
    commit(store, draft(store, study="1.1", name="Müller^Jörg", patient_id="A-1"))
    commit(store, draft(store, study="1.2", name="Mueller^Jane", patient_id="100%_sure"))
    commit(store, draft(store, study="1.3", name="O'Brien^%", description="Knee"))

    def names(text: str) -> set[str]:
        return {s.patient_name for s in studies.search(store.db, studies.Search(text=text))}

    assert names("muller") == {"Müller^Jörg"}
    assert names("JORG müll") == {"Müller^Jörg"}
    assert names("100%_") == {"Mueller^Jane"}
    assert names("%") == {"Mueller^Jane", "O'Brien^%"}
    assert names("_") == {"Mueller^Jane"}
    assert names("!") == set()
    assert names("o'brien knee") == {"O'Brien^%"}
    assert names("knee muller") == set()
    assert names("' OR 1=1 --") == set()
    assert len(names("")) == 3


def test_studies_are_narrowed_by_modality_state_and_page(store: Store) -> None:
    for number, modality in enumerate(("CT", "MR", "CT"), start=1):
        commit(store, draft(store, study=f"1.{number}", modality=modality, received_ms=number))
    found = studies.search(store.db, studies.Search(modality="CT"))
    assert [one.study_instance_uid for one in found] == ["1.3", "1.1"]
    assert studies.search(store.db, studies.Search(modality="C")) == []
    second = studies.search(store.db, studies.Search(limit=1, offset=1))
    assert [one.study_instance_uid for one in second] == ["1.2"]
    with store.db.write() as tx:
        studies.set_state(tx, StudyId(second[0].id), StudyState.VERIFIED, actor="eve")
    found = studies.search(store.db, studies.Search(state=StudyState.VERIFIED))
    assert [one.study_instance_uid for one in found] == ["1.2"]


def test_a_list_changes_its_tag_when_it_may_differ(store: Store) -> None:
    before = studies.last_change(store.db)
    assert studies.last_change(store.db) == before
    receipt = commit(store, draft(store))
    after = studies.last_change(store.db)
    assert after != before
    with store.db.write() as tx:
        studies.set_state(tx, receipt.study_id, StudyState.HELD, actor="eve")
    assert studies.last_change(store.db) != after
