"""Inquiry: which instances a destination has, asked by C-FIND for each SOP Instance UID.

At IMAGE level the query names study and series as well (PS3.4 C.4.1.2). Many UIDs go into one
query where the destination matches lists (PS3.4 C.2.2.2.2), which is tried first on two instances
that it has answered for; one by one else.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from edgepacs.dimse import Association, identifier, query
from edgepacs.dimse.contexts import IMPLICIT_VR_LE
from edgepacs.errors import InvalidValue, PeerError
from edgepacs.forward import dial
from edgepacs.model import UID
from edgepacs.store import Store, commitments
from edgepacs.store.commitments import Sought
from edgepacs.store.destinations import Destination

LIST = 50  # UIDs in one query
_MATCHES = 100  # of one query: more say that it does not heed the keys


def found(store: Store, destination: Destination, items: Sequence[Sought]) -> set[str]:
    """The SOP Instance UIDs among `items` that a destination has, asked in one association.

    Raises PeerRefused where it does not answer such queries, PeerUnreachable, PeerError.
    """
    if not items:
        return set()
    wanted = [(UID(query.STUDY_ROOT_FIND), UID(IMPLICIT_VR_LE))]
    with dial.open_association(store, destination, wanted) as association:
        one = _Inquiry(association)
        size = 1
        if len(items) > 1 and one.matches_lists(
            commitments.delivered_together(store.db, destination.id)
        ):
            size = LIST
        return {uid for some in _of_one_series(items, size) for uid in one.ask(some)}


def _of_one_series(items: Iterable[Sought], size: int) -> Iterator[Sequence[Sought]]:
    """`items` in groups of at most `size`, each of one series."""

    def series(item: Sought) -> tuple[str, str]:
        return item.study_instance_uid, item.series_instance_uid

    for _, group in groupby(sorted(items, key=series), series):
        members = list(group)
        for start in range(0, len(members), size):
            yield members[start : start + size]


class _Inquiry:
    """Queries on one association."""

    def __init__(self, association: Association) -> None:
        context = association.accepted(query.STUDY_ROOT_FIND)
        assert context is not None  # an association without any would have been refused
        self._association = association
        self._context = context

    def matches_lists(self, sample: Sequence[Sought]) -> bool:
        """Whether a query for all of `sample`, which are there, finds them all."""
        return len(sample) > 1 and len(self.ask(sample)) == len(sample)

    def ask(self, items: Sequence[Sought]) -> set[str]:
        """Which of `items`, all of one series, are there."""
        wanted = {one.sop_instance_uid for one in items}
        keys = {
            identifier.QUERY_RETRIEVE_LEVEL: "IMAGE",
            identifier.STUDY_INSTANCE_UID: items[0].study_instance_uid,
            identifier.SERIES_INSTANCE_UID: items[0].series_instance_uid,
            identifier.SOP_INSTANCE_UID: "\\".join(sorted(wanted)),
        }
        try:
            matches = query.find(self._association, self._context, keys, _MATCHES)
        except InvalidValue as error:
            raise PeerError(f"the destination's answer to a query: {error}") from error
        answered = {identifier.text(one, identifier.SOP_INSTANCE_UID) for one in matches}
        # Who does not heed the keys answers with other instances: only what was asked for counts.
        return {str(uid) for uid in wanted & answered}
