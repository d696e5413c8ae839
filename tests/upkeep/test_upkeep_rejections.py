"""What rejection notes that came from elsewhere do: to what is here, on the line, yet to come."""

import threading
from collections.abc import Callable

import pytest
from harness import notes
from harness.notes import QUALITY, RETENTION, SAFETY, WORKLIST
from harness.waiting import until
from store.making import add_destination, claim_one, take_in, take_in_part
from store.ordering import image, order
from test_cli import Node, node, say  # noqa: F401  fixtures

from edgepacs.custody import amendment
from edgepacs.errors import Conflict, NotFound
from edgepacs.model import DeliveryState, InstanceId, InstanceState, Origin, StudyId
from edgepacs.store import (
    Store,
    audit,
    catalogue,
    claims,
    corrections,
    deliveries,
    fsck,
    instances,
    rebuild,
    rejections,
    retrievals,
    routing,
    rules,
    studies,
)
from edgepacs.store.catalogue import Level, Query
from edgepacs.store.rejections import Rejection, Title
from edgepacs.store.retrievals import Keys
from edgepacs.upkeep.rejections import heed, read_waiting

STUDY = StudyId(1)
UIDS = {Level.STUDY: 0x0020000D, Level.SERIES: 0x0020000E, Level.IMAGE: 0x00080018}
STUDY_INSTANCES, SERIES_INSTANCES, MODALITIES = 0x00201208, 0x00201209, 0x00080061


def note(store: Store, *named: str, title: str = WORKLIST, source: str = "CT1") -> InstanceId:
    """A rejection note arrives and is read; its instance."""
    number = take_in_part(store, notes.rejection(named, title=title), source=source).instance_id
    assert read_waiting(store) == 1
    assert read_waiting(store) == 0
    return number


def offered(store: Store, level: Level, *more: int) -> list[tuple[str, ...]]:
    """What C-FIND would answer, besides key objects."""
    rows = catalogue.find(store.db, Query(level=level, criteria={}), 100)
    tags = [UIDS[level], *more]
    if level is not Level.STUDY:
        tags.append(0x00080060)
    found = catalogue.answers(store.db, level, rows, tags)
    if level is Level.STUDY:
        return found
    return [one[:-1] for one in found if one[-1] != "KO"]


def retrieved(store: Store, study: str = "1.2.3.1") -> list[str]:
    """What C-MOVE and C-GET would bring, besides key objects."""
    found = retrievals.named(store.db, Keys(studies=[study]), 100)  # type: ignore[list-item]
    return [str(one.sop_instance_uid) for one in found if one.sop_class_uid != notes.KEY_OBJECTS]


def state_of(store: Store, sop: str) -> list[tuple[str, str]]:
    """State and last error of the deliveries of what stands for a UID."""
    with store.db.read() as tx:
        sql = (
            "SELECT delivery.state, last_error FROM delivery "
            "JOIN instance ON instance.id = subject "
            "WHERE sop_instance_uid = ? AND instance.state = 'stored' ORDER BY delivery.id"
        )
        return [(row[0], row[1]) for row in tx.rows(sql, sop)]


def acts(store: Store, act: str, study: StudyId = STUDY) -> list[tuple[str, str]]:
    return [
        (one.actor, one.detail)
        for one in audit.of_subject(store.db, "study", study)
        if one.act == act
    ]


def assert_counted(store: Store) -> None:
    """What is counted as hidden is what stands and is hidden; the trail is whole."""
    with store.db.read() as tx:
        for table in ("study", "series"):
            sql = (
                f"SELECT id, hidden_count, (SELECT COUNT(*) FROM instance "
                f"WHERE {table} = {table}.id AND state = 'stored' AND hidden) FROM {table}"
            )
            for number, counted, there in tx.rows(sql):
                assert counted == there, (table, number)
    assert audit.broken_at(store.db) is None
    assert fsck.check(store).sound


@pytest.mark.parametrize("title", [SAFETY, WORKLIST, RETENTION])
def test_what_a_note_names_is_neither_sent_nor_offered_and_stays(store: Store, title: str) -> None:
    add_destination(store)
    for sop, series in (("1.1", "1.2.3.2"), ("1.2", "1.2.3.2"), ("1.3", "1.2.3.3")):
        take_in(store, sop=sop, series=series)
    number = note(store, "1.1", "1.3", title=title)
    gone = ("cancelled", rejections.WORDS)
    assert [state_of(store, sop) for sop in ("1.1", "1.2", "1.3")] == [
        [gone],
        [("queued", "")],
        [gone],
    ]
    sent_on = instances.instance(store.db, number)
    assert state_of(store, sent_on.sop_instance_uid) == [("queued", "")]
    assert offered(store, Level.IMAGE) == [("1.2",)]
    assert offered(store, Level.SERIES, SERIES_INSTANCES) == [("1.2.3.2", "1")]
    assert offered(store, Level.STUDY, STUDY_INSTANCES) == [("1.2.3.1", "2")]  # and the note
    assert retrieved(store) == ["1.2"]
    study = studies.study(store.db, STUDY)
    assert (study.flags, study.instance_count) == (rejections.FLAG, 4)
    (told,) = rejections.of_study(store.db, STUDY)
    assert (told.note, told.title, told.instances, told.source) == (number, title, 2, "CT1")
    words = f"2 instances, {Title(title).meaning}, by instance {number}"
    assert acts(store, "instances rejected") == [("CT1", words)]
    assert_counted(store)


def test_a_study_of_nothing_else_is_not_found(store: Store) -> None:
    take_in(store, sop="1.1")
    take_in(store, sop="2.1", study="1.9", patient_id="P9")
    take_in_part(store, notes.rejection(["1.1"], study="1.9.9"))
    read_waiting(store)
    assert ("1.2.3.1",) not in offered(store, Level.STUDY)
    assert ("1.9",) in offered(store, Level.STUDY)
    assert ("P1",) not in [
        one[1:] for one in offered(store, Level.STUDY, 0x00100020) if one[0] == "1.2.3.1"
    ]
    assert offered(store, Level.SERIES) == [("1.2.3.2",)]
    assert retrieved(store) == []


def test_what_is_of_poor_quality_is_marked_and_still_offered(store: Store) -> None:
    add_destination(store)
    take_in(store, sop="1.1")
    note(store, "1.1", title=QUALITY)
    assert state_of(store, "1.1") == [("cancelled", rejections.WORDS)]
    assert offered(store, Level.IMAGE) == [("1.1",)]
    assert retrieved(store) == ["1.1"]
    assert studies.study(store.db, STUDY).flags == rejections.FLAG
    note(store, "1.1", title=SAFETY)  # a weightier one later
    assert offered(store, Level.IMAGE) == []
    assert len(acts(store, "instances rejected")) == 2
    assert_counted(store)


def test_what_comes_after_its_note_is_treated_the_same(store: Store) -> None:
    add_destination(store)
    note(store, "1.1", "1.2", title=SAFETY)
    assert studies.study(store.db, STUDY).flags == ""
    with store.vault.writing():
        take_in(store, sop="1.1")
    take_in(store, sop="1.3")
    assert state_of(store, "1.1") == [("cancelled", rejections.WORDS)]
    assert state_of(store, "1.3") == [("queued", "")]
    assert offered(store, Level.IMAGE) == [("1.3",)]
    (row,) = acts(store, "instances rejected")
    assert row[1].startswith("1 instances, Rejected for Patient Safety Reasons")
    assert studies.study(store.db, STUDY).flags == rejections.FLAG
    assert_counted(store)


def test_a_person_sends_it_all_the_same_and_nobody_objects_twice(store: Store) -> None:
    add_destination(store)
    take_in(store, sop="1.1")
    note(store, "1.1")
    with store.db.write() as tx:
        deliveries.retry(tx, deliveries.Selection(study=STUDY), actor="mara")
    again = notes.rejection(["1.1"], title=WORKLIST)
    take_in_part(store, again)
    take_in(store, sop="1.1")  # sent once more by the modality
    read_waiting(store)
    assert state_of(store, "1.1")[0][0] == "queued"


def test_a_note_of_another_ae_counts_and_the_trail_says_so(store: Store) -> None:
    take_in(store, sop="1.1")
    note(store, "1.1", source="WORKSTATION")
    ((actor, words),) = acts(store, "instances rejected")
    assert actor == "WORKSTATION"
    assert words.endswith("which did not come from where they did")
    assert offered(store, Level.IMAGE) == []


@pytest.mark.parametrize("came_back", [True, False])
def test_what_is_on_the_line_is_seen_to_when_it_has_come_back(
    store: Store, *, came_back: bool
) -> None:
    destination = add_destination(store)
    take_in(store, sop="1.1")
    claimed = claim_one(store, destination)
    note(store, "1.1")
    assert state_of(store, "1.1") == [("sending", "")]
    if came_back:
        claims.give_back(store.db, [claimed.id], result="the line broke")
        again = claims.claim(store.db, destination, 9)
        assert [one.instance for one in again] != []  # the note itself
        assert claimed.instance not in [one.instance for one in again]
    else:
        claims.finish(store.db, claimed.id, DeliveryState.SENT, result="0000")
    read_waiting(store)
    assert state_of(store, "1.1")[0][0] == ("cancelled" if came_back else "sent")
    with store.db.read() as tx:
        assert tx.rows("SELECT * FROM rejected_under_way") == []


@pytest.mark.parametrize("origin", [Origin.LOCAL, Origin.PREFETCH])
def test_notes_made_here_and_fetched_ones_reject_nothing_here(store: Store, origin: Origin) -> None:
    take_in(store, sop="1.1")
    take_in_part(store, notes.rejection(["1.1"]), origin=origin)
    assert read_waiting(store) == 0
    assert offered(store, Level.IMAGE) == [("1.1",)]


def test_a_note_that_cannot_be_read_is_passed_over_and_says_why(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepacs.custody.rejection.MAX_NOTE", 1 << 10)
    take_in(store, sop="1.1")
    take_in_part(store, notes.rejection([f"1.2.{one}" for one in range(50)]))
    read_waiting(store)
    note(store, "1.1")
    with store.db.read() as tx:
        rows = tx.rows("SELECT title, named, words, read_ms > 0 FROM rejection_note ORDER BY 1")
    assert rows == [("", 0, "rejection note: longer than 0 MiB", 1), (WORKLIST, 1, "", 1)]
    assert offered(store, Level.IMAGE) == []


def test_other_key_objects_change_nothing(store: Store) -> None:
    take_in(store, sop="1.1")
    note(store, "1.1", title="113000")  # Of Interest
    assert offered(store, Level.IMAGE) == [("1.1",)]
    assert rejections.of_study(store.db, STUDY) == []


def test_a_long_note_is_taken_in_portions_and_goes_on_after_a_crash(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "_AT_ONCE", 2)
    add_destination(store)
    uids = [f"1.{one}" for one in range(1, 6)]
    for sop in uids:
        take_in(store, sop=sop)
    whole = rejections._reject_some
    portions: list[int] = []

    def broken(*given: object) -> None:
        portions.append(1)
        if len(portions) == 2:
            raise MemoryError
        whole(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rejections, "_reject_some", broken)
    take_in_part(store, notes.rejection(uids))
    with pytest.raises(MemoryError):
        read_waiting(store)
    assert [state_of(store, sop)[0][0] for sop in uids] == ["cancelled"] * 2 + ["queued"] * 3
    with store.db.write() as tx:
        deliveries.retry(tx, deliveries.Selection(study=STUDY), actor="mara")
    assert read_waiting(store) == 1
    assert [state_of(store, sop)[0][0] for sop in uids] == ["queued"] * 2 + ["cancelled"] * 3
    assert offered(store, Level.IMAGE) == []
    assert sum(int(words.split()[0]) for _, words in acts(store, "instances rejected")) == 5
    assert_counted(store)


def test_it_goes_nowhere_else_when_rules_apply_anew(store: Store) -> None:
    take_in(store, sop="1.1")
    take_in(store, sop="1.2")
    note(store, "1.1")
    add_destination(store)
    with store.db.write() as tx:
        for one in rules.within(tx):
            rules.remove(tx, one.id, actor="test")
        rules.add(tx, to="pacs", match="state=verified", hold=False, priority=0, actor="test")
        tx.run("UPDATE study SET state = 'verified'")
        routing.study_changed(tx, STUDY, "state")
    assert state_of(store, "1.1") == []
    assert state_of(store, "1.2") == [("queued", "")]


def evicted(store: Store, number: InstanceId) -> None:
    with store.db.write() as tx:
        former = instances.move(tx, number, InstanceState.EVICTED, actor="test")
    store.vault.remove(former.object_id)


def corrected(store: Store, number: InstanceId) -> None:
    with store.db.write() as tx:
        corrections.ask(tx, instances.within(tx, number).study, actor="mara")
    assert amendment.carry_out_waiting(store) == 1


@pytest.mark.parametrize("act", [evicted, corrected])
def test_what_is_hidden_stays_so_whatever_becomes_of_it(
    store: Store, act: Callable[[Store, InstanceId], None]
) -> None:
    order(store)
    number = image(store, sop="1.1", PatientName="Roe^Rich", PatientID="P2").instance_id
    image(store, sop="1.2", PatientName="Roe^Rich", PatientID="P2")
    note(store, "1.1")
    act(store, number)
    assert ("1.1",) not in offered(store, Level.IMAGE)
    assert "1.1" not in retrieved(store)
    assert_counted(store)


def test_a_note_that_does_not_count_is_withdrawn(store: Store) -> None:
    add_destination(store)
    take_in(store, sop="1.1")
    first, second = note(store, "1.1"), note(store, "1.1", title=SAFETY)
    with store.db.write() as tx:
        assert rejections.withdraw(tx, first, actor="mara") == 1
    assert offered(store, Level.IMAGE) == []
    with store.db.write() as tx:
        assert rejections.withdraw(tx, second, actor="mara") == 1
    assert offered(store, Level.IMAGE) == [("1.1",)]
    assert studies.study(store.db, STUDY).flags == ""
    assert rejections.of_study(store.db, STUDY) == list[Rejection]()
    assert state_of(store, "1.1")[0][0] == "cancelled"
    words = [("mara", f"note: instance {one}") for one in (first, second)]
    assert acts(store, "rejection withdrawn") == words
    assert read_waiting(store) == 0
    assert_counted(store)
    with store.db.write() as tx, pytest.raises(Conflict):
        rejections.withdraw(tx, second, actor="mara")
    with store.db.write() as tx, pytest.raises(NotFound):
        rejections.withdraw(tx, InstanceId(1), actor="mara")


def test_a_lost_index_learns_from_its_notes_again(store: Store) -> None:
    take_in(store, sop="1.1")
    take_in(store, sop="1.2")
    note(store, "1.1")
    config = store.config
    store.close()
    for path in config.data_dir.glob("index*"):
        path.unlink()
    assert rebuild.rebuild(config).instances == 3
    again = Store.open(config)
    try:
        assert read_waiting(again) == 1
        assert offered(again, Level.IMAGE) == [("1.2",)]
        assert_counted(again)
    finally:
        again.close()


def test_notes_are_read_behind_the_acknowledgement(store: Store) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=heed, args=(store, stop))
    thread.start()
    try:
        take_in(store, sop="1.1")
        take_in_part(store, notes.rejection(["1.1"]))
        until(lambda: offered(store, Level.IMAGE) == [], "the note is read")
    finally:
        stop.set()
        thread.join()


def test_the_command_line_shows_notes_and_withdraws_them(node: Node) -> None:  # noqa: F811
    store = Store.open(node.config)
    take_in(store, sop="1.1")
    take_in(store, sop="1.2")
    number = note(store, "1.1", "1.2")
    store.close()
    (told,) = node.data("study", "show", "1")["rejections"]  # type: ignore[call-overload]
    assert (told["note"], told["title"], told["instances"]) == (number, WORKLIST, 2)
    assert "2 instances are rejected by note 3" in node.done("study", "show", "1")
    assert node.data("study", "withdraw", str(number)) == {"withdrawn": number, "instances": 2}
    assert node.data("study", "show", "1")["rejections"] == []  # type: ignore[call-overload]
    assert node("study", "withdraw", str(number)).code == 65
