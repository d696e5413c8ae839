"""The worklist: what is put in is there, what changes leaves a trace, nothing is ever lost."""

from dataclasses import replace

import pytest
from store.making import add_destination, take_in

from edgepacs.errors import Conflict, InvalidValue, NotFound
from edgepacs.model import EntryId, EntryOrigin, EntryState
from edgepacs.store import Store, audit, destinations, prefetches, worklist
from edgepacs.store.doubles import Likeness, doubles
from edgepacs.store.worklist import Criteria, Entry, Held, Patient

_S = EntryState
JANE = Patient(patient_id="P1", name="Doe^Jane", birth_date="19600101", sex="F")


def put(
    store: Store,
    patient: Patient = JANE,
    *,
    origin: EntryOrigin = EntryOrigin.UPSTREAM,
    source: str = "RIS",
    key: str = "1",
    **fields: str,
) -> EntryId:
    with store.db.write() as tx:
        entry = Entry(patient=patient, **fields)
        return worklist.put(tx, entry, origin=origin, source=source, key=key, actor="test")


def held(store: Store, number: EntryId) -> Held:
    with store.db.read() as tx:
        return worklist.entry(tx, number)


def shift(store: Store, number: EntryId, state: EntryState, why: str = "") -> None:
    with store.db.write() as tx:
        worklist.shift(tx, number, state, actor="test", why=why)


def acts(store: Store, number: EntryId) -> list[tuple[str, str]]:
    return [(one.act, one.detail) for one in audit.of_subject(store.db, "worklist", number)]


def test_what_is_put_in_is_there(store: Store) -> None:
    number = put(store, accession_number="A1", study_instance_uid="1.2.3", step_id="S1")
    found = held(store, number)
    assert found.entry.patient == JANE
    assert (found.state, found.origin, found.source, found.key) == (
        _S.SCHEDULED,
        EntryOrigin.UPSTREAM,
        "RIS",
        "1",
    )
    with store.db.read() as tx:
        assert worklist.by_key(tx, EntryOrigin.UPSTREAM, "RIS", "1") == found
        assert worklist.by_key(tx, EntryOrigin.HL7, "RIS", "1") is None
        assert list(worklist.of_order(tx, "A1")) == [found]
        assert list(worklist.of_order(tx, "")) == []
        assert list(worklist.of_patient(tx, "P1", "")) == [found]
        assert list(worklist.of_patient(tx, "P1", "OTHER")) == []
        assert list(worklist.of_study(tx, "1.2.3")) == [found]
        assert worklist.of_step(tx, "1.2.3", "S1") == found
        assert worklist.of_step(tx, "1.2.3", "S2") is None
        with pytest.raises(NotFound):
            worklist.entry(tx, EntryId(99))


def test_ids_that_are_absent_are_made_and_kept(store: Store) -> None:
    number = put(store)
    made = held(store, number).entry
    assert made.study_instance_uid.startswith("2.25.")
    assert len(made.study_instance_uid) <= 64
    assert 0 < len(made.procedure_id) <= 16
    assert 0 < len(made.step_id) <= 16
    assert put(store, modality="CT") == number
    again = held(store, number).entry
    assert (again.study_instance_uid, again.step_id) == (made.study_instance_uid, made.step_id)
    assert again.modality == "CT"
    other = held(store, put(store, key="2")).entry
    assert other.study_instance_uid != made.study_instance_uid


def test_only_who_is_entered_here_gets_a_temporary_id(store: Store) -> None:
    nobody = Patient(name="Unknown^Male")
    here = held(store, put(store, nobody, origin=EntryOrigin.LOCAL)).entry.patient
    assert worklist.is_temporary(here.patient_id)
    there = held(store, put(store, nobody)).entry.patient
    assert there.patient_id == ""


def test_the_same_again_changes_nothing_but_its_age(store: Store) -> None:
    number = put(store, modality="CT")
    before = held(store, number)
    with store.db.write() as tx:
        tx.run("UPDATE worklist SET as_of_ms = 1 WHERE id = ?", number)
    put(store, modality="CT")
    after = held(store, number)
    assert after.as_of_ms >= before.as_of_ms
    assert after.changed_ms == before.changed_ms
    assert acts(store, number) == [("entry added", "upstream")]


def test_a_change_names_the_fields_and_never_the_values(store: Store) -> None:
    number = put(store, comments="first")
    put(store, Patient(patient_id="P1", name="Roe^Jane"), comments="")
    assert acts(store, number)[-1] == ("entry changed", "name birth_date sex comments")
    assert held(store, number).entry.comments == ""
    trail = str(audit.of_subject(store.db, "worklist", number))
    assert "Roe" not in trail
    assert "Doe" not in trail


def test_states_go_through_their_table(store: Store) -> None:
    number = put(store)
    shift(store, number, _S.STARTED)
    shift(store, number, _S.COMPLETED, why="by the modality")
    assert acts(store, number)[1:] == [
        ("entry started", "scheduled"),
        ("entry completed", "started: by the modality"),
    ]
    with pytest.raises(Conflict):
        shift(store, number, _S.CANCELLED)
    assert held(store, number).state is _S.COMPLETED
    with pytest.raises(NotFound):
        shift(store, EntryId(99), _S.STARTED)


def test_what_is_gone_upstream_is_retired_and_comes_back(store: Store) -> None:
    kept, gone, begun = (put(store, key=key) for key in ("1", "2", "3"))
    other = put(store, key="2", source="OTHER")
    shift(store, begun, _S.STARTED)
    with store.db.write() as tx:
        keys = {"1"}
        assert worklist.retire_missing(tx, EntryOrigin.UPSTREAM, "RIS", keys, actor="sync") == 1
        assert worklist.retire_missing(tx, EntryOrigin.UPSTREAM, "RIS", keys, actor="sync") == 0
    states = [held(store, number).state for number in (kept, gone, begun, other)]
    assert states == [_S.SCHEDULED, _S.RETIRED, _S.STARTED, _S.SCHEDULED]
    put(store, key="2")
    assert held(store, gone).state is _S.SCHEDULED


def test_what_is_long_past_is_retired(store: Store) -> None:
    old = put(store, key="1", start_date="20260101")
    new = put(store, key="2", start_date="20260102")
    undated = put(store, key="3")
    with store.db.write() as tx:
        assert worklist.retire_past(tx, "20260102", actor="test") == 1
    states = [held(store, number).state for number in (old, new, undated)]
    assert states == [_S.RETIRED, _S.SCHEDULED, _S.SCHEDULED]


def test_a_patient_changes_in_every_entry_that_is_concerned(store: Store) -> None:
    numbers = [put(store, key=str(key)) for key in range(4)]
    shift(store, numbers[1], _S.COMPLETED)
    shift(store, numbers[2], _S.CANCELLED)
    stranger = put(store, Patient(patient_id="P1", issuer="ELSEWHERE", name="Doe^J"), key="9")
    with store.db.write() as tx:
        said = Patient(patient_id="P1", name="Doe^Janet")
        assert worklist.change_patient(tx, said, actor="adt") == 3
        assert worklist.change_patient(tx, said, actor="adt") == 0
        assert worklist.change_patient(tx, Patient(name="Nobody"), actor="adt") == 0
    names = [held(store, number).entry.patient.name for number in [*numbers, stranger]]
    assert names == ["Doe^Janet", "Doe^Janet", "Doe^Jane", "Doe^Janet", "Doe^J"]
    assert held(store, numbers[0]).entry.patient.birth_date == "19600101"


def test_a_merge_keeps_the_id_that_is_gone_among_the_others(store: Store) -> None:
    number = put(store, Patient(patient_id="OLD", issuer="H", name="Doe^J", other_ids="X^Y"))
    into = Patient(patient_id="NEW", issuer="H", name="Doe^Jane")
    with store.db.write() as tx:
        assert worklist.merge_patient(tx, gone=("OLD", "H"), into=into, actor="adt") == 1
        assert worklist.merge_patient(tx, gone=("OLD", "H"), into=into, actor="adt") == 0
        assert list(worklist.of_patient(tx, "OLD", "H")) == []
    patient = held(store, number).entry.patient
    assert (patient.patient_id, patient.issuer, patient.name) == ("NEW", "H", "Doe^Jane")
    assert patient.other_ids == "X^Y\\OLD^H"


def test_a_new_entry_has_its_patients_priors_fetched(store: Store) -> None:
    add_destination(store)
    with store.db.write() as tx:
        destinations.change(tx, "pacs", {"priors": "get"}, actor="test")
    number = put(store)
    put(store, modality="CT")
    (task,) = prefetches.listed(store.db)
    assert (task.reason, task.subject, task.patient_id) == ("worklist", number, "P1")


def test_lists_are_narrowed_by_each_criterion(store: Store) -> None:
    one = put(store, key="1", modality="CT", start_date="20261123", start_time="0900")
    two = put(store, Patient(name="Müller^Änne"), key="2", modality="MR", start_date="20261124")
    shift(store, two, _S.STARTED)

    def ids(criteria: Criteria) -> list[int]:
        with store.db.read() as tx:
            return [found.id for found in worklist.entries(tx, criteria)]

    assert ids(Criteria()) == [one, two]
    assert ids(Criteria(states=[_S.STARTED])) == [two]
    assert ids(Criteria(modality="CT")) == [one]
    assert ids(Criteria(from_date="20261124")) == [two]
    assert ids(Criteria(to_date="20261123")) == [one]
    assert ids(Criteria(text="anne MULLER")) == [two]
    assert ids(Criteria(text="100%")) == []
    assert ids(Criteria(origin=EntryOrigin.HL7)) == []
    assert ids(Criteria(limit=1, offset=1)) == [two]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_date", "20261332"),
        ("start_date", "2026-11-23"),
        ("start_time", "2560"),
        ("study_instance_uid", "1.2.x"),
        ("accession_number", "A\\B"),
        ("accession_number", "A\x00B"),
        ("comments", "a\x1bb"),
        ("step_description", "\ud800"),
        ("step_description", "x" * 1025),
    ],
)
def test_what_would_break_a_data_set_is_refused_by_its_field(
    store: Store, field: str, value: str
) -> None:
    with pytest.raises(InvalidValue, match=field) as refused:
        put(store, **{field: value})
    assert value not in str(refused.value)
    with store.db.read() as tx:
        assert list(worklist.entries(tx)) == []


def test_a_number_that_no_answer_could_hold_is_refused(store: Store) -> None:
    with pytest.raises(InvalidValue, match="pregnancy"):
        put(store, replace(JANE, pregnancy="certainly"))
    put(store, replace(JANE, pregnancy="4"))


def test_values_do_not_stand_in_what_is_logged() -> None:
    assert "Jane" not in repr(Entry(patient=JANE, accession_number="A1"))
    assert "Jane" not in repr(JANE)


@pytest.mark.parametrize(
    ("known", "new", "likeness"),
    [
        (JANE, JANE, None),
        (JANE, Patient(patient_id="P1", name="Roe^Jane"), Likeness.OTHER_PERSON),
        (JANE, Patient(patient_id="P1", name="Doe^Jane"), None),
        (JANE, Patient(name="JANE^DOÉ", birth_date="19600101"), Likeness.OTHER_ID),
        (JANE, Patient(name="Doe^Jane", birth_date="19610101"), None),
        (JANE, Patient(name="Doe^Jane"), Likeness.SAME_NAME),
        (JANE, Patient(name="Doe^Janet"), None),
        (Patient(patient_id="P2", name="山田^太郎"), Patient(name="山田^太郎"), Likeness.SAME_NAME),
    ],
)
def test_who_may_be_known_already_is_found(
    store: Store, known: Patient, new: Patient, likeness: Likeness | None
) -> None:
    put(store, known)
    with store.db.read() as tx:
        found = doubles(tx, new)
    assert [one.likeness for one in found] == ([likeness] if likeness else [])


def test_who_has_a_study_here_is_known(store: Store) -> None:
    take_in(store, patient_id="P7", name="Doe^Jane")
    with store.db.read() as tx:
        (found,) = doubles(tx, Patient(name="Doe^Jane", birth_date="19600101"))
    assert (found.likeness, found.patient_id) == (Likeness.SAME_NAME, "P7")
