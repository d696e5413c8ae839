"""Amendment: carrying out the corrections of whole studies, and undoing them.

Every instance is written anew and sealed first; then all of them come to stand in one
transaction, or none. What a crash leaves of it the sweep removes, and it begins anew.
"""

from collections.abc import Iterable, Sequence

from edgepacs.custody import correction, rejection
from edgepacs.custody import standing as at_rest
from edgepacs.custody.ingest import Intake
from edgepacs.errors import EdgePacsError, StorageFault
from edgepacs.model import Arrival, CorrectionPolicy, InstanceId, Mismatch, new_uid
from edgepacs.store import (
    Store,
    corrections,
    disposal,
    instances,
    policies,
    reconciliation,
    rejections,
    worklist,
)
from edgepacs.store.corrections import Anew, AsReceived, Note
from edgepacs.store.corrections import Correction as Wanted
from edgepacs.store.db import Transaction
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
from edgepacs.store.policies import Plan
from edgepacs.store.worklist import Entry
from edgepacs.telemetry import log


def carry_out_waiting(store: Store) -> int:
    """Carry out the corrections people have asked for; how many came to an end.

    One whose study is on the line at this moment waits until it is not.
    """
    ended = 0
    for wanted in corrections.waiting(store.db):
        with store.db.read() as tx:
            busy = corrections.being_sent(tx, wanted.study)
        if not busy:
            carry_out(store, wanted)
            ended += 1
    return ended


class _Making:
    """What is written anew for one correction, until it stands or is given up."""

    def __init__(self) -> None:
        self.made: list[Anew] = []
        self.plans: list[Plan] = []
        self.notes: list[Note] = []

    def give_up(self, store: Store) -> None:
        """Remove what was sealed."""
        for draft in [one.draft for one in self.made] + [one.draft for one in self.notes]:
            if draft is not None:
                disposal.clear_swapped(store, draft.object_id)


def carry_out(store: Store, wanted: Wanted) -> None:
    """Carry out one correction; where that cannot be, it has failed and nothing has changed.

    Where more of the study has left meanwhile it waits on. Raises StorageFault.
    """
    making = _Making()
    try:
        with store.vault.writing():
            _write_all(store, wanted, making)
            received = _as_received(store, [one.former for one in making.made])
            with store.db.write() as tx:
                gone = corrections.finish(
                    tx, wanted, making.made, received, making.plans, making.notes
                )
    except StorageFault:
        raise  # whether it is durable only the next start knows: the sweep settles it
    except corrections.Overtaken:
        making.give_up(store)
        return
    except EdgePacsError as error:
        making.give_up(store)
        log.warning("correction %d: not carried out: %s", wanted.id, error)
        with store.db.write() as tx:
            corrections.fail(tx, wanted, str(error))
        return
    for object_id in gone:
        disposal.clear_swapped(store, object_id)
    store.ring("forward")


def _write_all(store: Store, wanted: Wanted, making: _Making) -> None:
    """Write every instance of a study anew, and the notes; sealed but not yet known."""
    with store.db.read() as tx:
        standing = corrections.due(tx, wanted.study)
        entry = worklist.entry(tx, wanted.entry).entry
        making.plans = policies.within(tx, wanted.study)
        names = _names(tx, wanted, entry, standing, making.plans)
    said = correction.Correction(
        entry=entry,
        system=f"EdgePACS {store.config.node.ae_title}",
        at_ms=wanted.asked_ms,
        uids=names,
    )
    for one in standing:
        source = _received(store, one)
        new = correction.corrected(store, source, said)
        if new is not None:
            making.made.append(Anew(one, _sealed(store, source, new)))
        elif one.corrects is not None:
            making.made.append(Anew(one, None))
    _write_notes(store, wanted, standing, making)


def _write_notes(
    store: Store, wanted: Wanted, standing: Sequence[Instance], making: _Making
) -> None:
    """One rejection note for all destinations that have the same instances (IHE RAD-66)."""
    places: dict[tuple[InstanceId, ...], list[int]] = {}
    for plan in making.plans:
        if plan.policy is CorrectionPolicy.REJECT:
            places.setdefault(plan.instances, []).append(plan.destination)
    for numbers, destinations in places.items():
        named = [one for one in standing if one.id in set(numbers)]
        title = rejections.Title.WORKLIST
        draft = rejection.drafted(store, named, title=title, at_ms=wanted.asked_ms)
        making.notes.append(Note(draft, tuple(destinations)))


# What is corrected by these leaves patient and study as they are.
_OF_THE_INSTANCES = {Mismatch.LATERALITY, Mismatch.STATION}


def _names(
    tx: Transaction,
    wanted: Wanted,
    entry: Entry,
    standing: Sequence[Instance],
    plans: Sequence[Plan],
) -> dict[str, str]:
    """New UIDs by those received: those it has by now, and others where it is rejected somewhere.

    What comes late joins what was corrected by the same order before.
    """
    names: dict[str, str] = {}
    for one in standing:
        then = corrections.uids(tx, one.corrects or one.id)
        names |= dict(zip(then, corrections.uids(tx, one.id), strict=True))
    if any(plan.policy is CorrectionPolicy.REJECT for plan in plans):
        known = reconciliation.within(tx, wanted.study)
        stays = known is not None and set(known.flags) <= _OF_THE_INSTANCES
        studies = {corrections.uids(tx, one.corrects or one.id).study for one in standing}
        names |= {
            was: (now if stays else _study_name(entry, was, now)) if was in studies else new_uid()
            for was, now in names.items()
        }
    names |= corrections.moved_before(tx, wanted.study, wanted.entry)
    return {was: name for was, name in names.items() if was != name}


def _study_name(entry: Entry, received: str, now: str) -> str:
    """Under which Study Instance UID a study comes again where it is rejected as `now`."""
    ordered = entry.study_instance_uid
    return ordered if ordered and ordered not in (received, now) else new_uid()


def _received(store: Store, one: Instance) -> Instance:
    """The version that was received of what an instance stands for."""
    return one if one.corrects is None else instances.instance(store.db, one.corrects)


def _sealed(store: Store, source: Instance, new: correction.Corrected) -> Draft:
    """What was written anew as a durable object, of the origin of what it was written anew of.

    Rules ask where an instance came from, and nothing goes back there.
    """
    arrival = Arrival(
        sop_class_uid=source.sop_class_uid,
        sop_instance_uid=new.sop_instance_uid,
        transfer_syntax_uid=new.transfer_syntax_uid,
        origin=source.origin,
        source=source.source,
        corrects=source.received_digest,
    )
    intake = Intake(store, arrival)
    try:
        for piece in new.chunks:
            intake.write(piece)
    except BaseException:
        intake.discard()
        raise
    return intake.seal()


def revert(store: Store, number: int, *, actor: str) -> None:
    """Let what was received stand again in place of a correction.

    Raises NotFound, and Conflict where it cannot be: something of it has been sent since.
    """
    with store.db.read() as tx:
        wanted = corrections.within(tx, number)
        standing = corrections.corrected_in(tx, wanted.result or wanted.study)
    received = _as_received(store, standing)
    with store.db.write() as tx:
        gone = corrections.revert(tx, wanted, received, actor=actor)
    for object_id in gone:
        disposal.clear_swapped(store, object_id)
    store.ring("forward")


def _as_received(store: Store, standing: Iterable[Instance]) -> AsReceived:
    """What was sealed with the received versions that corrections stand for."""
    found: AsReceived = {}
    for one in standing:
        if one.corrects is not None:
            row, stored = at_rest.opened(store, _received(store, one))
            with stored:
                found[one.corrects] = Draft.from_trailer(
                    stored.trailer(), row.object_id, row.sealed_length
                ).attributes
    return found
