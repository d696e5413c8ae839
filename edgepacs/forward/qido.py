"""Inquiry by QIDO-RS: which instances a destination has, asked for each SOP Instance UID.

Many UIDs go into one query, as a list with commas (PS3.18 8.3.4.1). Where a list finds nothing,
lists may not be heeded: then all of the series is listed.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from edgepacs.errors import PeerError, PeerRefused, PeerUnreachable
from edgepacs.forward.web_client import Answer, WebClient, WebDataSet
from edgepacs.store import Store
from edgepacs.store.commitments import Sought
from edgepacs.store.destinations import Destination

LIST = 20  # UIDs in one query: servers bound the length of an address
PAGE = 500  # instances listed at a time
_PAGES_MOST = 100
_SOP_INSTANCE_UID = "00080018"


def found(_store: Store, destination: Destination, items: Sequence[Sought]) -> set[str]:
    """The SOP Instance UIDs among `items` that a destination has.

    Raises PeerRefused where it does not answer such queries, PeerUnreachable, PeerBusy,
    NotAdmitted, PeerError.
    """
    with WebClient(destination) as client:
        return found_by(client, items)


def found_by(client: WebClient, items: Sequence[Sought]) -> set[str]:
    """The same over a connection that stands."""

    def series(item: Sought) -> tuple[str, str]:
        return item.study_instance_uid, item.series_instance_uid

    inquiry = _Inquiry(client)
    there: set[str] = set()
    for (study, of_study), group in groupby(sorted(items, key=series), series):
        place = f"/studies/{study}/series/{of_study}/instances"
        wanted = sorted({str(one.sop_instance_uid) for one in group})
        there |= inquiry.ask(place, wanted) & set(wanted)
    return there


class _TooLong(PeerError):
    """An answer passed the size to which answers are read."""


class _Inquiry:
    def __init__(self, client: WebClient) -> None:
        self._client = client
        self._lists: bool | None = None  # whether lists of UIDs are heeded, once it is known
        self._answers = False  # whether it has answered any query yet

    def ask(self, place: str, wanted: Sequence[str]) -> set[str]:
        """Which of `wanted`, all of the series at `place`, are there; perhaps others too."""
        if len(wanted) == 1:
            return self._named(place, wanted)
        if self._lists is not False:
            there = self._listed(place, wanted)
            if there:
                self._lists = True
            if self._lists:
                return there
        try:
            there = self._whole(place) & set(wanted)
        except _TooLong:
            return {uid for one in wanted for uid in self._named(place, [one])}
        if there:
            self._lists = False
        return there

    def _listed(self, place: str, wanted: Sequence[str]) -> set[str]:
        there: set[str] = set()
        for start in range(0, len(wanted), LIST):
            there |= self._named(place, wanted[start : start + LIST]) & set(wanted)
        return there

    def _named(self, place: str, wanted: Iterable[str]) -> set[str]:
        return self._query(place, {"SOPInstanceUID": ",".join(wanted)})

    def _whole(self, place: str) -> set[str]:
        """Every instance of a series, in as many pages as the server makes of it."""
        there: set[str] = set()
        for _ in range(_PAGES_MOST):
            more = self._query(place, {"limit": str(PAGE), "offset": str(len(there))}) - there
            if not more:
                return there
            there |= more
        raise _TooLong("the destination's answer to a query has no end")

    def _query(self, place: str, keys: dict[str, str]) -> set[str]:
        """The SOP Instance UIDs of what matches."""
        answer = self._client.get(place, keys)
        if answer.status == 204:
            matches: list[WebDataSet] = []
        elif answer.status == 404:
            matches = self._none_or_no_queries(answer)
        elif answer.good:
            matches = _matches(answer)
        else:
            raise answer.refusal()
        self._answers = True
        return {one.text(_SOP_INSTANCE_UID) for one in matches}

    def _none_or_no_queries(self, answer: Answer) -> list[WebDataSet]:
        """Nothing, where other queries are answered: some say so of a study that is not there."""
        if not self._answers and not self._client.get("/studies", {"limit": "1"}).good:
            raise answer.refusal()
        return []


def _matches(answer: Answer) -> list[WebDataSet]:
    if answer.endless:
        raise _TooLong("the destination's answer to a query is too long")
    if answer.cut:
        raise PeerUnreachable("the connection was lost in the middle of an answer")
    matches = answer.data_sets()
    if matches is None:
        raise PeerRefused("the destination answers queries, but not as DICOMweb does")
    return matches
