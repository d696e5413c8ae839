"""What destinations get that had a study before it was corrected: hold, ADT, rejection note."""

from dataclasses import replace

import pytest
from custody.test_custody_amendment import WRONG, asked, done, standing, versions, what_goes_out
from harness.part10 import decode
from pydicom.dataset import Dataset
from store.making import add_destination
from store.ordering import CT_OF_DOE, UID_OF_ORDER, image, match, order

from edgepacs.custody import amendment, ingest, restore
from edgepacs.errors import Conflict, InvalidValue
from edgepacs.model import (
    Arrival,
    CorrectionPolicy,
    CorrectionState,
    EntryId,
    Kept,
    Outcome,
    StudyId,
    StudyState,
    WorklistMatch,
)
from edgepacs.store import (
    Store,
    announcing,
    corrections,
    destinations,
    evictions,
    fsck,
    instances,
    policies,
    rebuild,
    reconciliation,
    studies,
    worklist,
)
from edgepacs.store.announcing import Trigger
from edgepacs.store.worklist import Patient

P = CorrectionPolicy
KOS = "1.2.840.10008.5.1.4.1.1.88.59"


def pacs(store: Store, policy: CorrectionPolicy, name: str = "pacs") -> int:
    number = add_destination(store, name, name.upper())
    settings = {"correction": str(policy), "adt": "mllp://127.0.0.1:2575"}
    with store.db.write() as tx:
        destinations.change(tx, name, settings, actor="test")
    return number


def sent(store: Store, destination: int, *sops: str, state: str = "committed") -> None:
    """These instances, all there are where none is named, have reached a destination."""
    with store.db.write() as tx:
        names = ", ".join(f"'{sop}'" for sop in sops) or "SELECT sop_instance_uid FROM instance"
        tx.run(
            "UPDATE delivery SET state = ?, hold_reason = '' WHERE kind = 'instance' "
            "AND destination = ? AND subject IN "
            f"(SELECT id FROM instance WHERE state = 'stored' AND sop_instance_uid IN ({names}))",
            *(state, destination),
        )


def ledger(store: Store, destination: int) -> list[tuple[str, str, str]]:
    """Of each delivery to a destination the subject's SOP Instance UID, its state and why."""
    with store.db.read() as tx:
        return [
            (row[0], row[1], row[2])
            for row in tx.rows(
                "SELECT COALESCE(sop_instance_uid, kind), delivery.state, hold_reason "
                "FROM delivery LEFT JOIN instance ON kind = 'instance' AND instance.id = subject "
                "WHERE destination = ? ORDER BY delivery.id",
                destination,
            )
        ]


def standing_in(store: Store, study: StudyId) -> list[instances.Instance]:
    with store.db.read() as tx:
        return corrections.due(tx, study)


def waiting_for_notes(store: Store, destination: int) -> int:
    return [why for _, _, why in ledger(store, destination)].count("rejection")


def notes_in(store: Store, study: StudyId) -> list[instances.Instance]:
    """The rejection notes that stand in a study, in the order they were made."""
    with store.db.read() as tx:
        numbers = tx.rows(
            "SELECT id FROM instance WHERE study = ? AND sop_class_uid = ? AND state = 'stored' "
            "ORDER BY id",
            *(study, KOS),
        )
    return [instances.instance(store.db, row[0]) for row in numbers]


def note_of(store: Store, study: StudyId) -> tuple[instances.Instance, Dataset]:
    """The one rejection note of a study, decoded."""
    (one,) = notes_in(store, study)
    return one, decode(b"".join(restore.received_chunks(store, one)), one.received_syntax_uid)


def sent_before(store: Store, policy: CorrectionPolicy) -> tuple[int, StudyId]:
    """A study of the wrong patient, two instances of it at a destination."""
    order(store)
    destination = pacs(store, policy)
    study = image(store, sop="1.1", **WRONG).study_id
    image(store, sop="1.2", SeriesInstanceUID="1.2.3.9", **WRONG)
    sent(store, destination)
    return destination, study


def test_what_is_there_is_rejected_and_comes_again_under_other_uids(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    assert [(one.policy, one.instances) for one in policies.planned(store.db, study)] == [
        (P.REJECT, tuple(one.id for one in standing_in(store, study)))
    ]
    correction = done(store, study)
    assert correction.state is CorrectionState.DONE
    assert correction.result is not None
    assert correction.result != study
    new = standing_in(store, correction.result)
    assert len(new) == 2
    note, said = note_of(store, study)
    assert said.PatientID == "P2"
    assert said.ConceptNameCodeSequence[0].CodeValue == "113038"
    named = [
        item.ReferencedSOPInstanceUID
        for series in said.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]
    assert sorted(named) == ["1.1", "1.2"]
    assert ledger(store, destination) == [
        ("1.1", "committed", ""),
        ("1.2", "committed", ""),
        (note.sop_instance_uid, "queued", ""),
        *((one.sop_instance_uid, "held", "rejection") for one in new),
    ]
    series = set()
    for one in new:
        sop = one.sop_instance_uid
        goes = what_goes_out(store, sop)
        assert goes.SOPInstanceUID == sop
        assert goes.PatientID == "P1"
        assert goes.StudyInstanceUID != UID_OF_ORDER  # under which it was rejected
        before = goes.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        assert before.StudyInstanceUID == UID_OF_ORDER
        assert before.SOPInstanceUID in named
        series.add(goes.SeriesInstanceUID)
    assert len(series) == 2
    assert not series & {"1.2.3.2", "1.2.3.9"}
    assert match(store, correction.result) is WorklistMatch.MATCHED
    assert match(store, study) is WorklistMatch.NONE
    assert studies.study(store.db, study).flags == "rejection-note"
    assert fsck.check(store).sound


@pytest.mark.parametrize("state", ["sent", "awaiting_commitment", "committed"])
def test_corrected_instances_wait_for_the_note(store: Store, state: str) -> None:
    destination, study = sent_before(store, P.REJECT)
    done(store, study)
    note, _ = note_of(store, study)
    assert corrections.release_after_notes(store.db) == 0
    assert [row[1] for row in ledger(store, destination)].count("held") == 2
    sent(store, destination, note.sop_instance_uid, state=state)
    assert corrections.release_after_notes(store.db) == 1
    assert [row[1] for row in ledger(store, destination)].count("queued") == 2
    assert corrections.release_after_notes(store.db) == 0


def test_the_order_names_the_study_where_it_was_sent_as_another(store: Store) -> None:
    entry = order(store)
    destination = pacs(store, P.REJECT)
    study = image(store, sop="1.1", StudyInstanceUID="1.2.99", **WRONG).study_id
    sent(store, destination)
    with store.db.write() as tx:
        reconciliation.link(tx, study, entry, actor="mara")
    result = done(store, study).result
    assert result is not None
    (one,) = standing_in(store, result)
    assert what_goes_out(store, one.sop_instance_uid).StudyInstanceUID == UID_OF_ORDER


def test_a_wrong_side_stays_in_its_study(store: Store) -> None:
    order(store, laterality="R")
    destination = pacs(store, P.ADT)  # which cannot say it
    study = image(store, sop="1.1", Laterality="L").study_id
    sent(store, destination)
    correction = done(store, study)
    assert correction.result == study
    (one,) = standing_in(store, study)
    goes = what_goes_out(store, one.sop_instance_uid)
    assert (goes.StudyInstanceUID, goes.Laterality) == (UID_OF_ORDER, "R")
    assert goes.SOPInstanceUID != "1.1"
    assert goes.SeriesInstanceUID != "1.2.3.2"
    note, _ = note_of(store, study)
    assert ledger(store, destination)[1:] == [
        (note.sop_instance_uid, "queued", ""),
        (one.sop_instance_uid, "held", "rejection"),
    ]
    assert studies.study(store.db, study).flags == ""
    sent(store, destination, note.sop_instance_uid)
    corrections.release_after_notes(store.db)
    assert ledger(store, destination)[-1] == (one.sop_instance_uid, "queued", "")
    assert "held" not in [state for _, state, _ in ledger(store, destination)]


def test_only_what_was_sent_is_rejected(store: Store) -> None:
    order(store)
    destination = pacs(store, P.REJECT)
    study = image(store, sop="1.1", **WRONG).study_id
    image(store, sop="1.2", **WRONG)
    sent(store, destination, "1.1")
    result = done(store, study).result
    assert result is not None
    _, said = note_of(store, study)
    (series,) = said.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == ["1.1"]
    rows = {sop: (state, why) for sop, state, why in ledger(store, destination)}
    assert rows["1.2"] == ("superseded", "")
    assert [rows[one.sop_instance_uid] for one in standing_in(store, result)] == [
        ("held", "rejection")
    ] * 2


def test_nothing_sent_nothing_rejected(store: Store) -> None:
    order(store)
    destination = pacs(store, P.REJECT)
    study = image(store, sop="1.1", **WRONG).study_id
    assert policies.planned(store.db, study) == []
    assert done(store, study).result == study
    assert ledger(store, destination) == [("1.1", "superseded", ""), ("1.1", "queued", "")]
    assert what_goes_out(store, "1.1").SOPInstanceUID == "1.1"


def test_destinations_get_each_their_own(store: Store) -> None:
    order(store)
    first, second = pacs(store, P.REJECT, "first"), pacs(store, P.HOLD, "second")
    third = pacs(store, P.REJECT, "third")
    study = image(store, sop="1.1", **WRONG).study_id
    sent(store, first)
    sent(store, second)
    result = done(store, study).result
    assert result is not None
    (one,) = standing_in(store, result)
    note, _ = note_of(store, study)
    assert ledger(store, first)[1:] == [
        (note.sop_instance_uid, "queued", ""),
        (one.sop_instance_uid, "held", "rejection"),
    ]
    assert ledger(store, second)[1:] == [(one.sop_instance_uid, "held", "person")]
    assert ledger(store, third) == [
        ("1.1", "superseded", ""),
        (one.sop_instance_uid, "queued", ""),
    ]


# --- ADT ---------------------------------------------------------------------------------------


def told(store: Store, correction: corrections.Correction) -> list[announcing.Announcement]:
    return announcing.of_correction(store.db, correction.id)


def test_other_demographics_are_told_by_a08(store: Store) -> None:
    order(store)
    destination = pacs(store, P.ADT)
    study = image(store, sop="1.1", PatientName="Deo^Jane").study_id
    sent(store, destination)
    correction = done(store, study)
    (message,) = told(store, correction)
    assert (message.trigger, message.patient.name, message.former_id) == (
        Trigger.A08,
        "Doe^Jane",
        "",
    )
    assert ledger(store, destination) == [
        ("1.1", "committed", ""),
        ("1.1", "superseded", ""),
        ("hl7", "queued", ""),
    ]
    assert what_goes_out(store, "1.1").PatientName == "Doe^Jane"


def test_a_temporary_id_is_given_up_by_a40(store: Store) -> None:
    temporary = worklist.temporary_id()
    entry = order(store)
    destination = pacs(store, P.ADT)
    study = image(
        store, sop="1.1", PatientID=temporary, StudyInstanceUID="1.2.9", AccessionNumber=""
    ).study_id
    sent(store, destination)
    with store.db.write() as tx:
        reconciliation.link(tx, study, entry, actor="mara")
    # An accession number it did not have is not said by ADT.
    assert [one.policy for one in policies.planned(store.db, study)] == [P.REJECT]
    with store.db.write() as tx:
        held = worklist.entry(tx, entry).entry
        worklist.change(tx, entry, replace(held, accession_number=""), actor="RIS")
    reconciliation.look(store.db)
    (message,) = told(store, done(store, study))
    assert (message.trigger, message.former_id) == (Trigger.A40, temporary)


def test_a_merge_that_came_late_is_passed_on(store: Store) -> None:
    order(store)
    destination = pacs(store, P.ADT)
    study = image(store, sop="1.1", PatientName="Doe^Jane").study_id
    sent(store, destination)
    with store.db.write() as tx:
        merged = Patient(patient_id="REAL", name="Doe^Jane")
        worklist.merge_patient(tx, gone=("P1", ""), into=merged, actor="RIS")
    reconciliation.look(store.db)
    assert [one.trigger for one in policies.planned(store.db, study)] == [Trigger.A40]
    (message,) = told(store, done(store, study))
    assert (message.trigger, message.former_id, message.patient.patient_id) == (
        Trigger.A40,
        "P1",
        "REAL",
    )


def renamed(store: Store, entry: EntryId, name: str) -> None:
    """What is known of the order's patient changes, and its studies are looked at anew."""
    with store.db.write() as tx:
        held = worklist.entry(tx, entry).entry
        patient = replace(held.patient, name=name)
        worklist.change(tx, entry, replace(held, patient=patient), actor="RIS")
    reconciliation.look(store.db)


def test_what_changes_again_is_told_again(store: Store) -> None:
    entry = order(store)
    destination = pacs(store, P.ADT)
    study = image(store, sop="1.1", PatientName="Deo^Jane").study_id
    sent(store, destination)
    done(store, study)
    renamed(store, entry, "Poe^Jane")
    (message,) = told(store, done(store, study))
    assert (message.trigger, message.patient.name) == (Trigger.A08, "Poe^Jane")
    renamed(store, entry, "Deo^Jane")  # as it was received
    (message,) = told(store, done(store, study))
    assert message.patient.name == "Deo^Jane"
    assert [row for row in ledger(store, destination) if row[1] == "queued"] == [
        ("hl7", "queued", "")
    ] * 3
    assert fsck.check(store).sound


def test_after_adt_what_it_cannot_say_is_rejected(store: Store) -> None:
    entry = order(store)
    destination = pacs(store, P.ADT)
    study = image(store, sop="1.1", PatientName="Deo^Jane", Laterality="L").study_id
    sent(store, destination)
    done(store, study)
    with store.db.write() as tx:
        held = worklist.entry(tx, entry).entry
        worklist.change(tx, entry, replace(held, laterality="R"), actor="RIS")
    reconciliation.look(store.db)
    result = done(store, study).result
    assert result is not None
    (one,) = standing_in(store, result)
    assert one.sop_instance_uid != "1.1"
    note, said = note_of(store, study)
    (series,) = said.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == ["1.1"]
    assert ledger(store, destination)[-2:] == [
        (note.sop_instance_uid, "queued", ""),
        (one.sop_instance_uid, "held", "rejection"),
    ]


def test_two_people_are_never_merged(store: Store) -> None:
    _, study = sent_before(store, P.ADT)
    assert [(one.policy, one.trigger) for one in policies.planned(store.db, study)] == [
        (P.REJECT, None)
    ]
    correction = done(store, study)
    assert told(store, correction) == []
    note_of(store, study)


def test_adt_needs_an_address(store: Store) -> None:
    add_destination(store, "bare", "BARE")
    with store.db.write() as tx:
        with pytest.raises(InvalidValue, match="adt"):
            destinations.change(tx, "bare", {"correction": "adt"}, actor="test")
        for wrong in ("http://pacs:1", "mllps://pacs", "mllp://192.0.2.1:2575", "mllps://pacs:1/x"):
            with pytest.raises(InvalidValue, match="adt"):
                destinations.change(tx, "bare", {"adt": wrong}, actor="test")
        good = {"correction": "adt", "adt": "mllps://pacs.example:2575"}
        destinations.change(tx, "bare", good, actor="test")


# --- late, again, back -------------------------------------------------------------------------


def test_what_comes_late_joins_the_corrected_and_waits_for_the_note(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    result = done(store, study).result
    late = image(store, sop="1.3", **WRONG).study_id
    assert late == study
    assert match(store, late) is WorklistMatch.MISMATCHED
    correction = done(store, late)
    assert correction.result == result
    assert result is not None
    assert studies.study(store.db, result).instance_count == 3
    assert studies.study(store.db, result).series_count == 2
    goes = what_goes_out(store, "1.3")
    assert goes.StudyInstanceUID == str(studies.study(store.db, result).study_instance_uid)
    assert ledger(store, destination)[-1] == ("1.3", "held", "rejection")


def test_corrected_instances_wait_for_every_note(store: Store) -> None:
    order(store, laterality="R")
    destination = pacs(store, P.REJECT)
    study = image(store, sop="1.1", Laterality="L").study_id
    sent(store, destination)
    done(store, study)
    (first,) = notes_in(store, study)
    image(store, sop="1.2", SeriesInstanceUID="1.2.3.9", Laterality="L")
    sent(store, destination, "1.2")
    done(store, study)
    _, second = notes_in(store, study)
    sent(store, destination, first.sop_instance_uid)
    assert corrections.release_after_notes(store.db) == 1
    assert waiting_for_notes(store, destination) == 2
    sent(store, destination, second.sop_instance_uid)
    assert corrections.release_after_notes(store.db) == 1
    assert waiting_for_notes(store, destination) == 0


def test_sent_once_more_it_is_what_was_corrected(store: Store) -> None:
    _, study = sent_before(store, P.REJECT)
    received = standing(store, "1.1")
    data = b"".join(restore.received_chunks(store, received))
    done(store, study)
    arrival = Arrival(
        sop_class_uid=received.sop_class_uid,
        sop_instance_uid=received.sop_instance_uid,
        transfer_syntax_uid=received.received_syntax_uid,
        origin=received.origin,
        source=received.source,
    )
    receipt = ingest.receive(store, arrival, [data])
    assert receipt.outcome is Outcome.DUPLICATE
    assert instances.instance(store.db, receipt.instance_id).corrects == received.id
    assert versions(store, "1.1") == ["superseded"]
    assert fsck.check(store).sound


def test_it_is_undone_while_nothing_has_left(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    correction = done(store, study)
    amendment.revert(store, correction.id, actor="mara")
    assert versions(store, "1.1") == ["stored"]
    assert match(store, study) is WorklistMatch.MISMATCHED
    states = [state for _, state, _ in ledger(store, destination)]
    assert states.count("committed") == 2
    assert set(states) == {"committed", "superseded"}
    assert studies.study(store.db, study).instance_count == 2
    assert "rejection-note" not in studies.study(store.db, study).flags
    assert fsck.check(store).sound
    assert done(store, study).state is CorrectionState.DONE


def test_it_is_not_undone_once_the_note_has_left(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    correction = done(store, study)
    note, _ = note_of(store, study)
    sent(store, destination, note.sop_instance_uid, state="sending")
    with pytest.raises(Conflict, match="sent"):
        amendment.revert(store, correction.id, actor="mara")


def test_what_was_told_is_not_undone(store: Store) -> None:
    order(store)
    destination = pacs(store, P.ADT)
    study = image(store, sop="1.1", PatientName="Deo^Jane").study_id
    sent(store, destination)
    correction = done(store, study)
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'sent' WHERE kind = 'hl7'")
    with pytest.raises(Conflict, match="ADT"):
        amendment.revert(store, correction.id, actor="mara")
    with store.db.write() as tx:
        tx.run("UPDATE delivery SET state = 'queued' WHERE kind = 'hl7'")
    amendment.revert(store, correction.id, actor="mara")
    assert ledger(store, destination)[-1] == ("hl7", "cancelled", "")


def test_corrected_again_what_was_sent_of_it_is_rejected_too(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    result = done(store, study).result
    assert result is not None
    sent(store, destination)
    other = order(
        store,
        replace(CT_OF_DOE, patient=Patient(patient_id="P3", name="Third^Theo")),
        key="3",
        study_instance_uid="1.2.33",
        accession_number="A3",
    )
    with store.db.write() as tx:
        reconciliation.link(tx, result, other, actor="mara")
    second = done(store, result)
    assert second.result not in (None, study, result)
    assert second.result is not None
    goes = what_goes_out(store, standing_in(store, second.result)[0].sop_instance_uid)
    assert (goes.PatientID, goes.StudyInstanceUID) == ("P3", "1.2.33")
    _, said = note_of(store, result)
    assert len(said.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence) == 2
    assert fsck.check(store).sound


def test_what_a_person_said_of_a_study_counts_for_what_became_of_it(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    with store.db.write() as tx:
        studies.set_state(tx, study, StudyState.HELD, actor="mara")
    result = done(store, study).result
    assert result is not None
    assert studies.study(store.db, result).state is StudyState.HELD
    note, _ = note_of(store, study)
    sent(store, destination, note.sop_instance_uid)
    corrections.release_after_notes(store.db)
    assert "queued" not in [state for _, state, _ in ledger(store, destination)]


def test_what_left_meanwhile_is_looked_at_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(store)
    destination = pacs(store, P.REJECT)
    study = image(store, sop="1.1", **WRONG).study_id
    asked(store, study)
    finish = corrections.finish

    def overtaken(*values: object) -> object:
        with monkeypatch.context() as inner:
            inner.setattr(policies, "within", lambda *_: ["another"])
            return finish(*values)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(corrections, "finish", overtaken)
        amendment.carry_out_waiting(store)
    assert [one.id for one in corrections.waiting(store.db)]
    assert versions(store, "1.1") == ["stored"]
    assert fsck.check(store).sound
    sent(store, destination)
    amendment.carry_out_waiting(store)
    assert corrections.waiting(store.db) == []
    note_of(store, study)


def test_a_crash_before_it_stands_leaves_no_note(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, study = sent_before(store, P.REJECT)
    asked(store, study)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(corrections, "finish", die)
        with pytest.raises(Killed):
            amendment.carry_out_waiting(store)
    assert fsck.sweep(store).removed == 3
    assert studies.study(store.db, study).instance_count == 2
    amendment.carry_out_waiting(store)
    note_of(store, study)


def test_a_lost_index_comes_back_as_it_stood(store: Store) -> None:
    _, study = sent_before(store, P.REJECT)
    result = done(store, study).result
    assert result is not None
    uids = sorted(one.sop_instance_uid for one in standing_in(store, result))
    config = store.config
    store.close()
    for path in config.data_dir.glob("index*"):
        path.unlink()
    rebuild.rebuild(config)
    with_new_index = Store.open(config)
    try:
        assert versions(with_new_index, "1.1") == ["superseded"]
        rows = studies.search(with_new_index.db, studies.Search(text="doe"))
        assert [row.instance_count for row in rows] == [2]
        found = sorted(one.sop_instance_uid for one in standing_in(with_new_index, rows[0].id))
        assert found == uids
        assert fsck.check(with_new_index).sound
    finally:
        with_new_index.close()


def test_room_is_made_of_what_was_corrected_once_that_is_proved(store: Store) -> None:
    destination, study = sent_before(store, P.REJECT)
    result = done(store, study).result
    assert result is not None
    assert kept(store, result) is Kept.HELD
    note, _ = note_of(store, study)
    sent(store, destination, note.sop_instance_uid)
    corrections.release_after_notes(store.db)
    assert kept(store, result) is Kept.UNPROVED
    sent(store, destination)
    assert kept(store, result) is Kept.RECENT
    assert kept(store, study) is Kept.DISPUTED  # what was received is not deleted


def kept(store: Store, study: StudyId) -> Kept | None:
    with store.db.read() as tx:
        found = evictions.standing(tx, study)
    assert found is not None
    return found.kept(86_400_000)
