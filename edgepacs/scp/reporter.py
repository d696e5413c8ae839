"""The reporter: tells modalities what has become of the commitment they have asked for.

In a thread of its own, for what is not reported on the association that asked: it looks at the
instances, opens an association to the modality in the role of SCP (PS3.4 J.3.3, PS3.7 D.3.3.4),
and tries again with growing pauses until the report is taken, or days have gone by.
"""

import threading
from collections.abc import Iterable
from dataclasses import replace

from edgepacs.custody.credentials import tls_context
from edgepacs.dimse import Association, commitment, request
from edgepacs.dimse.contexts import STORAGE_COMMITMENT_PUSH
from edgepacs.dimse.status import Category
from edgepacs.errors import EdgePacsError, LimitExceeded, NotFound, PeerError, StorageFault
from edgepacs.model import PledgeState
from edgepacs.scp.carriers import CONNECT_SECONDS, LIMITS
from edgepacs.store import Store, peers, pledges
from edgepacs.store.peers import ANY_HOST, KnownAE
from edgepacs.store.pledges import Pledge
from edgepacs.telemetry import doorbell, failpoint, log, place_of

_BELL = "reporter"
_LOOK_SECONDS = 1.0  # without a ring: what has been put off becomes due unasked
_TAKEN = (Category.SUCCESS, Category.WARNING)


def wake(store: Store) -> None:
    """Have the reporter look: there is something for it to do."""
    store.ring(_BELL)


def run(store: Store, stop: threading.Event) -> None:
    """Report until `stop`."""
    bell = doorbell(store.paths.doorbell(_BELL))
    recovered = False
    try:
        while not stop.is_set() and store.vault.fault is None:
            recovered = _round(store, stop, recovered=recovered)
            bell.wait(_LOOK_SECONDS)
    except StorageFault as fault:
        store.vault.condemn(fault)


def _round(store: Store, stop: threading.Event, *, recovered: bool) -> bool:
    """See to whatever is due; those of one AE in one association.

    Whether what an earlier process has left is taken over by now; without room it cannot be.
    """
    try:
        if not recovered:
            pledges.recover(store.db)
            recovered = True
        waiting = pledges.due(store.db)
        for title in dict.fromkeys(one.ae for one in waiting):
            if stop.is_set():
                break
            _see_to(store, [one for one in waiting if one.ae == title], stop)
    except StorageFault:
        raise
    except EdgePacsError as error:
        log.warning("commitments are reported later: %s", error)
    except Exception as error:  # noqa: BLE001  the next round may be spared what this one met
        log.error("commitments are reported later: %s", place_of(error))
    return recovered


def _see_to(store: Store, waiting: Iterable[Pledge], stop: threading.Event) -> None:
    ready = [one for one in waiting if _looked_at(store, one, stop)]
    if not ready:
        return
    failpoint("pledge.checked")
    try:
        with _call(store, ready[0]) as association:
            context = association.accepted(STORAGE_COMMITMENT_PUSH)
            assert context is not None  # an association without any would have been refused
            while ready:
                words = tell(store, association, context, ready[0].id)
                one = ready.pop(0)
                if words:
                    _put_off(store, one, words)
    except (PeerError, NotFound, LimitExceeded) as error:  # what a peer does harms it alone
        for one in ready:
            _put_off(store, one, str(error))


def _looked_at(store: Store, one: Pledge, stop: threading.Event) -> bool:
    """Whether its instances have just been looked at."""
    fresh = one.state is PledgeState.CHECKED and pledges.is_fresh(one)
    return fresh or pledges.check(store, one.id, stop.is_set)


def _put_off(store: Store, one: Pledge, words: str) -> None:
    if pledges.undelivered(store.db, one.id, words) is PledgeState.GIVEN_UP:
        log.warning("the report of commitment %d is given up: %s", one.id, words)


def _call(store: Store, one: Pledge) -> Association:
    """An association with whoever asked; raises PeerError, and NotFound where it is not known."""
    known = peers.known_ae(store.db, one.ae)
    if known is None:
        raise NotFound("the AE title that asked may no longer call")
    at = _address(known, one)
    return request(
        at.host,
        at.port,
        calling=one.called_ae,
        called=one.ae,
        contexts=[commitment.AS_SCP],
        limits=LIMITS,
        tls=tls_context(at) if at.tls else None,
        connect_timeout=CONNECT_SECONDS,
    )


def _address(known: KnownAE, one: Pledge) -> KnownAE:
    """Where it is; one that may call from any host is where it asked from."""
    return replace(known, host=one.host) if known.host == ANY_HOST else known


def tell(store: Store, association: Association, context: int, number: int) -> str:
    """Report on one request; why it was not taken, or "". Raises PeerError."""
    one = pledges.pledge(store.db, number)
    outcomes = [
        (item.sop_class_uid, item.sop_instance_uid, item.reason or 0)
        for item in pledges.items(store.db, number)
    ]
    answered = commitment.tell(association, context, one.transaction_uid, outcomes)
    if answered.category not in _TAKEN:
        return f"answered {answered}"
    failpoint("pledge.told")
    pledges.reported(store.db, number)
    return ""
