"""Amendment: carrying out the corrections of whole studies, and undoing them.

Every instance is written anew and sealed first; then all of them come to stand in one
transaction, or none. What a crash leaves of it the sweep removes, and it begins anew.
"""

from collections.abc import Iterable

from edgepacs.custody import correction
from edgepacs.custody import standing as at_rest
from edgepacs.custody.ingest import Intake
from edgepacs.errors import EdgePacsError, StorageFault
from edgepacs.model import Arrival
from edgepacs.store import Store, corrections, disposal, instances, worklist
from edgepacs.store.corrections import Anew, AsReceived
from edgepacs.store.corrections import Correction as Wanted
from edgepacs.store.drafts import Draft
from edgepacs.store.instances import Instance
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


def carry_out(store: Store, wanted: Wanted) -> None:
    """Carry out one correction; where that cannot be, it has failed and nothing has changed.

    Raises StorageFault.
    """
    made: list[Anew] = []
    try:
        with store.vault.writing():
            _write_all(store, wanted, made)
            received = _as_received(store, [one.former for one in made])
            with store.db.write() as tx:
                gone = corrections.finish(tx, wanted, made, received)
    except StorageFault:
        raise  # whether it is durable only the next start knows: the sweep settles it
    except EdgePacsError as error:
        _give_up(store, made)
        log.warning("correction %d: not carried out: %s", wanted.id, error)
        with store.db.write() as tx:
            corrections.fail(tx, wanted, str(error))
        return
    for object_id in gone:
        disposal.clear_swapped(store, object_id)
    store.ring("forward")


def _write_all(store: Store, wanted: Wanted, made: list[Anew]) -> None:
    """Write every instance of a study anew, sealed but not yet known, adding each to `made`."""
    with store.db.read() as tx:
        standing = corrections.due(tx, wanted.study)
        entry = worklist.entry(tx, wanted.entry).entry
    said = correction.Correction(
        entry=entry, system=f"EdgePACS {store.config.node.ae_title}", at_ms=wanted.asked_ms
    )
    for one in standing:
        source = _received(store, one)
        new = correction.corrected(store, source, said)
        if new is not None:
            made.append(Anew(one, _sealed(store, source, new)))
        elif one.corrects is not None:
            made.append(Anew(one, None))


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


def _give_up(store: Store, made: Iterable[Anew]) -> None:
    for one in made:
        if one.draft is not None:
            disposal.clear_swapped(store, one.draft.object_id)


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
