"""What messages say, put into the worklist: orders, patients, merges.

A field that is empty says nothing, and leaves what there is; one that holds `""` takes it away
(HL7 2.5.3).
"""

from collections.abc import Mapping
from dataclasses import replace

from edgepacs.errors import InvalidValue
from edgepacs.model import EntryId, EntryOrigin, EntryState
from edgepacs.orders.faults import Problem, Refusal
from edgepacs.orders.mapping import Act
from edgepacs.orders.reading import MergeSaid, OrderSaid, PatientSaid, Said, Statement
from edgepacs.store import orders, twins, worklist
from edgepacs.store.db import Transaction
from edgepacs.store.orders import OrderId
from edgepacs.store.worklist import ENTRY_FIELDS, PATIENT_FIELDS, Entry, Held, Patient

_REQUIRED = ("patient_id", "name", "modality")  # what no modality can do without (PS3.4 K.6.1.2.2)
_WRITING = frozenset({Act.NEW, Act.CHANGE})
_S = EntryState
# What an act makes of each state; one that is not there is refused, and the same stays.
_ENDS: Mapping[Act, Mapping[EntryState, EntryState]] = {
    Act.CANCEL: dict.fromkeys(
        (_S.SCHEDULED, _S.STARTED, _S.DISCONTINUED, _S.RETIRED, _S.CANCELLED), _S.CANCELLED
    ),
    Act.DISCONTINUE: {
        _S.SCHEDULED: _S.CANCELLED,
        _S.RETIRED: _S.CANCELLED,
        _S.STARTED: _S.DISCONTINUED,
        _S.DISCONTINUED: _S.DISCONTINUED,
        _S.CANCELLED: _S.CANCELLED,
    },
    Act.COMPLETE: dict.fromkeys((_S.SCHEDULED, _S.STARTED, _S.RETIRED, _S.COMPLETED), _S.COMPLETED),
    Act.RELEASE: {
        **{state: state for state in EntryState},
        _S.CANCELLED: _S.SCHEDULED,
        _S.RETIRED: _S.SCHEDULED,
    },
}


def apply(tx: Transaction, statement: Statement, *, source: str, actor: str) -> set[EntryId]:
    """Put one statement into the worklist; the entries it spoke of. Raises Refusal.

    `source` is whose order numbers they are.
    """
    if isinstance(statement, OrderSaid):
        return _Applying(tx, statement, source, actor).apply()
    try:
        return _apply_patient(tx, statement, actor)
    except InvalidValue as error:
        place = statement.said[error.field].place if error.field in statement.said else statement.at
        raise Refusal(place, Problem.DATA_TYPE, error.problem) from error


def _apply_patient(tx: Transaction, statement: PatientSaid | MergeSaid, actor: str) -> set[EntryId]:
    patient = Patient(**_texts(statement.said, PATIENT_FIELDS))
    whose = (patient.patient_id, patient.issuer)
    if isinstance(statement, PatientSaid):
        worklist.change_patient(tx, patient, actor=actor)
    else:
        gone = Patient(**_texts(statement.gone, PATIENT_FIELDS))
        former = (gone.patient_id, gone.issuer)
        if former == whose:
            raise Refusal(statement.at, Problem.TABLE, "a patient is merged into itself")
        worklist.merge_patient(tx, gone=former, into=patient, actor=actor)
    return {held.id for held in worklist.of_patient(tx, *whose)}


def _texts(said: Said, names: tuple[str, ...]) -> dict[str, str]:
    return {name: said[name].text for name in names if name in said}


class _Applying:
    """One step of an order on its way into the worklist."""

    def __init__(self, tx: Transaction, order: OrderSaid, source: str, actor: str) -> None:
        self._tx = tx
        self._order = order
        self._source = source
        self._actor = actor

    def apply(self) -> set[EntryId]:
        """Do what is wanted; the entries it was about. Raises Refusal."""
        order = self._order
        known = orders.order(self._tx, self._source, placer=order.placer, filler=order.filler)
        steps = orders.steps(self._tx, known) if known is not None else {}
        if order.act in _WRITING:
            return {self._write(steps)}
        if not steps:
            missing = order.at.place(2 if order.placer else 3)
            raise Refusal(missing, Problem.UNKNOWN_KEY, "an order that is not known here")
        meant = [steps[order.step]] if order.step in steps else list(steps.values())
        for entry in meant:
            self._shift(entry)
        return set(meant)

    def _write(self, steps: Mapping[str, EntryId]) -> EntryId:
        order = self._order
        entry = self._meant(steps)
        held = worklist.entry(self._tx, entry) if entry is not None else None
        number = orders.named(self._tx, self._source, placer=order.placer, filler=order.filler)
        if held is None:
            self._require_whole()
            made = self._put(self._composed(None), self._key(number))
            orders.add_step(self._tx, number, order.step, made)
            twins.meet(self._tx, made, actor=self._actor)
            return made
        self._put(self._composed(held), held.key)
        orders.add_step(self._tx, number, order.step, held.id)
        if order.act is Act.NEW and held.state in (_S.CANCELLED, _S.DISCONTINUED):
            why = "ordered anew"
            worklist.shift(self._tx, held.id, _S.SCHEDULED, actor=self._actor, why=why)
        return held.id

    def _meant(self, steps: Mapping[str, EntryId]) -> EntryId | None:
        """The entry of the step: by its ID, by its place, or the first that has no ID yet."""
        step = self._order.step
        if step in steps:
            return steps[step]
        entries = list(dict.fromkeys(steps.values()))
        if step.startswith("#"):
            return next(iter(entries[int(step[1:]) - 1 :]), None)
        called = {entry for name, entry in steps.items() if not name.startswith("#")}
        return next((entry for entry in entries if entry not in called), None)

    def _key(self, number: OrderId) -> str:
        return f"{number}/{self._order.step}"

    def _require_whole(self) -> None:
        for name in _REQUIRED:
            if name not in self._order.said or not self._order.said[name].text:
                raise Refusal(self._order.place(name), Problem.REQUIRED, f"absent: {name}")

    def _composed(self, held: Held | None) -> Entry:
        """What was known, with what is said now."""
        order = self._order
        said = order.said if held is not None else {**order.otherwise, **order.said}
        patient_said = _texts(said, PATIENT_FIELDS)
        entry = held.entry if held is not None else Entry(patient=Patient())
        patient = entry.patient
        if patient_said.get("patient_id", patient.patient_id) != patient.patient_id:
            patient = Patient()  # nothing of another patient may stay
        return replace(
            entry, patient=replace(patient, **patient_said), **_texts(said, ENTRY_FIELDS)
        )

    def _put(self, entry: Entry, key: str) -> EntryId:
        try:
            return worklist.put(
                self._tx,
                entry,
                origin=EntryOrigin.HL7,
                source=self._source,
                key=key,
                actor=self._actor,
            )
        except InvalidValue as error:
            place = self._order.place(error.field)
            raise Refusal(place, Problem.DATA_TYPE, error.problem) from error

    def _shift(self, entry: EntryId) -> None:
        state = worklist.entry(self._tx, entry).state
        wanted = _ENDS[self._order.act].get(state)
        if wanted is None:
            words = f"what is {state} cannot be done so"
            raise Refusal(self._order.at.place(1), Problem.LOCKED, words)
        if wanted is not state:
            why = f"the order says {self._order.act}"
            worklist.shift(self._tx, entry, wanted, actor=self._actor, why=why)
