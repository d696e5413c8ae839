"""fsck: rows and objects against each other, and every object against its authentication tags."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepacs.errors import Busy, EdgePacsError, NotFound, StorageFault, Tampered
from edgepacs.model import KEY_OBJECTS, InstanceState, ObjectId, Origin, Outcome
from edgepacs.store import Store, audit, disposal, instances
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
from edgepacs.telemetry import failpoint

_ROWS_AT_ONCE = 10_000


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
    found = _strays(store)
    report.objects = found.needed
    report.foreign = sorted(store.vault.foreign_files())
    return _written(store, [*found.unknown, *found.given_up])


def _written(store: Store, strays: list[ObjectId]) -> list[str]:
    """Those with bytes in them; the others are blanks kept at hand, or left by a crash."""
    return [stray.hex() for stray in strays if store.vault.size(stray)]


def _with_objects(store: Store) -> Iterator[Instance]:
    for number, state in sorted(instances.known_objects(store.db).values()):
        if not state.gone:
            yield instances.instance(store.db, number)


def _check_object(store: Store, instance: Instance, report: Report) -> None:
    if instance.state.gone:  # given up since the rows were listed
        return
    try:
        with store.vault.open(instance.object_id, instance.sop_instance_uid) as reader:
            length = sum(map(len, reader.chunks()))
            trailer = reader.trailer()
    except NotFound:
        again = instances.instance(store.db, instance.id)
        if again.object_id == instance.object_id and not again.state.gone:
            report.missing.append(instance.id)
        else:  # another copy has taken its place since the row was read
            _check_object(store, again, report)
        return
    except EdgePacsError as error:
        report.broken[instance.id] = str(error)
        return
    draft = Draft.from_trailer(trailer, instance.object_id, instance.sealed_length)
    row = (
        instance.sop_instance_uid,
        instance.received_digest,
        instance.transfer_syntax_uid,
        instance.byte_length,
    )
    sealed = (draft.arrival.sop_instance_uid, draft.received_digest, draft.transfer_syntax_uid)
    if row == (*sealed, length):
        report.verified += 1
    else:
        report.mismatched[instance.id] = "the row differs from what was sealed with the object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strays:
    """Objects that no row needed while nobody wrote; nobody but a sweep will ever touch them."""

    needed: int = 0  # how many objects have a row that needs them
    unknown: list[ObjectId] = field(default_factory=list)  # no row names them
    given_up: list[ObjectId] = field(default_factory=list)  # only a tombstone does


@dataclass(slots=True, kw_only=True)
class Settled:
    """What became of strays."""

    removed: int = 0
    adopted: int = 0
    set_aside: int = 0
    left: int = 0  # could not be read, or not be made known, this time


def sweep(store: Store) -> Settled:
    """Find the strays and settle them. Raises Busy while anybody writes objects."""
    with store.vault.alone():
        return settle(store, _strays(store), threading.Event())


def strays(store: Store) -> Strays:
    """The strays there are. Raises Busy while anybody writes objects.

    Quick, for it reads names and rows alone. What is written afterwards is not among them, so
    they may be settled beside it (docs/decisions/0018-sweep-behind-the-listener.md).
    """
    with store.vault.alone():
        return _strays(store)


def _strays(store: Store) -> Strays:
    # The objects are listed first: one committed in between is then among the rows.
    unknown = set(store.vault.object_ids())
    listed = len(unknown)
    given_up = []
    for object_id, state in _named(store):
        if state.gone:
            given_up.append(object_id)
        else:
            unknown.discard(object_id)
    needed = listed - len(unknown)
    given_up = [object_id for object_id in given_up if object_id in unknown]
    unknown.difference_update(given_up)
    return Strays(needed=needed, unknown=sorted(unknown), given_up=given_up)


def _named(store: Store) -> Iterator[tuple[ObjectId, InstanceState]]:
    """The object and state of every row; a few rows at a time, for there may be very many."""
    states = {str(state): state for state in InstanceState}
    last = 0
    with store.db.read() as tx:
        while rows := tx.rows(
            "SELECT id, object_id, state FROM instance WHERE id > ? ORDER BY id LIMIT ?",
            last,
            _ROWS_AT_ONCE,
        ):
            last = rows[-1][0]
            for _, object_id, state in rows:
                yield ObjectId(object_id), states[state]


def settle(store: Store, found: Strays, stop: threading.Event) -> Settled:
    """Settle what `strays` has found, until `stop`.

    What was never finished was never acknowledged and is removed. What is whole is made known:
    its sender may have been told Success under an index that was lost for an older one. What is
    damaged is set aside, and what cannot be read now, or asks for a key that is not held, is left
    where it is: a person may still save it.

    The caller keeps other sweeps out, by either lock of the vault. Raises StorageFault when
    something could not be written.
    """
    settled = Settled()
    for stray in found.unknown:
        if stop.is_set():
            return settled
        _settle_unknown(store, stray, settled)
    if found.given_up:
        _remove_given_up(store, found.given_up, settled)
    return settled


def _remove_given_up(store: Store, given_up: list[ObjectId], settled: Settled) -> None:
    """Remove what only tombstones name, once these are known to be durable.

    Whoever wrote them may have been killed before its sync: they could stand in the page cache
    alone, and a power cut would bring back rows whose bytes are gone. A commit syncs them all.
    """
    words = f"{len(given_up)} given up before"
    with store.db.write() as tx:
        audit.record(
            tx, actor="sweep", act="objects removed", kind="instance", subject=None, detail=words
        )
    for stray in given_up:
        _remove(store, stray, settled)


def _remove(store: Store, stray: ObjectId, settled: Settled) -> None:
    failpoint("sweep.removing")
    try:
        store.vault.remove(stray)
        settled.removed += 1
    except OSError:  # it is in nobody's way
        settled.left += 1


def _settle_unknown(store: Store, stray: ObjectId, settled: Settled) -> None:
    if store.vault.size(stray):
        store.vault.sync(stray)  # before it is read: what the disk holds is what counts
    try:
        if not store.vault.is_finished(stray):
            _remove(store, stray, settled)
            return
        draft = _whole(store, stray)
        is_superfluous = _is_superfluous(store, draft)
    except Tampered:
        _set_aside(store, stray, settled)
    except NotFound:
        pass  # another sweep has settled it
    except (EdgePacsError, OSError):  # WrongKey; or a bad sector, which must not stop the rest
        settled.left += 1
    else:
        if is_superfluous:
            _remove(store, stray, settled)
        else:
            _adopt(store, draft, settled)


def _is_superfluous(store: Store, draft: Draft) -> bool:
    """Whether it was made here, and what it was made from, or took its place, is there and whole.

    Of a correction that never came to stand what was received is there: it is never deleted. Of a
    compressed object nobody proved it, or the row would name it: it counts only where there is
    nothing else. Raises where that cannot be told now.
    """
    if draft.arrival.corrects:
        return True
    if draft.arrival.origin is Origin.LOCAL and draft.arrival.sop_class_uid == KEY_OBJECTS:
        return True  # a rejection note of a correction that never came to stand
    if draft.at_rest is None:
        return False
    standing = instances.standing(store.db, draft)
    if standing is None:
        return False
    try:
        _whole(store, standing)
    except (NotFound, Tampered):
        return False
    return True


def _set_aside(store: Store, stray: ObjectId, settled: Settled) -> None:
    try:
        store.vault.set_aside(stray)
        settled.set_aside += 1
    except OSError:
        settled.left += 1


def _adopt(store: Store, draft: Draft, settled: Settled) -> None:
    """Make a whole object known, as if it had just arrived."""
    try:
        store.vault.sync(draft.object_id)  # its writer may have been killed before the disk had it
        failpoint("sweep.synced")
        receipt = instances.commit(store.db, [draft])[0]
    except StorageFault:
        raise
    except EdgePacsError:  # NoRoom, say: it is whole, and may become known another time
        settled.left += 1
        return
    failpoint("sweep.committed")
    disposal.clear_replaced(store, receipt)
    if receipt.outcome is Outcome.DUPLICATE:
        settled.removed += 1
        return
    settled.adopted += 1
    store.ring("upkeep" if receipt.outcome is Outcome.COMPARING else "forward")


def _whole(store: Store, object_id: ObjectId) -> Draft:
    """The draft of an object, every byte of which authenticates; raises Tampered, WrongKey."""
    with store.vault.open(object_id) as reader:
        draft = Draft.from_trailer(reader.trailer(), object_id, store.vault.size(object_id))
        if sum(map(len, reader.chunks())) != draft.byte_length:
            raise Tampered("object: its length is not the one sealed with it")
    return draft
