"""Corrections of whole studies: carried out, gone back from, sent once more, rebuilt."""

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from harness import made
from harness.part10 import IMPLICIT_LE, decode
from harness.waiting import until
from pydicom.dataset import Dataset
from store.making import add_destination, deliveries_of, objects, take_in_part
from store.ordering import CT_OF_DOE, DOE, UID_OF_ORDER, found, image, match, order

from edgepacs.clock import wall_ms
from edgepacs.custody import amendment, ingest, restore
from edgepacs.custody.outgoing import outgoing
from edgepacs.errors import Conflict, EdgePacsError, NoRoom
from edgepacs.model import (
    Arrival,
    CorrectionState,
    DeliveryState,
    EntryState,
    InstanceState,
    Mismatch,
    Outcome,
    StudyId,
    WorklistMatch,
)
from edgepacs.store import (
    Store,
    audit,
    claims,
    corrections,
    fsck,
    hours,
    instances,
    rebuild,
    reconciliation,
    studies,
    worklist,
)
from edgepacs.store.corrections import Correction
from edgepacs.store.instances import Instance
from edgepacs.store.worklist import Patient
from edgepacs.upkeep import comparison
from edgepacs.upkeep.matching import PAST_DAYS, reconcile, retire_past

WRONG = {"PatientID": "P2", "PatientName": "Roe^Rich", "PatientSex": "M"}
S, W = CorrectionState, WorklistMatch


def asked(store: Store, study: StudyId) -> int:
    with store.db.write() as tx:
        return corrections.ask(tx, study, actor="mara")


def done(store: Store, study: StudyId) -> Correction:
    """A correction asked for and carried out."""
    asked(store, study)
    assert amendment.carry_out_waiting(store) == 1
    return corrections.of_study(store.db, study)[0]


def standing(store: Store, sop: str) -> Instance:
    one = instances.stored_version(store.db, sop)  # type: ignore[arg-type]
    assert one is not None
    return one


def what_goes_out(store: Store, sop: str) -> Dataset:
    one = standing(store, sop)
    going = outgoing(store, one, {one.transfer_syntax_uid})
    return decode(b"".join(going.chunks), going.transfer_syntax_uid)


def versions(store: Store, sop: str) -> list[str]:
    with store.db.read() as tx:
        sql = "SELECT state FROM instance WHERE sop_instance_uid = ? ORDER BY id"
        return [row[0] for row in tx.rows(sql, sop)]


def queued(store: Store) -> list[tuple[str, str]]:
    return [(state, reason) for state, reason, _, _ in deliveries_of(store)]


def test_a_study_of_the_wrong_patient_becomes_that_of_its_order(store: Store) -> None:
    entry = order(store)
    add_destination(store)
    study = image(store, sop="1.1", **WRONG).study_id
    image(store, sop="1.2", SeriesInstanceUID="1.2.3.9", **WRONG)
    assert queued(store) == [("held", "order")] * 2
    correction = done(store, study)
    assert (correction.state, correction.instances, correction.result) == (S.DONE, 2, study)
    assert correction.sides[Mismatch.ID] == ("P2", "P1")
    row = studies.study(store.db, study)
    assert (row.patient_id, row.patient_name, row.sex) == ("P1", "Doe^Jane", "F")
    assert (row.instance_count, row.series_count, row.flags) == (2, 2, "")
    assert studies.search(store.db, studies.Search(text="roe")) == []
    assert [one.id for one in studies.search(store.db, studies.Search(text="doe"))] == [study]
    assert match(store, study) is W.MATCHED
    assert found(store, study).entry == entry
    assert queued(store) == [("superseded", "")] * 2 + [("queued", "")] * 2
    for sop in ("1.1", "1.2"):
        new = what_goes_out(store, sop)
        assert (new.PatientID, new.PatientName, new.SOPInstanceUID) == ("P1", "Doe^Jane", sop)
        (item,) = new.OriginalAttributesSequence
        assert item.ModifyingSystem == "EdgePACS EDGEPACS"
        assert item.ModifiedAttributesSequence[0].PatientID == "P2"
        assert versions(store, sop) == ["superseded", "stored"]
    assert studies.counts(store.db)["patient"] == 1
    assert fsck.check(store).sound
    acts = [one.act for one in audit.of_subject(store.db, "study", study)]
    assert {"correction asked for", "study corrected", "study matched"} <= set(acts)


def test_the_received_version_stays_retrievable(store: Store) -> None:
    order(store)
    receipt = image(store, sop="1.1", **WRONG)
    received = instances.instance(store.db, receipt.instance_id)
    before = b"".join(restore.received_chunks(store, received))
    done(store, receipt.study_id)
    former = instances.instance(store.db, receipt.instance_id)
    assert former.state is InstanceState.SUPERSEDED
    assert standing(store, "1.1").corrects == former.id
    assert b"".join(restore.received_chunks(store, former)) == before


def test_going_back_is_one_act(store: Store) -> None:
    order(store, laterality="R")
    add_destination(store)
    study = image(store, sop="1.1", Laterality="L", **WRONG).study_id
    before = what_goes_out(store, "1.1")
    correction = done(store, study)
    assert [one.laterality for one in studies.series_of(store.db, study)] == ["R"]
    count = len(objects(store))
    amendment.revert(store, correction.id, actor="mara")
    assert len(objects(store)) == count - 1
    assert versions(store, "1.1") == ["stored", "discarded"]
    assert what_goes_out(store, "1.1") == before
    row = studies.study(store.db, study)
    assert (row.patient_id, row.patient_name, row.instance_count) == ("P2", "Roe^Rich", 1)
    assert [one.laterality for one in studies.series_of(store.db, study)] == ["L"]
    assert match(store, study) is W.MISMATCHED
    assert queued(store) == [("held", "order"), ("superseded", "")]
    assert corrections.of_study(store.db, study)[0].state is S.REVERTED
    assert fsck.check(store).sound
    with pytest.raises(Conflict):
        amendment.revert(store, correction.id, actor="mara")
    assert done(store, study).state is S.DONE
    assert what_goes_out(store, "1.1").PatientID == "P1"
    assert [state for state, _ in queued(store)].count("queued") == 1


def test_what_has_left_is_not_gone_back_from(store: Store) -> None:
    order(store)
    destination = add_destination(store)
    study = image(store, sop="1.1", **WRONG).study_id
    correction = done(store, study)
    assert len(claims.claim(store.db, destination, 5)) == 1
    with pytest.raises(Conflict, match="sent"):
        amendment.revert(store, correction.id, actor="mara")


def test_another_order_corrects_what_was_received_anew(store: Store) -> None:
    order(store)
    other = order(
        store,
        replace(CT_OF_DOE, patient=Patient(patient_id="P3", name="Third^Theo")),
        key="3",
        study_instance_uid="1.2.33",
        accession_number="A3",
    )
    study = image(store, sop="1.1", **WRONG).study_id
    first = done(store, study)
    with store.db.write() as tx:
        reconciliation.link(tx, study, other, actor="mara")
    second = done(store, study)
    new = what_goes_out(store, "1.1")
    assert (new.PatientID, new.AccessionNumber, new.StudyInstanceUID) == ("P3", "A3", UID_OF_ORDER)
    (item,) = new.OriginalAttributesSequence
    assert item.ModifiedAttributesSequence[0].PatientID == "P2"
    assert versions(store, "1.1") == ["superseded", "discarded", "stored"]
    states = {one.id: one.state for one in corrections.of_study(store.db, study)}
    assert states == {first.id: S.REVERTED, second.id: S.DONE}
    assert fsck.check(store).sound
    amendment.revert(store, second.id, actor="mara")
    assert what_goes_out(store, "1.1").PatientID == "P2"


def test_back_to_the_order_it_was_received_with(store: Store) -> None:
    """Linked to another by mistake and corrected by it: nothing of the received differs."""
    order(store)
    mistaken = order(
        store,
        replace(CT_OF_DOE, patient=Patient(patient_id="P3", name="Third^Theo")),
        key="3",
        study_instance_uid="1.2.33",
    )
    study = image(store, sop="1.1", PatientName="Doe^Jane").study_id
    with store.db.write() as tx:
        reconciliation.link(tx, study, mistaken, actor="mara")
    done(store, study)
    with store.db.write() as tx:
        reconciliation.link(tx, study, None, actor="mara")
    done(store, study)
    assert versions(store, "1.1") == ["stored", "discarded"]
    assert "OriginalAttributesSequence" not in what_goes_out(store, "1.1")
    assert match(store, study) is W.MATCHED


def test_what_applying_cannot_change_is_kept_as_it_is(store: Store) -> None:
    order(store, station_ae="CT9")
    add_destination(store)
    study = image(store, **WRONG).study_id
    done(store, study)
    assert found(store, study).flags == (Mismatch.STATION,)
    assert match(store, study) is W.KEPT
    assert ("queued", "") in queued(store)


def test_what_comes_late_joins_the_others_when_it_is_corrected_too(store: Store) -> None:
    order(store)
    study = image(store, sop="1.1", **WRONG).study_id
    done(store, study)
    late = image(store, sop="1.2", **WRONG).study_id
    assert late != study
    assert match(store, late) is W.MISMATCHED
    correction = done(store, late)
    assert correction.result == study
    row = studies.study(store.db, study)
    assert row.instance_count == 2
    assert studies.study(store.db, late).instance_count == 0
    amendment.revert(store, correction.id, actor="mara")
    assert what_goes_out(store, "1.2").PatientID == "P2"


def test_sent_once_more_it_is_what_was_corrected(store: Store) -> None:
    order(store)
    receipt = image(store, sop="1.1", **WRONG)
    received = instances.instance(store.db, receipt.instance_id)
    done(store, receipt.study_id)
    data = b"".join(restore.received_chunks(store, received))
    again = _again(store, received, data)
    assert again == standing(store, "1.1").id
    assert versions(store, "1.1") == ["superseded", "stored"]
    assert fsck.check(store).sound


def _again(store: Store, one: Instance, data: bytes) -> int:
    arrival = Arrival(
        sop_class_uid=one.sop_class_uid,
        sop_instance_uid=one.sop_instance_uid,
        transfer_syntax_uid=one.received_syntax_uid,
        origin=one.origin,
        source=one.source,
    )
    receipt = ingest.receive(store, arrival, [data])
    assert receipt.outcome is Outcome.DUPLICATE
    return receipt.instance_id


def test_the_same_in_another_encoding_is_no_conflict(store: Store) -> None:
    order(store)
    receipt = image(store, sop="1.1", **WRONG)
    dataset = what_goes_out(store, "1.1")
    done(store, receipt.study_id)
    take_in_part(store, made.instance(dataset, IMPLICIT_LE))
    assert versions(store, "1.1") == ["superseded", "stored", "comparing"]
    comparison.compare_waiting(store)
    assert versions(store, "1.1") == ["superseded", "stored", "discarded"]


def test_a_lost_index_comes_back_with_what_was_corrected(store: Store) -> None:
    order(store)
    study = image(store, sop="1.1", **WRONG).study_id
    image(store, sop="1.2", SeriesInstanceUID="1.2.3.9", **WRONG)
    done(store, study)
    config = store.config
    store.close()
    config_path = config.data_dir / "index.db"
    for path in config_path.parent.glob("index*"):
        path.unlink()
    rebuilt = rebuild.rebuild(config)
    assert (rebuilt.instances, rebuilt.corrected) == (4, 2)
    with_new_index = Store.open(config)
    try:
        assert versions(with_new_index, "1.1") == ["superseded", "stored"]
        assert standing(with_new_index, "1.2").corrects is not None
        (row,) = studies.search(with_new_index.db, studies.Search())
        assert (row.patient_id, row.instance_count, row.flags) == ("P1", 2, "")
        assert fsck.check(with_new_index).sound
    finally:
        with_new_index.close()


def test_what_a_crash_leaves_is_swept_and_begins_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(store)
    study = image(store, sop="1.1", **WRONG).study_id
    asked(store, study)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(corrections, "finish", die)
        with pytest.raises(Killed):
            amendment.carry_out_waiting(store)
    assert len(objects(store)) == 2
    assert fsck.sweep(store).removed == 1
    assert versions(store, "1.1") == ["stored"]
    amendment.carry_out_waiting(store)
    assert match(store, study) is W.MATCHED


def test_what_fails_changes_nothing_and_says_why(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(store)
    study = image(store, sop="1.1", **WRONG).study_id
    image(store, sop="1.2", **WRONG)
    asked(store, study)
    with pytest.raises(Conflict, match="already"):
        asked(store, study)

    def full() -> None:
        raise NoRoom("vault: below its reserve")

    with monkeypatch.context() as patched:
        patched.setattr(store.vault, "require_room", full)
        amendment.carry_out_waiting(store)
    (correction,) = corrections.of_study(store.db, study)
    assert (correction.state, correction.words) == (S.FAILED, "vault: below its reserve")
    assert versions(store, "1.1") == ["stored"]
    assert len(objects(store)) == 2
    assert done(store, study).state is S.DONE


def test_what_is_on_the_line_is_waited_for(store: Store) -> None:
    order(store)
    destination = add_destination(store)
    study = image(store, sop="1.1").study_id
    image(store, sop="1.2")
    other = order(store, replace(CT_OF_DOE, patient=replace(DOE, patient_id="P4")), key="4")
    assert len(claims.claim(store.db, destination, 2)) == 2
    with store.db.write() as tx:
        reconciliation.link(tx, study, other, actor="mara")
    asked(store, study)
    assert amendment.carry_out_waiting(store) == 0
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'queued' WHERE state = 'sending'")
    assert amendment.carry_out_waiting(store) == 1
    assert what_goes_out(store, "1.1").PatientID == "P4"


def test_nothing_is_asked_for_where_there_is_nothing_to_correct(store: Store) -> None:
    entry = order(store)
    study = image(store).study_id
    with pytest.raises(EdgePacsError, match="what its order says"):
        asked(store, study)
    alone = image(store, StudyInstanceUID="1.9", PatientID="P9", AccessionNumber="").study_id
    with pytest.raises(EdgePacsError, match="link one"):
        asked(store, alone)
    with store.db.read() as tx:
        assert worklist.entry(tx, entry).id == entry
    assert DeliveryState.HELD not in [state for state, _ in queued(store)]


def test_where_the_former_is_already_the_corrected_waits_for_a_person(store: Store) -> None:
    """A peer that never overwrites would answer success and keep what it has."""
    order(store)
    first = add_destination(store)
    study = image(store, sop="1.1", PatientName="Doe^Jane").study_id
    image(store, sop="1.2", PatientName="Doe^Jane")
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'sent' WHERE id = 1")
        merged = Patient(patient_id="REAL", name="Doe^Jane")
        worklist.merge_patient(tx, gone=("P1", ""), into=merged, actor="RIS")
    reconciliation.look(store.db)
    assert queued(store) == [("sent", ""), ("held", "order")]
    done(store, study)
    assert queued(store) == [
        ("sent", ""),
        ("superseded", ""),
        ("queued", ""),
        ("held", "person"),
    ]
    with store.db.read() as tx:
        row = tx.first("SELECT destination, last_error FROM delivery WHERE id = 4")
    assert row == (first, corrections.THERE)


def test_upkeep_looks_and_carries_out(store: Store) -> None:
    order(store, key="other", study_instance_uid="1.9", accession_number="Z")
    study = image(store, sop="1.1", PatientID="P2", PatientName="Roe^Rich").study_id
    assert match(store, study) is W.UNMATCHED
    order(store)
    stop = threading.Event()
    worker = threading.Thread(target=reconcile, args=(store, stop))
    worker.start()
    try:
        until(lambda: match(store, study) is W.MISMATCHED, "the order found")
        asked(store, study)
        until(lambda: match(store, study) is W.MATCHED, "the study corrected")
    finally:
        stop.set()
        worker.join()
    assert what_goes_out(store, "1.1").PatientID == "P1"


def test_carried_out_by_two_processes_it_is_done_once(store: Store) -> None:
    order(store)
    study = image(store, sop="1.1", **WRONG).study_id
    asked(store, study)
    (wanted,) = corrections.waiting(store.db)
    amendment.carry_out(store, wanted)
    amendment.carry_out(store, wanted)
    assert [one.state for one in corrections.of_study(store.db, study)] == [S.DONE]
    assert versions(store, "1.1") == ["superseded", "stored"]
    assert fsck.check(store).sound


def test_what_is_long_past_is_offered_no_more(store: Store) -> None:
    today = hours.day_of(wall_ms() / 1000)
    days = [today - timedelta(days=PAST_DAYS + more) for more in (-1, 1)]
    numbers = [
        order(store, key=day, study_instance_uid=f"1.9.{day}", start_date=day)
        for day in (f"{one:%Y%m%d}" for one in days)
    ]
    assert retire_past(store) == 1
    with store.db.read() as tx:
        states = [worklist.entry(tx, number).state for number in numbers]
    assert states == [EntryState.SCHEDULED, EntryState.RETIRED]
