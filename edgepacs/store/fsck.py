"""fsck: rows and objects against each other, and every object against its authentication tags."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepacs.errors import Busy, EdgePacsError, Tampered, WrongKey
from edgepacs.model import InstanceId, InstanceState, ObjectId, Outcome
from edgepacs.store import Store, audit, disposal, instances
from edgepacs.store.instances import Draft, Instance

_Known = dict[ObjectId, tuple[InstanceId, InstanceState]]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a check found. Lists hold row numbers of instances, or object ids in hex."""

    rows: int = 0
    objects: int = 0  # with a row
    verified: int = 0
    missing: list[int] = field(default_factory=list)  # rows whose object is gone
    broken: dict[int, str] = field(default_factory=dict)  # rows whose object does not authenticate
    mismatched: dict[int, str] = field(default_factory=dict)  # rows that say other than the object
    orphans: list[str] = field(default_factory=list)  # objects no row refers to
    foreign: list[str] = field(default_factory=list)  # files in the vault that are no objects
    unsettled: list[str] = field(default_factory=list)  # the same, while somebody is writing
    index: list[str] = field(default_factory=list)  # what the index's own check found
    removed: int = 0  # by a sweep before the check
    adopted: int = 0
    set_aside: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing at all is wrong."""
        return not (
            self.missing
            or self.broken
            or self.mismatched
            or self.orphans
            or self.foreign
            or self.index
        )


def check(store: Store) -> Report:
    """Prove rows ↔ objects ↔ tags; changes nothing. Reads every object whole."""
    report = Report(index=[*store.db.problems(), *_audit_problems(store)])
    _find_strays(store, report)
    for instance in _with_objects(store):
        report.rows += 1
        _check_object(store, instance, report)
    return report


def _audit_problems(store: Store) -> Iterator[str]:
    broken = audit.broken_at(store.db)
    if broken is not None:
        yield f"audit record {broken} does not follow from the one before it"


def _find_strays(store: Store, report: Report) -> None:
    """Objects no row refers to: orphans only if nobody can be about to commit them."""
    try:
        with store.vault.alone():
            report.orphans = _count(store, report)
    except Busy:
        report.unsettled = _count(store, report)


def _count(store: Store, report: Report) -> list[str]:
    """Count what lies in the vault; the strays that were written to."""
    present, known = _listing(store)
    strays = _strays(present, known)
    report.objects = len(present) - len(strays)
    report.foreign = sorted(store.vault.foreign_files())
    return _written(store, strays)


def _written(store: Store, strays: list[ObjectId]) -> list[str]:
    """Those with bytes in them; the others are blanks kept at hand, or left by a crash."""
    return [stray.hex() for stray in strays if store.vault.size(stray)]


def _listing(store: Store) -> tuple[list[ObjectId], _Known]:
    # The objects are listed first: one committed in between is then among the rows.
    present = list(store.vault.object_ids())
    return present, instances.known_objects(store.db)


def _strays(present: list[ObjectId], known: _Known) -> list[ObjectId]:
    """Objects that no row needs: unknown, or named by a tombstone alone."""
    kept = {object_id for object_id, (_, state) in known.items() if not state.gone}
    return [object_id for object_id in present if object_id not in kept]


def _with_objects(store: Store) -> Iterator[Instance]:
    for number, state in sorted(instances.known_objects(store.db).values()):
        if not state.gone:
            yield instances.instance(store.db, number)


def _check_object(store: Store, instance: Instance, report: Report) -> None:
    if instance.state.gone:  # given up since the rows were listed
        return
    if not store.vault.exists(instance.object_id):
        report.missing.append(instance.id)
        return
    try:
        with store.vault.open(instance.object_id, instance.sop_instance_uid) as reader:
            length = sum(map(len, reader.chunks()))
            trailer = reader.trailer()
    except EdgePacsError as error:
        report.broken[instance.id] = str(error)
        return
    row = (instance.sop_instance_uid, instance.received_sha256.hex(), instance.byte_length)
    sealed = (trailer["sop_instance_uid"], trailer["received_sha256"], length)
    if row == sealed:
        report.verified += 1
    else:
        report.mismatched[instance.id] = "the row differs from what was sealed with the object"


@dataclass(slots=True, kw_only=True)
class Settled:
    """What became of objects without a row."""

    removed: int = 0
    adopted: int = 0
    set_aside: int = 0


def sweep(store: Store) -> Settled:
    """Settle objects no row refers to. Raises Busy while anybody writes objects.

    What was never finished was never acknowledged and is removed. What is whole is made known:
    its sender may have been told Success under an index that was lost for an older one. What is
    damaged is set aside, and what asks for a key that is not held is left where it is: a person
    may still save it.
    """
    settled = Settled()
    with store.vault.alone():
        present, known = _listing(store)
        for stray in _strays(present, known):
            if stray in known or not store.vault.is_finished(stray):  # a tombstone's, or torn
                store.vault.remove(stray)
                settled.removed += 1
            else:
                _save(store, stray, settled)
    return settled


def _save(store: Store, stray: ObjectId, settled: Settled) -> None:
    try:
        draft = _whole(store, stray)
    except WrongKey:
        return
    except Tampered:
        store.vault.set_aside(stray)
        settled.set_aside += 1
        return
    store.vault.sync(stray)  # its writer may have been killed before the disk had it
    receipt = instances.commit(store.db, [draft])[0]
    disposal.clear_replaced(store, receipt)
    if receipt.outcome is Outcome.DUPLICATE:
        settled.removed += 1
    else:
        settled.adopted += 1


def _whole(store: Store, object_id: ObjectId) -> Draft:
    """The draft of an object, every byte of which authenticates; raises Tampered, WrongKey."""
    with store.vault.open(object_id) as reader:
        draft = Draft.from_trailer(reader.trailer(), object_id, store.vault.size(object_id))
        if sum(map(len, reader.chunks())) != draft.byte_length:
            raise Tampered("object: its length is not the one sealed with it")
    return draft
