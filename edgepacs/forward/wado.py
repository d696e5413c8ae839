"""Priors by DICOMweb: asked for by QIDO-RS, brought by WADO-RS (PS3.18 10.4, 10.6).

A study comes as one answer of many parts (multipart/related; type="application/dicom"), each a
DICOM file that is sealed while it arrives. A study of which a part is here already is asked for
instance by instance.
"""

from collections.abc import Iterator
from dataclasses import replace

from edgepacs.custody import ingest
from edgepacs.errors import EdgePacsError, PeerRefused, PeerUnreachable
from edgepacs.forward.priors import MATCHES_MOST, Haul, Match, chosen, uid_or_empty
from edgepacs.forward.web_client import WebClient, WebDataSet
from edgepacs.model import Origin
from edgepacs.store import prefetches

# Any transfer syntax: the form an archive holds is the one it can send without decoding.
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PAGE = 500  # instances listed at a time
_PAGES_MOST = 100
_HEADERS_MOST = 16_384  # bytes before one part
_NO_DICOMWEB = "the destination answers retrievals, but not as DICOMweb does"
_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_PATIENT_ID, _ISSUER, _STUDY_DATE = "00100020", "00100021", "00080020"


def fetch(haul: Haul) -> list[Match]:
    """Fetch a patient's priors; what was wanted. What has come of it stands in `haul`.

    Raises PeerError, LimitExceeded, Busy, NoRoom, StorageFault.
    """
    with WebClient(haul.destination) as client:
        wanted = _find(haul, client)
        for match in wanted:
            haul.require_leave()
            prefetches.fetching(haul.store.db, haul.task.id)
            for path in _paths(haul, client, match.study_instance_uid):
                haul.require_leave()
                _bring(haul, client, match.study_instance_uid, path)
            prefetches.end_study(haul.store.db, match.study_instance_uid)
            haul.studies += 1
    return wanted


def _find(haul: Haul, client: WebClient) -> list[Match]:
    """The studies to fetch (PS3.18 10.6, Search for Studies)."""
    keys = {"PatientID": haul.task.patient_id, "includefield": _ISSUER, "limit": str(MATCHES_MOST)}
    found = _listed(client, "/studies", keys)
    haul.opened = True
    return chosen(haul.store, haul.destination, haul.task, map(_match, found))


def _match(found: WebDataSet) -> Match:
    return Match(
        study_instance_uid=uid_or_empty(found.text(_STUDY)),
        patient_id=found.text(_PATIENT_ID),
        issuer=found.text(_ISSUER),
        study_date=found.text(_STUDY_DATE).replace(".", ""),
    )


def _listed(client: WebClient, path: str, keys: dict[str, str]) -> list[WebDataSet]:
    answer = client.get(path, keys)
    if answer.status == 204:
        return []
    if not answer.good:
        raise answer.refusal()
    if answer.cut:
        raise PeerUnreachable("the connection was lost in the middle of an answer")
    found = None if answer.endless else answer.data_sets()
    if found is None:
        raise PeerRefused("the destination answers queries, but not as DICOMweb does")
    return found


def _paths(haul: Haul, client: WebClient, study: str) -> Iterator[str]:
    """What to ask for: all of a study, or each instance that is missing."""
    if not prefetches.begin_study(haul.store.db, study):
        yield f"/studies/{study}"
        return
    here = prefetches.instances_here(haul.store.db, study)
    for series, instance in _instances(client, study):
        if instance not in here:
            yield f"/studies/{study}/series/{series}/instances/{instance}"


def _instances(client: WebClient, study: str) -> list[tuple[str, str]]:
    """Series and SOP Instance UIDs of a study (PS3.18 10.6, Search for Instances)."""
    found: dict[str, str] = {}
    for _ in range(_PAGES_MOST):
        keys = {"limit": str(_PAGE), "offset": str(len(found))}
        more = {
            uid_or_empty(one.text(_INSTANCE)): uid_or_empty(one.text(_SERIES))
            for one in _listed(client, f"/studies/{study}/instances", keys)
        }
        if not more.keys() - found.keys():
            break
        found |= more
    return [(series, instance) for instance, series in found.items() if series and instance]


def _bring(haul: Haul, client: WebClient, study: str, path: str) -> None:
    """Take in every part of one answer (PS3.18 10.4)."""
    with client.stream(path, _ACCEPT) as answer:
        if not 200 <= answer.status < 300:
            raise answer.refusal()
        if answer.media_type != "multipart/related" or not answer.boundary:
            raise PeerRefused(_NO_DICOMWEB)
        for part in Parts(answer.boundary, haul.watched(answer.pieces())):
            _take(haul, study, part)
            haul.require_leave()


def _take(haul: Haul, study: str, part: "Parts") -> None:
    try:
        arrival, fragments = ingest.opened_part10(
            part, origin=Origin.PREFETCH, source=haul.destination.name
        )
    except EdgePacsError as error:
        haul.judged(error)
    else:
        haul.take(replace(arrival, study_instance_uid=study), fragments)


class Parts:
    """The parts of a multipart body as it arrives (RFC 2046 5.1.1), each read as a file.

    Iterating goes to the next part and drops what is left of the one before; `read` reads the one
    that was come to. Little more is held than what one `read` gives.
    """

    def __init__(self, boundary: str, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._delimiter = b"\r\n--" + boundary.encode("ascii", "replace")
        self._held = bytearray(b"\r\n")  # the first delimiter may lack the line end before it

    def __iter__(self) -> Iterator["Parts"]:
        while self._next():
            yield self

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of this part; b"" at its end. Raises PeerUnreachable."""
        while True:
            end = self._held.find(self._delimiter)
            # What may be the beginning of a delimiter waits for the rest of it.
            ready = end if end >= 0 else len(self._held) - len(self._delimiter) + 1
            if ready > 0 or end == 0:
                taken = bytes(self._held[: min(size, ready)])
                del self._held[: len(taken)]
                return taken
            self._more()

    def _next(self) -> bool:
        """Go to where the next part's content begins; False behind the last."""
        while self.read(1 << 16):
            pass
        start = len(self._delimiter)
        while len(self._held) < start + 2:
            self._more()
        if self._held[start : start + 2] == b"--":
            return False
        while (blank := self._held.find(b"\r\n\r\n", start)) < 0:
            if len(self._held) > start + _HEADERS_MOST:
                raise PeerRefused(_NO_DICOMWEB)
            self._more()
        del self._held[: blank + 4]
        return True

    def _more(self) -> None:
        piece = next(self._pieces, b"")
        if not piece:
            raise PeerUnreachable("the connection was lost in the middle of an answer")
        self._held += piece
