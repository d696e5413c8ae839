"""Studies and their orders: what is found, what differs, what is held, what people decide."""

from dataclasses import replace

import pytest
from store.making import add_destination, deliveries_of, take_in
from store.ordering import CT_OF_DOE, DOE, UID_OF_ORDER, found, image, match, order

from edgepacs.errors import Conflict, NotFound
from edgepacs.model import EntryId, EntryState, FoundBy, Mismatch, Origin, WorklistMatch
from edgepacs.store import (
    Store,
    audit,
    deliveries,
    reconciliation,
    rules,
    studies,
    worklist,
)
from edgepacs.store.deliveries import Selection
from edgepacs.store.worklist import Patient

M, W = Mismatch, WorklistMatch


def holding(store: Store) -> list[tuple[str, str]]:
    return [(state, reason) for state, reason, _, _ in deliveries_of(store)]


def send_all(store: Store, match: str = "") -> None:
    add_destination(store)
    with store.db.write() as tx:
        for one in rules.within(tx):
            rules.remove(tx, one.id, actor="test")
        rules.add(tx, to="*", match=match, hold=False, priority=0, actor="test")


# -- what is found


def test_without_a_worklist_nothing_is_looked_for(store: Store) -> None:
    study = image(store).study_id
    assert match(store, study) is W.NONE
    assert reconciliation.of_study(store.db, study) is None
    reconciliation.look(store.db)
    assert match(store, study) is W.NONE


@pytest.mark.parametrize(
    ("says", "found_by"),
    [
        ({}, FoundBy.STUDY_UID),
        ({"StudyInstanceUID": "1.2.9"}, FoundBy.ACCESSION),
        ({"StudyInstanceUID": "1.2.9", "AccessionNumber": ""}, FoundBy.PATIENT),
        ({"StudyInstanceUID": "1.2.9", "AccessionNumber": "B"}, FoundBy.PATIENT),
        ({"StudyInstanceUID": "1.2.9", "AccessionNumber": "", "PatientID": "P2"}, FoundBy.NOTHING),
        (
            {"StudyInstanceUID": "1.2.9", "AccessionNumber": "", "StudyDate": "20261125"},
            FoundBy.NOTHING,
        ),
        ({"StudyInstanceUID": "1.2.9", "AccessionNumber": "", "Modality": "MR"}, FoundBy.NOTHING),
        ({"StudyInstanceUID": "1.2.9", "AccessionNumber": "", "StudyDate": ""}, FoundBy.NOTHING),
    ],
)
def test_the_order_is_found_by_uid_accession_or_patient_and_time(
    store: Store, says: dict[str, str], found_by: FoundBy
) -> None:
    entry = order(store)
    study = image(store, **says).study_id
    row = found(store, study)
    assert row.found_by is found_by
    assert row.entry == (None if found_by is FoundBy.NOTHING else entry)
    assert (match(store, study) is W.UNMATCHED) == (found_by is FoundBy.NOTHING)


def test_of_several_steps_the_one_of_its_modality_and_time_is_meant(store: Store) -> None:
    order(store, key="1", modality="MR", start_time="103000", step_id="S0")
    order(store, key="2", start_time="080000", step_id="S1")
    nearest = order(store, key="3", start_time="102000", step_id="S2")
    order(store, key="4", start_time="120000", step_id="S3")
    assert found(store, image(store).study_id).entry == nearest


def test_a_cancelled_order_is_meant_only_where_there_is_no_other(store: Store) -> None:
    first, second = order(store, key="1"), order(store, key="2", start_time="235900")
    with store.db.write() as tx:
        worklist.shift(tx, first, EntryState.CANCELLED, actor="test")
    assert found(store, image(store).study_id).entry == second
    with store.db.write() as tx:
        worklist.shift(tx, second, EntryState.CANCELLED, actor="test")
    reconciliation.look(store.db)
    assert found(store, image(store).study_id).entry == second


def test_what_was_fetched_is_nobodys_order(store: Store) -> None:
    order(store)
    study = take_in(store, study=UID_OF_ORDER, origin=Origin.PREFETCH).study_id
    assert match(store, study) is W.NONE
    reconciliation.look(store.db)
    assert match(store, study) is W.NONE


# -- what differs


@pytest.mark.parametrize(
    ("says", "ordered", "flags"),
    [
        ({}, {}, set()),
        ({"PatientName": "doe^JANE^Q"}, {}, set()),
        ({"PatientName": "Dœ^Jane"}, {}, {M.NAME}),
        ({"PatientName": "Doe^John"}, {}, {M.NAME}),
        ({"PatientName": ""}, {}, {M.NAME}),
        ({"PatientID": "P2"}, {}, {M.ID}),
        ({"PatientID": ""}, {}, {M.ID}),
        ({"IssuerOfPatientID": "A"}, {}, set()),
        ({"PatientBirthDate": "19700102"}, {}, {M.BIRTH_DATE}),
        ({"PatientBirthDate": ""}, {}, set()),
        ({"PatientSex": "M"}, {}, {M.SEX}),
        ({"AccessionNumber": ""}, {}, {M.ACCESSION}),
        ({"AccessionNumber": "A2"}, {}, {M.ACCESSION}),
        ({"Laterality": "L"}, {"laterality": "R"}, {M.LATERALITY}),
        ({"Laterality": "L"}, {"laterality": "B"}, set()),
        ({"Laterality": ""}, {"laterality": "R"}, set()),
        ({}, {"station_ae": "CT2"}, {M.STATION}),
        ({}, {"station_ae": "CT2\\CT1"}, set()),
        ({}, {"station_name": "CT2"}, {M.STATION}),
        ({}, {"station_name": "CT1"}, set()),
    ],
)
def test_differences_are_flagged_field_by_field(
    store: Store, says: dict[str, str], ordered: dict[str, str], flags: set[Mismatch]
) -> None:
    order(store, **ordered)
    study = image(store, **says).study_id
    assert set(found(store, study).flags) == flags
    assert match(store, study) is (W.MISMATCHED if flags else W.MATCHED)
    assert ("order-mismatch" in studies.study(store.db, study).flags) == bool(flags)


@pytest.mark.parametrize(
    ("mine", "its", "differ"),
    [
        ("Yamada^Tarou=山田^太郎", "YAMADA^TAROU", False),
        ("Yamada^Tarou=山田^太郎", "Yamada^Tarou=山田^花子", True),
        ("=山田^太郎", "Yamada^Tarou", True),
        ("Müller^Jörg", "Muller^Jorg", False),
        ("Doe^Jane^A", "Doe^Jane^B", True),
    ],
)
def test_names_are_compared_by_component_group(
    store: Store,
    mine: str,
    its: str,
    differ: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    order(store, replace(CT_OF_DOE, patient=replace(DOE, name=its)))
    study = take_in(store, study=UID_OF_ORDER, patient_id="P1", name=mine).study_id
    assert (M.NAME in found(store, study).flags) == differ


def test_both_issuers_must_be_known_to_differ(store: Store) -> None:
    order(store, replace(CT_OF_DOE, patient=replace(DOE, issuer="CLINIC")))
    assert found(store, image(store).study_id).flags == ()
    other = image(store, IssuerOfPatientID="ELSE").study_id
    assert found(store, other).flags == (M.ID,)
    assert found(store, other).sides[M.ID] == ("P1^ELSE", "P1^CLINIC")


def test_both_sides_are_kept(store: Store) -> None:
    order(store, laterality="R")
    row = found(store, image(store, PatientName="Roe^Richard", Laterality="L").study_id)
    assert row.sides[M.NAME] == ("Roe^Richard", "Doe^Jane")
    assert row.sides[M.LATERALITY] == ("L", "R")
    assert row.sides[M.BIRTH_DATE] == ("19700101", "19700101")


def test_a_series_that_comes_later_is_looked_at_too(store: Store) -> None:
    order(store, laterality="R")
    send_all(store)
    study = image(store, Laterality="R").study_id
    assert match(store, study) is W.MATCHED
    assert image(store, SeriesInstanceUID="1.2.3.9", Laterality="L").study_id == study
    assert match(store, study) is W.MISMATCHED
    assert holding(store) == [("held", "order")] * 2


# -- what is held


def test_nothing_of_a_study_that_differs_leaves(store: Store) -> None:
    order(store)
    send_all(store)
    study = image(store, PatientID="P2").study_id
    image(store, PatientID="P2")
    assert holding(store) == [("held", "order")] * 2
    with store.db.write() as tx:
        assert deliveries.release(tx, Selection(study=study), actor="test") == 0
        assert deliveries.cancel(tx, Selection(study=study), actor="test") == 2
        assert deliveries.retry(tx, Selection(study=study), actor="test") == 0
        with pytest.raises(Conflict, match="order"):
            deliveries.send_study(tx, study, [1], actor="test")


def test_an_entry_nobody_can_read_refuses_no_instance(store: Store) -> None:
    """As a later version may leave one: the modality is answered, and nothing half is written."""
    order(store)
    with store.db.write() as tx:
        tx.run("UPDATE worklist SET state = 'unheard of'")
    receipt = image(store, PatientID="P2")
    assert receipt.instance_id
    with store.db.read() as tx:
        assert tx.number("SELECT COUNT(*) FROM instance") == 1
        assert tx.number("SELECT COUNT(*) FROM reconciliation") == 0


def test_what_is_the_same_goes_on_and_so_does_what_has_no_order(store: Store) -> None:
    order(store)
    send_all(store)
    image(store)
    image(store, StudyInstanceUID="1.2.9", PatientID="P9", AccessionNumber="")
    assert holding(store) == [("queued", "")] * 2


def test_rules_see_what_was_found(store: Store) -> None:
    order(store)
    send_all(store, "worklist=matched")
    image(store, StudyInstanceUID="1.2.9", PatientID="P9", AccessionNumber="")
    assert holding(store) == []
    image(store)
    assert holding(store) == [("queued", "")]


# -- when the worklist changes


def test_an_order_that_comes_later_is_found(store: Store) -> None:
    order(store, key="other", study_instance_uid="1.9", accession_number="Z")
    send_all(store)
    by_uid = image(store).study_id
    by_accession = image(store, StudyInstanceUID="1.2.8", PatientID="P3").study_id
    by_patient = image(
        store, StudyInstanceUID="1.2.7", PatientID="P5", PatientName="Late^Lee", AccessionNumber=""
    ).study_id
    late = [by_uid, by_accession, by_patient]
    reconciliation.look(store.db)
    assert [match(store, one) for one in late[1:]] == [W.UNMATCHED] * 2
    order(store, patient=Patient(patient_id="P1", name="Else^Who"))  # type: ignore[arg-type]
    order(
        store,
        replace(CT_OF_DOE, patient=Patient(patient_id="P5", name="Late^Lee")),
        key="5",
        study_instance_uid="1.8",
        accession_number="",
    )
    assert reconciliation.look(store.db) >= 3
    assert [match(store, one) for one in late] == [W.MISMATCHED, W.MISMATCHED, W.MATCHED]
    assert holding(store) == [("held", "order"), ("held", "order"), ("queued", "")]
    assert reconciliation.look(store.db) == 0


def test_a_late_merge_raises_a_flag_though_the_patient_was_how_it_was_found(store: Store) -> None:
    order(store)
    send_all(store)
    study = image(store, StudyInstanceUID="1.2.9", AccessionNumber="A1").study_id
    assert match(store, study) is W.MATCHED
    with store.db.write() as tx:
        into = Patient(patient_id="REAL", name="Doe^Jane")
        assert worklist.merge_patient(tx, gone=("P1", ""), into=into, actor="RIS") == 1
    reconciliation.look(store.db)
    assert found(store, study).flags == (M.ID,)
    assert holding(store) == [("held", "order")]
    with store.db.write() as tx:
        back = Patient(patient_id="P1", name="Doe^Jane")
        worklist.merge_patient(tx, gone=("REAL", ""), into=back, actor="RIS")
    reconciliation.look(store.db)
    assert holding(store) == [("queued", "")]


# -- what people decide


def test_kept_as_it_is_it_goes_on_until_the_order_says_something_else(store: Store) -> None:
    entry = order(store)
    send_all(store)
    study = image(store, PatientName="Roe^Rich").study_id
    with store.db.write() as tx:
        reconciliation.keep(tx, study, actor="mara")
        with pytest.raises(Conflict):
            reconciliation.keep(tx, study, actor="mara")
    assert match(store, study) is W.KEPT
    assert holding(store) == [("queued", "")]
    with store.db.write() as tx:
        held = worklist.entry(tx, entry).entry
        worklist.change(tx, entry, replace(held, comments="nothing that counts"), actor="RIS")
    reconciliation.look(store.db)
    assert match(store, study) is W.KEPT
    with store.db.write() as tx:
        worklist.change(tx, entry, replace(held, accession_number="A9"), actor="RIS")
    reconciliation.look(store.db)
    assert match(store, study) is W.MISMATCHED
    assert holding(store) == [("held", "order")]


def test_keeping_is_taken_back(store: Store) -> None:
    order(store)
    send_all(store)
    study = image(store, PatientName="Roe^Rich").study_id
    with store.db.write() as tx:
        with pytest.raises(Conflict):
            reconciliation.reopen(tx, study, actor="mara")
        reconciliation.keep(tx, study, actor="mara")
        reconciliation.reopen(tx, study, actor="mara")
    assert holding(store) == [("held", "order")]
    acts = [one.act for one in audit.of_subject(store.db, "study", study)]
    assert acts == [
        "study mismatched",
        "delivery held",
        "study kept",
        "study kept",
        "delivery queued",
        "study reopened",
        "study mismatched",
        "delivery held",
    ]


def test_linked_by_hand_it_stays_so_until_that_is_taken_back(store: Store) -> None:
    own = order(store)
    other = order(
        store,
        replace(CT_OF_DOE, patient=Patient(patient_id="P2", name="Roe^Rich")),
        key="2",
        study_instance_uid="1.2.5",
        accession_number="A2",
    )
    study = image(store).study_id
    with store.db.write() as tx:
        reconciliation.link(tx, study, other, actor="mara")
        with pytest.raises(NotFound):
            reconciliation.link(tx, study, EntryId(99), actor="mara")
    row = found(store, study)
    assert (row.entry, row.found_by, row.by) == (other, FoundBy.PERSON, "mara")
    assert set(row.flags) == {M.NAME, M.ID, M.ACCESSION}
    reconciliation.look(store.db)
    image(store, SeriesInstanceUID="1.2.3.7")
    assert found(store, study).entry == other
    with store.db.write() as tx:
        reconciliation.link(tx, study, None, actor="mara")
    row = found(store, study)
    assert (row.entry, row.found_by, match(store, study)) == (own, FoundBy.STUDY_UID, W.MATCHED)


def test_what_was_not_made_here_cannot_be_linked(store: Store) -> None:
    entry = order(store)
    study = take_in(store, study="1.9", origin=Origin.PREFETCH).study_id
    with store.db.write() as tx, pytest.raises(Conflict):
        reconciliation.link(tx, study, entry, actor="mara")
