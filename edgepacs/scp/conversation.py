"""One association as the services behind it see it."""

from dataclasses import dataclass

from edgepacs.dimse import Association
from edgepacs.scp.shares import Place
from edgepacs.store import Store
from edgepacs.store.peers import KnownAE


@dataclass(frozen=True, slots=True)
class Conversation:
    """One association: who is calling, and what it may take of the node."""

    store: Store
    association: Association
    place: Place
    known: KnownAE
