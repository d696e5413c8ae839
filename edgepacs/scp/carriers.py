"""Where the instances of a retrieval go: on the association that asked, or on one to another AE."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from edgepacs.custody.credentials import tls_context
from edgepacs.dimse import (
    Association,
    Limits,
    MoveOriginator,
    Priority,
    ProposedContext,
    StoreResponse,
    request,
)
from edgepacs.dimse.contexts import (
    DEFLATED_EXPLICIT_VR_LE,
    EXPLICIT_VR_LE,
    HTJ2K_LOSSLESS,
    IMPLICIT_VR_LE,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from edgepacs.dimse.requestor import CONTEXTS_MAX
from edgepacs.errors import EdgePacsError, PeerError
from edgepacs.model import UID, AETitle
from edgepacs.store.peers import KnownAE
from edgepacs.store.retrievals import Wanted

LIMITS = Limits(stall=30.0, release=2.5)
"""Of associations that we open to an AE of this site."""
CONNECT_SECONDS = 10.0
NATIVE = (EXPLICIT_VR_LE, IMPLICIT_VR_LE)
SMALLER = (
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    HTJ2K_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    RLE_LOSSLESS,
    DEFLATED_EXPLICIT_VR_LE,
)
"""What instances are written in here without loss (`custody.outgoing.writable`)."""

Pair = tuple[str, str]  # SOP class and transfer syntax


@dataclass(frozen=True, slots=True)
class Going:
    """An instance on its way: `pieces` gives its data set, as often as it is asked."""

    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    pieces: Callable[[], Iterator[bytes]]


class NotDelivered(EdgePacsError):
    """An instance did not reach the AE it was to be moved to; says why."""


class Carrier(Protocol):
    """What brings the instances of one retrieval to the AE `title`, where they are wanted."""

    title: str

    def accepted(self, sop_class_uid: UID) -> frozenset[UID]:
        """The transfer syntaxes in which instances of a SOP class are taken there."""

    def send(self, going: Going, priority: Priority) -> StoreResponse:
        """One C-STORE sub-operation; raises NotDelivered, or PeerError when the asker is gone."""

    def close(self) -> None:
        """There is nothing more to be brought."""


class Asker:
    """The association that asked by C-GET: we are SCU where it is SCP (PS3.7 D.3.3.4)."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self.title = association.calling_ae
        self._contexts: Mapping[Pair, int] = {
            (context.abstract_syntax, context.transfer_syntax): number
            for number, context in association.contexts.items()
            if context.roles.scp
        }

    def accepted(self, sop_class_uid: UID) -> frozenset[UID]:
        return frozenset(UID(syntax) for one, syntax in self._contexts if one == sop_class_uid)

    def send(self, going: Going, priority: Priority) -> StoreResponse:
        return self._association.store(
            self._contexts[going.sop_class_uid, going.transfer_syntax_uid],
            going.sop_class_uid,
            going.sop_instance_uid,
            going.pieces(),
            priority=priority,
        )

    def close(self) -> None:
        pass


class Elsewhere:
    """An AE that a C-MOVE names: an association with it, opened when it is first needed.

    Where that breaks after it has carried something it is opened once more; else the rest fails.
    """

    def __init__(
        self,
        destination: KnownAE,
        calling: AETitle,
        wanted: Iterable[Wanted],
        originator: MoveOriginator,
    ) -> None:
        self._destination = destination
        self.title: str = destination.title
        self._calling = calling
        self._proposed = proposals(wanted)
        self._originator = originator
        self._association: Association | None = None
        self._carried = 0  # by this association
        self._why_not = ""  # what ends all attempts

    def accepted(self, sop_class_uid: UID) -> frozenset[UID]:
        contexts = self._opened().contexts.values()
        return frozenset(
            UID(one.transfer_syntax) for one in contexts if one.abstract_syntax == sop_class_uid
        )

    def send(self, going: Going, priority: Priority) -> StoreResponse:
        for _ in range(2):
            association = self._opened()
            context = association.accepted(going.sop_class_uid, going.transfer_syntax_uid)
            if context is None:
                break
            try:
                response = association.store(
                    context,
                    going.sop_class_uid,
                    going.sop_instance_uid,
                    going.pieces(),
                    priority=priority,
                    originator=self._originator,
                )
            except PeerError as error:
                self._broken(error)
            except EdgePacsError:  # our own copy: half a data set has ended the association
                self._drop()
                raise
            else:
                self._carried += 1
                return response
        raise NotDelivered("the move destination has changed what it accepts")

    def _opened(self) -> Association:
        if self._why_not:
            raise NotDelivered(self._why_not)
        if self._association is None or not self._association.is_open:
            self._drop()
            try:
                self._association = self._open()
            except PeerError as error:
                self._why_not = f"the move destination: {error}"
                raise NotDelivered(self._why_not) from error
        return self._association

    def _open(self) -> Association:
        """One presentation context for each pair: the choice must not be the peer's."""
        return request(
            self._destination.host,
            self._destination.port,
            calling=self._calling,
            called=self._destination.title,
            contexts=[
                ProposedContext(abstract_syntax=one, transfer_syntaxes=(syntax,))
                for one, syntax in self._proposed
            ],
            limits=LIMITS,
            tls=tls_context(self._destination) if self._destination.tls else None,
            connect_timeout=CONNECT_SECONDS,
        )

    def _broken(self, error: PeerError) -> None:
        """Raises NotDelivered where another association is not worth a try."""
        fruitless = self._carried == 0
        self._drop()
        if fruitless:
            self._why_not = f"the move destination: {error}"
            raise NotDelivered(self._why_not) from error

    def _drop(self) -> None:
        if self._association is not None:
            self._association.close()
        self._association, self._carried = None, 0

    def close(self) -> None:
        if self._association is not None and self._association.is_open:
            with suppress(PeerError):  # all its answers are in
                self._association.release()
        self._drop()


def proposals(wanted: Iterable[Wanted]) -> list[Pair]:
    """What to propose: what is stored, then native, then what is smaller or was received.

    Of what many instances are of first; an association has room for 128 (PS3.8 9.3.2.2).
    """
    stored: Counter[Pair] = Counter()
    received: Counter[Pair] = Counter()
    classes: Counter[str] = Counter()
    images: set[str] = set()
    for one in wanted:
        stored[one.sop_class_uid, one.transfer_syntax_uid] += 1
        received[one.sop_class_uid, one.received_syntax_uid] += 1
        classes[one.sop_class_uid] += 1
        if one.frames:
            images.add(one.sop_class_uid)
    ranked = [one for one, _ in classes.most_common()]
    pairs = [pair for pair, _ in stored.most_common()]
    pairs += [(one, syntax) for syntax in NATIVE for one in ranked]
    pairs += [pair for pair, _ in received.most_common()]
    pairs += [(one, syntax) for syntax in SMALLER for one in ranked if one in images]
    return list(dict.fromkeys(pairs))[:CONTEXTS_MAX]


def at_address(known: KnownAE, association: Association) -> KnownAE | None:
    """Where a known AE can be called: one at any host only while it is the one that asks."""
    if known.host != "*":
        return known
    same = known.title == association.calling_ae
    return replace(known, host=association.peer.host) if same else None
